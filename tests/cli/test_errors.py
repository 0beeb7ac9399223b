"""What a user can do wrong: exit code 2, one message, one hint, no traceback, and nothing left behind."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

SMALL = ("--batch-size", "8", "--epochs", "1", "--device", "cpu", "--set", "student.image_size=32")


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(run_cli, tmp_path):
    """Run a command that must be refused; return its message and hint."""

    def run(*arguments: str | Path) -> str:
        before = tree(tmp_path)
        exit_code, stdout, stderr = run_cli(*arguments)
        assert exit_code == 2, f"exit code {exit_code}\n{stdout}\n{stderr}"
        assert "Traceback" not in stdout + stderr
        assert stderr.startswith("Error: "), stderr
        assert [line[:5] for line in stderr.splitlines() if line.startswith(("Error", "Hint"))] == ["Error", "Hint:"]
        assert stderr.split("\nHint: ")[1].strip(), "an empty hint"
        left = tree(tmp_path)
        assert left.keys() - before.keys() == set(), "files left behind"
        assert left == before
        return stderr

    return run


@pytest.fixture
def distil(refused, photos):
    """Run ``distill`` on the photos with an untrained teacher; options given replace these."""

    def run(*arguments: str | Path, **options: str | Path) -> str:
        values = {"teacher": "random:test_vit", "student": "test_resnet", "data": photos, "output": "run"} | options
        named = [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", value)]
        return refused("distill", *SMALL, *named, *arguments)

    return run


# --- names ------------------------------------------------------------------------------------------------------------


def test_nothing_said(refused):
    stderr = refused("distill")
    for option in ("--teacher", "--student", "--data"):
        assert option in stderr


def test_one_thing_not_said(refused, photos):
    stderr = refused("distill", "--teacher", "resnet50", "--data", photos)
    assert "--student is missing" in stderr
    assert "--teacher is" not in stderr


@pytest.mark.parametrize("name", ["resnet5", "timm:resnet5"])
def test_unknown_teacher_names_the_nearest(distil, name):
    assert "resnet50" in distil(teacher=name)


def test_unknown_tag_names_the_nearest(distil):
    assert "resnet50.a1_in1k" in distil(teacher="resnet50.a1_in1")


def test_unknown_student_names_the_nearest(distil):
    assert "mobilenetv3_small_050" in distil(student="mobilenetv3_smal_050")


@pytest.mark.parametrize("name", ["none", "random:none", "", "random:", "timm:", "hf:", "./no-such-folder"])
def test_names_that_are_no_student(distil, name):
    distil(student=name)


@pytest.mark.parametrize("name", ["", "random:", "timm:", "hf:", "hf:not a name", "/no/such/folder", "random:none"])
def test_names_that_are_no_teacher(distil, name):
    distil(teacher=name)


def test_folder_that_holds_no_model(distil, photos):
    assert "config.json" in distil(teacher=photos)


@pytest.mark.parametrize(
    "config", ["{}", "[]", "not json", '{"architecture": "no_such_net"}', '{"model_type": "nope"}']
)
def test_folder_with_a_strange_config(distil, tmp_path, config):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(config)
    distil(teacher="./model")
    distil(student="./model")


def test_model_of_the_other_library(distil, hf_folder):
    assert "hf:" in distil(teacher=f"timm:{hf_folder}")


def test_transformers_folder_without_a_classifier_as_student(distil, tmp_path):
    from transformers import BertConfig

    BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path / "bert")
    distil(student="./bert")


def test_text_model_as_teacher(distil, tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50)
    BertModel(config).save_pretrained(tmp_path / "bert")
    distil(teacher="./bert")


@pytest.mark.parametrize("name", ["torchvision:CIFAR1000", "torchvision:", "demo:digit", "demo:", "digit", "nope:x"])
def test_unknown_data(distil, name):
    stderr = distil(data=name)
    if "CIFAR" in name:
        assert "CIFAR100" in stderr
    if "digit" in name:
        assert "demo:digits" in stderr


# --- recipes, keys and values -----------------------------------------------------------------------------------------


def test_unknown_recipe_names_the_nearest(refused):
    assert "quickstart" in refused("distill", "--recipe", "quikstart")
    assert "quickstart" in refused("recipes", "show", "quikstart")
    assert "quickstart" in refused("recipes", "copy", "quikstart", "mine.yaml")


def test_missing_recipe_file(refused):
    assert "mine.yaml" in refused("distill", "--recipe", "mine.yaml")


@pytest.mark.parametrize(
    "text",
    ["", "just text", "- a\n- b\n", "teacher: [", "1: 2\n", "seed: 1\nseed: 2\n", "teacher: !!python/name:os.system\n"],
)
def test_recipe_that_is_no_mapping(refused, tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    assert "mine.yaml" in refused("distill", "--recipe", "mine.yaml")


def test_recipe_that_is_no_text(refused, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00\x81")
    refused("distill", "--recipe", "mine.yaml")


def test_all_wrong_keys_of_a_recipe_at_once(refused, tmp_path, photos):
    (tmp_path / "mine.yaml").write_text(
        f"""
