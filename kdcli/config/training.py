"""The sections of optimiser, training, embedding stage and episodes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from kdcli.config.methods import MethodOptions, StochasticTripletOptions
from kdcli.config.section import (
    BESIDE_THE_RECIPE,
    CHANGEABLE,
    IMAGES,
    SETTLED,
    Count,
    Fraction,
    Key,
    Location,
    Name,
    Positive,
    Section,
    always,
    as_text,
    yaml_no,
)

_EVALUATES = Key(evaluates=always)

TeacherForward = Literal["plain", "folded", "channels_last", "folded_channels_last"]
"""How a teacher is run."""


class OptimConfig(Section):
    """Optimiser and schedule, by timm's factories."""

    optimizer: Name = "adamw"
    """One of timm's optimisers."""
    lr: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Of weights; biases and norms have none."""
    momentum: Fraction = 0.9
    """Of optimisers that have one."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] | None = None
    """Of Adam and its kin; by default the optimiser's own, mostly 0.9 and 0.999."""
    schedule: Literal["cosine", "linear", "poly", "step", "constant"] = "cosine"
    """``poly`` falls as the share of steps that are left, to the ``power``; ``step`` multiplies the rate by
    ``decay_rate`` at each milestone."""
    power: Positive | None = None
    """Of ``poly``, 0.9 by default as for segmentation; of 1 it is ``linear``."""
    milestones: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] | None = None
    """Of ``step``, in shares of all steps; by default after each third."""
    decay_rate: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of ``step``."""
    warmup: Fraction = 0.05
    """Share of all steps."""
    hold: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all steps at the peak rate, after the warm-up and before a rate that falls begins to."""
    min_lr_ratio: Fraction = 0.01
    """The rate at the end, as a share of ``lr``."""
    clip_grad: Positive | None = 1.0
    """Largest norm of the whole gradient."""

    @model_validator(mode="after")
    def _check_schedule(self) -> OptimConfig:
        if self.power is not None and self.schedule != "poly":
            raise ValueError("power is for schedule: poly")
        if self.schedule != "step" and self.decay_rate != OptimConfig.model_fields["decay_rate"].default:
            raise ValueError(f"decay_rate is for schedule: step{'; poly has power' if self.schedule == 'poly' else ''}")
        if self.milestones is not None and self.schedule != "step":
            raise ValueError("milestones are for schedule: step")
        if self.hold and self.schedule in ("step", "constant"):
            raise ValueError("hold is for rates that fall all the time: schedule cosine, linear or poly")
        if self.warmup + self.hold > 1:
            raise ValueError(f"warmup {self.warmup:g} and hold {self.hold:g} are more than all steps")
        if list(self.milestones or ()) != sorted(set(self.milestones or ())):
            raise ValueError("milestones go up")
        return self


class EmbeddingConfig(Section):
    """A stage before the run's own, in ``RUN/embedding``, for the student's features: its best student is the start.

    The best is chosen by the accuracy of nearest class means on the validation images.
    """

    epochs: Annotated[int, Field(ge=0, lt=2**31)]
    """Passes over the training data."""
    methods: tuple[MethodOptions, ...] = (StochasticTripletOptions(),)
    """The losses of this stage."""
    optim: OptimConfig | None = None
    """By default the run's own."""


