"""Images that are streamed from parquet files: what is read when, the order of an epoch, and what is refused."""

from __future__ import annotations

import io
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features
from datasets import Image as ImageFeature
from huggingface_hub import HfFileSystem, HfFileSystemFile
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, Preprocessing
from kdcli.config.data import AugmentConfig, DataConfig
from kdcli.config.keys import check_domain
from kdcli.config.parse import parse_config
from kdcli.data import Batch, EvalLoader, ImageData, ImageSource, Loading, TrainLoader, open_data, open_unlabelled
from kdcli.data.epoch import BalancedDraws, Blocks, block_order, lanes_of
from kdcli.data.fingerprint import Fingerprint, digest_of, find_changes, fingerprint
from kdcli.data.images.streams import AHEAD, Stream, StreamSource
from kdcli.machine.team import Team

FILES = {"train-00000": (0, 43), "train-00001": (43, 60), "validation": (103, 25), "test": (128, 20)}
"""Images of each file, from one number to another."""
ROWS = 10
"""Of a row group; the last one of a file has fewer."""
NAMED = Features({"image": ImageFeature(), "label": ClassLabel(names=["ant", "bee", "cow"])})
AUGMENT = AugmentConfig(policy="trivial", erase=0.3)
PREPROCESSING = Preprocessing((12, 8), (0.5,) * 3, (0.5,) * 3)


