"""A method's adversary has a phase of its own: what each side steps, resuming, several processes, records."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdcli.base.errors import UserError
from kdcli.base.reads import Reads
from kdcli.config.methods import AdversaryOptions
from kdcli.config.parse import parse_config
from kdcli.machine.devices import make_accelerator
from kdcli.machine.seeding import draw
from kdcli.methods.adversary import AdversarialMethod, Losses, turned
from kdcli.methods.share import Share
from kdcli.projectors.maps import build_projector
from kdcli.runs.folder import RunFolder
from kdcli.terminal.reporters import SilentReporter
from kdcli.training.distiller import Distiller
from kdcli.training.prepare import prepare_job
from kdcli.training.trainer import Trainer

PHASE = "duel.critic"
pytestmark = pytest.mark.usefixtures("few_digits")


class Duel(AdversarialMethod):
    """The student's logits are to look like noise to a critic that also matches the frozen teacher, whitened."""

    adversary_name = "critic"
    student_reads = Reads(heads=("logits",))
    teacher_reads = Reads(("pooled",))

    def __init__(self, student, teacher, **options):
        super().__init__(AdversaryOptions(method="duel", adversary_lr=0.02, **options))
        self.width, self.seen = student.facts.num_classes, []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.critic = nn.Sequential(nn.Linear(self.width, 8), nn.Tanh())
            self.score = nn.Linear(8, 1, bias=False)
            self.projector = build_projector("orthogonal", 8, teacher.facts.feature_dims["pooled"])
            self.scale = nn.Parameter(torch.ones(self.width))  # of the student's side

    @property
    def adversary(self):
        return nn.ModuleList([self.critic, self.score, self.projector])

    def note(self, scene, phase):
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        ours = {name for name, p in scene.student.named_parameters() if p.requires_grad}
        self.seen.append((phase, scene.turn, trained, bool(ours)))

    def student_loss(self, scene):
        self.note(scene, "student")
        logits = scene.output.heads["logits"] * self.scale
        return Losses({"fool": Share.of(-self.score(self.critic(logits)))}, {"logits": logits})

    def adversary_loss(self, scene):
        self.note(scene, "critic")
        batch = turned(scene.batch, scene.turn)
        logits = scene.output.heads["logits"]
        again = scene.student(scene.student.prepare(batch), self.student_reads).heads["logits"]
        assert not logits.requires_grad
        noise = draw(batch.samples, batch.view, self.width, 0, "duel")
        features = self.critic(noise)
        teacher = scene.teacher(scene.teacher.prepare(batch), self.teacher_reads).features["pooled"]
        assert torch.equal(teacher, scene.teacher_output.features["pooled"])
        known = scene.gather(self.projector(features)), scene.gather(teacher)
        known = [side - side.mean(0) for side in known]
        return Losses(
            {
                "noise": Share.of((1 - self.score(features)).relu()),
                "student": Share.of((1 + self.score(self.critic(0.5 * (logits + again)))).relu()),
                "teacher": 0.1 * (known[0] - known[1]).square().mean(),
            }
        )


def make_trainer(folder, teacher="random:timm:test_vit", steps=1, options=None, optim=None, **train):
    values = {
        "teacher": {"name": teacher, "image_size": 32},
        "student": {"name": "test_vit2", "image_size": 32, "pretrained": False},
        "data": {"name": "demo:digits", "workers": 0},
        "optim": {"optimizer": "adam", "lr": 0.002, "warmup": 0, **(optim or {})},
        "methods": [{"method": "supervised"}, {"method": "projection", "projector": "linear"}],
        "train": {"epochs": 1, "batch_size": 64, "device": "cpu", "num_processes": 1, **train},
        "test": False,
    }
    config = parse_config(values, source="t")
    job = prepare_job(config)
    duel = Duel(job.student, job.teacher, adversary_steps=steps)
    job = replace(job, distiller=Distiller(job.student, {"duel": duel}, teacher=job.teacher))
    run = RunFolder(folder) if folder.exists() else RunFolder.create(folder)
    return Trainer(job, run, make_accelerator(config.train), SilentReporter())


def tensors(trainer):
    return {name: value.clone() for name, value in trainer.objective.state_dict().items()}


def assert_same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if tolerance:
            torch.testing.assert_close(value, second[name], msg=name, **tolerance)
        else:
            assert torch.equal(value, second[name]), name


class Killed(Exception):
    """The process is gone."""


