"""Metrics against plain computations, on arrays small enough to read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from kdcli.base.errors import UserError
from kdcli.config.models import TeacherConfig
from kdcli.models import load_teacher
from kdcli.models.base import Model
from kdcli.models.costs import measure_costs, weights_size
from kdcli.results.evaluation import output_folder, tables, to_json
from kdcli.tasks.classification.report import CALIBRATION_BINS, ClassificationMeters, agreement, class_layout


def measured(logits, targets, *, batch_size=3):
    meters = ClassificationMeters(logits.shape[1])
    for part, labels in zip(logits.split(batch_size), targets.split(batch_size), strict=True):
        meters.update(part, labels)
    return meters.compute()


def softmax(row):
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def calibration_error(logits, targets, bins):
    """``Σ_b n_b/N |accuracy_b - confidence_b|`` over bins of equal width, 1 in the last one."""
    members = [[] for _ in range(bins)]
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        probabilities = softmax(row)
        confidence = max(probabilities)
        right = probabilities.index(confidence) == target
        members[min(int(confidence * bins), bins - 1)].append((confidence, right))
    total = 0.0
    for entries in members:
        if entries:
            confidence = sum(c for c, _ in entries) / len(entries)
            accuracy = sum(r for _, r in entries) / len(entries)
            total += len(entries) / len(targets) * abs(accuracy - confidence)
    return total


@pytest.fixture(params=[1.0, 6.0], ids=["unsure", "sure"])
def random_case(request):
    """40 samples of 8 classes; class 7 has none, though it is predicted."""
    generator = torch.Generator().manual_seed(0)
    logits = request.param * torch.randn(40, 8, generator=generator)
    return logits, torch.randint(7, (40,), generator=generator)


def test_by_hand():
    """Four samples of three classes, predicted 0, 1, 0, 2; the third one is wrong."""
    logits = torch.tensor([[2.0, 1, 0], [0, 3, 1], [5, 0, 0], [0, 0, 1]])
    result = measured(logits, torch.tensor([0, 1, 2, 2]))
    assert result["top1"] == 0.75
    assert result["top5"] is None
    assert result["per_class_accuracy"] == [1.0, 1.0, 0.5]
    assert result["confusion"] == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]


def test_against_loops(random_case):
    logits, targets = random_case
    result = measured(logits, targets)
    rows, labels = logits.tolist(), targets.tolist()
    confusion = [[0] * 8 for _ in range(8)]
    for row, label in zip(rows, labels, strict=True):
        confusion[label][row.index(max(row))] += 1
    assert result["confusion"] == confusion
    assert result["top1"] == pytest.approx(sum(confusion[c][c] for c in range(8)) / 40, rel=1e-6)
    top5 = sum(sorted(row, reverse=True).index(row[label]) < 5 for row, label in zip(rows, labels, strict=True)) / 40
    assert result["top5"] == pytest.approx(top5, rel=1e-6)
    entropy = -sum(math.log(softmax(row)[label]) for row, label in zip(rows, labels, strict=True)) / 40
    assert result["cross_entropy"] == pytest.approx(entropy, rel=1e-9)
    for label in range(7):
        expected = confusion[label][label] / sum(confusion[label])
        assert result["per_class_accuracy"][label] == pytest.approx(expected, rel=1e-6)


def test_calibration_error_against_a_loop(random_case):
    assert CALIBRATION_BINS == 15
    logits, targets = random_case
    expected = calibration_error(logits, targets, 15)
    assert measured(logits, targets)["expected_calibration_error"] == pytest.approx(expected, rel=1e-4)


def test_calibration_error_where_the_model_is_certain():
    """Confidences of exactly 1 share the last bin with 0.95: each error of one sign offsets one of the other there."""
    certain, confident = [60.0, 0, 0], [math.log(0.95 / 0.025), 0, 0]
    logits = torch.tensor([certain] * 4 + [confident] * 4)
    assert logits[0].softmax(dim=0).max() == 1
    targets = torch.tensor([0, 0, 0, 1, 0, 0, 0, 0])
    result = measured(logits, targets)["expected_calibration_error"]
    assert result == pytest.approx(abs(7 / 8 - 0.975), rel=1e-4)
    assert result == pytest.approx(calibration_error(logits, targets, 15), rel=1e-4)


def test_logits_that_look_like_probabilities_are_logits():
    logits = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    targets = torch.tensor([0, 0])
    result = measured(logits, targets)["expected_calibration_error"]
    assert result == pytest.approx(calibration_error(logits, targets, 15), rel=1e-4)


def test_a_class_without_samples_has_no_accuracy(random_case):
    logits, targets = random_case
    result = measured(logits, targets)
    assert result["per_class_accuracy"][7] is None
    assert None not in result["per_class_accuracy"][:7]
    assert result["confusion"][7] == [0] * 8
    assert sum(row[7] for row in result["confusion"]) > 0, "it is predicted"


def test_batches_make_no_difference(random_case):
    logits, targets = random_case
    one, many = measured(logits, targets, batch_size=40), measured(logits, targets, batch_size=7)
    assert one["confusion"] == many["confusion"]
    assert one["per_class_accuracy"] == many["per_class_accuracy"]
    for key in ("top1", "top5", "cross_entropy", "expected_calibration_error"):
        assert one[key] == pytest.approx(many[key], rel=1e-6)


def test_agreement_leaves_out_what_one_of_them_could_not_read():
    ours, theirs = torch.tensor([0, 1, 2, -1, 1, -1]), torch.tensor([0, 2, 2, -1, -1, 0])
    assert agreement(ours, theirs) == pytest.approx(2 / 3)


def test_json_has_one_line_for_each_row_of_numbers():
    values = {"rows": [[1, -2], [3.5, None]], "text": ["[\n1,\n 2]", "é"], "none": [], "small": [1e-07]}
    text = to_json(values)
    assert json.loads(text) == values
    lines = [line.strip() for line in text.splitlines()]
    assert "[ 1, -2 ]," in lines
    assert "[ 3.5, null ]" in lines
    with pytest.raises(ValueError):
        to_json({"loss": math.nan})


def test_size_of_weights(tmp_path):
    model = load_teacher(TeacherConfig(name="random:test_resnet"), seed=0)
    state = model.module.state_dict()
    in_memory = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert weights_size(model, None) == (in_memory, "state dict")
    assert weights_size(model, tmp_path) == (in_memory, "state dict"), "a folder without safetensors"
    for number in (1, 2):
        save_file({"x": torch.zeros(number)}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    shards = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert weights_size(model, tmp_path)[0] == shards
    model.save(tmp_path)
    whole = (tmp_path / "model.safetensors").stat().st_size
    assert weights_size(model, tmp_path) == (whole, "model.safetensors")
    assert in_memory < whole < in_memory + 20_000


@pytest.fixture
def clock(monkeypatch):
    """Make every forward pass take as long as the test says, in seconds; what is left over is 1 each."""

    def set_durations(durations):
        times, rest = [0.0], iter(durations)

        def perf_counter():
            # The first reading of a pass is its start.
            if len(times) % 2 == 0:
                times.append(times[-1] + next(rest, 1.0))
            else:
                times.append(times[-1])
            return times[-1]

        monkeypatch.setattr("kdcli.models.measure.time", SimpleNamespace(perf_counter=perf_counter))

    return set_durations


def costs(batch_size=8):
    model = load_teacher(TeacherConfig(name="random:test_resnet", image_size=32), seed=0)
    return measure_costs(model, None, device=torch.device("cpu"), batch_size=batch_size)


def test_latency_is_the_median_and_quartiles_after_warm_up(clock):
    """3 passes to warm up, then 50: 30 of 2 ms, 12 of 3 ms, 8 of 9 ms. Quartiles are 2 and 3 ms."""
    latency = [0.002] * 30 + [0.003] * 12 + [0.009] * 8
    clock([7.0, 7.0, 7.0, *latency, 7.0, 7.0, 7.0, *[0.016] * 25, *[0.1] * 12, *[0.010] * 13])
    result = costs()
    assert result["latency"]["repeats"] == 50
    assert result["latency"]["median_ms"] == pytest.approx(2)
    assert result["latency"]["iqr_ms"] == pytest.approx(1)
    assert result["throughput"]["repeats"] > 25
    assert result["throughput"]["images_per_second"] == pytest.approx(8 / 0.016)


def test_a_slow_model_is_repeated_less_often(clock):
    """Passes of 1 s: no fewer than five. Passes of 0.3 s: until 2 s are over."""
    clock([1.0] * 8 + [0.3] * 50)
    result = costs()
    assert result["latency"]["repeats"] == 5
    assert result["latency"]["median_ms"] == pytest.approx(1000)
    assert result["throughput"]["repeats"] == 7


def test_model_is_timed_without_gradients_at_its_own_size(monkeypatch):
    seen = []
    forward = Model.forward

    def record(self, images, *reads):
        seen.append((tuple(images.shape), torch.is_inference_mode_enabled(), self.training))
        return forward(self, images, *reads)

    monkeypatch.setattr(Model, "forward", record)
    result = costs(batch_size=5)
    assert set(seen) == {((1, 3, 32, 32), True, False), ((5, 3, 32, 32), True, False)}
    assert len(seen) == result["latency"]["repeats"] + result["throughput"]["repeats"] + 2 * 3


def test_table_of_classes_has_the_worst_first_and_those_without_images_last():
    costs = {
        "parameters": 1,
        "macs": 1,
        "size_mb": 1.0,
        "latency": {"median_ms": 1.0, "iqr_ms": 0.0},
        "throughput": {"images_per_second": 1.0},
    }
    scores = ("top1", "top5", "macro_f1", "expected_calibration_error", "cross_entropy", "agreement_with_teacher")
    unscored = dict.fromkeys((*scores, "per_class_accuracy"))
    scored = dict.fromkeys(unscored, 0.5)
    evaluation = {
        "samples": "image",
        "class_names": ["a", "b", "c", "d"],
        "class_counts": [4, 0, 2, 1],
        "models": {
            "student": {**costs, **scored, "per_class_accuracy": [0.75, None, 0.5, 1.0]},
            "teacher": {**costs, **unscored},
            "against-1": {**costs, **scored, "per_class_accuracy": [0.25, None, 1.0, 0.0]},
        },
    }
    (_, _, rows), (_, columns, classes) = tables(evaluation, class_layout("image", 4))
    assert columns == ["class", "images", "student", "against-1"]
    assert classes == [
        ["c", "2", "0.5000", "1.0000"],
        ["a", "4", "0.7500", "0.2500"],
        ["d", "1", "1.0000", "0.0000"],
        ["b", "0", "-", "-"],
    ]
    assert rows[0] == ["top-1 accuracy", "0.5000", "-", "0.5000"]


def test_where_the_files_go(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    assert output_folder("test_resnet", None) is None
    assert output_folder(str(tmp_path / "run"), None) == tmp_path / "run" / "evaluation"
    for given in ("new", "new/deep"):
        assert output_folder("test_resnet", tmp_path / given) == tmp_path / given
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    for name in ("evaluation.json", "confusion-student.png"):
        (earlier / name).write_text("")
        assert output_folder("test_resnet", earlier) == earlier
    (earlier / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not an evaluation's"):
        output_folder("test_resnet", earlier)
    with pytest.raises(UserError, match="not an evaluation's"):
        output_folder("test_resnet", Path(earlier / "notes.txt"))
