"""Weights made dimensionless by gradients: a method pulls at the student's features in proportion to the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from kdcli.base.errors import UserError

_FIRST, _EVERY = 8, 8
"""The gradients are measured in each of the first steps, and then in every so many."""
_KEPT = 0.7
"""Share of the earlier mean in the running mean of the norms."""
_SCALE = 1024.0
"""Gradients are measured of losses so many times as large, where half precision keeps them: the ratio is the same."""


class Balance(nn.Module):
    """Measures what one loss has to be multiplied by for its gradient to be as large as that of the others.

    The gradients are those at the place where the student's features are taken, over the whole batch; their norms are
    averaged over the last measurements, and the factor is the quotient of the means. A loss that is scaled by ``c``
    gets a factor of ``1/c``. Adaptive weights of this kind are those of VQGAN (Esser et al., CVPR 2021, Eq. 7), at the
    decoder's last layer; GradNorm (Chen et al., ICML 2018) balances several tasks likewise.
    """

    reference_norm: Tensor
    own_norm: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reference_norm", torch.zeros(()))
        self.register_buffer("own_norm", torch.zeros(()))

    @staticmethod
    def is_due(step: int) -> bool:
        """Whether the gradients are to be measured in ``step``, counted from 0."""
        return step < _FIRST or step % _EVERY == 0

    def measure(
        self,
        reference: Tensor,
        own: Tensor,
        edges: Sequence[GradientEdge],
        *,
        add_up: Callable[[Tensor], Tensor],
        name: str,
        step: int,
    ) -> None:
        """Take the norms of the gradients of this step into their running means.

        Args:
            reference: weighted sum of the losses that have weights of their own, a scalar.
            own: this loss, unweighted, a scalar.
            edges: where the student's features were taken.
            add_up: sums a tensor over all processes.
            name: of the method, for the error.
            step: counted from 0; the first one begins the means.

        Raises:
            UserError: the logits don't depend on these features.
        """
        norms = []
        for loss in (reference, own):
            found = torch.autograd.grad(
                loss, edges, grad_outputs=torch.full_like(loss, _SCALE), retain_graph=True, allow_unused=True
            )
            gradients = [gradient for gradient in found if gradient is not None]
            if not gradients and not bool(loss.isfinite()):
                return  # it has no graph; training stops with its name
            if not gradients:
                raise UserError(
                    f"The weight of {name} can't be balanced: the student's logits don't depend on the features that it"
                    " reads.",
                    "Name another layer of the student (--feature-layers), or set a weight (weighting: loss).",
                )
            norms.append(sum(gradient.float().square().sum() for gradient in gradients))
        squares = add_up(torch.stack(norms)).sqrt()  # type: ignore[arg-type]  # sums of tensors are tensors
        kept = 0.0 if step == 0 else _KEPT
        self.reference_norm.mul_(kept).add_(squares[0], alpha=1 - kept)
        self.own_norm.mul_(kept).add_(squares[1], alpha=1 - kept)

    def factor(self) -> Tensor:
        """Return the factor, a scalar without gradient; 0 where this loss has no gradient, as at its optimum."""
        is_flat = self.own_norm <= torch.finfo(self.own_norm.dtype).tiny
        return torch.where(is_flat, 0.0, self.reference_norm / self.own_norm.clamp_min(torch.finfo(torch.float32).tiny))
