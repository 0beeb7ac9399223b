"""transformers' object detectors with small random configs: outputs, losses, taps, images, and what transformers makes of
what was saved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou

from kdcli.base.errors import UserError
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.data import Batch, fit
from kdcli.models.place import Place
from kdcli.models.spec import parse_model
from kdcli.models.transformers import detector_losses
from kdcli.models.transformers.detection import TOKENS
from kdcli.models.transformers.detector_kinds import STUDENTS
from kdcli.models.transformers.detector_loading import build_student, load_teacher, open_saved
from kdcli.models.transformers.library import Transformers
from kdcli.models.weights import read_checkpoint
from tests.models.tiny_detectors import TINY, write_config

LABELS = ("ant", "bee", "cat")
QUICK = ("yolos", "conditional_detr", "rt_detr", "lw_detr")
BOXES = torch.tensor([[10.0, 10, 40, 40], [50, 20, 90, 70]])


def batch_of(*targets, height=80, width=96, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (len(targets), 3, height, width), dtype=np.uint8)
    filled = [
        {"boxes": torch.as_tensor(boxes).float().view(-1, 4), "labels": torch.as_tensor(labels).long()}
        for boxes, labels in targets
    ]
    return Batch(images=torch.from_numpy(pixels), targets=filled, samples=torch.arange(len(targets)))


TWO = ((BOXES, [0, 2]), ([], []))


def student_of(folder, kind, size=64, **changes):
    place = Place("transformers", str(folder), folder=write_config(folder, kind, **changes))
    torch.manual_seed(0)
    return build_student(place, StudentConfig(name=str(folder), image_size=size), LABELS, like=None)


def teacher_of(folder, kind, size=64, **changes):
    place = Place("transformers", str(folder), folder=write_config(folder, kind, **changes))
    torch.manual_seed(1)
    name = f"random:{folder}"
    return load_teacher(place, parse_model(name), TeacherConfig(name=name, image_size=size), None).eval()


@pytest.fixture(scope="module", params=QUICK)
def student(request, tmp_path_factory):
    return student_of(tmp_path_factory.mktemp("kind") / request.param, request.param)


def distances(rows, others):
    return (rows[:, None] - others[None]).abs().sum(dim=2)


def losses_of(model, batch, seed=0):
    torch.manual_seed(seed)
    return model(model.prepare(batch), Reads(heads=("boxes",))).heads["boxes"].losses


def test_boxes_are_in_pixels_of_the_batch_and_scores_fall(student):
    student.eval()
    batch = batch_of(*TWO)
    found = student(student.prepare(batch)).heads["boxes"]
    assert found.size == (80, 96)
    assert not found.losses
    raw = found.raw["pred_boxes"]
    for one in found.boxes:
        assert (one["scores"].diff() <= 0).all()
        assert 0 <= one["scores"].min() <= one["scores"].max() <= 1
        assert set(one["labels"].tolist()) <= {0, 1, 2}
        middles = (one["boxes"][:, :2] + one["boxes"][:, 2:]) / 2 / torch.tensor([96.0, 80])
        assert distances(middles, raw.flatten(0, 1)[:, :2]).min(dim=1).values.max() < 1e-5
    again = student(student.with_targets(batch)).heads["boxes"]
    assert torch.equal(again.boxes[0]["boxes"], found.boxes[0]["boxes"])
    assert set(again.losses) == {"classification", "boxes"}


def test_training_leaves_out_denoising_and_further_groups(student):
    student.train()
    number = student.facts.queries.number
    decoder = next((name for name, _ in student.module.named_modules() if name.endswith("decoder.layers.0")), None)
    if decoder:
        student.open_taps([decoder])
        assert decoder in student.facts.queries.taps
        assert student.facts.grids[decoder] == (number, 1)
    reads = Reads(tuple(student.facts.feature_dims), tuple(student.facts.grids), heads=("boxes",))
    torch.manual_seed(0)
    output = student(student.prepare(batch_of(*TWO)), reads)
    for tap, one in output.maps.items():
        assert (one.shape[1], tuple(one.shape[2:])) == (student.facts.feature_dims[tap], student.facts.grids[tap])
        torch.testing.assert_close(output.features[tap], one.mean(dim=(2, 3)))
    assert output.maps[TOKENS].shape[2:] == (number, 1)
    total = sum(output.heads["boxes"].losses.values()) + sum(one.square().mean() for one in output.maps.values())
    total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in student.parameters() if parameter.grad is not None)
    assert not output.heads["boxes"].boxes


def test_the_same_seed_gives_the_same_denoising(student):
    student.train()
    one, same, other = (sum(losses_of(student, batch_of(*TWO), seed).values()).item() for seed in (1, 1, 2))
    assert one == same
    denoises = student.facts.queries.family == "rt_detr"
    assert (one != other) == denoises or not denoises  # others may have dropout


def test_images_without_boxes_and_with_more_boxes_than_tokens(student):
    student.train()
    many = (torch.tensor([[1.0, 1, 20, 20]]).repeat(40, 1), [1] * 40)
    for targets in (([], []), ([], [])), (many, TWO[0]):
        total = sum(losses_of(student, batch_of(*targets)).values())
        assert total.isfinite()
        total.backward()


def test_maps_alone_run_no_decoder(student):
    student.eval()
    ran = []
    last = [module for name, module in student.module.named_modules() if "class" in name][-1]
    handle = last.register_forward_hook(lambda *_: ran.append(1))
    student(student.prepare(batch_of(*TWO)), Reads(maps=("pooled",)))
    assert not ran
    student(student.prepare(batch_of(*TWO)), Reads(maps=(TOKENS,)))
    handle.remove()
    assert ran


def test_transformers_alone_gives_the_same_boxes(student, tmp_path):
    student.eval()
    student.save(tmp_path / "saved")
    again = open_saved(Place("transformers", str(tmp_path / "saved"), folder=tmp_path / "saved"))
    assert again.facts.label_names == LABELS
    assert again.preprocessing == replace(student.preprocessing, note="")
    for found in Transformers().reload(student, tmp_path / "saved", projector=None):
        torch.testing.assert_close(found.found, found.expected)
    image = Image.fromarray(batch_of(*TWO).images[0].permute(1, 2, 0).numpy())
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "saved")
    module = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        outputs = module(**processor(images=image, return_tensors="pt"))
        (theirs,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[image.size[::-1]])
        fitted = torch.from_numpy(np.array(fit(image, student.preprocessing))).permute(2, 0, 1)[None]
        batch = replace(batch_of(TWO[0]), images=fitted)
        (ours,) = student(student.prepare(batch)).heads["boxes"].at(image.size[::-1]).boxes
    order = theirs["scores"].argsort(descending=True, stable=True)
    torch.testing.assert_close(theirs["scores"][order], ours["scores"])
    rows = torch.cat([theirs["boxes"], theirs["labels"][:, None]], dim=1)
    mine = torch.cat([ours["boxes"], ours["labels"][:, None]], dim=1)
    assert distances(rows, mine).min(dim=1).values.max() < 1e-3  # equal scores may come in another order


def test_the_loss_is_that_of_a_matching_by_hand(tmp_path):
    """YOLOS: cross-entropy of all tokens, those without an object by 0.1; 5 L1 + 2 (1 - GIoU) by the number of boxes."""
    model = student_of(tmp_path / "yolos", "yolos").eval()
    batch = batch_of(*TWO, height=64, width=64)
    found = model(model.with_targets(batch)).heads["boxes"]
    logits, boxes = found.raw["logits"], found.raw["pred_boxes"]
    true = torch.stack([(BOXES[:, 0] + BOXES[:, 2]) / 2, (BOXES[:, 1] + BOXES[:, 3]) / 2], dim=1)
    true = torch.cat([true, BOXES[:, 2:] - BOXES[:, :2]], dim=1) / 64

    def corners(values):
        return torch.cat([values[:, :2] - values[:, 2:] / 2, values[:, :2] + values[:, 2:] / 2], dim=1)

    giou = generalized_box_iou(corners(boxes[0]), corners(true))
    cost = 5 * torch.cdist(boxes[0], true, p=1) - logits[0].softmax(1)[:, [0, 2]] - 2 * giou
    tokens, numbers = linear_sum_assignment(cost.detach())
    classes = torch.full((2, 20), 3)
    classes[0, tokens] = torch.tensor([0, 2])[numbers]
    weight = torch.tensor([1, 1, 1, 0.1])
    expected = F.cross_entropy(logits.transpose(1, 2), classes, weight)
    torch.testing.assert_close(found.losses["classification"], expected)
    distance = (boxes[0, tokens] - true[numbers]).abs().sum()
    torch.testing.assert_close(found.losses["boxes"], (5 * distance + 2 * (1 - giou[tokens, numbers]).sum()) / 2)


@pytest.mark.parametrize("kind", ["yolos", "conditional_detr", "rt_detr", "lw_detr"])
def test_shares_of_two_processes_make_the_loss_of_the_whole_batch(kind, tmp_path, monkeypatch):
    """The mean of what two processes with other numbers of boxes give is the loss of all images, without denoising."""
    changes = {"num_denoising": 0} if kind == "rt_detr" else {}
    model = student_of(tmp_path / kind, kind, **changes).train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm | torch.nn.Dropout):
            module.eval()
    targets = [TWO[0], TWO[1], (BOXES[:1], [1]), (BOXES[:1] + 3, [2])]
    whole = losses_of(model, batch_of(*targets))
    pixels = batch_of(*targets).images
    counts = []
    monkeypatch.setattr(detector_losses, "is_alone", lambda: False)
    monkeypatch.setattr(detector_losses.distributed, "get_world_size", lambda: 2)

    def first_pass(own):
        counts.append(own)
        return own

    def share(part):
        half = batch_of(*targets[part])
        return losses_of(model, replace(half, images=pixels[part]))

    monkeypatch.setattr(detector_losses, "sum_over", first_pass)
    parts = slice(0, 2), slice(2, 4)
    for part in parts:
        share(part)
    by_part = len(counts) // 2
    sums = [one + other for one, other in zip(counts[:by_part], counts[by_part:], strict=True)]
    means = []
    for part in parts:
        left = iter(sums)
        monkeypatch.setattr(detector_losses, "sum_over", lambda own, left=left: next(left))
        means.append(share(part))
    for name, value in whole.items():
        torch.testing.assert_close((means[0][name] + means[1][name]) / 2, value, rtol=1e-4, atol=1e-5)


def test_models_of_other_sizes_see_the_same_place(tmp_path):
    """A bright square of the batch lies at the same share of both models' images, and so do the targets."""
    teacher, student = teacher_of(tmp_path / "detr", "detr", 96), student_of(tmp_path / "yolos", "yolos", 64)
    batch = batch_of((BOXES[1:], [1]), height=96, width=96)
    batch.images[:] = 0
    batch.images[:, :, 20:70, 50:90] = 255
    student.train()
    places = []
    for model in (teacher, student):
        inputs = model.prepare(batch)
        images = inputs if isinstance(inputs, torch.Tensor) else inputs["images"]
        bright = images[0].mean(dim=0) > images.mean()
        rows, columns = torch.nonzero(bright.any(dim=1)), torch.nonzero(bright.any(dim=0))
        height, width = bright.shape
        places.append(
            [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
        )
    expected = torch.tensor([50, 20, 90, 70]) / 96
    for place in places:
        assert (torch.tensor(place) - expected).abs().max() <= 1 / 64
    seen = []
    module = student.module
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["labels"]), with_kwargs=True)
    student(student.prepare(batch))
    handle.remove()
    (label,) = seen[0]
    torch.testing.assert_close(label["boxes"][0], torch.tensor([70, 45, 40, 50]) / 96)


