"""Every command of README.md and of the guides, with small stand-ins for what can't be had offline; those that need one another in order."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from pydoc_data import topics

import pytest
import torch
from safetensors.torch import load_file

from kdcli.base.guides import GUIDES, guide_text
from kdcli.data.images.dense import demos

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = "\n".join([README, *(guide_text(topic) for topic in GUIDES)])
"""All that has commands, in the order in which a reader comes by them."""

OTHERS = {
    "pip install -e '.[demo]'",
    "pip install -e '.[dev]'",
    "pip install -e '.[dense]'",
    "pytest",
    "git clone ADDRESS kdcli",
    "cd kdcli",
}
"""Lines that are no commands of kdcli: an installation is what these tests run in."""

SUBSTITUTES = {
    ("--teacher", "resnet50"): "teacher-folder",
    ("--teacher", "random:resnet50"): "random:test_resnet",
    ("--teacher", "none"): "none",
    ("--teacher-weights", "teacher.safetensors"): "teacher.safetensors",
    ("--teacher", "model_best.pth.tar"): "model_best.pth.tar",
    ("--teacher", "resnet50?weights=model_best.pth.tar"): "test_resnet?weights=model_best.pth.tar",
    ("--student", "mobilenetv3_small_050"): "test_efficientnet",
    ("--teacher", "runs/first-half"): "runs/first-half",
    ("--student", "resnet50"): "test_resnet",
    ("--student", "resnet18"): "test_resnet",
    ("--data", "photos/"): "photos/",
    ("--data", "signs/"): "signs/",
    ("--set", "data.channels=1"): "data.channels=1",
    ("--set", "data.balanced_sampling=true"): "data.balanced_sampling=true",
    ("--set", "data.splits.train=train2017"): "data.splits.train=train2017",
    ("--set", "data.splits.validation=val2017"): "data.splits.validation=val2017",
    ("--data", "demo:digits"): "demo:digits",
    ("--data", "demo:scenes"): "demo:scenes",
    ("--data", "demo:scenes-edges"): "demo:scenes-edges",
    ("--task", "image-translation"): "image-translation",
    ("--student", "generator:mobile?channels=16"): "generator:mobile?channels=4",
    ("--set", "student.image_size=64"): "student.image_size=32",
    ("--output", "runs/edges"): "runs/edges",
    ("--output", "made"): "made",
    ("--task", "image-generation"): "image-generation",
    ("--student", "generator:biggan32?channels=8&dim_z=32"): "generator:biggan32?channels=2&dim_z=8",
    ("--output", "runs/digits"): "runs/digits",
    ("--number", "64"): "4",
    ("--number", "16"): "2",
    ("--class", "3"): "3",
    ("--truncation", "0.8"): "0.8",
    ("--output", "threes"): "threes",
    ("--task", "semantic-segmentation"): "semantic-segmentation",
    ("--task", "depth-estimation"): "depth-estimation",
    ("--task", "object-detection"): "object-detection",
    ("--teacher", "package:efficientnet_lite0"): "package:efficientnet_lite0",
    ("--student", "smp:unet/mobilenetv3_small_050"): "smp:linknet/mobilenetv3_small_050",
    ("--student", "smp:fpn/mobilenet_v2"): "smp:linknet/mobilenetv3_small_050",
    ("--student", "torchvision:ssdlite/mobilenet_v3_small"): "torchvision:ssdlite/mobilenet_v3_small",
    ("--task", "image-embedding"): "image-embedding",
    ("--data", "unsorted/"): "unsorted/",
    ("--eval-data", "photos/"): "photos/",
    ("--output", "runs/pretrained"): "runs/pretrained",
    ("--output", "runs/ranks"): "runs/ranks",
    ("--student", "runs/pretrained"): "runs/pretrained",
    ("--task", "sentence-embedding"): "sentence-embedding",
    ("--task", "text-classification"): "text-classification",
    ("--task", "token-classification"): "token-classification",
    ("--teacher", "minilm/"): "minilm/",
    ("--teacher", "random:minilm/"): "random:minilm/",
    ("--student", "minilm/?num_hidden_layers=1"): "minilm/?num_hidden_layers=1",
    ("--student", "tiny-bert/"): "tiny-bert/",
    ("--data", "demo:python_docs"): "demo:python_docs",
    ("--task", "causal-lm"): "causal-lm",
    ("--task", "masked-lm"): "masked-lm",
    ("--teacher", "gpt/"): "gpt/",
    ("--teacher", "bert/"): "bert/",
    ("--student", "teacher?layers=1"): "teacher?layers=1",
    ("--data", "reviews.csv"): "reviews.csv",
    ("--data", "attributes.csv"): "attributes.csv",
    ("--set", "data.label_kind=classes"): "data.label_kind=classes",
    ("--data", "plants.csv"): "plants.csv",
    ("--data", "entities.conll"): "entities.conll",
    ("--recipe", "quickstart"): "quickstart",
    ("--recipe", "mine.yaml"): "mine.yaml",
    ("--classes", "part:1/2"): "part:1/2",
    ("--classes", "part:2/2+20%"): "part:2/2+20%",
    ("--output", "runs/first-half"): "runs/first-half",
    ("--epochs", "30"): "1",
    ("--epochs", "20"): "2",
    ("--epochs", "10"): "1",
    ("--batch-size", "16"): "16",
    ("--set", "data.train_images=300"): "data.train_images=32",
    ("--set", "train.validate_every=5"): "train.validate_every=1",
    ("--set", "teacher.precision=auto"): "teacher.precision=auto",
    ("--set", "train.activation_checkpointing=true"): "train.activation_checkpointing=true",
    ("--set", "student.image_size=96"): "student.image_size=32",
    ("--set", "teacher.image_size=96"): "teacher.image_size=32",
    ("--seed", "1"): "1",
    ("--method", "refilled"): "refilled",
    ("--feature-layers", "pooled:layer3"): "pooled:layer3",
    ("--feature-layers", "4:-1"): "4:-1",
    ("--feature-weight", "2"): "2",
    ("--steps", "60"): "20",
    ("--ways", "5"): "2",
    ("--shots", "10"): "4",
    ("--queries", "15"): "3",
    ("--episodes", "100"): "2",
    ("--method", "review_kd"): "review_kd",
    ("--method", "none"): "none",
    ("--method", "rkd_distance"): "rkd_distance",
    ("--projector", "inverted"): "inverted",
    ("--checkpoint-every", "200"): "2",
    ("--output", "runs/photos"): "runs/photos",
    ("--cache-teacher", "cache"): "cache",
    ("--output", "runs/cached"): "runs/cached",
    ("--resume", "runs/long"): "runs/long",
    ("--output", "runs/long"): "runs/long",
    ("--num-processes", "2"): "1",
    ("--seeds", "5"): "1",
    ("--seeds", "3"): "1",
    ("--vary", "projector=inverted,linear"): "projector=inverted,linear",
    ("--vary", "optim.lr=0.001,0.003"): "optim.lr=0.001,0.003",
    ("--resume", "runs/sweeps/mine/mine-optim.lr=0.003/seed-0"): "runs/sweeps/mine/mine-optim.lr=0.003/seed-0",
    ("--plan", "full"): "full",
    ("--steps", "3"): "1",
    ("--repeats", "3"): "1",
    ("--trials", "20"): "1",
    ("--trials", "40"): "1",
    ("--tune", "plan"): "plan",
    ("--tune", "augment.mixup=0..0.4"): "augment.mixup=0..0.4",
    ("--tune", "train.batch_size=32,64"): "train.batch_size=16,8",
    ("--tune", "methods.projection.weight=0.03..3:log"): "methods.projection.weight=0.03..3:log",
    ("--tune", "projector=inverted,linear"): "projector=inverted,linear",
    ("--output", "runs/tune/wide"): "runs/tune/wide",
    ("--output", "runs/tune/two"): "runs/tune/two",
    ("--recipe", "runs/tune/mine/best.yaml"): "runs/tune/mine/best.yaml",
    ("--log-format", "json"): "json",
    ("--set", "train.epochs=5"): "train.epochs=1",
    ("--set", "data.labels_per_class=20"): "data.labels_per_class=2",
    ("--format", "onnx"): "onnx",
    ("--output", "deploy"): "deploy",
    ("--output", "comparison"): "comparison",
    ("--output", "predictions.csv"): "predictions.csv",
    ("--output", "both.html"): "both.html",
    ("--top", "3"): "3",
    ("--against", "runs/quickstart/baseline"): "runs/quickstart/baseline",
    ("--student", "vit_tiny_patch16_224?depth=4&embed_dim=96"): "test_vit?depth=2&embed_dim=96",
    ("--student", "teacher?layers=1&width=0.5"): "teacher?layers=1&width=0.5",
    ("--max-params", "5M"): "5M",
    ("--max-params", "100M"): "100M",
    ("--max-macs", "500M"): "500M",
    ("--name", "mobilenetv3*"): "test_vit[23]",
    ("--name", "hf:*bert*"): "hf:electra",
    ("--limit", "5"): "5",
    ("--split", "validation"): "validation",
    ("--split", "test"): "test",
}
"""An option and its value -> the value it is run with. What is not here fails the test."""
PYTHON = {
    '"resnet50"': '"teacher-folder"',
    '"resnet18"': '"test_resnet"',
    "epochs=30": "epochs=1, batch_size=16, device='cpu', settings={'student.image_size': 32, 'data.workers': 0}",
}
"""What blocks of Python are run with."""
FLAGS = {"--student-pretrained", "--dry-run", "--baseline", "--json", "--test", "--no-test"}
SHORT = {
    "--data": "--batch-size 16 --set train.epochs=1 --set student.image_size=32 --set data.workers=0 --device cpu",
    "--recipe": "--set train.epochs=1 --set data.train_images=64 --set train.batch_size=16 --set data.labels_per_class=2 --device cpu"
    " --set student.image_size=32 --set teacher.image_size=32",
}
"""Added to a distillation that has the option, so that it takes seconds."""
SHORT_SWEEP = SHORT["--recipe"].replace("--device cpu", "--set train.device=cpu --set baseline=false")
SHORT_TEXTS = {"--data": "--batch-size 16 --set train.epochs=1 --set data.train_texts=32 --device cpu"}
"""The same for one of texts."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES, re.M | re.S)


