"""Which architectures of segmentation-models-pytorch go with which encoders, as teacher and as student.

    python tests/benchmarks/smp_coverage.py [--size 64] [--task semantic-segmentation] [--encoders resnet18 mit_b0 ...]

For every pair: the student takes a step on two made-up images, is saved, and loaded again with the same logits; the
untrained teacher gives its logits. Prints a table in Markdown, with the reason where a pair is refused.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.tasks import TASKS
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models.base import Model
from kdcli.models.loading import build_student, load_saved, load_teacher
from kdcli.models.smp.names import architectures

ENCODERS = ("resnet18", "mobilenet_v2", "mobilenetv3_small_050", "mit_b0", "vit_tiny_patch16_224")


def facts_of(task: str) -> DataFacts:
    """Return made-up data for a task."""
    is_depth = TASKS[task].head == "depth"
    names, kind = (("depth",), "depth") if is_depth else (tuple("abcde"), "pixels")
    return DataFacts("made-up", task, names, 8, 8, 8, 8, label_kind=kind)  # type: ignore[arg-type]


def try_student(name: str, size: int, task: str) -> Model:
    """Train one step, save and load again."""
    student = build_student(StudentConfig(name=name, image_size=size), facts_of(task), seed=0)
    (head,) = student.facts.predictions
    images = student.example(2)
    output = student(images).heads[head]
    assert output.shape[:2] == (2, len(facts_of(task).class_names)), output.shape
    output.square().mean().backward()
    assert any(parameter.grad is not None for parameter in student.parameters())
    student.eval()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        student.save(Path(folder))
        assert torch.equal(load_saved(Path(folder))(images).heads[head], student(images).heads[head])
    student.open_stages()
    return student


def try_teacher(name: str, size: int, task: str) -> None:
    """Run the untrained architecture."""
    teacher = load_teacher(TeacherConfig(name=f"random:{name}", image_size=size), seed=0, task=task)
    assert all(value.isfinite().all() for value in teacher(teacher.example(2)).heads.values())


def cell(name: str, size: int, task: str) -> str:
    """Return what came of a pair."""
    try:
        student = try_student(name, size, task)
        try_teacher(name, size, task)
    except UserError as error:
        return f"refused: {error.message.removeprefix(name).strip()[:90]}"
    except Exception as error:
        return f"**{type(error).__name__}: {str(error).splitlines()[0][:90]}**"
    return f"{student.facts.num_parameters / 1e6:.1f} M, {len(student.facts.stages)} stages"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--task", default="semantic-segmentation")
    parser.add_argument("--encoders", nargs="+", default=ENCODERS)
    options = parser.parse_args()
    print("| architecture |", " | ".join(options.encoders), "|\n| --- |", "--- |" * len(options.encoders))
    for architecture in architectures():
        cells = [cell(f"smp:{architecture}/{encoder}", options.size, options.task) for encoder in options.encoders]
        print(f"| {architecture} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
