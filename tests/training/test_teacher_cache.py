"""From a teacher cache a run trains as from the teacher, to the bit; and whatever happens to the cache, it goes on."""

import errno
import json

import numpy as np
import pytest
import torch

import kdcli.training.teachers.store as store_module
from kdcli.base.errors import UserError
from kdcli.base.reads import Reads
from kdcli.config.parse import parse_config
from kdcli.config.recipes import set_key
from kdcli.data.batch import AnyBatch
from kdcli.machine.devices import make_accelerator
from kdcli.machine.team import Team
from kdcli.models.outputs import ModelOutput
from kdcli.runs.folder import RunFolder
from kdcli.terminal.reporters import SilentReporter
from kdcli.training.prepare import prepare_job
from kdcli.training.teachers.cached import CachedTeacher
from kdcli.training.teachers.outputs import decide_cache
from kdcli.training.teachers.store import Store
from kdcli.training.teachers.teacher import LiveTeacher
from kdcli.training.trainer import Trainer

BASE = {
    "teacher": {"name": "random:test_efficientnet", "image_size": 32},
    "student": {"name": "cifar:resnet8", "image_size": 32},
    "data": {"name": "demo:digits", "workers": 0, "train_images": 80},
    "test": False,
    "train": {"epochs": 2, "batch_size": 32, "device": "cpu", "validate_every": 9},
}
LABELS = {"method": "supervised"}
STEPS = 2  # of an epoch: 16 images are left over
METHODS = {
    "features": {},
    "maps-channels-last": {
        "train.channels_last": True,
        "methods": [LABELS, {"method": "attention_transfer", "layers": ["layer3:blocks.3"]}],
    },
    "mixed-float16": {"augment.mixup": 0.2, "augment.cutmix": 1.0, "train.cache_dtype": "float16"},
    "two-stages-looking-ahead": {"method": "refilled"},
}
pytestmark = pytest.mark.usefixtures("few_digits")


class Told(SilentReporter):
    def __init__(self):
        super().__init__()
        self.warnings = []

    def warned(self, text):
        self.warnings.append(text)


@pytest.fixture
def calls(monkeypatch):
    """The batches that a teacher is run on in training."""
    seen = []
    original = LiveTeacher.__call__

    def call(self, batch):
        seen.append(batch)
        return original(self, batch)

    monkeypatch.setattr(LiveTeacher, "__call__", call)
    return seen


@pytest.fixture
def make_trainer(tmp_path):
    def make(name, cache=None, base=BASE, **changes):
        values = base
        for key, value in changes.items():
            values = set_key(values, key.split("."), value)
        if cache is not None:
            values = set_key(values, ["train", "cache_teacher"], str(tmp_path / cache))
        config = parse_config(values, source="test")
        accelerator = make_accelerator(config.train)
        team = Team.of(accelerator)
        job = decide_cache(prepare_job(config, team), team)
        run = RunFolder(tmp_path / name) if (tmp_path / name).exists() else RunFolder.create(tmp_path / name)
        run.write_config(job.config)
        return Trainer(job, run, accelerator, Told())

    return make


@pytest.fixture
def train(make_trainer):
    def trained(name, cache=None, **changes):
        """Return the student's tensors and the trainer."""
        trainer = make_trainer(name, cache, **changes)
        trainer.fit()
        return trainer.objective.state_dict(), trainer

    return trained


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def told(trainer):
    (row,) = (row for row in trainer.job.plan.decisions if row.name == "teacher cache")
    return f"{row.value} ({row.reason})"


def shards(folder):
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_live_filling_and_cached_runs_end_with_the_same_bits(changes, train, calls, tmp_path):
    changes = {"train.channels_last": False} | changes
    live, trainer = train("live", **changes)
    batches = len(calls)
    assert batches >= trainer.total_steps == 2 * STEPS
    calls.clear()
    filling, trainer = train("filling", "cache", **changes)
    assert len(calls) == batches
    assert "2 views of 64 images" in told(trainer)
    calls.clear()
    cached, trainer = train("cached", "cache", **changes)
    assert calls == []
    assert "all there (The teacher is not run on a training image" in told(trainer)
    assert_same(live, filling)
    assert_same(live, cached)
    assert trainer.reporter.warnings == []


