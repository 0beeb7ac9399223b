"""Trainable maps between the student's and the teacher's feature space.

Every projector is built from ``(student_dim, teacher_dim)``, acts on the last dimension of its side's features and has
the attributes ``direction`` and ``weight_decay``. The linear ones have no bias: ``matrix()`` is the whole map, and
``forward(features)`` is ``features @ matrix()``. Parameters are float32; under autocast only the product is in half
precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from kdcli.base.names import OrthogonalMap, ProjectorName
from kdcli.projectors.stiefel import retract_

Direction = Literal["student_to_teacher", "teacher_to_student"]


class Projector(nn.Module, ABC):
    """Base of the projectors.

    Attributes:
        direction: which side's features ``forward`` takes, and which space it maps them to.
        weight_decay: whether the optimiser may decay the parameters.
        student_dim: channels of the student's features.
        teacher_dim: channels of the teacher's features.

    Raises:
        ValueError: if a dimension isn't positive.
    """

    direction: ClassVar[Direction]
    weight_decay: ClassVar[bool] = True

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        if min(student_dim, teacher_dim) < 1:
            raise ValueError(f"Dimensions must be positive, got student {student_dim} and teacher {teacher_dim}.")
        self.student_dim = student_dim
        self.teacher_dim = teacher_dim

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``; ``in`` is the width of the side that ``direction`` names first."""

    def attach(self, optimizer: Optimizer) -> RemovableHandle | None:
        """Register what has to follow every step of ``optimizer``; nothing by default."""
        return None

    def extra_repr(self) -> str:
        """Return the dimensions, for ``repr``."""
        return f"student_dim={self.student_dim}, teacher_dim={self.teacher_dim}"


class _MatrixProjector(Projector):
    """A projector that is one matrix ``weight`` of shape ``(in, out)``."""

    weight: Tensor

    def forward(self, features: Tensor) -> Tensor:
        weight = self.weight
        return features.to(weight.dtype) @ weight

    def matrix(self) -> Tensor:
        """Return ``P``, ``(in, out)``, as the tensor that is trained: not a copy."""
        return self.weight


class LinearProjector(_MatrixProjector):
    """``Z_s P`` with an unconstrained ``P`` of shape ``(d_s, d_t)``: FitNets (ICLR 2015), a baseline.

    Initialised like ``nn.Linear``: uniform in ``±1/√d_s``.
    """

    direction = "student_to_teacher"

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__(student_dim, teacher_dim)
        self.weight = nn.Parameter(torch.empty(student_dim, teacher_dim).uniform_(-1, 1) * student_dim**-0.5)


