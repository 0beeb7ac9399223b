import subprocess
import sys

import pytest

from kdcli.base.errors import UserError, did_you_mean
from kdcli.config.methods import LogitKDOptions, SupervisedOptions
from kdcli.config.models import TeacherConfig
from kdcli.config.parse import parse_config

MINIMAL = {"teacher": "resnet50", "student": "resnet18", "data": "photos"}


def test_minimal_config_takes_names_as_strings():
    config = parse_config(MINIMAL, source="test")
    assert (config.teacher.name, config.student.name, config.data.name) == ("resnet50", "resnet18", "photos")
    assert config.methods is None


def test_every_problem_is_reported_at_once_with_key_value_and_nearest_name():
    values = {
        "techer": "a",
        "student": {"nam": "x"},
        "data": "d",
        "train": {"epoch": 3, "batch_size": "many", "mixed_precision": "bf61"},
        "methods": [{"method": "logit_kdd"}, {"method": "logit_kd", "temprature": 2}],
    }
    with pytest.raises(UserError) as error:
        parse_config(values, source="r.yaml")
    text = error.value.message
    assert text.startswith("9 problems in r.yaml")
    for expected in (
        "teacher: missing",
        "techer: unknown key. Did you mean teacher?",
        "student.name: missing",
        "student.nam: unknown key. Did you mean name?",
        "train.epoch: unknown key. Did you mean epochs?",
        "train.batch_size: ",
        "'many'",
        "train.mixed_precision: 'bf61' is not one of",
        "Did you mean bf16",
        "methods.0.method: 'logit_kdd' is not one of",
        "Did you mean logit_kd",
        "methods.1.temprature: unknown key. Did you mean temperature?",
    ):
        assert expected in text, expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"data": {"name": "d", "image_size": 64}}, "data.image_size: unknown key. Did you mean student.image_size,"),
        ({"data": {"name": "d", "mixup": 0.5}}, "data.mixup: unknown key. Did you mean augment.mixup?"),
        ({"lr": 0.1}, "lr: unknown key. Did you mean optim.lr?"),
        ({"train": {"baseline": True}}, "train.baseline: unknown key. Did you mean baseline?"),
    ],
)
def test_a_key_of_another_section_is_named_with_it(given, expected):
    with pytest.raises(UserError) as error:
        parse_config({**MINIMAL, **given}, source="t")
    assert expected in error.value.message


def test_a_name_is_suggested_once():
    assert did_you_mean("resnett18", ["resnet18", "resnet18", "resnet34"]) == "Did you mean resnet18, resnet34?"


def test_unknown_keys_that_are_called_like_a_method():
    methods = [{"method": "projection", "projector": "linear", "projection": 1}]
    with pytest.raises(UserError) as error:
        parse_config({**MINIMAL, "supervised": None, "methods": methods}, source="t")
    assert "  - supervised: unknown key." in error.value.message
    assert "  - methods.0.projection: unknown key. Did you mean projector" in error.value.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", -1),
        ("batch_size", 1),
        ("ema", 1.0),
        ("mixed_precision", "fp8"),
        ("accumulation", 0),
    ],
)
def test_out_of_range_training_options_are_refused(key, value):
    with pytest.raises(UserError, match=f"train.{key}"):
        parse_config({**MINIMAL, "train": {key: value}}, source="test")


def test_bare_yaml_no_is_a_precision():
    assert parse_config({**MINIMAL, "train": {"mixed_precision": False}}, source="t").train.mixed_precision == "no"


def test_config_is_frozen():
    config = parse_config(MINIMAL, source="test")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def test_alone_keeps_everything_but_the_teacher_and_its_losses():
    methods = [{"method": "supervised", "label_smoothing": 0.0}, {"method": "logit_kd"}]
    config = parse_config({**MINIMAL, "methods": methods, "relation": "same", "baseline": True, "seed": 5}, source="t")
    assert isinstance(config.methods[1], LogitKDOptions)
    alone = config.alone()
    assert alone.teacher.name == "none"
    assert alone.methods == (SupervisedOptions(label_smoothing=0.0),)
    assert (alone.relation, alone.baseline) == ("auto", False)
    assert (alone.seed, alone.train, alone.optim, alone.augment) == (5, config.train, config.optim, config.augment)


@pytest.mark.parametrize(("key", "value"), [("beta", 0), ("beta", 1), ("divergence", "kl")])
def test_divergences_of_logits(key, value):
    with pytest.raises(UserError, match=rf"methods\.0\.{key}"):
        parse_config({**MINIMAL, "methods": [{"method": "logit_kd", key: value}]}, source="t")


@pytest.mark.parametrize(
    "module",
    [
        "base.facts",
        "cli",
        "config",
        "config.recipes",
        "plan.decide",
        "plan.relation",
        "terminal.progress",
        "models.spec",
    ],
)
def test_torch_free_modules_import_no_torch(module):
    code = f"import sys, kdcli.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_paths_are_written_out_but_names_are_not(tmp_path, monkeypatch):
    for name in ("photos", "resnet50", "models/mine"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = parse_config(
        {"teacher": "models/mine", "student": "resnet50", "data": {"name": "photos", "unlabelled": "photos"}},
        source="t",
    ).with_absolute_paths()
    assert config.teacher.name == str(tmp_path / "models/mine")
    assert config.student.name == "resnet50"
    untrained = config.model_copy(update={"teacher": TeacherConfig(name="random:timm:models/mine")})
    assert untrained.with_absolute_paths().teacher.name == f"random:timm:{tmp_path / 'models/mine'}"
    assert (config.data.name, config.data.unlabelled) == (str(tmp_path / "photos"), tmp_path / "photos")
    demo = parse_config({"teacher": "none", "student": "resnet18", "data": "demo:digits"}, source="t")
    assert demo.with_absolute_paths() == demo


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0-4,7", ("0-4,7",)), (5, ("5",)), ([0, 1, "cat"], ("0", "1", "cat")), (None, None)],
)
def test_classes_are_text_a_number_or_a_list(value, expected):
    config = parse_config({**MINIMAL, "data": {"name": "photos", "classes": value}}, source="t")
    assert config.data.classes == expected
    assert parse_config(config.model_dump(mode="json"), source="t") == config


@pytest.mark.parametrize("value", [True, [False], 0.5, [], {"a": 1}, [["a"]]])
def test_classes_of_another_kind_are_refused(value):
    with pytest.raises(UserError, match=r"data\.classes"):
        parse_config({**MINIMAL, "data": {"name": "photos", "classes": value}}, source="t")


@pytest.mark.parametrize("value", ["1", "a:b:c", 3])
def test_what_is_no_pair_of_layers_is_told_the_form(value):
    with pytest.raises(UserError, match=r"feature_layers\.0: input should be STUDENT:TEACHER"):
        parse_config({"teacher": "a", "student": "b", "data": "c", "feature_layers": [value]}, source="the options")
