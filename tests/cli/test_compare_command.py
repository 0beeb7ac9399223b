"""``kdcli compare``: its numbers against the runs' own files."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos, tiny, run_cli_in) -> Path:
    """A folder with ``runs/kd-0`` and ``runs/kd-1``, of seeds 0 and 1, each with its ``baseline``. Not to be changed."""
    folder = tmp_path_factory.mktemp("compare")
    for seed in ("0", "1"):
        options = ("--teacher", "random:test_vit", "--student", "test_resnet", "--baseline", "--seed", seed)
        outcome = run_cli_in("distill", "--data", photos, *tiny, *options, "--output", f"runs/kd-{seed}", cwd=folder)
        assert outcome.exit_code == 0, outcome.stderr
    return folder


RUNS = ("runs/kd-0", "runs/kd-1", "runs/kd-0/baseline", "runs/kd-1/baseline")


def recorded(run: Path, event: str) -> dict:
    text = (run / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if line["event"] == event and line.get("best", 1)][-1]


def cell(stdout: str, row: str, column: int) -> str:
    """Return a cell of the table of all settings and metrics, whose columns are groups."""
    lines = stdout[stdout.index("All settings and metrics") :].splitlines()
    (line,) = (line for line in lines if line.startswith(f"| {row} "))
    return line.strip("|").split("|")[column].strip()


def tables(stdout: str) -> list[list[list[str]]]:
    """Return the cells of every table of Markdown, headings first."""
    found: list[list[list[str]]] = [[]]
    for line in stdout.splitlines():
        if line.startswith("| "):
            found[-1].append([part.strip() for part in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[table[0], *table[2:]] for table in found if table]


def test_the_table_groups_seeds_and_shows_what_differs(run_cli_in, folder):
    exit_code, stdout, stderr = run_cli_in("compare", *RUNS, "--all", cwd=folder)
    assert (exit_code, stderr) == (0, "")
    methods, settings, everything = tables(stdout)
    assert everything[0] == ["", "kd-0", "kd-0/baseline"]
    accuracies = {
        (name, event): [100 * recorded(folder / run, event)["accuracy"] for run in runs]
        for name, runs in (("kd-0", RUNS[:2]), ("kd-0/baseline", RUNS[2:]))
        for event in ("validation", "test")
    }
    shown = {key: f"{sum(pair) / 2:.2f} ± {statistics.stdev(pair):.2f}" for key, pair in accuracies.items()}
    assert methods == [
        ["method", "seeds", "validation accuracy %", "test accuracy %"],
        *([name, "0, 1", shown[name, "validation"], shown[name, "test"]] for name in ("kd-0", "kd-0/baseline")),
    ]
    assert settings == [
        ["setting", "kd-0", "kd-0/baseline"],
        ["methods", "supervised + projection", "supervised"],
        ["teacher.name", "random:test_vit", "none"],
    ]
    assert cell(stdout, "seeds", 1) == cell(stdout, "seeds", 2) == "0, 1"
    assert (cell(stdout, "teacher.name", 1), cell(stdout, "teacher.name", 2)) == ("random:test_vit", "none")
    assert (cell(stdout, "relation", 1), cell(stdout, "relation", 2)) == ("random", "none")
    assert (cell(stdout, "methods.projection.projector", 1), cell(stdout, "methods.projection.projector", 2)) == (
        "inverted",
        "-",
    )
    for same in ("student.name", "seed ", "baseline", "optim.lr", "methods.supervised"):
        assert f"| {same}" not in stdout
    for event in ("validation", "test"):
        for metric in ("accuracy", "loss"):
            values = [recorded(folder / run, event)[metric] for run in RUNS[:2]]
            expected = f"{sum(values) / 2:.4f} ± {statistics.stdev(values):.4f}"
            assert cell(stdout, f"{event} {metric}", 1) == expected
    assert cell(stdout, "steps", 1) == "3"
    assert "kd-0/baseline: runs/kd-0/baseline, runs/kd-1/baseline" in stdout
    assert "--output DIR" in stdout
    assert not list(folder.glob("compare.*"))


def test_files(run_cli_in, folder, tmp_path):
    output = tmp_path / "new" / "comparison"
    exit_code, stdout, stderr = run_cli_in(
        "compare", *RUNS, "--baseline", "runs/kd-1/baseline", "--output", output, "--all", cwd=folder
    )
    assert (exit_code, stderr) == (0, "")
    assert {file.name for file in output.iterdir()} == {
        *("compare.csv", "compare.md", "table.csv", "table.tex", "bars.png", "curves.png")
    }
    for file in output.iterdir():
        assert f"Wrote {file}" in stdout

    with (output / "compare.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert [row["run"] for row in rows] == list(RUNS)
    assert [row["group"] for row in rows] == ["kd-0", "kd-0", "kd-0/baseline", "kd-0/baseline"]
    assert [row["seed"] for row in rows] == ["0", "1", "0", "1"]
    for row in rows:
        for event in ("validation", "test"):
            line = recorded(folder / row["run"], event)
            for metric in line.keys() - {"event", "epoch", "step", "best"}:
                assert float(row[f"{event} {metric}"]) == line[metric]
        assert (row["best epoch"], row["steps"], row["finished"]) == ("1", "3", "true")

    markdown = (output / "compare.md").read_text()
    assert "![bars](bars.png)" in markdown
    assert "![curves](curves.png)" in markdown
    shown, *_ = tables(stdout)
    with (output / "table.csv").open(newline="") as text:
        assert list(csv.reader(text)) == shown
    assert (output / "table.tex").read_text().count(r" \\") == len(shown)
    everything = markdown[markdown.index("## All settings and metrics") :]
    for name in ("test accuracy", "Δ test accuracy", "teacher.name"):
        (line,) = (line for line in everything.splitlines() if line.startswith(f"| {name} |"))
        assert [part.strip() for part in line.split("|")[2:-1]] == [cell(stdout, name, column) for column in (1, 2)]

    pixels = np.asarray(Image.open(output / "curves.png").convert("RGB"), dtype=np.int64)
    for color in ((0, 114, 178), (213, 94, 0)):
        assert (np.abs(pixels - color).max(axis=2) <= 2).sum() > 100


def test_json_is_alone_on_stdout_and_has_the_paired_differences(run_cli_in, folder):
    exit_code, stdout, stderr = run_cli_in("compare", *RUNS, "--baseline", "kd-0/baseline", "--json", cwd=folder)
    assert (exit_code, stderr) == (0, "")
    values = json.loads(stdout)
    assert values["baseline"] == "kd-0/baseline"
    assert values["warnings"] == []
    distilled, alone = values["groups"]
    assert alone["differences"] == {}
    assert [run["path"] for run in distilled["runs"]] == list(RUNS[:2])
    for event, metric in (("validation", "loss"), ("test", "loss"), ("test", "accuracy")):
        ours, theirs = ([recorded(folder / run, event)[metric] for run in runs] for runs in (RUNS[:2], RUNS[2:]))
        first, second = (a - b for a, b in zip(ours, theirs, strict=True))
        found = distilled["differences"][f"{event} {metric}"]
        assert found["num_pairs"] == 2
        assert found["mean"] == pytest.approx((first + second) / 2, rel=1e-9, abs=1e-12)
        # with two pairs the standard error is half their distance; t(0.975, 1) = 12.7062
        assert found["high"] - found["mean"] == pytest.approx(12.7062047 * abs(first - second) / 2, rel=1e-6, abs=1e-9)
        assert distilled["metrics"][f"{event} {metric}"]["mean"] == pytest.approx(sum(ours) / 2, rel=1e-9)


def test_a_run_and_its_baseline(run_cli_in, folder):
    exit_code, stdout, _ = run_cli_in(
        *("compare", "kd-0", "kd-0/baseline", "--baseline", "kd-0/baseline", "--metric", "loss", "--all"),
        cwd=folder / "runs",
    )
    assert exit_code == 0
    assert cell(stdout, "seed", 1) == cell(stdout, "seed", 2) == "0"
    difference = recorded(folder / RUNS[0], "test")["loss"] - recorded(folder / RUNS[2], "test")["loss"]
    assert cell(stdout, "Δ test loss", 1) == f"{difference:+.4f}"
    methods, *_ = tables(stdout)
    assert methods[0] == ["method", "seeds", "validation loss", "test loss", "Δ test loss"]
    assert [row[-1] for row in methods[1:]] == [f"{difference:+.4f}", "baseline"]
    outcome = run_cli_in("compare", "kd-0", "--metric", "accurracy", cwd=folder / "runs")
    assert outcome.exit_code == 2
    assert "No run has a metric 'accurracy'. Did you mean accuracy?" in outcome.stderr
    assert cell(stdout, "Δ pairs of seeds", 1) == "1"


def test_numbers_and_keys_are_whole_in_a_narrow_terminal(folder):
    result = subprocess.run(
        [sys.executable, "-m", "kdcli", "compare", *RUNS, "--baseline", RUNS[2], "--all"],
        cwd=folder,
        env=os.environ | {"COLUMNS": "70", "TTY_COMPATIBLE": "1", "TERM": "xterm", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    shown = re.sub(r"\x1b\[[\d;]*m", "", result.stdout).partition("kd-0: ")[0]
    assert max(map(len, shown.splitlines())) <= 70
    assert "…" not in shown
    assert shown.count("│ test accuracy ") == 2, "two parts"
    assert len(re.findall(r"│ +[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\] │", shown)) == 1
    assert len(re.findall(r"│ Δ test accuracy +│ +[+-]0\.\d{4} \[[+-]\d\.\d{4}, [+-]\d\.\d{4}\] +│", shown)) == 1
    assert re.search(r"│ methods\.projection\. +│.*\n│ normalize_student +│", shown)


# --- runs that are not finished ---------------------------------------------------------------------------------------


@pytest.fixture
def killed(random_run, tmp_path) -> Path:
    """A run of two epochs that was killed within a line of its second."""
    run = Path(shutil.copytree(random_run, tmp_path / "killed"))
    (run / "README.md").unlink()
    (run / "result.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(line)["event"] for line in lines] == ["train", "validation", "train", "validation", "test"]
    (run / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:30])
    return run


def test_an_unfinished_run_is_marked(run_cli, killed, alone_run, tmp_path):
    exit_code, stdout, stderr = run_cli("compare", killed, alone_run, "--output", "out", "--all")
    assert (exit_code, stderr) == (0, "")
    assert (cell(stdout, "state", 1), cell(stdout, "state", 2)) == ("unfinished", "finished")
    assert cell(stdout, "test accuracy", 1) == cell(stdout, "seconds", 1) == "-"
    assert float(cell(stdout, "seconds", 2)) > 0
    assert cell(stdout, "validation loss", 1) == f"{recorded(killed, 'validation')['loss']:.4f}"
    assert (cell(stdout, "steps", 1), cell(stdout, "steps", 2)) == ("3", "6")
    assert (tmp_path / "out" / "curves.png").is_file()


def test_a_run_that_has_just_begun(run_cli, killed, alone_run, tmp_path):
    (killed / "metrics.jsonl").unlink()
    shutil.rmtree(killed / "student")
    exit_code, stdout, stderr = run_cli("compare", killed, alone_run, "--output", "out", "--all")
    assert (exit_code, stderr) == (0, "")
    assert cell(stdout, "state", 1) == "unfinished"
    assert cell(stdout, "validation accuracy", 1) == cell(stdout, "steps", 1) == "-"
    assert (tmp_path / "out" / "curves.png").is_file()


def test_a_run_without_a_test_split_is_finished_with_its_result(run_cli, random_run, alone_run, tmp_path, sign_again):
    run = Path(shutil.copytree(random_run, tmp_path / "untested"))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    sign_again(run)
    stdout = run_cli("compare", run, alone_run, "--all").stdout
    assert "| state" not in stdout
    assert cell(stdout, "test accuracy", 1) == "-"


# --- what does not fit together ---------------------------------------------------------------------------------------


def test_other_data_is_one_warning(run_cli, random_run, alone_run, tmp_path):
    run = Path(shutil.copytree(random_run, tmp_path / "other"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["test_fraction"] = 0.5
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    exit_code, stdout, _ = run_cli("compare", run, alone_run)
    assert exit_code == 0
    (warning,) = (line for line in stdout.splitlines() if line.startswith("Warning: "))
    assert "different data (data.test_fraction)" in warning
    values = json.loads(run_cli("compare", run, alone_run, "--json").stdout)
    assert [f"Warning: {text}" for text in values["warnings"]] == [warning]


@pytest.fixture
def refused(run_cli, tmp_path):
    """Run ``compare``, which must be refused without a trace; return its message."""

    def run(*arguments: str | Path) -> str:
        before = sorted(tmp_path.rglob("*"))
        exit_code, stdout, stderr = run_cli("compare", *arguments)
        assert (exit_code, stdout) == (2, "")
        assert stderr.startswith("Error: ")
        assert stderr.partition("\nHint: ")[2].strip()
        assert sorted(tmp_path.rglob("*")) == before
        return stderr

    return run


def test_no_run(refused, alone_run, tmp_path):
    assert "no-such is not a run folder" in refused(alone_run, "no-such", "--output", "out")
    assert "not a run folder" in refused(alone_run, tmp_path)


def test_a_run_given_twice(refused, alone_run):
    assert "is given 2 times" in refused(alone_run, f"{alone_run}/../{alone_run.name}")


def test_a_damaged_line_is_named(refused, killed, alone_run):
    file = killed / "metrics.jsonl"
    file.write_text(file.read_text() + "\n")
    assert f"Line 3 of {file} is damaged" in refused(alone_run, killed, "--output", "out")


def test_damaged_files_of_a_run(refused, killed, alone_run):
    (killed / "plan.json").write_text("{")
    assert "plan.json" in refused(alone_run, killed)
    (killed / "config.yaml").write_text("task: image-clasification")
    assert "task: 'image-clasification' is not one of" in refused(alone_run, killed)


def test_a_baseline_that_is_not_compared(refused, random_run, alone_run, same_run):
    stderr = refused(random_run, alone_run, "--baseline", same_run, "--output", "out")
    assert "is not among the runs" in stderr
    assert random_run.name in stderr


def test_a_baseline_alone(refused, alone_run):
    assert "nothing to set against it" in refused(alone_run, "--baseline", alone_run)


def test_an_output_that_is_a_file(refused, random_run, alone_run, tmp_path):
    (tmp_path / "taken").write_text("")
    for output in ("taken", "taken/below"):
        assert "Can't write to taken" in refused(random_run, alone_run, "--output", output)


def test_no_runs_at_all(run_cli):
    exit_code, _, stderr = run_cli("compare")
    assert exit_code == 2
    assert "RUN" in stderr


@pytest.mark.parametrize("name", ["a" * 300, ""])
def test_what_can_be_no_folder_is_one_message(run_cli, random_run, name):
    outcome = run_cli("compare", random_run, name)
    assert outcome.exit_code == 2
    assert outcome.stderr.count("Error:") == 1
    assert "Traceback" not in outcome.stderr
