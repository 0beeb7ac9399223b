"""``kdcli config``, unknown options, and what the shell completes."""

from __future__ import annotations

import json

import pytest
import typer.main

from kdcli.cli import complete
from kdcli.cli.app import app
from kdcli.cli.distill import distill
from kdcli.cli.sets import keys_of
from kdcli.config.described import choices


def test_keys_are_found_by_name_by_other_words_and_by_what_they_do(run_cli):
    assert run_cli("config", "keys", "learning-rate").stdout.startswith("optim.lr = 0.001  (number above 0)  --lr\n")
    depth = [line for line in run_cli("config", "keys", "depth").stdout.splitlines() if not line.startswith(" ")]
    assert {line.partition(" ")[0] for line in depth} >= {"teacher.depth", "data.max_depth", "data.depth_crop"}
    kd = run_cli("config", "keys", "kd").stdout
    assert kd.startswith("methods.logit_kd\n")
    assert "methods.logit_kd.temperature = 1" in kd
    assert "RandAugment" in run_cli("config", "keys", "TrivialAugmentWide").stdout
    both = run_cli("config", "keys", "optim", "rate").stdout
    assert "optim.decay_rate" in both
    assert "optim.momentum" not in both
    refused = run_cli("config", "keys", "xzqw")
    assert refused.exit_code == 2
    assert "No key is called or about 'xzqw'" in refused.stderr


def test_keys_of_a_task_as_json(run_cli):
    keys = {key["key"]: key for key in json.loads(run_cli("config", "keys", "--task", "masked-lm", "--json").stdout)}
    assert "augment.flip" not in keys
    assert keys["data.mask_probability"]["tasks"] == ["masked-lm"]
    assert keys["train.epochs"]["option"] == "--epochs"
    assert keys["optim.schedule"]["choices"][0] == "cosine"
    assert run_cli("config", "keys", "--task", "masked").exit_code == 2


def test_check_tells_what_a_recipe_sets_and_every_problem(run_cli, tmp_path):
    told = run_cli("config", "check", "quickstart", "--set", "optim.lr=0.5").stdout
    assert "quickstart.yaml is a valid recipe for the task image-classification" in told
    assert "  optim.lr = 0.5\n" in told
    (tmp_path / "mine.yaml").write_text("teacher: t\nstudent: s\ndata: d\noptim: {learning_rate: 1}\nepoch: 3\n")
    wrong = run_cli("config", "check", "mine.yaml")
    assert wrong.exit_code == 2
    assert "optim.learning_rate: unknown key. Did you mean lr?" in wrong.stderr
    assert "epoch: unknown key. Did you mean train.epochs?" in wrong.stderr
    (tmp_path / "texts.yaml").write_text("task: masked-lm\nteacher: t\nstudent: s\ndata: d\naugment: {flip: 0}\n")
    assert "augment is set, which is about images" in run_cli("config", "check", "texts.yaml").stderr
    whole = json.loads(run_cli("config", "check", "quickstart", "--json").stdout)
    assert whole["train"]["keep_checkpoints"] == 2


def test_the_schema_is_printed(run_cli):
    assert json.loads(run_cli("config", "schema").stdout)["title"] == "A recipe of kdcli"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["distill", "--learning-rate", "3"], "has no option '--learning-rate'. Did you mean --lr?"),
        (["distill", "--wd", "0.1"], "Did you mean --set optim.weight_decay=0.1?"),
        (["distill", "--kd"], "Did you mean --method logit_kd?"),
        (["distill", "--T", "4"], "--set 'methods=[{method: supervised}, {method: logit_kd, temperature: 4}]'"),
        (["distill", "--epoch=3"], "Did you mean --epochs?"),
        (["sweep", "--bs", "3"], "Did you mean --set train.batch_size=3?"),
        (["evaluate", "--bs", "3"], "Did you mean --batch-size?"),
        (["evaluate", "--text-field", "x"], "Did you mean --set data.text_column=x?"),
        (["models", "search", "--max-parms", "3"], "Did you mean --max-params"),
        (["distill", "-x"], "has no option '-x'"),
        (["distill", "--epochs", "ten"], "--epochs can't be 'ten'.\nHint: Give a whole number."),
        (["distill", "--lr=fast"], "--lr can't be 'fast'.\nHint: Give a number."),
        (["evaluate", "x", "--show", "65"], "--show can't be '65'.\nHint: Give a whole number from 0 to 64."),
        (["evaluate", "x", "--batch-size", "0"], "--batch-size can't be '0'.\nHint: Give a whole number from 1 on."),
    ],
)
def test_what_is_meant_by_a_wrong_option(run_cli, arguments, told):
    exit_code, _, stderr = run_cli(*arguments)
    assert exit_code == 2
    assert told in stderr


def commands():
    for name, command in typer.main.get_command(app).commands.items():
        for inner_name, inner in getattr(command, "commands", {"": command}).items():
            yield f"{name} {inner_name}".strip(), inner


def complete_in(param, incomplete=""):
    return [item.value for item in param.shell_complete(None, incomplete)]


def test_options_with_known_values_complete_them():
    params = {param.name: param for name, command in commands() if name == "distill" for param in command.params}
    for name, key in keys_of(distill).items():
        known = [value for value in choices(key) if value not in ("true", "false")]
        assert not known or set(complete_in(params[name])) >= set(known), name
    known = {"task", "device", "split", "sort", "features", "format_", "log_format", "run", "runs", "recipe"}
    for name, command in commands():
        for param in command.params:
            if param.name in known and param.name != "runs":
                assert param._custom_shell_complete is not None, f"{name} {param.name}"


def test_what_is_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "mine.yaml").touch()
    assert complete.runs("") == ["runs/mine/"]
    assert complete.recipes("m") == ["mine.yaml"]
    assert complete.recipes("quick") == ["quickstart"]
    assert complete.settings("optim.sch") == [name for name in complete.settings("") if name]
    assert "optim.schedule=cosine" in complete.settings("optim.schedule=c")
    assert set(complete.data("demo:s")) == {"demo:scenes", "demo:scenes-edges"}
    assert complete.methods("rkd") == ["rkd_distance", "rkd_angle"]
    assert complete.models("resnet") == []
    complete.remember_models("image-classification", ["resnet18", "vit"])
    assert complete.models("resnet") == ["resnet18"]
    assert "train.epochs" in complete.keys("train.")
    assert complete.tasks("image-e") == ["image-embedding"]
    (tmp_path / "cache" / "kdcli" / "model-names.json").write_text("[")
    assert complete.models("resnet") == []


def test_helps_list_the_values(run_cli):
    told = "".join(run_cli("distill", "--help").stdout.replace("│", "").split())
    for key in keys_of(distill).values():
        if key != "method":
            assert [
                value for value in choices(key) if value not in ("true", "false", *told) and value not in told
            ] == []
