"""REFILLED's two methods are their pure functions on tapped tensors; global centres are plain means."""

import numpy as np
import pytest
import torch

from kdcli import losses
from kdcli.base.facts import UNLABELLED, DataFacts
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.config.parse import parse_config
from kdcli.data import Batch, prepare
from kdcli.data.images.preprocess import fit
from kdcli.machine.devices import make_accelerator
from kdcli.methods import build_method
from kdcli.methods.base import Context
from kdcli.models import build_student, load_teacher
from kdcli.runs.folder import RunFolder
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.terminal.reporters import SilentReporter
from kdcli.training.distiller import Distiller
from kdcli.training.prepare import prepare_job
from kdcli.training.teachers.teacher import LiveTeacher
from kdcli.training.trainer import Trainer

LABELS = ("a", "b", "c", "d")
TRIPLETS = {"method": "stochastic_triplet_kl", "student_tap": "embedding", "teacher_tap": "embedding"}
CENTRES = {"method": "local_classifier_kl", "teacher_tap": "embedding"}


@pytest.fixture(scope="module")
def teacher():
    return load_teacher(TeacherConfig(name="random:test_efficientnet", image_size=48), seed=1)


@pytest.fixture(scope="module")
def student():
    return build_student(StudentConfig(name="test_resnet", image_size=32), DataFacts.of_labels(LABELS), seed=0).eval()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (14, 3, 48, 48), dtype=torch.uint8, generator=generator)
    targets = torch.arange(14) % 3
    targets[[2, 7, 11]] = UNLABELLED
    return Batch(images=images, targets=targets, samples=torch.arange(14))


def term(student, teacher, batch, options):
    """Return the method's loss in a distiller, and the method."""
    (parsed,) = parse_config({"teacher": "t", "student": "s", "data": "d", "methods": [options]}, source="t").methods
    method = build_method(parsed, Context(ImageClassification(LABELS), student.facts, teacher.facts, None))
    distiller = Distiller(student, {"it": method})
    distiller.eval()
    outputs = LiveTeacher(teacher, distiller.teacher_reads)(batch)
    assert outputs.logits is None, "the teacher's logits are never read"
    return distiller(batch, outputs)["it"], method


def tapped(model, batch):
    """Return the classifier's input and the logits by the library's own calls."""
    features = model.module.forward_features(prepare(batch.images, model.facts.preprocessing))
    return model.module.forward_head(features, pre_logits=True), model.module.forward_head(features)


@pytest.mark.parametrize("mining", ["semi_hard", "nearest_farther", "tuples"])
def test_triplets_are_the_pure_function_over_labelled_samples(student, teacher, batch, mining):
    settings = {"temperature": 2.0, "mining": mining, "margin": 0.3}
    loss, method = term(student, teacher, batch, {**TRIPLETS, **settings})
    known = batch.targets != UNLABELLED
    with torch.no_grad():
        (ours, _), (theirs, _) = tapped(student, batch), tapped(teacher, batch)
    expected = losses.stochastic_triplet_kl(ours[known], theirs[known], batch.targets[known], **settings)
    assert expected > 0
    torch.testing.assert_close(loss.detach(), expected)
    assert method.weight == 500


def test_the_classifier_is_the_pure_function_over_labelled_samples(student, teacher, batch):
    loss, method = term(student, teacher, batch, CENTRES)
    known = batch.targets != UNLABELLED
    with torch.no_grad():
        (_, logits), (theirs, _) = tapped(student, batch), tapped(teacher, batch)
    expected = losses.local_classifier_kl(logits[known], theirs[known], batch.targets[known], temperature=2.0)
    assert expected > 0
    torch.testing.assert_close(loss.detach(), expected)
    assert method.weight == 100
    assert not method.state_dict()


def test_global_centres_take_the_place_of_local_ones(student, teacher, batch):
    loss, method = term(student, teacher, batch, {**CENTRES, "centers": "global", "temperature": 3.0})
    known = batch.targets != UNLABELLED
    with torch.no_grad():
        (_, logits), (theirs, _) = tapped(student, batch), tapped(teacher, batch)
    assert torch.equal(method.centers, torch.zeros(4, theirs.shape[1])), "nothing was looked at yet"
    centers = torch.randn(4, theirs.shape[1], generator=torch.Generator().manual_seed(0))
    method.centers.copy_(centers)
    loss = method(
        student=Distiller(student, {"it": method}).student(
            prepare(batch.images, student.facts.preprocessing), Reads(heads=("logits",))
        ),
        teacher=LiveTeacher(teacher, Reads(("embedding",)))(batch),
        targets=batch.targets,
        samples=batch.samples,
    )
    expected = losses.local_classifier_kl(
        logits[known], theirs[known], batch.targets[known], temperature=3.0, centers=centers
    )
    torch.testing.assert_close(loss.detach(), expected)


@pytest.mark.parametrize("options", [TRIPLETS, CENTRES, {**CENTRES, "centers": "global"}])
def test_a_batch_without_labels_costs_nothing_and_has_a_gradient(student, teacher, batch, options):
    none = Batch(images=batch.images, targets=torch.full((14,), UNLABELLED), samples=batch.samples)
    loss, _ = term(student, teacher, none, options)
    (gradient,) = torch.autograd.grad(loss, student.module.conv1[0].weight)
    assert loss == 0
    assert not gradient.any()


def test_global_centres_are_means_over_the_labelled_training_images(tmp_path):
    """Few of the digits have labels; the teacher sees each of these once, as it would for evaluation."""
    config = parse_config(
        {
            "teacher": {"name": "random:test_efficientnet", "image_size": 32},
            "student": {"name": "test_resnet", "image_size": 32},
            "data": {"name": "demo:digits", "workers": 0, "labels_per_class": 7},
            "methods": [{"method": "supervised"}, {"method": "local_classifier_kl", "centers": "global"}],
            "train": {"epochs": 1, "batch_size": 16, "device": "cpu"},
        },
        source="t",
    )
    job = prepare_job(config)
    trainer = Trainer(job, RunFolder.create(tmp_path / "run"), make_accelerator(config.train), SilentReporter())
    trainer.objective.look_ahead(trainer._labelled_outputs, trainer.team)
    source, pre = job.data.train, job.teacher.facts.preprocessing
    members = {label: [] for label in range(10)}
    for index, label in enumerate(source.labels):
        if label != UNLABELLED:
            pixels = torch.from_numpy(np.asarray(fit(source.load(index).inputs, pre)).copy()).permute(2, 0, 1)[None]
            with torch.no_grad():
                features = job.teacher.module.forward_features(prepare(pixels, pre))
                members[label].append(job.teacher.module.forward_head(features, pre_logits=True)[0])
    assert [len(rows) for rows in members.values()] == [7] * 10
    expected = torch.stack([torch.stack(rows).mean(dim=0) for rows in members.values()])
    centers = job.distiller.methods["local_classifier_kl"].centers
    torch.testing.assert_close(centers, expected)
    assert not torch.allclose(centers[0], centers[1], rtol=0.01)
