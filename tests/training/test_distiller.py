"""The distiller's losses are recomputed from its student's and teacher's outputs by hand."""

from types import SimpleNamespace

import pytest
import torch

from kdcli import losses
from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, DataFacts
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.config.parse import parse_config
from kdcli.data import Batch, prepare
from kdcli.losses.normalize import enlarged, layer_norm, standardize
from kdcli.methods import build_method
from kdcli.methods.base import Context
from kdcli.models import build_student, load_teacher
from kdcli.models.outputs import ModelOutput
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.training import distiller as distiller_module
from kdcli.training.distiller import Distiller
from kdcli.training.optim import make_schedule
from kdcli.training.state import TrainingState
from kdcli.training.teachers.teacher import LiveTeacher

LABELS = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def teacher():
    return load_teacher(TeacherConfig(name="random:test_efficientnet", image_size=48), seed=1)


@pytest.fixture
def student():
    return build_student(StudentConfig(name="test_resnet", image_size=32), DataFacts.of_labels(LABELS), seed=0)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 48, 48), dtype=torch.uint8, generator=generator)
    return Batch(images=images, targets=torch.tensor([0, 1, UNLABELLED, 3, 2, UNLABELLED]), samples=torch.arange(6))


def build(student, teacher, *methods, label_map=None):
    options = parse_config({"teacher": "t", "student": "s", "data": "d", "methods": list(methods)}, source="t").methods
    context = Context(ImageClassification(LABELS), student.facts, teacher.facts, label_map)
    torch.manual_seed(0)
    return Distiller(student, {o.method: build_method(o, context) for o in options})


def run_teacher(distiller, teacher, batch):
    return LiveTeacher(teacher, distiller.teacher_reads)(batch)


def test_losses_are_those_of_the_equations_and_the_total_is_their_weighted_sum(student, teacher, batch):
    distiller = build(
        student,
        teacher,
        {"method": "supervised", "weight": 2.0, "label_smoothing": 0.0},
        {"method": "projection", "projector": "inverted", "weight": 3.0, "normalize_student": "standardize"},
        {"method": "spectral_regularization", "weight": 0.5, "rank": 0.5},
    ).eval()
    outputs = run_teacher(distiller, teacher, batch)
    assert outputs.logits is None, "no method reads the teacher's logits"
    terms = distiller(batch, outputs)

    native = student.module.eval()
    features = native.forward_features(prepare(batch.images, student.facts.preprocessing))
    pooled, logits = features.mean((2, 3)), native.forward_head(features)
    labelled = batch.targets != UNLABELLED
    supervised = torch.nn.functional.cross_entropy(logits[labelled], batch.targets[labelled])
    with torch.no_grad():
        teacher_map = teacher.module.forward_features(prepare(batch.images, teacher.facts.preprocessing))
    projected = standardize(teacher_map.mean((2, 3))) @ distiller.methods["projection"].projector.matrix()
    projection = (standardize(pooled) - projected).square().mean()
    spectral = losses.spectral_regularization(pooled, rank=0.5)
    torch.testing.assert_close(terms["supervised"], supervised)
    torch.testing.assert_close(terms["projection"], projection)
    torch.testing.assert_close(terms["spectral_regularization"], spectral)
    torch.testing.assert_close(terms["loss"], 2 * supervised + 3 * projection + 0.5 * spectral)


def test_student_to_teacher_projection_normalises_the_teacher_alone(student, teacher, batch):
    options = {"method": "projection", "projector": "orthogonal", "normalize": "layer_norm", "distance": "smooth_l1"}
    distiller = build(student, teacher, options).eval()
    outputs = run_teacher(distiller, teacher, batch)
    pooled = student.eval()(prepare(batch.images, student.facts.preprocessing), Reads(("pooled",)))
    matrix = distiller.methods["projection"].projector.matrix()
    expected = torch.nn.functional.smooth_l1_loss(
        pooled.features["pooled"] @ matrix, layer_norm(enlarged(outputs.features["pooled"]))
    )
    torch.testing.assert_close(distiller(batch, outputs)["projection"], expected)


