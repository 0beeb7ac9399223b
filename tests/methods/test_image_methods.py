"""Methods on images that are made of others: discriminators of patches, pools, cycles; resuming, several processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.config.methods import AdversarialOptions, CycleGANOptions, ImageRegressionOptions
from kdcli.config.models import StudentConfig
from kdcli.config.parse import parse_config
from kdcli.data import Batch
from kdcli.machine.devices import make_accelerator
from kdcli.methods import build_method
from kdcli.methods.adversary import Scene
from kdcli.methods.base import Context
from kdcli.methods.cycle_gan import ImagePool
from kdcli.methods.patch_gan import PatchDiscriminator, pictures_of
from kdcli.models import build_student
from kdcli.models.outputs import ModelOutput
from kdcli.plan.decide import make_plan
from kdcli.plan.relation import situation_of
from kdcli.runs.folder import RunFolder
from kdcli.tasks.translation.task import ImageTranslation
from kdcli.terminal.reporters import SilentReporter
from kdcli.training.prepare import prepare_job
from kdcli.training.trainer import Trainer

TASK = "image-translation"
NAME = "generator:resnet6?channels=2&num_blocks=1"
SMALL = {"discriminator_channels": 2, "discriminator_layers": 1}


def student(name=NAME, seed=0):
    return build_student(StudentConfig(name=name, image_size=16), DataFacts.of_labels((), task=TASK), seed=seed)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_is_of_a_patch(layers, side):
    judge = PatchDiscriminator(3, 4, layers)
    torch.nn.Module.apply(
        judge, lambda part: setattr(part, "forward", lambda x: x) if "Norm" in type(part).__name__ else 0
    )
    images = rand(1, 3, 120, 120).requires_grad_()
    logits = judge(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    rows = images.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == side


def test_discriminators_have_the_reference_s_size():
    """2.765 M parameters, as the authors' program prints; of pairs 2.769 M."""
    assert [sum(p.numel() for p in PatchDiscriminator(n, 64, 3).parameters()) for n in (3, 6)] == [2_764_737, 2_767_809]


def test_a_pool_shows_older_images_by_one_half_and_goes_on_where_it_was():
    def run(pool, start, stop):
        return [
            int(pool.shown(torch.full((1, 1, 1, 1), float(n)), *torch.tensor([[n], [0]]), 0))
            for n in range(start, stop)
        ]

    pool, again = ImagePool(4, (1, 1, 1), "p"), ImagePool(4, (1, 1, 1), "p")
    shown = run(pool, 0, 400)
    assert shown[:4] == [0, 1, 2, 3]
    older = sum(now != n for n, now in enumerate(shown))
    assert 160 < older < 240
    assert len(set(shown)) == 400 - older + len(set(shown) - {n for n, now in enumerate(shown) if n == now})
    first = run(again, 0, 100)
    other = ImagePool(4, (1, 1, 1), "p")
    other.load_state_dict(again.state_dict())
    assert first + run(other, 100, 400) == shown
    assert run(ImagePool(0, (1, 1, 1), "p"), 0, 3) == [0, 1, 2]


