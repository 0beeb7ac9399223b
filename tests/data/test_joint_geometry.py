"""An image of its own coordinates, with masks of the same, boxes and labels: all go to the same place, by every option."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from kdcli.base.errors import UserError
from kdcli.base.facts import Preprocessing
from kdcli.config.data import AugmentConfig, DataConfig
from kdcli.data import ImageSource, Loading, Mix, Sample, open_dense
from kdcli.data.fingerprint import digest_of
from kdcli.data.images.augment import ERASED, Augmentation
from kdcli.data.images.geometry import Crop, Geometry, Pad
from kdcli.data.images.preprocess import fit_geometry
from kdcli.machine.seeding import seeded

HEIGHT, WIDTH = 120, 160
BOXES = [[10, 20, 60, 50], [100, 60, 150, 118], [0, 0, 160, 120], [2, 2, 3, 3], [70, 10, 90, 110]]
UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
FILL = -1


class Coordinates(ImageSource):
    """Red is x and green y, from 25 to 230; so are a mask of whole numbers and a depth in pixels."""

    fill = FILL

    def __init__(self, size=6):
        self.labels = (0,) * size

    def load(self, index):
        x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
        shown = np.stack([25 + 205 * x / (WIDTH - 1), 25 + 205 * y / (HEIGHT - 1), np.full_like(x, 128)], axis=2)
        target = {
            "mask": tv_tensors.Mask(torch.from_numpy(x)),
            "depth": tv_tensors.Mask(torch.from_numpy(y + 0.25).float()),
            "boxes": tv_tensors.BoundingBoxes(BOXES, format="XYXY", canvas_size=(HEIGHT, WIDTH)),
            "labels": torch.arange(len(BOXES)),
            "parts": tv_tensors.Mask(torch.from_numpy(x).expand(len(BOXES), -1, -1)),
            "caption": "coordinates",
        }
        return Sample(Image.fromarray(shown.round().astype(np.uint8)), target)

    def describe(self, index):
        return f"coordinates[{index}]"


def line(values, axis):
    """Return ``a, b`` of ``values = a * place + b`` along an axis, by the pixels that lie in the image, at their centres."""
    kept = values != FILL
    places = torch.arange(values.shape[axis]) + 0.5
    places = places.expand_as(values) if axis == 1 else places[:, None].expand_as(values)
    x, y = places[kept].double(), values[kept].double() + (0.5 if axis == 1 else 0.25)
    a = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    return float(a), float(y.mean() - a * x.mean())


def assert_aligned(image, target, *, smallest=1):
    height, width = image.shape[1:]
    mask, depth, boxes = target["mask"], target["depth"], target["boxes"]
    assert mask.shape == depth.shape == (height, width)
    assert (mask.dtype, depth.dtype, boxes.dtype) == (torch.int64, torch.float32, torch.float32)
    inside = mask != FILL
    assert torch.equal(inside, depth != FILL)
    for channel, values, side in ((0, mask, WIDTH), (1, depth - 0.25, HEIGHT)):
        found = (image[channel].float() - 25) * (side - 1) / 205
        step = abs(line(mask if channel == 0 else depth, 1 - channel)[0])
        off = (found - values)[inside].abs()
        # Half a pixel of the result at most, and what an edge smears there; eight bits tell no more than a level.
        assert off.median() <= 0.5 * step + side / 205
        assert off.max() <= 2.5 * step + 2 * side / 205
    (ax, bx), (ay, by) = line(mask, 1), line(depth, 0)
    tolerance = 0.6 * max(abs(ax), abs(ay), 1)
    columns, rows = (inside.any(dim=axis).nonzero()[[0, -1], 0].tolist() for axis in (0, 1))
    left, top, right, bottom = (
        ax * columns[0] + bx,
        ay * rows[0] + by,
        ax * (columns[1] + 1) + bx,
        ay * (rows[1] + 1) + by,
    )
    seen = [min(left, right), min(top, bottom), max(left, right), max(top, bottom)]
    assert len(boxes) == len(target["labels"]) == len(target["parts"])
    assert target["parts"].shape[1:] == mask.shape
    for box, label in zip(boxes.tolist(), target["labels"].tolist(), strict=True):
        own = BOXES[label]
        expected = [max(own[0], seen[0]), max(own[1], seen[1]), min(own[2], seen[2]), min(own[3], seen[3])]
        corners = sorted([ax * box[0] + bx, ax * box[2] + bx]), sorted([ay * box[1] + by, ay * box[3] + by])
        back = [corners[0][0], corners[1][0], corners[0][1], corners[1][1]]
        assert back == pytest.approx(expected, abs=tolerance), label
        assert box[2] - box[0] >= smallest
        assert box[3] - box[1] >= smallest
        assert min(box) >= 0
        assert box[2] <= width
        assert box[3] <= height
    assert 2 in target["labels"].tolist(), "the whole image is a box: it is never lost"


PLAIN = {"crop_scale": (1.0, 1.0), "flip": 0.0}
AUGMENTS = {
    "resize": PLAIN,
    "random resized crop": {"flip": 0.0},
    "small crop": {"crop_scale": (0.08, 0.2), "flip": 0.0},
    "flip": {**PLAIN, "flip": 1.0},
    "padded crop": {**PLAIN, "pad": 9},
    "all": {"crop_scale": (0.2, 0.9), "flip": 0.5, "pad": 6},
}


@pytest.mark.parametrize("canvas", [(60, 80), (33, 57), (200, 200)])
@pytest.mark.parametrize("name", AUGMENTS)
def test_training(name, canvas):
    augment, source = AugmentConfig(**AUGMENTS[name]), Coordinates()
    model = Preprocessing(canvas, *UNIT)
    loader = source.train_batches(Loading(3, 5, augment, workers=0), [model, Preprocessing((8, 8), *UNIT)])
    for batch in loader.epoch(0):
        assert isinstance(batch.targets, list)
        assert not batch.can_mix
        for image, target in zip(batch.images, batch.targets, strict=True):
            assert_aligned(image, target)
            assert target["caption"] == "coordinates"


@pytest.mark.parametrize("kernels", ["pillow", "torchvision"])
@pytest.mark.parametrize("geometry", ["crop", "squash", "border"])
@pytest.mark.parametrize(("size", "resize"), [((64, 64), (72, 72)), ((48, 80), (48, 80)), ((90, 90), (64, 64))])
def test_evaluation(size, resize, geometry, kernels):
    model = Preprocessing(size, *UNIT, "bilinear", resize, geometry, kernels=kernels)
    (batch,) = Coordinates(2).eval_batches(Loading(2, workers=0), model)
    for image, target in zip(batch.images, batch.targets, strict=True):
        assert_aligned(image, target, smallest=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same coordinates in files: what the sources of masks, depth and boxes read of them."""
    root = tmp_path_factory.mktemp("coordinates")
    image, target = Coordinates().load(0)
    for number in range(8):
        for kind in ("images", "masks", "depth"):
            (root / kind).mkdir(exist_ok=True)
        image.save(root / "images" / f"{number}.png")
        Image.fromarray(target["mask"].numpy().astype(np.uint8)).save(root / "masks" / f"{number}.png")
        np.save(root / "depth" / f"{number}.npy", target["depth"].numpy())
    images = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(8)]
    boxes = [[left, top, right - left, bottom - top] for left, top, right, bottom in BOXES]
    rows = [{"image_id": n, "category_id": c, "bbox": box} for n in range(8) for c, box in enumerate(boxes)]
    content = {"images": images, "annotations": rows, "categories": [{"id": c, "name": f"c{c}"} for c in range(5)]}
    (root / "coco.json").write_text(json.dumps(content))
    return {
        "pixels": open_dense(DataConfig(name=str(root), ignore_label=[255]), "pixels", seed=0),
        "depth": open_dense(DataConfig(name=str(root), max_depth=1000), "depth", seed=0),
        "boxes": open_dense(DataConfig(name=str(root / "coco.json")), "boxes", seed=0),
    }