def test_logit_kd_puts_the_teachers_logits_into_the_students_order(student, teacher, batch):
    distiller = build(student, teacher, {"method": "logit_kd", "temperature": 2.0}, label_map=(2, 0, 3, 1)).eval()
    logits = torch.randn(6, 4)
    terms = distiller(batch, ModelOutput(heads={"logits": logits}))
    ours = student.eval()(prepare(batch.images, student.facts.preprocessing)).logits
    expected = losses.logit_kd(ours, logits[:, [2, 0, 3, 1]], temperature=2.0).mean()
    torch.testing.assert_close(terms["logit_kd"], expected)


def test_gradients_reach_student_and_projector_but_not_the_teacher(student, teacher, batch):
    distiller = build(student, teacher, {"method": "supervised"}, {"method": "projection", "projector": "inverted"})
    distiller(batch, run_teacher(distiller, teacher, batch))["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.parameters())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_a_teacher_that_no_method_reads_does_not_run(teacher, batch, monkeypatch):
    def run(*args, **kwargs):
        raise AssertionError("it ran")

    monkeypatch.setattr(type(teacher), "prepare", run)
    output = LiveTeacher(teacher, Reads())(batch)
    assert (output.features, output.maps, output.logits) == ({}, {}, None)


def test_the_teacher_is_frozen_in_eval_mode(teacher, batch):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    output = LiveTeacher(teacher, Reads(("pooled",), heads=("logits",)))(batch)
    assert not teacher.training
    assert not output.features["pooled"].is_inference()
    assert not output.logits.requires_grad
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("projector", ["orthogonal", "inverted", "mlp", "linear"])
def test_parameter_groups_hold_every_parameter_once_with_the_right_decay(student, teacher, projector):
    options = {"method": "projection", "projector": projector, "lr_scale": 0.1}
    distiller = build(student, teacher, {"method": "supervised"}, options)
    groups = distiller.parameter_groups(lr=1.0, weight_decay=0.05)
    seen = [id(p) for group in groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in distiller.parameters())
    mine = {id(p) for p in distiller.methods.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert (group["lr"], group["lr_scale"]) == (1.0, 0.1 if id(parameter) in mine else 1.0)
            decays = parameter.ndim > 1 and not (id(parameter) in mine and projector == "orthogonal")
            assert group["weight_decay"] == (0.05 if decays else 0.0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb", "lookahead_adamw"])
def test_every_optimiser_keeps_the_projector_orthogonal(student, teacher, batch, optimizer):
    options = {"method": "projection", "projector": "orthogonal"}
    distiller = build(student, teacher, {"method": "supervised"}, options)
    config = parse_config(
        {"teacher": "t", "student": "s", "data": "d", "optim": {"optimizer": optimizer, "lr": 0.01}}, source="t"
    )
    (phase,) = distiller.phases(config, 1)
    made = phase.optimizer
    outputs = run_teacher(distiller, teacher, batch)
    projector = distiller.methods["projection"].projector
    before = projector.matrix().detach().clone()
    for _ in range(3):
        distiller(batch, outputs)["loss"].backward()
        made.step()
        made.zero_grad()
    after = projector.matrix().detach()
    gram = after @ after.T if after.shape[0] <= after.shape[1] else after.T @ after
    assert (gram - torch.eye(len(gram))).abs().max() <= 1e-5
    assert not torch.equal(before, after)


def test_a_batch_is_gathered_once_and_only_tokens_are_counted(student, teacher, batch, monkeypatch):
    """Where rows are samples no process tells the others how many it has, and nothing is sent twice."""
    sent = {"gather_batch": [], "gather_rows": []}
    for name, calls in sent.items():
        monkeypatch.setattr(distiller_module, name, lambda share, calls=calls: calls.append(share.data_ptr()) or share)
    pairs = {"layers": ["pooled:pooled", "embedding:embedding"]}
    distiller = build(student, teacher, {"method": "pkt", **pairs}, {"method": "projection", "projector": "linear"})
    distiller(batch, run_teacher(distiller, teacher, batch))
    assert len(set(sent["gather_batch"])) == len(sent["gather_batch"]) == 6
    assert not sent["gather_rows"]
    monkeypatch.setattr(Batch, "has_rows", True)
    distiller(batch, run_teacher(distiller, teacher, batch))
    assert (len(sent["gather_batch"]), len(sent["gather_rows"])) == (7, 5), "samples, and all else"


def test_a_checkpoint_of_other_projectors_is_refused_by_their_name(student, teacher, tmp_path):
    options = {"method": "projection", "projector": "linear"}
    ours, other = build(student, teacher, options), build(student, teacher, {**options, "projector": "mlp"})
    state = SimpleNamespace(objective=ours)
    saved = {name: part.module.state_dict() for name, part in other.parts().items()}
    with pytest.raises(UserError, match="does not fit the run's projectors: "):
        TrainingState.restore(state, saved, tmp_path)


def test_milestones():
    """As in training scripts that divide by 5 after epochs 100, 140 and 180 of 200; here with two steps an epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    optim = {"lr": 1.0, "schedule": "step", "warmup": 0, "milestones": [0.5, 0.7, 0.9], "decay_rate": 0.2}
    config = parse_config({"teacher": "t", "student": "s", "data": "d", "optim": optim}, source="t")
    made = make_schedule(optimizer, config.optim, 400)
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    by_torch = torch.optim.lr_scheduler.MultiStepLR(reference, [200, 280, 360], 0.2)
    for update in range(400):
        made.step_update(update)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(reference.param_groups[0]["lr"], rel=1e-9), update
        reference.step()
        by_torch.step()


@pytest.mark.parametrize(("given", "power"), [({}, 0.9), ({"power": 0.9}, 0.9), ({"power": 2}, 2.0)])
@pytest.mark.parametrize("ratio", [0, 0.1])
def test_poly(given, power, ratio):
    """As in segmentation's scripts, ``(lr - min_lr) * (1 - step / steps) ** power + min_lr``; here of 40 steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    optim = {"lr": 0.02, "schedule": "poly", "warmup": 0, "min_lr_ratio": ratio, **given}
    config = parse_config({"teacher": "t", "student": "s", "data": "d", "optim": optim}, source="t")
    made = make_schedule(optimizer, config.optim, 40)
    least = 0.02 * ratio
    for update in [*range(41), 7]:  # out of order too: a resumed run sets the rate of its step
        made.step_update(update)
        expected = (0.02 - least) * (1 - update / 40) ** power + least
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12, abs=0), update


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"power": 0.9}, "power is for schedule: poly"),
        ({"schedule": "linear", "power": 1}, "power is for schedule: poly"),
        ({"schedule": "poly", "power": 0}, "optim.power"),
        ({"schedule": "poly", "decay_rate": 0.9}, "decay_rate is for schedule: step; poly has power"),
        ({"decay_rate": 0.2}, "decay_rate is for schedule: step, got"),
        ({"schedule": "poly", "milestones": [0.5]}, "milestones are for schedule: step"),
        ({"milestones": [0.5]}, "milestones are for schedule: step"),
        ({"schedule": "step", "milestones": [0.5, 0.4]}, "milestones go up"),
        ({"schedule": "step", "milestones": [0.5, 0.5]}, "milestones go up"),
        ({"schedule": "step", "milestones": [150]}, "optim.milestones.0"),
    ],
)
def test_options_of_schedules_that_can_not_be(optim, message):
    with pytest.raises(UserError, match=message):
        parse_config({"teacher": "t", "student": "s", "data": "d", "optim": optim}, source="t")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", {0: 0.01, 10: 0.98, 55: 0.42, 100: 0.01}),
        ("linear", {0: 0.01, 10: 0.90, 55: 0.45, 100: 0.01}),
        ("poly", {0: 0.01, 5: 0.505, 10: 0.91, 55: 0.49, 100: 0.01}),
        ("step", {0: 0.01, 10: 1.0, 33: 1.0, 34: 0.1, 68: 0.01}),
        ("constant", {0: 0.01, 10: 1.0, 100: 1.0}),
    ],
)
def test_schedules_warm_up_then_follow_their_curve(schedule, expected):
    """Over 100 steps, 10 % of them warm-up, from a hundredth of the rate; a second group has a tenth of it throughout."""
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": parameters[:1], "lr": 1.0, "lr_scale": 1.0}, {"params": parameters[1:], "lr": 1.0, "lr_scale": 0.1}]
    )
    config = parse_config(
        {"teacher": "t", "student": "s", "data": "d", "optim": {"lr": 1.0, "schedule": schedule, "warmup": 0.1}},
        source="t",
    )
    made = make_schedule(optimizer, config.optim, 100)
    for update, rate in expected.items():
        made.step_update(update)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, abs=0.01), update
        assert optimizer.param_groups[1]["lr"] == pytest.approx(0.1 * optimizer.param_groups[0]["lr"])
