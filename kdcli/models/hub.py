"""Files of the Hugging Face hub, from its cache or the network, with an error in seconds where neither has them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from kdcli.base.errors import UserError

_PROBE_SECONDS = 5
NETWORK_ERRORS: tuple[type[Exception], ...] = (HfHubHTTPError.__bases__[0], OSError)
"""Beside the system's own: HTTPError of the client library, whose name depends on the hub's version."""

OFFLINE_HINT = (
    "Connect to the network, or point HF_HOME at a cache that has the files. A teacher's weights can also be a local "
    "file (--teacher-weights FILE) or none (random:NAME); a student can start untrained (--no-student-pretrained)."
)


@cache
def reachable() -> bool:
    """Whether the hub answers, asked once a process and without the hub client's minute of retries."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except NETWORK_ERRORS:
        return False
    return True


def download(repo: str, filename: str) -> Path | None:
    """Return the local path of one file, downloading it if need be.

    Args:
        repo: ``org/name`` or ``org/name@revision``.
        filename: path inside the repository.

    Returns:
        None where the repository has no such file, or the hub is out of reach and the file is not cached.

    Raises:
        UserError: no such repository or revision, no access, or the download broke off.
    """
    name, _, revision = repo.partition("@")
    if ".." in revision.split("/"):  # it is part of a path in the cache
        raise UserError(f"{name} has no revision {revision!r}.", "Leave '@revision' out for its main branch.")
    try:
        return Path(hf_hub_download(name, filename, revision=revision or None, local_files_only=not reachable()))
    except EntryNotFoundError:  # also "not in the cache"
        return None
    except GatedRepoError:
        raise UserError(
            f"{name} on the Hugging Face hub is gated, and no access was granted.",
            f"Accept its terms at {constants.ENDPOINT}/{name}, then 'hf auth login' or set HF_TOKEN.",
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"There is no model {name!r} on the Hugging Face hub, or it is private.",
            "Check the name; for a private one, 'hf auth login' or set HF_TOKEN.",
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{name} has no revision {revision!r}.", "Leave '@revision' out for its main branch.") from None
    except HFValidationError as error:
        raise UserError(f"{name!r} is not a name on the Hugging Face hub: {error}", "Hub names are ORG/NAME.") from None
    except NETWORK_ERRORS as error:
        raise UserError(
            f"Could not download {filename} of {name}: {type(error).__name__}: {error}", "Try again later."
        ) from error


def first_of(repo: str, filenames: tuple[str, ...], *, what: str) -> Path:
    """Return the local path of the first file in ``filenames`` that can be had.

    Raises:
        UserError: none can; ``what`` says in words what is missing.
    """
    for filename in filenames:
        if path := download(repo, filename):
            return path
    raise _unavailable(repo, what, filenames)


def snapshot(repo: str, *, weights: bool, others: Iterable[str] = ()) -> Path:
    """Return the local folder with ``repo``'s config and, if asked, its weights (safetensors preferred).

    Args:
        repo: ``org/name`` or ``org/name@revision``.
        weights: whether they are wanted.
        others: further files, each where there is one.

    Raises:
        UserError: one of them can't be had.
    """
    folder = first_of(repo, ("config.json",), what=f"The configuration of {repo}").parent
    for filename in others:
        download(repo, filename)
    if weights:
        found = first_of(
            repo,
            ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
            what=f"Pretrained weights of {repo}",
        )
        if found.suffix == ".json":
            for shard in _shards(found):
                first_of(repo, (shard,), what=f"A shard of {repo}'s weights")
    return folder


def _shards(index: Path) -> list[str]:
    """Return the names of the files that an index of weights lists.

    Raises:
        UserError: it is damaged, or a name leads out of the repository's folder.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        wrong = [name for name in names if not re.fullmatch(r"\w[\w.-]*", name)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is damaged: {type(error).__name__}: {error}.", "Choose another model.") from error
    if wrong:
        raise UserError(f"{index} lists {wrong[0]!r}, which is no file beside it.", "Choose another model.")
    return names


def _unavailable(repo: str, what: str, filenames: tuple[str, ...]) -> UserError:
    if reachable():
        return UserError(
            f"{what} can't be had: {repo} on the hub has no {' or '.join(filenames)}.",
            "Choose another model, or give the weights as a local file (--teacher-weights FILE).",
        )
    state = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hugging Face hub can't be reached"
    return UserError(f"{what} can't be had: {state} and the files are not in the local cache.", OFFLINE_HINT)
