"""The teacher's depth as a target."""

import dataclasses

import pytest
import torch

from kdcli import losses
from kdcli.base.errors import UserError
from kdcli.base.facts import DepthFacts
from kdcli.config.methods import find_method
from kdcli.config.parse import parse_config
from kdcli.methods import build_method
from kdcli.methods.base import Context
from kdcli.models.outputs import ModelOutput
from kdcli.plan.relation import situation_of
from kdcli.tasks.dense.depth import DepthEstimation
from tests.methods.contract import COUNT, DATA, SAMPLES, STUDENT, TEACHER, MethodContract

FACTS = DepthFacts(0.1, 10.0)
DEPTHS = dataclasses.replace(DATA, task="depth-estimation", class_names=("depth",), label_kind="depth", depth=FACTS)
OURS = dataclasses.replace(STUDENT, task="depth-estimation", num_classes=1, heads=("depth",))
THEIRS = dataclasses.replace(TEACHER, task="depth-estimation", num_classes=1, heads=("depth",))


def options_of(values, teacher=THEIRS):
    config = parse_config({"teacher": "t", "student": "s", "data": "d", "task": "depth-estimation"}, source="test")
    situation = situation_of(config, teacher=teacher, student=OURS, data=DEPTHS).at("methods")
    options = (
        find_method("dense_regression").model_validate({"method": "dense_regression", **values}).settled(situation)
    )
    options.check(situation)
    return options


def made(values, teacher=THEIRS):
    return build_method(options_of(values, teacher), Context(DepthEstimation(depth=FACTS), OURS, teacher, None))


def positive(*shape, seed):
    return 0.5 + 4 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "values",
    [{}, {"loss": "l1"}, {"loss": "berhu"}, {"loss": "scale_shift_invariant"}, {"gradient": 0.5}],
    ids=lambda values: "-".join(map(str, values.values())) or "default",
)
class TestDenseRegression(MethodContract):
    targets = positive(COUNT, 6, 8, seed=9)
    without_labels = torch.zeros(COUNT, 6, 8)

    @pytest.fixture
    def options(self, values):
        return options_of(values)

    @pytest.fixture
    def make(self, options):
        return lambda seed=0: build_method(options, Context(DepthEstimation(depth=FACTS), OURS, THEIRS, None))

    @pytest.fixture
    def inputs(self):
        student = ModelOutput(heads={"depth": positive(COUNT, 1, 3, 4, seed=1)})
        teacher = ModelOutput(heads={"depth": positive(COUNT, 1, 2, 5, seed=2)})
        return student, teacher, self.targets, SAMPLES

    def test_it_reads_of_each_model_what_there_is(self, method):
        assert method.student_reads.heads == method.teacher_reads.heads == ("depth",)

    def test_all_that_it_reads_of_the_teacher_matters(self, method, inputs):
        student, _, *labels = inputs
        other = ModelOutput(heads={"depth": positive(COUNT, 1, 2, 5, seed=3)})
        assert method.loss(student, other, *labels) != method.loss(*inputs)


def test_it_is_the_loss_between_both_at_the_targets_size():
    ours, theirs, targets = positive(3, 1, 6, 8, seed=1), positive(3, 1, 6, 8, seed=2), torch.zeros(3, 6, 8)
    sides = [ModelOutput(heads={"depth": depth}) for depth in (ours, theirs)]
    valid = torch.ones(3, 6, 8, dtype=torch.bool)
    expected = losses.silog(ours[:, 0], theirs[:, 0], valid).mean()
    torch.testing.assert_close(made({}).loss(*sides, targets, torch.arange(3)), expected)
    expected = losses.scale_shift_invariant(1 / ours[:, 0], 1 / theirs[:, 0], valid).mean()
    found = made({"loss": "scale_shift_invariant"}).loss(*sides, targets, torch.arange(3))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("values", [{"loss": "scale_shift_invariant"}, {"gradient": 0.5}])
def test_a_pixel_of_a_millimetre_does_not_outweigh_the_others(values):
    """By default depth counts from 1 mm on, whose inverse is 1000: it is taken as 0.1 m, a hundredth of the farthest."""
    task = DepthEstimation(depth=DepthFacts(1e-3, 10.0))
    method, plain = (build_method(options_of(of), Context(task, OURS, THEIRS, None)) for of in (values, {}))
    targets, found = torch.zeros(1, 6, 8), []
    for near in (0.001, 0.1):
        ours, theirs = positive(1, 1, 6, 8, seed=1), positive(1, 1, 6, 8, seed=2)
        theirs[0, 0, 0, 0] = near
        sides = [ModelOutput(heads={"depth": depth}) for depth in (ours, theirs)]
        silog = plain.loss(*sides, targets, torch.arange(1)) if "gradient" in values else 0
        found.append(method.loss(*sides, targets, torch.arange(1)) - silog)
    torch.testing.assert_close(found[0], found[1])


def test_a_relative_teacher_is_aligned():
    relative = dataclasses.replace(THEIRS, depth="inverse")
    targets = positive(3, 6, 8, seed=1)
    sides = [ModelOutput(heads={"depth": depth[:, None]}) for depth in (targets, 5 / targets + 2)]
    assert options_of({}, relative).loss == "scale_shift_invariant"
    for values in ({}, {"loss": "silog"}, {"loss": "l1"}, {"loss": "berhu"}):
        assert made(values, relative).loss(*sides, targets, torch.arange(3)) < 1e-3
    # Without measured depth there is nothing to align to, but for the loss that needs none.
    nothing = torch.zeros_like(targets)
    off = [ModelOutput(heads={"depth": depth[:, None]}) for depth in (2 + targets.flip(0), 5 / targets + 2)]
    assert made({"loss": "silog"}, relative).loss(*off, nothing, torch.arange(3)) == 0
    assert made({}, relative).loss(*off, nothing, torch.arange(3)) > 0.1


def test_what_it_can_t_learn_from_is_refused():
    for teacher, message in (
        (dataclasses.replace(TEACHER, heads=("logits",)), "needs a teacher that gives depth"),
        (dataclasses.replace(THEIRS, pretrained=False), "is untrained"),
    ):
        with pytest.raises(UserError, match=message):
            options_of({}, teacher)
