"""The loop's promises: the same stream whatever runs it, the best student kept, the test split touched once."""

import json
import math
import os
import re
import signal
from dataclasses import replace

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file

import kdcli.data.images.sources as data_sources
import kdcli.machine.devices as devices_module
import kdcli.training.distiller as distiller_module
import kdcli.training.trainer as trainer_module
from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.base.tasks import TaskFacts
from kdcli.config.data import DataConfig
from kdcli.config.parse import parse_config
from kdcli.config.run import RunConfig
from kdcli.data import Batch, open_data
from kdcli.data.epoch import train_indices
from kdcli.machine.devices import make_accelerator, resolve_precision
from kdcli.models.outputs import ModelOutput
from kdcli.plan.checks import check_mixing
from kdcli.projectors.spectra import numerical_rank, stable_rank
from kdcli.projectors.stiefel import orthogonality_error
from kdcli.runs.checkpoint import Checkpoints
from kdcli.runs.folder import RunFolder
from kdcli.tasks import rank_students
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.terminal.reporters import SilentReporter
from kdcli.training.hardware import hardware_errors
from kdcli.training.job import Job
from kdcli.training.meters import of_teacher
from kdcli.training.prepare import prepare_job, reopen_job
from kdcli.training.teachers.teacher import LiveTeacher
from kdcli.training.trainer import Trainer

BASE = {
    "teacher": {"name": "random:test_efficientnet", "image_size": 32},
    "student": {"name": "test_resnet", "image_size": 32},
    "data": {"name": "demo:digits", "workers": 0},
    "train": {"epochs": 2, "batch_size": 64, "device": "cpu"},
}
pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.mark.parametrize(("split", "name"), [("train", "training"), ("validation", "validation"), ("test", "test")])
@pytest.mark.parametrize("label", [10, -2])
def test_a_label_that_is_no_class_is_refused_before_training(split, name, label, monkeypatch):
    """Whoever opened the data."""
    data = open_data(DataConfig(name="demo:digits"), seed=0)
    source = getattr(data, split)
    data = replace(data, **{split: source.take(range(4), [0, UNLABELLED, label, 9])})
    monkeypatch.setattr(ImageClassification, "open", lambda *_, **__: data)
    told = rf"{re.escape(source.describe(2))} of the {name} split has the label {label}, and the 10 classes"
    with pytest.raises(UserError, match=told):
        prepare_job(parse_config(BASE, source="test"))


def test_what_can_be_mixed_is_up_to_the_task(monkeypatch):
    """One of another package says it of itself, whatever its labels are."""
    facts = TaskFacts("mine", "image", "pixels", "dense", "image-segmentation", mixes=True)
    monkeypatch.setattr(RunConfig, "task_facts", facts)
    config = parse_config(BASE | {"augment": {"mixup": 1.0}}, source="test")
    check_mixing(config)
    mix = Job(config, None, ImageClassification("ab"), None, None, None).mix()
    batch = Batch(images=torch.zeros(2, 3, 4, 4), targets=torch.tensor([0, 1]), samples=torch.arange(2))
    assert mix(batch, 0, 0).targets.shape == (2, 3)
    with pytest.raises(UserError, match="these have other targets"):
        mix(replace(batch, targets=torch.zeros(2, 4, 4, dtype=torch.int64)), 0, 0)


class Silent(SilentReporter):
    def __init__(self):
        self.names = []
        self.warnings = []

    def skipped(self, name):
        self.names.append(name)

    def warned(self, message):
        self.warnings.append(message)


def merged(base, changes):
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    return values


def run(folder, reporter=None, **changes):
    config = parse_config(merged(BASE, changes), source="test")
    accelerator = make_accelerator(config.train)
    job = prepare_job(config)
    opened = RunFolder.create(folder)
    opened.write_config(job.config)
    return Trainer(job, opened, accelerator, reporter or Silent()).fit(), opened, job


