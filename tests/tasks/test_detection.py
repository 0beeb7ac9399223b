"""COCO's average precision, and what the task makes of boxes."""

import sys

import numpy as np
import pytest
import torch

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.data import Batch
from kdcli.models.detections import Detections, scale_boxes
from kdcli.tasks import build_task
from kdcli.tasks.detection.coco import Seen, average_precision
from tests.tasks.boxes import THRESHOLDS, drawn_image, mean_precision

NONE = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}


def seen(images):
    return [Seen(number, found, truth) for number, (found, truth) in enumerate(images)]


def task(names="abc"):
    facts = DataFacts("made-up", "object-detection", tuple(names), 4, 4, 4, 4, label_kind="boxes")
    return build_task(facts, reference=None)


def by_pycocotools(images, num_classes, ignored):
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    truth, found, number = [], [], 0
    for image, (boxes, target) in enumerate(images, 1):
        for place, (box, label) in enumerate(zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)):
            number += 1
            width, height = box[2] - box[0], box[3] - box[1]
            crowd = bool(target[ignored][place]) if ignored else False
            truth.append({"id": number, "image_id": image, "category_id": label, "area": width * height,
                          "bbox": [box[0], box[1], width, height], "iscrowd": int(crowd)})  # fmt: skip
        rows = zip(*(boxes[name].tolist() for name in ("boxes", "scores", "labels")), strict=True)
        found += [
            {"image_id": image, "category_id": label, "score": score,
             "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
            for box, score, label in rows
        ]  # fmt: skip
    data = coco.COCO()
    data.dataset = {
        "images": [{"id": image} for image in range(1, len(images) + 1)],
        "annotations": truth,
        "categories": [{"id": label} for label in range(num_classes)],
    }
    data.createIndex()
    evaluation = COCOeval(data, data.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    by_class = evaluation.eval["precision"][:, :, :, 0, 2]
    classes = [None if (own := by_class[:, :, label]).max() < 0 else own.mean() for label in range(num_classes)]
    return dict(
        zip(("map", "map_50", "map_75", "map_small", "map_medium", "map_large"), evaluation.stats, strict=False)
    ), classes


@pytest.mark.parametrize("ignored", [None, "crowd", "difficult"])
def test_it_is_that_of_pycocotools(ignored):
    images = [drawn_image(seed, ignored=ignored) for seed in range(40)]
    expected, classes = by_pycocotools(images, 4, ignored)
    precision = average_precision(seen(images), 4)
    assert {name: precision.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert min(expected.values()) > 0, "there are boxes of every size"
    assert precision.by_class == pytest.approx([None if value is None else pytest.approx(value) for value in classes])
    assert precision.by_class[3] is None
    if ignored:
        plain = average_precision(seen([drawn_image(seed) for seed in range(40)]), 4)
        assert plain.metrics["map"] != pytest.approx(precision.metrics["map"])


def test_it_is_that_of_loops_over_boxes_in_any_order():
    images = [drawn_image(seed) for seed in range(30)]
    images[3][0]["scores"][:] = images[4][0]["scores"][0]  # ties
    found = average_precision(seen(images), 3).metrics
    assert found == average_precision(seen(images)[::-1], 3).metrics
    images = [drawn_image(seed) for seed in range(30)]
    assert average_precision(seen(images), 3).metrics["map"] == pytest.approx(mean_precision(images, 3, THRESHOLDS))


def test_nothing_found_is_0_and_nothing_to_find_is_none():
    one = {"boxes": torch.tensor([[0.0, 0.0, 50.0, 50.0]]), "labels": torch.tensor([1])}
    blind = average_precision([Seen(0, NONE, one)], 2)
    assert (blind.metrics["map"], blind.metrics["map_large"], blind.by_class) == (0, None, [None, 0])
    assert average_precision([Seen(0, NONE, NONE)], 2).metrics["map"] is None
    found = {"boxes": one["boxes"], "scores": torch.tensor([0.5]), "labels": one["labels"]}
    assert average_precision([Seen(0, found, NONE), Seen(1, found, one)], 2).metrics["map"] == pytest.approx(
        0.5, abs=0.01
    )


def batch_of(*targets, side=100):
    return Batch(
        images=torch.zeros(len(targets), 3, side, side, dtype=torch.uint8),
        targets=list(targets),
        samples=torch.arange(len(targets)),
    )


def test_a_split_without_boxes_can_t_be_measured(measure):
    output = Detections((100, 100), [NONE])
    with pytest.raises(UserError, match="no boxes to evaluate on"):
        measure(task(), lambda _: output, [batch_of(NONE)])


def test_without_losses_there_is_no_loss(measure):
    one = {"boxes": torch.tensor([[0.0, 0.0, 50.0, 50.0]]), "labels": torch.tensor([1])}
    found = measure(task(), lambda _: Detections((100, 100), [NONE]), [batch_of(one)])
    assert found == {"map": 0, "map_50": 0, "map_75": 0}


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    monkeypatch.setattr("kdcli.tasks.detection.coco.find_spec", lambda name: None)
    with pytest.raises(UserError, match="faster-coco-eval, which is not installed") as error:
        average_precision([], 2)
    assert "pip install" in error.value.hint


def test_the_loss_is_the_sum_of_the_library_s_or_of_those_that_are_named():
    losses = {"classification": torch.tensor(2.0), "boxes": torch.tensor(3.0)}
    output = Detections((10, 10), losses=losses)
    assert float(task().supervised_loss(output, [], label_smoothing=0)) == 5
    assert float(task().supervised_loss(output, [], label_smoothing=0, terms={"boxes": 0.5})) == 1.5
    with pytest.raises(UserError, match="no loss 'box'"):
        task().supervised_loss(output, [], label_smoothing=0, terms={"box": 1.0})


def test_classes_are_brought_into_the_data_s_order_and_others_left_out():
    found = {
        "boxes": torch.arange(16.0).view(4, 4),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]),
        "labels": torch.tensor([5, 0, 2, 5]),
    }
    (one,) = task("ab").in_order(Detections((10, 10), [found]), (5, 2)).boxes
    assert one["labels"].tolist() == [0, 1, 0]
    assert one["scores"].tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert one["boxes"].tolist() == found["boxes"][[0, 2, 3]].tolist()


def test_boxes_in_pixels_of_another_size():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    assert scale_boxes(boxes, (100, 50), (50, 200)).tolist() == [[40.0, 10.0, 120.0, 30.0]]
    there = Detections((100, 50), [{"boxes": boxes}]).at((50, 200))
    assert (there.size, there.boxes[0]["boxes"].tolist()) == ((50, 200), [[40.0, 10.0, 120.0, 30.0]])


def test_the_report_counts_boxes_and_tells_of_sizes():
    images = [drawn_image(seed, ignored="difficult") for seed in range(12)]
    report = task().report()
    for start in (0, 6):
        found, truth = zip(*images[start : start + 6], strict=True)
        report.update(Detections((200, 200), list(found)), batch_of(*truth, side=200))
    values = report.compute()
    assert set(task().layout.keys) == set(values)
    kept = [t["labels"][~t["difficult"]] for _, t in images]
    assert report.counts() == np.bincount(torch.cat(kept).numpy(), minlength=3).tolist()
    assert "200x200 images" in report.notes("student")[0]
    assert report.agreement(report) is None
