"""Losses on maps against plain loops, where grids differ and where labels or boxes are missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from kdcli import losses
from kdcli.losses import dense

HALF = (torch.float16, torch.bfloat16)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def pair(*shape, other=None):
    return normal(*shape), normal(*(other or shape), seed=1)


def at_grid(student, teacher):
    """Nested lists [sample][channel][row][column], the teacher's at the student's grid by torch itself."""
    theirs = F.interpolate(teacher.double(), student.shape[2:], mode="bilinear", antialias=True)
    return student.double().tolist(), theirs.tolist()


def positions(channels):
    """[channel][row][column] as a vector for each position, row by row."""
    return [
        [channel[i][j] for channel in channels] for i in range(len(channels[0])) for j in range(len(channels[0][0]))
    ]


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def cosine(x, y):
    return dot(x, y) / ((math.sqrt(dot(x, x)) or 1) * (math.sqrt(dot(y, y)) or 1))


def softmax(values):
    largest = max(values)
    powers = [math.exp(value - largest) for value in values]
    return [power / sum(powers) for power in powers]


def divergence(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def loop_cwd(student, teacher, temperature=4.0):
    total = 0.0
    for s, t in zip(*at_grid(student, teacher), strict=True):
        for own, other in zip(s, t, strict=True):
            p, q = (softmax([v / temperature for row in channel for v in row]) for channel in (other, own))
            total += temperature**2 * divergence(p, q)
    return total / student.shape[0] / student.shape[1]


def max_pooled(channels, pool):
    height, width = len(channels[0]), len(channels[0][0])
    rows, columns = (
        max(1, int(side * pool)) if pool < 1 else min(int(pool), side) for side in (height, width)
    )  # fmt: skip
    return [
        [
            [
                max(channel[a][b] for a in range(i, min(i + rows, height)) for b in range(j, min(j + columns, width)))
                for j in range(0, width, columns)
            ]
            for i in range(0, height, rows)
        ]
        for channel in channels
    ]


def loop_skd(student, teacher, pool=2.0):
    total = 0.0
    for s, t in zip(*at_grid(student, teacher), strict=True):
        ours, theirs = (positions(max_pooled(channels, pool)) for channels in (s, t))
        count = len(ours)
        total += (
            sum(
                (cosine(ours[i], ours[j]) - cosine(theirs[i], theirs[j])) ** 2
                for i in range(count)
                for j in range(count)
            )
            / count**2
        )
    return total / len(student)  # fmt: skip


def loop_ifvd(student, teacher, labels):
    height, width = student.shape[2:]
    terms = []
    for number, (s, t) in enumerate(zip(*at_grid(student, teacher), strict=True)):
        rows, columns = labels.shape[1:]
        at = [
            int(labels[number, int((i + 0.5) * rows / height), int((j + 0.5) * columns / width)])
            for i in range(height)
            for j in range(width)
        ]
        found = []
        for vectors in (positions(s), positions(t)):
            cosines = {}
            for place, label in enumerate(at):
                if label == -1:
                    continue
                same = [vectors[other] for other, its in enumerate(at) if its == label]
                cosines[place] = cosine(vectors[place], [sum(values) / len(same) for values in zip(*same, strict=True)])
            found.append(cosines)
        terms += [(found[0][place] - found[1][place]) ** 2 for place in found[0]]
    return sum(terms) / len(terms)


def loop_cirkd(student, teacher, temperature=0.1):
    ours, theirs = ([positions(channels) for channels in side] for side in at_grid(student, teacher))
    total, count = 0.0, 0
    for image in range(len(ours)):
        for place in range(len(ours[0])):
            for other in range(len(ours)):
                p, q = (
                    softmax([cosine(side[image][place], x) / temperature for x in side[other]])
                    for side in (theirs, ours)
                )
                total += divergence(p, q)
                count += 1
    return total / count


def loop_pkd(student, teacher):
    ours, theirs = at_grid(student, teacher)
    total = 0.0
    for channel in range(student.shape[1]):
        xs, ys = ([v for sample in side for row in sample[channel] for v in row] for side in (ours, theirs))
        (mean_x, mean_y) = (sum(values) / len(values) for values in (xs, ys))
        covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
        total += 1 - covariance / math.sqrt(sum((x - mean_x) ** 2 for x in xs) * sum((y - mean_y) ** 2 for y in ys))
    return total / student.shape[1]


class Case(NamedTuple):
    loss: object
    loop: object
    tensors: tuple
    options: Mapping = MappingProxyType({})


LABELS = torch.tensor([[[0, 0, 1, -1, 2, 2, 1], [1, 0, 1, 0, -1, 0, 1], [2, 2, 0, 0, 1, 1, -1]],
                       [[3, 3, 3, 3, 3, 3, 3], [-1, -1, 0, 0, 0, 1, 1], [1, 0, 0, 1, 3, 3, 0]]])  # fmt: skip
WIDER = pair(2, 3, 4, 3, other=(2, 6, 3, 5))
CASES = {
    "cwd": Case(losses.cwd, loop_cwd, pair(2, 3, 4, 3)),
    "cwd-resized": Case(losses.cwd, loop_cwd, pair(2, 3, 4, 3, other=(2, 3, 7, 2)), {"temperature": 1.5}),
    "skd": Case(losses.skd, loop_skd, pair(2, 9, 5, 3)),
    "skd-channels": Case(losses.skd, loop_skd, pair(2, 3, 5, 3, other=(2, 4, 5, 3)), {"pool": 1}),
    "skd-resized": Case(losses.skd, loop_skd, WIDER),
    "skd-share": Case(losses.skd, loop_skd, WIDER, {"pool": 0.5}),
    "ifvd": Case(losses.ifvd, loop_ifvd, (*pair(2, 4, 3, 7), LABELS)),
    "ifvd-resized": Case(losses.ifvd, loop_ifvd, (*WIDER, LABELS)),
    "cirkd": Case(losses.cirkd, loop_cirkd, pair(2, 3, 3, 2)),
    "cirkd-resized": Case(losses.cirkd, loop_cirkd, pair(2, 3, 2, 3, other=(2, 5, 3, 3)), {"temperature": 0.7}),
    "pkd": Case(losses.pkd, loop_pkd, pair(2, 3, 4, 3)),
    "pkd-resized": Case(losses.pkd, loop_pkd, pair(2, 3, 4, 3, other=(2, 3, 7, 2))),
}
MUTATIONS = [
    ("cwd", "cwd", "temperature**2 *", "temperature *"),
    ("cwd", "cwd", "dim=2) for maps", "dim=1) for maps"),
    ("cwd", "cwd", "mean(dim=1)", "sum(dim=1)"),
    ("skd", "skd", "mean(dim=(1, 2))", "sum(dim=(1, 2))"),
    ("skd-channels", "skd", "own + others - 2 * both", "own + others - both"),
    ("skd-resized", "_max_pooled", "F.max_pool2d", "F.avg_pool2d"),
    ("ifvd", "ifvd", "images * (int(at.max()) + 1) + at[rows]", "at[rows]"),
    ("ifvd", "_to_group_means", "unit(features) * unit", "features * unit"),
    ("cirkd", "_row_divergence", "dim=2)", "dim=1)"),
    ("cirkd", "_row_divergence", "teacher.exp()", "student.exp()"),
    ("cirkd", "cirkd", "(len(ours) * images)", "len(ours)"),
    ("pkd", "pkd", "/ 2", "/ 1"),
]


@pytest.mark.parametrize("name", CASES)
class TestEveryLoss:
    def test_value_and_gradient(self, name, check_against_loop):
        check_against_loop(*CASES[name])

    def test_half_precision(self, name, check_half_precision):
        for dtype in HALF:
            check_half_precision(*CASES[name], dtype)

    def test_degenerate_features(self, name, check_finite):
        case = CASES[name]
        student, teacher, *labels = (
            tensor.float() if tensor.is_floating_point() else tensor for tensor in case.tensors
        )
        for value in (0.0, 0.1):
            constant = torch.full_like(student, value), torch.full_like(teacher, value)
            check_finite(case.loss, (constant[0], teacher, *labels), case.options)
            check_finite(case.loss, (student, constant[1], *labels), case.options)
            check_finite(case.loss, (*constant, *labels), case.options)
        check_finite(case.loss, [tensor[:1] for tensor in (student, teacher, *labels)], case.options)

    def test_non_finite_features_reach_the_loss(self, name):
        case = CASES[name]
        student, *others = case.tensors
        student = student.clone()
        student.view(-1)[0] = math.nan
        assert case.loss(student, *others, **case.options).mean().isnan()

    def test_a_value_is_of_its_sample_alone(self, name, check_rows):
        case = CASES[name]
        if name.startswith(("cirkd", "pkd")):
            assert case.loss(*case.tensors, **case.options).shape == ()
        elif name.startswith("ifvd"):
            alone = [case.loss(*(tensor[i : i + 1] for tensor in case.tensors)) for i in range(2)]
            torch.testing.assert_close(torch.cat(alone), case.loss(*case.tensors))
        else:
            check_rows(case.loss, case.tensors, case.options)

    def test_equal_models_have_nothing_to_learn(self, name):
        case = CASES[name]
        student, _, *labels = case.tensors
        assert abs(float(case.loss(student, student, *labels, **case.options).mean())) < 1e-12

    def test_batches_must_agree(self, name):
        case = CASES[name]
        student, *others = case.tensors
        with pytest.raises(ValueError, match="same batch"):
            case.loss(student.repeat(2, 1, 1, 1), *others, **case.options)


@pytest.mark.parametrize(("name", "function", "old", "new"), MUTATIONS)
def test_mutants_differ_from_the_loop(name, function, old, new, check_mutant):
    check_mutant(*CASES[name], function, old, new)


def test_without_labels_there_are_no_values():
    student, teacher, labels = CASES["ifvd"].tensors
    student = student.clone().requires_grad_()
    values = losses.ifvd(student, teacher, torch.full_like(labels, -1))
    assert values.shape == (0,)
    values.sum().backward()
    assert not student.grad.any()


def test_relations_are_taken_in_chunks_and_of_fewer_positions(monkeypatch):
    student, teacher = pair(2, 3, 6, 4)
    student.requires_grad_()
    whole = losses.cirkd(student, teacher)
    (gradient,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr(dense, "MAX_ELEMENTS", 100)
    chunked = losses.cirkd(student, teacher)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(torch.autograd.grad(chunked, student)[0], gradient)
    halved = losses.cirkd(*(F.avg_pool2d(maps, 2) for maps in (student, teacher)))
    torch.testing.assert_close(losses.cirkd(student, teacher, max_positions=6), halved)
    for rows, columns, most in ((6, 4, 6), (128, 256, 1024), (1, 5000, 7), (7, 3, 1), (300, 1, 100)):
        smaller = dense._smaller_grid(rows, columns, most)
        assert min(smaller) >= 1
        assert most // 3 <= math.prod(smaller) <= most


@pytest.mark.parametrize("pool", [0, -1, 1.5])
def test_windows_that_there_are_not(pool):
    with pytest.raises(ValueError, match="pool must be"):
        losses.skd(*pair(1, 2, 3, 3), pool=pool)
