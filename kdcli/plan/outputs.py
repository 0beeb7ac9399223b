"""Whether the teacher is run on every batch, or once on every sample."""

from __future__ import annotations

from collections.abc import Sequence

from kdcli.plan.plan import Decision, TeacherOutputs

MOST_BYTES = 2**30
"""Of outputs that are kept in memory."""


def choose_outputs(
    *, num_samples: int, numbers: int, epochs: int, noun: str
) -> tuple[TeacherOutputs, Sequence[Decision]]:
    """Return how the teacher's outputs are come by, for samples that are the same in every epoch, and why.

    Args:
        num_samples: different ones.
        numbers: float32 numbers that are read of each.
        epochs: of training.
        noun: what a sample is.
    """
    size = 4 * num_samples * numbers
    if epochs < 2 or not size:
        return "live", ()
    shown = f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"
    if size > MOST_BYTES:
        why = f"Stored, those of {num_samples} {noun}s would take {shown}, more than {MOST_BYTES / 2**30:g} GiB."
        return "live", [Decision("teacher outputs", "run on every batch", why)]
    why = f"The {noun}s are not augmented, so the teacher reads each once, before the first step, not in every epoch."
    return "stored", [Decision("teacher outputs", f"stored for {num_samples} {noun}s, {shown} of memory", why)]
