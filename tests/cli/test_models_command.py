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
    rows = [line.strip("|").split("|") for line in stdout.splitlines() if line.startswith("| test_")]
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
    assert model.keys() == {"name", "parameters", "macs", "input_size", "pretrained", "latency_ms"}
    assert model["input_size"] == [64, 64]


def test_search_of_texts(run_cli, monkeypatch):
    monkeypatch.setattr("kdcli.models.search.search.LARGEST_BUILT", 0)  # default configs are large
    command = ("models", "search", "--task", "text-classification", "--name", "hf:*distilbert", "--length", "16")
    exit_code, stdout, stderr = run_cli(*command)
    assert (exit_code, stderr) == (0, "")
    (row,) = (line.strip("|").split("|") for line in stdout.splitlines() if line.startswith("| hf:"))
    assert [cell.strip() for cell in row] == ["hf:distilbert", "66.96M", "682.43M", "16"]
    assert "Counted with 2 classes" in stdout
    assert "never built here: no latency" in stdout
    assert "hf:bert?num_hidden_layers=4&hidden_size=384" in stdout
    found = json.loads(run_cli(*command, "--json").stdout)
    assert (found["task"], found["num_classes"]) == ("text-classification", 2)
    assert found["models"][0]["input_size"] == [16]


def test_the_smaller_kind_that_the_search_names_is_a_student(run_cli, reviews, bert_folder):
    student = "hf:bert?num_hidden_layers=4&hidden_size=384"
    models = ("--teacher", bert_folder, "--student", student)
    outcome = run_cli(
        "distill", "--task", "text-classification", *models, "--data", reviews, "--dry-run", "--device", "cpu"
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert "kdcli models probe --task text-classification" in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--max-params", "five"), "--max-params can't be 'five'", "5M"),
        (("--max-macs", "-1"), "--max-macs can't be '-1'", "1.5G"),
        (("--sort", "mac"), "Did you mean macs", "latency"),
        (("--task", "segmentation"), "--task", "image-classification"),
        (("--task", "text-clasification"), "Did you mean text-classification", "masked-lm"),
        (("--task", "causal-lm", "--image-size", "32"), "--image-size is about images", "--length"),
        (("--task", "causal-lm", "--pretrained"), "--pretrained is about images", "no weights"),
        (("--length", "64"), "--length is about texts", "--image-size"),
        (("--task", "masked-lm", "--name", "bert*"), "bert*", "hf:*bert*"),
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
        assert entry["ms_per_sample"] > 0
    shown = [line.strip("|").split("|")[0].strip() for line in stdout.splitlines() if line.startswith("| ")][2:]
    assert shown == [entry["teacher"] for entry in entries]
    assert "Ranked by the linear probe's accuracy, then by LogME" in stdout
    assert "training images" in stdout


def test_probe_reads_training_images_alone(probed):
    _, _, probe = probed
    assert probe["num_samples"] == 52, "of 72, 14 are test and 6 validation images"
    assert probe["folds"] == 5


def test_probe_says_how_the_data_were_read(probed, run_cli, make_photos):
    _, stdout, probe = probed
    assert any("Validation: 6 images cut" in note for note in probe["data_notes"])
    assert all(note in stdout for note in probe["data_notes"])
    photos = make_photos({"apple": 12, "leaf": 12})
    (photos / "apple" / "notes.doc").write_text("no image")
    outcome = run_cli("models", "probe", "--teacher", "random:test_resnet", "--data", photos, "--samples", "10")
    assert outcome.exit_code == 0, outcome.stderr
    assert ".doc" in outcome.stdout, "what was not read is said here too"


def test_probe_features_are_the_models_own(probed, photos, hf_folder):
    """LogME of one teacher, recomputed from its features image by image."""
    import torch

    from kdcli.base.reads import Reads
    from kdcli.config.data import DataConfig
    from kdcli.config.models import TeacherConfig
    from kdcli.data import Loading, open_data
    from kdcli.models import load_teacher
    from kdcli.tasks.features.log_me import log_me

    data = open_data(DataConfig(name=str(photos)), seed=0)
    model = load_teacher(TeacherConfig(name=str(hf_folder)), seed=0)
    loader = data.train.eval_batches(Loading(1, workers=0, strict=True), model.facts.preprocessing)
    with torch.inference_mode():
        rows = [model(model.prepare(batch), Reads(("pooled",))).features["pooled"][0] for batch in loader]
    expected = log_me(torch.stack(rows), torch.tensor(data.train.labels))
    (entry,) = (entry for entry in probed[2]["teachers"] if entry["teacher"] == str(hf_folder))
    assert entry["log_me"] == pytest.approx(expected, rel=1e-4)


def test_probe_json_classes_and_embedding(run_cli, photos, trained_teacher):
    exit_code, stdout, stderr = run_cli(
        *("models", "probe", "--teacher", trained_teacher, "--data", photos, "--samples", "20", "--seed", "3"),
        *("--classes", "sky,leaf", "--features", "embedding", "--json", "--device", "cpu"),
    )
    assert (exit_code, stderr) == (0, "")
    probe = json.loads(stdout)
    assert (probe["class_names"], probe["num_samples"], probe["seed"]) == (["leaf", "sky"], 20, 3)
    assert probe["features"] == "embedding"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--teacher", "random:test_vit", "--task", "sentence-embedding"), "--task", "text-classification"),
        (("--teacher", "none"), "no features", "Name models"),
        (("--teacher", "random:test_vit", "--teacher", "random:test_vit"), "named twice", "once"),
        (("--teacher", "random:test_vit", "--features", "poled"), "Did you mean pooled", "embedding"),
        (("--teacher", "random:test_vit", "--classes", "ski"), "Did you mean sky", "Classes are names"),
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


@pytest.fixture(scope="session")
def text_classifier(bert_folder, tmp_path_factory):
    """A tiny BERT with a classifier, whose weights are those of ``bert_folder``. Not to be changed."""
    from transformers import AutoTokenizer, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("models") / "bert-classifier"
    BertForSequenceClassification.from_pretrained(bert_folder).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(folder)
    return folder


def test_probe_of_texts(run_cli, tmp_path, reviews, bert_folder, text_classifier):
    """LogME of one teacher, recomputed from its mean embeddings text by text."""
    import torch

    from kdcli.config.data import DataConfig
    from kdcli.config.models import TeacherConfig
    from kdcli.data import open_texts
    from kdcli.models import load_teacher
    from kdcli.tasks.features.log_me import log_me

    task = ("models", "probe", "--task", "text-classification", "--device", "cpu", "--data", reviews)
    teachers = ("--teacher", bert_folder, "--teacher", f"random:{bert_folder}")
    exit_code, stdout, stderr = run_cli(*task, *teachers, "--images", "120", "--output", "probe.json")
    assert (exit_code, stderr) == (0, "")
    assert "ms per text" in stdout
    assert "120 training texts" in stdout
    assert "tokenizer" in stdout
    probe = json.loads((tmp_path / "probe.json").read_text())
    assert (probe["task"], probe["num_samples"]) == ("text-classification", 120)
    assert probe["class_names"] == ["negative", "positive"]
    entries = {entry["teacher"]: entry for entry in probe["teachers"]}
    assert entries.keys() == {str(bert_folder), f"random:{bert_folder}"}
    assert max(entry["linear_probe"] for entry in entries.values()) > 0.65, "two words of each text tell its class"

    whole = json.loads(run_cli(*task, "--teacher", bert_folder, "--json").stdout)
    data = open_texts(DataConfig(name=str(reviews)), task="text-classification", seed=0)
    model = load_teacher(TeacherConfig(name=str(bert_folder)), seed=0, task="text-classification")
    with torch.inference_mode():
        rows = [
            model.module(**model.tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
            for text in data.train.texts
        ]
    expected = log_me(torch.stack(rows), torch.tensor(data.train.labels))
    assert whole["num_samples"] == len(data.train)
    assert whole["teachers"][0]["log_me"] == pytest.approx(expected, rel=1e-4)

    embedded = run_cli(*task, "--teacher", text_classifier, "--features", "embedding", "--samples", "40", "--json")
    assert json.loads(embedded.stdout)["features"] == "embedding"


@pytest.mark.parametrize(
    ("last", "arguments", "message", "hint"),
    [
        ("1.5", (), "has a number", "one class each"),
        ("1", ("--classes", "0"), "--classes is about images", "Leave it out"),
        ("1", ("--data-root", "."), "--data-root is about images", "Leave it out"),
        ("1", ("--features", "embedding"), "no classifier", "pooled"),
    ],
)
def test_probe_of_texts_refuses(run_cli, tmp_path, bert_folder, last, arguments, message, hint):
    numbers = (number / 8 if last == "1.5" else number % 2 for number in range(40))
    rows = [f"film {number},{label}" for number, label in enumerate(numbers)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *rows, f"film,{last}"]))
    exit_code, stdout, stderr = run_cli(
        *("models", "probe", "--task", "text-classification", "--teacher", bert_folder, "--data", "texts.csv"),
        *arguments,
    )
    assert (exit_code, stdout) == (2, "")
    assert message in stderr.split("Hint:")[0]
    assert hint in stderr.split("Hint:")[1]


def test_probe_refuses_several_labels(run_cli, tmp_path, bert_folder):
    rows = [{"text": f"film {number}", "label": ["good", "long"][: number % 2 + 1]} for number in range(20)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    exit_code, _, stderr = run_cli(
        *("models", "probe", "--task", "text-classification", "--teacher", bert_folder, "--data", "texts.jsonl")
    )
    assert (exit_code, "has several labels" in stderr, "one class each" in stderr) == (2, True, True)


def test_a_cross_plan_names_the_command(run_cli, photos):
    data = ("--data", photos, "--student", "test_resnet", "--dry-run")
    outcome = run_cli("distill", "--teacher", "random:test_vit", "--relation", "cross", *data)
    assert outcome.exit_code == 0, outcome.stderr
    assert "kdcli models probe" in outcome.stdout
    outcome = run_cli("distill", "--teacher", "random:test_vit", *data)
    assert "kdcli models probe" not in outcome.stdout
