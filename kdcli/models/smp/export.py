"""A student's folder loaded by segmentation-models-pytorch alone, and how a model card says to load it."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from kdcli.base.reads import DEPTH
from kdcli.base.tasks import TaskFacts
from kdcli.models.base import Model
from kdcli.models.reloaded import Reloaded, check_labels
from kdcli.models.smp.names import package

_LOAD = """import json

import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

settings = json.load(open("PATH/config.json"))
told = settings["_preprocessing"]
model = smp.from_pretrained("PATH").eval()
whole = Image.open("IMAGE").convert("RGB").resize(told["image_size"][::-1], Image.Resampling.FILTER)
images = functional.normalize(functional.to_image(whole)[None] / 255, told["mean"], told["std"])  # (B, 3, H, W)
with torch.inference_mode():
"""
_CLASSES = '    classes = model(images).argmax(dim=1)  # (B, H, W)\nlabels = settings["_label_names"]'
_DEPTHS = "    metres = torch.nn.functional.softplus(model(images))  # (B, 1, H, W)"


def reload(student: Model, folder: Path) -> Reloaded:
    """Load ``folder`` by the library alone and run it on two made-up images."""
    with redirect_stdout(StringIO()):  # huggingface_hub prints that it loads weights
        module: Any = package().from_pretrained(str(folder)).eval()
    images: Any = student.example(2, seed=2)
    (head,) = student.facts.predictions
    is_depth = head == DEPTH
    if not is_depth and student.facts.label_names is not None:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_label_names"]
        check_labels(names, student)
    with torch.inference_mode():
        found = module(images)
        found = torch.nn.functional.softplus(found) if is_depth else found
        return Reloaded("segmentation-models-pytorch", head, found, student(images).heads[head])


def snippet(folder: Path, task: TaskFacts) -> str:
    """Return the lines of Python that load a student by the library and run it on the image called ``IMAGE``."""
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_preprocessing"]
    load = _LOAD.replace("FILTER", told["interpolation"].upper())
    if (channels := len(told["mean"])) != 3:
        opened = 'Image.open("IMAGE").convert("RGB")'
        four = 'Image.merge("CMYK", Image.open("IMAGE").convert("RGBA").split())'  # four bands, none of them alpha
        load = load.replace(opened, opened.replace("RGB", "L") if channels == 1 else four)
        load = load.replace("(B, 3, H, W)", f"(B, {channels}, H, W)")
    return load + (_DEPTHS if task.head == "depth" else _CLASSES)
