"""``kdcli evaluate``: its numbers against computations of their own, what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

FAST = ("--batch-size", "16", "--device", "cpu")


@pytest.fixture(scope="session")
def evaluated(same_run, alone_run, run_cli_in, tmp_path_factory) -> tuple[Path, str, dict]:
    """A run with a teacher of the same labels, beside another run: folder, what was printed, evaluation.json."""
    folder = Path(shutil.copytree(same_run, tmp_path_factory.mktemp("evaluated") / "run"))
    outcome = run_cli_in("evaluate", "run", "--against", alone_run, *FAST, cwd=folder.parent)
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stderr == ""
    return folder, outcome.stdout, json.loads((folder / "evaluation" / "evaluation.json").read_text())


@pytest.fixture(scope="session")
def logits(same_run, photos) -> dict[str, np.ndarray]:
    """Logits of the test images in file order, computed here; and their labels."""
    import torch

    from kdcli.data import fit, prepare
    from kdcli.runs.folder import RunFolder
    from kdcli.training.prepare import reopen_job

    job = reopen_job(RunFolder.open(same_run))
    source = job.data.test
    result = {"labels": np.array(source.labels)}
    for role, model in (("student", job.student), ("teacher", job.teacher)):
        rows = []
        for index in range(len(source)):
            pixels = np.array(fit(source.load(index).inputs, model.facts.preprocessing)).transpose(2, 0, 1)[None]
            with torch.inference_mode():
                rows.append(model.eval()(prepare(torch.from_numpy(pixels), model.facts.preprocessing)).logits[0])
        result[role] = torch.stack(rows).double().numpy()
    return result


@pytest.fixture
def evaluate(run_cli):
    """Run ``evaluate ... --json``; return the object, which must be all that is printed."""

    def run(*arguments: str | Path) -> dict:
        outcome = run_cli("evaluate", *arguments, *FAST, "--json")
        assert outcome.exit_code == 0, outcome.stderr
        assert outcome.stderr == ""
        return json.loads(outcome.stdout)

    return run


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(run_cli, tmp_path):
    """Run ``evaluate``, which must be refused without a trace; return its message and hint."""

    def run(*arguments: str | Path) -> str:
        before = tree(tmp_path)
        exit_code, stdout, stderr = run_cli("evaluate", *arguments, *FAST)
        assert exit_code == 2, f"exit code {exit_code}\n{stdout}\n{stderr}"
        assert "Traceback" not in stdout + stderr
        assert stdout == ""
        assert [line[:5] for line in stderr.splitlines()] == ["Error", "Hint:"]
        assert stderr.split("\nHint: ")[1].strip(), "an empty hint"
        assert tree(tmp_path) == before
        return stderr

    return run


def cell(stdout: str, row: str, column: int) -> str:
    (line,) = (line for line in stdout.splitlines() if line.startswith(f"| {row} "))
    return line.strip("|").split("|")[column].strip()


def file_bytes(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_scores_by_hand(evaluated, logits, role):
    *_, evaluation = evaluated
    model, rows, labels = evaluation["models"][role], logits[role], logits["labels"]
    predicted = rows.argmax(axis=1)
    assert model["top1"] == pytest.approx((predicted == labels).mean(), rel=1e-6)
    assert model["top5"] is None
    confusion = [[int(((labels == true) & (predicted == p)).sum()) for p in range(3)] for true in range(3)]
    assert model["confusion"] == confusion
    for label in range(3):
        expected = (predicted == labels)[labels == label].mean()
        assert model["per_class_accuracy"][label] == pytest.approx(expected, rel=1e-6)
    log_sums = np.log(np.exp(rows).sum(axis=1))
    assert model["cross_entropy"] == pytest.approx((log_sums - rows[range(len(rows)), labels]).mean(), rel=1e-4)
    confidence = np.exp(rows.max(axis=1) - log_sums)
    bins = np.minimum((confidence * 15).astype(int), 14)
    error = sum(
        (bins == b).mean() * abs((predicted == labels)[bins == b].mean() - confidence[bins == b].mean())
        for b in np.unique(bins)
    )
    assert model["expected_calibration_error"] == pytest.approx(error, rel=1e-3)
    assert evaluation["num_images"] == len(labels) == 14
    assert evaluation["class_counts"] == np.bincount(labels).tolist()


def test_agreement_is_with_the_runs_own_teacher(evaluated, logits):
    _, stdout, evaluation = evaluated
    same = (logits["student"].argmax(axis=1) == logits["teacher"].argmax(axis=1)).mean()
    models = evaluation["models"]
    assert models["student"]["agreement_with_teacher"] == pytest.approx(same)
    assert models["teacher"]["agreement_with_teacher"] is None
    # The other run's student is what the teacher was made of: the same weights.
    assert models["against-1"]["agreement_with_teacher"] == 1
    assert models["against-1"]["confusion"] == models["teacher"]["confusion"]
    assert cell(stdout, "agreement with the teacher", 1) == f"{same:.4f}"
    assert cell(stdout, "agreement with the teacher", 2) == "-"


def test_accuracy_is_that_of_the_training(evaluated, same_run):
    """The trainer's own test, of the same weights on the same images."""
    *_, evaluation = evaluated
    (line,) = (entry for entry in map(json.loads, (same_run / "metrics.jsonl").open()) if entry["event"] == "test")
    assert evaluation["models"]["student"]["top1"] == pytest.approx(line["accuracy"])
    assert evaluation["models"]["student"]["cross_entropy"] == pytest.approx(line["loss"], rel=1e-5)


