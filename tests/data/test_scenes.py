"""Scenes by index, whatever they are made of; one photograph with measured depth."""

from __future__ import annotations

import gzip
import itertools
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from kdcli.base.errors import UserError
from kdcli.base.facts import Preprocessing
from kdcli.base.tasks import TASKS
from kdcli.config.data import DataConfig
from kdcli.data.fingerprint import fingerprint
from kdcli.data.images.dense import demos, materials, motorcycle, scenes
from kdcli.data.images.dense.demos import open_dense_demo
from kdcli.data.images.dense.materials import SPLITS, find_materials, read_objects, read_photos
from kdcli.data.images.dense.open import open_dense
from kdcli.data.images.dense.scenes import CAMERA_HEIGHT, LEAST_VISIBLE, SIZE, SceneSource, render
from kdcli.data.images.open import open_data
from kdcli.data.source import Loading

PREPROCESSING = Preprocessing((64, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), geometry="squash")
FIRST = range(12)
ALL_CLOTHES = materials._FASHION_PARTS


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """A folder with files in Fashion-MNIST's format: filled rectangles with a dark hole."""
    folder = tmp_path_factory.mktemp("data") / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 600), ("t10k", 100)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 2:26, 6:22] = rng.integers(100, 256, (count, 1, 1))
        images[:, 10:14, 10:14] = 0
        labels = (np.arange(count) % 10).astype(np.uint8)
        packed, suffix = (gzip.compress, ".gz") if part == "t10k" else (bytes, "")  # both are found
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(packed(bytes(16) + images.tobytes()))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(bytes(8) + labels.tobytes())
    few = {"train": ("train", slice(0, 500)), "validation": ("train", slice(500, 600)), "test": ("t10k", slice(0, 100))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(materials, "_FASHION_PARTS", few)
        yield folder.parents[1]


@pytest.fixture(scope="module", params=["digits and few photographs", "digits", "Fashion-MNIST"])
def made_of(request, fashion):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(materials, "_DEBIAN", fashion / "nothing")
        if request.param == "digits and few photographs":
            patch.setattr(materials, "package_folder", lambda name: None)
        elif materials.package_folder("skimage") is None:
            pytest.skip("without scikit-image")
        yield find_materials(fashion if request.param == "Fashion-MNIST" else None)


def test_it_says_what_was_found(made_of):
    assert made_of.objects in made_of.note
    assert made_of.photos in made_of.note
    assert len(made_of.class_names) == 10
    for split in SPLITS:
        assert set(read_objects(made_of, split)[1]) == set(range(10))


def test_splits_share_no_object_and_no_photograph(made_of):
    seen = {split: {photo.pixels.tobytes() for photo in read_photos(made_of, split)} for split in SPLITS}
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))
    if made_of.objects == "digits":
        pictures = [{picture.tobytes() for picture in read_objects(made_of, split)[0]} for split in SPLITS]
        assert sum(map(len, pictures)) == len(set.union(*pictures))
    if made_of.objects == "Fashion-MNIST":
        parts = [ALL_CLOTHES[split] for split in SPLITS]
        places = [(name, place) for name, part in parts for place in range(*part.indices(60_000))]
        assert len(places) == len(set(places)) == 70_000


def test_strips_of_few_photographs_do_not_overlap():
    ends = sorted(materials._STRIPS.values())
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(ends))


