"""``kdcli export --push-to``: an exported folder as a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from kdcli.base.errors import UserError
from kdcli.base.text import short_repr
from kdcli.models.hub import NETWORK_ERRORS

_LOG_IN = "'hf auth login', or set HF_TOKEN, with a token that may write to {owner}; or leave --push-to out."
_REFUSED = (401, 403)
_KEPT = "README-edited-*.md"
"""Earlier model cards that somebody edited: they stay here."""


def check_target(text: str) -> str:
    """Return the repository ``ORG/NAME`` of ``hf:ORG/NAME``, before anything is exported.

    Raises:
        UserError: it is no such name, the hub client is offline, or there is no token.
    """
    prefix, _, repo = text.partition(":")
    wrong = f"--push-to {short_repr(text)} names no repository of the Hugging Face hub"
    if prefix != "hf" or repo.count("/") != 1:
        raise UserError(f"{wrong}.", "Write hf:ORG/NAME, with your own name or an organisation's before the slash.")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{wrong}: {error}", "Write hf:ORG/NAME.") from None
    if constants.HF_HUB_OFFLINE:
        raise UserError("--push-to needs the network, and HF_HUB_OFFLINE is set.", "Unset it, or leave --push-to out.")
    if get_token() is None:
        owner = repo.partition("/")[0]
        raise UserError(
            "--push-to needs a token of the Hugging Face hub, and there is none.", _LOG_IN.format(owner=owner)
        )
    return repo


def target_of(text: str | None, *, public: bool) -> str | None:
    """Return the repository to upload to; None where nothing is to be uploaded. Errors are :func:`check_target`'s."""
    if text is not None:
        return check_target(text)
    if public:
        raise UserError("--public is for --push-to, and nothing is uploaded.", "Add --push-to hf:ORG/NAME.")
    return None


def push(folder: Path, repo: str, *, public: bool) -> list[str]:
    """Upload an exported folder in one commit, into a repository that is made where there is none.

    Args:
        folder: whole.
        repo: ``ORG/NAME``.
        public: whether everybody may see it; else it is private.

    Returns:
        Sentences for the user.

    Raises:
        UserError: the hub is out of reach or refuses, or there is a public repository of this name and ``public`` is
            not asked for.
    """
    api = HfApi()
    at = f"{folder} is exported, but was not uploaded"
    try:
        url = api.create_repo(repo, repo_type="model", private=not public, exist_ok=True)
        is_private = bool(api.model_info(repo).private)
        if not is_private and not public:
            raise UserError(f"{at}: {repo} exists already, and everybody can see it.", "Add --public, or name another.")
        api.upload_folder(
            repo_id=repo,
            repo_type="model",
            folder_path=folder,
            ignore_patterns=[_KEPT],
            commit_message="A student distilled with kdcli",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in _REFUSED:
            owner = repo.partition("/")[0]
            raise UserError(
                f"{at}: the hub refuses access to {repo} ({status}).", _LOG_IN.format(owner=owner)
            ) from error
        raise UserError(f"{at}: {_first_line(error)}", "Try again later.") from error
    except NETWORK_ERRORS as error:
        raise UserError(f"{at}: the hub can't be reached ({_first_line(error)}).", "Connect, and try again.") from error
    kept = [f"{repo} existed already and is still private."] if is_private and public else []
    return [f"Uploaded to {url}, {'private' if is_private else 'for everybody'}.", *kept]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
