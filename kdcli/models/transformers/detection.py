"""An object detector of transformers with the interface that all models have."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kdcli.models.transformers.quiet  # noqa: F401
from kdcli.base.facts import Preprocessing, Queries
from kdcli.base.reads import Reads
from kdcli.models.base import Origin, Probe
from kdcli.models.detections import BOXES, Boxes, DetectionModel, Detections, unpack
from kdcli.models.outputs import ModelOutput
from kdcli.models.taps import Edges, LayerTap, Reached, edges_of, run_once, tensor_of
from kdcli.models.transformers import processor
from kdcli.models.transformers.detector_kinds import DetectorKind, kind_of
from kdcli.models.transformers.detector_losses import by_itself, labels_of, shares
from kdcli.models.transformers.recompute import recompute

TOKENS = "detection_tokens"
"""The tap of the tokens that boxes are read from, as a column (B, d, N, 1)."""
LEVEL = "neck"
"""The taps of a neck's maps, where there are several, are ``neck.0``, the finest, and so on."""


class HFDetector(DetectionModel):
    """A detector of transformers.

    ``pooled`` is the map that the boxes are found in: YOLOS's patch tokens, the encoder's map of DETR and its kin, the
    coarsest map of a neck of several, each of which is a tap of its own (``neck.0``, the finest). The tokens that boxes
    are read from are ``detection_tokens``, without denoising queries and without the further groups that some kinds
    train with.

    Images fill the model's canvas, whatever their proportions, so that there is no padding to be masked.
    """

    library = "transformers"

    def __init__(self, module: Any, origin: Origin, preprocessing: Preprocessing) -> None:
        processor.check_writable(origin.name, preprocessing)
        self.kind: DetectorKind = kind_of(module.config, origin.name)
        self._maps_taps: tuple[str, ...] = ()
        super().__init__(module, origin, preprocessing, module.config.num_labels)
        queries = Queries(
            module.config.model_type,
            self._number,
            (TOKENS,),
            self.kind.tokens,
            source=origin.name if origin.pretrained else "",
            keep_places=self.kind.layout == "patches",
        )
        self.facts = replace(self.facts, queries=queries)

    def _probe(self, inputs: Tensor, num_classes: int) -> Probe:
        self._neck = _NeckHook(self.kind)
        self.module.get_submodule(self.kind.neck).register_forward_hook(self._neck, with_kwargs=True)
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            self._neck.learn(self.module, inputs)
            tokens = self._tokens(self._outputs(inputs, None))
        self.module.train(was_training)
        self._number = tokens.shape[1]
        grids, widths = self._neck.grids, self._neck.widths
        self._maps_taps = tuple(f"{LEVEL}.{level}" for level in range(len(grids))) if len(grids) > 1 else ()
        dims = {"pooled": widths[-1], TOKENS: tokens.shape[2], **dict(zip(self._maps_taps, widths, strict=False))}
        found = {"pooled": grids[-1], TOKENS: (tokens.shape[1], 1), **dict(zip(self._maps_taps, grids, strict=False))}
        return Probe(dims, self._measure(inputs, Reads(("pooled",), heads=(BOXES,))), found)

    def _own_heads(self, num_classes: int) -> tuple[str, ...]:
        return (BOXES,)

    def _head_names(self) -> None:
        return None

    def _recompute(self) -> None:
        recompute(self.module, self.facts.name)

    @property
    def _num_prefix_tokens(self) -> int:
        return 1 if self.kind.layout == "patches" else 0

    def _run(self, inputs: Any, reads: Reads) -> ModelOutput:
        images, canvas, targets = unpack(inputs, size=self.preprocessing.image_size)
        labels = None if targets is None or not reads.heads else labels_of(targets, self.preprocessing.image_size)
        goes_on = bool(reads.heads) or TOKENS in reads.taps
        goes_on = goes_on or any(layer.wants_mean or layer.wants_map for layer in self._layers.values())
        self._neck.armed, self._neck.is_end = True, not goes_on
        try:
            result = self._outputs(images, labels)
        except Reached:
            result = None
        finally:
            self._neck.armed = self._neck.is_end = False
        output = ModelOutput()
        maps, edges = self._neck.take()
        of_taps = {"pooled": maps[-1], **dict(zip(self._maps_taps, maps, strict=False))}
        of_edges = {"pooled": edges[-1], **dict(zip(self._maps_taps, edges, strict=False))}
        if TOKENS in reads.taps:
            of_taps[TOKENS] = self._tokens(result).transpose(1, 2).unsqueeze(3)
            of_edges[TOKENS] = edges_of(result.last_hidden_state)
        for tap in reads.taps:
            found, output.edges[tap] = of_taps[tap], of_edges[tap]
            if tap in reads.features:
                output.features[tap] = found.mean(dim=(2, 3))
            if tap in reads.maps:
                output.maps[tap] = found.clone()  # a neck's own memory, which what follows may write to
        if reads.heads:
            output.heads[BOXES] = self._detections(result, labels, canvas)
        return output

    def _outputs(self, images: Tensor, labels: list[dict[str, Tensor]] | None) -> Any:
        with by_itself():
            return self.module(pixel_values=images, **({} if labels is None else {"labels": labels}))

    def _tokens(self, outputs: Any) -> Tensor:
        """Return the tokens that boxes are read from, (B, N, d)."""
        hidden: Tensor = outputs.last_hidden_state
        if self.kind.layout == "patches":
            return hidden[:, -outputs.logits.shape[1] :]
        return self._usual(hidden)

    def _usual(self, values: Tensor) -> Tensor:
        """Return what is there in evaluation of (B, n, ...): neither denoising queries nor groups of training alone."""
        config: Any = self.module.config
        number: int = config.num_queries
        # Denoising queries come first, further groups last.
        return values[:, :number] if self.kind.groups else values[:, -number:]

    def _detections(self, outputs: Any, labels: list[dict[str, Tensor]] | None, canvas: tuple[int, int]) -> Detections:
        found = Detections(canvas)
        if labels is not None:
            config = self.module.config
            parts = outputs.loss_dict
            found.losses = shares(outputs.loss, parts, labels, config, self.kind, is_training=self.module.training)
        if not self.module.training:
            found.raw = {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}
            found.boxes = chosen(outputs.logits, outputs.pred_boxes, self.kind, canvas)
        return found

    def open_taps(self, names: Iterable[str]) -> None:
        """Make layers available as taps; those of a decoder have features of queries, which the facts say."""
        super().open_taps(names)
        queries = self.facts.queries
        assert queries is not None
        own = (name for name, layer in self._layers.items() if isinstance(layer, _TokensTap) and layer.is_of_queries)
        self.facts = replace(self.facts, queries=replace(queries, taps=tuple(dict.fromkeys((*queries.taps, *own)))))

    def open_stages(self) -> None:
        """Name a neck's maps as the stages; where there is none, the ends of the backbone's stages."""
        if self._maps_taps or self.kind.layout == "maps":
            self.facts = replace(self.facts, stages=self._maps_taps or ("pooled",))
        else:
            super().open_stages()

    def _layer_lists(self) -> list[list[str]]:
        return [names for names in super()._layer_lists() if not any(_is_of_decoder(name) for name in names)]

    def _describe_layer(self, name: str, outputs: list[Any], inputs: Any) -> tuple[LayerTap, int]:
        images, _, _ = unpack(inputs, size=self.preprocessing.image_size)
        output = tensor_of(run_once(self.facts.name, name, outputs, "an image"))
        if isinstance(output, Tensor) and output.ndim == 3:
            grid, length = self._neck.grids[0], output.shape[1]
            if self.kind.layout == "patches" and length == 1 + math.prod(grid) + self._number:
                return _TokensTap(1, grid, slice(0, 1 + math.prod(grid))), output.shape[2]
            if _is_of_decoder(name) or (length == self._number and not _is_before_tokens(name)):
                part = slice(0, self._number) if self.kind.groups else slice(-self._number, None)
                return _TokensTap(0, (self._number, 1), part, is_of_queries=True), output.shape[2]
            if self.kind.layout == "sequence" and length == math.prod(grid):
                return LayerTap("NLC", 0, grid), output.shape[2]
        return super()._describe_layer(name, outputs, images)

    def save(self, folder: Path) -> None:
        """Write what ``from_pretrained`` and ``pipeline("object-detection", FOLDER)`` read."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: t.detach().cpu().contiguous() for name, t in self.module.state_dict().items()}
        self.module.save_pretrained(folder, state_dict=state)  # type: ignore[operator]
        processor.write(self.preprocessing, folder, kind=self.kind.processor)


def chosen(logits: Tensor, boxes: Tensor, kind: DetectorKind, size: tuple[int, int]) -> list[Boxes]:
    """Return the boxes of each image as the kind's image processor does with the threshold 0, best first.

    Args:
        logits: (B, N, C), with a last column for no object where the kind has one.
        boxes: (B, N, 4), centre, width and height as shares of the image's.
        kind: of the model.
        size: (height, width) of the image in whose pixels boxes are returned.
    """
    middle, extent = boxes.float()[..., :2], boxes.float()[..., 2:] / 2
    corners = torch.cat([middle - extent, middle + extent], dim=2) * boxes.new_tensor(
        size[::-1] * 2, dtype=torch.float32
    )
    if kind.background:
        scores, labels = logits.float().softmax(dim=2)[..., :-1].max(dim=2)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        labels = labels.gather(1, order)
    else:
        number = logits[0].numel()
        most = min(number, kind.candidates or logits.shape[1])
        scores, places = logits.float().sigmoid().flatten(1).topk(most, dim=1)
        order, labels = places // logits.shape[2], places % logits.shape[2]
    corners = corners.gather(1, order.unsqueeze(2).expand(-1, -1, 4))
    return [
        {"boxes": one, "labels": label, "scores": score}
        for one, label, score in zip(corners, labels, scores, strict=True)
    ]


def _is_of_decoder(name: str) -> bool:
    return "decoder" in name.split(".")


def _is_before_tokens(name: str) -> bool:
    """Whether a layer is of the backbone or the encoder, where a sequence is of positions."""
    return bool({"backbone", "encoder", "conv_encoder", "embeddings"} & set(name.split(".")))


class _NeckHook:
    """A forward hook that keeps the neck's maps while it is armed, the finest first, and can end the pass there."""

    def __init__(self, kind: DetectorKind) -> None:
        self.kind = kind
        self.armed = self.is_end = False
        self.grids: tuple[tuple[int, int], ...] = ()
        self.widths: tuple[int, ...] = ()
        self._kept: tuple[list[Tensor], list[Edges]] | None = None

    def learn(self, module: nn.Module, images: Tensor) -> None:
        """Find out the grids of the maps, in one pass."""
        config: Any = module.config
        shapes: list[tuple[int, int]] = []

        def look(part: nn.Module, given: Any, kwargs: dict[str, Any], output: Any) -> None:
            if self.kind.layout == "levels":
                shapes.extend((int(height), int(width)) for height, width in kwargs["spatial_shapes_list"])
            elif self.kind.layout == "maps":
                shapes.extend((one.shape[2], one.shape[3]) for one in _list_of_maps(output))
            self.widths = tuple(one.shape[1] for one in _list_of_maps(output)) if self.kind.layout == "maps" else ()

        def look_before(part: nn.Module, given: Any, output: Tensor) -> None:
            shapes.append((output.shape[2], output.shape[3]))

        neck = module.get_submodule(self.kind.neck)
        handles = [neck.register_forward_hook(look, with_kwargs=True)]
        if self.kind.layout == "sequence":
            narrowing = module.get_submodule("model.input_projection")
            handles.append(narrowing.register_forward_hook(look_before))
        try:
            module(pixel_values=images)
        finally:
            for handle in handles:
                handle.remove()
        if self.kind.layout == "patches":
            patch = config.patch_size
            down, across = (patch, patch) if isinstance(patch, int) else patch
            shapes = [(images.shape[2] // down, images.shape[3] // across)]
        self.grids = tuple(shapes)
        self.widths = self.widths or (getattr(config, "d_model", None) or config.hidden_size,) * len(shapes)

    def __call__(self, module: nn.Module, given: Any, kwargs: Any, output: Any) -> None:
        if not self.armed:
            return
        if self.kind.layout == "maps":
            maps = _list_of_maps(output)
            self._kept = maps, [edges_of(one) for one in maps]
        else:
            hidden: Tensor = output.last_hidden_state
            lengths = [math.prod(grid) for grid in self.grids]
            start = 1 if self.kind.layout == "patches" else 0
            parts = hidden[:, start : start + sum(lengths)].split(lengths, dim=1)
            maps = [part.transpose(1, 2).unflatten(2, grid) for part, grid in zip(parts, self.grids, strict=True)]
            self._kept = maps, [edges_of(hidden)] * len(maps)
        if self.is_end:
            raise Reached

    def take(self) -> tuple[list[Tensor], list[Edges]]:
        """Return the maps (B, C, H, W) with their edges, and forget them."""
        kept, self._kept = self._kept, None
        if kept is None:
            raise RuntimeError("the neck did not run")
        return kept


def _list_of_maps(output: Any) -> list[Tensor]:
    """Return a neck's maps out of a list of them, with masks or without, or out of an output that holds one."""
    found = getattr(output, "feature_maps", None) or getattr(output, "last_hidden_state", output)
    if isinstance(found, tuple) and isinstance(found[0], Tensor) and len(found) == 2 and found[1].ndim == 3:
        found = [found]  # one map and its mask
    return [one[0] if isinstance(one, tuple) else one for one in found]


class _TokensTap(LayerTap):
    """A tap of a layer whose output (B, L, d) has tokens that are not wanted, before them or after them."""

    def __init__(self, num_prefix: int, grid: tuple[int, int], part: slice, *, is_of_queries: bool = False) -> None:
        super().__init__("NLC", num_prefix, grid)
        self.part, self.is_of_queries = part, is_of_queries

    def features_of(self, output: Any) -> Tensor:
        """Return the wanted tokens."""
        features: Tensor = super().features_of(output)
        return features[:, self.part]
