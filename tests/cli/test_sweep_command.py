"""``kdcli sweep``: runs, skips, goes on, reports, ranks."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import statistics
import threading
from pathlib import Path

import pytest
import yaml

BASE = {
    "teacher": "none",
    "student": {"name": "test_resnet", "image_size": 32},
    "data": {"workers": 0},
    "train": {"epochs": 1, "batch_size": 16, "device": "cpu", "checkpoint_every": "1"},
}


@pytest.fixture(scope="session")
def write_recipe(photos):
    def write(file: Path, **changes: object) -> Path:
        values = BASE | {"data": BASE["data"] | {"name": str(photos)}} | changes
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(values))
        return file

    return write


@pytest.fixture(scope="module")
def swept(tmp_path_factory, run_cli_in, write_recipe):
    """``alone`` and ``kd`` over seeds 0 and 1, the second with a baseline each; and what was printed. Not to be changed."""
    folder = tmp_path_factory.mktemp("sweep")
    write_recipe(folder / "recipes" / "alone.yaml")
    write_recipe(folder / "recipes" / "kd.yaml", teacher="random:test_vit", baseline=True)
    outcome = run_cli_in("sweep", "recipes", "--seeds", "2", "--baseline", "alone", cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr
    return folder, outcome.stdout


def recorded(run: Path, event: str) -> list[dict]:
    return [
        line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if line["event"] == event
    ]


def stamps(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*.*") if file.suffix in (".safetensors", ".jsonl")}


def cell(stdout: str, row: str, column: int) -> str:
    (line,) = (line for line in stdout.splitlines() if line.startswith(f"| {row} "))
    return line.strip("|").split("|")[column].strip()


def heading(stdout: str, first: str = "setting") -> list[str]:
    """Return the headings of the table whose first is this."""
    names = [[name.strip() for name in line.strip("|").split("|")] for line in stdout.splitlines() if line[:1] == "|"]
    (found,) = (line for line in names if line[0] == first)
    return found


def test_every_run_has_its_folder_its_seed_and_a_line(swept):
    folder, stdout = swept
    root = folder / "runs" / "sweeps" / "recipes"
    for name in ("alone", "kd"):
        for seed in (0, 1):
            run = root / name / f"seed-{seed}"
            assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == seed
            assert json.loads((run / "result.json").read_text())["steps"] == 3
            accuracy = recorded(run, "validation")[-1]["accuracy"]
            tested = recorded(run, "test")[-1]["accuracy"]
            assert f"{name} seed {seed}: validation accuracy {accuracy:.4f}, test accuracy {tested:.4f}, " in stdout
    assert re.findall(r"^\[(\d)/4\] (\S+ seed \d)", stdout, re.M) == [
        ("1", "alone seed 0"),
        ("2", "kd seed 0"),
        ("3", "alone seed 1"),
        ("4", "kd seed 1"),
    ]
    assert "Plan:" not in stdout
    assert "Student:" not in stdout


def test_the_comparison_has_a_group_for_each_recipe_by_name(swept):
    folder, stdout = swept
    root = folder / "runs" / "sweeps" / "recipes"
    assert heading(stdout) == ["setting", "alone", "kd", "kd/baseline"]
    assert heading(stdout, "method") == [
        *("method", "seeds", "validation accuracy %", "test accuracy %", "Δ test accuracy %")
    ]
    markdown = (root / "compare.md").read_text()
    everything = markdown[markdown.index("## All settings and metrics") :]
    values = [[recorded(root / name / f"seed-{s}", "test")[-1]["loss"] for s in (0, 1)] for name in ("alone", "kd")]
    for column, losses in enumerate(values, start=1):
        assert (
            cell(everything, "test loss", column) == f"{statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f}"
        )
    differences = [ours - theirs for theirs, ours in zip(*values, strict=True)]
    assert cell(everything, "Δ test loss", 2).startswith(f"{statistics.mean(differences):+.4f} [")
    assert cell(everything, "Δ test loss", 1) == "-"
    for seed in (0, 1):
        alone, baseline = (root / name for name in (f"alone/seed-{seed}", f"kd/seed-{seed}/baseline"))
        assert recorded(alone, "test")[-1]["loss"] == recorded(baseline, "test")[-1]["loss"]
    assert cell(everything, "Δ test loss", 3).startswith("+0.0000")
    assert "Ranking" not in stdout
    with (root / "compare.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert [(row["group"], row["seed"]) for row in rows] == [
        (name, seed) for name in ("alone", "kd", "kd/baseline") for seed in ("0", "1")
    ]
    assert (root / "curves.png").is_file()


def test_finished_runs_are_skipped_and_reported_alike(swept, run_cli_in):
    folder, before = swept
    root = folder / "runs" / "sweeps" / "recipes"
    stamped = stamps(root)
    for option in (), ("--report-only",):
        exit_code, stdout, stderr = run_cli_in(
            "sweep", "recipes", "--seeds", "2", "--baseline", "alone", *option, cwd=folder
        )
        assert (exit_code, stderr) == (0, "")
        assert stdout.count("finished before: validation accuracy") == (0 if option else 4)
        assert stdout[stdout.index("Comparison") :] == before[before.index("Comparison") :]
    assert stamps(root) == stamped


def test_compare_takes_the_folder_of_a_sweep(swept, run_cli_in, random_run):
    folder, _ = swept
    sweep = "runs/sweeps/recipes"
    assert run_cli_in("compare", sweep, "--baseline", "alone", cwd=folder).exit_code == 0
    outcome = run_cli_in("compare", sweep, random_run, "--baseline", f"{sweep}/alone", "--json", cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr
    groups = json.loads(outcome.stdout)["groups"]
    assert [group["name"].rpartition("recipes/")[2] for group in groups[:3]] == ["alone", "kd", "kd/baseline"]
    assert [len(group["runs"]) for group in groups] == [2, 2, 2, 1]


def test_other_settings_are_refused_by_name(swept, run_cli_in):
    folder, _ = swept
    stamped = stamps(folder)
    for option, difference in (("optim.lr=0.5", "optim.lr 0.001 -> 0.5"), ("train.epochs=2", "train.epochs 1 -> 2")):
        outcome = run_cli_in("sweep", "recipes", "--seeds", "3", "--set", option, cwd=folder)
        assert outcome.exit_code == 2
        assert f"holds runs of another config: {difference}." in outcome.stderr
    outcome = run_cli_in("sweep", "recipes", "--seeds", "2", "--no-test", cwd=folder)
    assert "has been tested already" in outcome.stderr
    assert stamps(folder) == stamped


# --- runs that are cut short, and that fail ---------------------------------------------------------------------------


@pytest.fixture
def signalled(monkeypatch):
    """Send this process a signal when a run of a seed has trained one step."""

    def arm(number: signal.Signals, seed: int) -> None:
        import kdcli.training.trainer

        original = kdcli.training.trainer.Trainer.train_step

        def train_step(self, batch, epoch):
            original(self, batch, epoch)
            if self.job.config.seed == seed and self.step == 1:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(kdcli.training.trainer.Trainer, "train_step", train_step)

    return arm


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_stops_after_saving_and_the_same_command_goes_on(
    swept, run_cli, write_recipe, tmp_path, monkeypatch, signalled, number, code
):
    write_recipe(tmp_path / "alone.yaml")
    command = ("sweep", "alone.yaml", "--seeds", "2", "--output", "out")
    with monkeypatch.context():
        signalled(number, 1)
        exit_code, stdout, stderr = run_cli(*command)
    monkeypatch.undo()
    assert (exit_code, stderr) == (code, "")
    assert f"Go on with the same command: kdcli {' '.join(command)}" in stdout
    assert "Comparison" not in stdout
    run = tmp_path / "out" / "alone" / "seed-1"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001"]
    assert not (run / "result.json").exists()

    exit_code, stdout, stderr = run_cli(*command)
    assert (exit_code, stderr) == (0, "")
    assert re.search(r"^\[1/2\] alone seed 0: finished before", stdout, re.M)
    assert re.search(r"^\[2/2\] alone seed 1: validation accuracy \S+ test accuracy \S+ \d+ s$", stdout, re.M)
    whole = swept[0] / "runs" / "sweeps" / "recipes" / "alone" / "seed-1"
    assert recorded(run, "test") == recorded(whole, "test"), "as if it had not been stopped"


def test_a_signal_while_models_are_loaded(run_cli, write_recipe, tmp_path, monkeypatch):
    import kdcli.experiments.distill

    write_recipe(tmp_path / "alone.yaml")
    with monkeypatch.context() as patch:
        patch.setattr(kdcli.experiments.distill, "prepare_job", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        exit_code, stdout, stderr = run_cli("sweep", "alone.yaml", "--seeds", "1", "--output", "out/here")
    assert (exit_code, stderr) == (143, "")
    assert "Go on with the same command" in stdout
    assert [path.name for path in tmp_path.iterdir()] == ["alone.yaml"], "no empty folders"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_run_that_was_killed_before_it_was_one(run_cli, write_recipe, tmp_path):
    write_recipe(tmp_path / "alone.yaml")
    remains = tmp_path / "out" / "alone" / "seed-0"
    remains.mkdir(parents=True)
    (remains / "plan.json").write_text("{}")
    (remains / ".kdcli-123").mkdir()
    assert run_cli("sweep", "alone.yaml", "--seeds", "1", "--output", "out").exit_code == 0
    assert (remains / "result.json").is_file()


def test_a_recipe_that_fails_is_reported_and_the_others_go_on(run_cli, write_recipe, tmp_path):
    write_recipe(tmp_path / "alone.yaml")
    write_recipe(tmp_path / "bad.yaml", teacher="no_such_net")
    command = ("sweep", "bad.yaml", "alone.yaml", "--seeds", "1", "--output", "out", "--baseline", "bad")
    exit_code, stdout, stderr = run_cli(*command)
    assert exit_code == 2
    assert re.search(r"^\[1/2\] bad seed 0: failed: .*no_such_net", stdout, re.M)
    assert re.search(r"^\[2/2\] alone seed 0: validation accuracy", stdout, re.M)
    assert "Not begun: bad seed 0." in stdout
    assert "No differences: bad and another variant have no runs yet." in stdout
    assert stderr.startswith("Error: 1 of 2 runs failed:")
    assert "bad seed 0: " in stderr
    assert "Traceback" not in stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".") == [
        "alone",
        "bars.png",
        "compare.csv",
        "compare.md",
        "curves.png",
        "table.csv",
        "table.tex",
    ]
    write_recipe(tmp_path / "bad.yaml", teacher="random:test_vit")  # mended
    exit_code, stdout, stderr = run_cli(*command)
    assert (exit_code, stderr) == (0, "")
    assert "alone seed 0: finished before" in stdout
    assert heading(stdout) == ["setting", "bad", "alone"]


def test_an_unexpected_error_keeps_its_traceback(run_cli, write_recipe, tmp_path, monkeypatch):
    import kdcli.experiments.distill

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    write_recipe(tmp_path / "alone.yaml")
    monkeypatch.setattr(kdcli.experiments.distill, "prepare_job", broken)
    with pytest.raises(ZeroDivisionError):
        run_cli("sweep", "alone.yaml", "--seeds", "1", "--output", "out")
    assert not (tmp_path / "out").exists()


# --- variants, and tuning without test data ---------------------------------------------------------------------------


def test_a_grid_without_test_data_is_ranked_by_validation_and_tested_later(run_cli, write_recipe, tmp_path):
    write_recipe(tmp_path / "alone.yaml")
    command = ("sweep", "alone.yaml", "--seeds", "2", "--output", "out", "--vary", "optim.lr=0.00001,0.01")
    exit_code, stdout, stderr = run_cli(*command, "--no-test")
    assert (exit_code, stderr) == (0, "")
    names = ["alone-optim.lr=1e-05", "alone-optim.lr=0.01"]
    assert heading(stdout) == ["setting", *names]
    assert (cell(stdout, "optim.lr", 1), cell(stdout, "optim.lr", 2)) == ("1e-05", "0.01")
    scores = {}
    for name in names:
        runs = [tmp_path / "out" / name / f"seed-{seed}" for seed in (0, 1)]
        assert [recorded(run, "test") for run in runs] == [[], []]
        assert [json.loads((run / "result.json").read_text())["test"] for run in runs] == [{}, {}]
        best = [recorded(run, "validation")[-1] for run in runs]
        scores[name] = tuple(statistics.mean(line[key] for line in best) for key in ("accuracy", "loss"))
    assert "test accuracy" not in stdout + (tmp_path / "out" / "compare.csv").read_text()
    order = sorted(names, key=lambda name: (-scores[name][0], scores[name][1]))
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in stdout.splitlines() if line[:7] == "| alone"]
    rows = rows[2:]  # below the methods
    assert [row[1:3] for row in rows] == [["1", order[0]], ["2", order[1]]]
    assert rows[0][4].startswith(f"{scores[order[0]][0]:.4f}")
    assert f"Best variant of alone: {order[0]} (validation accuracy {scores[order[0]][0]:.4f}, 2 seeds)" in stdout
    assert "ties go to the lower mean validation loss" in stdout

    winner = tmp_path / "out" / order[0] / "seed-0"
    weights = (winner / "student" / "model.safetensors").read_bytes()
    assert run_cli("distill", "--resume", winner, "--test").exit_code == 0
    assert len(recorded(winner, "test")) == len(recorded(winner, "validation")) == 1
    assert (winner / "student" / "model.safetensors").read_bytes() == weights
    assert "has been tested already" in run_cli("distill", "--resume", winner, "--no-test").stderr
    assert run_cli(*command).exit_code == 0, "without --no-test all are tested"
    assert all(recorded(tmp_path / "out" / name / f"seed-{seed}", "test") for name in names for seed in (0, 1))


def test_changed_data_are_taken_by_force(run_cli, write_recipe, tmp_path, make_photos):
    """The runs are still to be tested, and the test split has lost an image."""
    photos = make_photos({"train/apple": 20, "train/sky": 20, "test/apple": 5, "test/sky": 5})
    recipe = write_recipe(tmp_path / "own.yaml", data={"workers": 0, "name": str(photos)})
    sweep = ("sweep", recipe, "--seeds", "1", "--output", "out")
    assert run_cli(*sweep, "--no-test").exit_code == 0
    (photos / "test" / "sky" / "00.jpg").unlink()
    refused = run_cli(*sweep)
    assert refused.exit_code == 2
    assert "test: 1 removed" in refused.stderr
    assert "--force" in refused.stderr
    outcome = run_cli(*sweep, "--force")
    assert outcome.exit_code == 0, outcome.stderr
    (run,) = (tmp_path / "out").glob("*/seed-0")
    assert "test: 1 removed" in (run / "README.md").read_text()
    assert recorded(run, "test")


def test_equal_scores_are_ranked_by_loss_then_by_order(run_cli, write_recipe, tmp_path, sign_again):
    write_recipe(tmp_path / "alone.yaml")
    command = (
        "sweep",
        "alone.yaml",
        "--seeds",
        "1",
        "--vary",
        "train.batch_size=8,4,16",
        "--output",
        "out",
        "--no-test",
    )
    assert run_cli(*command).exit_code == 0
    for size, loss in ((8, 0.75), (4, 0.5), (16, 0.5)):
        file = tmp_path / "out" / f"alone-train.batch_size={size}" / "seed-0" / "metrics.jsonl"
        line = {"event": "validation", "epoch": 1, "step": 3, "accuracy": 0.5, "loss": loss, "best": 1.0}
        file.write_text(json.dumps(line) + "\n")
        sign_again(file.parent)
    (tmp_path / "out" / "alone-train.batch_size=16" / "seed-0" / "result.json").unlink()
    stdout = run_cli(*command, "--report-only").stdout
    assert re.findall(r"^\| alone +\| +(\S) \| (\S+) +\|", stdout, re.M) == [
        ("1", "alone-train.batch_size=4"),
        ("2", "alone-train.batch_size=8"),
        ("-", "alone-train.batch_size=16"),
    ]
    shutil.copy(
        tmp_path / "out/alone-train.batch_size=8/seed-0/result.json", tmp_path / "out/alone-train.batch_size=16/seed-0"
    )
    sign_again(tmp_path / "out/alone-train.batch_size=16/seed-0")
    stdout = run_cli(*command, "--report-only").stdout
    assert [name for _, name in re.findall(r"^\| alone +\| +(\d) \| (\S+) +\|", stdout, re.M)] == [
        f"alone-train.batch_size={size}" for size in (4, 16, 8)
    ]


def test_episodes_are_swept_and_ranked_by_their_students(run_cli, write_recipe, tmp_path):
    episodes = {"ways": 3, "shots": 4, "queries": 5, "number": 1, "split": "validation"}
    data = {"name": "demo:digits", "workers": 0}
    teacher = {"name": "random:test_vit", "image_size": 32}
    write_recipe(tmp_path / "few.yaml", teacher=teacher, data=data, episodes=episodes)
    command = ("sweep", "few.yaml", "--seeds", "1", "--output", "out", "--no-test", "--vary", "episodes.shots=2,4")
    exit_code, stdout, stderr = run_cli(*command)
    assert (exit_code, stderr) == (0, "")
    names = ["few-episodes.shots=2", "few-episodes.shots=4"]
    scores = {
        name: json.loads((tmp_path / "out" / name / "seed-0" / "result.json").read_text())["accuracy"]["distilled"][
            "mean"
        ]
        for name in names
    }
    for name, score in scores.items():
        assert f"{name} seed 0: episodes distilled {score:.4f}" in stdout
    best = max(names, key=scores.__getitem__)
    assert f"Best variant of few: {best} (episodes distilled {scores[best]:.4f}, 1 seeds)" in stdout
    assert run_cli(*command).stdout.count("finished before: episodes distilled") == 2
    (tmp_path / "out" / names[0] / "seed-0" / "result.json").unlink()  # stopped after its last episode
    assert f"{names[0]} seed 0: episodes distilled {scores[names[0]]:.4f}, " in run_cli(*command).stdout
    outcome = run_cli("sweep", "few.yaml", "--seeds", "1", "--output", "o", "--no-test", "--set", "episodes.split=test")
    assert outcome.exit_code == 2
    assert "--no-test: the queries are test images" in outcome.stderr


def test_a_run_in_two_stages_is_tested_later_without_training(run_cli, write_recipe, tmp_path):
    write_recipe(tmp_path / "two.yaml", teacher="random:test_vit", method="refilled")
    assert run_cli("distill", "--recipe", "two.yaml", "--no-test", "--output", "run").exit_code == 0
    run = tmp_path / "run"
    before = stamps(run / "embedding")
    assert len(before) > 1
    assert not recorded(run, "test")
    outcome = run_cli("distill", "--resume", "run", "--test")
    assert outcome.exit_code == 0, outcome.stderr
    assert stamps(run / "embedding") == before
    assert len(recorded(run, "test")) == len(recorded(run, "validation")) == 1


def test_two_worker_processes(swept, run_cli, write_recipe, tmp_path):
    write_recipe(tmp_path / "alone.yaml")
    write_recipe(tmp_path / "bad.yaml", teacher="no_such_net")
    exit_code, stdout, stderr = run_cli(
        "sweep", "alone.yaml", "bad.yaml", "--seeds", "2", "--jobs", "2", "--output", "out"
    )
    assert exit_code == 2
    assert stderr.startswith("Error: 2 of 4 runs failed:")
    assert sorted(re.findall(r"^\[(\d)/4\]", stdout, re.M)) == ["1", "2", "3", "4"]
    for seed in (0, 1):
        whole = swept[0] / "runs" / "sweeps" / "recipes" / "alone" / f"seed-{seed}"
        assert recorded(tmp_path / "out" / "alone" / f"seed-{seed}", "test") == recorded(whole, "test")


def test_a_signal_stops_the_workers_after_saving(run_cli, write_recipe, tmp_path):
    write_recipe(tmp_path / "alone.yaml", train=BASE["train"] | {"epochs": 2000})
    runs = [tmp_path / "out" / "alone" / f"seed-{seed}" for seed in (0, 1)]

    ended = threading.Event()

    def stop_once_both_train() -> None:
        while not all(list(run.glob("checkpoints/step-*")) for run in runs):
            if ended.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=stop_once_both_train)
    watcher.start()
    exit_code, stdout, stderr = run_cli("sweep", "alone.yaml", "--seeds", "2", "--jobs", "2", "--output", "out")
    ended.set()
    watcher.join()
    assert (exit_code, stderr) == (143, "")
    assert "Go on with the same command" in stdout
    assert all(list(run.glob("checkpoints/step-*")) for run in runs)
    assert not multiprocessing.active_children()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("alone.yaml", "--seeds", "0"), "--seeds 0 is not from 1"),
        (("alone.yaml", "--seeds", "-1"), "neither a number"),
        (("alone.yaml", "--seeds", "1,,2"), "neither a number"),
        (("alone.yaml", "--seeds", "3,4,3"), "the seed 3 2 times"),
        (("alone.yaml", "--seeds", "9999999999,"), "seeds are below"),
        (("alone.yaml", "--seeds", "2", "--vary", "optim.lr"), "not of the form"),
        (("alone.yaml", "--seeds", "2", "--vary", "optim.lr="), "has no values"),
        (("alone.yaml", "--seeds", "2", "--vary", "optim.lr=[1"), "no YAML"),
        (("alone.yaml", "--seeds", "2", "--vary", "optim.lrr=1,2"), "optim.lrr: unknown key"),
        (("alone.yaml", "--seeds", "2", "--vary", "optim.lr=1,1.0"), "are the same config"),
        (("alone.yaml", "--seeds", "2", "--vary", "seed=1,2"), "Use --seeds"),
        (("alone.yaml", "--seeds", "2", "--set", "output=x"), "Use --output"),
        (("alone.yaml", "--seeds", "2", "--vary", "optim.lr=1,2", "--vary", "optim.lr=3"), "is given twice"),
        (("alone.yaml", "alone.yaml", "--seeds", "2"), "given 2 times"),
        (("empty", "--seeds", "2"), "has no .yaml file"),
        (("alon", "--seeds", "2"), "no recipe"),
        (("alone.yaml", "--seeds", "10000", "--vary", "optim.lr=1,2"), "20000 runs"),
        (("alone.yaml", "--seeds", "2", "--baseline", "alone"), "nothing to set against it"),
        (("alone.yaml", "--seeds", "2", "--vary", "optim.lr=1,2", "--baseline", "alone"), "alone has 2 variants"),
        (("alone.yaml", "--seeds", "2", "--jobs", "1000"), "CPU cores"),
        (("alone.yaml", "--seeds", "2", "--report-only"), "There is no run"),
        (("alone.yaml", "--seeds", "2", "--output", "taken"), "Can't write to taken"),
    ],
)  # fmt: skip
def test_refusals_leave_nothing_behind(run_cli, write_recipe, tmp_path, arguments, said):
    write_recipe(tmp_path / "alone.yaml")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").write_text("")
    before = sorted(tmp_path.rglob("*"))
    exit_code, stdout, stderr = run_cli("sweep", *arguments)
    assert (exit_code, stdout) == (2, "")
    assert stderr.startswith("Error: ")
    assert said in stderr
    assert stderr.partition("\nHint: ")[2].strip()
    assert sorted(tmp_path.rglob("*")) == before
