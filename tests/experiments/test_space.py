"""What is searched by ``kdcli tune``: the plan's own keys, those that are asked for, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from kdcli.base.errors import UserError
from kdcli.config.parse import parse_config
from kdcli.experiments.space import Choices, Range, SearchSpace, Tuned, search_space
from kdcli.experiments.study import GivenUp, Watch, begin_with, check_optuna, draw, open_study
from kdcli.experiments.tune import _settled
from kdcli.training.prepare import prepare_job


@pytest.fixture(scope="module")
def spaces(photos):
    """A space without keys of a plan, and of methods that are written out."""

    def make(**changes: object) -> SearchSpace:
        values = {"teacher": "random:test_vit", "student": {"name": "test_resnet", "image_size": 32}} | changes
        return _settled(prepare_job(parse_config(values | {"data": str(photos)}, source="test")))

    methods = [{"method": "supervised"}, {"method": "fitnet", "projector": "linear"}, {"method": "rkd_distance"}]
    return make(), make(methods=methods)


def test_the_plans_own_keys(spaces):
    of_plan, written = (search_space(space, []) for space in spaces)
    found = {tuned.key: tuned for tuned in of_plan.tuned}
    assert list(found) == ["optim.lr", "methods.projection.weight", "projector", "methods.projection.teacher_tap"]
    assert found["optim.lr"].space == Range(0.0002, 0.005, is_log=True)
    weight = found["methods.projection.weight"]
    assert (weight.space, weight.own) == (Range(0.01, 1.0, is_log=True), 0.1)
    assert (str(found["projector"].space), found["projector"].own) == ("linear, mlp, orthogonal, inverted", "inverted")
    layers = found["methods.projection.teacher_tap"].space
    assert isinstance(layers, Choices)
    assert "pooled" in layers.values
    assert len(layers.values) > 2
    # a weight that is no ratio has a wider range, and what begins all has none
    assert [(tuned.key, str(tuned.space)) for tuned in written.tuned] == [
        ("optim.lr", "0.0002..0.005:log"),
        ("methods.fitnet.weight", "3.33333..3000:log"),
        ("methods.fitnet.projector", "linear, mlp, orthogonal, inverted"),
        ("methods.rkd_distance.weight", "0.833333..750:log"),
    ]


def test_keys_that_are_asked_for_take_the_place_of_the_plans_or_stand_beside_them(spaces):
    space, _ = spaces
    (batch,) = search_space(space, ["train.batch_size=32,64"]).tuned
    assert batch == Tuned("train.batch_size", Choices({"32": 32, "64": 64}), None)
    (whole,) = search_space(space, ["train.batch_size=16..200"]).tuned
    assert whole == Tuned("train.batch_size", Range(16, 200, is_whole=True), 128)
    assert whole.value_of(32) == 32
    (rate,) = search_space(space, ["optim.lr=1e-4..1e-2:log"]).tuned
    assert rate == Tuned("optim.lr", Range(1e-4, 1e-2, is_log=True), 1e-3)
    assert rate.value_of(0.0012345678) == 0.001235
    assert rate.value_of(1e-2 - 1e-9) == 1e-2
    both = search_space(space, ["plan", "optim.lr=0.1,0.2", "augment.mixup=0..0.4"])
    assert [tuned.key for tuned in both.tuned] == [
        *("methods.projection.weight", "projector", "methods.projection.teacher_tap", "optim.lr", "augment.mixup")
    ]


def test_the_config_of_a_choice_is_what_the_plan_makes_of_it(spaces):
    space, written = spaces
    config = space.config_of({"projector": "orthogonal", "methods.projection.weight": 0.7, "optim.lr": 0.02})
    (projection,) = (options for options in config.methods or () if options.method == "projection")
    assert projection.shown()["weight"] == "0.7"
    assert (projection.projector_name, projection.lr_scale) == ("orthogonal", 1.0)
    assert projection.normalize == "layer_norm"  # the orthogonal one's, where the plan would take inverted
    assert config.optim.lr == 0.02
    config = written.config_of({"methods.fitnet.projector": "inverted", "methods.2.weight": 3})
    _, fitnet, relational = config.methods or ()
    assert (fitnet.projector_name, relational.weight) == ("inverted", 3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["optim.lr"], "is not of the form KEY=V1,V2 or KEY=LOW..HIGH"),
        (["optm.lr=1,2"], "Did you mean optim.lr"),
        (["optim.lr=1..0.1"], "the first end is not below the second"),
        (["optim.lr=0..1:log"], "both ends are above 0"),
        (["optim.lr=0..1"], "input should be greater than 0, got 0"),
        (["optim.lr=a..b"], "the ends of a range are numbers"),
        (["optim.lr=1,1"], "gives a value twice"),
        (["optim.lr=1,2", "optim.lr=3,4"], "is given 2 times"),
        (["train.batch_size=16..32.5"], "takes whole numbers"),
        (["train.epochs=1,2"], "is not for trials to change"),
        (["teacher.name=a,b"], "is not for trials to change"),
        (["data.seed=1,2"], "there is no such key"),
        (["methods.projectoin.weight=1,2"], "Did you mean projection"),
        (["methods.projection=1,2"], "names no option of a method"),
        (["methods.projection.weigth=1,2"], "Did you mean weight"),
        (["methods.7.weight=1,2"], "the plan has no method 7"),
        (["methods.projection.teacher_tap=pooled,blocks.77"], "has no layer 'blocks.77'"),
        (["projector=orthogonl,linear"], "Did you mean orthogonal"),
    ],
)
def test_what_is_refused(spaces, asked, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        search_space(spaces[0], asked)


SPACE = (Tuned("a", Range(0.001, 1.0, is_log=True), 0.1), Tuned("b", Choices({"x": 1, "y": 2}), "x"))


def drawn(folder: Path, count: int, *, seed: int = 0) -> list[dict[str, float | str]]:
    """Draw trials until there are ``count``, and tell a value of each."""
    check_optuna()
    study = open_study(folder, warm_up=1)
    begin_with(study, SPACE)
    while sum(trial.state.is_finished() for trial in study.trials) < count:
        number, values = draw(study, SPACE, seed=seed)
        study.tell(number, float(values["a"]))
    return [trial.params for trial in study.trials]


def test_what_is_drawn_depends_on_the_seed_and_the_trials_before_alone(tmp_path):
    for name in ("whole", "parts", "other"):
        (tmp_path / name).mkdir()
    whole = drawn(tmp_path / "whole", 14)
    assert whole[0] == {"a": 0.1, "b": "x"}  # the recipe as it is
    assert len({values["a"] for values in whole}) == 14
    drawn(tmp_path / "parts", 5)
    assert drawn(tmp_path / "parts", 14) == whole
    assert drawn(tmp_path / "other", 3, seed=1)[1:] != whole[1:3]


def test_a_trial_is_given_up_where_half_of_the_others_were_better(tmp_path):
    check_optuna()
    study = open_study(tmp_path, warm_up=2)
    for value in (0.5, 0.6, 0.7, 0.8, 0.9):
        number, _ = draw(study, SPACE, seed=0)
        watch = Watch(tmp_path, number, "accuracy", 2)
        for epoch in (1, 2, 3):
            watch("validated", {"epoch": epoch, "accuracy": value})
        study.tell(number, value)
    number, _ = draw(study, SPACE, seed=0)
    watch = pickle.loads(pickle.dumps(Watch(tmp_path, number, "accuracy", 2)))  # as a worker gets it
    watch("logged", {"epoch": 3, "accuracy": 0.0})
    watch("validated", {"epoch": 3, "ncm_accuracy": 0.0})  # of an earlier stage
    watch("validated", {"epoch": 1, "accuracy": 0.1})  # too early
    watch("validated", {"epoch": 2, "accuracy": 0.71})  # better than half
    watch("validated", {"epoch": 2, "accuracy": 0.71})  # a resumed run comes by it again
    assert study.trials[number].intermediate_values == {1: 0.1, 2: 0.71}
    watch("validated", {"epoch": 3, "accuracy": 0.1})  # its best is better than half
    other, _ = draw(study, SPACE, seed=0)
    with pytest.raises(GivenUp):
        Watch(tmp_path, other, "accuracy", 2)("validated", {"epoch": 3, "accuracy": 0.69})


def test_a_damaged_journal_is_told(tmp_path):
    drawn(tmp_path, 1)
    file = tmp_path / "study.jsonl"
    file.write_text("not json\n" + file.read_text())
    with pytest.raises(UserError, match="is damaged"):
        open_study(tmp_path, warm_up=1)
