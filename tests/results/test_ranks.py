"""What the ranks of a projector are said to mean."""

from __future__ import annotations

from typing import Any

import pytest

from kdcli.results import ranks


def _result(first: float, last: float, *, kind: str = "inverted", moved: float | None = 0.5) -> dict[str, Any]:
    evolution = {"steps": [0, 200, 408], **{name: [first, (first + last) / 2, last] for name in ranks.RANKS}}
    return {
        "kind": kind,
        "evolution": evolution,
        "moved": moved,
        "lr_scale": 0.01,
        "weight": 0.1,
        "is_balanced": False,
        "spectrum": {"shape": [96, 64]},
    }


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (_result(64, 48), "Training dropped 25% of the directions (effective rank 64.0 to 48.0); it moved by 50.0% of its norm."),
        (_result(64, 48, moved=None), "Training dropped 25% of the directions (effective rank 64.0 to 48.0)."),
        (
            _result(64, 63, moved=0.031),
            "Training dropped no directions (effective rank 64.0 to 63.0): the projector hardly moved, by 3.1% of its norm,"
            " in 408 steps at 0.01 of the student's learning rate with a weight of 0.1.",
        ),
        (
            _result(64, 63),
            "Training dropped no directions (effective rank 64.0 to 63.0), although it moved by 50.0% of its norm: it"
            " turned or scaled them.",
        ),
        (
            _result(64, 63, moved=0) | {"is_balanced": True, "weight": 0.3},
            "Training dropped no directions (effective rank 64.0 to 63.0): the projector hardly moved, by 0.0% of its norm,"
            " in 408 steps at 0.01 of the student's learning rate with a weight of 0.3 (a ratio of gradients).",
        ),
        (_result(64, 63, moved=None), "Training dropped no directions (effective rank 64.0 to 63.0)."),
        (_result(40, 50, moved=None), "Training dropped no directions, it opened some (effective rank 40.0 to 50.0)."),
        (
            _result(64, 64, kind="orthogonal"),
            "It keeps every direction by construction (effective rank 64.0 to 64.0), and it moved by 50.0% of its norm.",
        ),
        (_result(0, 0, moved=None), "Training dropped no directions (effective rank 0.0 to 0.0)."),
    ],
)  # fmt: skip
def test_conclusion(result: dict[str, Any], expected: str) -> None:
    assert ranks.conclude(result) == expected


def test_table() -> None:
    one = {"relation": "cross", "projectors": {"projection": _result(64, 48) | {"conclusion": "x"}}}
    two = {
        "relation": "same",
        "projectors": {name: _result(8, 8, kind="linear", moved=None) | {"conclusion": "y"} for name in ("a", "a-2")},
    }
    summaries = ranks.summarize_ranks("first", one) + ranks.summarize_ranks("second", two)
    columns, rows = ranks.tabulate(summaries)
    assert columns == ["run", "relation", "projector", "numerical rank", "stable rank", "effective rank", "moved"]
    assert rows[0] == ["first", "cross", "inverted 96 x 64", "64 → 48", "64.0 → 48.0", "64.0 → 48.0", "50.0%"]
    assert [row[0] for row in rows] == ["first", "second: a", "second: a-2"]
    assert rows[2][-1] == "-"
