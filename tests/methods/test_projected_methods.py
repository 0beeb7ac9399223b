"""Methods on features with a projector of each kind: planned, built and trained; their values against formulas by hand."""

from __future__ import annotations

import dataclasses
import itertools
import typing

import pytest
import torch
import torch.nn.functional as F

from kdcli import losses
from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.names import ProjectorName
from kdcli.base.reads import Reads
from kdcli.config.methods import METHODS, LayerOptions
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.config.parse import parse_config
from kdcli.data import Batch, prepare
from kdcli.methods import build_method
from kdcli.methods.base import Context
from kdcli.models import build_student, load_teacher
from kdcli.plan.decide import make_plan
from kdcli.plan.relation import situation_of
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.training.distiller import Distiller
from kdcli.training.teachers.teacher import LiveTeacher

LABELS = ("a", "b", "c", "d")
TRAIN_LABELS = [0, 1, 2, 3] * 5
DATA = DataFacts("photos", "image-classification", LABELS, 20, 20, 4, 4)
WITH_LAYERS = sorted({name for name, section in METHODS.items() if issubclass(section, LayerOptions)} - {"skd"})
"""But for the one that pools the small maps here to a single position, and refuses it; the contract has it."""
PROJECTORS = typing.get_args(ProjectorName)
PAIRS = [("pooled", "pooled"), ("layer2", "blocks.2")]
LAYERS = [":".join(pair) for pair in PAIRS]


@pytest.fixture(scope="module")
def teacher():
    """Its maps have the grid 2 x 2 at the end, as the student's, and before that a smaller one than the student's."""
    model = load_teacher(TeacherConfig(name="random:test_efficientnet", image_size=48), seed=1)
    model.open_taps(["blocks.1", "blocks.2"])
    return model


@pytest.fixture
def student():
    model = build_student(StudentConfig(name="test_resnet", image_size=64), DataFacts.of_labels(LABELS), seed=0)
    model.open_taps(["layer2"])
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 48, 48), dtype=torch.uint8, generator=generator)
    return Batch(images=images, targets=torch.tensor([0, 1, 2, 3, 2, 1]), samples=torch.tensor([0, 1, 2, 3, 6, 9]))


def plan(student, teacher, **values):
    """Return the plan for data with the labels that the methods need."""
    config = parse_config({"teacher": "t", "student": "s", "data": "d", **values}, source="t")
    names = [config.method, *(options.method for options in config.methods or ())]
    kinds = [METHODS[name].needs.labels for name in names if name in METHODS and name != "supervised"]
    kind = next((found[0] for found in kinds if found), "class")
    data = dataclasses.replace(DATA, label_kind=kind)
    return make_plan(situation_of(config, teacher=teacher.facts, student=student.facts, data=data))


def build(student, teacher, *methods):
    """Return the distiller of a recipe with these methods beside the labels' loss, as planned."""
    planned = plan(student, teacher, methods=[{"method": "supervised"}, *methods]).methods
    context = Context(ImageClassification(LABELS), student.facts, teacher.facts, None, TRAIN_LABELS, seed=5)
    torch.manual_seed(0)
    return Distiller(student, {options.method: build_method(options, context) for options in planned})


def outputs_of_teacher(distiller, teacher, batch):
    return LiveTeacher(teacher, distiller.teacher_reads)(batch)


def optimizer_of(distiller, lr):
    values = {"teacher": "t", "student": "s", "data": "d", "optim": {"lr": lr, "weight_decay": 0.01}}
    (phase,) = distiller.phases(parse_config(values, source="t"), 1)
    return phase.optimizer


def case(method, projector, **options):
    options = {"method": method, "projector": projector, **options}
    return {**options, "layers": list(reversed(LAYERS)) if method == "review_kd" else LAYERS}


# ---- Every method with every projector ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "projector"), [*itertools.product(["fitnet"], PROJECTORS), ("review_kd", "inverted"), ("crd", "linear")]
)
def test_it_trains_the_projector_and_the_student(student, teacher, batch, method, projector):
    distiller = build(student, teacher, case(method, projector)).train()
    own = distiller.methods[method]
    found = distiller.projections()
    assert list(found) == [f"{method}.{number}" for number in range(3 if method == "review_kd" else 2)]
    assert all(pair.lr_scale == (0.01 if projector == "inverted" else 1.0) for pair in found.values())
    outputs = outputs_of_teacher(distiller, teacher, batch)
    optimizer = optimizer_of(distiller, 1e-3)
    before = {name: value.detach().clone() for name, value in own.named_parameters()}
    values = []
    for step in range(12):
        optimizer.zero_grad()
        term = distiller(batch, outputs)[method]
        term.backward()
        if step == 0:
            assert all(p.grad is not None and p.grad.isfinite().all() for p in own.parameters())
            for pair in found.values():
                assert all(float(p.grad.abs().sum()) > 0 for p in pair.projector.parameters())
            assert sum(float(p.grad.abs().sum()) for p in student.parameters() if p.grad is not None) > 0
        optimizer.step()
        values.append(float(term.detach()))
    assert min(values[-3:]) < values[0], values
    assert all(not torch.equal(value, before[name]) for name, value in own.named_parameters())
    if projector == "orthogonal":
        for matrix in distiller.projector_matrices().values():
            gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
            assert (gram - torch.eye(len(gram))).abs().max() <= 1e-5


