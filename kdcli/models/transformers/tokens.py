"""transformers' models of text that answer for each token: language models, classifiers of tokens, bare encoders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.base.errors import UserError
from kdcli.base.facts import TextPreprocessing
from kdcli.base.reads import LOGITS, VOCABULARY, Reads
from kdcli.base.tasks import task_of
from kdcli.data.batch import AnyBatch
from kdcli.data.texts.batch import TokenBatch, WordBatch
from kdcli.data.texts.words import encode_words, first_tokens
from kdcli.losses.vocabulary import OutputHead, VocabularyLogits
from kdcli.models.base import Origin, Probe
from kdcli.models.measure import Measured, measure
from kdcli.models.outputs import ModelOutput
from kdcli.models.taps import LayerTap, edges_of, run_once, tensor_of
from kdcli.models.transformers.text import HFTextModel, head_kind, text_part

_TOLERANCE = 1e-3
"""Largest allowed difference, relative to the largest logit, of logits that are computed apart."""


class HFTokenModel(HFTextModel):
    """A model of transformers whose features and logits are of tokens.

    Its inputs tell, beside the texts, for which tokens: ``tokens``, int64 (M,), and ``predicted``, int64 (N,), are
    positions in the flattened (B, L). ``pooled`` is (M, d), the last hidden state of each of ``tokens``; any other
    layer likewise. Logits are (N, num_classes); of a causal language model they are
    ``vocabulary``, which is never all there at once. A padded vocabulary has them for all its rows, as transformers'
    own losses have: training takes the probability away from those that are no token's.
    """

    def __init__(self, module: Any, origin: Origin, tokenizer: Any, preprocessing: TextPreprocessing) -> None:
        tokenizer.truncation_side = "right"  # texts are cut into pieces, from their beginning on
        super().__init__(module, origin, tokenizer, preprocessing)

    def prepare(self, batch: AnyBatch) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask``, int64 (B, L), with ``tokens`` (M,) and ``predicted`` (N,).

        Of plain texts every token is predicted, of words the first token of each.
        """
        if isinstance(batch, WordBatch):
            found = encode_words(
                self.tokenizer,
                batch.words,
                padding=True,
                truncation=True,
                max_length=self.preprocessing.max_length,
                return_tensors="pt",
            )
            rows = first_tokens(found, batch.words)
            inputs = {**{name: found[name] for name in ("input_ids", "attention_mask")}, "tokens": rows}
            return {name: value.to(batch.samples.device) for name, value in {**inputs, "predicted": rows}.items()}
        if not isinstance(batch, TokenBatch):
            inputs = super().prepare(batch)
            rows = inputs["attention_mask"].flatten().nonzero()[:, 0]
            return {**inputs, "tokens": rows, "predicted": rows}
        return {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "tokens": batch.attention_mask.flatten().nonzero()[:, 0],
            "predicted": batch.predicted.flatten().nonzero()[:, 0],
        }

    def example(self, batch_size: int = 1, *, seed: int = 0) -> dict[str, Tensor]:
        """Return texts of random tokens as :class:`HFTextModel` does, all of whose tokens count."""
        inputs = super().example(batch_size, seed=seed)
        everything = torch.arange(inputs["input_ids"].numel())
        return {**inputs, "tokens": everything, "predicted": everything}

    def _count_classes(self, module: Any) -> int:
        kind = head_kind(module)
        if kind == "token":
            return int(module.config.num_labels)
        if kind not in ("masked", "causal"):
            return 0
        last = module.get_output_embeddings()
        return int(last.out_features if isinstance(last, nn.Linear) else text_part(module.config).vocab_size)

    def _task(self, num_classes: int) -> str:
        head = head_kind(self.module)
        return task_of("text", "none" if head == "sequence" else head).name

    def _probe(self, inputs: dict[str, Tensor], num_classes: int) -> Probe:
        self._prepare_encoder()
        self._head = None
        self._rows, self._exchange = _Rows(), _Exchange()
        self.module.get_submodule(self._encoder).register_forward_hook(self._exchange)
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        measured = measure(self.module, lambda: self.module(**texts, **self._arguments))
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            hidden = self._hidden_states(inputs)
            if num_classes:
                expected = measured.result.logits.detach().flatten(0, 1)
                if expected.shape[1] != num_classes:
                    raise ValueError(f"it has {expected.shape[1]} logits a token, and {num_classes} tokens")
                if head_kind(self.module) == "causal":
                    self._head = _read_head(self.module, hidden, expected)
                    self._check_causality(inputs, hidden)
                output = self._run(inputs, Reads(heads=self._own_heads(num_classes)))
                found = output.logits if output.vocabulary is None else output.vocabulary.dense()
                assert found is not None
                if not _is_close(found, expected):
                    raise ValueError(
                        "its logits are not those of one token's last hidden state"
                        if output.vocabulary is None
                        else "between its last hidden states and its logits there is more than a linear layer"
                    )
        self.module.train(was_training)
        return Probe({"pooled": hidden.shape[1]}, Measured(None, measured.macs, measured.activation_bytes), {})

    def _is_changed_by_padding(self) -> bool:
        def run(inputs: dict[str, Tensor]) -> list[Tensor]:
            batch, length = inputs["input_ids"].shape
            half = self._two_lengths()[1]  # what is real of the padded one
            return [self._hidden_states(inputs).unflatten(0, (batch, length))[:, :half]]

        return self._in_eval_mode(run)

    def _say_padding(self) -> None:
        self._remark("Padding changes it: what it says of a token depends on the longest text of the batch.")

    def _check_causality(self, inputs: dict[str, Tensor], hidden: Tensor) -> None:
        ids = inputs["input_ids"].clone()
        ids[:, -1] = ids[:, 0]
        others = self._hidden_states({**inputs, "input_ids": ids})
        if not torch.allclose(others[:-1], hidden[:-1], rtol=1e-3, atol=1e-4):
            raise ValueError("it looks ahead: it is no causal language model")

    def _describe_layer(self, name: str, outputs: list[Any], inputs: dict[str, Tensor]) -> tuple[LayerTap, int]:
        output = tensor_of(run_once(self.facts.name, name, outputs, "a text"))
        if isinstance(output, Tensor) and output.ndim == 3 and output.shape[:2] == inputs["input_ids"].shape:
            return _RowsTap(self._rows), output.shape[2]
        shape = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"{self.facts.name}: the layer {name!r} returns {shape}, not features of tokens.", "Name another layer."
        )

    def _own_heads(self, num_classes: int) -> tuple[str, ...]:
        return super()._own_heads(num_classes) if self._head is None else (VOCABULARY,)

    def _run(self, inputs: dict[str, Tensor], reads: Reads) -> ModelOutput:
        assert not reads.maps, "no tap of a text has a map"
        self._rows.value = inputs["tokens"]
        output = ModelOutput()
        if LOGITS in reads.heads:
            texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            with self._exchange.armed(inputs["predicted"]):
                result = self.module(**texts, **self._arguments)
            output.heads[LOGITS] = result.logits[0]
            hidden = self._exchange.take()
        else:
            hidden = self._hidden_states(inputs)
            if VOCABULARY in reads.heads:
                assert self._head is not None
                head = self._head.of(self.module.get_output_embeddings())  # type: ignore[operator]
                output.heads[VOCABULARY] = VocabularyLogits(hidden[inputs["predicted"]], head)
        if "pooled" in reads.features:
            output.edges["pooled"] = edges_of(hidden)
            output.features["pooled"] = hidden[inputs["tokens"]]
        return output

    def _hidden_states(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the last hidden states (B * L, d)."""
        encoder = self.module.get_submodule(self._encoder)
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        states: Tensor = encoder(**texts, **self._encoder_arguments).last_hidden_state
        return states.flatten(0, 1)


class _Exchange:
    """While it is armed, the head after an encoder gets the chosen tokens alone, as one text; a forward hook."""

    def __init__(self) -> None:
        self._rows: Tensor | None = None
        self._hidden: Tensor | None = None

    @contextmanager
    def armed(self, rows: Tensor) -> Iterator[None]:
        """Choose ``rows`` of the flattened (B, L) within the block."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """Return what the head gets in place of the encoder's ``output``."""
        if self._rows is None:
            return output
        self._hidden = output.last_hidden_state.flatten(0, 1)
        return type(output)(**{**output, "last_hidden_state": self._hidden[self._rows][None]})

    def take(self) -> Tensor:
        """Return the hidden states (B * L, d) of all tokens, and forget them."""
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        return hidden


class _Rows:
    """The tokens that count, shared by the model and its layers' hooks."""

    value: Tensor


class _RowsTap(LayerTap):
    """Keeps a layer's output for the tokens that count."""

    def __init__(self, rows: _Rows) -> None:
        super().__init__("NLC", 0, None)
        self._rows = rows

    def _mean(self, features: Tensor) -> Tensor:
        return features.flatten(0, 1)[self._rows.value]


@dataclass(frozen=True)
class _HeadSettings:
    """What a causal language model does to the product of a hidden state and its output embeddings."""

    scale: float
    softcap: float | None

    def of(self, linear: nn.Linear) -> OutputHead:
        """Return the head with its own layer."""
        return OutputHead(linear.weight, linear.bias, self.scale, self.softcap)


def _read_head(module: Any, hidden: Tensor, logits: Tensor) -> _HeadSettings:
    """Find out how ``logits`` (N, V) come from ``hidden`` (N, d); the config names a cap, the scale shows."""
    linear = module.get_output_embeddings()
    if not isinstance(linear, nn.Linear):
        raise ValueError("it has no linear layer of output embeddings")
    cap = getattr(module.config, "final_logit_softcapping", None)
    before = logits if cap is None else cap * torch.atanh(logits / cap)
    product = linear(hidden)
    scale = float((product * before).sum() / product.square().sum())
    return _HeadSettings(float(f"{scale:.5g}"), cap)


def _is_close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max().clamp(min=1e-6))
