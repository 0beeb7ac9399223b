"""Imports point one way."""

import ast
from pathlib import Path

import kdcli

LAYERS = [
    {"errors", "__init__", "facts"},
    {"text"},
    {"extensions", "files", "signals", "checksums"},
    {"config"},
    {"relation", "recipes", "result", "intervals"},
    {"plan", "variants", "advice"},
    {"run_folder", "data", "console", "launch", "control", "gather"},
    {"losses", "normalize"},
    {"models"},
    {"stiefel", "chance", "tasks", "analysis", "figures", "ranks", "checkpoint", "devices", "progress"},
    {"projectors", "report", "outcome", "probing"},
    {"methods"},
    {"distiller", "teacher", "provenance"},
    {"teacher_cache"},
    {"teacher_features"},
    {"teacher_layers"},
    {"job", "card", "optim"},
    {"downstream", "scoring", "paper_figures"},
    {"teacher_check", "teacher_probe"},
    {"trainer", "export"},
    {"analyze", "distill", "compare", "evaluate", "probe"},
    {"episodes"},
    {"sweep"},
    {"cli_models", "cli_recipes", "library_messages"},
    {"cli"},
    {"__main__"},
]
# losses and projectors build on their neighbours' helpers, the search keeps what it counted as runs keep their files
SAME_LAYER = {("losses", "normalize"), ("projectors", "stiefel"), ("models", "run_folder")}
PACKAGE = Path(kdcli.__file__).parent


def unit(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kdcli":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kdcli."))


def test_every_module_is_in_a_layer_and_imports_only_lower_ones():
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    for file in files:
        for name in imports(file):
            name = name if name in level else "__init__"  # `from kdcli import __version__`
            here = unit(file)
            if name == here or (here, name) in SAME_LAYER:
                continue
            assert level[name] < level[here], f"{here} imports {name}"
