"""Latencies that were measured before on this machine, in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import platform

import torch

from kdcli import __version__
from kdcli.base.errors import UserError
from kdcli.base.files import cache_folder, write_atomically
from kdcli.models.base import Model
from kdcli.models.costs import latency_of


def known_latency(model: Model) -> float:
    """Return the milliseconds of one sample, as :func:`kdcli.models.costs.latency_of` measured them the first time.

    They are those of the fastest pass, as what is kept must not depend on what else the machine did just then.

    A network is found again by its library, name, shape and input; its weights change nothing. The machine is known by
    its name, processor, number of threads and torch's version: on another one it is measured anew.
    """
    facts = model.facts
    key = {
        "kdcli": __version__,
        "torch": torch.__version__,
        "machine": [platform.node(), platform.machine(), platform.processor(), os.cpu_count(), torch.get_num_threads()],
        "device": str(next(model.parameters()).device),
        "model": [facts.library, facts.name, facts.num_parameters, facts.macs, facts.activation_bytes],
        "input": repr(facts.preprocessing),
        "reads": repr(model.predictions),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
    file = cache_folder() / "latencies" / f"{digest[:40]}.json"
    try:
        found = json.loads(file.read_bytes())["milliseconds"]
        if isinstance(found, float) and found > 0:
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never measured, or not whole: it is measured now
    milliseconds = latency_of(model, fastest=True)
    text = json.dumps({"milliseconds": milliseconds, **key})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda new: new.write_text(text, encoding="utf-8"))
    except (OSError, UserError):
        pass  # a folder that can't be written to costs the next start some passes
    return milliseconds
