"""What every test shares: no network, one thread, real commands run in this process, small data and finished runs."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Before anything imports torch, the hub's client or rich: they read these once.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
    "NO_COLOR": "1",
}
for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TERMINAL_WIDTH"):
    os.environ.pop(name, None)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

torch.set_num_threads(1)

CLASSES = ("apple", "leaf", "sky")
IMAGES_PER_CLASS = 24
WIDTH = 400  # nothing printed is wrapped, so that text can be searched


class Outcome(NamedTuple):
    """What a command came to."""

    exit_code: int
    stdout: str
    stderr: str


def run_command(*arguments: str | Path, cwd: Path) -> Outcome:
    """Run ``kdcli ARGUMENTS`` in this process, as its entry point does."""
    from kdcli import console
    from kdcli.cli import main

    console.console.width = console.errors.width = WIDTH
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    argv, sys.argv = sys.argv, ["kdcli", *map(str, arguments)]
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = argv
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


def write_photos(root: Path, counts: dict[str, int], *, seed: int = 0, size: int = 40) -> Path:
    """Write ``{"train/apple": 3}`` as noisy images; a class shows in which colour prevails."""
    generator = np.random.default_rng(seed)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        channel = CLASSES.index(folder.rpartition("/")[2]) if folder.rpartition("/")[2] in CLASSES else 0
        mean = np.where(np.arange(3) == channel, 190.0, 60.0)
        for number in range(count):
            pixels = np.clip(mean + generator.normal(0, 40, (size, size, 3)), 0, 255).astype(np.uint8)
            suffix = "png" if number % 2 else "jpg"
            Image.fromarray(pixels).save(root / folder / f"{number:02d}.{suffix}")
    return root


@pytest.fixture(scope="session")
def run_cli_in() -> Callable[..., Outcome]:
    """``run_cli_in(*arguments, cwd=FOLDER)``, for fixtures of the whole session."""
    return run_command


@pytest.fixture
def run_cli(tmp_path: Path) -> Callable[..., Outcome]:
    """``run_cli(*arguments) -> (exit_code, stdout, stderr)``, in ``tmp_path`` unless ``cwd`` says otherwise."""

    def run(*arguments: str | Path, cwd: Path = tmp_path) -> Outcome:
        return run_command(*arguments, cwd=cwd)

    return run


@pytest.fixture
def make_photos(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder of class folders of your own: ``make_photos({"apple": 3, "sky": 3})``."""

    def make(counts: dict[str, int], name: str = "own-photos", **options: int) -> Path:
        return write_photos(tmp_path / name, counts, **options)

    return make


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 24 images of 40 pixels, told apart by their colour; no splits. Not to be changed."""
    root = tmp_path_factory.mktemp("data") / "photos"
    return write_photos(root, dict.fromkeys(CLASSES, IMAGES_PER_CLASS))


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Options that make a run of a few seconds."""
    return (
        *("--epochs", "1", "--batch-size", "16", "--device", "cpu"),
        *("--set", "student.image_size=32", "--set", "data.workers=0"),
    )


@pytest.fixture(scope="session")
def _finish(tmp_path_factory: pytest.TempPathFactory, photos: Path, tiny: tuple[str, ...]) -> Callable[..., Path]:
    def finish(name: str, *arguments: str | Path) -> Path:
        cwd = tmp_path_factory.mktemp("runs")
        outcome = run_command("distill", "--data", photos, *tiny, "--output", name, *arguments, cwd=cwd)
        assert outcome.exit_code == 0, outcome.stderr
        return cwd / name

    return finish


@pytest.fixture(scope="session")
def alone_run(_finish: Callable[..., Path]) -> Path:
    """A finished run without a teacher. Its student is a teacher that knows the labels. Not to be changed."""
    return _finish("alone", "--teacher", "none", "--student", "test_resnet", "--epochs", "2")


@pytest.fixture(scope="session")
def trained_teacher(alone_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in timm's format with a small model trained on ``photos``, 96 features wide. Not to be changed."""
    return Path(shutil.copytree(alone_run / "student", tmp_path_factory.mktemp("models") / "teacher"))


@pytest.fixture(scope="session")
def random_run(_finish: Callable[..., Path]) -> Path:
    """A finished run with an untrained teacher: inverted projector. Not to be changed."""
    return _finish("inverted", "--teacher", "random:test_vit", "--student", "test_resnet", "--epochs", "2")


@pytest.fixture(scope="session")
def same_run(_finish: Callable[..., Path], trained_teacher: Path) -> Path:
    """A finished run whose teacher has the data's labels: orthogonal projector, logit KD. Not to be changed."""
    return _finish("orthogonal", "--teacher", trained_teacher, "--student", "test_convnext", "--epochs", "2")


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT in transformers' format, its classifier over ``photos``' labels. Not to be changed."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-vit"
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def hf_run(_finish: Callable[..., Path], hf_folder: Path) -> Path:
    """A finished run of transformers' models, teacher and student. Not to be changed."""
    return _finish("transformers", "--teacher", hf_folder, "--student", hf_folder)
