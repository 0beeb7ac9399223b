"""``kdcli guide``. Everything heavy is imported where it is used."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kdcli.base.guides import GUIDES

_CONFIG = "config"
"""The topic that is made of the config's classes, and no file."""


def _complete(incomplete: str) -> list[str]:
    return [topic for topic in (*GUIDES, _CONFIG) if topic.startswith(incomplete)]


def guide(
    topic: Annotated[
        str | None, typer.Argument(help="The topic. Without it, the topics are listed.", autocompletion=_complete)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Read the guides. Without a topic, list them.

    Examples:

        kdcli guide

        kdcli guide start

        kdcli guide config

        kdcli guide --json
    """
    from kdcli.base.errors import UserError, did_you_mean
    from kdcli.base.guides import for_terminals, guide_text, guide_title
    from kdcli.terminal.console import show_markdown, show_table

    if topic is None or topic == _CONFIG:
        from kdcli.config.guide import CONFIG_TITLE, config_guide

        if topic is None:
            titles = [*((name, guide_title(name)) for name in GUIDES), (_CONFIG, CONFIG_TITLE)]
            if as_json:
                listed = [{"topic": name, "title": title} for name, title in titles]
                typer.echo(json.dumps({"guides": listed}, indent=2, ensure_ascii=False))
            else:
                show_table("Guides", ["topic", "about"], titles)
            return
        title, text = CONFIG_TITLE, config_guide()
    elif topic not in GUIDES:
        nearest = did_you_mean(topic, (*GUIDES, _CONFIG))
        raise UserError(f"There is no guide {topic!r}. {nearest}".rstrip(), f"Topics: {', '.join((*GUIDES, _CONFIG))}.")
    else:
        title, text = guide_title(topic), for_terminals(guide_text(topic))
    if as_json:
        typer.echo(json.dumps({"topic": topic, "title": title, "text": text}, indent=2, ensure_ascii=False))
    else:
        show_markdown(text)
