"""The teacher's outputs for texts are computed once, and are what it gives each time."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from kdcli.base.reads import Reads
from kdcli.config.parse import parse_config
from kdcli.data import Loading, TextEvalLoader, TextSource
from kdcli.machine.devices import make_accelerator
from kdcli.machine.team import Team
from kdcli.runs.folder import RunFolder
from kdcli.terminal.reporters import SilentReporter
from kdcli.training.prepare import prepare_job
from kdcli.training.teachers.teacher import LiveTeacher, StoredTeacher
from kdcli.training.trainer import Trainer


@pytest.fixture
def make_trainer(tmp_path, reviews, bert_folder, distilbert_folder):
    def make(name="run", **train):
        values = {
            "task": "sentence-embedding",
            "teacher": str(bert_folder),
            "student": str(distilbert_folder),
            "data": str(reviews),
            "test": False,
            "train": {"epochs": 3, "batch_size": 16, "device": "cpu", **train},
        }
        config = parse_config(values, source="test")
        accelerator = make_accelerator(config.train)
        job = prepare_job(config)
        run = RunFolder.create(tmp_path / name)
        run.write_config(job.config)
        return Trainer(job, run, accelerator, SilentReporter()), run

    return make


@pytest.fixture
def counted(monkeypatch):
    """How often the teacher has read each text, by training."""
    counts = {}
    original = LiveTeacher.__call__

    def call(self, batch):
        for text in batch.texts:
            counts[text] = counts.get(text, 0) + 1
        return original(self, batch)

    monkeypatch.setattr(LiveTeacher, "__call__", call)
    return counts


def told(trainer):
    """The plan's row about it, if there is one."""
    rows = [row for row in trainer.job.plan.decisions if row.name == "teacher outputs"]
    return (rows[0].value, rows[0].reason) if rows else None


def losses(run):
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [line["projection"] for line in lines if line["event"] == "train"]


def test_it_reads_each_training_text_once_and_training_is_the_same(make_trainer, counted, monkeypatch):
    trainer, stored = make_trainer("stored")
    trainer.fit()
    texts = set(trainer.job.data.train.texts)
    assert counted == dict.fromkeys(texts, 1)
    value, _ = told(trainer)
    size = len(texts) * trainer.job.teacher.facts.feature_dims["pooled"] * 4
    assert value == f"stored for {len(texts)} texts, {size / 2**20:.1f} MiB of memory"

    counted.clear()
    monkeypatch.setattr("kdcli.plan.outputs.MOST_BYTES", 0)
    trainer, live = make_trainer("live")
    trainer.fit()
    assert told(trainer)[0] == "run on every batch"
    assert sum(counted.values()) == trainer.total_steps * 16
    torch.testing.assert_close(losses(stored), losses(live), rtol=1e-4, atol=1e-6)


def test_one_epoch_stores_nothing(make_trainer, counted):
    trainer, _ = make_trainer(epochs=1)
    trainer.fit()
    assert isinstance(trainer.teacher, LiveTeacher)
    assert told(trainer) is None
    assert sum(counted.values()) == trainer.total_steps * 16


def test_a_finished_run_has_no_use_for_it(make_trainer, counted):
    trainer, _ = make_trainer()
    trainer.fit()
    counted.clear()
    trainer.fit()
    assert counted == {}


class Told(Team):
    """A process of several: what all have together is given, what it has itself is kept."""

    def __init__(self, rank, size, whole=None):
        super().__init__(rank, size)
        self.whole, self.own = whole, None

    def sum(self, values):
        self.own = values
        return values if self.whole is None else self.whole


@pytest.mark.parametrize("processes", [1, 3])
def test_rows_belong_to_their_texts(processes, make_trainer):
    model = make_trainer()[0].job.teacher
    live = LiveTeacher(model, Reads(("pooled",)))
    texts = ["good", "a bad plot and an awful ending", "the great film", "dull", "good"]
    source = TextSource(texts, [0] * 5, split="train", ids=np.array([9, 4, 6, 7, 5]))
    rows = {9: 1, 4: 0, 6: 3, 7: 2, 5: 1}

    def begun(rank, whole=None):
        team = Told(rank, processes, whole)
        loader = TextEvalLoader(source.take(range(4)), Loading(2, team=team))
        teacher = StoredTeacher(live, rows, lambda: loader, team)
        teacher.begin(lambda: None)
        return teacher, team.own

    whole = sum(begun(rank)[1] for rank in range(processes))
    teacher, _ = begun(0, whole)
    assert (teacher.facts, teacher.reads) == (live.facts, live.reads)
    for row in (3, 4, 0, 2, 1, 0):
        batch = source.batch([row])
        torch.testing.assert_close(teacher(batch).features["pooled"], live(batch).features["pooled"])