class TrainConfig(Section):
    """How long and on what."""

    epochs: Annotated[int, Field(ge=0, lt=2**31), CHANGEABLE] = 100
    """Passes over the training data; without any the student is evaluated as it starts."""
    batch_size: Annotated[int, Field(ge=2, lt=2**31)] = 128
    """Images of one forward pass, over all processes."""
    accumulation: Count = 1
    """Batches of one optimiser step. Each has the same weight, also where they differ in their number of tokens."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the exponential moving average of the student's weights; the average is then the result."""
    mixed_precision: Annotated[Literal["auto", "no", "fp16", "bf16"], BeforeValidator(yaml_no)] = "auto"
    """``bf16`` or ``fp16`` for less memory and time on a GPU; ``auto`` takes what the device is good at."""
    device: Annotated[Name, BESIDE_THE_RECIPE] = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``."""
    num_processes: Annotated[Count | None, BESIDE_THE_RECIPE] = None
    """Training processes on this machine; by default one for each GPU, or one on the CPU."""
    sync_batchnorm: bool = True
    """Batch normalisation over the batches of all processes, on GPUs; a CPU has none of it."""
    checkpoint_every: Annotated[
        str, BeforeValidator(as_text), Field(pattern=r"^[1-9]\d*[smh]?$"), BESIDE_THE_RECIPE
    ] = "10m"
    """Steps (``200``) or time (``30s``, ``10m``, ``2h``) between checkpoints; one is also written at the end."""
    keep_checkpoints: Annotated[Count, BESIDE_THE_RECIPE] = 2
    """How many checkpoints to keep; the older ones are removed."""
    channels_last: Annotated[bool | None, IMAGES, SETTLED] = None
    """Keep the student's images and weights in another order in memory, which many convolutions are faster with; the
    teacher's too, where ``teacher_forward`` says nothing. By default whatever is measured to be faster when the run
    begins."""
    teacher_forward: Annotated[TeacherForward | None, IMAGES, SETTLED] = None
    """How the teacher is run: ``plain``; ``folded``, its batch normalisations folded into the convolutions before them;
    ``channels_last``, in another order in memory; or both. By default the fastest that gives its outputs up to 1e-5,
    measured when the run begins."""
    fused_optimizer: Annotated[bool | None, SETTLED] = None
    """Let torch step all weights at once; by default where it can, of this optimiser on this device."""
    cache_teacher: Annotated[Location | None, BESIDE_THE_RECIPE] = None
    """A folder in which what is read of the teacher is kept: a run with the same teacher, data, augmentation and seed
    reads it there in place of running the teacher, and trains as with it. What is missing is computed and added."""
    cache_views: Annotated[Count | None, IMAGES] = None
    """Augment every image in so many ways, and take them in turn, epoch after epoch, so that a cache needs no more; by
    default each epoch has its own. It holds without a cache too."""
    cache_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the teacher's outputs are rounded to before they are used, with a cache or without: ``float32`` leaves them
    as they are, the others halve the cache."""
    compile: Annotated[bool, CHANGEABLE] = False
    """Run the student through ``torch.compile``."""
    activation_checkpointing: Annotated[bool, CHANGEABLE] = False
    """Keep the student's activations between its blocks alone, and compute the others again in the backward pass: less
    memory, about a third more time, the same numbers. By timm's and transformers' own checkpointing."""
    track: Annotated[tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...], BESIDE_THE_RECIPE] = ()
    """Where losses, metrics and learning rate also go; TensorBoard writes to ``RUN/tracking``."""
    validate_every: Annotated[Count, CHANGEABLE] = 1
    """Epochs between validations; the last epoch is always validated."""
    patience: Annotated[Count | None, CHANGEABLE] = None
    """Stop early where so many epochs have brought no better student; by default all epochs are trained. The learning
    rate's schedule is that of all epochs; a student alone (``baseline``) stops by itself."""


class EpisodesConfig(Section):
    """Many small tasks drawn from one data set; a student is trained for each of them."""

    ways: Annotated[int, Field(ge=2, lt=2**31), _EVALUATES]
    """Classes of an episode."""
    shots: Count
    """Labelled training images of each class."""
    number: Annotated[Count, CHANGEABLE] = 100
    """How many episodes are drawn."""
    queries: Annotated[Count, _EVALUATES] = 15
    """Images of each class that the arms are tested on."""
    split: Annotated[Literal["test", "validation"], _EVALUATES] = "test"
    """Where the queries come from; choose hyperparameters on ``validation``."""
