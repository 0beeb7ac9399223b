"""Losses on logits against plain loops, their invariances, and the cases in which they could break."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch

from kdcli import losses

HALF = (torch.float16, torch.bfloat16)


def logits(*shape, seed=0, count=2):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64).mul(2) for _ in range(count))


def softmax(row, temperature):
    exps = [math.exp(x / temperature) for x in row]
    return [x / sum(exps) for x in exps]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def rows_of(tensor):
    return tensor.double().flatten(end_dim=-2).tolist()


def loop_logit_kd(student, teacher, temperature):
    pairs = list(zip(rows_of(student), rows_of(teacher), strict=True))
    return temperature**2 * sum(kl(softmax(t, temperature), softmax(s, temperature)) for s, t in pairs) / len(pairs)


def loop_divergence(student, teacher, temperature, divergence, beta=0.5):
    total, pairs = 0.0, list(zip(rows_of(student), rows_of(teacher), strict=True))
    for s, t in pairs:
        q, p = softmax(s, temperature), softmax(t, temperature)
        m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        total += kl(q, p) if divergence == "reverse_kl" else beta * kl(p, m) + (1 - beta) * kl(q, m)
    return temperature**2 * total / len(pairs)


def loop_dkd(student, teacher, labels, temperature, alpha=1.0, beta=8.0):
    total, samples = 0.0, list(zip(rows_of(student), rows_of(teacher), labels.flatten().tolist(), strict=True))
    for s, t, y in samples:
        p_s, p_t = softmax(s, temperature), softmax(t, temperature)
        tckd = kl([p_t[y], 1 - p_t[y]], [p_s[y], 1 - p_s[y]])
        others = [j for j in range(len(s)) if j != y]
        nckd = kl([p_t[j] / (1 - p_t[y]) for j in others], [p_s[j] / (1 - p_s[y]) for j in others])
        total += alpha * tckd + beta * nckd
    return temperature**2 * total / len(samples)


def loop_of_masked_dkd(student, teacher, labels, temperature, alpha=1.0, beta=8.0):
    """Sample 4's teacher has no other classes than the sample's own: there NCKD is 0."""
    whole = loop_dkd(student[:4], teacher[:4], labels[:4], temperature, alpha, beta) * 4
    own = softmax(student[4].tolist(), temperature)[labels[4]]
    return (whole - temperature**2 * alpha * math.log(own)) / 5


def pearson(x, y):
    x, y = [a - sum(x) / len(x) for a in x], [b - sum(y) / len(y) for b in y]
    product = math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / product if product > 1e-30 else 0.0


def loop_dist(student, teacher, temperature=1.0, beta=1.0, gamma=1.0):
    p_s = [softmax(row, temperature) for row in rows_of(student)]
    p_t = [softmax(row, temperature) for row in rows_of(teacher)]
    columns = list(zip(zip(*p_s, strict=True), zip(*p_t, strict=True), strict=True))
    inter = sum(1 - pearson(s, t) for s, t in zip(p_s, p_t, strict=True)) / len(p_s)
    intra = sum(1 - pearson(s, t) for s, t in columns) / len(columns) if len(p_s) > 1 else 0.0
    return temperature**2 * (beta * inter + gamma * intra)


def loop_deit_hard(student, teacher):
    pairs = list(zip(rows_of(student), rows_of(teacher), strict=True))
    return sum(-math.log(softmax(s, 1)[t.index(max(t))]) for s, t in pairs) / len(pairs)


class Case(NamedTuple):
    loss: object
    loop: object
    options: dict
    labels: bool = False

    def tensors(self, *shape):
        labels = torch.arange(math.prod(shape[:-1])).mul(2).remainder(shape[-1]).view(shape[:-1])
        return (*logits(*shape), labels) if self.labels else logits(*shape)


CASES = {
    "logit_kd-1": Case(losses.logit_kd, loop_logit_kd, {"temperature": 1.0}),
    "logit_kd": Case(losses.logit_kd, loop_logit_kd, {"temperature": 4.0}),
    "reverse_kl": Case(losses.logit_kd, loop_divergence, {"temperature": 2.0, "divergence": "reverse_kl"}),
    "jensen_shannon": Case(losses.logit_kd, loop_divergence, {"temperature": 2.0, "divergence": "jensen_shannon"}),
    "jensen_shannon-0.9": Case(
        losses.logit_kd, loop_divergence, {"temperature": 1.0, "divergence": "jensen_shannon", "beta": 0.9}
    ),
    "dkd-defaults": Case(losses.dkd, loop_dkd, {"temperature": 1.0}, labels=True),
    "dkd": Case(losses.dkd, loop_dkd, {"temperature": 4.0, "alpha": 0.7, "beta": 2.0}, labels=True),
    "dist-defaults": Case(losses.dist, loop_dist, {}),
    "dist": Case(losses.dist, loop_dist, {"temperature": 4.0, "beta": 2.0, "gamma": 3.0}),
    "deit_hard": Case(losses.deit_hard, loop_deit_hard, {}),
    "deit_soft": Case(losses.deit_soft, loop_logit_kd, {"temperature": 3.0}),
}
MUTATIONS = [
    ("logit_kd", "logit_kd", "temperature**2 * ", ""),
    (
        "logit_kd",
        "logit_kd",
        "divergence_terms(student_log_probs, teacher_log_probs",
        "divergence_terms(teacher_log_probs, student_log_probs",
    ),
    ("logit_kd", "logit_kd", "student_logits / temperature", "student_logits"),
    ("logit_kd", "_relative", "return log_probs.exp() * (", "return ("),
    (
        "reverse_kl",
        "divergence_terms",
        "terms = _relative(student",
        "terms = student_log_probs.exp() + _relative(student",
    ),
    ("reverse_kl", "logit_kd", "divergence, beta)\n    return", "'forward_kl', beta)\n    return"),
    (
        "jensen_shannon-0.9",
        "divergence_terms",
        "theirs + math.log(beta)",
        "ours + math.log(beta)",
    ),
    ("jensen_shannon-0.9", "divergence_terms", "math.log1p(-beta)", "math.log(beta)"),
    ("jensen_shannon-0.9", "divergence_terms", "(1 - beta) * _relative", "beta * _relative"),
    ("jensen_shannon-0.9", "divergence_terms", "return beta * _relative", "return (1 - beta) * _relative"),
    ("jensen_shannon-0.9", "divergence_terms", " + of_student", ""),
    ("dkd", "dkd", "temperature**2 * (", "("),
    ("dkd", "dkd", "alpha * tckd + beta * nckd", "beta * tckd + alpha * nckd"),
    ("dkd", "dkd", "alpha * tckd +", "alpha * tckd -"),
    ("dkd", "dkd", "_relative(teacher_others, student_others)", "_relative(student_others, teacher_others)"),
    ("dkd", "_decouple", "columns >= labels", "columns > labels"),
    ("dkd", "_decouple", "others.logsumexp(", "logits.logsumexp("),
    ("dist", "dist", "temperature**2 * loss", "loss"),
    ("dist", "dist", "student_probs.T, teacher_probs.T", "student_probs, teacher_probs"),
    ("dist", "dist", "loss + gamma", "loss - gamma"),
    ("dist", "_correlation_distance", "sum(dim=1).mean()", "sum()"),
    ("dist", "_correlation_distance", "unit(centre(student.T).T)", "unit(student)"),
    ("deit_hard", "deit_hard", "argmax", "argmin"),
    ("deit_hard", "deit_hard", 'reduction="none"', 'reduction="sum"'),
    ("deit_hard", "deit_hard", "argmax(dim=1),", "argmax(dim=1), label_smoothing=0.1,"),
    ("deit_soft", "deit_soft", "temperature=temperature)", "temperature=1.0)"),
    ("deit_soft", "deit_soft", "logit_kd(student_logits, teacher_logits,", "logit_kd(teacher_logits, student_logits,"),
]


@pytest.mark.parametrize("name", CASES)
class TestEveryLoss:
    @pytest.mark.parametrize("shape", [(5, 7), (1, 3), (4, 2)])
    def test_value_and_gradient(self, name, shape, check_against_loop):
        case = CASES[name]
        check_against_loop(case.loss, case.loop, case.tensors(*shape), case.options)

    @pytest.mark.parametrize("dtype", HALF)
    def test_half_precision(self, name, dtype, check_half_precision):
        case = CASES[name]
        check_half_precision(case.loss, case.loop, case.tensors(5, 7), case.options, dtype)

    def test_adding_a_constant_to_the_logits_of_a_sample_changes_nothing(self, name):
        case = CASES[name]
        student, teacher, *rest = case.tensors(5, 7)
        shift = torch.arange(5)[:, None] * 10
        torch.testing.assert_close(
            case.loss(student + shift, teacher - shift, *rest, **case.options),
            case.loss(student, teacher, *rest, **case.options),
        )

    @pytest.mark.parametrize("dtype", [torch.float32, *HALF])
    @pytest.mark.parametrize("value", [0.0, 0.1, 3e4])
    def test_constant_and_extreme_logits(self, name, value, dtype, check_finite):
        case = CASES[name]
        _, teacher, *rest = case.tensors(5, 7)
        extreme = torch.full((5, 7), value)
        extreme[:, 0] *= -1
        for student, against in (
            (extreme, teacher),
            (extreme, extreme),
            (teacher, extreme),
            (extreme[:1], extreme[1:2]),
        ):
            labels = [label[: len(student)] for label in rest]
            check_finite(case.loss, (student.to(dtype), against.to(dtype), *labels), case.options)

    def test_a_value_is_of_its_row_alone(self, name, check_rows):
        case = CASES[name]
        if case.loss is losses.dist:
            assert case.loss(*case.tensors(5, 7), **case.options).shape == ()
        else:
            check_rows(case.loss, case.tensors(5, 7), case.options)

    def test_maps_are_refused_and_their_rows_taken(self, name):
        case = CASES[name]
        student, teacher, *_ = case.tensors(2, 7, 3, 2)
        labels = [torch.arange(12).view(2, 3, 2) % 7] if case.labels else []
        with pytest.raises(ValueError, match=r"\(rows, num_classes\), got \(2, 7, 3, 2\): rows_of"):
            case.loss(student, teacher, *labels, **case.options)
        rows = [losses.rows_of(maps) for maps in (student, teacher)]
        assert torch.equal(rows[0][8], student[1, :, 1, 0])
        values = case.loss(*rows, *(label.flatten() for label in labels), **case.options)
        assert values.shape == (() if case.loss is losses.dist else (12,))

    def test_refuses_to_broadcast(self, name):
        case = CASES[name]
        student, teacher, *rest = case.tensors(3, 4)
        with pytest.raises(ValueError, match=r"same shape, got \(3, 4\) and \(1, 4\)"):
            case.loss(student, teacher[:1], *rest, **case.options)


class TestMaskedClasses:
    """Where a teacher's logit is -inf, or the lowest number of a type."""

    LOWEST = (
        -math.inf,
        torch.finfo(torch.float32).min,
        torch.finfo(torch.bfloat16).min,
        torch.finfo(torch.float16).min,
    )

    @staticmethod
    def masked(case):
        """Its tensors, a sample's own class among the masked ones in dkd, and one sample with nothing but its own."""
        student, teacher, *labels = case.tensors(5, 7)
        where = torch.zeros(5, 7, dtype=torch.bool)
        where[0, 2] = where[1, 0] = where[1, 3] = where[4, :6] = True
        if labels:
            where[0, labels[0][0]] = True
            labels[0][4] = 6
        return (student, teacher.masked_fill(where, -math.inf), *labels), where

    @pytest.mark.parametrize("name", [name for name in CASES if name != "reverse_kl"])
    def test_value_and_gradient(self, name, check_against_loop):
        case = CASES[name]
        tensors, _ = self.masked(case)
        loop = loop_of_masked_dkd if case.loss is losses.dkd else case.loop
        check_against_loop(case.loss, loop, tensors, case.options)

    def test_reverse_kl_is_over_the_other_classes_and_has_mass_leave(self, check_against_loop):
        case = CASES["reverse_kl"]
        (student, teacher), where = self.masked(case)

        def loop(student, teacher, temperature, divergence):
            total = 0.0
            for s, t, out in zip(student.tolist(), teacher.tolist(), where.tolist(), strict=True):
                q, p, kept = softmax(s, temperature), softmax(t, temperature), [not masked for masked in out]
                inside = sum(a for a, k in zip(q, kept, strict=True) if k)
                total += kl([a / inside * k for a, k in zip(q, kept, strict=True)], p) - math.log(inside)
            return temperature**2 * total / len(student)

        check_against_loop(case.loss, loop, (student, teacher), case.options)

    @pytest.mark.parametrize("dtype", [torch.float32, *HALF])
    @pytest.mark.parametrize("name", CASES)
    def test_a_lowest_number_is_no_other_than_minus_infinity(self, name, dtype, check_finite):
        case = CASES[name]
        (student, teacher, *labels), where = self.masked(case)
        expected = case.loss(student.to(dtype), teacher.to(dtype), *labels, **case.options)
        for lowest in self.LOWEST:
            if lowest >= torch.finfo(dtype).min:
                masked = teacher.masked_fill(where, lowest).to(dtype)
                value, gradient = check_finite(case.loss, (student.to(dtype), masked, *labels), case.options)
                assert value == expected.mean().item()
                assert gradient.any()

    @pytest.mark.parametrize("name", CASES)
    def test_a_student_that_masks_them_too_is_compared_on_the_others(self, name, check_finite):
        case = CASES[name]
        student, teacher, *labels = case.tensors(5, 7)
        labels = [label % 5 for label in labels]
        keep = torch.tensor([0, 1, 2, 4, 6])
        expected = case.loss(student[:, keep], teacher[:, keep], *labels, **case.options)
        labels = [keep[label] for label in labels]
        masked = torch.full((2, 5, 7), -math.inf, dtype=torch.float64)
        masked[0, :, keep], masked[1, :, keep] = student[:, keep], teacher[:, keep]
        value, _ = check_finite(case.loss, (masked[0], masked[1], *labels), case.options)
        if case.loss is not losses.dist:  # whose means are over all classes
            assert value == pytest.approx(expected.mean().item(), rel=1e-9)

    @pytest.mark.parametrize("name", [name for name in CASES if name != "deit_hard"])
    def test_all_of_them_is_no_distribution(self, name):
        case = CASES[name]
        student, teacher, *labels = case.tensors(5, 7)
        teacher[1] = -math.inf
        assert not case.loss(student, teacher, *labels, **case.options).mean().isfinite()