class MLPProjector(Projector):
    """``relu(Z_s W_1 + b_1) W_2 + b_2``, both layers ``d_t`` wide: a baseline. It has no ``matrix()``."""

    direction = "student_to_teacher"

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__(student_dim, teacher_dim)
        self.hidden = nn.Linear(student_dim, teacher_dim)
        self.output = nn.Linear(teacher_dim, teacher_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(..., d_s)`` to ``(..., d_t)``."""
        return self.output(F.relu(self.hidden(features.to(self.hidden.weight.dtype))))


class OrthogonalProjector(_MatrixProjector):
    """``Z_s P`` with ``P`` of shape ``(d_s, d_t)`` on the Stiefel manifold: VkD (CVPR 2024, arXiv 2403.06213).

    ``P Pᵀ = I`` for ``d_s ≤ d_t``, so that every inner product of student features is preserved; ``Pᵀ P = I``
    otherwise. Initialised uniformly on the manifold.

    With ``orthogonal_map="retraction"`` (ours) ``weight`` is a plain parameter, which :meth:`attach` brings back to the
    manifold after every optimiser step; without it, ``P`` drifts off. An average of such matrices, as in a moving
    average of the weights, isn't on the manifold: see :func:`kdcli.projectors.stiefel.retract_`.

    The other maps are those of ``torch.nn.utils.parametrizations.orthogonal``, for comparison: orthogonal by
    construction, at a much higher cost. They orthonormalise rows or columns by the same rule of shape. Their state dict
    holds the parametrisation's own tensors (``parametrizations.weight.*``) instead of ``weight``, as those are what a
    resumed training needs; save ``matrix()`` for everything else. Weight decay isn't just useless there: torch's
    ``"householder"`` truncates a diagonal of ±1 to integers, and the slightest decay makes ``P`` zero.
    """

    direction = "student_to_teacher"
    weight_decay = False

    def __init__(self, student_dim: int, teacher_dim: int, *, orthogonal_map: OrthogonalMap = "retraction") -> None:
        super().__init__(student_dim, teacher_dim)
        if orthogonal_map not in get_args(OrthogonalMap):
            raise ValueError(f"Unknown map {orthogonal_map!r}; valid are {', '.join(get_args(OrthogonalMap))}.")
        self.orthogonal_map = orthogonal_map
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(student_dim, teacher_dim)))
        if orthogonal_map != "retraction":
            parametrizations.orthogonal(self, "weight", orthogonal_map=orthogonal_map)

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Retract ``P`` after every step of ``optimizer``, until the returned handle's ``remove()`` is called.

        A wrapper with the real optimiser in its attribute ``optimizer``, such as Accelerate's, may be passed as well.
        With one of torch's maps the hook does nothing. A copy of the projector isn't attached to anything.

        Raises:
            ValueError: if ``optimizer`` doesn't train ``P``.
        """
        optimizer = getattr(optimizer, "optimizer", optimizer)
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not all(id(parameter) in trained for parameter in self.parameters()):
            raise ValueError("The projector's parameters are not among the optimiser's: add them, then attach.")
        # It makes `step` run hooks. Optimizer.__init__ has done so; a wrapper that skips it (timm's Lookahead) would
        # only do so in its first zero_grad, which may come after the first step.
        optimizer._patch_step_function()
        return optimizer.register_step_post_hook(lambda *_: self._retract())

    def _retract(self) -> None:
        if self.orthogonal_map == "retraction":
            retract_(self.weight)

    def extra_repr(self) -> str:
        """Return the dimensions and the map, for ``repr``."""
        return f"{super().extra_repr()}, orthogonal_map={self.orthogonal_map!r}"


class InvertedProjector(_MatrixProjector):
    """``Z_t P`` with an unconstrained ``P`` of shape ``(d_t, d_s)``: Learning to Project (BMVC 2024, arXiv 2403.14494).

    Training may push singular values of ``P`` to zero and so discard what the student's task has no use for. It starts
    with all of them equal to 1 (ours), so that whatever its spectrum shows was learnt.
    """

    direction = "teacher_to_student"

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__(student_dim, teacher_dim)
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(teacher_dim, student_dim)))


def projector_name(projector: Projector) -> str:
    """Return what ``projector`` is called in a config."""
    return type(projector).__name__.removeprefix("Parametrized").removesuffix("Projector").lower()


def describe_projector(projector: Projector, run: str) -> str:
    """Return a heading for what is drawn of the projector of ``run``, with the map that keeps an orthogonal one so."""
    how = f" ({projector.orthogonal_map})" if isinstance(projector, OrthogonalProjector) else ""
    return f"{projector_name(projector).capitalize()} projector{how} of {run}"


def restore_projector(
    name: ProjectorName, tensors: Mapping[str, Tensor], student_dim: int, *, orthogonal_map: OrthogonalMap
) -> Projector:
    """Build the projector called ``name`` from its state dict, which tells the teacher's width."""
    key = "output.weight" if name == "mlp" else "weight"
    found = [tensor for own, tensor in tensors.items() if own == key or own.startswith("parametrizations.weight.")]
    width = next(tensor.shape[1] for tensor in found if tensor.ndim == 2)
    projector = build_projector(name, student_dim, width, orthogonal_map=orthogonal_map)
    projector.load_state_dict(dict(tensors))
    return projector


def linear_layers(projector: Projector) -> list[nn.Linear | nn.ReLU]:
    """Return a projector as torch's own layers, one after the other, for use without kdcli."""
    if isinstance(projector, MLPProjector):
        return [projector.hidden, nn.ReLU(), projector.output]
    assert isinstance(projector, _MatrixProjector)
    matrix = projector.matrix().detach()
    layer = nn.Linear(matrix.shape[0], matrix.shape[1], bias=False)
    layer.weight = nn.Parameter(matrix.T.contiguous())
    return [layer]


def build_projector(
    name: ProjectorName, student_dim: int, teacher_dim: int, *, orthogonal_map: OrthogonalMap = "retraction"
) -> Projector:
    """Build the projector called ``name``; ``orthogonal_map`` counts for ``"orthogonal"`` only.

    Raises:
        ValueError: for another name, or a dimension that isn't positive.
    """
    match name:
        case "linear":
            return LinearProjector(student_dim, teacher_dim)
        case "mlp":
            return MLPProjector(student_dim, teacher_dim)
        case "orthogonal":
            return OrthogonalProjector(student_dim, teacher_dim, orthogonal_map=orthogonal_map)
        case "inverted":
            return InvertedProjector(student_dim, teacher_dim)
    raise ValueError(f"Unknown projector {name!r}; valid are {', '.join(get_args(ProjectorName))}.")
