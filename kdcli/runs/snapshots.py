"""Pictures of the student's answers over training, in a run folder.

``samples/step-NNNNNNNN.png`` is a grid of what the student of that step makes of some validation samples, and
``samples_over_time.png`` has all of them side by side. They have no checksums: nothing is made of them but that strip.
"""

from __future__ import annotations

import re
from pathlib import Path

from kdcli.base.files import clear_os_errors

WORST = "worst.png"
"""The validation samples that the best student is worst at; without a checksum, too."""
FOLDER = "samples"
STRIP = "samples_over_time.png"
_NAME = re.compile(r"step-(\d+)\.png")


def grid_file(run: Path, step: int) -> Path:
    """Return the file of the grid of a step."""
    return run / FOLDER / f"step-{step:08}.png"


def grids(run: Path) -> dict[int, Path]:
    """Return the files of a run's grids by their steps, in order."""
    files = {int(found[1]): file for file in (run / FOLDER).glob("step-*.png") if (found := _NAME.fullmatch(file.name))}
    return dict(sorted(files.items()))


def cut_grids(run: Path, step: int) -> None:
    """Drop the grids of steps after ``step``: they will be drawn again. The strip goes where it shows one of them."""
    late = [file for at, file in grids(run).items() if at > step]
    with clear_os_errors(run):
        for file in late:
            file.unlink(missing_ok=True)
        if late:
            (run / STRIP).unlink(missing_ok=True)
