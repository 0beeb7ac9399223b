"""The signals that ask a command to stop."""

from __future__ import annotations

import signal

_NAMES = ("SIGHUP", "SIGINT", "SIGTERM")


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return those that the system has; SIGHUP only where it is not ignored, as ``nohup`` has it."""
    found = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    return tuple(n for n in found if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN)