@pytest.mark.parametrize("shard_bytes", [1, store_module.SHARD_BYTES])
def test_what_a_killed_run_has_left_is_used(shard_bytes, train, make_trainer, calls, monkeypatch):
    """And a run that is stopped and goes on ends with the same bits, whatever is there of the cache."""
    live, _ = train("live")
    monkeypatch.setattr(store_module, "SHARD_BYTES", shard_bytes)
    killed = make_trainer("killed", "cache")
    with monkeypatch.context() as patch:
        patch.setattr(CachedTeacher, "end", lambda self: None)  # as if by SIGKILL
        original = killed.train_step

        def step(batch, epoch):
            if killed.step == 3:
                raise KeyboardInterrupt
            original(batch, epoch)

        patch.setattr(killed, "train_step", step)
        with pytest.raises(KeyboardInterrupt):
            killed.fit()
    killed.state.check_weights()
    killed.save()
    kept = 3 if shard_bytes == 1 else STEPS  # the rest of an epoch is written at its end
    calls.clear()
    again, trainer = train("again", "cache")
    assert len(calls) == 2 * STEPS - kept
    assert f"{kept / 4:.0%} there" in told(trainer)
    assert_same(live, again)
    calls.clear()
    resumed = make_trainer("killed", "cache")
    resumed.restore(resumed.checkpoints.load(warn=print))
    resumed.fit()
    assert calls == []
    assert_same(live, resumed.objective.state_dict())


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"augment.flip": 0.0}, r"augment\.flip 0\.5 -> 0\.0"),
        ({"data.train_images": 64}, "training samples"),
        ({"teacher": {"name": "random:test_efficientnet", "image_size": 48}}, "teacher's input.*image size.*32.*48"),
        ({"train.cache_views": 2}, r"train\.cache_views None -> 2"),
        ({"train.cache_dtype": "bfloat16"}, r"train\.cache_dtype 'float32' -> 'bfloat16'"),
        ({"train.mixed_precision": "bf16"}, "precision 'no' -> 'bf16'"),
    ],
)
def test_a_cache_of_something_else_is_refused_by_what_differs(changes, differs, make_trainer, tmp_path):
    folder = tmp_path / "cache" / "seed-0"
    make_trainer("first", "cache")
    assert json.loads((folder / "cache.json").read_text())["seed"] == 0
    with pytest.raises(UserError, match=f"(?s)is of another training: .*{differs}"):
        make_trainer("second", "cache", **changes)
    make_trainer("third", "cache", seed=1)  # which lies beside it
    assert (tmp_path / "cache" / "seed-1" / "cache.json").is_file()


def test_other_weights_and_a_damaged_description_are_refused(make_trainer, tmp_path):
    make_trainer("first", "cache")
    file = tmp_path / "cache" / "seed-0" / "cache.json"
    text = file.read_text()
    values = json.loads(text)
    file.write_text(json.dumps(values | {"teacher's weights": "0" * 32}))
    with pytest.raises(UserError, match=r"of another training: teacher's weights '0{32}' -> '[0-9a-f]{32}'\."):
        make_trainer("second", "cache")
    file.write_text(text[:50])
    with pytest.raises(UserError, match=r"cache\.json is damaged"):
        make_trainer("third", "cache")


def test_a_damaged_shard_is_computed_anew(train, calls, tmp_path):
    live, _ = train("filling", "cache")
    first, second = shards(tmp_path / "cache")
    content = bytearray(first.read_bytes())
    content[-5] ^= 1
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:30])
    calls.clear()
    again, trainer = train("again", "cache")
    assert len(calls) == 2 * STEPS
    (warning,) = trainer.reporter.warnings
    assert f"{first} of the teacher cache is damaged" in warning
    assert f"{second} of the teacher cache is damaged" in told(trainer)
    assert_same(live, again)
    calls.clear()
    mended, _ = train("mended", "cache")
    assert calls == []
    assert_same(live, mended)


def test_without_room_training_goes_on_live(train, calls, monkeypatch, tmp_path):
    live, _ = train("live")

    def full(file, write):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_atomically", full)
        without, trainer = train("without", "cache")
    (warning,) = trainer.reporter.warnings
    assert "goes on without: Can't write to" in warning
    assert "No space left on device" in warning
    assert_same(live, without)
    assert shards(tmp_path / "cache") == []


