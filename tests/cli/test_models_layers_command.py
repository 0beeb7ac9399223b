"""``kdcli models layers``, and its numbers in ``--feature-layers``."""

from __future__ import annotations

import json

import pytest
import yaml


def listed(run_cli, *arguments):
    outcome = run_cli("models", "layers", *arguments, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    return json.loads(outcome.stdout)


def test_table_and_json_agree(run_cli):
    found = listed(run_cli, "cifar:resnet8")
    outcome = run_cli("models", "layers", "cifar:resnet8")
    assert outcome.exit_code == 0, outcome.stderr
    assert "32x32 pixels" in outcome.stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in outcome.stdout.splitlines() if "|" in line][2:]
    assert rows == [
        [layer["name"], str(layer["index"]), layer["kind"], str(layer["width"]), "x".join(map(str, layer["grid"]))]
        for layer in found["layers"]
    ]
    assert [layer["index"] for layer in found["layers"]] == list(range(len(rows)))
    assert "pooled (64 wide), embedding (64 wide)" in outcome.stdout


def test_all_and_image_size(run_cli):
    found = listed(run_cli, "random:cifar:resnet8", "--all", "--image-size", "64")
    assert found["image_size"] == [64, 64]
    assert {layer["index"] for layer in found["layers"]} == {None}
    grids = {layer["name"]: layer["grid"] for layer in found["layers"]}
    assert grids["layer1.0.conv1"] == [64, 64]
    assert grids["fc"] == []


def test_folders_and_runs(run_cli, trained_teacher, same_run, hf_folder):
    assert listed(run_cli, trained_teacher)["layers"][-1]["name"] == "layer4"
    assert listed(run_cli, same_run)["image_size"] == [32, 32]
    assert listed(run_cli, hf_folder)["layers"][-1]["name"] == "vit"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("resnet5",), "resnet50"),
        (("none",), "none"),
        (("a\x1bb",), "NAME"),
        (("test_vit", "--image-size", "7"), "7 pixels"),
    ],
)
def test_errors(run_cli, arguments, part):
    exit_code, stdout, stderr = run_cli("models", "layers", *arguments)
    assert exit_code == 2, stdout
    assert part in stderr
    assert "Traceback" not in stderr


def test_numbers_become_names_in_plan_and_config(run_cli, photos, tiny, trained_teacher, tmp_path):
    student = [layer["name"] for layer in listed(run_cli, "cifar:resnet8", "--image-size", "32")["layers"]]
    teacher = [layer["name"] for layer in listed(run_cli, trained_teacher)["layers"]]
    outcome = run_cli(
        *("distill", "--teacher", trained_teacher, "--student", "cifar:resnet8", "--data", photos, *tiny),
        *("--feature-layers", "2:4", "--feature-layers", "-1:-2", "--feature-layers", "pooled:0", "--output", "run"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    taps = [(m["student_tap"], m["teacher_tap"]) for m in config["methods"] if m["method"] == "projection"]
    assert taps == [(student[2], teacher[4]), (student[-1], teacher[-2]), ("pooled", teacher[0])]
    plan = json.dumps(json.loads((tmp_path / "run" / "plan.json").read_text())["decisions"])
    assert student[2] in plan
    assert teacher[4] in plan


@pytest.mark.parametrize("pair", ["99:0", "0:-99"])
def test_a_number_out_of_range_leaves_nothing(run_cli, photos, tiny, trained_teacher, tmp_path, pair):
    exit_code, _, stderr = run_cli(
        *("distill", "--teacher", trained_teacher, "--student", "cifar:resnet8", "--data", photos, *tiny),
        *("--feature-layers", pair),
    )
    assert exit_code == 2
    assert "has no layer" in stderr
    assert list(tmp_path.iterdir()) == []


def test_numbers_in_a_methods_own_layers(run_cli, photos, tiny, trained_teacher, tmp_path):
    student = [layer["name"] for layer in listed(run_cli, "cifar:resnet8", "--image-size", "32")["layers"]]
    teacher = [layer["name"] for layer in listed(run_cli, trained_teacher)["layers"]]
    methods = "methods=[{method: supervised}, {method: similarity_preserving, layers: ['-2:-1', 'layer1:0']}]"
    outcome = run_cli(
        *("distill", "--teacher", trained_teacher, "--student", "cifar:resnet8", "--data", photos, *tiny),
        *("--set", methods, "--output", "run"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    (layers,) = (m["layers"] for m in config["methods"] if m["method"] == "similarity_preserving")
    assert [(pair["student"], pair["teacher"]) for pair in layers] == [
        (student[-2], teacher[-1]),
        ("layer1", teacher[0]),
    ]
