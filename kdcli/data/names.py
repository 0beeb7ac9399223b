"""From a data set's name to its splits."""

from __future__ import annotations

from kdcli.config import DataConfig
from kdcli.data.demo import DEMOS, open_demo
from kdcli.data.folders import open_folder
from kdcli.data.sources import OfficialSplits
from kdcli.data.splits import ImageData, complete
from kdcli.data.tables import holds_tables, open_hub, open_local_tables
from kdcli.data.torchvision_sets import SETS, open_torchvision
from kdcli.errors import UserError, did_you_mean, reading
from kdcli.text import expand_user

_FORMS = (
    "Data are named as demo:digits, torchvision:CIFAR100, hf:org/name, a folder of class folders, or parquet and arrow "
    "files."
)


def open_data(config: DataConfig, *, seed: int) -> ImageData:
    """Open the data set that ``config`` names, and split it.

    Args:
        config: name, splits and labels.
        seed: the run's; cuts the validation split and draws ``labels_per_class``. Test images never depend on it.

    Raises:
        UserError: an unknown name, missing or unsuitable files, a failed download, or a split that can't be made.
    """
    with reading(config.name):
        return complete(_open(config), config, seed=seed)


def _open(config: DataConfig) -> OfficialSplits:
    scheme, colon, rest = config.name.partition(":")
    if scheme == "hf" and rest:
        return open_hub(rest, config)
    path = expand_user(config.name)
    is_tables = path.exists() and holds_tables(path)
    options = ("image_column", "label_column", "subset")
    if not is_tables and (given := [f"data.{key}" for key in options if getattr(config, key) is not None]):
        raise UserError(
            f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} set, but {config.name} is not a table.",
            "Leave it out: it is for hf: data sets, parquet and arrow files.",
        )
    if colon and scheme == "demo":
        return open_demo(rest)
    if colon and scheme == "torchvision":
        return open_torchvision(rest, root=config.root)
    if is_tables:
        return open_local_tables(path, config)
    if path.is_dir():
        return open_folder(path)
    if path.exists():
        raise UserError(f"{path} is neither a folder nor a parquet or arrow file.", _FORMS)
    raise UserError(f"There is no data set or folder {config.name!r}.", f"{_suggestion(config.name)} {_FORMS}".strip())


def _suggestion(name: str) -> str:
    """Return what a name without a valid prefix, or with a misspelt one, may have meant."""
    valid = [f"demo:{demo}" for demo in DEMOS] + [f"torchvision:{set_name}" for set_name in SETS]
    bare = name.rpartition(":")[2].lower()
    if exact := [full for full in valid if full.partition(":")[2].lower() == bare]:
        return f"Did you mean {exact[0]}?"
    return did_you_mean(name, valid)
