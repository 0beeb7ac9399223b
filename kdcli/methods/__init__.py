"""The distillation methods: a module each, or one for those that differ in their loss alone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from kdcli.base import extensions
from kdcli.config.methods import METHODS

if TYPE_CHECKING:
    from kdcli.config.methods import MethodOptions
    from kdcli.methods.base import Context, Method


_FORMER = {
    "student_taps": "student_reads = Reads(features=...)",
    "teacher_taps": "teacher_reads = Reads(features=...)",
    "student_maps": "student_reads = Reads(maps=...)",
    "teacher_maps": "teacher_reads = Reads(maps=...)",
    "student_logits": "student_reads = Reads(heads=...)",
    "teacher_logits": "teacher_reads = Reads(heads=...)",
    "distillation_logits": "student_reads = Reads(heads=...)",
}
"""Attributes of methods in earlier versions, and what says the same."""


def build_method(options: MethodOptions, context: Context) -> Method:
    """Build the method that ``options`` configures; ``build`` of its module does it, or its own of another package."""
    method: Method
    if options.method in METHODS:
        module = importlib.import_module(f"kdcli.methods.{options.module or options.method}")
        method = module.build(options, context)
    else:
        method = options.build(context)
        if (entry := extensions.find("methods", options.method, own=METHODS)) is not None:
            entry.refuse_former(method, _FORMER)
    method.is_balanced = options.weighting == "gradient"
    return method
