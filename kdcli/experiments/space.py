"""What ``kdcli tune`` searches: keys of the config with their ranges, and the config of a choice. No torch."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.names import ProjectorName
from kdcli.base.text import short_repr
from kdcli.base.yaml import parse_yaml
from kdcli.config.described import describe_keys
from kdcli.config.keys import options_of
from kdcli.config.methods import MethodOptions, MethodSection
from kdcli.config.parse import parse_config
from kdcli.config.recipes import set_key
from kdcli.config.run import RunConfig
from kdcli.config.situation import Situation
from kdcli.config.words import keys_meant, shown
from kdcli.plan.decide import make_plan
from kdcli.plan.plan import Plan

PLAN = "plan"
"""What stands for the plan's own keys among those that are asked for."""
_METHODS = "methods."
_SECTIONS = ("optim.", "augment.", "embedding.optim.", _METHODS)
_KEYS = frozenset(
    {"projector", "normalize", "feature_weight", "feature_layers", "method", "student.drop_path"}
    | {"train.batch_size", "train.accumulation", "train.ema", "data.labelled_share"}
)
"""Keys of other sections that are about training, and leave models and validation samples as they are."""
_RANGE = re.compile(r"([^.,:][^,:]*?)\.\.([^,:]+?)(:log)?")
_EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")
_RATE, _RATIO, _WEIGHT = 5, 10, 30
"""Up to how many times more and less than the recipe's is tried: of a learning rate, of a ratio of gradients, and of a
factor of a loss, whose scale nobody knows."""
_WAY = "For example: --tune optim.lr=0.001..0.1:log, or --tune train.batch_size=32,64"


@dataclass(frozen=True)
class Choices:
    """Some values, by what they are called."""

    values: Mapping[str, Any]

    def __str__(self) -> str:
        return ", ".join(self.values)


@dataclass(frozen=True)
class Range:
    """All numbers between two, both included.

    Attributes:
        low: the least.
        high: the greatest.
        is_log: drawn evenly by logarithm.
        is_whole: whole numbers alone.
    """

    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}{':log' if self.is_log else ''}"


@dataclass(frozen=True)
class Tuned:
    """A key that is tuned.

    Attributes:
        key: of the config; ``methods.NAME.KEY`` is of every method of that name, ``methods.0.KEY`` of one.
        space: what it may be.
        own: what it is in the recipe's own plan, a number or what the choice is called; None where it is out of the
            space.
    """

    key: str
    space: Choices | Range
    own: float | str | None

    def value_of(self, drawn: float | str) -> Any:
        """Return what the config gets for what was drawn: a number has four digits."""
        if isinstance(self.space, Choices):
            return self.space.values[str(drawn)]
        if self.space.is_whole:
            return int(drawn)
        return min(max(float(f"{drawn:.4g}"), self.space.low), self.space.high)


@dataclass(frozen=True)
class SearchSpace:
    """The keys that are tuned, and what they are settings of.

    Attributes:
        situation: what the recipe's own plan is made from.
        plan: the recipe's own.
        open_taps: opens the layers that a config names, gives it with their names, and the situation with these layers.
        tuned: the keys.
        left_out: of the plan's own keys what can't be, a sentence each.
    """

    situation: Situation
    plan: Plan
    open_taps: Callable[[RunConfig], tuple[RunConfig, Situation]]
    tuned: tuple[Tuned, ...] = ()
    left_out: tuple[str, ...] = field(default=())

    def values_of(self, drawn: Mapping[str, float | str]) -> dict[str, Any]:
        """Return the values of the config by key for what was drawn."""
        return {tuned.key: tuned.value_of(drawn[tuned.key]) for tuned in self.tuned}

    def config_of(self, chosen: Mapping[str, Any]) -> RunConfig:
        """Return the config with these values by key, its methods written out.

        The plan is made anew of the keys that it is made from, and those of its methods are set after that.

        Raises:
            UserError: a key is unknown, or a value can't be.
        """
        source = "--tune " + " ".join(f"{key}={_text(value)}" for key, value in chosen.items())
        values = self.situation.config.model_dump(mode="json")
        for key, value in chosen.items():
            if not key.startswith(_METHODS):
                values = set_key(values, key.split("."), value)
        config = parse_config(values, source=source)
        config = make_plan(replace(self.situation, config=config)).resolve(config)
        of_methods = {key: value for key, value in chosen.items() if key.startswith(_METHODS)}
        if of_methods:
            methods = config.methods or ()
            listed = [options.model_dump(mode="json") for options in methods]
            for key, value in of_methods.items():
                _, name, option = key.split(".", 2)
                for number in _numbers_of(name, methods, key):
                    if option == "projector":  # its rate goes with it
                        listed[number] = methods[number].with_projector(value, ratio=None).model_dump(mode="json")
                    listed[number] = set_key(listed[number], option.split("."), value)
            config = parse_config(config.model_dump(mode="json") | {"methods": listed}, source=source)
        config, situation = self.open_taps(config)
        return make_plan(replace(situation, config=config)).resolve(config)