@pytest.mark.parametrize(("method", "projector"), list(itertools.product(WITH_LAYERS, PROJECTORS)))
def test_the_projector_goes_from_one_sides_width_to_the_others(student, teacher, method, projector):
    distiller = build(student, teacher, case(method, projector, **({"width": 16} if method == "review_kd" else {})))
    ours = [student.facts.feature_dims[tap] for tap, _ in PAIRS]
    theirs = [teacher.facts.feature_dims[tap] for _, tap in PAIRS]
    if method == "review_kd":  # the deepest level first: the pooled one, of the deepest layer
        ours, theirs = [16] * 3, [theirs[0], *theirs]
    projectors = [pair.projector for pair in distiller.projections().values()]
    assert [(p.student_dim, p.teacher_dim) for p in projectors] == list(zip(ours, theirs, strict=True))
    shapes = [tuple(matrix.shape) for matrix in distiller.projector_matrices().values()]
    if projector == "mlp":
        assert shapes == []
    else:
        assert shapes == list(zip(*((theirs, ours) if projector == "inverted" else (ours, theirs)), strict=True))


# ---- Values ---------------------------------------------------------------------------------------------------------


def standardized(features):
    """Each channel, the second dimension, with mean zero and variance one over all others; zero where it is constant."""
    other = [dimension for dimension in range(features.ndim) if dimension != 1]
    centred = features - features.mean(other, keepdim=True)
    return centred / centred.square().mean(other, keepdim=True).sqrt().clamp_min(1e-6)


def on_a_grid(ours, theirs):
    grid = [min(sides) for sides in zip(ours.shape[2:], theirs.shape[2:], strict=True)]
    return F.adaptive_avg_pool2d(ours, grid), F.adaptive_avg_pool2d(theirs, grid)


def projected(features, matrix):
    return torch.einsum("bc...,cd->bd...", features, matrix)


def of_inverted(ours, theirs, matrix):
    ours, theirs = (ours, theirs) if ours.ndim == 2 else on_a_grid(ours, theirs)
    return standardized(ours), projected(standardized(theirs), matrix)


def of_linear(ours, theirs, matrix):
    ours, theirs = (ours, theirs) if ours.ndim == 2 else on_a_grid(ours, theirs)
    return standardized(projected(ours, matrix)), standardized(theirs)


def by_hand_fitnet(ours, theirs):
    return ((ours - theirs) ** 2).mean()


def by_hand_rkd_distance(ours, theirs):
    total, pairs = 0.0, list(itertools.permutations(range(len(ours)), 2))
    distances = [[(side[i] - side[j]).square().sum().sqrt() for i, j in pairs] for side in (ours, theirs)]
    means = [sum(side) / len(pairs) for side in distances]
    for s, t in zip(*distances, strict=True):
        error = (s / means[0] - t / means[1]).abs()
        total = total + (error**2 / 2 if error < 1 else error - 0.5)
    return total / len(pairs)


def by_hand_pkt(ours, theirs):
    total, size = 0.0, len(ours)
    for i in range(size):
        kernels = []
        for side in (ours, theirs):
            values = [
                (side[i] @ side[j] / (side[i].norm() * side[j].norm()) + 1) / 2 + 1e-7 for j in range(size) if j != i
            ]
            kernels.append([value / sum(values) for value in values])
        total = total + sum(t * (t / s).log() for s, t in zip(*kernels, strict=True))
    return total / size


def by_hand_attention_transfer(ours, theirs):
    total = 0.0
    for s, t in zip(ours, theirs, strict=True):
        maps = [(side.abs() ** 2).sum(dim=0).flatten() for side in (s, t)]
        total = total + (maps[0] / maps[0].norm() - maps[1] / maps[1].norm()).square().mean()
    return total / len(ours)


def by_pure_function(loss, **settings):
    return lambda ours, theirs: loss(ours, theirs, **settings).mean()


