"""A Python programmer distils in a notebook: no command line, a module of her own as teacher, a torch data set as data.

    python 5_notebook.py [FOLDER]

FOLDER has images in class folders (without it: the demo's digits). Each ``# %%`` begins a cell; editors run them one by
one. Files go to a new folder, or to $WORK.
"""

# %% Data: a folder by name, or any torch data set of (image, class number)
import os
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import kdcli

os.chdir(os.environ.get("WORK") or tempfile.mkdtemp())
print("Working in", Path.cwd())
data = str(Path(sys.argv[1]).resolve()) if len(sys.argv) > 1 else "demo:digits"
epochs = int(os.environ.get("EPOCHS", "3"))

# %% What would be done, and why
plan = kdcli.plan(
    teacher="none", student="cifar:resnet20", data=data, epochs=epochs, settings={"student.image_size": 32}
)
for decision in plan.decisions[:5]:
    print(f"{decision.name}: {decision.value} ({decision.reason})")

# %% A teacher, trained here; callbacks are told of everything
events: list[str] = []
teacher = kdcli.distill(
    teacher="none",
    student="cifar:resnet20",
    data=data,
    epochs=epochs,
    output="runs/teacher",
    settings={"student.image_size": 32},
    callbacks=[lambda event, values: events.append(event)],
)
print(teacher.metrics, sorted(set(events)))


# %% The student, with that run as teacher
run = kdcli.distill(
    teacher=teacher.path,
    student="cifar:resnet8",
    data=data,
    epochs=epochs,
    baseline=True,
    output="runs/student",
    settings={"student.image_size": 32},
)
print(run.metrics)


# %% The same from a module of one's own, whose layer `trunk` gives the features
class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(16, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(images))


own = kdcli.Network(Own().eval(), features="trunk", image_size=32)
second = kdcli.distill(
    teacher=own, student="cifar:resnet8", data=data, epochs=1, output="runs/own", settings={"student.image_size": 32}
)

# %% What came of it
evaluation = kdcli.evaluate(run)
comparison = kdcli.compare([run, "runs/student/baseline"])
folder = run.export()
again = kdcli.load("runs/student")
outputs = again.student(torch.zeros(2, 3, 32, 32))

# %% Mistakes are errors that say what to do
try:
    kdcli.distill(teacher="resnet5O", student="cifar:resnet8", data=data)
except kdcli.UserError as error:
    print(f"{error.message}\n{error.hint}")
else:
    raise AssertionError("a wrong name was taken")

assert again.metrics == run.metrics
assert "validated" in events, events
assert (folder / "model.safetensors").is_file()
assert outputs.shape[0] == 2
assert len(comparison["groups"]) == 2
assert evaluation["num_images"] > 0
assert second.metrics["validation"]["accuracy"] > 0
print(f"Done: validation accuracy {run.metrics['validation']['accuracy']:.1%}; student in {folder}")