@pytest.mark.parametrize(("name", "function", "old", "new"), MUTATIONS)
def test_mutants_differ_from_the_loop(name, function, old, new, check_mutant):
    case = CASES[name]
    check_mutant(case.loss, case.loop, case.tensors(5, 7), case.options, function, old, new)


@pytest.mark.parametrize("name", [name for name in CASES if name != "deit_hard"])
def test_equal_logits_have_zero_gradient(name):
    case = CASES[name]
    student, _, *rest = case.tensors(5, 7)
    student = student.float().requires_grad_()
    value = case.loss(student, student.detach().clone(), *rest, **case.options).mean()
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["logit_kd", "dkd", "dist", "deit_soft"])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(name, temperature):
    case = CASES[name]
    with pytest.raises(ValueError, match="temperature must be positive"):
        case.loss(*case.tensors(2, 3), temperature=temperature)


def test_logit_kd_is_asymmetric_with_the_teacher_first():
    # t = (log 3, 0): p = (3/4, 1/4); s = (0, 0): q = (1/2, 1/2). KL(p‖q) = 3/4 log(3/2) + 1/4 log(1/2).
    teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert losses.logit_kd(student, teacher, temperature=1.0).item() == pytest.approx(expected, rel=1e-6)


class TestDivergences:
    def test_reverse_kl_exchanges_the_two(self):
        student, teacher = logits(6, 5)
        torch.testing.assert_close(
            losses.logit_kd(student, teacher, temperature=2.0, divergence="reverse_kl"),
            losses.logit_kd(teacher, student, temperature=2.0),
        )

    def test_jensen_shannon_between_certain_distributions_is_the_entropy_of_beta(self):
        # Disjoint p and q: KL(p‖m) = −log β, KL(q‖m) = −log(1 − β). At β = 1/4: (log 4) / 4 + 3/4 log(4/3).
        student, teacher = torch.tensor([[100.0, -100.0]]), torch.tensor([[-100.0, 100.0]])
        value = losses.logit_kd(student, teacher, temperature=1.0, divergence="jensen_shannon", beta=0.25)
        assert value.item() == pytest.approx(math.log(4) / 4 + 0.75 * math.log(4 / 3), rel=1e-6)

    def test_exchanging_the_two_in_jensen_shannon_exchanges_their_shares(self):
        student, teacher = logits(6, 5)
        options = {"temperature": 2.0, "divergence": "jensen_shannon"}
        torch.testing.assert_close(
            losses.logit_kd(student, teacher, **options, beta=0.2),
            losses.logit_kd(teacher, student, **options, beta=0.8),
        )

    @pytest.mark.parametrize(("beta", "limit"), [(1e-7, "forward_kl"), (1 - 1e-7, "reverse_kl")])
    def test_jensen_shannon_tends_to_each_kl(self, beta, limit):
        student, teacher = logits(6, 5)
        value = losses.logit_kd(student, teacher, temperature=2.0, divergence="jensen_shannon", beta=beta)
        expected = losses.logit_kd(student, teacher, temperature=2.0, divergence=limit)
        torch.testing.assert_close(value / min(beta, 1 - beta), expected, rtol=1e-4, atol=0)

    @pytest.mark.parametrize("beta", [0.0, 1.0, -0.5, math.nan])
    def test_both_have_a_share_in_the_mixture(self, beta):
        with pytest.raises(ValueError, match="beta must be between 0 and 1"):
            losses.logit_kd(*logits(2, 3), temperature=1.0, divergence="jensen_shannon", beta=beta)

    def test_is_one_of_three(self):
        with pytest.raises(ValueError, match="forward_kl, reverse_kl, jensen_shannon, got 'kl'"):
            losses.logit_kd(*logits(2, 3), temperature=1.0, divergence="kl")


