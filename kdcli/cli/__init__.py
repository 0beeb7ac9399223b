"""The command line: options to calls, a module for each group of commands."""

from kdcli.cli.app import main

__all__ = ["main"]
