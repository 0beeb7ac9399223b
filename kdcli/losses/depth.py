"""Losses on depth, ``(B, H, W)``, over the pixels where it was measured; and the alignment of relative depth.

Each image is a mean over its own valid pixels, whatever else is in the batch, so one process and several give the same.
An image without valid pixels has the loss 0, with zero gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli.losses.common import most_precise, require_positive
from kdcli.losses.normalize import full_precision


def silog(prediction: Tensor, target: Tensor, valid: Tensor, *, mean_weight: float = 0.15) -> Tensor:
    """Scale-invariant logarithmic error, ``10 sqrt(var(g) + w mean(g)²)`` with ``g = log prediction - log target``.

    Eigen, Puhrsch and Fergus, NeurIPS 2014, arXiv 1406.2283, in the form of AdaBins (Bhat et al., CVPR 2021, arXiv
    2011.14141), whose variance is the unbiased one. AdaBins takes it over all pixels of a batch; here it is of each
    image. Nothing is measured by one pixel's variance: it counts as 0.

    Args:
        prediction: ``(B, H, W)``, positive where valid.
        target: the same shape, positive where valid.
        valid: bool, the same shape.
        mean_weight: ``w``: at 0 a factor of the whole image costs nothing.

    Returns:
        ``(B,)``.
    """
    prediction, target, valid = _rows(prediction, target, valid)
    ratios = _where(valid, prediction, 1.0).log() - _where(valid, target, 1.0).log()
    count = valid.sum(dim=1)
    mean = ratios.sum(dim=1) / count.clamp(min=1)
    squares = _where(valid, (ratios - mean[:, None]).square(), 0.0).sum(dim=1)
    return 10 * _sqrt(squares / (count - 1).clamp(min=1) + mean_weight * mean.square())


def depth_l1(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error of each image, ``(B,)``; arguments as in :func:`silog`."""
    prediction, target, valid = _rows(prediction, target, valid)
    return _mean(_where(valid, prediction - target, 0.0).abs(), valid)


def berhu(prediction: Tensor, target: Tensor, valid: Tensor, *, share: float = 0.2) -> Tensor:
    """Reverse Huber loss: ``|e|`` up to ``c = share · max |e|``, and ``(e² + c²) / 2c`` beyond it.

    Laina et al., "Deeper Depth Prediction with Fully Convolutional Residual Networks", 3DV 2016, arXiv 1606.00373,
    eq. 1, who take the maximum over the batch; here it is that of each image. No gradient flows through ``c``.

    Args:
        prediction: ``(B, H, W)``.
        target: the same shape.
        valid: bool, the same shape.
        share: of the largest error; positive.

    Returns:
        ``(B,)``.
    """
    require_positive("share", share)
    prediction, target, valid = _rows(prediction, target, valid)
    errors = _where(valid, prediction - target, 0.0).abs()
    bound = share * errors.detach().amax(dim=1, keepdim=True)
    beyond = (errors.square() + bound.square()) / (2 * torch.where(bound == 0, 1.0, bound))
    return _mean(torch.where(errors <= bound, errors, beyond), valid)


