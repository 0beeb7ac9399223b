from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from kdcli.base.errors import UserError
from kdcli.base.facts import Preprocessing
from kdcli.config.data import AugmentConfig, DataConfig
from kdcli.data import Batch, EvalLoader, ImageSource, Loading, TrainLoader, fit, open_data, prepare
from kdcli.data.images import loaders
from kdcli.data.images.sources import ArraySource, Concatenation, FileSource, Subset
from kdcli.machine.team import Team

AUGMENT = AugmentConfig(policy="trivial", color_jitter=0.2, erase=0.3)
PREPROCESSING = Preprocessing((16, 16), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MakeFolder = Callable[..., Path]


@pytest.fixture
def source(make_folder: MakeFolder) -> FileSource:
    paths = sorted(str(path) for path in make_folder({"a": 12, "b": 11}).rglob("*.png"))
    return FileSource(paths, [int("/b/" in path) for path in paths])


def train_loader(source: ImageSource, **options: object) -> TrainLoader:
    defaults: dict[str, object] = {"augment": AUGMENT, "batch_size": 6, "workers": 0}
    return TrainLoader(source, Loading(**(defaults | options)), canvas=(16, 12))  # type: ignore[arg-type]


def eval_loader(source: ImageSource, **options: object) -> EvalLoader:
    preprocessing = options.pop("preprocessing", PREPROCESSING)
    loading = Loading(**({"batch_size": 5, "workers": 0} | options))  # type: ignore[arg-type]
    return EvalLoader(source, loading, preprocessing=preprocessing)  # type: ignore[arg-type]


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.samples, b.samples)
        assert a.skipped == b.skipped


def damage(source: FileSource, *indices: int) -> list[str]:
    for index in indices:
        path = Path(source.paths[index])
        path.write_bytes(path.read_bytes()[:60])
    return [source.paths[index] for index in indices]


def test_an_epoch(source: FileSource) -> None:
    loader = train_loader(source)
    batches = list(loader.epoch(0))
    assert len(batches) == loader.batches_per_epoch == 3
    assert all(batch.images.shape == (6, 3, 16, 12) and batch.images.dtype == torch.uint8 for batch in batches)
    assert all(batch.images.is_contiguous() and len(batch) == 6 for batch in batches)
    indices = torch.cat([batch.samples for batch in batches]).tolist()
    assert len(set(indices)) == 18
    assert torch.cat([batch.targets for batch in batches]).tolist() == [source.labels[i] for i in indices]
    assert_same(batches, list(loader.epoch(0)))
    other = torch.cat([batch.samples for batch in loader.epoch(1)]).tolist()
    assert other != indices
    assert torch.cat([batch.samples for batch in train_loader(source, seed=1).epoch(0)]).tolist() != indices


def test_batches_do_not_depend_on_workers(source: FileSource) -> None:
    damage(source, 3, 17)
    alone, helped = train_loader(source), train_loader(source, workers=2)
    for epoch in (0, 1, 5):
        assert_same(list(alone.epoch(epoch)), list(helped.epoch(epoch)))
    assert_same(list(alone.epoch(2, start=1)), list(helped.epoch(2, start=1)))
    assert_same(list(eval_loader(source)), list(eval_loader(source, workers=2)))


def test_an_abandoned_epoch_leaves_nothing_behind(source: FileSource) -> None:
    helped = train_loader(source, workers=2)
    next(helped.epoch(0))
    assert_same(list(helped.epoch(1)), list(train_loader(source).epoch(1)))


def test_a_single_small_batch_is_used(source: FileSource) -> None:
    loader = train_loader(source, batch_size=64)
    (batch,) = loader.epoch(0)
    assert loader.batches_per_epoch == 1
    assert sorted(batch.samples.tolist()) == list(range(23))


