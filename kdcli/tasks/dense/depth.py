"""The depth of every pixel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from kdcli import losses
from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, DepthFacts, ModelFacts
from kdcli.base.reads import DEPTH, Reads
from kdcli.config.data import DataConfig
from kdcli.config.run import RunConfig
from kdcli.data import AnyBatch, Batch, open_dense
from kdcli.data.images.decode import Range
from kdcli.machine.team import Team
from kdcli.models.base import Model
from kdcli.plan.plan import Decision
from kdcli.tasks.answers import Answers, Choice
from kdcli.tasks.base import DEFAULT_LOSS, AnyData, Cut, ImageTask
from kdcli.tasks.dense.depth_metrics import (
    METRICS,
    alignment_of,
    doubled,
    is_evaluated,
    is_measured,
    metrics_of,
    resize_depth,
    to_metres,
)
from kdcli.tasks.dense.measured import check_measured
from kdcli.tasks.meters import Meter, SampleSums
from kdcli.tasks.reports import Layout, Panel, Report

_AGREE = 1.25
"""Two models agree on a pixel where the ratio of their depths is less than this, as of ``delta1``."""
_COMPARED = 64
"""Most rows and columns of an image at which two models' agreement is looked at."""


class DepthEstimation(ImageTask):
    """The task ``depth-estimation``: metres at every pixel, out of one image.

    Predictions are resized to the target, never the target to them. Every loss is a mean over the measured pixels of an
    image, and then over the images that have any, so that one process and several give the same.

    Args:
        class_names: one, of the depth.
        depth: which depths count, and how predictions are measured.
    """

    name = "depth-estimation"
    monitor = "delta1"

    def __init__(self, class_names: Sequence[str] = ("depth",), depth: DepthFacts | None = None) -> None:
        super().__init__(class_names)
        self.depth = depth or depth_facts(DataConfig(name="none"))

    @classmethod
    def open(cls, config: DataConfig, *, seed: int, evaluation: DataConfig | None = None) -> AnyData:
        """Return images with their depth."""
        data = open_dense(config, cls.row().target, seed=seed)
        return replace(data, facts=replace(data.facts, task=cls.row().name, depth=depth_facts(config)))

    @classmethod
    def from_facts(cls, data: DataFacts, *, reference: Callable[[AnyBatch], Tensor]) -> Self:
        """Return the task for ``data``."""
        return cls(data.class_names, data.depth)

    def reads(self, model: ModelFacts) -> Reads:
        """Return the head of the depth."""
        return Reads(heads=(DEPTH,))

    def supervised_loss(
        self, logits: Tensor, targets: Tensor, *, label_smoothing: float, terms: Mapping[str, float] = DEFAULT_LOSS
    ) -> Tensor:
        """Return the sum of the losses that ``terms`` name, each of every image, averaged over those with depth.

        Args:
            logits: depth in metres (B, 1, h, w), at any stride.
            targets: float (B, H, W), metres; 0 where not measured.
            label_smoothing: plays no part.
            terms: out of ``silog`` (the default), ``l1``, ``berhu`` and ``scale_shift_invariant``, which is of inverse
                depth; see :mod:`kdcli.losses.depth`.

        Returns:
            A scalar; zero, with a gradient, where nothing was measured.
        """
        prediction = resize_depth(logits, (targets.shape[1], targets.shape[2]))[:, 0]
        valid = is_measured(targets, self.depth)
        total = (0 * prediction).sum(dim=(1, 2)).nan_to_num()
        for name, weight in (terms or {self.row().losses[0]: 1.0}).items():
            total = total + weight * depth_loss(name, prediction, targets, valid, self.depth)
        return total.sum() / self.count_labels(targets).clamp(min=1)

    def count_labels(self, targets: Tensor) -> Tensor:
        """Return how many images have a measured pixel."""
        return is_measured(targets, self.depth).flatten(1).any(dim=1).sum()

    def predict(self, model: Model, batch: AnyBatch, *, into_teacher: Callable[[Tensor], Tensor] | None = None) -> Any:
        """Return depth in metres (B, 1, H, W) at the target's size, aligned to it where ``data.depth_alignment`` says.

        Of a model whose depth is relative that is a least-squares fit of scale and shift, see :func:`to_metres`.
        """
        targets = batch.targets
        values = resize_depth(super().predict(model, batch), (targets.shape[1], targets.shape[2]))[:, 0]
        return to_metres(values, targets, self.depth, model.facts.depth)[:, None]

    def evidence(self, model: Model, batch: AnyBatch, outputs: Tensor) -> Tensor:
        """Return depth that is not fitted to the targets, (B, 1, h, w), in whatever unit, greater where it is farther.

        A fit of scale and shift makes any prediction go with its target, even one with near and far exchanged.
        """
        if alignment_of(self.depth, model.facts.depth) != "least_squares":
            return outputs
        answer: Tensor = super().predict(model, batch).float()
        return -answer if model.facts.depth == "inverse" else answer

    def check_split(self, source: Any, split: str) -> None:
        """Refuse a split without a pixel to be evaluated."""
        nothing = _nothing_measured(self.depth, split)
        check_measured(source, lambda target: bool(is_evaluated(target[None], self.depth).any()), nothing)

    def meter(self, team: Team) -> Meter:
        """Return the meter of :data:`METRICS` and ``loss``."""
        return DepthMeter(self.depth, team)

    @property
    def layout(self) -> Layout:
        """The metrics, each averaged over images."""
        names = {"abs_rel": "AbsRel", "sq_rel": "SqRel", "rmse": "RMSE", "rmse_log": "RMSE log", "silog": "SILog"}
        return Layout("image", tuple((names.get(name, name), name) for name in (*METRICS, "loss")))

    def report(self) -> Report:
        """Return a report of depth."""
        return DepthReport(self.depth)

    def cut_together(self, source: Any, models: Sequence[Model], notes: list[str]) -> Any:
        """Leave the samples, and note where depth is measured and how predictions were aligned."""
        notes.append(
            f"Depth from {self.depth.nearest:g} to {self.depth.farthest:g} m{self._where()}; each image counts alike."
        )
        notes += [sentence for model in models if (sentence := self._alignment(model.facts))]
        return source

    def decisions(
        self, config: RunConfig, teacher: Model | None, student: Model, data: Any, cut: Cut | None
    ) -> Sequence[Decision]:
        """Say which depths count, and what is done to predictions before they are measured.

        Raises:
            UserError: the loss leaves scale and shift open, and the metrics do not.
        """
        for options in config.methods or ():
            terms = getattr(options, "loss", None)  # of the loss on the labels alone it is a sum
            leaves_scale = isinstance(terms, Mapping) and set(terms) == {"scale_shift_invariant"}
            if leaves_scale and self.depth.alignment in ("auto", "none"):
                raise UserError(
                    "scale_shift_invariant alone leaves the scale of the student's depth open, and it would be measured"
                    " in metres.",
                    "Add silog to the loss, or set data.depth_alignment=least_squares.",
                )
        found = [
            Decision(
                "depth",
                f"{self.depth.nearest:g} to {self.depth.farthest:g} m{self._where()}",
                "Other pixels count as not measured; predictions are clamped to it. Metrics are of each image at the"
                " size of the model's input, then averaged.",
            )
        ]
        for role, model in (("teacher", teacher), ("student", student)):
            if model is not None and (sentence := self._alignment(model.facts)):
                found.append(Decision(f"{role}'s depth", alignment_of(self.depth, model.facts.depth), sentence))
        return found

    def _where(self) -> str:
        return "" if self.depth.crop == "none" else f", in the crop {self.depth.crop}"

    def _alignment(self, facts: ModelFacts) -> str:
        """Return a sentence on how a model's predictions are aligned; empty where they are taken as they are."""
        if DEPTH not in facts.heads:
            return ""
        relative = f"The depth of {facts.name} is relative: inverse, up to scale and shift. "
        prefix = relative if facts.depth == "inverse" else ""
        how = {
            "least_squares": f"The inverse depth of {facts.name} is fitted to each image's by least squares, in scale"
            " and shift, before it is measured.",
            "median": f"The depth of {facts.name} is scaled to the median of each image's before it is measured.",
            "none": "It is measured as if it were in 1/m." if prefix else "",
        }
        return (prefix + how[alignment_of(self.depth, facts.depth)]).rstrip()

    @classmethod
    def facts_of(cls, model: Model, config: DataConfig | None) -> DataFacts:
        """Return the facts of no data, with the depths that counted in training; all where it is not known."""
        facts = DataFacts.of_labels(("depth",), task=cls.row().name)
        depth = DepthFacts(0.0, math.inf) if config is None else depth_facts(config)
        return replace(facts, label_kind="depth", depth=depth)

    def answers(self, samples: Sequence[Any], choice: Choice, *, deep_range: Range | None = None) -> Answers:
        """Return what tells the depth of every pixel."""
        from kdcli.tasks.dense.answers import DepthAnswers

        return DepthAnswers(self, samples, choice, deep_range=deep_range)

    def pictures(self, batch: AnyBatch, outputs: Mapping[str, Any]) -> list[list[Panel]]:
        """Return of each image itself, its depth, and of every model the depth and the error."""
        assert isinstance(batch, Batch)
        from kdcli.tasks.dense.depth_pictures import panels_of

        depths = {role: depth[:, 0] for role, depth in outputs.items()}
        return panels_of(batch.colours, batch.targets, is_measured(batch.targets, self.depth), depths)


