"""Losses over a vocabulary, whose logits are made a chunk of the vocabulary at a time and never whole.

A language model ends in one linear layer from ``d`` channels to ``V`` tokens. :class:`VocabularyLogits` holds what it
reads instead of what it gives, and the losses here run it over one chunk of tokens after another, in the forward and
again in the backward: memory is ``O(N · chunk + N · d + V · d)`` where the logits would be ``N · V``.

The product with the weight is in the precision that it has in the model, half precision under autocast; all that
follows is float32, or float64 for float64 tensors. No gradient reaches the teacher. The losses are differentiable once
and give one value a position: what counts as their mean is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.base.names import DivergenceName
from kdcli.losses.common import require_labels, require_positive
from kdcli.losses.logit import divergence_terms, mask_logits, require_divergence
from kdcli.losses.normalize import full_precision


@dataclass(frozen=True, eq=False)
class OutputHead:
    """The last layer of a language model: ``z = scale · (h Wᵀ + b)``, then ``cap · tanh(z / cap)``.

    Attributes:
        weight: ``W``, ``(V, d)``; the embedding's where the model ties them. Rows that pad a vocabulary count as
            tokens, as they do in the softmax of transformers' own losses.
        bias: ``b``, ``(V,)``, or None.
        scale: factor of the logits; MPT, Cohere and T5 have one.
        softcap: ``cap``, positive, as Gemma 2 has it, or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or not len(self.weight):
            raise ValueError(f"The weight must have the shape (V, d), got {tuple(self.weight.shape)}.")
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(f"The bias must have the shape ({len(self.weight)},), got {tuple(self.bias.shape)}.")
        if self.softcap is not None:
            require_positive("softcap", self.softcap)

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the logits of the tokens whose rows of the weight are given, in full precision.

        Args:
            hidden: ``(N, d)``.
            weight: ``(C, d)``, of ``C`` tokens.
            bias: ``(C,)``, theirs, or None.
        """
        dtype = torch.promote_types(hidden.dtype, weight.dtype)
        bias = None if bias is None else bias.to(dtype)
        logits = full_precision(F.linear(hidden.to(dtype), weight.to(dtype), bias))
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


@dataclass(frozen=True, eq=False)
class VocabularyLogits:
    """The logits ``(N, V)`` of ``N`` positions, not yet made.

    Attributes:
        hidden: what the head reads, ``(N, d)``; ``N`` may be 0. Leave away positions that don't count.
        head: makes the logits.
        chunk: how many tokens' logits are made at a time.
    """

    hidden: Tensor
    head: OutputHead
    chunk: int = 4096

    def __post_init__(self) -> None:
        width = self.head.weight.shape[1]
        if self.hidden.ndim != 2 or self.hidden.shape[1] != width:
            raise ValueError(f"hidden must have the shape (N, {width}), got {tuple(self.hidden.shape)}.")
        require_positive("chunk", self.chunk)

    def __len__(self) -> int:
        """Return the number of positions ``N``."""
        return len(self.hidden)

    @property
    def num_classes(self) -> int:
        """The size of the vocabulary ``V``."""
        return len(self.head.weight)

    @property
    def parts(self) -> Iterator[slice]:
        """The vocabulary's chunks."""
        for start in range(0, self.num_classes, self.chunk):
            yield slice(start, min(start + self.chunk, self.num_classes))

    def part(self, tokens: slice) -> Tensor:
        """Return the logits of some tokens, ``(N, C)``."""
        head = self.head
        return head.logits(self.hidden, head.weight[tokens], None if head.bias is None else head.bias[tokens])

    def first(self, count: int) -> VocabularyLogits:
        """Return the logits of the first ``count`` tokens."""
        head = self.head
        bias = None if head.bias is None else head.bias[:count]
        return replace(self, head=replace(head, weight=head.weight[:count], bias=bias))

    def dense(self) -> Tensor:
        """Return all logits, ``(N, V)``: for small vocabularies and tests."""
        return self.part(slice(None))


def chunked_divergence(
    student: VocabularyLogits,
    teacher: VocabularyLogits,
    *,
    divergence: DivergenceName,
    temperature: float,
    beta: float = 0.5,
) -> Tensor:
    """:func:`kdcli.losses.logit_kd` of every position, ``(N,)``, without its mean.

    Args:
        student: logits of the ``N`` positions.
        teacher: logits of the same positions over the same ``V`` tokens, or over the first of them: then the others
            have probability 0, as masked ones have. Widths, scales and caps may differ. It is read with the student's
            chunk.
        divergence: ``"forward_kl"``, ``"reverse_kl"`` or ``"jensen_shannon"``.
        temperature: ``T``; positive.
        beta: the teacher's share in the mixture of ``"jensen_shannon"``; between 0 and 1.
    """
    if student.num_classes < teacher.num_classes:
        raise ValueError(
            "The student's vocabulary must hold the teacher's, got"
            f" {student.num_classes} and {teacher.num_classes} tokens."
        )
    if len(student) != len(teacher):
        raise ValueError(
            f"Student and teacher must have the same positions, got {len(student)} and {len(teacher)} of them."
        )
    require_positive("temperature", temperature)
    require_divergence(divergence, beta)
    return _in_chunks(student, _Divergence(teacher, divergence, temperature, beta))


