"""``kdcli cache``: with the options of ``kdcli distill``, but for those of the student's training and records."""

from __future__ import annotations

import inspect
from typing import Any

import typer

from kdcli.cli.distill import distill
from kdcli.cli.given import config_given, tell_demo
from kdcli.cli.sets import given_keys

_LEFT_OUT = {
    *("resume", "force", "output", "baseline", "test", "checkpoint_every", "track", "log_format"),
    *("ways", "shots", "episodes", "queries", "eval_data", "lr"),
}
"""Options of ``distill`` that make no difference to what is read of a teacher."""


def cache(context: typer.Context, **options: Any) -> None:
    """Fill a teacher cache ahead: run the teacher on all that a training would read of it, and train nothing.

    Takes the command line of the training, with 'cache' in place of 'distill'. The student has to be named, as the plan
    makes of it what is read, but it need not have been trained. Stopped or killed, the same command goes on. With
    --num-processes each process has its share.

    Examples:

        kdcli cache --recipe quickstart --cache-teacher cache/

        kdcli cache --teacher resnet50 --student resnet18 --data photos/ --epochs 30 --cache-teacher cache/

        kdcli cache --teacher resnet50 --student resnet18 --data photos/ --cache-teacher cache/ --cache-views 4
    """
    quiet = options["quiet"]
    config, is_demo = config_given(given_keys(context, cache), options["set_"] or [], recipe=options["recipe"])
    if is_demo:
        tell_demo(config, log_format="auto", quiet=quiet)
    from kdcli.experiments.cache import fill_cache
    from kdcli.experiments.output import Output

    if code := fill_cache(config, output=Output(quiet=quiet), dry_run=options["dry_run"]):
        raise typer.Exit(code)


def _take_options() -> None:
    """Give :func:`cache` the options of :func:`distill`, each with its key, help and panel."""
    signature = inspect.signature(distill, eval_str=True)
    kept = [parameter for name, parameter in signature.parameters.items() if name not in _LEFT_OUT]
    cache.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    cache.__annotations__ = {parameter.name: parameter.annotation for parameter in kept} | {"return": None}


_take_options()
