"""A student's folder loaded by timm alone, and how a model card says to load it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.files import temporary_folder
from kdcli.base.tasks import TaskFacts
from kdcli.models.base import Model
from kdcli.models.reloaded import Reloaded, check_labels, logits_of
from kdcli.models.timm.registry import extension_of_architecture

_NETWORKS = "kdcli_networks.py"
"""A folder's own copy of the architectures that timm lacks."""


def reload(student: Model, folder: Path) -> Reloaded:
    """Load ``folder`` by timm alone and run it on two made-up images."""
    images: Any = student.example(2, seed=2)
    if (folder / _NETWORKS).is_file():
        found, names = _run_without_kdcli(folder, images)
    else:
        module: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        names = module.pretrained_cfg.get("label_names")
        with torch.inference_mode():
            found = module(images)
    if student.facts.num_classes:
        check_labels(names, student)
        return Reloaded("timm", "logits", found, logits_of(student, images))
    with torch.inference_mode():
        return Reloaded("timm", "features", found, student.module(images))


_WITHOUT_KDCLI = """
import json, sys
sys.modules["kdcli"] = None  # importing it is now an error
folder, file = sys.argv[1:]
sys.path.append(folder)
import kdcli_networks, timm, torch
from safetensors.torch import load_file, save_file
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
with torch.inference_mode():
    save_file({"output": model(load_file(file)["images"])}, file)
print(json.dumps(model.pretrained_cfg.get("label_names")))
"""


def _run_without_kdcli(folder: Path, images: Tensor) -> tuple[Tensor, list[str] | None]:
    """Load ``folder`` with its own copy of the architecture, without kdcli; return output and labels."""
    with temporary_folder(Path(tempfile.gettempdir())) as place:
        file = str(place / "tensors.safetensors")
        save_file({"images": images}, file)
        # -B leaves no __pycache__ in the export, -P keeps the working folder's modules out.
        command = [sys.executable, "-B", "-P", "-c", _WITHOUT_KDCLI, str(folder.absolute()), file]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
            raise UserError(
                f"The exported model can't be loaded without kdcli: {reason}",
                "Nothing was exported. Please report this with the run's config.yaml.",
            )
        return load_file(file)["output"], json.loads(result.stdout.splitlines()[-1])


_LOAD = 'import timm\n\nmodel = timm.create_model("local-dir:PATH", pretrained=True).eval()\n'
_LABELS = 'labels = model.pretrained_cfg["label_names"]'
_FEATURES = (
    "features = model.forward_features(images)  # the embedding: their mean over positions, without class tokens"
)
_IMPORT_NETWORKS = (
    'import sys\n\nsys.path.append("PATH")\nimport kdcli_networks  # from this folder: timm has no such architecture\n'
)


def snippet(folder: Path, task: TaskFacts) -> str:
    """Return the lines of Python that load ``folder`` by timm, with the architecture's module where timm lacks it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = config["architecture"]
    lines = _LOAD + (_FEATURES if task.is_label_free else _LABELS) + _images_of(config)
    if (entry := extension_of_architecture(architecture)) is not None:
        return f"import {entry.module}  # of {entry.package}: timm has no such architecture\n{lines}"
    return (_IMPORT_NETWORKS if (folder / _NETWORKS).is_file() else "") + lines


def _images_of(config: Any) -> str:
    """Return a comment on images that are none of colours; empty for those."""
    channels = config.get("pretrained_cfg", {}).get("input_size", (3,))[0]
    if channels == 1:
        return '\n# images: (B, 1, H, W), greyscale, Image.open(FILE).convert("L"); pipelines give colours'
    if channels == 4:
        return "\n# images: (B, 4, H, W), all that a file of four channels has; pipelines give three"
    return ""
