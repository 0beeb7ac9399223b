"""Models of timm for greyscale and for four channels: their first convolutions, adapted as timm does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from kdcli.base.errors import UserError
from kdcli.base.facts import averaged
from kdcli.models.weights import Checkpoint


def set_channels(module: Any, channels: int) -> None:
    """Write into a model's config how many channels its images have.

    A mean and a deviation of another number of values become their average, for every channel, which is timm's own rule
    (``timm.data.model_config``).
    """
    cfg = dict(module.pretrained_cfg)
    for key in ("input_size", "test_input_size", "min_input_size"):
        if cfg.get(key):
            cfg[key] = (channels, *cfg[key][1:])
    for key in ("mean", "std"):
        values = cfg.get(key)
        if isinstance(values, Sequence) and values and len(values) != channels and all(map(_is_number, values)):
            cfg[key] = averaged(values, channels)
    module.pretrained_cfg = module.default_cfg = cfg


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def first_convolutions(module: Any) -> list[str]:
    """Return the names of the layers that read the image, as timm has them for the architecture."""
    traits = getattr(module, "_traits", {})
    names = traits.get("first_conv", module.pretrained_cfg.get("first_conv")) or ()
    return [names] if isinstance(names, str) else list(names)


def check_adaptable(name: str, module: Any, channels: int) -> None:
    """Refuse an architecture whose first layer timm can't adapt, and would leave untrained.

    Raises:
        UserError: it is no convolution over the image's channels.
    """
    layers = [module.get_submodule(layer) for layer in first_convolutions(module)]
    if layers and all(isinstance(layer, nn.Conv2d) and layer.in_channels == channels for layer in layers):
        return
    raise UserError(
        f"timm can't adapt the first layer of {name} from 3 channels to {channels}.",
        "Choose another model, or leave data.channels out.",
    )


def channels_in(checkpoint: Checkpoint, module: Any) -> int:
    """Return how many channels the first convolution in a file reads; of another layer, the module's own number.

    Args:
        checkpoint: the file.
        module: of its architecture.
    """
    own = int(module.pretrained_cfg["input_size"][0])
    for layer in first_convolutions(module):
        ours = module.get_submodule(layer)
        if not isinstance(ours, nn.Conv2d) or ours.in_channels != own:
            continue
        shape = [ours.out_channels, *ours.kernel_size]
        found = [
            (name.count("."), int(tensor.shape[1]))
            for part in checkpoint.parts
            for name, tensor in part.tensors.items()
            if f".{name}".endswith(f".{layer}.weight") and [*tensor.shape[:1], *tensor.shape[2:]] == shape
        ]
        if found:  # blocks have layers of the same name further down
            return min(found)[1]
    return own
