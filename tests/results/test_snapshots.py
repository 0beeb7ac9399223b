"""Pictures of the same samples over a training: what they show, that nothing depends on them, and resumed runs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.base.tasks import TASKS
from kdcli.config.parse import parse_config
from kdcli.machine.devices import make_accelerator
from kdcli.results.pictures.strip import ROWS, SIDE, Column, plot_strip, read_grid, shrunk, write_grid
from kdcli.results.snapshots import Snapshots, shown_samples
from kdcli.runs.folder import RunFolder
from kdcli.runs.snapshots import STRIP, grids
from kdcli.tasks.reports import Panel
from kdcli.terminal.reporters import SilentReporter
from kdcli.training.prepare import prepare_job
from kdcli.training.trainer import Trainer


class Tracker:
    """What Accelerate has of a tracker that takes pictures."""

    name = "wandb"

    def __init__(self):
        self.pictures = {}

    def log_images(self, values, step):
        self.pictures[step] = values

    def log(self, values, step=None):
        pass

    def finish(self):
        pass


def draws(task, raises=False):
    """Return the task with pictures in which the student's answer is a grey value."""

    def pictures(batch, outputs):
        if raises:
            raise OSError("no ink")
        grey = outputs["student"].argmax(dim=1).numpy() * 20
        images = batch.images.permute(0, 2, 3, 1).numpy()
        return [
            [Panel("image\nof a digit", image), Panel("guess", np.full_like(image, value), role="student")]
            for image, value in zip(images, grey, strict=True)
        ]

    drawing = copy.copy(task)
    drawing.row = lambda: TASKS["semantic-segmentation"]  # whose answers are drawn
    drawing.pictures = pictures
    drawing.num_pictures = 10
    return drawing


def make_trainer(folder, *, watched=True, raises=False, epochs=3, **train):
    config = parse_config(
        {
            "teacher": "none",
            "student": {"name": "test_resnet", "image_size": 32},
            "data": {"name": "demo:digits", "workers": 0, "train_images": 100},
            "train": {"epochs": epochs, "batch_size": 50, "device": "cpu", **train},
            "test": False,
        },
        source="t",
    )
    job = prepare_job(config)
    object.__setattr__(job, "task", draws(job.task, raises))
    run = RunFolder(folder) if folder.exists() else RunFolder.create(folder)
    accelerator = make_accelerator(config.train)
    warnings = []
    watcher = Snapshots(job, run, torch.device("cpu"), warnings.append) if watched else None
    trainer = Trainer(job, run, accelerator, SilentReporter(), watcher=watcher)
    accelerator.trackers = [Tracker()]
    accelerator.init_trackers = lambda name: None
    return trainer, warnings


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    trainer, warnings = make_trainer(tmp_path_factory.mktemp("snapshots") / "whole")
    trainer.fit()
    assert not warnings
    return trainer


def tensors(trainer):
    return trainer.objective.state_dict()


def pixels(run):
    return {step: np.asarray(Image.open(file)) for step, file in grids(run.path).items()}


