"""Every key is told with its values, default and text, from the options themselves; and found by what it is called elsewhere."""

from __future__ import annotations

import pytest
import yaml

from kdcli.base.errors import UserError
from kdcli.base.tasks import TASKS
from kdcli.config.described import choices, describe_keys, json_schema, texts_of
from kdcli.config.keys import options_of
from kdcli.config.methods import METHODS
from kdcli.config.methods.words import OTHER_NAMES, other_method_names
from kdcli.config.parse import parse_config
from kdcli.config.recipes import list_recipes
from kdcli.config.run import RunConfig
from kdcli.config.training import TrainConfig
from kdcli.config.words import OTHER_WORDS, keys_meant, shown

KEYS = {key.name: key for key in describe_keys()}


def test_every_key_is_told_and_has_a_text():
    copies = ("student.source.", "student.tokenizer.", "eval_data.", "embedding.optim.")
    assert {name for name in options_of(RunConfig) if not name.startswith(copies)} <= KEYS.keys()
    for method, section in METHODS.items():
        assert {f"methods.{method}.{key}" for key in section.model_fields if key != "method"} <= KEYS.keys()
    assert [name for name, key in KEYS.items() if not key.text] == []


def test_a_key_is_told_as_its_option_is():
    lr, seed, flip = KEYS["optim.lr"], KEYS["seed"], KEYS["augment.flip"]
    assert (lr.values, lr.default, lr.tasks) == ("number above 0", "0.001", ())
    assert seed.values == "whole number at least 0", "the machine's end tells nothing"
    assert flip.values == "number at least 0 and at most 1"
    assert set(flip.tasks) == {task.name for task in TASKS.values() if task.reads_images}
    assert KEYS["optim.schedule"].choices[0] == KEYS["optim.schedule"].default
    assert KEYS["data.ignore_label"].values.startswith("whole number at least 0 and at most 65535 or list of")
    assert KEYS["student.source"].is_section
    assert "It has the keys of teacher." in KEYS["student.source"].text
    assert KEYS["methods.projection.student_tap"].default == "pooled"
    assert "Strength" in texts_of(RunConfig.model_fields["augment"].annotation)["color_jitter"]
    assert choices("train.compile") == ("true", "false")
    assert choices("no.such") == ()


def test_schema_has_what_recipes_are_written_with():
    """Without a validator for it: every key of every recipe is a property, and what is read in several ways may be so."""
    schema = json_schema()

    def check(node, values, place):
        for key, value in values.items():
            assert key in node["properties"], f"{place}: {key}"
            parts = [node["properties"][key], *node["properties"][key].get("anyOf", ())]
            inner = [schema["$defs"][part["$ref"].rpartition("/")[2]] for part in parts if "$ref" in part]
            if isinstance(value, dict) and inner:
                check(inner[0], value, place)
            if isinstance(value, str) and inner:
                assert {"type": "string"} in parts, f"{place}: {key} may be a name alone"

    for recipe in list_recipes():
        check(schema, yaml.safe_load(recipe.path.read_text()), recipe.name)
    listed = next(part for part in schema["properties"]["methods"]["anyOf"] if part.get("type") == "array")
    assert len(listed["items"]["anyOf"]) >= len(METHODS)
    assert schema["$defs"][TrainConfig.__name__]["properties"]["epochs"]["description"]
    assert {"type": "integer"} in schema["$defs"]["TrainConfig"]["properties"]["checkpoint_every"]["anyOf"]
    assert "required" not in schema["$defs"]["DataConfig"], "a recipe may extend another"


def test_words_of_others_are_none_of_ours_and_mean_keys_that_there_are():
    last = {key for section in METHODS.values() for key in section.model_fields}
    words = [word for words in OTHER_WORDS for word in words.split()]
    assert len(words) == len(set(words))
    for keys in OTHER_WORDS.values():
        assert {key for key in keys.split() if key not in options_of(RunConfig)} <= last
    for word in words:
        assert keys_meant(word, fuzzy=False), word
    assert not {*choices("method")} & OTHER_NAMES.keys()
    assert {name for names in OTHER_NAMES.values() for name in names} <= {*choices("method")}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("learning_rate", "optim.lr"),
        ("--learning-rate", "optim.lr"),
        ("img_size", "student.image_size, teacher.image_size"),
        ("T", "temperature (of logit_kd, dkd and 9 other methods)"),
        ("batch_sise", "train.batch_size"),
        ("early_stop", "train.patience"),
        ("nothing_like_it", ""),
        ("x" * 1000, ""),
    ],
)
def test_what_a_word_means(word, expected):
    assert shown(keys_meant(word)) == expected


def test_alpha_is_a_weight_too():
    assert {"feature_weight", "methods.dkd.alpha", "methods.logit_kd.weight"} <= set(keys_meant("alpha"))
    assert other_method_names("KD-loss") == ("logit_kd",)
    assert other_method_names("rkd") == ("rkd_distance", "rkd_angle")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"train": {"learning_rate": 1}}, "train.learning_rate: unknown key. Did you mean optim.lr?"),
        ({"methods": [{"method": "logit_kd", "T": 4}]}, "methods.0.T: unknown key. Did you mean temperature?"),
        ({"methods": [{"method": "logit_kd", "alpha": 4}]}, "methods.0.alpha: unknown key. Did you mean weight?"),
        ({"optim": {"batchsize": 4}}, "optim.batchsize: unknown key. Did you mean train.batch_size?"),
        ({"method": "kd"}, "Did you mean logit_kd?"),
        ({"methods": [{"method": "hint"}]}, "Did you mean fitnet?"),
        ({"train": {"epochs": "ten"}}, "train.epochs: a whole number is wanted, got 'ten'."),
        ({"optim": {"lr": "fast"}}, "optim.lr: a number is wanted, got 'fast'."),
        ({"test": "perhaps"}, "test: true or false is wanted, got 'perhaps'."),
        ({"optim": 3}, "optim: a mapping of keys is wanted, got 3."),
    ],
)
def test_messages_say_what_is_meant(values, told):
    with pytest.raises(UserError) as error:
        parse_config({"teacher": "t", "student": "s", "data": "d", **values}, source="test")
    assert told in error.value.message
