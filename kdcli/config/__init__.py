"""What a run is configured by: sections of keys, recipes, and how both are read. Imports no torch.

The names below are those that other packages' methods and tasks build on.
"""

from kdcli.config.methods import LayerOptions, LogitOptions, MapOptions, MethodSection, VectorOptions
from kdcli.config.parse import parse_config
from kdcli.config.run import RunConfig
from kdcli.config.section import Section

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
