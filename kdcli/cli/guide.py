"""``kdcli guide``. Everything heavy is imported where it is used."""

from __future__ import annotations

from typing import Annotated

import typer

from kdcli.base.guides import GUIDES


def _complete(incomplete: str) -> list[str]:
    return [topic for topic in GUIDES if topic.startswith(incomplete)]


def guide(
    topic: Annotated[
        str | None, typer.Argument(help="The topic. Without it, the topics are listed.", autocompletion=_complete)
    ] = None,
) -> None:
    """Read the guides. Without a topic, list them.

    Examples:

        kdcli guide

        kdcli guide start
    """
    from kdcli.base.guides import for_terminals, guide_text, guide_title
    from kdcli.terminal.console import show_markdown, show_table

    if topic is None:
        show_table("Guides", ["topic", "about"], [[name, guide_title(name)] for name in GUIDES])
    else:
        show_markdown(for_terminals(guide_text(topic)))
