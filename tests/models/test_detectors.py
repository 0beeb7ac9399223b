"""torchvision's detectors: what kdcli makes of them is what they make of themselves."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.data import Batch
from kdcli.machine import gather
from kdcli.models import build_student, load_saved, load_teacher
from kdcli.models.detections import BOXES, Detections
from kdcli.models.torchvision_detection import loading
from kdcli.models.torchvision_detection import model as model_module
from kdcli.models.torchvision_detection.networks import NETWORKS
from kdcli.tasks import build_task

SMALL = {
    "ssd": "torchvision:ssdlite/mobilenet_v3_small",
    "fcos": "torchvision:fcos/mobilenet_v3_small",
    "retinanet": "torchvision:retinanet/mobilenet_v3_small?anchors=[8,16,32,64,128]&score_thresh=0.001",
    "fasterrcnn": "torchvision:fasterrcnn/mobilenet_v3_small?box_batch_size_per_image=16&rpn_post_nms_top_n_test=20"
    "&rpn_post_nms_top_n_train=20",
}
NAMES = ("ant", "bee", "cat")
FACTS = DataFacts("made-up", "object-detection", NAMES, 8, 8, 4, 4, label_kind="boxes")
SIDE = 64
EVERYTHING = Reads(heads=(BOXES,))


def build(name, size=SIDE, **options):
    return build_student(StudentConfig(name=name, image_size=size, **options), FACTS, seed=0)


@pytest.fixture(scope="module")
def students():
    return {family: build(name) for family, name in SMALL.items()}


@pytest.fixture(params=SMALL)
def student(request, students):
    return copy.deepcopy(students[request.param])


def batch(height=SIDE, width=SIDE, count=3):
    """Images of any size, the second one without a box."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    scale = torch.tensor([width, height, width, height])
    targets = [
        {"boxes": torch.tensor([[0.1, 0.1, 0.6, 0.7], [0.5, 0.5, 0.9, 0.8]]) * scale, "labels": torch.tensor([0, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        {"boxes": torch.tensor([[0.2, 0.0, 1.0, 0.9]]) * scale, "labels": torch.tensor([1])},
    ]
    return Batch(images=images, targets=targets[:count], samples=torch.arange(count))


def as_torchvision_wants(student, made):
    """Images in [0, 1] of the student's size, and targets in their pixels, labels from 1 on."""
    size = student.preprocessing.image_size
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (student.preprocessing.mean, student.preprocessing.std)
    )
    images = student.prepare(made)
    images = images if isinstance(images, torch.Tensor) else images["images"]
    scale = torch.tensor([size[1] / made.images.shape[3], size[0] / made.images.shape[2]] * 2)
    targets = [{"boxes": one["boxes"] * scale, "labels": one["labels"] + 1} for one in made.targets]
    return list(images * std + mean), targets


def library_of(student):
    """torchvision's own module, which resizes and normalises by itself."""
    module = student.module
    height, width = student.preprocessing.image_size
    module.transform.fixed_size = (width, height)
    return module


@pytest.mark.parametrize("size", [(SIDE, SIDE), (80, 48)])
def test_losses_are_torchvision_s(student, size):
    made = batch(*size)
    student.train()
    torch.manual_seed(3)
    found = student(student.prepare(made), EVERYTHING).heads[BOXES]
    assert (found.boxes, found.raw, found.size) == ([], {}, size)
    images, targets = as_torchvision_wants(student, made)
    library = library_of(student)
    library.transform.torch_choice = lambda sizes: sizes[0]  # which draws a number
    torch.manual_seed(3)
    expected = library(images, targets)
    assert found.losses.keys() == expected.keys() == set(student.facts.losses)
    for name, loss in expected.items():
        torch.testing.assert_close(found.losses[name], loss, rtol=1e-4, atol=1e-5)
    sum(found.losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


@torch.no_grad()
@pytest.mark.parametrize("size", [(SIDE, SIDE), (96, 32)])
def test_boxes_are_torchvision_s_in_pixels_of_the_batch(student, size):
    for parameter in student.module.parameters():  # untrained, most scores would be below the threshold
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    student.eval()
    made = batch(*size)
    found = student(student.prepare(made), EVERYTHING).heads[BOXES]
    images, _ = as_torchvision_wants(student, made)
    expected = library_of(student)(images)
    scale = torch.tensor([size[1] / SIDE, size[0] / SIDE] * 2)
    assert found.size == size
    for ours, theirs in zip(found.boxes, expected, strict=True):
        kept = theirs["labels"] > 0
        scores = theirs["scores"][kept].sort(descending=True).values
        torch.testing.assert_close(ours["scores"].sort(descending=True).values, scores, rtol=1e-3, atol=1e-4)
        assert (ours["labels"] >= 0).all()
        assert (ours["labels"] < len(NAMES)).all()
        order, other = ours["scores"].argsort(descending=True)[:5], theirs["scores"][kept].argsort(descending=True)[:5]
        torch.testing.assert_close(ours["boxes"][order], theirs["boxes"][kept][other] * scale, rtol=1e-2, atol=0.1)


@torch.no_grad()
def test_losses_in_evaluation_are_the_same_each_time_and_leave_generators_alone(student):
    student.eval()
    task, made = build_task(FACTS, reference=None), batch()
    torch.manual_seed(7)
    following = torch.rand(3)
    torch.manual_seed(7)
    first, second = (task.predict(student, made) for _ in range(2))
    assert torch.equal(torch.rand(3), following)
    assert first.losses.keys() == second.losses.keys() != set()
    for name, loss in first.losses.items():
        assert torch.equal(loss, second.losses[name])
        assert loss.isfinite()
    assert len(first.boxes) == 3
    assert not any(part.training for part in student.modules())


def test_a_teacher_of_other_classes_gets_no_targets(student):
    student.eval()
    task = build_task(DataFacts("x", "object-detection", ("dog",), 4, 4, 4, 4, label_kind="boxes"), reference=None)
    assert task.predict(student, batch()).losses == {}


def test_boxes_of_crowds_and_difficult_ones_are_not_trained_on(student):
    student.train()
    made, plain = batch(), batch()
    made.targets[0]["crowd"] = torch.tensor([True, False])
    made.targets[2]["difficult"] = torch.tensor([True])
    plain.targets[0] = {name: value[1:] for name, value in plain.targets[0].items()}
    plain.targets[2] = {name: value[:0] for name, value in plain.targets[2].items()}
    found = []
    for one in (made, plain):
        torch.manual_seed(3)
        found.append(student(student.prepare(one), EVERYTHING).heads[BOXES].losses)
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name])


def test_a_detector_in_training_needs_targets(student):
    student.train()
    with pytest.raises(ValueError, match="needs its targets"):
        student(student.example(2), EVERYTHING)
    student(student.example(2), Reads(maps=("neck.0",)))  # not for its maps


@pytest.mark.parametrize("family", ["ssd", "fcos", "retinanet"])
def test_the_mean_over_processes_is_the_loss_of_all_images(students, family, monkeypatch):
    """Whose shares have three boxes, and none; batch normalisations as in evaluation, which they don't share."""
    student = copy.deepcopy(students[family]).train()
    for part in student.modules():
        part.training = part.training and not isinstance(part, torch.nn.modules.batchnorm._BatchNorm)
    whole = batch()
    whole = Batch(images=whole.images[:2], targets=whole.targets[:2], samples=whole.samples[:2])
    expected = student(student.prepare(whole), EVERYTHING).heads[BOXES].losses

    def losses():
        shares = []
        for place in range(2):
            one = Batch(
                images=whole.images[place:][:1], targets=whole.targets[place:][:1], samples=torch.tensor([place])
            )
            shares.append(student(student.prepare(one), EVERYTHING).heads[BOXES].losses)
        return shares

    counts = []
    monkeypatch.setattr(model_module, "is_alone", lambda: False)
    monkeypatch.setattr(model_module, "number_of_processes", lambda: 2)
    monkeypatch.setattr(model_module, "sum_over", lambda count: counts.append(count) or count)
    losses()  # what each process has
    half = len(counts) // 2
    totals = [first + second for first, second in zip(counts[:half], counts[half:], strict=True)]
    order = iter(totals * 2)
    monkeypatch.setattr(model_module, "sum_over", lambda count: next(order))
    shares = losses()
    for name, loss in expected.items():
        torch.testing.assert_close(sum(share[name] for share in shares) / 2, loss)
    assert gather.is_alone()


def test_taps_are_the_levels_and_any_submodule(student):
    facts = student.facts
    levels = [tap for tap in facts.feature_dims if tap.startswith("neck.")]
    assert len(levels) >= 5
    student.open_stages()
    assert student.facts.stages == tuple(levels[:4])
    student.eval()
    reads = Reads(maps=("pooled", *levels), features=tuple(levels))
    output = student(student.example(2), reads)
    for tap in levels:
        assert output.maps[tap].shape == (2, facts.feature_dims[tap], *facts.grids[tap])
        torch.testing.assert_close(output.maps[tap].mean(dim=(2, 3)), output.features[tap])
    assert BOXES not in output.heads


def test_several_are_called_by_name():
    with pytest.raises(UserError, match="torchvision has no detector 'fcos/resnet19'") as error:
        build("torchvision:fcos/resnet19")
    assert "fcos/resnet18" in error.value.message
    with pytest.raises(UserError, match="no argument 'anchor'"):
        build("torchvision:retinanet/resnet18?anchor=[1,2,3,4,5]")
    with pytest.raises(UserError, match="anchors are 5 sizes"):
        build("torchvision:retinanet/resnet18?anchors=[1,2,3]")
    with pytest.raises(UserError, match="score_thresh can't be"):
        build("torchvision:fcos/resnet18?score_thresh=[1,2]")
    facts = DataFacts.of_labels(NAMES)
    with pytest.raises(UserError, match="is a detector, and the task is image-classification"):
        build_student(StudentConfig(name=SMALL["ssd"], image_size=SIDE), facts, seed=0)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith(("ssd", "fasterrcnn_mobilenet"))])
