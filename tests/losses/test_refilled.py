"""REFILLED's losses against plain loops over listed triplets, without triplets, and in bounded memory."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch

from kdcli import losses
from kdcli.losses import refilled

HALF = (torch.float16, torch.bfloat16)
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 2, 7])


def embeddings(size=8, seed=0, spread=2.0):
    """Random embeddings; on the sphere distances are around 1.4, and a margin of 0.2 is met by some."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, width, generator=generator, dtype=torch.float64) * spread for width in (4, 6))


def distances(tensor):
    rows = tensor.double().flatten(start_dim=1).tolist()
    unit = [[x / (math.sqrt(sum(y * y for y in row)) or 1) for x in row] for row in rows]
    return [[math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True))) for y in unit] for x in unit]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def softmax(row):
    exps = [math.exp(x - max(row)) for x in row]
    return [x / sum(exps) for x in exps]


def pairs_with_negatives(labels):
    indices = range(len(labels))
    for a in indices:
        for p in indices:
            if p != a and labels[p] == labels[a]:
                yield a, p, [n for n in indices if labels[n] != labels[a]]


def loop_stochastic_triplet_kl(student, teacher, labels, temperature, mining, margin=0.2):
    s, t, terms = distances(student), distances(teacher), []
    for a, p, negatives in pairs_with_negatives(labels.tolist()):
        semi_hard = [n for n in negatives if 0 < s[a][n] - s[a][p] <= margin]
        farther = [n for n in negatives if s[a][n] > s[a][p]]
        if mining == "tuples":
            if semi_hard:
                p_s, p_t = (softmax([-d[a][i] / temperature for i in (p, *semi_hard)]) for d in (s, t))
                terms.append(kl(p_t, p_s))
            continue
        if mining == "nearest_farther":
            nearest = sorted(farther, key=lambda n: s[a][n])[:1]
            farthest = sorted(negatives, key=lambda n: s[a][n])[-1:]
            semi_hard = nearest or farthest
        for n in semi_hard:
            q_s, q_t = (sigmoid((d[a][n] - d[a][p]) / temperature) for d in (s, t))
            terms.append(kl([q_t, 1 - q_t], [q_s, 1 - q_s]))
    return sum(terms) / len(terms) if terms else 0.0


def loop_local_classifier_kl(student_logits, teacher_embedding, labels, temperature, centers=None):
    s, z, y = student_logits.double().tolist(), teacher_embedding.double().tolist(), labels.tolist()
    classes = sorted(set(y))
    total = 0.0
    for i in range(len(y)):
        similarities = []
        for c in classes:
            if centers is None:
                members = [z[j] for j in range(len(y)) if y[j] == c]
                center = [sum(column) / len(members) for column in zip(*members, strict=True)]
                similarities.append(-sum((a - b) ** 2 for a, b in zip(z[i], center, strict=True)))
            else:
                center = centers.double().tolist()[c]
                length = math.sqrt(sum(a * a for a in center))
                similarities.append(sum(a * b for a, b in zip(z[i], center, strict=True)) / length)
        p_t = softmax([x / temperature for x in similarities])
        p_s = softmax([s[i][c] / temperature for c in classes])
        total += kl(p_t, p_s)
    return total / len(y)


def classifier_inputs():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(8, 9, generator=generator, dtype=torch.float64) * 2
    return logits, torch.randn(8, 5, generator=generator, dtype=torch.float64), LABELS


