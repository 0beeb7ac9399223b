"""Which model of the Hugging Face hub weights are from."""

from __future__ import annotations

from kdcli.base.text import expand_user
from kdcli.models.libraries import LIBRARIES
from kdcli.models.library import HubSource
from kdcli.models.locate import HUB_ID
from kdcli.models.spec import parse_name


def source_on_hub(name: str) -> HubSource | None:
    """Return where the hub has the published weights of a model of this name; None where that is not known.

    No network is asked.
    """
    parsed = parse_name(name)
    if parsed is None or parsed.random or expand_user(parsed.target).exists():
        return None
    for library in LIBRARIES:
        if parsed.library in (None, library.name) and (found := library.source(parsed)) is not None:
            return found
    if not HUB_ID.fullmatch(parsed.target) or parsed.target.startswith("."):
        return None
    return HubSource(parsed.target.partition("@")[0])
