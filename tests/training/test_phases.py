"""Several phases of one objective: each has its optimiser, rate and steps, and a resumed run goes on bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdcli.base.errors import UserError
from kdcli.base.reads import Reads
from kdcli.config.parse import parse_config
from kdcli.machine.devices import make_accelerator
from kdcli.runs.folder import RunFolder
from kdcli.terminal.reporters import SilentReporter
from kdcli.training.optim import make_optimizer, make_schedule
from kdcli.training.phases import Objective, Part, Phase
from kdcli.training.prepare import prepare_job
from kdcli.training.trainer import Trainer

RATES = {"critic": 0.02, "student": 0.005}
CRITIC_STEPS = 3
pytestmark = pytest.mark.usefixtures("few_digits")


class Duel(Objective):
    """A student whose features a critic tells from noise, and which pleases the critic and the labels: a small GAN."""

    def __init__(self, student, critic_steps=CRITIC_STEPS):
        super().__init__()
        self.student, self.critic_steps = student, critic_steps
        self.width = student.facts.feature_dims["embedding"]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.critic = nn.Sequential(nn.Linear(self.width, 8), nn.Tanh(), nn.Linear(8, 1))
        self.step = 0
        self.seen = []

    def phases(self, config, updates):
        made = []
        for name, part, steps in (("critic", self.critic, self.critic_steps), ("student", self.student, 1)):
            optim = config.optim.model_copy(update={"lr": RATES[name]})
            groups = [{"params": list(part.parameters()), "lr": optim.lr, "weight_decay": 0.0}]
            optimizer = make_optimizer(groups, optim)
            made.append(Phase(name, optimizer, make_schedule(optimizer, optim, updates), steps))
        return made

    def parts(self):
        return {"student": Part(self.student, "student"), "critic": Part(self.critic, "critic")}

    def kept_tensors(self):
        return self.critic.state_dict()

    def forward(self, batch, teacher_outputs, *, phase):
        self.seen.append((phase, {name for name, p in self.named_parameters() if p.requires_grad}))
        output = self.student(self.student.prepare(batch), Reads(("embedding",), heads=("logits",)))
        features = output.features["embedding"]
        scores = self.critic(features).squeeze(1)
        if phase == "critic":
            noise = self.critic(torch.randn(len(batch), self.width)).squeeze(1)
            return {"loss": (1 - noise).relu().mean() + (1 + scores).relu().mean()}
        supervised = nn.functional.cross_entropy(output.logits, batch.targets)
        return {"loss": supervised - 0.1 * scores.mean(), "supervised": supervised}


def make_trainer(folder, objective=Duel, **train):
    values = {
        "teacher": "none",
        "student": {"name": "test_resnet", "image_size": 32},
        "data": {"name": "demo:digits", "workers": 0},
        "optim": {"optimizer": "adamw", "warmup": 0},
        "train": {"epochs": 2, "batch_size": 64, "device": "cpu", **train},
        "test": False,
    }
    config = parse_config(values, source="t")
    job = prepare_job(config)
    if objective is not None:
        job = replace(job, distiller=objective(job.student))
    run = RunFolder(folder) if folder.exists() else RunFolder.create(folder)
    return Trainer(job, run, make_accelerator(config.train), SilentReporter())


def tensors(trainer):
    return {name: value.clone() for name, value in trainer.objective.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


class Killed(Exception):
    """The process is gone."""


def test_each_phase_steps_its_own_and_a_resumed_run_is_the_same(tmp_path, monkeypatch):
    whole = make_trainer(tmp_path / "whole")
    start = tensors(whole)
    whole.fit()
    end = tensors(whole)
    assert all(not torch.equal(start[name], end[name]) for name, _ in whole.objective.named_parameters())
    steps = [phase for phase, _ in whole.objective.seen]
    assert steps == (["critic"] * CRITIC_STEPS + ["student"]) * whole.total_steps
    for phase, trained in whole.objective.seen:
        assert {name.partition(".")[0] for name in trained} == {phase}
    train, *_ = whole.run.read_metrics("train")
    assert train["loss"] == pytest.approx(train["loss/critic"] + train["loss/student"], rel=1e-5)
    assert train["lr"] == train["lr/critic"] == pytest.approx(train["lr/student"] * RATES["critic"] / RATES["student"])
    assert whole.run.read_tensors("projector.safetensors").keys() == whole.objective.critic.state_dict().keys()

    original = Trainer.train_step

    def dies(self, batch, epoch):
        if self.step == 7:
            raise Killed
        original(self, batch, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", dies)
        with pytest.raises(Killed):
            make_trainer(tmp_path / "killed", checkpoint_every="3").fit()
    again = make_trainer(tmp_path / "killed", checkpoint_every="3")
    again.restore(again.checkpoints.load(warn=pytest.fail))
    assert again.step == 6
    again.fit()
    assert_same(end, tensors(again))
    first, second = (trainer.checkpoints.load(warn=pytest.fail).state["optimizers"] for trainer in (whole, again))
    assert first.keys() == second.keys() == RATES.keys()
    for name, optimizer in first.items():
        for number, moments in optimizer["state"].items():
            assert_same(moments, second[name]["state"][number])


def test_one_phase_alone_is_the_plain_loop(tmp_path):
    """The critic of a frozen student, by hand: three steps a batch of the loop's own optimiser and schedule."""
    trainer = make_trainer(tmp_path / "run", accumulation=1)
    batch = next(iter(trainer.loader.epoch(0, 0)))
    by_hand = make_trainer(tmp_path / "hand").objective
    config = trainer.job.config
    critic, student = by_hand.phases(config, trainer.total_steps)
    by_hand.train()
    trainer.objective.train()
    torch.manual_seed(1)
    for phase in (critic, student):
        for _ in range(phase.steps):
            by_hand(batch, None, phase=phase.name)["loss"].backward()
            nn.utils.clip_grad_norm_(phase.parameters, config.optim.clip_grad)
            phase.optimizer.step()
            by_hand.zero_grad()
    torch.manual_seed(1)
    trainer.state.phases.step(batch, None, 0)
    assert_same(by_hand.state_dict(), trainer.objective.state_dict())


