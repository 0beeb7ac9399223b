"""Losses of generators and discriminators on a discriminator's logits, and LeCam's regulariser.

Logits are of any shape, one for each image or for each of its patches, and every function gives a value for each of
them. Nothing is detached: a discriminator is trained on fake images without gradient.
"""

from __future__ import annotations

from typing import cast, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.names import AdversarialName
from kdcli.losses.normalize import full_precision

LECAM_DECAY = 0.99
"""Of the averages, as in the paper's code for StyleGAN2 (google/lecam-gan)."""


def discriminator_loss(real: Tensor, fake: Tensor, *, kind: AdversarialName) -> Tensor:
    """Return a discriminator's loss for every logit of a real image and of a fake one, in the logits' shape.

    ``hinge`` (Geometric GAN, arXiv 1705.02894): ``max(0, 1 - D(x)) + max(0, 1 + D(G))``. ``lsgan`` (arXiv 1611.04076,
    eq. 9 without its halves): ``(D(x) - 1)² + D(G)²``; CycleGAN's authors give it a weight of 0.5. ``non_saturating``
    (Generative Adversarial Nets, 2014, eq. 1): ``-log σ(D(x)) - log(1 - σ(D(G)))``.

    Args:
        real: logits of real images.
        fake: logits of fake ones, as many.
        kind: which loss.

    Raises:
        ValueError: the shapes differ, or there is no such loss.
    """
    real, fake = _pair(real, fake)
    if _kind(kind) == "hinge":
        return F.relu(1 - real) + F.relu(1 + fake)
    if kind == "lsgan":
        return (real - 1).square() + fake.square()
    return F.softplus(-real) + F.softplus(fake)


def generator_loss(fake: Tensor, *, kind: AdversarialName) -> Tensor:
    """Return the generator's loss for every logit of a fake image, in the logits' shape.

    With ``hinge`` it is ``-D(G)``, with ``lsgan`` ``(D(G) - 1)²``, with ``non_saturating`` ``-log σ(D(G))``; see
    :func:`discriminator_loss`.

    Args:
        fake: the discriminator's logits.
        kind: which loss.

    Raises:
        ValueError: there is no such loss.
    """
    fake = full_precision(fake)
    if _kind(kind) == "hinge":
        return -fake
    if kind == "lsgan":
        return (fake - 1).square()
    return F.softplus(-fake)


def lecam_start() -> Tensor:
    """Return the state of LeCam's averages before the first batch, float32 (3,)."""
    return torch.zeros(3)


def lecam_update(state: Tensor, real: Tensor, fake: Tensor, *, decay: float = LECAM_DECAY) -> Tensor:
    """Return LeCam's state after one more batch, without gradient; ``state`` itself stays as it was.

    Args:
        state: (3,), from :func:`lecam_start` or from here: the sums of the decaying weights times the mean logits of
            real and of fake images, and of these weights alone, so that the averages are not drawn to where they began.
        real: logits of real images, or their mean over all processes.
        fake: likewise of fake ones.
        decay: of the averages, at least 0 and below 1.

    Raises:
        ValueError: the decay is no such number.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be at least 0 and below 1, got {decay!r}.")
    means = [full_precision(side.detach()).mean() for side in (real, fake)]
    return decay * state + (1 - decay) * torch.stack([*means, torch.ones_like(means[0])]).to(state)


def lecam(real: Tensor, fake: Tensor, state: Tensor) -> Tensor:
    """Return LeCam's regulariser of a discriminator for every logit of a real image and of a fake one.

    It is ``max(0, D(x) - α_F)² + max(0, α_R - D(G))²`` with the averages α of the logits of fake and of real images:
    the form of the authors' code (google/lecam-gan) for Regularizing Generative Adversarial Networks under Limited Data
    (CVPR 2021, arXiv 2104.03310), whose text has no ``max``. Before the first update of ``state`` it is 0.

    Args:
        real: logits of real images.
        fake: logits of fake ones, as many.
        state: (3,), from :func:`lecam_update`.

    Raises:
        ValueError: the shapes differ.
    """
    real, fake = _pair(real, fake)
    weight = state[2]
    has_begun = weight > 0
    average_real, average_fake = (state[:2] / torch.where(has_begun, weight, 1)).to(real).unbind()
    value = F.relu(real - average_fake).square() + F.relu(average_real - fake).square()
    return torch.where(has_begun.to(real.device), value, 0 * value)


def _pair(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    if real.shape != fake.shape:
        raise ValueError(
            f"Logits of real and fake images must have one shape, got {tuple(real.shape)} and {tuple(fake.shape)}."
        )
    return full_precision(real), full_precision(fake)


def _kind(kind: str) -> AdversarialName:
    if kind not in get_args(AdversarialName):
        raise ValueError(f"kind must be one of {', '.join(get_args(AdversarialName))}, got {kind!r}.")
    return cast("AdversarialName", kind)
