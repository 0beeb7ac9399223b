"""Weights of the losses that have no trained teacher, by validation images: what chose two defaults in recipes/bench.

    python tests/benchmarks/weights.py --data DATA --work runs/weights
    python tests/benchmarks/weights.py --work recipes/bench --table

``DATA`` is that of ``pairs.py``, whose data and budgets these are, of its development half: CIFAR-10, Fashion-MNIST and digits
with few images. Students are a ResNet-8, the untrained teacher a ResNet-20. What is there is not run again; the table has
the differences to the student alone, paired by seed, in points of validation accuracy. Test images are not looked at.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pairs import few, images, interval, prepare, train

from kdcli.config.methods.defaults import FEATURES

SEEDS = (10, 11, 12, 13)
UNTRAINED = {"name": "random:cifar:resnet20", "image_size": 16}
PROJECTION = FEATURES["random"].options.model_dump(mode="json", exclude_none=True)
SPECTRAL = {"method": "spectral_regularization"}
ARMS: dict[str, tuple[Any, dict[str, Any] | None]] = {
    "alone": ("none", None),
    "spectral, factor 0.1": ("none", SPECTRAL | {"weight": 0.1, "weighting": "loss"}),
    "spectral, ratio 0.1": ("none", SPECTRAL | {"weight": 0.1, "weighting": "gradient"}),
    "spectral, ratio 0.03": ("none", SPECTRAL | {"weight": 0.03, "weighting": "gradient"}),
    "untrained, ratio 0.1": (UNTRAINED, PROJECTION | {"weight": 0.1}),
    "untrained, ratio 0.03": (UNTRAINED, PROJECTION | {"weight": 0.03}),
}
"""Teacher and loss beside that on the labels, by arm."""
DATA = ("CIFAR-10, 1,000 images", "Fashion, 300 images", "digits, 100 images", "CIFAR-10, 300 images")


def configs(data: Path, work: Path, teacher: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the config of each data set by its name."""
    cifar = {"name": str(work / "data" / "cifar10"), "validation_fraction": 0.04}
    fashion = {"name": "torchvision:FashionMNIST", "root": str(data), "validation_fraction": 0.02}
    yield DATA[0], images(teacher, cifar | few(1000), epochs=15)
    yield DATA[1], images(teacher, fashion | few(300), epochs=40, size=14)
    yield DATA[2], images(teacher, {"name": "demo:digits"} | few(100), epochs=80)
    yield DATA[3], images(teacher, cifar | few(300), epochs=40)


def run(data: Path, work: Path) -> None:
    """Run what is missing, seed by seed, and write each accuracy to ``weights.jsonl``."""
    prepare(data, work)
    for seed in SEEDS:
        for arm, (teacher, loss) in ARMS.items():
            for name, config in configs(data, work, teacher):
                if (name, arm, seed) in read(work):
                    continue
                chosen = {"method": "none"} if loss is None else {"methods": [{"method": "supervised"}, loss]}
                folder = work / "runs" / name / arm / f"seed-{seed}"
                train(config | chosen | {"seed": seed, "test": False}, folder)
                found = json.loads((folder / "result.json").read_text())["validation"]["accuracy"]
                row = {"data": name, "arm": arm, "seed": seed, "accuracy": round(100 * found, 4)}
                with (work / "weights.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)


def read(work: Path) -> dict[tuple[str, str, int], float]:
    """Return the validation accuracies that are there, in percent."""
    file = work / "weights.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return {(row["data"], row["arm"], row["seed"]): row["accuracy"] for row in rows}


def table(work: Path) -> Iterator[str]:
    """Yield the lines of the table in Markdown: an arm a line, a data set a column, the mean over the data sets last."""
    found = read(work)
    yield f"| loss | {' | '.join(DATA)} | mean |"
    yield f"| --- |{' ---: |' * (len(DATA) + 1)}"
    for arm in list(ARMS)[1:]:
        pairs = [
            [
                found[name, arm, seed] - found[name, "alone", seed]
                for seed in SEEDS
                if {(name, arm, seed), (name, "alone", seed)} <= found.keys()
            ]
            for name in DATA
        ]
        mean = statistics.mean(statistics.mean(differences) for differences in pairs if differences)
        cells = [f"{interval(differences)}, {len(differences)} seeds" for differences in pairs]
        yield f"| {arm} | {' | '.join(cells)} | {mean:+.1f} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/weights"), help="where runs and results go")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    given = parser.parse_args()
    if not given.table:
        if given.data is None:
            parser.error("--data says where the data sets are")
        run(given.data, given.work)
    print("\n".join(table(given.work)))
