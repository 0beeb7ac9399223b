"""What a run is configured by: sections of keys, recipes, and how both are read. Imports no torch.

The names below are those that other packages' methods and tasks build on.
"""

from kdcli.config.run import (
    LayerOptions,
    LogitOptions,
    MapOptions,
    MethodSection,
    RunConfig,
    Section,
    VectorOptions,
    parse_config,
)

__all__ = [
    "LayerOptions",
    "LogitOptions",
    "MapOptions",
    "MethodSection",
    "RunConfig",
    "Section",
    "VectorOptions",
    "parse_config",
]
