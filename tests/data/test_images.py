from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcli.data import UnreadableImage, decode_image

GRADIENT = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = np.stack([GRADIENT, GRADIENT.T, 255 - GRADIENT], axis=-1)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_is_unchanged_from_path_bytes_and_image(tmp_path: Path) -> None:
    path = saved(Image.fromarray(COLOUR), tmp_path / "a.png")
    for encoded in (path, str(path), path.read_bytes(), Image.open(path)):
        np.testing.assert_array_equal(pixels(decode_image(encoded)), COLOUR)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "ppm"])
def test_gray_is_repeated_in_every_format(tmp_path: Path, suffix: str) -> None:
    decoded = pixels(decode_image(saved(Image.fromarray(np.full((8, 8), 100, np.uint8)), tmp_path / f"a.{suffix}")))
    assert decoded.shape == (8, 8, 3)
    assert np.abs(decoded.astype(int) - 100).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    """Each orientation by its definition in the EXIF standard: where the 0th row and column of the file belong."""
    upright = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pixels(decode_image(path))[..., 0], upright)


def test_damaged_exif_leaves_the_pixels_readable(tmp_path: Path) -> None:
    path = saved(Image.fromarray(COLOUR), tmp_path / "a.png", exif=b"Exif\x00\x00not a tiff header")
    np.testing.assert_array_equal(pixels(decode_image(path)), COLOUR)


def test_palette_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels(decode_image(saved(image, tmp_path / "a.png"))).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_palette_with_transparency_is_white_there(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    path = saved(image, tmp_path / "a.png", transparency=0)
    assert pixels(decode_image(path)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_gif_with_transparency_takes_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(decode_image(path))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("alpha", "expected"), [(255, 100), (0, 255), (102, 193)])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_composited_on_white(tmp_path: Path, mode: str, alpha: int, expected: int) -> None:
    """100 * a + 255 * (1 - a) with a = alpha / 255: for 102 that is 40 + 153 = 193."""
    colour = (100, alpha) if mode == "LA" else (100, 100, 100, alpha)
    path = saved(Image.new(mode, (2, 2), colour), tmp_path / "a.png")
    assert pixels(decode_image(path))[0, 0].tolist() == [expected] * 3


def test_transparent_colour_of_an_rgb_png(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (9, 9, 9))
    image.putpixel((1, 0), (8, 8, 8))
    path = saved(image, tmp_path / "a.png", transparency=(9, 9, 9))
    assert pixels(decode_image(path)).tolist() == [[[255] * 3, [8] * 3]]


def test_one_bit(tmp_path: Path) -> None:
    bits = Image.fromarray(GRADIENT > 100)
    assert bits.mode == "1"
    expected = np.where(GRADIENT > 100, 255, 0)
    np.testing.assert_array_equal(pixels(decode_image(saved(bits, tmp_path / "a.png")))[..., 1], expected)


def test_cmyk(tmp_path: Path) -> None:
    path = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=100)
    assert np.abs(pixels(decode_image(path))[8, 8].astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    deep = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
    path = saved(Image.fromarray(deep), tmp_path / f"a.{suffix}")
    assert pixels(decode_image(path))[0, :, 2].tolist() == [0, 1, 100, 255]


def test_32_bit_integers(tmp_path: Path) -> None:
    in_16_bits = saved(Image.fromarray(np.array([[0, 25700, 65535]], dtype=np.int32)), tmp_path / "a.tif")
    wider = saved(Image.fromarray(np.array([[-100_000, 0, 100_000]], dtype=np.int32)), tmp_path / "b.tif")
    assert Image.open(wider).mode == "I"
    assert pixels(decode_image(in_16_bits))[0, :, 0].tolist() == [0, 100, 255]
    assert pixels(decode_image(wider))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([0.0, 51.2, 200.0], [0, 51, 200]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([np.nan, 0.2, np.inf], [0, 51, 0]),
        ([-3.0, -3.0, -3.0], [0, 0, 0]),
    ],
)
def test_floats(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    path = saved(Image.fromarray(np.array([values], dtype=np.float32)), tmp_path / "a.tif")
    assert Image.open(path).mode == "F"
    assert pixels(decode_image(path))[0, :, 0].tolist() == expected


def test_an_image_passed_in_is_not_changed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(COLOUR[:4]).save(buffer, "PNG", exif=exif)
    image = Image.open(buffer)
    assert decode_image(image).size == (4, 8)
    assert image.size == (8, 4)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImage, match="a." + suffix) as caught:
        decode_image(path)
    assert caught.value.name == str(path)
    assert caught.value.reason


def test_corrupt_missing_empty_and_no_image(tmp_path: Path) -> None:
    good = saved(Image.fromarray(COLOUR), tmp_path / "a.png").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    for content in (bytes(flipped), b"", b"plain text", good[:30]):
        with pytest.raises(UnreadableImage) as caught:
            decode_image(content, name="row 7")
        assert caught.value.name == "row 7"
    with pytest.raises(UnreadableImage, match=r"missing\.png"):
        decode_image(tmp_path / "missing.png")


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.fromarray(COLOUR), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UnreadableImage, match="DecompressionBomb"):
        decode_image(path)


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "truncated")))
    assert (error.name, error.reason, str(error)) == ("a.jpg", "truncated", "a.jpg: truncated")
