"""What comes from outside runs no code, writes nowhere else, fills no memory and carries no token away."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from safetensors.torch import save_file
from torchvision import datasets

from kdcli.base.errors import UserError
from kdcli.base.facts import MAX_IMAGE_SIZE, Preprocessing
from kdcli.base.text import check_name, printable, redact, short_repr
from kdcli.base.yaml import parse_yaml
from kdcli.config.data import DataConfig
from kdcli.config.models import TeacherConfig
from kdcli.config.parse import parse_config
from kdcli.config.recipes import apply_overrides, load_yaml
from kdcli.data import UnreadableImage, decode_image, fit, open_data
from kdcli.data.images.torchvision_sets import TorchvisionSource
from kdcli.models import hub, load_teacher
from kdcli.models.weights import read_checkpoint, resolve_path
from kdcli.results.card import _inline
from kdcli.runs.folder import RunFolder

NAME = "test_resnet"
MINIMAL = {"teacher": "none", "student": NAME, "data": "photos"}


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.fixture
def marker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that every payload here would create."""
    return tmp_path_factory.mktemp("outside") / "owned"


# --- checkpoints ------------------------------------------------------------------------------------------------------


def compressed(source: Path, target: Path) -> Path:
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in archive.infolist():
            packed.writestr(entry.filename, archive.read(entry))
    return target


