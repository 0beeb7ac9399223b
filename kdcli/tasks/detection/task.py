"""Object detection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import ModelFacts
from kdcli.base.reads import Reads
from kdcli.config.data import DataConfig
from kdcli.config.run import RunConfig
from kdcli.data import AnyBatch, Batch, open_dense
from kdcli.data.images.decode import Range
from kdcli.machine.team import Team
from kdcli.models.base import Model
from kdcli.models.detections import BOXES, DetectionModel, Detections, is_ignored
from kdcli.plan.plan import Decision
from kdcli.tasks.answers import Answers, Choice
from kdcli.tasks.base import DEFAULT_LOSS, AnyData, Cut, Task
from kdcli.tasks.dense.measured import check_measured
from kdcli.tasks.detection.coco import Seen, average_precision, check_backend
from kdcli.tasks.detection.pictures import panels_of
from kdcli.tasks.detection.report import LAYOUT, BoxReport, seen_in
from kdcli.tasks.meters import Meter, SampleSums
from kdcli.tasks.reports import Layout, Panel, Report

_METRICS = ("map", "map_50", "map_75")


class ObjectDetection(Task):
    """Boxes around things, with a class each.

    The loss is the sum of those that the student's library computes in its own forward pass. Metrics are COCO's average
    precisions in pixels of each model's own images, into which a whole image is squashed.
    """

    name = "object-detection"
    monitor = "map"

    @classmethod
    def open(cls, config: DataConfig, *, seed: int, evaluation: DataConfig | None = None) -> AnyData:
        """Return images with boxes."""
        check_backend()
        data: AnyData = open_dense(config, cls.row().target, seed=seed)
        return data

    def reads(self, model: ModelFacts) -> Reads:
        """Return the one head of a detector."""
        return Reads(heads=(BOXES,))

    def supervised_loss(
        self, logits: Detections, targets: Any, *, label_smoothing: float, terms: Mapping[str, float] = DEFAULT_LOSS
    ) -> Tensor:
        """Return the sum of the library's losses; ``targets`` went into the forward pass.

        Args:
            logits: of a student in training.
            targets: not read.
            label_smoothing: 0: the libraries smooth nothing.
            terms: of the library's losses by name, with a weight each; by default all of them, as they are.

        Raises:
            UserError: there is no such loss.
        """
        losses = logits.losses
        for name in terms:
            if name not in losses:
                raise UserError(
                    f"The student has no loss {name!r}. {did_you_mean(name, losses)}".rstrip(),
                    f"Valid: {', '.join(losses)}.",
                )
        chosen = terms or dict.fromkeys(losses, 1.0)
        return torch.stack([weight * losses[name].float() for name, weight in chosen.items()]).sum()

    def count_labels(self, targets: Any) -> int:
        """Return 1: the mean of the processes' losses is that of all samples, see :class:`Detections`."""
        return 1

    def predict(self, model: Model, batch: AnyBatch, *, into_teacher: Callable[[Tensor], Tensor] | None = None) -> Any:
        """Return :class:`Detections`; of a model of the data's own classes its losses are among them."""
        if isinstance(model, DetectionModel) and model.facts.label_names == self.class_names:
            inputs = model.with_targets(batch)
        else:
            inputs = model.prepare(batch)
        return model(inputs, self.reads(model.facts)).heads[BOXES]

    def in_order(self, outputs: Detections, columns: Sequence[int]) -> Detections:
        """Return the boxes of the data's classes, numbered as the data do."""
        return outputs.of_classes(columns) if columns else outputs

    def decisions(
        self, config: RunConfig, teacher: Model | None, student: Model, data: Any, cut: Cut | None
    ) -> Sequence[Decision]:
        """Return what the loss is made of, and what average precision is measured on."""
        height, width = student.facts.preprocessing.image_size  # type: ignore[union-attr]  # a model of images
        names = " + ".join(student.facts.losses) or "its library's"
        reason = (
            "Computed by the student's library in the forward pass. Several processes give the loss of all their"
            " images, but for what is drawn at random, of which each draws its own; boxes of crowds and difficult ones"
            " are not trained on."
        )
        measured = (
            "COCO's; boxes are in pixels of the student's own images, into which whole images are squashed. Boxes of"
            " crowds and difficult ones count neither way."
        )
        return [
            Decision("loss on boxes", names, reason),
            Decision("average precision", f"at {height}x{width} pixels", measured),
        ]

    def check_split(self, source: Any, split: str) -> None:
        """Refuse a split without a box that counts."""
        check_measured(source, lambda target: bool((~is_ignored(target)).any()), _no_boxes(split))

    def meter(self, team: Team) -> Meter:
        """Return a new meter of :data:`monitor`, ``map_50``, ``map_75`` and, where the model gives it, ``loss``."""
        return BoxMeter(len(self.class_names), team)

    @property
    def layout(self) -> Layout:
        """COCO's average precisions, and that of every class."""
        return LAYOUT

    def report(self) -> Report:
        """Return a new report."""
        return BoxReport(self.class_names)

    def answers(self, samples: Sequence[Any], choice: Choice, *, deep_range: Range | None = None) -> Answers:
        """Return what tells the boxes that are found."""
        from kdcli.tasks.detection.answers import BoxAnswers

        return BoxAnswers(self, samples, choice, deep_range=deep_range)

    def pictures(self, batch: AnyBatch, outputs: Mapping[str, Any]) -> list[list[Panel]]:
        """Return of every sample the image, the boxes that are there, and those that each model finds."""
        assert isinstance(batch, Batch)
        return panels_of(batch.colours, batch.targets, outputs, self.class_names)


def _no_boxes(split: str = "") -> UserError:
    where = f" in the {split} split" if split else ""
    return UserError(f"There are no boxes to evaluate on{where}.", "Crowds and difficult ones don't count.")


class BoxMeter:
    """COCO's average precisions, and the mean of the model's own loss over the images.

    Args:
        num_classes: of the data.
        team: the processes that share the images.
    """

    def __init__(self, num_classes: int, team: Team) -> None:
        self._num_classes, self._team = num_classes, team
        self._seen: list[Seen] = []
        self._loss = torch.zeros(2, dtype=torch.float64)
        """The sum over images, each with the loss of its batch, and the number of images that have one."""

    def update(self, outputs: Detections, batch: AnyBatch) -> SampleSums:
        """Add a batch; average precisions are not made of sums."""
        self._seen += seen_in(outputs, batch)
        if outputs.losses:
            loss = torch.stack([*outputs.losses.values()]).cpu().double().sum()
            self._loss += torch.stack([loss * len(batch), torch.tensor(float(len(batch)), dtype=torch.float64)])
        return {}

    def compute(self) -> dict[str, float]:
        """Return the metrics over all processes."""
        seen = self._team.gather(self._seen)
        loss, count = self._team.sum(self._loss).tolist()
        precision = average_precision(seen, self._num_classes)
        if precision.metrics["map"] is None:
            raise _no_boxes()
        metrics = {
            name: value for name in ("map", "map_50", "map_75") if (value := precision.metrics[name]) is not None
        }
        return metrics | ({"loss": loss / count} if count else {})
