"""What every source of samples keeps to. A new one is a line of ``SOURCES``, or a folder of files that it is opened from."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, Preprocessing, TextPreprocessing
from kdcli.config.data import AugmentConfig, DataConfig
from kdcli.data import (
    ImageSource,
    Loading,
    Masking,
    Sample,
    TextPair,
    TextSource,
    TokenSource,
    WordSource,
    open_data,
    open_dense,
    open_texts,
)
from kdcli.data.batch import EVALUATION
from kdcli.data.images.sources import ArraySource, Concatenation
from kdcli.data.images.torchvision_sets import TorchvisionSource
from kdcli.machine.team import Team
from tests.data import dense_forms as forms

SIZE = 13
"""Samples of a source that is made here."""
IMAGES = Preprocessing((12, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TEXTS = TextPreprocessing(64, "none", 100, "cls")
WORDS = [[f"word{place}" for place in range(1 + number % 4)] for number in range(SIZE)]


def arrays(size=SIZE):
    pixels = np.random.default_rng(0).integers(0, 256, (size, 10, 14, 3), dtype=np.uint8)
    return ArraySource(pixels, [number % 3 for number in range(size)], split="train")


def folder(make_folder):
    return open_data(DataConfig(name=str(make_folder({"train/a": 7, "train/b": 6, "test/a": 3, "test/b": 3}))), seed=0)


def table(tmp_path, **options):
    images = [Image.fromarray(np.full((9, 9, 3), 6 * number, np.uint8)) for number in range(40)]
    rows = {"image": images, "label": [number % 2 for number in range(40)]}
    Dataset.from_dict(rows, Features(image=ImageFeature(), label=ClassLabel(2))).to_parquet(tmp_path / "t.parquet")
    return open_data(DataConfig(name=str(tmp_path / "t.parquet"), **options), seed=0).train


class Set:
    """As torchvision's sets in memory are."""

    data = np.random.default_rng(1).integers(0, 256, (SIZE, 7, 7, 3), dtype=np.uint8)

    def __getitem__(self, index):
        return Image.fromarray(self.data[index]), index % 2


class Masks(ImageSource):
    """As another package may have it: a mask for each image, and numbers of its own."""

    def __init__(self):
        self.labels, self.ids = (0,) * SIZE, SIZE * np.arange(SIZE)

    def load(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (10, 14, 3), dtype=np.uint8)
        return Sample(Image.fromarray(pixels), tv_tensors.Mask(torch.from_numpy(pixels[..., 0] > 127).long()))

    def describe(self, index):
        return f"masks[{index}]"


def dense(path, target, **options):
    return open_dense(DataConfig(name=str(path), **options), target, seed=0).train


def texts(size=SIZE, **options):
    labels = [UNLABELLED if number == 5 else number % 2 for number in range(size)]
    return TextSource([f"text {number}" for number in range(size)], labels, split="train", **options)


def pieces(masking):
    tokens = [np.arange(10, 12 + number % 4) for number in range(SIZE)]
    ids = np.arange(SIZE) // 2
    return TokenSource(tokens, pad_token=0, masking=masking, split="train", ids=ids)


def table_of_texts(tmp_path):
    file = tmp_path / "set.csv"
    file.write_text("text,label\n" + "".join(f"text number {row},{'ab'[row % 2]}\n" for row in range(40)))
    return open_texts(DataConfig(name=str(file)), task="text-classification", seed=0).train


