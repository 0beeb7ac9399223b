"""Marks around the parts of a step: they are set where the parts end, and change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from kdcli.config.parse import parse_config
from kdcli.machine.devices import make_accelerator
from kdcli.runs.folder import RunFolder
from kdcli.terminal.reporters import SilentReporter
from kdcli.training import parts
from kdcli.training.parts import BACKWARD, DATA, LOSSES, OPTIMISER, OTHER, STUDENT, TEACHER, Watch, timed_parts
from kdcli.training.prepare import prepare_job
from kdcli.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture
def make_trainer(tmp_path: Path):
    def make(teacher: str = "random:cifar:resnet8") -> Trainer:
        config = parse_config(
            {
                "teacher": {"name": teacher},
                "student": {"name": "cifar:resnet8"},
                "data": {"name": "demo:digits"},
                "train": {"batch_size": 8, "device": "cpu"},
            },
            source="a test",
        )
        job = prepare_job(config)
        return Trainer(job, RunFolder(tmp_path), make_accelerator(config.train), SilentReporter(), writes=False)

    return make


@contextmanager
def marks_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    seen: list[str] = []
    original = Watch.mark

    def mark(self: Watch, part: str) -> None:
        seen.append(part)
        original(self, part)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "mark", mark)
        yield seen


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in trainer.objective.state_dict().values()]


def test_parts_are_marked_as_they_end_and_the_numbers_stay(make_trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, plain = make_trainer(), make_trainer()
    with marks_of(monkeypatch) as seen, timed_parts(trainer) as watch:
        for batch in watch.waiting(list(trainer.loader.epoch(0, 0))[:2]):
            trainer.train_step(batch, 0)
            watch.close()
    ends = [part for part in seen if part != OTHER]
    assert ends == [DATA, DATA, TEACHER, STUDENT, LOSSES, BACKWARD, OPTIMISER] * 2
    assert [set(step) for step in watch.steps] == [set(parts.PARTS)] * 2
    for batch in list(plain.loader.epoch(0, 0))[:2]:
        plain.train_step(batch, 0)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights(trainer), weights(plain), strict=True))


def test_nothing_is_marked_afterwards(make_trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()
    teacher, mix = trainer.teacher, trainer.mix
    with timed_parts(trainer):
        pass
    assert trainer.teacher is teacher
    assert trainer.mix is mix
    with marks_of(monkeypatch) as seen:
        trainer.train_step(next(iter(trainer.loader.epoch(0, 0))), 0)
    assert not seen


def test_times_are_those_between_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(parts.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(parts.time, "process_time", lambda: 0.0)
    watch = Watch(torch.device("cpu"))
    assert list(watch.waiting("ab")) == ["a", "b"]
    watch.mark(TEACHER)
    watch.around(lambda: None, BACKWARD)()
    watch.close()
    assert {name: part.wall for name, part in watch.steps[0].items()} == {DATA: 2, TEACHER: 1, OTHER: 2, BACKWARD: 1}


def test_a_student_alone_has_no_teachers_part(make_trainer) -> None:
    trainer = make_trainer("none")
    with timed_parts(trainer) as watch:
        trainer.train_step(next(iter(trainer.loader.epoch(0, 0))), 0)
        watch.close()
    assert TEACHER not in watch.steps[0]