def test_phases_that_share_a_parameter_are_refused(tmp_path):
    class Shared(Duel):
        def phases(self, config, updates):
            critic, student = super().phases(config, updates)
            student.optimizer.add_param_group({"params": critic.parameters[:1]})
            return [critic, student]

    with pytest.raises(ValueError, match="parameters of their own"):
        make_trainer(tmp_path / "run", Shared)


def test_several_steps_a_batch_can_not_be_accumulated(tmp_path):
    with pytest.raises(UserError, match="several steps a batch"):
        make_trainer(tmp_path / "run", accumulation=2)
    trainer = make_trainer(tmp_path / "one", lambda student: Duel(student, critic_steps=1), accumulation=2, epochs=1)
    assert trainer.fit().steps == trainer.total_steps


def test_a_checkpoint_of_an_earlier_version_has_one_optimiser(tmp_path):
    trainer = make_trainer(tmp_path / "run", None, epochs=1)
    trainer.fit()
    saved = trainer.state.to_checkpoint()
    (saved["optimizer"],) = saved.pop("optimizers").values()
    again = make_trainer(tmp_path / "again", None, epochs=1)
    again.state.restore(saved, tmp_path)
    assert again.step == trainer.step
    ((_, now),) = again.state.to_checkpoint()["optimizers"].items()
    assert len(now["state"]) == len(saved["optimizer"]["state"]) > 0
    for number, moments in saved["optimizer"]["state"].items():
        assert_same(moments, now["state"][number])


SCRIPT = """
import sys
import torch
from torch import nn
from kdcli.config.parse import parse_config
from kdcli.machine.devices import make_accelerator
from kdcli.training.optim import make_schedule
from kdcli.training.phases import Objective, Phase, Phases

class Game(Objective):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)

    def parts(self):
        return {}

    def phases(self, config, updates):
        parts = {"second": self.second, "first": self.first}
        optimizers = {name: torch.optim.SGD(part.parameters(), lr=0.1) for name, part in parts.items()}
        return [Phase(name, made, make_schedule(made, config.optim, updates)) for name, made in optimizers.items()]

    def forward(self, batch, teacher_outputs, *, phase):
        scores = self.second(self.first(batch))
        return {"loss": scores.mean() if phase == "second" else -scores.square().mean()}

def play(name):
    sections = {"train": {"device": "cpu", "accumulation": 2}, "optim": {"warmup": 0, "schedule": "constant"}}
    config = parse_config({"teacher": "t", "student": "s", "data": "d", **sections}, source="t")
    accelerator, game = make_accelerator(config.train), Game()
    phases = Phases(game, config, 2, accelerator)
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    for step, batch in enumerate(torch.randn(4, 8, 4, generator=torch.Generator().manual_seed(1))):
        phases.step(batch[share], None, step)
    torch.save(game.state_dict(), f"{name}-{accelerator.process_index}")

play(sys.argv[1])
"""


def test_two_processes_step_as_one(tmp_path, forked, forked_together):
    """Two accumulated batches of each update are shared; the other phase's parameters are frozen in each."""
    ((code, output),) = forked((SCRIPT, [tmp_path / "one"], {}))
    assert code == 0, output
    forked_together(SCRIPT, [tmp_path / "two"])
    one, first, second = (torch.load(tmp_path / name) for name in ("one-0", "two-0", "two-1"))
    assert_same(first, second)
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)
