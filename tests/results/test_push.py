"""Uploads to the Hugging Face hub, whose client is a stand-in that remembers what it was asked."""

from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError

from kdcli.base.errors import UserError
from kdcli.models.library import HubSource
from kdcli.models.sources import source_on_hub
from kdcli.results import push as module
from kdcli.results.push import check_target, push

URL = "https://huggingface.co/me/digits"


class Hub:
    """What :class:`huggingface_hub.HfApi` is asked for, with answers of the test's own."""

    def __init__(self):
        self.calls, self.is_private, self.error = [], None, None

    def create_repo(self, repo, **options):
        if self.error is not None:
            raise self.error
        self.calls.append(("create", repo, options))
        if self.is_private is None:
            self.is_private = options["private"]
        return URL

    def model_info(self, repo):
        return SimpleNamespace(private=self.is_private)

    def upload_folder(self, **options):
        self.calls.append(("upload", options["repo_id"], options))


@pytest.fixture
def hub(monkeypatch):
    found = Hub()
    monkeypatch.setattr(module, "HfApi", lambda: found)
    monkeypatch.setattr(module, "get_token", lambda: "token")
    monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", False)
    return found


@pytest.mark.parametrize("public", [False, True])
def test_a_folder_is_uploaded_in_one_commit(hub, tmp_path, public):
    (sentence,) = push(tmp_path, check_target("hf:me/digits"), public=public)
    (_, repo, made), (_, uploaded, options) = hub.calls
    assert repo == uploaded == "me/digits"
    assert (made["private"], made["exist_ok"], made["repo_type"]) == (not public, True, "model")
    assert options["folder_path"] == tmp_path
    assert options["ignore_patterns"] == ["README-edited-*.md"]
    assert sentence == f"Uploaded to {URL}, {'for everybody' if public else 'private'}."


def test_a_public_repository_gets_nothing_that_was_not_to_be_public(hub, tmp_path):
    hub.is_private = False
    with pytest.raises(UserError, match="exists already, and everybody can see it") as error:
        push(tmp_path, "me/digits", public=False)
    assert "--public" in error.value.hint
    assert [name for name, *_ in hub.calls] == ["create"]


def test_a_private_one_stays_private_and_it_is_told(hub, tmp_path):
    hub.is_private = True
    assert push(tmp_path, "me/digits", public=True)[-1] == "me/digits existed already and is still private."


def refusal(status):
    response: Any = SimpleNamespace(status_code=status, headers={}, request=SimpleNamespace(url=URL), text="")
    return HfHubHTTPError("The hub says no.\nAnd more.", response=response)


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (refusal(403), "the hub refuses access to me/digits (403)", "token that may write to me"),
        (refusal(401), "the hub refuses access to me/digits (401)", "hf auth login"),
        (refusal(500), "The hub says no.", "Try again later"),
        (OSError("no route"), "the hub can't be reached (no route)", "Connect"),
    ],
)
def test_a_hub_that_refuses_or_is_away_is_one_message(hub, tmp_path, error, message, hint):
    hub.error = error
    with pytest.raises(UserError) as caught:
        push(tmp_path, "me/digits", public=False)
    assert caught.value.message.startswith(f"{tmp_path} is exported, but was not uploaded: ")
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["me/digits", "hf:digits", "hf:me/digits/more", "hf:me/", "hf:me/a b", "hf:-me/a"])
def test_names_that_are_none(hub, name):
    with pytest.raises(UserError, match="names no repository"):
        check_target(name)


def test_offline_and_without_a_token_nothing_begins(hub, monkeypatch):
    monkeypatch.setattr(module, "get_token", lambda: None)
    with pytest.raises(UserError, match="there is none") as error:
        check_target("hf:me/digits")
    assert "token that may write to me" in error.value.hint
    monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        check_target("hf:me/digits")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("resnet50", HubSource("timm/resnet50.a1_in1k", "apache-2.0")),
        ("timm:resnet50.a1_in1k", HubSource("timm/resnet50.a1_in1k", "apache-2.0")),
        ("hf:microsoft/resnet-50", HubSource("microsoft/resnet-50")),
        ("google-bert/bert-base-uncased", HubSource("google-bert/bert-base-uncased")),
        ("random:resnet50", None),
        ("cifar:resnet8", None),
        ("none", None),
        ("./runs/first", None),
    ],
)
def test_whose_weights_they_are(name, source):
    assert source_on_hub(name) == source
