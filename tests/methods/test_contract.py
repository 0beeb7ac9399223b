"""The contract of methods, run over all of them, the example extension's too, and with each projector."""

from __future__ import annotations

import dataclasses
import typing

import pytest
import torch
import torch.nn.functional as F

from kdcli.base.facts import UNLABELLED
from kdcli.base.names import ProjectorName
from kdcli.config.methods import METHODS, AdversaryOptions, LayerOptions, find_method
from kdcli.methods import build_method
from kdcli.methods.base import Context
from kdcli.models.outputs import ModelOutput
from kdcli.tasks.classification.one_label import ImageClassification
from tests.methods.contract import (
    COUNT,
    DATA,
    SAMPLES,
    STUDENT,
    TEACHER,
    MethodContract,
    make_outputs,
    tensors_of,
    with_gradient,
)

LAYERS = {"layers": ["layer1:layer1", "layer2:layer2"]}
SAME_WIDTH = {"layers": ["neck:neck"]}
PROJECTORS = typing.get_args(ProjectorName)


VKD = {"student_tap": "layer2", "teacher_tap": "layer2", "normalize_student": "standardize", "distance": "smooth_l1"}
"""VkD's setting for detection, at whichever layer."""
LEVELS = {**LAYERS, "normalize_student": "standardize", "distance": "smooth_l1", "weight": 4}
"""The same at several, each with a projector."""


OF_POSITIONS = {"cwd_logits", "ifvd"}
"""Methods that want a class for each pixel."""
OF_BOXES = {"fgd"}
OF_DEPTH = {"dense_regression"}
"""It has a file of its own, test_dense_regression.py."""
OF_IMAGES = {"image_regression"}
"""It has a file of its own, test_image_methods.py."""


def cases():
    """Yield the keys of every method in a recipe, as many ways as it has code paths."""
    for name, section in METHODS.items():
        if name in OF_POSITIONS | OF_BOXES | OF_DEPTH | OF_IMAGES or issubclass(section, AdversaryOptions):
            continue  # a method with an adversary has no loss of outputs alone: test_gan.py, test_image_methods.py
        if name == "projection":
            for projector in PROJECTORS:
                yield {"method": name, "projector": projector}
                yield {"method": name, "projector": projector, "reads": "maps", **VKD}
                yield {"method": name, "projector": projector, "reads": "maps", **LEVELS}
        elif issubclass(section, LayerOptions):
            yield {"method": name, **(SAME_WIDTH if name == "pkd" else LAYERS)}
            for projector in PROJECTORS:
                yield {"method": name, "projector": projector, **LAYERS}
        else:
            yield {"method": name}
    yield from (
        {"method": "projection", "projector": "orthogonal", "normalize": "layer_norm"},
        {"method": "projection", "projector": "linear", "normalize": "whiten", "distance": "log_sum"},
        {"method": "projection", "projector": "linear", "normalize": "none", "reads": "maps"},
        {"method": "projection", "projector": "linear", "normalize": "layer_norm", **LAYERS},
        {"method": "spectral_regularization", "student_tap": "layer1", "reads": "maps"},
        {"method": "logit_kd", "divergence": "reverse_kl", "temperature": 3},
        {"method": "logit_kd", "divergence": "jensen_shannon"},
        {"method": "deit", "kind": "soft"},
        {"method": "fitnet", "regressor": "convolutional", "reduction": "sum", **LAYERS},
        {"method": "fitnet", "regressor": "linear", **LAYERS},
        {"method": "nst", "kernel": "linear", **LAYERS},
        {"method": "cwd", **SAME_WIDTH},
        {"method": "skd", "pool": 0.5, **LAYERS},
        {"method": "cirkd", "max_positions": 6, **LAYERS},
        {"method": "stochastic_triplet_kl", "mining": "tuples"},
        {"method": "local_classifier_kl", "centers": "global"},
        {"method": "toy_correlation", **LAYERS},
        {"method": "toy_correlation", "projector": "inverted", **LAYERS},
    )


@pytest.mark.parametrize(
    "values", list(cases()), ids=lambda values: "-".join(str(v) for v in values.values() if isinstance(v, str))
)
class TestEveryMethod(MethodContract):
    @pytest.fixture(autouse=True)
    def _extension(self, request, values):
        if values["method"].startswith("toy_"):
            request.getfixturevalue("toy_extension")

    def test_a_sample_by_itself_is_taken_or_refused(self, method, inputs, values):
        if values["method"].startswith("toy_"):
            pytest.skip("the example is short: one sample has no correlation, and it doesn't say so")
        super().test_a_sample_by_itself_is_taken_or_refused(method, inputs)


PIXELS = dataclasses.replace(DATA, label_kind="pixels")
PROJECTED = [{"projector": projector, **LAYERS} for projector in ("inverted", "orthogonal")]
MASKS = torch.arange(COUNT * 12).view(COUNT, 4, 3) * 7 % 5 - 1


