"""Images and labels: from a data set's name to batches that every model's preprocessing starts from.

:func:`open_data` turns a name into :class:`ImageData` (three splits and what is known about them), the loaders turn a
split into :class:`Batch` objects of uint8 canvases, :class:`Mix` mixes a batch, and :func:`prepare` makes a canvas a
model's input.
"""

from kdcli.data.augment import Augmentation
from kdcli.data.batch import Batch
from kdcli.data.images import UnreadableImage, decode_image
from kdcli.data.loaders import EvalLoader, TrainLoader
from kdcli.data.mix import Mix
from kdcli.data.names import open_data
from kdcli.data.preprocess import fit, prepare
from kdcli.data.sources import ImageSource
from kdcli.data.splits import ImageData

__all__ = [
    "Augmentation",
    "Batch",
    "EvalLoader",
    "ImageData",
    "ImageSource",
    "Mix",
    "TrainLoader",
    "UnreadableImage",
    "decode_image",
    "fit",
    "open_data",
    "prepare",
]