def test_others_can_be_built_too(name):
    side = 300 if name == "ssd300_vgg16" else 64
    module = NETWORKS[name].made(2, {}, (side, side)).make()
    assert NETWORKS[name].arguments()
    assert loading.heads_of(module)


def test_a_checkpoint_of_other_classes_tells_their_number(student, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(student.module.state_dict(), file)
    name = next(SMALL[family] for family in SMALL if family in student.settings["network"])
    teacher = load_teacher(TeacherConfig(name=name, weights=str(file), image_size=SIDE), seed=0, task=FACTS.task)
    assert (teacher.facts.num_classes, teacher.facts.pretrained) == (3, True)
    images = student.example(2)
    ours, theirs = (one.eval()(images, EVERYTHING).heads[BOXES].raw for one in (student, teacher))
    for key in ours:
        assert torch.equal(ours[key], theirs[key])
    config = TeacherConfig(name=name, weights=str(file), image_size=SIDE, crop_pct=0.8)
    with pytest.raises(UserError, match="crop_pct"):
        load_teacher(config, seed=0, task=FACTS.task)


def test_published_weights_are_filled_in_out_of_torch_s_cache(tmp_path, monkeypatch):
    """Offline, with made-up weights in the files' place: frozen as torchvision does, their classes are COCO's."""
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    url = loading.weights_of(NETWORKS[name]).url
    weights = NETWORKS[name].made(90, {}, (SIDE, SIDE)).make().state_dict()
    weights = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(weights, cache / url.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    teacher = load_teacher(TeacherConfig(name=f"torchvision:{name}", image_size=SIDE), seed=0, task=FACTS.task)
    assert (teacher.facts.num_classes, teacher.facts.label_names[:2]) == (90, ("person", "bicycle"))
    student = build(f"torchvision:{name}", pretrained=True).train()
    key = "backbone.body.4.block.0.0.weight"
    assert torch.equal(student.module.state_dict()[key], weights[key])
    assert student.module.roi_heads.box_predictor.cls_score.weight.shape[0] == 4
    frozen = {n for n, p in student.module.named_parameters() if not p.requires_grad}
    assert {"backbone.body.0.0.weight", "backbone.body.0.1.weight"} <= frozen
    assert not any(n.startswith(("rpn", "roi_heads", "backbone.fpn")) for n in frozen)
    before = student.module.backbone.body["0"][1].running_mean.clone()
    student(student.prepare(batch()), EVERYTHING)
    assert torch.equal(student.module.backbone.body["0"][1].running_mean, before)
    student.save(tmp_path / "saved")
    assert load_saved(tmp_path / "saved").settings["frozen"]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("torch.hub.download_url_to_file", _offline)
    with pytest.raises(UserError, match="can't be downloaded"):
        load_teacher(TeacherConfig(name=f"torchvision:{name}", image_size=SIDE), seed=0, task=FACTS.task)
    with pytest.raises(UserError, match="put together of its parts"):
        load_teacher(TeacherConfig(name=SMALL["fcos"], image_size=SIDE), seed=0, task=FACTS.task)


def _offline(*_, **__):
    raise OSError("no network")


def test_the_snippet_of_the_card_is_a_model_that_answers_alike(student, tmp_path):
    from kdcli.models.libraries import library_called

    student.eval().save(tmp_path)
    library = library_called(student.facts.library)
    code = library.snippet(tmp_path, None).replace("PATH/", f"{tmp_path}/")
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    scope = {"images": list(images)}
    with torch.inference_mode():
        exec(compile(code, "card", "exec"), scope)
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (student.preprocessing.mean, student.preprocessing.std)
        )
        found: Detections = student((images - mean) / std, EVERYTHING).heads[BOXES]
    for ours, theirs in zip(found.boxes, scope["boxes"], strict=True):
        kept = theirs["labels"] > 0
        torch.testing.assert_close(ours["scores"], theirs["scores"][kept], rtol=1e-3, atol=1e-4)
    assert json.loads((tmp_path / "config.json").read_text())["label_names"] == list(NAMES)


@pytest.mark.parametrize("family", ["ssd", "fasterrcnn"])
def test_half_precision_gives_finite_losses(students, family):
    student = copy.deepcopy(students[family]).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = student(student.prepare(batch(count=2)), EVERYTHING).heads[BOXES].losses
    assert all(loss.isfinite() for loss in losses.values())
    student.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = student(student.prepare(batch(count=1)), EVERYTHING).heads[BOXES]
    assert all(one["boxes"].dtype == one["scores"].dtype == torch.float32 for one in found.boxes)
    assert F.relu(found.boxes[0]["scores"]).isfinite().all()
