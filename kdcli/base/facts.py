"""What is known about a model and about a data set, without the tensors: the plan's input. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from kdcli.base.reads import DISTILLATION
from kdcli.base.tasks import DEFAULT_TASK, TASKS, Modality, Target
from kdcli.base.text import human_count, short_repr

UNLABELLED = -1
"""The label of a training image that has none."""

MAX_IMAGE_SIZE = 4096
"""Largest side of a model's input in pixels; beyond it an option or a model's config is taken to be a mistake."""


LabelKind = Literal[
    "class", "classes", "number", "words", "tokens", "pixels", "depth", "boxes", "image", "unpaired", "samples", "none"
]
"""What a sample's label is: one class, any number of classes, a number, a class for each word, the text's own
tokens, a class or a depth for each pixel, boxes with a class each; the image that it is to become, any image of the
kind that it is to become one of; or the sample itself, more like which are to be made; or there is none."""


@dataclass(frozen=True)
class LabelFacts:
    """A kind of label as plans and messages see it.

    Attributes:
        needed: what a method needs that learns from it.
        of_data: what data with such labels have; ``{count}`` stands for the number of classes.
        has_classes: whether every label is one class, be it of a sample, a word or a pixel.
        parts: what has a label of its own, where that is not a whole sample.
        is_smoothed: whether labels are smoothed where nothing else is asked for.
        is_dense: whether labels say where in an image something is, so that features are compared at every position.
    """

    needed: str
    of_data: str
    has_classes: bool = False
    parts: str = ""
    is_smoothed: bool = True
    is_dense: bool = False


LABELS: Mapping[LabelKind, LabelFacts] = {
    "class": LabelFacts("one class a sample", "{count} classes", has_classes=True),
    "classes": LabelFacts("any number of classes a sample", "{count} labels, any number a sample"),
    "number": LabelFacts("a number a sample", "a number a sample", is_smoothed=False),
    "words": LabelFacts("a class for each word", "{count} classes of words", has_classes=True, parts="words"),
    "tokens": LabelFacts("the tokens of texts", "its own tokens", parts="tokens", is_smoothed=False),
    "pixels": LabelFacts(
        "a class for each pixel",
        "{count} classes of pixels",
        has_classes=True,
        parts="pixels",
        is_smoothed=False,
        is_dense=True,
    ),
    "depth": LabelFacts(
        "a depth for each pixel", "a depth for each pixel", parts="depths", is_smoothed=False, is_dense=True
    ),
    "boxes": LabelFacts(
        "boxes with a class each", "boxes of {count} classes", parts="boxes", is_smoothed=False, is_dense=True
    ),
    "image": LabelFacts(
        "an image for each image", "an image for each", parts="target images", is_smoothed=False, is_dense=True
    ),
    "unpaired": LabelFacts(
        "images of two kinds without pairs",
        "images of two kinds, unpaired",
        parts="images without pairs",
        is_smoothed=False,
        is_dense=True,
    ),
    "samples": LabelFacts(
        "images to make more of", "images of {count} classes to make more of", parts="images", is_smoothed=False
    ),
    "none": LabelFacts("no labels", "no labels"),
}
"""What is known of each kind."""
LABELLED: tuple[LabelKind, ...] = tuple(kind for kind in LABELS if kind != "none")
"""Every kind of labels there is."""

MAX_TEXT_LENGTH = 131072
"""Most tokens of a text."""

TextPooling = Literal["cls", "mean", "max", "last", "pooler", "none"]
"""How the features of a text's tokens become one vector; ``none`` where each token stands for itself."""

PROBE_TOKENS = 128
"""Tokens of the text that a model is measured with, where it takes as many."""


Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
"""A filter for resizing images, by the name that timm and torchvision have for it."""

Geometry = Literal["crop", "squash", "border"]
"""How an image of other proportions comes to the model's: resized until it covers them, resized to them whatever its
own, or resized until it lies within them, with borders of the mean colour."""


GEOMETRIES: dict[str, Geometry] = {"center": "crop", "squash": "squash", "border": "border"}
"""timm's ``crop_mode``."""


def averaged(values: Sequence[float], count: int) -> tuple[float, ...]:
    """Return the average of the channels' values for each of ``count`` channels; of equal ones exactly theirs."""
    return (values[0] if len({*values}) == 1 else sum(values) / len(values),) * count