CENTERS = torch.randn(9, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 1


class Case(NamedTuple):
    loss: object
    loop: object
    tensors: tuple
    options: dict


def triplets(**options):
    return Case(losses.stochastic_triplet_kl, loop_stochastic_triplet_kl, (*embeddings(), LABELS), options)


def classifier(**options):
    return Case(losses.local_classifier_kl, loop_local_classifier_kl, classifier_inputs(), options)


MINING = ("semi_hard", "nearest_farther", "tuples")
CASES = {
    "semi_hard": triplets(temperature=0.5, mining="semi_hard"),
    "semi_hard-wide": triplets(temperature=4.0, mining="semi_hard", margin=0.7),
    "nearest_farther": triplets(temperature=0.5, mining="nearest_farther"),
    "tuples": triplets(temperature=0.5, mining="tuples"),
    "tuples-wide": triplets(temperature=0.1, mining="tuples", margin=0.7),
    "local": classifier(temperature=2.0),
    "global": classifier(temperature=0.7, centers=CENTERS),
}
MUTATIONS = [
    ("semi_hard", "_semi_hard", "excess > 0", "excess > -2"),
    ("semi_hard", "_semi_hard", "(excess <= margin)", "(excess < 2)"),
    ("semi_hard", "_semi_hard", "negatives & (", "("),
    ("semi_hard", "_semi_hard", "from_anchor - to_positive", "to_positive - from_anchor"),
    ("semi_hard", "_bernoulli_kl", "teacher.sigmoid()", "student.sigmoid()"),
    ("semi_hard", "_bernoulli_kl", "- F.softplus(teacher)", "+ F.softplus(teacher)"),
    ("semi_hard", "_semi_hard_terms", "(from_anchor - to_positive) / temperature", "(from_anchor - to_positive)"),
    ("semi_hard", "stochastic_triplet_kl", "total / count.clamp_min(1)", "total"),
    ("semi_hard", "stochastic_triplet_kl", "total + chunk_total", "total - chunk_total"),
    ("semi_hard", "stochastic_triplet_kl", "pairwise_distances(unit(student))", "pairwise_distances(student)"),
    ("nearest_farther", "stochastic_triplet_kl", "same_class & ~torch.eye(len", "same_class | torch.eye(len"),
    ("nearest_farther", "_nearest_farther_terms", "nearest, farthest)", "farthest, nearest)"),
    ("nearest_farther", "_nearest_farther_terms", "argmin", "argmax"),
    ("nearest_farther", "_nearest_farther_terms", "farthest = torch.where(negatives, from_anchor, -torch.inf).argmax", "farthest = torch.where(negatives, from_anchor, torch.inf).argmin"),
    ("nearest_farther", "_nearest_farther_terms", "negatives & (from_anchor >", "(from_anchor >"),
    ("tuples", "_tuple_terms", "mined | F.one_hot(", "~same_class[anchors] | F.one_hot("),
    ("tuples", "_tuple_terms", "-from_anchor / temperature", "from_anchor / temperature"),
    ("tuples", "_tuple_terms", "teacher_log_probs.exp()", "student_log_probs.exp()"),
    ("tuples", "_tuple_terms", "mined.any(dim=1).sum()", "mined.sum()"),
    ("local", "local_classifier_kl", "= -torch.cdist(", "= torch.cdist("),
    ("local", "local_classifier_kl", ".square()", ""),
    ("local", "local_classifier_kl", "(one_hot.T @ embedding) / one_hot.sum(dim=0)[:, None]", "one_hot.T @ embedding"),
    ("local", "local_classifier_kl", "student_logits[:, classes] / temperature", "student_logits[:, classes]"),
    ("local", "local_classifier_kl", "student_logits[:, classes]", "student_logits[:, : len(classes)]"),
    ("global", "local_classifier_kl", "unit(centers[classes].to(embedding.dtype))", "centers[classes]"),
    ("global", "local_classifier_kl", 'reduction="batchmean"', 'reduction="sum"'),
    ("global", "local_classifier_kl", "centers[classes]", "centers[: len(classes)]"),
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
class TestEveryVariant:
    def test_value_and_gradient(self, name, check_against_loop):
        loss, loop, tensors, options = CASES[name]
        assert loop(*tensors, **options) > 1e-4
        check_against_loop(loss, loop, tensors, options)

    @pytest.mark.parametrize("dtype", HALF)
    def test_half_precision(self, name, dtype, check_half_precision):
        loss, loop, tensors, options = CASES[name]
        check_half_precision(loss, loop, tensors, options, dtype)

    def test_permuting_the_batch_changes_nothing(self, name):
        loss, _, tensors, options = CASES[name]
        order = torch.tensor([3, 7, 0, 5, 1, 6, 4, 2])
        torch.testing.assert_close(loss(*(x[order] for x in tensors), **options), loss(*tensors, **options))

    def test_one_class_or_one_sample(self, name, check_finite):
        loss, _, (student, teacher, labels), options = CASES[name]
        for tensors in ((student, teacher, torch.full_like(labels, 2)), (student[:1], teacher[:1], labels[:1])):
            value, gradient = check_finite(loss, tensors, options)
            assert value == 0
            assert not gradient.any()

    @pytest.mark.parametrize("dtype", [torch.float32, *HALF])
    @pytest.mark.parametrize("constant", [0.0, 0.1])
    def test_constant_features(self, name, constant, dtype, check_finite):
        loss, loop, (student, teacher, labels), options = CASES[name]
        student, teacher = student.to(dtype), teacher.to(dtype)
        constants = torch.full_like(student, constant), torch.full_like(teacher, constant)
        check_finite(loss, (constants[0], teacher, labels), options)
        value, _ = check_finite(loss, (student, constants[1], labels), options)
        assert value == pytest.approx(loop(student, constants[1], labels, **options), rel=1e-4)
        check_finite(loss, (*constants, labels), options)

    def test_zero_vector(self, name, check_finite):
        loss, loop, (student, teacher, labels), options = CASES[name]
        zero_student, zero_teacher = student.clone(), teacher.clone()
        zero_student[3], zero_teacher[5] = 0, 0
        # The zero student is equally far from all others, up to rounding: which triplets it is in isn't determined.
        check_finite(loss, (zero_student, teacher, labels), options)
        value, _ = check_finite(loss, (student, zero_teacher, labels), options)
        assert value == pytest.approx(loop(student, zero_teacher, labels, **options), rel=1e-9)

    def test_non_finite_features_reach_the_loss(self, name):
        loss, _, (student, teacher, labels), options = CASES[name]
        for value in (math.nan, math.inf):
            student = student.clone()
            student[0] = value
            assert loss(student, teacher, labels, **options).isnan()

    def test_arguments_must_fit(self, name):
        loss, _, (student, teacher, labels), options = CASES[name]
        with pytest.raises(ValueError, match="same batch"):
            loss(student, teacher[:4], labels, **options)
        for wrong in (labels[:4], labels.float(), labels[:, None]):
            with pytest.raises(ValueError, match=r"int64 class indices of shape \(8,\)"):
                loss(student, teacher, wrong, **options)
        with pytest.raises(ValueError, match="temperature must be positive"):
            loss(student, teacher, labels, **options | {"temperature": 0.0})


@pytest.mark.parametrize(("name", "function", "old", "new"), MUTATIONS)
def test_mutants_differ_from_the_loop(name, function, old, new, check_mutant):
    loss, loop, tensors, options = CASES[name]
    check_mutant(loss, loop, tensors, options, function, old, new)


class TestStochasticTripletKL:
    @pytest.mark.parametrize("mining", MINING)
    @pytest.mark.parametrize("seed", range(8))
    def test_many_batches(self, mining, seed):
        tensors = (*embeddings(12, seed), torch.randint(0, 4, (12,), generator=torch.Generator().manual_seed(seed)))
        options = {"temperature": 1.0, "mining": mining, "margin": 0.1}
        expected = loop_stochastic_triplet_kl(*tensors, **options)
        assert losses.stochastic_triplet_kl(*tensors, **options).item() == pytest.approx(expected, rel=1e-9, abs=1e-15)

    @pytest.mark.parametrize("mining", MINING)
    def test_only_directions_matter(self, mining):
        student, teacher = embeddings()
        scales = torch.arange(1, 9, dtype=torch.float64)[:, None]
        options = {"temperature": 4.0, "mining": mining}
        torch.testing.assert_close(
            losses.stochastic_triplet_kl(student * scales, teacher / scales, LABELS, **options),
            losses.stochastic_triplet_kl(student, teacher, LABELS, **options),
        )

    @pytest.mark.parametrize("mining", MINING)
    def test_the_same_geometry_has_no_loss(self, mining):
        student = embeddings()[0].float().requires_grad_()
        value = losses.stochastic_triplet_kl(student, student.detach(), LABELS, temperature=1.0, mining=mining)
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-7)
        torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-7)

    @pytest.mark.parametrize("mining", ["semi_hard", "tuples"])
    def test_no_semi_hard_negative(self, mining, check_finite):
        # Classes a quarter turn apart: every negative is farther than the positive by more than the margin.
        student = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        tensors = (student, student.flip(1), torch.tensor([0, 0, 1, 1]))
        value, gradient = check_finite(losses.stochastic_triplet_kl, tensors, {"temperature": 1.0, "mining": mining})
        assert value == 0
        assert not gradient.any()

    @pytest.mark.parametrize("mining", MINING)
    def test_no_positive(self, mining, check_finite):
        tensors = (*embeddings(), torch.arange(8))
        value, gradient = check_finite(losses.stochastic_triplet_kl, tensors, {"temperature": 1.0, "mining": mining})
        assert value == 0
        assert not gradient.any()

    @pytest.mark.parametrize("mining", MINING)
    def test_small_temperatures_stay_finite(self, mining, check_finite):
        tensors = (*(x.float() for x in embeddings()), LABELS)
        check_finite(losses.stochastic_triplet_kl, tensors, {"temperature": 1e-3, "mining": mining, "margin": 2.0})

    @pytest.mark.parametrize("mining", MINING)
    def test_is_the_same_in_chunks(self, mining, monkeypatch):
        tensors, results = (*embeddings(12), torch.arange(12) % 3), []
        for limit in (2**22, 50, 1):  # all 36 pairs at once, four, one
            monkeypatch.setattr(refilled, "MAX_ELEMENTS", limit)
            student = tensors[0].clone().requires_grad_()
            value = losses.stochastic_triplet_kl(student, *tensors[1:], temperature=1.0, mining=mining, margin=0.5)
            value.backward()
            results.append((value.detach(), student.grad))
        for result in results[1:]:
            torch.testing.assert_close(result, results[0])

    def test_mining_is_one_of_three(self):
        with pytest.raises(ValueError, match="semi_hard, nearest_farther, tuples, got 'hard'"):
            losses.stochastic_triplet_kl(*embeddings(), LABELS, temperature=1.0, mining="hard")
        with pytest.raises(ValueError, match="margin must be positive"):
            losses.stochastic_triplet_kl(*embeddings(), LABELS, temperature=1.0, mining="tuples", margin=0.0)


