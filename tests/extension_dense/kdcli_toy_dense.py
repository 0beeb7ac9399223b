"""A dense task of another package: which pixels of an image are ink, and a network for it."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import tv_tensors

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, Preprocessing
from kdcli.base.tasks import TaskFacts
from kdcli.data import open_data
from kdcli.data.images.sources import ImageSource
from kdcli.data.source import Sample
from kdcli.models.networks import Networks
from kdcli.tasks.base import DEFAULT_LOSS, ImageTask
from kdcli.tasks.reports import Layout, Panel

CLASSES = ("paper", "ink")
COLOURS = np.array([[255, 255, 255], [0, 60, 130], [200, 200, 200]], dtype=np.uint8)


class InkSource(ImageSource):  # the images of another source, with a mask each
    def __init__(self, source):
        self.source, self.in_memory = source, source.in_memory
        self.labels = [min(label, 0) for label in source.labels]

    @property
    def ids(self):
        return self.source.ids

    def load(self, index):
        image = self.source.load(index).inputs
        ink = torch.from_numpy(np.asarray(image.convert("L")) > 127).long()
        labelled = self.labels[index] != UNLABELLED
        return Sample(image, tv_tensors.Mask(ink if labelled else torch.full_like(ink, UNLABELLED)))

    def describe(self, index):
        return self.source.describe(index)


def rows(logits):
    """(B, C, H, W) as (N, C)."""
    return logits.movedim(1, -1).flatten(0, -2)


class Ink(ImageTask):
    name = "toy_ink"
    facts = TaskFacts(
        "toy_ink", "image", "pixels", "dense", "image-segmentation",
        losses=("cross_entropy", "brier"), smoothed_losses=("cross_entropy",),
    )  # fmt: skip
    monitor = "mean_iou"

    @classmethod
    def open(cls, config, *, seed, evaluation=None):
        data = open_data(config, seed=seed)
        test = None if data.test is None else InkSource(data.test)
        facts = replace(data.facts, task=cls.name, class_names=CLASSES, label_kind="pixels")
        return replace(data, facts=facts, train=InkSource(data.train), validation=InkSource(data.validation), test=test)

    def supervised_loss(self, logits, targets, *, label_smoothing, terms=DEFAULT_LOSS):
        logits, targets = rows(logits).float(), targets.flatten()
        losses = {
            "cross_entropy": lambda: F.cross_entropy(
                logits, targets, ignore_index=UNLABELLED, label_smoothing=label_smoothing, reduction="sum"
            ),
            "brier": lambda: (logits.softmax(dim=1) - F.one_hot(targets.clamp(min=0), 2))[targets >= 0].square().sum(),
        }
        total = sum(weight * losses[name]() for name, weight in (terms or {"cross_entropy": 1.0}).items())
        return total / self.count_labels(targets).clamp(min=1)

    def count_labels(self, targets):
        return (targets != UNLABELLED).sum()

    def predict(self, model, batch, *, into_teacher=None):
        return rows(super().predict(model, batch))

    def meter(self, team):
        return InkMeter(team)

    layout = Layout("pixel", (("mean IoU", "mean_iou"), ("accuracy", "pixel_accuracy")), ("IoU", "iou"), ("confusion",))

    def report(self):
        return InkReport()

    def pictures(self, batch, outputs):
        masks = {"target": batch.targets}
        masks |= {role: rows.argmax(dim=1).view_as(batch.targets) for role, rows in outputs.items()}
        return [
            [Panel("image", image), *(Panel(name, COLOURS[mask[number].numpy()]) for name, mask in masks.items())]
            for number, image in enumerate(batch.images.permute(0, 2, 3, 1).numpy())
        ]


def confusion_of(rows, targets):
    """Return counts (2, 2): rows are true classes."""
    guesses, targets = rows.argmax(dim=1).cpu(), targets.flatten().cpu()
    labelled = targets != UNLABELLED
    return (2 * targets + guesses)[labelled].bincount(minlength=4).view(2, 2).double()


def scores_of(confusion):
    right, union = confusion.diag(), confusion.sum(dim=0) + confusion.sum(dim=1) - confusion.diag()
    iou = right / union.clamp(min=1)
    return {"mean_iou": float(iou.mean()), "pixel_accuracy": float(right.sum() / confusion.sum())}, iou.tolist()


class InkMeter:
    def __init__(self, team):
        self.team = team
        self.confusion, self.loss = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def update(self, outputs, batch):
        self.loss += F.cross_entropy(
            outputs.double(), batch.targets.flatten(), ignore_index=UNLABELLED, reduction="sum"
        ).cpu()
        each = [confusion_of(*pair) for pair in zip(outputs.chunk(len(batch)), batch.targets, strict=True)]
        self.confusion += sum(each)
        return {"pixel_accuracy": torch.stack([torch.stack([part.trace(), part.sum()]) for part in each])}

    def compute(self):
        confusion, loss = self.team.sum(self.confusion).cpu(), self.team.sum(self.loss).cpu()
        if not confusion.sum():
            raise UserError("There are no labelled pixels to evaluate on.", "Check that split.")
        return scores_of(confusion)[0] | {"loss": float(loss / confusion.sum())}


class InkReport:
    def __init__(self):
        self.confusion, self.guesses = torch.zeros(2, 2, dtype=torch.float64), []

    def update(self, outputs, batch):
        self.confusion += confusion_of(outputs, batch.targets)
        self.guesses.append(outputs.argmax(dim=1))

    def compute(self):
        scores, iou = scores_of(self.confusion)
        return {**scores, "iou": iou, "confusion": self.confusion.long().tolist()}

    def counts(self):
        return self.confusion.sum(dim=1).long().tolist()

    def notes(self, name):
        return []

    def agreement(self, other):
        return float((torch.cat(self.guesses) == torch.cat(other.guesses)).double().mean())


class ToyNetwork(nn.Module):
    """Two convolutions of stride 2, and logits at every pixel."""

    def __init__(self, num_outputs, width=8):
        super().__init__()
        layers = [nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Conv2d(2 * width, num_outputs, 1), nn.Upsample(scale_factor=4, mode="bilinear"))


class ToyNetworks(Networks):  # --student toynet:small
    name = prefix = "toynet"
    networks = {"small": ToyNetwork}  # noqa: RUF012
    preprocessing = Preprocessing((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
