"""A model of transformers with an answer at every pixel, behind the interface that all models have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kdcli.models.transformers.quiet  # noqa: F401
from kdcli.base.errors import UserError
from kdcli.base.facts import DepthKind, Preprocessing
from kdcli.base.reads import DEPTH, LOGITS, Reads
from kdcli.base.tasks import task_of
from kdcli.models.base import Origin, Probe
from kdcli.models.outputs import ModelOutput
from kdcli.models.taps import LayerTap, describe_layer, grid_of, tensor_of
from kdcli.models.transformers import processor
from kdcli.models.transformers.dense_kinds import PROCESSORS, DenseHead, backbone_config, depth_kind
from kdcli.models.transformers.vision import HFModel, Recorder, layout_of, num_prefix, watch_children


class HFDense(HFModel):
    """A segmenter or a depth model of transformers.

    ``logits`` are (B, C, h, w) and ``depth`` is (B, 1, h, w), at the model's own stride, which is up to 32. ``pooled``
    is the last map, or the last tokens, of the part that reads the image; the layers of a neck or a decoder are taps by
    their names. A class token of tokens that are read is cut off, whatever their layer.

    Args:
        module: transformers' own.
        origin: where it came from.
        preprocessing: how it wants its images.
        head: what it has at every position.
        kind: what its depth is, where it is not as its config says.
    """

    def __init__(
        self,
        module: Any,
        origin: Origin,
        preprocessing: Preprocessing,
        *,
        head: DenseHead,
        kind: DepthKind | None = None,
    ) -> None:
        self.head: DenseHead = head
        super().__init__(module, origin, preprocessing)
        self._check_shape()
        if head == "depth":
            self.facts = replace(self.facts, depth=kind or depth_kind(module.config))

    def _check_shape(self) -> None:
        """Refuse images that the network takes for squares: DPT's own ViT lays 4x16 tokens out as 8x8.

        Raises:
            UserError: its answer has other proportions than the image.
        """
        height, width = self.preprocessing.image_size
        if height == width:
            return
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad():
            rows, columns = self.native(self.example()).shape[-2:]
        self.module.train(was_training)
        if abs(columns - rows * width / height) > 1 + width / height:
            raise UserError(
                f"{self.facts.name} takes an image for a square: of {height}x{width} pixels it makes a map of"
                f" {rows}x{columns}.",
                "Give image_size one side, or choose another model.",
            )

    def _count(self, module: Any) -> int:
        return 1 if self.head == "depth" else module.config.num_labels

    def _task(self, num_classes: int) -> str:
        return task_of("image", self.head).name

    def _own_heads(self, num_classes: int) -> tuple[str, ...]:
        return (self._head_name,)

    @property
    def _head_name(self) -> str:
        return DEPTH if self.head == "depth" else LOGITS

    def _probe(self, image: Tensor, num_classes: int) -> Probe:
        self._backbone = _reader(self.module, self._native_inputs(image))
        self._runs_alone = True
        self.classifier_names: tuple[str, ...] = ()
        self._hidden, self._inputs = Recorder(), []
        self.backbone.register_forward_hook(self._hidden)
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            hidden = self._backbone_output(image)
        own = backbone_config(self.module.config)
        self._num_prefix = num_prefix(own, hidden, image)
        self._layout = layout_of(own, hidden)
        grid = grid_of(hidden, self._layout, self._num_prefix, (image.shape[2], image.shape[3]))
        assert grid is not None, "a sequence or a map always has positions"
        self._grid = grid
        self.module.train(was_training)
        measured = self._measure(image, Reads(("pooled",), heads=(self._head_name,)))
        return Probe({"pooled": measured.result.features["pooled"].shape[1]}, measured, {"pooled": grid})

    def _run(self, images: Tensor, reads: Reads) -> ModelOutput:
        output = ModelOutput()
        if not reads.heads:
            self._add_pooled(output, self._backbone_output(images), reads)
            return output
        result = self._run_recorded(self._native_inputs(images), (self._hidden,))
        self._add_pooled(output, self._hidden.take(), reads)
        output.heads[self._head_name] = result.predicted_depth[:, None] if self.head == "depth" else result.logits
        return output

    def _describe_layer(self, name: str, outputs: list[Any], inputs: Tensor) -> tuple[LayerTap, int]:
        """Of a sequence count the class tokens by itself: a backbone's last map has none where its layers have."""
        first = tensor_of(outputs[0]) if outputs else None
        prefix = 0
        if isinstance(first, Tensor) and first.ndim == 3:
            prefix = num_prefix(backbone_config(self.module.config), first, inputs)
        return describe_layer(self.facts.name, name, outputs, inputs, prefix)

    def _layer_lists(self) -> list[list[str]]:
        """Of the part that reads the image first, of a neck or a decoder only where that has none."""
        inside = f"{self._backbone}."
        nested = [  # SegFormer's kin keep the blocks of each stage in a list of their own
            [f"{name}.{number}.{inner}" for number, child in enumerate(module) for inner, _ in child.named_children()]
            for name, module in self.module.named_modules()
            if isinstance(module, nn.ModuleList) and all(isinstance(child, nn.ModuleList) for child in module)
        ]
        return sorted(
            [*nested, *super()._layer_lists()], key=lambda names: not all(name.startswith(inside) for name in names)
        )

    @property
    def native(self) -> nn.Module:
        """The module with the answer alone: logits (B, C, h, w), or depth (B, 1, h, w)."""
        return _Answer(self.module, self.head)

    def reset_classifier(self) -> None:
        """Do nothing: :mod:`kdcli.models.transformers.dense_loading` builds students with heads of their own."""

    def save(self, folder: Path) -> None:
        """Write what ``from_pretrained`` of the auto class reads, with an image processor that knows its outputs."""
        super().save(folder)
        if self.preprocessing.channels == "RGB":  # BGR is MobileViT's, whose processor knows them, too
            processor.write(self.preprocessing, folder, kind=PROCESSORS[self.head])


class _Answer(nn.Module):
    def __init__(self, module: nn.Module, head: DenseHead) -> None:
        super().__init__()
        self.module, self.head = module, head

    def forward(self, images: Tensor) -> Tensor:
        result = self.module(images)
        answer: Tensor = result.predicted_depth[:, None] if self.head == "depth" else result.logits
        return answer


def _reader(module: nn.Module, inputs: dict[str, Any]) -> str:
    """Return the name of the child that takes the images and returns features.

    Raises:
        UserError: there is none.
    """
    found: list[str] = []

    def look(name: str, child: nn.Module, given: Any, output: Any) -> None:
        returns = any(getattr(output, key, None) is not None for key in ("last_hidden_state", "feature_maps"))
        if given is inputs["pixel_values"] and returns:
            found.append(name)

    watch_children(module, inputs, look)
    if not found:
        raise UserError(
            f"{type(module).__name__} has no backbone that kdcli can tell from its head.", "Choose another model."
        )
    return found[0]