class TestLosses:
    """Each by its formula, term by term."""

    def scene(self, model, targets):
        images = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(1)).byte()
        batch = Batch(images=images, targets=targets, samples=torch.arange(2))
        output = model(model.prepare(batch), Reads(heads=("image",)))
        return Scene(batch, model, None, None, lambda: output, lambda tensor: tensor)

    def build(self, options, model):
        task = ImageTranslation(is_paired=not isinstance(options, CycleGANOptions))
        torch.manual_seed(0)
        return build_method(options, Context(task, model.facts, None, None))

    def test_cycle_gan(self):
        model = student().eval()
        options = CycleGANOptions(**SMALL, second=NAME, cycle=7.0, identity=0.3, pool=0)
        method, scene = self.build(options, model).eval(), self.scene(model, rand(2, 3, 16, 16, seed=5))
        a, b = pictures_of(scene.batch, model), scene.batch.targets
        there, back = model.module, method.second
        assert not torch.equal(next(there.parameters()), next(back.parameters()))
        found = method.student_loss(scene).whole()
        expected = {
            "fool_b": (method.judge_b(there(a)) - 1).square().mean(),
            "fool_a": (method.judge_a(back(b)) - 1).square().mean(),
            "cycle": 7 * ((back(there(a)) - a).abs().mean() + (there(back(b)) - b).abs().mean()),
            "identity": 7 * 0.3 * ((there(b) - b).abs().mean() + (back(a) - a).abs().mean()),
        }
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
        found = method.adversary_loss(scene).whole()
        for name, judge, real, fake in (("a", method.judge_a, a, back(b)), ("b", method.judge_b, b, there(a))):
            halved = 0.5 * ((judge(real) - 1).square().mean() + judge(fake).square().mean())
            torch.testing.assert_close(found[f"judge_{name}"], halved)

    def test_adversarial(self):
        model, targets = student().eval(), rand(2, 3, 16, 16, seed=5)
        targets[1] = torch.nan  # plays no part
        method, scene = self.build(AdversarialOptions(**SMALL, loss="hinge"), model), self.scene(model, targets)
        a = pictures_of(scene.batch, model)[:1]
        real, fake = (method.discriminator(torch.cat([a, b], 1)) for b in (targets[:1], model.module(a)))
        torch.testing.assert_close(method.student_loss(scene).whole()["fool"], -fake.mean())
        halved = 0.5 * ((1 - real).relu() + (1 + fake).relu()).mean()
        torch.testing.assert_close(method.adversary_loss(scene).whole()["judge"], halved)

    def test_image_regression(self):
        model = student()
        method = self.build(ImageRegressionOptions(loss={"l1": 1.0, "l2": 2.0}), model)
        ours, theirs = rand(2, 3, 16, 16), rand(2, 3, 16, 16, seed=1)
        found = method(*(ModelOutput(heads={"image": side}) for side in (ours, theirs)), None, None).whole()
        torch.testing.assert_close(found, (ours - theirs).abs().mean() + 2 * (ours - theirs).square().mean())


def situation(kind, teacher=None, **values):
    values = {"task": TASK, "teacher": "none", "student": NAME, "data": "x", **values}
    values |= {key: {"name": values[key]} for key in ("teacher", "student", "data")}
    data = DataFacts("x", TASK, (), 8, 8, 4, 4, label_kind=kind)
    return situation_of(parse_config(values, source="t"), teacher=teacher, student=student().facts, data=data)


@pytest.mark.parametrize(
    ("kind", "methods", "told"),
    [
        ("unpaired", [{"method": "supervised"}], "compares an image with its own target"),
        ("unpaired", [{"method": "adversarial", **SMALL}], "needs an image for each image"),
        ("image", [{"method": "cycle_gan", **SMALL}], "needs images of two kinds without pairs"),
        ("image", [{"method": "adversarial", "discriminator_layers": 3}], "3 layers needs images of 24 pixels"),
        ("image", [{"method": "supervised"}, {"method": "logit_kd"}], "needs a teacher"),
        ("image", [{"method": "supervised", "loss": "silog"}], "has no loss 'silog'"),
        ("image", [{"method": "image_regression"}], "needs a teacher"),
    ],
)
def test_what_does_not_fit_is_refused(kind, methods, told):
    with pytest.raises(UserError, match=told):
        make_plan(situation(kind, methods=methods))


def test_what_is_trained_by_default():
    def names(*args):
        return [options.method for options in make_plan(situation(*args)).methods]

    trained = student().facts
    assert names("image") == ["supervised"]
    assert names("unpaired") == ["cycle_gan"]
    assert make_plan(situation("unpaired")).methods[0].discriminator_layers == 2  # of images of 16 pixels
    from dataclasses import replace

    same = replace(trained, pretrained=True)
    assert names("image", same) == ["supervised", "projection", "image_regression"]
    assert names("unpaired", same) == ["cycle_gan", "projection", "image_regression"]
    assert names("image", trained) == ["supervised", "projection"]
    other = replace(same, task="image-classification", heads=("logits",))
    assert make_plan(situation("image", other)).relation == "cross"
    with pytest.raises(UserError, match="needs a teacher that makes images"):
        make_plan(situation("image", other, methods=[{"method": "supervised"}, {"method": "image_regression"}]))
    with pytest.raises(UserError, match="compares probabilities, and an image has none"):
        make_plan(situation("image", same, methods=[{"method": "supervised"}, {"method": "logit_kd"}]))


def write_kinds(root):
    """Eight images of either kind to train on, four to validate, none to test."""
    for folder, count in (("trainA", 8), ("trainB", 6), ("valA", 4), ("valB", 3)):
        for number in range(count):
            (root / folder).mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng([len(folder), ord(folder[-1]), number]).integers(0, 256, (20, 20, 3))
            Image.fromarray(noise.astype(np.uint8)).save(root / folder / f"{number}.png")
    return root


