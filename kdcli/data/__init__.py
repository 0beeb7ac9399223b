"""Samples and labels: from a data set's name to batches that every model's preprocessing starts from.

:func:`open_data` turns a name into :class:`ImageData` (three splits and what is known about them), the loaders turn a
split into :class:`Batch` objects of uint8 canvases, :class:`Mix` mixes a batch, and :func:`prepare` makes a canvas a
model's input. :func:`open_texts` and its loaders do the same for texts, of which each model makes its own tokens; for
language models :func:`cut_into_tokens` does that once. Of words with labels :func:`cut_words` makes pieces that all
models can take.
"""

from kdcli.data.batch import AnyBatch
from kdcli.data.images.augment import Augmentation
from kdcli.data.images.batch import Batch
from kdcli.data.images.decode import UnreadableImage, decode_image
from kdcli.data.images.dense.open import open_dense
from kdcli.data.images.loaders import EvalLoader, TrainLoader
from kdcli.data.images.mix import Mix
from kdcli.data.images.open import open_data, open_for_more, open_unlabelled
from kdcli.data.images.preprocess import fit, prepare
from kdcli.data.images.sources import ImageSource
from kdcli.data.images.splits import ImageData
from kdcli.data.images.translation.open import open_translation
from kdcli.data.source import EvalBatches, Loading, Sample, Source, TrainBatches
from kdcli.data.texts.batch import Text, TextBatch, TextPair, TokenBatch, WordBatch
from kdcli.data.texts.files import open_texts
from kdcli.data.texts.sources import TextData, TextEvalLoader, TextSource, TextTrainLoader
from kdcli.data.texts.tokens import Masking, TokenSource, cut_into_tokens
from kdcli.data.texts.words import Reader, WordSource, cut_words

__all__ = [
    "AnyBatch",
    "Augmentation",
    "Batch",
    "EvalBatches",
    "EvalLoader",
    "ImageData",
    "ImageSource",
    "Loading",
    "Masking",
    "Mix",
    "Reader",
    "Sample",
    "Source",
    "Text",
    "TextBatch",
    "TextData",
    "TextEvalLoader",
    "TextPair",
    "TextSource",
    "TextTrainLoader",
    "TokenBatch",
    "TokenSource",
    "TrainBatches",
    "TrainLoader",
    "UnreadableImage",
    "WordBatch",
    "WordSource",
    "cut_into_tokens",
    "cut_words",
    "decode_image",
    "fit",
    "open_data",
    "open_dense",
    "open_for_more",
    "open_texts",
    "open_translation",
    "open_unlabelled",
    "prepare",
]
