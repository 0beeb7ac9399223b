"""Every method through the distiller: its value is the pure function's on the tapped tensors, its gradient the student's."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from kdcli import losses
from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, DataFacts
from kdcli.base.reads import Reads
from kdcli.config.methods import METHODS, LayerOptions
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.config.parse import parse_config
from kdcli.data import Batch, prepare
from kdcli.methods import build_method
from kdcli.methods.base import Context
from kdcli.methods.crd import Contrast
from kdcli.models import build_student, load_teacher
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.training.distiller import Distiller
from kdcli.training.teachers.teacher import LiveTeacher
from tests.methods.test_dense_methods import VALUES

LABELS = ("a", "b", "c", "d")
LABEL_MAP = (2, 0, 3, 1)
TRAIN_LABELS = [0, 1, 2, 3, UNLABELLED] * 4
MAPS = ("pooled", "layer2")
TEACHER_MAPS = ("pooled", "blocks.2")
LAYERS = ["pooled:pooled", "layer2:blocks.2"]


@pytest.fixture(scope="module")
def teacher():
    """Its classifier is over the same labels, in another order; its map of ``blocks.2`` is larger than the student's."""
    model = load_teacher(TeacherConfig(name="random:test_efficientnet", image_size=48), seed=1)
    model.open_taps(["blocks.1", "blocks.2"])
    return model


@pytest.fixture
def student():
    model = build_student(StudentConfig(name="test_resnet", image_size=32), DataFacts.of_labels(LABELS), seed=0)
    model.open_taps(["layer2"])
    return model


@pytest.fixture
def distilled_student():
    name = "deit_tiny_distilled_patch16_224"
    return build_student(StudentConfig(name=name, image_size=32), DataFacts.of_labels(LABELS), seed=0)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 48, 48), dtype=torch.uint8, generator=generator)
    return Batch(
        images=images,
        targets=torch.tensor([0, 1, UNLABELLED, 3, 2, UNLABELLED]),
        samples=torch.tensor([0, 1, 4, 3, 7, 9]),
    )


def build(student, teacher, *methods, train_labels=TRAIN_LABELS, train_ids=None):
    values = {"teacher": "t", "student": "s", "data": "d", "methods": [{"method": "supervised"}, *methods]}
    options = parse_config(values, source="t").methods
    context = Context(
        ImageClassification(LABELS), student.facts, teacher.facts, LABEL_MAP, train_labels, train_ids, seed=5
    )
    torch.manual_seed(0)
    return Distiller(student, {o.method: build_method(o, context) for o in options})


def outputs_of_teacher(distiller, teacher, batch):
    live = LiveTeacher(
        teacher,
        distiller.teacher_reads,
    )
    return live(batch)


def pairs(student, teacher):
    """The features and maps that the losses of two pairs of layers are made of, ours and theirs."""
    features = [(student.features["pooled"], teacher.features["pooled"])]
    features.append((student.features["layer2"], teacher.features["blocks.2"]))
    maps = [(student.maps["pooled"], teacher.maps["pooled"]), (student.maps["layer2"], teacher.maps["blocks.2"])]
    return features, maps


def of_features(loss):
    return lambda method, s, t, targets: sum(loss(*pair).mean() for pair in pairs(s, t)[0])


def of_maps(loss):
    return lambda method, s, t, targets: sum(loss(*pair).mean() for pair in pairs(s, t)[1])


def fitnet(method, s, t, targets):
    """The student's 1 x 1 and 4 x 4 grids against the teacher's 2 x 2 and 6 x 6: the teacher's are pooled, kernel 1."""
    terms = []
    for regressor, (ours, theirs) in zip(method.regressors, pairs(s, t)[1], strict=True):
        weight = regressor.weight[:, :, 0, 0]
        regressed = torch.einsum("oc,bchw->bohw", weight, ours) + regressor.bias[None, :, None, None]
        terms.append((regressed - F.adaptive_avg_pool2d(theirs, ours.shape[2:])).square().mean())
    return sum(terms)


