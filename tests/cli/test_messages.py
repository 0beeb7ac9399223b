"""What kdcli answers to what people type wrongly; and kdcli doctor."""

from __future__ import annotations

import json

import pytest

from kdcli.base.tasks import TASKS
from kdcli.data.other_tasks import task_that_reads
from kdcli.machine import doctor as doctor_module

RUN = ("distill", "--teacher", "none", "--student", "test_resnet", "--dry-run", "--device")
CONTENTS = {
    "reviews.csv": ("text,label\nfine,1\n", "text-classification"),
    "reviews.tsv": ("review\tstars\nfine\t1\n", "text-classification"),
    "masks.csv": ("image,mask\na.png,b.png\n", "semantic-segmentation"),
    "depth.jsonl": ('{"image": "a.png", "depth": "b.png"}\n', "depth-estimation"),
    "boxes.jsonl": ('{"file_name": "a.png", "bbox": []}\n', "object-detection"),
    "entities.conll": ("EU B-ORG\n", "token-classification"),
    "words.jsonl": ('{"tokens": ["a"], "ner_tags": [0]}\n', "token-classification"),
    "texts.txt": ("fine\n", "sentence-embedding or --task masked-lm"),
    "other.csv": ("sentence,length\nfine,4\n", "sentence-embedding"),
    "images.csv": ("image,label\na.png,b\n", ""),
    "half.jsonl": ("{", ""),
    "binary.csv": ("\x00\x01", ""),
    "model.pt": ("x", ""),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_the_task_that_reads_a_file(name, tmp_path):
    content, task = CONTENTS[name]
    (tmp_path / name).write_text(content)
    told = task_that_reads(tmp_path / name)
    assert (f"add --task {task}" in told) if task else told == "" or "sentence-embedding" in told
    assert task.partition(" ")[0] in ("", *TASKS)


@pytest.fixture
def photos_here(photos, tmp_path):
    (tmp_path / "photos").symlink_to(photos)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((*RUN, "cpu", "--data", "photo/"), "Did you mean photos/?"),
        ((*RUN, "cpu", "--data", "reviews.csv"), "columns text, label: add --task text-classification."),
        ((*RUN, "cpu", "--data", "photo", "--task", "depth-estimation"), "Did you mean photos/?"),
        ((*RUN, "cpu", "--data", "review.csv", "--task", "text-classification"), "Did you mean reviews.csv?"),
        ((*RUN, "gpu", "--data", "photos"), "The device 'gpu' can't be used here. A GPU is called cuda."),
        ((*RUN, "gpu", "--data", "photos"), "Devices are cpu, cuda, cuda:N and mps; here: "),
    ],
)
def test_what_is_answered(run_cli, photos_here, tmp_path, arguments, told):
    (tmp_path / "reviews.csv").write_text("text,label\nfine,1\n")
    exit_code, _, stderr = run_cli(*arguments)
    assert exit_code == 2
    assert told in stderr


def test_both_wrong_models_and_wrong_data_are_told_at_once(run_cli):
    models = ("--teacher", "rsnet50", "--student", "mobilnet_v3", "--device", "cpu")
    exit_code, _, stderr = run_cli("distill", *models, "--data", "nowhere", "--dry-run")
    assert exit_code == 2
    assert stderr.startswith("Error: 3 problems:")
    for told in (
        "no model 'rsnet50'. Did you mean resnet50",
        "no model 'mobilnet_v3'",
        "no data set or folder 'nowhere'",
    ):
        assert told in stderr


def test_the_nearest_architecture_where_none_fits(run_cli):
    told = run_cli("models", "search", "--max-params", "1", "--name", "test_vit*", "--classes", "7").stdout
    assert "No architecture fits, with 7 classes. The nearest is test_vit, with 306" in told
    few = run_cli("models", "search", "--max-macs", "1", "--name", "test_vit").stdout
    assert "multiply-accumulates" in few
    embedding = run_cli("models", "search", "--task", "image-embedding", "--classes", "7", "--name", "test_vit")
    assert "--classes is for tasks with classes" in embedding.stderr


def test_the_doctor_tells_versions_devices_places_and_extras(run_cli, monkeypatch):
    outcome = run_cli("doctor")
    assert outcome.exit_code == 0, outcome.stdout
    for told in ("  kdcli: 0.", "  torch: ", "  --device: ", "  CPU cores: ", "  memory: ", "GiB free", "  onnx: "):
        assert told in outcome.stdout
    monkeypatch.setattr(doctor_module, "_version_of", lambda package: None if package == "timm" else "1")
    found = {finding["name"]: finding for finding in json.loads(run_cli("doctor", "--json").stdout)}
    assert found["timm"]["problem"] == "pip install timm"
    assert run_cli("doctor").exit_code == 1
