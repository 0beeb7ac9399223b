"""How a step is computed is measured once, told, and written into the config."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdcli.base.errors import UserError
from kdcli.base.reads import Reads
from kdcli.config.models import TeacherConfig
from kdcli.config.parse import parse_config
from kdcli.machine.team import ALONE, Team
from kdcli.models import load_teacher
from kdcli.training import settle
from kdcli.training.optim import can_fuse, make_optimizer
from kdcli.training.prepare import prepare_job
from kdcli.training.settle import settle_step
from kdcli.training.teachers.cache import Kept
from kdcli.training.teachers.forward import Form, form_of, in_form

BASE = {
    "teacher": {"name": "random:test_efficientnet", "image_size": 32},
    "student": {"name": "test_resnet", "image_size": 32},
    "data": {"name": "demo:digits", "workers": 0},
    "train": {"epochs": 1, "batch_size": 16, "device": "cpu"},
}
FORMS = ("plain", "folded", "channels_last", "folded_channels_last")


@pytest.fixture(scope="module")
def base_job():
    return prepare_job(parse_config(BASE, source="test"))


@pytest.fixture
def make_job(base_job):
    """The job with other options; settling leaves models and data as they are."""

    def make(**sections):
        config = base_job.config
        update = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
        return replace(base_job, config=config.model_copy(update=update))

    return make


@pytest.fixture
def speeds(monkeypatch):
    """Seconds of each form, in place of measured ones; every model is worth measuring, nothing is recalled."""
    given = {}

    def race(runs, team):
        return {name: given.get(getattr(name, "name", name), 1.0) / (2 if is_narrow(name) else 1) for name in runs}

    def is_narrow(form):
        return getattr(form, "precision", None) == torch.bfloat16

    monkeypatch.setattr(settle, "_race", race)
    monkeypatch.setattr(settle, "_LEAST_MACS", 0)
    monkeypatch.setattr(Kept, "recall", lambda *_: None)
    return given


def rows(job):
    return {decision.name: decision for decision in job.plan.decisions}


def test_the_fastest_form_is_taken_told_and_written_down(speeds, make_job):
    speeds |= {"folded": 0.8, "folded_channels_last": 0.5, "channels_last": 0.9}
    job = settle_step(make_job(), ALONE)
    train = job.config.train
    assert (train.teacher_forward, train.channels_last, train.fused_optimizer) == ("folded_channels_last", True, True)
    assert rows(job)["teacher's forward"].value == "folded, channels-last: 2.00x"
    assert rows(job)["student's layout"].value == "channels-last: 1.11x"
    again = settle_step(make_job(train=train.model_dump()), ALONE)
    assert again.config.train == train
    assert rows(again)["teacher's forward"].value == "folded, channels-last"
    assert rows(again)["teacher's forward"].reason.startswith("Asked for.")
    assert "student's layout" not in rows(again)


def test_what_is_hardly_faster_stays_plain(speeds, make_job):
    speeds |= dict.fromkeys(FORMS[1:], 0.97)
    job = settle_step(make_job(), ALONE)
    assert (job.config.train.teacher_forward, job.config.train.channels_last) == ("plain", False)
    assert rows(job)["teacher's forward"].value == "plain"


def test_a_small_model_is_not_measured(make_job, monkeypatch):
    monkeypatch.setattr(settle, "_race", None)
    job = settle_step(make_job(), ALONE)
    assert (job.config.train.teacher_forward, job.config.train.channels_last) == ("plain", False)
    assert not {"teacher's forward", "student's layout"} & rows(job).keys()


def test_a_form_that_changes_outputs_is_not_taken(speeds, make_job, monkeypatch):
    speeds |= {"folded": 0.5}
    monkeypatch.setattr(settle, "EXACT", 1e-12)
    job = settle_step(make_job(), ALONE)
    assert job.config.train.teacher_forward == "plain"
    assert "folded would change outputs by" in rows(job)["teacher's forward"].reason


def test_a_form_that_cannot_be_is_told(speeds, make_job, monkeypatch):
    speeds |= dict.fromkeys(FORMS[1:], 0.5)
    job = make_job()
    student = copy.deepcopy(job.student)
    job = replace(job, teacher=copy.deepcopy(job.teacher), distiller=copy.copy(job.distiller))
    monkeypatch.setitem(job.distiller._modules, "student", student)

    class View(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1).view(x.shape)

    for model in (job.teacher.module, job.student.module):
        first = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
        model.set_submodule(first, nn.Sequential(model.get_submodule(first), View()))
    settled = settle_step(job, ALONE)
    assert (settled.config.train.teacher_forward, settled.config.train.channels_last) == ("folded", False)
    assert "channels_last can't be: view size is not compatible" in rows(settled)["teacher's forward"].reason
    asked = replace(job, config=make_job(train={"channels_last": True}).config)
    with pytest.raises(UserError, match="can't be run as asked for: view size"):
        settle_step(asked, ALONE)


@pytest.mark.parametrize(
    ("asked", "limit", "narrow"), [("bfloat16", 0, True), ("auto", 1, True), ("auto", 0, False), ("float32", 1, False)]
)
def test_half_precision_is_taken_where_it_is_asked_for_or_costs_little(
    asked, limit, narrow, speeds, make_job, monkeypatch
):
    speeds |= {"folded": 0.5}
    monkeypatch.setattr(settle, "BF16_COST", limit)
    job = settle_step(make_job(teacher={"precision": asked}), ALONE)
    own = None if asked == "auto" else asked  # that of the training, with which it was compared
    assert job.config.teacher.precision == ("bfloat16" if narrow else own)
    assert rows(job)["teacher's forward"].value.startswith("folded, bfloat16" if narrow else "folded: 2.00x")
    form = form_of(job.config)
    assert form == Form(folded=True, precision=torch.bfloat16 if narrow else own and torch.float32)


def test_the_main_process_decides(speeds, make_job):
    class Other(Team):
        def broadcast(self, value):
            assert value is None
            return settle._Choice(name="folded", speed=3.0)

    job = settle_step(make_job(), Other(1, 2))
    assert job.config.train.teacher_forward == "folded"


def test_what_was_measured_is_recalled(make_job, monkeypatch):
    monkeypatch.setattr(settle, "_LEAST_MACS", 0)
    monkeypatch.setattr(settle, "_race", lambda runs, team: dict.fromkeys(runs, 1.0) | {list(runs)[-1]: 0.1})
    first = settle_step(make_job(), ALONE)
    monkeypatch.setattr(settle, "_race", None)
    job = make_job()
    assert settle_step(job, ALONE).config == first.config
    with pytest.raises(TypeError):  # of another batch
        settle_step(make_job(train={"batch_size": 8}), ALONE)
    other = copy.deepcopy(job.teacher)
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    with pytest.raises(TypeError):  # of other weights, whose outputs a form may change by more
        settle_step(replace(job, teacher=other), ALONE)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_a_form_gives_what_the_teacher_gives(folded, last):
    teacher = load_teacher(TeacherConfig(name="random:test_efficientnet"), seed=0)
    teacher.open_taps(["blocks.1"])
    reads = Reads(("pooled", "blocks.1"), ("blocks.1",), ("logits",))
    inputs = teacher.example(3)
    expected = Form().run(teacher, inputs, reads)
    for precision, tolerance in ((None, 1e-5), (torch.bfloat16, 0.05)):
        form = Form(folded, last, precision)
        model = in_form(teacher, form, reads)
        assert (model is teacher) == (form == Form())
        assert model.module.conv_stem.weight.dtype == (precision or torch.float32)
        found = form.run(model, inputs, reads)
        for ours, theirs in zip(settle._parts(found), settle._parts(expected), strict=True):
            for name, value in theirs.items():
                assert ours[name].dtype == torch.float32
                assert (ours[name] - value).abs().max() <= tolerance * value.abs().max()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("adamw", True), ("sgd", True), ("adam", True), ("lamb", False), ("lookahead_adamw", False), ("lion", False)],
)
def test_torchs_optimisers_are_fused(name, expected):
    config = parse_config(BASE | {"optim": {"optimizer": name}}, source="test").optim
    assert can_fuse(config, torch.device("cpu")) == expected
    assert not can_fuse(config, torch.device("meta"))


@pytest.mark.parametrize("name", ["adamw", "sgd", "adam"])
@pytest.mark.parametrize("last", [False, True])
def test_a_fused_step_is_the_step(name, last):
    """Also of weights in another order in memory, whose gradients may come in the usual one."""
    config = parse_config(BASE | {"optim": {"optimizer": name, "lr": 0.01}}, source="test").optim
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 3, groups=4))
        if last:
            model.to(memory_format=torch.channels_last)
        groups = [{"params": list(model.parameters()), "lr": 0.01, "weight_decay": 0.1}]
        optimizer = make_optimizer(groups, config, fused=fused)
        assert bool(optimizer.param_groups[0].get("fused")) == fused
        for _ in range(5):
            model(torch.randn(2, 3, 9, 9)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append([parameter.detach() for parameter in model.parameters()])
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
