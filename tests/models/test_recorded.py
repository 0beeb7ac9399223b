"""What training scripts write beside the weights: the teacher's architecture, its input and its classes."""

import math
from argparse import Namespace

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.utils import CheckpointSaver, ModelEmaV3

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.config.parse import parse_config
from kdcli.config.run import RunConfig
from kdcli.models import build_student, load_teacher, parse_name
from kdcli.models.locate import locate
from kdcli.models.recorded import read_recorded
from kdcli.models.settle import settle_models, settle_teacher

NAME = "test_resnet"


def timm_arguments(**changes):
    """The arguments of timm's train.py that are about the model and its input, as it sets them by default."""
    usual = {
        "model": NAME,
        "num_classes": None,
        "img_size": None,
        "input_size": None,
        "in_chans": None,
        "gp": None,
        "crop_pct": None,
        "mean": None,
        "std": None,
        "interpolation": "",
        "train_interpolation": "random",
        "class_map": "",
        "model_kwargs": {},
        "bn_eps": None,
        "drop_path": 0.1,
        "lr": 0.1,
        "data_dir": "photos",
    }
    return Namespace(**(usual | changes))


@pytest.fixture
def saved(tmp_path):
    """A file of timm's own CheckpointSaver, for arguments that differ from its script's defaults."""

    def save(*, ema=False, num_classes=5, build=None, **changes):
        arguments = timm_arguments(**changes)
        torch.manual_seed(1)
        model = timm.create_model(arguments.model, num_classes=num_classes, **(build or {}))
        average = ModelEmaV3(model, decay=0.5) if ema else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        saver = CheckpointSaver(model, optimizer, arguments, average, checkpoint_dir=str(tmp_path))
        saver.save_checkpoint(0, metric=1.0)
        return tmp_path / "model_best.pth.tar", arguments, model.eval()

    return save


@pytest.mark.parametrize(
    "changes",
    [
        {"img_size": 48},
        {"input_size": (3, 48, 64)},
        {"img_size": 96, "mean": [0.5], "std": [0.25], "crop_pct": 1.0, "interpolation": "bilinear"},
        {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "num_classes": 5},
        {"interpolation": "lanczos", "crop_pct": 0.5, "crop_mode": "squash"},
        {},
    ],
)
def test_the_input_is_the_one_that_timm_resolves(saved, changes):
    file, arguments, model = saved(**changes)
    right = resolve_data_config(vars(arguments), pretrained_cfg=model.pretrained_cfg)
    for config in (TeacherConfig(name=NAME, weights=str(file)), TeacherConfig(name=str(file))):
        teacher = load_teacher(config, seed=0)
        found = teacher.preprocessing
        assert found.image_size == right["input_size"][1:]
        assert (found.mean, found.std) == (right["mean"], right["std"])
        assert found.interpolation == right["interpolation"]
        assert found.resize == tuple(math.floor(side / right["crop_pct"]) for side in found.image_size)
        assert found.geometry == {"center": "crop"}.get(right["crop_mode"], right["crop_mode"])
        told = any(changes.get(key) for key in ("img_size", "input_size", "mean", "interpolation"))
        assert ("; read from the file: " in teacher.facts.weights) == told
        assert teacher.facts.name == f"timm:{NAME}"
        images = torch.randn(2, 3, *found.image_size)
        torch.testing.assert_close(teacher(images).logits, model(images))


def test_options_come_before_the_file(saved):
    file, _, _ = saved(img_size=48, mean=[0.5], std=[0.5], crop_pct=1.0, interpolation="bilinear")
    options = {"image_size": 64, "mean": (0.0, 0.0, 0.0), "interpolation": "nearest"}
    teacher = load_teacher(TeacherConfig(name=NAME, weights=str(file), **options), seed=0)
    found = teacher.preprocessing
    assert (found.image_size, found.mean, found.interpolation) == ((64, 64), (0, 0, 0), "nearest")
    assert (found.std, found.resize) == ((0.5, 0.5, 0.5), (64, 64))
    assert "read from the file: std (0.5, 0.5, 0.5), crop_pct 1" in teacher.facts.weights
    assert "the file says 48x48 pixels, asked for is 64x64 pixels" in teacher.facts.weights