techer: resnet50
teacher: resnet50
student: {{name: resnet18, image_sise: 64}}
data: {photos}
train: {{epoch: 3, batch_size: 1}}
optim: {{lr: -1, schedule: cosin}}
methods: [{{method: projektion}}, {{method: projection, projector: ortogonal}}, {{method: logit_kd, temprature: 2}}]
"""
    )
    stderr = refused("distill", "--recipe", "mine.yaml")
    for key, nearest in (
        ("techer", "teacher"),
        ("student.image_sise", "image_size"),
        ("train.epoch", "epochs"),
        ("optim.schedule", "cosine"),
        ("methods.0.method", "projection"),
        ("methods.1.projector", "orthogonal"),
        ("methods.2.temprature", "temperature"),
    ):
        (line,) = (line for line in stderr.splitlines() if line.startswith(f"  - {key}: "))
        assert nearest in line.removeprefix(f"  - {key}: "), line
    assert "  - train.batch_size: " in stderr
    assert "  - optim.lr: " in stderr
    assert stderr.count("  - ") == 9


@pytest.mark.parametrize(
    "text",
    ["epochs", "=3", "train.epochs=[", "seed.deep=1", "trian.epochs=1", "train.ema=much", "augment=1", "optim=", ".=1"],
)
def test_bad_set(distil, text):
    distil("--set", text)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", "-1"),
        ("lr", "0"),
        ("lr", "nan"),
        ("lr", "inf"),
        ("batch_size", "1"),
        ("batch_size", "0"),
        ("epochs", "-3"),
        ("seed", "-1"),
        ("mixed_precision", "fp8"),
        ("mixed_precision", "half"),
        ("task", "image-clasification"),
        ("relation", "alike"),
        ("projector", "ortogonal"),
        ("normalize", "layernorm"),
        ("device", "gpu"),
        ("device", "tpu:banana"),
        ("device", "meta"),
        ("device", "cuda:99"),
        ("device", ""),
    ],
)
def test_bad_value_of_an_option(distil, option, value):
    stderr = distil(**{option: value})
    assert value in stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works on a GPU")
def test_precision_that_the_device_has_not(distil):
    assert "fp16" in distil(mixed_precision="fp16")


@pytest.mark.parametrize(
    "text",
    [
        "augment.crop_scale=[0.9, 0.1]",
        "augment.crop_scale=[0, 1]",
        "augment.flip=2",
        "train.accumulation=1000",
        "train.ema=1",
        "optim.schedule=cosin",
        "data.workers=-1",
        "data.labels_per_class=1000",
        "data.unlabelled=no-such-folder",
        "data.validation_fraction=0.999",
        "data.image_column=picture",
        "methods=[]",
        "methods=[{method: supervised}]",
        "student.drop_path=1.5",
    ],
)
def test_bad_value_of_a_key(distil, text):
    distil("--set", text)


@pytest.mark.parametrize("name", ["adamwx", "", "lbfgs", "adahessian"])
def test_bad_optimiser(distil, name):
    stderr = distil("--set", f"optim.optimizer={name}")
    if name == "adamwx":
        assert "adamw" in stderr


# --- data -------------------------------------------------------------------------------------------------------------


def test_missing_data_folder(distil):
    assert "no-such-folder" in distil(data="no-such-folder/")


def test_data_that_are_a_file(distil, tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"PK")
    distil(data="photos.zip")


def test_empty_folder(distil, tmp_path):
    (tmp_path / "empty").mkdir()
    distil(data="empty")


def test_folder_with_no_images(distil, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "texts" / name).mkdir(parents=True)
        (tmp_path / "texts" / name / "readme.txt").write_text("no image")
    assert "no images" in distil(data="texts")


def test_images_without_class_folders(distil, make_photos):
    folder = make_photos({"apple": 4})
    assert "class folders" in distil(data=folder / "apple")


def test_an_empty_class_is_named(distil, make_photos):
    folder = make_photos({"apple": 6, "sky": 6})
    (folder / "hollow").mkdir()
    assert "hollow" in distil(data=folder)


def test_one_class_alone(distil, make_photos):
    assert "apple" in distil(data=make_photos({"apple": 6}))


def test_too_few_images_to_split(distil, make_photos):
    distil(data=make_photos({"apple": 1, "sky": 6}))
    distil(data=make_photos({"apple": 2, "sky": 2}, name="two-each"))


def test_splits_with_other_classes(distil, make_photos):
    folder = make_photos({"train/apple": 4, "train/sky": 4, "test/apple": 4, "test/leaf": 4})
    assert "leaf" in distil(data=folder)


def test_an_image_in_two_splits(distil, make_photos):
    folder = make_photos({f"{split}/{name}": 4 for split in ("train", "test") for name in ("apple", "sky")})
    (folder / "test" / "sky" / "twin.png").hardlink_to(folder / "train" / "sky" / "01.png")
    assert "twin.png" in distil(data=folder)


@pytest.fixture
def photos_with_splits(make_photos):
    return make_photos({f"{part}/{name}": 8 for part in ("train", "val", "test") for name in ("apple", "sky")})


@pytest.mark.parametrize("split", ["train", "val"])
def test_strict_data_stops_at_a_corrupt_image_and_names_it(distil, photos_with_splits, split):
    broken = photos_with_splits / split / "apple" / "03.png"
    broken.write_bytes(broken.read_bytes()[:100])
    assert str(broken) in distil("--strict-data", data=photos_with_splits)


def test_strict_data_and_a_corrupt_test_image(run_cli, tmp_path, photos_with_splits):
    """Test images are opened last: the error must not take the trained student with it."""
    broken = photos_with_splits / "test" / "apple" / "03.png"
    broken.write_bytes(broken.read_bytes()[:100])
    exit_code, stdout, stderr = run_cli(
        *("distill", *SMALL, "--teacher", "random:test_vit", "--student", "test_resnet", "--data", photos_with_splits),
        *("--output", "run", "--strict-data"),
    )
    assert exit_code == 2, stdout
    assert str(broken) in stderr
    assert "Traceback" not in stderr
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
    assert run_cli("export", "run").exit_code == 0


def test_no_readable_image_at_all(distil, make_photos):
    folder = make_photos({"apple": 6, "sky": 6})
    for file in folder.rglob("*.*"):
        file.write_bytes(b"rubbish")
    distil(data=folder)


# --- plan -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher_of_two(make_model):
    return make_model("test_resnet", num_classes=2)


@pytest.fixture
def make_model(tmp_path):
    """Write an untrained timm model as if it were trained."""
    import timm
    from timm.models._hub import save_config_for_hf

    def make(architecture: str, **arguments) -> Path:
        folder = tmp_path / f"{architecture}-model"
        folder.mkdir()
        module = timm.create_model(architecture, **arguments)
        save_file(module.state_dict(), folder / "model.safetensors")
        save_config_for_hf(module, str(folder / "config.json"), model_config={"num_classes": module.num_classes})
        return folder

    return make


def test_relation_same_with_other_label_counts(distil, teacher_of_two):
    stderr = distil(teacher=teacher_of_two, relation="same")
    assert "2 classes" in stderr
    assert "3" in stderr


@pytest.mark.parametrize(("teacher", "relation"), [("none", "same"), ("none", "cross"), ("random:test_vit", "none")])
def test_relation_against_the_presence_of_a_teacher(distil, teacher, relation):
    distil(teacher=teacher, relation=relation)


def test_projector_none_across_label_spaces(distil, teacher_of_two):
    assert "cross" in distil(teacher=teacher_of_two, projector="none")


def test_logit_kd_across_label_spaces(distil, teacher_of_two):
    stderr = distil("--set", "methods=[{method: supervised}, {method: logit_kd}]", teacher=teacher_of_two)
    assert "labels" in stderr


@pytest.mark.parametrize("option", ["projector", "normalize"])
def test_projection_without_a_teacher(distil, option):
    value = {"projector": "linear", "normalize": "whiten"}[option]
    stderr = distil(teacher="none", **{option: value})
    assert f"--{option} {value}" in stderr


def test_projection_in_the_methods_without_a_teacher(distil):
    distil("--set", "methods=[{method: projection, projector: linear}]", teacher="none")


def test_projector_beside_methods_written_out(distil):
    distil("--set", "methods=[{method: projection, projector: linear}]", projector="inverted")


def test_baseline_without_a_teacher(distil):
    distil("--baseline", teacher="none")


@pytest.mark.parametrize("tap", ["student_tap", "teacher_tap"])
def test_unknown_tap(distil, tap):
    methods = f"methods=[{{method: supervised}}, {{method: projection, projector: linear, {tap}: poled}}]"
    stderr = distil("--set", methods)
    assert "poled" in stderr
    assert "pooled" in stderr.replace("poled", "")
    assert "embedding" in stderr


@pytest.mark.parametrize("section", ["teacher", "student"])
@pytest.mark.parametrize("size", ["33", "1", "0"])
def test_image_size_that_no_patch_divides(refused, photos, tmp_path, section, size):
    models = {"teacher": "random:test_resnet", "student": "test_resnet"}
    models[section] = {"teacher": "random:test_vit", "student": "test_vit"}[section]
    sizes = {"teacher": "32", "student": "32", section: size}
    (tmp_path / "mine.yaml").write_text(
        f"data: {photos}\n"
        + "".join(f"{name}: {{name: '{models[name]}', image_size: {sizes[name]}}}\n" for name in models)
    )
    assert size in refused("distill", "--recipe", "mine.yaml", "--output", "run")


# --- output -----------------------------------------------------------------------------------------------------------


def test_output_that_holds_a_run(distil, random_run, tmp_path):
    shutil.copytree(random_run, tmp_path / "run")
    assert "run" in distil()


def test_output_that_is_not_empty(distil, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    distil()


def test_output_that_is_a_file(distil, tmp_path):
    (tmp_path / "run").write_text("a file")
    distil()


def test_output_under_a_file(distil, tmp_path):
    (tmp_path / "file").write_text("a file")
    distil(output="file/run")


def test_a_training_that_is_refused_leaves_no_folder_of_runs(refused, photos):
    models = ("--teacher", "random:test_vit", "--student", "test_resnet")
    assert "accumulation" in refused("distill", *SMALL, *models, "--data", photos, "--set", "train.accumulation=1000")


# --- weights ----------------------------------------------------------------------------------------------------------


def test_checkpoint_that_is_missing(distil):
    assert "no-such.safetensors" in distil(teacher="test_resnet", teacher_weights="no-such.safetensors")


def test_checkpoint_that_is_a_folder(distil, trained_teacher):
    distil(teacher="test_resnet", teacher_weights=trained_teacher)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin"])
@pytest.mark.parametrize("content", [b"", b"rubbish" * 100, "truncated"])
def test_checkpoint_that_is_damaged(distil, tmp_path, trained_teacher, suffix, content):
    file = tmp_path / f"teacher.{suffix}"
    if content == "truncated":
        state = load_file(trained_teacher / "model.safetensors")
        (save_file if suffix == "safetensors" else torch.save)(state, file)
        content = file.read_bytes()[: file.stat().st_size // 2]
    file.write_bytes(content)
    assert str(file.name) in distil(teacher="test_resnet", teacher_weights=file)


def test_checkpoint_of_another_architecture(distil, trained_teacher):
    stderr = distil(teacher="test_vit", teacher_weights=trained_teacher / "model.safetensors")
    assert "does not fit" in stderr
    stderr = distil(teacher="resnet10t", teacher_weights=trained_teacher / "model.safetensors")
    assert "does not fit" in stderr


def test_checkpoint_without_tensors(distil, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "teacher.pth")
    distil(teacher="test_resnet", teacher_weights="teacher.pth")


def test_weights_for_an_untrained_teacher(distil, trained_teacher):
    distil(teacher="random:test_resnet", teacher_weights=trained_teacher / "model.safetensors")


def test_weights_for_no_teacher(distil, trained_teacher):
    distil(teacher="none", teacher_weights=trained_teacher / "model.safetensors")


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["pickle", "torch", "legacy", "in a state dict"])
def test_checkpoint_with_a_payload_is_never_run(distil, tmp_path, tmp_path_factory, how):
    target = tmp_path_factory.mktemp("outside") / "owned"
    file, payload = tmp_path / "teacher.pth", Payload(target)
    if how == "pickle":
        file.write_bytes(pickle.dumps(payload))
    elif how == "in a state dict":
        torch.save({"state_dict": {"weight": torch.zeros(1)}, "extra": payload}, file)
    else:
        torch.save(payload, file, _use_new_zipfile_serialization=how == "torch")
    distil(teacher="test_resnet", teacher_weights="teacher.pth")
    assert not target.exists(), "the checkpoint's code was run"
    pickle.loads(pickle.dumps(payload))
    assert target.exists(), "the payload is none"


@pytest.mark.parametrize("content", [None, b"", b"rubbish" * 100])
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_teacher_folder_without_usable_weights(distil, tmp_path, trained_teacher, hf_folder, library, content):
    folder = shutil.copytree(trained_teacher if library == "timm" else hf_folder, tmp_path / "teacher")
    (folder / "model.safetensors").unlink()
    if content is not None:
        (folder / "model.safetensors").write_bytes(content)
    distil(teacher="./teacher")


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_teacher_folder_with_incomplete_weights(distil, tmp_path, trained_teacher, hf_folder, library):
    folder = shutil.copytree(trained_teacher if library == "timm" else hf_folder, tmp_path / "teacher")
    state = load_file(folder / "model.safetensors")
    matrices = sorted(name for name, tensor in state.items() if tensor.ndim > 1)
    del state[matrices[len(matrices) // 2]]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    distil(teacher="./teacher")


@pytest.mark.parametrize("name", ["resnet50", "resnet50.a1_in1k", "hf:org/does-not-exist", "org/does-not-exist"])
def test_teacher_whose_weights_are_out_of_reach(distil, name, tmp_path, monkeypatch):
    """Offline, with an empty cache: an error that says how to go on, not a teacher on random weights."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    stderr = distil(teacher=name)
    assert "HF_HUB_OFFLINE" in stderr
    assert "--teacher-weights" in stderr.split("Hint: ")[1]


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "hf:org/does-not-exist"])
def test_pretrained_student_out_of_reach(distil, name):
    stderr = distil("--student-pretrained", student=name)
    hint = stderr.split("Hint: ")[1]
    assert "--no-student-pretrained" in hint or "student.pretrained" in hint


