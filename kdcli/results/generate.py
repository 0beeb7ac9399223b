"""``kdcli generate``: images out of a finished generator, as files and as a grid."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.files import clear_os_errors, replace_files
from kdcli.base.tasks import TASKS
from kdcli.machine.devices import resolve_device
from kdcli.models import load_saved
from kdcli.models.base import Model
from kdcli.results.samples import open_run
from kdcli.tasks.generation.task import as_pixels

GRID, RECORD = "grid.png", "generated.json"
_NUMBERED = re.compile(r"\d{5,}\.png")
_GAP = 2
"""Pixels between the images of a grid."""
MOST_IN_GRID = 1024
"""More images are files alone."""


@dataclass(frozen=True)
class Wish:
    """What is to be made.

    Attributes:
        number: of images.
        seed: each image is a function of seed, its number and its class.
        truncation: random numbers beyond it, on either side of 0, are drawn again; None leaves them.
        class_name: of all images, a name or a number; by default the classes in turn.
    """

    number: int
    seed: int = 0
    truncation: float | None = None
    class_name: str | None = None


def generate(
    name: str,
    wish: Wish,
    output: Path | None,
    *,
    device: str = "auto",
    batch_size: int = 64,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Path, list[str]]:
    """Write ``00000.png`` and so on, ``grid.png`` of the first ones and ``generated.json``, and return where.

    Args:
        name: of a run, or of an exported folder.
        wish: what to make.
        output: a new or empty folder, or one that holds an earlier call's files, which are replaced; by default
            ``RUN/generated``.
        device: to run on.
        batch_size: images of a pass.
        force: go on although files of the run have changed.
        progress: called with the images that are made and all.

    Returns:
        The folder, and a sentence on each thing that is not as usual.

    Raises:
        UserError: it is no generator, has no such class, or the folder holds other files.
    """
    run = open_run(name, force=force)
    if run is not None:
        run.check_student()
    folder = Path(name) if run is None else run.student
    student = _generator(name, folder)
    place = resolve_device(device)
    label = _label(student, wish.class_name)
    target = Path(name) / "generated" if output is None else output
    _check_folder(target)
    student.eval().to(place)
    images = []
    classes = student.facts.num_classes
    for first in range(0, wish.number, batch_size):
        numbers = torch.arange(first, min(first + batch_size, wish.number))
        labels = None if not classes else numbers % classes if label is None else torch.full_like(numbers, label)
        made = _sample(student, numbers, wish, labels, place)
        images.append(as_pixels(made).permute(0, 2, 3, 1).cpu().numpy())
        progress(first + len(numbers), wish.number)
    pixels = np.concatenate(images)
    facts = student.facts
    record = {"model": name, **asdict(wish), "classes": list(facts.label_names or ()) or None, "weights": facts.weights}

    def save(temporary: Path) -> None:
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(temporary / f"{number:05d}.png")
        Image.fromarray(grid_of(pixels[:MOST_IN_GRID])).save(temporary / GRID)
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    with clear_os_errors(target, hint="Free some space, or give another --output."):
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_files(target, save)
        for file in target.iterdir():
            if _NUMBERED.fullmatch(file.name) and int(file.stem) >= wish.number:
                file.unlink()
    notes = [] if run is None else [f"Warning: {sentence}" for sentence in run.forced]
    if wish.number > MOST_IN_GRID:
        notes.append(f"{GRID} has the first {MOST_IN_GRID}.")
    return target, notes


def grid_of(images: Any) -> Any:
    """Return images uint8 (N, H, W, 3) as one, as nearly square as can be, white where there is none."""
    number, height, width, _ = images.shape
    across = math.ceil(math.sqrt(number))
    down = math.ceil(number / across)
    grid = np.full((down * (height + _GAP) - _GAP, across * (width + _GAP) - _GAP, 3), 255, dtype=np.uint8)
    for place, image in enumerate(images):
        top, left = place // across * (height + _GAP), place % across * (width + _GAP)
        grid[top : top + height, left : left + width] = image
    return grid


@torch.inference_mode()
def _sample(
    student: Any, numbers: torch.Tensor, wish: Wish, labels: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    made: torch.Tensor = student.sample(
        numbers.to(device), seed=wish.seed, bound=wish.truncation, classes=None if labels is None else labels.to(device)
    )
    return made


def _generator(name: str, folder: Path) -> Model:
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{name} is neither a run nor an exported folder.", "Name a run of kdcli distill --task image-generation."
        )
    student = load_saved(folder)
    if TASKS[student.facts.task].target != "samples":
        raise UserError(
            f"{name} is for {TASKS[student.facts.task].words}: it makes no images out of random numbers.",
            "'kdcli predict' asks such models about images or texts of yours.",
        )
    return student


def _label(student: Model, asked: str | None) -> int | None:
    """Return the number of the class that is asked for; None where none is."""
    if asked is None:
        return None
    names = student.facts.label_names or ()
    if not names:
        raise UserError(f"--class {asked}: the generator knows no classes.", "Leave it out.")
    if asked in names:
        return names.index(asked)
    if asked.isdecimal() and int(asked) < len(names):
        return int(asked)
    raise UserError(
        f"The generator knows no class {asked!r}. {did_you_mean(asked, names)}".rstrip(),
        f"It knows {', '.join(names)}, or numbers from 0 to {len(names) - 1}.",
    )


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or any(
        file.name not in (GRID, RECORD) and not _NUMBERED.fullmatch(file.name) for file in folder.iterdir()
    ):
        raise UserError(f"{folder} holds files that are not of kdcli generate.", "Give a new or empty --output.")
