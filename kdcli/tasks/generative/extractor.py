"""Features of images by a frozen model, and the metrics that compare generated images with real ones by them."""

from __future__ import annotations

import hashlib
import re

import torch
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.facts import ExtractorFacts
from kdcli.base.reads import Reads
from kdcli.config.models import TeacherConfig
from kdcli.data import Batch
from kdcli.machine.team import Team
from kdcli.models import load_teacher
from kdcli.models.base import Model
from kdcli.tasks.generative.distances import NEIGHBOURS, fid, kid, precision_recall

_SEED = 0
"""Of the weights of an untrained extractor, whatever the run's own seed is: runs are compared by it."""
_TAP = "pooled"


class Extractor:
    """A frozen model, the features that it finds in images, and those that it has found already.

    It is loaded when it is first asked. Images are brought to eight bits a channel, as files of them would be, resized
    to its input by its own filter and normalised as it wants; features are its ``pooled`` tap, in full precision. Those
    of real images are kept: each is run through it once.

    Args:
        facts: which model.
    """

    def __init__(self, facts: ExtractorFacts) -> None:
        self.facts = facts
        self._model: Model | None = None
        self._known: dict[bytes, Tensor] = {}

    @property
    def name(self) -> str:
        """What its metrics' names end with: letters, digits and underscores.

        ``efficientnet_lite0``, ``untrained_resnet18``, and with a size that was set ``efficientnet_lite0_64px``.
        """
        words = self.facts.name.partition("?")[0].rstrip("/").split(":")
        last = re.sub(r"\W+", "_", words[-1].rpartition("/")[2])
        kind = "untrained_" if words[0] == "random" else ""
        size = self.facts.image_size
        sides = "" if size is None else f"_{size[0]}px" if size[0] == size[1] else f"_{size[0]}x{size[1]}px"
        return f"{kind}{last}{sides}"

    @property
    def model(self) -> Model:
        """The frozen model.

        Raises:
            UserError: it can't be had; it says what else could be taken.
        """
        if self._model is None:
            size = self.facts.image_size
            config = TeacherConfig(name=self.facts.name, image_size=size)
            try:
                self._model = load_teacher(config, seed=_SEED)
            except UserError as error:
                raise UserError(
                    f"The extractor of features for FID and KID can't be had. {error.message}",
                    f"{error.hint} Or name another one: --set data.eval_extractor=NAME, untrained"
                    " --set data.eval_extractor=random:resnet18.",
                ) from error
        return self._model

    def describe(self) -> str:
        """Return in one phrase which model it is, where its weights are from, and what it sees."""
        facts = self.model.facts
        return f"{facts.name} ({facts.weights}), {facts.feature_dims[_TAP]} features, {facts.preprocessing.describe()}"

    @torch.inference_mode()
    def features(self, images: Tensor, device: torch.device) -> Tensor:
        """Return the features of images, float32 (B, d), on ``device``.

        Args:
            images: floats (B, 3, H, W) in -1..1; what is beyond that is clamped.
            device: where they are computed.
        """
        if not len(images):
            return torch.empty(0, self.model.facts.feature_dims[_TAP], device=device)
        model = self.model.to(device)
        # NaN stays NaN, and reaches the metrics.
        pixels = ((images.to(device).float().clamp(-1, 1) + 1) * 127.5).round()
        with torch.autocast(device.type, enabled=False):
            batch = Batch(images=pixels, targets=[], samples=torch.arange(len(pixels)))
            return model(model.prepare(batch), Reads((_TAP,))).features[_TAP].float()

    def features_of_real(self, images: Tensor, device: torch.device) -> Tensor:
        """Return the same, computed once for each image: by its pixels, so whatever split or batch it comes in."""
        shape = repr(tuple(images.shape[1:])).encode()
        keys = [hashlib.blake2b(image.numpy().tobytes() + shape).digest() for image in images.float().cpu()]
        new = {key: place for place, key in enumerate(keys) if key not in self._known}
        found = self.features(images[list(new.values())], device).cpu()
        self._known.update(zip(new, found, strict=True))
        return torch.stack([self._known[key] for key in keys]).to(device)


class ImageDistances:
    """FID, KID, precision and recall of generated images, over the processes of a team.

    Metrics: :meth:`monitor_of`, ``fid_NAME``, ``kid_NAME``, ``precision_NAME`` and ``recall_NAME`` with the extractor's
    name. KID is the unbiased estimate over all samples, see :mod:`kdcli.tasks.generative.distances`.

    Args:
        extractor: of the run, which keeps the features of real images.
        team: the processes that share the samples.
    """

    def __init__(self, extractor: Extractor, team: Team) -> None:
        self._extractor, self._team = extractor, team
        self._real: list[tuple[Tensor, Tensor]] = []
        self._generated: list[tuple[Tensor, Tensor]] = []

    @staticmethod
    def monitor_of(extractor: Extractor) -> str:
        """Return the metric to choose students by, of which more is better: ``minus_fid_NAME``."""
        return f"minus_fid_{extractor.name}"

    @staticmethod
    def shown_of(extractor: Extractor) -> tuple[tuple[str, str], ...]:
        """Return label and key of each metric of a finished model."""
        words = (("FID", "fid"), ("KID", "kid"), ("precision", "precision"), ("recall", "recall"))
        return tuple((label, f"{key}_{extractor.name}") for label, key in words)

    def add_real(self, images: Tensor, samples: Tensor) -> None:
        """Add real images of this process.

        Args:
            images: floats (B, 3, H, W) in -1..1.
            samples: their ids, int64 (B,): they give an order that no number of processes changes.
        """
        self._add(self._real, self._extractor.features_of_real(images, self._team.device), samples)

    def add_generated(self, images: Tensor, samples: Tensor) -> None:
        """Add generated images of this process; else as :meth:`add_real`."""
        self._add(self._generated, self._extractor.features(images, self._team.device), samples)

    def _add(self, to: list[tuple[Tensor, Tensor]], features: Tensor, samples: Tensor) -> None:
        to.append((features, samples.to(features.device)))

    def compute(self) -> dict[str, float]:
        """Return the metrics over all processes, the same in each.

        Precision and recall are missing where there are too few samples for neighbours.

        Raises:
            UserError: there are fewer than two samples of a kind.
        """
        real, generated = self._gather(self._real), self._gather(self._generated)
        found = self._measure(real, generated) if self._team.is_main and min(len(real), len(generated)) > 1 else None
        metrics = self._team.broadcast(found)
        if metrics is None:
            raise UserError(
                f"There are {len(real)} real and {len(generated)} generated images: no distance is measured on fewer"
                " than two of each.",
                "Give more validation images, or cut fewer test images.",
            )
        return metrics

    def _measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        name = self._extractor.name
        if real.device.type == "mps":  # has no float64
            real, generated = real.cpu(), generated.cpu()
        distance = fid(real, generated)
        metrics = {
            self.monitor_of(self._extractor): -distance,
            f"fid_{name}": distance,
            f"kid_{name}": kid(real, generated),
        }
        if min(len(real), len(generated)) > NEIGHBOURS:
            precision, recall = precision_recall(real, generated)
            metrics |= {f"precision_{name}": precision, f"recall_{name}": recall}
        return metrics

    def _gather(self, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the features of all processes (n, d), ordered by their samples' ids."""
        width = self._extractor.model.facts.feature_dims[_TAP]
        device = self._team.device
        empty = (torch.empty(0, width, device=device), torch.empty(0, dtype=torch.int64, device=device))
        features, samples = (self._team.gather(torch.cat(sides)) for sides in zip(empty, *parts, strict=True))
        return features[samples.argsort(stable=True)]
