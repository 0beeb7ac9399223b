"""The summary of a plan: what decides, every warning, and no more than fits a screen."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rich.console import Console

from kdcli.config.methods.features import ProjectionOptions
from kdcli.config.methods.labels import SupervisedOptions
from kdcli.plan.plan import Decision, Plan
from kdcli.plan.summary import summarise
from kdcli.terminal import console

PLAN = Plan(
    relation="cross",
    label_map=None,
    methods=(SupervisedOptions(), ProjectionOptions(projector="orthogonal", normalize="standardize", weight=0.5)),
    embedding=None,
    decisions=(
        Decision("relation", "cross", "The teacher knows 1000 classes, the data have 10. None of them is among them."),
        Decision("loss: supervised", "weight 1", "1293 of 1293 images have labels."),
        Decision("features: projection", "student embedding (64) -> teacher pooled (128)", "Width in brackets."),
        Decision("seen in our bench", "+0.2 to +3.4 points", "A long reason."),
        Decision("teacher", "resnet50: 25.56M parameters", "timm/resnet50"),
        Decision("student", "resnet18: 11.18M parameters", ""),
        Decision("compression", "2.3x parameters", "Each at its own size."),
        Decision("data", "photos: 10 classes", "7 files are not read.", warning="7 files are not read."),
        Decision("training", "100 epochs, batch 128", "The best is kept."),
        Decision("trainable parameters", "11.26M: student 11.18M", "Projectors are trained."),
        Decision("memory", "about 1.00 GiB", "Weights."),
        Decision(
            "teacher probed",
            "accuracy 0.1",
            "Guessing.",
            warning="Warning: they tell nothing.",
            brief="0.1, as guessing",
        ),
    ),
)


def test_each_line_says_what_decides() -> None:
    lines = summarise(PLAN)
    assert [(line.name, line.text) for line in lines] == [
        ("relation", "cross: The teacher knows 1000 classes, the data have 10"),
        ("teacher", "resnet50: 25.56M parameters (timm/resnet50)"),
        ("student", "resnet18: 11.18M parameters"),
        ("data", "photos: 10 classes"),
        ("losses", "supervised 1; projection 0.5 through the orthogonal projector (standardize)"),
        ("layers", "student embedding (64) -> teacher pooled (128)"),
        ("training", "100 epochs, batch 128"),
        ("cost", "2.3x parameters; trains 11.26M parameters; memory about 1.00 GiB"),
        ("probed", "0.1, as guessing"),
        ("seen", "+0.2 to +3.4 points with this relation in our bench; yours can differ, --baseline measures it"),
        ("warning", "7 files are not read."),
        ("warning", "they tell nothing."),
        ("more", "--plan full: all 12 decisions with their reasons, as plan.json"),
    ]
    assert [line.name for line in lines if line.is_warning] == ["warning", "warning"]


@pytest.mark.parametrize("number", [0, 1, 5])
def test_no_warning_is_left_out(number: int) -> None:
    told = tuple(Decision(f"thing {each}", "x", f"Look: {each}.", warning=f"Look: {each}.") for each in range(number))
    plan = replace(PLAN, decisions=told)
    assert [line.text for line in summarise(plan) if line.is_warning] == [f"Look: {each}." for each in range(number)]


def test_it_fits_a_screen_without_broken_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "console", Console(width=80, force_terminal=True, color_system=None))
    console.show_plan(PLAN, title="Plan: resnet18 from resnet50")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert lines[0].strip() == "Plan: resnet18 from resnet50"
    words = re.split(r"\s+", " ".join(f"{line.name} {line.text}" for line in summarise(PLAN)))
    assert " ".join(lines[1:]).split() == words, "words are whole and in order"


def test_a_warning_of_plan_json_is_there_only_where_there_is_one() -> None:
    decisions = PLAN.to_json()["decisions"]
    assert decisions[7] == {
        "name": "data", "value": "photos: 10 classes", "reason": "7 files are not read.", "warning": "7 files are not read.",
    }  # fmt: skip
    assert decisions[0].keys() == {"name", "value", "reason"}