def depth_facts(config: DataConfig) -> DepthFacts:
    """Return which depths count for data, and how they are measured."""
    return DepthFacts(config.min_depth, config.max_depth, config.depth_crop, config.depth_alignment)


def depth_loss(name: str, prediction: Tensor, target: Tensor, valid: Tensor, depth: DepthFacts) -> Tensor:
    """Return the loss of this name for every image, (B,).

    Args:
        name: out of the row's ``losses``.
        prediction: metres (B, H, W); where a logarithm is taken, at least ``depth.nearest``; where an inverse is, at
            least ``depth.inverse_floor``, and so is the target.
        target: metres (B, H, W).
        valid: bool (B, H, W).
        depth: which depths count.
    """
    if name == "l1":
        return losses.depth_l1(prediction, target, valid)
    if name == "berhu":
        return losses.berhu(prediction, target, valid)
    if name == "silog":
        return losses.silog(prediction.clamp(min=depth.nearest), target, valid)
    assert name == "scale_shift_invariant", name
    ours, theirs = (1 / side.clamp(min=depth.inverse_floor) for side in (prediction, torch.where(valid, target, 1.0)))
    return losses.scale_shift_invariant(ours, theirs, valid)


class DepthMeter:
    """The metrics of depth: of each image, averaged over those that have a pixel to be evaluated.

    Args:
        depth: what counts.
        team: of the processes that share the samples.
    """

    def __init__(self, depth: DepthFacts, team: Team) -> None:
        self._depth, self._team = depth, team
        self._sums = torch.zeros(len(METRICS) + 2, dtype=torch.float64)  # loss and number of images last

    def update(self, outputs: Tensor, batch: AnyBatch) -> SampleSums:
        """Add depth in metres (B, 1, H, W); return what every image adds to each metric."""
        values, counts = _measure(outputs, batch, self._depth)
        names = (*METRICS, "loss")
        self._sums += torch.stack([*(values[name].sum() for name in names), counts.sum()])
        return {name: torch.stack([values[name], counts], dim=1) for name in METRICS}

    def compute(self) -> dict[str, float]:
        """Return the metrics.

        Raises:
            UserError: no pixel of any image is to be evaluated.
        """
        *sums, count = self._team.sum(self._sums).tolist()
        if not count:
            raise _nothing_measured(self._depth)
        return {name: value / count for name, value in zip((*METRICS, "loss"), sums, strict=True)}


