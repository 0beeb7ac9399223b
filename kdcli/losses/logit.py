"""Losses on logits, ``(N, num_classes)``: of samples, words or positions. Maps become rows by ``rows_of``."""

from __future__ import annotations

import math
import typing

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.base.names import DivergenceName
from kdcli.losses.common import require_labels, require_positive, same_rows, unit, without_autocast
from kdcli.losses.normalize import centre

LOWEST_LOGIT = torch.finfo(torch.float16).min
"""Up to it a teacher's logit is masked: libraries write a type's lowest number where they mean -inf."""


def logit_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    divergence: DivergenceName = "forward_kl",
    beta: float = 0.5,
) -> Tensor:
    """Distillation of logits, ``T² · D(softmax(t/T), softmax(s/T))``, of each row.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531; ``T²`` keeps the
    size of the gradient as the temperature changes. Of the teacher's ``p`` and the student's ``q``, ``D`` is

    - ``"forward_kl"``: ``KL(p ‖ q)``, Hinton's: the student covers all that the teacher holds likely.
    - ``"reverse_kl"``: ``KL(q ‖ p)``: the student keeps to what the teacher holds likely.
    - ``"jensen_shannon"``: ``β KL(p ‖ m) + (1 − β) KL(q ‖ m)`` with ``m = β p + (1 − β) q``, the generalised divergence
      of Agarwal et al., "On-Policy Distillation of Language Models", ICLR 2024, arXiv 2306.13649 (GKD). It is
      symmetric at ``β = 1/2``. It vanishes at both ends: divided by ``β`` it tends to ``KL(p ‖ q)`` as ``β → 0``,
      divided by ``1 − β`` to ``KL(q ‖ p)`` as ``β → 1``.

    A class that the teacher masks (:func:`mask_logits`) has ``p = 0``. Whatever the student gives it counts in
    ``KL(p ‖ q)``, ``p log p`` being 0 there, and in Jensen-Shannon. ``KL(q ‖ p)``, which would be infinite, is that
    over the other classes, both sides' softmax being over these alone, plus ``−log`` of the probability that the
    student gives them. A teacher that masks all classes gives NaN.

    Args:
        student_logits: ``(N, num_classes)``.
        teacher_logits: the same shape, over the same classes in the same order.
        temperature: ``T``; positive.
        divergence: ``D``.
        beta: ``β``, between 0 and 1; of ``"jensen_shannon"`` alone.

    Returns:
        ``(N,)``.
    """
    student_logits, teacher_logits = same_rows(student_logits, teacher_logits)
    require_positive("temperature", temperature)
    require_divergence(divergence, beta)
    student_log_probs = F.log_softmax(student_logits / temperature, dim=-1)
    teacher_log_probs = F.log_softmax(mask_logits(teacher_logits) / temperature, dim=-1)
    outside: Tensor | float = 0.0
    if divergence == "reverse_kl":
        student_log_probs = student_log_probs.masked_fill(teacher_log_probs == -math.inf, -math.inf)
        inside = student_log_probs.logsumexp(dim=-1, keepdim=True)
        student_log_probs, outside = student_log_probs - inside, -inside[..., 0]
    terms, _ = divergence_terms(student_log_probs, teacher_log_probs, divergence, beta)
    return temperature**2 * (terms.sum(dim=-1) + outside)


def mask_logits(teacher_logits: Tensor) -> Tensor:
    """Return a teacher's logits, of any shape, with ``-inf`` for the classes that it masks: up to ``LOWEST_LOGIT``."""
    return teacher_logits.masked_fill(teacher_logits <= LOWEST_LOGIT, -math.inf)


def require_divergence(divergence: DivergenceName, beta: float) -> None:
    """Raise ``ValueError`` unless it is one of :func:`logit_kd`'s with its ``beta``."""
    if divergence not in (names := typing.get_args(DivergenceName)):
        raise ValueError(f"divergence must be one of {', '.join(names)}, got {divergence!r}.")
    if divergence == "jensen_shannon" and not 0 < beta < 1:
        raise ValueError(f"beta must be between 0 and 1, got {beta!r}.")


def divergence_terms(
    student_log_probs: Tensor, teacher_log_probs: Tensor, divergence: DivergenceName, beta: float
) -> tuple[Tensor, Tensor]:
    """Return what each class adds to a divergence of :func:`logit_kd`, and its score for the gradient.

    The sum of the terms over the classes is the divergence; its derivative for the student's logits (those of the
    softmax) is ``score − q · Σ score``, with the student's probabilities ``q``. Both of any shape; ``-inf`` is a
    probability of 0, which no term of ``"reverse_kl"`` may have on the teacher's side alone.
    """
    if divergence == "forward_kl":
        return _relative(teacher_log_probs, student_log_probs), -teacher_log_probs.exp()
    if divergence == "reverse_kl":
        terms = _relative(student_log_probs, teacher_log_probs)
        return terms, terms
    nowhere = (student_log_probs == -math.inf) & (teacher_log_probs == -math.inf)  # where logaddexp has no gradient
    ours, theirs = student_log_probs.masked_fill(nowhere, 0), teacher_log_probs.masked_fill(nowhere, 0)
    mixture = torch.logaddexp(theirs + math.log(beta), ours + math.log1p(-beta))
    of_student = (1 - beta) * _relative(student_log_probs, mixture)
    return beta * _relative(teacher_log_probs, mixture) + of_student, of_student


