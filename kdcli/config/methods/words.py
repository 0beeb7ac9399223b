"""What methods are called elsewhere: in papers, in other packages, in people's scripts."""

from __future__ import annotations

from collections.abc import Mapping

OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "kd": ("logit_kd",),
    "hinton": ("logit_kd",),
    "vanilla_kd": ("logit_kd",),
    "vanilla": ("logit_kd",),
    "kl": ("logit_kd",),
    "kl_div": ("logit_kd",),
    "kldiv": ("logit_kd",),
    "soft_target": ("logit_kd",),
    "soft_targets": ("logit_kd",),
    "soft_labels": ("logit_kd",),
    "logits": ("logit_kd", "dkd", "dist"),
    "pixel_kd": ("logit_kd", "cwd_logits"),
    "decoupled": ("dkd",),
    "hint": ("fitnet",),
    "hints": ("fitnet",),
    "fitnets": ("fitnet",),
    "at": ("attention_transfer",),
    "attention": ("attention_transfer",),
    "sp": ("similarity_preserving",),
    "similarity": ("similarity_preserving",),
    "cc": ("correlation_congruence",),
    "rkd": ("rkd_distance", "rkd_angle"),
    "relational": ("rkd_distance", "rkd_angle", "pkt"),
    "contrastive": ("crd",),
    "review": ("review_kd",),
    "reviewkd": ("review_kd",),
    "feature": ("projection",),
    "features": ("projection",),
    "projector": ("projection",),
    "vkd": ("projection",),
    "learning_to_project": ("projection",),
    "spectral": ("spectral_regularization",),
    "spectral_regularisation": ("spectral_regularization",),
    "token": ("deit",),
    "distillation_token": ("deit",),
    "channel_wise": ("cwd",),
    "structured": ("skd",),
    "masked": ("mgd",),
    "alone": ("none",),
    "scratch": ("none",),
    "baseline": ("none",),
    "supervised": ("none",),
    "ce": ("none",),
    "cross_entropy": ("none",),
}
"""Lower case with underscores -> what ``--method`` takes."""


def other_method_names(name: str) -> tuple[str, ...]:
    """Return the methods of kdcli that are called ``name`` elsewhere."""
    plain = name.lower().replace("-", "_").strip("_")
    return OTHER_NAMES.get(plain) or OTHER_NAMES.get(plain.removesuffix("_loss").removesuffix("_kd"), ())