class TestDKD:
    def test_is_logit_kd_with_the_weight_that_decoupling_removes(self):
        # Eq. 6 of the paper, per sample: KD = TCKD + (1 − p_y) NCKD, with the teacher's p_y.
        student, teacher = logits(1, 6)
        labels = torch.tensor([2])
        beta = 1 - (teacher / 3).softmax(dim=1)[0, 2].item()
        torch.testing.assert_close(
            losses.dkd(student, teacher, labels, temperature=3.0, alpha=1.0, beta=beta),
            losses.logit_kd(student, teacher, temperature=3.0),
        )

    def test_two_classes_have_nothing_beside_the_target(self):
        student, teacher = logits(4, 2)
        labels = torch.tensor([0, 1, 0, 1])
        torch.testing.assert_close(
            losses.dkd(student, teacher, labels, temperature=2.0), losses.logit_kd(student, teacher, temperature=2.0)
        )

    def test_needs_two_classes_and_fitting_labels(self):
        student, teacher = logits(4, 1)
        with pytest.raises(ValueError, match="two classes"):
            losses.dkd(student, teacher, torch.zeros(4, dtype=torch.int64), temperature=1.0)
        student, teacher = logits(4, 3)
        for labels in (torch.zeros(3, dtype=torch.int64), torch.zeros(4), torch.zeros(4, 1, dtype=torch.int64)):
            with pytest.raises(ValueError, match=r"int64 class indices of shape \(4,\)"):
                losses.dkd(student, teacher, labels, temperature=1.0)


