"""Whatever comes in: the command works, a run starts, or there is one clear message and exit code 2.

Hypothesis makes up recipe files and command lines. The suite draws a few hundred, always the same ones. The long run
draws others every time, as many as the variable says:

    KDCLI_FUZZ_CASES=10000 python -m pytest tests/cli/test_fuzz.py -s

A case that fails is printed with its arguments: mend it at its root, and keep it as a test of its own. That a run starts
is seen from the plan of ``--dry-run``, or from the first step of a training, which is stopped there.
"""

from __future__ import annotations

import collections
import datetime
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import typer
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from typer.core import TyperGroup, TyperOption

from kdcli.cli.app import app
from kdcli.config.methods import METHODS, MethodSection
from kdcli.config.recipes import list_recipes, load_recipe
from kdcli.config.run import RunConfig
from kdcli.experiments import distill
from kdcli.training.trainer import Trainer

LONG = int(os.environ.get("KDCLI_FUZZ_CASES", 0))
TINY = {
    "teacher": {"name": "./model", "image_size": 32},
    "student": {"name": "test_efficientnet_ln", "image_size": 32},
    "data": {"name": "photos"},
    "train": {"device": "cpu"},
}
STARTING = ["--set", "data.workers=0", "--set", "train.compile=false"]
"""Without processes of its own and without a compiler, a first step takes milliseconds."""


def cases(share: float) -> settings:
    return settings(max_examples=round(share * (LONG or 160)))


# --- where it happens -------------------------------------------------------------------------------------------------


class FirstStep(BaseException):
    """Stops a training that has started."""


