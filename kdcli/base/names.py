"""Names that recipes, losses and projectors share."""

from __future__ import annotations

from typing import Literal

Relation = Literal["same", "cross", "random", "none"]


ProjectorName = Literal["linear", "mlp", "orthogonal", "inverted"]


NormalizeName = Literal["none", "layer_norm", "standardize", "whiten"]


DistanceName = Literal["mse", "smooth_l1", "log_sum"]


DivergenceName = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


OrthogonalMap = Literal["retraction", "matrix_exp", "cayley", "householder"]


Quantization = Literal["int8", "int4"]


AdversarialName = Literal["hinge", "lsgan", "non_saturating"]


DiffAugmentName = Literal["color", "translation", "cutout"]
