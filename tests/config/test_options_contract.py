"""What the options of every method keep: one class, run over all of them, the example extension's too."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, ModelFacts, Preprocessing
from kdcli.base.tasks import TASKS, TaskFacts
from kdcli.config.methods import METHODS, FeaturePair, SupervisedOptions, find_method
from kdcli.config.parse import parse_config
from kdcli.plan.relation import situation_of

TOY = "toy_correlation"
REQUIRED = {"projection": {"projector": "linear"}}
"""What has no default."""

CLASSES = ("cat", "dog", "tree frog")
DATA = DataFacts("photos", "image-classification", CLASSES, 90, 90, 10, 20)
TOKENS = DataFacts("texts", "causal-lm", (), 90, 90, 10, 20, label_kind="tokens")
MODEL = ModelFacts(
    name="timm:vit", library="timm", task="image-classification", pretrained=True, weights="hub", num_classes=3,
    label_names=CLASSES, feature_dims={"pooled": 64, "embedding": 96, "layer1": 16, "layer2": 32, "fc": 8},
    preprocessing=Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), num_parameters=1000, macs=1000, activation_bytes=1000,
    grids={"pooled": (3, 3), "layer1": (8, 8), "layer2": (4, 4)}, stages=("layer1", "layer2"),
    heads=("logits", "distillation"),
)  # fmt: skip
PAIR = FeaturePair(student="layer1", teacher="layer2")


def config(**values):
    return parse_config({"teacher": "t", "student": "s", "data": "d", **values}, source="test")


FITTING = situation_of(config(), teacher=MODEL, student=MODEL, data=DATA)
MIXED = config(augment={"mixup": 0.2})
OTHER_LABELS = dataclasses.replace(FITTING.evidence, relation="cross", reason="They differ.", label_map=None)


def without_grids(model):
    return dataclasses.replace(model, grids={}, stages=("fc",))


def fitting_for(options):
    """Return a situation that has all that a method needs."""
    if options.method == "dense_regression":
        model = dataclasses.replace(MODEL, task="depth-estimation", heads=("depth",))
        data = dataclasses.replace(DATA, task="depth-estimation", class_names=("depth",), label_kind="depth")
        return dataclasses.replace(FITTING, teacher=model, student=model, data=data)
    if options.method == "gan":
        data = dataclasses.replace(DATA, task="image-generation", label_kind="samples")
        return dataclasses.replace(FITTING, data=data)
    if options.method in ("image_regression", "adversarial", "cycle_gan"):
        model = dataclasses.replace(MODEL, task="image-translation", heads=("image",))
        kind = "unpaired" if options.method == "cycle_gan" else "image"
        data = dataclasses.replace(DATA, task="image-translation", class_names=(), label_kind=kind)
        return dataclasses.replace(FITTING, teacher=model, student=model, data=data)
    kinds = ("pixels",) if options.method == "cwd_logits" else options.needs.labels
    if not kinds or "class" in kinds:
        return FITTING
    return dataclasses.replace(FITTING, data=dataclasses.replace(DATA, label_kind=kinds[0]))


def lacking(options):
    """Yield a situation for each thing that is needed, which has all but that."""
    needs, reads, fitting = options.needs, options.reads_layers, fitting_for(options)
    if needs.teacher:
        yield dataclasses.replace(fitting, teacher=None)
    if needs.common_labels:
        yield dataclasses.replace(fitting, evidence=OTHER_LABELS)
    if needs.all_logits:
        yield dataclasses.replace(fitting, data=TOKENS)
    if needs.labels:
        yield dataclasses.replace(fitting, data=dataclasses.replace(DATA, label_kind="none"))
        for kind in {"class", "classes", "number", "words"} - {*needs.labels}:
            yield dataclasses.replace(fitting, data=dataclasses.replace(DATA, label_kind=kind))
    if needs.whole_images:
        yield dataclasses.replace(fitting, config=MIXED)
    if needs.distillation_head:
        yield dataclasses.replace(fitting, student=dataclasses.replace(MODEL, heads=("logits",)))
    if reads == "maps":
        yield dataclasses.replace(fitting, student=without_grids(MODEL), teacher=without_grids(MODEL))


@pytest.fixture(params=[*METHODS, TOY])
def values(request):
    """The keys of a method that has nothing but its defaults."""
    if request.param == TOY:
        request.getfixturevalue("toy_extension")
    return {"method": request.param, **REQUIRED.get(request.param, {})}


@pytest.fixture
def options(values):
    return find_method(values["method"]).model_validate(values)


class TestOptions:
    def test_yaml_keeps_them(self, options):
        text = yaml.safe_dump({"methods": [options.model_dump(mode="json")]})
        assert config(**yaml.safe_load(text)).methods == (options,)

    def test_an_unknown_key_is_refused_with_the_nearest(self, values):
        with pytest.raises(UserError, match=r"methods\.0\.weigth: unknown key\. Did you mean weight"):
            config(methods=[{**values, "weigth": 2}])

    def test_it_is_shown_in_short_texts(self, options):
        shown = options.shown()
        assert {"weight"} <= shown.keys() <= {*type(options).model_fields, "direction", "normalize"}
        assert all(isinstance(text, str) and len(text) < 40 for text in shown.values())
        assert not shown.keys() & options.idle
        assert options.idle <= type(options).model_fields.keys()

    def test_what_is_left_to_the_models_is_written_out_once(self, options):
        settled = options.settled(FITTING)
        assert settled.settled(FITTING) == settled
        assert bool(settled.pairs) == (settled.reads_layers != "nothing")
        for pair in settled.pairs:
            assert {pair.student, pair.teacher} <= MODEL.feature_dims.keys()

    def test_a_fitting_situation_is_let_pass_and_one_that_lacks_something_is_refused(self, options):
        fitting = fitting_for(options)
        options.settled(fitting).check(fitting)
        for situation in lacking(options):
            with pytest.raises(UserError, match=options.method) as error:
                options.settled(situation).check(situation.at("methods"))
            assert error.value.hint

    def test_a_projector_is_taken_or_refused_with_the_reason(self, options, values):
        if options.method == "gan":
            return  # it has one of the discriminator's features: tests/methods/test_gan.py
        assert options.takes_layers != bool(options.why_no_projector)
        if options.takes_layers:
            other = options.with_projector("inverted", ratio=0.3)
            assert other.projector_name == "inverted"
            assert other.settled(FITTING).lr_scale < 1
            assert other.describe_projector().startswith("inverted")
            assert (other.weighting, other.weight) in {("gradient", 0.3), (options.weighting, options.weight)}
            return
        with pytest.raises(UserError, match=f"{options.method} has no projector: it {options.why_no_projector}"):
            config(methods=[{**values, "projector": "linear"}])
        with pytest.raises(NotImplementedError):
            options.with_projector("linear", ratio=None)

    def test_layers_that_are_named_are_those_that_are_read(self, options):
        pairs = [made.pairs for made in options.with_pairs((PAIR, FeaturePair()))]
        assert sum(pairs, ()) == ((PAIR, FeaturePair()) if options.takes_layers else options.pairs)
        assert options.with_pairs(()) == (options,)
        assert sum(made.weight for made in options.with_pairs((PAIR,))) == options.weight

    def test_the_weight_is_that_which_is_asked_for(self, options):
        assert options.with_weight(0.25).weight == 0.25
        assert options.with_weight(None) == options


@pytest.fixture
def pixels(monkeypatch):
    """A situation of a task with two losses, of which one reads label smoothing."""
    row = TaskFacts("dense", "image", "pixels", "dense", "x", losses=("ce", "dice"), smoothed_losses=("ce",))
    monkeypatch.setattr(type(TASKS), "_rows", {**TASKS, "dense": row})
    return dataclasses.replace(FITTING, data=dataclasses.replace(DATA, task="dense", label_kind="pixels"))


def supervised(situation, **values):
    options = SupervisedOptions.model_validate(values).settled(situation)
    options.check(situation)
    return options


def test_losses_by_name_and_their_smoothing(pixels):
    for given, loss, smoothing, shown in (
        ({}, {"ce": 1}, 0, "ce"),
        ({"label_smoothing": 0.2}, {"ce": 1}, 0.2, "ce"),
        ({"loss": "dice"}, {"dice": 1}, 0, "dice"),
        ({"loss": {"ce": 1, "dice": 0.5}, "label_smoothing": 0.1}, {"ce": 1, "dice": 0.5}, 0.1, "ce + 0.5 dice"),
    ):
        options = supervised(pixels, **given)
        assert (options.loss, options.label_smoothing, options.shown()["loss"]) == (loss, smoothing, shown)
        assert options.settled(pixels) == options
    assert supervised(pixels).meaningless(pixels) == set()
    assert supervised(pixels, loss="dice").meaningless(pixels) == {"label_smoothing"}
    for kind in ("number", "depth", "boxes"):
        other = dataclasses.replace(FITTING, data=dataclasses.replace(DATA, label_kind=kind))
        assert SupervisedOptions().meaningless(other) == {"label_smoothing"}
    assert supervised(FITTING).meaningless(FITTING) == set()
    assert supervised(FITTING).loss is None
    assert supervised(FITTING).label_smoothing == 0.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "dica"}, "dense has no loss 'dica'. Did you mean dice"),
        ({"loss": "dice", "label_smoothing": 0.1}, "label_smoothing has no effect: dice of dense reads none"),
    ],
)
def test_losses_that_a_task_lacks_are_refused(pixels, given, message):
    with pytest.raises(UserError, match=message):
        supervised(pixels, **given)


def test_a_task_with_one_loss_names_none():
    with pytest.raises(UserError, match="image-classification has one loss"):
        supervised(FITTING, loss="cross_entropy")


@pytest.mark.parametrize("loss", [{}, {"ce": 0}, {"ce": -1}, 3, {"ce": "much"}])
def test_weights_of_losses_are_positive(loss):
    with pytest.raises(UserError, match=r"methods\.0\.loss"):
        config(methods=[{"method": "supervised", "loss": loss}])
