"""The distillation methods: a module each, or one for those that differ in their loss alone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from kdcli.config.methods import METHODS

if TYPE_CHECKING:
    from kdcli.config.methods import MethodOptions
    from kdcli.methods.base import Context, Method


def build_method(options: MethodOptions, context: Context) -> Method:
    """Build the method that ``options`` configures; ``build`` of its module does it, or its own of another package."""
    method: Method
    if options.method in METHODS:
        module = importlib.import_module(f"kdcli.methods.{options.module or options.method}")
        method = module.build(options, context)
    else:
        method = options.build(context)
    method.is_balanced = options.weighting == "gradient"
    return method