def test_costs(evaluated, same_run, trained_teacher, alone_run):
    from kdcli.models import load_saved

    _, stdout, evaluation = evaluated
    for role, folder in (
        ("student", same_run / "student"),
        ("teacher", trained_teacher),
        ("against-1", alone_run / "student"),
    ):
        model, loaded = evaluation["models"][role], load_saved(folder)
        assert model["parameters"] == sum(p.numel() for p in loaded.parameters())
        assert model["macs"] == loaded.facts.macs > 0
        assert model["size_mb"] == file_bytes(folder) / 1e6
        assert model["size_of"] == "model.safetensors"
        assert model["dtype"] == "float32"
        assert model["input_size"] == [32, 32]
        latency, throughput = model["latency"], model["throughput"]
        assert 0 < latency["median_ms"] < 1000
        assert 0 <= latency["iqr_ms"] < 1000
        assert 5 <= latency["repeats"] <= 50
        assert 5 <= throughput["repeats"] <= 50
        assert 16 < throughput["images_per_second"] < 1e6
    assert cell(stdout, "size in MB", 1) == f"{evaluation['models']['student']['size_mb']:.2f}"
    assert cell(stdout, "latency in ms", 2) == f"{evaluation['models']['teacher']['latency']['median_ms']:.2f}"
    assert (evaluation["device"], evaluation["threads"], evaluation["batch_size"]) == ("cpu", 1, 16)


# --- what it shows and writes -----------------------------------------------------------------------------------------


def test_table_and_files(evaluated, photos):
    folder, stdout, evaluation = evaluated
    assert list(evaluation["models"]) == ["student", "teacher", "against-1"]
    for role, model in evaluation["models"].items():
        assert f"{role}: {model['name']}\n" in stdout
    assert f"14 test images of {photos}" in stdout
    assert (evaluation["data"], evaluation["split"]) == (str(photos), "test")
    for column, model in enumerate(evaluation["models"].values(), start=1):
        assert cell(stdout, "top-1 accuracy", column) == f"{model['top1']:.4f}"
    assert "top-5" not in stdout
    pictures = {f"confusion-{role}.png" for role in evaluation["models"]}
    assert {file.name for file in (folder / "evaluation").iterdir()} == pictures | {"evaluation.json"}
    for name in pictures:
        assert f"Wrote run/evaluation/{name}" in stdout
        pixels = np.asarray(Image.open(folder / "evaluation" / name).convert("L"), dtype=np.float64)
        assert pixels.std() > 20, f"{name} is blank"


