"""The card of a run: of its student, or of its episodes."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Any

from kdcli.base.errors import UserError
from kdcli.base.result import EpisodesResult, Mean, Result, show_metric
from kdcli.base.text import printable
from kdcli.config.run import RunConfig
from kdcli.models.libraries import LIBRARIES, library_of
from kdcli.models.library import Library
from kdcli.results.front_matter import with_front_matter
from kdcli.results.graph_code import Codes, codes_of
from kdcli.runs.folder import SAMPLES, RunFolder
from kdcli.training.provenance import read_forced


def model_card(
    run: RunFolder,
    result: Result | None,
    *,
    pictures: bool = False,
    graphs: Codes = MappingProxyType({}),
    before: bytes = b"",
) -> str:
    """Return the card in Markdown: how the student came about, what it reaches, how to load it.

    Args:
        run: its folder.
        result: what it came to; None while it is not finished.
        pictures: show the run's samples, where there are any: the card lies beside them.
        graphs: how the graphs that it lies beside are run; where there are none it lies beside the student in its
            library's own format.
        before: the card that it takes the place of: what that says of other formats of this student stays.
    """
    config, plan = run.read_config(), run.read_plan()
    library = library_of(run.student)
    decisions = {entry["name"]: entry for entry in plan["decisions"]}
    if missing := {"relation", "student", "data", "trainable parameters"} - decisions.keys():
        raise UserError(
            f"{run.path / 'plan.json'} has no decision about {', '.join(sorted(missing))}.", "Repeat the run."
        )
    name = _title(config.student.name)
    rows = [
        ("Student", decisions["student"]["value"]),
        ("Student's first weights", decisions["student"]["reason"]),
        ("Teacher", decisions["teacher"]["value"] if "teacher" in decisions else "none"),
        *([("Teacher's weights", decisions["teacher"]["reason"])] if "teacher" in decisions else []),
        ("Relation", f"{plan['relation']}: {decisions['relation']['reason']}"),
        ("Losses", ", ".join(options.method for options in config.methods or ())),
        ("Projector", _projector(config)),
        *_stage_rows(run, config),
        *(
            [("Classifier", "untrained: no method trains it, only the features")]
            if config.leaves_classifier_untrained
            else []
        ),
        ("Data", decisions["data"]["value"]),
        ("Trainable parameters", decisions["trainable parameters"]["value"]),
        ("Seed", str(config.seed)),
        *_metric_rows(run, "validation", "Validation"),
        *_metric_rows(run, "test", "Test"),
        *_teacher_rows(result, plan),
        *([("Beside the student alone", result.outcome.sentence)] if result is not None and result.outcome else []),
        *_forced_rows(run),
    ]
    table = "\n".join(f"| {key} | {_inline(value)} |" for key, value in rows)
    own = graphs or {"": library.snippet(run.student, config.task_facts)}
    codes = {**codes_of(before, library.name, (table, _made_by(plan))), **own}
    body = f"""# {_inline(name)}, distilled with kdcli

| | |
| --- | --- |
{table}

## Load it

{_codes(codes, library)}

{_samples(run) if pictures else ""}{_made_by(plan)}"""
    metrics = {split: _kept_metrics(run, split) for split in ("validation", "test")}
    loads = library if "" in codes else None
    return with_front_matter(body, name=name, config=config, library=loads, metrics=metrics)


def episodes_card(run: RunFolder, result: EpisodesResult, *, arms: dict[str, str]) -> str:
    """Return the card of a run of episodes in Markdown: the setting and what every arm reaches.

    Args:
        run: its folder, with config and plan.
        result: what they came to.
        arms: arm to what it is called.
    """
    config, plan = run.read_config(), run.read_plan()
    shown = ("student", "teacher", "relation", "data", "episodes", "training")
    rows = [(entry["name"].capitalize(), entry["value"]) for entry in plan["decisions"] if entry["name"] in shown]
    rows += [("Projector", _projector(config)), ("Seed", str(config.seed)), *_forced_rows(run)]
    table = "\n".join(f"| {key} | {_inline(value)} |" for key, value in rows)

    def line(label: str, value: Mean, style: str) -> str:
        interval = "-" if value.low is None else f"{value.low:{style}} to {value.high:{style}}"
        return f"| {label} | {value.mean:{style}} | {interval} |"

    reached = "\n".join(line(label, result.accuracy[arm], ".4f") for arm, label in arms.items())
    difference = line("distilled minus fine-tuned, paired", result.distilled_minus_fine_tuned, "+.4f")
    return f"""# {_inline(_title(config.student.name))}, distilled in episodes with kdcli

