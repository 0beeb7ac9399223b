"""Losses on features against plain loops, their invariances, and the cases in which they could break."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from kdcli import losses

HALF = (torch.float16, torch.bfloat16)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def pair(*shape, other=None):
    return normal(*shape), normal(*(other or shape), seed=1)


# ---- Loops ----------------------------------------------------------------------------------------------------------


def differences(student, teacher):
    return [
        s - t for s, t in zip(student.double().flatten().tolist(), teacher.double().flatten().tolist(), strict=True)
    ]


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def unit(x):
    length = math.sqrt(dot(x, x)) or 1
    return [a / length for a in x]


def pooled(image, height, width):
    """Average of the cells ``floor(i H / h) .. ceil((i + 1) H / h)``, as adaptive pooling cuts them."""

    def cells(size, count):
        return [range(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]

    return [
        [
            sum(image[i][j] for i in rows for j in columns) / (len(rows) * len(columns))
            for columns in cells(len(image[0]), width)
        ]
        for rows in cells(len(image), height)
    ]


def loop_mse(student, teacher):
    d = differences(student, teacher)
    return sum(x * x for x in d) / len(d)


def loop_smooth_l1(student, teacher, beta=1.0):
    d = [abs(x) for x in differences(student, teacher)]
    return sum(x * x / (2 * beta) if x < beta else x - beta / 2 for x in d) / len(d)


def loop_log_sum(student, teacher, alpha=4.0, eps=1e-5):
    return math.log(sum(abs(x) ** alpha for x in differences(student, teacher)) + eps)


def loop_fitnet(student, teacher):
    return sum(x * x for x in differences(student, teacher)) / 2 / len(student)


def loop_vid(student, teacher, raw_variance, eps=1e-5):
    total = 0.0
    for s, t in zip(*(x.double().view(*x.shape[:2], -1).tolist() for x in (student, teacher)), strict=True):
        for channel, alpha in enumerate(raw_variance.double().tolist()):
            variance = math.log(1 + math.exp(alpha)) + eps
            for mean, value in zip(s[channel], t[channel], strict=True):
                total += (math.log(variance) + (value - mean) ** 2 / variance) / 2
    return total / student.numel()


def common(student, teacher):
    return min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])


def loop_attention_transfer(student, teacher, power=2.0):
    grid, total = common(student, teacher), 0.0

    def attention(channels):
        image = [
            [sum(abs(c[i][j]) ** power for c in channels) for j in range(len(channels[0][0]))]
            for i in range(len(channels[0]))
        ]
        return unit([value for row in pooled(image, *grid) for value in row])

    for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        total += sum((a - b) ** 2 for a, b in zip(attention(s), attention(t), strict=True))
    return total / len(student) / math.prod(grid)


def loop_nst(student, teacher, kernel="polynomial"):
    grid, total = common(student, teacher), 0.0

    def neurons(channels):
        return [unit([value for row in pooled(c, *grid) for value in row]) for c in channels]

    def mean_kernel(xs, ys):
        return sum(dot(x, y) ** (2 if kernel == "polynomial" else 1) for x in xs for y in ys) / len(xs) / len(ys)

    for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        s, t = neurons(s), neurons(t)
        total += mean_kernel(s, s) + mean_kernel(t, t) - 2 * mean_kernel(s, t)
    return total / len(student)


def loop_review_kd(student, teacher, levels=(4, 2, 1)):
    height, width = student.shape[2:]
    s, t = student.double().flatten(end_dim=1).tolist(), teacher.double().flatten(end_dim=1).tolist()
    terms = [(1.0, height, width)]
    for level in levels:
        if level < min(height, width):
            terms.append((terms[-1][0] / 2, level, level))
    total = 0.0
    for weight, rows, columns in terms:
        errors = [
            (a - b) ** 2
            for x, y in zip(s, t, strict=True)
            for row_x, row_y in zip(pooled(x, rows, columns), pooled(y, rows, columns), strict=True)
            for a, b in zip(row_x, row_y, strict=True)
        ]
        total += weight * sum(errors) / len(errors)
    return total / sum(weight for weight, *_ in terms)


def loop_crd(anchors, positives, negatives, num_samples, temperature=0.07, partition=1.0):
    def critic(a, x, count):
        e = math.exp(dot(a, x) / temperature) / partition
        return e / (e + count / num_samples)

    total = 0.0
    for a, p, ns in zip(*(x.double().tolist() for x in (anchors, positives, negatives)), strict=True):
        h_p, *h_ns = (critic(a, x, len(ns)) for x in (p, *ns))
        total -= math.log(h_p) + sum(math.log(1 - h) for h in h_ns)
    return total / len(anchors)


# ---- Cases ----------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    loss: object
    loop: object
    tensors: tuple
    options: Mapping = MappingProxyType({})


def crd_tensors():
    return tuple(F.normalize(x, dim=-1) for x in (*pair(3, 4), normal(3, 5, 4, seed=2)))


MAPS = pair(2, 3, 5, 4)
RESIZED = pair(2, 3, 5, 4, other=(2, 6, 3, 7))
RAW = torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64)
CASES = {
    "mse": Case(losses.mse, loop_mse, pair(2, 4, 3)),
    "smooth_l1": Case(losses.smooth_l1, loop_smooth_l1, pair(5, 7)),
    "smooth_l1-0.3": Case(losses.smooth_l1, loop_smooth_l1, pair(5, 7), {"beta": 0.3}),
    "log_sum": Case(losses.log_sum, loop_log_sum, pair(5, 7)),
    "log_sum-0.5": Case(losses.log_sum, loop_log_sum, pair(2, 4, 3), {"alpha": 0.5}),
    "log_sum-2.5": Case(losses.log_sum, loop_log_sum, pair(1, 3), {"alpha": 2.5, "eps": 0.1}),
    "fitnet": Case(losses.fitnet, loop_fitnet, MAPS),
    "fitnet-vectors": Case(losses.fitnet, loop_fitnet, pair(5, 7)),
    "vid": Case(losses.vid, loop_vid, MAPS, {"raw_variance": RAW}),
    "vid-vectors": Case(losses.vid, loop_vid, (normal(5, 3), normal(5, 3, seed=1)), {"raw_variance": RAW, "eps": 0.2}),
    "attention_transfer": Case(losses.attention_transfer, loop_attention_transfer, MAPS),
    "attention_transfer-resized": Case(losses.attention_transfer, loop_attention_transfer, RESIZED),
    "attention_transfer-3": Case(losses.attention_transfer, loop_attention_transfer, RESIZED, {"power": 3.0}),
    "nst-channels": Case(losses.nst, loop_nst, MAPS),
    "nst-positions": Case(losses.nst, loop_nst, pair(2, 3, 2, 3, other=(2, 7, 3, 2))),
    "nst-resized": Case(losses.nst, loop_nst, RESIZED),
    "nst-linear": Case(losses.nst, loop_nst, RESIZED, {"kernel": "linear"}),
    "review_kd": Case(losses.review_kd, loop_review_kd, pair(2, 3, 5, 6)),
    "review_kd-small": Case(losses.review_kd, loop_review_kd, pair(2, 3, 3, 5)),
    "review_kd-1": Case(losses.review_kd, loop_review_kd, pair(2, 3, 1, 1)),
    "review_kd-levels": Case(losses.review_kd, loop_review_kd, pair(2, 3, 5, 6), {"levels": (3,)}),
    "crd": Case(losses.crd, loop_crd, crd_tensors(), {"num_samples": 50}),
    "crd-partition": Case(losses.crd, loop_crd, crd_tensors(), {"num_samples": 50, "temperature": 0.5, "partition": 30.0}),
}  # fmt: skip
MUTATIONS = [
    ("mse", "mse", "F.mse_loss(", "F.l1_loss("),
    ("mse", "mse", "reduction=reduction", 'reduction="sum"'),
    ("smooth_l1-0.3", "smooth_l1", "beta=beta,", "beta=1.0,"),
    ("smooth_l1", "smooth_l1", "reduction=reduction", 'reduction="sum"'),
    ("log_sum", "log_sum", "powers.sum()", "powers.mean()"),
    ("log_sum", "log_sum", "alpha * scale.log()", "scale.log()"),
    ("fitnet", "fitnet", "sum(dim=1) / 2", "sum(dim=1)"),
    ("fitnet", "fitnet", "sum(dim=1)", "mean(dim=1)"),
    ("vid", "vid", "/ variance + variance.log()", "/ variance - variance.log()"),
    ("vid", "vid", ".square() / variance", ".square() * variance"),
    ("vid", "vid", "variance.log()) / 2", "variance.log())"),
    ("vid-vectors", "vid", "raw_variance)) + eps", "raw_variance))"),
    ("attention_transfer", "attention_transfer", "F.mse_loss(", "F.l1_loss("),
    ("attention_transfer", "attention_transfer", "unit(student_map.flatten(start_dim=1))", "student_map.flatten(start_dim=1)"),
    ("attention_transfer-3", "_attention", "pow(power)", "pow(2)"),
    ("attention_transfer", "_attention", ".abs().pow(power)", ".abs()"),
    ("nst-channels", "nst", "- 2 * both", "- both"),
    ("nst-channels", "nst", "- 2 * both", "+ 2 * both"),
    ("nst-positions", "nst", "(student_moment - teacher_moment)", "(student_moment + teacher_moment)"),
    ("nst-positions", "nst", "sum(dim=(1, 2))", "mean(dim=(1, 2))"),
    ("nst-linear", "nst", "(student.mean(dim=1) - teacher.mean(dim=1))", "(student.mean(dim=1) + teacher.mean(dim=1))"),
    ("nst-linear", "nst", "sum(dim=1)", "mean(dim=1)"),
    ("nst-linear", "nst", "unit(maps.flatten(start_dim=2))", "maps.flatten(start_dim=2)"),
    ("review_kd", "review_kd", "weight /= 2", "weight /= 1"),
    ("review_kd", "review_kd", "loss / total", "loss"),
    ("review_kd", "review_kd", "loss + weight *", "loss - weight *"),
    ("review_kd-small", "review_kd", "level < min(student.shape[2:])", "True"),
    ("crd", "crd", "F.softplus(-positive_logits)", "F.softplus(positive_logits)"),
    ("crd", "crd", "F.softplus(negative_logits).sum(dim=1)", "F.softplus(negative_logits).mean(dim=1)"),
    ("crd", "crd", "negatives.shape[1] / num_samples)", "1 / num_samples)"),
    ("crd-partition", "crd", "math.log(partition) +", "-math.log(partition) +"),
    ("crd", "crd", "squeeze(2) / temperature", "squeeze(2)"),
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
class TestEveryLoss:
    def test_value_and_gradient(self, name, check_against_loop):
        check_against_loop(*CASES[name])

    @pytest.mark.parametrize("dtype", HALF)
    def test_half_precision(self, name, dtype, check_half_precision):
        check_half_precision(*CASES[name], dtype)

    def test_gradient_for_the_others(self, name):
        case = CASES[name]
        for position in range(1, len(case.tensors)):
            others = list(case.tensors)

            def loss(tensor, position=position, others=others):
                return case.loss(*others[:position], tensor, *others[position + 1 :], **case.options).mean()

            assert torch.autograd.gradcheck(loss, (others[position].clone().requires_grad_(),))

    @pytest.mark.parametrize("dtype", [torch.float32, *HALF])
    def test_degenerate_features(self, name, dtype, check_finite):
        case = CASES[name]
        tensors = [tensor.to(dtype) for tensor in case.tensors]
        for value in (0.0, 0.1):
            constant = [torch.full_like(tensor, value) for tensor in tensors]
            check_finite(case.loss, (constant[0], *tensors[1:]), case.options)
            check_finite(case.loss, (tensors[0], *constant[1:]), case.options)
            check_finite(case.loss, constant, case.options)
        zero = tensors[0].clone()
        zero[0] = 0
        check_finite(case.loss, (zero, *tensors[1:]), case.options)
        check_finite(case.loss, [tensor[:1] for tensor in tensors], case.options)

    def test_non_finite_features_reach_the_loss(self, name):
        case = CASES[name]
        student, *others = case.tensors
        student = student.clone()
        student.view(-1)[1] = math.nan
        assert case.loss(student, *others, **case.options).mean().isnan()

    def test_a_value_is_of_its_row_alone(self, name, check_rows):
        case = CASES[name]
        if case.loss is losses.log_sum:
            assert case.loss(*case.tensors, **case.options).shape == ()
        else:
            check_rows(case.loss, case.tensors, case.options)

    def test_batches_must_agree(self, name):
        case = CASES[name]
        student, teacher, *rest = case.tensors
        with pytest.raises(ValueError, match=r"same (shape|batch)"):
            case.loss(
                student.repeat(2, *[1] * (student.ndim - 1)),
                teacher,
                *(x.repeat(2, 1, 1) for x in rest),
                **case.options,
            )


@pytest.mark.parametrize(("name", "function", "old", "new"), MUTATIONS)
def test_mutants_differ_from_the_loop(name, function, old, new, check_mutant):
    check_mutant(*CASES[name], function, old, new)


ZERO_AT_EQUAL = [
    name for name in CASES if name.split("-")[0] not in ("vid", "crd") and not name.endswith(("resized", "-3"))
]


@pytest.mark.parametrize("name", [*ZERO_AT_EQUAL, "nst-linear"])
def test_equal_features_have_zero_gradient(name):
    case = CASES[name]
    student = case.tensors[0].float().requires_grad_()
    value = case.loss(student, student.detach().clone(), **case.options).mean()
    value.backward()
    minimum = math.log(case.options.get("eps", 1e-5)) if case.loss is losses.log_sum else 0
    assert value.item() == pytest.approx(minimum, abs=1e-6)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("smooth_l1", {"beta": 0.0}),
        ("log_sum", {"alpha": -1.0}),
        ("log_sum", {"eps": 0.0}),
        ("vid", {"raw_variance": RAW, "eps": 0.0}),
        ("crd", {"num_samples": 0}),
        ("crd", {"num_samples": 5, "temperature": 0.0}),
        ("crd", {"num_samples": 5, "partition": math.nan}),
    ],
)
def test_hyperparameters_must_be_positive(name, options):
    with pytest.raises(ValueError, match=f"{list(options)[-1]} must be positive"):
        CASES[name].loss(*CASES[name].tensors, **options)


@pytest.mark.parametrize("name", ["mse", "smooth_l1-0.3", "attention_transfer-3"])
def test_torch_s_own_mean_is_the_mean(name):
    case = CASES[name]
    values = case.loss(*case.tensors, **case.options)
    assert values.numel() > len(values)
    torch.testing.assert_close(case.loss(*case.tensors, **case.options, reduction="mean"), values.mean())


class TestLogSum:
    def test_large_differences_do_not_overflow(self):
        # Two elements that differ by 1e12: log(2 * 1e48) is far from any float32 limit, 1e48 isn't.
        student = torch.full((1, 2), 1e12, requires_grad=True)
        value = losses.log_sum(student, torch.zeros(1, 2))
        value.backward()
        assert value.item() == pytest.approx(math.log(2) + 4 * math.log(1e12), rel=1e-6)
        # d/dx log(Σ x^4) = 4 x^3 / Σ x^4 = 4 / (2x)
        torch.testing.assert_close(student.grad, torch.full((1, 2), 2e-12), rtol=1e-5, atol=0)

    def test_gradient_does_not_depend_on_the_scale_of_the_difference(self):
        student, teacher = pair(4, 5)
        gradients = []
        for scale in (1.0, 1000.0):
            scaled = (student * scale).requires_grad_()
            losses.log_sum(scaled, teacher * scale).backward()
            gradients.append(scaled.grad * scale)
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)


def test_fitnet_is_half_the_sum_of_a_samples_squared_errors():
    torch.testing.assert_close(losses.fitnet(*MAPS), losses.mse(*MAPS).sum(dim=(1, 2, 3)) / 2)


class TestVid:
    def test_gradient_for_the_variance(self):
        raw = RAW.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda r: losses.vid(*MAPS, raw_variance=r).mean(), (raw,))

    def test_the_best_variance_is_the_mean_squared_error(self):
        student, teacher = MAPS
        variance = (student - teacher).square().mean(dim=(0, 2, 3)) - 1e-5
        raw = variance.expm1().log().requires_grad_()
        losses.vid(student, teacher, raw_variance=raw).mean().backward()
        torch.testing.assert_close(raw.grad, torch.zeros_like(raw), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("value", [-1e4, 1e4])
    def test_any_raw_variance_is_valid(self, value, check_finite):
        raw = torch.full((3,), value)
        check_finite(losses.vid, [x.float() for x in MAPS], {"raw_variance": raw})

    def test_one_variance_a_channel(self):
        with pytest.raises(ValueError, match=r"one value a channel, got \(2, 3, 5, 4\) and \(4,\)"):
            losses.vid(*MAPS, raw_variance=torch.zeros(4))


class TestCommonGrid:
    def test_each_axis_takes_the_smaller_size(self):
        student, teacher = losses.common_grid(*RESIZED)
        assert (student.shape, teacher.shape) == ((2, 3, 3, 4), (2, 6, 3, 4))
        for original, resized in zip(RESIZED, (student, teacher), strict=True):
            expected = [[pooled(c, 3, 4) for c in sample] for sample in original.tolist()]
            torch.testing.assert_close(resized, torch.tensor(expected, dtype=torch.float64))

    def test_equal_grids_are_left_alone(self):
        assert all(torch.equal(x, y) for x, y in zip(losses.common_grid(*MAPS), MAPS, strict=True))

    @pytest.mark.parametrize("loss", [losses.attention_transfer, losses.nst, losses.common_grid])
    def test_needs_maps(self, loss):
        with pytest.raises(ValueError, match=r"\(batch, channels, height, width\)"):
            loss(MAPS[0].flatten(start_dim=2), MAPS[1])


class TestAttentionTransfer:
    def test_sign_scale_and_order_of_channels_do_not_matter(self):
        student, teacher = RESIZED
        changed = -5 * student[:, [2, 0, 1]]
        torch.testing.assert_close(
            losses.attention_transfer(changed, teacher), losses.attention_transfer(student, teacher)
        )

    @pytest.mark.parametrize("power", [0.5, math.nan])
    def test_power_is_at_least_one(self, power):
        with pytest.raises(ValueError, match="power must be at least 1"):
            losses.attention_transfer(*MAPS, power=power)


class TestNst:
    @pytest.mark.parametrize("name", ["nst-channels", "nst-positions", "nst-linear"])
    def test_scale_order_and_copies_of_channels_do_not_matter(self, name):
        case = CASES[name]
        student, teacher = case.tensors
        changed = torch.cat([3 * student[:, [2, 0, 1]], 0.1 * student], dim=1)
        torch.testing.assert_close(
            case.loss(changed, teacher, **case.options), case.loss(student, teacher, **case.options)
        )

    def test_kernel_is_one_of_two(self):
        with pytest.raises(ValueError, match="polynomial or linear, got 'gaussian'"):
            losses.nst(*MAPS, kernel="gaussian")


def test_review_kd_needs_maps():
    with pytest.raises(ValueError, match=r"\(batch, channels, height, width\), got \(5, 7\)"):
        losses.review_kd(*pair(5, 7))


class TestCrd:
    def test_rotation_of_the_space_and_order_of_negatives_do_not_matter(self):
        anchors, positives, negatives = crd_tensors()
        rotation = torch.linalg.qr(normal(4, 4)).Q
        torch.testing.assert_close(
            losses.crd(anchors @ rotation, positives @ rotation, negatives.flip(1) @ rotation, num_samples=50),
            losses.crd(anchors, positives, negatives, num_samples=50),
        )

    def test_small_temperatures_do_not_overflow(self, check_finite):
        # exp(1 / 0.001) overflows.
        value, _ = check_finite(
            losses.crd, [x.float() for x in crd_tensors()], {"num_samples": 50, "temperature": 1e-3}
        )
        assert value > 100

    def test_shapes(self):
        anchors, positives, negatives = crd_tensors()
        for wrong in (negatives[:, 0], negatives[:2], negatives[:, :, :2], negatives[:, :0]):
            with pytest.raises(ValueError, match=r"negatives \(batch, negatives, width\)"):
                losses.crd(anchors, positives, wrong, num_samples=50)