def chunked_cross_entropy(
    logits: VocabularyLogits, targets: Tensor, *, label_smoothing: float = 0.0, ignore_index: int = -100
) -> Tensor:
    """Cross-entropy with the next token, ``(N,)``.

    As ``torch.nn.functional.cross_entropy`` with ``reduction="none"``: with ``ε`` smoothing, ``(1 − ε) · −log p_y``
    plus ``ε`` times the mean of ``−log p`` over the vocabulary, and 0 where the target is ignored.

    Args:
        logits: of the ``N`` positions.
        targets: ``(N,)``, int64, in ``[0, V)`` or ``ignore_index``.
        label_smoothing: ``ε``; between 0 and 1.
        ignore_index: target of positions that don't count.

    Raises:
        ValueError: for targets outside the vocabulary, too.
    """
    require_labels(targets, torch.Size([len(logits)]))
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing!r}.")
    outside = (targets != ignore_index) & ((targets < 0) | (targets >= logits.num_classes))
    if outside.any():
        raise ValueError(
            f"Targets must be in [0, {logits.num_classes}) or {ignore_index}, got {targets[outside][0].item()}."
        )
    return _in_chunks(logits, _CrossEntropy(targets, label_smoothing, ignore_index))


def chunked_argmax(logits: VocabularyLogits) -> Tensor:
    """Return the most likely token of every position, ``(N,)``, int64; the first of several."""
    best = torch.full((len(logits),), -torch.inf, device=logits.hidden.device)
    token = torch.zeros(len(logits), dtype=torch.int64, device=logits.hidden.device)
    with torch.no_grad():
        for tokens in logits.parts:
            value, index = logits.part(tokens).max(dim=1)
            token = torch.where(value > best, index + tokens.start, token)
            best = torch.maximum(value, best)
    return token


class _Normaliser:
    """The log-softmax of rows that come in pieces: the largest logit and the sum of exponentials relative to it.

    They stay apart, as log-softmax keeps them: their sum would lose the small one where logits are large.
    """

    def __init__(self, like: Tensor) -> None:
        self.largest = torch.full((len(like), 1), -torch.inf, device=like.device)
        self.total = torch.zeros(len(like), 1, device=like.device)

    def add(self, logits: Tensor) -> None:
        """Take more of the rows in, ``(N, C)``; ``-inf`` among them is nothing."""
        largest = torch.maximum(self.largest, logits.amax(dim=1, keepdim=True))
        shift = torch.where(largest == -torch.inf, 0, largest)  # of rows that are nothing so far
        pieces = (logits - shift).exp().sum(dim=1, keepdim=True)
        self.total = self.total * (self.largest - shift).exp() + pieces
        self.largest = largest

    def log_probs(self, logits: Tensor) -> Tensor:
        """Return the log-probabilities of some of the logits, once all of them are in."""
        return (logits - self.largest) - self.total.log()


class _Loss(Protocol):
    """A loss of every position, and its gradient."""

    def values(self, logits: VocabularyLogits) -> Tensor:
        """Return the loss ``(N,)``; keep what the gradient needs."""

    def gradient(self, tokens: slice, logits: Tensor) -> Tensor:
        """Return the derivatives of the positions' losses for some tokens' ``logits``, both ``(N, C)``."""