MEMORY = """
import resource, sys
import torch
from kdcli import losses

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)

def peak():
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # Linux counts to ru_maxrss what the process that started this one had.
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024

def step(size, num_classes, mining):
    student = torch.randn(size, 128, generator=generator, requires_grad=True)
    teacher, labels = torch.randn(size, 640, generator=generator), torch.arange(size) % num_classes
    losses.stochastic_triplet_kl(student, teacher, labels, temperature=4.0, mining=mining, margin=2.0).backward()
    assert student.grad.any()

step(32, 2, "semi_hard")
before = peak()
for mining in ("semi_hard", "nearest_farther", "tuples"):
    step(1024, 100, mining)
step(320, 2, "semi_hard")  # 16 million candidates, 4 chunks
print(peak() - before)
torch.ones(1024, 1024, 1024, dtype=torch.bool)
print(peak() - before)
"""


def test_memory_stays_under_a_gibibyte():
    """Forward and backward at 1024 samples of 100 classes; one mask of ``B³`` bytes is what the measurement has to see."""
    # Freed memory goes back to the system at once: what glibc would keep for later differs between torch's versions.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, env=env)
    used, with_a_cubic_mask = map(int, run.stdout.split())
    assert used < 2**30
    assert with_a_cubic_mask > 0.9 * 2**30