def test_every_kind_is_a_small_config_or_refused(tmp_path):
    assert set(TINY) >= STUDENTS
    with pytest.raises(UserError, match="has no loss for"):
        student_of(tmp_path / "layout", "pp_doclayout_v3")
    model = teacher_of(tmp_path / "layout", "pp_doclayout_v3")
    assert model.facts.grids["neck.0"] == (8, 8)
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "pp_ocrv5_mobile_det"}')
    with pytest.raises(UserError, match="marks the pixels of text"):
        load_teacher(
            Place("transformers", str(folder), folder=folder),
            parse_model(f"random:{folder}"),
            TeacherConfig(name="x"),
            None,
        )
    with pytest.raises(UserError, match="is no detector of transformers"):
        build_student(
            Place("transformers", "hf:resnet", architecture="resnet"),
            StudentConfig(name="hf:resnet"),
            LABELS,
            like=None,
        )


def test_what_transformers_fails_in_is_switched_off_or_refused(tmp_path):
    model = student_of(tmp_path / "yolos", "yolos", auxiliary_loss=True).train()
    assert sum(losses_of(model, batch_of(*TWO)).values()).isfinite()
    place = Place("transformers", "hf:yolos", architecture="yolos", arguments={"auxiliary_loss": True})
    with pytest.raises(UserError, match="auxiliary_loss"):
        build_student(place, StudentConfig(name="hf:yolos"), LABELS, like=None)