def test_options_alone_set_a_teachers_input():
    options = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "interpolation": "nearest"}
    for name in (NAME, "hf:resnet?hidden_sizes=[8,16]&depths=[1,1]&embedding_size=8"):
        config = TeacherConfig(name=f"random:{name}", image_size=50, crop_pct=0.6, crop_mode="squash", **options)
        found = load_teacher(config, seed=0).preprocessing
        assert {key: getattr(found, key) for key in options} == options
        assert (found.image_size, found.resize, found.geometry) == ((50, 50), (83, 83), "squash")


def test_a_vision_transformer_is_built_for_the_size_it_was_trained_at(saved):
    file, _, model = saved(model="test_vit", img_size=48, build={"img_size": 48})
    teacher = load_teacher(TeacherConfig(name=str(file)), seed=0)
    images = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(teacher(images).logits, model(images))


def test_arguments_of_the_architecture_are_taken_over(saved):
    """--gp and --model-kwargs: without --gp every shape fits, and the function is another."""
    kwargs = {"layers": [1, 1, 2, 1], "drop_rate": 0.3}
    file, _, model = saved(gp="max", model_kwargs=kwargs, build={"global_pool": "max", "layers": (1, 1, 2, 1)})
    for name in (str(file), NAME):
        teacher = load_teacher(TeacherConfig(name=name, weights=None if name != NAME else str(file)), seed=0)
        images = torch.randn(2, 3, *teacher.preprocessing.image_size)
        torch.testing.assert_close(teacher(images).logits, model(images))
        assert teacher.facts.name == f"timm:{NAME}?layers=[1,1,2,1]&global_pool=max"


def test_averages_of_timms_saver(saved):
    file, _, _ = saved(ema=True)
    assert "the averaged weights (state_dict_ema)" in load_teacher(TeacherConfig(name=str(file)), seed=0).facts.weights


def test_the_run_config_says_what_the_file_told(saved):
    """So that a student that is made of the teacher, and a later run, have it too."""
    file, _, _ = saved(img_size=48, mean=[0.5], std=[0.5], gp="max", build={"global_pool": "max"})
    config = parse_config({"teacher": str(file), "student": "teacher?layers=1", "data": "x"}, source="x")
    settled: RunConfig = settle_models(config)
    assert settled.teacher == TeacherConfig(name=f"{NAME}?global_pool=max", weights=str(file), image_size=48)
    assert settle_models(settled) == settled
    teacher = load_teacher(settled.teacher, seed=0)
    student = build_student(settled.student, DataFacts.of_labels(("a", "b")), seed=0, source=(settled.teacher, teacher))
    assert student.preprocessing == teacher.preprocessing  # it begins with the teacher's weights
    assert student.facts.name == f"timm:{NAME}?global_pool=max&layers=[1,1,1,1]"


# --- architectures ----------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path):
    """A file with weights of the test network and something beside them."""
    state = timm.create_model(NAME, num_classes=5).state_dict()

    def save(**beside):
        torch.save({"state_dict": state, **beside}, tmp_path / "w.ckpt")
        return str(tmp_path / "w.ckpt")

    return save


@pytest.mark.parametrize(
    "beside",
    [
        {"arch": NAME},
        {"arch": "resnet", "args": Namespace(model=NAME)},
        {"args": {"arch": NAME}},
        {"hyper_parameters": {"model_name": NAME, "lr": 1}},
        {"hyper_parameters": {"model": {"name": NAME}}},
        {"config": {"model": {"arch": f"timm/{NAME}.r160_in1k"}}},
        {"hparams": Namespace(backbone=f"{NAME}.no_such_tag")},
    ],
)
def test_the_architecture_is_found(plain, beside):
    settled = settle_teacher(TeacherConfig(name=plain(**beside)))
    assert settled.name.partition(".")[0] == NAME
    assert load_teacher(settled, seed=0).facts.num_classes == 5


