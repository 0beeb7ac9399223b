"""A balanced loss pulls at the student's features in the proportion that its weight says, whatever its own scale."""

import pytest
import torch

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.config.parse import parse_config
from kdcli.data import Batch
from kdcli.methods import build_method
from kdcli.methods.balance import Balance
from kdcli.methods.base import Context
from kdcli.methods.share import Share
from kdcli.models import build_student, load_teacher
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.training.distiller import Distiller
from kdcli.training.teachers.teacher import LiveTeacher

LABELS = ("a", "b", "c", "d")
STUDENTS = (
    "test_resnet",
    "test_vit",
    "deit_tiny_distilled_patch16_224?depth=2",
    "mobilenetv3_small_050",
    "cifar:resnet8",
)
PROJECTION = {
    "method": "projection",
    "projector": "inverted",
    "normalize_student": "standardize",
    "weighting": "gradient",
    "weight": 0.3,
}


@pytest.fixture(scope="module")
def teacher():
    model = load_teacher(TeacherConfig(name="random:test_efficientnet", image_size=48), seed=1)
    model.open_taps(["blocks.2"])
    return model


@pytest.fixture
def student():
    model = build_student(StudentConfig(name="test_resnet", image_size=32), DataFacts.of_labels(LABELS), seed=0)
    model.open_taps(["layer2"])
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 48, 48), dtype=torch.uint8, generator=generator)
    return Batch(images=images, targets=torch.tensor([0, 1, 2, 3, 2, 0]), samples=torch.arange(6))


def build(student, teacher, *methods):
    options = parse_config({"teacher": "t", "student": "s", "data": "d", "methods": list(methods)}, source="t").methods
    context = Context(ImageClassification(LABELS), student.facts, teacher.facts, (0, 1, 2, 3))
    torch.manual_seed(0)
    return Distiller(student, {o.method: build_method(o, context) for o in options})


def run(distiller, teacher, batch):
    outputs = LiveTeacher(
        teacher,
        distiller.teacher_reads,
    )(batch)
    torch.manual_seed(1)  # of dropout
    return distiller(batch, outputs)


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("tap", ["embedding", "pooled"])
def test_the_gradients_are_in_the_asked_proportion(teacher, batch, name, tap):
    if name == "cifar:resnet8" and tap == "pooled":
        pytest.skip("its embedding is its pooled features")
    student = build_student(StudentConfig(name=name, image_size=32), DataFacts.of_labels(LABELS), seed=0)
    distiller = build(student, teacher, {"method": "supervised"}, {**PROJECTION, "student_tap": tap})
    distiller.train()
    seen = {}
    forward = student.forward

    def keep(*args, **kwargs):
        seen["output"] = forward(*args, **kwargs)
        return seen["output"]

    student.forward = keep
    terms = run(distiller, teacher, batch)
    edges = seen["output"].edges[tap]
    assert edges
    (task,) = torch.autograd.grad(terms["supervised"], edges, retain_graph=True)
    (own,) = torch.autograd.grad(terms["weight/projection"] * terms["projection"], edges, retain_graph=True)
    assert float(own.norm() / task.norm()) == pytest.approx(0.3, rel=1e-4)
    torch.testing.assert_close(terms["loss"], terms["supervised"] + terms["weight/projection"] * terms["projection"])


@pytest.mark.parametrize(
    "method",
    [
        {"method": "logit_kd"},
        {"method": "rkd_distance", "layers": ["layer2:blocks.2"]},
        {"method": "fitnet", "layers": ["layer2:blocks.2", "pooled:pooled"]},
        {"method": "spectral_regularization"},
    ],
    ids=lambda method: method["method"],
)
def test_the_scale_of_a_loss_does_not_matter(student, teacher, batch, method):
    """Of logits, of maps of several layers, of relations: ten times the loss gets a tenth of the factor."""
    name = method["method"]
    distiller = build(student, teacher, {"method": "supervised"}, {**method, "weight": 0.5, "weighting": "gradient"})
    before = run(distiller, teacher, batch)
    balanced = distiller.methods[name]
    forward = balanced.forward

    def scaled(*args):
        found = forward(*args)
        return Share(10 * found.mean, found.count) if isinstance(found, Share) else 10 * found

    balanced.forward = scaled
    after = run(distiller, teacher, batch)
    torch.testing.assert_close(10 * after[f"weight/{name}"], before[f"weight/{name}"], rtol=1e-4, atol=0)
    torch.testing.assert_close(after["loss"], before["loss"], rtol=1e-4, atol=1e-6)


def test_the_factor_is_held_between_measurements_and_follows_slowly(student, teacher, batch):
    distiller = build(student, teacher, {"method": "supervised"}, PROJECTION)
    first = run(distiller, teacher, batch)["weight/projection"]
    with torch.no_grad():
        distiller.methods["projection"].projector.weight.mul_(3)
    distiller.step = 9
    assert not Balance.is_due(9)
    assert run(distiller, teacher, batch)["weight/projection"] == first
    distiller.step = 16
    followed = run(distiller, teacher, batch)["weight/projection"]
    assert followed < first
    distiller.balances["projection"].own_norm.zero_()
    distiller.step = 0
    assert run(distiller, teacher, batch)["weight/projection"] < followed, "the first step begins the means anew"


def test_evaluation_measures_nothing(student, teacher, batch):
    distiller = build(student, teacher, {"method": "supervised"}, PROJECTION).eval()
    assert run(distiller, teacher, batch)["weight/projection"] == 0
    assert distiller.balances["projection"].own_norm == 0


def test_a_loss_without_gradient_weighs_nothing():
    balance = Balance()
    features = torch.ones(3, 2, requires_grad=True)
    z = features * 2
    edges = [torch.autograd.graph.get_gradient_edge(z)]
    balance.measure(z.square().sum(), (0 * z).sum(), edges, add_up=lambda x: x, name="x", step=0)
    assert balance.factor() == 0
    balance.measure(z.square().sum(), z.sum(), edges, add_up=lambda x: x, name="x", step=0)
    assert balance.factor() == pytest.approx(float(2 * z.detach().norm() / torch.ones(3, 2).norm()))


def test_features_that_the_logits_do_not_depend_on_are_refused():
    x = torch.ones(3, 2, requires_grad=True)
    aside, edges = x * 2, []
    edges.append(torch.autograd.graph.get_gradient_edge(aside))
    with pytest.raises(UserError, match="the student's logits don't depend on the features"):
        Balance().measure((x * 3).sum(), aside.sum(), edges, add_up=lambda v: v, name="projection", step=0)


def test_a_compiled_student_is_measured_too(student, teacher, batch):
    distiller = build(student, teacher, {"method": "supervised"}, PROJECTION)
    expected = run(distiller, teacher, batch)["weight/projection"]
    compiled = build(student, teacher, {"method": "supervised"}, PROJECTION)
    compiled.student.compile(backend="aot_eager")
    torch.testing.assert_close(run(compiled, teacher, batch)["weight/projection"], expected)
    compiled.step = 9
    terms = run(compiled, teacher, batch)
    terms["loss"].backward()
    torch.testing.assert_close(terms["weight/projection"], expected)