def together(batches):
    """Images with all three targets, of batches that differ in these alone."""
    masks, depths, boxes = batches
    assert torch.equal(masks.images, depths.images)
    assert torch.equal(masks.images, boxes.images)
    for image, mask, depth, own in zip(masks.images, masks.targets, depths.targets, boxes.targets, strict=True):
        parts = mask.expand(len(own["boxes"]), -1, -1)
        depth = torch.where(mask == FILL, torch.full_like(depth, FILL), depth)
        yield image, {"mask": mask, "depth": depth, "boxes": own["boxes"], "labels": own["labels"], "parts": parts}


@pytest.mark.parametrize("name", AUGMENTS)
def test_training_on_files_at_both_models_sizes(name, files):
    models = [Preprocessing((60, 80), *UNIT), Preprocessing((40, 96), *UNIT)]
    loading = Loading(2, 5, AugmentConfig(**AUGMENTS[name]), workers=0)
    loaders = [data.train.train_batches(loading, models) for data in files.values()]
    for batches in zip(*(loader.epoch(1) for loader in loaders), strict=True):
        assert [type(batch.targets) for batch in batches] == [torch.Tensor, torch.Tensor, list]
        for image, target in together(batches):
            assert image.shape == (3, 60, 96)
            assert_aligned(image, target)
            assert (target["depth"][target["mask"] != FILL] > 0).all()


