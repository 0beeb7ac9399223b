"""Every form of data with masks, depth and boxes is recognised and read; what doesn't fit is refused, with its name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, Preprocessing
from kdcli.config.data import AugmentConfig, DataConfig
from kdcli.data import Loading, open_dense
from kdcli.data.fingerprint import find_changes, fingerprint
from kdcli.data.images.dense.classes import read_palette
from tests.data import dense_forms as forms
from tests.data.dense_forms import BOXES, CLASSES, SIZE, mask, masks, metres, picture, save

MODELS = [Preprocessing((16, 24), (0.5,) * 3, (0.5,) * 3), Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)]


def open_(path, target, **options):
    return open_dense(DataConfig(name=str(path), **options), target, seed=0)


def notes(data):
    return "\n".join(data.facts.notes)


def refusal(path, target, **options):
    with pytest.raises(UserError) as caught:
        open_(path, target, **options)
    assert caught.value.hint
    return str(caught.value)


def read_all(data):
    """Every sample of every split, and a batch of each kind."""
    for source in filter(None, (data.train, data.validation, data.test)):
        for index in range(len(source)):
            source.load(index)
    for batch in data.train.train_batches(Loading(2, workers=0), MODELS).epoch(0):
        return batch
    raise AssertionError


def classes_of(values):
    """The class of each pixel of the masks in ``dense_forms``."""
    return np.where(values == 255, UNLABELLED, values.astype(np.int64))


MASKS = {
    "folders": (lambda root: masks(root), {}, "Form: folders images/ and masks/."),
    "split folders": (lambda root: masks(root, splits=("train", "val", "test")), {}, "folders train, val, test"),
    "folders of splits inside": (lambda root: inside(root), {}, "the folders training, validation in both"),
    "names with words": (lambda root: with_words(root), {}, "Form: folders images/ and masks/."),
    "arrays": (lambda root: masks(root, suffix=".npy"), {}, "Form: folders"),
    "pascal voc": (lambda root: forms.voc_masks(root), {}, "Form: Pascal VOC (JPEGImages/ and SegmentationClass/)."),
    "csv": (lambda root: forms.csv_of(root, "mask"), {}, "Splits: the column split."),
    "csv in a folder": (lambda root: forms.csv_of(root, "mask").parent, {}, "Form: list of files (list.csv)."),
    "csv without names": (
        lambda root: forms.csv_of(root, "mask", header=False, split=False), {}, "images from image, pixels from mask"
    ),
    "table": (lambda root: forms.table(root / "t.parquet", "pixels"), {}, "images from image, pixels from mask"),
}  # fmt: skip


def inside(root):
    masks(root, splits=("training", "validation"))
    for split in ("training", "validation"):
        for kind in ("images", "masks"):
            (root / "all" / kind).mkdir(parents=True, exist_ok=True)
            (root / split / kind).rename(root / "all" / kind / split)
        (root / split).rmdir()
    return root / "all"


def with_words(root):
    for number in range(9):
        save(root / "images" / f"rgb_{number:05}.jpg", picture(number))
        save(root / "masks" / f"{number:05}_mask.png", mask(number))
    return root


@pytest.mark.parametrize("form", MASKS)
def test_masks(tmp_path, form):
    make, options, note = MASKS[form]
    data = open_(make(tmp_path), "pixels", **options)
    assert note in notes(data)
    assert data.facts.class_names == ("0", "1", "2")
    assert data.facts.label_kind == "pixels"
    assert "255 is not labelled" in notes(data)
    image, target = data.validation.load(0)
    assert image.size == SIZE
    assert target.dtype == torch.int64
    expected = [classes_of(mask(number)) for number in range(3)]
    assert any(np.array_equal(target.numpy(), values) for values in expected)
    batch = read_all(data)
    assert batch.targets.shape == (2, 16, 24)
    assert batch.targets.dtype == torch.int64
    assert batch.targets.min() >= UNLABELLED


DEPTHS = {
    "png": (lambda root: forms.depth(root), {"depth_scale": 1000}, "1000 to a metre, as data.depth_scale says"),
    "npy": (lambda root: forms.depth(root, suffix=".npy", scale=1), {}, "values are metres, as they are floats"),
    "npz": (lambda root: forms.depth(root, suffix=".npz", scale=1), {}, "as they are floats"),
    "tiff": (lambda root: forms.depth(root, suffix=".tiff", scale=1), {}, "as they are floats"),
    "floats of another unit": (
        lambda root: forms.depth(root, suffix=".npy", scale=100),
        {"depth_scale": 100},
        "100 to",
    ),
    "nyu": (lambda root: forms.nyu(root), {}, "1000 to a metre, as of NYUv2"),
    "nyu, csv": (lambda root: forms.nyu_csv(root), {}, "In files of 8 bits 25.5 are a metre"),
    "csv": (lambda root: forms.csv_of(root, "depth"), {"depth_scale": 256}, "256 to a metre"),
    "table": (lambda root: forms.table(root / "t.parquet", "depth"), {}, "depth from depth_map"),
}


@pytest.mark.parametrize("form", DEPTHS)
def test_depth(tmp_path, form):
    make, options, note = DEPTHS[form]
    data = open_(make(tmp_path), "depth", **options)
    assert note in notes(data)
    assert "mostly from 1" in notes(data)
    assert data.facts.class_names == ("depth",)
    for source in filter(None, (data.train, data.validation, data.test)):
        target = source.load(0).target
        assert target.dtype == torch.float32
        assert (target[:, -1] == 0).all()
        off = min(np.abs(target.numpy() - metres(number)).max() for number in range(120))
        assert off < (0.04 if form == "nyu, csv" else 0.01)
    batch = read_all(data)
    assert batch.targets.shape == (2, 16, 24)
    assert batch.targets.dtype == torch.float32


def test_depth_that_is_not_measured(tmp_path):
    values = np.full((16, 24), 2.0, np.float32)
    values[0, :6] = [np.nan, np.inf, -1.0, 65.535, 0.0, 12.0]
    forms.images_and(tmp_path, "depth", lambda number: values, suffix=".npy")
    target = open_(tmp_path, "depth", invalid_depth=65.535, max_depth=100).train.load(0).target
    assert target[0, :6].tolist() == [0, 0, 0, 0, 0, 12]
    data = open_(tmp_path, "depth")
    assert data.train.load(0).target[0, :6].tolist() == [0, 0, 0, 0, 0, 0], "beyond 10 metres, which is the default"
    assert "are beyond data.min_depth or data.max_depth" in notes(data)


BOXED = {
    "coco": (lambda root: forms.coco(root), "Form: COCO json (annotations/instances_train2017.json", {"crowd"}),
    "coco file": (lambda root: forms.coco(root) / "annotations/instances_train2017.json", "Form: COCO json", {"crowd"}),
    "yolo": (lambda root: forms.yolo(root), "Form: YOLO text files by data.yaml.", set()),
    "yolo file": (lambda root: forms.yolo(root) / "data.yaml", "Form: YOLO text files by data.yaml.", set()),
    "yolo without yaml": (lambda root: named(forms.yolo(root, yaml="")), "Form: YOLO text files.", set()),
    "pascal voc": (lambda root: forms.voc(root), "train.txt, val.txt, test.txt", {"difficult"}),
    "pascal voc in a kit": (
        lambda root: forms.voc(root / "VOCdevkit" / "VOC2012") and root,
        "train.txt",
        {"difficult"},
    ),
    "pascal voc without lists": (lambda root: forms.voc(root, lists=False), "no lists in ImageSets", {"difficult"}),
    "xml beside images": (lambda root: beside(root), "xml files beside the images", {"difficult"}),
    "jsonl": (lambda root: forms.jsonl_boxes(root), "Boxes are xywh in pixels.", set()),
    "jsonl, corners": (lambda root: named_lines(root), "Boxes are xyxy in pixels.", set()),
    "csv": (lambda root: forms.csv_boxes(root), "Boxes are xyxy in pixels.", set()),
    "table": (lambda root: forms.table(root / "t.parquet", "boxes"), "boxes from objects", set()),
}


def named(root):
    save(root / "classes.txt", "cell\ndot\n")
    return root


def named_lines(root):
    return forms.jsonl_boxes(root, key="boxes")


def beside(root):
    forms.voc(root / "all", lists=False)
    for split, chosen in (("train", forms.names()[:6]), ("valid", forms.names()[6:])):
        (root / "set" / split).mkdir(parents=True)
        for name in chosen:
            shutil.copy(root / "all/JPEGImages" / f"{name}.jpg", root / "set" / split)
            shutil.copy(root / "all/Annotations" / f"{name}.xml", root / "set" / split)
    return root / "set"


@pytest.mark.parametrize("form", BOXED)
def test_boxes(tmp_path, form):
    make, note, flags = BOXED[form]
    options = {"class_names": list(CLASSES)} if form == "jsonl, corners" else {}
    data = open_(make(tmp_path), "boxes", **options)
    assert note in notes(data)
    assert data.facts.class_names == CLASSES
    assert data.facts.label_kind == "boxes"
    empty = 0
    for source in filter(None, (data.train, data.validation, data.test)):
        for index in range(len(source)):
            image, target = source.load(index)
            assert image.size == SIZE
            assert set(target) == {"boxes", "labels", *flags}
            order = target["labels"].argsort()
            labels = target["labels"][order].tolist()
            corners = target["boxes"][order].tolist()
            empty += not labels
            if labels:
                assert dict(zip(labels, corners, strict=True)) == {
                    label: pytest.approx(list(map(float, box)), abs=1e-4) for label, box in _expected(form).items()
                }
                for flag in flags:
                    assert target[flag].dtype == torch.bool
                    assert target[flag][order].tolist() == [False, True] if flag == "difficult" else [True, False]
    assert empty == (0 if form == "csv" else 2 if form in ("coco", *(name for name in BOXED if "yolo" in name)) else 1)
    batch = read_all(data)
    assert isinstance(batch.targets, list)
    assert all(target["boxes"].shape[1:] == (4,) for target in batch.targets)


def _expected(form):
    # COCO's categories are numbered 7 and 3: the second box is of the class with the smaller id.
    return {0: BOXES[1], 1: BOXES[0]} if form.startswith("coco") else {0: BOXES[0], 1: BOXES[1]}


def test_cityscapes(tmp_path):
    for kind in ("labelIds", "labelTrainIds"):
        data = open_(forms.cityscapes(tmp_path / kind, kind=kind), "pixels")
        assert len(data.facts.class_names) == 19
        assert f"Form: Cityscapes (gtFine, {kind})." in notes(data)
        assert "masks of Cityscapes' test images are not public" in notes(data)
        assert (len(data.train), len(data.validation), data.test) == (6, 3, None)
        target = data.train.load(0).target.numpy()
        expected = np.vectorize({0: 0, 1: 13, 2: UNLABELLED, 255: UNLABELLED}.get)(mask(0))
        assert np.array_equal(target, expected)
        read_all(data)
    assert "data.ignore_label" in refusal(tmp_path / "labelIds", "pixels", ignore_label=3)


def test_scenes_are_held_out_as_a_whole(tmp_path):
    data = open_(forms.nyu(tmp_path), "depth")
    assert "by whole folders of images" in notes(data)
    scenes = [
        {source.describe(index).split("kitchen_")[1][:4] for index in range(len(source))}
        for source in (data.train, data.validation, data.test)
    ]
    assert not scenes[0] & scenes[1]
    assert scenes[2] == {"0005"}


def test_names_and_values_that_are_ignored(tmp_path):
    """Names are beside the data or given; what is ignored is no class."""
    masks(tmp_path)
    save(tmp_path / "classes.txt", "sky\nland\nvoid\n")
    data = open_(tmp_path, "pixels")
    assert data.facts.class_names == ("sky", "land", "void")
    data = open_(tmp_path, "pixels", ignore_label=[2, 255])
    assert data.facts.class_names == ("sky", "land")
    assert "Not labelled, and so no class: void (2)." in notes(data)
    assert data.train.load(0).target[:, 0].tolist() == [UNLABELLED] * 16
    data = open_(tmp_path, "pixels", ignore_label=[0, 255], class_names=["land", "edge"])
    assert data.facts.class_names == ("land", "edge"), "the names of the values 1 and 2, as ADE20K's are from 1 on"
    assert data.train.load(0).target[:, 0].tolist() == [1] * 16
    save(tmp_path / "names.json", json.dumps({"0": "a", "1": "b", "2": "c"}))
    assert open_(tmp_path, "pixels", class_names=str(tmp_path / "names.json")).facts.class_names == ("a", "b", "c")
    assert "there is no file" in refusal(tmp_path, "pixels", class_names="nowhere.txt")
    assert "twice" in refusal(tmp_path, "pixels", class_names=["a", "a"])


def test_no_value_need_be_ignored(tmp_path):
    """255 is a class of many, or of few whose names are known; else it would make 256 classes of two or three."""
    masks(tmp_path)
    assert "255 would be a class" in refusal(tmp_path, "pixels", ignore_label=[])
    assert "ignore_label=[2, 255]" in refusal(tmp_path, "pixels", ignore_label=2)
    names = [f"c{value}" for value in range(256)]
    data = open_(tmp_path, "pixels", ignore_label=[], class_names=names)
    assert data.facts.class_names == tuple(names)
    assert "Every value of the masks is a class." in notes(data)
    assert min(int(data.train.load(index).target.min()) for index in range(len(data.train))) == 0


@pytest.mark.parametrize("target", ["pixels", "boxes"])
def test_a_list_that_names_an_image_twice(tmp_path, target):
    path = forms.csv_of(tmp_path, "mask") if target == "pixels" else forms.jsonl_boxes(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[2]]))
    assert "once more" in refusal(path, target)


def test_masks_of_colours(tmp_path):
    colours = {0: (0, 0, 0), 1: (250, 250, 0), 2: (0, 0, 90), 255: (255, 255, 255)}

    def paint(number):
        return np.array([[colours[value] for value in row] for row in mask(number).tolist()], np.uint8)

    forms.images_and(tmp_path, "masks", paint)
    assert "picture in colours" in refusal(tmp_path, "pixels")
    palette = tmp_path / "palette.txt"
    palette.write_text("# colours\n0 0 0 sky\n250 250 0 land\n0,0,90,sea\nignore 255 255 255\n")
    data = open_(tmp_path, "pixels", palette=str(palette))
    assert data.facts.class_names == ("sky", "land", "sea")
    assert any(np.array_equal(data.train.load(0).target.numpy(), classes_of(mask(number))) for number in range(3))
    save(tmp_path / "masks" / "s000.png", paint(0) + 1)
    told = refusal(tmp_path, "pixels", palette=str(palette))  # before anything is trained: the plan reads some masks
    assert "s000.png has colours that are not in data.palette" in told
    palette.write_text("0 0 sky\n")
    with pytest.raises(UserError, match="line 1 is no colour"):
        read_palette(palette)


def test_grey_masks_of_few_bits_and_of_black_and_white(tmp_path):
    masks(tmp_path)
    four = Image.fromarray((mask(0) % 3).astype(np.uint8)).convert("P")
    four.putpalette([0, 0, 0, 90, 0, 0, 0, 90, 0])
    four.save(tmp_path / "masks" / "s000.png", bits=4)
    data = open_(tmp_path, "pixels")
    read_all(data)
    for file in (tmp_path / "masks").iterdir():
        save(file, np.where(mask(0) == 1, 255, 0).astype(np.uint8))
    assert "0 and 255 alone" in refusal(tmp_path, "pixels")
    save(tmp_path / "palette.txt", "0 0 0 background\n255 255 255 thing\n")
    data = open_(tmp_path, "pixels", palette=str(tmp_path / "palette.txt"))
    assert set(data.train.load(0).target.unique().tolist()) == {0, 1}


BAD = {
    "value beyond the classes": (
        lambda root: save(root / "masks" / "s004.png", mask(0) * 0 + 9), {"class_names": ["a", "b", "c"]},
        r"s004\.png has the value 9, which is no class: these are 0-2, ignored 255",
    ),
    "another size": (
        lambda root: save(root / "masks" / "s004.png", mask(0, (10, 10))), {}, r"s004\.png is 10x10, and its image"
    ),
    "turned": (
        lambda root: save(root / "masks" / "s004.png", mask(0).T), {"class_names": ["a", "b", "c"]},
        r"s004\.png is 16x24, and its image",
    ),
    "jpeg": (lambda root: jpegs(root), {}, "is a JPEG file"),
    "no targets": (lambda root: shutil.rmtree(root / "masks"), {}, "in no form that kdcli knows for masks"),
    "empty folder": (lambda root: emptied(root), {}, "has no files that can be read"),
    "other names": (lambda root: renamed(root), {}, "have a file of the same name"),
    "two for one": (
        lambda root: save(root / "masks" / "s004.tif", mask(4)), {}, r"both belong to the image .*s004\.jpg"
    ),
    "twice a column": (lambda root: None, {"label_column": "mask"}, r"data\.label_column is set"),
    "box format": (lambda root: None, {"box_format": "xyxy"}, r"data\.box_format is set"),
}  # fmt: skip


def jpegs(root):
    for file in (root / "masks").iterdir():
        file.unlink()
    for number in range(9):
        save(root / "masks" / f"s{number:03}.jpg", mask(number))


def emptied(root):
    for file in (root / "masks").iterdir():
        file.unlink()


def renamed(root):
    for file in (root / "masks").iterdir():
        file.rename(file.with_name(f"other{file.name}"))


@pytest.mark.parametrize("kind", BAD)
def test_masks_that_do_not_fit(tmp_path, kind):
    spoil, options, message = BAD[kind]
    masks(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        read_all(open_(tmp_path, "pixels", **options))


def test_values_beyond_the_named_classes_are_told_before_training(tmp_path):
    masks(tmp_path)
    with pytest.raises(UserError, match=r"s000\.png has the value 2, which is no class: these are 0-1, ignored 255"):
        open_(tmp_path, "pixels", class_names=["a", "b"])


@pytest.mark.parametrize(
    ("write", "target", "told"),
    [
        (forms.masks, "depth", "It holds masks: --task semantic-segmentation."),
        (forms.depth, "boxes", "It holds depth: --task depth-estimation."),
        (forms.voc, "pixels", "It holds boxes: --task object-detection."),
    ],
)
def test_data_of_another_task_are_told_of(tmp_path, write, target, told):
    write(tmp_path)
    with pytest.raises(UserError) as error:
        open_(tmp_path, target)
    assert error.value.hint.startswith(told)


def test_images_without_a_mask(tmp_path):
    masks(tmp_path, splits=("train", "val"))
    (tmp_path / "train/masks/s002.png").unlink()
    (tmp_path / "val/masks/s102.png").unlink()
    save(tmp_path / "train/masks/more.png", mask(0))
    data = open_(tmp_path, "pixels")
    assert data.facts.num_labelled == 8
    assert (len(data.train), len(data.validation)) == (9, 8)
    assert "1 of 9 images of the train split has no file that belongs to it" in notes(data)
    assert "1 file of the train split has no image, such as" in notes(data)
    lone = [index for index, label in enumerate(data.train.labels) if label == UNLABELLED]
    assert (data.train.load(*lone).target == UNLABELLED).all()


@pytest.mark.parametrize(("target", "blank"), [("pixels", UNLABELLED), ("depth", 0)])
def test_labels_that_are_withheld_and_images_that_are_added(tmp_path, target, blank):
    root = masks(tmp_path / "a") if target == "pixels" else forms.depth(tmp_path / "a")
    options = {} if target == "pixels" else {"depth_scale": 1000}
    for number in range(3):
        save(tmp_path / "more" / f"{number}.png", picture(90 + number))
    data = open_(root, target, labelled_images=2, unlabelled=tmp_path / "more", **options)
    assert data.facts.num_labelled == 2
    assert data.facts.num_train == len(data.train)
    seen = [bool((data.train.load(index).target != blank).any()) for index in range(len(data.train))]
    assert sum(seen) == 2
    assert seen == [label != UNLABELLED for label in data.train.labels]
    assert read_all(data).targets.shape == (2, 16, 24)
    few = open_(root, target, train_images=3, **options)
    assert len(few.train) == 3
    assert len(few.validation) == len(data.validation)
    assert "Ask for at most" in refusal(root, target, labelled_images=50, **options)


def test_boxes_take_no_unlabelled_images(tmp_path):
    save(tmp_path / "more" / "a.png", picture(1))
    assert "taken to show nothing" in refusal(forms.voc(tmp_path / "voc"), "boxes", unlabelled=tmp_path / "more")


def test_a_broken_mask_is_left_out_or_stops_the_run(tmp_path):
    masks(tmp_path, splits=("train", "val"))
    for file in ("train/masks/s003.png", "val/masks/s103.png"):
        content = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(content[: len(content) // 2])
    data = open_(tmp_path, "pixels")
    loading = Loading(3, workers=0)
    skipped = [name for batch in data.train.train_batches(loading, MODELS).epoch(0) for name in batch.skipped]
    assert skipped == [str(tmp_path / "train/masks/s003.png")]
    batches = list(data.validation.eval_batches(loading, MODELS[0]))
    assert sum(map(len, batches)) == 8
    assert [name for batch in batches for name in batch.skipped] == [str(tmp_path / "val/masks/s103.png")]
    with pytest.raises(UserError, match=r"Unreadable image .*s003\.png"):
        list(data.train.train_batches(Loading(3, strict=True, workers=0), MODELS).epoch(0))


@pytest.mark.parametrize("target", ["pixels", "boxes"])
def test_what_has_changed_is_told(tmp_path, target):
    make, spoiled = {
        "pixels": (lambda root: masks(root, splits=("train", "val")), "train/masks/s003.png"),
        "boxes": (lambda root: forms.voc(root), "Annotations/s03.xml"),
    }[target]
    make(tmp_path)
    before = fingerprint(open_(tmp_path, target))
    assert fingerprint(open_(tmp_path, target)) == before
    if target == "pixels":
        save(tmp_path / spoiled, mask(0) * 0 + 1)
    else:
        save(tmp_path / spoiled, forms.xml([("cell", 0, (1, 1, 5, 5))]))
    (change,) = find_changes(before, fingerprint(open_(tmp_path, target)), splits=("train", "validation"))
    assert len(change.relabelled) == 1
    assert not change.changed
    assert "s003" in change.relabelled[0] if target == "pixels" else "s03" in change.relabelled[0]


BAD_BOXES = {
    "no json": (forms.coco, "annotations/instances_train2017.json", '{"images": [', "couldn't be read"),
    "no images": (forms.coco, "annotations/instances_train2017.json", '{"images": 3, "annotations": []}', "no list of"),
    "no such image": (
        lambda root: forms.coco(root, extra=[{"image_id": 999, "category_id": 3, "bbox": [1, 1, 2, 2]}]), "", "",
        "of an image that is not there: 999",
    ),
    "no such category": (
        lambda root: forms.coco(root, extra=[{"image_id": 10, "category_id": 4, "bbox": [1, 1, 2, 2]}]), "", "",
        "of a category that is not there: 4",
    ),
    "three numbers": (
        lambda root: forms.coco(root, extra=[{"image_id": 10, "category_id": 3, "bbox": [1, 1, 2]}]), "", "",
        "4 are expected",
    ),
    "no bbox": (
        lambda root: forms.coco(root, extra=[{"image_id": 10, "category_id": 3}]), "", "", "it has no 'bbox'"
    ),
    "negative": (
        lambda root: forms.coco(root, extra=[{"image_id": 10, "category_id": 3, "bbox": [5, 5, -2, 2]}]), "", "",
        "ends before it begins",
    ),
    "yolo, pixels": (forms.yolo, "labels/train/train1.txt", "0 12 9 4 4", "beyond 0 and 1"),
    "yolo, words": (forms.yolo, "labels/train/train1.txt", "cell 0.5 0.5 0.1 0.1", "no number of a class"),
    "yolo, too few": (forms.yolo, "labels/train/train1.txt", "0 0.5 0.5 0.1", "3 numbers after the class"),
    "yolo, no class": (forms.yolo, "labels/train/train1.txt", "4 0.5 0.5 0.1 0.1", "A box has the class 4"),
    "yolo, no folder": (forms.yolo, "data.yaml", "train: nowhere\nnames: [a]", "which is not there"),
    "voc, no xml": (forms.voc, "Annotations/s01.xml", "<annotation><object>", "is no xml"),
    "voc, entities": (forms.voc, "Annotations/s01.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a/>', "defines entities"),
    "voc, no corner": (
        forms.voc, "Annotations/s01.xml", "<annotation><object><name>a</name></object></annotation>", "has no corners"
    ),
    "voc, another size": (
        forms.voc, "Annotations/s01.xml", forms.xml([("cell", 0, BOXES[0])], size=(99, 16)), "of an image of 99x16"
    ),
    "voc, two of a name": (
        lambda root: forms.voc(root), "JPEGImages/s01.png", picture(0), r"s01\.\w+ and .*s01\.\w+ are called s01"
    ),
    "voc, two folders": (
        lambda root: forms.voc(root), "JPEGImages/more/s01.jpg", picture(0), "s01.jpg and .*s01.jpg are called s01"
    ),
    "voc, two annotations": (
        lambda root: forms.voc(root), "Annotations/more/s01.xml", forms.xml([]), "s01.xml and .*are called s01"
    ),
    "xml beside two images": (lambda root: beside(root), "set/train/s01.png", picture(0), "are called s01"),
    "yolo, two images": (forms.yolo, "images/train/train1.png", picture(0), "train1.txt belongs to both"),
    "voc, no images": (forms.voc, "ImageSets/Main/train.txt", "a\nb\n", "have an image and a file"),
    "csv, no corner": (
        lambda root: forms.csv_boxes(root).parent, "list.csv", "image,class,xmin,ymin,xmax,ymax\ns00.png,a,1,2,x,4",
        "has no corners",
    ),
    "csv, short row": (forms.csv_boxes, "list.csv", "image,class,xmin,ymin,xmax,ymax\ns00.png,a,1\n", "has 3 cells"),
    "jsonl, numbers": (
        forms.jsonl_boxes, "list.jsonl", '{"image": "s00.png", "boxes": [[1, 2, 3]], "labels": [0]}', "not four numbers"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_BOXES)
def test_boxes_that_do_not_fit(tmp_path, kind):
    make, file, content, message = BAD_BOXES[kind]
    path = make(tmp_path)
    if file:
        save(tmp_path / file, content)
    with pytest.raises(UserError, match=message) as caught:
        read_all(open_(path, "boxes"))
    assert caught.value.hint


def test_rows_whose_boxes_are_called_differently_are_each_read_as_they_say(tmp_path):
    """The last row is of corners, under another name: the others stay left, top, width and height."""
    path = forms.jsonl_boxes(tmp_path)
    *lines, last = path.read_text().splitlines()
    row = json.loads(last)
    row["objects"] = {"boxes": [list(box) for box in BOXES], "category": list(CLASSES)}
    path.write_text("\n".join([*lines, json.dumps(row)]))
    data = open_(path, "boxes")
    assert "Boxes are xywh and xyxy in pixels, each as it is called." in notes(data)
    for source in (data.train, data.validation, data.test):
        for target in (source.load(index).target for index in range(len(source))):
            if len(target["labels"]):
                assert target["boxes"].tolist() == [list(map(float, box)) for box in BOXES]
    asked = open_(path, "boxes", box_format="xyxy")
    assert "Boxes are xyxy in pixels." in notes(asked)


def test_what_cells_say_of_boxes_beside_their_class(tmp_path):
    path = forms.jsonl_boxes(tmp_path)
    text = path.read_text()
    path.write_text(text.replace('"category": ["cell", "dot"]', '"category": ["cell", "dot"], "difficult": [1, 0]'))
    data = open_(path, "boxes")
    targets = [data.train.load(index).target for index in range(len(data.train))]
    found = [target["difficult"].tolist() for target in targets if len(target["labels"])]
    assert found
    assert all(flags == [True, False] for flags in found)
    path.write_text(text.replace('"category": ["cell", "dot"]', '"category": ["cell", "dot"], "iscrowd": [1]'))
    assert "whether it is crowd" in refusal(path, "boxes")


@pytest.mark.parametrize("name", ["a\\u0000.png", "a\\ud800.png"])
def test_names_that_no_file_can_have(tmp_path, name):
    path = forms.jsonl_boxes(tmp_path)
    path.write_text(path.read_text().replace("s03.png", name))
    assert "is no path of a file" in refusal(path, "boxes")


def test_boxes_beyond_their_image_are_told(tmp_path):
    extra = [
        {"image_id": 10, "category_id": 3, "bbox": box} for box in ([20, 10, 30, 30], [90, 90, 5, 5], [3, 3, 0, 4])
    ]
    data = open_(forms.coco(tmp_path, extra=extra), "boxes")
    assert "Boxes thinner than a pixel, or outside of their image: 4 of 26, left out." in notes(data)
    assert "Boxes that go beyond their image: 2 of 26, cut at its borders." in notes(data)
    assert "Boxes: train 11, validation 11." in notes(data)
    assert data.train.load(0).target["boxes"].tolist() == [[20, 10, 24, 16]]


def test_boxes_are_counted_of_the_images_in_use(tmp_path):
    """Of each image two, but of the first one of each split; what is cut or drawn from a split is not counted there."""
    path = forms.jsonl_boxes(tmp_path)
    data = open_(path, "boxes", train_images=3, validation_fraction=0.3)
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    own = {name: [len(part.load(index).target["boxes"]) for index in range(len(part))] for name, part in parts.items()}
    assert len(own["train"]) == 3

    def told(name):
        empty = own[name].count(0)
        return f"{name} {sum(own[name])}" + (f" ({empty} of {len(own[name])} images has none)" if empty else "")

    assert f"Boxes: {', '.join(map(told, own))}." in notes(data)


def test_class_names_give_the_order_of_boxes(tmp_path):
    data = open_(forms.voc(tmp_path), "boxes", class_names=["person", "dot", "cell"])
    assert data.facts.class_names == ("person", "dot", "cell")
    assert data.train.load(1).target["labels"].tolist() == [2, 1]
    assert "has no cell" in refusal(tmp_path, "boxes", class_names=["dot"])


def test_the_unit_of_whole_numbers_is_asked_for(tmp_path):
    forms.depth(tmp_path)
    assert "data.depth_scale" in refusal(tmp_path, "depth")
    assert "No depth counts" in refusal(tmp_path, "depth", depth_scale=1)


def test_other_processes_load_the_same(tmp_path):
    data = open_(masks(tmp_path, count=6), "pixels")
    augment = AugmentConfig(flip=1.0)
    batches = [
        list(data.train.train_batches(Loading(2, 3, augment, workers=workers), MODELS).epoch(1)) for workers in (0, 1)
    ]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
