"""What a weight that is a ratio of gradients costs a training step, against one that is a factor.

    python tests/benchmarks/balance_cost.py --student cifar:resnet8 --size 32 --batch 64

Forward and backward pass of student, labels' loss and inverted projection, on made-up images and stored features of a teacher
that is not run: a real step has the teacher, data and optimiser besides. Both kinds take turns, step by step. The gradients
are measured in one of eight steps, as in training; printed are the medians of sums over eight steps.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from kdcli.base.facts import DataFacts
from kdcli.config.models import StudentConfig
from kdcli.config.parse import parse_config
from kdcli.data import Batch
from kdcli.methods import build_method
from kdcli.methods.base import Context
from kdcli.models import build_student
from kdcli.models.outputs import ModelOutput
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.training.distiller import Distiller

LABELS = tuple("abcdefghij")
ROUND = 8
"""Steps, of which one measures."""


def build(name: str, size: int, weighting: str) -> Distiller:
    """Return a student with both losses."""
    student = build_student(StudentConfig(name=name, image_size=size), DataFacts.of_labels(LABELS), seed=0)
    projection = {"method": "projection", "projector": "inverted", "normalize_student": "standardize"}
    projection |= {"student_tap": "embedding", "weighting": weighting}
    values = {"teacher": "t", "student": "s", "data": "d", "methods": [{"method": "supervised"}, projection]}
    options = parse_config(values, source="benchmark").methods or ()
    context = Context(ImageClassification(LABELS), student.facts, student.facts, None)
    return Distiller(student, {one.method: build_method(one, context) for one in options}).train()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="cifar:resnet8")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    kinds = {kind: build(given.student, given.size, kind) for kind in ("loss", "gradient")}
    images = torch.randint(0, 256, (given.batch, 3, given.size, given.size), dtype=torch.uint8)
    batch = Batch(
        images=images, targets=torch.randint(0, len(LABELS), (given.batch,)), samples=torch.arange(given.batch)
    )
    width = kinds["loss"].student.facts.feature_dims["pooled"]
    teacher = ModelOutput({"pooled": torch.randn(given.batch, width)})
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(given.rounds + 1):
        spent = dict.fromkeys(kinds, 0.0)
        for step in range(ROUND):
            for kind, distiller in kinds.items():
                distiller.step = 8 + ROUND * number + step
                start = time.perf_counter()
                distiller(batch, teacher)["loss"].backward()
                spent[kind] += time.perf_counter() - start
                distiller.zero_grad()
        if number:  # the first round warms up
            for kind, value in spent.items():
                seconds[kind].append(value)
    factor, ratio = (1e3 * statistics.median(seconds[kind]) / ROUND for kind in kinds)
    shares = sorted(b / a for a, b in zip(*seconds.values(), strict=True))
    print(
        f"{given.student}, {given.size} pixels, batch {given.batch}: {factor:.1f} ms with a factor, {ratio:.1f} ms with a ratio;"
        f" ratio of rounds: median {statistics.median(shares):.3f}, from {shares[0]:.3f} to {shares[-1]:.3f}"
    )


if __name__ == "__main__":
    main()
