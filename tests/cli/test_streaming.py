"""``data.streaming``: a run on parquet files goes on after their connection broke as if it had not."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load_file

from kdcli.config.data import DataConfig
from kdcli.data import open_data

SHORT = (
    *("--teacher", "random:test_efficientnet", "--student", "test_resnet", "--data", "digits", "--device", "cpu"),
    *("--set", "data.streaming=true", "--set", "data.stream_buffer=40", "--batch-size", "8", "--epochs", "2"),
    *("--set", "student.image_size=32", "--set", "teacher.image_size=32", "--set", "data.workers=0"),
    *("--checkpoint-every", "3", "--set", "augment.mixup=0.2"),
)


@pytest.fixture
def digits(tmp_path):
    """Parquet files of digits, ten to a row group."""
    source = open_data(DataConfig(name="demo:digits"), seed=0).train
    (tmp_path / "digits").mkdir()
    for split, rows in {"train": range(120), "validation": range(120, 150), "test": range(150, 170)}.items():
        images = []
        for row in rows:
            buffer = io.BytesIO()
            source.load(row).inputs.save(buffer, "PNG")
            images.append(buffer.getvalue())
        table = pa.table({"image": images, "label": [source.labels[row] % 5 for row in rows]})
        pq.write_table(table, tmp_path / "digits" / f"{split}.parquet", row_group_size=10)


@pytest.mark.usefixtures("digits")
def test_a_run_goes_on_where_the_connection_broke(run_cli, tmp_path, monkeypatch):
    dry = run_cli("distill", *SHORT, "--dry-run")
    told = " ".join(dry.stdout.split())
    assert "Streamed: 3 parquet files with 170 rows in 17 row groups" in told
    outcome = run_cli("distill", *SHORT, "--output", "whole")
    assert outcome.exit_code == 0, outcome.stderr
    opened = []
    original = LocalFileSystem.open

    def flaky(self, path, *args, **options):
        opened.append(path.endswith("train.parquet"))
        if sum(opened) == 22:  # footer, labels, twelve row groups an epoch, and what is looked at before
            raise ConnectionError("the line is dead")
        return original(self, path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "open", flaky)
        outcome = run_cli("distill", *SHORT, "--output", "run")
    assert outcome.exit_code == 2
    told = " ".join(outcome.stderr.split())
    assert "train.parquet couldn't be read in its row group" in told
    assert "ConnectionError: the line is dead" in told
    assert "kdcli distill --resume RUN" in told
    outcome = run_cli("distill", "--resume", "run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "going on from step 18" in outcome.stdout + outcome.stderr  # in the middle of the second epoch of 15
    first, second = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    whole, run = ((tmp_path / name / "metrics.jsonl").read_text().count("\n") for name in ("whole", "run"))
    assert whole == run
