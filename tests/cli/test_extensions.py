"""Models, tasks, data and methods of other packages, by entry points: the documented example, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import timm
import yaml
from safetensors.torch import save_file
from timm.models.resnet import BasicBlock, ResNet

pytestmark = pytest.mark.usefixtures("few_digits")

EXAMPLE = Path(__file__).parents[1] / "extension"
OPTIONS = ("--epochs", "1", "--batch-size", "16", "--device", "cpu", "--set", "data.workers=0")
STUDENT = "toy:resnet?channels=[8,8,8,16]"


@pytest.fixture(scope="module")
def site(install_package):
    """The example, installed by pip into a folder of its own, without a network."""
    return install_package(EXAMPLE)


@pytest.fixture
def toy(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site))


@pytest.fixture(scope="module")
def toy_run(site, tmp_path_factory, run_cli_in):
    """A finished run with the example's model (both roles), task, data and method."""
    cwd = tmp_path_factory.mktemp("toy")
    models = ("--teacher", "random:toy:resnet", "--student", STUDENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        others = ("--data", "toy:5", "--task", "toy_unsure", "--method", "toy_correlation")
        outcome = run_cli_in("distill", *models, *others, *OPTIONS, "--output", "run", cwd=cwd)
    assert outcome.exit_code == 0, outcome.stderr
    return cwd / "run", outcome


@pytest.fixture
def install(tmp_path, monkeypatch):
    """``install("package", {"kdcli.data": {"name": "module"}}, "code")``: a made-up package on the path."""

    def make(package, entry_points, code=""):
        folder = tmp_path / f"site-{package}"
        info = folder / f"{package}-2.5.dist-info"
        info.mkdir(parents=True)
        (folder / f"{package}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.5\n")
        lines = [
            line
            for group, entries in entry_points.items()
            for line in (f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()))
        ]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, package, raising=False)

    return make


def refused(outcome, *parts):
    assert outcome.exit_code == 2, outcome.stdout
    assert "Traceback" not in outcome.stderr
    for part in parts:
        assert part in outcome.stderr, outcome.stderr


def test_the_example_is_short():
    lines = (EXAMPLE / "kdcli_toy.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) < 30


def test_everything_of_the_example_in_one_run(toy_run):
    run, outcome = toy_run
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["task"], config["task_extension"]) == ("image-classification", "toy_unsure")
    assert [method["method"] for method in config["methods"]] == ["supervised", "toy_correlation"]
    assert "toy_unsure; accuracy chooses" in outcome.stdout
    assert "toy:5: 5 classes" in outcome.stdout
    assert "import kdcli_toy  # of kdcli-toy 1.0" in (run / "README.md").read_text()


def test_a_method_on_pairs_takes_a_projector(run_cli, toy):
    """That of the example compares what its base class gives it; the map is of 512 x 512 channels."""
    models = ("--teacher", "random:toy:resnet", "--student", "toy:resnet", "--data", "toy:5")
    asked = ("--method", "toy_correlation", "--projector", "inverted", "--dry-run")
    outcome = run_cli("distill", *models, *OPTIONS, *asked)
    assert outcome.exit_code == 0, outcome.stderr
    assert "projector inverted, direction teacher to student" in outcome.stdout
    assert "projectors 262.14K" in outcome.stdout


def test_the_task_s_loss_is_the_extension_s(toy_run, toy):
    """Of equal logits the bonus is the whole entropy."""
    import math

    import torch

    from kdcli.base.facts import DataFacts
    from kdcli.base.tasks import load_task

    facts = DataFacts("toy:5", "image-classification", tuple("abcde"), 9, 9, 3, 3)
    task = load_task("toy_unsure").from_facts(facts, reference=None)
    loss = task.supervised_loss(torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64), label_smoothing=0.0)
    assert loss.item() == pytest.approx(0.9 * math.log(5), rel=1e-5)


def test_a_fresh_process_reloads_and_exports_the_student(toy_run, site, forked, tmp_path):
    """One that has not imported the example, and then one that does not find it."""
    run, _ = toy_run
    code = "import sys\nfrom kdcli.cli.app import main\n"
    found = f"{code}assert 'kdcli_toy' not in sys.modules\nsys.path.insert(0, {str(site)!r})\nmain()"
    ((exit_code, output),) = forked((found, ["export", run, "--output", tmp_path / "out"], {}))
    assert exit_code == 0, output
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)  # the example is imported here
    assert model.pretrained_cfg["label_names"] == ["0", "1", "2", "3", "4"]
    ((exit_code, output),) = forked((f"{code}main()", ["models", "layers", tmp_path / "out"], {}))
    assert exit_code == 2, output
    assert "no architecture 'toy_resnet'" in output
    assert "install the package that adds it" in output


