"""Images of more than 8 bits are scaled by one range for the whole set, which the plan and the config say."""

import io
import pickle
import struct
import zlib

import datasets
import numpy as np
import pytest
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.config.data import DataConfig
from kdcli.data import decode_image, open_data, open_unlabelled


def write_set(root, values, suffix="png", dtype=np.uint16):
    """Write for each class and each row of ``values`` eight images of 3x4 pixels, filled with the row's values in turns."""
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for number in range(8):
            row = values[number % len(values)]
            Image.fromarray(np.resize(np.array(row, dtype), (3, 4))).save(root / name / f"{number}.{suffix}")
    return root


def open_(path, **options):
    return open_data(DataConfig(name=str(path), **options), seed=0)


def pixels_by_number(data):
    """Return the first row of each image as it is read, by the number in its file's name, of all splits."""
    found = {}
    for split in (data.train, data.validation, data.test):
        for index in range(len(split)):
            number = int(split.describe(index).rpartition("/")[2].partition(".")[0])
            found[number] = np.asarray(split.load(index).inputs)[0, :, 1].tolist()
    return found


def note(data, start):
    (found,) = [text for text in data.facts.notes if text.startswith(start)]
    return found


@pytest.mark.parametrize(
    ("rows", "suffix", "dtype", "black", "white"),
    [
        ([[0, 900, 400], [0, 4000, 2000]], "png", np.uint16, 0, 4095),
        ([[0, 900, 400], [0, 4000, 2000]], "tif", np.uint16, 0, 4095),
        ([[0, 900, 400], [0, 4000, 2000]], "tif", np.int32, 0, 4095),
        ([[3, 200, 255], [0, 1, 9]], "png", np.uint16, 0, 255),
        ([[0, 1000], [0, 700]], "png", np.uint16, 0, 1023),
        ([[0, 65000], [257, 300]], "png", np.uint16, 0, 65535),
        ([[-1000, 0, 500], [0, 1, 3000]], "tif", np.int32, -1000, 3000),
        ([[0.0, 0.5, 1.0], [0.1, 0.2, 0.3]], "tif", np.float32, 0, 1),
        ([[0.0, 51.0, 200.0], [0.5, 0.7, 1.0]], "tif", np.float32, 0, 255),
        ([[0.0, 500.0], [10.0, 1000.0]], "tif", np.float32, 0, 1000),
    ],
)
def test_one_range_for_the_whole_set(tmp_path, rows, suffix, dtype, black, white):
    data = open_(write_set(tmp_path / "set", rows, suffix, dtype))
    assert data.deep_range == (black, white)
    assert note(data, "Deep images:").startswith(f"Deep images: {black:g} is black, {white:g} is white, as 16 of them")
    for number, seen in pixels_by_number(data).items():
        expected = (np.resize(np.array(rows[number % 2]), 4) - black) * 255 / (white - black)
        assert np.abs(np.array(seen) - expected).max() <= 0.5 + 1e-4


def test_the_range_survives_pickling_and_goes_for_appended_images(tmp_path):
    root = write_set(tmp_path / "set", [[0, 900], [0, 4000]])
    more = write_set(tmp_path / "more", [[0, 450]])
    data = open_(root, unlabelled=str(more))
    again = pickle.loads(pickle.dumps(data.train))
    assert np.asarray(again.load(len(again) - 1).inputs)[0, 1].tolist() == [round(450 * 255 / 4095)] * 3
    for index in range(len(again)):
        assert again.load(index).inputs.tobytes() == data.train.load(index).inputs.tobytes()


def test_an_image_that_goes_beyond_is_scaled_by_the_range_that_holds_both(tmp_path):
    root = write_set(tmp_path / "set", [[0, 4000], [100, 9000]])
    data = open_(root, deep_range=(0, 4095))
    assert "as data.deep_range says" in note(data, "Deep images:")
    found = pixels_by_number(data)
    assert found[0] == [0, round(4000 * 255 / 4095)] * 2
    assert found[1] == [round(100 * 255 / 16383), round(9000 * 255 / 16383)] * 2
    negative = Image.fromarray(np.array([[-50, 150]], np.int32))
    assert np.asarray(decode_image(negative, deep_range=(0, 100)))[0, :, 0].tolist() == [0, 255]
    assert np.asarray(decode_image(Image.fromarray(np.array([[9000]], np.uint16))))[0, 0, 0] == round(
        9000 * 255 / 16383
    )


def test_values_that_are_mostly_dark_are_warned_of(tmp_path):
    root = write_set(tmp_path / "set", [[10, 20, 30]])
    hot = np.full((80, 80), 900, np.uint16)
    hot[0, 0] = 65535  # a broken pixel
    Image.fromarray(hot).save(root / "ant" / "0.png")
    data = open_(root)
    assert data.deep_range == (0, 65535)
    assert "below 900, so that they are dark: data.deep_range=[0,900]" in note(data, "Most of their values")


def test_tables_and_their_range(tmp_path):
    cells = []
    for number in range(16):
        buffer = io.BytesIO()
        Image.fromarray(np.full((3, 4), 250 * number, np.uint16)).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"image": cells, "label": [0, 1] * 8}, features=features)
    table.to_parquet(tmp_path / "x.parquet")
    data = open_(tmp_path / "x.parquet")
    assert data.deep_range == (0, 4095)
    found = {
        split.load(i).inputs.getpixel((0, 0))[0]
        for split in (data.train, data.validation, data.test)
        for i in range(len(split))
    }
    assert found == {round(250 * number * 255 / 4095) for number in range(16)}


