"""Distillation losses as pure functions: student first, teacher second, hyperparameters by keyword, values out.

Each gives a value for every row, sample or element, as its docstring says, and the caller reduces them: ``.mean()`` is
the paper's loss, but where the docstring says otherwise. What is a statistic of the batch (relations, spectra, DIST,
the logarithm of a sum) is a scalar. Those that torch reduces in one pass take ``reduction="mean"``.

Half-precision inputs are computed and reduced in float32, also under autocast; float64 stays float64. Gradients flow to
whatever requires them: pass the teacher's tensors without gradient, and not as inference tensors. A shape that doesn't
fit is a ``ValueError``: nothing is broadcast. Where a batch holds nothing to compare (one sample, one class, no valid
triplet) the loss is 0 with zero gradient, and a vector of zeros has no direction: normalised it stays zero, with zero
gradient. Numbers that aren't finite reach the loss.

Losses on logits take rows ``(N, num_classes)``; :func:`rows_of` makes them of maps. Those over the vocabulary of a
language model (``chunked_...``) take what its last layer reads in place of logits. Those of generators and
discriminators take the discriminator's logits of real and of fake images; :func:`diff_augment` is no loss, but what
both see their images through.

No loss carries its method's weight: the docstrings say which reduction the authors' weight belongs to where it differs.
"""

from kdcli.losses.adversarial import discriminator_loss, generator_loss, lecam, lecam_start, lecam_update
from kdcli.losses.common import rows_of
from kdcli.losses.dense import cirkd, cwd, ifvd, pkd, resized, skd
from kdcli.losses.depth import (
    berhu,
    depth_l1,
    fit_scale_and_shift,
    gradient_matching,
    masked_median,
    scale_shift_invariant,
    silog,
    standardize_depth,
)
from kdcli.losses.detection import attention, box_weights, fgd_focal, squared_error
from kdcli.losses.diff_augment import NUM_DRAWS, diff_augment, diff_augment_by
from kdcli.losses.feature import (
    attention_transfer,
    common_grid,
    crd,
    fitnet,
    log_sum,
    mse,
    nst,
    review_kd,
    smooth_l1,
    vid,
)
from kdcli.losses.images import image_l1, image_l2, psnr, resize_image, ssim
from kdcli.losses.logit import deit_hard, deit_soft, dist, dkd, logit_kd
from kdcli.losses.refilled import local_classifier_kl, stochastic_triplet_kl
from kdcli.losses.relational import correlation_congruence, pkt, rkd_angle, rkd_distance, similarity_preserving
from kdcli.losses.segmentation import dice, focal
from kdcli.losses.spectral import spectral_regularization
from kdcli.losses.vocabulary import (
    OutputHead,
    VocabularyLogits,
    chunked_argmax,
    chunked_cross_entropy,
    chunked_divergence,
)

__all__ = [
    "NUM_DRAWS",
    "OutputHead",
    "VocabularyLogits",
    "attention",
    "attention_transfer",
    "berhu",
    "box_weights",
    "chunked_argmax",
    "chunked_cross_entropy",
    "chunked_divergence",
    "cirkd",
    "common_grid",
    "correlation_congruence",
    "crd",
    "cwd",
    "deit_hard",
    "deit_soft",
    "depth_l1",
    "dice",
    "diff_augment",
    "diff_augment_by",
    "discriminator_loss",
    "dist",
    "dkd",
    "fgd_focal",
    "fit_scale_and_shift",
    "fitnet",
    "focal",
    "generator_loss",
    "gradient_matching",
    "ifvd",
    "image_l1",
    "image_l2",
    "lecam",
    "lecam_start",
    "lecam_update",
    "local_classifier_kl",
    "log_sum",
    "logit_kd",
    "masked_median",
    "mse",
    "nst",
    "pkd",
    "pkt",
    "psnr",
    "resize_image",
    "resized",
    "review_kd",
    "rkd_angle",
    "rkd_distance",
    "rows_of",
    "scale_shift_invariant",
    "silog",
    "similarity_preserving",
    "skd",
    "smooth_l1",
    "spectral_regularization",
    "squared_error",
    "ssim",
    "standardize_depth",
    "stochastic_triplet_kl",
    "vid",
]
