"""The figures of VkD (CVPR 2024, arXiv 2403.06213) for a finished run: t-SNE of features, the loss over the input."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.base.facts import Preprocessing
from kdcli.base.reads import join
from kdcli.config.methods import named_methods
from kdcli.data import Batch, Source
from kdcli.losses.normalize import identity
from kdcli.methods.base import Method
from kdcli.methods.projected import Projected
from kdcli.results.figures import (
    MAX_POINTS,
    MIN_POINTS,
    choose_samples,
    loss_landscape,
    neighbour_accuracy,
    random_linear,
    random_orthogonal,
    relative_curvature,
    relative_range,
    tsne,
)
from kdcli.results.pictures.features import plot_landscape, plot_tsne
from kdcli.tasks.features.frozen import NEIGHBOURS
from kdcli.training.job import Job

TSNE_PANELS = {
    "raw": "as they are",
    "trained": "under the trained projector",
    "random_linear": "under a random linear map",
    "random_orthogonal": "under a random orthogonal map",
}
LANDSCAPE_PANELS = {
    "normalized": "normalised as in the run",
    "plain": "without normalisation",
}
_SEED = 0
"""Of all that is random in the pictures."""
_IMAGES = 8
"""Of a landscape."""
_SPAN = 1.0
"""How far they move along a direction, in their own lengths."""
_SIDES = (21, 15, 11, 7)
"""Points along a direction; odd, so that the images themselves are in the middle."""
_MACS, _MACS_OF_A_GPU = 5e10, 5e13
"""What a landscape may cost in multiply-accumulates of both models, some seconds; beyond it there are fewer points."""


def draw_tsne(
    path: Path,
    pair: Projected,
    student: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor | None,
    class_names: Sequence[str],
    title: str,
    samples: str,
) -> dict[str, Any] | None:
    """Draw the features that a projector acts on: raw, under it, and under random maps of its shape.

    Figure 3 of the paper shows the student's features; of an inverted projector they are the teacher's, normalised.

    Args:
        path: of the picture.
        pair: with a projector that is a matrix.
        student: ``(N, d_s)``.
        teacher: ``(N, d_t)``.
        labels: class indices ``(N,)``, negative for none; None where there are no classes.
        class_names: by index.
        title: of the picture.
        samples: what they are, such as ``validation images``.

    Returns:
        Whose features, how many samples and, where there are two classes, the accuracy of the nearest neighbours in
        each panel's own features, before t-SNE; None, and no picture, of too few samples.
    """
    if len(student) < MIN_POINTS:
        return None
    projector: Any = pair.projector
    matrix = projector.matrix().detach().cpu().double()
    if projector.direction == "student_to_teacher":
        side, features = "student", student
    else:
        side, features = "teacher", pair.of_teacher(teacher)
    chosen = choose_samples(len(features), most=MAX_POINTS, seed=_SEED)
    features = features[chosen].double()
    mapped = {
        "raw": features,
        "trained": features @ matrix,
        "random_linear": features @ random_linear(*matrix.shape, seed=_SEED),
        "random_orthogonal": features @ random_orthogonal(*matrix.shape, seed=_SEED),
    }
    accuracies: dict[str, float] = {}
    if labels is not None:
        labels = labels[chosen]
        found = {name: neighbour_accuracy(values, labels, num_neighbours=NEIGHBOURS) for name, values in mapped.items()}
        accuracies = {name: value for name, value in found.items() if value is not None}
    normalised = ", normalised" if side == "teacher" and pair.normalize_teacher is not identity else ""
    plot_tsne(
        path,
        {TSNE_PANELS[name]: tsne(values, seed=_SEED) for name, values in mapped.items()},
        title=title,
        subtitle=f"t-SNE of the {side}'s features{normalised}, on which the projector acts;"
        f" {len(features)} of {len(student)} {samples}",
        remarks={TSNE_PANELS[name]: f"{NEIGHBOURS}-NN accuracy {value:.1%}" for name, value in accuracies.items()},
        labels=None if labels is None else labels.tolist(),
        class_names=class_names,
    )
    return {"features_of": side, "num_samples": len(features), "neighbours": NEIGHBOURS, "knn_accuracy": accuracies}


@torch.no_grad()
def draw_landscapes(
    folder: Path, job: Job, source: Source, *, device: torch.device, split: str, run_name: str
) -> dict[str, dict[str, Any]]:
    """Draw methods' losses while a few images move along two random directions, Figure 4 of the paper.

    Methods are those that bring projected features to one another channel by channel. Models and projectors stay as
    they are, and both models see the moved images, whose pixels may leave their range. One panel has the normalisation
    of the run, the other none. Normalisations over the batch are over the images drawn.

    Args:
        folder: of the pictures.
        job: with the best student.
        source: to draw the images from.
        device: that both models are on.
        split: what ``source`` is called.
        run_name: for the titles.

    Returns:
        The numbers behind each picture, by the method's name; nothing of texts.
    """
    if not job.config.reads_images:
        return {}
    canvas = job.shared_preprocessing()
    assert isinstance(canvas, Preprocessing)
    options = named_methods(job.config.methods or ())
    methods = {
        name: method
        for name, method in job.distiller.each_method()
        if method.is_aligned and method.projections() and not options[name].needs.labels
    }
    variants = [
        (name, kind, variant.to(device))
        for name, method in methods.items()
        for kind, variant in _variants(method).items()
    ]
    if not variants:
        return {}
    assert job.teacher is not None
    sides = [
        (job.student, join(method.student_reads for method in methods.values())),
        (job.teacher, join(method.teacher_reads for method in methods.values())),
    ]

    def losses(images: Tensor) -> list[float]:
        batch = Batch(images=images, targets=torch.zeros(len(images)), samples=torch.arange(len(images)))
        student, teacher = (model(model.prepare(batch), reads) for model, reads in sides)
        return [float(variant.loss(student, teacher, batch.targets, batch.samples)) for _, _, variant in variants]

    images = _some_images(job, source, canvas).to(device)
    side = _points_along(len(images) * (job.student.facts.macs + job.teacher.facts.macs), device)
    positions = [_SPAN * (2 * place / (side - 1) - 1) for place in range(side)]
    grids = loss_landscape(losses, images, positions, seed=_SEED)
    results: dict[str, dict[str, Any]] = {}
    for (name, kind, _), grid in zip(variants, grids, strict=True):
        result = results.setdefault(name, {"num_images": len(images), "positions": positions, "panels": {}})
        result["panels"][kind] = {
            "loss": float(grid[side // 2, side // 2]),
            "relative_range": relative_range(grid),
            "relative_curvature": relative_curvature(grid, positions),
            "losses": grid.tolist(),
        }
    for name, result in results.items():
        panels = {LANDSCAPE_PANELS[kind]: panel for kind, panel in result["panels"].items()}
        plot_landscape(
            folder / f"landscape-{name}.png",
            positions,
            {panel: values["losses"] for panel, values in panels.items()},
            title=f"Loss of {name} in {run_name}",
            subtitle=f"{len(images)} {split} images moved along two random directions from +; 1 is an image's length",
            remarks={panel: _remark(values) for panel, values in panels.items()},
        )
    return results


def _variants(method: Method) -> dict[str, Method]:
    """Return copies of the method as it is and without normalisation; one where it has none."""
    plain = copy.deepcopy(method)
    for pair in plain.projections():
        pair.normalize_student = pair.normalize_teacher = identity
    if all(pair.normalize_student is pair.normalize_teacher is identity for pair in method.projections()):
        return {"plain": plain}
    return {"normalized": copy.deepcopy(method), "plain": plain}


def _some_images(job: Job, source: Source, canvas: Preprocessing) -> Tensor:
    """Return ``_IMAGES`` readable images, or all there are, float32 ``(B, 3, H, W)`` in [0, 255]."""
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(_SEED))
    found: list[Tensor] = []
    for batch in job.eval_loader(source.take(order.tolist()), canvas):
        assert isinstance(batch, Batch)
        found.append(batch.images)
        if sum(map(len, found)) >= _IMAGES:
            break
    return torch.cat(found)[:_IMAGES].float()


def _points_along(macs: int, device: torch.device) -> int:
    """Return how many points a direction gets where each costs so many multiply-accumulates."""
    limit = _MACS if device.type == "cpu" else _MACS_OF_A_GPU
    return next((side for side in _SIDES if side**2 * macs <= limit), _SIDES[-1])


def _remark(panel: Mapping[str, Any]) -> str:
    if panel["relative_range"] is None:
        return "the loss is 0 at +"
    return f"range {panel['relative_range']:.1%}, curvature {panel['relative_curvature']:.1%} of the loss at +"
