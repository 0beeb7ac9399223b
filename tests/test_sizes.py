"""Modules are read in one sitting, functions in one look; the training loop knows batches, phases and terms alone."""

import ast

from tests.test_layers import MODULES, imports

MOST_LINES = 500
MOST_LINES_OF_A_FUNCTION = 80


def functions(module):
    """Yield names and lines; of the command line without what a command takes: its options are written with their help."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if module.startswith("kdcli.cli.") else node
            yield f"{module}.{node.name}", node.end_lineno - first.lineno + 1


def test_modules_are_short():
    lengths = {module: len(file.read_text().splitlines()) for module, file in MODULES.items()}
    assert {name for name, length in lengths.items() if length > MOST_LINES} == set()


def test_functions_are_short():
    lengths = {}
    for module in MODULES:
        for name, length in functions(module):
            lengths[name] = max(length, lengths.get(name, 0))
    assert {name for name, length in lengths.items() if length > MOST_LINES_OF_A_FUNCTION} == set()


def test_the_loop_asks_nothing_of_its_parts_but_what_all_of_them_have():
    """It imports no method and no task's package, and asks nothing for its class."""
    loop = ("kdcli.training.trainer", "kdcli.training.phases", "kdcli.training.state")
    for module in loop:
        for other in imports(MODULES[module]):
            assert not other.startswith(("kdcli.methods", "kdcli.losses", "kdcli.tasks.")), f"{module} imports {other}"
        assert "isinstance(" not in MODULES[module].read_text().replace("isinstance(value, Tensor)", ""), module