@pytest.mark.parametrize("geometry", ["crop", "squash", "border"])
@pytest.mark.parametrize(("size", "resize"), [((48, 80), (48, 80)), ((40, 40), (56, 56))])
def test_evaluation_on_files(size, resize, geometry, files):
    model = Preprocessing(size, *UNIT, "bilinear", resize, geometry)
    loaders = [data.validation.eval_batches(Loading(2, workers=0), model) for data in files.values()]
    for batches in zip(*loaders, strict=True):
        for image, target in together(batches):
            assert_aligned(image, target, smallest=0)


def test_images_with_such_targets_are_not_mixed(files):
    for data in files.values():
        batch = next(data.train.train_batches(Loading(2, workers=0), [Preprocessing((16, 16), *UNIT)]).epoch(0))
        with pytest.raises(UserError, match="these have other targets"):
            Mix(AugmentConfig(mixup=1.0), 3, 0)(batch, 0, 0)


def test_a_long_image_is_cut_with_its_mask():
    image = Image.new("RGB", (1000, 20))
    model = Preprocessing((16, 16), *UNIT)
    target = tv_tensors.Mask(torch.arange(1000).expand(20, -1))
    moved = fit_geometry(image, model).of_target(target, fill=FILL)
    assert moved.shape == (16, 16)
    assert moved[0].tolist() == [490 + int((place + 0.5) * 20 / 16) for place in range(16)]


class Masked(Coordinates):
    def load(self, index):
        image, target = super().load(index)
        return Sample(image, target["mask"])


def test_masks_of_one_shape_are_one_tensor():
    source = Masked(4)
    model = Preprocessing((24, 32), *UNIT)
    (batch,) = source.eval_batches(Loading(4, workers=0), model)
    assert batch.targets.shape == (4, 24, 32)
    assert type(batch.targets) is torch.Tensor
    assert batch.to("meta").targets.device.type == "meta"
    taken = next(source.take([2, 2]).train_batches(Loading(2, workers=0), [model]).epoch(3))
    assert (taken.samples.tolist(), sorted(taken.view.tolist())) == ([2, 2], [6, 7])
    assert not torch.equal(*taken.targets), "each repetition is augmented on its own"


def test_values_are_the_images_alone():
    augment = AugmentConfig(**PLAIN, color_jitter=0.8, erase=1.0, policy="three")
    image, target = Coordinates().load(0)
    pixels, moved = Augmentation(augment, canvas=(HEIGHT, WIDTH), seed=0)(image, target["mask"], epoch=0, index=0)
    assert torch.equal(moved, target["mask"].as_subclass(torch.Tensor))
    assert (pixels == torch.tensor(ERASED)[:, None, None]).all(dim=0).any()


MOVES = {
    "ShearX": (0.9, 0.3), "ShearY": (0.9, -0.4), "TranslateX": (20.0, 11.0), "TranslateY": (9.0, -7.0),
    "Rotate": (135.0, 30.0),
}  # fmt: skip


class Chosen(v2.TrivialAugmentWide):
    """As the policies, but of one transform with one magnitude."""

    def forward(self, image):
        return self._apply_image_or_video_transform(image, *self.chosen, InterpolationMode.BILINEAR, self._fill)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", MOVES)
def test_targets_go_with_whatever_a_policy_does_to_the_pixels(name, sign, monkeypatch):
    """The image shows at each place what its mask and depth have there; boxes are around the corners of their pixels."""
    monkeypatch.setattr(v2.TrivialAugmentWide, "forward", Chosen.forward)
    monkeypatch.setattr(v2.TrivialAugmentWide, "chosen", (name, sign * MOVES[name][1]), raising=False)
    augmentation = Augmentation(AugmentConfig(**PLAIN, policy="trivial"), canvas=(HEIGHT, WIDTH), seed=0)
    image, target = Coordinates().load(0)
    pixels, moved = augmentation(image, target, epoch=0, index=0, fill=FILL)
    mask, depth = moved["mask"], moved["depth"]
    inside = mask != FILL
    assert torch.equal(inside, depth != FILL)
    assert 0.3 < inside.double().mean() < 1
    assert torch.equal(pixels.sum(dim=0) == 0, ~inside) or (pixels.sum(dim=0) == 0)[~inside].double().mean() > 0.95
    for channel, values, side in ((0, mask, WIDTH), (1, depth - 0.25, HEIGHT)):
        off = ((pixels[channel].float() - 25) * (side - 1) / 205 - values)[inside].abs()
        assert off.median() <= 0.6 + side / 205
        assert off.quantile(0.97) <= 1.2 + 2 * side / 205
    for box, label in zip(moved["boxes"], moved["labels"].tolist(), strict=True):
        left, top, right, bottom = BOXES[label]
        own = inside & (mask >= left) & (mask < right) & (depth - 0.25 >= top) & (depth - 0.25 < bottom)
        rows, columns = own.any(dim=1).nonzero()[:, 0], own.any(dim=0).nonzero()[:, 0]
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box[0] <= around[0] + 1.6
        assert box[1] <= around[1] + 1.6
        assert box[2] >= around[2] - 1.6
        assert box[3] >= around[3] - 1.6