@pytest.mark.parametrize("split", SPLITS)
def test_a_scene_depends_on_split_and_index_alone(made_of, split):
    before = [render(made_of, split, index) for index in FIRST]
    after = [render(pickle.loads(pickle.dumps(made_of)), split, index) for index in reversed(FIRST)][::-1]
    for one, other in zip(before, after, strict=True):
        for name in ("image", "mask", "depth", "boxes", "labels", "depths"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert len({scene.image.tobytes() for scene in before}) == len(before)


def test_boxes_are_those_of_what_is_seen(made_of):
    number = 0
    for index in range(40):
        scene = render(made_of, "train", index)
        for box, label, depth in zip(scene.boxes.astype(int), scene.labels, scene.depths, strict=True):
            # objects of one class at one depth are one object: depths are drawn from a continuum
            own = (scene.mask == label + 1) & (scene.depth == depth)
            rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
            assert tuple(box) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            number += 1
    assert number > 80


def test_the_nearer_hides_the_farther_and_size_follows_depth(made_of):
    """Told from each scene's plan, apart from how it is painted."""
    hidden = 0
    for index in range(30):
        room = scenes._furnish(made_of, "test", index, SIZE)
        scene = render(made_of, "test", index)
        depths = [thing.depth for thing in room.objects]
        assert depths == sorted(depths, reverse=True)
        assert set(np.unique(scene.depth[scene.mask > 0])) <= set(np.array(depths, np.float32))
        nearest = room.objects[-1]
        own = scene.depth == np.float32(nearest.depth)
        alone = scenes._Room(room.horizon, room.wall, room.objects[-1:], room.numbers)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scenes, "_furnish", lambda *args, alone=alone: alone)
            whole = render(made_of, "test", index)
        np.testing.assert_array_equal(own, whole.mask > 0)
        assert (scene.image[own] == whole.image[own]).all(axis=1).mean() > 0.6  # all but its soft edge
        rows = np.flatnonzero(own.any(axis=1))
        assert len(rows) <= SIZE * nearest.height / nearest.depth + 1
        feet = room.horizon + SIZE * CAMERA_HEIGHT / nearest.depth
        assert abs(rows[-1] + 1 - feet) <= 2
        hidden += len(scene.labels) < len(room.objects)
    assert hidden > 0  # some have no box: less than LEAST_VISIBLE is seen
    assert 0 < LEAST_VISIBLE < 1


def test_the_background_recedes(made_of):
    for index in FIRST:
        scene = render(made_of, "validation", index)
        empty = np.where(scene.mask == 0, scene.depth, np.nan)
        rows = np.nanmean(empty[:, (scene.mask == 0).any(axis=0)], axis=1)
        assert np.all(np.diff(rows[np.isfinite(rows)]) < 1e-4)
        assert scene.depth.min() > 1
        assert scene.depth.max() <= scenes.WALL[1]


def test_targets_of_one_sample_fit_together(made_of):
    sources = {kind: SceneSource(made_of, "train", 12, target=kind) for kind in ("pixels", "depth", "boxes", "label")}
    for index in FIRST:
        samples = {kind: pickle.loads(pickle.dumps(source)).load(index) for kind, source in sources.items()}
        scene = render(made_of, "train", index)
        assert {sample.inputs.tobytes() for sample in samples.values()} == {scene.image.tobytes()}
        mask, depth = samples["pixels"].target, samples["depth"].target
        assert (type(mask), mask.dtype, depth.dtype) == (tv_tensors.Mask, torch.int64, torch.float32)
        assert mask.shape == depth.shape == (SIZE, SIZE)
        assert samples["boxes"].target["boxes"].canvas_size == (SIZE, SIZE)
        things = depth[mask > 0]
        assert samples["label"].target == int(mask[depth == things.min()].max()) - 1
        assert set(samples["boxes"].target["labels"].tolist()) <= set((mask[mask > 0] - 1).tolist())


@pytest.mark.parametrize("kind", ["pixels", "depth", "boxes", "label"])
def test_opened_by_name(made_of, kind, monkeypatch):
    monkeypatch.setattr(demos, "find_materials", lambda root: made_of)
    splits = open_dense_demo("scenes", kind)
    assert [len(source) for source in (splits.train, splits.validation, splits.test)] == [2000, 300, 500]
    assert made_of.note in splits.notes
    names = made_of.class_names
    assert splits.class_names == {"pixels": ("background", *names), "depth": ("depth",)}.get(kind, names)
    assert splits.train.fill == (0 if kind == "depth" else -1)


def test_what_scenes_are_made_of_is_in_the_fingerprint(fashion, monkeypatch):
    monkeypatch.setattr(materials, "_DEBIAN", fashion / "nothing")
    few = DataConfig(name="demo:scenes", train_images=20)
    digits = open_data(few, seed=0)
    clothes = open_data(few.model_copy(update={"root": fashion}), seed=0)
    assert digits.facts.class_names != clothes.facts.class_names
    summaries = [fingerprint(data).summary for data in (digits, clothes, open_data(few, seed=0))]
    assert summaries[0] == summaries[2]
    assert summaries[0]["test"] != summaries[1]["test"]
    also = "scenes have masks, depth and boxes too, with --task semantic-segmentation, depth-estimation or object-detection."
    assert any(note.endswith(also) for note in open_data(few, seed=0).facts.notes)


