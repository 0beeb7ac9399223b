"""Methods for dense tasks: their values out of the pure losses, and what is refused of tasks with other labels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from kdcli import losses
from kdcli.base.errors import UserError
from kdcli.config.methods import METHODS, find_method
from kdcli.config.parse import parse_config
from kdcli.losses.normalize import standardize
from kdcli.methods import build_method
from kdcli.methods.base import Context
from kdcli.plan.relation import situation_of
from kdcli.tasks.classification.one_label import ImageClassification
from tests.methods.contract import COUNT, DATA, SAMPLES, STUDENT, TEACHER, make_outputs

MASKS = torch.arange(COUNT * 80).view(COUNT, 8, 10) * 7 % 5 - 1
BOXES = [
    {"boxes": torch.tensor([[number, 2.0, number + 9, 20], [1, 1, 31, 30]])[: number % 3]} for number in range(COUNT)
]
PAIRS = ("layer1:layer1", "layer2:layer2")


def mapped(convolution, maps):
    return maps if isinstance(convolution, torch.nn.Identity) else convolution(maps)


def cwd(method, number, ours, theirs):
    ours = mapped(method.alignments[number], ours)
    p, q = (maps.flatten(2).div(4).log_softmax(2) for maps in (ours, at(theirs, ours)))
    return 16 * F.kl_div(p, q, reduction="sum", log_target=True) / ours.shape[:2].numel()


def at(theirs, ours):
    return F.interpolate(theirs, ours.shape[2:], mode="bilinear", antialias=True)


def fgd(method, number, ours, theirs):
    ours = mapped(method.alignments[number], ours)
    theirs = at(theirs, ours)
    weights = losses.box_weights([target["boxes"] for target in BOXES], (32, 32), ours.shape[2:])
    found = losses.fgd_focal(ours, theirs, *weights)
    contexts = method.student_contexts[number], method.teacher_contexts[number]
    relation = losses.squared_error(*(with_context(c, maps) for c, maps in zip(contexts, (ours, theirs), strict=True)))
    return (1e-3 * found[0] + 5e-4 * found[1] + 1e-3 * found[2] + 5e-6 * relation).mean()


def with_context(block, maps):
    """Sample by sample."""
    out = []
    for sample in maps.flatten(2):
        shares = torch.softmax(block.attend.weight.flatten() @ sample + block.attend.bias, dim=0)
        out.append(sample + block.transform(sample @ shares)[:, None])
    return torch.stack(out).view_as(maps)


def mgd(method, number, ours, theirs):
    ours = mapped(method.alignments[number], ours)
    kept = method._kept(0, number, SAMPLES.tolist(), *ours.shape[2:])
    return (method.generators[number](ours * kept) - at(theirs, ours)).square().sum() / COUNT


VALUES = {
    "cwd": cwd,
    "cwd_logits": None,  # below
    "skd": lambda method, number, ours, theirs: losses.skd(ours, theirs).mean(),
    "ifvd": lambda method, number, ours, theirs: losses.ifvd(ours, theirs, MASKS).mean(),
    "cirkd": lambda method, number, ours, theirs: losses.cirkd(ours, theirs),
    "pkd": lambda method, number, ours, theirs: losses.pkd(ours, theirs),
    "fgd": fgd,
    "mgd": mgd,
}
"""Of each method the value of a pair of layers."""
TARGETS = {"ifvd": MASKS, "fgd": BOXES}


WITH_ONE = dataclasses.replace(
    STUDENT, feature_dims={**STUDENT.feature_dims, "one": 3}, grids={**STUDENT.grids, "one": (1, 1)}
)


def situation(kind, *, student=WITH_ONE, **values):
    config = parse_config({"teacher": "t", "student": "s", "data": "d", **values}, source="test")
    return situation_of(config, teacher=TEACHER, student=student, data=dataclasses.replace(DATA, label_kind=kind))


def make(values):
    """Build the method, all of its weights drawn at random."""
    options = find_method(values["method"]).model_validate(values)
    torch.manual_seed(0)
    method = build_method(options, Context(ImageClassification(("a",)), STUDENT, TEACHER, (2, 0, 3, 1))).eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(std=0.3)
    return method


def outputs(method, *grids):
    student_grid, teacher_grid = grids or ((), ())
    return (
        make_outputs(STUDENT, method.student_reads, seed=1, grid=student_grid),
        make_outputs(TEACHER, method.teacher_reads, seed=2, grid=teacher_grid),
    )


@pytest.mark.parametrize("name", [name for name in VALUES if name != "cwd_logits"])
def test_the_loss_is_that_of_each_pair_of_maps(name):
    pairs = ("neck:neck",) if name == "pkd" else (*PAIRS, "neck:neck")
    method = make({"method": name, "layers": pairs})
    student, teacher = outputs(method)
    expected = sum(
        VALUES[name](method, number, student.maps[tap], teacher.maps[tap])
        for number, tap in enumerate(pair.partition(":")[0] for pair in pairs)
    )
    value = method.loss(student, teacher, TARGETS.get(name, MASKS), SAMPLES)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_maps_of_logits_are_compared_over_common_labels():
    method = make({"method": "cwd_logits"})
    student, teacher = outputs(method, (4, 3), (2, 5))
    ours, theirs = student.heads["logits"], teacher.heads["logits"][:, [2, 0, 3, 1]]
    value = method.loss(student, teacher, MASKS, SAMPLES)
    torch.testing.assert_close(value, losses.cwd(ours, at(theirs, ours)).mean())


def test_a_projector_on_both_sides_is_pkd_as_well():
    """With one, PKD is half the squared error of standardised maps."""
    method = make({"method": "pkd", "projector": "linear", "lr_scale": 1.0, "layers": PAIRS[:1]})
    student, teacher = outputs(method)
    ours, theirs = student.maps["layer1"], teacher.maps["layer1"]
    theirs = F.adaptive_avg_pool2d(theirs, (5, 4))
    ours = F.adaptive_avg_pool2d(ours, (5, 4)).movedim(1, -1) @ method.pair_projections[0].projector.matrix()
    expected = (standardize(ours) - standardize(theirs.movedim(1, -1))).square().mean() / 2
    torch.testing.assert_close(method.loss(student, teacher, MASKS, SAMPLES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"method": "skd"}, "pixels", "of pooled, 2x2, a single one is left: the loss would always be 0"),
        ({"method": "skd", "pool": 1, "layers": ["one:pooled"]}, "pixels", "of one, 1x1, a single one"),
        ({"method": "cwd", "layers": (*PAIRS, "one:pooled")}, "boxes", "of one, 1x1, a single one"),
        ({"method": "cirkd", "layers": ["one:pooled"]}, "depth", "of one, 1x1, a single one"),
        ({"method": "cirkd", "max_positions": 1}, "depth", "a single one is left"),
        ({"method": "ifvd"}, "class", "ifvd needs a class for each pixel"),
        ({"method": "ifvd"}, "depth", "ifvd needs a class for each pixel, and the labels are depths"),
        ({"method": "fgd"}, "pixels", "fgd needs boxes with a class each, and the labels are pixels"),
        ({"method": "pkd", "layers": PAIRS}, "boxes", "layer1 of the student has 5 channels, layer1 of the teacher 7"),
        ({"method": "cwd_logits"}, "class", "the logits of the task image-classification have no positions"),
        ({"method": "dkd"}, "pixels", "dkd needs one class a sample, and the labels are pixels"),
        ({"method": "stochastic_triplet_kl"}, "pixels", "needs one class a sample, and the labels are pixels"),
        ({"method": "local_classifier_kl"}, "boxes", "needs one class a sample, and the labels are boxes"),
        *(({"method": name}, "boxes", f"{name} compares the logits of one") for name in ("logit_kd", "dist", "deit")),
        ({"method": "crd"}, "pixels", "crd draws negatives from other classes"),
        ({"method": "crd"}, "boxes", "the labels are boxes"),
        ({"method": "crd"}, "number", "the labels are others"),
    ],
)
def test_what_does_not_fit_the_labels_is_refused(values, kind, message):
    found = situation(kind)
    with pytest.raises(UserError, match=message) as error:
        find_method(values["method"]).model_validate(values).settled(found).check(found)
    assert error.value.hint


@pytest.mark.parametrize("kind", ["pixels", "depth", "boxes"])
def test_negatives_from_all_samples_need_no_classes(kind):
    options = METHODS["crd"](from_other_classes=False).settled(situation(kind))
    options.check(situation(kind))


@pytest.mark.parametrize("regressor", ["benchmark", "convolutional"])
def test_a_kernel_that_would_fill_the_memory_is_refused(regressor):
    """113 x 113 x 1024 x 7, between a fine map and a coarse one."""
    facts = dataclasses.replace(
        STUDENT, feature_dims={**STUDENT.feature_dims, "layer1": 1024}, grids={**STUDENT.grids, "layer1": (117, 116)}
    )
    found = situation("pixels", student=facts)
    options = METHODS["fitnet"](regressor=regressor, layers=PAIRS[:1])
    with pytest.raises(UserError, match=r"by a kernel of 113x113 with 91\.53M weights"):
        options.settled(found).check(found)
    METHODS["fitnet"](regressor="linear", layers=PAIRS[:1]).check(found)
    METHODS["fitnet"](projector="linear", layers=PAIRS[:1]).check(found)


def test_weights_for_one_size_say_so_in_the_plan():
    for name in ("fgd", "mgd"):
        assert "images of about 800 pixels" in METHODS[name]().remark
        assert not METHODS[name](weighting="gradient").remark
