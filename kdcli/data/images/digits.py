"""scikit-learn's handwritten digits, read from its package without the second and a half that its import takes."""

from __future__ import annotations

import gzip
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Digits(NamedTuple):
    """1797 digits: pictures (N, 8, 8) in 0..16, float64, and the digits that they are, int64 (N,)."""

    images: NDArray[np.float64]
    target: NDArray[np.int64]


@lru_cache(maxsize=1)
def read_digits() -> Digits:
    """Return the digits, in the order of ``sklearn.datasets.load_digits``."""
    spec = find_spec("sklearn")
    assert spec is not None, "scikit-learn is a requirement of kdcli"
    file = Path((spec.submodule_search_locations or [""])[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",")
    return Digits(table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64))
