"""The method gan against its formulas: losses of both sides, features matched to a teacher's, KD-DLGAN's term, LeCam."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdcli import losses
from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.config.methods import GanOptions
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.config.parse import parse_config
from kdcli.data import Batch
from kdcli.methods import build_method
from kdcli.methods.adversary import Scene, turned
from kdcli.methods.base import Context
from kdcli.models import build_student, load_teacher
from kdcli.tasks import build_task

COUNT = 6
FACTS = DataFacts("made-up", "image-generation", ("a", "b"), COUNT, COUNT, 2, 2, label_kind="samples")


@pytest.fixture(scope="module")
def models():
    """A generator of two classes, and a frozen teacher with more features than there are images in a batch."""
    student = StudentConfig(name="generator:biggan32?channels=2&dim_z=4", pretrained=False)
    teacher = load_teacher(TeacherConfig(name="random:test_resnet", image_size=32), seed=0)
    return build_student(student, FACTS, seed=0).eval(), teacher


def batch(first=0, count=COUNT):
    images = torch.randint(256, (COUNT, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    rows = slice(first, first + count)
    samples = torch.arange(COUNT)
    return Batch(
        images=images[rows], targets=(samples % 2)[rows], samples=samples[rows], view=torch.zeros_like(samples)[rows]
    )


def make(models, **options):
    student, teacher = models
    task = build_task(FACTS, reference=None)
    options = GanOptions(**{"lr_scale": 1.0} if "projector" in options else {}, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = build_method(options, Context(task, student.facts, teacher.facts, None, seed=3))
    return method.eval()


def scene(models, given=None, **options):
    student, teacher = models
    given = batch() if given is None else given
    reads = Reads(heads=("image",))
    return Scene(
        given, student, teacher, None, lambda: student(student.prepare(given), reads), lambda rows: rows, **options
    )


def seen(models, method, turn=1):
    """Return the discriminator's features of real and of made images, and the teacher's, by hand."""
    student, teacher = models
    given = turned(batch(), turn)
    with torch.no_grad():
        made = student(student.prepare(given)).heads["image"]
        real = given.images.float() / 127.5 - 1
        ours, theirs = [], []
        for images in (real, made):
            ours.append(method.critic.features(images))
            pixels = Batch(images=(images + 1) * 127.5, targets=[], samples=given.samples)
            theirs.append(teacher(teacher.prepare(pixels), Reads(("pooled",))).features["pooled"])
    return ours, theirs, given.targets


def test_both_losses_are_hinges_of_the_scores(models):
    method = make(models)
    (real, made), _, targets = seen(models, method)
    scores = [method.critic.scores(side, targets) for side in (real, made)]
    expected = (F.relu(1 - scores[0]) + F.relu(1 + scores[1])).mean()
    found = method.adversary_loss(scene(models))
    assert found.terms.keys() == {"hinge"}
    torch.testing.assert_close(found.whole()["hinge"], expected)
    (_, own), _, _ = seen(models, method, turn=0)
    found = method.student_loss(scene(models))
    torch.testing.assert_close(found.whole()["adversarial"], -method.critic.scores(own, targets).mean())
    assert found.watched["images"].shape == (COUNT, 3 * 32 * 32)
    others = method.adversary_loss(scene(models, turn=1)).whole()["hinge"]
    assert not torch.equal(others, expected), "another step has other images"


@pytest.mark.parametrize("options", [{}, {"diff_augment": ("color", "translation", "cutout")}, {"loss": "lsgan"}])
def test_losses_of_parts_make_the_whole(models, options):
    """What is drawn for an image is its own, in whichever process it is."""
    method = make(models, **options)
    for side in (method.adversary_loss, method.student_loss):
        (name,) = side(scene(models)).terms
        whole, *parts = (side(scene(models, batch(*part))).terms[name] for part in ((0, COUNT), (0, 2), (2, COUNT - 2)))
        torch.testing.assert_close(sum(part.mean * part.count for part in parts) / whole.count, whole.mean)


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "standardize", "whiten"])
@pytest.mark.parametrize("projector", ["orthogonal", "inverted"])
def test_features_are_matched_to_the_teachers_of_the_same_images(models, projector, normalize):
    method = make(models, projector=projector, normalize=normalize, feature_weight=3.0)
    ours, theirs, _ = seen(models, method)
    by_name = {"none": lambda side: side, "layer_norm": lambda side: F.layer_norm(side, side.shape[1:])}
    by_name["standardize"] = lambda side: (side - side.mean(0)) / side.std(0, correction=0).clamp(min=1e-6)
    expected = []
    for found, known in zip(ours, theirs, strict=True):
        if normalize == "whiten":  # fewer images than features: the pseudo-inverse's root, of 5 directions
            centred = known - known.mean(0)
            left, values, right = torch.linalg.svd(centred.double(), full_matrices=False)
            kept = values**2 > 1e-5 * values[0] ** 2
            known = ((left[:, kept] @ right[kept]) * COUNT**0.5).float()
            assert int(kept.sum()) <= COUNT - 1
        else:
            known = by_name[normalize](known)
        weight = method.pair.projector.matrix().detach()
        found, known = (found @ weight, known) if projector == "orthogonal" else (found, known @ weight)
        expected.append(F.smooth_l1_loss(found, known))
    term = method.adversary_loss(scene(models)).whole()["features"]
    torch.testing.assert_close(term, 3 * sum(expected) / 2, rtol=1e-3, atol=1e-5)
    only = make(models, projector=projector, normalize=normalize, feature_weight=3.0, matched="real")
    torch.testing.assert_close(
        only.adversary_loss(scene(models)).whole()["features"], 3 * expected[0], rtol=1e-3, atol=1e-5
    )


def test_whitening_is_in_full_precision_under_autocast(models):
    method = make(models, projector="linear", normalize="whiten")
    plain = method.adversary_loss(scene(models)).whole()["features"]
    with torch.autocast("cpu", torch.bfloat16):
        term = method.adversary_loss(scene(models)).whole()["features"]
    assert term.dtype == torch.float32
    torch.testing.assert_close(term, plain, rtol=0.3, atol=0)
    term.backward()
    assert all(p.grad.isfinite().all() for p in method.pair.parameters())


def test_kd_dlgans_term_pulls_to_both_teachers(models):
    method = make(models, kd_dlgan=10.0)
    ours, theirs, _ = seen(models, method)
    heads = [method.kd_head(side) for side in ours]
    expected = sum((known - head).norm(dim=1).mean() for known in theirs for head in heads)
    torch.testing.assert_close(method.adversary_loss(scene(models)).whole()["kd_dlgan"], 10 * expected)
    assert {name.partition(".")[0] for name, _ in method.adversary.named_parameters()} == {"0", "1"}


def test_lecam_remembers_the_averages(models):
    method = make(models, lecam=0.3)
    (real, made), _, targets = seen(models, method)
    scores = [method.critic.scores(side, targets).detach() for side in (real, made)]
    state = losses.lecam_update(losses.lecam_start(), *scores)
    found = method.adversary_loss(scene(models)).whole()["lecam"]
    torch.testing.assert_close(method.state_dict()["lecam_state"], state)
    torch.testing.assert_close(found, 0.3 * losses.lecam(*scores, state).mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "standardize"}, "normalize is of features that are matched, and there is no projector"),
        ({"teacher_tap": "layer1"}, "nothing reads the teacher"),
        ({"projector": "linear", "log_sum_alpha": 2.0}, "log_sum_alpha is for distance: log_sum"),
        ({"projector": "linear", "orthogonal_map": "cayley"}, "orthogonal_map is for projector: orthogonal"),
        ({"diff_augment": "cutout,cutout"}, "names something twice"),
        ({"diff_augment": "blur"}, "methods.0.diff_augment"),
    ],
)
def test_options_that_do_nothing_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        parse_config(
            {"teacher": "t", "student": "s", "data": "d", "methods": [{"method": "gan", **options}]}, source="t"
        )


def test_without_a_teacher_nothing_of_it_is_left():
    options = GanOptions(
        projector="inverted", normalize="none", feature_weight=2.0, kd_dlgan=1.0, lecam=0.1, channels=8
    )
    assert options.needs.teacher
    alone = options.without_teacher()
    assert alone == GanOptions(lecam=0.1, channels=8)
    assert not alone.needs.teacher
    assert alone.pairs == ()
    assert "methods.0.feature_weight=6" in options.tries("methods.0")[0]
    assert alone.tries("methods.0") == []
