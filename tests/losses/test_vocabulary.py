"""Losses over a vocabulary in chunks: against plain loops, against dense logits, their memory, and what could break."""

from __future__ import annotations

import dataclasses
import inspect
import math
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kdcli import losses
from kdcli.losses import OutputHead, VocabularyLogits, vocabulary

DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon")
SIZE = 11
CHUNKS = (1, 4, 11, 100)


class Shape(NamedTuple):
    """What a head does beside the product with its weight."""

    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None


SHAPES = {"plain": Shape(), "bias": Shape(bias=True), "all": Shape(bias=True, scale=0.7, softcap=1.5)}


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make(positions=3, size=SIZE, width=4, shape=SHAPES["plain"], seed=0, chunk=4, dtype=torch.float64):
    bias = randn(size, seed=seed + 1, dtype=dtype) if shape.bias else None
    head = OutputHead(randn(size, width, seed=seed, dtype=dtype), bias, shape.scale, shape.softcap)
    return VocabularyLogits(randn(positions, width, seed=seed + 2, dtype=dtype), head, chunk)


def tensors_of(logits):
    return [x for x in (logits.hidden, logits.head.weight, logits.head.bias) if x is not None]


def with_tensors(logits, hidden, weight, bias=None):
    return dataclasses.replace(logits, hidden=hidden, head=dataclasses.replace(logits.head, weight=weight, bias=bias))


def gradients(loss, logits, weights=None):
    """The loss, and its gradients for the hidden states, the weight and the bias; ``weights`` go with its positions."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors_of(logits)]
    values = loss(with_tensors(logits, *leaves))
    return values, torch.autograd.grad(values, leaves, torch.ones_like(values) if weights is None else weights)


# ---- Plain loops ----------------------------------------------------------------------------------------------------


def loop_logits(logits):
    head = logits.head
    rows = []
    for hidden in logits.hidden.tolist():
        row = []
        for token, weight in enumerate(head.weight.tolist()):
            z = sum(h * w for h, w in zip(hidden, weight, strict=True))
            z = (z + (0 if head.bias is None else head.bias[token].item())) * head.scale
            row.append(z if head.softcap is None else head.softcap * math.tanh(z / head.softcap))
        rows.append(row)
    return rows


def softmax(row, temperature=1.0):
    exps = [math.exp(x / temperature) for x in row]
    return [x / sum(exps) for x in exps]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def loop_divergence(student, teacher, divergence, temperature, beta=0.5):
    values = []
    for s, t in zip(loop_logits(student), loop_logits(teacher), strict=True):
        q, p = softmax(s, temperature), softmax(t, temperature)
        m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        value = {
            "forward_kl": kl(p, q),
            "reverse_kl": kl(q, p),
            "jensen_shannon": beta * kl(p, m) + (1 - beta) * kl(q, m),
        }[divergence]
        values.append(temperature**2 * value)
    return values


def loop_cross_entropy(logits, targets, label_smoothing=0.0, ignore_index=-100):
    values = []
    for row, target in zip(loop_logits(logits), targets.tolist(), strict=True):
        if target == ignore_index:
            values.append(0.0)
            continue
        surprise = [-math.log(p) for p in softmax(row)]
        values.append((1 - label_smoothing) * surprise[target] + label_smoothing * sum(surprise) / len(surprise))
    return values


class Case(NamedTuple):
    name: str
    loop: object
    rest: tuple
    options: dict


TEACHER = make(width=6, seed=10, shape=SHAPES["bias"], chunk=3)
TARGETS = torch.tensor([8, -100, 2])
CASES = {
    **{
        f"{divergence}-{temperature}-{beta}": Case(
            "chunked_divergence",
            loop_divergence,
            (TEACHER,),
            {"divergence": divergence, "temperature": temperature, "beta": beta},
        )
        for divergence, temperature, beta in (
            ("forward_kl", 1.0, 0.5),
            ("forward_kl", 3.0, 0.5),
            ("reverse_kl", 2.0, 0.5),
            ("jensen_shannon", 1.0, 0.5),
            ("jensen_shannon", 2.0, 0.1),
        )
    },
    "cross_entropy": Case("chunked_cross_entropy", loop_cross_entropy, (TARGETS,), {}),
    "smooth": Case("chunked_cross_entropy", loop_cross_entropy, (TARGETS,), {"label_smoothing": 0.3}),
    "ignores_2": Case("chunked_cross_entropy", loop_cross_entropy, (torch.tensor([0, 2, 7]),), {"ignore_index": 2}),
}


def is_right(module, case, logits):
    """Whether the values are the loop's, and the gradients those of the values."""
    _, loop, rest, options = case
    loss = module[case.name]
    values = loss(logits, *rest, **options)
    assert values.shape == (3,)
    assert values.dtype == torch.float64
    if values.tolist() != pytest.approx(loop(logits, *rest, **options), rel=1e-9, abs=1e-12):
        return False
    leaves = [x.clone().requires_grad_() for x in tensors_of(logits)]
    return torch.autograd.gradcheck(
        lambda *changed: loss(with_tensors(logits, *changed), *rest, **options), leaves, raise_exception=False
    )


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name, shape, chunk):
    assert is_right(vars(vocabulary), CASES[name], make(shape=SHAPES[shape], chunk=chunk))


