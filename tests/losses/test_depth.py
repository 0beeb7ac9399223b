"""Losses on depth against loops over the valid pixels of each image, in float64."""

import math
import statistics

import pytest
import torch

from kdcli import losses


def pixels_of(prediction, target, valid):
    """For each image the pairs of its valid pixels."""
    return [
        [(float(p), float(t)) for p, t, v in zip(*(side.flatten() for side in sides), strict=True) if v]
        for sides in zip(prediction, target, valid, strict=True)
    ]


def mean_over_images(image_loss):
    def loop(prediction, target, valid, **options):
        images = pixels_of(prediction, target, valid)
        return sum(image_loss(pairs, **options) if pairs else 0.0 for pairs in images) / len(images)

    return loop


def silog(pairs, mean_weight=0.15):
    logs = [math.log(p) - math.log(t) for p, t in pairs]
    variance = statistics.variance(logs) if len(logs) > 1 else 0.0
    return 10 * math.sqrt(variance + mean_weight * statistics.mean(logs) ** 2)


def l1(pairs):
    return statistics.mean(abs(p - t) for p, t in pairs)


def berhu(pairs, share=0.2):
    errors = [abs(p - t) for p, t in pairs]
    c = share * max(errors)
    return statistics.mean(e if e <= c else (e * e + c * c) / (2 * c) for e in errors)


def standard(values):
    middle = statistics.median_low(values)
    scale = statistics.mean(abs(value - middle) for value in values)
    return [(value - middle) / (scale or 1.0) for value in values]


