"""Losses on the classes of pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.normalize import full_precision

_TINY = 1e-12


def focal(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, ignore: int = -1) -> Tensor:
    """Return the focal loss of every row, (N,): ``-(1 - p)^γ log p`` of the true class's probability ``p``.

    Focal Loss for Dense Object Detection, ICCV 2017, eq. 4, over several classes and without class weights.

    Args:
        logits: (N, C).
        targets: class indices int64 (N,).
        gamma: 0 makes it the cross-entropy.
        ignore: the target of rows that add 0.

    Raises:
        ValueError: the shapes don't fit.
    """
    _check(logits, targets, dims=2)
    entropy = F.cross_entropy(full_precision(logits), targets, ignore_index=ignore, reduction="none")
    # At 0 the slope of a power below 1 is infinite.
    return (-torch.expm1(-entropy)).clamp(min=_TINY).pow(gamma) * entropy


def dice(logits: Tensor, targets: Tensor, *, smooth: float = 1.0, ignore: int = -1) -> Tensor:
    """Return the Dice loss of every image, (B,): of its classes the mean of ``1 - (2 Σ p g + s) / (Σ p + Σ g + s)``.

    V-Net, 3DV 2016, with the probabilities of the softmax not squared, as in segmentation-models-pytorch. The sums are
    over the labelled pixels of one image, the mean over the classes that are among its labels: a class that it does not
    have is held down by the softmax. An image without labels has 0.

    Args:
        logits: (B, C, H, W).
        targets: class indices int64 (B, H, W).
        smooth: ``s``, in pixels.
        ignore: the target of pixels that are left out.

    Raises:
        ValueError: the shapes don't fit.
    """
    _check(logits, targets, dims=4)
    labelled = (targets != ignore).unsqueeze(1)
    probabilities = full_precision(logits).softmax(dim=1) * labelled
    truth = F.one_hot(targets.masked_fill(targets == ignore, 0), logits.shape[1]).movedim(-1, 1)
    truth = (truth * labelled).to(probabilities.dtype)
    common, guessed, true = (
        values.sum(dim=(2, 3)) for values in (probabilities * truth, probabilities, truth)
    )  # (B, C) each
    whole = guessed + true + smooth
    losses = 1 - (2 * common + smooth) / torch.where(true > 0, whole, 1.0)
    occurs = (true > 0).to(losses.dtype)
    return (losses * occurs).sum(dim=1) / occurs.sum(dim=1).clamp(min=1)


def _check(logits: Tensor, targets: Tensor, *, dims: int) -> None:
    expected = (*logits.shape[:1], *logits.shape[2:])
    if logits.ndim != dims or targets.shape != expected:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} don't fit")
