"""Images of one and of four channels: what is read of files, how it is moved, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.base.facts import Preprocessing
from kdcli.config.data import AugmentConfig
from kdcli.config.run import RunConfig
from kdcli.data import EvalLoader, Loading, TrainLoader, fit, open_data, prepare
from kdcli.data.images.augment import Augmentation
from kdcli.data.images.channels import in_channels_of
from kdcli.data.images.decode import UnreadableImage, decode_image, has_four
from kdcli.data.images.sources import ArraySource, Concatenation, FileSource

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (10, 12, 3), dtype=np.uint8)
FOUR = RNG.integers(0, 256, (10, 12, 4), dtype=np.uint8)
GREY = RNG.integers(0, 256, (10, 12), dtype=np.uint8)


def plain(channels: int, size: tuple[int, int] = (8, 8), **options: str) -> Preprocessing:
    return Preprocessing(size, (0.0,) * channels, (1.0,) * channels, **options)  # type: ignore[arg-type]


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def luma(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    weighted = colours.astype(np.int64) @ [19595, 38470, 7471]  # ITU-R 601 in 16 bits, as PIL has it
    return ((weighted + 2**15) >> 16).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY), GREY),
        (Image.fromarray(GREY.astype(np.uint16) * 257), GREY),
        (Image.fromarray(COLOURS), luma(COLOURS)),
    ],
    ids=["8 bits", "16 bits", "colours"],
)
def test_greyscale_keeps_its_values_and_colours_become_their_luma(
    image: Image.Image, expected: NDArray[np.uint8]
) -> None:
    found = decode_image(encoded(image), channels=1)
    assert found.mode == "L"
    assert np.array_equal(np.asarray(found), expected)


def tiff_with_a_spare_band(**options: object) -> bytes:
    return encoded(Image.frombytes("RGBX", (12, 10), FOUR.tobytes()), "TIFF", **options)


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(FOUR, "RGBA")),
        encoded(Image.fromarray(FOUR, "RGBA"), "TIFF"),
        tiff_with_a_spare_band(),
        tiff_with_a_spare_band(compression="tiff_lzw"),
        encoded(Image.fromarray(FOUR, "RGBA"), "WEBP", lossless=True, exact=True),
    ],
    ids=["png", "tiff", "spare band", "spare band, packed", "webp"],
)
def test_four_channels_are_those_of_the_file(content: bytes) -> None:
    assert np.array_equal(np.asarray(decode_image(content, channels=4)), FOUR)
    assert has_four(content) == (True, Image.open(io.BytesIO(content)).mode)


def test_less_than_four_channels_are_unreadable() -> None:
    for image in (Image.fromarray(COLOURS), Image.fromarray(GREY), Image.fromarray(FOUR, "CMYK")):
        with pytest.raises(UnreadableImage, match=f"no fourth channel: PIL reads it as {image.mode}"):
            decode_image(encoded(image, "TIFF"), channels=4)
    grey_with_alpha = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())])
    found = np.asarray(decode_image(encoded(grey_with_alpha), channels=4))
    assert np.array_equal(found, np.stack([GREY, GREY, GREY, GREY[::-1]], axis=2))


@pytest.mark.parametrize("kernels", ["pillow", "torchvision"])
@pytest.mark.parametrize("geometry", ["crop", "squash", "border"])
@pytest.mark.parametrize("channels", [1, 4])
def test_each_channel_is_fitted_by_itself(channels: int, geometry: str, kernels: str) -> None:
    whole = decode_image(
        encoded(Image.fromarray(FOUR, "RGBA") if channels == 4 else Image.fromarray(GREY)), channels=channels
    )
    found = np.asarray(fit(whole, plain(channels, geometry=geometry, kernels=kernels))).reshape(8, 8, channels)
    for number in range(channels):
        band = FOUR[..., number] if channels == 4 else GREY
        alone = fit(Image.fromarray(np.stack([band] * 3, axis=2)), plain(3, geometry=geometry, kernels=kernels))
        assert np.array_equal(found[..., number], np.asarray(alone)[..., 0])


def test_a_model_gets_its_channels_normalised() -> None:
    images = torch.from_numpy(FOUR).permute(2, 0, 1)[None]
    wanted = Preprocessing((10, 12), (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8))
    mean, std = torch.tensor(wanted.mean).view(4, 1, 1), torch.tensor(wanted.std).view(4, 1, 1)
    assert torch.allclose(prepare(images, wanted), (images / 255 - mean) / std, atol=1e-6)
    assert wanted.num_channels == 4
    assert wanted.describe().startswith("4 channels, 10x12")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(24):
        place = tmp_path / "images" / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(FOUR, number, axis=0), "RGBA").save(place / f"{number}.png")
    return tmp_path / "images"


def test_loaders_read_what_the_model_wants(folder: Path) -> None:
    source = FileSource(sorted(map(str, folder.rglob("*.png"))), [0] * 24)
    both = Concatenation(source.take([0, 1]), source.take([2]))
    loading = Loading(batch_size=3, workers=0)
    (whole,) = both.eval_batches(loading, plain(4, (10, 12)))
    (grey,) = both.eval_batches(loading, plain(1, (10, 12)))
    (colours,) = both.eval_batches(loading, plain(3, (10, 12)))
    for index in range(3):
        path = source.paths[index]
        assert np.array_equal(whole.images[index].permute(1, 2, 0), np.asarray(Image.open(path)))
        composited = np.asarray(decode_image(path))
        assert np.array_equal(colours.images[index].permute(1, 2, 0), composited)
        assert np.array_equal(grey.images[index, 0], luma(composited))
    assert torch.equal(whole.colours, whole.images[:, :3])  # type: ignore[attr-defined]
    assert grey.colours.shape == colours.images.shape  # type: ignore[attr-defined]
    assert source.channels == both.channels == 3, "the source itself is as it was"


def test_sources_that_know_of_colours_alone_are_read_as_greyscale() -> None:
    source = ArraySource(np.stack([COLOURS] * 2), [0, 1], split="train")
    (batch,) = EvalLoader(source.in_channels(1), Loading(batch_size=2), preprocessing=plain(1, (10, 12)))
    assert np.array_equal(batch.images[0, 0], luma(COLOURS))
    with pytest.raises(UserError, match="None of the images can be read"):
        list(EvalLoader(source.in_channels(4), Loading(batch_size=2), preprocessing=plain(4, (10, 12))))


@pytest.mark.parametrize("channels", [1, 4])
def test_photos_at_a_part_of_their_size_have_the_channels_too(tmp_path: Path, channels: int) -> None:
    Image.fromarray(COLOURS).resize((96, 80)).save(tmp_path / "a.jpg")
    source = FileSource([str(tmp_path / "a.jpg")], [0]).in_channels(channels)
    loader = TrainLoader(
        source, Loading(1, augment=AugmentConfig(crop_scale=(1, 1), flip=0), reduced=True), canvas=(8, 8)
    )
    if channels == 4:
        with pytest.raises(UserError, match="None of the images can be read"):
            next(loader.epoch(0))
        return
    found = next(loader.epoch(0)).images.float()
    (whole,) = source.eval_batches(Loading(1), plain(1, geometry="squash"))
    assert found.shape == (1, 1, 8, 8)
    assert (found - whole.images.float()).abs().mean() < 12, "it is the same picture"


@pytest.mark.parametrize("policy", ["none", "trivial", "rand", "three"])
def test_greyscale_is_augmented_as_grey_colours_are(policy: str) -> None:
    """Whatever is done to colours leaves grey ones grey, and is the same on their single channel."""
    augment = AugmentConfig(policy=policy, color_jitter=0.4)
    one = Augmentation(augment, canvas=(8, 8), seed=3, channels=1)
    three = Augmentation(augment, canvas=(8, 8), seed=3)
    for index in range(30):
        grey, _ = one(Image.fromarray(GREY), epoch=0, index=index)
        colours, _ = three(Image.fromarray(np.stack([GREY] * 3, axis=2)), epoch=0, index=index)
        assert grey.shape == (1, 8, 8)
        assert (grey.int() - colours.int()).abs().max() <= 1


@pytest.mark.parametrize(("channels", "value"), [(1, 115), (3, None), (4, 115)])
def test_what_is_erased_has_the_mean_in_every_channel(channels: int, value: int | None) -> None:
    augment = Augmentation(AugmentConfig(erase=1.0, crop_scale=(1, 1)), canvas=(8, 8), seed=0, channels=channels)
    black = Image.new({1: "L", 3: "RGB", 4: "RGBX"}[channels], (8, 8))
    pixels, _ = augment(black, epoch=0, index=0)
    assert set(pixels.unique().tolist()) == ({0, value} if value else {0, 104, 116, 124})


def config(name: object, **settings: object) -> RunConfig:
    given = {"data": {"name": str(name), "channels": 4}, "teacher": "none", "student": "cifar:resnet8", **settings}
    return RunConfig.model_validate(given)


def test_the_facts_tell_of_the_channels(folder: Path) -> None:
    asked = config(folder)
    data = in_channels_of(asked, open_data(asked.data, seed=0))
    assert data.facts.channels == 4
    assert "all four channels" in data.facts.notes[-1]
    usual = config(folder, data={"name": str(folder)})
    assert in_channels_of(usual, open_data(usual.data, seed=0)).facts.channels == 3


def test_what_has_no_four_channels_is_refused_at_once(folder: Path) -> None:
    asked = config(folder)
    for path in folder.rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
    with pytest.raises(UserError, match=r"have no fourth channel, and data.channels says 4: .*\(RGB\)"):
        in_channels_of(asked, open_data(asked.data, seed=0))
    digits = config("demo:digits")
    with pytest.raises(UserError, match="no images of four channels in files"):
        in_channels_of(digits, open_data(digits.data, seed=0))


@pytest.mark.parametrize("augment", [{"policy": "rand"}, {"color_jitter": 0.4}])
def test_what_is_done_to_colours_is_refused_for_four_channels(folder: Path, augment: dict[str, object]) -> None:
    asked = config(folder, augment=augment)
    with pytest.raises(UserError, match=rf"augment.{next(iter(augment))} is set, and data.channels is 4"):
        in_channels_of(asked, open_data(asked.data, seed=0))
