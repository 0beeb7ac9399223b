"""JPEG files decoded at a part of their size: where pixels lie, what is the same, and that targets go along."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torchvision import tv_tensors

from kdcli.base.facts import UNLABELLED, Preprocessing
from kdcli.config.data import AugmentConfig
from kdcli.data import EvalLoader, Loading, TrainLoader
from kdcli.data.images.decode import UnreadableImage, decode_image
from kdcli.data.images.geometry import Crop, Flip, Geometry, Resize
from kdcli.data.images.photo import Photo, open_image, reduction
from kdcli.data.images.sources import DenseSource, FileSource

UNIT = ((0.0,) * 3, (1.0,) * 3)


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of slow waves, of which a small one is as good as a large one, and different in every corner."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin((seed + 1 + k) * (x / width + (k + 1) * y / height) * 2.5) for k in range(3)]
    return Image.fromarray(np.uint8(np.stack(waves, axis=-1) * 100 + 128))


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("ratios", "factor"), [((3.9, 9), 1), ((4, 4), 2), ((7.9, 20), 2), ((8, 8), 4), ((50, 16), 8)])
def test_twice_the_needed_size_is_left(ratios: tuple[float, float], factor: int) -> None:
    assert reduction(*ratios) == factor


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_photo_is_upright_and_as_large_as_said(orientation: int, factor: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = jpeg(smooth(101, 83), exif=exif)
    whole = decode_image(content)
    photo = open_image(content)
    assert isinstance(photo, Photo)
    assert photo.size == whole.size == (photo.width, photo.height)
    found = photo.decode(factor)
    assert found.size == (-(-whole.width // factor), -(-whole.height // factor))
    assert found.mode == "RGB"
    if factor == 1:
        assert found.tobytes() == whole.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("crop", [None, Crop(301, 203, 402, 511), Crop(0, 0, 400, 400), Crop(531, 436, 402, 411)])
def test_reduced_pixels_lie_where_the_whole_images_do(orientation: int, crop: Crop | None) -> None:
    """At sides that no factor divides: an error of a pixel of the reduced image would be ten times the bound."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    upright = smooth(847, 933)
    for kind in range(1, 9):  # the file whose orientation makes it upright again
        stored = ImageOps.exif_transpose(_with_orientation(upright, kind))
        candidate = jpeg(stored, exif=exif)
        found = decode_image(candidate)
        if found.size == upright.size and np.abs(np.asarray(found, float) - np.asarray(upright)).mean() < 3:
            break
    else:
        raise AssertionError("no file of this orientation is the upright image")
    moves = ((crop,) if crop else ()) + (Resize(24, 20), Flip())
    whole = Geometry(moves).of_image(decode_image(candidate), resize=lambda i, h, w: i.resize((w, h), Image.BICUBIC))
    photo = open_image(candidate)
    assert isinstance(photo, Photo)
    shown, left = photo.begin(Geometry(moves), Image.Resampling.BICUBIC)
    assert shown.size == (20, 24)
    assert left.moves == (Flip(),)
    moved = left.of_image(shown, resize=lambda i, h, w: i)
    difference = np.abs(np.asarray(moved, float) - np.asarray(whole, float))
    assert difference.mean() < 0.6
    assert difference.max() <= 4


def _with_orientation(image: Image.Image, kind: int) -> Image.Image:
    copy = image.copy()
    copy.getexif()[ExifTags.Base.Orientation] = kind
    return copy


@pytest.mark.parametrize(
    "moves",
    [(Resize(300, 250),), (Crop(0, 0, 500, 500),), (Crop(5, 5, 90, 90), Resize(24, 24)), (Flip(), Resize(9, 9))],
)
def test_where_nothing_is_saved_the_whole_image_is_moved(moves: tuple[Crop | Resize | Flip, ...]) -> None:
    content = jpeg(smooth(600, 700))
    photo = open_image(content)
    assert isinstance(photo, Photo)
    shown, left = photo.begin(Geometry(moves), Image.Resampling.BICUBIC)
    assert left == Geometry(moves)
    assert shown.tobytes() == decode_image(content).tobytes()


def test_nearest_pixels_are_those_of_the_whole() -> None:
    photo = open_image(jpeg(smooth(600, 700)))
    assert isinstance(photo, Photo)
    assert photo.begin(Geometry((Resize(10, 10),)), Image.Resampling.NEAREST)[0].size == (600, 700)