@dataclass(frozen=True)
class Preprocessing:
    """How a vision model wants its images.

    Attributes:
        image_size: (height, width) in pixels.
        mean: of each channel, red, green and blue, of pixels scaled to [0, 1]; one value is of greyscale, four are of
            images with a fourth channel.
        std: likewise.
        interpolation: the filter for resizing.
        resize: for evaluation an image is resized to this (height, width), as ``geometry`` says, before ``image_size``
            is cut out of its middle, with a black border where it is smaller; by default ``image_size`` itself.
        geometry: plays no part in training, where teacher and student share one random crop.
        channels: the order in which the model takes them.
        kernels: whose resizing and rounding are followed to the pixel: Pillow's, which timm calls, or those of
            torchvision on tensors, which transformers calls.
        note: where it is not what the model's own library would do: what differs, in one sentence.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bicubic"
    resize: tuple[int, int] = (0, 0)
    geometry: Geometry = "crop"
    channels: Literal["RGB", "BGR"] = "RGB"
    kernels: Literal["pillow", "torchvision"] = "pillow"
    note: str = field(default="", compare=False)

    kind: ClassVar[str] = "preprocessing"
    shared_input: ClassVar[str] = "from the same augmented image as the teacher's"
    costs_of: ClassVar[str] = "each at its own input size"

    def __post_init__(self) -> None:
        if self.resize == (0, 0):
            object.__setattr__(self, "resize", self.image_size)

    def at(self, image_size: tuple[int, int]) -> Preprocessing:
        """Return the same for another size; what is cut off keeps its share."""
        (height, width), (old_height, old_width) = self.resize, self.image_size
        resize = (image_size[0] * height // old_height, image_size[1] * width // old_width)
        return replace(self, image_size=image_size, resize=resize)

    @property
    def num_channels(self) -> int:
        """Of its images: 1 of greyscale, 3 of colours, 4 with a further one."""
        return len(self.mean)

    def of_channels(self, count: int) -> Preprocessing:
        """Return the same for another number of channels: mean and deviation are their average, as timm has it."""
        if count == self.num_channels:
            return self
        mean, std = (averaged(values, count) for values in (self.mean, self.std))
        return replace(self, mean=mean, std=std, channels="RGB")

    @property
    def said_channels(self) -> str:
        """A sentence on images that are read with other channels than three; empty for those."""
        if self.num_channels == 3:
            return ""
        return (
            f"it reads images {'as greyscale' if self.num_channels == 1 else 'with all four channels of their files'}."
        )

    def describe(self) -> str:
        """Return channels other than three, size, resizing and normalisation in one phrase."""
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        order = ", BGR" if self.channels == "BGR" else ""
        geometry = f", {self._cut}" if self._cut else ""
        kind = {3: "", 1: "greyscale, "}.get(self.num_channels, f"{self.num_channels} channels, ")
        size = f"{kind}{self.image_size[0]}x{self.image_size[1]}"
        return f"{size} {self.interpolation}{geometry}, mean ({mean}), std ({std}){order}"

    def features_of(self, target: Target) -> str:
        """Return in one phrase what features are of."""
        return "averaged over positions, but for embedding, the classifier's input"

    @property
    def remarks(self) -> tuple[str, ...]:
        """One sentence each on what is not as the model's library does it."""
        cut = (f"Not {self._cut} in training, where images are random crops.",) if self._cut else ()
        return (*cut, self.note) if self.note else cut

    def told(self, *, is_whole: bool) -> tuple[str, ...]:
        """Return the same where training images are cropped; ``is_whole`` where they are squashed as a whole."""
        is_alike = is_whole and self.geometry == "squash"
        return replace(self, geometry="crop").remarks if is_alike else self.remarks

    @property
    def _cut(self) -> str:
        return {"crop": "", "squash": "squashed", "border": "bordered"}[self.geometry]

    def shared_with(self, other: Preprocessing | TextPreprocessing) -> Preprocessing:
        """Return the same at the larger of both models' sizes, for a sample that both of them see."""
        assert isinstance(other, Preprocessing), "both models read images"
        height, width = (max(sizes) for sizes in zip(self.image_size, other.image_size, strict=True))
        return self.at((height, width))