def test_a_recipe_takes_the_options_of_a_method(toy, run_cli, tmp_path):
    recipe = {"teacher": "random:test_vit", "student": "test_resnet", "data": "toy:3", "train": {"device": "cpu"}}
    method = {"method": "toy_correlation", "layers": ["layer4:pooled"], "weight": 3}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe | {"methods": [{"method": "supervised"}, method]}))
    outcome = run_cli("distill", "--recipe", "mine.yaml", "--dry-run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "loss: toy correlation" in outcome.stdout
    assert "student layer4" in outcome.stdout
    refused(
        run_cli("distill", "--recipe", "mine.yaml", "--set", "methods.1.wieght=3", "--set", "methods.1.weight=-1"),
        "methods.1.wieght: unknown key. Did you mean weight, weighting?",
        "methods.1.weight: input should be greater than 0, got -1.",
    )


def test_extensions_are_listed(toy, run_cli):
    stdout = run_cli("extensions").stdout
    for name in ("--student toy:NAME", "--task toy_unsure", "--data toy:NAME", "--method toy_correlation"):
        (row,) = (line for line in stdout.splitlines() if name in line)
        assert "kdcli-toy 1.0" in row
    listed = json.loads(run_cli("extensions", "--json").stdout)["extensions"]
    (found,) = (entry for entry in listed if entry["name"] == "toy_correlation")
    assert (found["kind"], found["package"]) == ("methods", "kdcli-toy 1.0")
    assert found["target"].partition(":")[0]


def test_none_are_installed(run_cli):
    assert "No installed package adds anything" in run_cli("extensions").stdout
    assert json.loads(run_cli("extensions", "--json").stdout) == {"extensions": []}


def test_the_search_knows_an_extension_by_its_prefix(toy, run_cli):
    outcome = run_cli("models", "search", "--name", "toy:*")
    assert outcome.exit_code == 0, outcome.stderr
    assert "toy:resnet" in outcome.stdout


@pytest.mark.parametrize(
    ("option", "name", "parts"),
    [
        ("--student", "toi:resnet", ("unknown prefix 'toi'. Did you mean toy,", "Installed extensions: toy:NAME.")),
        ("--student", "toy:resnt", ("no model 'toy:resnt' in kdcli-toy 1.0. Did you mean toy:resnet?",)),
        ("--teacher", "toy:resnet", ("no pretrained weights of toy:resnet", "random:NAME")),
        ("--data", "toi:5", ("There is no data set or folder 'toi:5'.", "Did you mean toy:")),
        (
            "--task",
            "toy_unsur",
            ("'toy_unsur' is not one of", "of another package: toy_unsure. Did you mean toy_unsure"),
        ),
        ("--method", "toy_corelation", ("or of another package: toy_correlation. Did you mean toy_correlation",)),
    ],
)
def test_unknown_names(toy, run_cli, photos, option, name, parts):
    given = {"--teacher": "random:test_vit", "--student": "test_resnet", "--data": photos} | {option: name}
    outcome = run_cli("distill", *(part for pair in given.items() for part in pair), "--dry-run")
    refused(outcome, *parts)


GROUPS = {"--student": "models", "--task": "tasks", "--data": "data", "--method": "methods"}


@pytest.mark.parametrize("option", GROUPS)
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module_at_all", "failed: ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("thing = 5", "is not"),
    ],
)
def test_a_package_that_is_broken_or_of_another_kind(install, run_cli, photos, option, code, reason):
    name = "odd:net" if option in ("--student", "--data") else "odd"
    target = "odd_package" if option == "--student" else "odd_package:thing"
    install("odd_package", {f"kdcli.{GROUPS[option]}": {"odd": target}}, code)
    given = {"--teacher": "random:test_vit", "--student": "test_resnet", "--data": photos} | {option: name}
    outcome = run_cli("distill", *(part for pair in given.items() for part in pair), "--output", "run")
    refused(outcome, "The extension 'odd' of odd_package 2.5", target, reason)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("option", "name", "taken"),
    [
        ("--student", "hf:resnet", "hf"),
        ("--task", "text-classification", "text-classification"),
        ("--data", "demo:digits", "demo"),
        ("--method", "dkd", "dkd"),
        ("--method", "none", "none"),
    ],
)
def test_a_name_of_kdcli_s_own_is_taken(install, run_cli, photos, option, name, taken):
    install("greedy", {f"kdcli.{GROUPS[option]}": {taken: "greedy:thing"}}, "raise SystemExit")
    given = {"--teacher": "random:test_vit", "--student": "test_resnet", "--data": photos} | {option: name}
    outcome = run_cli("distill", *(part for pair in given.items() for part in pair), "--dry-run")
    refused(outcome, f"{taken!r} means several things", "greedy 2.5 and kdcli itself have that name")