def fitnet_benchmark(method, s, t, targets):
    """From 1 x 1 to 2 x 2 by a transposed convolution; 4 x 4 against 6 x 6 is neither half nor twice: a kernel of 1."""
    (up, up_norm, _), (same, same_norm, _) = method.regressors
    (first, first_theirs), (last, last_theirs) = pairs(s, t)[1]
    grown = F.conv_transpose2d(first, up.weight, up.bias, stride=2, padding=1)
    assert (up.kernel_size, grown.shape) == ((4, 4), first_theirs.shape)
    total = (torch.relu(up_norm(grown)) - first_theirs).square().mean()
    kept = torch.relu(same_norm(F.conv2d(last, same.weight, same.bias)))
    return total + (kept - F.adaptive_avg_pool2d(last_theirs, last.shape[2:])).square().mean()


def vid(method, s, t, targets):
    terms = []
    for regressor, raw, (ours, theirs) in zip(method.regressors, method.raw_variances, pairs(s, t)[1], strict=True):
        ours, theirs = losses.common_grid(ours, theirs)
        variance = (F.softplus(raw) + 1e-5)[None, :, None, None]
        terms.append(((theirs - regressor(ours)).square() / variance + variance.log()).mean() / 2)
    return sum(terms)


def review_kd(method, s, t, targets):
    """Deepest first, as in the paper; here the given order is from deep to shallow, so the last pair is the deepest.

    Before it comes its mean over positions, a map of 1 x 1.
    """
    (first, first_theirs), (last, last_theirs) = pairs(s, t)[1]
    *pooled, deep, shallow = method.fusions
    total, fused = 0, None
    for fusion in pooled:
        mean = last_theirs.mean((2, 3), keepdim=True)
        out, fused = fusion(last.mean((2, 3), keepdim=True), None, (1, 1))
        total = total + (out - mean).square().mean()
    out, fused = deep(last, fused, last_theirs.shape[2:])
    total = total + losses.review_kd(out, last_theirs).mean()
    out, _ = shallow(first, fused, first_theirs.shape[2:])
    return total + losses.review_kd(out, first_theirs).mean()


def dkd(method, s, t, targets):
    rows = targets != UNLABELLED
    ours, theirs = s.logits[rows], t.logits[rows][:, LABEL_MAP]
    return losses.dkd(ours, theirs, targets[rows], temperature=4.0, alpha=1.0, beta=8.0).mean()


def logits(loss, **settings):
    return lambda method, s, t, targets: loss(s.logits, t.logits[:, LABEL_MAP], **settings).mean()


def token(loss, **settings):
    return lambda method, s, t, targets: loss(s.heads["distillation"], t.logits[:, LABEL_MAP], **settings).mean()


def crd(method, s, t, targets):
    """Row by row, with what was stored before and without a partition, as outside training."""
    total = 0.0
    for contrast, (ours, theirs) in zip(method.contrasts, pairs(s, t)[0], strict=True):
        samples = torch.tensor([0, 1, 4, 3, 7, 9])
        embedded = [F.normalize(contrast.student_embedding(ours)), F.normalize(contrast.teacher_embedding(theirs))]
        negatives = contrast.draw(samples)
        for anchors, memory in zip(embedded, (contrast.teacher_memory, contrast.student_memory), strict=True):
            shift = math.log(negatives.shape[1] / 20)
            for row, sample in enumerate(samples):
                positive = torch.sigmoid(anchors[row] @ memory[sample] / 0.07 - shift)
                others = torch.sigmoid(memory[negatives[row]] @ anchors[row] / 0.07 - shift)
                total = total - (torch.log(positive) + torch.log1p(-others).sum()) / 6
    return total


