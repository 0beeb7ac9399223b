"""How costs grow: time with batch, teacher and samples; memory with samples and classes; start-up; shares.

    OMP_NUM_THREADS=1 python tests/benchmarks/growth.py --rounds 3

CPU seconds and peaks of memory of ``kdcli`` itself, in processes of their own, interleaved over the rounds, medians.
Untrained networks on folders of made-up photographs that it writes; no GPU is used. Prints tables in Markdown, which
``kdcli guide speed`` has.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32


def write_photos(folder: Path, classes: int, each: int) -> Path:
    """Write class folders of random images, as JPEG."""
    random = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class-{label:04}").mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class-{label:04}" / f"{number}.jpg")
    return folder


def run(arguments: Sequence[str], folder: Path) -> tuple[float, float, str]:
    """Return the CPU seconds of a ``kdcli`` command, the MiB of its peak of memory, and what it printed."""
    # A process of its own measures its one child, as the peak of children is that of the largest so far.
    code = (
        "import json, resource, subprocess, sys\n"
        "done = subprocess.run([sys.executable, '-m', 'kdcli', *sys.argv[1:]], stdout=subprocess.PIPE, text=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, done.stdout]))\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    status, seconds, peak, told = json.loads(done.stdout.splitlines()[-1])
    if status:
        raise SystemExit(f"kdcli {' '.join(arguments)} failed:\n{told}")
    return seconds, peak, told


def pair(teacher: str, data: Path | str, batch: int, *more: str) -> list[str]:
    models = ["--teacher", teacher, "--student", "cifar:resnet8", "--data", str(data), "--batch-size", str(batch)]
    return [*models, "--device", "cpu", "--feature-layers", "pooled:pooled", "--set", "data.workers=0", *more]


def medians(cases: dict[str, Callable[[], Sequence[float]]], rounds: int) -> dict[str, list[float]]:
    """Run the cases in turn, ``rounds`` times; return the medians of what each returns."""
    found: dict[str, list[Sequence[float]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            found[name].append(case())
    return {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}


def show(title: str, columns: Sequence[str], rows: dict[str, list[float]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n| --- |{' ---: |' * (len(columns) - 1)}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |", flush=True)


def of_steps(folder: Path, rounds: int) -> None:
    """Time and memory of a step against the batch and the teacher, by ``kdcli bench``."""

    def case(teacher: str, batch: int) -> Callable[[], Sequence[float]]:
        def measure() -> Sequence[float]:
            options = pair(teacher, "demo:digits", batch, "--steps", "3", "--repeats", "3", "--no-largest", "--json")
            _, _, told = run(["bench", *options], folder)
            found = json.loads(told[told.index("{") :])
            step = found["ready_step"]["cpu"]
            return 1e3 * step, 1e3 * step / batch, found["macs"] / batch / 1e6, found["peak_bytes"] / 2**20

        return measure

    columns = ["CPU ms a step", "CPU ms an image", "million MACs an image", "peak MiB"]
    batches = {str(size): case("random:cifar:resnet20", size) for size in (8, 32, 128)}
    show("Batch", ["images a batch", *columns], medians(batches, rounds))
    teachers = {name: case(f"random:cifar:{name}", 32) for name in ("resnet20", "resnet56", "resnet110")}
    show("Teacher", ["teacher", *columns], medians(teachers, rounds))


def of_data(folder: Path, rounds: int) -> None:
    """Start-up and an epoch against samples and classes, and their memory."""

    def case(data: Path) -> Callable[[], Sequence[float]]:
        def measure() -> Sequence[float]:
            options = pair("none", data, 64, "--set", "test=false")[:-2]
            options = [word for word in options if word not in ("--feature-layers", "pooled:pooled")]
            start, at_start, _ = run(["distill", *options, "--dry-run"], folder)
            with tempfile.TemporaryDirectory(dir=folder) as runs:
                output = ["--epochs", "1", "--output", f"{runs}/run", "--quiet", "--set", "test=false"]
                whole, peak, _ = run(["distill", *options, *output], folder)
            return start, at_start, whole - start, peak

        return measure

    columns = ["CPU s to the plan", "MiB", "CPU s of an epoch and the records", "MiB"]
    samples = {f"{10 * each}": case(write_photos(folder / f"samples-{each}", 10, each)) for each in (50, 200, 800)}
    show("Samples, ten classes", ["images", *columns], medians(samples, rounds))
    classes = {
        f"{count}": case(write_photos(folder / f"classes-{count}", count, 2000 // count)) for count in (2, 20, 200)
    }
    show("Classes, two thousand images", ["classes", *columns], medians(classes, rounds))


def of_shares(folder: Path, rounds: int) -> None:
    """What validation after each epoch, and a checkpoint at each, add to eight epochs."""
    every = {
        "one validation, one checkpoint": ("train.validate_every=8", "10m"),
        "a validation each epoch": ("train.validate_every=1", "10m"),
        "a checkpoint each epoch": ("train.validate_every=8", "11"),
    }

    def case(validate: str, checkpoint: str) -> Callable[[], Sequence[float]]:
        def measure() -> Sequence[float]:
            with tempfile.TemporaryDirectory(dir=folder) as runs:
                options = pair("random:cifar:resnet20", "demo:digits", 128, "--epochs", "8", "--set", validate)
                options += [
                    "--checkpoint-every",
                    checkpoint,
                    "--output",
                    f"{runs}/run",
                    "--quiet",
                    "--set",
                    "test=false",
                ]
                return run(["distill", *options], folder)[:1]

        return measure

    found = medians({name: case(*values) for name, values in every.items()}, rounds)
    first = next(iter(found.values()))[0]
    shown = {name: [seconds, 100 * (seconds / first - 1)] for name, (seconds,) in found.items()}
    show("Eight epochs", ["with", "CPU s", "% more"], shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("steps", "data", "shares"), nargs="+", default=("steps", "data", "shares"))
    given = parser.parse_args()
    parts = {"steps": of_steps, "data": of_data, "shares": of_shares}
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            parts[name](Path(folder), given.rounds)


if __name__ == "__main__":
    main()
