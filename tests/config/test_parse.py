from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdcli.base.checksums import signed
from kdcli.config.keys import check_domain, refuse_differences, without_later_keys
from kdcli.config.parse import as_begun, parse_config
from kdcli.config.recipes import load_recipe
from kdcli.runs.folder import RunFolder

IMAGES: dict[str, Any] = {"teacher": "none", "student": "cifar:resnet8", "data": {"name": "demo:digits"}}
TEXTS: dict[str, Any] = {"task": "text-classification", **IMAGES, "data": {"name": "demo:python_docs"}}


@pytest.mark.parametrize("value", [None, "always"])
def test_runs_of_earlier_versions_decode_as_they_did(tmp_path: Path, value: str | None) -> None:
    values = IMAGES if value is None else IMAGES | {"data": IMAGES["data"] | {"reduced_decoding": value}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert RunFolder(tmp_path).read_config().data.reduced_decoding == (value or "never")
    assert parse_config(values, source="a recipe").data.reduced_decoding == (value or "training")


def test_a_checkpoint_of_an_earlier_version_goes_on() -> None:
    config = parse_config(as_begun(IMAGES), source="the run")
    saved = {"data.name": "demo:digits", "train.epochs": config.train.epochs}
    refuse_differences(without_later_keys(saved, config), config, Path("checkpoint"))


def test_texts_have_no_such_key() -> None:
    config = parse_config(as_begun(TEXTS), source="the run")
    check_domain(config)
    assert config.data.reduced_decoding == "training"
    assert as_begun({"data": "demo:digits"}) == {"data": "demo:digits"}
    assert as_begun({"task": "unknown", "data": {}}) == {"task": "unknown", "data": {}}


@pytest.mark.parametrize(
    ("value", "training", "evaluation"), [("never", False, False), ("training", True, False), ("always", True, True)]
)
def test_where_decoding_is_reduced(value: str, training: bool, evaluation: bool) -> None:
    data = parse_config(IMAGES | {"data": {"name": "x", "reduced_decoding": value}}, source="a test").data
    assert (data.reduces(training=True), data.reduces(training=False)) == (training, evaluation)


BEFORE = {"channels_last": False, "fused_optimizer": False, "teacher_forward": "plain"}


def test_the_config_of_an_earlier_run_repeats_it_as_it_was(tmp_path):
    """As a recipe, too: without what later versions measure or do by default."""
    file = tmp_path / "config.yaml"
    of_run = IMAGES | {"teacher": {"name": "t"}, "train": {"epochs": 3}}
    file.write_bytes(signed(yaml.safe_dump(of_run).encode()))
    found = load_recipe(file)
    assert found["data"] == {**of_run["data"], "reduced_decoding": "never"}
    assert found["train"] == {"epochs": 3} | BEFORE
    (tmp_path / "mine.yaml").write_text("extends: config.yaml\ntrain: {epochs: 4, channels_last: true}\n")
    assert load_recipe(tmp_path / "mine.yaml")["train"] == {"epochs": 4} | BEFORE | {"channels_last": True}
    file.write_bytes(signed(yaml.safe_dump(of_run | {"train": {"teacher_forward": "folded"}}).encode()))
    assert load_recipe(file)["train"] == BEFORE | {"teacher_forward": "folded"}
    file.write_bytes(signed(yaml.safe_dump(TEXTS | {"train": {}}).encode()))
    assert load_recipe(file)["train"] == {"fused_optimizer": False}
    file.write_text(yaml.safe_dump(of_run))  # a recipe of the user's own
    assert load_recipe(file) == of_run
