"""What every method keeps, whatever it compares: on made-up outputs of two models, without the models.

A method's own test is a subclass that says how it is configured:

    class TestMine(MethodContract):
        @pytest.fixture
        def values(self):
            return {"method": "mine"}
"""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, DataFacts, ModelFacts, Preprocessing
from kdcli.base.reads import Reads
from kdcli.config.methods import find_method
from kdcli.config.parse import parse_config
from kdcli.machine.team import Team
from kdcli.methods import build_method
from kdcli.methods.base import Context
from kdcli.methods.share import Share
from kdcli.models.outputs import ModelOutput
from kdcli.plan.relation import situation_of
from kdcli.tasks.classification.one_label import ImageClassification

COUNT = 12
CLASSES = ("a", "b", "c", "d")
TRAIN_LABELS = [0, 1, 2, 3, UNLABELLED] * 4
DATA = DataFacts("photos", "image-classification", CLASSES, 20, 16, 4, 4)
STUDENT = ModelFacts(
    name="timm:ours", library="timm", task="image-classification", pretrained=False, weights="untrained", num_classes=4,
    label_names=CLASSES, feature_dims={"pooled": 8, "embedding": 8, "layer1": 5, "layer2": 6, "neck": 9},
    preprocessing=Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), num_parameters=1, macs=1, activation_bytes=1,
    grids={"pooled": (2, 2), "layer1": (6, 6), "layer2": (4, 4), "neck": (6, 6)}, stages=("layer1", "layer2"),
    heads=("logits", "distillation"),
)  # fmt: skip
TEACHER = dataclasses.replace(
    STUDENT,
    name="timm:theirs",
    pretrained=True,
    feature_dims={"pooled": 10, "embedding": 10, "layer1": 7, "layer2": 12, "neck": 9},
    grids={"pooled": (2, 2), "layer1": (5, 4), "layer2": (3, 3), "neck": (5, 4)},
    heads=("logits",),
)
SAMPLES = torch.tensor([0, 1, 4, 3, 7, 5, 6, 11, 9, 2, 8, 10])


def make_outputs(facts: ModelFacts, reads: Reads, *, seed: int, grid: tuple[int, ...] = ()) -> ModelOutput:
    """Return random outputs: what is read, and nothing else; heads are of each position of ``grid``."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(COUNT, *shape, generator=generator)

    return ModelOutput(
        {tap: draw(facts.feature_dims[tap]) for tap in reads.features},
        {tap: draw(facts.feature_dims[tap], *facts.grids[tap]) for tap in reads.maps},
        {head: draw(facts.num_classes, *grid) for head in reads.heads},
    )


def tensors_of(outputs):
    """Return all tensors by what they are."""
    kinds = {"features": outputs.features, "maps": outputs.maps, "heads": outputs.heads}
    return {(kind, name): tensor for kind, values in kinds.items() for name, tensor in values.items()}


def is_finite(gradient):
    return gradient is not None and bool(gradient.isfinite().all())


def with_gradient(outputs):
    return outputs.map(lambda tensor: tensor.clone().requires_grad_())


class WithoutFloat64(TorchDispatchMode):
    """Refuses to turn anything into float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.float64:
            raise TypeError("Cannot convert a tensor to float64: the device has none.")
        return func(*args, **(kwargs or {}))