class TestLocalClassifierKL:
    def test_other_classes_of_the_student_do_not_matter(self):
        logits, embedding, labels = classifier_inputs()
        changed = logits.clone()
        changed[:, [3, 4, 5, 6, 8]] += 5
        assert losses.local_classifier_kl(changed, embedding, labels, temperature=2.0) == losses.local_classifier_kl(
            logits, embedding, labels, temperature=2.0
        )

    def test_local_centers_do_not_depend_on_the_origin(self):
        logits, embedding, labels = classifier_inputs()
        torch.testing.assert_close(
            losses.local_classifier_kl(logits, embedding + 100, labels, temperature=2.0),
            losses.local_classifier_kl(logits, embedding, labels, temperature=2.0),
        )

    def test_the_length_of_a_global_center_does_not_matter(self):
        scaled = CENTERS * torch.arange(1, 10, dtype=torch.float64)[:, None]
        torch.testing.assert_close(
            losses.local_classifier_kl(*classifier_inputs(), temperature=2.0, centers=scaled),
            losses.local_classifier_kl(*classifier_inputs(), temperature=2.0, centers=CENTERS),
        )

    def test_gradient_for_the_teacher(self):
        logits, embedding, labels = classifier_inputs()
        embedding.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda z: losses.local_classifier_kl(logits, z, labels, temperature=2.0), (embedding,)
        )

    def test_shapes(self):
        logits, embedding, labels = classifier_inputs()
        with pytest.raises(ValueError, match=r"centers must have the shape \(9, 5\), got \(5, 9\)"):
            losses.local_classifier_kl(logits, embedding, labels, temperature=2.0, centers=CENTERS.T)
        with pytest.raises(ValueError, match=r"\(batch, num_classes\), got \(8, 3, 3\)"):
            losses.local_classifier_kl(logits.view(8, 3, 3), embedding, labels, temperature=2.0)