@pytest.mark.parametrize("policy", ["rand", "trivial"])
def test_policies_move_targets_through_the_loader(policy):
    """With any draw a pixel of the mask that shows the image's first columns is where the image has its own."""
    source = Coordinates(40)
    augment = AugmentConfig(policy=policy, crop_scale=(0.5, 1.0), flip=0.5)
    loader = source.train_batches(Loading(10, 3, augment, workers=0), [Preprocessing((60, 80), *UNIT)])
    turned, alike = 0, []
    for batch in loader.epoch(0):
        for image, target in zip(batch.images, batch.targets, strict=True):
            mask = target["mask"]
            inside = mask != FILL
            turned += bool((~inside).any())
            # whatever becomes of the colours, they still go along with what the mask has (or against it: inverted)
            shown = image[0].double()[inside]
            if shown.std() > 8:
                alike.append(abs(float(torch.corrcoef(torch.stack([shown, mask.double()[inside]]))[0, 1])))
            assert len(target["boxes"]) == len(target["labels"]) == len(target["parts"])
    assert turned >= 4
    assert np.median(alike) > 0.98


def by_transforms(augment, canvas, image, *key):
    """The augmentation as one composition of torchvision's transforms, as it was before targets moved along."""
    size, bicubic = list(canvas), InterpolationMode.BICUBIC
    ratio = tuple(part * size[1] / size[0] for part in augment.crop_ratio)
    steps = [v2.RandomResizedCrop(size, augment.crop_scale, ratio, bicubic, antialias=True)]
    steps += [v2.RandomCrop(size, padding=augment.pad)] if augment.pad else []
    steps += [v2.RandomHorizontalFlip(augment.flip), v2.RandAugment(interpolation=InterpolationMode.BILINEAR)]
    steps += [v2.ColorJitter(0.3, 0.3, 0.3), v2.PILToTensor(), v2.RandomErasing(0.5, value=ERASED, inplace=True)]
    with seeded("augment", *key):
        return v2.Compose(steps)(image)


@pytest.mark.parametrize("pad", [0, 5])
def test_images_are_bit_for_bit_what_the_transforms_make_of_them(pad):
    augment = AugmentConfig(pad=pad, flip=0.5, policy="rand", color_jitter=0.3, erase=0.5)
    augmentation = Augmentation(augment, canvas=(40, 44), seed=7)
    image = Coordinates().load(0).inputs
    for index in range(40):
        pixels, _ = augmentation(image, epoch=2, index=index)
        assert torch.equal(pixels, by_transforms(augment, (40, 44), image, 7, 2, index))


def test_a_wide_input_gets_wide_crops():
    """Things are stretched by at most ``crop_ratio``, whatever the input's shape."""
    augmentation = Augmentation(AugmentConfig(flip=0, crop_scale=(0.1, 0.4)), canvas=(32, 64), seed=0)
    moves = [augmentation._draw(Image.new("RGB", (400, 200))).moves for _ in range(20)]
    ratios = [(64 / crop.width) / (32 / crop.height) for crop, _ in moves]
    assert min(ratios) > 0.72
    assert max(ratios) < 1.4


def test_boxes_of_other_formats_and_alone():
    boxes = tv_tensors.BoundingBoxes([[30, 40, 20, 20], [90, 90, 4, 4]], format="CXCYWH", canvas_size=(100, 100))
    moved = Geometry((Crop(0, 0, 50, 35),)).of_target(boxes, fill=0)
    assert moved.tolist() == [[20, 30, 35, 50]]


def boxes_of(rows, height=16, width=16):
    return tv_tensors.BoundingBoxes(rows, format="XYXY", canvas_size=(height, width))


def test_a_box_is_cut_at_the_image_before_anything_moves():
    moved = Geometry((Pad(8, 8, 8, 8),)).of_target(boxes_of([[-5, 2, 20, 9]]), fill=0)
    assert moved.tolist() == [[8, 10, 24, 17]]


