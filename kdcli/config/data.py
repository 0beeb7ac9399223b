"""The sections of data and augmentation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from kdcli.base.facts import DepthAlignment, DepthCrop, ExtractorFacts
from kdcli.base.text import short_repr
from kdcli.config.section import (
    BESIDE_THE_RECIPE,
    CHANGEABLE,
    IMAGES,
    TEXTS,
    Count,
    Fraction,
    ImageSize,
    Key,
    Location,
    Name,
    Positive,
    Section,
    as_list,
    as_texts,
    height_and_width,
)

_OF_TRAINING = Key(of_training=True)
_OF_LABELS = Key(of_labels=True)
_OF_THESE_DATA = Key(of_these_data=True)
_NOT_OF_EVAL_DATA = Key(of_eval_data=False)
_OF_UNLABELLED = Key(
    tasks=lambda task: task.reads_images or task.target != "words",
    why_not="words without labels are those of the data whose label is null",
)
_OF_PAIRS = Key(tasks=lambda task: task.target == "label", why_not="it reads single texts")
_OF_KINDS = Key(tasks=lambda task: task.target == "label", why_not="it reads no such labels")
_OF_DEPTH = Key(
    tasks=lambda task: task.target == "depth",
    why_not="it reads no depth",
    of_eval_data=False,
    evaluates=lambda task: task.target == "depth",
)
_OF_MASKS = Key(tasks=lambda task: task.head == "masked", why_not="nothing is masked")
_OF_WHOLE_SAMPLES = Key(
    tasks=lambda task: not task.is_dense,
    why_not="an image has labels of many classes; data.train_images takes fewer images, data.labelled_images fewer of"
    " their labels",
)
_OF_BOXES = Key(tasks=lambda task: task.target == "boxes", why_not="it reads no boxes", of_eval_data=False)
_OF_PIXELS = Key(
    tasks=lambda task: task.target in ("pixels", "image"),
    why_not="its labels are no classes of pixels",
    of_eval_data=False,
)
_OF_DENSE_CLASSES = Key(
    tasks=lambda task: task.target in ("pixels", "boxes", "image"),
    why_not="its labels are no classes of pixels or boxes",
    of_eval_data=False,
)
_OF_PICTURES = Key(
    tasks=lambda task: task.target == "image",
    why_not="no image is made of another",
    of_eval_data=False,
    evaluates=lambda task: task.target == "image",
)
_OF_DENSE_PIXELS = Key(
    tasks=lambda task: task.target in ("pixels", "depth", "image"),
    why_not="pixels have no labels there",
    of_eval_data=False,
)
_OF_CHANNELS = Key(
    tasks=lambda task: not task.makes_images,
    why_not="it makes images, of the colours red, green and blue",
    of_eval_data=False,
)
_OF_MADE_IMAGES = Key(
    tasks=lambda task: task.makes_images,
    why_not="it makes no images",
    of_eval_data=False,
    evaluates=lambda task: task.makes_images,
)


_OF_STREAMS = Key(
    tasks=lambda task: not task.is_dense,
    why_not="its targets are not streamed along with the images",
)


ReducedDecoding = Literal["never", "training", "always"]
"""Which images are decoded at a part of their size where that is enough."""


_OF_CLASSES = Key(
    tasks=lambda task: task.target == "label",
    why_not="its samples have no class each",
)
_OF_WEIGHTED_CLASSES = Key(
    tasks=lambda task: task.target in ("label", "pixels"),
    why_not="its labels are no classes of samples or pixels",
)


def _as_weights(value: Any) -> Any:
    """Return weights by the names of classes, which YAML may have read as numbers; ``balanced`` as it is."""
    if value in (None, "balanced"):
        return value
    if not isinstance(value, Mapping) or not value:
        raise ValueError("balanced is wanted, or a weight for each class by its name")
    for name, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ValueError(f"a weight is a number above 0, and that of {name} is {short_repr(weight)}")
    return {str(name): float(weight) for name, weight in value.items()}


BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
"""What the four numbers of a box are: corners; left, top, width and height; centre, width and height."""


class SplitsConfig(Section):
    """What the data's own splits are called: folders, files (without suffix too) or splits of a table."""

    train: Name | None = None
    """What the samples to train on are called."""
    validation: Name | None = None
    """What those are called by which the best student is chosen."""
    test: Name | None = None
    """What those are called that are looked at once, at the end."""