def weights(opened):
    return load_file(opened.student / "model.safetensors")


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_run_is_a_function_of_its_config_whatever_the_number_of_workers(tmp_path):
    _, first, _ = run(tmp_path / "a", augment__mixup=0.5, augment__cutmix=1.0)
    torch.manual_seed(1234)  # what went on before must not matter
    _, second, _ = run(tmp_path / "b", augment__mixup=0.5, augment__cutmix=1.0, data__workers=2)
    assert_same(weights(first), weights(second))
    for name in ("projector.safetensors", "spectra.safetensors"):
        assert_same(first.read_tensors(name), second.read_tensors(name))
    _, third, _ = run(tmp_path / "c", augment__mixup=0.5, augment__cutmix=1.0, seed=1)
    assert not all(torch.equal(value, weights(third)[name]) for name, value in weights(first).items())


def test_the_run_folder_records_everything(tmp_path):
    result, opened, _ = run(tmp_path / "run")
    lines = [json.loads(line) for line in (opened.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["train", "validation", "train", "validation", "test"]
    assert result.steps == 2 * (360 // 64) == lines[-2]["step"]
    for line in lines[:1]:
        # Means over the steps, in which the balanced weight changes.
        weighted = line["supervised"] + line["weight/projection"] * line["projection"]
        assert line["loss"] == pytest.approx(weighted, rel=0.05)
    spectra = opened.read_tensors("spectra.safetensors")
    assert spectra["steps"].tolist() == [0, 5, 10]
    assert torch.allclose(spectra["projection"][0], torch.ones_like(spectra["projection"][0])), (
        "the inverted projector starts with equal values"
    )
    assert set(result.test) == {"accuracy", "top5", "loss"}
    assert {p.name for p in opened.path.iterdir()} == {
        "config.yaml", "metrics.jsonl", "student", "projector.safetensors", "spectra.safetensors", "checkpoints",
        "validation_samples.safetensors", "test_samples.safetensors",
    }  # fmt: skip


def test_reopening_gives_the_best_student_and_its_projector(tmp_path):
    _, opened, job = run(tmp_path / "run", train__epochs=1)
    again = reopen_job(opened)
    assert_same(again.student.module.state_dict(), job.student.module.state_dict())
    assert_same(again.distiller.methods.state_dict(), job.distiller.methods.state_dict())


def test_the_best_student_by_validation_is_kept_and_the_test_split_is_read_once(tmp_path, monkeypatch):
    """Validation says 0.3, 0.9, 0.9 with a higher loss, 0.5: the second epoch's weights are the ones to keep."""
    answers = iter([(0.3, 1.0), (0.9, 1.0), (0.9, 2.0), (0.5, 0.1), (0.7, 0.7)])
    seen, snapshots = [], []

    def evaluate(job, model, source, accelerator, skip, note):
        seen.append("test" if source is job.data.test else "validation")
        snapshots.append({name: value.clone() for name, value in model.module.state_dict().items()})
        accuracy, loss = next(answers)
        return {"accuracy": accuracy, "loss": loss}

    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    result, opened, _ = run(tmp_path / "run", train__epochs=4, train__batch_size=256)
    assert seen == ["validation"] * 4 + ["test"]
    assert result.validation["epoch"] == 2
    assert result.test["accuracy"] == 0.7
    assert_same(weights(opened), snapshots[1])
    assert_same(snapshots[4], snapshots[1])


def test_students_are_ranked_by_one_rule():
    """Higher is better; NaN ranks below the lowest number; ties go to the lower loss; a loss that is NaN is worst."""
    ascending = [(0.9, math.nan), (math.nan, 2.0), (math.nan, 1.0), (-0.5, 1.0), (-0.5, 0.5), (0.25, 9.0)]
    ranks = [rank_students({"pearson": value, "loss": loss}, "pearson") for value, loss in ascending]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(ranks)
    assert rank_students({"own": 1.0}, "own") > rank_students({"own": 0.5}, "own"), "another package's, without a loss"


def validations(monkeypatch, *answers):
    """Let the validations have these accuracies and losses; the test at the end has the last ones."""
    left, snapshots = list(answers), []

    def evaluate(job, model, source, accelerator, skip, note):
        snapshots.append({name: value.clone() for name, value in model.module.state_dict().items()})
        accuracy, loss = left.pop(0) if len(left) > 1 else left[0]
        return {"accuracy": accuracy, "loss": loss}

    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    return snapshots


def test_a_metric_that_is_no_number_at_first_keeps_no_student_for_ever(tmp_path, monkeypatch):
    """The correlation of a constant prediction is NaN; the second epoch's is -0.1, and that student is the best."""
    snapshots = validations(monkeypatch, (math.nan, 1.0), (-0.1, 2.0), (math.nan, 0.1), (0.0, 0.0))
    result, opened, _ = run(tmp_path / "run", train__epochs=3, train__batch_size=256)
    assert (result.validation["epoch"], result.validation["accuracy"]) == (2, -0.1)
    assert_same(weights(opened), snapshots[1])


def test_a_student_whose_loss_is_no_number_is_never_the_best(tmp_path, monkeypatch):
    snapshots = validations(monkeypatch, (0.9, math.nan), (0.1, 1.0), (0.9, math.inf), (0.5, 0.5))
    reporter = Silent()
    result, opened, _ = run(tmp_path / "run", reporter, train__epochs=3, train__batch_size=256)
    assert result.validation["epoch"] == 2
    assert_same(weights(opened), snapshots[1])
    assert sum("can't be the best" in warning for warning in reporter.warnings) == 2


def test_a_run_without_any_fit_student_is_an_error(tmp_path, monkeypatch):
    validations(monkeypatch, (0.9, math.nan))
    with pytest.raises(UserError, match="gave a finite loss"):
        run(tmp_path / "run", train__epochs=1, train__batch_size=256)
    assert not (tmp_path / "run" / "student").exists()


@pytest.mark.parametrize("ema", [None, 0.9])
def test_damaged_weights_do_not_replace_the_best_student(tmp_path, monkeypatch, ema):
    """Weights are NaN after the last step of the second epoch, and accuracy would still be a number."""
    snapshots = validations(monkeypatch, (0.1, 1.0), (0.9, 1.0))
    original = trainer_module.Trainer.train_step

    def train_step(self, batch, epoch):
        original(self, batch, epoch)
        if epoch == 1:
            with torch.no_grad():
                next(self.student.parameters()).fill_(math.nan)

    monkeypatch.setattr(trainer_module.Trainer, "train_step", train_step)
    with pytest.raises(UserError, match="weights became NaN or infinite up to step 2") as caught:
        run(tmp_path / "run", train__epochs=2, train__batch_size=256, train__ema=ema)
    assert "best student from before are kept" in caught.value.hint
    assert_same(weights(RunFolder(tmp_path / "run")), snapshots[0])
    assert len(snapshots) == 1


def test_the_moving_average_is_what_is_kept(tmp_path, monkeypatch):
    """After each update: average <- d average + (1 - d) student, d growing as timm's warm-up says."""
    trail = []
    original = trainer_module.WeightAverage.update

    def update(self, model, step=None):
        before = self.module.module.conv1[0].weight.detach().clone()
        original(self, model, step=step)
        decay = self.get_decay(step)
        expected = decay * before + (1 - decay) * model.module.conv1[0].weight.detach()
        torch.testing.assert_close(self.module.module.conv1[0].weight, expected)
        trail.append(self.module.module.conv1[0].weight.detach().clone())

    monkeypatch.setattr(trainer_module.WeightAverage, "update", update)
    result, opened, job = run(tmp_path / "run", train__ema=0.9, train__epochs=1)
    assert len(trail) == result.steps
    assert torch.equal(weights(opened)["conv1.0.weight"], trail[-1])
    assert not torch.equal(trail[-1], job.student.module.conv1[0].weight)


def test_accumulation_steps_once_for_so_many_batches(tmp_path, monkeypatch):
    updates = []
    original = distiller_module.make_schedule

    def make_schedule(optimizer, optim, total):
        schedule = original(optimizer, optim, total)
        step = schedule.step_update
        schedule.step_update = lambda update: (updates.append(update), step(update))
        return schedule

    monkeypatch.setattr(distiller_module, "make_schedule", make_schedule)
    result, _, _ = run(tmp_path / "run", train__accumulation=4, train__batch_size=36, train__epochs=1)
    assert result.steps == 8, "10 batches are two whole groups of 4; the rest would fill no group"
    assert updates == [1, 2]


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    """Without batch statistics, two halves accumulated and the whole batch at once give the same weights."""
    student = {"name": "test_vit", "image_size": 32}
    common = {
        "student": student, "teacher": "none", "methods": [{"method": "supervised"}], "train__epochs": 1,
        "optim__optimizer": "sgd", "optim__clip_grad": None, "optim__warmup": 0, "augment__flip": 0,
    }  # fmt: skip
    _, whole, _ = run(tmp_path / "a", **common, train__batch_size=360)
    _, halves, _ = run(tmp_path / "b", **common, train__batch_size=180, train__accumulation=2)
    job = prepare_job(parse_config(merged(BASE, common), source="t"))
    start = job.student.module.state_dict()
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(halves)[name], rtol=1e-3, atol=1e-6)
    moved = max(float((value - start[name]).abs().max()) for name, value in weights(whole).items())
    assert moved > 1e-4


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_projector_stays_orthogonal_and_float32_under_autocast(tmp_path, precision):
    options = {"methods": [{"method": "supervised"}, {"method": "projection", "projector": "orthogonal"}]}
    few = {"data__train_images": 64, "train__batch_size": 16, "train__epochs": 1}  # a CPU takes long over bfloat16
    _, opened, _ = run(tmp_path / "run", **options, **few, train__mixed_precision=precision, optim__lr=0.01)
    matrix = opened.read_tensors("projector.safetensors")["projection.projector.weight"]
    assert matrix.dtype == torch.float32
    assert float(orthogonality_error(matrix)) <= 1e-5
    assert all(value.dtype != torch.bfloat16 for value in weights(opened).values())


def test_channels_last_trains_the_same_student_up_to_rounding(tmp_path):
    first, _, _ = run(tmp_path / "a", train__epochs=1)
    second, _, job = run(tmp_path / "b", train__epochs=1, train__channels_last=True)
    assert job.student.module.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert second.validation["loss"] == pytest.approx(first.validation["loss"], rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        ImageClassification, "supervised_loss", lambda *_, **__: torch.tensor(math.nan, requires_grad=True)
    )
    with pytest.raises(UserError, match="'supervised' became NaN or infinite at step 1"):
        run(tmp_path / "run")


def test_a_teacher_that_gives_no_numbers_is_named(tmp_path, monkeypatch):
    original = LiveTeacher.__call__

    def damaged(self, batch):
        output = original(self, batch)
        return replace(output, features={tap: features * math.nan for tap, features in output.features.items()})

    monkeypatch.setattr(LiveTeacher, "__call__", damaged)
    with pytest.raises(UserError, match=r"The teacher's features '.*' are NaN or infinite at step 1") as raised:
        run(tmp_path / "run")
    assert "mask classes by -inf" in raised.value.hint


@pytest.mark.parametrize("row", [[-math.inf, -math.inf], [math.nan, 1.0], [math.inf, 1.0]])
def test_a_teacher_may_mask_classes_but_not_all(row):
    masked = torch.tensor([[1.0, -math.inf], [2.0, 3.0]])
    assert all(value.isfinite().all() for value in of_teacher(ModelOutput(heads={"logits": masked})).values())
    bad = of_teacher(ModelOutput(heads={"logits": torch.stack([masked[0], torch.tensor(row)])}))
    assert [name for name, value in bad.items() if not value.isfinite().all()] == ["The teacher's logits"]


def test_a_later_nan_keeps_the_checkpoint_before_it(tmp_path, monkeypatch):
    """The fourth batch's loss is NaN: the checkpoint of step 2 is the last, and its weights are finite."""
    calls, original = [], ImageClassification.supervised_loss

    def supervised_loss(self, logits, targets, **options):
        calls.append(1)
        loss = original(self, logits, targets, **options)
        return loss * math.nan if len(calls) == 4 else loss

    monkeypatch.setattr(ImageClassification, "supervised_loss", supervised_loss)
    with pytest.raises(UserError, match="'supervised' became NaN or infinite at step 4"):
        run(tmp_path / "run", train__checkpoint_every="2")
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [2]
    checkpoint = Checkpoints(tmp_path / "run" / "checkpoints").load(warn=pytest.fail)
    assert all(value.isfinite().all() for value in checkpoint.state["student"].values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    """A gradient can be infinite where the loss is not; then the weights are wrong before any loss is."""
    original = trainer_module.Trainer.train_step

    def train_step(self, batch, epoch):
        original(self, batch, epoch)
        if self.step == 3:
            with torch.no_grad():
                next(self.objective.student.parameters()).fill_(math.nan)

    monkeypatch.setattr(trainer_module.Trainer, "train_step", train_step)
    with pytest.raises(UserError, match="weights became NaN or infinite up to step 3"):
        run(tmp_path / "run", train__checkpoint_every="1", train__keep_checkpoints=9)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [1, 2]


def test_bounds_of_a_model_may_be_infinite(tmp_path, monkeypatch):
    original = trainer_module.Trainer.__init__

    def init(self, job, *arguments, **options):
        job.distiller.register_buffer("bound", torch.tensor(math.inf))
        original(self, job, *arguments, **options)

    monkeypatch.setattr(trainer_module.Trainer, "__init__", init)
    _, opened, _ = run(tmp_path / "run")
    checkpoint = Checkpoints(opened.path / "checkpoints").load(warn=pytest.fail)
    assert all(value.isfinite().all() for value in checkpoint.state["student"].values())


def test_collapsing_features_are_warned_of(tmp_path, monkeypatch):
    """The student's features shrink to nothing (first run), or to one constant (second run)."""
    original = trainer_module.Trainer.train_step
    for kind, text in (("zero", "have shrunk to"), ("constant", "are all but the same for every sample")):

        def train_step(self, batch, epoch, kind=kind):
            original(self, batch, epoch)
            if epoch == 0:
                return
            meter = self.state.meter
            for name, total in zip(meter.names, meter.values, strict=True):
                if name.startswith("feature_norm/") and kind == "zero":
                    total *= 1e-4
                if name.startswith("feature_std/"):
                    total *= 1e-5

        monkeypatch.setattr(trainer_module.Trainer, "train_step", train_step)
        reporter = Silent()
        run(tmp_path / kind, reporter)
        assert len(reporter.warnings) == 1
        assert text in reporter.warnings[0]
        assert "'embedding'" in reporter.warnings[0]


def test_out_of_memory_says_which_batch_takes_less(tmp_path, monkeypatch):
    def no_memory(self, batch, epoch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(trainer_module.Trainer, "train_step", no_memory)
    with pytest.raises(UserError, match="memory of the GPU ran out at step 1 with a batch of 64") as caught:
        run(tmp_path / "run")
    assert "--batch-size 32 --set train.accumulation=2" in caught.value.hint

    train = parse_config(merged(BASE, {"train__batch_size": 20}), source="t").train
    with pytest.raises(UserError) as caught, hardware_errors(train, step=lambda: 0, processes=4):
        raise torch.OutOfMemoryError
    assert "--batch-size 8 --set" in caught.value.hint, "a half that four processes can share"
    with (
        pytest.raises(UserError, match="batch of 20 is too small for 4 processes") as caught,
        hardware_errors(train, step=lambda: 0, processes=4),
    ):
        torch.nn.BatchNorm2d(3)(torch.zeros(1, 3, 1, 1))
    assert "--batch-size 8" in caught.value.hint

    def no_host_memory(self, batch, epoch):
        torch.empty(2**60)  # the real thing: more than any machine has

    monkeypatch.setattr(trainer_module.Trainer, "train_step", no_host_memory)
    with pytest.raises(UserError, match="memory of the machine ran out"):
        run(tmp_path / "again")


def test_a_killed_loader_process_is_said_so(tmp_path, monkeypatch):
    """One of two real loader processes kills itself while it loads."""
    original = data_sources.ArraySource.load

    def load(self, index):
        if torch.utils.data.get_worker_info() is not None and index % 7 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, index)

    monkeypatch.setattr(data_sources.ArraySource, "load", load)
    with pytest.raises(UserError, match="system ended a process that loads data") as caught:
        run(tmp_path / "run", data__workers=2)
    assert "data.workers=1" in caught.value.hint


def test_too_few_batches_for_one_update_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="accumulation"):
        run(tmp_path / "run", train__epochs=1, train__accumulation=6)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"optim__optimizer": "adamv"}, "Did you mean"),
        ({"train__device": "cuda:77"}, "can't be used here"),
        ({"train__device": "gpu"}, "can't be used here"),
    ],
)
def test_what_this_machine_or_timm_lacks_is_a_user_error(tmp_path, changes, problem):
    with pytest.raises(UserError, match=problem):
        run(tmp_path / "run", **changes)