class OneBox(ImageSource):
    labels = (0,)

    def load(self, index):
        box = tv_tensors.BoundingBoxes([[100.0, 100, 106, 106]], format="XYXY", canvas_size=(640, 640))
        return Sample(Image.new("RGB", (640, 640)), {"boxes": box, "labels": torch.tensor([0])})

    def describe(self, index):
        return "one"


def test_a_box_of_less_than_a_pixel_stays_where_it_is_evaluated_and_goes_where_it_is_trained():
    small = Preprocessing((64, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), geometry="squash")
    (batch,) = OneBox().eval_batches(Loading(1, workers=0), small)
    assert batch.targets[0]["boxes"].tolist() == [pytest.approx([10, 10, 10.6, 10.6])]
    whole = AugmentConfig(crop_scale=(1, 1), flip=0)
    (batch,) = OneBox().train_batches(Loading(1, workers=0, augment=whole), [small]).epoch(0)
    assert len(batch.targets[0]["boxes"]) == len(batch.targets[0]["labels"]) == 0


def test_rows_beside_boxes_go_with_them_and_the_image_s_own_stay():
    """The first of two boxes lies outside of the crop."""
    target = {
        "size": tv_tensors.Mask(torch.ones(1, 16, 16)),
        "image_id": torch.tensor([7, 8]),
        "things": {
            "boxes": boxes_of([[9, 9, 15, 15], [1, 1, 6, 6]]),
            "labels": torch.tensor([3, 4]),
            "names": ["out", "in"],
            "areas": np.array([36.0, 25.0]),
            "parts": tv_tensors.Mask(torch.arange(2)[:, None, None].expand(2, 16, 16)),
            "depth": tv_tensors.Image(torch.zeros(2, 16, 16)),
            "mask": tv_tensors.Mask(torch.zeros(2, 16, dtype=torch.int64)),
            "caption": "ab",
        },
    }
    moved = Geometry((Crop(0, 0, 8, 8),)).of_target(target, fill=FILL)
    things = moved["things"]
    assert moved["image_id"].tolist() == [7, 8]
    assert moved["size"].shape == (1, 8, 8)
    assert things["boxes"].tolist() == [[1, 1, 6, 6]]
    assert (things["labels"].tolist(), things["names"], things["areas"].tolist()) == ([4], ["in"], [25])
    assert things["parts"].unique().tolist() == [1]
    assert (things["depth"].shape, things["mask"].shape, things["caption"]) == ((2, 8, 8), (2, 8), "ab")


@pytest.mark.parametrize("other", [torch.tensor([7]), ["a", "b", "c"], tv_tensors.Mask(torch.ones(1, 16, 16))])
def test_other_numbers_of_rows_beside_boxes_are_refused(other):
    target = {"boxes": boxes_of([[1, 1, 6, 6], [2, 2, 9, 9]]), "other": other}
    with pytest.raises(UserError, match=rf"2 'boxes', and {len(other)} rows of 'other'"):
        Geometry(()).of_target(target, fill=FILL)


@pytest.mark.parametrize(
    ("dtype", "fill", "kept"),
    [
        (torch.uint8, -1, torch.int64),
        (torch.bool, -1, torch.int64),
        (torch.uint8, 255, torch.uint8),
        (torch.bool, 0, torch.bool),
        (torch.int8, 255, torch.int64),
        (torch.int64, float("nan"), torch.float32),
        (torch.float32, float("nan"), torch.float32),
    ],
)
def test_masks_have_a_type_that_borders_fit_in(dtype, fill, kept):
    mask = tv_tensors.Mask(torch.ones(2, 2).to(dtype))
    padded, same = (Geometry(moves).of_target(mask, fill=fill) for moves in ((Pad(1, 0, 0, 0),), ()))
    assert padded.dtype == same.dtype == kept
    expected = torch.tensor([[fill, 1, 1]] * 2, dtype=torch.float64)
    assert torch.equal(padded.double().nan_to_num(9), expected.nan_to_num(9))


def test_another_mask_is_noticed():
    """What a run has learnt from is known by its targets too."""

    class Other(Masked):
        def load(self, index):
            image, mask = super().load(index)
            return Sample(image, mask + 1 if index == 2 else mask)

    data = SimpleNamespace(facts=SimpleNamespace(class_names=("any",)))
    assert digest_of(Masked(4), data) == digest_of(Masked(4), data)
    assert digest_of(Masked(4), data) != digest_of(Other(4), data)
    assert digest_of(Masked(4).take([0, 1]), data) == digest_of(Other(4).take([0, 1]), data)