def test_two_packages_with_one_name(install, run_cli, photos):
    for package in ("first", "second"):
        install(package, {"kdcli.methods": {"twice": f"{package}:thing"}})
    models = ("--teacher", "random:test_vit", "--student", "test_resnet")
    outcome = run_cli("distill", *models, "--data", photos, "--method", "twice", "--dry-run")
    refused(outcome, "first 2.5 and second 2.5 have that name")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ('class thing(MethodSection):\n    method: str = "mine"', "its method build(context) is missing"),
        (
            'class thing(MethodSection):\n    method: str = "other"\n    def build(self, context): pass',
            "must have the default 'mine'",
        ),
        (
            'class thing(MethodSection):\n    method: str = "mine"\n    size: int\n    def build(self, context): pass',
            "size must have a default",
        ),
    ],
)
def test_what_a_method_must_have(install, run_cli, photos, code, reason):
    install("mine", {"kdcli.methods": {"mine": "mine:thing"}}, f"from kdcli.config import MethodSection\n{code}\n")
    models = ("--teacher", "random:test_vit", "--student", "test_resnet")
    outcome = run_cli("distill", *models, "--data", photos, "--method", "mine", "--dry-run")
    refused(outcome, "The extension 'mine' of mine 2.5 (methods): mine:thing is not", reason)


@pytest.mark.parametrize(
    ("of_options", "of_method", "told"),
    [
        ("needs_teacher: ClassVar[bool] = False", "", "needs_teacher is needs = Needs(teacher=...) now"),
        ("takes_mixed: ClassVar[bool] = False", "", "takes_mixed is needs = Needs(whole_images=...) now"),
        ("by_stage: ClassVar[bool] = True", "", "by_stage is needs = Needs(stages=...) now"),
        ("pass", "student_logits = True", "student_logits is student_reads = Reads(heads=...) now"),
        (
            "pass",
            "def __init__(self, weight):\n        super().__init__(weight)\n        self.teacher_taps = ('pooled',)",
            "teacher_taps is teacher_reads = Reads(features=...) now",
        ),
    ],
)
def test_a_method_of_an_earlier_version_is_told_the_new_names(install, run_cli, photos, of_options, of_method, told):
    """Else it would be read as another one."""
    code = f"""
from typing import ClassVar
from kdcli.config import MethodSection
from kdcli.methods.base import Method
class thing(MethodSection):
    method: str = "mine"
    {of_options}
    def build(self, context):
        return Mine(self.weight)
class Mine(Method):
    {of_method or "pass"}
    def forward(self, student, teacher, targets, samples):
        return student.heads["logits"].mean()
"""
    install("mine", {"kdcli.methods": {"mine": "mine:thing"}}, code)
    models = ("--teacher", "random:test_vit", "--student", "test_resnet", "--data", photos)
    outcome = run_cli("distill", *models, "--method", "mine", "--dry-run", "--device", "cpu")
    refused(outcome, "The extension 'mine' of mine 2.5 (methods)", "an earlier version of kdcli", told)


@pytest.mark.parametrize(
    "own", ["", '    like = "no-such-task"', '    facts = TaskFacts("other", "image", "label", "dense", "x")']
)
def test_what_a_task_must_have(install, run_cli, photos, own):
    code = f"from kdcli.base.tasks import TaskFacts\nclass thing:\n    pass\n{own}\n"
    install("mine", {"kdcli.tasks": {"mine": "mine:thing"}}, code)
    models = ("--teacher", "random:test_vit", "--student", "test_resnet")
    outcome = run_cli("distill", *models, "--data", photos, "--task", "mine", "--dry-run")
    refused(outcome, "The extension 'mine' of mine 2.5 (tasks): mine:thing is not a class", "TaskFacts named mine")