@pytest.mark.parametrize(
    ("name", "function", "old", "new"),
    [
        ("forward_kl-3.0-0.5", "_Divergence", "self.temperature**2 * total", "total"),
        ("forward_kl-3.0-0.5", "_Divergence", "return self.temperature * gradient", "return gradient"),
        ("forward_kl-3.0-0.5", "_Divergence", "return logits / self.temperature,", "return logits,"),
        ("forward_kl-3.0-0.5", "_Divergence", "log_probs.exp() * self.total_score", "teacher_log_probs.exp() * self.total_score"),
        ("reverse_kl-2.0-0.5", "_Divergence", "= scores - ", "= scores + "),
        ("reverse_kl-2.0-0.5", "_Divergence", "self.total_score + scores", "scores"),
        ("jensen_shannon-2.0-0.1", "_Divergence", "= (divergence, beta)", "= (divergence, 1 - beta)"),
        ("forward_kl-1.0-0.5", "_Normaliser", "self.total * (self.largest - shift).exp()", "self.total"),
        ("forward_kl-1.0-0.5", "_Normaliser", " + pieces", ""),
        ("forward_kl-1.0-0.5", "_InChunks", "hidden_grad += h.grad", "hidden_grad = h.grad"),
        ("forward_kl-1.0-0.5", "_InChunks", "weight_grad[tokens] = w.grad", "weight_grad[:] = w.grad.sum()"),
        ("forward_kl-1.0-0.5", "_InChunks", "bias_grad[tokens] = b.grad", "bias_grad[tokens] = -b.grad"),
        ("forward_kl-1.0-0.5", "_InChunks", "grad[:, None] * ", ""),
        ("forward_kl-1.0-0.5", "OutputHead", "logits * self.scale", "logits / self.scale"),
        ("forward_kl-1.0-0.5", "OutputHead", ".tanh() * self.softcap", ".tanh()"),
        ("smooth", "_CrossEntropy", "- above_first / self.num_classes", "- above_first"),
        ("smooth", "_CrossEntropy", "(1 - smoothing) * ", ""),
        ("smooth", "_CrossEntropy", "(part - first).sum", "part.sum"),
        ("smooth", "_CrossEntropy", "above_first + (", "("),
        ("smooth", "_CrossEntropy", ".exp() - self.label_smoothing / self.num_classes", ".exp()"),
        ("smooth", "_CrossEntropy", "self.label_smoothing - 1, 0)", "-1, 0)"),
        ("smooth", "_CrossEntropy", "self.label_smoothing - 1, 0)", "self.label_smoothing - 1, -1)"),
        ("cross_entropy", "_CrossEntropy", "self.targets[:, None] - tokens.start", "self.targets[:, None]"),
        ("cross_entropy", "_CrossEntropy", "where(self.ignored[:, None], 0, gradient)", "where(self.ignored[:, None], 1, gradient)"),
        ("cross_entropy", "_CrossEntropy", "torch.where(self.ignored, 0, ", "torch.where(self.ignored, 1, "),
        ("cross_entropy", "_CrossEntropy", "(column >= 0)", "(column >= 1)"),
        ("cross_entropy", "_CrossEntropy", "part.gather(1, column), target)", "part.gather(1, column), 0)"),
    ],
)  # fmt: skip
def test_mutants_are_wrong(name, function, old, new):
    source = inspect.getsource(vocabulary)
    body = inspect.getsource(getattr(vocabulary, function))
    assert body.count(old) == 1, f"{old!r} is {body.count(old)} times in {function}"
    assert source.count(body) == 1
    namespace = {"__name__": vocabulary.__name__}
    exec(compile(source.replace(body, body.replace(old, new)), "mutant", "exec"), namespace)
    # The classes of the mutant, whose head may be the mutated one.
    logits = make(shape=SHAPES["all"])
    head = namespace["OutputHead"](*(getattr(logits.head, field.name) for field in dataclasses.fields(OutputHead)))
    assert not is_right(namespace, CASES[name], namespace["VocabularyLogits"](logits.hidden, head, 4))


