"""Whether anything of a split can be measured, known before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.data.images.decode import UnreadableImage


def check_measured(source: Any, counts: Callable[[Any], bool], nothing: UserError) -> None:
    """Refuse a split of whose samples none counts. Samples are read up to the first that does: mostly one.

    Args:
        source: the split.
        counts: whether something of a sample's target is measured.
        nothing: what is raised otherwise; not where no sample can be read, which is told of elsewhere.

    Raises:
        UserError: ``nothing``.
    """
    has_read = False
    for index, label in enumerate(source.labels):
        if label == UNLABELLED:
            continue
        try:
            target = source.load(index).target
        except UnreadableImage:
            continue
        if counts(target):
            return
        has_read = True
    if has_read:
        raise nothing