@pytest.mark.parametrize(
    ("beside", "said"),
    [({}, "does not tell its architecture"), ({"arch": "test_resnt"}, "'test_resnt', which is none that kdcli knows")],
)
def test_a_file_that_names_no_known_architecture_says_how_to_name_it(plain, beside, said):
    file = plain(**beside)
    with pytest.raises(UserError, match=said) as error:
        load_teacher(TeacherConfig(name=file), seed=0)
    assert f"--teacher ARCH --teacher-weights {file}" in error.value.hint
    assert not beside or "Did you mean test_resnet" in error.value.message


def test_a_contradiction_is_said_in_the_plan(plain):
    teacher = load_teacher(TeacherConfig(name=NAME, weights=plain(arch="resnet34")), seed=0)
    assert "the file calls its architecture 'resnet34'" in teacher.facts.weights
    with pytest.raises(UserError, match=r"does not fit the model.*The file calls its architecture 'test_resnet'"):
        load_teacher(TeacherConfig(name="test_vit", weights=plain(arch=NAME)), seed=0)
    assert "calls its" not in load_teacher(TeacherConfig(name=NAME, weights=plain(arch=NAME)), seed=0).facts.weights


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("missing.pth", None, "There is no checkpoint file missing.pth"),
        (f"{NAME}?weights=missing.pth", None, "There is no checkpoint file missing.pth"),
        (f"{NAME}?weights=a.pth", "b.pth", "Two files are named as the weights of test_resnet: a.pth and b.pth"),
        ("a.pth", "b.pth", "Two files are named as the teacher's weights: a.pth and b.pth"),
        (f"{NAME}?weights=3", None, "weights is a file"),
        (f"random:{NAME}?weights=a.pth", None, "untrained by its name"),
    ],
)
def test_files_that_can_not_be_meant(name, weights, said):
    with pytest.raises(UserError, match=said):
        load_teacher(TeacherConfig(name=name, weights=weights), seed=0)


def test_weights_in_the_name(plain):
    file = plain()
    settled = settle_teacher(TeacherConfig(name=f"{NAME}?layers=[1,1,1,1]&weights={file}"))
    assert (settled.name, settled.weights) == (f"{NAME}?layers=[1,1,1,1]", file)
    with pytest.raises(UserError, match="weights of a file are for teachers"):
        build_student(StudentConfig(name=f"{NAME}?weights={file}"), DataFacts.of_labels(("a", "b")), seed=0)
    with pytest.raises(UserError, match="is a file, and a name or a folder is wanted here"):
        build_student(StudentConfig(name=file), DataFacts.of_labels(("a", "b")), seed=0)
    with pytest.raises(UserError, match="weights=FILE is for a model that is loaded"):
        locate(parse_name(f"{NAME}?weights={file}"), weights=False)


# --- input and classes of other scripts -------------------------------------------------------------------------------


def recorded(tmp_path, **content):
    return read_recorded(content, tmp_path / "w.pth")


def test_torchvisions_references(tmp_path):
    args = Namespace(
        model="resnet50", val_resize_size=256, val_crop_size=224, train_crop_size=176, interpolation="bilinear"
    )
    found = recorded(tmp_path, args=args)
    assert (found.architectures, found.input_size, found.interpolation) == (("resnet50",), (224, 224), "bilinear")
    assert found.crop_pct == pytest.approx(224 / 256)


