"""The one trainable module of a run: student, projectors, losses, and adversaries where methods have any."""

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
from kdcli.methods.adversary import AdversarialMethod, Losses, Scene, spread_of
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
    """Student and methods, trained in one phase, and each method's adversary in another.

    Only it is wrapped for training, and only called through the wrapper.

    Args:
        student: the model that is trained.
        methods: the objectives by unique name.
        teacher: frozen; what methods with an adversary may run on samples that they make. It is no part of the module.
    """

    def __init__(self, student: Model, methods: dict[str, Method], *, teacher: Model | None = None) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher,)  # out of the module's sight: it is neither trained nor kept
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

    def adversaries(self) -> dict[str, tuple[str, AdversarialMethod]]:
        """Return the methods that have an adversary, with their names, by the names of the adversaries' phases."""
        return {
            f"{name}.{method.adversary_name}": (name, method)
            for name, method in self.each_method()
            if isinstance(method, AdversarialMethod)
        }

    def phases(self, config: RunConfig, updates: int) -> list[Phase]:
        """Return the phase of student and methods, and one for each adversary, with the projectors' retractions.

        An adversary's schedule is the run's at its own rate; its optimiser is Adam.

        Raises:
            UserError: for an optimiser that can't be had.
        """
        optim, fused = config.optim, bool(config.train.fused_optimizer)
        optimizer = make_optimizer(
            self.parameter_groups(lr=optim.lr, weight_decay=optim.weight_decay), optim, fused=fused
        )
        self.attach(optimizer)
        own = Phase(PHASE, optimizer, make_schedule(optimizer, optim, updates), leads=True)
        before: list[Phase] = []
        after: list[Phase] = []
        for phase, (_, method) in self.adversaries().items():
            options = method.adversary_options
            theirs = optim.model_copy(
                update={
                    "optimizer": "adam",
                    "lr": options.adversary_lr,
                    "betas": options.adversary_betas,
                    "weight_decay": 0.0,
                }
            )
            groups = self._groups(((p, 0.0) for p in method.adversary.parameters()), lr=theirs.lr)
            optimizer = make_optimizer(groups, theirs, fused=fused)
            self.attach(optimizer)
            (before if method.adversary_first else after).append(
                Phase(phase, optimizer, make_schedule(optimizer, theirs, updates), options.adversary_steps)
            )
        return [*before, own, *after]

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
            phase: ``distillation``, or the name of an adversary's, whose own losses are returned: each term as
                ``PHASE/TERM``. Terms of the student's side against it are ``METHOD/TERM``.
        """
        if phase != PHASE:
            return self._oppose(batch, teacher_outputs, phase)
        is_due = bool(self.balances) and self.training and Balance.is_due(self.step)
        # In a compiled pass there is no place between its outputs where gradients could be looked at.
        with torch.compiler.set_stance("force_eager") if is_due else nullcontext():
            own_output = self.student(self.student.prepare(batch), self.student_reads)
        own = own_output, teacher_outputs, batch.targets, batch.samples
        whole = self._gather(batch, own_output, teacher_outputs)
        terms: dict[str, Tensor] = {}
        for name, method in self.each_method():
            if isinstance(method, AdversarialMethod):
                losses = method.student_loss(self.scene(batch, teacher_outputs, lambda: own_output))
                terms |= _of_adversary(losses, name, batch)
                terms[name] = terms.pop("loss")
                continue
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

    def scene(
        self, batch: AnyBatch, teacher_outputs: ModelOutput | None, run: Callable[[], ModelOutput], *, turns: int = 1
    ) -> Scene:
        """Return what a method with an adversary has at hand.

        Args:
            batch: of this process.
            teacher_outputs: as :meth:`forward` takes them.
            run: gives the student's outputs.
            turns: steps of the phase on this batch.
        """
        (teacher,) = self._teacher
        turn = self.turn if turns > 1 else 0
        return Scene(batch, self.student, teacher, teacher_outputs, run, _gatherer(batch), turn=turn, turns=turns)

    def _oppose(self, batch: AnyBatch, teacher_outputs: ModelOutput | None, phase: str) -> dict[str, Tensor]:
        """Return the losses of an adversary in its own phase."""
        _, method = self.adversaries()[phase]

        def run() -> ModelOutput:
            with torch.no_grad():
                return self.student(self.student.prepare(batch), method.student_reads)

        scene = self.scene(batch, teacher_outputs, run, turns=method.adversary_options.adversary_steps)
        return _of_adversary(method.adversary_loss(scene), phase, batch)

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
        undecayed = set(getattr(self.student.module, "no_weight_decay", set)())
        opposed = {id(p) for _, method in self.adversaries().values() for p in method.adversary.parameters()}
        found = [
            (parameter, 0.0 if parameter.ndim <= 1 or name in undecayed else weight_decay)
            for name, parameter in self.student.module.named_parameters()
        ]
        found += [(p, weight_decay) for _, method in self.each_method() for p in method.parameters()]
        return self._groups(((p, decay) for p, decay in found if id(p) not in opposed), lr=lr)

    def _groups(self, parameters: Iterable[tuple[nn.Parameter, float]], *, lr: float) -> list[dict[str, Any]]:
        """Return groups of parameters with a weight decay each, which vectors and some projectors get none of."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        projected = {id(p): found for found in self.projections().values() for p in found.projector.parameters()}
        for parameter, decay in parameters:
            found = projected.get(id(parameter))
            decays = (found is None or found.projector.weight_decay) and parameter.ndim > 1
            scale = 1.0 if found is None else found.lr_scale
            groups.setdefault((scale, decay if decays else 0.0), []).append(parameter)
        return [
            # timm's schedules set every group's rate to the schedule's value times the group's lr_scale
            {"params": group, "lr": lr, "lr_scale": scale, "weight_decay": decay}
            for (scale, decay), group in groups.items()
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
        """Register what has to follow each step of ``optimizer``, such as the retraction of its orthogonal projectors.

        Projectors that another phase's optimiser trains are left to that one.
        """
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for module in self.modules():
            if isinstance(module, Projector) and any(id(p) in trained for p in module.parameters()):
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
        terms[f"feature_norm/{tap}"], terms[f"feature_std/{tap}"] = spread_of(features)
    return terms


def _of_adversary(losses: Losses, name: str, batch: AnyBatch) -> dict[str, Tensor]:
    """Return the terms of one side as ``NAME/TERM``, their sum as ``loss``, and size and spread of what is watched."""
    terms = losses.whole()
    found = {f"{name}/{term}": value.detach() for term, value in terms.items()}
    for watched, features in losses.watched.items():
        norm, spread = spread_of(_gatherer(batch)(features.detach()))
        found |= {f"feature_norm/{name}/{watched}": norm, f"feature_std/{name}/{watched}": spread}
    return found | {"loss": torch.stack([*terms.values()]).sum()}


def _edges(method: Method, output: ModelOutput) -> list[GradientEdge]:
    """Return where ``method`` takes its features, or else the heads that it reads, out of this process's outputs."""
    reads = method.student_reads
    if reads.taps:
        return [edge for tap in reads.taps for edge in output.edges.get(tap, ())]
    heads = [output.heads[name] for name in reads.heads]
    return [edge for head in heads if isinstance(head, Tensor) for edge in edges_of(head)]