def commands() -> list[str]:
    """Return the different commands of all shell blocks, one a line or joined by ``&&``."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return list(dict.fromkeys(part for part in parts if part and not part.startswith("#")))


def substituted(command: str) -> list[str]:
    """Return the arguments that ``command`` is run with.

    Raises:
        KeyError: for an option, or its value, without a rule.
    """
    program, *words = shlex.split(command)
    assert program == "kdcli"
    arguments: list[str] = []
    iterator: Iterator[str] = iter(words)
    for word in iterator:
        arguments.append(word)
        if word.startswith("--") and word not in FLAGS:
            arguments.append(SUBSTITUTES[word, next(iterator)])
    if "--teacher-weights" in words:  # a checkpoint goes with an architecture, not with a folder
        arguments[arguments.index("--teacher") + 1] = "test_resnet"
    if words[:2] == ["models", "layers"]:
        arguments[2] = "test_resnet"
    text_tasks = {"text-classification", "sentence-embedding", "token-classification", "causal-lm", "masked-lm"}
    short = SHORT_TEXTS if text_tasks & set(words) else SHORT
    added = [text for option, text in short.items() if option in words and words[0] in ("distill", "bench", "cache")]
    if {"causal-lm", "masked-lm", "signs/"} & set(words):
        added.append("--unchecked-teacher")  # the stand-ins for published models are hardly trained
    if "demo:scenes" in words:  # it has a few hundred scenes to measure on, too
        added.append("--no-test")
    if words[0] == "lr-range":
        added.append(SHORT["--recipe"].replace("--device cpu", "--set train.device=cpu"))
    if words[0] == "sweep":
        added.append(SHORT_SWEEP)
    if words[0] == "tune":
        added.append(SHORT_SWEEP.replace(" --set baseline=false", ""))
    return arguments + shlex.split(" ".join(added))


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory, photos, trained_teacher, reviews, entities, bert_folder, distilbert_folder, language_models
):
    """A folder with what a reader of the README would have: photographs, texts, models and a checkpoint."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(photos, folder / "photos")
    for split in ("train2017", "val2017"):
        shutil.copytree(photos, folder / "signs" / split)
    (folder / "unsorted").mkdir()
    for number, file in enumerate(sorted(photos.rglob("*.jpg"))):
        shutil.copy(file, folder / "unsorted" / f"{number}.jpg")
    listed = [f"{file.relative_to(folder)},{file.parent.name}" for file in sorted((folder / "photos").rglob("*.jpg"))]
    (folder / "plants.csv").write_text("\n".join(["image,label", *listed]))
    bits = [f"{row.partition(',')[0]},{number % 2},{number // 2 % 2}" for number, row in enumerate(listed)]
    (folder / "attributes.csv").write_text("\n".join(["image,wild,small", *bits]))
    shutil.copy(reviews, folder / "reviews.csv")
    shutil.copy(entities, folder / "entities.conll")
    shutil.copytree(bert_folder, folder / "minilm")
    shutil.copytree(distilbert_folder, folder / "tiny-bert")
    shutil.copytree(language_models / "causal", folder / "gpt")
    shutil.copytree(language_models / "masked", folder / "bert")
    shutil.copytree(trained_teacher, folder / "teacher-folder")
    shutil.copy(trained_teacher / "model.safetensors", folder / "teacher.safetensors")
    state = load_file(trained_teacher / "model.safetensors")
    torch.save({"arch": "test_resnet", "state_dict": state}, folder / "model_best.pth.tar")
    return folder