def test_a_checkpoint_that_is_a_decompression_bomb(tmp_path):
    torch.save({"weight": torch.zeros(1_000_000)}, tmp_path / "plain.pth")
    assert read_checkpoint(tmp_path / "plain.pth", source="x").tensors["weight"].shape == (1_000_000,)
    bomb = compressed(tmp_path / "plain.pth", tmp_path / "bomb.pth")
    assert bomb.stat().st_size < 10_000
    assert torch.load(bomb)["weight"].shape == (1_000_000,), "torch would unpack it"
    with pytest.raises(UserError, match=f"{bomb.stat().st_size} bytes and would unpack to 4"):
        read_checkpoint(bomb, source="x")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(1).expand(10**7, 10**6),
        lambda: torch.empty(10**7, 10**6, device="meta"),
        lambda: torch.zeros(3, 3).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8),
    ],
    ids=["expanded", "meta", "sparse", "quantised"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_the_numbers_of_the_file(tmp_path, make):
    torch.save({"fc.weight": make(), "good": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"1 of its tensors .*\(fc.weight\)|can't be loaded safely"):
        read_checkpoint(tmp_path / "odd.pth", source="x")


def test_a_checkpoint_that_holds_itself(tmp_path):
    loop: dict = {"weight": torch.zeros(1)}
    loop["model"] = loop
    torch.save(loop, tmp_path / "loop.pth")
    assert list(read_checkpoint(tmp_path / "loop.pth", source="x").tensors) == ["weight"]


def test_a_classifier_of_absurd_width_is_not_built(tmp_path):
    """The class count is read off the file: one without elements must not decide it."""
    state = load_teacher(TeacherConfig(name=f"random:{NAME}"), seed=0).module.state_dict()
    state["fc.weight"] = torch.zeros(10**12, 0)
    state["fc.bias"] = torch.zeros(())
    torch.save(state, tmp_path / "wide.pth")
    with pytest.raises(UserError, match="2 of another shape"):
        load_teacher(TeacherConfig(name=NAME, weights=str(tmp_path / "wide.pth")), seed=0)


def header(content: object, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


HEADERS = {
    "longer than any file": struct.pack("<Q", 2**63 - 1),
    "longer than the file": struct.pack("<Q", 10**9) + b"{}",
    "a list": header([]),
    "nested": header(b'{"a":' * 100_000),
    "more elements than bytes": header(
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"1234"
    ),
    "more elements than fit": header({"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}),
    "unknown type": header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "negative": header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
    "backwards": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"),
    "beyond the end": header({"a": {"dtype": "F32", "shape": [2**30], "data_offsets": [0, 2**32]}}, b"1234"),
    "nothing": header({}),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_safetensors_with_an_absurd_header(tmp_path, content):
    file = tmp_path / "spectra.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"can't be loaded safely|holds no tensors"):
        read_checkpoint(file, source="x")
    run = RunFolder(tmp_path)
    if content != HEADERS["nothing"]:
        with pytest.raises(UserError, match="is damaged"):
            run.read_tensors("spectra.safetensors")


def test_numpy_archives_of_objects_are_not_read(tmp_path, marker):
    np.savez(tmp_path / "w.npz", a=np.array([Payload(marker)], dtype=object))
    with pytest.raises(UserError, match="can't be loaded safely"):
        read_checkpoint(tmp_path / "w.npz", source="x")
    assert not marker.exists()
    np.load(tmp_path / "w.npz", allow_pickle=True)["a"]
    assert marker.exists(), "the payload is none"


def test_paths_in_packages_stay_in_the_package():
    for odd in ("package:timm//etc/hostname", "package:timm/models/../../torch/version.py", "package:timm.models/x"):
        with pytest.raises(UserError, match="is not package:NAME/PATH"):
            resolve_path(odd)


@pytest.mark.parametrize("shard", ["../../evil.safetensors", "/tmp/evil.safetensors", "a/b.safetensors", "..", "", 5])
def test_an_index_of_weights_names_files_beside_it(tmp_path, monkeypatch, shard):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"weight": shard}}))
    asked = []

    def download(repo: str, filename: str) -> Path | None:
        asked.append(filename)
        return tmp_path / filename if (tmp_path / filename).is_file() else None

    monkeypatch.setattr(hub, "download", download)
    with pytest.raises(UserError, match=r"model.safetensors.index.json (lists|is damaged)"):
        hub.snapshot("org/name", weights=True)
    assert shard not in asked


def test_a_revision_is_no_path():
    with pytest.raises(UserError, match="has no revision"):
        hub.download("org/name@../../../owned", "config.json")


# --- data sets --------------------------------------------------------------------------------------------------------


def cifar_file(array: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 pickled it for CIFAR-10: protocol 2, byte strings, numpy's arrays of that time."""

    def string(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    raw = array.tobytes()
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    sizes = b"".join(b"J" + struct.pack("<i", size) for size in array.shape)
    return (
        b"\x80\x02}(" + string(b"labels") + b"](" + numbers + b"e" + string(b"data")
        + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + string(b"b") + b"tR(K\x01" + sizes
        + b"\x86cnumpy\ndtype\n(" + string(b"u1") + b"K\x00K\x01tR(K\x03" + string(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tbu."
    )  # fmt: skip


@pytest.fixture
def cifar(tmp_path, monkeypatch) -> Path:
    """A small CIFAR-10, and torchvision's checksums for it."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    labels = [number % 10 for number in range(60)]
    images = np.random.default_rng(0).integers(0, 256, (60, 3072), dtype=np.uint8)
    (folder / "data_batch_1").write_bytes(cifar_file(images, labels))
    (folder / "test_batch").write_bytes(cifar_file(images[:20], labels[:20]))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{i}" for i in range(10)]}, protocol=2))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: None)
    return folder


def test_cifar_is_read_without_unpickling_objects(cifar):
    data = open_data(DataConfig(name="torchvision:CIFAR10", root=cifar.parent), seed=0)
    assert data.facts.class_names[:2] == ("c0", "c1")
    assert (data.facts.num_train + data.facts.num_validation, data.facts.num_test) == (60, 20)
    first = np.random.default_rng(0).integers(0, 256, (60, 3072), dtype=np.uint8)[0].reshape(3, 32, 32)
    assert data.test is not None
    np.testing.assert_array_equal(np.asarray(data.test.load(0).inputs).transpose(2, 0, 1), first)


@pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_planted_cifar_file_runs_nothing(cifar, marker, file):
    """Even where its checksum is not looked at."""
    content = (cifar / file).read_bytes()
    (cifar / file).write_bytes(pickle.dumps({"data": Payload(marker), "label_names": [Payload(marker)]}))
    with pytest.raises(UserError, match="torchvision:CIFAR10"):
        open_data(DataConfig(name="torchvision:CIFAR10", root=cifar.parent), seed=0)
    assert not marker.exists()
    assert content


def test_a_planted_cifar_file_fails_its_checksum(tmp_path, marker, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, _ in [*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list, ("batches.meta", "")]:
        (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: None)
    with pytest.raises(UserError, match=r"not found or corrupted|couldn't be downloaded"):
        open_data(DataConfig(name="torchvision:CIFAR10", root=tmp_path), seed=0)
    assert not marker.exists()


def tar_with(path: Path, name: str, *, link: str | None = None) -> None:
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        if link is None:
            member.size = 5
            archive.addfile(member, io.BytesIO(b"owned"))
        else:
            member.type, member.linkname = tarfile.SYMTYPE, link
            archive.addfile(member)


@pytest.mark.parametrize(("name", "link"), [("../../owned", None), ("/{outside}", None), ("inside", "/etc")])
def test_an_archive_is_unpacked_below_its_folder(tmp_path, marker, name, link):
    """FGVC-Aircraft is the one set whose archive torchvision does not check."""
    name = name.replace("/{outside}", str(marker))
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    tar_with(root / "fgvc-aircraft-2013b.tar.gz", name, link=link)
    with pytest.raises(UserError, match="torchvision:FGVCAircraft"):
        open_data(DataConfig(name="torchvision:FGVCAircraft", root=root), seed=0)
    with contextlib.suppress(tarfile.FilterError), tarfile.open(root / "fgvc-aircraft-2013b.tar.gz") as archive:
        archive.extractall(root)  # as older versions of torchvision call it
    assert [path for path in tmp_path.rglob("owned") if root not in path.parents] == []
    assert not (root / "inside").is_symlink()
    assert not marker.exists()


# --- images -----------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG of so many pixels: all that a decoder needs to make room for them."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (chunk, data)
    )


@pytest.mark.parametrize("size", [(30_000, 30_000), (13_400, 13_400), (2**31 - 1, 1), (1, 2**31 - 1)])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch, size):
    monkeypatch.setattr("kdcli.data.images.decode._to_rgb", lambda image: pytest.fail("it was to be decoded"))
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    with pytest.raises(UnreadableImage, match=r"bomb.png: DecompressionBombError: .*exceeds limit of 178956970 pixels"):
        decode_image(tmp_path / "bomb.png")


def test_an_image_bomb_is_skipped_with_its_reason(run_cli, tmp_path, make_photos):
    folder = make_photos({f"{part}/{name}": 4 for part in ("train", "val", "test") for name in ("apple", "sky")})
    (folder / "train" / "sky" / "bomb.png").write_bytes(png_header(30_000, 30_000))
    options = (
        "--teacher",
        "none",
        "--student",
        NAME,
        "--data",
        folder,
        "--set",
        "student.image_size=32",
        "--epochs",
        "1",
    )
    outcome = run_cli("distill", *options, "--device", "cpu", "--output", "run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "bomb.png" in outcome.stdout
    outcome = run_cli("distill", *options, "--device", "cpu", "--output", "strict", "--strict-data")
    assert outcome.exit_code == 2
    assert "DecompressionBombError" in outcome.stderr
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (20_000, 3)])
def test_a_very_long_image_does_not_fill_the_memory(monkeypatch, size):
    resized = []
    resize = Image.Image.resize

    def watched(image, size, *arguments, **options):
        resized.append(size[0] * size[1])
        return resize(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    image = Image.linear_gradient("L").convert("RGB").resize(size)
    resized.clear()
    preprocessing = Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3, resize=(248, 248))
    assert fit(image, preprocessing).size == (224, 224)
    assert max(resized) < 20 * (224 / 0.9) ** 2


def test_a_long_image_is_cropped_to_the_same_middle():
    """20:1 is cropped before it is resized, 15:1 is not: of one picture both give the same square, up to rounding."""
    picture = np.zeros((20, 400, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, 400)
    picture[..., 1] = np.linspace(0, 255, 20)[:, None]
    preprocessing = Preprocessing((40, 40), (0.5,) * 3, (0.5,) * 3, interpolation="bilinear")
    long, short = (fit(Image.fromarray(part), preprocessing) for part in (picture, picture[:, 50:350]))
    assert np.abs(np.asarray(long).astype(int) - np.asarray(short)).max() <= 1


def test_deep_images_are_scaled_in_blocks(monkeypatch):
    values = np.random.default_rng(0).integers(0, 65536, (37, 11)).astype(np.uint16)
    whole = np.asarray(decode_image(Image.fromarray(values)))
    monkeypatch.setattr("kdcli.data.images.decode._BLOCK", 25)
    np.testing.assert_array_equal(np.asarray(decode_image(Image.fromarray(values))), whole)
    np.testing.assert_array_equal(whole[..., 0], np.rint(values / 257))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def test_an_image_is_never_handed_to_another_program(tmp_path, marker, monkeypatch):
    """PIL gives EPS to Ghostscript, whatever the file is called."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\n/usr/bin/touch {marker}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "photo.jpg").write_bytes(EPS)
    with pytest.raises(UnreadableImage, match=r"photo\.jpg"):
        decode_image(tmp_path / "photo.jpg")
    opened_by_torchvision = TorchvisionSource([(Image.open(tmp_path / "photo.jpg"), 0)], [0], split="train")
    with pytest.raises(UnreadableImage):
        opened_by_torchvision.load(0)
    assert not marker.exists()
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(OSError, match=r".*"):
        Image.open(tmp_path / "photo.jpg").load()
    assert marker.exists(), "PIL would not have run it anyway"


# --- options and recipes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["teacher", "student"])
@pytest.mark.parametrize("size", [100_000, MAX_IMAGE_SIZE + 1, 10**400])
def test_absurd_image_sizes_are_refused_in_the_config(section, size):
    with pytest.raises(UserError, match=f"{section}.image_size: .*4096"):
        parse_config({**MINIMAL, section: {"name": NAME, "image_size": size}}, source="t")
    assert parse_config({**MINIMAL, section: {"name": NAME, "image_size": 4096}}, source="t")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e400])
@pytest.mark.parametrize("key", ["optim.lr", "optim.clip_grad", "augment.mixup", "augment.color_jitter"])
def test_numbers_are_finite(key, value):
    section, name = key.split(".")
    with pytest.raises(UserError, match=f"{key}: .*finite"):
        parse_config({**MINIMAL, section: {name: value}}, source="t")


@pytest.mark.parametrize(
    "name",
    ["a\0b", "a\nb", "a\x1b[31mb", "\ud800", "x" * 256, "x/" * 3000, "é" * 200],
    ids=lambda name: ascii(name)[:12],
)
@pytest.mark.parametrize("key", ["teacher", "student", "data", "output"])
def test_names_that_no_file_has(key, name):
    with pytest.raises(ValueError, match=r"it has the character|longer than"):
        check_name(name)
    with pytest.raises(UserError, match=rf"{key}.*: it has the character|{key}.*longer than") as caught:
        parse_config({**MINIMAL, key: name}, source="t")
    assert len(caught.value.message) < 500
    assert caught.value.message.isprintable() or caught.value.message.count("\n") == 1


TAGS = {
    "apply": "!!python/object/apply:os.system ['touch {marker}']",
    "new": "!!python/object/new:os.system ['touch {marker}']",
    "name": "!!python/name:os.system",
    "module": "!!python/module:os",
    "object": "!!python/object:kdcli.base.errors.UserError {{}}",
    "custom": "!import_call {{key: os.system, init: {{args: ['touch {marker}']}}}}",
}


@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)
def test_a_recipe_runs_no_code(tmp_path, marker, tag):
    (tmp_path / "r.yaml").write_text(f"seed: {tag.format(marker=marker)}\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_yaml(tmp_path / "r.yaml")
    with pytest.raises(UserError, match="not valid YAML"):
        apply_overrides({}, [f"seed={tag.format(marker=marker)}"])
    assert not marker.exists()


def laughs(template: str, levels: int = 12) -> str:
    return "\n".join(
        f"a{n}: &a{n} " + template.format(", ".join([f"*a{n - 1}"] * 9) if n else "x") for n in range(levels)
    )


@pytest.mark.parametrize(
    "text",
    [
        laughs("[{}]") + "\nseed: *a11",
        laughs("[{}]") + "\ntask: *a11",
        laughs("[{}]") + "\nmethods: [{method: *a11}, *a11]",
        laughs("[{}]") + "\n? *a11\n: 1",
        laughs("[{}]") + "\noptim: {lr: *a11, *a11 : 1}",
        "a0: &a0 {x: 1}\n" + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12)),
        "seed: &a [*a]",
        "teacher: &a {name: *a}",
        "? &a [*a]\n: 1",
        "seed: " + "[" * 100_000,
        "seed: " + "{a: " * 100_000,
        "seed: 0x" + "f" * 100_000,
        "seed: " + "9" * 100_000,
        "#" * 2**21,
    ],
    ids=range(14),
)
def test_a_recipe_that_unfolds_without_end_is_refused_at_once(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        parse_config(load_yaml(tmp_path / "r.yaml"), source="r.yaml")
    assert time.process_time() - start < 20
    assert len(caught.value.message) < 10_000


@pytest.mark.parametrize("text", ["!!timestamp x", "!!bool x", "!!int ''", "!!float x", "!!binary x", "9" * 5000])
def test_values_that_their_tag_does_not_fit(text):
    with pytest.raises(ValueError, match=r".+"):
        parse_yaml(text)


@pytest.mark.parametrize("head", ["²", "٣", "-1", "1_0", " 1", "9" * 5000])
def test_entries_of_lists_have_plain_numbers(head):
    with pytest.raises(UserError, match="not an entry of a list of 2"):
        apply_overrides({"methods": [1, 2]}, [f"methods.{head}=1"])


def test_a_key_of_thousands_of_parts_is_refused():
    with pytest.raises(UserError, match="no key has 5000 parts"):
        apply_overrides({}, [".".join("a" * 5000) + "=1"])


# --- tokens -----------------------------------------------------------------------------------------------------------

HF = "hf_" + "Abcd1234" * 4
WANDB = "wandb_v1_" + "Abcd1234_" * 4


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"--set x={HF}", "--set x=hf_REDACTED"),
        (f"a {WANDB}.", "a wandb_REDACTED."),
        ("hf:https://user:s3cret@huggingface.co/org/name", "hf:https://REDACTED@huggingface.co/org/name"),
        ("https://s3cret@host/x", "https://REDACTED@host/x"),
        ("https:/user:s3cret@host/x", "https:/REDACTED@host/x"),
        ("GET https://h/x?a=1&X-Amz-Signature=0f0f&b=2", "GET https://h/x?a=1&X-Amz-Signature=REDACTED&b=2"),
        ("https://h/?token=abc 'x'", "https://h/?token=REDACTED 'x'"),
        ("Authorization: Bearer abcdefghij", "Authorization: Bearer REDACTED"),
    ],
)
def test_tokens_are_known_by_their_form(text, redacted):
    assert redact(text) == redacted
    assert redact(redacted) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "hf:org/name@0123456789abcdef0123456789abcdef01234567",
        "hf:facebook/dinov2-small",
        "torchvision:CIFAR100",
        "hf_hub_download",
        "a tokenizer, a token and a key=value",
        "https://huggingface.co/org/name?download=true",
    ],
)
def test_what_is_no_token_stays(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    ("variable", "is_secret"),
    [
        ("HF_TOKEN", True),
        ("HUGGING_FACE_HUB_TOKEN", True),
        ("WANDB_API_KEY", True),
        ("MLFLOW_TRACKING_PASSWORD", True),
        ("MLFLOW_TRACKING_TOKEN", True),
        ("HF_HOME", False),
        ("HF_TOKEN_PATH", False),
        ("PATH_TO_KEY", False),
    ],
)
def test_values_of_secret_variables(monkeypatch, variable, is_secret):
    monkeypatch.setenv(variable, "a.secret/of+mine")
    assert redact("x a.secret/of+mine y") == ("x REDACTED y" if is_secret else "x a.secret/of+mine y")
    monkeypatch.setenv(variable, "x")
    assert redact("xxx") == "xxx"


