"""``kdcli models search`` and ``kdcli models probe``: what they print and refuse."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_search_prints_a_table(run_cli):
    exit_code, stdout, stderr = run_cli("models", "search", "--name", "test_vit[23]", "--max-params", "1M")
    assert exit_code == 0, stderr
    rows = [line.strip("│").split("│") for line in stdout.splitlines() if line.startswith("│ test_")]
    assert [row[0].strip() for row in rows] == ["test_vit3", "test_vit2"]
    assert rows[1][1].strip() == "455.72K"
    assert rows[0][3].strip() == "160x160"
    assert float(rows[0][4]) > 0
    assert rows[1][5].strip() == "yes"
    assert "2 shown, and no others fit" in stdout
    assert "1000 classes" in stdout
    assert stderr == ""


def test_search_prints_json_alone(run_cli):
    exit_code, stdout, stderr = run_cli(
        *("models", "search", "--name", "test_vit?", "--limit", "1", "--sort", "macs", "--image-size", "64", "--json")
    )
    assert (exit_code, stderr) == (0, "")
    found = json.loads(stdout)
    assert found["num_classes"] == 1000
    (model,) = found["models"]
    assert model.keys() == {"name", "parameters", "macs", "image_size", "pretrained", "latency_ms"}
    assert model["image_size"] == [64, 64]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--max-params", "five"), "--max-params can't be 'five'", "5M"),
        (("--max-macs", "-1"), "--max-macs can't be '-1'", "1.5G"),
        (("--sort", "mac"), "Did you mean macs", "latency"),
        (("--task", "segmentation"), "--task", "image-classification"),
        (("--name", "resnetx*"), "resnetx*", "mobilenet*"),
    ],
)
def test_search_refuses(run_cli, arguments, message, hint):
    exit_code, stdout, stderr = run_cli("models", "search", *arguments)
    assert (exit_code, stdout) == (2, "")
    assert message in stderr.split("Hint:")[0]
    assert hint in stderr.split("Hint:")[1]


# --- probe ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def probed(run_cli_in, tmp_path_factory, photos, trained_teacher, hf_folder):
    """A trained, an untrained and a transformers teacher: what was printed, and the file."""
    cwd = tmp_path_factory.mktemp("probe")
    teachers = ["random:test_vit", str(hf_folder), str(trained_teacher)]
    arguments = [part for name in teachers for part in ("--teacher", name)]
    outcome = run_cli_in(
        *("models", "probe", *arguments, "--data", photos, "--device", "cpu", "--output", "probe.json"), cwd=cwd
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stderr == ""
    return teachers, outcome.stdout, json.loads((cwd / "probe.json").read_text())


def test_probe_ranks_teachers(probed):
    teachers, stdout, probe = probed
    entries = probe["teachers"]
    assert {entry["teacher"] for entry in entries} == set(teachers)
    keys = [(-entry["linear_probe"], -entry["log_me"]) for entry in entries]
    assert keys == sorted(keys)
    by_name = {entry["teacher"]: entry for entry in entries}
    assert by_name[teachers[2]]["linear_probe"] > 0.9, "classes are told apart by colour, and it was trained on them"
    for entry in entries:
        assert 0 <= entry["knn"] <= 1
        assert 1 <= entry["effective_rank"] <= entry["width"]
        assert entry["ms_per_image"] > 0
    shown = [line.strip("│").split("│")[0].strip() for line in stdout.splitlines() if line.startswith("│ ")]
    assert shown == [entry["teacher"] for entry in entries]
    assert "Ranked by the linear probe's accuracy, then by LogME" in stdout
    assert "training images" in stdout


def test_probe_reads_training_images_alone(probed):
    _, _, probe = probed
    assert probe["num_images"] == 52, "of 72, 14 are test and 6 validation images"
    assert probe["folds"] == 5


def test_probe_features_are_the_models_own(probed, photos, hf_folder):
    """LogME of one teacher, recomputed from its features image by image."""
    import torch

    from kdcli.analysis import log_me
    from kdcli.config import DataConfig, TeacherConfig
    from kdcli.data import EvalLoader, open_data
    from kdcli.models import load_teacher

    data = open_data(DataConfig(name=str(photos)), seed=0)
    model = load_teacher(TeacherConfig(name=str(hf_folder)), seed=0)
    loader = EvalLoader(data.train, preprocessing=model.facts.preprocessing, batch_size=1, workers=0, strict=True)
    with torch.inference_mode():
        rows = [model(model.prepare(batch), taps=("pooled",), logits=False).features["pooled"][0] for batch in loader]
    expected = log_me(torch.stack(rows), torch.tensor(data.train.labels))
    (entry,) = (entry for entry in probed[2]["teachers"] if entry["teacher"] == str(hf_folder))
    assert entry["log_me"] == pytest.approx(expected, rel=1e-4)


def test_probe_json_classes_and_embedding(run_cli, photos, trained_teacher):
    exit_code, stdout, stderr = run_cli(
        *("models", "probe", "--teacher", trained_teacher, "--data", photos, "--images", "20", "--seed", "3"),
        *("--classes", "sky,leaf", "--features", "embedding", "--json", "--device", "cpu"),
    )
    assert (exit_code, stderr) == (0, "")
    probe = json.loads(stdout)
    assert (probe["class_names"], probe["num_images"], probe["seed"]) == (["leaf", "sky"], 20, 3)
    assert probe["features"] == "embedding"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--teacher", "none"), "no features", "Name models"),
        (("--teacher", "random:test_vit", "--teacher", "random:test_vit"), "named twice", "once"),
        (("--teacher", "random:test_vit", "--features", "poled"), "Did you mean pooled", "embedding"),
        (("--teacher", "random:test_vit", "--classes", "ski"), "Did you mean sky", "label numbers"),
        (("--teacher", "random:test_vi"), "test_vit", "timm.list_models"),
        (
            ("--teacher", "random:test_vit", "--images", "4", "--output", "missing/probe.json"),
            "missing/",
            "file's name",
        ),
    ],
)
def test_probe_refuses(run_cli, tmp_path, photos, arguments, message, hint):
    exit_code, _, stderr = run_cli("models", "probe", "--data", photos, *arguments)
    assert exit_code == 2
    assert message in stderr.split("Hint:")[0]
    assert hint in stderr.split("Hint:")[1]
    assert list(tmp_path.iterdir()) == []


def test_a_cross_plan_names_the_command(run_cli, photos):
    data = ("--data", photos, "--student", "test_resnet", "--dry-run")
    outcome = run_cli("distill", "--teacher", "random:test_vit", "--relation", "cross", *data)
    assert outcome.exit_code == 0, outcome.stderr
    assert "kdcli models probe" in outcome.stdout
    outcome = run_cli("distill", "--teacher", "random:test_vit", *data)
    assert "kdcli models probe" not in outcome.stdout