def scale_shift_invariant(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute difference of maps whose median and mean absolute deviation are taken away on both sides.

    Ranftl et al., "Towards Robust Monocular Depth Estimation" (MiDaS), TPAMI 2020, arXiv 1907.01341, eq. 5 to 7, as in
    Depth Anything (CVPR 2024, arXiv 2401.10891): for inverse depth, of which scale and shift are unknown. Without
    MiDaS's trimming and its factor of 1/2.

    Args:
        prediction: inverse depth ``(B, H, W)``.
        target: the same shape.
        valid: bool, the same shape.

    Returns:
        ``(B,)``.
    """
    prediction, target, valid = _rows(prediction, target, valid)
    return _mean((_standard(prediction, valid) - _standard(target, valid)).abs(), valid)


def gradient_matching(prediction: Tensor, target: Tensor, valid: Tensor, *, scales: int = 4) -> Tensor:
    """Mean absolute gradient of the difference of two maps, summed over scales (MiDaS, eq. 11).

    At scale ``k`` every ``2^k``-th pixel is looked at; a gradient counts where both of its pixels are valid, and is
    averaged over the valid pixels of that scale.

    Args:
        prediction: ``(B, H, W)``, brought to the target's scale and shift before.
        target: the same shape.
        valid: bool, the same shape.
        scales: how many; those without a pixel beside another one add nothing.

    Returns:
        ``(B,)``.
    """
    _check(prediction, target, valid)
    difference = _where(valid, full_precision(prediction) - full_precision(target), 0.0)
    total = difference.new_zeros(len(difference))
    for scale in range(scales):
        part, known = difference[:, :: 2**scale, :: 2**scale], valid[:, :: 2**scale, :: 2**scale]
        down = _where(known[:, 1:] & known[:, :-1], part[:, 1:] - part[:, :-1], 0.0).abs().sum(dim=(1, 2))
        right = _where(known[..., 1:] & known[..., :-1], part[..., 1:] - part[..., :-1], 0.0).abs().sum(dim=(1, 2))
        total = total + (down + right) / known.sum(dim=(1, 2)).clamp(min=1)
    return total


def standardize_depth(values: Tensor, valid: Tensor) -> Tensor:
    """Return maps ``(B, H, W)`` without their median, in units of the mean absolute deviation; 0 where not valid."""
    rows, _, known = _rows(values, values, valid)
    return _standard(rows, known).view_as(values)


def fit_scale_and_shift(prediction: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(s, t)``, each ``(B,)``, that minimise the squares of ``s · prediction + t - target`` of each image.

    MiDaS, eq. 4. Where a prediction is constant there is no scale: ``s`` is 0, and ``t`` the target's mean.

    Args:
        prediction: ``(B, H, W)``.
        target: the same shape.
        valid: bool, the same shape.
    """
    prediction, target, valid = _rows(prediction, target, valid)
    x, y = most_precise(prediction), most_precise(target)
    x_mean, y_mean = (_mean(_where(valid, side, 0.0), valid)[:, None] for side in (x, y))
    x_off = _where(valid, x - x_mean, 0.0)
    spread = x_off.square().sum(dim=1)
    scale = (x_off * _where(valid, y - y_mean, 0.0)).sum(dim=1) / torch.where(spread == 0, 1.0, spread)
    shift = y_mean[:, 0] - scale * x_mean[:, 0]
    return scale.to(prediction.dtype), shift.to(prediction.dtype)


def masked_median(values: Tensor, valid: Tensor) -> Tensor:
    """Return the median of the valid elements of each row; 0 of a row without any.

    Of an even number it is the lower one of the two in the middle, as torch's.

    Args:
        values: ``(B, ...)``.
        valid: bool, the same shape.

    Returns:
        ``(B,)``.
    """
    values, valid = values.flatten(start_dim=1), valid.flatten(start_dim=1)
    count = valid.sum(dim=1)
    middle = ((count - 1) // 2).clamp(min=0)
    found = _where(valid, values, torch.inf).sort(dim=1).values.gather(1, middle[:, None])[:, 0]
    return _where(count > 0, found, 0.0)


def _rows(prediction: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return all three as ``(B, N)``, the values in full precision.

    Raises:
        ValueError: the shapes differ, or ``valid`` is not bool.
    """
    _check(prediction, target, valid)
    rows = [full_precision(values).flatten(start_dim=1) for values in (prediction, target)]
    return rows[0], rows[1], valid.flatten(start_dim=1)


def _check(prediction: Tensor, target: Tensor, valid: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in (prediction, target, valid)]
    if len(set(shapes)) > 1 or prediction.ndim != 3:
        raise ValueError(f"Prediction, target and valid must have one shape (B, H, W), got {shapes}.")
    if valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool, got {valid.dtype}.")


def _where(valid: Tensor, values: Tensor, other: float) -> Tensor:
    """Return ``values`` where valid; no gradient reaches the rest."""
    return torch.where(valid, values, other)


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of each row (B, N) over its valid elements; the others are 0."""
    return values.sum(dim=1) / valid.sum(dim=1).clamp(min=1)


def _standard(values: Tensor, valid: Tensor) -> Tensor:
    """Return rows (B, N) without their median, in units of the mean absolute deviation from it."""
    centred = _where(valid, values - masked_median(values, valid)[:, None], 0.0)
    deviation = _mean(centred.abs(), valid)[:, None]
    return centred / torch.where(deviation == 0, 1.0, deviation)


def _sqrt(values: Tensor) -> Tensor:
    """Return the square root, with zero gradient at zero."""
    vanishes = values == 0
    return torch.where(vanishes, 0.0, torch.where(vanishes, 1.0, values).sqrt())
