"""One module a method, named as the method: its losses and the modules it trains."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdcli.config import MethodOptions
    from kdcli.methods.base import Context, Method


def build_method(options: MethodOptions, context: Context) -> Method:
    """Build the method that ``options`` configures; ``kdcli.methods.NAME.build`` does it."""
    module = importlib.import_module(f"kdcli.methods.{options.method}")
    method: Method = module.build(options, context)
    return method