def test_labelled_images_are_read_as_those_of_training(tmp_path):
    root = write_set(tmp_path / "set", [[0, 4000]])
    dim = write_set(tmp_path / "dim", [[0, 100]])
    data = open_unlabelled(DataConfig(name=str(root)), DataConfig(name=str(dim)), seed=0)
    assert np.asarray(data.labelled.train.load(0).inputs)[0, 1, 0] == round(100 * 255 / 4095)


def test_eight_bits_have_no_range(tmp_path):
    data = open_(write_set(tmp_path / "set", [[0, 9]], dtype=np.uint8))
    assert data.deep_range is None
    assert not [text for text in data.facts.notes if "eep" in text]
    assert pixels_by_number(data)[0] == [0, 9] * 2
    asked = open_(tmp_path / "set", deep_range=(0, 9))
    assert note(asked, "data.deep_range: none of 16 images looked at is deep grayscale")
    with pytest.raises(ValueError, match="goes up, from black to white"):
        DataConfig(name="x", deep_range=(9, 9))


def test_whole_numbers_and_floats_together_are_refused(tmp_path):
    root = write_set(tmp_path / "set", [[0, 4000]])
    Image.fromarray(np.full((3, 4), 0.5, np.float32)).save(root / "ant" / "float.tif")
    with pytest.raises(UserError, match="some of floats") as error:
        open_(root)
    assert "data.deep_range" in error.value.hint


def png_of_16_bits(value, *, alpha):
    """Return a PNG file of 4x3 pixels, 16 bits a band."""
    row = b"\0" + struct.pack(">HHHH"[: 4 + alpha], *[value] * 3, *[65535] * alpha) * 4
    header = struct.pack(">IIBBBBB", 4, 3, 16, 6 if alpha else 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(row * 3)), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("alpha", [False, True])
def test_deep_colours_that_would_be_dark_are_refused(tmp_path, alpha):
    for name in ("ant", "bee"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(8):
            (tmp_path / "set" / name / f"{number}.png").write_bytes(png_of_16_bits(4095 - number, alpha=alpha))
    with pytest.raises(UserError, match="16 bits a band, and use their lower 12 alone"):
        open_(tmp_path / "set")
    (tmp_path / "set" / "ant" / "0.png").write_bytes(png_of_16_bits(25700, alpha=alpha))
    assert pixels_by_number(open_(tmp_path / "set"))[0] in ([100] * 4, [15] * 4)


def tiff(bands, change=lambda content: content):
    buffer = io.BytesIO()
    Image.fromarray(bands).save(buffer, "TIFF")
    return change(buffer.getvalue())


EXTRA, PHOTOMETRIC = b"\x52\x01\x03\x00\x01\x00\x00\x00", b"\x06\x01\x03\x00\x01\x00\x00\x00"
"""Tag, type and count of TIFF's ExtraSamples and PhotometricInterpretation; two bytes of value follow."""


def test_a_fourth_band_is_alpha_where_the_file_says_so(tmp_path):
    bands = np.dstack([np.full((3, 4), value, np.uint8) for value in (10, 20, 30, 102)])
    on_white = [round(value * 0.4 + 255 * 0.6) for value in (10, 20, 30)]

    def colour(content):
        return np.asarray(decode_image(content))[0, 0].tolist()

    assert EXTRA in tiff(bands)
    assert colour(tiff(bands)) == on_white
    absent = tiff(bands, lambda content: content.replace(EXTRA, b"\x00\xff" + EXTRA[2:]))
    unspecified = tiff(bands, lambda content: content.replace(EXTRA + b"\x02", EXTRA + b"\x00"))
    assert colour(absent) == colour(unspecified) == [10, 20, 30]
    for options, expected in (({}, on_white), ({"no_jp2": True}, [10, 20, 30])):
        buffer = io.BytesIO()
        Image.fromarray(bands).save(buffer, "JPEG2000", irreversible=False, **options)
        assert colour(buffer.getvalue()) == expected
        decoded = Image.open(buffer)
        decoded.load()
        assert colour(decoded) == on_white  # nothing tells any more
    for name in ("ant", "bee"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(8):
            (tmp_path / "set" / name / f"{number}.tif").write_bytes(absent)
    data = open_(tmp_path / "set")
    assert note(data, "Of 16 images looked at, 16 have a further band that is no alpha: it is left out.")
    (tmp_path / "set" / "ant" / "0.tif").write_bytes(tiff(bands))
    assert note(open_(tmp_path / "set"), "Of 16 images looked at, 15 have")


def test_a_tiff_file_in_which_0_is_white():
    deep = np.array([[0, 65535, 25700]], np.uint16)
    inverted = tiff(deep, lambda content: content.replace(PHOTOMETRIC + b"\x01", PHOTOMETRIC + b"\x00"))
    assert np.asarray(decode_image(tiff(deep)))[0, :, 0].tolist() == [0, 255, 100]
    assert np.asarray(decode_image(inverted))[0, :, 0].tolist() == [255, 0, 155]
