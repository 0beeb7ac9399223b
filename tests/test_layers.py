"""The rooms of the package: imports go down only, modules make no circles, and the plan and the command line need no torch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import kdcli

ROOMS = (
    *(
        "cli",
        "api",
        "experiments",
        "results",
        "training",
        "methods",
        "tasks",
        "models",
        "data",
        "runs",
        "terminal",
        "plan",
    ),
    *("machine", "config", "projectors", "losses", "statistics", "base"),
)
"""From top to bottom: a room imports of itself and of those after it."""
PACKAGE = Path(kdcli.__file__).parent


def name_of(file):
    return ".".join(("kdcli", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {name_of(file): file for file in PACKAGE.rglob("*.py")}


def imports(file, *, only_at_start=False):
    """Yield the modules of kdcli that ``file`` imports; ``only_at_start`` leaves out those inside functions and for types."""
    nodes = [ast.parse(file.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "kdcli":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "kdcli")
        is_later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if not (only_at_start and is_later):
            nodes.extend(ast.iter_child_nodes(node))


def room(module):
    return [*module.split("."), ""][1]


def test_every_module_is_in_a_room_and_imports_only_from_lower_ones():
    assert {room(module) for module in MODULES} == {*ROOMS, "", "__main__"}
    for module, file in MODULES.items():
        here = room(module)
        if here in ("", "__main__"):
            continue
        for other in imports(file):
            there = room(other)
            assert there == "" or ROOMS.index(there) >= ROOMS.index(here), f"{module} imports {other}"


def test_no_circles():
    """Packages are left out: they only offer their modules' names."""
    graph = {
        module: {other for other in imports(file, only_at_start=True) if MODULES[other].name != "__init__.py"}
        for module, file in MODULES.items()
        if file.name != "__init__.py"
    }
    assert len(list(TopologicalSorter(graph).static_order())) > 150


@pytest.mark.parametrize("room", ["plan", "config", "base", "cli", "statistics"])
def test_rooms_without_torch(room):
    modules = [module for module in MODULES if module.startswith(f"kdcli.{room}")]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


TASKS_ROOMS = ("kdcli.tasks", "kdcli.base.tasks")
"""Where tasks may be called by their names."""


def test_tasks_have_no_names_elsewhere():
    """What depends on the task asks :class:`kdcli.base.tasks.TaskFacts`, or the task itself."""
    from kdcli.base.tasks import TASKS

    for module, file in MODULES.items():
        if module.startswith(TASKS_ROOMS):
            continue
        nodes = ast.walk(ast.parse(file.read_text()))
        names = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        assert not names & TASKS.keys(), f"{module} names a task"


METHODS_ROOMS = ("kdcli.config.methods", "kdcli.methods", "kdcli.losses")
"""Where methods may be called by their names, and their options by their classes."""
METHODS_ELSEWHERE = {
    "kdcli.base.names": {"log_sum"},  # a distance of the same name
    "kdcli.config.training": {"StochasticTripletOptions"},  # the default of a stage
}


def test_methods_have_no_names_elsewhere():
    """What depends on the method asks its options; what is taken by default is looked up in their defaults."""
    from kdcli.config.methods import METHODS
    from kdcli.config.methods.registry import CHOICES, PROGRAMMES

    known = {*METHODS, *CHOICES, *PROGRAMMES, *(section.__name__ for section in METHODS.values())} - {"none"}
    for module, file in MODULES.items():
        if module.startswith(METHODS_ROOMS):
            continue
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        names |= {node.id for node in nodes if isinstance(node, ast.Name)}
        assert names & known <= METHODS_ELSEWHERE.get(module, set()), f"{module} names a method"


def test_options_are_not_told_by_their_class():
    for module, file in MODULES.items():
        if module.startswith(METHODS_ROOMS):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                assert "Options" not in ast.unparse(node.args[1]), f"{module}: {ast.unparse(node)}"


LIBRARIES_ROOM = "kdcli.models"
"""Where libraries of models may be called by their names, and imported."""
LIBRARIES_ELSEWHERE = {
    "kdcli.cli": {"timm"},  # which imports torch's compiler, if it is not hindered
    "kdcli.runs": {"timm", "transformers", "segmentation-models-pytorch"},  # whose versions a run records
    # timm as a library of functions, whatever the models are: optimisers, schedules and averaged weights.
    "kdcli.training": {"timm.optim", "timm.scheduler", "timm.utils"},
}


def test_libraries_of_models_have_no_names_elsewhere():
    """What depends on the library of a model asks :class:`kdcli.models.library.Library`; ``hf`` is the hub's, of data too."""
    from kdcli.models.libraries import LIBRARIES

    own = {library.name for library in LIBRARIES}
    names = own.union(*(library.families for library in LIBRARIES))
    rooms = tuple(f"{LIBRARIES_ROOM}.{name}" for name in own)
    for module, file in MODULES.items():
        if room(module) == "models":
            continue
        found = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and node.value in names:
                found.add(node.value)
            elif isinstance(node, ast.ImportFrom | ast.Import):
                given = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                found |= {name for name in given if name.partition(".")[0] in own or name.startswith(rooms)}
        assert found <= LIBRARIES_ELSEWHERE.get(f"kdcli.{room(module)}", set()), f"{module} names a library of models"


def test_a_run_imports_only_what_it_uses(photos, tmp_path):
    """A whole run of models of timm on a folder of images."""
    models = ["--teacher", "random:test_resnet", "--student", "test_vit", "--data", str(photos), "--device", "cpu"]
    command = ["distill", *models, "--epochs", "1", "--set", "student.image_size=32", "--set", "data.train_images=32"]
    unused = ("transformers", "torchmetrics", "datasets", "matplotlib", "onnx")
    code = f"""
import sys
from kdcli.cli.app import main
sys.argv[1:] = {[*command, "--set", "data.workers=0", "--batch-size", "16", "--output", "run"]}
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print([name for name in {unused} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result.json").is_file()
    assert done.stdout.splitlines()[-1] == "[]"


ASKED = {"ImageData", "TextData", "ImageSource", "TextSource", "TokenSource", "WordSource", "Subset", "FileSource"} | {
    *("Batch", "TextBatch", "TokenBatch", "WordBatch", "EvalLoader", "TextEvalLoader", "TextModel", "VisionModel"),
    *("Preprocessing", "TextPreprocessing"),
}


def test_what_samples_are_is_asked_of_the_task():
    """No branch on the class of images or texts where neither data nor models nor tasks are at home."""
    for module, file in MODULES.items():
        if room(module) in ("data", "models", "tasks"):
            continue
        tree = ast.parse(file.read_text())
        asserted = {node for part in ast.walk(tree) if isinstance(part, ast.Assert) for node in ast.walk(part)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance" and node not in asserted:
                named = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                assert not named & ASKED, f"{module}: {ast.unparse(node)}"