# ---- Dense logits ---------------------------------------------------------------------------------------------------


def dense_divergence(student, teacher, **options):
    return losses.logit_kd(student.dense(), teacher.dense(), **options)


def dense_cross_entropy(logits, targets, **options):
    return F.cross_entropy(logits.dense(), targets, reduction="none", **options)


BIG_TARGETS = torch.arange(20) * 37 % 301
BIG_TARGETS[3] = -100
LOSSES = {
    **{
        divergence: (
            losses.chunked_divergence,
            dense_divergence,
            {"divergence": divergence, "temperature": 2.0, "beta": 0.3},
        )
        for divergence in DIVERGENCES
    },
    "cross_entropy": (losses.chunked_cross_entropy, dense_cross_entropy, {}),
    "smooth": (losses.chunked_cross_entropy, dense_cross_entropy, {"label_smoothing": 0.2}),
}


def against(name, dtype=torch.float32, positions=20, spread=1.0):
    """What the loss compares 20 positions over 301 tokens with."""
    if name in DIVERGENCES:
        teacher = make(positions, 301, 24, SHAPES["bias"], seed=7, dtype=dtype)
        return dataclasses.replace(teacher, hidden=teacher.hidden * spread)
    return BIG_TARGETS[:positions]


@pytest.mark.parametrize("name", LOSSES)
class TestIsTheDenseLoss:
    @pytest.mark.parametrize("chunk", [1, 7, 100, 300, 301, 4096])
    def test_for_every_chunk(self, name, chunk):
        chunked, dense, options = LOSSES[name]
        student = make(20, 301, 16, SHAPES["all"], chunk=chunk, dtype=torch.float32)
        weights = randn(20, seed=5, dtype=torch.float32)
        result = gradients(lambda logits: chunked(logits, against(name), **options), student, weights)
        expected = gradients(lambda logits: dense(logits, against(name), **options), student, weights)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("autocast", [False, True])
    @pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
    def test_in_half_precision(self, name, autocast, hidden_dtype, weight_dtype):
        chunked, dense, options = LOSSES[name]
        student = make(20, 301, 16, SHAPES["all"], chunk=64, dtype=torch.float32)
        student = with_tensors(
            student,
            student.hidden.to(hidden_dtype),
            student.head.weight.to(weight_dtype),
            student.head.bias.to(weight_dtype),
        )

        def run(loss):
            # The backward runs outside of autocast, as that of a trainer.
            leaves = [x.detach().clone().requires_grad_() for x in tensors_of(student)]
            with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                values = loss(with_tensors(student, *leaves), against(name), **options)
            values.mean().backward()
            assert values.dtype == torch.float32
            assert [leaf.grad.dtype for leaf in leaves] == [hidden_dtype, weight_dtype, weight_dtype]
            return values.detach(), [leaf.grad.float() for leaf in leaves]

        values, grads = run(chunked)
        expected, expected_grads = run(dense)
        # The same logits, in half precision too, and what follows in float32.
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            error = (grad - expected_grad).norm() / expected_grad.norm()
            half = autocast or torch.bfloat16 in (hidden_dtype, weight_dtype)
            assert error < (4e-3 if half else 1e-5)

    @pytest.mark.parametrize("spread", [0.0, 1e4])
    def test_with_extreme_logits(self, name, spread):
        chunked, dense, options = LOSSES[name]
        student = make(20, 301, 16, chunk=50, dtype=torch.float32)
        student = dataclasses.replace(student, hidden=student.hidden * spread)
        other = against(name, spread=spread)
        values, grads = gradients(lambda logits: chunked(logits, other, **options), student)
        expected, expected_grads = gradients(lambda logits: dense(logits, other, **options), student)
        assert all(x.isfinite().all() for x in (values, *grads))
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            assert (grad - expected_grad).norm() <= 1e-3 * expected_grad.norm() + 1e-5

    def test_with_a_large_common_offset(self, name):
        # A sum of 3e4 and the log of the sum of exponentials has no digits left for the latter.
        chunked, dense, options = LOSSES[name]
        student = make(20, 301, 16, SHAPES["bias"], chunk=50, dtype=torch.float32)
        student = with_tensors(student, student.hidden, student.head.weight / 8, torch.full((301,), 30000.0))
        values, grads = gradients(lambda logits: chunked(logits, against(name), **options), student)
        expected, expected_grads = gradients(lambda logits: dense(logits, against(name), **options), student)
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-4)
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            assert (grad - expected_grad).norm() <= 1e-4 * expected_grad.norm()

    def test_with_a_weight_tied_to_the_embedding(self, name):
        chunked, dense, options = LOSSES[name]

        def run(loss):
            embedding = randn(301, 16, dtype=torch.float32).requires_grad_()
            hidden = F.embedding(torch.arange(20) * 13, embedding).tanh()
            logits = VocabularyLogits(hidden, OutputHead(embedding, scale=0.25), 64)
            loss(logits, against(name), **options).mean().backward()
            return embedding.grad

        torch.testing.assert_close(run(chunked), run(dense), rtol=1e-4, atol=1e-7)

    def test_of_no_positions(self, name):
        chunked, _, options = LOSSES[name]
        student = make(0, 301, 16, SHAPES["all"], dtype=torch.float32)
        values, grads = gradients(lambda logits: chunked(logits, against(name, positions=0), **options), student)
        assert values.shape == (0,)
        assert [grad.shape for grad in grads] == [(0, 16), (301, 16), (301,)]
        assert not any(grad.any() for grad in grads)

    def test_without_the_padding_of_the_vocabulary(self, name):
        chunked, dense, options = LOSSES[name]
        padded = make(20, 320, 16, chunk=50, dtype=torch.float32)

        def run(loss):
            weight = padded.head.weight.clone().requires_grad_()
            logits = with_tensors(padded, padded.hidden, weight[:301])
            loss(logits, against(name), **options).sum().backward()
            return weight.grad

        grad = run(chunked)
        torch.testing.assert_close(grad, run(dense), rtol=1e-4, atol=1e-5)
        assert not grad[301:].any()