def scale_shift_invariant(pairs):
    ours, theirs = (standard(side) for side in zip(*pairs, strict=True))
    return statistics.mean(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def gradient_matching(prediction, target, valid, scales=4):
    totals = []
    for p, t, v in zip(prediction.tolist(), target.tolist(), valid.tolist(), strict=True):
        total = 0.0
        for step in (2**k for k in range(scales)):
            rows, columns = range(0, len(p), step), range(0, len(p[0]), step)
            found, count = 0.0, 0
            for y in rows:
                for x in columns:
                    count += v[y][x]
                    for dy, dx in ((step, 0), (0, step)):
                        if y + dy < len(p) and x + dx < len(p[0]) and v[y][x] and v[y + dy][x + dx]:
                            found += abs(p[y + dy][x + dx] - t[y + dy][x + dx] - p[y][x] + t[y][x])
            total += found / max(count, 1)
        totals.append(total)
    return sum(totals) / len(totals)


CASES = {
    "silog": (losses.silog, mean_over_images(silog), {}),
    "silog-scaled": (losses.silog, mean_over_images(silog), {"mean_weight": 0.5}),
    "l1": (losses.depth_l1, mean_over_images(l1), {}),
    "berhu": (losses.berhu, mean_over_images(berhu), {}),
    "berhu-half": (losses.berhu, mean_over_images(berhu), {"share": 0.5}),
    "ssi": (losses.scale_shift_invariant, mean_over_images(scale_shift_invariant), {}),
    "gradients": (losses.gradient_matching, gradient_matching, {}),
}


def draw(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    prediction, target = (0.5 + 3 * torch.rand(3, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    valid = torch.rand(3, 5, 6, generator=generator) > 0.3
    valid[2] = False  # an image without depth
    return [prediction.to(dtype), target.to(dtype), valid]


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def test_value_and_gradient(case, check_against_loop):
    loss, loop, options = case
    if loss is losses.berhu:  # c is no part of the gradient: the finite differences move it
        tensors = draw()
        assert loss(*tensors, **options).mean().item() == pytest.approx(loop(*tensors, **options), rel=1e-12)
        return
    check_against_loop(loss, loop, draw(), options)


def test_gradient_of_berhu():
    prediction = torch.tensor([[[1.0, 1.1, 3.0]]], dtype=torch.float64, requires_grad=True)
    losses.berhu(prediction, torch.ones(1, 1, 3, dtype=torch.float64), torch.ones(1, 1, 3, dtype=torch.bool)).backward()
    # The largest error is 2, c = 0.4: slope 1 below it, e / c beyond; a mean over three pixels.
    torch.testing.assert_close(prediction.grad, torch.tensor([[[0.0, 1.0, 5.0]]]).double() / 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(case, check_half_precision, dtype):
    loss, loop, options = case
    check_half_precision(loss, loop, draw(dtype), options, dtype)


def test_rows_are_images(case, check_rows):
    loss, _, options = case
    check_rows(loss, draw(), options)


@pytest.mark.parametrize("valid", [torch.zeros(2, 3, 3).bool(), torch.eye(3).bool().expand(2, 3, 3)])
def test_a_perfect_or_empty_image_is_zero(case, check_finite, valid):
    loss, _, options = case
    target = 1 + torch.arange(18.0).view(2, 3, 3)
    value, gradient = check_finite(loss, [target, target, valid], options)
    assert value == 0
    assert not gradient.any()


def test_what_is_not_valid_may_be_anything(case):
    loss, _, options = case
    prediction, target, valid = draw()
    expected = loss(prediction, target, valid, **options)
    target[~valid], prediction[~valid] = 0.0, math.nan
    prediction.requires_grad_()
    value = loss(prediction, target, valid, **options)
    torch.testing.assert_close(value, expected)
    value.sum().backward()
    assert prediction.grad.isfinite().all()
    assert not prediction.grad[~valid].any()


@pytest.mark.parametrize(
    ("loss", "function", "old", "new"),
    [
        (losses.silog, "silog", "(count - 1)", "count"),
        (losses.silog, "silog", "mean_weight * mean.square()", "mean_weight * mean"),
        (losses.berhu, "berhu", "bound.square()", "bound"),
        (losses.scale_shift_invariant, "_standard", "values - masked_median(values, valid)[:, None]", "values"),
    ],
)
def test_mutants(loss, function, old, new, check_mutant):
    found = next((loop, options) for other, loop, options in CASES.values() if other is loss)
    check_mutant(loss, found[0], draw(), found[1], function, old, new)


def test_invariances():
    prediction, target, valid = draw()
    same = losses.scale_shift_invariant(3 * prediction + 2, target, valid)
    torch.testing.assert_close(same, losses.scale_shift_invariant(prediction, target, valid))
    free = losses.silog(5 * prediction, target, valid, mean_weight=0.0)
    torch.testing.assert_close(free, losses.silog(prediction, target, valid, mean_weight=0.0))


def test_scale_and_shift_are_those_of_least_squares():
    prediction, target, valid = draw()
    scale, shift = losses.fit_scale_and_shift(prediction, target, valid)
    for image in range(2):
        x, y = prediction[image][valid[image]], target[image][valid[image]]
        solution = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], dim=1), y[:, None]).solution[:, 0]
        torch.testing.assert_close(torch.stack([scale[image], shift[image]]), solution)
    assert scale[2] == shift[2] == 0
    flat = losses.fit_scale_and_shift(torch.full_like(target, 7.0), target, valid)
    torch.testing.assert_close(flat[0], torch.zeros(3).double())
    torch.testing.assert_close(flat[1][:2], torch.stack([target[i][valid[i]].mean() for i in range(2)]))


def test_median_is_that_of_the_valid():
    values, _, valid = draw()
    expected = [values[i][valid[i]].median() for i in range(2)]
    torch.testing.assert_close(losses.masked_median(values, valid), torch.stack([*expected, torch.tensor(0.0)]))


def test_standardised_maps_keep_their_shape():
    values, _, valid = draw()
    found = losses.standardize_depth(values, valid)
    assert found.shape == values.shape
    assert not found[~valid].any()
    assert losses.masked_median(found[:2], valid[:2]).abs().max() == 0
    torch.testing.assert_close(found[0][valid[0]].abs().mean().item(), 1.0)


def test_shapes_are_not_broadcast():
    values = torch.ones(2, 3, 3)
    with pytest.raises(ValueError, match="one shape"):
        losses.silog(values, values[:1], values > 0)
    with pytest.raises(ValueError, match="one shape"):
        losses.silog(values[:, None], values[:, None], values[:, None] > 0)
    with pytest.raises(ValueError, match="bool"):
        losses.gradient_matching(values, values, values)
    with pytest.raises(ValueError, match="share"):
        losses.berhu(values, values, values > 0, share=0.0)
