"""What was measured once is not measured again, and not taken for another network's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdcli.base.files import cache_folder
from kdcli.config.models import TeacherConfig
from kdcli.models import latency, load_teacher
from kdcli.models.base import Model


def model(name: str, *, size: int | None = None) -> Model:
    return load_teacher(TeacherConfig(name=f"random:{name}", image_size=size), seed=0, task="image-classification")


@pytest.fixture
def passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is measured, in a cache folder of its own."""
    seen: list[str] = []

    def measured(model: Model, *, fastest: bool) -> float:
        assert fastest
        seen.append(model.facts.name)
        return 1.5 * len(seen)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(latency, "latency_of", measured)
    return seen


def test_a_latency_is_found_again_by_network_and_input(passes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = model("cifar:resnet8")
    assert [latency.known_latency(small), latency.known_latency(model("cifar:resnet8"))] == [1.5, 1.5]
    assert latency.known_latency(model("cifar:resnet20")) == 3.0
    assert latency.known_latency(model("cifar:resnet8", size=16)) == 4.5
    monkeypatch.setattr(latency.platform, "node", lambda: "another machine")
    assert latency.known_latency(small) == 6.0
    assert len(passes) == 4


def test_what_is_not_whole_is_measured_again(passes: list[str]) -> None:
    small = model("cifar:resnet8")
    latency.known_latency(small)
    (file,) = (cache_folder() / "latencies").iterdir()
    for text in ("", "[]", '{"milliseconds": "1"}', '{"milliseconds": -1.0}'):
        file.write_text(text)
        latency.known_latency(small)
    assert len(passes) == 5
    assert json.loads(file.read_text())["milliseconds"] == 7.5


def test_a_folder_that_cannot_be_written_to_costs_passes_alone(passes: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    small = model("cifar:resnet8")
    assert [latency.known_latency(small), latency.known_latency(small)] == [1.5, 3.0]
