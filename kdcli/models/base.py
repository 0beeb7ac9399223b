"""One interface to every model: features at named taps, and logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import LabelKind, ModelFacts, Preprocessing, TextPreprocessing
from kdcli.base.reads import DISTILLATION, LOGITS, Reads
from kdcli.data import AnyBatch
from kdcli.models.measure import Measured, measure
from kdcli.models.outputs import ModelOutput
from kdcli.models.quantization import count_parameters
from kdcli.models.recompute import keep_statistics, no_recomputing
from kdcli.models.taps import HeadTap, LayerTap, Reached, last_of

Inputs = Tensor | dict[str, Tensor]
"""What a library's own model takes: images (B, 3, H, W), or a tokenizer's tensors by name."""


@dataclass(frozen=True)
class Origin:
    """Where a model came from; see :class:`kdcli.base.facts.ModelFacts` for the fields.

    ``image_size`` is the user's override, (height, width) in pixels; None for the model's own.
    """

    name: str
    pretrained: bool
    weights: str
    label_names: tuple[str, ...] | None
    image_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Probe:
    """Shapes and numbers of one image's pass, from which a subclass learns how its model is put together."""

    dims: dict[str, int]
    measured: Measured
    grids: dict[str, tuple[int, int]]


class Model(nn.Module, ABC):
    """A library's own model behind one ``forward``.

    Two taps always go by the same name: ``pooled``, the mean over the final feature map's spatial positions or patch
    tokens (class, distillation and register tokens left out); and ``embedding``, the classifier's input, where there is
    a classifier. Any layer of ``module`` becomes a further tap, pooled likewise, by :meth:`open_taps`.

    Every tap whose features have positions also has a *map*, the same features before they are averaged, (B, C, H, W).
    Tokens without the class, distillation and register tokens are laid out on their grid; a sequence that is no grid of
    the image is a column, (B, C, L, 1). ``embedding`` has no map.

    What it takes is a subclass's part, images that of :class:`VisionModel`.

    Attributes:
        module: the library's own model.
        preprocessing: how it wants its samples.
        facts: what is known about it.
    """

    library: str
    module: nn.Module
    preprocessing: Preprocessing | TextPreprocessing
    facts: ModelFacts
    runs_whole = False
    """Whether a pass goes on after the last layer that is read: where it is in shares, a block puts its own back."""
    is_one_pass = True
    """Whether a batch goes once through every layer, whatever is in it."""

    def __init__(
        self, module: nn.Module, origin: Origin, preprocessing: Preprocessing | TextPreprocessing, num_classes: int
    ) -> None:
        super().__init__()
        self.module = module
        self.preprocessing = preprocessing
        self._layers: dict[str, LayerTap] = {}
        """The opened layers, in the order in which they run."""
        self._head_taps: dict[str, HeadTap] = {}
        """Those of the class token and of the distillation token, where there are both."""
        self._recomputes = False
        with self._input_errors(origin):
            probe = self._probe(self.example(), num_classes)
        names = self._head_names()
        self.facts = ModelFacts(
            name=origin.name,
            library=self.library,
            task=self._task(num_classes),
            pretrained=origin.pretrained,
            weights=origin.weights,
            num_classes=num_classes,
            label_names=origin.label_names,
            feature_dims=probe.dims,
            preprocessing=preprocessing,
            num_parameters=count_parameters(module),
            macs=probe.measured.macs,
            activation_bytes=probe.measured.activation_bytes,
            grids=probe.grids,
            heads=(*self._own_heads(num_classes), *(() if names is None else (DISTILLATION,))),
        )
        if names is not None:
            for head, name in zip((LOGITS, DISTILLATION), names, strict=True):
                self._head_taps[head] = HeadTap()
                module.get_submodule(name).register_forward_hook(self._head_taps[head])

    @property
    def native(self) -> nn.Module:
        """What other programs run: it takes :meth:`example`'s inputs, and returns logits as its library does."""
        return self.module

    @property
    def label_kind(self) -> LabelKind:
        """What the label of a sample is, of a classifier of whole samples: one class, unless it says otherwise."""
        return "class"

    def take_several_labels(self) -> None:
        """Say, in what is saved too, that each class is true or not by itself.

        Raises:
            UserError: it can't be said in its config.
        """
        raise UserError(
            f"{self.facts.name} can't say that a sample has any number of labels.",
            "Choose a student of timm or transformers.",
        )

    @property
    def predictions(self) -> Reads:
        """The heads that make the model's prediction; nothing of a model without one."""
        return Reads(heads=self.facts.predictions)

    @abstractmethod
    def prepare(self, batch: AnyBatch) -> Inputs:
        """Return what :meth:`forward` takes, on the batch's device, by the model's own preprocessing."""

    @abstractmethod
    def example(self, batch_size: int = 1, *, seed: int = 0) -> Inputs:
        """Return made-up inputs of the model's own size, by ``seed`` alone, to measure and compare with."""

    def forward(self, inputs: Inputs, reads: Reads | None = None) -> ModelOutput:
        """Run the model, and no more of it than is read.

        Args:
            inputs: from :meth:`prepare`.
            reads: taps out of ``facts.feature_dims``, maps of taps out of ``facts.grids``, heads out of
                ``facts.heads``; by default :attr:`predictions`. Beside ``distillation`` the logits are the class
                token's alone, and not the mean of both.

        Raises:
            ValueError: for an unknown tap, one without a map, or a head that the model doesn't have.
        """
        reads = self.predictions if reads is None else reads
        self._check(reads)
        if not reads:
            return ModelOutput()
        layers = {name: layer for name, layer in self._layers.items() if name in reads.taps}
        own = self._own(reads)
        for name, layer in layers.items():
            layer.wants_mean, layer.wants_map = name in reads.features, name in reads.maps
        head_taps = self._head_taps if DISTILLATION in reads.heads else {}
        for head in head_taps.values():
            head.armed = True
        if layers:
            list(layers.values())[-1].is_end = not own and not self.runs_whole
        output = ModelOutput()
        try:
            output = self._run(inputs, own or self._everything())
        except Reached:
            pass
        finally:
            for layer in layers.values():
                layer.wants_mean = layer.wants_map = layer.is_end = False
            for head in head_taps.values():
                head.armed = False
        if not own:
            output = ModelOutput()
        for name, layer in layers.items():
            mean, of_places, output.edges[name] = layer.take()
            if mean is not None:
                output.features[name] = mean
            if of_places is not None:
                output.maps[name] = of_places
        found = output.heads | {name: head.take() for name, head in head_taps.items()}
        output.heads = {name: found[name] for name in reads.heads}
        return output

    def _check(self, reads: Reads) -> None:
        facts = self.facts
        for kind, asked, valid in (
            ("tap", reads.features, facts.feature_dims),
            ("map", reads.maps, facts.grids),
            ("head", reads.heads, facts.heads),
        ):
            for name in asked:
                if name not in valid:
                    raise ValueError(f"{facts.name} has no {kind} {name!r}; valid: {', '.join(valid) or 'none'}.")

    def _own(self, reads: Reads) -> Reads:
        """Return what of ``reads`` no layer's hook gives; the logits bring those of a distillation token with them."""
        return Reads(
            tuple(tap for tap in reads.features if tap not in self._layers),
            tuple(tap for tap in reads.maps if tap not in self._layers),
            tuple(dict.fromkeys(LOGITS if head == DISTILLATION else head for head in reads.heads)),
        )

    def open_taps(self, names: Iterable[str]) -> None:
        """Make layers available as taps, with their widths in ``facts.feature_dims``.

        Args:
            names: of submodules of ``module``, such as ``blocks.4`` or ``vit.encoder.layer.5``. Names that are taps
                already, ``pooled`` and ``embedding`` among them, are left as they are.

        Raises:
            UserError: there is no such layer, it does not run exactly once for an image, or what it returns has no
                features for each position.
        """
        modules = {name: module for name, module in self.module.named_modules() if name}
        new = [name for name in dict.fromkeys(names) if name not in self.facts.feature_dims]
        for name in new:
            if name not in modules:
                top = ", ".join(["pooled", "embedding", *(n for n, _ in self.module.named_children())])
                raise UserError(
                    f"{self.facts.name} has no layer {name!r}. {did_you_mean(name, modules)}".rstrip(),
                    f"Any submodule can be named; the outermost are: {top}.",
                )
        if not new:
            return
        example = self.example()
        outputs, order = self._watch((*self._layers, *new), example)
        dims, grids = dict(self.facts.feature_dims), dict(self.facts.grids)
        described = {name: self._describe_layer(name, outputs[name], example) for name in new}
        for name, (layer, width) in described.items():
            dims[name] = width
            if layer.grid is not None:
                grids[name] = layer.grid
            layer.is_in_block = self._recomputes
            last_of(modules[name]).register_forward_hook(layer)
            self._layers[name] = layer
        self._layers = {name: self._layers[name] for name in order}
        self.facts = replace(self.facts, feature_dims=dims, grids=grids)

    def open_stages(self) -> None:
        """Open the ends of at most four stages as taps, and name them in ``facts.stages``.

        A stage ends at the last layer of a grid; where all layers have one grid, as in a ViT, four evenly spaced layers
        stand for them. The layers are those that the library lists as features, or else the list of modules with most
        parameters whose members all have maps.

        Raises:
            UserError: no such layers are found.
        """
        modules = dict(self.module.named_modules())
        lists = [list(dict.fromkeys(names)) for names in self._layer_lists()]
        lists = [names for names in lists if len(names) > 1 and all(name in modules for name in names)]
        example = self.example()
        outputs, _ = self._watch(dict.fromkeys(name for names in lists for name in names), example)
        for names in lists:
            try:
                grids = {name: self._describe_layer(name, outputs[name], example)[0].grid for name in names}
            except UserError:  # a member can't be tapped: the next list
                continue
            if None in grids.values():
                continue
            ends = list({grid: name for name, grid in grids.items()}.values())
            if len(ends) == 1:
                count = min(4, len(names))
                ends = [names[(number + 1) * len(names) // count - 1] for number in range(count)]
            stages = tuple(ends[-4:])
            self.open_taps(stages)
            self.facts = replace(self.facts, stages=stages)
            return
        raise UserError(
            f"{self.facts.name} has no stages that kdcli can find.", "Name layers: --feature-layers STUDENT:TEACHER."
        )

    def compare_last_features(self) -> None:
        """Find out whether ``pooled`` is what the classifier reads, for ``facts.reads_pooled``."""
        if "embedding" not in self.facts.feature_dims:
            return
        was_training, device = self.training, next(self.parameters()).device
        self.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = self(to_device(self.example(), device), Reads(("pooled", "embedding"))).features
        self.train(was_training)
        pooled, read = found["pooled"], found["embedding"]
        is_same = pooled.shape == read.shape and torch.allclose(pooled, read, rtol=1e-3, atol=1e-5)
        self.facts = replace(self.facts, reads_pooled=is_same)

    def synchronize_batchnorm(self) -> None:
        """Exchange every batch normalisation for one over the batches of all processes."""
        self.module = convert_sync_batchnorm(self.module)
        for name, layer in self._layers.items():
            module = last_of(self.module.get_submodule(name))
            if layer not in module._forward_hooks.values():  # it stayed with what was exchanged
                module.register_forward_hook(layer)
        if self._recomputes:
            keep_statistics(self.module)

    def recompute_activations(self) -> None:
        """Compute what lies inside of blocks again in the backward pass; ``facts.activation_bytes`` is what is kept.

        Outputs, gradients, running statistics and what dropout draws stay the same.

        Raises:
            UserError: the model's library can't, or nothing would be saved.
        """
        self._recompute()
        self._recomputes = True
        keep_statistics(self.module)
        for layer in self._layers.values():
            layer.is_in_block = True
        kept = measure(self.module, lambda: self._run(self.example(), self._everything()), mode="train")
        if kept.activation_bytes >= self.facts.activation_bytes:
            raise no_recomputing(self.facts.name, f"{self.library} has none for it, and would keep as much as before")
        self.facts = replace(self.facts, activation_bytes=kept.activation_bytes)

    def _recompute(self) -> None:
        """Switch on the library's own checkpointing; refused by default."""
        raise no_recomputing(self.facts.name, f"models of {self.library} have none")

    def narrow_norms(self) -> list[str]:
        """Return the batch normalisations that get one value a channel of one sample, which they can't be trained on.

        Those that stay in evaluation while the model trains are none of them.
        """
        was_training, device = self.training, next(self.parameters()).device
        self.train()
        norms = {name: part for name, part in self.module.named_modules() if isinstance(part, _BatchNorm)}
        norms = {name: part for name, part in norms.items() if part.training}
        self.eval()
        narrow: dict[str, None] = {}

        def look(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any) -> None:
                if inputs[0].numel() == inputs[0].shape[1]:
                    narrow[name] = None

            return norms[name].register_forward_pre_hook(hook)

        handles = [look(name) for name in norms]
        try:
            if norms:
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    self._run(to_device(self.example(), device), self._everything())
        finally:
            for handle in handles:
                handle.remove()
            self.train(was_training)
        return list(narrow)

    def _watch(self, names: Iterable[str], example: Inputs) -> tuple[dict[str, list[Any]], list[str]]:
        """Return what each of the named modules returns for ``example``, and the order in which they ran."""
        outputs: dict[str, list[Any]] = {name: [] for name in names}
        order: list[str] = []

        def look(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                outputs[name].append(output)
                order.append(name)

            return self.module.get_submodule(name).register_forward_hook(hook)

        handles = [look(name) for name in outputs]
        was_training = self.module.training
        self.module.eval()
        device = next(self.module.parameters()).device
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                self._run(to_device(example, device), self._everything())
        finally:
            for handle in handles:
                handle.remove()
            self.module.train(was_training)
        return outputs, order

    def _layer_lists(self) -> list[list[str]]:
        """Return lists of modules that may be the model's stages or blocks, the likeliest first."""
        found = [
            (sum(p.numel() for p in module.parameters()), [f"{name}.{child}" for child, _ in module.named_children()])
            for name, module in self.module.named_modules()
            if name and isinstance(module, (nn.ModuleList, nn.Sequential))
        ]
        return [names for _, names in sorted(found, key=lambda pair: -pair[0])]

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model into ``folder`` in its library's own format: safetensors, config with the label names."""

    @abstractmethod
    def _task(self, num_classes: int) -> str:
        """Return what a model of this kind with so many classes is for."""

    @abstractmethod
    def _input_errors(self, origin: Origin) -> AbstractContextManager[None]:
        """Turn what the model throws at an input that it can't take into the user's error."""

    @abstractmethod
    def _probe(self, inputs: Any, num_classes: int) -> Probe:
        """Learn from one pass of ``inputs`` how features and logits come out of ``self.module``; measure that pass."""

    @abstractmethod
    def _describe_layer(self, name: str, outputs: list[Any], inputs: Any) -> tuple[LayerTap, int]:
        """Return the hook for a layer and its width, from what it returned for ``inputs``.

        Raises:
            UserError: it did not run exactly once, or what it returns has no features for each position.
        """

    @abstractmethod
    def _head_names(self) -> tuple[str, str] | None:
        """Return the modules that classify the class token and the distillation token; None without the latter."""

    @abstractmethod
    def _run(self, inputs: Any, reads: Reads) -> ModelOutput:
        """Compute what is read: taps that are no opened layers, and heads other than ``distillation``."""

    def _own_heads(self, num_classes: int) -> tuple[str, ...]:
        """Return the heads that make the model's prediction; called after :meth:`_probe`."""
        return (LOGITS,) if num_classes else ()

    def _everything(self) -> Reads:
        """Return what to ask ``_run`` for so that every layer runs."""
        return self.predictions or Reads(("pooled",))

    def _measure(self, inputs: Any, reads: Reads) -> Measured[ModelOutput]:
        return measure(self.module, lambda: self._run(inputs, reads))


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """Return a model's inputs on ``device``."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    return {name: value.to(device) for name, value in inputs.items()}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, where weights are initialised, and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the accelerators
        yield


def freeze(model: Model) -> Model:
    """Put ``model`` into eval mode and switch its gradients off."""
    return model.eval().requires_grad_(False)
