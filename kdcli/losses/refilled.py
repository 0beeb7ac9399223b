"""The losses of REFILLED: relations between classes that the teacher need not know.

Ye, Lu and Zhan, "Distilling Cross-Task Knowledge via Relationship Matching", CVPR 2020. Both are scalars: triplets and
classes are those of the batch.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdcli.losses.common import (
    MAX_ELEMENTS,
    nothing,
    pairwise_distances,
    require_labels,
    require_positive,
    same_batch,
    unit,
    without_autocast,
)

Mining = Literal["semi_hard", "nearest_farther", "tuples"]


@without_autocast
def stochastic_triplet_kl(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, mining: Mining, margin: float = 0.2
) -> Tensor:
    """Match the probabilities of triplets, ``KL(p_t ‖ p_s)``, mean over the triplets that the student's mining finds.

    REFILLED's stage 1. Embeddings are L2-normalised, ``d`` are Euclidean distances. A triplet is an anchor ``a``,
    another sample ``p`` of its class and a sample ``n`` of another class; ``p_s`` and ``p_t`` are Bernoulli with
    ``sigmoid((d(a, n) − d(a, p)) / τ)``. Mining looks at the student's distances:

    - ``"semi_hard"``: every triplet with ``0 < d(a, n) − d(a, p) ≤ margin``, as in the authors' code.
    - ``"nearest_farther"``: for every ``(a, p)`` the nearest ``n`` with ``d(a, n) > d(a, p)``, or the farthest ``n``
      where there is none.
    - ``"tuples"``: every ``(a, p)`` with all its semi-hard ``n``: the distributions are softmaxes of ``−d(a, ·) / τ``
      over the positive and those negatives, and the mean is over ``(a, p)``. The authors' later code.

    The authors' code multiplies the mean over triplets by 500 (1000, of a mean over both outcomes), and that over
    tuples by 1000. Pairs ``(a, p)`` are taken in chunks, with all their ``n``, and recomputed in the backward: no
    tensor has more than ``max(2²², B · max(B, d))`` elements. Without a triplet the loss is 0.

    Args:
        student: embeddings ``(B, ...)``.
        teacher: embeddings ``(B, ...)``, of any width.
        labels: the samples' classes, ``(B,)``, int64; the teacher need not know them.
        temperature: ``τ``; positive. 4 in the authors' code.
        mining: which triplets.
        margin: of semi-hard negatives, in distances between points on the unit sphere; positive. ``"nearest_farther"``
            has none.
    """
    student, teacher = same_batch(student, teacher)
    require_labels(labels, student.shape[:1])
    require_positive("temperature", temperature)
    require_positive("margin", margin)
    if mining not in _TERMS:
        raise ValueError(f"mining must be one of {', '.join(_TERMS)}, got {mining!r}.")
    student_distances, teacher_distances = pairwise_distances(unit(student)), pairwise_distances(unit(teacher))
    same_class = labels[:, None] == labels
    pairs = (same_class & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)).nonzero()
    # Not a plain zero: NaN gives no triplet, and would go unnoticed.
    total, count = nothing(student_distances), torch.zeros((), dtype=torch.int64, device=student.device)
    for chunk in pairs.split(max(1, MAX_ELEMENTS // len(labels))):
        chunk_total, chunk_count = checkpoint(
            _TERMS[mining],
            student_distances,
            teacher_distances,
            chunk,
            same_class,
            temperature,
            margin,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        total, count = total + chunk_total, count + chunk_count
    return total / count.clamp_min(1)


def _semi_hard(from_anchor: Tensor, to_positive: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """Return which samples are semi-hard negatives of the pairs, ``(M, B)``."""
    excess = from_anchor - to_positive
    return negatives & (excess > 0) & (excess <= margin)


def _bernoulli_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``KL(sigmoid(t) ‖ sigmoid(s))`` of Bernoulli distributions, elementwise."""
    return F.softplus(student) - F.softplus(teacher) - teacher.sigmoid() * (student - teacher)


def _semi_hard_terms(
    student: Tensor, teacher: Tensor, pairs: Tensor, same_class: Tensor, temperature: float, margin: float
) -> tuple[Tensor, Tensor]:
    """Return the sum over the triplets of ``pairs`` ``(M, 2)``, and how many there are."""
    anchors, positives = pairs.T
    from_anchor, to_positive = student[anchors], student[anchors, positives, None]
    mined = _semi_hard(from_anchor, to_positive, ~same_class[anchors], margin)
    terms = _bernoulli_kl(
        (from_anchor - to_positive) / temperature,
        (teacher[anchors] - teacher[anchors, positives, None]) / temperature,
    )
    return torch.where(mined, terms, 0).sum(), mined.sum()


