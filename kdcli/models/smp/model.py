"""A model of segmentation-models-pytorch with the interface that all have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.facts import Preprocessing
from kdcli.base.reads import DEPTH, LOGITS, Reads
from kdcli.base.tasks import TASKS
from kdcli.models.base import Origin, Probe
from kdcli.models.outputs import ModelOutput
from kdcli.models.saved import write_network
from kdcli.models.smp.build import Settings, config_of
from kdcli.models.taps import LayerTap, edges_of
from kdcli.models.vision import VisionModel, check_divides


class SmpModel(VisionModel):
    """Encoder, decoder and head.

    ``pooled`` is the encoder's last map, averaged. Further taps are the ends of the encoder's stages (``encoder...``)
    and the decoder's output (``decoder``). Logits are (B, C, H, W); of depth the head ``depth`` is the softplus of the
    network's one output, (B, 1, H, W), which is always positive.

    Args:
        module: of the library.
        origin: where it came from.
        settings: what makes it.
        preprocessing: how it wants its images.
    """

    library = "segmentation-models-pytorch"

    def __init__(self, module: nn.Module, origin: Origin, settings: Settings, preprocessing: Preprocessing) -> None:
        self._settings = settings
        _check_divides(module, origin.name, preprocessing.image_size)
        super().__init__(module, origin, preprocessing, settings.num_outputs)

    def _probe(self, inputs: Tensor, num_classes: int) -> Probe:
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            last, _ = self._encode(inputs)
        measured = self._measure(inputs, Reads(heads=self._own_heads(num_classes)))
        self.module.train(was_training)
        return Probe({"pooled": last.shape[1]}, measured, {"pooled": (last.shape[2], last.shape[3])})

    def _encode(self, images: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """Return the encoder's last map, and what the decoder takes: maps, and of a ViT its class tokens."""
        encoded = self.module.encoder(images)  # type: ignore[operator]
        parts = encoded if isinstance(encoded, tuple) else (encoded,)
        return parts[0][-1], parts

    def _run(self, inputs: Tensor, reads: Reads) -> ModelOutput:
        output = ModelOutput()
        last, parts = self._encode(inputs)
        if "pooled" in reads.taps:
            output.edges["pooled"] = edges_of(last)
        if "pooled" in reads.features:
            output.features["pooled"] = last.mean(dim=(2, 3))
        if "pooled" in reads.maps:
            output.maps["pooled"] = last
        for head in reads.heads:
            raw = self.module.segmentation_head(self.module.decoder(*parts))  # type: ignore[operator]
            output.heads[head] = depth_of(raw) if head == DEPTH else raw
        return output

    @property
    def _num_prefix_tokens(self) -> int:
        return int(getattr(self.module.encoder, "_num_prefix_tokens", 0))

    def _head_names(self) -> None:
        return None

    def _task(self, num_classes: int) -> str:
        return self._settings.task

    def _own_heads(self, num_classes: int) -> tuple[str, ...]:
        return (DEPTH,) if TASKS[self._settings.task].head == "depth" else (LOGITS,)

    def _input_errors(self, origin: Origin) -> AbstractContextManager[None]:
        return _input_errors(origin, self.preprocessing.image_size)

    def _layer_lists(self) -> list[list[str]]:
        return [self._stages(), *super()._layer_lists()]

    def _stages(self) -> list[str]:
        """Return the modules that make the encoder's maps, each the outermost one; none where one can't be found."""
        names = [f"encoder.{name}" for name, _ in self.module.encoder.named_modules() if name]  # type: ignore[union-attr]
        example = self.example().to(next(self.module.parameters()).device)
        outputs, order = self._watch(names, example)
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            maps = self._encode(example)[1][0]
        self.module.train(was_training)
        stages = []
        for of_stage in maps:
            alike = [name for name in order if _is_same(outputs[name][-1], of_stage, self._num_prefix_tokens)]
            if alike and of_stage.shape[1]:
                stages.append(alike[-1])
        return stages

    def _describe_layer(self, name: str, outputs: list[Any], inputs: Tensor) -> tuple[LayerTap, int]:
        if name == "encoder":  # it returns the image, and then its maps
            raise UserError(
                f"{self.facts.name}: the layer 'encoder' returns several maps.",
                "Name pooled, which is the last of them, or a layer inside of it.",
            )
        return super()._describe_layer(name, outputs, inputs)

    @property
    def native(self) -> nn.Module:
        """The library's own model; of depth with the softplus after it."""
        return self.module if LOGITS in self.facts.heads else _Depth(self.module)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``: ``segmentation_models_pytorch.from_pretrained(FOLDER)``."""
        write_network(self, folder, config_of(self.module, self._settings), prefix="_")


class _Depth(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return depth_of(self.module(images))


def depth_of(outputs: Tensor) -> Tensor:
    """Return depths, all positive, of a network's outputs of the same shape."""
    return F.softplus(outputs.float())


def _is_same(output: Any, of_stage: Tensor, num_prefix: int) -> bool:
    """Whether a module's output is a stage's map (1, C, H, W), as it is, channels last, or as tokens."""
    if not isinstance(output, Tensor):
        return False
    grid = of_stage.shape[2:]
    if output.ndim == 3 and output.shape[1] == num_prefix + grid.numel():
        output = output[:, num_prefix:].transpose(1, 2).unflatten(2, grid)
    candidates = (output, output.permute(0, 3, 1, 2)) if output.ndim == 4 else ()
    return any(torch.equal(candidate, of_stage) for candidate in candidates)


def _check_divides(module: Any, name: str, size: tuple[int, int]) -> None:
    """Refuse images that the decoder can't be laid over.

    Raises:
        UserError: with the nearest sizes that it takes.
    """
    if not module.requires_divisible_input_shape:
        return
    stride = int(module.encoder.output_stride)
    check_divides(name, size, stride)


@contextmanager
def _input_errors(origin: Origin, size: tuple[int, int]) -> Iterator[None]:
    """Turn what a network throws at an image that it can't take into the user's error."""
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{origin.name} can't take images of {size[0]}x{size[1]} pixels: {reason}",
            "Give a larger image_size, or another decoder or encoder: pan wants 128 pixels and more, and dpt takes"
            " timm's ViTs alone.",
        ) from error
