"""What plan and documents say of the bench of pairs is what its results say."""

import importlib
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from kdcli.config.methods.defaults import CHOICES, OTHER_CLASSES, SEEN

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "recipes" / "bench"
RELATIONS = {"same": "same", "classes": OTHER_CLASSES, "task": "cross", "random": "random", "none": "none"}
"""The bench's word -> the plan's."""


@pytest.fixture
def benchmark(monkeypatch):
    """A function that imports a program by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def pairs(benchmark):
    return benchmark("pairs")


def test_the_plan_says_what_was_seen(pairs):
    found = pairs.read(BENCH)
    means = defaultdict(list)
    for title, setting in pairs.settings(Path("data"), Path("work")).items():
        seeds = {seed for name, arm, seed in found if (name, arm) == (title, "plan")}
        seeds &= {seed for name, arm, seed in found if (name, arm) == (title, "alone")}
        differences = [found[title, "plan", seed] - found[title, "alone", seed] for seed in seeds]
        means[RELATIONS[setting.relation]].append(statistics.mean(differences))
    assert means.keys() == {*SEEN, "none"}
    assert max(means.pop("none")) < -0.5, "why the plan adds nothing where there is no teacher"
    for relation, seen in SEEN.items():
        assert seen.settings == len(means[relation])
        for said, mean in ((seen.lowest, min(means[relation])), (seen.highest, max(means[relation]))):
            assert abs(said - mean) <= 0.0501, f"{relation}: {mean}"


def test_the_table_is_that_of_the_results(pairs):
    rows = [line.split("|")[1:8] for line in pairs.table(Path("data"), BENCH) if line.startswith("| dev |")]
    rows += [line.split("|")[1:8] for line in pairs.table(Path("data"), BENCH) if line.startswith("| held out |")]
    text = (BENCH / "README.md").read_text()
    assert len(rows) == 16
    assert [row for row in rows if f"|{'|'.join(row)}|" not in text] == []


def test_the_weights_are_those_that_were_tried(benchmark):
    weights = benchmark("weights")
    text = (BENCH / "README.md").read_text()
    lines = list(weights.table(BENCH))
    assert len(lines) == 2 + len(weights.ARMS) - 1
    assert [line for line in lines if line not in text] == []
    means = [float(line.split("|")[-2]) for line in lines[2:]]
    assert max(map(abs, means)) <= 0.5
    ratios = [
        loss["weight"] for _, loss in weights.ARMS.values() if loss is not None and loss["weighting"] == "gradient"
    ]
    assert CHOICES["spectral_regularization"].options.weight == min(ratios)