def test_a_folder_that_takes_no_file_is_told_once(train, tmp_path):
    (tmp_path / "cache").write_text("")
    _, trainer = train("run", "cache")
    (warning,) = trainer.reporter.warnings
    assert f"Can't write to {tmp_path / 'cache'}" in warning


def test_students_share_one_cache_and_what_it_lacks_is_added(train, calls, tmp_path):
    train("first", "cache")
    calls.clear()
    other = {"student": {"name": "test_resnet", "image_size": 32}, "optim.lr": 0.01, "train.accumulation": 2}
    train("other", "cache", **other)
    assert calls == []
    more = {
        "methods": [
            LABELS,
            {"method": "projection", "projector": "linear"},
            {"method": "attention_transfer", "layers": ["layer3:blocks.3"]},
        ]
    }
    train("more", "cache", **more)
    assert len(calls) == 2 * STEPS
    calls.clear()
    whole, _ = train("whole", "cache", **more)
    train("part", "cache", methods=more["methods"][::2])
    assert calls == []
    names = [name for file in shards(tmp_path / "cache") for name in store_module._Shard.read(file).layouts]
    assert sorted(names) == ["features/blocks.3"] * 2 + ["features/pooled"] * 2 + ["maps/blocks.3"] * 2
    live, _ = train("live", **more)
    assert_same(live, whole)


def test_views_are_taken_in_turn(train, calls):
    """Their augmentation comes again, in another order: so with a cache all is as without, up to rounding."""
    changes = {"train.cache_views": 2, "train.epochs": 5, "data.train_images": 64, "optim.lr": 1e-4}
    live, trainer = train("live", **changes)
    views = [set(batch.view.tolist()) for batch in calls]
    assert views == [{view} for view in (0, 0, 1, 1, 0, 0, 1, 1, 0, 0)]
    images = [
        {(s, v): image for batch in calls[first : first + STEPS] for s, v, image in zip(batch.samples.tolist(), batch.view.tolist(), batch.images, strict=True)}
        for first in (0, 4)
    ]  # fmt: skip
    assert all(torch.equal(image, images[1][key]) for key, image in images[0].items())
    assert list(images[0]) != list(images[1])
    calls.clear()
    cached, trainer = train("cached", "cache", **changes)
    assert len(calls) == 2 * STEPS
    assert "2 views of 64 images" in told(trainer)
    assert "Of 5 epochs 2 have to be computed" in told(trainer)
    for name, value in live.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-3, atol=1e-4)


def test_halves_take_half_the_room_and_what_is_too_large_is_refused(train, make_trainer, tmp_path):
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        train(dtype, f"cache-{dtype}", **{"train.cache_dtype": dtype, "train.epochs": 1})
        (file,) = shards(tmp_path / f"cache-{dtype}")
        sizes[dtype] = store_module._Shard.read(file).rows("features/blocks.3", np.arange(64))[0].nbytes
    assert sizes["float32"] == 2 * sizes["bfloat16"] > 0
    teacher = CachedTeacher(Fixed(torch.full((1, 2), 1e5)), None, "float16", 1)
    with pytest.raises(UserError, match=r"features/pooled of up to 1e\+05, and float16 holds no more"):
        teacher(AnyBatch(targets=None, samples=torch.zeros(1, dtype=torch.int64)))


def test_texts_are_kept_once(train, calls, reviews, bert_folder, distilbert_folder, tmp_path):
    base = {
        "task": "sentence-embedding",
        "teacher": str(bert_folder),
        "student": str(distilbert_folder),
        "data": {"name": str(reviews), "train_texts": 64},
        "test": False,
        "train": {"epochs": 2, "batch_size": 16, "device": "cpu"},
    }
    live, _ = train("live", base=base)
    texts = sum(len(batch) for batch in calls)
    calls.clear()
    filling, trainer = train("filling", "cache", base=base)
    assert sum(len(batch) for batch in calls) == texts
    assert f"one view of {texts} texts" in told(trainer)
    calls.clear()
    cached, _ = train("cached", "cache", base=base)
    assert calls == []
    assert_same(live, filling)
    assert_same(live, cached)


