"""Which pixels of a depth map count, how a prediction is aligned, and the metrics of each image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.base.facts import DepthAlignment, DepthCrop, DepthFacts, DepthKind
from kdcli.losses import fit_scale_and_shift, masked_median, silog

METRICS = ("delta1", "delta2", "delta3", "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog")
"""By name, as :func:`metrics_of` computes them."""

CROPS: Mapping[DepthCrop, tuple[float, float, float, float]] = {
    "none": (0.0, 1.0, 0.0, 1.0),
    "eigen": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}
"""First and last row, first and last column, as fractions of the image: Eigen's as it is used for NYUv2 (rows 45 to 471
of 480, columns 41 to 601 of 640), Garg's for KITTI (arXiv 1603.04992); ends are left out."""

_UNALIGNED_SPAN = 10.0
"""Where there is no target to align inverse depth to, the farthest pixel is so many times as far as the nearest."""


def resize_depth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Return depth (B, 1, h, w) in float32 at another (height, width), bilinearly."""
    depth = depth.float()
    if depth.shape[2:] == size:
        return depth
    return F.interpolate(depth, size, mode="bilinear", align_corners=False)


def is_measured(targets: Tensor, facts: DepthFacts) -> Tensor:
    """Return where depth (B, H, W) was measured: bool, of finite depths in the range of ``facts``."""
    return (targets > 0) & (targets >= facts.nearest) & (targets <= facts.farthest)


def is_evaluated(targets: Tensor, facts: DepthFacts) -> Tensor:
    """Return where depth (B, H, W) is evaluated: bool, where it was measured inside the crop of ``facts``."""
    height, width = targets.shape[1:]
    top, bottom, left, right = CROPS[facts.crop]
    inside = torch.zeros(height, width, dtype=torch.bool, device=targets.device)
    inside[int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = True
    return is_measured(targets, facts) & inside


def alignment_of(facts: DepthFacts, kind: DepthKind) -> DepthAlignment:
    """Return what is done to the predictions of a model whose depth is of this kind; never ``auto``."""
    if facts.alignment != "auto":
        return facts.alignment
    return "least_squares" if kind == "inverse" else "none"


def to_metres(prediction: Tensor, targets: Tensor, facts: DepthFacts, kind: DepthKind) -> Tensor:
    """Return a model's prediction as depth in metres, aligned to the target as ``facts`` say, and clamped.

    Of ``least_squares`` inverse depth is fitted where depth is evaluated (MiDaS's protocol); an image without such
    pixels is stretched between ``nearest`` and ten times that far, to have something to look at. A prediction that is
    no number is ``nearest``, an infinite one ``farthest``.

    Args:
        prediction: (B, H, W), metres or inverse depth by ``kind``.
        targets: (B, H, W).
        facts: what counts.
        kind: what the model gives.

    Returns:
        (B, H, W), from ``nearest`` to ``farthest``.
    """
    how, mask = alignment_of(facts, kind), is_evaluated(targets, facts)
    if how == "least_squares":
        inverse = prediction if kind == "inverse" else 1 / prediction.clamp(min=facts.nearest)
        scale, shift = fit_scale_and_shift(inverse, 1 / torch.where(mask, targets, 1.0), mask)
        fitted = scale[:, None, None] * inverse + shift[:, None, None]
        known = mask.flatten(1).any(dim=1)[:, None, None]
        prediction = _to_depth(torch.where(known, fitted, _stretched(inverse, facts)), facts)
    elif kind == "inverse":
        prediction = _to_depth(prediction, facts)
    if how == "median":
        scales = masked_median(targets, mask) / masked_median(prediction, mask).clamp(min=1e-12)
        known = mask.flatten(1).any(dim=1)
        prediction = prediction * torch.where(known, scales, 1.0)[:, None, None]
    prediction = prediction.nan_to_num(nan=facts.nearest, posinf=facts.farthest, neginf=facts.nearest)
    return prediction.clamp(facts.nearest, facts.farthest)


def _to_depth(inverse: Tensor, facts: DepthFacts) -> Tensor:
    return 1 / inverse.clamp(1 / facts.farthest, 1 / facts.nearest)


def _stretched(inverse: Tensor, facts: DepthFacts) -> Tensor:
    low, high = (end(inverse.flatten(1), dim=1)[:, None, None] for end in (torch.amin, torch.amax))
    share = (inverse - low) / (high - low).clamp(min=1e-12)
    return (1 + share * (_UNALIGNED_SPAN - 1)) / facts.farthest


def metrics_of(prediction: Tensor, targets: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return the metrics of every image over its own pixels, as Eigen et al. (2014) and AdaBins (2021) define them.

    ``delta1`` to ``delta3`` are the shares of pixels whose ratio to the target, or its inverse, is below 1.25, 1.25²
    and 1.25³; ``silog`` is ``100 sqrt(mean(g²) - mean(g)²)`` of ``g = log prediction - log target``, ``loss`` the
    training loss of that name, see :func:`kdcli.losses.silog`.

    Args:
        prediction: float64 (B, H, W), positive.
        targets: float64 (B, H, W).
        mask: bool (B, H, W), where they are compared.

    Returns:
        By name float64 (B,); 0 of an image without pixels.
    """
    count = mask.flatten(1).sum(dim=1).clamp(min=1)
    ours, theirs = (torch.where(mask, values, 1.0) for values in (prediction, targets))

    def mean(values: Tensor) -> Tensor:
        return torch.where(mask, values, 0.0).flatten(1).sum(dim=1) / count

    errors, ratios = ours - theirs, ours.log() - theirs.log()
    worst = torch.maximum(ours / theirs, theirs / ours)
    return {
        **{f"delta{k}": mean((worst < 1.25**k).to(ours.dtype)) for k in (1, 2, 3)},
        "abs_rel": mean(errors.abs() / theirs),
        "sq_rel": mean(errors.square() / theirs),
        "rmse": mean(errors.square()).sqrt(),
        "rmse_log": mean(ratios.square()).sqrt(),
        "log10": mean((ours.log10() - theirs.log10()).abs()),
        "silog": 100 * (mean(ratios.square()) - mean(ratios).square()).clamp(min=0).sqrt(),
        "loss": silog(ours, theirs, mask),
    }


def doubled(values: Tensor) -> Tensor:
    """Return values in float64, on the CPU where the device has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()
