"""The one trainable module of a run: student, projectors, losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.optim import Optimizer

from kdcli.base.reads import Reads, join
from kdcli.config.run import RunConfig
from kdcli.data import AnyBatch
from kdcli.machine.gather import gather_batch, gather_list, gather_rows, sum_over
from kdcli.machine.team import Team
from kdcli.methods.balance import Balance
from kdcli.methods.base import Method
from kdcli.methods.projected import Projected
from kdcli.methods.share import Share
from kdcli.models.base import Model
from kdcli.models.outputs import ModelOutput
from kdcli.models.taps import edges_of
from kdcli.projectors.maps import Projector
from kdcli.training.optim import make_optimizer, make_schedule
from kdcli.training.phases import Objective, Part, Phase

PHASE = "distillation"


class Distiller(Objective):
    """Student and methods, trained in one phase; only it is wrapped for training, and only called through the wrapper.

    Args:
        student: the model that is trained.
        methods: the objectives by unique name.
    """

    def __init__(self, student: Model, methods: dict[str, Method]) -> None:
        super().__init__()
        self.student = student
        self.methods = nn.ModuleDict(methods)
        self.balances = nn.ModuleDict({name: Balance() for name, method in methods.items() if method.is_balanced})
        self.step = 0

    def each_method(self) -> Iterable[tuple[str, Method]]:
        """Yield the methods with their names."""
        yield from self.methods.items()  # type: ignore[misc]  # a ModuleDict forgets the class of its values

    @property
    def student_reads(self) -> Reads:
        """What any method reads of the student."""
        return join(method.student_reads for _, method in self.each_method())

    @property
    def teacher_reads(self) -> Reads:
        """What any method reads of the teacher."""
        return join(method.teacher_reads for _, method in self.each_method())

    def phases(self, config: RunConfig, updates: int) -> list[Phase]:
        """Return the only phase: student and methods, with every orthogonal projector's retraction after each step.

        Raises:
            UserError: for an optimiser that can't be had.
        """
        optim = config.optim
        optimizer = make_optimizer(self.parameter_groups(lr=optim.lr, weight_decay=optim.weight_decay), optim)
        self.attach(optimizer)
        return [Phase(PHASE, optimizer, make_schedule(optimizer, optim, updates))]

    def parts(self) -> dict[str, Part]:
        """Return student, methods and balances."""
        return {
            "student": Part(self.student, "student"),
            "methods": Part(self.methods, "projectors"),
            "balances": Part(self.balances, "balanced weights"),
        }

    def kept_tensors(self) -> dict[str, Tensor]:
        """Return the methods' tensors, projectors among them."""
        return self.methods.state_dict()

    def look_ahead(self, outputs: Callable[[], Iterable[tuple[ModelOutput, Tensor]]], team: Team) -> None:
        """Show the teacher's outputs to the methods that ask for them, a pass for each."""
        for _, method in self.each_method():
            if method.looks_ahead:
                method.look(outputs(), team)

    def forward(self, batch: AnyBatch, teacher_outputs: ModelOutput | None, *, phase: str = PHASE) -> dict[str, Tensor]:
        """Return every method's unweighted loss by its name, and their weighted sum as ``loss``.

        Beside them, without gradient, the factors ``weight/NAME`` of balanced losses, and two statistics of every
        feature of the student that a method reads, of a map's mean over positions: ``feature_norm/TAP``, the mean
        Euclidean norm, and ``feature_std/TAP``, the root of the variance over the batch, summed over the channels.
        Several training processes each give their share of the batch, and each gets the losses of the whole: a method
        of scope ``batch`` sees the samples of all, of one of scope ``local`` the shares are added up.

        Args:
            batch: of images or texts, with targets.
            teacher_outputs: what the methods read of the teacher, without gradient; None without a teacher.
            phase: there is one.
        """
        is_due = bool(self.balances) and self.training and Balance.is_due(self.step)
        # In a compiled pass there is no place between its outputs where gradients could be looked at.
        with torch.compiler.set_stance("force_eager") if is_due else nullcontext():
            own_output = self.student(self.student.prepare(batch), self.student_reads)
        own = own_output, teacher_outputs, batch.targets, batch.samples
        whole = self._gather(batch, own_output, teacher_outputs)
        terms: dict[str, Tensor] = {}
        for name, method in self.each_method():
            found = method(*(whole if method.scope == "batch" else own))
            terms[name] = found.whole() if isinstance(found, Share) else found
        total: Any = sum(method.weight * terms[name] for name, method in self.each_method() if not method.is_balanced)
        if is_due:
            for name, method, balance in self._balanced():
                edges = _edges(method, own_output)
                balance.measure(total, terms[name], edges, add_up=sum_over, name=name, step=self.step)
        for name, method, balance in self._balanced():
            terms[f"weight/{name}"] = weight = method.weight * balance.factor()
            total = total + weight * terms[name]
        terms["loss"] = total
        return terms | _statistics(own_output, whole[0], _gatherer(batch))

    def _gather(
        self, batch: AnyBatch, student: ModelOutput, teacher: ModelOutput | None
    ) -> tuple[ModelOutput, ModelOutput | None, Any, Tensor]:
        """Return what methods of scope ``batch`` read of the samples of all processes, and nothing else."""
        methods = [method for _, method in self.each_method() if method.scope == "batch"]
        targets, gather = batch.targets, _gatherer(batch)
        if not methods:
            return ModelOutput(), None, targets, batch.samples
        ours = student.only(join(method.student_reads for method in methods))
        theirs = join(method.teacher_reads for method in methods)
        return (
            ours.map(gather),
            None if teacher is None else teacher.only(theirs).map(gather),
            gather(targets) if isinstance(targets, Tensor) else gather_list(targets),
            gather_batch(batch.samples),
        )

    def _balanced(self) -> Iterable[tuple[str, Method, Balance]]:
        for name, method in self.each_method():
            if method.is_balanced:
                balance = self.balances[name]
                assert isinstance(balance, Balance)
                yield name, method, balance

    def parameter_groups(self, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups.

        Biases, norms and other vectors get no weight decay, and neither do parameters that a timm model exempts
        (position embeddings) or a projector that asks for none; ``lr_scale`` is a projector's own, 1 for all else.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        undecayed = set(getattr(self.student.module, "no_weight_decay", set)())
        for name, parameter in self.student.module.named_parameters():
            decay = 0.0 if parameter.ndim <= 1 or name in undecayed else weight_decay
            groups.setdefault((1.0, decay), []).append(parameter)
        projected = {
            id(parameter): found for found in self.projections().values() for parameter in found.projector.parameters()
        }
        for _, method in self.each_method():
            for parameter in method.parameters():
                found = projected.get(id(parameter))
                decays = (found is None or found.projector.weight_decay) and parameter.ndim > 1
                scale = 1.0 if found is None else found.lr_scale
                groups.setdefault((scale, weight_decay if decays else 0.0), []).append(parameter)
        return [
            # timm's schedules set every group's rate to the schedule's value times the group's lr_scale
            {"params": parameters, "lr": lr, "lr_scale": scale, "weight_decay": decay}
            for (scale, decay), parameters in groups.items()
        ]

    def projections(self) -> dict[str, Projected]:
        """Return every projector with what normalises its features, by its method's name.

        Where a method has several, ``.0``, ``.1`` and so on come after the name, in the order of its layers (ReviewKD's
        deepest first).
        """
        found: dict[str, Projected] = {}
        for name, method in self.each_method():
            own = method.projections()
            found |= {name if len(own) == 1 else f"{name}.{number}": pair for number, pair in enumerate(own)}
        return found

    def projector_matrices(self) -> dict[str, Tensor]:
        """Return ``matrix()`` of every projector that is a matrix, named as in :meth:`projections`, detached."""
        matrices = {name: getattr(found.projector, "matrix", None) for name, found in self.projections().items()}
        return {name: matrix().detach() for name, matrix in matrices.items() if matrix is not None}

    def embedding_projector(self) -> nn.Module | None:
        """Return what maps the student's pooled features into the space of the teacher's; None where nothing does."""
        found = (method.embedding_projector() for _, method in self.each_method())
        return next((projector for projector in found if projector is not None), None)

    def attach(self, optimizer: Optimizer) -> None:
        """Register what has to follow each step of ``optimizer``, such as an orthogonal projector's retraction."""
        for module in self.modules():
            if isinstance(module, Projector):
                module.attach(optimizer)


def _gatherer(batch: AnyBatch) -> Callable[[Tensor], Tensor]:
    """Return what gathers rows: samples are as many in every process, which spares telling one another how many."""
    return gather_rows if batch.has_rows else gather_batch


@torch.no_grad()
def _statistics(own: ModelOutput, whole: ModelOutput, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return norm and spread of every feature of ``own``, over all processes; ``whole`` has some gathered already."""
    terms: dict[str, Tensor] = {}
    for tap in dict.fromkeys((*own.maps, *own.features)):
        if tap not in own.features:
            features = gather(own.maps[tap].float().mean(dim=(2, 3)))
        else:
            features = whole.features[tap] if tap in whole.features else gather(own.features[tap])
        terms[f"feature_norm/{tap}"] = features.float().norm(dim=1).mean()
        terms[f"feature_std/{tap}"] = features.float().var(dim=0, correction=0).sum().sqrt()
    return terms


def _edges(method: Method, output: ModelOutput) -> list[GradientEdge]:
    """Return where ``method`` takes its features, or else the heads that it reads, out of this process's outputs."""
    reads = method.student_reads
    if reads.taps:
        return [edge for tap in reads.taps for edge in output.edges.get(tap, ())]
    heads = [output.heads[name] for name in reads.heads]
    return [edge for head in heads if isinstance(head, Tensor) for edge in edges_of(head)]
