"""Weights for images of three channels in models for one or four: which can be adapted, and how it is said."""

from __future__ import annotations

from timm.models import adapt_input_conv
from torch import nn

from kdcli.base.errors import UserError
from kdcli.models.place import Place
from kdcli.models.vision import CHANNELS, said_channels


def check_pretrained_channels(place: Place, own: object, *, pretrained: bool) -> None:
    """Refuse weights for other images than the data's, unless they are for colours and can be adapted.

    Args:
        place: with the channels that are wanted; None for the model's own.
        own: those of the model's config, or of its file.
        pretrained: whether there are weights at all.

    Raises:
        UserError: it says which are which.
    """
    wanted = place.channels or own
    if wanted not in CHANNELS:
        raise UserError(
            f"{place.name} takes images of {own} channels, and kdcli reads 1, 3 or 4.", "Choose another model."
        )
    if pretrained and own not in (3, wanted):
        hint = f"Set data.channels={own}, or choose another model." if own in CHANNELS else "Choose another model."
        raise UserError(
            f"{place.name} has weights for images of {said_channels(own)}, and the data are read with"
            f" {said_channels(wanted)}: only those for 3 are adapted.",
            hint,
        )


def adapt_into(trained: nn.Module, target: nn.Module, *, name: str, channels: int) -> nn.Module:
    """Return ``target`` with the weights of a model for colours; the convolutions that read the image are adapted.

    They are told by their shapes, the only ones that differ.

    Args:
        trained: for 3 channels.
        target: the same model for ``channels``.
        name: of it, for messages.
        channels: 1 or 4.

    Raises:
        UserError: something else than such a convolution differs, or nothing does.
    """
    state, wanted = trained.state_dict(), target.state_dict()
    others = [key for key, tensor in state.items() if key not in wanted or wanted[key].shape != tensor.shape]
    for key in others:
        ours, theirs = wanted.get(key), state[key]
        expected = (theirs.shape[0], channels, *theirs.shape[2:])
        if ours is None or theirs.ndim != 4 or theirs.shape[1] != 3 or tuple(ours.shape) != expected:
            others = []
            break
        state[key] = adapt_input_conv(channels, theirs)
    if not others:
        raise UserError(
            f"The first layer of {name} can't be adapted from 3 channels to {channels}.",
            "Choose another model, or leave data.channels out.",
        )
    target.load_state_dict(state)
    return target


def said_adapted(place: Place, own: object) -> str:
    """Return what the plan says of weights that are adapted; empty where they are as they were."""
    if place.channels in (None, own):
        return ""
    return f"; the first convolution adapted from 3 channels to {place.channels} as timm does"