@pytest.mark.parametrize("kind", ["pixels", "depth", "boxes"])
def test_the_door_takes_and_withholds(kind, tmp_path):
    config = DataConfig(name="demo:scenes", train_images=30)
    if kind != "boxes":
        Image.new("RGB", (40, 30)).save(tmp_path / "one.png")
        config = config.model_copy(update={"labelled_images": 10, "unlabelled": tmp_path})
    data = open_dense(config, kind, seed=1)
    assert (data.facts.label_kind, data.facts.num_validation, data.facts.num_test) == (kind, 300, 500)
    assert data.facts.task == next((row.name for row in TASKS.values() if row.target == kind), "")
    assert (data.facts.num_train, data.facts.num_labelled) == ((30, 30) if kind == "boxes" else (31, 10))
    assert any(
        "with other objects or photographs the scenes, and all numbers, differ." in note for note in data.facts.notes
    )
    if kind != "boxes":
        blank = data.train.load(30).target
        assert blank.shape == (30, 40)
        assert blank.unique().tolist() == [data.train.fill]
        nothing = next(i for i, label in enumerate(data.train.labels) if label < 0)
        assert data.train.load(nothing).target.unique().tolist() == [data.train.fill]
    batch = next(iter(data.validation.take([3, 1]).eval_batches(Loading(2, workers=0), PREPROCESSING)))
    assert batch.images.shape == (2, 3, 64, 64)
    assert len(batch.targets) == 2
    assert fingerprint(data).summary == fingerprint(open_dense(config, kind, seed=1)).summary


def test_options_about_files_are_refused():
    with pytest.raises(UserError, match=r"data\.ignore_label and data\.palette are set"):
        open_dense(DataConfig(name="demo:scenes", ignore_label=[3], palette="a.txt"), "pixels", seed=0)
    with pytest.raises(UserError, match="no data set or folder") as raised:
        open_dense(DataConfig(name="scenes"), "boxes", seed=0)
    assert "Did you mean demo:scenes?" in raised.value.hint
    with pytest.raises(UserError, match="no demo:motorcykle") as raised:
        open_dense(DataConfig(name="demo:motorcykle"), "depth", seed=0)
    assert "Did you mean demo:motorcycle" in raised.value.hint


def test_what_is_not_there_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no Fashion-MNIST in"):
        find_materials(tmp_path)
    with pytest.raises(UserError, match="no demo:scene with masks") as raised:
        open_dense_demo("scene", "pixels")
    assert "demo:scenes?" in raised.value.hint
    with pytest.raises(UserError, match="demo:motorcycle has depth, and no classes"):
        open_data(DataConfig(name="demo:motorcycle"), seed=0)
    monkeypatch.setattr(motorcycle, "package_folder", lambda name: None)
    with pytest.raises(UserError, match="not installed") as raised:
        open_dense_demo("motorcycle", "depth")
    assert "pip install" in raised.value.hint


def test_the_photograph_with_measured_depth():
    skimage_data = pytest.importorskip("skimage.data")
    left, _, disparity = skimage_data.stereo_motorcycle()
    splits = open_dense_demo("motorcycle", "depth")
    seen = np.zeros((3, *disparity.shape), bool)
    for number, source in enumerate((splits.train, splits.validation, splits.test)):
        assert source.fill == 0
        for index, (top, left_edge) in enumerate(source._windows):
            image, depth = pickle.loads(pickle.dumps(source)).load(index) if index == 0 else source.load(index)
            part = slice(top, top + 128), slice(left_edge, left_edge + 128)
            seen[number][part] = True
            if index % 40 == 0:
                np.testing.assert_array_equal(np.asarray(image), left[part])
                expected = 994.978 * 193.001 / (disparity[part] + 31.086) / 1000
                known = np.isfinite(disparity[part])
                np.testing.assert_allclose(depth.numpy()[known], expected[known], rtol=1e-6)
                assert not depth.numpy()[~known].any()
    assert seen.any(axis=(1, 2)).all()
    assert seen.sum(axis=0).max() == 1  # no pixel in two splits
    depth = motorcycle.depth_of(disparity)
    assert (depth > 0).mean() == pytest.approx(0.927, abs=1e-3)
