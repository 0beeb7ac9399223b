"""``kdcli distill`` on real small data: what it prints, what it leaves behind, and that it can be repeated."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

RUN_FILES = {
    "README.md",
    "config.yaml",
    "data.jsonl.gz",
    "metrics.jsonl",
    "plan.json",
    "projector.safetensors",
    "result.json",
    "report.html",
    "samples.png",
    "checkpoints",
    ".lock",
    "spectra.safetensors",
    "student",
    "test_samples.safetensors",
    "validation_samples.safetensors",
}


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def decisions_of(run: Path) -> dict[str, dict]:
    return {entry["name"]: entry for entry in json.loads((run / "plan.json").read_text())["decisions"]}


def panel_row(stdout: str, name: str) -> str:
    rows = [line for line in stdout.splitlines() if line.startswith(f"  {name}: ")]
    assert len(rows) == 1, f"{name}: {rows}"
    return rows[0]


def test_options_give_a_whole_run_and_its_plan_first(run_cli, tmp_path, photos, tiny):
    outcome = run_cli(
        "distill",
        "--teacher",
        "random:test_vit",
        "--student",
        "test_resnet",
        "--data",
        photos,
        *tiny,
        "--output",
        "run",
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stderr == ""
    relation, result = panel_row(outcome.stdout, "relation"), outcome.stdout.index("test accuracy")
    assert "random" in relation
    assert "The teacher's weights are untrained." in relation
    assert outcome.stdout.index(relation) < outcome.stdout.index("distil epoch 1") < result
    assert "kdcli export run" in outcome.stdout
    assert {file.name for file in (tmp_path / "run").iterdir()} - {"worst.png"} == RUN_FILES  # where it is right of all
    assert {file.name for file in (tmp_path / "run" / "student").iterdir()} == {"config.json", "model.safetensors"}
    assert {file.name for file in tmp_path.iterdir()} == {"run"}


def test_a_student_learns_these_photos(run_cli, tmp_path, photos, trained_teacher, tiny):
    """Three classes: chance is 1/3. What the command trains must be far above it on the test split."""
    outcome = run_cli(
        *("distill", "--teacher", trained_teacher, "--student", "test_resnet", "--data", photos, *tiny),
        *("--output", "run", "--epochs", "12", "--lr", "0.003", "--batch-size", "8"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    test = [line for line in metrics_of(tmp_path / "run") if line["event"] == "test"]
    assert test[0]["accuracy"] >= 0.85


def test_metrics_lines(random_run):
    lines = metrics_of(random_run)
    train, validation, test = ([line for line in lines if line["event"] == e] for e in ("train", "validation", "test"))
    assert len(lines) == len(train) + len(validation) + len(test)
    assert [line["epoch"] for line in validation] == [1, 2]
    assert len(test) == 1
    assert lines[-1] == test[0]
    assert {"supervised", "projection", "loss", "lr", "images_per_second"} <= set(train[0])
    for line in train:  # means over the steps: that of a product is only about the product of both
        weighted = line["supervised"] + line["weight/projection"] * line["projection"]
        assert line["loss"] == pytest.approx(weighted, rel=0.02)
        assert line["weight/projection"] > 0
    # Selection is by validation: the epoch that was tested is the best there (the later one in a tie).
    best = max(validation, key=lambda line: (line["accuracy"], -line["loss"], line["epoch"]))
    assert test[0]["epoch"] == best["epoch"]


def test_test_images_are_opened_once_when_all_is_learnt(run_cli, tmp_path, make_photos, tiny, monkeypatch):
    splits = {f"{split}/{name}": 4 for split in ("train", "val", "test") for name in ("apple", "sky")}
    folder = make_photos(splits)
    opened = []

    from kdcli.data.images import sources

    def record(read):
        def recorded(path, **options):
            opened.append(Path(path).relative_to(folder).parts[0])
            return read(path, **options)

        return recorded

    for name in ("decode_image", "open_image"):  # in evaluation and in training
        monkeypatch.setattr(sources, name, record(getattr(sources, name)))
    outcome = run_cli(
        *("distill", "--teacher", "random:test_vit", "--student", "test_resnet", "--data", folder, *tiny),
        *("--output", "run", "--epochs", "3", "--batch-size", "8"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    # The teacher's layers are compared on training images first; six of validation are drawn when all is done, and at
    # last those that it is wrong about.
    learnt = ["train"] * 8 + (["train"] * 8 + ["val"] * 8) * 3 + ["test"] * 8 + ["val"] * 6
    assert opened[: len(learnt)] == learnt
    assert set(opened[len(learnt) :]) <= {"val"}


def test_config_of_a_run_repeats_it_bit_for_bit(run_cli, tmp_path, same_run):
    outcome = run_cli("distill", "--recipe", same_run / "config.yaml", "--output", "again")
    assert outcome.exit_code == 0, outcome.stderr
    again = tmp_path / "again"
    for name in ("student/model.safetensors", "projector.safetensors", "spectra.safetensors"):
        first, second = load_file(same_run / name), load_file(again / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    assert (again / "config.yaml").read_text() == (same_run / "config.yaml").read_text()
    timed = {"images_per_second", "data_wait"}
    first, second = (
        [{k: v for k, v in line.items() if k not in timed} for line in metrics_of(run)] for run in (same_run, again)
    )
    assert first == second


def test_another_seed_is_another_run(run_cli, tmp_path, same_run):
    outcome = run_cli("distill", "--recipe", same_run / "config.yaml", "--seed", "1", "--output", "other")
    assert outcome.exit_code == 0, outcome.stderr
    first, second = (load_file(run / "student" / "model.safetensors") for run in (same_run, tmp_path / "other"))
    assert not torch.equal(first["stem.0.weight"], second["stem.0.weight"])


def test_recipe_then_set_then_options(run_cli, tmp_path, photos, tiny):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "teacher": {"name": "random:test_resnet", "image_size": 64},
                "student": "test_vit",
                "data": str(photos),
                "optim": {"lr": 0.5, "weight_decay": 0.5},
                "seed": 3,
            }
        )
    )
    outcome = run_cli(
        *("distill", "--recipe", recipe, *tiny, "--set", "optim.lr=0.25", "--set", "optim.weight_decay=0.25"),
        *("--lr", "0.001", "--output", "run"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["optim"]["lr"] == 0.001, "an option is above --set"
    assert config["optim"]["weight_decay"] == 0.25, "--set is above the recipe"
    assert config["seed"] == 3, "the recipe is above the default"
    teacher = {"name": "random:test_resnet", "image_size": 64}
    assert config["teacher"] == teacher | {"unchecked": False, "compile": False, "sharded": False}
    assert config["student"]["image_size"] == 32
    assert [m["method"] for m in config["methods"]] == ["supervised", "projection"], "the plan is written out"


def test_set_of_the_teacher_is_kept_beside_the_teacher_option(run_cli, photos):
    outcome = run_cli(
        *("distill", "--teacher", "random:test_resnet", "--set", "teacher.image_size=64"),
        *("--student", "test_resnet", "--data", photos, "--dry-run"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert "64x64" in panel_row(outcome.stdout, "teacher input")


def test_another_teacher_does_not_get_the_weights_of_the_recipes(run_cli, tmp_path, photos, trained_teacher):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "teacher": {"name": "test_vit", "weights": str(tmp_path / "vit.safetensors"), "image_size": 96},
                "student": "test_vit",
                "data": str(photos),
            }
        )
    )
    outcome = run_cli("distill", "--recipe", recipe, "--teacher", trained_teacher, "--dry-run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "32x32" in panel_row(outcome.stdout, "teacher input")


def test_dry_run_leaves_nothing_behind(run_cli, tmp_path, photos, trained_teacher):
    outcome = run_cli(
        *("distill", "--teacher", trained_teacher, "--student", "test_vit", "--data", photos),
        *("--output", "sub/run", "--dry-run"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    for name in ("relation", "teacher", "student", "data", "training", "memory", "trainable parameters"):
        panel_row(outcome.stdout, name)
    assert "epoch 1" not in outcome.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("teacher", "relation", "reason", "projector"),
    [
        ("trained", "same", "Both have the same 3 labels.", "orthogonal"),
        ("foreign", "cross", "the teacher has no label 'apple'", "orthogonal"),
        ("random:test_vit", "random", "The teacher's weights are untrained.", "inverted"),
        ("none", "none", "There is no teacher.", None),
    ],
)
def test_every_relation_brings_its_projector(
    run_cli, tmp_path, photos, tiny, trained_teacher, teacher, relation, reason, projector
):
    if teacher == "trained":
        teacher = trained_teacher
    elif teacher == "foreign":
        teacher = tmp_path / "foreign"
        teacher.mkdir()
        config = json.loads((trained_teacher / "config.json").read_text())
        text = json.dumps(config).replace("apple", "hammer").replace("leaf", "saw").replace('"sky"', '"nail"')
        (teacher / "config.json").write_text(text)
        (teacher / "model.safetensors").write_bytes((trained_teacher / "model.safetensors").read_bytes())
    outcome = run_cli(
        "distill", "--teacher", teacher, "--student", "test_convnext", "--data", photos, *tiny, "--output", "run"
    )
    assert outcome.exit_code == 0, outcome.stderr
    shown = panel_row(outcome.stdout, "relation")
    assert relation in shown
    assert reason in shown
    run = tmp_path / "run"
    plan = json.loads((run / "plan.json").read_text())
    assert plan["relation"] == relation
    methods = {options["method"]: options for options in plan["methods"]}
    assert ("logit_kd" in methods) == (relation == "same")
    assert all(entry["reason"] for entry in plan["decisions"])
    if projector is None:
        assert "projection" not in methods
        return
    assert methods["projection"]["projector"] == projector
    assert projector in panel_row(outcome.stdout, "loss: projection")
    (matrix,) = load_file(run / "projector.safetensors").values()
    student_width, teacher_width = 64, (64 if relation == "random" else 96)
    expected = (student_width, teacher_width) if projector == "orthogonal" else (teacher_width, student_width)
    assert tuple(matrix.shape) == expected


@pytest.mark.parametrize("projector", ["linear", "mlp", "orthogonal", "inverted"])
def test_an_override_of_the_projector_is_trained_and_said(run_cli, tmp_path, photos, tiny, projector):
    outcome = run_cli(
        *("distill", "--teacher", "random:test_vit", "--student", "test_resnet", "--data", photos, *tiny),
        *("--output", "run", "--projector", projector, "--normalize", "layer_norm"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    row = decisions_of(tmp_path / "run")["loss: projection"]
    assert projector in row["value"]
    assert ("Asked for" in row["reason"]) == (projector != "inverted"), "inverted is the plan's own choice"
    assert "layer_norm" in panel_row(outcome.stdout, "normalisation")
    first, last = metrics_of(tmp_path / "run")[0], metrics_of(tmp_path / "run")[-1]
    assert first["projection"] > 0
    assert last["event"] == "test"


def test_projector_none_leaves_logits_alone(run_cli, tmp_path, photos, tiny, trained_teacher):
    outcome = run_cli(
        *("distill", "--teacher", trained_teacher, "--student", "test_resnet", "--data", photos, *tiny),
        *("--output", "run", "--projector", "none"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert [options["method"] for options in config["methods"]] == ["supervised", "logit_kd"]


def test_baseline_is_the_same_student_alone_for_the_same_steps(run_cli, tmp_path, photos, tiny, trained_teacher):
    outcome = run_cli(
        *("distill", "--teacher", trained_teacher, "--student", "test_resnet", "--data", photos, *tiny),
        *("--output", "run", "--baseline"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    table = outcome.stdout[outcome.stdout.index("Result") :]
    assert "distilled" in table
    assert "student alone" in table
    (steps,) = (line for line in table.splitlines() if line.startswith("| steps"))
    distilled, alone, teacher, _ = (cell.strip() for cell in steps.strip("|").split("|")[1:])
    assert distilled == alone
    assert teacher == "-", "it takes none"
    baseline = yaml.safe_load((tmp_path / "run" / "baseline" / "config.yaml").read_text())
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert baseline["teacher"]["name"] == "none"
    assert config["train"].pop("teacher_forward") == "plain"
    assert [options["method"] for options in baseline["methods"]] == ["supervised"]
    for section in ("student", "data", "augment", "optim", "train", "seed"):
        assert baseline.get(section) == config.get(section), section
    assert [line["event"] for line in metrics_of(tmp_path / "run" / "baseline")].count("test") == 1
    # The distilled run is the one that the same command without --baseline gives.
    again = run_cli(
        *("distill", "--teacher", trained_teacher, "--student", "test_resnet", "--data", photos, *tiny),
        *("--output", "again"),
    )
    assert again.exit_code == 0, again.stderr
    first, second = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("run", "again"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_default_names_of_runs_never_collide(run_cli, tmp_path, make_photos, tiny):
    make_photos({"apple": 6, "sky": 6}, name="mine")
    names = []
    for _ in range(3):
        outcome = run_cli("distill", "--teacher", "none", "--student", "test_resnet", "--data", "mine", *tiny)
        assert outcome.exit_code == 0, outcome.stderr
        names.append(sorted(folder.name for folder in (tmp_path / "runs").iterdir()))
    name = "test_resnet-from-none-on-mine"
    assert names[-1] == [name, f"{name}-2", f"{name}-3"]


def test_a_recipes_run_is_named_after_it(run_cli, tmp_path, photos, tiny):
    (tmp_path / "mine.yaml").write_text(f"teacher: none\nstudent: test_resnet\ndata: {photos}\n")
    outcome = run_cli("distill", "--recipe", "mine.yaml", *tiny)
    assert outcome.exit_code == 0, outcome.stderr
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["mine"]


def test_an_empty_folder_is_taken_as_output(run_cli, tmp_path, photos, tiny):
    (tmp_path / "run").mkdir()
    outcome = run_cli(
        "distill", "--teacher", "none", "--student", "test_resnet", "--data", photos, *tiny, "--output", "run"
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()


def test_plan_records_command_and_versions(random_run):
    plan = json.loads((random_run / "plan.json").read_text())
    assert plan["command"].startswith("kdcli distill --plan full --data ")
    assert "--teacher random:test_vit" in plan["command"]
    assert {"kdcli", "python", "torch", "timm", "transformers"} <= plan["versions"].keys()


def test_corrupt_images_are_skipped_counted_and_named(run_cli, tmp_path, make_photos, tiny):
    folder = make_photos({f"{split}/{name}": 6 for split in ("train", "val", "test") for name in ("apple", "sky")})
    broken = folder / "train" / "apple" / "02.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    outcome = run_cli(
        *("distill", "--teacher", "none", "--student", "test_resnet", "--data", folder, *tiny),
        *("--output", "run", "--batch-size", "4", "--epochs", "2"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    named = [line for line in outcome.stdout.splitlines() if str(broken) in line]
    assert len(named) == 1, "named once, not in every epoch"
    assert "unreadable" in named[0].lower()
    result = outcome.stdout[outcome.stdout.index("Result") :].lower()
    counted = [line for line in result.splitlines() if "skipped" in line or "unreadable" in line]
    assert counted, "the result counts what was skipped"
    assert re.search(r"\b1\b", counted[0])


@pytest.mark.parametrize("split", ["val", "test"])
def test_corrupt_images_of_the_other_splits_are_named_too(run_cli, make_photos, tiny, split):
    folder = make_photos({f"{part}/{name}": 6 for part in ("train", "val", "test") for name in ("apple", "sky")})
    broken = folder / split / "sky" / "03.png"
    broken.write_bytes(b"no image at all")
    outcome = run_cli(
        *("distill", "--teacher", "none", "--student", "test_resnet", "--data", folder, *tiny),
        *("--output", "run", "--batch-size", "4"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert sum(str(broken) in line for line in outcome.stdout.splitlines()) == 1


def test_transformers_models_from_a_local_folder(hf_run):
    plan = json.loads((hf_run / "plan.json").read_text())
    assert plan["relation"] == "same"
    assert {file.name for file in (hf_run / "student").iterdir()} >= {"config.json", "model.safetensors"}
    config = json.loads((hf_run / "student" / "config.json").read_text())
    assert config["id2label"] == {"0": "apple", "1": "leaf", "2": "sky"}
    assert decisions_of(hf_run)["teacher"]["value"].startswith("hf:")


def test_a_checkpoint_of_the_teachers_and_what_matched(run_cli, photos, trained_teacher):
    weights = trained_teacher / "model.safetensors"
    outcome = run_cli(
        *("distill", "--teacher", "test_resnet", "--teacher-weights", weights, "--student", "test_vit"),
        *("--data", photos, "--dry-run"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    num_tensors = len(load_file(weights))
    row = panel_row(outcome.stdout, "teacher")
    assert f"{num_tensors} of {num_tensors}" in row, row
    assert "3 classes" in row
    # A bare checkpoint has no label names: three classes against three are taken as equal, and it says so.
    assert "same" in panel_row(outcome.stdout, "relation")


def test_few_labels(run_cli, tmp_path, photos, tiny, trained_teacher):
    outcome = run_cli(
        *("distill", "--teacher", trained_teacher, "--student", "test_resnet", "--data", photos, *tiny),
        *("--output", "run", "--set", "data.labels_per_class=2"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert "6 of 52 training images have labels" in panel_row(outcome.stdout, "loss: supervised")


def test_feature_layers_name_the_layers_that_are_distilled(run_cli, tmp_path, photos, tiny, few_points):
    outcome = run_cli(
        *("distill", "--teacher", "random:test_resnet", "--student", "test_convnext", "--data", photos, *tiny),
        *("--output", "run", "--feature-layers", "pooled:layer2", "--feature-layers", "stages.1:layer3"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert "up to layer2, layer3" in outcome.stdout
    spectra = load_file(tmp_path / "run" / "spectra.safetensors")
    assert set(spectra) == {"steps", "projection", "projection-2"}
    methods = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["methods"]
    assert [(m["student_tap"], m["teacher_tap"]) for m in methods[1:]] == [("pooled", "layer2"), ("stages.1", "layer3")]
    analysed = run_cli("analyze-projector", "run")
    assert analysed.exit_code == 0, analysed.stderr
    assert "projection-2" in analysed.stdout


def test_an_unknown_feature_layer_is_one_message(run_cli, photos, tiny):
    outcome = run_cli(
        *("distill", "--teacher", "random:test_resnet", "--student", "test_convnext", "--data", photos, *tiny),
        *("--feature-layers", "pooled:layer9"),
    )
    assert outcome.exit_code == 2
    assert "has no layer 'layer9'" in outcome.stderr
    assert "Did you mean" in outcome.stderr


def test_a_student_made_of_its_teacher(run_cli, tmp_path, photos, tiny, trained_teacher):
    """From the plan over the baseline and resuming to the export, which timm loads alone."""
    arguments = ("--teacher", trained_teacher, "--student", "teacher?layers=1&width=0.5", "--data", photos)
    dry = run_cli("distill", *arguments, "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert "tensors copied from the teacher" in dry.stdout
    assert re.search(r"latency [\d.]+ ms to [\d.]+ ms", dry.stdout)
    outcome = run_cli("distill", *arguments, *tiny, "--baseline", "--output", "run")
    assert outcome.exit_code == 0, outcome.stderr
    alone = yaml.safe_load((tmp_path / "run" / "baseline" / "config.yaml").read_text())
    assert alone["student"]["source"]["name"] == str(trained_teacher)
    outcome = run_cli("distill", "--resume", "run", "--epochs", "2", "--no-baseline")
    assert outcome.exit_code == 0, outcome.stderr
    outcome = run_cli("export", "run")
    assert outcome.exit_code == 0, outcome.stderr
    module = timm.create_model(f"local-dir:{tmp_path / 'run' / 'export'}", pretrained=True)
    whole = timm.create_model(f"local-dir:{trained_teacher}", pretrained=True)
    assert 2 * module.num_features == whole.num_features


def test_a_source_without_a_student_of_it(run_cli, photos):
    exit_code, _, stderr = run_cli(
        *("distill", "--teacher", "random:test_vit", "--student", "test_resnet", "--data", photos, "--dry-run"),
        *("--set", "student.source=random:test_vit"),
    )
    assert exit_code == 2
    assert "student.source" in stderr
