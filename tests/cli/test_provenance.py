"""What has changed since a run is noticed by every command that reads it: data, labels, teacher, and its own files."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file

from kdcli.base.errors import UserError
from kdcli.config.recipes import load_yaml
from kdcli.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("few_points")

SPLITS = {
    f"{split}/{name}": count for split, count in (("train", 16), ("val", 4), ("test", 4)) for name in ("apple", "sky")
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, run_cli_in, make_photos_in, alone_run, tiny):
    """A folder with ``photos``, the ``teacher`` and a ``run`` of both; not to be changed."""
    folder = tmp_path_factory.mktemp("provenance")
    make_photos_in(folder / "photos", SPLITS)
    shutil.copytree(alone_run / "student", folder / "teacher")
    outcome = run_cli_in(
        *(
            "distill",
            "--teacher",
            "./teacher",
            "--student",
            "test_resnet",
            "--data",
            "photos",
            *tiny,
            "--output",
            "run",
        ),
        *("--relation", "cross"),
        cwd=folder,
    )
    assert outcome.exit_code == 0, outcome.stderr
    return folder


@pytest.fixture
def own(place, tmp_path):
    """A copy of ``place``, whose run is of it."""
    for name in ("photos", "teacher", "run"):
        shutil.copytree(place / name, tmp_path / name)
    run = RunFolder(tmp_path / "run")
    config = run.read_config()
    run.write_config(
        config.model_copy(
            update={
                "data": config.data.model_copy(update={"name": str(tmp_path / "photos")}),
                "teacher": config.teacher.model_copy(update={"name": str(tmp_path / "teacher")}),
            }
        )
    )
    return tmp_path


EVALUATE = ("evaluate", "run", "--device", "cpu", "--batch-size", "8")
ANALYZE = ("analyze-projector", "run", "--device", "cpu")


def test_a_folder_that_was_moved_is_the_same(own, run_cli):
    outcome = run_cli(*EVALUATE, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert json.loads(outcome.stdout)["forced"] == []


def test_data_that_were_moved_are_named_anew(own, run_cli):
    shutil.move(own / "photos", own / "moved")
    for command in (EVALUATE, ("distill", "--resume", "run", "--epochs", "2")):
        outcome = run_cli(*command)
        assert outcome.exit_code == 2
        assert "There is no data set or folder" in outcome.stderr
        assert "--data names their new place" in outcome.stderr
    outcome = run_cli(*EVALUATE, "--data", "moved")
    assert outcome.exit_code == 0, outcome.stderr


def test_evaluate_refuses_other_test_images_and_looks_at_no_others(own, run_cli):
    (own / "photos" / "train" / "sky" / "00.jpg").unlink()
    assert run_cli(*EVALUATE, "--no-teacher").exit_code == 0, "what it is not measured on does not matter"
    shutil.copy(own / "photos" / "train" / "sky" / "01.png", own / "photos" / "test" / "sky" / "new.png")
    (own / "photos" / "test" / "apple" / "01.png").rename(own / "photos" / "test" / "sky" / "swapped.png")
    outcome = run_cli(*EVALUATE)
    assert outcome.exit_code == 2
    assert "test: 2 added (test/sky/new.png, test/sky/swapped.png), 1 removed (test/apple/01.png)" in outcome.stderr
    outcome = run_cli(*EVALUATE, "--force")
    assert outcome.exit_code == 0, outcome.stderr
    (sentence,) = json.loads((own / "run" / "evaluation" / "evaluation.json").read_text())["forced"]
    assert sentence.startswith("Evaluated with --force although this had changed")
    assert sentence in outcome.stdout
    assert run_cli(*ANALYZE).exit_code == 0, "it looks at the validation split"
    assert run_cli(*ANALYZE, "--split", "test").exit_code == 2


def test_other_classes_in_their_order_are_refused(own, run_cli):
    """The folders are swapped: every image has the other label."""
    for split in ("train", "val", "test"):
        folder = own / "photos" / split
        for old, new in (("apple", "x"), ("sky", "apple"), ("x", "sky")):
            (folder / old).rename(folder / new)
    for command in (EVALUATE, ANALYZE):
        outcome = run_cli(*command)
        assert outcome.exit_code == 2
        assert " changed (" in outcome.stderr


def test_other_weights_of_the_teacher_are_refused(own, run_cli):
    file = own / "teacher" / "model.safetensors"
    tensors = load_file(file)
    tensors["fc.bias"][0] += 1e-3
    save_file(tensors, file)
    for command in (EVALUATE, ANALYZE):
        outcome = run_cli(*command)
        assert outcome.exit_code == 2
        assert "the teacher has other weights" in outcome.stderr
    assert run_cli(*EVALUATE, "--no-teacher").exit_code == 0
    outcome = run_cli(*ANALYZE, "--force")
    assert outcome.exit_code == 0, outcome.stderr
    (sentence,) = json.loads((own / "run" / "analysis" / "analysis.json").read_text())["forced"]
    assert "the teacher has other weights" in sentence


def test_a_run_without_a_record_is_told_of(own, run_cli, sign_again):
    (own / "run" / "data.jsonl.gz").unlink()
    sign_again(own / "run")
    (own / "photos" / "test" / "apple" / "01.png").unlink()
    for command in (EVALUATE, ANALYZE):
        outcome = run_cli(*command)
        assert outcome.exit_code == 0, outcome.stderr
        assert "can't be told whether data or teacher have changed" in outcome.stdout


def test_runs_of_the_same_name_of_data_are_compared_on_the_same_samples(own, run_cli, tiny):
    (own / "photos" / "test" / "apple" / "01.png").unlink()
    command = ("distill", "--teacher", "none", "--student", "test_resnet", "--data", "photos", *tiny)
    assert run_cli(*command, "--output", "later").exit_code == 0
    outcome = run_cli("compare", "run", "later")
    assert outcome.exit_code == 2
    assert "run and later name the same data" in outcome.stderr
    assert "test: 1 removed (test/apple/01.png)" in outcome.stderr
    outcome = run_cli("compare", "run", "later", "--force")
    assert outcome.exit_code == 0, outcome.stderr
    assert "Warning: later: Compared with --force although run and later" in outcome.stdout


def test_a_run_that_was_trained_on_the_samples_is_not_measured_on_them(run_cli, tmp_path, alone_run, photos, tiny):
    """By another seed it has another validation split, cut from the same folder."""
    command = ("distill", "--teacher", "none", "--student", "test_resnet", "--data", photos, "--seed", "1", *tiny)
    assert run_cli(*command, "--output", "other").exit_code == 0
    shutil.copytree(alone_run, tmp_path / "run")
    compared = (*EVALUATE, "--against", "other", "--json")
    assert run_cli(*compared).exit_code == 0, "the test split does not depend on the seed"
    outcome = run_cli(*compared, "--split", "validation")
    assert outcome.exit_code == 2
    assert "of the validation samples are among those that other was trained on, such as" in outcome.stderr
    outcome = run_cli(*compared, "--split", "validation", "--force")
    (sentence,) = json.loads(outcome.stdout)["forced"]
    assert sentence.startswith("Evaluated with --force although ")


FILES = {
    "plan.json": ("export", "run"),
    "metrics.jsonl": ("export", "run"),
    "student/config.json": ("export", "run"),
    "student/model.safetensors": ("models", "probe", "--teacher", "run", "--data", "photos", "--device", "cpu"),
    "config.yaml": ("models", "layers", "run"),
    "result.json": ("compare", "run"),
    "data.jsonl.gz": EVALUATE,
    "projector.safetensors": ANALYZE,
    "spectra.safetensors": ANALYZE,
}


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_is_found_by_the_command_that_reads_the_file(place, own, run_cli, file):
    content = bytearray((own / "run" / file).read_bytes())
    content[-3 if file == "config.yaml" else len(content) // 2] ^= 1
    (own / "run" / file).write_bytes(content)
    for command in (FILES[file], ("distill", "--resume", "run", "--epochs", "2")):
        outcome = run_cli(*command)
        assert outcome.exit_code == 2
        assert outcome.stderr.count("Error:") == 1
        assert f"run/{file} " in outcome.stderr


def test_a_changed_student_is_taken_by_force_and_the_card_says_so(own, run_cli):
    file = own / "run" / "student" / "model.safetensors"
    tensors = load_file(file)
    tensors["fc.bias"][0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    outcome = run_cli("export", "run", "--force")
    assert outcome.exit_code == 0, outcome.stderr
    sentence = "student/model.safetensors is not as the run left it: its checksum is another."
    assert f"| Forced | {sentence} |" in (own / "run" / "export" / "README.md").read_text()
    assert f"Warning: {sentence}" in outcome.stdout
    assert run_cli("models", "layers", "run/student").exit_code == 0, (
        "the student's folder alone is a model as any other"
    )


def test_a_config_that_breaks_off_anywhere_is_found(tmp_path, place):
    """In a run that is not finished too; YAML itself takes most of these halves for whole."""
    (tmp_path / "run").mkdir()
    whole = (place / "run" / "config.yaml").read_bytes()
    run = RunFolder(tmp_path / "run")
    parsed = 0
    for end in range(len(whole)):
        (run.path / "config.yaml").write_bytes(whole[:end])
        with pytest.raises(UserError):
            run.read_config()
        if end % 20 == 0 and end < whole.rindex(b"#"):
            with pytest.raises(UserError):
                RunFolder(run.path, force=True).read_config()
            with contextlib.suppress(yaml.YAMLError):
                parsed += isinstance(yaml.safe_load(whole[:end]), dict)
    assert parsed > 10
    (run.path / "config.yaml").write_bytes(whole)
    assert run.read_config() == RunFolder(place / "run").read_config()
    edited = whole.replace(b"seed: 0", b"seed: 1")
    (run.path / "config.yaml").write_bytes(edited)
    with pytest.raises(UserError, match="damaged or was changed"):
        run.read_config()
    assert RunFolder(run.path, force=True).read_config().seed == 1
    (run.path / "config.yaml").write_bytes(yaml.safe_dump(yaml.safe_load(edited)).encode())
    assert run.read_config().seed == 1, "one of an earlier kdcli has no checksum"
    (tmp_path / "mine.yaml").write_bytes(edited + b"output: elsewhere\n")
    assert load_yaml(tmp_path / "mine.yaml")["output"] == "elsewhere", (
        "a copy to which a line was added does not break off"
    )


def test_force_is_for_resuming(run_cli):
    outcome = run_cli("distill", "--recipe", "quickstart", "--force")
    assert outcome.exit_code == 2
    assert "--force is for --resume" in outcome.stderr