def test_architecture_without_published_weights(distil):
    distil(teacher="resnet10t.no_such_tag")
    distil(teacher="vit_tiny_patch16_224.no")


def test_pretrained_student_that_is_random_by_name(distil):
    distil("--student-pretrained", student="random:test_resnet")


# --- export, analysis, recipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["export", "analyze-projector"])
def test_a_folder_that_is_no_run(refused, tmp_path, command):
    assert "no-such" in refused(command, "no-such")
    (tmp_path / "folder").mkdir()
    assert "folder" in refused(command, "folder")
    (tmp_path / "file").write_text("a file")
    refused(command, "file")


@pytest.mark.parametrize("command", ["export", "analyze-projector"])
def test_a_run_without_a_student(refused, tmp_path, random_run, command):
    shutil.copytree(random_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "student")
    assert "student" in refused(command, "run")


@pytest.mark.parametrize("command", ["export", "analyze-projector"])
@pytest.mark.parametrize("file", ["config.yaml", "student/config.json", "student/model.safetensors"])
def test_a_run_with_a_damaged_file(refused, tmp_path, random_run, command, file):
    run = shutil.copytree(random_run, tmp_path / "run")
    (run / file).write_bytes(b"rubbish")
    refused(command, "run")


@pytest.mark.parametrize("file", ["projector.safetensors", "spectra.safetensors"])
def test_analysis_of_a_run_with_a_damaged_projector(refused, tmp_path, random_run, file):
    run = shutil.copytree(random_run, tmp_path / "run")
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[: len(content) // 2])
    refused("analyze-projector", "run")
    (run / file).unlink()
    refused("analyze-projector", "run")


def test_analysis_of_a_run_whose_data_have_gone(refused, tmp_path, random_run):
    run = shutil.copytree(random_run, tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(
        "\n".join("  name: gone/" if "/photos" in line else line for line in config.read_text().splitlines())
    )
    assert "run/config.yaml is not as kdcli wrote it" in refused("analyze-projector", "run")
    assert "gone" in refused("analyze-projector", "run", "--force")


@pytest.mark.parametrize("format_", ["safetensors", "onnx"])
def test_export_to_a_folder_with_other_files(refused, tmp_path, random_run, format_):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    assert "thesis" in refused("export", random_run, "--output", "thesis", "--format", format_)


def test_export_to_a_file(refused, tmp_path, random_run):
    (tmp_path / "file").write_text("a file")
    refused("export", random_run, "--output", "file")
    refused("export", random_run, "--output", "file/export")


def test_export_in_an_unknown_format(refused, random_run):
    assert "onnx" in refused("export", random_run, "--format", "onx", "--output", "out")


def test_analysis_of_a_run_without_a_projector(refused, alone_run):
    assert "projector" in refused("analyze-projector", alone_run)


@pytest.mark.parametrize("split", ["tets", "train"])
def test_analysis_on_an_unknown_split(refused, random_run, split):
    assert split in refused("analyze-projector", random_run, "--split", split)


def test_analysis_on_an_unknown_device(refused, random_run):
    refused("analyze-projector", random_run, "--device", "gpu")


def test_analysis_on_a_test_split_that_the_data_have_not(refused, run_cli, tmp_path, make_photos):
    folder = make_photos({f"{split}/{name}": 4 for split in ("train", "val") for name in ("apple", "sky")})
    outcome = run_cli(
        *("distill", *SMALL, "--teacher", "random:test_vit", "--student", "test_resnet", "--data", folder),
        *("--output", "run"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    metrics = [json.loads(line)["event"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "test" not in metrics
    assert "validation" in refused("analyze-projector", "run", "--split", "test")


def test_recipes_copy_never_overwrites(refused, tmp_path):
    (tmp_path / "mine.yaml").write_text("mine: true\n")
    assert "mine.yaml" in refused("recipes", "copy", "quickstart", "mine.yaml")
    (tmp_path / "quickstart.yaml").write_text("mine: true\n")
    assert "quickstart.yaml" in refused("recipes", "copy", "quickstart")
    refused("recipes", "copy", "quickstart", "no/such/folder/mine.yaml")


# --- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("distill", "--techer", "resnet50"), "--techer"),
        (("distill", "--epochs", "many"), "--epochs"),
        (("distill", "stray"), "stray"),
        (("distill", "--teacher"), "--teacher"),
        (("distil",), "distil"),
        (("export",), "run"),
        (("export", "run", "--fromat", "onnx"), "--fromat"),
        (("analyze-projector", "run", "--splits", "test"), "--splits"),
        (("recipes", "shwo"), "shwo"),
        (("--nope",), "--nope"),
    ],
)
def test_usage_errors(run_cli, tmp_path, arguments, named):
    exit_code, stdout, stderr = run_cli(*arguments)
    assert exit_code == 2
    assert stdout == ""
    assert named in stderr.lower()
    assert stderr.count("Error") == 1
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []
