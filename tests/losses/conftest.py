"""How a loss, reduced by its mean, is compared with plain loops over Python floats, and mutated."""

from __future__ import annotations

import inspect
import math
import sys

import pytest
import torch


def _agrees(value, expected, *, rel, abs):
    return value == pytest.approx(expected, rel=rel, abs=abs)


@pytest.fixture
def check_against_loop():
    """Value and gradient for the student in float64."""

    def check(loss, loop, tensors, options):
        student, *others = tensors
        value = loss(student, *others, **options).mean()
        assert value.dtype == torch.float64
        assert _agrees(value.item(), loop(student, *others, **options), rel=1e-9, abs=1e-12)
        student = student.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda s: loss(s, *others, **options).mean(), (student,))

    return check


@pytest.fixture
def check_half_precision():
    """Half-precision tensors, and float32 ones under autocast, are computed in float32."""

    def check(loss, loop, tensors, options, dtype):
        tensors = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]
        options = {
            name: value.to(dtype) if isinstance(value, torch.Tensor) else value for name, value in options.items()
        }
        expected = loop(*tensors, **options)
        student = tensors[0].clone().requires_grad_()
        value = loss(student, *tensors[1:], **options).mean()
        assert value.dtype == torch.float32
        assert _agrees(value.item(), expected, rel=2e-5, abs=1e-6)
        value.backward()
        assert student.grad.dtype == dtype
        assert student.grad.isfinite().all()
        assert student.grad.any()
        with torch.autocast("cpu", torch.bfloat16):
            full = [tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors]
            assert _agrees(loss(*full, **options).mean().item(), expected, rel=2e-5, abs=1e-6)

    return check


@pytest.fixture
def check_finite():
    """Loss and gradient are finite; returns both."""

    def check(loss, tensors, options):
        student, *others = tensors
        student = student.clone().requires_grad_()
        value = loss(student, *others, **options).mean()
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()
        return value.item(), student.grad

    return check


@pytest.fixture
def check_rows():
    """A row's value, or a sample's, is that of it alone."""

    def check(loss, tensors, options):
        values = loss(*tensors, **options)
        assert len(values) == len(tensors[0])
        for row in range(len(values)):
            alone = loss(*(tensor[row : row + 1] for tensor in tensors), **options)
            torch.testing.assert_close(values[row : row + 1], alone)

    return check


@pytest.fixture
def check_mutant():
    """With ``old`` replaced by ``new`` in the source of ``function``, the loss differs from the loop."""

    def check(loss, loop, tensors, options, function, old, new):
        module = sys.modules[loss.__module__]
        source = inspect.getsource(module)
        body = inspect.getsource(getattr(module, function))
        assert body.count(old) == 1, f"{old!r} is {body.count(old)} times in {function}"
        assert source.count(body) == 1
        namespace = {"__name__": "mutant"}
        exec(compile(source.replace(body, body.replace(old, new)), "mutant", "exec"), namespace)
        value = namespace[loss.__name__](*tensors, **options).mean().item()
        assert math.isfinite(value)
        assert not _agrees(value, loop(*tensors, **options), rel=1e-6, abs=1e-9)

    return check