def test_every_text_of_a_run_is_without_tokens(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "not-of-any-known-form")
    RunFolder(tmp_path).write_text("x.txt", f"a not-of-any-known-form b {HF} \udcff")
    assert (tmp_path / "x.txt").read_text() == "a REDACTED b hf_REDACTED \\udcff"


# --- text -------------------------------------------------------------------------------------------------------------


def test_printable_text_drives_no_terminal():
    assert printable("a\x1b[31mb\x07\r\0\u2028\udcff") == r"a\x1b[31mb\x07\r\x00\u2028\udcff"
    assert printable("tab\tline\né💥") == "tab\tline\né💥"


def test_short_repr_is_short():
    nested: list = []
    for _ in range(50):
        nested = [nested] * 50
    for value in (nested, {str(n): nested for n in range(100)}, "x" * 10**6, 10**5000, b"x" * 10**6, [10**400] * 100):
        assert len(short_repr(value)) < 1500
    assert short_repr({"a": [1, "b"]}) == "{'a': [1, 'b']}"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a|b", r"a\|b"),
        (r"a\|b", r"a\\\|b"),
        ("a\nb\r\n# c", "a b # c"),
        ("<script>", r"\<script>"),
        ("\0\x1b", r"\\x00\\x1b"),
    ],
)
def test_a_cell_of_the_model_card_stays_one(text, cell):
    assert _inline(text) == cell


def test_a_pickle_with_the_ending_of_safetensors(tmp_path, marker):
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(UserError, match="can't be loaded safely"):
        read_checkpoint(tmp_path / "w.safetensors", source="x")
    save_file({"a": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="can't be loaded safely"):
        read_checkpoint(tmp_path / "w.pth", source="x")
    assert not marker.exists()