SOURCES = {
    "arrays": lambda given: arrays(),
    "demo": lambda given: open_data(DataConfig(name="demo:digits"), seed=0).train.take(range(30)),
    "folder": lambda given: folder(given("make_folder")).train,
    "folder, few labels": lambda given: folder(given("make_folder")).train.take(range(8), [1, 0, *[UNLABELLED] * 6]),
    "table": lambda given: table(given("tmp_path")),
    "streamed table": lambda given: table(given("tmp_path"), streaming=True),
    "torchvision": lambda given: TorchvisionSource(Set(), [number % 2 for number in range(SIZE)], split="train"),
    "some and others": lambda given: Concatenation(arrays().take([7, 2, 9, 4]), arrays(9)).take(
        [*range(12, 0, -2), *range(0, 13, 2)]
    ),
    "masks": lambda given: Masks(),
    "masks in files": lambda given: dense(forms.masks(given("tmp_path"), count=SIZE), "pixels"),
    "masks, few labelled": lambda given: dense(forms.masks(given("tmp_path"), count=SIZE), "pixels", labelled_images=3),
    "depth in a table": lambda given: dense(forms.table(given("tmp_path") / "t.parquet", "depth"), "depth"),
    "boxes": lambda given: dense(forms.voc(given("tmp_path"), count=20, lists=False), "boxes"),
    "another package's": lambda given: (
        given("toy_extension") or open_data(DataConfig(name="toy:3"), seed=0).train.take(range(0, 60, 3))
    ),
    "texts": lambda given: texts(),
    "table of texts": lambda given: table_of_texts(given("tmp_path")),
    "texts with values": lambda given: texts(values=np.arange(2.0 * SIZE, dtype=np.float32).reshape(SIZE, 2)),
    "pairs": lambda given: TextSource([TextPair("a", str(n)) for n in range(SIZE)], [0] * SIZE, split="train"),
    "words": lambda given: WordSource(WORDS, [[0] * len(row) for row in WORDS], split="train"),
    "pieces of words": lambda given: WordSource(
        WORDS, [[1] * len(row) for row in WORDS], split="train", ids=np.arange(SIZE) // 3
    ),
    "tokens": lambda given: pieces(None),
    "masked tokens": lambda given: pieces(Masking(0.4, 3, frozenset({0, 1, 2, 3}), 50, 0)),
}


@pytest.fixture(params=SOURCES)
def source(request):
    return SOURCES[request.param](request.getfixturevalue)