@dataclass(frozen=True)
class TextPreprocessing:
    """How a model of text wants its texts.

    Attributes:
        max_length: in tokens, special ones included; longer texts are cut at the side where the tokenizer
            cuts, mostly their end.
        tokenizer: its class and where it came from, in one phrase.
        vocab_size: number of its tokens, counted up to the one with the largest number.
        pooling: how the features of a text's tokens become one vector.
        prompt: what stands before every text; empty for nothing.
        remarks: one sentence each on settings of the model's that are not used, or used in another way.
    """

    max_length: int
    tokenizer: str
    vocab_size: int
    pooling: TextPooling
    prompt: str = ""
    remarks: tuple[str, ...] = ()

    num_channels: ClassVar[int] = 0
    said_channels: ClassVar[str] = ""
    note: ClassVar[str] = ""
    """Nothing: ``remarks`` say it all."""
    kind: ClassVar[str] = "tokenizer"
    shared_input: ClassVar[str] = "of the same text as the teacher's"
    costs_of: ClassVar[str] = f"for a text of {PROBE_TOKENS} tokens each, or as many as it takes"

    def describe(self) -> str:
        """Return length, tokenizer and pooling in one phrase."""
        pooled = "each for itself" if self.pooling == "none" else f"pooled by {self.pooling}"
        prompt = f", after the prompt {short_repr(self.prompt)}" if self.prompt else ""
        return f"{self.max_length} tokens, {self.tokenizer} ({human_count(self.vocab_size)}), {pooled}{prompt}"

    def told(self, *, is_whole: bool) -> tuple[str, ...]:
        """Return the remarks, which no augmentation changes."""
        return self.remarks

    def features_of(self, target: Target) -> str:
        """Return in one phrase what features are of."""
        if self.pooling != "none":
            return "pooled is each model's own embedding of a text, layers are averaged over its tokens"
        of = "each word's first token" if target == "words" else "each token"
        return f"pooled is the last hidden state of {of}, layers are those of {of}"

    def shared_with(self, other: Preprocessing | TextPreprocessing) -> TextPreprocessing:
        """Return the same: each model makes its own tokens of a text."""
        return self


DepthKind = Literal["metric", "inverse"]
"""What a model's depth is: metres; or inverse depth up to an unknown scale and shift, as MiDaS gives it."""

DepthCrop = Literal["none", "eigen", "garg"]
"""The part of an image that depth is evaluated in: all of it, Eigen's of NYUv2, Garg's of KITTI."""

DepthAlignment = Literal["auto", "none", "median", "least_squares"]
"""What is done to a predicted depth before it is measured: nothing; scaled to the target's median; inverse depth fitted
to the target's by least squares, in scale and shift; ``auto`` is the latter for inverse depth, and else nothing."""


@dataclass(frozen=True)
class DepthFacts:
    """Which depths count, and how predictions are measured.

    Attributes:
        nearest: in metres; nearer is taken as not measured, and predictions are clamped to it.
        farthest: likewise; students scale their depth to it where they have a bound.
        crop: where depth is evaluated.
        alignment: of a prediction to the target.
    """

    nearest: float
    farthest: float
    crop: DepthCrop = "none"
    alignment: DepthAlignment = "auto"

    @property
    def inverse_floor(self) -> float:
        """What depth is at least where a loss takes its inverse: a hundredth of the farthest, if that is not nearer.

        Of a millimetre, which :attr:`nearest` is by default, the inverse is 1000, and one such pixel would outweigh all
        others; 0.1 m of 10 is what is usual for rooms.
        """
        return max(self.nearest, self.farthest / 100)

    @property
    def start(self) -> float:
        """Where the depth of an untrained head starts, in metres: a quarter of the farthest."""
        return self.farthest / 4


@dataclass(frozen=True)
class ExtractorFacts:
    """By whose features generated images are compared with real ones.

    Attributes:
        name: of a model, as a teacher's is written.
        image_size: (height, width) of its input in pixels; None for its own.
    """

    name: str
    image_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Queries:
    """Taps whose positions are no places of the image, but tokens that boxes are read from.

    Attributes:
        family: the kind of model; tokens of another family are something else.
        number: of tokens.
        taps: that are made of them, as (B, d, number, 1).
        origin: ``learnt`` parameters, the same for every image, or ``chosen`` among the positions of each image.
        source: the model whose tokens these are, as its weights came with them; empty where they start untrained.
        keep_places: whether a token's number means the same in every model of the family that is trained so, because
            nothing but the number tells tokens apart and they go through all layers beside the patches.
    """

    family: str
    number: int
    taps: tuple[str, ...]
    origin: Literal["learnt", "chosen"]
    source: str = ""
    keep_places: bool = False