def test_precision_is_full_on_a_cpu_unless_asked():
    config = parse_config(BASE, source="t").train
    assert resolve_precision(config) == "no"
    assert resolve_precision(config.model_copy(update={"mixed_precision": "bf16"})) == "bf16"


def test_labelled_images_are_repeated_to_their_share():
    """2 labelled, 6 not: a share of a quarter is 2 of 8, a half is 6 of 12; labels alone keep the number of steps."""
    labels = [5, -1, -1, -1, 7, -1, -1, -1]
    quarter = train_indices(labels, labelled_share=0.25, reads_unlabelled=True)
    assert sorted(quarter) == list(range(8))
    half = train_indices(labels, labelled_share=0.5, reads_unlabelled=True)
    assert sorted(half) == [0, 0, 0, 1, 2, 3, 4, 4, 4, 5, 6, 7]
    three = train_indices([0, 0, 1, 1, 2, 2, -1, -1, -1], labelled_share=0.75, reads_unlabelled=True)
    assert sorted(three[:9]) == [0, 0, 1, 2, 2, 3, 4, 4, 5], "what is left over is spread over the classes"
    alone = train_indices(labels, labelled_share=0.5, reads_unlabelled=False)
    assert sorted(alone) == [0] * 6 + [4] * 6
    assert train_indices([1, 2, 3], labelled_share=0.25, reads_unlabelled=True) is None
    assert train_indices([1, 2, 3, -1], labelled_share=0.25, reads_unlabelled=True) == [0, 1, 2, 3]