def plain(value):
    """Return a sample's content as what can be compared."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, Tensor | np.ndarray):
        return np.asarray(value).tolist()
    return np.asarray(value).tolist() if isinstance(value, Image.Image) else value


def content(source):
    return [tuple(map(plain, source.load(index))) for index in range(len(source))]


def seen(batch):
    """Return what a batch shows of each sample: by (sample, view)."""
    keys = list(zip(batch.samples.tolist(), batch.view.tolist(), strict=True))
    for name in ("images", "texts", "words"):
        if hasattr(batch, name):
            return list(zip(keys, map(plain, getattr(batch, name)), strict=True))
    rows = zip(batch.input_ids, batch.attention_mask, strict=True)
    return list(zip(keys, (ids[: mask.sum()].tolist() for ids, mask in rows), strict=True))


def preprocessing(source):
    return IMAGES if isinstance(source, ImageSource) else TEXTS


def trained(source, epoch=0, *, size=1, seed=3, batch=6, start=0):
    """Return the batches of an epoch, those of several processes put together in the order of their ranks."""
    loading = [Loading(batch, seed, AugmentConfig(), workers=0, team=Team(rank, size)) for rank in range(size)]
    loaders = [source.train_batches(each, [preprocessing(source)]) for each in loading]
    shares = [[seen(found) for found in loader.epoch(epoch, start)] for loader in loaders]
    assert {len(found) for found in shares} == {loaders[0].batches_per_epoch - start}
    assert all(len(found) == len(whole[0]) for whole in zip(*shares, strict=True) for found in whole)
    return [[row for share in whole for row in share] for whole in zip(*shares, strict=True)]


def evaluated(source, size=1):
    loading = [Loading(4, workers=0, team=Team(rank, size)) for rank in range(size)]
    loaders = [source.eval_batches(each, preprocessing(source)) for each in loading]
    found = [[seen(batch) for batch in loader] for loader in loaders]
    assert [len(batches) for batches in found] == [len(loader) for loader in loaders]
    return [row for batches in found for batch in batches for row in batch]


class TestSource:
    def test_a_sample_is_the_same_each_time(self, source):
        state = torch.get_rng_state()
        first = content(source)
        assert len(first) == len(source) == len(source.labels)
        assert content(pickle.loads(pickle.dumps(source))) == content(source) == first
        assert torch.equal(torch.get_rng_state(), state)
        assert all(isinstance(source.load(index), Sample) for index in range(2))
        assert all(isinstance(source.describe(index), str) for index in range(len(source)))

    def test_samples_keep_their_ids_when_they_are_taken(self, source):
        assert source.ids.dtype == np.int64
        assert source.ids.shape == (len(source),)
        assert min(source.ids) >= 0
        outer, inner = [4, 0, 3, 1], [2, 2, 0]
        once, twice = source.take([outer[index] for index in inner]), source.take(outer).take(inner)
        assert twice.ids.tolist() == once.ids.tolist() == [source.ids[index] for index in (3, 3, 4)]
        assert list(twice.labels) == list(once.labels) == [source.labels[index] for index in (3, 3, 4)]
        whole = content(source)
        assert content(twice) == content(once) == [whole[3], whole[3], whole[4]]
        assert [twice.describe(index) for index in range(3)] == [once.describe(index) for index in range(3)]

    def test_what_follows_has_other_ids(self, source):
        if not isinstance(source, ImageSource):
            pytest.skip("only images are put one after the other")
        whole = Concatenation(Concatenation(source, source), source)
        assert len(set(whole.ids)) == 3 * len(set(source.ids))

    def test_samples_are_found_by_id_and_view(self, source):
        repeated = source.take([3, 1, 3, 0, 3, 1])
        everything = list(range(6))
        for views in (repeated.views(everything), repeated.views(everything, 4), repeated.views(everything, 5)):
            assert repeated.places(repeated.samples(everything), views).tolist() == everything
        assert set(repeated.views(everything, 4).tolist()).isdisjoint(repeated.views(everything, 5).tolist())
        assert max(repeated.views(everything).tolist()) == EVALUATION
        if len(set(source.ids)) == len(source):
            indices = list(range(len(source)))
            assert source.places(source.samples(indices)).tolist() == indices
            assert source.views(indices, 7).unique().tolist() == [7]
            assert source.views(indices).unique().tolist() == [EVALUATION]

    @pytest.mark.parametrize("size", [1, 2, 3, 9])
    def test_evaluation_has_every_sample_once(self, source, size):
        alone = evaluated(source)
        assert [key[0] for key, _ in alone] == source.ids.tolist()
        assert len({key for key, _ in alone}) == len(source)
        assert {key[1] for key, _ in alone} <= set(range(EVALUATION - len(source), 0))
        assert sorted(evaluated(source, size), key=str) == sorted(alone, key=str)

    @pytest.mark.parametrize("size", [2, 3])
    def test_shares_make_up_the_batches_of_one_process(self, source, size):
        assert trained(source, 2, size=size) == trained(source, 2)

    def test_an_epoch_is_a_function_of_seed_and_epoch(self, source):
        first = trained(source, 1)
        assert trained(source, 1) == first
        assert trained(source, 1, start=1) == first[1:]
        keys = [key for batch in first for key, _ in batch]
        assert len(set(keys)) == len(keys) == len(source) // 6 * 6
        assert set(keys).isdisjoint(key for batch in trained(source, 2) for key, _ in batch)
        others = [
            [key[0] for batch in found for key, _ in batch]
            for found in (trained(source, 2), trained(source, 1, seed=4))
        ]
        assert [key[0] for key in keys] not in others

    def test_a_sample_does_not_depend_on_its_batch(self, source):
        small, large = (dict(row for batch in trained(source, 3, batch=size) for row in batch) for size in (2, 5))
        assert all(small[key] == large[key] for key in small.keys() & large.keys())

    def test_repetitions_have_views_of_their_own(self, source):
        repeated = source.take([2, 0, 2, 2])
        keys = [key for epoch in (0, 1) for batch in trained(repeated, epoch, batch=4) for key, _ in batch]
        assert len(set(keys)) == 8
        assert sorted(key[0] for key in keys) == sorted([*source.ids[[2, 0, 2, 2]].tolist()] * 2)

    def test_too_many_processes_are_refused(self, source):
        with pytest.raises(ValueError, match="6 is no whole number for each of 4 processes"):
            source.train_batches(Loading(6, workers=0, team=Team(0, 4)), [preprocessing(source)])
        few = source.take([0, 1])
        with pytest.raises(UserError, match=r"There are 2 training (image|text)s for 3 processes"):
            few.train_batches(Loading(6, workers=0, team=Team(0, 3)), [preprocessing(source)])

    def test_batches_move_whole(self, source):
        batch = next(iter(source.eval_batches(Loading(4, workers=0), preprocessing(source)))).to("meta")
        tensors = [value for value in vars(batch).values() if isinstance(value, Tensor)]
        assert len(tensors) > 2
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert len(batch) == 4