@dataclass(frozen=True)
class ModelFacts:
    """A model as the plan sees it.

    Attributes:
        name: resolved name, with its library: ``timm:resnet50.a1_in1k``, ``hf:org/name``, ``random:timm:resnet18``.
        library: the name of the one in whose native format the model saves.
        task: what its own head is for: ``image-classification``, or ``image-embedding`` for a model without a head;
            of text one of the tasks of texts; of a teacher also what no student is trained for, such as edges.
        pretrained: False when the weights are as initialised.
        weights: where the weights came from, in one phrase.
        num_classes: width of its own classifier, of a language model the rows of its vocabulary, which may be more than
            its tokenizer has tokens (see :func:`num_tokens`); 0 without one, as of a detector of edges, whose heads are
            maps of no classes.
        label_names: names of those classes in order, where the model carries them.
        feature_dims: width of every tap that the model offers (``pooled``, ``embedding``).
        preprocessing: how it wants its images or texts.
        num_parameters: all parameters.
        macs: multiply-accumulates of one sample's forward pass; a text has ``PROBE_TOKENS`` tokens, or as many as the
            model takes.
        activation_bytes: float32 bytes that autograd keeps for one such sample in training.
        grids: (rows, columns) of the map of every tap that has one; a vector has none.
        stages: taps at the ends of the model's stages, in the order in which they run, where they were looked for.
        queries: which taps are of tokens that boxes are read from, and of which; None of models without any.
        label_aliases: another name of each class, where there is one: its WordNet id, or the words of that.
        reads_pooled: whether ``pooled`` is what its classifier reads, as ``embedding`` is; None where that was not
            looked at.
        heads: what it gives beside features, by name: those that make its prediction (``logits``, or ``vocabulary`` of
            a causal language model; a model of another task has others), and ``distillation`` where it has a second
            classifier, on a distillation token, beside the class token's.
        depth: what its depth is, where it has a head for that.
        losses: what its library's own loss on the labels is made of, by name; of detectors, whose task has no losses.
        weight_bytes: of its tensors, where they are quantised; None for float32.
    """

    name: str
    library: str
    task: str
    pretrained: bool
    weights: str
    num_classes: int
    label_names: tuple[str, ...] | None
    feature_dims: Mapping[str, int]
    preprocessing: Preprocessing | TextPreprocessing
    num_parameters: int
    macs: int
    activation_bytes: int
    grids: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    stages: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    reads_pooled: bool | None = None
    label_aliases: tuple[str, ...] | None = None
    depth: DepthKind = "metric"
    queries: Queries | None = None
    losses: tuple[str, ...] = ()
    weight_bytes: int | None = None

    @property
    def predictions(self) -> tuple[str, ...]:
        """The heads that make its prediction."""
        return tuple(head for head in self.heads if head != DISTILLATION)


def num_tokens(model: ModelFacts) -> int | None:
    """Return how many of a language model's classes are tokens, which come first; None for other models."""
    if not TASKS[model.task].is_language_model:
        return None
    assert isinstance(model.preprocessing, TextPreprocessing)
    return model.preprocessing.vocab_size


@dataclass(frozen=True)
class DataFacts:
    """A data set as the plan sees it.

    Attributes:
        name: the name it was asked for by, such as ``demo:digits``.
        task: what its labels are for.
        class_names: in label order; the column's name where labels are numbers, empty where there are none or tokens.
        num_train: training samples, unlabelled ones included.
        num_labelled: training samples with a label.
        num_validation: validation samples.
        num_test: test samples; 0 where there is no test split.
        notes: one sentence each on how the splits came about.
        label_kind: what a label is.
        label_scale: mean and standard deviation of the training samples' numbers, where labels are numbers.
        depth: which depths count, where labels are depths.
        extractor: by whose features images are measured, where the task makes images.
        channels: of images, as they are read.
    """

    name: str
    task: str
    class_names: tuple[str, ...]
    num_train: int
    num_labelled: int
    num_validation: int
    num_test: int
    notes: tuple[str, ...] = field(default=())
    label_kind: LabelKind = "class"
    label_scale: tuple[float, float] | None = None
    depth: DepthFacts | None = None
    extractor: ExtractorFacts | None = None
    channels: int = 3

    @classmethod
    def of_labels(cls, class_names: Iterable[str], *, task: str = DEFAULT_TASK) -> DataFacts:
        """Return the facts of no data at all, for a model that is to answer with these labels."""
        names = tuple(class_names)
        return cls("", task, names, 0, 0, 0, 0, label_kind="class" if names else "none")

    @property
    def labels(self) -> LabelFacts:
        """What is known of such labels."""
        return LABELS[self.label_kind]

    @property
    def has_classes(self) -> bool:
        """Whether every label is one class, be it of a sample, a word or a pixel."""
        return self.labels.has_classes

    @property
    def noun(self) -> Modality:
        """What a sample is."""
        return TASKS[self.task].modality


@dataclass(frozen=True)
class LayerScores:
    """How well each of a teacher's layers tells the data's classes apart, on a sample.

    Attributes:
        num_samples: labelled training samples that were looked at.
        accuracies: tap -> the share of them whose nearest class mean, of the others' features, is that of its own
            class; in the order in which the layers run.
        guessing: the share of the largest class.
    """

    num_samples: int
    accuracies: Mapping[str, float]
    guessing: float

    @property
    def best(self) -> str:
        """The best layer; of equals the last one."""
        return max(reversed(list(self.accuracies)), key=lambda tap: self.accuracies[tap])
