"""The contract of methods, run over all of them, the example extension's too, and with each projector."""

from __future__ import annotations

import typing

import pytest
import torch
import torch.nn.functional as F

from kdcli.base.names import ProjectorName
from kdcli.config.methods import METHODS, LayerOptions
from kdcli.models.outputs import ModelOutput
from tests.methods.contract import COUNT, MethodContract

LAYERS = {"layers": ["layer1:layer1", "layer2:layer2"]}
PROJECTORS = typing.get_args(ProjectorName)


VKD = {"student_tap": "layer2", "teacher_tap": "layer2", "normalize_student": "standardize", "distance": "smooth_l1"}
"""VkD's setting for detection, at whichever layer."""


def cases():
    """Yield the keys of every method in a recipe, as many ways as it has code paths."""
    for name, section in METHODS.items():
        if name == "projection":
            for projector in PROJECTORS:
                yield {"method": name, "projector": projector}
                yield {"method": name, "projector": projector, "reads": "maps", **VKD}
        elif issubclass(section, LayerOptions):
            yield {"method": name, **LAYERS}
            for projector in PROJECTORS:
                yield {"method": name, "projector": projector, **LAYERS}
        else:
            yield {"method": name}
    yield from (
        {"method": "projection", "projector": "orthogonal", "normalize": "layer_norm"},
        {"method": "projection", "projector": "linear", "normalize": "whiten", "distance": "log_sum"},
        {"method": "projection", "projector": "linear", "normalize": "none", "reads": "maps"},
        {"method": "logit_kd", "divergence": "reverse_kl", "temperature": 3},
        {"method": "logit_kd", "divergence": "jensen_shannon"},
        {"method": "deit", "kind": "soft"},
        {"method": "fitnet", "regressor": "convolutional", "reduction": "sum", **LAYERS},
        {"method": "fitnet", "regressor": "linear", **LAYERS},
        {"method": "nst", "kernel": "linear", **LAYERS},
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


@pytest.mark.parametrize("values", [{"method": "logit_kd"}, {"method": "dist"}], ids=lambda values: values["method"])
class TestLogitsOfPositions(MethodContract):
    """A class for each position, as in segmentation: the teacher's come to the student's grid."""

    student_grid, teacher_grid = (4, 3), (2, 5)
    targets = torch.arange(COUNT * 12).view(COUNT, 4, 3) * 7 % 5 - 1

    def test_it_is_that_of_rows(self, make, inputs):
        """Positions are as samples are, once both sides have them in one place."""
        (head,) = make().student_reads.heads
        student, teacher, targets, samples = inputs
        theirs = F.interpolate(teacher.heads[head], (4, 3), mode="bilinear", antialias=True)
        rows = [maps.permute(0, 2, 3, 1).reshape(-1, 4) for maps in (student.heads[head], theirs)]
        ours, theirs = (ModelOutput(heads={head: tensor}) for tensor in rows)
        torch.testing.assert_close(make().loss(*inputs), make().loss(ours, theirs, targets.flatten(), samples))
