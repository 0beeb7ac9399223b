"""What a projector's ranks over the training tell, in a sentence; and those of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

RANKS = ("numerical", "stable", "effective")
NOTICED = 0.05
"""A change of the effective rank by less than this share is no change."""
LITTLE = 0.1
"""A projector that is nearer to its start than this share of its norm has hardly moved."""


def conclude(result: Mapping[str, Any]) -> str:
    """Say whether training dropped directions and, where it did not, what the measurement tells of why.

    Args:
        result: of one projector: ``kind``, ``evolution``, ``moved`` (share of its norm, or None), ``lr_scale``,
            ``weight``, ``is_balanced``.
    """
    evolution = result["evolution"]
    (first, last), steps = (evolution["effective"][place] for place in (0, -1)), evolution["steps"][-1]
    ranks = f"effective rank {first:.1f} to {last:.1f}"
    moved = "" if result["moved"] is None else f"it moved by {result['moved']:.1%} of its norm"
    if result["kind"] == "orthogonal":
        return f"It keeps every direction by construction ({ranks}){', and ' + moved if moved else ''}."
    change = 1 - last / first if first else 0.0
    if change >= NOTICED:
        return f"Training dropped {change:.0%} of the directions ({ranks}){'; ' + moved if moved else ''}."
    if change <= -NOTICED:
        return f"Training dropped no directions, it opened some ({ranks}){'; ' + moved if moved else ''}."
    kept = f"Training dropped no directions ({ranks})"
    if not moved:
        return f"{kept}."
    if result["moved"] < LITTLE:
        unit = " (a ratio of gradients)" if result["is_balanced"] else ""
        return (
            f"{kept}: the projector hardly moved, by {result['moved']:.1%} of its norm, in {steps} steps at"
            f" {result['lr_scale']:g} of the student's learning rate with a weight of {result['weight']:g}{unit}."
        )
    return f"{kept}, although {moved}: it turned or scaled them."


def summarize_ranks(name: str, analysis: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return of every projector of a run what it is and its ranks at the start and at the end of training.

    Args:
        name: of the run.
        analysis: of the run, as ``analysis.json`` has it.
    """
    several = len(analysis["projectors"]) > 1
    return [
        {
            "run": f"{name}: {method}" if several else name,
            "relation": analysis["relation"],
            "projector": f"{result['kind']} {result['spectrum']['shape'][0]} x {result['spectrum']['shape'][1]}",
            **{kind: [result["evolution"][kind][place] for place in (0, -1)] for kind in RANKS},
            "moved": result["moved"],
            "conclusion": result["conclusion"],
        }
        for method, result in analysis["projectors"].items()
    ]


def tabulate(summaries: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of a table of :func:`summarize_ranks`."""
    digits = {"numerical": 0, "stable": 1, "effective": 1}
    rows = [
        [
            *(summary[key] for key in ("run", "relation", "projector")),
            *(" → ".join(f"{rank:.{digits[kind]}f}" for rank in summary[kind]) for kind in RANKS),
            "-" if summary["moved"] is None else f"{summary['moved']:.1%}",
        ]
        for summary in summaries
    ]
    return ["run", "relation", "projector", *(f"{kind} rank" for kind in RANKS), "moved"], rows