def test_pixels_from_0_to_255(tmp_path):
    found = recorded(tmp_path, config={"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]})
    assert found.mean == pytest.approx((0.485, 0.456, 0.406))
    assert found.std == pytest.approx((0.229, 0.224, 0.225))
    assert "divided" in found.notes[0]


def test_what_matters_and_is_not_taken_over_is_said(tmp_path):
    args = Namespace(crop_mode="odd", bn_eps=1e-3, interpolation="odd", mean=[120.0, 120.0, 120.0])
    notes = " ".join(recorded(tmp_path, args=args).notes)
    for part in (
        "crop_mode 'odd'",
        "bn_eps 0.001",
        "interpolation 'odd'",
        "mean (120.0, 120.0, 120.0)",
    ):
        assert f"{part} is not taken over" in notes
    odd = recorded(tmp_path, args={"img_size": "48", "mean": "0.5", "crop_pct": 1.5}, class_to_idx={"a": 0, "b": 2})
    notes = " ".join(odd.notes)
    for part in ("img_size '48'", "mean '0.5'", "crop_pct 1.5", "class_to_idx is no order of classes"):
        assert part in notes
    large = recorded(tmp_path, args={"img_size": 100000, "std": [58.0, 57.0, 57.0]})
    assert (large.input_size, large.std) == (None, None)
    assert "img_size 100000 is not taken over" in large.notes
    assert not recorded(tmp_path, args=timm_arguments(), optimizer={"lr": 1}).notes


@pytest.mark.parametrize(
    "beside",
    [
        {"class_to_idx": {"b": 1, "c": 2, "a": 0}},
        {"hyper_parameters": {"id2label": {0: "a", 1: "b", 2: "c"}}},
        {"config": {"idx_to_class": {"0": "a", "1": "b", "2": "c"}}},
        {"meta": {"CLASSES": ["a", "b", "c"]}},
        {"classes": ("a", "b", "c")},
        {"args": Namespace(class_map="map.txt")},
        {"args": Namespace(class_map={"a": 0, "b": 1, "c": 2})},
    ],
)
def test_classes_in_their_order(tmp_path, beside):
    (tmp_path / "map.txt").write_text("a\nb\nc\n")
    assert recorded(tmp_path, **beside).class_names == ("a", "b", "c")


@pytest.mark.parametrize("beside", [{"class_to_idx": {"a": 0, "b": 2}}, {"classes": 3}, {"labels": ["a", "a"]}, {}])
def test_what_is_no_order_of_classes(tmp_path, beside):
    assert recorded(tmp_path, **beside).class_names is None


def test_a_teacher_has_the_files_classes(plain):
    teacher = load_teacher(
        TeacherConfig(name=NAME, weights=plain(class_to_idx={c: i for i, c in enumerate("edcba")})), seed=0
    )
    assert teacher.facts.label_names == tuple("edcba")
    assert "its classes have the names that the file gives" in teacher.facts.weights
    other = load_teacher(TeacherConfig(name=NAME, weights=plain(classes=["a", "b"], args={"num_classes": 9})), seed=0)
    assert other.facts.label_names is None
    assert "the file names 2 classes, and its classifier has 5" in other.facts.weights
    assert "the file says 9 classes, and its classifier has 5" in other.facts.weights


def test_a_class_map_that_is_not_there_is_said_and_no_order_is_made_up(tmp_path):
    state = timm.create_model(NAME, num_classes=1000).state_dict()
    torch.save({"state_dict": state}, tmp_path / "imagenet.pth")
    torch.save({"state_dict": state, "args": timm_arguments(class_map="own.txt")}, tmp_path / "own.pth")
    imagenet = load_teacher(TeacherConfig(name=NAME, weights=str(tmp_path / "imagenet.pth")), seed=0)
    assert len(imagenet.facts.label_names) == 1000
    own = load_teacher(TeacherConfig(name=NAME, weights=str(tmp_path / "own.pth")), seed=0)
    assert own.facts.label_names is None
    assert "class map 'own.txt', which is not there to be read" in own.facts.weights