@pytest.mark.parametrize("values", [{"method": "logit_kd"}, {"method": "dist"}], ids=lambda values: values["method"])
class TestLogitsOfPositions(MethodContract):
    """A class for each position, as in segmentation: the teacher's come to the student's grid."""

    student_grid, teacher_grid = (4, 3), (2, 5)
    targets = MASKS

    def test_it_is_that_of_rows(self, make, inputs):
        """Positions are as samples are, once both sides have them in one place."""
        (head,) = make().student_reads.heads
        student, teacher, targets, samples = inputs
        theirs = F.interpolate(teacher.heads[head], (4, 3), mode="bilinear", antialias=True)
        rows = [maps.permute(0, 2, 3, 1).reshape(-1, 4) for maps in (student.heads[head], theirs)]
        ours, theirs = (ModelOutput(heads={head: tensor}) for tensor in rows)
        torch.testing.assert_close(make().loss(*inputs), make().loss(ours, theirs, targets.flatten(), samples))


class TestMapsOfLogits(MethodContract):
    student_grid, teacher_grid = (4, 3), (2, 5)
    data, targets = PIXELS, MASKS

    @pytest.fixture
    def values(self):
        return {"method": "cwd_logits"}


@pytest.mark.parametrize(
    "values",
    [{"method": "ifvd", **keys} for keys in ({"layers": ["layer1:layer1"]}, LAYERS, *PROJECTED)],
    ids=lambda values: "-".join(str(value) for value in values.values()),
)
class TestClassesOfPositions(MethodContract):
    data, targets = PIXELS, MASKS
    without_labels = torch.full_like(MASKS, UNLABELLED)


@pytest.mark.parametrize(
    "values",
    [{"method": "fgd", **keys} for keys in (LAYERS, SAME_WIDTH, *PROJECTED)],
    ids=lambda values: "-".join(str(value) for value in values.values()),
)
class TestBoxes(MethodContract):
    data = dataclasses.replace(DATA, label_kind="boxes")
    without_labels = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * COUNT
    targets = [  # noqa: RUF012
        {"boxes": torch.tensor([[number, 2.0, number + 9, 20], [1, 1, 31, 30]])[: number % 3]}
        for number in range(COUNT)
    ]

    def test_without_labels_it_is_what_it_says(self, method, inputs):
        """All is background then."""
        student, teacher, _, samples = inputs
        student = with_gradient(student)
        loss = method.eval().loss(student, teacher, self.without_labels, samples)
        loss.backward()
        assert loss > 0
        assert loss != method.loss(*inputs)
        assert all(tensor.grad.isfinite().all() for tensor in tensors_of(student).values())


def test_boxes_are_in_pixels_of_the_larger_models_images(make_fgd):
    """A batch is at the larger of both sizes; boxes scale with it."""
    small, large = make_fgd(32, 32), make_fgd(32, 64)
    large.load_state_dict(small.state_dict())
    student, teacher = (
        make_outputs(facts, reads, seed=seed)
        for facts, reads, seed in ((STUDENT, small.student_reads, 1), (TEACHER, small.teacher_reads, 2))
    )
    boxes = [{"boxes": torch.tensor([[4.0, 2, 15, 11]])}] * COUNT
    twice = [{"boxes": 2 * target["boxes"]} for target in boxes]
    value = small.loss(student, teacher, boxes, SAMPLES)
    assert large.loss(student, teacher, twice, SAMPLES) == value
    assert large.loss(student, teacher, boxes, SAMPLES) != value


@pytest.fixture
def make_fgd():
    """Build the method for models of these sizes in pixels, student first."""

    def build(*sizes):
        models = [
            dataclasses.replace(facts, preprocessing=facts.preprocessing.at((size, size)))
            for facts, size in zip((STUDENT, TEACHER), sizes, strict=True)
        ]
        options = find_method("fgd").model_validate({"method": "fgd", "lr_scale": None, **SAME_WIDTH})
        return build_method(options, Context(ImageClassification(("a",)), *models, None)).eval()

    return build


def test_masks_are_of_seed_step_and_sample():
    options = find_method("mgd").model_validate({"method": "mgd", **LAYERS})

    def make(seed):
        return build_method(options, Context(ImageClassification(("a",)), STUDENT, TEACHER, None, seed=seed))

    one = make(3)
    first = one._kept(0, 0, [7, 8, 7], 50, 40)
    assert first.shape == (3, 1, 50, 40)
    assert 0.3 < first.mean() < 0.4
    assert torch.equal(first[0], first[2])
    others = [make(4)._kept(0, 0, [7], 50, 40), one._kept(1, 0, [7], 50, 40), one._kept(0, 1, [7], 50, 40), first[1:2]]
    assert not any(torch.equal(first[:1], other) for other in others)
    assert torch.equal(make(3)._kept(0, 0, [8], 50, 40), first[1:2])