def test_a_run_has_the_same_samples_at_all_times(whole):
    run, job = whole.run, whole.job
    assert list(grids(run.path)) == [0, 2, 4, 6]
    assert [read_grid(file).heading for file in grids(run.path).values()] == ["start", "epoch 1", "epoch 2", "epoch 3"]
    batch = shown_samples(job)
    labelled = len(job.data.validation)
    assert batch.samples.tolist() == job.data.validation.ids[[place * labelled // 10 for place in range(10)]].tolist()
    with torch.inference_mode():
        expected = job.predict(whole.student.eval(), batch).argmax(dim=1) * 20
    cells = read_grid(grids(run.path)[6]).cells
    assert [np.unique(np.asarray(cell)).tolist() for cell in cells] == [[value] for value in expected.tolist()]
    with Image.open(run.path / STRIP) as strip:
        found = np.asarray(strip.convert("RGB"))
    # An image, then four times; eight of the ten samples, which are evenly chosen.
    rows = [row * 10 // ROWS for row in range(ROWS)]
    lowest = found.shape[0] - 10 - (ROWS * SIDE + (ROWS - 1) * 3)
    for down, row in enumerate(rows):
        top = lowest + down * (SIDE + 3)
        cell = found[top : top + SIDE, 10 + 4 * (SIDE + 3) : 10 + 4 * (SIDE + 3) + SIDE]
        assert np.unique(cell).tolist() == [int(expected[row])]
        first = found[top : top + SIDE, 10 : 10 + SIDE]
        image = batch.images[row].permute(1, 2, 0).numpy()
        assert (first == image.repeat(3, axis=0).repeat(3, axis=1)).all()
    (tracker,) = whole.accelerator.trackers
    assert {
        step: np.asarray(values["validation/samples"][0]).tolist() for step, values in tracker.pictures.items()
    } == {step: grid.tolist() for step, grid in pixels(run).items()}


class Killed(Exception):
    """The process is gone."""


def test_training_is_the_same_without_and_a_resumed_run_has_the_same_pictures(whole, tmp_path, monkeypatch):
    alone, _ = make_trainer(tmp_path / "alone", watched=False)
    alone.fit()
    assert not grids(alone.run.path)
    for name, value in tensors(whole).items():
        assert torch.equal(value, tensors(alone)[name]), name
    original = Trainer.train_step

    def dies(self, batch, epoch):
        if self.step == 5:
            raise Killed
        original(self, batch, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", dies)
        with pytest.raises(Killed):
            make_trainer(tmp_path / "killed", checkpoint_every="3")[0].fit()
    again, _ = make_trainer(tmp_path / "killed", checkpoint_every="3")
    assert list(grids(again.run.path)) == [0, 2, 4]
    again.restore(again.checkpoints.load(warn=pytest.fail))
    assert list(grids(again.run.path)) == [0, 2]
    assert not (again.run.path / STRIP).exists()
    again.fit()
    assert (again.run.path / STRIP).read_bytes() == (whole.run.path / STRIP).read_bytes()
    first, second = pixels(whole.run), pixels(again.run)
    assert first.keys() == second.keys()
    assert all((first[step] == second[step]).all() for step in first)


def test_a_picture_that_fails_is_told_once_and_stops_nothing(tmp_path):
    trainer, warnings = make_trainer(tmp_path / "run", raises=True)
    trainer.fit()
    assert warnings == [f"{STRIP} can't be drawn, the training goes on without: OSError: 'no ink'"]
    assert not grids(trainer.run.path)


@pytest.mark.parametrize(
    ("epochs", "every", "drawn"),
    [(3, 1, [0, 1, 2, 3]), (24, 1, [0, *range(2, 25, 2)]), (30, 4, [0, *range(4, 30, 4), 30]), (0, 1, [0])],
)
def test_a_long_training_has_about_twelve(whole, epochs, every, drawn, monkeypatch):
    job = copy.copy(whole.job)
    train = job.config.train.model_copy(update={"epochs": epochs, "validate_every": every})
    object.__setattr__(job, "config", job.config.model_copy(update={"train": train}))
    watcher = Snapshots(job, whole.run, torch.device("cpu"), pytest.fail)
    monkeypatch.setattr(watcher, "_draw", lambda student, epoch, step: epoch)
    validated = [0, *(epoch for epoch in range(1, epochs + 1) if epoch % every == 0 or epoch == epochs)]
    found = [watcher(whole.student, epoch=epoch, step=epoch) for epoch in validated]
    assert [epoch for epoch in found if epoch is not None] == drawn


def test_grids_of_any_shapes(tmp_path):
    generator = np.random.default_rng(0)
    shapes = [(20, 30), (200, 50), (96, 96), (1, 300), (5, 5)]
    cells = [shrunk(generator.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]
    assert [cell.size for cell in cells] == [(30, 20), (24, 96), (96, 96), (96, 1), (5, 5)]
    write_grid(tmp_path / "samples" / "step-00000001.png", cells, heading="epoch 1")
    (file,) = grids(tmp_path).values()
    found = read_grid(file)
    assert found.heading == "epoch 1"
    for cell, other in zip(cells, found.cells, strict=True):
        assert (np.asarray(cell) == np.asarray(other)).all()
    plot_strip(tmp_path / STRIP, [Column("a heading that is far too long", cells), found], title="t")
    with Image.open(tmp_path / STRIP) as strip:
        assert strip.size == (2 * 10 + 2 * SIDE + 3, 10 + 2 * 18 + 3 + 5 * (SIDE + 3) - 3 + 10)
