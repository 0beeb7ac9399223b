"""The distillation methods: a module each, or one for those that differ in their loss alone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from kdcli.config.methods import METHODS

if TYPE_CHECKING:
    from kdcli.config.methods import MethodOptions
    from kdcli.methods.base import Context, Method

_MODULES = dict.fromkeys(
    (
        "attention_transfer",
        "correlation_congruence",
        "nst",
        "pkt",
        "rkd_angle",
        "rkd_distance",
        "similarity_preserving",
    ),
    "pairwise",
)
"""The modules of the methods that have none of their own name."""


def build_method(options: MethodOptions, context: Context) -> Method:
    """Build the method that ``options`` configures; ``build`` of its module does it, or its own of another package."""
    method: Method
    if options.method in METHODS:
        module = importlib.import_module(f"kdcli.methods.{_MODULES.get(options.method, options.method)}")
        method = module.build(options, context)
    else:
        method = options.build(context)
    method.is_balanced = options.weighting == "gradient"
    return method
