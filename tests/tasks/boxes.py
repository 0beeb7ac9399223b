"""Made-up boxes, and COCO's average precision by loops over images, classes and thresholds."""

import numpy as np
import torch


def drawn_boxes(number, generator, side=200.0, longest=150.0):
    """(number, 4) boxes of 8 to ``longest`` pixels within a square image."""
    corners = torch.rand(number, 2, generator=generator) * (side - longest)
    sides = 8 + torch.rand(number, 2, generator=generator) * (longest - 8)
    return torch.cat([corners, corners + sides], dim=1)


def drawn_image(seed, num_classes=3, most=5, ignored=None):
    """What was found, most of it nearly right, and what is there; the first ``seed % most`` images have none."""
    generator = torch.Generator().manual_seed(seed)
    count = seed % most
    boxes = drawn_boxes(count, generator)
    labels = torch.randint(0, num_classes, (count,), generator=generator)
    near = boxes + 4 * torch.randn(count, 4, generator=generator)
    false = drawn_boxes(3, generator)
    scores = torch.rand(count + 3, generator=generator).sort(descending=True).values
    found = {
        "boxes": torch.cat([near, false])[torch.randperm(count + 3, generator=generator)],
        "scores": scores,
        "labels": torch.randint(0, num_classes, (count + 3,), generator=generator),
    }
    found["labels"][:count] = labels
    found["boxes"][:count] = near
    truth = {"boxes": boxes, "labels": labels}
    if ignored is not None:
        truth[ignored] = torch.rand(count, generator=generator) < 0.3
    return found, truth


def iou(first, second):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return common / (sum(areas) - common)


def precision_of(images, label, threshold):
    """Average precision of a class at one threshold, with 101 recalls; None where there is nothing to find."""
    rows, total = [], 0
    for found, truth in images:
        there = [box.tolist() for box, own in zip(truth["boxes"], truth["labels"], strict=True) if own == label]
        total += len(there)
        taken = set()
        chosen = [place for place, own in enumerate(found["labels"].tolist()) if own == label]
        for place in sorted(chosen, key=lambda place: -float(found["scores"][place]))[:100]:
            box = found["boxes"][place].tolist()
            best, which = threshold - 1e-10, None
            for number, other in enumerate(there):
                if number not in taken and iou(box, other) >= best:
                    best, which = iou(box, other), number
            taken.add(which)
            rows.append((float(found["scores"][place]), which is not None))
    if not total:
        return None
    rows.sort(key=lambda row: -row[0])
    hits = np.cumsum([hit for _, hit in rows])
    precision = hits / np.arange(1, len(rows) + 1)
    recall = hits / total
    at = [max([p for p, r in zip(precision, recall, strict=True) if r >= wanted], default=0.0)
          for wanted in np.linspace(0, 1, 101)]  # fmt: skip
    return float(np.mean(at))


def mean_precision(images, num_classes, thresholds):
    """The mean over classes that have a box, and over thresholds."""
    by_class = [[precision_of(images, label, threshold) for threshold in thresholds] for label in range(num_classes)]
    return float(np.mean([np.mean(values) for values in by_class if None not in values]))


THRESHOLDS = np.linspace(0.5, 0.95, 10)