class DataConfig(Section):
    """Where the samples come from and how they are split."""

    name: Annotated[Name, CHANGEABLE]
    """``demo:digits``, ``torchvision:NAME``, ``hf:org/name``, a folder or a file."""
    root: Annotated[Location | None, IMAGES, CHANGEABLE, _OF_TRAINING] = None
    """Where ``torchvision:`` data sets lie or are downloaded to."""
    classes: Annotated[
        Annotated[tuple[str, ...], BeforeValidator(as_texts), Field(min_length=1)] | None,
        IMAGES,
        _OF_LABELS,
        _OF_THESE_DATA,
        _OF_WHOLE_SAMPLES,
    ] = None
    """Take these classes alone: names, numbers and ranges (``0-4,7``; names where classes have such), or a part of
    them (``part:1/2``, ``part:2/2+20%``), as text or as a list; see :func:`kdcli.data.classes.choose_classes`."""
    unlabelled: Annotated[
        Location | None, CHANGEABLE, _OF_UNLABELLED, _OF_TRAINING, _OF_THESE_DATA, _NOT_OF_EVAL_DATA
    ] = None
    """A folder of further training images without labels."""
    splits: SplitsConfig | None = None
    """Other names of the splits than the usual ones, which :data:`kdcli.data.split_names.SPLIT_NAMES` lists."""
    train_images: Annotated[Count | None, IMAGES, _OF_TRAINING, _OF_THESE_DATA] = None
    """Train on so many of the training images, drawn by seed and class; the others are left out. Of two kinds of images
    without pairs so many of either kind; of ``data.kinds`` the first ones."""
    train_texts: Annotated[Count | None, TEXTS, _OF_TRAINING, _OF_THESE_DATA] = None
    """Likewise for texts."""
    labels_per_class: Annotated[Count | None, _OF_LABELS, _OF_TRAINING, _OF_THESE_DATA, _OF_WHOLE_SAMPLES] = None
    """Keep so many labels a class, drawn by seed; the other training images stay, unlabelled."""
    labelled_images: Annotated[Count | None, IMAGES, _OF_DENSE_PIXELS, _OF_TRAINING, _OF_THESE_DATA] = None
    """Keep the masks, depth or target images of so many training images, drawn by seed; the others stay, unlabelled."""
    labelled_share: Annotated[float, Field(gt=0, lt=1), _OF_LABELS, _OF_TRAINING, _NOT_OF_EVAL_DATA] = 0.25
    """Where few of the training images have labels, these are repeated to this share of an epoch."""
    class_weights: Annotated[
        Annotated[Literal["balanced"] | dict[str, float], BeforeValidator(_as_weights)] | None,
        _OF_WEIGHTED_CLASSES,
        _OF_LABELS,
        _OF_TRAINING,
        _OF_THESE_DATA,
        _NOT_OF_EVAL_DATA,
    ] = None
    """How much a label of each class counts in the loss on the labels: a mapping of names to weights, where classes
    that it does not name have 1; or ``balanced``, the number of labelled training samples by that of the class and of
    classes. Metrics and other losses have none."""
    balanced_sampling: Annotated[bool, _OF_CLASSES, _OF_LABELS, _OF_TRAINING, _NOT_OF_EVAL_DATA] = False
    """Draw every class equally often in every epoch, which stays as long as it is: of large classes other samples each
    time, of small ones some repeatedly, augmented on their own. Samples without labels are not affected."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Cut from the training split, by seed and class, where there is no validation split."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Cut from the whole where the data have no splits at all."""
    image_column: Annotated[Name | None, IMAGES, _OF_THESE_DATA] = None
    """The column of a table that has the images, of pairs of images the images ``A``; by default found by its name."""
    channels: Annotated[Literal[1, 3, 4], IMAGES, _OF_CHANNELS] = 3
    """Of the images that both models read: 3 for red, green and blue, whatever the files have; 1 for greyscale, to
    which colours are brought by their luma; 4 for all that files of four channels have, such as RGBA. Pretrained
    first convolutions are adapted to 1 or 4 as timm does."""
    deep_range: Annotated[tuple[float, float] | None, IMAGES] = None
    """What is black and white in grayscale images of more than 8 bits; by default found from some of the images, as in
    :func:`kdcli.data.images.deep.find_range`, for the whole set and for whatever the run's models are evaluated on."""
    min_depth: Annotated[Positive, IMAGES, _OF_DEPTH] = 1e-3
    """Depths below it, in metres, count as not measured; predictions are clamped to it."""
    max_depth: Annotated[Positive, IMAGES, _OF_DEPTH] = 10.0
    """Likewise above it: 10 for rooms as in NYUv2, 80 for streets as in KITTI. Students are built for depths up to it.
    """
    depth_crop: Annotated[DepthCrop, IMAGES, _OF_DEPTH] = "none"
    """Depth is evaluated in this part of the images alone: ``eigen`` (of NYUv2) or ``garg`` (of KITTI), by fractions of
    their sides."""
    depth_alignment: Annotated[DepthAlignment, IMAGES, _OF_DEPTH] = "auto"
    """What is done to a predicted depth before it is measured: ``none``; ``median``, scaled to the target's median;
    ``least_squares``, inverse depth fitted to the target's in scale and shift. ``auto`` is the latter for models whose
    depth is relative, and else none."""
    text_column: Annotated[Name | None, TEXTS, _OF_THESE_DATA] = None
    """The column of a table that has the texts; by default found by its name."""
    text_pair_column: Annotated[Name | None, TEXTS, _OF_PAIRS, _OF_THESE_DATA] = None
    """The second text of a pair, such as the hypothesis beside a premise, for ``text-classification``; by default read
    where both columns have names of pairs, such as ``premise`` and ``hypothesis``, and ``text_column`` isn't set."""
    label_column: Annotated[Name | None, _OF_THESE_DATA] = None
    """The column of a table that has the labels, masks or depth, of pairs of images the images ``B``; by default found
    by its name."""
    label_kind: Annotated[Literal["class", "classes", "number"] | None, _OF_KINDS, _OF_THESE_DATA] = None
    """What a sample's label is: one class, several (a list, or a string with commas; of images also with ``|`` or
    ``;``, or a column of 0 and 1 for each) or, of texts, a number; by default what the column's values say, where they
    say it clearly."""
    mask_probability: Annotated[float, Field(gt=0, le=0.5), TEXTS, _OF_MASKS] = 0.15
    """Share of a text's tokens that a masked language model has to predict."""
    group_by_length: Annotated[bool, TEXTS, _OF_TRAINING, _NOT_OF_EVAL_DATA] = False
    """Put texts of about one length into each training batch, which needs less padding; batches are then no longer
    drawn from all texts alike. Evaluation always does."""
    class_names: Annotated[tuple[Name, ...] | Location | None, IMAGES, _OF_DENSE_CLASSES, _OF_THESE_DATA] = None
    """Of the numbers in masks or label files from 0 on: a list, or a file with a name a line; by default found beside
    the data."""
    ignore_label: Annotated[
        Annotated[tuple[Annotated[int, Field(ge=0, le=65535)], ...], BeforeValidator(as_list)] | None,
        IMAGES,
        _OF_PIXELS,
        _OF_THESE_DATA,
    ] = None
    """Values of masks that are no class: such pixels have no label; an empty list for none. By default 255, or what the
    format says."""
    palette: Annotated[Location | None, IMAGES, _OF_PIXELS, _OF_THESE_DATA] = None
    """A file with the colour of every class, for masks that are RGB images; see
    :func:`kdcli.data.images.dense.classes.read_palette`."""
    box_format: Annotated[BoxFormat | None, IMAGES, _OF_BOXES, _OF_THESE_DATA] = None
    """What four numbers of a box are, in tables and lists: corners (``xyxy``), left, top, width and height (``xywh``)
    or centre and size (``cxcywh``), in pixels; by default what the column's name says: ``boxes`` are corners, ``bbox``
    is left, top, width and height."""
    pairs: Annotated[Literal["auto", "paired", "unpaired"], IMAGES, _OF_PICTURES, _OF_THESE_DATA] = "auto"
    """Whether images of the folders ``A`` and ``B`` belong together by their names, or those of two columns of a table
    row by row. ``auto``: folders ``A`` and ``B`` and columns are pairs, ``trainA`` and ``trainB`` are not."""
    direction: Annotated[Literal["a-to-b", "b-to-a"], IMAGES, _OF_PICTURES, _OF_THESE_DATA] = "a-to-b"
    """Which of the two folders or columns an image is made of, and which it is to become like."""
    kinds: Annotated[
        Annotated[tuple[str, str], BeforeValidator(as_texts)] | None, IMAGES, _OF_PICTURES, _OF_THESE_DATA
    ] = None
    """Two classes of labelled images, by name: the first are ``A``, the second ``B``, without pairs."""
    mask_colors: Annotated[bool, IMAGES, _OF_PICTURES, _OF_THESE_DATA] = False
    """Read images with masks: ``A`` are the masks, a colour for each class (those of Pascal VOC, white without a
    class), ``B`` the images."""
    depth_scale: Annotated[Positive | None, IMAGES, _OF_DEPTH, _OF_THESE_DATA] = None
    """Units of a depth file in a metre: 1000 for millimetres. By default what the format says, and 1 of floats."""
    invalid_depth: Annotated[float, IMAGES, _OF_DEPTH, _OF_THESE_DATA] = 0.0
    """The value in depth files that means not measured; values that are not finite always do."""
    eval_extractor: Annotated[Name, IMAGES, _OF_MADE_IMAGES] = "package:efficientnet_lite0"
    """The model by whose features made images are compared with real ones, in FID, KID, precision and recall, whose
    names end with its own: any that can be a teacher, ``random:NAME`` an untrained one, the same in every run. Numbers
    by different extractors can't be compared, nor any of them with published ones, which are by Inception-v3."""
    eval_extractor_size: Annotated[ImageSize | None, IMAGES, _OF_MADE_IMAGES] = None
    """Side of the extractor's input in pixels, or ``[height, width]``; by default its own. A smaller one is quicker,
    and makes another metric."""
    subset: Annotated[Name | None, _OF_THESE_DATA] = None
    """Configuration name of a ``hf:`` data set."""
    streaming: Annotated[bool, IMAGES, _OF_STREAMS, _OF_TRAINING, _OF_THESE_DATA] = False
    """Read the images of an ``hf:`` data set, or of parquet files, while training goes on, a row group at a time. They
    are not downloaded ahead, and memory does not grow with their number. Labels are read at the start."""
    stream_buffer: Annotated[Count, IMAGES, _OF_STREAMS, _OF_TRAINING, _OF_THESE_DATA, _NOT_OF_EVAL_DATA] = 4096
    """With ``data.streaming``: mix about so many training images with one another; the row groups that hold as many are
    in memory at once. More mixes rows better that lie sorted."""
    workers: Annotated[Annotated[int, Field(ge=0, le=256)] | None, IMAGES, BESIDE_THE_RECIPE, _NOT_OF_EVAL_DATA] = None
    """Loader processes; by default from the number of CPU cores."""
    strict: Annotated[bool, IMAGES, _OF_TRAINING, _NOT_OF_EVAL_DATA] = False
    """Stop at an unreadable image instead of skipping it."""
    reduced_decoding: Annotated[ReducedDecoding, IMAGES, _OF_TRAINING, _NOT_OF_EVAL_DATA] = "training"
    """Decode JPEG files at a half, a quarter or an eighth of their size where at least twice of what a model reads is
    left, which is several times faster for large photographs. Pixels differ by a few levels at most; boxes and masks
    lie where they do otherwise. ``training``: the augmented images alone, so that evaluation sees exactly what the
    model's library would make of a file; ``always``: in evaluation as well; ``never``."""

    @property
    def extractor(self) -> ExtractorFacts:
        """By whose features images are compared."""
        return ExtractorFacts(self.eval_extractor, height_and_width(self.eval_extractor_size))

    def reduces(self, *, training: bool) -> bool:
        """Whether JPEG files are decoded at a part of their size in training, or else in evaluation."""
        return self.reduced_decoding == "always" or (training and self.reduced_decoding == "training")

    @model_validator(mode="after")
    def _check_ranges(self) -> DataConfig:
        if self.deep_range is not None and not self.deep_range[0] < self.deep_range[1]:
            raise ValueError(f"deep_range goes up, from black to white, and is {list(self.deep_range)}")
        if self.stream_buffer != type(self).model_fields["stream_buffer"].default and not self.streaming:
            raise ValueError("stream_buffer has no effect without data.streaming=true")
        if not self.min_depth < self.max_depth:
            raise ValueError(f"min_depth {self.min_depth:g} is to be less than max_depth {self.max_depth:g}")
        return self


class AugmentConfig(Section):
    """Training augmentation; one augmented sample serves both models."""

    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.35, 1.0)
    """Area kept by the random resized crop; ``[1, 1]`` crops nothing."""
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Width to height of the crop, times that of the models' input: things in it are stretched by so much."""
    pad: Annotated[int, Field(ge=0, le=512)] = 0
    """Pixels of black around the resized image before a crop of its own size is taken at random."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    policy: Literal["none", "trivial", "rand", "three"] = "none"
    """``trivial`` is TrivialAugmentWide, ``rand`` is RandAugment; ``three`` is 3-Augment (Touvron et al., *DeiT III*,
    arXiv 2204.07118): one of greyscale, solarisation and blur, always."""
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    """Strength of random changes of brightness, contrast and saturation; 0 is off."""
    erase: Fraction = 0.0
    """Probability of random erasing."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup's Beta distribution; 0 is off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of cutmix's Beta distribution; 0 is off. With both, each batch gets one of them at random."""