def make_trainer(folder, data, kind="cycle_gan", **train):
    methods = {
        "cycle_gan": [{"method": "cycle_gan", **SMALL, "pool": 3}],
        "adversarial": [{"method": "supervised"}, {"method": "adversarial", **SMALL}],
    }[kind]
    spectral = {"method": "spectral_regularization", "weight": 0.1, "weighting": "gradient", "reads": "maps"}
    values = {
        "task": TASK,
        "teacher": {"name": "none"},
        "student": {"name": NAME, "image_size": 16, "pretrained": False},
        "data": {"name": str(data), "workers": 0, "eval_extractor": "random:test_resnet", "eval_extractor_size": 32},
        "optim": {"optimizer": "adam", "lr": 0.002, "warmup": 0, "schedule": "linear", "hold": 0.5, "betas": [0.5, 0.999]},
        "methods": [*methods, spectral],
        "train": {"epochs": 3, "batch_size": 4, "device": "cpu", "num_processes": 1, **train},
        "test": False,
    }  # fmt: skip
    config = parse_config(values, source="t")
    run = RunFolder(folder) if folder.exists() else RunFolder.create(folder)
    return Trainer(prepare_job(config), run, make_accelerator(config.train), SilentReporter())


def tensors(trainer):
    return {name: value.clone() for name, value in trainer.objective.state_dict().items()}


class Killed(Exception):
    """The process is gone."""


@pytest.fixture
def paired(tmp_path):
    for split, count in (("train", 8), ("val", 3)):
        for side in "AB":
            for number in range(count):
                path = tmp_path / "pairs" / split / side / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 20), (9 * number, 30 * (side == "B"), 90)).save(path)
    return tmp_path / "pairs"


@pytest.mark.parametrize("kind", ["cycle_gan", "adversarial"])
def test_a_resumed_run_is_the_same(tmp_path, monkeypatch, kind, paired):
    data = write_kinds(tmp_path / "kinds") if kind == "cycle_gan" else paired
    whole = make_trainer(tmp_path / "whole", data, kind)
    start = tensors(whole)
    whole.fit()
    end = tensors(whole)
    assert all(not torch.equal(start[name], end[name]) for name, _ in whole.objective.named_parameters())
    original = Trainer.train_step

    def dies(self, batch, epoch):
        if self.step == 4:
            raise Killed
        original(self, batch, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", dies)
        with pytest.raises(Killed):
            make_trainer(tmp_path / "killed", data, kind, checkpoint_every="3").fit()
    again = make_trainer(tmp_path / "killed", data, kind, checkpoint_every="3")
    again.restore(again.checkpoints.load(warn=pytest.fail))
    assert again.step == 3
    again.fit()
    for name, value in tensors(again).items():
        assert torch.equal(value, end[name]), name
    train = whole.run.read_metrics("train")
    rates = [record["lr"] for record in train]
    assert rates[0] == pytest.approx(0.002)
    assert rates[-1] < 0.002
    kept = whole.run.read_tensors("projector.safetensors")
    if kind == "cycle_gan":
        assert kept["cycle_gan.pool_a.filled"] == 3
        assert train[-1]["cycle_gan/cycle"] > 0


SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from tests.methods.test_image_methods import make_trainer, tensors
rank = sys.argv[1]
trainer = make_trainer(Path(f"{rank}-run"), Path("kinds"))
for step, batch in zip(range(3), [b for e in range(2) for b in trainer.loader.epoch(e, 0)]):
    trainer.train_step(batch, 0)
torch.save(tensors(trainer), f"{rank}-{trainer.team.rank}")
"""


def test_two_processes_are_as_one(tmp_path, forked, forked_together, monkeypatch):
    write_kinds(tmp_path / "kinds")
    root = Path(__file__).resolve().parents[2]
    monkeypatch.chdir(tmp_path)
    ((code, output),) = forked((SCRIPT, ["one", root], {}))
    assert code == 0, output
    forked_together(SCRIPT, ["two", root])
    one, first, second = (torch.load(tmp_path / name) for name in ("one-0", "two-0", "two-1"))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        # A bias before a normalisation has no gradient but by rounding, which Adam scales up; the norms that balances
        # keep are in units of the number of processes, and only their ratio is used.
        if not name.endswith("bias") and not name.startswith("balances"):
            torch.testing.assert_close(value, one[name], rtol=1e-3, atol=3e-4, msg=name)