def encoded(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def columns(start: int, count: int) -> dict[str, list[Any]]:
    numbers = range(start, start + count)
    return {
        "image": [{"bytes": encoded(number), "path": f"{number}.png"} for number in numbers],
        "label": [number % 3 for number in numbers],
    }


def write(target: Any, values: dict[str, list[Any]], features: Features | None = NAMED) -> None:
    table = pa.table(values) if features is None else pa.table(values, schema=features.arrow_schema)
    pq.write_table(table, target, row_group_size=ROWS)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    root = tmp_path_factory.mktemp("parquet")
    for name, (start, count) in FILES.items():
        write(root / f"{name}.parquet", columns(start, count))
    return root


def opened(path: object, *, streaming: bool = True, **options: Any) -> ImageData:
    return open_data(
        DataConfig(name=str(path), **({"streaming": True, "stream_buffer": 30} if streaming else {}) | options), seed=0
    )


@pytest.fixture
def data(written: Path) -> ImageData:
    return opened(written)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of all blocks that are read."""
    found: list[int] = []
    original = Stream.read
    monkeypatch.setattr(Stream, "read", lambda self, block: (found.append(block), original(self, block))[1])
    return found


def trained(source: ImageSource, epoch: int = 0, start: int = 0, **options: Any) -> list[Batch]:
    loading = Loading(**{"batch_size": 12, "workers": 0, "augment": AUGMENT, "seed": 3} | options)
    return list(TrainLoader(source, loading, canvas=(12, 8)).epoch(epoch, start))


def evaluated(source: ImageSource, **options: Any) -> list[Batch]:
    return list(EvalLoader(source, Loading(**{"batch_size": 7, "workers": 0} | options), preprocessing=PREPROCESSING))


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.samples, b.samples)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.view, b.view)
        assert a.skipped == b.skipped


def by_sample(batches: list[Batch]) -> dict[int, tuple[torch.Tensor, int]]:
    return {int(s): (i, int(t)) for b in batches for s, i, t in zip(b.samples, b.images, b.targets, strict=True)}


# The order


def sizes(*numbers: int) -> np.ndarray:
    return np.repeat(np.arange(len(numbers)), numbers)


ORDERS = {
    "even": (sizes(*[10] * 40), 6, 12),
    "uneven": (sizes(7, 31, 2, 1, 55, 20, 20, 9, 14, 40, 3, 3), 4, 16),
    "a block": (sizes(50), 1, 8),
    "a block at a time": (sizes(*[25] * 9), 1, 15),
    "small blocks": (sizes(*[1] * 100), 9, 6),
    "all is mixed": (sizes(*[10] * 8), 1000, 9),
    "a batch of all": (sizes(5, 4, 3), 2, 12),
    "an odd batch": (sizes(*[10] * 21), 10, 13),
    "many lanes": (sizes(*[6] * 128), 50, 64),
}


@pytest.mark.parametrize(("of", "asked", "batch"), ORDERS.values(), ids=ORDERS)
def test_an_order_has_each_sample_once_and_needs_few_blocks(of: np.ndarray, asked: int, batch: int) -> None:
    blocks = Blocks(of, asked)
    lanes, mixed = lanes_of(blocks, batch)
    assert batch % lanes == 0
    assert lanes * mixed <= asked
    orders = [block_order(blocks, batch, seed=seed, epoch=epoch).numpy() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert np.array_equal(orders[0], block_order(blocks, batch, seed=0, epoch=0))
    for order in orders:
        assert len(order) == len(of) // batch * batch == len(set(order.tolist()))
        # A lane's samples in their order: a block is needed from its first one there to its last.
        for lane in order.reshape(-1, lanes, batch // lanes).swapaxes(0, 1).reshape(lanes, -1):
            needed = [(np.flatnonzero(of[lane] == b).min(), np.flatnonzero(of[lane] == b).max()) for b in set(of[lane])]
            assert max(sum(first <= at <= last for first, last in needed) for at in range(len(lane))) <= mixed
    if len(of) > batch:
        assert not np.array_equal(orders[0], orders[1])
        assert not np.array_equal(orders[0], orders[2])


def test_every_batch_is_of_many_blocks() -> None:
    blocks = Blocks(sizes(*[20] * 40), 8)
    assert lanes_of(blocks, 32) == (8, 1)
    assert lanes_of(blocks, 9) == (1, 8)
    assert lanes_of(blocks, 12) == (4, 2)
    assert lanes_of(blocks._replace(mixed=7), 32) == (2, 3)
    assert lanes_of(blocks._replace(mixed=35), 32) == (16, 2)
    order = block_order(blocks, 32, seed=0, epoch=0).reshape(-1, 32)
    assert min(len(set(blocks.of[batch].tolist())) for batch in order) >= 8


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_blocks(processes: int) -> None:
    of, batch = sizes(*[20] * 40), 32
    order = block_order(Blocks(of, 8), batch, seed=0, epoch=0).reshape(-1, processes, batch // processes)
    own = [set(of[order[:, rank].numpy()].ravel().tolist()) for rank in range(processes)]
    assert sum(map(len, own)) <= 40 + processes - 1  # a block may lie across a border
    assert set().union(*own) == set(range(40))


# What is read


def test_streamed_data_are_those_that_are_read_as_a_whole(data: ImageData, written: Path) -> None:
    whole = opened(written, streaming=False)
    assert data.facts.class_names == whole.facts.class_names == ("ant", "bee", "cow")
    for streamed, plain in ((data.train, whole.train), (data.validation, whole.validation), (data.test, whole.test)):
        assert streamed.labels == plain.labels
        assert np.array_equal(streamed.ids, plain.ids)
        for index in (0, len(plain) - 1, len(plain) // 2):
            np.testing.assert_array_equal(streamed.load(index).inputs, plain.load(index).inputs)
    assert data.train.describe(45) == "train-00001.parquet[2]"
    (note,) = [note for note in data.facts.notes if note.startswith("Streamed")]
    assert "4 parquet files with 148 rows in 16 row groups" in note
    assert "mixes about 28 images (data.stream_buffer); at most 5 row groups" in note
    assert by_sample(evaluated(data.test)).keys() == by_sample(evaluated(whole.test)).keys()
    assert_same(evaluated(data.test), evaluated(whole.test))


def test_a_start_reads_a_single_block_of_images(written: Path, reads: list[int]) -> None:
    opened(written)
    assert reads == [0]


def test_what_is_looked_at_before_training_is_of_few_blocks(data: ImageData, written: Path, reads: list[int]) -> None:
    assert data.train.near(15).ids.tolist() == [*range(10), *range(20, 30), *range(43, 53), *range(73, 83)]
    assert len(data.train.near(60)) == 63
    assert len(data.train.near(1000)) == 103
    evaluated(data.train.near(15))
    assert reads == [0, 2, 5, 8]
    plain = opened(written, streaming=False).train
    assert plain.near(15) is plain


@pytest.mark.parametrize("workers", [0, 2])
def test_training_reads_each_block_once_and_gives_every_image_its_own_augmentation(
    data: ImageData, written: Path, reads: list[int], workers: int
) -> None:
    batches = trained(data.train, 4, workers=workers)
    assert sorted(reads) == list(range(11))
    assert [len(batch) for batch in batches] == [12] * 8
    expected = by_sample(trained(opened(written, streaming=False).train, 4, batch_size=103))
    found = by_sample(batches)
    assert len(found) == 96
    for sample, (image, label) in found.items():
        assert torch.equal(image, expected[sample][0])
        assert label == expected[sample][1] == sample % 3
    assert_same(batches, trained(data.train, 4))


def test_few_blocks_are_in_memory_whatever_the_number_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Any]] = []
    original = Stream.read

    def read(self: Stream, block: int) -> Any:
        images = original(self, block)
        alive.append(weakref.ref(images))
        return images

    most = {}
    for count in (100, 300):
        file = tmp_path / f"{count}.parquet"
        write(file, columns(0, count))
        source = opened(file, validation_fraction=0.1, test_fraction=0.1, stream_buffer=20).train
        assert isinstance(source, ImageSource)
        with monkeypatch.context() as patch:
            patch.setattr(Stream, "read", read)
            alive.clear()
            loader = TrainLoader(source, Loading(6, 3, AUGMENT, workers=0), canvas=(12, 8))
            held = []
            for batch in loader.epoch(0):
                held.append(sum(ref() is not None for ref in alive))
                assert len(batch) == 6
        most[count] = max(held)
    lanes, mixed = lanes_of(source.blocks, 6)
    assert (lanes, mixed) == (2, 1)
    assert 2 <= most[100] <= 2 + AHEAD
    assert 2 <= most[300] <= 2 + AHEAD


def test_an_epoch_goes_on_where_it_was(data: ImageData, reads: list[int]) -> None:
    whole = trained(data.train, 2)
    reads.clear()
    assert_same(trained(data.train, 2, start=5), whole[5:])
    assert len(reads) < 11


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_together_have_the_batches_of_one(data: ImageData, reads: list[int], processes: int) -> None:
    teams = [Team(rank, processes) for rank in range(processes)]
    shares = [trained(data.train, 1, team=team) for team in teams]
    if processes == 2:  # lanes are a power of two; a block may lie across their border
        assert len(reads) <= 11 + 1
    for number, batch in enumerate(trained(data.train, 1)):
        assert torch.equal(torch.cat([share[number].samples for share in shares]), batch.samples)
        assert torch.equal(torch.cat([share[number].images for share in shares]), batch.images)
    reads.clear()
    parts = [batch for team in teams for batch in evaluated(data.train, team=team)]
    assert len(reads) <= 11 + processes - 1
    assert_same(parts, evaluated(data.train))


def test_evaluation_is_in_order_and_reads_each_block_once(data: ImageData, reads: list[int]) -> None:
    batches = evaluated(data.train)
    assert torch.cat([batch.samples for batch in batches]).tolist() == list(range(103))
    assert reads == list(range(11))
    assert_same(batches, evaluated(data.train, workers=1))


def test_some_of_the_images_in_any_order_and_repeatedly(data: ImageData, written: Path) -> None:
    indices = [70, 3, 3, 99, 41, 12, 0, 70]
    some, plain = data.train.take(indices), opened(written, streaming=False).train.take(indices)
    assert_same(evaluated(some), evaluated(plain))
    assert sorted(torch.cat([batch.samples for batch in trained(some, batch_size=8)]).tolist()) == sorted(indices)


def test_classes_are_drawn_evenly(data: ImageData, reads: list[int]) -> None:
    train = data.train.take([index for index in range(103) if index % 3 == 0 or index < 12])
    draws = BalancedDraws(train.labels)
    source = train.take(draws.indices)
    batches = trained(source, draws=draws, batch_size=draws.num_samples)
    counts = torch.bincount(torch.cat([batch.targets for batch in batches])).tolist()
    assert max(counts) - min(counts) <= 1
    assert len(reads) == len(set(reads))


def test_other_loaders_keep_their_order(written: Path) -> None:
    plain = opened(written, streaming=False).train
    assert plain.blocks is None
    assert not np.array_equal(
        torch.cat([b.samples for b in trained(plain)]), torch.cat([b.samples for b in trained(opened(written).train)])
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_replaced_by_the_next(tmp_path: Path, workers: int) -> None:
    values = columns(0, 60)
    values["image"][19] = {"bytes": b"no image", "path": None}
    values["image"][20] = {"bytes": None, "path": "elsewhere.png"}
    write(tmp_path / "train.parquet", values)
    write(tmp_path / "val.parquet", columns(60, 6))
    source = opened(tmp_path).train
    (batch,) = trained(source, batch_size=60, workers=workers)
    assert sorted(batch.samples.tolist()) == sorted([*range(19), 21, 21, *range(21, 60)])
    assert {name.partition(": ")[0] for name in batch.skipped} == {"train.parquet[19]", "train.parquet[20]"}
    with pytest.raises(UserError, match=r"Unreadable image train.parquet\[(19|20)\]"):
        trained(source, batch_size=60, workers=workers, strict=True)


def test_sources_are_pickled_without_what_was_read(data: ImageData) -> None:
    data.train.load(5)
    copy = pickle.loads(pickle.dumps(data.train))
    assert isinstance(copy, StreamSource)
    assert copy._last is None
    np.testing.assert_array_equal(copy.load(50).inputs, data.train.load(50).inputs)


# Labels and columns


def test_splits_are_cut_as_those_of_other_tables(written: Path) -> None:
    file = written / "train-00001.parquet"
    streamed, plain = opened(file), opened(file, streaming=False)
    for split in ("train", "validation", "test"):
        assert np.array_equal(getattr(streamed, split).ids, getattr(plain, split).ids)
        assert getattr(streamed, split).labels == getattr(plain, split).labels
    assert "each validation reads all" in " ".join(streamed.facts.notes)


def test_bytes_alone_texts_as_labels_and_other_columns(tmp_path: Path) -> None:
    values = {
        "img": [encoded(number) for number in range(40)],
        "species": [("pine", "oak", None)[number % 3] for number in range(40)],
        "where": [{"x": 1.0} for _ in range(40)],
    }
    write(tmp_path / "t.parquet", values, None)
    data = opened(tmp_path / "t.parquet", label_column="species")
    assert data.facts.class_names == ("oak", "pine")
    assert data.train.load(0).inputs.size == (12, 10)
    assert "Not read: where." in " ".join(data.facts.notes)
    assert UNLABELLED in data.train.labels
    unlabelled = open_unlabelled(DataConfig(name=str(tmp_path / "t.parquet"), streaming=True), None, seed=0)
    assert len(unlabelled.train) + len(unlabelled.validation) + len(unlabelled.test or ()) == 40


def test_several_labels_an_image(tmp_path: Path) -> None:
    values = {"image": [encoded(n) for n in range(40)], "labels": [["a"] * (n % 2) + ["b"] for n in range(40)]}
    write(tmp_path / "t.parquet", values, None)
    data = open_data(DataConfig(name=str(tmp_path / "t.parquet"), streaming=True), seed=0, takes_several=True)
    (batch,) = trained(data.train, batch_size=len(data.train))
    for sample, target in zip(batch.samples.tolist(), batch.targets, strict=True):
        assert target.tolist() == [sample % 2, 1]
    assert fingerprint(data).summary["train"]["images"] == len(data.train)


# The hub


class Hub:
    """Files of ``hf:org/set`` and their splits, as the hub's own client reads them by ranges; nothing is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: dict[str, bytes] = {}
        self.splits: dict[str, list[str]] = {}
        self.features: Features | None = None
        self.requests = 0
        hub = self

        def builder(path: str, name: str | None = None) -> Any:
            assert (path, name) == ("org/set", "small")
            urls = {split: [f"hf://datasets/org/set@abc/{name}" for name in of] for split, of in self.splits.items()}
            return SimpleNamespace(
                config=SimpleNamespace(data_files=urls), info=SimpleNamespace(features=self.features)
            )

        def info(files: Any, path: str, **options: Any) -> dict[str, Any]:
            content = hub.files.get(path.rpartition("/")[2])
            if content is None:
                raise FileNotFoundError(path)
            return {"name": path, "size": len(content), "type": "file", "blob_id": f"of {len(content)}"}

        def fetch(file: Any, start: int, end: int) -> bytes:
            hub.requests += 1
            if (content := hub.files.get(file.path.rpartition("/")[2])) is None:
                raise ConnectionError("the hub is out of reach")
            return content[start:end]

        monkeypatch.setattr(datasets, "load_dataset_builder", builder)
        monkeypatch.setattr(HfFileSystem, "_repo_and_revision_exist", lambda *_: (True, None))
        monkeypatch.setattr(HfFileSystem, "info", info)
        monkeypatch.setattr(HfFileSystemFile, "_fetch_range", fetch)

    def put(self, splits: dict[str, list[str]], features: Features | None = None) -> None:
        self.splits, self.features = splits, features


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(monkeypatch)
    for name, (start, count) in FILES.items():
        buffer = io.BytesIO()
        write(buffer, columns(start, count), None)
        made.files[f"{name}.parquet"] = buffer.getvalue()
    return made


def of_hub(**options: Any) -> ImageData:
    return opened("hf:org/set", subset="small", **options)


def test_a_data_set_of_the_hub_with_the_names_of_its_card(hub: Hub, written: Path) -> None:
    train = ["train-00000.parquet", "train-00001.parquet"]
    hub.put({"train": train, "dev": ["validation.parquet"], "extra": ["test.parquet"]}, NAMED)
    found, local = of_hub(), opened(written)
    assert hub.requests <= 3 * 2 + 11 + 3 + 1  # footers, labels of each row group, the first one's images
    assert found.facts.class_names == ("ant", "bee", "cow")
    assert found.test is None
    assert "Left out: the split extra." in " ".join(found.facts.notes)
    before = hub.requests
    batches = trained(found.train)
    assert hub.requests == before + 11
    assert_same(batches, trained(local.train))
    assert_same(evaluated(found.validation), evaluated(local.validation))
    assert pickle.loads(pickle.dumps(found.train)).load(3).target == 0
    hub.put({"train": train, "other": ["test.parquet"]}, NAMED)
    assert len(of_hub(splits={"train": "other"}).train) < 20


def test_a_hub_that_fails(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put({"train": ["train-00000.tar"]})
    with pytest.raises(UserError, match=r"other files than parquet such as train-00000.tar") as caught:
        of_hub()
    assert "downloaded then" in caught.value.hint
    hub.put({"train": ["gone.parquet"]})
    with pytest.raises(UserError, match=r"gone.parquet couldn't be read: FileNotFoundError") as caught:
        of_hub()
    assert "Without access to the hub" in caught.value.hint

    def unreachable(path: str, name: str | None = None) -> None:
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(UserError, match="hf:org/set couldn't be loaded: Couldn't reach") as caught:
        of_hub()
    assert "Without access to the hub" in caught.value.hint


@pytest.mark.parametrize("workers", [0, 1])
def test_a_connection_that_breaks_in_an_epoch(hub: Hub, workers: int) -> None:
    hub.put({"train": ["train-00000.parquet"], "test": ["test.parquet"]}, NAMED)
    source = of_hub(stream_buffer=10).train
    loader = TrainLoader(source, Loading(4, workers=workers), canvas=(12, 8))
    batches = loader.epoch(0)
    next(batches)
    content = hub.files.pop("train-00000.parquet")
    with pytest.raises(UserError, match=r"train-00000.parquet couldn't be read in its row group \d: ") as caught:
        list(batches)
    assert "kdcli distill --resume RUN" in caught.value.hint
    hub.files["train-00000.parquet"] = content
    assert len(list(loader.epoch(0))) == loader.batches_per_epoch


# What is refused


def test_what_is_no_parquet(tmp_path: Path, make_folder: Callable[..., Path], written: Path) -> None:
    folder = make_folder({"a": 4, "b": 4})
    for name, problem in {
        "demo:digits": "demo:digits is not there",
        str(folder): "no parquet files in",
        str(folder / "a" / "000.png"): "is no parquet file",
        str(tmp_path / "nothing"): "nothing is not there",
    }.items():
        with pytest.raises(UserError, match=f"data.streaming is set, and .*{problem}"):
            opened(name)
    with pytest.raises(UserError, match=r"data.unlabelled names files"):
        opened(written, unlabelled=folder)
    with pytest.raises(UserError, match="not a data set of the hub"):
        opened(written, subset="small")


def test_files_and_columns_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    file.write_bytes(b"PAR1 is not enough")
    with pytest.raises(UserError, match=r"t.parquet couldn't be read: ArrowInvalid") as caught:
        opened(file)
    assert "whole parquet files" in caught.value.hint
    write(file, {"image": ["a.png", "b.png"], "label": [0, 1]}, None)
    with pytest.raises(UserError, match="no image column"):
        opened(file)
    with pytest.raises(UserError, match=r"column image of t.parquet holds string, not images"):
        opened(file, image_column="image")
    write(file, {"image": [encoded(0)], "note": ["x"]}, None)
    with pytest.raises(UserError, match="no label column"):
        opened(file)
    write(file, {"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, None)
    with pytest.raises(UserError, match="hold no rows"):
        opened(file)
    write(tmp_path / "train-1.parquet", columns(0, 20))
    write(tmp_path / "train-2.parquet", {"image": [encoded(0)]}, None)
    file.unlink()
    with pytest.raises(UserError, match=r"train-2.parquet has no column label; its columns are image"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ("text-classification", "data.streaming is set, which is about images"),
        ("semantic-segmentation", "its targets are not streamed along"),
    ],
)
def test_other_tasks(task: str, problem: str) -> None:
    values = {"teacher": "none", "student": "x", "task": task, "data": {"name": "x", "streaming": True}}
    with pytest.raises(UserError, match=problem):
        check_domain(parse_config(values, source="a test"))


def test_a_buffer_of_nothing() -> None:
    values = {"teacher": "none", "student": "x", "data": {"name": "x", "stream_buffer": 100}}
    with pytest.raises(UserError, match=r"stream_buffer has no effect without data.streaming=true"):
        parse_config(values, source="a test")


# The record


def test_the_record_is_of_files_rows_and_labels(data: ImageData, written: Path, tmp_path: Path) -> None:
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before, moved = fingerprint(data), fingerprint(opened(tmp_path))
    assert before.summary["train"]["images"] == 103
    assert [sample.name for sample in before.splits["train"]] == ["train-00000.parquet", "train-00001.parquet"]
    assert moved == before
    again, header = Fingerprint.from_bytes(before.to_bytes({"format": "x"}))
    assert again == before
    assert header["splits"] == before.summary
    values = columns(43, 60)
    values["label"][7] = 1
    write(tmp_path / "train-00001.parquet", values)
    (change,) = find_changes(before, fingerprint(opened(tmp_path)), splits=("train", "validation", "test"))
    assert str(change) == "train: 1 changed (train-00001.parquet)"


def test_digests_tell_samples_and_their_order(data: ImageData) -> None:
    train = data.train
    digests = {
        digest_of(source, data)
        for source in (train, train.take(range(50)), train.take(range(49, -1, -1)), train.take(range(1, 51)),
                       train.take(range(50), [0] * 50))
    }  # fmt: skip
    assert len(digests) == 5
    assert digest_of(train.take(range(50)), data) in digests