# ---- Gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
class TestGradients:
    def test_only_for_what_requires_them(self, name):
        chunked, _, options = LOSSES[name]
        student = make(20, 301, 16, SHAPES["bias"], dtype=torch.float32)
        _, expected = gradients(lambda logits: chunked(logits, against(name), **options), student)
        for index in range(3):
            leaves = [x.clone().requires_grad_(index == i) for i, x in enumerate(tensors_of(student))]
            chunked(with_tensors(student, *leaves), against(name), **options).sum().backward()
            assert [leaf.grad is None for leaf in leaves] == [index != i for i in range(3)]
            torch.testing.assert_close(leaves[index].grad, expected[index])

    def test_only_once(self, name):
        chunked, _, options = LOSSES[name]
        student = make(20, 301, 16, dtype=torch.float32)
        hidden = student.hidden.requires_grad_()
        (grad,) = torch.autograd.grad(
            chunked(student, against(name), **options).square().sum(), hidden, create_graph=True
        )
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()

    def test_not_of_a_weight_that_was_changed_in_between(self, name):
        chunked, _, options = LOSSES[name]
        student = make(20, 301, 16, dtype=torch.float32)
        student.hidden.requires_grad_()
        value = chunked(student, against(name), **options).sum()
        student.head.weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()

    def test_none_in_inference(self, name):
        chunked, _, options = LOSSES[name]
        student = make(20, 301, 16, dtype=torch.float32)
        with torch.inference_mode():
            values = chunked(student, against(name), **options)
        torch.testing.assert_close(values, chunked(student, against(name), **options))