| | |
| --- | --- |
{table}

Mean accuracy on the queries, with its 95 % t-interval over the episodes. All arms have the same episodes.

| | accuracy | 95 % interval |
| --- | --- | --- |
{reached}
{difference}

`episodes.jsonl` has a line an episode. No student is kept: each episode has its own.

{_made_by(plan)}"""


def _title(name: str) -> str:
    """Return what a student is called: an architecture as its library has it, else the last part of its name."""
    prefix, _, rest = name.partition(":")
    is_network = any(library.prefix == prefix and not library.is_of_hub for library in LIBRARIES)
    return rest if is_network and not rest.startswith((".", "/", "~")) else name.rpartition("/")[2]


def _codes(codes: Codes, library: Library) -> str:
    """Return every format's code, the library's own first, with titles where there is more than that."""
    parts = []
    for title in sorted(codes):
        name = title or (library.name if len(codes) > 1 else "")
        parts.append((f"With {name}:\n\n" if name else "") + f"```python\n{codes[title]}\n```")
    return "\n\n".join(parts)


def _samples(run: RunFolder) -> str:
    """Return a section with the picture of samples; empty where there is none."""
    if not (run.path / SAMPLES).is_file():
        return ""
    return f"## Some validation samples\n\n![What its models make of some validation samples]({SAMPLES})\n\n"


def _forced_rows(run: RunFolder) -> list[tuple[str, str]]:
    """Return what had changed, where somebody went on all the same."""
    return [("Forced", sentence) for sentence in dict.fromkeys((*read_forced(run), *run.forced))]


def _made_by(plan: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in plan["versions"].items())
    command = printable(plan["command"])
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", command))])
    return f"""## Made by

{fence}sh
{command}
{fence}

{versions}
"""


def _inline(text: str) -> str:
    """Return ``text`` as one line of Markdown that stays in its cell and is no HTML."""
    return re.sub(r"([\\|<])", r"\\\1", printable(" ".join(text.split())))


def _projector(config: RunConfig) -> str:
    found = [options.describe_projector() for options in config.methods or ()]
    return "; ".join(filter(None, found)) or "none"


def _stage_rows(run: RunFolder, config: RunConfig) -> list[tuple[str, str]]:
    if config.embedding is None:
        return []
    kinds = ", ".join(options.method for options in config.embedding.methods)
    rows = _metric_rows(RunFolder(run.path / "embedding"), "validation", "Embedding stage, validation")
    return [("Embedding stage", f"{config.embedding.epochs} epochs of {kinds} before the others"), *rows]


def _teacher_rows(result: Result | None, plan: dict[str, Any]) -> list[tuple[str, str]]:
    measured = {"validation": plan["teacher_metrics"] or {}} if result is None else result.teacher
    return [
        (f"Teacher, {split} {name}", show_metric(name, value))
        for split, metrics in measured.items()
        for name, value in metrics.items()
    ]


def _metric_rows(run: RunFolder, event: str, title: str) -> list[tuple[str, str]]:
    return [(f"{title} {key}", show_metric(key, value)) for key, value in _kept_metrics(run, event).items()]


def _kept_metrics(run: RunFolder, event: str) -> dict[str, Any]:
    """Return the kept student's metrics of an event; nothing where there are none."""
    lines = run.read_metrics(event)
    # The kept student is the one of the last test or, without a test split, of the best validation.
    tests = run.read_metrics("test")
    epoch = tests[-1].get("epoch") if tests else None
    kept = [line for line in lines if (line.get("epoch") == epoch if tests else line.get("best"))][-1:]
    hidden = ("event", "epoch", "step", "best")
    return {key: value for line in kept for key, value in line.items() if key not in hidden}
