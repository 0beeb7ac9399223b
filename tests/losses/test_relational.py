"""Relational losses against plain loops, their invariances, and the cases in which they could break."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import permutations
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch

from kdcli import losses
from kdcli.losses import common, relational

HALF = (torch.float16, torch.bfloat16)


def features(size, student_shape=(4,), teacher_shape=(6,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(size, *shape, generator=generator, dtype=torch.float64) * 2
        for shape in (student_shape, teacher_shape)
    )


def rows_of(tensor):
    return tensor.double().flatten(start_dim=1).tolist()


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def minus(x, y):
    return [a - b for a, b in zip(x, y, strict=True)]


def norm(x):
    return math.sqrt(dot(x, x))


def cosine(x, y):
    return dot(x, y) / (norm(x) * norm(y)) if norm(x) * norm(y) else 0.0


def huber(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def loop_rkd_distance(student, teacher):
    pairs = list(permutations(range(len(student)), 2))
    s, t = ([norm(minus(x[i], x[j])) for i, j in pairs] for x in (rows_of(student), rows_of(teacher)))
    mean_s, mean_t = sum(s) / len(s), sum(t) / len(t)
    return sum(huber(a / mean_s - b / mean_t) for a, b in zip(s, t, strict=True)) / len(pairs)


def loop_rkd_angle(student, teacher):
    triples = list(permutations(range(len(student)), 3))
    s, t = (
        [cosine(minus(x[i], x[j]), minus(x[k], x[j])) for i, j, k in triples]
        for x in (rows_of(student), rows_of(teacher))
    )
    return sum(huber(a - b) for a, b in zip(s, t, strict=True)) / len(triples)


def loop_pkt(student, teacher, eps=1e-7):
    def affinities(x, i):
        kernel = [(cosine(x[i], y) + 1) / 2 + eps for j, y in enumerate(x) if j != i]
        return [k / sum(kernel) for k in kernel]

    s, t = rows_of(student), rows_of(teacher)
    return sum(
        p * math.log(p / q) for i in range(len(s)) for p, q in zip(affinities(t, i), affinities(s, i), strict=True)
    ) / len(s)


def loop_similarity_preserving(student, teacher):
    def similarities(x):
        rows = [[dot(a, b) for b in x] for a in x]
        return [[value / (norm(row) or 1) for value in row] for row in rows]

    s, t = similarities(rows_of(student)), similarities(rows_of(teacher))
    return sum((a - b) ** 2 for x, y in zip(s, t, strict=True) for a, b in zip(x, y, strict=True)) / len(s) ** 2


def loop_correlation_congruence(student, teacher, gamma=0.4, order=2):
    def kernel(x, y):
        return sum(
            math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosine(x, y) ** p for p in range(order + 1)
        )

    s, t = rows_of(student), rows_of(teacher)
    indices = range(len(s))
    return sum((kernel(s[i], s[j]) - kernel(t[i], t[j])) ** 2 for i in indices for j in indices) / len(s) ** 2


class Case(NamedTuple):
    loss: object
    loop: object
    options: Mapping = MappingProxyType({})


CASES = {
    "rkd_distance": Case(losses.rkd_distance, loop_rkd_distance),
    "rkd_angle": Case(losses.rkd_angle, loop_rkd_angle),
    "pkt": Case(losses.pkt, loop_pkt),
    "pkt-eps": Case(losses.pkt, loop_pkt, {"eps": 0.1}),
    "similarity_preserving": Case(losses.similarity_preserving, loop_similarity_preserving),
    "correlation_congruence": Case(losses.correlation_congruence, loop_correlation_congruence),
    "correlation_congruence-4": Case(
        losses.correlation_congruence, loop_correlation_congruence, {"gamma": 0.8, "order": 4}
    ),
}
MUTATIONS = [
    ("rkd_distance", "_relative_distances", "distances / torch", "distances * torch"),
    ("rkd_distance", "_relative_distances", "off_diagonal(pairwise_distances(features))", "pairwise_distances(features)"),
    ("rkd_distance", "rkd_distance", "F.smooth_l1_loss(", "F.mse_loss("),
    ("rkd_distance", "rkd_distance", "_relative_distances(teacher))", '_relative_distances(teacher), reduction="sum")'),
    ("rkd_angle", "_angles", "features - features[vertices, None]", "features + features[vertices, None]"),
    ("rkd_angle", "_angles", "unit(features - features[vertices, None])", "features - features[vertices, None]"),
    ("rkd_angle", "_angle_errors", "F.smooth_l1_loss(", "F.l1_loss("),
    ("rkd_angle", "rkd_angle", "(size - 2)", "(size - 1)"),
    ("pkt", "pkt", "student_log_probs, teacher_log_probs, red", "teacher_log_probs, student_log_probs, red"),
    ("pkt", "pkt", 'reduction="batchmean"', 'reduction="sum"'),
    ("pkt", "_log_affinities", "clamp(-1, 1) + 1", "clamp(-1, 1) + 2"),
    ("pkt", "_log_affinities", "off_diagonal((_cosines(features).clamp(-1, 1) + 1) / 2)", "(_cosines(features) + 1) / 2"),
    ("similarity_preserving", "similarity_preserving", "F.mse_loss(unit(student @ student.T), unit(", "F.mse_loss((student @ student.T), ("),
    ("similarity_preserving", "similarity_preserving", "F.mse_loss(", "F.l1_loss("),
    ("similarity_preserving", "similarity_preserving", "teacher.T))", 'teacher.T), reduction="sum")'),
    ("correlation_congruence", "_taylor_kernel", "math.exp(-2 * gamma)", "math.exp(-gamma)"),
    ("correlation_congruence", "_taylor_kernel", "range(order + 1)", "range(order)"),
    ("correlation_congruence", "_taylor_kernel", "math.factorial(power)", "1"),
    ("correlation_congruence", "correlation_congruence", "F.mse_loss(", "F.l1_loss("),
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
class TestEveryLoss:
    @pytest.mark.parametrize("shapes", [((4,), (6,)), ((2, 2, 3), (3, 1, 2)), ((1,), (2,))])
    @pytest.mark.parametrize("size", [5, 3])
    def test_value_and_gradient(self, name, size, shapes, check_against_loop):
        case = CASES[name]
        check_against_loop(case.loss, case.loop, features(size, *shapes), case.options)

    @pytest.mark.parametrize("dtype", HALF)
    def test_half_precision(self, name, dtype, check_half_precision):
        case = CASES[name]
        check_half_precision(case.loss, case.loop, features(6), case.options, dtype)

    def test_gradient_for_the_teacher(self, name):
        case = CASES[name]
        student, teacher = features(4)
        teacher.requires_grad_()
        assert torch.autograd.gradcheck(lambda t: case.loss(student, t, **case.options), (teacher,))

    def test_rotating_and_scaling_either_side_changes_nothing(self, name):
        case = CASES[name]
        student, teacher = features(6)
        four, six = (torch.linalg.qr(features(size, (size,), seed=1)[0]).Q for size in (4, 6))
        expected = case.loss(student, teacher, **case.options)
        torch.testing.assert_close(case.loss(student, 7 * teacher @ six, **case.options), expected)
        torch.testing.assert_close(case.loss(0.2 * student @ four, teacher, **case.options), expected)

    def test_permuting_the_batch_changes_nothing(self, name):
        case = CASES[name]
        student, teacher = features(6)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        torch.testing.assert_close(
            case.loss(student[order], teacher[order], **case.options), case.loss(student, teacher, **case.options)
        )

    def test_equal_features_have_zero_gradient(self, name):
        case = CASES[name]
        student = features(6)[0].float().requires_grad_()
        value = case.loss(student, student.detach().clone(), **case.options)
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-6)
        torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, *HALF])
    def test_degenerate_features(self, name, dtype, check_finite):
        case = CASES[name]
        student, teacher = (x.to(dtype) for x in features(6))
        opposite = torch.tensor([[1.0], [-1.0], [-1.0]], dtype=dtype).expand(3, 4)
        duplicated, zero_sample = student.clone(), student.clone()
        duplicated[1] = duplicated[0]
        zero_sample[2] = 0
        for degenerate in (torch.zeros_like(student), torch.full_like(student, 0.1), duplicated, zero_sample):
            check_finite(case.loss, (degenerate, teacher), case.options)
            check_finite(case.loss, (student, degenerate), case.options)
            assert case.loss(degenerate, degenerate, **case.options).item() == pytest.approx(0, abs=1e-6)
        check_finite(case.loss, (opposite, teacher[:3]), case.options)
        check_finite(case.loss, (student[:3], opposite), case.options)
        check_finite(case.loss, (student[:2], teacher[:2]), case.options)

    def test_one_sample_has_no_relation(self, name, check_finite):
        case = CASES[name]
        value, gradient = check_finite(case.loss, features(1), case.options)
        assert value == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))

    def test_non_finite_features_reach_the_loss(self, name):
        case = CASES[name]
        student, teacher = features(4)
        student[1, 2] = math.nan
        assert case.loss(student, teacher, **case.options).isnan()

    def test_batches_must_agree(self, name):
        case = CASES[name]
        student, teacher = features(4)
        with pytest.raises(ValueError, match=r"same batch, got \(4, 4\) and \(3, 6\)"):
            case.loss(student, teacher[:3], **case.options)
        with pytest.raises(ValueError, match=r"same batch, got \(4,\) and \(4, 6\)"):
            case.loss(student[:, 0], teacher, **case.options)


@pytest.mark.parametrize(("name", "function", "old", "new"), MUTATIONS)
def test_mutants_differ_from_the_loop(name, function, old, new, check_mutant):
    case = CASES[name]
    check_mutant(case.loss, case.loop, features(5), case.options, function, old, new)


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle"])
def test_rkd_does_not_change_when_either_side_is_shifted(name):
    loss = CASES[name].loss
    student, teacher = features(6)
    torch.testing.assert_close(loss(student + 3, teacher - 100), loss(student, teacher))


@pytest.mark.parametrize("name", ["pkt", "correlation_congruence"])
def test_scaling_single_samples_changes_nothing(name):
    loss = CASES[name].loss
    student, teacher = features(6)
    scales = torch.tensor([1e-30, 0.1, 1.0, 2.0, 1e3, 1e30])[:, None]
    torch.testing.assert_close(loss(student.float() * scales, teacher.float()), loss(student.float(), teacher.float()))


def test_correlation_congruence_tends_to_the_gaussian_kernel():
    student, teacher = features(4)
    kernels = [
        torch.exp(-0.4 * torch.cdist(x, x).square())
        for x in (torch.nn.functional.normalize(y) for y in (student, teacher))
    ]
    torch.testing.assert_close(
        losses.correlation_congruence(student, teacher, order=12), torch.nn.functional.mse_loss(*kernels)
    )


def test_rkd_distance_by_hand():
    # Distances of the student 1, 1, 2 (mean 4/3): 3/4, 3/4, 3/2; of the teacher all equal: 1, 1, 1.
    student, teacher = torch.tensor([[0.0], [1.0], [2.0]]), torch.eye(3)
    assert losses.rkd_distance(student, teacher).item() == pytest.approx((2 * 0.25**2 + 0.5**2) / 2 / 3, rel=1e-6)


def test_rkd_angle_by_hand():
    # Cosines of the student on a line 1, -1, 1; of the teacher's equilateral triangle 1/2.
    student, teacher = torch.tensor([[0.0], [1.0], [2.0]]), torch.eye(3)
    assert losses.rkd_angle(student, teacher).item() == pytest.approx((2 * 0.5**2 / 2 + (1.5 - 0.5)) / 3, rel=1e-6)


def test_rkd_angle_is_the_same_in_chunks(monkeypatch):
    student, teacher = features(7)
    results = []
    for limit in (common.MAX_ELEMENTS, 120, 1):  # all vertices at once, two, one
        monkeypatch.setattr(relational, "MAX_ELEMENTS", limit)
        leaf = student.clone().requires_grad_()
        value = losses.rkd_angle(leaf, teacher)
        value.backward()
        results.append((value.detach(), leaf.grad))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


@pytest.mark.parametrize(
    ("name", "options"), [("pkt", {"eps": 0.0}), ("correlation_congruence", {"gamma": 0.0}), ("correlation_congruence", {"order": 0})]
)  # fmt: skip
def test_hyperparameters_must_be_positive(name, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be positive"):
        CASES[name].loss(*features(3), **options)


class TestPairwiseDistances:
    def test_close_points_far_from_the_origin(self):
        # In float32 |x|² + |y|² − 2xy cancels to 0 here.
        points = torch.tensor([[1000.0, 1000.0], [1000.0, 1000.25], [1000.0, 1000.0]], requires_grad=True)
        distances = common.pairwise_distances(points)
        torch.testing.assert_close(distances, torch.tensor([[0, 0.25, 0], [0.25, 0, 0.25], [0, 0.25, 0]]))
        distances[0, 1].backward()
        torch.testing.assert_close(points.grad, torch.tensor([[0.0, -1.0], [0.0, 1.0], [0.0, 0.0]]))

    def test_points_that_differ_by_rounding_have_no_gradient(self):
        points = torch.tensor([[1.0, 0.3], [1.0, 0.3 + 3e-8], [-1.0, 0.3]], requires_grad=True)
        distances = common.pairwise_distances(points)
        assert 0 < distances[0, 1] < 1e-7
        distances[0, 1].backward()
        assert not points.grad.any()


def test_unit_vectors_of_extreme_scale():
    vectors = torch.tensor([[3e-30, 4e-30], [3e30, 4e30], [0.0, 0.0], [math.nan, 1.0]])
    expected = torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.0, 0.0], [math.nan, math.nan]])
    torch.testing.assert_close(common.unit(vectors), expected, equal_nan=True)


def test_off_diagonal():
    matrix = torch.arange(9).view(3, 3)
    assert common.off_diagonal(matrix).tolist() == [[1, 2], [3, 5], [6, 7]]