def test_both_sides_step_and_a_resumed_run_is_the_same(tmp_path, monkeypatch):
    whole = make_trainer(tmp_path / "whole", steps=2)
    start = tensors(whole)
    whole.fit()
    end = tensors(whole)
    duel = whole.objective.methods["duel"]
    assert all(not torch.equal(start[name], end[name]) for name, _ in whole.objective.named_parameters())
    turns = [(phase, turn) for phase, turn, *_ in duel.seen]
    assert turns == [("critic", 0), ("critic", 1), ("student", 0)] * whole.total_steps
    own = {"scale"}
    critics = {name for name, _ in duel.named_parameters()} - own
    for phase, _, trained, student in duel.seen:
        assert (trained, student) == ((own, True) if phase == "student" else (critics, False))
    weight = duel.projector.matrix()
    torch.testing.assert_close(weight @ weight.T, torch.eye(8), atol=1e-5, rtol=0)  # it was retracted
    train, *_ = whole.run.read_metrics("train")
    assert train["loss"] == pytest.approx(train["loss/distillation"] + train[f"loss/{PHASE}"], rel=1e-5)
    assert train[f"loss/{PHASE}"] == pytest.approx(
        sum(train[f"{PHASE}/{term}"] for term in ("noise", "student", "teacher")), rel=1e-5
    )
    assert train["duel"] == pytest.approx(train["duel/fool"])
    assert train["lr"] == train["lr/distillation"] == pytest.approx(train[f"lr/{PHASE}"] / 10)
    assert train["feature_std/duel/logits"] > 0
    assert whole.run.read_tensors("projector.safetensors").keys() == whole.objective.methods.state_dict().keys()

    original = Trainer.train_step

    def dies(self, batch, epoch):
        if self.step == 4:
            raise Killed
        original(self, batch, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", dies)
        with pytest.raises(Killed):
            make_trainer(tmp_path / "killed", steps=2, checkpoint_every="3").fit()
    again = make_trainer(tmp_path / "killed", steps=2, checkpoint_every="3")
    again.restore(again.checkpoints.load(warn=pytest.fail))
    assert again.step == 3
    again.fit()
    assert_same(end, tensors(again))


def test_accumulation_betas_and_a_loss_that_is_not_finite(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="several steps a batch"):
        make_trainer(tmp_path / "steps", steps=2, accumulation=2)
    with pytest.raises(UserError, match="'sgd' has no two of them"):
        make_trainer(tmp_path / "sgd", optim={"optimizer": "sgd", "betas": [0.0, 0.9]})
    trainer = make_trainer(tmp_path / "run", accumulation=2, optim={"betas": [0.25, 0.9]})
    critic, student = trainer.state.phases._phases
    assert [phase.optimizer.param_groups[0]["betas"] for phase in (critic, student)] == [(0.5, 0.999), (0.25, 0.9)]
    monkeypatch.setattr(
        Duel, "adversary_loss", lambda self, scene: Losses({"noise": Share.of(self.score.weight * float("nan"))})
    )
    with pytest.raises(UserError, match=rf"The loss term '{PHASE}/noise' became NaN or infinite"):
        trainer.fit()


SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from tests.training.test_adversary import make_trainer, tensors
rank = sys.argv[1]
trainer = make_trainer(Path(f"{rank}-run"), epochs=1)
for step, batch in zip(range(3), trainer.loader.epoch(0, 0)):
    trainer.train_step(batch, 0)
torch.save(tensors(trainer), f"{rank}-{trainer.team.rank}")
torch.save(trainer.state.meter.read("image"), f"{rank}-{trainer.team.rank}-read")
"""


def test_two_processes_are_as_one(tmp_path, forked, forked_together, monkeypatch):
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    monkeypatch.chdir(tmp_path)
    ((code, output),) = forked((SCRIPT, ["one", root], {}))
    assert code == 0, output
    forked_together(SCRIPT, ["two", root])
    one, first, second = (torch.load(tmp_path / name) for name in ("one-0", "two-0", "two-1"))
    assert_same(first, second)
    assert_same(first, one, rtol=2e-4, atol=2e-5)
    one, first = (torch.load(tmp_path / name) for name in ("one-0-read", "two-0-read"))
    assert {name: value for name, value in first.items() if "/" in name} == pytest.approx(
        {name: value for name, value in one.items() if "/" in name}, rel=1e-3
    )
