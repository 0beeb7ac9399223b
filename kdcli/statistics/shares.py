"""Which metrics are shares of a whole, and so are shown in percent."""

from __future__ import annotations

import re

_SHARES = re.compile(r"(.*_)?(accuracy|iou|f1|precision|recall)(_.*)?|map(_.*)?|top\d+|delta\d")


def is_share(metric: str) -> bool:
    """Whether a metric is from 0 to 1 and means a share, going by its name without the split's."""
    return _SHARES.fullmatch(metric) is not None