def test_a_task_of_its_own_stands_in_no_other_s_place(install, run_cli, photos):
    code = """
from kdcli.base.tasks import TaskFacts
class thing:
    name = "mine"
    facts = TaskFacts("mine", "image", "pixels", "dense", "x")
"""
    install("mine", {"kdcli.tasks": {"mine": "mine:thing"}}, code)
    models = ("--teacher", "random:test_vit", "--student", "test_resnet", "--data", photos)
    for task in ("image-classification", "mine"):
        outcome = run_cli("distill", *models, "--task", task, "--set", "task_extension=mine", "--dry-run")
        refused(outcome, "mine is a task of its own: write task: mine, and no task_extension")


def test_layers_are_for_methods_that_take_them(install, run_cli, photos):
    code = 'class thing(MethodSection):\n    method: str = "mine"\n    def build(self, context): pass'
    install("mine", {"kdcli.methods": {"mine": "mine:thing"}}, f"from kdcli.config import MethodSection\n{code}\n")
    models = ("--teacher", "random:test_vit", "--student", "test_resnet")
    outcome = run_cli(
        "distill", *models, "--data", photos, "--method", "mine", "--feature-layers", "pooled:pooled", "--dry-run"
    )
    refused(outcome, "--method mine reads no layers of a teacher")


def test_texts_of_another_package(install, run_cli, bert_folder, distilbert_folder):
    code = """
from datasets import Dataset
def read(rest):
    rows = {"text": [f"the film was {('good', 'bad')[n % 2]} {n}" for n in range(60)], "label": ["ab"[n % 2] for n in range(60)]}
    return {"train": Dataset.from_dict(rows)}
"""
    install("words", {"kdcli.data": {"words": "words:read"}}, code)
    models = ("--teacher", bert_folder, "--student", distilbert_folder)
    options = ("--task", "text-classification", "--data", "words:", "--dry-run")
    outcome = run_cli("distill", *models, *options)
    assert outcome.exit_code == 0, outcome.stderr
    assert "words:: 2 classes" in outcome.stdout
    refused(run_cli("distill", *models, *options, "--set", "data.subset=x"), "data.subset is set")


def test_a_package_can_bring_weights_along(install, run_cli, photos, tmp_path):
    code = f"""
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
cfg = {{"input_size": (3, 32, 32), "num_classes": 4, "file": {str(tmp_path / "w.safetensors")!r}, "classifier": "fc"}}
default_cfgs = generate_default_cfgs({{"own_net.v1": cfg | {{"first_conv": "conv1", "label_names": list("abcd")}}}})
@register_model
def own_net(pretrained=False, **kwargs):
    return build_model_with_cfg(ResNet, "own_net", pretrained, block=BasicBlock, layers=(1, 1, 1, 1), **kwargs)
"""
    install("own_package", {"kdcli.models": {"own": "own_package"}}, code)
    save_file(ResNet(BasicBlock, (1, 1, 1, 1), num_classes=4).state_dict(), tmp_path / "w.safetensors")
    outcome = run_cli("distill", "--teacher", "own:net", "--student", "test_resnet", "--data", photos, "--dry-run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "own:net.v1" in outcome.stdout


def test_a_run_whose_package_is_not_found_says_where_it_was(toy_run, site, run_cli, tmp_path, monkeypatch):
    """As from another working directory, where the package lay in the first."""
    run, _ = toy_run
    rows = json.loads((run / "extensions.json").read_text())
    assert {(row["kind"], row["name"]) for row in rows} == {
        *[("models", "toy"), ("tasks", "toy_unsure"), ("data", "toy"), ("methods", "toy_correlation")]
    }
    assert {(row["package"], row["folder"]) for row in rows} == {("kdcli-toy 1.0", str(site))}
    for command in (("distill", "--resume", run), ("evaluate", run), ("report", run, "--output", "x.html")):
        outcome = run_cli(*command)
        assert outcome.exit_code == 2
        assert "was made with kdcli-toy 1.0, which Python does not find here" in outcome.stderr
        assert f"PYTHONPATH={site} kdcli" in outcome.stderr
    assert list(tmp_path.iterdir()) == []
    monkeypatch.syspath_prepend(str(site))
    assert run_cli("report", run, "--output", "x.html").exit_code == 0