class TestDist:
    def test_a_positive_affine_map_of_the_probabilities_changes_nothing(self):
        # The Pearson distance is invariant to it; between the teacher's probabilities and 0.5 p + 0.1 it is 0.
        teacher = logits(6, 5)[1]
        student = (0.5 * teacher.softmax(dim=1) + 0.1).log()
        assert losses.dist(student, teacher).item() == pytest.approx(0, abs=1e-12)

    def test_one_sample_has_no_relation_within_a_class(self):
        student, teacher = logits(1, 5)
        assert losses.dist(student, teacher, gamma=5.0) == losses.dist(student, teacher, gamma=0.0)
        assert losses.dist(student, student).item() == pytest.approx(0, abs=1e-12)

    def test_classes_of_tiny_probability_count(self):
        # Probabilities around 1e-11: an epsilon in the denominator would make them uncorrelated.
        teacher = logits(6, 3)[1]
        teacher[:, 2] -= 25
        assert losses.dist(teacher.float(), teacher.float(), beta=0.0).item() == pytest.approx(0, abs=1e-5)

    def test_constant_probabilities_are_uncorrelated(self, check_finite):
        value, gradient = check_finite(losses.dist, (torch.full((4, 3), 0.1), logits(4, 3)[1].float()), {})
        assert value == pytest.approx(2)
        assert not gradient.any()


def test_deit_hard_sends_no_gradient_to_the_teacher():
    student, teacher = (x.requires_grad_() for x in logits(3, 4))
    losses.deit_hard(student, teacher).mean().backward()
    assert teacher.grad is None