def test_the_readme_has_commands():
    assert len([command for command in commands() if command.startswith("kdcli ")]) >= 10


def test_every_command_is_known():
    for command in commands():
        if command in OTHERS or re.fullmatch(r"python tests/\S+\.py", command):
            continue
        assert command.startswith("kdcli "), command
        try:
            substituted(command)
        except KeyError as missing:
            pytest.fail(f"no rule for {missing.args[0]} of: {command}")


def test_every_rule_is_used():
    """A rule that no command needs would hide that the README lost one."""
    words = [shlex.split(command) for command in commands()]
    used = {pair for line in words for pair in pairwise(line)}
    assert SUBSTITUTES.keys() - used <= {("--split", "test")}


def chains() -> list[list[str]]:
    """Return the commands and Python blocks in groups, each in order: in one are those that name a folder or file that
    another one makes. What no other needs stands alone."""
    steps: list[tuple[str, set[str]]] = []
    for kind, block in re.findall(r"^```(sh|python)\n(.*?)^```", PAGES, re.M | re.S):
        lines = (
            [block] if kind == "python" else (part.strip() for line in block.splitlines() for part in line.split("&&"))
        )
        for step in lines:
            if kind == "python" or (step.startswith("kdcli ") and step not in (known for known, _ in steps)):
                made = set(re.findall(r"runs/(?:sweeps/)?[a-z-]+|\bmine\b|\bquickstart\b", step))
                steps.append((step, {name.rpartition("/")[2].removesuffix("-") for name in made}))
    groups: list[tuple[set[int], set[str]]] = []
    for number, (_, names) in enumerate(steps):
        joined = [group for group in groups if group[1] & names]
        groups = [group for group in groups if group not in joined]
        numbers, together = {number}, set(names)
        for group in joined:
            numbers |= group[0]
            together |= group[1]
        groups.append((numbers, together))
    return sorted(([steps[number][0] for number in sorted(numbers)] for numbers, _ in groups), key=len, reverse=True)