CASES = {
    "logit_kd": ({"temperature": 2.0}, logits(losses.logit_kd, temperature=2.0)),
    "logit_kd-reverse": (
        {"temperature": 2.0, "divergence": "reverse_kl"},
        logits(losses.logit_kd, temperature=2.0, divergence="reverse_kl"),
    ),
    "logit_kd-jensen": (
        {"divergence": "jensen_shannon", "beta": 0.1},
        logits(losses.logit_kd, temperature=1.0, divergence="jensen_shannon", beta=0.1),
    ),
    "dkd": ({}, dkd),
    "dist": ({"temperature": 2.0, "gamma": 0.5}, logits(losses.dist, temperature=2.0, gamma=0.5)),
    "deit": ({}, token(losses.deit_hard)),
    "deit-soft": ({"kind": "soft"}, token(losses.deit_soft, temperature=3.0)),
    "fitnet": ({}, fitnet_benchmark),
    "fitnet-convolutional": ({"regressor": "convolutional"}, fitnet),
    "fitnet-linear": ({"regressor": "linear"}, fitnet),
    "attention_transfer": ({"power": 3.0}, of_maps(lambda s, t: losses.attention_transfer(s, t, power=3.0))),
    "nst": ({}, of_maps(losses.nst)),
    "nst-linear": ({"kernel": "linear"}, of_maps(lambda s, t: losses.nst(s, t, kernel="linear"))),
    "vid": ({"initial_variance": 2.0}, vid),
    "similarity_preserving": ({}, of_maps(losses.similarity_preserving)),
    "review_kd": ({"width": 16}, review_kd),
    "review_kd-layers": ({"width": 16, "pooled": False}, review_kd),
    "pkt": ({}, of_features(losses.pkt)),
    "correlation_congruence": (
        {"gamma": 0.7, "order": 3},
        of_features(lambda s, t: losses.correlation_congruence(s, t, gamma=0.7, order=3)),
    ),
    "rkd_distance": ({}, of_features(losses.rkd_distance)),
    "rkd_angle": ({}, of_features(losses.rkd_angle)),
    "crd": ({"width": 8}, crd),
}


TRAINED = ["deit", "fitnet", "review_kd", "crd"]
"""A head of its own, statistics of maps, fused maps, a memory: of all methods the contract holds it on made-up outputs."""


def case(name):
    options, expected = CASES[name]
    options = {"method": name.partition("-")[0], **options}
    if issubclass(METHODS[options["method"]], LayerOptions):
        options["layers"] = LAYERS
    return options, expected


def test_every_method_with_a_teacher_is_here():
    assert {name.partition("-")[0] for name in CASES} | {
        "projection",
        "stochastic_triplet_kl",
        "local_classifier_kl",
        "dense_regression",  # tests/methods/test_dense_regression.py
        "image_regression",  # tests/methods/test_image_methods.py
        *VALUES,
    } == {name for name, section in METHODS.items() if getattr(section.needs, "teacher", False)}  # gan may do without


@pytest.fixture
def pupil(request):
    """The student of the case."""
    return request.getfixturevalue("distilled_student" if request.param.startswith("deit") else "student")


@pytest.mark.parametrize(("pupil", "name"), [(name, name) for name in CASES], indirect=["pupil"], ids=list(CASES))
def test_the_loss_is_the_pure_functions_on_the_tapped_tensors(pupil, name, teacher, batch):
    options, expected = case(name)
    distiller = build(pupil, teacher, options).eval()
    method = distiller.methods[options["method"]]
    terms = distiller(batch, outputs_of_teacher(distiller, teacher, batch))
    with torch.no_grad():
        taps, teacher_taps = (MAPS, TEACHER_MAPS) if "layers" in options else ((), ())
        images = prepare(batch.images, pupil.facts.preprocessing)
        ours = pupil(
            images, Reads(taps, maps=taps, heads=("logits", *(("distillation",) if name.startswith("deit") else ())))
        )
        theirs = teacher(
            prepare(batch.images, teacher.facts.preprocessing),
            Reads(teacher_taps, maps=teacher_taps) | teacher.predictions,
        )
        value = expected(method, ours, theirs, batch.targets)
    torch.testing.assert_close(terms[options["method"]].detach(), value, rtol=1e-4, atol=1e-5)
    supervised = F.cross_entropy(ours.logits, batch.targets, ignore_index=UNLABELLED, label_smoothing=0.1)
    torch.testing.assert_close(terms["supervised"].detach(), supervised)
    total = terms["supervised"] + METHODS[options["method"]].model_fields["weight"].default * terms[options["method"]]
    torch.testing.assert_close(terms["loss"], total)


