"""Names, seeds and grids of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcli.experiments.variants import find_recipes, make_variants, parse_seeds, parse_vary, safe_name

RECIPE = "teacher: none\nstudent: test_resnet\ndata: demo:digits\nseed: 7\noutput: elsewhere\n"


def write(file: Path, text: str = RECIPE) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(
    ("text", "seeds"), [("1", (0,)), ("3", (0, 1, 2)), ("3,7,9", (3, 7, 9)), ("3,", (3,)), ("5, 2", (5, 2))]
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


def test_values_are_yaml_parted_by_commas():
    assert parse_vary(["a.b=1,2.5,x", "c=[1, 2],[3]", 'd="p,q",null,random:test_vit']) == {
        "a.b": [1, 2.5, "x"],
        "c": [[1, 2], [3]],
        "d": ["p,q", None, "random:test_vit"],
    }


def test_recipes_of_one_name_are_told_apart_by_their_folders(tmp_path):
    names = [write(tmp_path / name) for name in ("a/x/kd.yaml", "b/x/kd.yaml", "b/y/kd.yaml", "b/y/other.yaml")]
    assert list(find_recipes(names)) == ["a-x-kd", "b-x-kd", "y-kd", "other"]
    first, second = find_recipes([write(tmp_path / "kd.yaml"), write(tmp_path / "kd.yml")])
    assert first != second
    assert first.startswith("kd-")
    joined = find_recipes(
        [write(tmp_path / "p-q/r/s.yaml"), write(tmp_path / "p/q-r/s.yaml"), write(tmp_path / "r-s.yaml")]
    )
    assert len(joined) == 3


def test_a_folder_stands_for_its_recipes_by_name(tmp_path):
    for name in ("b.yaml", "a.yaml", "_base.yaml", "note.txt", "below/c.yaml"):
        write(tmp_path / name)
    assert find_recipes([str(tmp_path)]) == {"a": tmp_path / "a.yaml", "b": tmp_path / "b.yaml"}


def test_a_grid_has_every_choice_and_the_sweeps_own_keys_are_cleared(tmp_path):
    variants = make_variants(
        {"kd": Path(write(tmp_path / "kd.yaml"))},
        overrides=["train.epochs=3"],
        vary={"optim.lr": [0.1, 0.2], "teacher": ["random:test_vit", "none"]},
        no_test=True,
        num_seeds=1,
    )
    assert [variant.name for variant in variants] == [
        safe_name("kd-optim.lr=0.1-teacher=random:test_vit"),
        "kd-optim.lr=0.1-teacher=none",
        safe_name("kd-optim.lr=0.2-teacher=random:test_vit"),
        "kd-optim.lr=0.2-teacher=none",
    ]
    assert [(v.config.optim.lr, v.config.teacher.name) for v in variants] == [
        (0.1, "random:test_vit"),
        (0.1, "none"),
        (0.2, "random:test_vit"),
        (0.2, "none"),
    ]
    for variant in variants:
        config = variant.config
        assert (config.seed, config.output, config.test, config.train.num_processes) == (0, None, False, 1)
        assert config.train.epochs == 3
        assert variant.recipe == "kd"


def test_names_are_safe_and_differ_where_the_texts_do():
    assert safe_name("kd-optim.lr=0.1") == "kd-optim.lr=0.1"
    texts = ["a/b", "a:b", "a-b", "../a", "a" * 300, "a" * 301, "", "-", ".", "..", "é ü", "a\nb", "-a"]
    names = [safe_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    for name in names:
        assert name
        assert "/" not in name
        assert name[0] not in "-."
        assert len(name.encode()) <= 200