def vid(ours, theirs):
    variance = torch.tensor(5.0)
    return ((theirs - ours) ** 2 / variance + variance.log()).mean() / 2


FORMULAS = {
    "fitnet": by_hand_fitnet,
    "rkd_distance": by_hand_rkd_distance,
    "pkt": by_hand_pkt,
    "attention_transfer": by_hand_attention_transfer,
    "rkd_angle": by_pure_function(losses.rkd_angle),
    "similarity_preserving": by_pure_function(losses.similarity_preserving),
    "correlation_congruence": by_pure_function(losses.correlation_congruence),
    "nst": by_pure_function(losses.nst),
    "vid": vid,
}


def tapped(student, teacher, batch, method):
    """The features or maps of both pairs of layers."""
    taps, teacher_taps = (tuple(side) for side in zip(*PAIRS, strict=True))
    ours = student(prepare(batch.images, student.facts.preprocessing), Reads(taps, maps=taps) | student.predictions)
    theirs = teacher(
        prepare(batch.images, teacher.facts.preprocessing), Reads(teacher_taps, maps=teacher_taps) | teacher.predictions
    )
    read = METHODS[method](method=method).reads_layers
    return [(getattr(ours, read)[s], getattr(theirs, read)[t]) for s, t in PAIRS]


@pytest.mark.parametrize(("method", "projector"), list(itertools.product(FORMULAS, ["inverted", "linear"])))
def test_the_loss_is_that_of_the_projected_features(student, teacher, batch, method, projector):
    distiller = build(student, teacher, case(method, projector)).eval()
    value = distiller(batch, outputs_of_teacher(distiller, teacher, batch))[method]
    sides = of_inverted if projector == "inverted" else of_linear
    with torch.no_grad():
        matrices = distiller.projector_matrices().values()
        terms = [
            FORMULAS[method](*sides(*pair, matrix))
            for pair, matrix in zip(tapped(student, teacher, batch, method), matrices, strict=True)
        ]
    torch.testing.assert_close(value.detach(), sum(terms), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("projector", ["orthogonal", "inverted"])
def test_a_projection_reads_maps_as_vkd_does_for_detection(student, teacher, batch, projector):
    """Both sides per channel over batch and positions, on the smaller grid; smooth L1, weight 4."""
    setting = {"normalize_student": "standardize", "distance": "smooth_l1", "weight": 4, "reads": "maps"}
    method = {
        "method": "projection",
        "projector": projector,
        "student_tap": "layer2",
        "teacher_tap": "blocks.2",
        **setting,
    }
    distiller = build(student, teacher, method)
    value = distiller(batch, outputs_of_teacher(distiller, teacher, batch))["projection"]
    (matrix,) = distiller.projector_matrices().values()
    with torch.no_grad():
        ours, theirs = tapped(student, teacher, batch, "fitnet")[1]
        assert ours.shape[2:] != theirs.shape[2:]
        expected = F.smooth_l1_loss(*(of_inverted if projector == "inverted" else of_linear)(ours, theirs, matrix))
    torch.testing.assert_close(value.detach(), expected, rtol=1e-4, atol=1e-5)
    assert distiller.embedding_projector() is None
    decisions = plan(student, teacher, methods=[{"method": "supervised"}, method]).decisions
    assert "layer2 (48, 8x8)" in next(d for d in decisions if d.name == "features: projection").value


@pytest.mark.parametrize("projector", ["orthogonal", "inverted"])
def test_levels_of_a_projection_are_one_loss(student, teacher, batch, projector):
    """Each with a projector; the sum is that of a projection of each alone."""
    setting = {"method": "projection", "projector": projector, "reads": "maps", "normalize_student": "standardize"}
    distiller = build(student, teacher, {**setting, "layers": [":".join(pair) for pair in PAIRS]})
    outputs = outputs_of_teacher(distiller, teacher, batch)
    value = distiller(batch, outputs)["projection"]
    assert list(distiller.projector_matrices()) == ["projection.0", "projection.1"]
    assert distiller.embedding_projector() is None
    expected = 0
    for (ours, theirs), level in zip(PAIRS, distiller.methods["projection"].levels, strict=True):
        alone = build(student, teacher, {**setting, "student_tap": ours, "teacher_tap": theirs})
        alone.methods["projection"].projector.load_state_dict(level.projector.state_dict())
        expected += alone(batch, outputs_of_teacher(alone, teacher, batch))["projection"]
    torch.testing.assert_close(value, expected)
    methods = [{"method": "supervised"}, {**setting, "layers": LAYERS}]
    assert sum(d.name == "features: projection" for d in plan(student, teacher, methods=methods).decisions) == 2


def test_crd_takes_the_projected_features_for_embeddings(student, teacher, batch):
    distiller = build(student, teacher, case("crd", "inverted")).eval()
    method = distiller.methods["crd"]
    value = distiller(batch, outputs_of_teacher(distiller, teacher, batch))["crd"]
    samples, terms = batch.samples, []
    with torch.no_grad():
        matrices = distiller.projector_matrices().values()
        tensors = zip(method.contrasts, tapped(student, teacher, batch, "crd"), matrices, strict=True)
        for contrast, pair, matrix in tensors:
            ours, theirs = (F.normalize(side) for side in of_inverted(*pair, matrix))
            assert contrast.student_memory.shape == contrast.teacher_memory.shape == (20, ours.shape[1])
            negatives = contrast.draw(samples)
            for anchors, memory in ((ours, contrast.teacher_memory), (theirs, contrast.student_memory)):
                terms.append(losses.crd(anchors, memory[samples], memory[negatives], num_samples=20).mean())
    torch.testing.assert_close(value.detach(), sum(terms))


def test_review_kd_brings_the_teacher_to_the_fused_maps(student, teacher, batch):
    distiller = build(student, teacher, case("review_kd", "inverted", width=16)).eval()
    method = distiller.methods["review_kd"]
    value = distiller(batch, outputs_of_teacher(distiller, teacher, batch))["review_kd"]
    with torch.no_grad():
        (deep, deep_theirs), (shallow, shallow_theirs) = tapped(student, teacher, batch, "review_kd")
        levels = [(deep.mean((2, 3), keepdim=True), deep_theirs.mean((2, 3), keepdim=True))]
        levels += [(deep, deep_theirs), (shallow, shallow_theirs)]
        fused, terms = None, []
        matrices = distiller.projector_matrices().values()
        for fusion, (ours, theirs), matrix in zip(method.fusions, levels, matrices, strict=True):
            output, fused = fusion(ours, fused, theirs.shape[2:])
            assert output is fused
            assert fused.shape == (6, 16, *theirs.shape[2:])
            terms.append(losses.review_kd(standardized(fused), projected(standardized(theirs), matrix)).mean())
    torch.testing.assert_close(value.detach(), sum(terms), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [losses.mse, losses.pkt, losses.similarity_preserving, losses.correlation_congruence])
def test_both_sides_can_not_agree_on_nothing(loss):
    """A student that has all but collapsed, and a map that takes the teacher there: only as they are is the loss zero."""
    torch.manual_seed(0)
    noise, theirs = 1e-3 * torch.randn(8, 4), torch.rand(8, 6)  # the teacher's as after a ReLU: not negative
    theirs = theirs / theirs.sum(dim=1, keepdim=True)
    if loss is losses.mse:
        ours, matrix = noise, torch.zeros(6, 4)
    else:
        ours, matrix = torch.ones(8, 4) + noise, torch.ones(6, 4)
        matrix[0] += 1e-3
    assert loss(ours, theirs @ matrix).mean() < 1e-5
    assert loss(*of_inverted(ours, theirs, matrix)).mean() > 1e-2


# ---- What the distiller knows of them --------------------------------------------------------------------------------


def test_rate_and_weight_decay_are_the_projectors_alone(student, teacher):
    """The variances of VID, the fusions of ReviewKD and the student go on at the student's rate."""
    vid, review = case("vid", "inverted", lr_scale=0.25), case("review_kd", "orthogonal", lr_scale=0.5)
    distiller = build(student, teacher, vid, review)
    groups = distiller.parameter_groups(lr=1.0, weight_decay=0.05)
    names = {id(parameter): name for name, parameter in distiller.named_parameters()}
    seen = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(seen) == sorted(names.values())
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            is_projector = ".projector." in name
            scale = (0.25 if ".vid." in name else 0.5) if is_projector else 1.0
            decays = parameter.ndim > 1 and not (is_projector and ".review_kd." in name)
            assert (group["lr_scale"], group["weight_decay"]) == (scale, 0.05 if decays else 0.0), name


def test_one_layer_has_the_methods_name_and_several_have_numbers(student, teacher):
    methods = [
        {"method": "pkt", "projector": "inverted"},
        case("rkd_angle", "linear"),
        {"method": "nst"},
        {"method": "projection", "projector": "orthogonal"},
    ]
    distiller = build(student, teacher, *methods)
    assert list(distiller.projector_matrices()) == ["pkt", "rkd_angle.0", "rkd_angle.1", "projection"]


def test_a_projector_of_relations_is_no_way_into_the_teachers_space(student, teacher):
    distiller = build(student, teacher, {"method": "pkt", "projector": "linear"})
    assert distiller.embedding_projector() is None


@pytest.mark.parametrize("method", [method for method in WITH_LAYERS if method != "pkd"])  # it needs equal widths
def test_without_a_projector_nothing_is_added(student, teacher, method):
    distiller = build(student, teacher, {"method": method, "layers": case(method, None)["layers"]})
    assert distiller.projections() == {}
    assert not any("projector" in name for name in distiller.state_dict())
    planned = plan(student, teacher, method=method)
    (decision,) = (d for d in planned.decisions if d.name == f"loss: {method.replace('_', ' ')}")
    assert "projector" not in decision.value
    assert "lr_scale" not in decision.value


# ---- Plans and refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", WITH_LAYERS)
def test_the_option_and_the_recipe_give_the_same_plan(student, teacher, method):
    """The option's weight is the ratio of the plan's own projection, here with an untrained teacher."""
    asked = plan(student, teacher, method=method, projector="inverted")
    chosen = asked.methods[1]
    assert (chosen.projector, chosen.lr_scale, chosen.weight, chosen.weighting) == ("inverted", 0.01, 0.1, "gradient")
    written = {"method": method, "projector": "inverted", "weight": 0.1, "weighting": "gradient"}
    assert asked.methods == plan(student, teacher, methods=[{"method": "supervised"}, written]).methods
    assert plan(student, teacher, method=method, projector="inverted", feature_weight=2).methods[1].weight == 2
    (decision,) = (d for d in asked.decisions if d.name == f"loss: {method.replace('_', ' ')}")
    for told in ("projector inverted", "direction teacher to student", "normalize standardize, both sides"):
        assert told in decision.value
    assert "can't shrink" in decision.reason
    assert "kept at 0.1 of the labels'" in decision.reason
    (features, *_) = (d for d in asked.decisions if d.name == f"features: {method.replace('_', ' ')}")
    assert features.value.startswith("teacher ")


@pytest.mark.parametrize("method", WITH_LAYERS)
def test_a_wider_student_is_told_what_an_orthogonal_projector_leaves_out(student, teacher, method):
    dims = student.facts.feature_dims | {"pooled": 2 * teacher.facts.feature_dims["pooled"]}
    student.facts = dataclasses.replace(student.facts, feature_dims=dims)
    for projector in ("orthogonal", "linear"):
        written = {"method": method, "projector": projector, "layers": ["pooled:pooled"]}
        planned = plan(student, teacher, methods=[{"method": "supervised"}, written])
        (features,) = (d for d in planned.decisions if d.name == f"features: {method.replace('_', ' ')}")
        # ReviewKD's goes from the fused maps.
        assert ("The student is wider" in features.reason) == (projector == "orthogonal" and method != "review_kd")


def test_a_rate_that_is_given_stays(student, teacher):
    method = {"method": "pkt", "projector": "inverted", "lr_scale": 0.3}
    assert plan(student, teacher, methods=[{"method": "supervised"}, method]).methods[1].lr_scale == 0.3


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"method": "logit_kd"}, "logit_kd has no projector: it compares logits"),
        ({"method": "dkd"}, "dkd has no projector: it compares logits"),
        ({"method": "dist"}, "dist has no projector: it compares logits"),
        ({"method": "deit"}, "deit has no projector: it compares logits"),
        ({"method": "supervised"}, "supervised has no projector: it reads the labels alone"),
        ({"method": "spectral_regularization"}, "it reads the student's features alone"),
        ({"method": "stochastic_triplet_kl"}, "could make all comparisons alike"),
        ({"method": "local_classifier_kl"}, "never features with features"),
        ({"method": "fitnet", "regressor": "linear"}, "regressor has no effect with a projector"),
        ({"method": "crd", "width": 64}, "width has no effect with a projector"),
        ({"method": "projection", "layers": ["1:2"], "student_tap": "1"}, "drop student_tap and teacher_tap"),
        ({"method": "skd", "pool": 1.5}, "pool is a whole number of positions, or a share below 1"),
        ({"method": "pkt", "projector": "unitary"}, "'unitary' is not one of"),
        ({"method": "pkt", "projector": None, "lr_scale": 0.1}, "lr_scale is of a projector, and there is none"),
    ],
)
def test_recipes_that_ask_for_what_there_is_not(method, message):
    values = {"teacher": "t", "student": "s", "data": "d", "methods": [{"projector": "inverted", **method}]}
    with pytest.raises(UserError) as caught:
        parse_config(values, source="t")
    assert message in caught.value.message