class DepthReport:
    """The same metrics of a finished model, and its depth at some places for a comparison with another one's.

    Args:
        depth: what counts.
    """

    def __init__(self, depth: DepthFacts) -> None:
        self._depth = depth
        self._values: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._found: list[Tensor] = []

    def update(self, outputs: Tensor, batch: AnyBatch) -> None:
        """Add depth in metres (B, 1, H, W)."""
        values, counts = _measure(outputs, batch, self._depth)
        self._values.append(torch.stack([values[name] for name in (*METRICS, "loss")], dim=1))
        self._counts.append(counts)
        rows, columns = (max(1, -(-side // _COMPARED)) for side in outputs.shape[2:])
        known = is_evaluated(batch.targets, self._depth)
        kept = outputs[:, 0].float().masked_fill(~known, torch.nan)[:, ::rows, ::columns]
        self._found += [part.flatten() for part in kept.cpu()]

    def compute(self) -> dict[str, Any]:
        """Return every metric, averaged over the images with a pixel to be evaluated.

        Raises:
            UserError: there is none.
        """
        count = torch.cat(self._counts).sum()
        if not count:
            raise _nothing_measured(self._depth)
        means = torch.cat(self._values).sum(dim=0) / count
        return dict(zip((*METRICS, "loss"), means.tolist(), strict=True))

    def counts(self) -> list[int]:
        """Return how many images were measured."""
        return [int(torch.cat(self._counts).sum())]

    def notes(self, name: str) -> list[str]:
        """Say nothing: how the depth was aligned is said of the models."""
        return []

    def agreement(self, other: Any) -> float | None:
        """Return the share of pixels at which both depths differ by less than a factor of 1.25.

        It is looked at on a grid of at most 64 x 64 pixels of each image, where depth is evaluated.
        """
        ours, theirs = torch.cat(self._found), torch.cat(other._found)
        both = ours.isfinite() & theirs.isfinite()
        if not both.any():
            return None
        ratio = ours[both] / theirs[both]
        return float((torch.maximum(ratio, 1 / ratio) < _AGREE).double().mean())


def _measure(outputs: Tensor, batch: AnyBatch, depth: DepthFacts) -> tuple[dict[str, Tensor], Tensor]:
    """Return the metrics of each image and whether it has any, float64 (B,) on the CPU."""
    targets = batch.targets
    prediction = resize_depth(outputs, (targets.shape[1], targets.shape[2]))[:, 0]
    prediction = prediction.nan_to_num(nan=depth.nearest, posinf=depth.farthest, neginf=depth.nearest)
    prediction = prediction.clamp(depth.nearest, depth.farthest)
    mask = is_evaluated(targets, depth)
    prediction, targets = doubled(prediction), doubled(targets)
    values = metrics_of(prediction, targets, mask.to(prediction.device))
    return {name: value.cpu() for name, value in values.items()}, mask.flatten(1).any(dim=1).cpu().double()


def _nothing_measured(depth: DepthFacts, split: str = "") -> UserError:
    where = "" if depth.crop == "none" else f" in the crop {depth.crop}"
    where += f" in the {split} split" if split else ""
    return UserError(
        f"No depth from {depth.nearest:g} to {depth.farthest:g} m was measured{where}: there is nothing to evaluate.",
        "Check data.min_depth, data.max_depth, data.depth_crop and the unit of the depth files.",
    )
