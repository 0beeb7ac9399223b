"""Methods with an adversary: modules that are trained against the student, in a phase of their own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

from torch import Tensor, nn

from kdcli.config.methods import AdversaryOptions
from kdcli.data import AnyBatch
from kdcli.methods.base import Method
from kdcli.methods.share import Share
from kdcli.models.base import Model
from kdcli.models.outputs import ModelOutput


class Scene:
    """What a method with an adversary has at hand in one step.

    Args:
        batch: of this process, on its device.
        student: the model that is trained, to be run once more.
        teacher: frozen, to be run on whatever the method makes; None without one.
        teacher_output: what the method's ``teacher_reads`` name, of the batch's own samples, without gradient.
        run: gives :attr:`output`.
        gather: of a tensor (b, ...) of this process the rows of all processes, with gradient.
        turn: which of the phase's steps on this batch it is, from 0.
        turns: how many there are.
    """

    def __init__(
        self,
        batch: AnyBatch,
        student: Model,
        teacher: Model | None,
        teacher_output: ModelOutput | None,
        run: Callable[[], ModelOutput],
        gather: Callable[[Tensor], Tensor],
        *,
        turn: int = 0,
        turns: int = 1,
    ) -> None:
        self.batch, self.student, self.teacher, self.teacher_output = batch, student, teacher, teacher_output
        self.gather, self.turn, self.turns = gather, turn, turns
        self._run = run

    @cached_property
    def output(self) -> ModelOutput:
        """The student's outputs of the batch: what ``student_reads`` name, at least.

        With gradient in the student's phase; in the adversary's the student is run, without gradient, when they are
        first asked for.
        """
        return self._run()


@dataclass(frozen=True)
class Losses:
    """What one side minimises in a step: the sum of its terms.

    Attributes:
        terms: by name, weighted: a :class:`Share` of a mean over this process's rows, or a scalar that is of the whole
            batch already (made of what :attr:`Scene.gather` returned).
        watched: features (b, d) of this process's rows whose size and spread are recorded, so that a collapse is
            noticed.
    """

    terms: Mapping[str, Tensor | Share]
    watched: Mapping[str, Tensor] = field(default_factory=dict)

    def whole(self) -> dict[str, Tensor]:
        """Return the terms of all processes' rows."""
        return {name: term.whole() if isinstance(term, Share) else term for name, term in self.terms.items()}


class AdversarialMethod(Method):
    """A method with an adversary, which has a phase of its own with an optimiser of its own.

    In the student's phase :meth:`student_loss` is minimised by the student and by all of the method's parameters that
    are not the adversary's (a second generator, say); in the other phase :meth:`adversary_loss` by the adversary alone.
    Each side gets no gradient in the other's phase. All tensors are the method's: checkpoints have them.

    What is random in either is drawn from seed, samples' ids, view and turn, so that a resumed run and several
    processes give the same.

    Attributes:
        adversary_name: what its phase is called, after the method's own name.
        adversary_first: whether it is stepped before the student for each batch.
        adversary_options: rate, betas and steps of its optimiser.
    """

    scope = "local"
    adversary_name: ClassVar[str] = "discriminator"
    adversary_first: ClassVar[bool] = True

    def __init__(self, options: AdversaryOptions) -> None:
        super().__init__(options.weight)
        self.adversary_options = options

    @property
    @abstractmethod
    def adversary(self) -> nn.Module:
        """The modules that the adversary's phase trains, out of the method's own."""

    @abstractmethod
    def student_loss(self, scene: Scene) -> Losses:
        """Return what the student minimises; the adversary is frozen."""

    @abstractmethod
    def adversary_loss(self, scene: Scene) -> Losses:
        """Return what the adversary minimises; student and teacher are frozen."""

    def sides_in(self, scene: Scene) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what each of :meth:`projections` is applied to, as :meth:`sides`; by default that of the outputs."""
        yield from self.sides(scene.output, scene.teacher_output)

    def forward(
        self, student: ModelOutput, teacher: ModelOutput | None, targets: Tensor, samples: Tensor
    ) -> Tensor | Share:
        """Refuse: outputs alone are not enough, :meth:`student_loss` takes a scene.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{type(self).__name__} has a loss in a scene alone")


def sides_of(method: Method, scene: Scene) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what each of a method's projectors is applied to in a scene: both sides' features or maps."""
    if isinstance(method, AdversarialMethod):
        return method.sides_in(scene)
    return method.sides(scene.output, scene.teacher_output)


def turned(batch: AnyBatch, turn: int) -> AnyBatch:
    """Return the batch with other views, so that what is drawn by (sample, view) is drawn anew in each turn.

    Args:
        batch: whose views are below 2 ** 40, as epochs are.
        turn: from 0, which leaves them.
    """
    return batch if turn == 0 else replace(batch, view=batch.view + turn * 2**40, host=None)


def spread_of(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return two scalars of features (B, d): their mean Euclidean norm, and the root of their summed variance."""
    features = features.float()
    return features.norm(dim=1).mean(), features.var(dim=0, correction=0).sum().sqrt()