def test_other_files_are_decoded_at_once(tmp_path: Path) -> None:
    for mode in ("L", "CMYK"):  # JPEG files of other colours
        photo = open_image(jpeg(smooth(640, 480).convert(mode)))
        assert isinstance(photo, Photo)
        assert photo.decode(4).mode == "RGB"
    smooth(64, 48).save(tmp_path / "a.png")
    found = open_image(str(tmp_path / "a.png"))
    assert isinstance(found, Image.Image)
    assert found.tobytes() == smooth(64, 48).tobytes()
    with pytest.raises(UnreadableImage, match=r"gone\.jpg"):
        open_image(str(tmp_path / "gone.jpg"))
    content = jpeg(smooth(640, 480))
    with pytest.raises(UnreadableImage, match=r"half"):
        open_image(content[: len(content) // 2], name="half").decode(2)  # type: ignore[union-attr]
    with pytest.raises(UnreadableImage, match=r"cut"):
        open_image(content[:30], name="cut")


class _Marks:
    """A box and a mask on the same rectangle of every image; stands in for any dense targets."""

    fill, in_memory = float(UNLABELLED), True

    def __init__(self, number: int) -> None:
        self.labels = (0,) * number

    def load(self, index: int, size: tuple[int, int], name: str) -> dict[str, object]:
        width, height = size
        mask = torch.zeros(height, width, dtype=torch.uint8)
        mask[height // 4 : height // 2, width // 4 : width // 2] = 1
        box = torch.tensor([[width // 4, height // 4, width // 2, height // 2]], dtype=torch.float32)
        whole = {"boxes": tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=(height, width))}  # type: ignore[call-overload]
        return {"mask": {"mask": tv_tensors.Mask(mask)}, "things": whole}

    def content(self, index: int) -> None:
        return None

    def size(self, index: int) -> int:
        return 0


@pytest.fixture
def photos(tmp_path: Path) -> FileSource:
    paths = []
    for number in range(5):
        image = smooth(613, 509, seed=number)
        if number == 3:  # small: read as a whole
            image = image.resize((37, 41))
        marked = np.asarray(image) // 2
        height, width = marked.shape[:2]
        marked[height // 4 : height // 2, width // 4 : width // 2] = 255
        paths.append(str(tmp_path / f"{number}.jpg"))
        Image.fromarray(marked).save(paths[-1], quality=95)
    return FileSource(paths, [0, 1, 0, 1, 0])


@pytest.mark.parametrize("kernels", ["pillow", "torchvision"])
def test_masks_and_boxes_lie_on_what_they_are_of(photos: FileSource, kernels: str) -> None:
    source = DenseSource(photos, _Marks(5))
    model = Preprocessing((40, 32), *UNIT, resize=(40, 32), geometry="squash", kernels=kernels)  # type: ignore[arg-type]
    augment = AugmentConfig(crop_scale=(0.6, 1.0))
    loading = {flag: Loading(5, 3, augment, workers=0, strict=True, reduced=flag) for flag in (True, False)}
    for make in (
        lambda flag: next(TrainLoader(source, loading[flag], canvas=(40, 32)).epoch(0)),
        lambda flag: next(iter(EvalLoader(source, loading[flag], preprocessing=model))),
    ):
        reduced, whole = make(True), make(False)
        assert not torch.equal(reduced.images, whole.images)
        for image, plain, target, other in zip(
            reduced.images, whole.images, reduced.targets, whole.targets, strict=True
        ):
            assert torch.equal(target["mask"]["mask"], other["mask"]["mask"])
            assert torch.equal(target["things"]["boxes"], other["things"]["boxes"])
            white = image.amin(dim=0) > 170  # halfway between the marked rectangle and its surroundings
            mask = target["mask"]["mask"] == 1
            assert (white ^ mask).sum() <= 0.15 * mask.sum()  # the border of the rectangle lies within pixels
            assert (image.int() - plain.int()).abs().float().mean() < 1.5


def test_reduced_batches_do_not_depend_on_workers(photos: FileSource) -> None:
    for loader in (
        lambda workers: TrainLoader(photos, Loading(2, 7, workers=workers, reduced=True), canvas=(24, 24)).epoch(1),
        lambda workers: EvalLoader(
            photos, Loading(2, workers=workers, reduced=True), preprocessing=Preprocessing((24, 24), *UNIT)
        ),
    ):
        for one, other in zip(loader(0), loader(2), strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.samples, other.samples)


def test_a_photo_that_breaks_off_is_left_out_or_replaced(photos: FileSource) -> None:
    path = Path(photos.paths[1])
    path.write_bytes(path.read_bytes()[:3000])
    (batch,) = TrainLoader(photos, Loading(5, workers=0, reduced=True), canvas=(24, 24)).epoch(0)
    assert batch.skipped == [str(path)]
    assert sorted(batch.samples.tolist()) == [0, 2, 2, 3, 4]
    preprocessing = Preprocessing((24, 24), *UNIT)
    (batch,) = EvalLoader(photos, Loading(5, workers=0, reduced=True), preprocessing=preprocessing)
    assert batch.samples.tolist() == [0, 2, 3, 4]