def search_space(space: SearchSpace, asked: Sequence[str]) -> SearchSpace:
    """Return the space with the keys that are asked for, or with the plan's own where none is.

    Args:
        space: without keys.
        asked: ``KEY=V1,V2``, ``KEY=LOW..HIGH``, ``KEY=LOW..HIGH:log``, or ``plan`` for the plan's own keys.

    Raises:
        UserError: a key can't be tuned or is given twice, or a value of it can't be.
    """
    texts = [text for text in asked if text.strip() != PLAN]
    named = [_parse(text, space) for text in texts]
    for key, count in Counter(tuned.key for tuned in named).items():
        if count > 1:
            raise UserError(f"--tune {key} is given {count} times.", "Give a key once, with all its values.")
    left_out: list[str] = []
    if len(texts) == len(asked) and asked:
        return replace(space, tuned=tuple(named))
    keys = {tuned.key for tuned in named}
    own = [tuned for tuned in _of_plan(space, left_out) if tuned.key not in keys]
    return replace(space, tuned=(*own, *named), left_out=tuple(left_out))


def _of_plan(space: SearchSpace, left_out: list[str]) -> list[Tuned]:
    """Return what is tuned where nobody says what: the learning rate, weights, projectors, the teacher's layer."""
    config, rate = space.situation.config, space.situation.config.optim.lr
    found = [Tuned("optim.lr", Range(rate / _RATE, rate * _RATE, is_log=True), rate)]
    kinds = Counter(options.method for options in space.plan.methods)
    seen: set[str] = set()
    for options in space.plan.methods:
        prefix = f"{_METHODS}{options.method}"
        if options.method in seen:
            continue
        seen.add(options.method)
        for key in options.tuned:
            value = getattr(options, key)
            times = _RATIO if options.weighting == "gradient" else _WEIGHT
            found.append(Tuned(f"{prefix}.{key}", Range(value / times, value * times, is_log=True), value))
        if options.projector_name is not None:
            key = "projector" if config.methods is None else f"{prefix}.projector"
            names = {name: name for name in get_args(ProjectorName)}
            found.append(_possible(Tuned(key, Choices(names), options.projector_name), space, left_out))
        if "teacher_tap" in type(options).model_fields and kinds[options.method] == 1 and options.needs.teacher:
            layers = _layers(options, space.situation)
            if len(layers) > 1:
                taps = Choices({name: name for name in layers})
                found.append(_possible(Tuned(f"{prefix}.teacher_tap", taps, options.pairs[0].teacher), space, left_out))
    return [tuned for tuned in found if not isinstance(tuned.space, Choices) or len(tuned.space.values) > 1]


def _layers(options: MethodSection, situation: Situation) -> list[str]:
    """Return the teacher's layers that a method of one pair may read: the ends of its stages, and the last features."""
    teacher = situation.teacher
    if teacher is None or getattr(options, "layers", None) is not None:
        return []
    of_maps = options.reads_layers == "maps"
    known = teacher.grids if of_maps else teacher.feature_dims
    names = dict.fromkeys((*teacher.stages, "pooled", *(pair.teacher for pair in options.pairs)))
    return [name for name in names if name in known]


def _possible(tuned: Tuned, space: SearchSpace, left_out: list[str]) -> Tuned:
    """Return the key without the choices that can't be, which are told in ``left_out``."""
    assert isinstance(tuned.space, Choices)
    kept = {}
    for name, value in tuned.space.values.items():
        try:
            space.config_of({tuned.key: value})
        except UserError as error:
            left_out.append(f"{tuned.key}={name} is left out: {error.message}")
            continue
        kept[name] = value
    return replace(tuned, space=Choices(kept))