def test_classes_come_worst_first(evaluated):
    _, stdout, evaluation = evaluated
    lines = stdout[stdout.index("Accuracy by class") :].splitlines()
    rows = [[text.strip() for text in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    accuracies = evaluation["models"]["student"]["per_class_accuracy"]
    assert {row[0] for row in rows} == {"apple", "leaf", "sky"}
    assert [float(row[2]) for row in rows] == pytest.approx(sorted(accuracies), abs=1e-4)
    for name, count, *values in rows:
        label = evaluation["class_names"].index(name)
        assert int(count) == evaluation["class_counts"][label]
        for value, model in zip(values, evaluation["models"].values(), strict=True):
            assert value == f"{model['per_class_accuracy'][label]:.4f}"


def test_table_of_classes_is_cut_on_the_terminal_only(run_cli, make_photos):
    folder = make_photos({f"{split}/c{n:02d}": 2 for split in ("train", "test") for n in range(23)})
    arguments = ("evaluate", "random:folder", "--data", folder, *FAST)
    from kdcli.base.facts import DataFacts
    from kdcli.config.models import StudentConfig
    from kdcli.models import build_student

    names = [f"c{n:02d}" for n in range(23)]
    build_student(StudentConfig(name="test_resnet", image_size=32), DataFacts.of_labels(names), seed=0).save(
        folder.parent / "folder"
    )
    stdout = run_cli(*arguments).stdout
    table = stdout[stdout.index("20 worst of 23 classes") :]
    assert len(re.findall(r"^\| c\d\d ", table, re.M)) == 20
    evaluation = json.loads(run_cli(*arguments, "--json").stdout)
    model = evaluation["models"]["model"]
    assert len(model["per_class_accuracy"]) == len(model["confusion"]) == 23
    assert model["top5"] >= model["top1"]
    assert "top-5 accuracy" in stdout


def test_json_is_alone_on_stdout_and_is_the_file(evaluated, run_cli, tmp_path):
    folder = evaluated[0]
    outcome = run_cli("evaluate", folder, "--no-teacher", "--output", "here/deep", *FAST, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stderr == ""
    evaluation = json.loads(outcome.stdout)
    assert (tmp_path / "here" / "deep" / "evaluation.json").read_text() == outcome.stdout
    assert list(evaluation["models"]) == ["student"]
    assert evaluation["models"]["student"]["agreement_with_teacher"] is None
    assert evaluation["models"]["student"]["confusion"] == evaluated[2]["models"]["student"]["confusion"]


def test_samples_are_shown(run_cli, tmp_path, evaluated):
    outcome = run_cli("evaluate", evaluated[0], "--show", "3", "--output", "shown", *FAST)
    assert outcome.exit_code == 0, outcome.stderr
    assert (tmp_path / "shown" / "samples.png").stat().st_size > 5000
    outcome = run_cli("evaluate", evaluated[0], "--no-teacher", "--output", "shown", *FAST)
    assert outcome.exit_code == 0, outcome.stderr
    assert not (tmp_path / "shown" / "samples.png").exists()


def test_another_evaluation_replaces_the_pictures(run_cli, tmp_path, evaluated):
    folder = Path(shutil.copytree(evaluated[0], tmp_path / "run"))
    outcome = run_cli("evaluate", "run", "--no-teacher", *FAST)
    assert outcome.exit_code == 0, outcome.stderr
    assert {file.name for file in (folder / "evaluation").iterdir()} == {"evaluation.json", "confusion-student.png"}
    assert "agreement" not in outcome.stdout
    assert "teacher" not in outcome.stdout


def test_teacher_of_other_labels_has_costs_alone(run_cli, tmp_path, random_run):
    outcome = run_cli("evaluate", random_run, "--output", "out", *FAST)
    assert outcome.exit_code == 0, outcome.stderr
    assert not (random_run / "evaluation").exists()
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    student, teacher = evaluation["models"]["student"], evaluation["models"]["teacher"]
    assert teacher["name"] == "random:timm:test_vit"
    for key in ("top1", "cross_entropy", "expected_calibration_error", "per_class_accuracy", "confusion"):
        assert teacher[key] is None
        assert student[key] is not None
    assert student["agreement_with_teacher"] is None
    assert teacher["macs"] > 0
    assert teacher["size_of"] == "state dict"
    assert teacher["latency"]["median_ms"] > 0
    assert cell(outcome.stdout, "top-1 accuracy", 2) == "-"
    assert "agreement with the teacher" not in outcome.stdout
    assert "The teacher has no accuracy here. The teacher's weights are untrained." in outcome.stdout
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"evaluation.json", "confusion-student.png"}


# --- models and data --------------------------------------------------------------------------------------------------


def test_exported_folder_is_the_run_and_writes_nothing(evaluate, run_cli, tmp_path, evaluated, photos):
    assert run_cli("export", evaluated[0], "--output", "exported").exit_code == 0
    before = tree(tmp_path)
    evaluation = evaluate("exported", "--data", photos)
    assert tree(tmp_path) == before
    assert list(evaluation["models"]) == ["model"]
    model, student = evaluation["models"]["model"], evaluated[2]["models"]["student"]
    for key in ("top1", "confusion", "per_class_accuracy", "parameters", "macs"):
        assert model[key] == student[key]
    assert evaluation["notes"] == []


def test_transformers_run(evaluate, hf_run, tmp_path):
    models = evaluate(hf_run, "--output", tmp_path / "out")["models"]
    assert models["teacher"]["top1"] is not None
    assert models["student"]["size_mb"] == file_bytes(hf_run / "student") / 1e6
    assert 0 <= models["student"]["agreement_with_teacher"] <= 1


def test_image_processors_are_obeyed_and_a_missing_one_is_said(evaluate, refused, tmp_path, photos):
    """One network and one function of the pixels, written in two ways: one result. Without any it is a guess, named so."""
    import transformers

    names = dict(enumerate(("leaf", "sky", "apple")))
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 16,
    }
    config = transformers.ViTConfig(**sizes, patch_size=8, id2label=names, label2id={n: i for i, n in names.items()})
    network = transformers.ViTForImageClassification(config)
    size = {"height": 16, "width": 16}
    ways = {
        "plain": {"size": size},
        "doubled": {"size": size, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        "kept": {"size": size, "do_resize": False},
    }
    for name in ("bare", *ways):
        network.save_pretrained(tmp_path / name)
    for name, settings in ways.items():
        transformers.ViTImageProcessor(**settings).save_pretrained(tmp_path / name)
    found = {name: evaluate(tmp_path / name, "--data", photos) for name in ("plain", "doubled", "bare")}
    entropies = {name: next(iter(result["models"].values()))["cross_entropy"] for name, result in found.items()}
    assert entropies["doubled"] == pytest.approx(entropies["plain"], rel=1e-5)
    guess = "It has no preprocessor_config.json, so pixels are scaled as for ViTImageProcessor."
    assert [name for name, result in found.items() if any(guess in note for note in result["notes"])] == ["bare"]
    assert "do_resize is false" in refused(tmp_path / "kept", "--data", photos)


def test_labels_in_another_order_are_put_into_the_datas(evaluate, tmp_path, trained_teacher, photos):
    """What was trained as apple is now called leaf, and so on: the columns of the confusion change places."""
    folder = Path(shutil.copytree(trained_teacher, tmp_path / "renamed"))
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == ["apple", "leaf", "sky"]
    config["label_names"] = ["leaf", "Sky", "apple"]
    (folder / "config.json").write_text(json.dumps(config))
    evaluation = evaluate(trained_teacher, "--against", "renamed", "--data", photos)
    before, after = (np.array(model["confusion"]) for model in evaluation["models"].values())
    assert before.sum() == 14
    np.testing.assert_array_equal(after, before[:, [2, 0, 1]])
    (note,) = evaluation["notes"]
    assert "renamed: Both have the same 3 labels; the model's logits are put into the data's order." in note


def test_teacher_and_data_each_in_another_order(evaluate, run_cli, tmp_path, trained_teacher, photos, tiny):
    """The student's, the teacher's and the data's labels are in three orders."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature

    folder = Path(shutil.copytree(trained_teacher, tmp_path / "renamed"))
    config = json.loads((folder / "config.json").read_text())
    config["label_names"] = ["leaf", "apple", "sky"]
    (folder / "config.json").write_text(json.dumps(config))
    outcome = run_cli(
        *("distill", "--teacher", "./renamed", "--student", "test_resnet", "--data", photos, *tiny, "--output", "run")
    )
    assert outcome.exit_code == 0, outcome.stderr
    names = ["sky", "apple", "leaf"]
    features = Features(image=ImageFeature(), label=ClassLabel(names=names))
    files = [(str(file), label) for label, name in enumerate(names) for file in sorted((photos / name).iterdir())]
    columns = {"image": [file for file, _ in files], "label": [label for _, label in files]}
    table = Dataset.from_dict(columns, features=features)
    halves = {"train": table.select(range(0, 72, 2)), "test": table.select(range(1, 72, 2))}
    DatasetDict(halves).save_to_disk(str(tmp_path / "table"))

    evaluation = evaluate("run", "--data", "table", "--output", "out")
    alone = evaluate("run/student", "--against", "./renamed", "--data", "table")
    assert evaluation["class_names"] == names
    assert evaluation["class_counts"] == [12, 12, 12]
    ours, theirs = evaluation["models"]["student"], evaluation["models"]["teacher"]
    assert ours["confusion"] == alone["models"]["model"]["confusion"]
    assert theirs["confusion"] == alone["models"]["against-1"]["confusion"]
    assert theirs["confusion"] != np.transpose(theirs["confusion"]).tolist(), "an order that matters"


def test_model_without_names_is_taken_in_order_and_this_is_said(evaluate, tmp_path, trained_teacher, photos):
    folder = Path(shutil.copytree(trained_teacher, tmp_path / "nameless"))
    config = json.loads((folder / "config.json").read_text())
    del config["label_names"], config["pretrained_cfg"]["label_names"]
    (folder / "config.json").write_text(json.dumps(config))
    evaluation = evaluate("nameless", "--against", trained_teacher, "--data", photos)
    nameless, named = evaluation["models"].values()
    assert nameless["confusion"] == named["confusion"]
    (note,) = evaluation["notes"]
    assert "nameless: Both have 3 classes; the model carries no label names, so their order is taken as equal." in note


def test_run_on_other_data(run_cli, tmp_path, make_photos, same_run):
    """Of the test split's only sky nothing can be read: named, not counted, and that class has no accuracy."""
    counts = {f"train/{name}": 4 for name in ("apple", "leaf", "sky")}
    folder = make_photos(counts | {"test/apple": 3, "test/leaf": 2, "test/sky": 1})
    (broken,) = (folder / "test" / "sky").iterdir()
    broken.write_bytes(b"no image")
    outcome = run_cli("evaluate", same_run, "--data", folder, "--output", "out", *FAST)
    assert outcome.exit_code == 0, outcome.stderr
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluation["data"] == str(folder)
    assert evaluation["num_images"] == 5
    assert evaluation["class_counts"] == [3, 2, 0]
    assert evaluation["num_unreadable"] == 1
    assert evaluation["unreadable"] == [str(broken)]
    assert f"Skipped an unreadable image: {broken}" in outcome.stdout
    for model in evaluation["models"].values():
        assert model["per_class_accuracy"][2] is None
        assert None not in model["per_class_accuracy"][:2]
    assert evaluation["models"]["teacher"]["top1"] is not None, "its labels are the student's, which are the data's"
    assert cell(outcome.stdout, "sky", 1) == "0"
    assert cell(outcome.stdout, "sky", 2) == "-"


def test_without_a_test_split_it_is_validation_and_this_is_said(evaluate, run_cli, make_photos, trained_teacher):
    folder = make_photos({f"{split}/{name}": 3 for split in ("train", "val") for name in ("apple", "leaf", "sky")})
    evaluation = evaluate(trained_teacher, "--data", folder)
    assert (evaluation["split"], evaluation["num_images"]) == ("validation", 9)
    assert evaluation["notes"] == [f"{folder} has no test split: validation it is."]
    outcome = run_cli("evaluate", trained_teacher, "--data", folder, *FAST)
    assert f"9 validation images of {folder}" in outcome.stdout
    assert evaluation["notes"][0] in outcome.stdout
    asked = evaluate(trained_teacher, "--data", folder, "--split", "validation")
    assert asked["notes"] == []
    assert asked["models"]["model"]["confusion"] == evaluation["models"]["model"]["confusion"]


def test_splits_of_a_run_are_those_it_was_trained_with(evaluate, run_cli, tmp_path, photos, tiny):
    """Of 72 images 22 are for testing, 10 of the other 50 for validation; of 40 two a class keep their labels."""
    outcome = run_cli(
        *("distill", "--teacher", "none", "--student", "test_resnet", "--data", photos, *tiny, "--output", "run"),
        *("--set", "data.test_fraction=0.3", "--set", "data.validation_fraction=0.2", "--seed", "1"),
        *("--set", "data.labels_per_class=2"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    for split, number in (("test", 22), ("validation", 10), ("train", 6)):
        evaluation = evaluate("run", "--split", split)
        assert (evaluation["split"], evaluation["num_images"]) == (split, number)
        assert [note for note in evaluation["notes"] if "no label" in note] == (
            ["34 images of the train split have no label and are left out."] if split == "train" else []
        )
    # The same data by their name are the same splits.
    (metrics,) = (
        entry for entry in map(json.loads, (tmp_path / "run" / "metrics.jsonl").open()) if entry["event"] == "test"
    )
    named = evaluate("run", "--data", photos)
    assert named["num_images"] == 22
    assert named["models"]["student"]["cross_entropy"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert evaluate("run", "--data", photos, "--split", "train")["num_images"] == 6
    # Others are cut alike, and what was withheld from this training is not withheld from them.
    copy = shutil.copytree(photos, tmp_path / "copy")
    assert evaluate("run", "--data", copy)["num_images"] == 22
    assert evaluate("run", "--data", copy, "--split", "train")["num_images"] == 40


def test_data_root(refused, trained_teacher, same_run, tmp_path):
    """Without a network: the error names the folder that was looked into. A run's own root holds for other data too."""
    imagenet = ("--data", "torchvision:ImageNet")
    for name in (trained_teacher, same_run):
        assert str(tmp_path / "mine") in refused(name, *imagenet, "--data-root", tmp_path / "mine")
    run = Path(shutil.copytree(same_run, tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["root"] = str(tmp_path / "own")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert str(tmp_path / "own") in refused("run", *imagenet)
    assert str(tmp_path / "mine") in refused("run", *imagenet, "--data-root", tmp_path / "mine")


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_label_spaces_that_do_not_fit(refused, same_run, trained_teacher, photos, make_photos):
    four = make_photos(dict.fromkeys(("apple", "leaf", "sky", "sea"), 4), name="four")
    stderr = refused(same_run, "--data", four, "--output", "out")
    assert f"{same_run} can't be evaluated on {four}: The model knows 3 classes, the data have 4." in stderr
    other = make_photos(dict.fromkeys(("apple", "leaf", "sea"), 4), name="other")
    assert "the model has no label 'sea'" in refused(trained_teacher, "--data", other)
    stderr = refused(trained_teacher, "--against", "random:test_resnet", "--data", photos)
    assert "random:test_resnet can't be evaluated" in stderr


def test_splits_that_are_not_there(refused, make_photos, trained_teacher, same_run):
    folder = make_photos({f"{split}/{name}": 3 for split in ("train", "val") for name in ("apple", "leaf", "sky")})
    assert f"{folder} has no test split." in refused(trained_teacher, "--data", folder, "--split", "test")
    stderr = refused(same_run, "--split", "tset")
    assert "no split 'tset'. Did you mean test?" in stderr
    assert "test, validation or train" in stderr


def test_names_of_nothing(refused, photos, tmp_path, same_run):
    assert "neither a run folder (no config.yaml) nor a model (no config.json)" in refused(photos, "--data", photos)
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    assert "Did you mean runs/quickstart?" in refused("runs/quickstrt")
    assert "resnet50" in refused("resnet5", "--data", photos)
    assert "there is no folder" in refused("./nothing", "--data", photos)
    assert "neither a run" in refused(same_run, "--against", photos)
    refused("none", "--data", photos)


def test_run_without_a_student(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("teacher: none\nstudent: test_vit\ndata: demo:digits\n")
    assert "no student yet" in refused("run")


def test_model_without_data(refused, trained_teacher):
    assert "--data" in refused(trained_teacher)


def test_model_without_a_classifier(refused, tmp_path, photos):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )
    ViTModel(config).save_pretrained(tmp_path / "backbone")
    assert "no classifier" in refused("backbone", "--data", photos)


def test_the_same_twice(refused, same_run):
    assert "named twice" in refused(same_run, "--against", same_run)


def test_output_that_holds_something_else(refused, tmp_path, same_run):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert "not an evaluation's" in refused(same_run, "--output", "mine")


def test_teacher_that_is_gone(refused, run_cli, tmp_path, same_run):
    run = Path(shutil.copytree(same_run, tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["teacher"]["name"] = str(tmp_path / "gone")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "--no-teacher" in refused("run")
    outcome = run_cli("evaluate", "run", "--no-teacher", *FAST)
    assert outcome.exit_code == 0, outcome.stderr


def test_weights_that_are_damaged(refused, tmp_path, trained_teacher, photos):
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(trained_teacher, tmp_path / "damaged"))
    state = load_file(folder / "model.safetensors")
    largest = torch.finfo(torch.float32).max
    state["fc.weight"] = torch.full_like(state["fc.weight"], largest)
    for value, said in ((torch.nan, "undefined values (fc.bias)"), (largest, "logits that are not finite")):
        state["fc.bias"] = torch.full_like(state["fc.bias"], value)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        assert said in refused("damaged", "--data", photos)


@pytest.mark.parametrize(
    "arguments", [("a" * 300,), ("\x1b[31m", "--data", "photos"), ("test_resnet", "--data", "a" * 300)]
)
def test_names_that_nothing_can_have_are_one_message(run_cli, arguments):
    outcome = run_cli("evaluate", *arguments)
    assert outcome.exit_code == 2
    assert outcome.stderr.count("Error:") == 1
    assert "Traceback" not in outcome.stderr