def test_tensorboard_gets_losses_metrics_and_learning_rate(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = parse_config(merged(BASE, {"train__track": ["tensorboard"], "train__epochs": 1}), source="test")
    accelerator = make_accelerator(config.train, tracking=tmp_path / "tracking")
    opened = RunFolder.create(tmp_path / "run")
    Trainer(prepare_job(config), opened, accelerator, Silent()).fit()
    events = EventAccumulator(str(tmp_path / "tracking" / "kdcli"))
    events.Reload()
    for event in ("train", "validation", "test"):
        (line,) = opened.read_metrics(event)
        for name in set(line) - {"event", "step"}:
            (scalar,) = events.Scalars(f"{event}/{name}")
            assert (scalar.step, scalar.value) == (line["step"], pytest.approx(line[name], rel=1e-5)), name
    spectrum = opened.read_tensors("spectra.safetensors")["projection"][-1]
    for kind, rank in (("numerical", numerical_rank(spectrum)), ("stable", stable_rank(spectrum))):
        (scalar,) = events.Scalars(f"projection/{kind}_rank")
        assert (scalar.step, scalar.value) == (5, pytest.approx(rank, rel=1e-5))


def test_a_tracker_that_is_not_installed_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setattr(devices_module, "get_available_trackers", list)
    with pytest.raises(UserError, match="tensorboard is not installed"):
        run(tmp_path / "run", train__track=["tensorboard"])


def test_sharded_training_is_refused(monkeypatch):
    monkeypatch.setattr(devices_module.Accelerator, "distributed_type", DistributedType.FSDP)
    config = parse_config(BASE, source="test")
    with pytest.raises(UserError, match="was started for FSDP") as caught:
        make_accelerator(config.train)
    assert "without FSDP" in caught.value.hint


def test_a_run_with_activation_checkpointing_ends_with_the_same_student(tmp_path):
    changes = {"student__name": "test_resnet", "student__drop_path": 0.3, "feature_layers": ["layer2:blocks.2"]}
    _, plain, job = run(tmp_path / "a", **changes)
    _, less, again = run(tmp_path / "b", **changes, train__activation_checkpointing=True)
    assert again.student.facts.activation_bytes < job.student.facts.activation_bytes
    assert_same(weights(plain), weights(less))
    assert_same(plain.read_tensors("projector.safetensors"), less.read_tensors("projector.safetensors"))
