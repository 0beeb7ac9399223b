"""What of a plan decides: some ten lines that fit a screen, with every warning. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kdcli.config.methods import MethodOptions
from kdcli.plan.plan import Decision, Plan
from kdcli.plan.settings import CROPS


class Line(NamedTuple):
    """A line of a summary: what it is about, and what is said."""

    name: str
    text: str
    is_warning: bool = False


_MEASURED = ("teacher measured", "teacher probed")
_CACHE = "teacher cache"
_SEEN = ("seen in our bench", "seen in our claims")
_OWN = ("relation", "method", "teacher", "student", "data", "training", *_MEASURED, *_SEEN)
_COSTS = ("compression", "trainable parameters", "memory", "computation")
_TAPS = "features: "


def summarise(plan: Plan) -> list[Line]:
    """Return the summary: one line each for what decides, one for each warning, and where the rest is."""
    by_name = {decision.name: decision for decision in plan.decisions}
    lines = []
    for name in ("relation", "method", "teacher", "student", "data"):
        if name in by_name:
            lines.append(Line(name, _told(by_name[name])))
    if plan.embedding is not None:
        lines.append(Line("first stage", _losses(plan.embedding.methods)))
    lines.append(Line("losses", _losses(plan.methods)))
    taps = [decision.value for decision in plan.decisions if _TAPS in decision.name]
    if taps:
        lines.append(Line("layers", "; ".join(dict.fromkeys(taps))))
    if "training" in by_name:
        lines.append(Line("training", by_name["training"].value))
    costs = [by_name[name] for name in _COSTS if name in by_name]
    if costs:
        lines.append(Line("cost", "; ".join(_cost(decision) for decision in costs)))
    lines += [Line(name.split()[-1], _told(by_name[name])) for name in (*_MEASURED, _CACHE) if name in by_name]
    for name in _SEEN:
        if name in by_name:
            kind = f"with this relation in {name.removeprefix('seen in ')}"
            lines.append(Line("seen", f"{by_name[name].value} {kind}; yours can differ, --baseline measures it"))
    if CROPS in by_name:
        lines.append(Line("hint", f"{CROPS}: {by_name[CROPS].value}; {_first_sentence(by_name[CROPS].reason)}"))
    warnings = dict.fromkeys(decision.warning for decision in plan.decisions if decision.warning)
    lines += [Line("warning", warning.removeprefix("Warning: "), is_warning=True) for warning in warnings]
    return [*lines, Line("more", f"--plan full: all {len(plan.decisions)} decisions with their reasons, as plan.json")]


def _told(decision: Decision) -> str:
    value = decision.brief or decision.value
    if decision.name in ("relation", "method"):
        return f"{value}: {_first_sentence(decision.reason)}"
    return f"{value} ({decision.reason})" if decision.name in ("teacher", "student") and decision.reason else value


def _first_sentence(text: str) -> str:
    return text.split(". ")[0].rstrip(".")


def _cost(decision: Decision) -> str:
    if decision.name == "trainable parameters":
        return f"trains {decision.value.split(':')[0]} parameters"
    if decision.name == "memory":
        return f"memory {decision.value}"
    return decision.value


def _losses(methods: Sequence[MethodOptions]) -> str:
    return "; ".join(map(_loss, methods))


def _loss(options: MethodOptions) -> str:
    settings = options.shown()
    told = [f"{options.method.replace('_', ' ')} {settings['weight']}" if "weight" in settings else options.method]
    if settings.get("weighting") == "gradient":
        told.append("of the labels' gradient")
    if options.projector_name is not None:
        told.append(f"through the {options.projector_name} projector")
    if settings.get("normalize", "none") != "none":
        told.append(f"({settings['normalize']})")
    return " ".join(told)
