"""What the options say of themselves is what is done with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcli.base.errors import UserError
from kdcli.base.tasks import TASKS
from kdcli.config.keys import (
    beside_the_recipe,
    check_domain,
    comparable,
    find_option,
    flatten_settings,
    options_of,
    refuse_differences,
)
from kdcli.config.parse import parse_config
from kdcli.config.recipes import _NAMED_SECTIONS
from kdcli.config.run import RunConfig

OPTIONS = options_of(RunConfig)
TASK_OF = {"image": "image-classification", "text": "text-classification"}
OTHER = {"image": "text", "text": "image"}


def config(**values):
    return parse_config({"teacher": "t", "student": "s", "data": "d", **values}, source="test")


def with_value(section, name, value):
    first, _, rest = name.partition(".")
    return section.model_copy(update={first: with_value(getattr(section, first), rest, value) if rest else value})


def said(read):
    return sorted(name for name, option in OPTIONS.items() if read(option))


SECTIONS = {"teacher", "student", "data", "train", ""}
LEAVES = [name for name in OPTIONS if name.rpartition(".")[0] in SECTIONS and not any(f"{name}." in o for o in OPTIONS)]


@pytest.mark.parametrize("name", [name for name in LEAVES if OPTIONS[name].says(lambda key: key.modality)])
def test_an_option_about_other_samples_is_refused(name):
    modality = OPTIONS[name].says(lambda key: key.modality)
    task = TASK_OF[OTHER[modality]]
    given = with_value(config(task=task), name, ("other",))
    with pytest.raises(UserError, match=rf"{name} is set, which is about {modality}s, but the task is {task}"):
        check_domain(given)


def test_a_section_about_other_samples_is_refused_as_one():
    with pytest.raises(UserError, match="augment is set, which is about images"):
        check_domain(config(task="text-classification", augment={"flip": 0}))
    with pytest.raises(UserError, match=r"student\.tokenizer is set, which is about texts"):
        check_domain(config(student={"name": "s", "tokenizer": "t"}))


@pytest.mark.parametrize("key", ["source", "tokenizer"])
@pytest.mark.parametrize("options", [{"pooling": "cls"}, {"prompt": "query: "}, {"image_size": 64}])
def test_what_a_student_is_made_of_may_have_any_options(key, options):
    """Runs of earlier versions have them."""
    check_domain(config(task="masked-lm", student={"name": "s", key: {"name": "t", **options}}))


@pytest.mark.parametrize("name", [n for n, o in OPTIONS.items() if o.says(lambda key: key.tasks)])
def test_an_option_of_some_tasks_says_why_others_have_none(name):
    option = OPTIONS[name]
    assert option.says(lambda key: key.why_not)
    reads_it, modality = option.says(lambda key: key.tasks), option.says(lambda key: key.modality)
    tasks = [facts for facts in TASKS.values() if modality in (None, facts.modality)]
    assert 0 < sum(map(reads_it, tasks)) < len(tasks)


def test_what_is_said_of_a_section_goes_first():
    """Where the data lie may change, but not which images measure an embedding."""
    for name in ("data.name", "data.root"):
        assert OPTIONS[name].says(lambda key: key.may_change)
        assert not OPTIONS[f"eval_data.{name.partition('.')[2]}"].says(lambda key: key.may_change)
    facts = TASKS["image-embedding"]
    assert not OPTIONS["data.train_images"].settles_evaluation(facts)
    assert OPTIONS["eval_data.train_images"].settles_evaluation(facts)
    assert OPTIONS["augment.flip"].says(lambda key: key.modality) == "image"


def test_lists_and_what_no_option_is_called_stand_in_their_sections():
    assert find_option("train.track.0").name == "train.track"
    assert find_option("data.nothing").name == "data"
    assert find_option("nothing.at.all") is None


@pytest.mark.parametrize("name", said(lambda option: option.says(lambda key: key.may_change)))
def test_a_run_goes_on_with_another_value_of_what_may_change(name, tmp_path):
    now = config(episodes={"ways": 2, "shots": 1})
    saved = comparable(now)
    refuse_differences(saved | {name: "other"}, now, Path("config.yaml"))
    with pytest.raises(UserError, match=r"optim\.lr"):
        refuse_differences(saved | {name: "other", "optim.lr": 1}, now, Path("config.yaml"))


def test_what_is_beside_the_recipe_is_no_setting():
    assert not beside_the_recipe() & flatten_settings(config()).keys()
    assert {"seed", "output", "train.device"} < beside_the_recipe()
    assert {"data.name", "train.epochs", "optim.lr"} < flatten_settings(config()).keys()


@pytest.mark.parametrize(
    "name", ["text_column", "mask_probability", "labelled_share", "unlabelled", "workers", "strict", "train_texts"]
)
def test_labelled_images_for_measuring_take_no_options_of_training(name):
    given = config(task="image-embedding", eval_data="d")
    check_domain(with_value(given, "eval_data.test_fraction", 0.5))
    with pytest.raises(UserError, match=rf"eval_data\.{name} has no effect"):
        check_domain(with_value(given, f"eval_data.{name}", ("other",)))


def test_recipes_know_which_sections_may_be_written_as_a_name():
    """They are listed there once more, so that recipes are listed and shown without the config's classes."""
    takes_name = {name.split(".")[-2] for name in OPTIONS if name.endswith(".name")}
    assert takes_name == {*_NAMED_SECTIONS}
