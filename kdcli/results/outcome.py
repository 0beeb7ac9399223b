"""Whether distillation helped: a run beside its student alone, sample by sample. No torch but what reads the files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kdcli.base.result import Mean, Outcome, Result, Verdict
from kdcli.machine.seeding import stable_seed
from kdcli.results.advice import what_to_try
from kdcli.runs.folder import RunFolder
from kdcli.statistics.intervals import CONFIDENCE, Sums, bootstrap_differences, metric_of

FEWEST = 6
"""Of fewer samples on which the two differ no split between them is significant at 5 % in a two-sided sign test."""
_EXACT = 1e-5
"""Relative difference up to which a metric from sums is the metric as it was measured: that was in float32."""
_IN_POINTS = ("accuracy", "top5", "micro_f1", "entity_f1", "entity_precision", "entity_recall")
"""Shares of what there is, whose differences are told in points of a hundred."""


def compare_with_alone(run: RunFolder, baseline: RunFolder, *, noun: str) -> Outcome | None:
    """Return how a finished run with a teacher stands to its student alone.

    On the test split where there is one, else on the validation split. The intervals are by bootstrap over its samples,
    of every metric that is made of sums over them; others have a difference alone.

    Args:
        run: with its plan, config and result.
        baseline: of the student alone, finished too.
        noun: what a sample is.

    Returns:
        None where the two are measured by other metrics: a run of features alone has no classifier.
    """
    result, alone = run.read_result(), baseline.read_result()
    assert result is not None
    assert alone is not None
    split = "test" if result.test and alone.test else "validation"
    found, reference = _metrics(result, split), _metrics(alone, split)
    monitor = next(iter(found))
    if monitor not in reference:
        return None
    config = run.read_config()
    ours, theirs = _shared_sums(run, baseline, split, found, reference)
    ends = bootstrap_differences(ours, theirs, seed=stable_seed("outcome", config.seed)) if ours else {}
    differences = {
        name: Mean(mean=found[name] - reference[name], low=low, high=high)
        for name, (low, high) in {name: ends.get(name, (None, None)) for name in found if name in reference}.items()
        if math.isfinite(found[name] - reference[name])
    }
    size, differing = (
        (len(ours[monitor]), _num_differing(ours[monitor], theirs[monitor])) if monitor in ends else (0, 0)
    )
    verdict = _judge(differences.get(monitor), differing)
    tries: Sequence[str] = ()
    if verdict != "helped":
        tries = what_to_try(
            config,
            run.read_plan(),
            result,
            alone,
            split=split,
            metric=monitor,
            run=str(run.path),
            harmed=verdict == "harmed",
        )
    return Outcome(
        verdict=verdict,
        sentence=_sentence(verdict, monitor, differences.get(monitor), split, noun, size, differing),
        split=split,
        metric=monitor,
        samples=size,
        differences=differences,
        tries=list(tries),
    )


def show_difference(difference: Mean) -> str:
    """Return a difference with its interval, where it has one, as tables have it."""
    interval = "" if difference.low is None else f" [{difference.low:+.4f}, {difference.high:+.4f}]"
    return f"{difference.mean:+.4f}{interval}"


def _metrics(result: Result, split: str) -> dict[str, float]:
    return {name: value for name, value in getattr(result, split).items() if name not in ("epoch", "step")}


def _shared_sums(
    run: RunFolder, baseline: RunFolder, split: str, found: dict[str, float], reference: dict[str, float]
) -> tuple[dict[str, Sums], dict[str, Sums]]:
    """Return the sums of the metrics that both runs have of the same samples.

    A metric counts only where its sums give what was measured: another package's task may call something else by the
    same name, and files of another epoch are of no use.
    """
    sides: list[dict[str, Sums]] = []
    indices = []
    for folder, measured in ((run, found), (baseline, reference)):
        tensors = folder.read_tensors(f"{split}_samples.safetensors")
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        indices.append(arrays.pop("index", np.array([])))
        shape = (len(indices[-1]),)
        fitting = {name: sums for name, sums in arrays.items() if sums.ndim == 2 and sums.shape[:1] == shape}
        sides.append({name: sums for name, sums in fitting.items() if _gives(name, sums, measured)})
    if not np.array_equal(indices[0], indices[1]):
        return {}, {}
    names = [name for name, sums in sides[0].items() if name in sides[1] and sums.shape == sides[1][name].shape]
    return {name: sides[0][name] for name in names}, {name: sides[1][name] for name in names}


def _gives(name: str, sums: Sums, measured: dict[str, float]) -> bool:
    return name in measured and math.isclose(
        float(metric_of(name, sums.sum(axis=0))), measured[name], rel_tol=_EXACT, abs_tol=_EXACT
    )


def _num_differing(ours: Sums, theirs: Sums) -> int:
    return int((ours != theirs).any(axis=1).sum())


def _judge(difference: Mean | None, differing: int) -> Verdict:
    if difference is None or difference.low is None or difference.high is None or differing < FEWEST:
        return "unclear"
    return "helped" if difference.low > 0 else "harmed" if difference.high < 0 else "unclear"


_VERDICTS: dict[Verdict, str] = {
    "helped": "Distillation helped",
    "harmed": "Distillation did not help",
    "unclear": "No difference can be told",
}


def _sentence(
    verdict: Verdict, metric: str, difference: Mean | None, split: str, noun: str, size: int, differing: int
) -> str:
    if difference is None:
        return f"{_VERDICTS[verdict]}: {metric} is no number on the {split} {noun}s."
    of = "" if metric == "accuracy" else f" of {metric}"
    scale, unit = (100, f" points{of}") if metric in _IN_POINTS else (1, f" {metric}")
    digits = 1 if scale == 100 else 3
    told = f"{_VERDICTS[verdict]}: {scale * difference.mean:+.{digits}f}{unit}"
    if difference.low is None or difference.high is None:
        return f"{told} on the {split} {noun}s, and no interval for it."
    ends = ", ".join(f"{scale * end:.{digits}f}" for end in (difference.low, difference.high))
    told += f", {100 * CONFIDENCE:.0f} % interval [{ends}] over the {size} {split} {noun}s"
    caveats = ["one seed: the spread between seeds comes on top"]
    if split == "validation":
        caveats.insert(0, "on which the best epochs were chosen")
    if differing < FEWEST:
        caveats.insert(0, f"the two differ on {differing} of them, too few to tell")
    return f"{told} ({'; '.join(caveats)})."


def lines_of(outcome: Outcome) -> list[str]:
    """Return what is printed below the result."""
    if not outcome.tries:
        return [outcome.sentence]
    return [outcome.sentence, "To try next:", *(f"  - {phrase}" for phrase in outcome.tries)]
