"""Grouping, statistics and text of a comparison, on runs written down here."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from kdcli.base.errors import UserError
from kdcli.config.keys import flatten_settings
from kdcli.config.parse import parse_config
from kdcli.results.compare import Run, _with_same_data, compare_runs, paired_difference, summarize
from kdcli.results.comparison import notes, table, to_csv, to_json, to_markdown
from kdcli.runs.folder import RunFolder

TASK = "image-classification"


def make_run(name: str, *, seed: int = 0, accuracy: float = 0.5, finished: bool = True, **settings: object) -> Run:
    metrics = {"validation accuracy": accuracy - 0.25, "best epoch": 2, "steps": 6}
    if finished:
        metrics["test accuracy"] = accuracy
    return Run(Path("runs") / name, name, seed, {"task": TASK, "optim.lr": 0.1} | settings, metrics, {}, finished)


def cell(comparison, row: str, column: str) -> str:
    columns, rows = table(comparison)
    (line,) = (line for line in rows if line[0] == row)
    return line[columns.index(column)]


# --- settings and groups ----------------------------------------------------------------------------------------------


def test_settings_are_dotted_and_methods_go_by_name():
    values = {
        "teacher": "resnet50",
        "student": "resnet18",
        "data": "demo:digits",
        "methods": [
            {"method": "supervised"},
            {"method": "projection", "projector": "linear", "weight": 2},
            {"method": "projection", "projector": "mlp"},
        ],
    }
    settings = flatten_settings(parse_config(values, source="t"))
    assert settings["teacher.name"] == "resnet50"
    assert settings["methods.projection.weight"] == 2
    assert settings["methods.projection.projector"] == "linear"
    assert settings["methods.projection-2.projector"] == "mlp"
    assert settings["methods.supervised.label_smoothing"] == 0.1
    assert settings["augment.crop_scale"] == [0.35, 1.0]
    assert not [key for key in settings if key.endswith(".method") or key in ("methods", "seed", "output")]


def test_where_and_under_which_name_a_run_is_made_is_not_its_recipe():
    values = {"teacher": "none", "student": "resnet18", "data": {"name": "demo:digits"}}
    others = values | {
        "seed": 3,
        "output": "elsewhere",
        "description": "again",
        "baseline": True,
        "data": {"name": "demo:digits", "workers": 4},
        "train": {"device": "cpu", "track": ["tensorboard"]},
    }
    first, second = (flatten_settings(parse_config(config, source="t")) for config in (values, others))
    assert first == second
    longer = flatten_settings(parse_config(values | {"train": {"epochs": 3}}, source="t"))
    assert {key for key in first if first[key] != longer[key]} == {"train.epochs"}


def test_seeds_of_a_recipe_are_one_group_named_after_the_first():
    runs = [
        make_run("a", seed=1),
        make_run("slow", seed=0, **{"optim.lr": 0.01}),
        make_run("b", seed=0),
        make_run("c", seed=5),
    ]
    comparison = compare_runs(runs)
    assert [(group.name, [run.name for run in group.runs]) for group in comparison.groups] == [
        ("a", ["a", "b", "c"]),
        ("slow", ["slow"]),
    ]
    assert comparison.settings == ("optim.lr",)
    assert comparison.warnings == ()
    assert cell(comparison, "seeds", "a") == "1, 0, 5"
    assert "a: runs/a, runs/b, runs/c" in notes(comparison)


def test_runs_of_a_sweep_are_groups_by_the_recipes_names():
    """Also where two recipes are alike; one name for two recipes is none."""
    runs = [
        replace(make_run(f"{recipe}/seed-{seed}", seed=seed, **{"optim.lr": lr}), recipe=recipe)
        for recipe, lr in (("kd", 0.1), ("again", 0.1), ("other", 0.2))
        for seed in (0, 1)
    ]
    comparison = compare_runs(runs, baseline="again")
    assert [group.name for group in comparison.groups] == ["kd", "again", "other"]
    assert comparison.baseline is comparison.groups[1]
    assert comparison.warnings == ()
    assert comparison.monitored == "validation accuracy"
    mixed = compare_runs([replace(run, recipe="kd") for run in (runs[0], runs[5])])
    assert [group.name for group in mixed.groups] == ["kd/seed-0", "other/seed-1"]


def test_a_repeated_seed_opens_another_group():
    runs = [make_run(f"{name}-{seed}", seed=seed) for name in ("old", "new") for seed in (0, 1)]
    comparison = compare_runs(runs)
    assert [[run.name for run in group.runs] for group in comparison.groups] == [["old-0", "old-1"], ["new-0", "new-1"]]
    assert comparison.settings == ()
    (warning,) = comparison.warnings
    assert "new-0 repeats the recipe and the seed of old-0" in warning


def test_only_settings_that_differ_are_shown_and_what_is_unset_is_a_dash():
    runs = [
        make_run("a", **{"augment.flip": 0.5, "student.drop_path": None, "methods.logit_kd.weight": 1.0}),
        make_run("b", **{"augment.flip": 0.5, "train.ema": None}),
    ]
    comparison = compare_runs(runs)
    assert comparison.settings == ("methods.logit_kd.weight",)
    assert cell(comparison, "methods.logit_kd.weight", "a") == "1.0"
    assert cell(comparison, "methods.logit_kd.weight", "b") == "-"


def test_other_data_is_a_warning_and_fewer_labels_is_none():
    other = compare_runs([make_run("a", **{"data.name": "x"}), make_run("b", **{"data.name": "y"})])
    assert [warning for warning in other.warnings if "data.name" in warning and "different data" in warning]
    fewer = compare_runs([make_run("a", **{"data.labels_per_class": 2}), make_run("b")])
    assert fewer.settings == ("data.labels_per_class",)
    assert fewer.warnings == ()


def test_other_tasks_are_refused():
    with pytest.raises(UserError, match=r"different tasks.*a is image-classification, b is depth-estimation"):
        compare_runs([make_run("a"), make_run("b", task="depth-estimation")])


def test_other_tasks_are_no_change_of_the_data():
    """Data of one name that have masks and depth differ in all their samples."""
    one = replace(make_run("a", task="semantic-segmentation"), data={"test": "1"})
    other = replace(make_run("b", task="depth-estimation"), data={"test": "2"})
    with pytest.raises(UserError, match=r"different tasks.*a is semantic-segmentation, b is depth-estimation"):
        _with_same_data([one, other], force=False)


# --- statistics -------------------------------------------------------------------------------------------------------


def test_mean_and_sample_standard_deviation():
    """0.8, 0.9, 1.0: squared deviations 0.01 + 0 + 0.01, divided by two."""
    summary = summarize([0.8, 1.0, 0.9])
    assert summary.mean == pytest.approx(0.9, abs=1e-12)
    assert summary.std == pytest.approx(0.1, abs=1e-12)
    assert summary.num_runs == 3
    assert summarize([0.7]).std is None


def test_paired_difference_against_the_table_of_the_t_distribution():
    """Differences 1, 2, 6 of seeds 0, 1, 2: mean 3, variance (4 + 1 + 9) / 2 = 7, and t(0.975, 2) = 4.302653."""
    difference = paired_difference({0: 11.0, 1: 22.0, 2: 36.0, 9: 500.0}, {2: 30.0, 1: 20.0, 0: 10.0, 8: -500.0})
    half = 4.302652729911275 * math.sqrt(7 / 3)
    assert difference.num_pairs == 3
    assert difference.mean == pytest.approx(3)
    assert difference.low == pytest.approx(3 - half, rel=1e-9)
    assert difference.high == pytest.approx(3 + half, rel=1e-9)


def test_two_pairs_use_one_degree_of_freedom():
    """Differences 0 and 2: mean 1, standard deviation √2, standard error 1, t(0.975, 1) = 12.706205."""
    difference = paired_difference({0: 1.0, 1: 3.0}, {0: 1.0, 1: 1.0})
    assert difference.high == pytest.approx(1 + 12.706204736174694, rel=1e-9)
    assert difference.low == pytest.approx(1 - 12.706204736174694, rel=1e-9)


def test_one_pair_has_no_interval_and_none_no_difference():
    difference = paired_difference({0: 0.75, 1: 0.1}, {0: 0.5})
    assert (difference.mean, difference.low, difference.high, difference.num_pairs) == (0.25, None, None, 1)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_the_table_shows_them():
    runs = [
        *(make_run(f"kd-{seed}", seed=seed, accuracy=accuracy) for seed, accuracy in ((0, 0.8), (1, 0.9), (2, 1.0))),
        *(
            make_run(f"alone-{seed}", seed=seed, accuracy=accuracy, **{"optim.lr": 0.2})
            for seed, accuracy in ((1, 0.9), (0, 0.6), (3, 0.1))
        ),
        make_run("once", seed=3, accuracy=0.35, **{"optim.lr": 0.3}),
        make_run("other", seed=7, **{"optim.lr": 0.4}),
    ]
    comparison = compare_runs(runs, baseline="alone-0")
    assert comparison.baseline.name == "alone-1"
    assert cell(comparison, "test accuracy", "kd-0") == "0.9000 ± 0.1000"
    assert cell(comparison, "test accuracy", "once") == "0.3500"
    assert cell(comparison, "steps", "kd-0") == "6"
    # seeds 0 and 1: differences 0.2 and 0, standard error 0.1
    assert cell(comparison, "Δ test accuracy", "kd-0") == "+0.1000 [-1.1706, +1.3706]"
    assert cell(comparison, "Δ pairs of seeds", "kd-0") == "2"
    assert cell(comparison, "Δ test accuracy", "once") == "+0.2500"
    assert cell(comparison, "Δ pairs of seeds", "once") == "1"
    for column in ("alone-1", "other"):
        assert cell(comparison, "Δ test accuracy", column) == "-"
        assert cell(comparison, "Δ pairs of seeds", column) == "-"
    assert [warning for warning in comparison.warnings if "other" in warning and "common seed" in warning]
    assert not [row for row in table(compare_runs(runs))[1] if row[0].startswith("Δ")]


def test_counts_that_differ_have_one_decimal():
    runs = [make_run("a", seed=0), make_run("b", seed=1)]
    runs[1] = replace(runs[1], metrics={**runs[1].metrics, "best epoch": 4})
    assert cell(compare_runs(runs), "best epoch", "a") == "3.0 ± 1.4"


def test_an_unfinished_run_is_marked_and_left_out_of_means_and_pairs():
    runs = [make_run("a", seed=0, accuracy=0.8), make_run("b", seed=1, finished=False)]
    others = [make_run(f"c{seed}", seed=seed, accuracy=0.7, **{"optim.lr": 0.2}) for seed in (0, 1)]
    comparison = compare_runs([*runs, *others], baseline="c0")
    assert cell(comparison, "state", "a") == "seed 1 unfinished, left out"
    assert cell(comparison, "state", "c0") == "finished"
    assert cell(comparison, "validation accuracy", "a") == "0.5500"
    assert cell(comparison, "Δ validation accuracy", "a") == "+0.1000"
    assert "state" not in [row[0] for row in table(compare_runs(others))[1]]


def test_a_group_without_a_finished_run_shows_what_there_is_and_no_difference():
    started = make_run("a", accuracy=0.75, finished=False)
    comparison = compare_runs([started, make_run("b", **{"optim.lr": 0.2})], baseline="b")
    assert cell(comparison, "state", "a") == "unfinished"
    assert cell(comparison, "validation accuracy", "a") == "0.5000"
    assert cell(comparison, "test accuracy", "a") == "-"
    assert cell(comparison, "Δ validation accuracy", "a") == "-"
    assert comparison.warnings == ("No difference without a finished run of a common seed: a.",)
    assert compare_runs(comparison.runs, baseline="a").warnings == (
        "No difference without a finished run of a common seed: b.",
    )
    rows = [row[0] for row in table(comparison)[1]]
    metrics = [row for row in rows if row in comparison.metrics]
    assert metrics == ["validation accuracy", "test accuracy", "best epoch", "steps"]


# --- the baseline -----------------------------------------------------------------------------------------------------


def test_the_baseline_is_found_by_name_or_path_of_any_of_its_runs():
    runs = [make_run("kd"), make_run("a", seed=0, **{"optim.lr": 0.2}), make_run("b", seed=1, **{"optim.lr": 0.2})]
    for given in ("a", "b", "runs/b", "./runs/b/"):
        assert compare_runs(runs, baseline=given).baseline.name == "a"


def test_a_baseline_that_is_not_there_names_the_nearest():
    with pytest.raises(UserError, match=r"baseline alon is not among the runs. Did you mean alone\?"):
        compare_runs([make_run("kd"), make_run("alone", **{"optim.lr": 0.2})], baseline="alon")


def test_a_baseline_needs_another_recipe():
    with pytest.raises(UserError, match="nothing to set against it"):
        compare_runs([make_run("a", seed=0), make_run("b", seed=1)], baseline="a")


# --- files ------------------------------------------------------------------------------------------------------------


def test_csv_has_a_row_a_run_in_full_precision():
    third = 1 / 3
    runs = [
        make_run("a", seed=0, accuracy=third, **{"augment.crop_scale": [0.5, 1.0], "train.compile": True}),
        make_run("b", seed=1, finished=False, **{"train.compile": False, "optim.schedule": "step, then, none"}),
    ]
    first, second = csv.DictReader(io.StringIO(to_csv(compare_runs(runs))))
    assert first["run"] == "runs/a"
    assert (first["group"], first["seed"], first["finished"]) == ("a", "0", "true")
    assert float(first["test accuracy"]) == third
    assert first["augment.crop_scale"] == "[0.5, 1.0]"
    assert (first["train.compile"], second["train.compile"]) == ("true", "false")
    assert (first["optim.schedule"], second["optim.schedule"]) == ("", "step, then, none")
    assert (second["finished"], second["test accuracy"]) == ("false", "")
    assert "optim.lr" not in first


@pytest.mark.parametrize(
    ("task", "key", "values"),
    [
        ("masked-lm", "data.mask_probability", (0.15, 0.3)),
        ("causal-lm", "student.max_length", (32, 64)),
        ("causal-lm", "teacher.max_length", (32, 64)),
        ("causal-lm", "student.tokenizer.name", ("a", "b")),
        ("sentence-embedding", "teacher.name", ("a", "b")),
        ("image-embedding", "eval_data.name", ("a", "b")),
        ("text-classification", "data.text_pair_column", (None, "hypothesis")),
    ],
)
def test_what_a_run_is_evaluated_on_is_more_than_its_files(task, key, values):
    runs = [make_run(name, **{"task": task, key: value}) for name, value in zip("ab", values, strict=True)]
    (warning,) = compare_runs(runs).warnings
    assert f"evaluated on different data ({key})" in warning


def test_what_is_no_part_of_the_evaluation_is_no_warning():
    same = {"train.epochs": (1, 2), "data.labels_per_class": (None, 4), "teacher.name": ("a", "b")}
    for key, values in same.items():
        runs = [make_run(name, **{key: value}) for name, value in zip("ab", values, strict=True)]
        assert not compare_runs(runs).warnings, key


def test_students_that_read_their_samples_at_other_sizes_are_said_to():
    for key in ("student.image_size", "student.max_length"):
        (warning,) = compare_runs([make_run("a", **{key: 32}), make_run("b", **{key: 64})]).warnings
        assert f"at different sizes ({key})" in warning


def test_markdown_has_the_table_the_notes_and_the_picture():
    runs = [make_run("a|b", seed=0), make_run("c", seed=1), make_run("d", **{"data.name": "x"})]
    comparison = compare_runs(runs)
    lines = to_markdown(comparison, pictures=["bars.png", "curves.png"]).splitlines()
    assert lines[2:6] == [
        "| method | seeds | validation accuracy % | test accuracy % |",
        "| --- | ---: | ---: | ---: |",
        "| a\\|b | 0, 1 | 25.00 ± 0.00 | 50.00 ± 0.00 |",
        "| d | 0 | 25.00 | 50.00 |",
    ]
    assert lines[7:10] == ["| setting | a\\|b | d |", "| --- | --- | --- |", "| data.name | - | x |"]
    everything = lines[lines.index("## All settings and metrics") :]
    assert everything[2] == "|  | a\\|b | d |"
    assert everything[3] == "| --- | ---: | ---: |"
    assert "| test accuracy | 0.5000 ± 0.0000 | 0.5000 |" in lines
    assert [line for line in lines if line.startswith("- **Warning:** ") and "different data" in line]
    assert "- a|b: runs/a|b, runs/c" in lines
    assert "![bars](bars.png)" in lines
    assert "![curves](curves.png)" in lines


def test_json_is_strict_where_a_number_is_not_finite():
    runs = [make_run("a", accuracy=math.nan), make_run("b", accuracy=0.5, **{"optim.lr": 0.2})]
    values = to_json(compare_runs(runs, baseline="b"))
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    first, second = values["groups"]
    assert first["metrics"]["test accuracy"] == {"mean": None, "std": None, "num_runs": 1}
    assert second["metrics"]["test accuracy"]["mean"] == 0.5
    assert values["baseline"] == "b"
    assert second["differences"] == {}


# --- metrics.jsonl ----------------------------------------------------------------------------------------------------


def test_a_last_line_that_breaks_off_is_left_out(tmp_path):
    run = RunFolder(tmp_path)
    run.add_metrics("train", {"loss": 1.5})
    run.add_metrics("train", {"loss": 1.25})
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    for end in range(whole.index(b"\n") + 2, len(whole) - 1):
        file.write_bytes(whole[:end])
        assert [line["loss"] for line in run.read_metrics("train")] == [1.5], whole[:end]
    file.write_bytes(whole[:-1])  # nothing but the end of the line is missing
    assert [line["loss"] for line in run.read_metrics("train")] == [1.5, 1.25]


@pytest.mark.parametrize("damage", [b'{"event": "tra\n', b"\n", b"\xff\xfe\n", b'{"event": "tra{"event": "train"}\n'])
def test_any_other_damaged_line_is_named(tmp_path, damage):
    run = RunFolder(tmp_path)
    run.add_metrics("train", {"loss": 1.5})
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes() + damage)
    with pytest.raises(UserError, match=r"Line 2 of .*metrics\.jsonl is damaged"):
        run.read_metrics("train")