class MethodContract:
    """Needs a fixture ``values``: the keys of a method in a recipe."""

    student_grid: tuple[int, ...] = ()
    """Of the heads, whose values are of positions then, as are the labels; empty where they are of samples."""
    teacher_grid: tuple[int, ...] = ()
    targets = torch.tensor([0, 1, UNLABELLED, 3, 2, 0, 1, 1, UNLABELLED, 2, 3, 0])
    """Int64 (B,), or (B, H, W); of detection a list."""
    without_labels = torch.full_like(targets, UNLABELLED)
    data = DATA

    @pytest.fixture
    def options(self, values):
        """As the plan settles them."""
        config = parse_config({"teacher": "t", "student": "s", "data": "d"}, source="test")
        situation = situation_of(config, teacher=TEACHER, student=STUDENT, data=self.data)
        options = find_method(values["method"]).model_validate(values).settled(situation)
        options.check(situation.at("methods"))
        return options

    @pytest.fixture
    def make(self, options):
        """Build the method, with weights of this seed."""

        def build(seed=0):
            teacher = TEACHER if options.needs.teacher else None
            task = ImageClassification(CLASSES)
            context = Context(task, STUDENT, teacher, (2, 0, 3, 1), TRAIN_LABELS, seed=5)
            torch.manual_seed(seed)
            method = build_method(options, context)
            if method.looks_ahead:
                training_set = make_outputs(TEACHER, method.teacher_reads, seed=4)
                method.look([(training_set, torch.arange(COUNT) % len(CLASSES))], Team.alone())
            return method

        return build

    @pytest.fixture
    def method(self, make):
        return make()

    @pytest.fixture
    def inputs(self, method):
        """What the method gets: of both models exactly what it says that it reads."""
        student = make_outputs(STUDENT, method.student_reads, seed=1, grid=self.student_grid)
        teacher = make_outputs(TEACHER, method.teacher_reads, seed=2, grid=self.teacher_grid)
        return student, teacher if method.teacher_reads else None, self.targets, SAMPLES

    def test_it_reads_of_each_model_what_there_is(self, method, options):
        for facts, reads in ((STUDENT, method.student_reads), (TEACHER, method.teacher_reads)):
            assert {*reads.features} <= facts.feature_dims.keys()
            assert {*reads.maps} <= facts.grids.keys()
            assert {*reads.heads} <= {*facts.heads}
        assert method.student_reads
        assert bool(method.teacher_reads) == options.needs.teacher
        assert (method.scope, options.weight) == (method.scope, method.weight)

    def test_the_loss_is_finite_and_trains_the_student_and_the_methods_own_modules(self, method, inputs):
        student, teacher, *labels = inputs
        student = with_gradient(student)
        before = None if teacher is None else copy.deepcopy(tensors_of(teacher))
        loss = method.train().loss(student, teacher, *labels)
        assert (loss.shape, loss.dtype) == ((), torch.float32)
        assert loss.isfinite()
        loss.backward()
        for what, tensor in tensors_of(student).items():
            assert is_finite(tensor.grad), what
            assert tensor.grad.any(), what
        for name, parameter in method.named_parameters():
            assert is_finite(parameter.grad), name
        if before is not None:
            assert all(torch.equal(tensor, before[what]) for what, tensor in tensors_of(teacher).items())
            assert not any(tensor.requires_grad for tensor in tensors_of(teacher).values())

    def test_all_that_it_reads_of_the_teacher_matters(self, method, inputs):
        student, teacher, *labels = inputs
        if teacher is None:
            pytest.skip("it reads no teacher")
        value = method.eval().loss(student, teacher, *labels)
        other = make_outputs(TEACHER, method.teacher_reads, seed=3, grid=self.teacher_grid)
        for what, tensor in tensors_of(teacher).items():
            changed = copy.deepcopy(teacher)
            getattr(changed, what[0])[what[1]] = tensors_of(other)[what]
            assert tensor.shape == tensors_of(other)[what].shape
            assert method.loss(student, changed, *labels) != value, what

    def test_parts_make_the_whole_where_the_scope_is_local(self, method, inputs):
        student, teacher, *labels = inputs
        found = method.eval()(student, teacher, *labels)
        if method.scope == "batch":
            assert isinstance(found, torch.Tensor)
            assert found.shape == ()
            return
        assert isinstance(found, Share)
        gradients = []
        for cuts in (
            [slice(None)],
            [slice(0, 5), slice(5, 6), slice(6, None)],
            [slice(0, 2), slice(2, 3), slice(3, None)],
        ):
            ours = with_gradient(student)
            shares = [
                method(
                    ours.map(lambda tensor, rows=rows: tensor[rows]),
                    None if teacher is None else teacher.map(lambda tensor, rows=rows: tensor[rows]),
                    *(tensor[rows] for tensor in labels),
                )
                for rows in cuts
            ]
            counts = [torch.as_tensor(share.count, dtype=torch.float32) for share in shares]
            total = sum(share.mean * count.clamp(min=1) for share, count in zip(shares, counts, strict=True))
            loss = total / sum(counts).clamp(min=1)
            torch.testing.assert_close(loss, found.mean)
            method.zero_grad()
            loss.backward()
            own = [parameter.grad.clone() for parameter in method.parameters()]
            gradients.append([*(tensor.grad for tensor in tensors_of(ours).values()), *own])
        torch.testing.assert_close(gradients[1], gradients[0])
        torch.testing.assert_close(gradients[2], gradients[0])

    def test_its_state_is_all_that_it_remembers(self, make, inputs):
        """After steps of training, another one that is given the state goes on alike."""
        method, other = make().train(), make(seed=1).train()
        optimizer = torch.optim.SGD([torch.zeros(()), *method.parameters()], lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            method.loss(*self._trainable(inputs)).backward()
            optimizer.step()
        other.load_state_dict(copy.deepcopy(method.state_dict()))
        assert torch.equal(method.loss(*inputs), other.loss(*inputs))
        assert torch.equal(method.eval().loss(*inputs), other.eval().loss(*inputs))

    def test_training_lowers_it(self, method, inputs):
        """Of student and modules together, each output being free to go where it likes."""
        student, teacher, *labels = inputs
        student = with_gradient(student)
        optimizer = torch.optim.Adam([*tensors_of(student).values(), *method.train().parameters()], lr=0.02)
        values = []
        for _ in range(15):
            optimizer.zero_grad()
            loss = method.loss(student, teacher, *labels)
            loss.backward()
            optimizer.step()
            values.append(float(loss.detach()))
        assert min(values[-3:]) < values[0], values

    def test_a_device_without_float64_will_do(self, method, inputs, monkeypatch):
        """As MPS is: nothing is kept there in float64, and nothing is made float64."""
        for module in ("losses.common", "methods.crd"):
            monkeypatch.setattr(f"kdcli.{module}.has_float64", lambda device: False)
        method.to("cpu")
        assert not [name for name, tensor in method.state_dict().items() if tensor.dtype == torch.float64]
        with WithoutFloat64():
            method.train().loss(*self._trainable(inputs)).backward()

    def test_a_sample_by_itself_is_taken_or_refused(self, method, inputs):
        student, teacher, *labels = inputs
        one = with_gradient(student.map(lambda tensor: tensor[:1]))
        theirs = None if teacher is None else teacher.map(lambda tensor: tensor[:1])
        try:
            loss = method.train().loss(one, theirs, *(tensor[:1] for tensor in labels))
        except (ValueError, UserError):
            return
        loss.backward()
        assert loss.isfinite()
        assert all(tensor.grad is None or tensor.grad.isfinite().all() for tensor in tensors_of(one).values())

    def test_without_labels_it_is_what_it_says(self, method, inputs, options):
        """What needs labels is zero without them, with a gradient; to all else they make no difference."""
        student, teacher, _, samples = inputs
        student = with_gradient(student)
        loss = method.eval().loss(student, teacher, self.without_labels, samples)
        assert loss == (
            0
            if options.needs.labels or (not options.needs.teacher and method.student_reads.heads)
            else method.loss(*inputs)
        )
        loss.backward()
        assert all(tensor.grad.isfinite().all() for tensor in tensors_of(student).values())

    @staticmethod
    def _trainable(inputs):
        student, *others = inputs
        return with_gradient(student), *others