def test_a_teacher_gets_no_gradient_and_may_come_from_inference():
    student, teacher = make(dtype=torch.float32), make(seed=5, dtype=torch.float32)
    options = {"divergence": "reverse_kl", "temperature": 1.0}
    _, expected = gradients(lambda s: losses.chunked_divergence(s, teacher, **options), student)
    leaves = [x.clone().requires_grad_() for x in tensors_of(teacher)]
    gradients(lambda s: losses.chunked_divergence(s, with_tensors(teacher, *leaves), **options), student)
    assert all(leaf.grad is None for leaf in leaves)
    with torch.inference_mode():
        inferred = with_tensors(teacher, *(x.clone() for x in tensors_of(teacher)))
    assert inferred.hidden.is_inference()
    _, grads = gradients(lambda s: losses.chunked_divergence(s, inferred, **options), student)
    torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equal_models_have_no_loss_and_no_gradient(divergence):
    student = make(20, 301, 16, SHAPES["all"], dtype=torch.float32)
    values, grads = gradients(
        lambda s: losses.chunked_divergence(s, student, divergence=divergence, temperature=2.0), student
    )
    assert values.abs().max() < 1e-5
    assert max(grad.abs().max() for grad in grads) < 1e-4


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_tokens_that_the_teacher_masks_or_has_not(divergence, chunk):
    """The first chunk among them whole: as for dense logits."""
    student, teacher = make(chunk=chunk, seed=3), make(width=6, seed=10, shape=SHAPES["bias"])
    teacher.head.bias[[0, 1, 2, 3, 7, 9, 10]] = -math.inf
    options = {"divergence": divergence, "temperature": 2.0, "beta": 0.3}
    values, found = gradients(lambda logits: losses.chunked_divergence(logits, teacher.first(9), **options), student)
    expected, wanted = gradients(lambda logits: dense_divergence(logits, teacher, **options), student)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(found, wanted)
    assert values.isfinite().all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_it_is_logit_kd(divergence):
    student, teacher = make(20, 301, 16), make(20, 301, 8, seed=4)
    options = {"divergence": divergence, "temperature": 3.0, "beta": 0.2}
    torch.testing.assert_close(
        losses.chunked_divergence(student, teacher, **options),
        losses.logit_kd(student.dense(), teacher.dense(), **options),
    )


def test_every_target_ignored_is_nothing():
    logits = make(4, 301, 16, dtype=torch.float32)
    targets = torch.full((4,), -100)
    values, grads = gradients(lambda s: losses.chunked_cross_entropy(s, targets, label_smoothing=0.1), logits)
    assert not values.any()
    assert not any(grad.any() for grad in grads)


# ---- Predictions ----------------------------------------------------------------------------------------------------


class TestArgmax:
    @pytest.mark.parametrize("chunk", [1, 7, 100, 301, 4096])
    def test_is_that_of_dense_logits(self, chunk):
        logits = make(200, 301, 16, SHAPES["all"], chunk=chunk, dtype=torch.float32)
        predicted = losses.chunked_argmax(logits)
        assert predicted.dtype == torch.int64
        assert predicted.tolist() == logits.dense().argmax(dim=1).tolist()
        assert len(predicted.unique()) > 20

    @pytest.mark.parametrize("chunk", CHUNKS)
    def test_is_the_first_of_several(self, chunk):
        hidden = torch.tensor([[1.0], [-1.0]])
        weight = torch.tensor([[0.0], [2.0], [-1.0], [2.0], [0.0], [-1.0]])
        assert losses.chunked_argmax(VocabularyLogits(hidden, OutputHead(weight), chunk)).tolist() == [1, 2]

    def test_has_no_gradient(self):
        logits = make()
        logits.hidden.requires_grad_()
        assert not losses.chunked_argmax(logits).requires_grad

    def test_of_no_positions(self):
        assert losses.chunked_argmax(make(0)).shape == (0,)