def _parse(text: str, space: SearchSpace) -> Tuned:
    key, equals, raw = (part.strip() for part in text.partition("="))
    if not equals or not key or not raw:
        raise UserError(f"--tune {short_repr(text)} is not of the form KEY=V1,V2 or KEY=LOW..HIGH.", _WAY)
    name = _checked(key, space)
    found = _RANGE.fullmatch(raw)
    parsed = _read_range(key, found, name) if found else _read_choices(key, raw)
    ends = parsed.values.values() if isinstance(parsed, Choices) else (parsed.low, parsed.high)
    for value in ends:
        space.config_of({key: int(value) if isinstance(parsed, Range) and parsed.is_whole else value})
    return Tuned(key, parsed, _own(key, parsed, space))


def _checked(key: str, space: SearchSpace) -> str:
    """Return what ``kdcli config keys`` lists a key as.

    Raises:
        UserError: there is no such key, or trials may not change it.
    """
    if key.startswith(_METHODS):
        _, _, rest = key.partition(".")
        name, dot, option = rest.partition(".")
        if not dot:
            raise UserError(f"--tune {key} names no option of a method.", "For example: methods.projection.weight")
        options = space.plan.methods[_numbers_of(name, space.plan.methods, key)[0]]
        return f"{_METHODS}{options.method}.{option}"
    if key in options_of(RunConfig):
        if not key.startswith(_SECTIONS) and key not in _KEYS:
            raise UserError(
                f"{key} is not for trials to change: they share models, data and length, so that they compare.",
                f"'kdcli sweep --vary {key}=...' compares runs that differ in it.",
            )
        return key
    meant = keys_meant(key)
    raise UserError(
        f"--tune {short_repr(key)}: there is no such key. {f'Did you mean {shown(meant)}?' if meant else ''}".rstrip(),
        "'kdcli config keys WORD' finds keys.",
    )


def _numbers_of(name: str, methods: Sequence[MethodOptions], key: str) -> list[int]:
    """Return the places of the methods that ``methods.NAME`` stands for."""
    if name.isascii() and name.isdigit():
        found = [int(name)] if int(name) < len(methods) else []
    else:
        found = [number for number, options in enumerate(methods) if options.method == name]
    if not found:
        names = list(dict.fromkeys(options.method for options in methods))
        raise UserError(
            f"--tune {key}: the plan has no method {name}. {did_you_mean(name, names)}".rstrip(),
            f"It has: {', '.join(names)}.",
        )
    return found


def _read_range(key: str, found: re.Match[str], name: str) -> Range:
    """Read the ends of a range of a key, which ``kdcli config keys`` lists as ``name``."""
    is_log = found[3] is not None
    try:
        low, high = float(found[1]), float(found[2])
    except ValueError:
        raise UserError(f"--tune {key}={found[0]}: the ends of a range are numbers.", _WAY) from None
    if not low < high:
        raise UserError(f"--tune {key}={found[0]}: the first end is not below the second.", _WAY)
    if is_log and low <= 0:
        raise UserError(f"--tune {key}={found[0]}: by logarithm both ends are above 0.", _WAY)
    is_whole = any(one.values.startswith("whole number") for one in describe_keys() if one.name == name)
    if is_whole and not (low.is_integer() and high.is_integer()):
        raise UserError(f"--tune {key}={found[0]}: {key} takes whole numbers.", _WAY)
    return Range(low, high, is_log, is_whole)


def _read_choices(key: str, raw: str) -> Choices:
    try:
        values = parse_yaml(f"[{raw}]")
    except ValueError:
        values = None
    if not isinstance(values, list) or not values:
        raise UserError(f"--tune {key}: the values {short_repr(raw)} are no YAML, parted by commas.", _WAY)
    # YAML takes 1e-3 for text: its numbers with an exponent have a point.
    values = [float(one) if isinstance(one, str) and _EXPONENT.fullmatch(one) else one for one in values]
    named = {_text(value): value for value in values}
    if len(named) < len(values):
        raise UserError(f"--tune {key}={raw} gives a value twice.", "Give each value once.")
    return Choices(named)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _own(key: str, space: Choices | Range, within: SearchSpace) -> float | str | None:
    """Return what the recipe's own plan has for a key; None where that is out of the space, or the plan's to choose."""
    config = within.plan.resolve(within.situation.config)
    value: Any = within.situation.config.model_dump(mode="json")
    if key.startswith(_METHODS):
        _, name, key = key.split(".", 2)
        value = (config.methods or ())[_numbers_of(name, within.plan.methods, key)[0]].model_dump(mode="json")
    elif key == "projector":
        names = [options.projector_name for options in within.plan.methods if options.projector_name is not None]
        value = {key: names[0] if names else None}
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(space, Choices):
        return _text(value) if _text(value) in space.values else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and space.low <= value <= space.high else None