def test_loading_leaves_torchs_generators_alone(source: FileSource) -> None:
    state = torch.get_rng_state()
    list(train_loader(source).epoch(0))
    list(train_loader(source, workers=1).epoch(0))
    list(eval_loader(source))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_in_training(source: FileSource, workers: int) -> None:
    clean = {}
    for batch in train_loader(source, batch_size=23).epoch(0):
        clean = dict(zip(batch.samples.tolist(), batch.images, strict=True))
    names = damage(source, 4, 5, 22)
    (batch,) = train_loader(source, batch_size=23, workers=workers).epoch(0)
    assert set(batch.skipped) == set(names)
    expected = {4: 6, 5: 6, 22: 0}
    drawn = list(clean)
    assert batch.samples.tolist() == [expected.get(index, index) for index in drawn]
    assert all(torch.equal(image, clean[int(i)]) for image, i in zip(batch.images, batch.samples, strict=True))
    assert batch.targets.tolist() == [source.labels[int(i)] for i in batch.samples]


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_stops_at_an_unreadable_image(source: FileSource, workers: int) -> None:
    (name,) = damage(source, 7)
    for batches in (train_loader(source, batch_size=23, strict=True, workers=workers).epoch(0),
                    eval_loader(source, strict=True, workers=workers)):  # fmt: skip
        with pytest.raises(UserError) as caught:
            list(batches)
        assert name in caught.value.message
        assert "data.strict=false" in caught.value.hint


@pytest.mark.parametrize("workers", [0, 1])
def test_no_readable_image_at_all(source: FileSource, workers: int) -> None:
    damage(source, *range(len(source)))
    with pytest.raises(UserError, match="None of the images can be read"):
        next(train_loader(source, workers=workers).epoch(0))
    with pytest.raises(UserError, match="None of the images can be read"):
        list(eval_loader(source, workers=workers))


def test_evaluation_has_each_sample_once_in_order(source: FileSource) -> None:
    loader = eval_loader(source)
    batches = list(loader)
    assert len(batches) == len(loader) == 5
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert torch.cat([batch.samples for batch in batches]).tolist() == list(range(23))
    assert torch.cat([batch.targets for batch in batches]).tolist() == list(source.labels)
    for index, image in enumerate(torch.cat([batch.images for batch in batches])):
        expected = np.asarray(fit(source.load(index).inputs, PREPROCESSING))
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert_same(batches, list(loader))


@pytest.mark.parametrize(
    "damaged", [[0], [22], [0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [20, 21, 22], [*range(15), 20, 21, 22]]
)
def test_evaluation_leaves_unreadable_images_out(source: FileSource, damaged: list[int]) -> None:
    names = damage(source, *damaged)
    batches = list(eval_loader(source))
    assert all(len(batch) for batch in batches)
    assert torch.cat([batch.samples for batch in batches]).tolist() == [i for i in range(23) if i not in damaged]
    assert [name for batch in batches for name in batch.skipped] == names


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (33, 33), (10, 61), (500, 375), (641, 479), (100, 37), (37, 100)])
@pytest.mark.parametrize("image_size", [(16, 16), (24, 24), (48, 31)])
@pytest.mark.parametrize(
    ("crop_pct", "interpolation", "mode"),
    [
        *(
            (0.875, "bicubic", "center"),
            (0.95, "bilinear", "center"),
            (1.0, "bicubic", "center"),
            (1.15, "lanczos", "center"),
        ),
        *((0.9, "box", "squash"), (1.0, "bicubic", "squash"), (0.9, "hamming", "border"), (1.0, "nearest", "border")),
    ],
)
def test_fit_and_prepare_agree_with_timm(size, image_size, crop_pct, interpolation, mode) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    mean, std = PREPROCESSING.mean, PREPROCESSING.std
    config = {"input_size": (3, *image_size), "interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": mode}
    ours = Preprocessing(
        image_size,
        mean,
        std,
        interpolation,
        tuple(int(side / crop_pct) for side in image_size),
        {"center": "crop"}.get(mode, mode),
    )
    (batch,) = eval_loader(ArraySource(np.asarray(image)[None], [0], split="test"), preprocessing=ours)
    expected = create_transform(**config, mean=mean, std=std)(image)
    torch.testing.assert_close(prepare(batch.images, ours)[0], expected, rtol=0, atol=1e-6)


