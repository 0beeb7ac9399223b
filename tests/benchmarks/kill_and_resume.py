"""Kill a run at random moments, resume it until it ends, and compare it with one that was left alone.

    python tests/benchmarks/kill_and_resume.py --kills 30 [--processes 2] [--folder DIR]

Prints a line for each kill and, at the end, whether weights, projectors, spectra and metrics are the same bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

TIMES = ("images_per_second", "data_wait")
"""Metrics that depend on the clock."""


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kdcli", "distill", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"NO_COLOR": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # whatever started this one
    )


def finish(*arguments: str | Path) -> None:
    process = start(*arguments)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}:\n{output}")


def differences(first: Path, second: Path) -> list[str]:
    """Return what is not the same in two run folders."""
    found = []
    for name in ("student/model.safetensors", "projector.safetensors", "spectra.safetensors"):
        one, two = load_file(first / name), load_file(second / name)
        if one.keys() != two.keys() or any(not one[key].equal(two[key]) for key in one):
            found.append(name)
    if metrics(first) != metrics(second):
        found.append("metrics.jsonl")
    return found


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def last_checkpoint(run: Path) -> str:
    found = sorted((run / "checkpoints").glob("step-*")) if (run / "checkpoints").is_dir() else []
    return found[-1].name if found else "none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    folder = chosen.folder or Path(tempfile.mkdtemp())
    options = [
        *("--teacher", "random:test_efficientnet", "--student", "test_resnet", "--data", "demo:digits"),
        *("--epochs", "6", "--batch-size", "32", "--device", "cpu", "--checkpoint-every", "3"),
        *("--num-processes", str(chosen.processes), "--set", "train.ema=0.99", "--set", "augment.mixup=0.2"),
        *("--set", "student.image_size=32", "--set", "teacher.image_size=32", "--set", "data.workers=0"),
    ]
    began = time.monotonic()
    finish(*options, "--output", folder / "whole")
    seconds = time.monotonic() - began
    print(f"the run alone takes {seconds:.0f} s")

    draw, kills, number, wrong = random.Random(chosen.seed), 0, 0, 0
    while kills < chosen.kills:
        number += 1
        kills += killed_run(options, folder / f"killed-{number}", draw, seconds, most=chosen.kills - kills)
        found = differences(folder / "whole", folder / f"killed-{number}")
        print(f"run {number} ended; different from the one alone: {', '.join(found) or 'nothing'}", flush=True)
        wrong += bool(found)
    print(f"{kills} kills in {number} runs, {wrong} of which ended differently")
    return int(wrong > 0)


def killed_run(options: list[str | Path], run: Path, draw: random.Random, seconds: float, *, most: int) -> int:
    """Train, killing at random moments and resuming, to the end; return the number of kills."""
    kills = 0
    while True:
        started = (run / "config.yaml").is_file()
        if not started:  # killed before it was a run
            shutil.rmtree(run, ignore_errors=True)
        process = start("--resume", run) if started else start(*options, "--output", run)
        try:
            output, _ = process.communicate(timeout=draw.uniform(0, seconds) if kills < most else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            print(f"kill {kills}; last checkpoint {last_checkpoint(run)}", flush=True)
            continue
        if process.returncode:
            raise SystemExit(f"exit code {process.returncode} after {kills} kills:\n{output}")
        return kills


if __name__ == "__main__":
    raise SystemExit(main())