class Playground:
    """A folder with what commands take and with what they must not touch; runs one command at a time in it."""

    def __init__(self, root: Path, run_cli: Callable[..., Any]) -> None:
        self.root = root
        self.cwd = root / "work"
        self.run_cli = run_cli
        self.written: list[str] = []
        self.listening = False
        self.last: Any = None
        self.outcomes: collections.Counter[str] = collections.Counter()

    def listen(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook: note the files that are written."""
        if not self.listening:
            return
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            self.written.append(os.path.abspath(arguments[0]))  # noqa: PTH100
        elif event in ("os.mkdir", "os.symlink", "os.rename", "os.remove", "os.rmdir"):
            self.written.append(os.path.abspath(os.fsdecode(arguments[1 if event == "os.symlink" else 0])))  # noqa: PTH100

    def content(self) -> dict[Path, int]:
        return {path: path.stat().st_size if path.is_file() else 0 for path in self.root.rglob("*")}

    def attempt(self, *arguments: str) -> str:
        """Run a command and check what came of it: ``works``, ``starts`` or ``refused``."""
        before = self.content()
        self.written.clear()
        self.listening = True
        try:
            outcome = self.run_cli(*arguments, cwd=self.cwd)
        except FirstStep:
            result = "starts"
        else:
            self.last = outcome
            check(outcome)
            result = "refused" if outcome.exit_code else "works"
        finally:
            self.listening = False
        cache = os.environ["XDG_CACHE_HOME"]
        allowed = (str(self.root), "/dev/", "__pycache__", f"{tempfile.gettempdir()}/.kdcli-", cache)
        assert not [path for path in self.written if not any(part in path for part in allowed)]
        after = self.content()
        assert before.items() <= after.items(), "a file was changed"
        new = sorted(after.keys() - before.keys(), reverse=True)
        assert result != "refused" or not new, f"left behind: {new}"
        for path in new:
            path.rmdir() if path.is_dir() else path.unlink()
        self.outcomes[result] += 1
        return result

    def attempt_recipe(self, content: bytes, *, start: bool) -> str:
        (self.cwd / "case.yaml").write_bytes(content)
        return self.attempt("distill", "--recipe", "case.yaml", *(STARTING if start else ["--dry-run"]))


def check(outcome: Any) -> None:
    assert outcome.exit_code in (0, 2)
    (outcome.stdout + outcome.stderr).encode()  # a terminal takes no half characters
    assert "Traceback" not in outcome.stdout + outcome.stderr
    if not outcome.stderr and outcome.stdout.lstrip().startswith("Usage:"):
        return  # a group of commands without a command prints its help
    messages = [line for line in outcome.stderr.split("\n") if line.startswith("Error:") or "─ Error ─" in line]
    assert len(messages) == (outcome.exit_code == 2), outcome.stderr
    hints = [line for line in outcome.stderr.split("\n") if line.startswith("Hint:")]
    assert len(hints) == (outcome.stderr.startswith("Error:"))


@pytest.fixture(scope="module")
def playground(
    tmp_path_factory: pytest.TempPathFactory,
    run_cli_in: Callable[..., Any],
    photos: Path,
    random_run: Path,
    trained_teacher: Path,
) -> Iterator[Playground]:
    place = Playground(tmp_path_factory.mktemp("fuzz"), run_cli_in)
    home, work = place.root / "home", place.cwd
    home.mkdir()
    for image in (image for folder in photos.iterdir() for image in sorted(folder.iterdir())[:4]):
        (work / "photos" / image.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, work / "photos" / image.parent.name)
    shutil.copytree(random_run, work / "run")
    shutil.copytree(trained_teacher, work / "model")
    (work / "empty").mkdir()
    (work / "file.txt").write_text("a file\n")
    (work / "case.yaml").write_text("")

    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in tests")

    def stop(*_: object) -> None:
        raise FirstStep

    sys.addaudithook(place.listen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.delenv("KDCLI_DATA", raising=False)
        patch.setattr(urllib.request, "urlopen", unreachable)
        patch.setattr(Trainer, "train_step", stop)
        patch.setattr(distill, "launch", stop)  # other processes would not stop at their first step
        yield place
    if LONG:
        print(f"\n{place.outcomes.total()} cases: {dict(place.outcomes)}")


# --- what comes in ----------------------------------------------------------------------------------------------------


PLACES = (  # and names
    *("photos", "./photos", "demo:digits", "demo:", "torchvision:CIFAR10", "torchvision:ImageNet", "torchvision:x"),
    *("test_resnet", "random:test_vit", "random:random:x", "random:none", "none", "resnet50", "resnet50.no", "timm:x"),
    *(
        "hf:org/name",
        "hf:",
        "hf:a/b/c/d@e",
        "hf:run",
        "hf:./photos",
        "hf:json",
        "hf:../x",
        "org/name",
        "local-dir:model",
    ),
    *("model", "./model", "random:./model", "model/model.safetensors", "run", "run/student", "case.yaml", "quickstart"),
    *("empty", "./empty", "file.txt", "./file.txt", "file.txt/x", "missing", "missing/x.yaml", "x.yaml", ".", ".."),
    *("~", "~nobody-here/x", "/dev/null", "/dev/full", "/proc/self/mem", "/proc/self/x", "../../../../../../x"),
    *("package:timm/__init__.py", "package:timm//etc/hostname", "package:../x", "package:é/x", "package:timm.data/x"),
    *("", " ", "\n", "\0", "a\0b", "a\nError: b", "-", "--", "\udcff", "\ud800", "é", "💥", "\u202e", "\x1b[31m", "\r"),
    *("a" * 300, "é" * 200, "a/" * 3000, "x" * 5000, "[red]", "[/]", "\\", "$\\frac$", ":boom:", "%s", "{0}", "a\\"),
)
WORDS = (
    *(
        "auto",
        "none",
        "no",
        "same",
        "cross",
        "linear",
        "orthogonal",
        "inverted",
        "mlp",
        "whiten",
        "log_sum",
        "householder",
    ),
    *("pooled", "embedding", "supervised", "projection", "logit_kd", "adamw", "lookahead_adam", "lbfgs", "bnbadamw"),
    *(
        "tensorboard",
        "wandb",
        "fp16",
        "bf16",
        "cpu",
        "cuda",
        "cuda:7",
        "mps",
        "meta",
        "xla",
        "cpu:-1",
        "validation",
        "test",
    ),
    *(
        "true",
        "null",
        "2001-01-01",
        "1e5",
        "²",
        "٣",
        "0x10",
        "9" * 5000,
        "nan",
        "{}",
        "[]",
        "[[",
        "*a",
        "&a",
        "!!x y",
        "a: b",
    ),
    *("{name: photos}", "[supervised]", "[{method: supervised}]", "[1, 1]", "[0.5, 0.1]", "!!python/name:os.system"),
)
NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 33, 4097, 100_000, 2**31 - 1, 2**31, 2**63, -(10**30), 10**400),
    *(0.0, -0.0, 0.5, 1e-320, 1e-9, 1e9, 1e308, float("nan"), float("inf"), -float("inf")),
)
# Folders above the playground would be searched for images, which takes as long as there are files.
texts = st.text(max_size=20).filter(lambda text: text.strip("/. ") != "")
encodable = st.text(st.characters(codec="utf-8"), max_size=40)
places = st.sampled_from(PLACES)
numbers = st.sampled_from(NUMBERS) | st.integers(1, 40) | st.floats(0, 1)
plain = st.sampled_from([word for word in PLACES + WORDS if word.isprintable()])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.integers(),
    st.floats(),
    plain,
    encodable,
    st.sampled_from([b"\xff\x00", datetime.date(2001, 1, 1), datetime.datetime(2001, 1, 1, 1, 1, 1)]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain | st.integers(), inner, max_size=4),
    max_leaves=8,
)


def keys_of(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of the config with its type."""
    for name, field in section.model_fields.items():
        yield prefix + name, field.annotation
        for inner in sections_in(field.annotation):
            yield from keys_of(inner, f"{prefix}{name}.{'0.' if name == 'methods' else ''}")


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if annotation is MethodSection:
        yield from METHODS.values()
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from sections_in(inner)


def fitting(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a key's type, odd ones among them."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return st.sampled_from(parts)
    if origin is Annotated:
        return fitting(parts[0])
    if origin is tuple:
        return st.lists(st.one_of(*(fitting(part) for part in parts if part is not Ellipsis)), min_size=1, max_size=2)
    if origin is Mapping:
        return st.dictionaries(fitting(parts[0]), fitting(parts[1]), max_size=2)
    if annotation is MethodSection:
        return st.one_of(*map(near, METHODS.values()))
    if parts:
        return st.one_of(*map(fitting, parts))
    if issubclass(annotation, BaseModel):
        return near(annotation)
    if issubclass(annotation, (str, Path)):
        return places
    return {bool: st.booleans(), type(None): st.none()}.get(annotation, numbers)


@st.composite
def near(draw: st.DrawFn, section: type[BaseModel]) -> dict[str, Any]:
    """A section with what it must have, and a few of its other keys."""
    fields = section.model_fields
    names = draw(st.lists(st.sampled_from(sorted(fields)), max_size=2))
    result = {name: draw(fitting(field.annotation)) for name, field in fields.items() if name in names}
    required = {name: TINY[name] for name in ("teacher", "student", "data") if name in fields}
    required |= {"name": draw(st.sampled_from(["photos", "test_resnet"]) | places)} if "name" in fields else {}
    required |= {"method": fields["method"].default} if "method" in fields else {}
    return {**required, **result}


TYPES = dict(keys_of(RunConfig))
KEYS = sorted(TYPES)
SNIPPETS = (
    *("a: &a [*a]", "teacher: &a {name: *a}", "? [a, b]\n: 1", "? {a: b}\n: 1", "? &a [*a]\n: 1", "<<: {seed: 1}"),
    *("seed: !!python/object/apply:os.system ['touch owned']", "seed: !!python/name:os.system", "seed: !!timestamp x"),
    *(
        "seed: !!bool x",
        "seed: !!int ''",
        "seed: !!float x",
        "seed: !!binary x",
        "seed: !!set {a, b}",
        "seed: !!omap [1]",
    ),
    *("seed: 0x" + "f" * 9000, "seed: " + "9" * 9000, "seed: 1:2:3:4", "seed: " + "[" * 3000, "seed: " + "{a: " * 300),
    *(
        "---",
        "...",
        "%YAML 9.9",
        "\t",
        "- a",
        "seed:\n\t- 1",
        "seed: |\n  x",
        "seed: >-",
        "'",
        '"',
        "{",
        "*b",
        "&b",
        "!",
        "@",
    ),
    *(
        "\ufeff",
        "#",
        "seed: 'Error: x\n\nHint: y'",
        '"a\\0b": 1',
        '"a\\nError: b": 1',
        'data: "\\0"',
        'output: "\\ud800"',
    ),
    "\n".join(
        ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)), "seed: *a11"]
    ),
    "\n".join(
        ["m0: &m0 {a: 1, b: 2}", *(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}" for i in range(1, 9))]
    ),
)