def test_own_classes_stay_where_they_are_the_same(tmp_path):
    model = student_of(tmp_path / "rt_detr", "rt_detr")
    saved = tmp_path / "saved"
    model.save(saved)
    place = Place("transformers", str(saved), folder=saved)
    kept = build_student(place, StudentConfig(name=str(saved), pretrained=True), LABELS, like=None)
    other = build_student(place, StudentConfig(name=str(saved), pretrained=True), ("dog", "eel", "fox"), like=None)
    fewer = build_student(place, StudentConfig(name=str(saved), pretrained=True), ("dog",), like=None)
    key = "model.enc_score_head.weight"
    ours = model.module.state_dict()
    assert torch.equal(kept.module.state_dict()[key], ours[key])
    assert not torch.equal(other.module.state_dict()[key], ours[key])
    assert len(fewer.module.state_dict()[key]) == 1
    rest = "model.encoder_input_proj.0.0.weight"
    assert all(torch.equal(one.module.state_dict()[rest], ours[rest]) for one in (kept, other, fewer))


def test_as_many_tokens_as_a_grid_would_have_are_no_grid(tmp_path):
    """25 tokens are no map of 5 x 5 positions, in whatever layer they are."""
    model = student_of(tmp_path / "detr", "detr", 80, num_queries=25)
    names = ("model", "model.decoder.layers.0", "class_labels_classifier")
    model.open_taps(names)
    assert {model.facts.grids[name] for name in names} == {(25, 1)}
    assert set(names) <= set(model.facts.queries.taps)
    assert model.facts.grids["pooled"] == (3, 3)


@pytest.mark.parametrize("kind", ["yolos", "detr", "rt_detr"])
def test_a_checkpoint_as_teacher_and_a_student_made_of_it(kind, tmp_path):
    """Its classes are as many as the file's; a student that has its weights has its tokens."""
    trained = student_of(tmp_path / kind, kind)
    trained.save(tmp_path / "saved")
    folder = tmp_path / kind
    place = Place("transformers", str(folder), folder=folder)
    checkpoint = read_checkpoint(tmp_path / "saved" / "model.safetensors", source="saved")
    settings = TeacherConfig(name=str(folder), image_size=64)
    teacher = load_teacher(place, parse_model(str(folder)), settings, checkpoint)
    assert teacher.facts.num_classes == 3
    ours, theirs = teacher.module.state_dict(), trained.module.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    student = build_student(place, StudentConfig(name=str(folder), image_size=64), ("dog",), like=teacher)
    assert student.facts.queries.source == teacher.facts.name
    assert "tensors copied from the teacher" in student.facts.weights