# ---- Memory ---------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """How many elements the largest tensor has that any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_the_logits_are_never_whole(name, autocast):
    positions, size, width, chunk = 300, 3010, 24, 256
    chunked, dense, options = LOSSES[name]
    student = make(positions, size, width, SHAPES["all"], chunk=chunk, dtype=torch.float32)
    other = (
        make(positions, size, 16, seed=9, chunk=size, dtype=torch.float32)
        if name in DIVERGENCES
        else torch.arange(positions) * 10
    )

    def largest(loss):
        with Largest() as mode, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            _, grads = gradients(lambda logits: loss(logits, other, **options), student)
        assert all(grad.any() for grad in grads)
        return mode.elements

    assert largest(chunked) == max(positions * chunk, size * width)
    assert largest(dense) >= positions * size  # what the count has to see


def test_predictions_never_make_the_logits_whole():
    logits = make(300, 3010, 24, chunk=256, dtype=torch.float32)
    with Largest() as mode:
        losses.chunked_argmax(logits)
    assert mode.elements == 300 * 256


# ---- Arguments ------------------------------------------------------------------------------------------------------


def test_a_head_has_its_shapes():
    with pytest.raises(ValueError, match=r"weight must have the shape \(V, d\), got \(3,\)"):
        OutputHead(torch.zeros(3))
    with pytest.raises(ValueError, match=r"weight must have the shape \(V, d\), got \(0, 3\)"):
        OutputHead(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"bias must have the shape \(5,\), got \(3,\)"):
        OutputHead(torch.zeros(5, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="softcap must be positive, got 0"):
        OutputHead(torch.zeros(5, 3), softcap=0)
    head = OutputHead(torch.zeros(5, 3))
    for wrong in (torch.zeros(2, 4), torch.zeros(3), torch.zeros(2, 2, 3)):
        with pytest.raises(ValueError, match=r"hidden must have the shape \(N, 3\), got"):
            VocabularyLogits(wrong, head)
    with pytest.raises(ValueError, match="chunk must be positive, got 0"):
        VocabularyLogits(torch.zeros(2, 3), head, 0)
    logits = VocabularyLogits(torch.zeros(2, 3), head)
    assert (len(logits), logits.num_classes, logits.dense().shape) == (2, 5, (2, 5))


def test_both_models_have_one_vocabulary_and_the_same_positions():
    options = {"divergence": "forward_kl", "temperature": 1.0}
    with pytest.raises(ValueError, match="must hold the teacher's, got 11 and 12 tokens"):
        losses.chunked_divergence(make(), make(size=12), **options)
    with pytest.raises(ValueError, match="same positions, got 3 and 1 of them"):
        losses.chunked_divergence(make(), make(1), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"divergence": "kl"}, "forward_kl, reverse_kl, jensen_shannon, got 'kl'"),
        ({"divergence": "jensen_shannon", "beta": 0.0}, "beta must be between 0 and 1, got 0.0"),
    ],
)
def test_options_of_divergences(options, message):
    with pytest.raises(ValueError, match=message):
        losses.chunked_divergence(make(), make(), **{"divergence": "forward_kl", "temperature": 1.0} | options)


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (torch.tensor([0, 11, 1]), {}, r"Targets must be in \[0, 11\) or -100, got 11"),
        (torch.tensor([0, -1, 1]), {}, r"Targets must be in \[0, 11\) or -100, got -1"),
        (torch.tensor([0, -100, 1]), {"ignore_index": -1}, "or -1, got -100"),
        (torch.tensor([0, 1]), {}, r"int64 class indices of shape \(3,\)"),
        (torch.zeros(3), {}, r"int64 class indices of shape \(3,\)"),
        (torch.tensor([0, 1, 2]), {"label_smoothing": 1.5}, "label_smoothing must be between 0 and 1, got 1.5"),
    ],
)
def test_targets(targets, options, message):
    with pytest.raises(ValueError, match=message):
        losses.chunked_cross_entropy(make(), targets, **options)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_reach_the_loss(name, value):
    chunked, _, options = LOSSES[name]
    student = make(20, 301, 16, chunk=50, dtype=torch.float32)
    student.head.weight[120] = value
    assert not chunked(student, against(name), **options)[[0, 1, 2, 4]].isfinite().any()