def test_fit_to_a_rectangle() -> None:
    wide = Preprocessing((16, 32), (0.5,) * 3, (0.5,) * 3)
    gradient = np.repeat(np.arange(64, dtype=np.uint8)[:, None, None], 64, axis=1).repeat(3, axis=2)
    fitted = np.asarray(fit(Image.fromarray(gradient), wide))
    assert fitted.shape == (16, 32, 3)
    assert 15 <= fitted.min() <= 18
    assert 45 <= fitted.max() <= 48


def test_prepare_resizes_like_pil() -> None:
    """Antialiased: PIL's result, which is rounded to integers, within one level; other sizes differ by far more."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    small = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    canvas = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    unit = Preprocessing((16, 16), (0.0,) * 3, (1.0,) * 3)
    ours = prepare(canvas, unit)[0] * 255
    assert (ours - torch.from_numpy(small.copy())).abs().max() < 1.01
    assert torch.equal(prepare(canvas.float(), unit)[0] * 255, ours)


def test_prepare_keeps_to_the_range_and_leaves_its_input() -> None:
    checks = (torch.arange(64).remainder(2) * 255.0).expand(1, 3, 64, 64).contiguous()
    before = checks.clone()
    prepared = prepare(checks, Preprocessing((96, 96), (0.0,) * 3, (1.0,) * 3))
    assert prepared.min() >= 0
    assert prepared.max() <= 1
    same = prepare(checks, Preprocessing((64, 64), (0.5, 0.25, 0.0), (0.5, 0.25, 2.0)))
    assert same[0, :, 0, 1].tolist() == pytest.approx([1.0, 3.0, 0.5])
    assert torch.equal(checks, before)
    assert same.dtype == torch.float32


def test_everything_a_worker_gets_can_be_pickled(source: FileSource) -> None:
    both = Concatenation(Subset(source, [3, 1]), ArraySource(np.zeros((2, 4, 4, 3), np.uint8), [0, 1], split="test"))
    for loader in (train_loader(both), eval_loader(both)):
        dataset = loader._loader.dataset
        key = [(0, 1), (0, 3)] if isinstance(loader, TrainLoader) else [1, 3]
        assert torch.equal(pickle.loads(pickle.dumps(dataset))[key].images, dataset[key].images)
    assert both.describe(0) == source.paths[3]
    assert both.describe(3) == "test[1]"
    assert list(both.labels) == [source.labels[3], source.labels[1], 0, 1]


def test_batches_move_whole() -> None:
    data = open_data(DataConfig(name="demo:digits"), seed=0)
    batch = next(train_loader(data.train).epoch(0))
    moved = batch.to("meta")
    assert {moved.images.device.type, moved.targets.device.type, moved.samples.device.type} == {"meta"}
    assert len(moved) == len(batch) == 6


@pytest.mark.parametrize(
    ("cores", "num_images", "team", "local", "expected"),
    [
        *((cores, 5000, Team(), "", expected) for cores, expected in [(1, 0), (2, 0), (4, 3), (16, 4)]),
        (16, 100, Team(), "", 0),
        (32, 5000, Team(), "4", 4),  # left over from another program: this process is alone
        *((cores, 5000, Team(device="cuda"), "", expected) for cores, expected in [(1, 0), (2, 1), (8, 7), (64, 16)]),
        (16, 100, Team(device="cuda"), "", 0),
        (32, 5000, Team(0, 4, device="cuda"), "", 7),
        (32, 5000, Team(0, 8, device="cuda"), "4", 7),  # two machines with four processes each
        (8, 5000, Team(0, 4), "4", 0),
    ],
)
def test_default_workers(
    monkeypatch: pytest.MonkeyPatch, cores: int, num_images: int, team: Team, local: str, expected: int
) -> None:
    monkeypatch.setattr(loaders.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert loaders.choose_workers(FileSource(["x"] * num_images), team) == expected
    in_memory = ArraySource(np.zeros((1, 1, 1, 3), np.uint8), [0] * num_images, split="train")
    assert loaders.choose_workers(Subset(in_memory, range(num_images)), team) == 0
