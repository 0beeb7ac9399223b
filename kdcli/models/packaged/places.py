"""Where a row's model is: the library that it is built by, and its weights."""

from __future__ import annotations

from kdcli.models.packaged.rows import ROWS
from kdcli.models.place import Place


def place_of(name: str) -> Place:
    """Return the place of the row called ``name``; a classifier's is timm's, of whose networks it is one."""
    row = ROWS[name]
    library = "timm" if row.architecture else "packaged"
    return Place(library, f"package:{name}", architecture=row.architecture or name, packaged=row)
