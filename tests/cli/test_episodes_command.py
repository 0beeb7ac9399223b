"""``kdcli distill --ways N --shots K``: a student for each of many small tasks, beside the baselines."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from scipy import stats

ARMS = ["distilled", "fine_tuned", "nearest_neighbour", "nearest_class_mean", "linear_classifier"]
SMALL = (
    *("--teacher", "random:test_vit", "--student", "test_resnet", "--data", "demo:digits"),
    *("--ways", "3", "--shots", "4", "--queries", "5", "--epochs", "1", "--batch-size", "8", "--device", "cpu"),
    *("--set", "student.image_size=32", "--set", "teacher.image_size=32", "--set", "data.workers=0"),
)


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def same_files(first: Path, second: Path) -> None:
    """The episodes, and what they came to; checksums are also of files with the command line in them."""
    assert (first / "episodes.jsonl").read_bytes() == (second / "episodes.jsonl").read_bytes()
    ours, theirs = result_of(first), result_of(second)
    for result in (ours, theirs):
        del result["files"], result["checksum"]
    assert ours == theirs


@pytest.fixture(scope="module")
def whole(tmp_path_factory, run_cli_in):
    """Three episodes that nobody disturbed, and what was printed; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    outcome = run_cli_in("distill", *SMALL, "--episodes", "3", "--output", "run", cwd=folder)
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stderr == ""
    return folder / "run", outcome.stdout


def test_the_run_folder(whole):
    run, stdout = whole
    files = {
        "config.yaml",
        "plan.json",
        "data.jsonl.gz",
        "episodes.jsonl",
        "result.json",
        "README.md",
        "report.html",
        ".lock",
    }
    assert {file.name for file in run.iterdir()} == files
    assert yaml.safe_load((run / "config.yaml").read_text())["episodes"] == {
        "ways": 3,
        "shots": 4,
        "number": 3,
        "queries": 5,
        "split": "test",
    }
    decisions = {entry["name"]: entry for entry in json.loads((run / "plan.json").read_text())["decisions"]}
    assert decisions["episodes"]["value"] == "3 of 3 classes, 4 training and 5 test images of each"
    assert "validation is kept" not in decisions["training"]["reason"]
    assert stdout.index("4 training and 5 test images") < stdout.index("episode 1/3") < stdout.index("Result of 3")
    assert "No student is kept" in stdout


