"""Images that are to become others: pairs, two kinds, coloured masks, the demo; what does not go together is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.base.facts import Preprocessing
from kdcli.config.data import AugmentConfig, DataConfig
from kdcli.data import ImageSource, Loading, Sample, open_translation
from kdcli.data.fingerprint import digest_of
from kdcli.data.images.pictures import Picture, as_pixels, as_target
from kdcli.data.images.translation.edges import sobel_edges
from kdcli.data.images.translation.sources import voc_colours
from kdcli.machine.seeding import seeded

TASK = "image-translation"
UNIT = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, geometry="squash")


def write(path, colour, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def opened(root, **settings):
    return open_translation(DataConfig(name=str(root), **settings), TASK, seed=0)


@pytest.fixture
def pairs(tmp_path):
    """Red images whose partners are blue, as bright as they are."""
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for number in range(count):
            value = 20 * number + 10
            write(tmp_path / split / "A" / f"{number}.png", (value, 0, 0))
            write(tmp_path / split / "B" / f"{number}.jpg", (0, 0, value))
    return tmp_path


@pytest.fixture
def kinds(tmp_path):
    """Five red and three blue images to train on, two and four to test."""
    for folder, count in (("trainA", 5), ("trainB", 3), ("testA", 2), ("testB", 4)):
        for number in range(count):
            value = 20 * number + 10
            write(tmp_path / folder / f"{folder}_{number}.png", (value, 0, 0) if folder[-1] == "A" else (0, 0, value))
    return tmp_path


class Coordinates(ImageSource):
    """Red is x, green y; the target is its negative, so it tells where every one of its pixels came from."""

    def __init__(self):
        self.labels = (0,) * 8

    def load(self, index):
        x, y = np.meshgrid(np.linspace(25, 230, 60), np.linspace(25, 230, 40))
        image = Image.fromarray(np.stack([x, y, 0 * x + 99], axis=2).round().astype(np.uint8))
        return Sample(image, Picture(Image.fromarray(255 - np.asarray(image))))

    def describe(self, index):
        return f"[{index}]"


@pytest.mark.parametrize("augment", [{}, {"crop_scale": (1, 1), "pad": 5}, {"flip": 1.0}])
def test_a_target_moves_with_its_image(augment):
    """At every pixel the target is the negative of the image: crops, flips and resizing are the same to a rounding."""
    loading = Loading(8, 0, AugmentConfig(**augment))
    (batch,) = Coordinates().train_batches(loading, [UNIT]).epoch(0)
    inside = batch.images[:, 2] > 90  # a border is black in both
    sums = batch.images.int() + as_pixels(batch.targets).int()
    assert (sums[inside[:, None].expand_as(sums)] - 255).abs().max() <= 1
    assert inside.float().mean() > 0.5
    assert not inside.all() if "pad" in augment else inside.all()
    (batch,) = Coordinates().eval_batches(loading, UNIT)
    assert (batch.images.int() + as_pixels(batch.targets).int() - 255).abs().max() <= 1


def test_pairs_go_together_by_their_names(pairs):
    data = opened(pairs)
    assert data.facts.label_kind == "image"
    assert [len(split) for split in (data.train, data.validation, data.test)] == [6, 2, 2]
    (batch,) = data.train.eval_batches(Loading(6), UNIT)
    assert batch.targets.shape == (6, 3, 16, 16)
    assert batch.targets.dtype == torch.float32
    assert (as_pixels(batch.targets)[:, 2].int() - batch.images[:, 0].int()).abs().max() <= 1  # JPEG's rounding
    assert not batch.images[:, 2].any()
    (batch,) = opened(pairs, direction="b-to-a").train.eval_batches(Loading(6), UNIT)
    assert not as_pixels(batch.targets)[:, 2].any()
    assert digest_of(data.train, data) == digest_of(opened(pairs).train, data) != digest_of(data.test, data)


def test_folders_of_splits_may_lie_within_a_and_b(tmp_path):
    for side in "AB":
        for split in ("train", "test"):
            for number in range(4):
                write(tmp_path / side / split / f"{number}.png", (9, 9, 9))
    data = opened(tmp_path)
    assert len(data.train) + len(data.validation) == 4
    assert len(data.test) == 4


def test_withheld_targets_say_nothing(pairs):
    data = opened(pairs, labelled_images=2)
    (batch,) = data.train.eval_batches(Loading(6), UNIT)
    assert batch.targets.flatten(1).isnan().all(dim=1).sum() == 4
    assert batch.targets.flatten(1).isfinite().all(dim=1).sum() == 2
    assert data.facts.num_labelled == 2


@pytest.mark.parametrize(
    ("change", "settings", "told"),
    [
        (lambda root: (root / "train/B/3.jpg").unlink(), {}, "1 of 6 images in .*A has no image .*: 3.png"),
        (lambda root: write(root / "train/A/9.png", 0), {}, "1 of 7 images in .*: 9.png"),
        (lambda root: write(root / "train/A/2.jpg", 0), {}, "have one name"),
        (
            lambda root: [f.unlink() for f in (root / "val/B").iterdir()] and (root / "val/B").rmdir(),
            {},
            "no B/ beside",
        ),
        (lambda root: write(root / "test/A/0.png", 0, size=(8, 8)), {}, "its image .* is"),
        (lambda root: None, {"kinds": ("a", "b"), "mask_colors": True}, "both set"),
        (lambda root: None, {"pairs": "unpaired", "labelled_images": 2}, "labelled_images is set"),
        (lambda root: None, {"ignore_label": 11}, "ignore_label is set, which is of masks"),
        (lambda root: None, {"image_column": "x"}, "image_column is set"),
    ],
)
def test_what_does_not_go_together_is_refused(pairs, change, settings, told):
    change(pairs)
    with pytest.raises(UserError, match=told):
        opened(pairs, **settings)


def test_two_kinds_are_drawn_anew_each_epoch_and_shown_once_in_evaluation(kinds):
    data = opened(kinds, validation_fraction=0.34)
    facts = data.facts
    assert facts.label_kind == "unpaired"
    assert "test 2 and 4" in " ".join(facts.notes)
    (batch,) = data.test.eval_batches(Loading(4), UNIT)
    assert batch.images[:, 0, 0, 0].tolist() == [10, 30, 10, 30]
    assert batch.view.tolist() == [-1, -1, -2, -2]  # the second time
    assert sorted(as_pixels(batch.targets)[:, 2, 0, 0].tolist()) == [10, 30, 50, 70]
    loader = data.train.train_batches(Loading(len(data.train), 0, AugmentConfig()), [UNIT])

    def partners(epoch):
        (one,) = loader.epoch(epoch)
        return as_pixels(one.targets)[:, 2, 0, 0].tolist()

    drawn = [partners(epoch) for epoch in range(6)]
    assert partners(2) == drawn[2]
    assert len({tuple(one) for one in drawn}) > 1
    assert len({value for one in drawn for value in one}) == 2


def test_where_images_of_the_other_kind_run_out_the_target_says_nothing(kinds):
    data = opened(kinds, direction="b-to-a")
    (batch,) = data.test.eval_batches(Loading(4), UNIT)
    assert batch.targets.flatten(1).isnan().all(dim=1).tolist() == [False, False, True, True]


def test_two_classes_of_labelled_images(tmp_path):
    for name, colour in (("deer", (0, 9, 0)), ("horse", (9, 0, 0)), ("ship", (0, 0, 9))):
        for number in range(20):
            write(tmp_path / name / f"{number}.png", colour)
    data = opened(tmp_path, kinds=("horse", "deer"), train_images=3)
    assert len(data.train) == 3
    (batch,) = data.train.eval_batches(Loading(3), UNIT)
    assert batch.images[:, 0].unique().tolist() == [9]
    assert as_pixels(batch.targets)[:, 1].unique().tolist() == [9]
    with pytest.raises(UserError, match="cat"):
        opened(tmp_path, kinds=("horse", "cat"))


def test_masks_as_pictures():
    config = DataConfig(name="demo:scenes", mask_colors=True, train_images=4)
    data = open_translation(config, TASK, seed=0)
    (batch,) = data.train.take(range(2)).eval_batches(Loading(2), UNIT)
    colours = {tuple(colour) for colour in voc_colours()[:12].tolist()}
    image, target = data.train.load(0)
    assert {tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()} <= colours
    assert batch.targets.std() > 0.1
    other = open_translation(config.model_copy(update={"direction": "b-to-a"}), TASK, seed=0)
    assert np.array_equal(np.asarray(other.train.load(0).inputs), np.asarray(target.image))
    assert voc_colours()[[0, 1, 2, 15, 254, -1]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [96, 224, 192], [255, 255, 255],
    ]  # fmt: skip


class TestDemo:
    def test_is_the_same_each_time_and_its_edges_are_sobel_s(self):
        config = DataConfig(name="demo:scenes-edges", train_images=8)
        data, again = (open_translation(config, TASK, seed=0) for _ in range(2))
        assert digest_of(data.train, data) == digest_of(again.train, again)
        photo, target = data.train.load(3)
        assert np.array_equal(np.asarray(photo), np.asarray(again.train.load(3).inputs))
        assert np.array_equal(np.asarray(target.image)[..., 0], sobel_edges(np.asarray(photo)))
        assert len({np.asarray(data.train.load(i).inputs).tobytes() for i in range(8)}) == 8

    def test_sobel_by_hand(self):
        """A step of 30 from black to grey between two columns: 4 x 30 on both sides of it, of 240 that are white."""
        image = np.zeros((5, 6, 3), np.uint8)
        image[:, 3:] = 30
        assert (sobel_edges(image) == np.array([0, 0, 128, 128, 0, 0])).all()


def test_pixels_of_targets_come_back():
    with seeded("pixels"):
        pixels = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    assert torch.equal(as_pixels(as_target(Image.fromarray(pixels.permute(1, 2, 0).numpy()))), pixels)
