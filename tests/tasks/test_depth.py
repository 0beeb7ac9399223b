"""What is special about depth: crops, alignment, agreement, what is refused."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, DepthFacts, ModelFacts, Preprocessing
from kdcli.config.parse import parse_config
from kdcli.data import Batch
from kdcli.machine.team import Team
from kdcli.plan.relation import situation_of
from kdcli.statistics.chance import judge_depth
from kdcli.tasks.dense.depth import DepthEstimation, depth_loss
from kdcli.tasks.dense.depth_metrics import is_evaluated, to_metres
from kdcli.training.teachers.check import _correlations

FACTS = DepthFacts(0.1, 10.0)
MODEL = ModelFacts(
    name="hf:ours", library="transformers", task="depth-estimation", pretrained=True, weights="w", num_classes=1,
    label_names=None, feature_dims={"pooled": 8, "layer": 4}, preprocessing=Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3),
    num_parameters=1, macs=1, activation_bytes=1, grids={"pooled": (2, 2), "layer": (4, 4)}, heads=("depth",),
)  # fmt: skip
DATA = DataFacts("scenes", "depth-estimation", ("depth",), 8, 8, 4, 4, label_kind="depth", depth=FACTS)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(targets):
    images = torch.zeros(len(targets), 3, *targets.shape[1:], dtype=torch.uint8)
    return Batch(images=images, targets=targets, samples=torch.arange(len(targets)))


@pytest.mark.parametrize(
    ("crop", "size", "rows", "columns"),
    [("none", (480, 640), (0, 480), (0, 640)), ("eigen", (480, 640), (45, 471), (41, 601)),
     ("eigen", (240, 320), (22, 235), (20, 300)), ("garg", (375, 1242), (153, 371), (44, 1197))],
)  # fmt: skip
def test_crops(crop, size, rows, columns):
    """Those of NYUv2 as AdaBins has them; Garg's as in Monodepth, for KITTI's usual size."""
    inside = is_evaluated(torch.ones(1, *size), dataclasses.replace(FACTS, crop=crop))[0]
    found = [(int(where.min()), int(where.max()) + 1) for where in inside.nonzero(as_tuple=True)]
    assert found == [rows, columns]
    assert inside.sum() == (rows[1] - rows[0]) * (columns[1] - columns[0])


class TestAlignment:
    targets = 1 + 4 * rand(2, 6, 6)

    def test_inverse_depth_up_to_scale_and_shift_is_exact(self):
        found = to_metres(3 / self.targets - 0.4, self.targets, FACTS, "inverse")
        torch.testing.assert_close(found, self.targets, rtol=1e-4, atol=1e-4)

    def test_only_what_is_measured_is_fitted_to(self):
        targets = self.targets.clone()
        prediction = 3 / targets - 0.4
        targets[:, 0] = 0.0
        found = to_metres(prediction, targets, FACTS, "inverse")
        torch.testing.assert_close(found, self.targets, rtol=1e-4, atol=1e-4)

    def test_metres_stay(self):
        prediction = torch.tensor([[[0.01, 2.0, 50.0], [torch.nan, torch.inf, 3.0]]])
        found = to_metres(prediction, torch.ones(1, 2, 3), FACTS, "metric")
        torch.testing.assert_close(found, torch.tensor([[[0.1, 2.0, 10.0], [0.1, 10.0, 3.0]]]))

    @pytest.mark.parametrize("how", ["median", "least_squares"])
    def test_it_can_be_asked_for(self, how):
        facts = dataclasses.replace(FACTS, alignment=how)
        found = to_metres(0.5 * self.targets, self.targets, facts, "metric")
        torch.testing.assert_close(found, self.targets, rtol=1e-4, atol=1e-4)

    def test_without_a_target_there_is_something_to_see(self):
        found = to_metres(rand(1, 6, 6), torch.zeros(1, 6, 6), FACTS, "inverse")
        assert (found.min(), found.max()) == pytest.approx((1.0, 10.0), rel=1e-4)


class Fake:
    """A model that gives the depth that it was made with."""

    def __init__(self, depth, kind):
        self.depth, self.facts = depth, dataclasses.replace(MODEL, depth=kind)

    def prepare(self, batch):
        return batch.images

    def __call__(self, inputs, reads):
        return SimpleNamespace(heads=dict.fromkeys(reads.heads, self.depth))


def test_a_relative_model_is_measured_after_the_fit():
    task, targets = DepthEstimation(depth=FACTS), 1 + 4 * rand(3, 8, 8)
    found = []
    for kind in ("inverse", "metric"):
        batch, meter = batch_of(targets), task.meter(Team.alone())
        meter.update(task.predict(Fake((2 / targets)[:, None], kind), batch), batch)
        found.append(meter.compute())
    assert found[0]["delta1"] == pytest.approx(1.0)
    assert found[0]["abs_rel"] < 1e-4
    assert found[1]["delta1"] < 0.5


@pytest.mark.parametrize(("sign", "level"), [(1.0, "above"), (-1.0, "near")])
def test_the_fit_is_no_evidence_that_a_teacher_knows_anything(sign, level):
    """Near and far exchanged, or noise: the fit makes any of them go with the target."""
    targets = 1 + 4 * rand(12, 6, 6)
    model, task = Fake(sign * (3 / targets - 0.4)[:, None], "inverse"), DepthEstimation(depth=FACTS)
    fitted = task.predict(model, batch_of(targets))
    for depth, expected in ((fitted, "above"), (task.evidence(model, batch_of(targets), fitted), level)):
        assert judge_depth(_correlations(depth, targets)).level == expected
    noise = Fake(rand(12, 1, 6, 6, seed=1), "inverse")
    fitted = task.predict(noise, batch_of(targets))
    assert judge_depth(_correlations(fitted, targets)).level == "above"
    assert judge_depth(_correlations(task.evidence(noise, batch_of(targets), fitted), targets)).level != "above"
    metric = Fake(targets[:, None], "metric")
    assert task.evidence(metric, batch_of(targets), fitted) is fitted, "nothing is fitted: no second pass"


class TestReport:
    def report(self, outputs, targets):
        report = DepthEstimation(depth=FACTS).report()
        for output, target in zip(outputs.split(2), targets.split(2), strict=True):
            report.update(output, batch_of(target))
        return report

    def test_it_says_what_the_meter_says(self):
        task, targets = DepthEstimation(depth=FACTS), 1 + 4 * rand(5, 80, 70)
        targets[1] = 0.0
        outputs = (targets * (0.8 + 0.4 * rand(5, 80, 70, seed=1)))[:, None].clamp(min=0.1)
        meter, report = task.meter(Team.alone()), self.report(outputs, targets)
        meter.update(outputs, batch_of(targets))
        assert report.compute() == pytest.approx(meter.compute())
        assert set(report.compute()) == set(task.layout.keys)
        assert report.counts() == [4]
        other = self.report(outputs * 1.2, targets)
        assert report.agreement(report) == 1.0
        assert report.agreement(other) == 1.0
        assert report.agreement(self.report(outputs * 1.3, targets)) < 0.3

    def test_nothing_measured_is_an_error(self):
        with pytest.raises(UserError, match=r"No depth from 0.1 to 10 m was measured"):
            self.report(torch.ones(2, 1, 4, 4), torch.zeros(2, 4, 4)).compute()


def test_pictures_have_a_panel_for_each_model_and_its_error():
    targets = 1 + 4 * rand(2, 20, 30)
    targets[1] = 0.0
    outputs = {role: 1 + 4 * rand(2, 1, 20, 30, seed=seed) for seed, role in enumerate(("teacher", "student"))}
    rows = DepthEstimation(depth=FACTS).pictures(batch_of(targets), outputs)
    assert [len(row) for row in rows] == [6, 6]
    assert rows[0][1].title == "depth\n1.1 to 4.9 m"
    assert {panel.key.label for row in rows for panel in row[1:]} == {"depth (m)", "error / depth"}
    assert len({panel.key for row in rows for panel in row[1:]}) == 2  # one scale for all
    assert "not measured" in rows[1][3].title
    assert all(panel.image.dtype.name == "uint8" and panel.image.shape[0] == 20 for row in rows for panel in row)


def settled(method, teacher=MODEL, **keys):
    config = parse_config({"teacher": "t", "student": "s", "data": "d", "task": "depth-estimation"}, source="test")
    situation = situation_of(config, teacher=teacher, student=MODEL, data=DATA).at("methods")
    from kdcli.config.methods import find_method

    options = find_method(method).model_validate({"method": method, **keys}).settled(situation)
    options.check(situation)
    return options


@pytest.mark.parametrize("method", ["logit_kd", "dkd", "dist"])
def test_a_softmax_over_one_channel_is_refused(method):
    with pytest.raises(UserError, match=f"{method} compares probabilities, and depth has one channel"):
        settled(method)


def test_the_plan_takes_the_teachers_depth():
    from kdcli.plan.decide import make_plan

    config = parse_config({"teacher": "t", "student": "s", "data": "d", "task": "depth-estimation"}, source="test")
    for kind, loss in (("metric", "silog"), ("inverse", "scale_shift_invariant")):
        teacher = dataclasses.replace(MODEL, depth=kind)
        plan = make_plan(situation_of(config, teacher=teacher, student=MODEL, data=DATA))
        assert plan.relation == "same"
        assert [options.method for options in plan.methods] == ["supervised", "dense_regression"]
        assert plan.methods[-1].loss == loss


def test_inverse_depth_of_the_labels_has_a_floor():
    """A measured millimetre counts as 0.1 m, a hundredth of the farthest, in the loss on inverse depth."""
    depth, generator = DepthFacts(1e-3, 10.0), torch.Generator().manual_seed(0)
    prediction, target = (1 + 4 * torch.rand(1, 6, 8, generator=generator) for _ in range(2))
    valid, found = torch.ones(1, 6, 8, dtype=torch.bool), []
    for near in (0.001, 0.1):
        target[0, 0, 0] = near
        found.append(depth_loss("scale_shift_invariant", prediction, target, valid, depth))
    assert found[0] == found[1]


def test_a_loss_that_leaves_the_scale_open_is_refused():
    config = {"teacher": "none", "student": "s", "data": "d", "task": "depth-estimation"}
    methods = [{"method": "supervised", "loss": "scale_shift_invariant"}]
    task = DepthEstimation(depth=FACTS)
    student = SimpleNamespace(facts=MODEL)
    with pytest.raises(UserError, match="leaves the scale"):
        task.decisions(parse_config(config | {"methods": methods}, source="test"), None, student, None, None)
    free = DepthEstimation(depth=dataclasses.replace(FACTS, alignment="least_squares"))
    found = free.decisions(parse_config(config | {"methods": methods}, source="test"), None, student, None, None)
    assert [decision.name for decision in found] == ["depth", "student's depth"]