def test_every_arm_of_every_episode_and_their_means(whole):
    run, stdout = whole
    lines, result = lines_of(run), result_of(run)
    assert [line["episode"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert list(line["accuracy"]) == ARMS
        assert len(line["classes"]) == 3
        assert (len(line["support"]), len(line["queries"])) == (12, 15)
        for value in line["accuracy"].values():
            assert value * 15 == pytest.approx(round(value * 15), abs=1e-5), "a share of 15 queries"
    assert len({tuple(line["classes"]) for line in lines}) > 1
    for arm in ARMS:
        column = [line["accuracy"][arm] for line in lines]
        half = stats.t.ppf(0.975, 2) * stats.sem(column)
        mean = sum(column) / 3
        assert result["accuracy"][arm] == pytest.approx({"mean": mean, "low": mean - half, "high": mean + half})
        mean = f"{result['accuracy'][arm]['mean']:.4f}"
        assert mean in (run / "README.md").read_text()
        assert mean in stdout


def test_the_config_of_a_run_repeats_it_and_another_seed_does_not(run_cli, tmp_path, whole):
    run, _ = whole
    assert run_cli("distill", "--recipe", run / "config.yaml", "--output", "again").exit_code == 0
    same_files(run, tmp_path / "again")
    outcome = run_cli("distill", *SMALL, "--episodes", "1", "--seed", "1", "--output", "other")
    assert outcome.exit_code == 0, outcome.stderr
    assert lines_of(tmp_path / "other")[0]["support"] != lines_of(run)[0]["support"]
    result = result_of(tmp_path / "other")
    assert result["accuracy"]["distilled"]["low"] is None


def test_students_learn_colours_and_only_the_distilled_one_hears_the_teacher(
    run_cli, tmp_path, photos, trained_teacher, tiny, monkeypatch
):
    """The teacher knows all labels: logits are distilled, restricted to the classes of the episode."""
    import kdcli.training.job

    built, original = [], kdcli.training.job.build_method

    def build(options, context):
        built.append((options.method, context.label_map, context.task.class_names))
        return original(options, context)

    monkeypatch.setattr(kdcli.training.job, "build_method", build)
    outcome = run_cli(
        *("distill", "--teacher", trained_teacher, "--student", "test_resnet", "--data", photos, *tiny),
        *("--ways", "2", "--shots", "8", "--queries", "4", "--episodes", "2", "--epochs", "40", "--lr", "0.003"),
        *("--output", "run", "--set", "train.ema=0.9"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    run = tmp_path / "run"
    for arm in ARMS:
        assert result_of(run)["accuracy"][arm]["mean"] >= 0.7, arm
    classes = [line["classes"] for line in lines_of(run)]
    names = ["apple", "leaf", "sky"]
    of_episodes = built[-8:]  # before them those of the plan
    assert [method for method, _, _ in of_episodes] == ["supervised", "projection", "logit_kd", "supervised"] * 2
    for number in (0, 1):
        drawn = tuple(names.index(name) for name in classes[number])
        distilled, alone = of_episodes[4 * number : 4 * number + 3], of_episodes[4 * number + 3]
        assert {label_map for _, label_map, _ in distilled} == {drawn}
        assert {task_names for _, _, task_names in distilled} == {tuple(classes[number])}
        assert alone[1] is None


def test_queries_are_not_looked_at_before_the_student_is_trained(run_cli, tmp_path, make_photos, tiny, monkeypatch):
    folder = make_photos({f"{split}/{name}": 6 for split in ("train", "val", "test") for name in ("apple", "sky")})
    opened = []

    def record(read):
        def recorded(path, **options):
            opened.append(Path(path).relative_to(folder).parts[0])
            return read(path, **options)

        return recorded

    from kdcli.data.images import sources

    for name in ("decode_image", "open_image"):  # in evaluation and in training
        monkeypatch.setattr(sources, name, record(getattr(sources, name)))
    arguments = ("distill", "--teacher", "random:test_vit", "--student", "test_resnet", "--data", folder, *tiny)
    arguments = (*arguments, "--ways", "2", "--shots", "3", "--queries", "4", "--episodes", "1", "--epochs", "2")
    assert run_cli(*arguments, "--output", "test").exit_code == 0
    # Two epochs and a look at the support images, then the queries; twice; then both for the teacher.
    student = ["train"] * 6 * 3 + ["test"] * 8
    assert opened == student * 2 + ["train"] * 6 + ["test"] * 8
    opened.clear()
    assert run_cli(*arguments, "--output", "validation", "--set", "episodes.split=validation").exit_code == 0
    assert set(opened) == {"train", "val"}
    assert "4 validation images" in (tmp_path / "validation" / "plan.json").read_text()


class Interrupt(Exception):
    """Stands for a process that dies."""


def test_a_run_cut_short_goes_on_to_the_same_end(run_cli, tmp_path, whole, monkeypatch):
    import kdcli.training.trainer

    original, count = kdcli.training.trainer.Trainer.fit, 0

    def fit(self):
        nonlocal count
        count += 1
        if count == 4:  # the second arm of the second episode
            raise Interrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(kdcli.training.trainer.Trainer, "fit", fit)
        with pytest.raises(Interrupt):
            run_cli("distill", *SMALL, "--episodes", "3", "--output", "run")
    run = tmp_path / "run"
    assert len(lines_of(run)) == 1
    with (run / "episodes.jsonl").open("a") as file:
        file.write('{"episode":2,"classes":["1"')  # broken off
    outcome = run_cli("distill", "--resume", "run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "going on from episode 2" in outcome.stdout
    same_files(whole[0], run)
    assert {file.name for file in run.iterdir()} == {file.name for file in whole[0].iterdir()}


def test_more_episodes_extend_a_finished_run(run_cli, tmp_path, whole):
    assert run_cli("distill", *SMALL, "--episodes", "2", "--output", "run").exit_code == 0
    run = tmp_path / "run"
    before = (run / "episodes.jsonl").stat().st_mtime_ns
    outcome = run_cli("distill", "--resume", "run")
    assert outcome.exit_code == 0
    assert "run: finished" in outcome.stdout
    assert "Result of 2 episodes" in outcome.stdout
    assert (run / "episodes.jsonl").stat().st_mtime_ns == before
    assert run_cli("distill", "--resume", "run", "--episodes", "3").exit_code == 0
    same_files(whole[0], run)
    assert (run / "config.yaml").read_text() == (whole[0] / "config.yaml").read_text()
    assert '"3 of 3 classes' in (run / "plan.json").read_text()


@pytest.mark.parametrize(("number", "code", "at"), [(signal.SIGINT, 130, "train_step"), (signal.SIGTERM, 143, "fit")])
def test_a_signal_stops_and_says_how_to_go_on(run_cli, tmp_path, whole, monkeypatch, number, code, at):
    """In the middle of a training, and while a trained student is tested."""
    import kdcli.training.trainer

    original, count = getattr(kdcli.training.trainer.Trainer, at), 0

    def stopping(self, *arguments):
        nonlocal count
        result = original(self, *arguments)
        count += 1
        if count == 3:  # the second episode, or its training's only step
            signal.raise_signal(number)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(kdcli.training.trainer.Trainer, at, stopping)
        outcome = run_cli("distill", *SMALL, "--episodes", "3", "--output", "run")
    assert outcome.exit_code == code
    assert "Stopped at episode 1 of 3; all is saved. Go on with: kdcli distill --resume run" in outcome.stdout
    assert not (tmp_path / "run" / "result.json").exists()
    assert run_cli("distill", "--resume", "run").exit_code == 0
    same_files(whole[0], tmp_path / "run")


def test_json_lines(run_cli, tmp_path):
    outcome = run_cli("distill", *SMALL, "--episodes", "2", "--output", "run", "--log-format", "json")
    events = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert [event["event"] for event in events] == ["plan", "episode", "episode", "result"]
    result = {key: value for key, value in events[-1].items() if key not in ("event", "run")}
    assert result == result_of(tmp_path / "run")
    assert [{key: value for key, value in event.items() if key != "event"} for event in events[1:3]] == lines_of(
        tmp_path / "run"
    )


def test_unreadable_images_are_named_once_and_left_out(run_cli, tmp_path, make_photos, tiny):
    folder = make_photos({f"{split}/{name}": 4 for split in ("train", "test") for name in ("apple", "sky")})
    broken = folder / "test" / "sky" / "00.jpg"
    broken.write_bytes(b"none")
    outcome = run_cli(
        *("distill", "--teacher", "random:test_vit", "--student", "test_resnet", "--data", folder, *tiny),
        *("--ways", "2", "--shots", "2", "--queries", "4", "--episodes", "2", "--output", "run"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stderr.count(str(broken)) == 1
    for line in lines_of(tmp_path / "run"):
        for value in line["accuracy"].values():
            assert value * 7 == pytest.approx(round(value * 7), abs=1e-5), "a share of the 7 that can be read"


# --- other commands ---------------------------------------------------------------------------------------------------


def test_compare_shows_the_means(run_cli, tmp_path, whole, alone_run):
    outcome = run_cli("distill", *SMALL, "--episodes", "2", "--output", "runs/other", "--lr", "0.01")
    assert outcome.exit_code == 0
    shutil.copytree(whole[0], tmp_path / "runs" / "whole")
    outcome = run_cli("compare", "runs/whole", "runs/other", "--baseline", "runs/whole", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    first, second = json.loads(outcome.stdout)["groups"]
    accuracy = [result_of(tmp_path / "runs" / name)["accuracy"]["distilled"]["mean"] for name in ("whole", "other")]
    assert [group["metrics"]["episodes distilled"]["mean"] for group in (first, second)] == accuracy
    assert second["differences"]["episodes distilled"]["mean"] == pytest.approx(accuracy[1] - accuracy[0])
    assert second["settings"]["optim.lr"] == 0.01
    outcome = run_cli("compare", "runs/whole", "runs/other", alone_run, "--output", "comparison")
    assert outcome.exit_code == 0, outcome.stderr
    assert "evaluated on different data" in outcome.stdout
    assert (tmp_path / "comparison" / "curves.png").stat().st_size
    assert run_cli("compare", "runs/whole", "runs/other", "--output", "two").exit_code == 0, "no curve at all"


@pytest.mark.parametrize("command", [("export",), ("evaluate",), ("analyze-projector",)])
def test_there_is_no_student(run_cli, whole, command):
    exit_code, stdout, stderr = run_cli(*command, whole[0])
    assert exit_code == 2
    assert "is of episodes: it has trained many students and kept none" in stderr
    assert "Traceback" not in stdout + stderr


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ways", "11"], "Episodes of 11 classes can't be drawn from 10 classes."),
        (["--shots", "500"], "--shots is 500, and there are fewer training images with a label in 0 ("),
        (["--queries", "40"], "--queries is 40, and there are fewer test images in 0 ("),
        (["--queries", "20", "--set", "episodes.split=validation"], "fewer validation images in 0 ("),
        (["--ways", "1"], "episodes.ways: input should be greater than or equal to 2, got 1."),
        (["--set", "episodes.split=train"], "episodes.split: 'train' is not one of"),
        (["--set", "episodes.shot=3"], "episodes.shot: unknown key. Did you mean shots"),
        (["--baseline"], "--baseline: the student fine-tuned alone is always an arm"),
        (["--teacher", "none"], "--teacher none: there is nothing to distil"),
        (["--num-processes", "2"], "--num-processes: an episode is trained by one process"),
        (["--track", "tensorboard"], "--track: there are hundreds"),
        (["--set", "data.labels_per_class=3"], "data.labels_per_class: --shots says"),
        (["--set", "train.compile=true"], "train.compile: every student"),
    ],
)
def test_what_is_refused_leaves_nothing(run_cli, tmp_path, options, message):
    exit_code, stdout, stderr = run_cli("distill", *SMALL, "--output", "run", *options)
    assert exit_code == 2, stdout
    assert stderr.startswith("Error: ")
    assert message in stderr
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


def test_shots_and_ways_go_together(run_cli):
    outcome = run_cli("distill", *SMALL[:6], "--ways", "3")
    assert outcome.exit_code == 2
    assert "episodes.shots: missing" in outcome.stderr
    assert "(--shots)" in outcome.stderr


def test_data_without_a_test_split(run_cli, make_photos, tiny):
    folder = make_photos({f"{split}/{name}": 4 for split in ("train", "val") for name in ("apple", "sky")})
    arguments = ("distill", "--teacher", "random:test_vit", "--student", "test_resnet", "--data", folder, *tiny)
    arguments = (*arguments, "--ways", "2", "--shots", "2", "--queries", "4", "--dry-run")
    outcome = run_cli(*arguments)
    assert outcome.exit_code == 2
    assert "has no test split to draw queries from" in outcome.stderr
    assert run_cli(*arguments, "--set", "episodes.split=validation").exit_code == 0


def test_a_training_that_fails_in_the_first_episode_leaves_nothing(run_cli, tmp_path):
    outcome = run_cli("distill", *SMALL, "--output", "runs/run", "--lr", "1e30", "--epochs", "30")
    assert outcome.exit_code == 2
    assert "became NaN or infinite" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shots", "5"], "episodes.shots 4 -> 5"),
        (["--epochs", "2"], "are trained for 1 epochs, not 2"),
        (["--episodes", "2"], "The run has 3 episodes already, and 2 are asked for."),
    ],
)
def test_a_run_goes_on_with_its_own_settings(run_cli, whole, options, message):
    before = {file: file.read_bytes() for file in whole[0].iterdir()}
    outcome = run_cli("distill", "--resume", whole[0], *options)
    assert outcome.exit_code == 2
    assert message in outcome.stderr
    assert {file: file.read_bytes() for file in whole[0].iterdir()} == before


def test_changed_data_and_damaged_files_are_noticed(run_cli, tmp_path, whole):
    run = shutil.copytree(whole[0], tmp_path / "run")
    (run / "result.json").unlink()
    lines = (run / "episodes.jsonl").read_text().splitlines()
    other = json.loads(lines[1])
    other["support"][0] += 1
    (run / "episodes.jsonl").write_text("\n".join([lines[0], json.dumps(other)]) + "\n")
    outcome = run_cli("distill", "--resume", "run")
    assert outcome.exit_code == 2
    assert "episode 2 would have other images" in outcome.stderr
    for text, message in (("{}", "is damaged"), (lines[1], "is not episode 1")):
        (run / "episodes.jsonl").write_text(f"{text}\n")
        outcome = run_cli("distill", "--resume", "run")
        assert outcome.exit_code == 2
        assert message in outcome.stderr


def test_features_alone_answer_by_nearest_class_means(run_cli, tmp_path):
    options = ("--episodes", "1", "--set", "methods=[{method: stochastic_triplet_kl}]", "--output", "run")
    outcome = run_cli("distill", *SMALL, *options)
    assert outcome.exit_code == 0, outcome.stderr
    (line,) = lines_of(tmp_path / "run")
    assert list(line["accuracy"]) == ARMS
    assert line["accuracy"]["distilled"] * 15 == pytest.approx(round(line["accuracy"]["distilled"] * 15), abs=1e-5)