def test_each_command_is_in_one_chain():
    chained = [step for chain in chains() for step in chain if step.startswith("kdcli ")]
    assert sorted(chained) == sorted(command for command in commands() if command.startswith("kdcli "))


@pytest.fixture
def few_samples(few_digits, few_points, monkeypatch):
    """Demos with 12 scenes to measure on and 30 topics of Python's, and few digits."""
    monkeypatch.setattr(demos, "SCENES", {split: 12 if split != "train" else n for split, n in demos.SCENES.items()})
    monkeypatch.setattr(topics, "topics", {name: topics.topics[name] for name in sorted(topics.topics)[:30]})


@pytest.mark.parametrize("chain", chains(), ids=lambda chain: chain[0].removeprefix("kdcli ").partition("\n")[0])
def test_every_command_and_the_python_block_in_order(chain, folder, few_samples, run_cli_in, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    for step in chain:
        if not step.startswith("kdcli "):
            names: dict = {}
            for written, instead in PYTHON.items():
                step = step.replace(written, instead)
            exec(compile(step, "guide.md", "exec"), names)
            classes = len(names["labels"]) if "labels" in names else 3  # photos/
            assert names["model"].num_classes == classes
            assert not names["model"].training
            continue
        outcome = run_cli_in(*substituted(step), cwd=folder)
        assert outcome.exit_code == 0, f"{step}\n{outcome.stdout}\n{outcome.stderr}"
    if "kdcli recipes copy quickstart mine.yaml" in chain:
        runs = {run.name for run in (folder / "runs").iterdir()}
        assert {"quickstart", "mine"} <= runs
        assert (folder / "deploy" / "model.onnx").is_file()
        assert {file.name for file in (folder / "comparison").iterdir()} == {
            *("compare.csv", "compare.md", "table.csv", "table.tex", "bars.png", "curves.png")
        }
        assert (folder / "runs" / "quickstart" / "baseline" / "metrics.jsonl").is_file()


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("python tests/")])
def test_scripts_run(command, tmp_path):
    """With small numbers: ``--help`` names the options that make them so."""
    script = ROOT / shlex.split(command)[1]
    small = {"projector_speed.py": ["--steps", "3", "--rounds", "2", "--sizes", "8x16", "--maps", "retraction,cayley"]}
    result = subprocess.run(
        [sys.executable, str(script), *small[script.name]], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "retraction" in result.stdout