class _Divergence:
    """:func:`kdcli.losses.logit_kd` of every position; ``student`` is over the tokens that the divergence looks at."""

    def __init__(self, teacher: VocabularyLogits, divergence: DivergenceName, temperature: float, beta: float) -> None:
        self.teacher = teacher
        self.options: tuple[DivergenceName, float] = (divergence, beta)
        self.temperature = temperature
        self.leaves_out = divergence == "reverse_kl"

    def values(self, logits: VocabularyLogits) -> Tensor:
        self.normaliser, self.student_normaliser, self.teacher_normaliser = (
            _Normaliser(logits.hidden) for _ in range(3)
        )
        for tokens in logits.parts:
            student, teacher = self._scaled(tokens, logits.part(tokens))
            if self.leaves_out:
                self.normaliser.add(student)
            self.student_normaliser.add(self._among(student, teacher))
            self.teacher_normaliser.add(teacher)
        total = self.total_score = torch.zeros(len(logits), device=logits.hidden.device)
        for tokens in logits.parts:
            terms, scores = divergence_terms(
                *self._log_probs(*self._scaled(tokens, logits.part(tokens))), *self.options
            )
            total, self.total_score = total + terms.sum(dim=1), self.total_score + scores.sum(dim=1)
        if self.leaves_out:
            inside = self.student_normaliser
            total = total - (self.normaliser.log_probs(inside.largest) + inside.total.log())[:, 0]
        return self.temperature**2 * total

    def gradient(self, tokens: slice, logits: Tensor) -> Tensor:
        student, teacher = self._scaled(tokens, logits)
        log_probs, teacher_log_probs = self._log_probs(student, teacher)
        _, scores = divergence_terms(log_probs, teacher_log_probs, *self.options)
        gradient = scores - log_probs.exp() * self.total_score[:, None]
        if self.leaves_out:
            gradient = gradient + self.normaliser.log_probs(student).exp() - log_probs.exp()
        return self.temperature * gradient

    def _scaled(self, tokens: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's and the teacher's logits of some tokens by the temperature, ``(N, C)``."""
        teacher = mask_logits(self.teacher.part(tokens)) / self.temperature
        missing = logits.shape[1] - teacher.shape[1]
        return logits / self.temperature, F.pad(teacher, (0, missing), value=-torch.inf)

    def _among(self, student: Tensor, teacher: Tensor) -> Tensor:
        return student.masked_fill(teacher == -torch.inf, -torch.inf) if self.leaves_out else student

    def _log_probs(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of both, ``(N, C)``."""
        return (
            self.student_normaliser.log_probs(self._among(student, teacher)),
            self.teacher_normaliser.log_probs(teacher),
        )


class _CrossEntropy:
    def __init__(self, targets: Tensor, label_smoothing: float, ignore_index: int) -> None:
        self.targets = targets
        self.label_smoothing = label_smoothing
        self.ignored = targets == ignore_index

    def values(self, logits: VocabularyLogits) -> Tensor:
        self.num_classes = logits.num_classes
        self.normaliser = _Normaliser(logits.hidden)
        # Logits are summed relative to the first token's: their mean keeps its digits where all are large.
        first = logits.part(slice(1))
        target, above_first = torch.zeros_like(first), torch.zeros_like(first)
        for tokens in logits.parts:
            part = logits.part(tokens)
            self.normaliser.add(part)
            inside, column = self._place(tokens)
            target = torch.where(inside, part.gather(1, column), target)
            if self.label_smoothing:
                above_first = above_first + (part - first).sum(dim=1, keepdim=True)
        largest, smoothing = self.normaliser.largest, self.label_smoothing
        below = (1 - smoothing) * (largest - target)
        if smoothing:
            below = below + smoothing * ((largest - first) - above_first / self.num_classes)
        return torch.where(self.ignored, 0, (below + self.normaliser.total.log())[:, 0])

    def gradient(self, tokens: slice, logits: Tensor) -> Tensor:
        inside, column = self._place(tokens)
        gradient = self.normaliser.log_probs(logits).exp() - self.label_smoothing / self.num_classes
        gradient.scatter_add_(1, column, torch.where(inside, self.label_smoothing - 1, 0).to(gradient.dtype))
        return torch.where(self.ignored[:, None], 0, gradient)

    def _place(self, tokens: slice) -> tuple[Tensor, Tensor]:
        """Return whether the targets are among some tokens, and their columns there if so, ``(N, 1)``."""
        column = self.targets[:, None] - tokens.start
        inside = (column >= 0) & (column < tokens.stop - tokens.start)
        return inside, torch.where(inside, column, 0)


def _in_chunks(logits: VocabularyLogits, loss: _Loss) -> Tensor:
    """Return the loss of every position, with its gradient for the hidden states and the head."""
    values: Tensor = _InChunks.apply(logits.hidden, logits.head.weight, logits.head.bias, logits, loss)
    return values


class _InChunks(torch.autograd.Function):
    """A loss whose backward makes the logits again, chunk by chunk, and pulls its gradient back through the head."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, logits: VocabularyLogits, loss: _Loss
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.head, ctx.parts, ctx.loss = logits.head, tuple(logits.parts), loss
        device = hidden.device.type
        ctx.autocast = {"enabled": torch.is_autocast_enabled(device), "dtype": torch.get_autocast_dtype(device)}
        return loss.values(logits)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        for_hidden, for_weight, for_bias, *_ = ctx.needs_input_grad
        # Every chunk adds to the gradient of the hidden states, in full precision; of the head it has rows of its own.
        hidden_grad = torch.zeros_like(hidden, dtype=grad.dtype) if for_hidden else None
        weight_grad = torch.empty_like(weight) if for_weight else None
        bias_grad = torch.empty_like(bias) if for_bias else None
        with torch.autocast(hidden.device.type, **ctx.autocast):
            for tokens in ctx.parts:
                h, w = hidden.detach().requires_grad_(for_hidden), weight.detach()[tokens].requires_grad_(for_weight)
                b = None if bias is None else bias.detach()[tokens].requires_grad_(for_bias)
                with torch.enable_grad():
                    part = ctx.head.logits(h, w, b)
                part.backward(grad[:, None] * ctx.loss.gradient(tokens, part.detach()))
                if hidden_grad is not None:
                    hidden_grad += h.grad
                if weight_grad is not None:
                    weight_grad[tokens] = w.grad
                if b is not None and bias_grad is not None:
                    bias_grad[tokens] = b.grad
        if hidden_grad is not None:
            hidden_grad = hidden_grad.to(hidden.dtype)
        return hidden_grad, weight_grad, bias_grad, None, None
