"""Losses on the maps of detectors against plain loops over cells and boxes."""

from __future__ import annotations

import math

import pytest
import torch

from kdcli import losses

SIZE, GRID = (30, 40), (3, 5)
BOXES = [
    torch.tensor([[0.0, 0, 7, 9], [10, 5, 40, 30], [20, 15, 23, 19]]),
    torch.zeros(0, 4),
    torch.tensor([[-5.0, -5, 50, 50]]),
    torch.tensor([[8.0, 10, 8, 20], [33, 21, 39, 29]]),
]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loop_weights(boxes):
    """Cell by cell, of one image."""
    rows, columns = GRID
    objects = [[0.0] * columns for _ in range(rows)]
    for left, top, right, bottom in boxes.tolist():
        if right <= left or bottom <= top:
            continue
        cells = [
            (i, j)
            for i in range(rows)
            for j in range(columns)
            if math.floor(top / SIZE[0] * rows) <= i <= math.ceil(bottom / SIZE[0] * rows)
            and math.floor(left / SIZE[1] * columns) <= j <= math.ceil(right / SIZE[1] * columns)
        ]
        for i, j in cells:
            objects[i][j] = max(objects[i][j], 1 / len(cells))
    free = sum(weight == 0 for row in objects for weight in row)
    background = [[1 / free if weight == 0 else 0.0 for weight in row] for row in objects]
    return objects, background


def softmax(values):
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def loop_attention(sample, temperature=0.5):
    """Of [channel][row][column]: for each position, row by row, and for each channel."""
    flat = [[abs(value) for row in channel for value in row] for channel in sample]
    count, channels = len(flat[0]), len(flat)
    spatial = softmax([sum(channel[p] for channel in flat) / channels / temperature for p in range(count)])
    channel = softmax([sum(values) / count / temperature for values in flat])
    return [count * value for value in spatial], [channels * value for value in channel]


def loop_focal(student, teacher, objects, background):
    found = []
    for s, t, fore, back in zip(*(x.double().tolist() for x in (student, teacher, objects, background)), strict=True):
        (spatial, channel), (own_spatial, own_channel) = loop_attention(t), loop_attention(s)
        terms = [0.0, 0.0]
        for c in range(len(s)):
            for i, row in enumerate(s[c]):
                for j, value in enumerate(row):
                    error = channel[c] * spatial[i * len(row) + j] * (t[c][i][j] - value) ** 2
                    terms[0] += fore[i][j] * error
                    terms[1] += back[i][j] * error
        differences = sum(abs(a - b) for a, b in zip(spatial, own_spatial, strict=True))
        differences += sum(abs(a - b) for a, b in zip(channel, own_channel, strict=True))
        found.append([*terms, differences])
    return torch.tensor(found, dtype=torch.float64).T


def test_objects_and_background_have_their_cells():
    objects, background = losses.box_weights(BOXES, SIZE, GRID)
    for number, boxes in enumerate(BOXES):
        expected = loop_weights(boxes) if number != 2 else ([[1 / 15] * 5] * 3, [[0.0] * 5] * 3)
        torch.testing.assert_close(objects[number], torch.tensor(expected[0]))
        torch.testing.assert_close(background[number], torch.tensor(expected[1]))
    assert objects[0, 1, 2] == 1 / 4  # of the smallest box that covers it


def test_focal_distillation():
    student, teacher = normal(4, 3, *GRID), normal(4, 3, *GRID, seed=1)
    weights = losses.box_weights(BOXES, SIZE, GRID)
    torch.testing.assert_close(
        torch.stack(losses.fgd_focal(student, teacher, *weights)), loop_focal(student, teacher, *weights)
    )
    student = student[:2].requires_grad_()
    for term in range(3):
        assert torch.autograd.gradcheck(
            lambda s, term=term: losses.fgd_focal(s, teacher[:2], *(w[:2].double() for w in weights))[term], (student,)
        )


def test_the_attention_is_the_teachers():
    """Its own attention changes neither error; of a student that is the teacher nothing is left."""
    teacher = normal(2, 3, *GRID)
    weights = losses.box_weights(BOXES[:2], SIZE, GRID)
    one = losses.fgd_focal(teacher + 1, teacher, *weights)
    other = losses.fgd_focal(teacher - 1, teacher, *weights)
    torch.testing.assert_close(one[:2], other[:2])
    assert not torch.allclose(one[2], other[2])
    assert all(not term.any() for term in losses.fgd_focal(teacher, teacher, *weights))


def test_squared_error_is_a_sum():
    student, teacher = normal(2, 3, 2, 2), normal(2, 3, 2, 2, seed=1)
    expected = [
        sum((a - b) ** 2 for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True))
        for s, t in zip(student, teacher, strict=True)
    ]
    torch.testing.assert_close(losses.squared_error(student, teacher), torch.tensor(expected, dtype=torch.float64))


def test_half_precision_is_computed_in_full():
    student, teacher = (normal(2, 3, *GRID, seed=seed).half() * 60 for seed in (0, 1))
    weights = losses.box_weights(BOXES[:2], SIZE, GRID)
    for found, expected in zip(
        losses.fgd_focal(student, teacher, *weights), loop_focal(student, teacher, *weights), strict=True
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-3)


def test_what_has_another_shape_is_refused():
    maps = normal(2, 3, *GRID)
    with pytest.raises(ValueError, match="boxes must have the shape"):
        losses.box_weights([torch.zeros(4)], SIZE, GRID)
    with pytest.raises(ValueError, match="Weights must have the shape"):
        losses.fgd_focal(maps, maps, torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="same shape"):
        losses.squared_error(maps, maps[:, :2])
