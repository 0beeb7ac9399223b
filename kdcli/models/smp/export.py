"""A student's folder loaded by segmentation-models-pytorch alone, and how a model card says to load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from kdcli.base.reads import DEPTH
from kdcli.base.tasks import TaskFacts
from kdcli.models.base import Model
from kdcli.models.reloaded import Reloaded, check_labels
from kdcli.models.smp.names import package

_LOAD = 'import json\n\nimport segmentation_models_pytorch as smp\n\nmodel = smp.from_pretrained("PATH").eval()\n'
_LOGITS = (
    'labels = json.load(open("PATH/config.json"))["_label_names"]\nclasses = model(images).argmax(dim=1)  # (B, H, W)'
)
_DEPTHS = "depth = torch.nn.functional.softplus(model(images))  # (B, 1, H, W), in the unit of the training data"


def reload(student: Model, folder: Path) -> Reloaded:
    """Load ``folder`` by the library alone and run it on two made-up images."""
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


def snippet(task: TaskFacts) -> str:
    """Return the lines of Python that load a student by the library."""
    if task.head == "depth":
        return _LOAD.replace("import json\n\n", "").replace("import seg", "import torch\nimport seg") + _DEPTHS
    return _LOAD + _LOGITS
