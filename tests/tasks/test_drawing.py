"""Classes, depths and boxes as colours, and their grids."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kdcli.results.pictures.samples import plot_samples
from kdcli.tasks.dense.drawing import (
    UNKNOWN,
    class_colours,
    depth_range,
    depth_scale,
    draw_boxes,
    draw_depth,
    draw_errors,
    draw_mask,
    draw_over,
    error_legend,
    legend,
)
from kdcli.tasks.reports import Panel

NAMES = ("background", *(f"class {number}" for number in range(30)))


def test_colours_differ_and_stay():
    colours = class_colours(NAMES)
    assert len({tuple(row) for row in colours.tolist()}) == len(NAMES)
    np.testing.assert_array_equal(class_colours(NAMES[:5]), colours[:5])
    np.testing.assert_array_equal(class_colours(NAMES[1:8]), colours[1:8])  # a background takes no class's colour
    assert len({tuple(row) for row in class_colours(["x"] * 150).tolist()}) == 150


def test_a_mask_is_drawn_in_its_classes_colours():
    mask = np.array([[0, 3], [-1, 30]])
    drawn, colours = draw_mask(mask, NAMES), class_colours(NAMES)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, [[colours[0], colours[3]], [UNKNOWN, colours[30]]])
    over = draw_over(np.zeros((2, 2, 3), np.uint8), mask, NAMES, share=0.5)
    np.testing.assert_allclose(over, drawn / 2, atol=0.51)
    told = legend(NAMES, mask).entries
    assert {place: name for place, (name, _) in told.items()} == {
        0: NAMES[0],
        3: NAMES[3],
        30: NAMES[30],
        -1: "no label",
    }
    assert told[3][1] == tuple(colours[3])
    assert len(legend(NAMES).entries) == len(NAMES)


def test_errors_are_where_it_is_labelled():
    drawn = draw_errors(np.array([[0, 1, 2]]), np.array([[0, 2, -1]]))
    right, wrong, unknown = map(tuple, drawn[0].tolist())
    entries = error_legend().entries
    assert list(entries.values()) == [("wrong", wrong), ("right", right)]
    assert unknown == UNKNOWN
    assert min(abs(int(one) - int(other)) for one, other in zip(right, unknown, strict=True)) > 50, "told apart by eye"


def test_depths_are_drawn_on_their_scale():
    depth = np.array([[0.5, 1.0, 3.0, 5.0, 9.0, 0.0, np.nan]], np.float32)
    drawn = [tuple(pixel) for pixel in draw_depth(depth, 1.0, 5.0)[0].tolist()]
    assert drawn[0] == drawn[1]
    assert drawn[3] == drawn[4]
    assert len(set(drawn[1:4])) == 3
    assert drawn[5] == drawn[6] == UNKNOWN
    assert sum(drawn[1]) > sum(drawn[3])  # near is bright
    assert depth_range([depth[depth > 0], np.zeros(3)])[0] >= 0.5
    assert depth_range([np.zeros(3)]) == (0.0, 1.0)


@pytest.mark.parametrize("size", [(40, 60), (500, 400)])
def test_boxes_are_drawn_where_they_are(size):
    image = np.full((*size, 3), 90, np.uint8)
    boxes = np.array([[10, 20, 30, 38], [0, 0, 5, 5], [3, 3, 3, 9], [np.nan, 0, 4, 4]], np.float32)
    drawn = draw_boxes(image, boxes, np.array([2, 7, 0, 0]), np.array([0.9, 0.3, 0.2, 0.1]), ["a", "b", "c"])
    factor = len(drawn) // size[0]
    assert drawn.shape == (size[0] * factor, size[1] * factor, 3)
    assert max(drawn.shape) >= 288
    colour = class_colours(["background", "a", "b", "c"])[3]
    is_line = (drawn == colour).all(axis=2)
    assert is_line[38 * factor - 1, 10 * factor : 30 * factor - 1].mean() > 0.9  # its lower edge
    assert is_line[25 * factor : 35 * factor, 10 * factor].all()
    assert not is_line[30 * factor, 15 * factor : 25 * factor].any()
    assert (image == 90).all()
    empty = draw_boxes(image, np.zeros((0, 4)), np.zeros(0, int), None, ["a"])
    assert (empty == 90).all()


def test_a_grid_tells_once_what_colours_mean(tmp_path):
    image = np.zeros((20, 30, 3), np.uint8)
    plain = plot_samples(tmp_path / "plain.png", [[Panel("image", image)] * 2] * 2, title="t")
    rows = [
        [
            Panel("image", image),
            Panel("a $ b_", image, legend(NAMES, np.arange(5))),
            Panel("depth", image, depth_scale(1, 5)),
        ],
        [Panel("image", image), Panel("target\nmore", image, legend(NAMES, np.arange(31)))],
    ]
    told = plot_samples(tmp_path / "told.png", rows, title="t")
    heights = [Image.open(file).size[1] for file in (plain, told)]
    assert heights[1] > heights[0] + 90
    many = plot_samples(tmp_path / "many.png", [[Panel("is _x", image)]] * 7, title="t")
    assert Image.open(many).size[0] > 6 * 288