@pytest.mark.parametrize(("pupil", "name"), [(name, name) for name in TRAINED], indirect=["pupil"], ids=TRAINED)
def test_training_reaches_the_student_and_the_methods_modules_but_not_the_teacher(pupil, name, teacher, batch):
    options, _ = case(name)
    distiller = build(pupil, teacher, options).train()
    values = {"teacher": "t", "student": "s", "data": "d", "optim": {"lr": 1e-3}}
    (phase,) = distiller.phases(parse_config(values, source="t"), 1)
    optimizer = phase.optimizer
    before = copy.deepcopy(dict(distiller.named_parameters()))
    frozen = {key: value.clone() for key, value in teacher.state_dict().items()}
    for step in range(3):
        optimizer.zero_grad()
        terms = distiller(batch, outputs_of_teacher(distiller, teacher, batch))
        if step == 0:  # of the method alone
            terms[options["method"]].backward(retain_graph=True)
            reached = [p for p in pupil.parameters() if p.grad is not None]
            assert sum(float(p.grad.abs().sum()) for p in reached) > 0
            mine = list(distiller.methods[options["method"]].parameters())
            assert all(p.grad is not None and p.grad.isfinite().all() for p in mine)
            optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        assert all(value.isfinite() for value in terms.values())
    changed = {key for key, value in distiller.named_parameters() if not torch.equal(value, before[key])}
    assert {key for key in before if key.startswith("methods.")} <= changed
    assert any(key.startswith("student.") for key in changed)
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, frozen[key]) for key, value in teacher.state_dict().items())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)


def test_map_features_are_watched_for_collapse(student, teacher, batch):
    distiller = build(student, teacher, {"method": "nst", "layers": ["layer2:blocks.2"]}).eval()
    terms = distiller(batch, outputs_of_teacher(distiller, teacher, batch))
    images = prepare(batch.images, student.facts.preprocessing)
    pooled = student(images, Reads(maps=("layer2",))).maps["layer2"].mean((2, 3))
    torch.testing.assert_close(terms["feature_norm/layer2"], pooled.norm(dim=1).mean())
    torch.testing.assert_close(terms["feature_std/layer2"], pooled.var(dim=0, correction=0).sum().sqrt())


def test_fitnets_kernel_takes_the_students_grid_to_the_teachers(student, teacher, batch):
    """4 x 4 to 2 x 2 is a kernel of 3; the paper's loss is half the sum of squares, which weighs 1."""
    hint = {
        "method": "fitnet",
        "layers": ["layer2:pooled"],
        "regressor": "convolutional",
        "reduction": "sum",
        "weight": 1,
    }
    distiller = build(student, teacher, hint).eval()
    (regressor,) = distiller.methods["fitnet"].regressors
    assert (student.facts.grids["layer2"], teacher.facts.grids["pooled"]) == ((4, 4), (2, 2))
    assert regressor.weight.shape[2:] == (3, 3)
    outputs = outputs_of_teacher(distiller, teacher, batch)
    images = prepare(batch.images, student.facts.preprocessing)
    regressed = regressor(student(images, Reads(maps=("layer2",))).maps["layer2"])
    assert regressed.shape == outputs.maps["pooled"].shape
    expected = (regressed - outputs.maps["pooled"]).square().sum((1, 2, 3)).mean() / 2
    torch.testing.assert_close(distiller(batch, outputs)["fitnet"], expected)


