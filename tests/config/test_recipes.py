import os

import pytest

from kdcli.base.errors import UserError
from kdcli.config.recipes import (
    apply_overrides,
    copy_recipe,
    find_recipe,
    list_recipes,
    load_recipe,
    load_yaml,
    recipe_text,
)


def test_overrides_set_nested_keys_and_read_values_as_yaml():
    values = apply_overrides(
        {"teacher": "resnet50", "train": {"epochs": 3}}, ["train.epochs=5", "optim.lr=0.1", "seed=7"]
    )
    assert values == {"teacher": "resnet50", "train": {"epochs": 5}, "optim": {"lr": 0.1}, "seed": 7}


def test_override_inside_a_section_given_as_a_name():
    assert apply_overrides({"data": "photos"}, ["data.strict=true"]) == {"data": {"name": "photos", "strict": True}}


def test_override_inside_a_list():
    values = {"methods": [{"method": "supervised"}, {"method": "logit_kd", "weight": 1}]}
    assert apply_overrides(values, ["methods.1.weight=2"])["methods"][1] == {"method": "logit_kd", "weight": 2}
    assert values["methods"][1]["weight"] == 1, "the values given are not changed"


@pytest.mark.parametrize(
    "text", ["epochs", "=3", "train.epochs=[", "seed.deep=1", "methods.5.weight=1", "methods.x.weight=1"]
)
def test_bad_overrides_are_user_errors(text):
    with pytest.raises(UserError):
        apply_overrides({"seed": 1, "methods": [{"method": "supervised"}]}, [text])


def test_a_recipe_is_found_by_full_name_last_part_and_file(tmp_path):
    names = {recipe.name: recipe.path for recipe in list_recipes()}
    assert find_recipe("quickstart") == names["quickstart"]
    nested = "image-classification/vkd-deit-ti"
    assert find_recipe(nested) == find_recipe(nested.rpartition("/")[2]) == names[nested]
    mine = copy_recipe("quickstart", tmp_path / "mine.yaml")
    assert find_recipe(str(mine)) == mine
    assert mine.read_bytes() == names["quickstart"].read_bytes()


def test_every_recipe_describes_itself():
    assert all(recipe.description for recipe in list_recipes())


def test_a_recipe_extends_another(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "base.yaml").write_text(
        "teacher: {name: a, weights: w.pth}\nstudent: s\ntrain: {epochs: 3, ema: 0.9}\nseed: 1\n"
    )
    (tmp_path / "middle.yaml").write_text("extends: base.yaml\nseed: 2\nmethods: [{method: supervised}]\n")
    own = tmp_path / "deep" / "own.yaml"
    own.write_text(
        "# what it is for\nextends: ../middle.yaml\nteacher: b\nstudent: {pretrained: true}\ntrain: {epochs: 5}\n"
    )
    assert load_recipe(own) == {
        "teacher": "b",
        "student": {"name": "s", "pretrained": True},
        "train": {"epochs": 5, "ema": 0.9},
        "seed": 2,
        "methods": [{"method": "supervised"}],
    }
    assert load_recipe(tmp_path / "middle.yaml")["teacher"] == {"name": "a", "weights": "w.pth"}
    copy = copy_recipe(str(own), tmp_path / "copy.yaml")
    assert load_yaml(copy) == load_recipe(own)
    assert copy.read_text().startswith("# what it is for\n")
    assert recipe_text(tmp_path / "base.yaml") == (tmp_path / "base.yaml").read_text()


def test_a_teacher_with_a_name_leaves_the_extended_one_behind(tmp_path):
    (tmp_path / "base.yaml").write_text("teacher: {name: a, weights: w.pth, image_size: 48}\n")
    own = tmp_path / "own.yaml"
    own.write_text("extends: base.yaml\nteacher: {name: b}\n")
    assert load_recipe(own) == {"teacher": {"name": "b"}}
    own.write_text("extends: base.yaml\nteacher: {image_size: 64}\n")
    assert load_recipe(own)["teacher"] == {"name": "a", "weights": "w.pth", "image_size": 64}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("missing.yaml", "no such file"),
        ("3", "a file's name is wanted"),
        ("own.yaml", "too many"),
        ("base", "no such file"),
    ],
)
def test_what_can_not_be_extended(tmp_path, text, message):
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: {text}\n")
    with pytest.raises(UserError, match=message):
        load_recipe(own)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean quickstart"):
        find_recipe("quikstart")
    with pytest.raises(UserError, match=r"no recipe file missing\.yaml"):
        find_recipe("missing.yaml")


@pytest.mark.parametrize("name", ["pipe.yaml", "pipe"])
def test_a_pipe_is_no_recipe(tmp_path, name):
    """A recipe is read more than once."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is a pipe, socket or device, not a recipe file"):
        load_recipe(find_recipe(str(tmp_path / name)))


def test_copy_never_overwrites(tmp_path):
    copy_recipe("quickstart", tmp_path)
    with pytest.raises(UserError, match="exists already"):
        copy_recipe("quickstart", tmp_path)
    with pytest.raises(UserError, match="Can't write"):
        copy_recipe("quickstart", tmp_path / "no" / "such.yaml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2\n", "given twice"),
        ("[1, 2]", "not a mapping"),
        ("1: 2", "not a mapping"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("? [a]\n: 1", "not"),
        ("\x00", "not valid YAML"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, problem):
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=problem):
        load_yaml(file)