def dumped(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode("utf-8", errors="backslashreplace")


def recipes() -> list[dict[str, Any]]:
    """The shipped recipes of images' classes, with models and data that take milliseconds."""
    found = []
    for recipe in list_recipes():
        if recipe.name != "quickstart" and not recipe.name.startswith("image-classification/"):
            continue  # of other models, or much alike
        values = load_recipe(recipe.path)
        values["teacher"] = {"name": values["teacher"]} if isinstance(values["teacher"], str) else values["teacher"]
        is_alone = values["teacher"]["name"] == "none"
        for name, section in TINY.items():
            if is_alone and name == "teacher":
                continue
            values[name] = {**(values.get(name) if isinstance(values.get(name), dict) else {}), **section}
        if any(method["method"] == "deit" for method in values.get("methods", ())):  # it wants a distillation token
            values["student"]["name"] = "vkd_deit_tiny_patch16_224?depth=1&embed_dim=16&num_heads=2"
        values["teacher"].pop("weights", None)
        values["student"].pop("pretrained", None)
        if "feature_layers" in values:
            values["feature_layers"] = ["pooled:layer3"]  # the small teacher has other layers
        if values["data"].get("labels_per_class", 0) > 2:  # there are no more
            values["data"]["labels_per_class"] = 2
        found.append(values)
    return found


def mapping_at(values: Any, parents: list[str]) -> dict[str, Any]:
    """Return the mapping at ``parents``, made where there is none; an empty one where the way there is blocked."""
    for part in parents:
        values = (
            values[int(part)] if isinstance(values, list) and part.isdigit() and len(values) > int(part) else values
        )
        values = values.setdefault(part, {}) if isinstance(values, dict) else values
    return values if isinstance(values, dict) else {}


@st.composite
def mutated_recipes(draw: st.DrawFn) -> bytes:
    recipe = draw(st.sampled_from(recipes()))
    for _ in range(draw(st.integers(0, 2))):
        kind = draw(st.sampled_from(["set", "set", "set", "delete", "rename", "wrap", "add"]))
        path = draw(st.sampled_from(KEYS))
        *parents, key = path.split(".")
        mapping, value = mapping_at(recipe, parents), draw(fitting(TYPES[path]) | values)
        if kind == "set":
            mapping[key] = value
        elif kind == "delete":
            mapping.pop(key, None)
        elif kind == "rename":
            mapping[draw(st.sampled_from([key[1:], key + "s", key.upper(), ""]))] = mapping.pop(key, value)
        elif kind == "wrap":
            mapping[key] = [mapping.get(key)]
        else:
            mapping[draw(encodable)] = value
    content = dumped(recipe)
    if draw(st.integers(0, 3)) == 0:
        lines = content.decode().split("\n")
        where = draw(st.integers(0, len(lines)))
        lines[where : where + draw(st.integers(0, 1))] = [draw(st.sampled_from(SNIPPETS))]
        content = "\n".join(lines).encode()
    if draw(st.integers(0, 14)) == 0:
        where = draw(st.integers(0, len(content)))
        content = content[:where] + draw(st.binary(max_size=3)) + content[where + draw(st.integers(0, 3)) :]
    return content


def commands_in(group: TyperGroup, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands_in(command, (*names, name))
        else:
            yield (*names, name), command


COMMANDS = dict(commands_in(typer.main.get_command(app)))
OPTIONS = {name: [p for p in command.params if isinstance(p, TyperOption)] for name, command in COMMANDS.items()}
starts = st.sampled_from([True, False, False, False, False])


@st.composite
def pairs(draw: st.DrawFn) -> str:
    """What follows ``--set``."""
    key = draw(st.sampled_from(KEYS))
    value = draw(st.one_of(fitting(TYPES[key]), fitting(TYPES[key]), st.sampled_from(WORDS), values))
    ending = draw(st.sampled_from([""] * 20 + ["s", ".", ".0", ".x.y", ".²"]))
    written = (
        value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n")
    )
    return draw(st.sampled_from([f"{key}{ending}={written}"] * 9 + [key, written]))


def arguments_of(option: Any) -> st.SearchStrategy[str]:
    if "--set" in option.opts:
        return pairs()
    kinds = [kind for key, kind in TYPES.items() if key.split(".")[-1] == option.name and not list(sections_in(kind))]
    fits = fitting(kinds[0]).map(str) if kinds else places
    return st.one_of(fits, fits, places, st.sampled_from(WORDS), texts)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from(sorted(COMMANDS)) if draw(st.integers(0, 3)) == 0 else st.just(("distill",)))
    arguments = list(command)
    if command == ("distill",):
        for name in ("teacher", "student", "data"):
            if draw(st.integers(0, 19)):
                arguments += [f"--{name}", TINY[name]["name"]]
        arguments += ["--device", "cpu", "--set", "student.image_size=32", "--set", "teacher.image_size=32"]
    options = OPTIONS[command]
    for _ in range(draw(st.integers(1, 2)) if options else 0):
        option = draw(st.sampled_from(options + [option for option in options if "--set" in option.opts] * 20))
        name = draw(st.sampled_from([*option.opts, *option.secondary_opts]))
        value = draw(arguments_of(option))
        arguments += [name] if option.is_flag else draw(st.sampled_from([[name, value], [f"{name}={value}"]]))
    for _ in range(len(COMMANDS[command].params) - len(options)):
        arguments += [draw(places)]
    if draw(st.integers(0, 39)) == 0:
        arguments.insert(draw(st.integers(0, len(arguments))), draw(places | st.sampled_from(WORDS) | texts))
    if command == ("distill",):
        arguments += STARTING if draw(starts) else ["--dry-run"]
    if command == ("sweep",):
        arguments += ["--report-only"]
    return arguments


# --- what must hold ---------------------------------------------------------------------------------------------------


def test_everything_is_drawn_from() -> None:
    assert {("distill",), ("export",), ("analyze-projector",), ("recipes", "copy")} <= COMMANDS.keys()
    assert {"--set", "--output", "--teacher-weights"} <= {
        name for option in OPTIONS["distill",] for name in option.opts
    }
    assert {"teacher.name", "methods.0.lr_scale", "augment.crop_scale", "seed"} <= set(KEYS)


@pytest.mark.parametrize("number", range(len(recipes())))
@pytest.mark.parametrize("start", [False, True])
def test_the_recipes_start_before_they_are_mutated(playground: Playground, number: int, start: bool) -> None:
    result = playground.attempt_recipe(dumped(recipes()[number]), start=start)
    assert result == ("starts" if start else "works"), playground.last


@cases(0.1)
@given(st.binary(max_size=200) | encodable.map(str.encode) | st.sampled_from(SNIPPETS).map(str.encode))
def test_recipes_of_any_text(playground: Playground, content: bytes) -> None:
    playground.attempt_recipe(content, start=False)


@cases(0.15)
@given(st.one_of(values, near(RunConfig), near(RunConfig), near(RunConfig)), starts)
def test_recipes_of_any_values(playground: Playground, value: Any, start: bool) -> None:
    playground.attempt_recipe(dumped(value), start=start)


@cases(0.2)
@given(mutated_recipes(), starts)
def test_mutated_recipes(playground: Playground, content: bytes, start: bool) -> None:
    playground.attempt_recipe(content, start=start)


@cases(0.4)
@given(command_lines())
def test_command_lines(playground: Playground, arguments: list[str]) -> None:
    playground.attempt(*arguments)