def _relative(log_probs: Tensor, log_others: Tensor) -> Tensor:
    """Return ``p · (log p − log p')``, and 0 with zero gradient where ``p`` is 0."""
    nothing = log_probs == -math.inf
    return log_probs.exp() * (log_probs.masked_fill(nothing, 0) - log_others.masked_fill(nothing, 0))


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Decoupled distillation, ``T² · (α · TCKD + β · NCKD)``, of each row.

    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, Eq. 7. With ``b = (p_y, 1 − p_y)``,
    the probability of the sample's class against all others, and ``q`` the softmax over the other classes alone,
    ``TCKD = KL(b_t ‖ b_s)`` and ``NCKD = KL(q_t ‖ q_s)``; ``α = 1`` and ``β = 1 − p_y`` of the teacher would be
    :func:`logit_kd`. ``T²`` is the authors' code's. Two classes have ``NCKD = 0``. Classes that the teacher masks
    (:func:`mask_logits`) have probability 0; where those are all but the sample's own, ``NCKD`` is 0.

    Args:
        student_logits: ``(N, num_classes)``, at least two classes.
        teacher_logits: the same shape, over the same classes in the same order.
        labels: the rows' classes, ``(N,)``, int64.
        temperature: ``T``; positive. The paper's is 4 on CIFAR-100, 1 on ImageNet.
        alpha: weight of TCKD.
        beta: weight of NCKD; between 0.5 and 8 in the paper.

    Returns:
        ``(N,)``.
    """
    student_logits, teacher_logits = same_rows(student_logits, teacher_logits)
    require_labels(labels, student_logits.shape[:1])
    require_positive("temperature", temperature)
    if student_logits.shape[-1] < 2:
        raise ValueError("dkd compares a class with the others: it needs at least two classes.")
    student_target, student_others = _decouple(student_logits / temperature, labels)
    teacher_target, teacher_others = _decouple(mask_logits(teacher_logits) / temperature, labels)
    tckd = _relative(teacher_target, student_target).sum(dim=1)
    nckd = _relative(teacher_others, student_others).sum(dim=1)
    return temperature**2 * (alpha * tckd + beta * nckd)


def _decouple(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``log(p_y, 1 − p_y)`` ``(N, 2)`` and the other classes' log-softmax ``(N, num_classes − 1)``."""
    num_classes = logits.shape[-1]
    # The columns other than the label's: those below it as they are, the others shifted by one.
    columns = torch.arange(num_classes - 1, device=logits.device).expand(len(logits), -1)
    target = logits.gather(1, labels[:, None])
    others = logits.gather(1, columns + (columns >= labels[:, None]))
    binary = torch.cat([target, others.logsumexp(dim=1, keepdim=True)], dim=1)
    is_alone = (others == -math.inf).all(dim=1, keepdim=True)
    return binary.log_softmax(dim=1), others.log_softmax(dim=1).masked_fill(is_alone, -math.inf)


@without_autocast
def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """DIST, ``T² · (β · L_inter + γ · L_intra)`` with the Pearson correlation ``ρ`` of probabilities.

    Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536. With the
    probabilities ``Y = softmax(z/T)``, ``L_inter`` is the mean over samples of ``1 − ρ(Y_s[i, :], Y_t[i, :])`` and
    ``L_intra`` the mean over classes of ``1 − ρ(Y_s[:, j], Y_t[:, j])``. ``T²`` is the authors' code's. That code also
    adds 1e-8 to the denominator of ``ρ``, which mutes classes whose probabilities hardly vary; the paper doesn't,
    nor do we. Where one side is constant ``ρ`` is 0, without gradient: a class that the teacher masks in all samples
    has 1 in ``L_intra``. One sample has no ``L_intra``. It is a statistic of the batch.

    Args:
        student_logits: ``(N, num_classes)``; rows may be positions, as pixels in the paper.
        teacher_logits: the same shape, over the same classes in the same order.
        temperature: ``T``; positive.
        beta: weight of the relation between classes.
        gamma: weight of the relation within a class.

    Returns:
        A scalar.
    """
    student_logits, teacher_logits = same_rows(student_logits, teacher_logits)
    require_positive("temperature", temperature)
    student_probs = (student_logits / temperature).softmax(dim=1)
    teacher_probs = (teacher_logits / temperature).softmax(dim=1)
    loss = beta * _correlation_distance(student_probs, teacher_probs)
    if len(student_probs) > 1:
        loss = loss + gamma * _correlation_distance(student_probs.T, teacher_probs.T)
    return temperature**2 * loss


def _correlation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over rows of one minus their Pearson correlation."""
    return 1 - (unit(centre(student.T).T) * unit(centre(teacher.T).T)).sum(dim=1).mean()


def deit_hard(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy of the distillation token with the class that the teacher predicts, of each row.

    Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021, arXiv
    2012.12877: the second term of Eq. 3, without its 1/2 (the first is the class token's cross-entropy with the true
    label). The teacher's label isn't smoothed, as in the paper. No gradient reaches the teacher.

    Args:
        student_logits: of the distillation token, ``(N, num_classes)``.
        teacher_logits: the same shape, over the same classes in the same order.

    Returns:
        ``(N,)``.
    """
    student_logits, teacher_logits = same_rows(student_logits, teacher_logits)
    return F.cross_entropy(student_logits, teacher_logits.argmax(dim=1), reduction="none")


def deit_soft(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Soft distillation of the distillation token, ``τ² · KL(softmax(t/τ) ‖ softmax(s/τ))``, of each row.

    Touvron et al., ICML 2021, arXiv 2012.12877: the second term of Eq. 2, without its ``λ`` (0.1 in the paper, with
    ``τ = 3``). It is :func:`logit_kd` on other logits. The direction of the divergence is that of the authors' code,
    which further divides by ``num_classes``.

    Args:
        student_logits: of the distillation token, ``(N, num_classes)``.
        teacher_logits: the same shape, over the same classes in the same order.
        temperature: ``τ``; positive.

    Returns:
        ``(N,)``.
    """
    return logit_kd(student_logits, teacher_logits, temperature=temperature)
