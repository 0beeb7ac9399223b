"""kdcli: distil compact models from arbitrary pretrained teachers."""

__version__ = "0.1.0"