def test_fitnets_regressor_of_the_benchmark_halves_a_grid(student, teacher, batch):
    """4 x 4 to 2 x 2 by a convolution of 3 x 3 and stride 2, then batch normalisation and ReLU; the loss is a mean."""
    distiller = build(student, teacher, {"method": "fitnet", "layers": ["layer2:pooled"]}).eval()
    (regressor,) = distiller.methods["fitnet"].regressors
    convolution, norm, _ = regressor
    assert isinstance(norm, torch.nn.BatchNorm2d)
    outputs = outputs_of_teacher(distiller, teacher, batch)
    images = prepare(batch.images, student.facts.preprocessing)
    ours = student(images, Reads(maps=("layer2",))).maps["layer2"]
    halved = F.conv2d(ours, convolution.weight, convolution.bias, stride=2, padding=1)
    assert (convolution.weight.shape[2:], halved.shape) == ((3, 3), outputs.maps["pooled"].shape)
    expected = (torch.relu(norm(halved)) - outputs.maps["pooled"]).square().mean()
    torch.testing.assert_close(distiller(batch, outputs)["fitnet"], expected)


def test_review_kd_fuses_by_position(student, teacher, batch):
    """The fusion recomputed from its parts: two weights a position, deeper maps enlarged to the layer's grid."""
    layers = ["layer2:blocks.2", "pooled:pooled"]
    distiller = build(student, teacher, {"method": "review_kd", "layers": layers, "pooled": False}).eval()
    fusions = distiller.methods["review_kd"].fusions
    assert [fusion.attention is None for fusion in fusions] == [True, False]
    images = prepare(batch.images, student.facts.preprocessing)
    maps = student(images, Reads(maps=("layer2", "pooled"))).maps
    grids = teacher.facts.grids
    _, handed = fusions[0](maps["pooled"], None, grids["pooled"])
    assert handed.shape[2:] == grids["pooled"]
    own = fusions[1].reduce(maps["layer2"])
    larger = handed[:, :, torch.arange(4) // 2][:, :, :, torch.arange(4) // 2]  # 2 x 2 -> 4 x 4, nearest
    weights = fusions[1].attention(torch.cat([own, larger], dim=1))
    fused = own * weights[:, 0:1] + larger * weights[:, 1:2]
    nearest = torch.arange(6) * 4 // 6  # 4 x 4 -> 6 x 6
    expected = fusions[1].expand(fused[:, :, nearest][:, :, :, nearest])
    got, _ = fusions[1](maps["layer2"], handed, grids["blocks.2"])
    assert grids["blocks.2"] == (6, 6)
    torch.testing.assert_close(got, expected)


# ---- The memory of CRD -----------------------------------------------------------------------------------------------


def contrast_of(labels, *, from_other_classes=True, ids=None, **options):
    values = {"teacher": "t", "student": "s", "data": "d"}
    crd = {"method": "crd", "width": 4, "from_other_classes": from_other_classes, **options}
    (chosen,) = parse_config({**values, "methods": [crd]}, source="t").methods
    context = Context(None, None, None, None, labels, ids, seed=3)
    torch.manual_seed(0)
    return Contrast(5, 6, options=chosen, context=context, number=0)


def test_negatives_are_of_other_classes_and_evenly_drawn():
    labels = [0, 1, 0, UNLABELLED, 2, 1, UNLABELLED, 0]
    contrast = contrast_of(labels)
    contrast.num_negatives = 6000
    drawn = contrast.draw(torch.arange(8))
    for anchor, row in enumerate(drawn):
        allowed = {
            other
            for other in range(8)
            if other != anchor and (labels[anchor] == UNLABELLED or labels[other] != labels[anchor])
        }
        counts = torch.bincount(row, minlength=8)
        assert {int(other) for other in row.unique()} == allowed
        # Even within six standard deviations of a binomial.
        share = 1 / len(allowed)
        deviation = math.sqrt(6000 * share * (1 - share))
        assert all(abs(int(counts[other]) - 6000 * share) < 6 * deviation for other in allowed)


def test_negatives_may_be_any_other_sample():
    contrast = contrast_of([0, 0, 0, 1], from_other_classes=False, negatives=1000)
    assert contrast.num_negatives == 3
    contrast.num_negatives = 500
    assert [set(row.tolist()) for row in contrast.draw(torch.arange(4))] == [{1, 2, 3}, {0, 2, 3}, {0, 1, 3}, {0, 1, 2}]


def test_one_class_has_no_negatives():
    with pytest.raises(UserError, match="no negatives"):
        contrast_of([1, 1, 1])
    assert contrast_of([1, 1, 1], from_other_classes=False).num_negatives == 2


def test_the_memory_follows_the_embeddings():
    """Of a sample that is in the batch twice the last occurrence is what is stored: half old, half new."""
    contrast = contrast_of([0, 1, 2], ids=[40, 7, 9]).train()
    before = contrast.student_memory.clone()
    student, teacher = torch.randn(3, 5), torch.randn(3, 6)
    contrast(student, teacher, torch.tensor([40, 9, 40]))  # rows 0, 2, 0
    new = F.normalize(contrast.student_embedding(student))
    torch.testing.assert_close(contrast.student_memory[0], F.normalize((before[0] + new[2]) / 2, dim=0))
    torch.testing.assert_close(contrast.student_memory[2], F.normalize((before[2] + new[1]) / 2, dim=0))
    assert torch.equal(contrast.student_memory[1], before[1])
    assert int(contrast.steps) == 1
    assert not contrast.student_memory.requires_grad


def test_the_partition_is_that_of_the_first_batch():
    contrast = contrast_of([0, 1, 2, 3]).train()
    samples = torch.arange(3)
    memory, negatives = contrast.teacher_memory.clone(), contrast.draw(samples)
    student, teacher = torch.randn(3, 5), torch.randn(3, 6)
    first = contrast(student, teacher, samples)
    anchors = F.normalize(contrast.student_embedding(student)).detach()
    candidates = torch.cat([samples[:, None], negatives], dim=1)
    values = [math.exp(anchors[i] @ memory[j] / 0.07) for i in range(3) for j in candidates[i]]
    partition = float(contrast.partitions[0])
    assert partition == pytest.approx(4 * sum(values) / len(values), rel=1e-4)
    assert first.isfinite()
    contrast(student, teacher, samples)
    assert float(contrast.partitions[0]) == partition


def test_steps_draw_other_negatives_and_a_restored_memory_goes_on_alike():
    batches = [(torch.randn(3, 5), torch.randn(3, 6), torch.tensor([0, 4, 2])) for _ in range(4)]
    whole, cut = (contrast_of([0, 1, 2, 3, 4, 5], negatives=3).train() for _ in range(2))
    values = [whole(*batch) for batch in batches]
    drawn = [whole.draw(torch.arange(6))]
    whole.steps += 1
    drawn.append(whole.draw(torch.arange(6)))
    assert not torch.equal(*drawn)
    for batch in batches[:2]:
        cut(*batch)
    again = contrast_of([0, 1, 2, 3, 4, 5], negatives=3).train()
    again.load_state_dict(cut.state_dict())
    for batch, value in itertools.islice(zip(batches, values, strict=True), 2, None):
        assert torch.equal(again(*batch), value)
    assert torch.equal(again.teacher_memory, whole.teacher_memory)


def test_nothing_is_stored_outside_training():
    contrast = contrast_of([0, 1, 2]).eval()
    before = {key: value.clone() for key, value in contrast.state_dict().items()}
    contrast(torch.randn(2, 5), torch.randn(2, 6), torch.arange(2))
    assert all(torch.equal(value, before[key]) for key, value in contrast.state_dict().items())