def test_what_has_another_number_of_rows_stays_live(make_trainer, calls, language_models, reviews, tmp_path):
    base = {
        "task": "masked-lm",
        "teacher": {"name": str(language_models / "masked"), "unchecked": True},
        "student": {"name": str(language_models / "masked-student")},
        "data": str(reviews),
        "test": False,
        "train": {"epochs": 1, "batch_size": 16, "device": "cpu"},
    }
    trainer = make_trainer("tokens", "cache", base=base)
    assert isinstance(trainer.teacher, LiveTeacher)
    assert told(trainer).startswith(f"not used: {tmp_path / 'cache'} (Its outputs are of tokens or words")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"name": "none"}}, "--cache-teacher is set, and there is no teacher"),
        ({"episodes": {"ways": 2, "shots": 2}}, "each episode draws its own"),
        ({"train.cache_views": 2, "augment.mixup": 0.1}, "mix an image with its neighbour"),
    ],
)
def test_what_can_not_be_kept_is_refused(changes, message, make_trainer):
    with pytest.raises(UserError, match=message):
        make_trainer("run", "cache", **changes)


def test_a_cache_is_proposed_where_the_teacher_is_most_of_a_step(make_trainer):
    teacher = {"name": "random:resnet18", "image_size": 64}
    row = told(make_trainer("small", teacher=teacher, **{"student.image_size": 16}))
    assert row.startswith("none (The teacher has 9")
    assert "an epoch, for other runs with the same data, augmentation and seed; with --cache-views K" in row
    plain = {"augment.crop_scale": [1, 1], "augment.flip": 0}
    row = told(make_trainer("plain", teacher=teacher, **plain, **{"student.image_size": 16}))
    assert "with --cache-views 1 all epochs but the first go without it" in row
    assert not [r for r in make_trainer("large").job.plan.decisions if r.name == "teacher cache"]


class Fixed:
    """A teacher that gives the same features each time."""

    reads = Reads(("pooled",))
    facts = type("Facts", (), {"name": "fixed"})()

    def __init__(self, features):
        self.features = features

    def begin(self, after_batch):
        """Be ready."""

    def end(self):
        """Be done."""

    def __call__(self, batch):
        return ModelOutput({"pooled": self.features[batch.samples]})


def ignore(told):
    pytest.fail(str(told))


@pytest.mark.parametrize("shape", [(7,), (3, 4, 5)])
def test_rows_come_back_as_they_were_from_any_shards(shape, tmp_path, monkeypatch):
    """Of batches that cut across those which were stored, in another layout in memory, with repeated samples."""
    values = torch.randn(20, *shape)
    if len(shape) == 3:
        values = values.to(memory_format=torch.channels_last)
    monkeypatch.setattr(store_module, "SHARD_BYTES", 1)
    live = Fixed(values)
    store = Store(tmp_path, warn=ignore, refused=ignore)
    filling = CachedTeacher(live, store, "float32", 1)
    for samples in torch.arange(20).split(6):
        filling(AnyBatch(targets=None, samples=samples))
    assert len(shards(tmp_path)) == 4
    filling.end()
    cached = CachedTeacher(live, Store(tmp_path, warn=ignore, refused=ignore), "float32", 1)
    live.features = None
    for samples in (torch.tensor([19, 0, 7, 7, 3]), torch.arange(6, 12), torch.tensor([2])):
        found = cached(AnyBatch(targets=None, samples=samples)).features["pooled"]
        assert torch.equal(found, values[samples])
        assert found.stride() == values[samples].stride()


def test_two_writers_keep_each_row_once(tmp_path):
    one, two = (Store(tmp_path, warn=ignore, refused=ignore) for _ in range(2))
    for store, first in ((one, 0), (two, 4)):
        keys = np.arange(first, first + 8)
        rows = {"features/pooled": torch.from_numpy(keys).float()[:, None]}
        store.add("view-000000", keys, rows, rows)
    one.flush()
    two.flush()
    written = [store_module._Shard.read(file).keys.tolist() for file in shards(tmp_path)]
    assert sorted(key for keys in written for key in keys) == list(range(12))
    found = one.read("view-000000", np.array([11, 0, 5]), ["features/pooled"])
    assert found is not None
    assert found["features/pooled"].flatten().tolist() == [11, 0, 5]