def _nearest_farther_terms(
    student: Tensor, teacher: Tensor, pairs: Tensor, same_class: Tensor, temperature: float, margin: float
) -> tuple[Tensor, Tensor]:
    """Return the sum over ``pairs`` ``(M, 2)`` with their one negative each, and how many have a negative."""
    anchors, positives = pairs.T
    from_anchor, negatives = student.detach()[anchors], ~same_class[anchors]
    farther = negatives & (from_anchor > from_anchor.gather(1, positives[:, None]))
    nearest = torch.where(farther, from_anchor, torch.inf).argmin(dim=1)
    farthest = torch.where(negatives, from_anchor, -torch.inf).argmax(dim=1)
    negative = torch.where(farther.any(dim=1), nearest, farthest)
    terms = _bernoulli_kl(
        (student[anchors, negative] - student[anchors, positives]) / temperature,
        (teacher[anchors, negative] - teacher[anchors, positives]) / temperature,
    )
    valid = negatives.any(dim=1)
    return torch.where(valid, terms, 0).sum(), valid.sum()


def _tuple_terms(
    student: Tensor, teacher: Tensor, pairs: Tensor, same_class: Tensor, temperature: float, margin: float
) -> tuple[Tensor, Tensor]:
    """Return the sum over the tuples of ``pairs`` ``(M, 2)``, and how many of them have a negative."""
    anchors, positives = pairs.T
    from_anchor = student[anchors]
    mined = _semi_hard(from_anchor, student[anchors, positives, None], ~same_class[anchors], margin)
    # A pair without a negative is a softmax over the positive alone: its divergence is 0.
    members = mined | F.one_hot(positives, len(student)).bool()
    student_log_probs = torch.where(members, -from_anchor / temperature, -torch.inf).log_softmax(dim=1)
    teacher_log_probs = torch.where(members, -teacher[anchors] / temperature, -torch.inf).log_softmax(dim=1)
    difference = torch.where(members, teacher_log_probs, 0) - torch.where(members, student_log_probs, 0)
    return (teacher_log_probs.exp() * difference).sum(), mined.any(dim=1).sum()


_TERMS = {"semi_hard": _semi_hard_terms, "nearest_farther": _nearest_farther_terms, "tuples": _tuple_terms}


@without_autocast
def local_classifier_kl(
    student_logits: Tensor,
    teacher_embedding: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    centers: Tensor | None = None,
) -> Tensor:
    """Match the classifier of the teacher's class centres, ``KL(softmax(t/τ) ‖ softmax(s/τ))``, mean over samples.

    REFILLED's stage 2. ``s`` are the student's logits for the classes in the batch, ``t`` the teacher's similarity to
    the centres of those classes: ``−‖z − c‖²`` with ``c`` the mean embedding of the class in the batch, as in the
    paper, or ``z · c / ‖c‖`` with ``centers``, as in the authors' later code. The teacher's embeddings are taken as
    they are. There is no factor ``τ²``; the authors' code weighs the loss by 100. One class in the batch gives 0.

    Args:
        student_logits: ``(B, num_classes)``.
        teacher_embedding: ``(B, d_t)``.
        labels: the samples' classes, ``(B,)``, int64 in ``[0, num_classes)``.
        temperature: ``τ``; positive. 2 in the authors' code.
        centers: ``None`` for those of the batch, or the mean teacher embedding of every class over the training set,
            ``(num_classes, d_t)``.
    """
    if student_logits.ndim != 2:
        raise ValueError(f"Logits must have the shape (batch, num_classes), got {tuple(student_logits.shape)}.")
    student_logits, embedding = same_batch(student_logits, teacher_embedding)
    require_labels(labels, student_logits.shape[:1])
    require_positive("temperature", temperature)
    classes, members = labels.unique(return_inverse=True)
    if centers is None:
        one_hot = F.one_hot(members, len(classes)).to(embedding.dtype)
        local = (one_hot.T @ embedding) / one_hot.sum(dim=0)[:, None]
        teacher_logits = -torch.cdist(embedding, local, compute_mode="donot_use_mm_for_euclid_dist").square()
    else:
        expected = (student_logits.shape[1], embedding.shape[1])
        if centers.shape != expected:
            raise ValueError(f"centers must have the shape {expected}, got {tuple(centers.shape)}.")
        teacher_logits = embedding @ unit(centers[classes].to(embedding.dtype)).T
    return F.kl_div(
        (student_logits[:, classes] / temperature).log_softmax(dim=1),
        (teacher_logits / temperature).log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )
