"""A generator against a discriminator, whose features may be kept near a frozen teacher's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kdcli import losses
from kdcli.base.facts import Preprocessing
from kdcli.base.reads import IMAGE, Reads
from kdcli.config.methods import GanOptions
from kdcli.data import Batch, prepare
from kdcli.losses.diff_augment import NUM_DRAWS, diff_augment_by
from kdcli.losses.normalize import full_precision, normalizer
from kdcli.machine.seeding import draw
from kdcli.methods.adversary import AdversarialMethod, Losses, Scene, turned
from kdcli.methods.base import Context
from kdcli.methods.critic import Critic, channels_like, normed
from kdcli.methods.projected import Projected, ProjectedPair
from kdcli.methods.share import Share
from kdcli.models.base import Model
from kdcli.projectors.maps import build_projector

_REAL, _MADE = "real", "made"


class Gan(AdversarialMethod):
    """BigGAN's losses (hinge by default) with DiffAugment, LeCam, and features matched to a frozen teacher's.

    In the discriminator's step it is ``L(D(T(x)), D(T(G(z)))) + λ lecam + w D(M(f P), N(t)) + k KD-DLGAN``; in the
    generator's its own loss of ``D(T(G(z)))`` alone. ``T`` is DiffAugment, ``f`` the discriminator's features, summed
    over positions, ``t`` the teacher's of the very same augmented images, brought to its input; statistics of the
    normalisations ``M`` and ``N`` are over the real images of the whole batch, and over the made ones, each by
    themselves. KD-DLGAN's term (arXiv 2303.17158; cuikaiwen18/KD_DLGAN, biggan_cifar/losses.py, TripletLoss_reverse) is
    ``mean ‖t_r - h_r‖ + mean ‖t_r - h_m‖`` and the same with real (r) and made (m) exchanged, where ``h`` is ``f``
    through two spectrally normalised linear layers, and images are paired as they stand in the batch.

    Each of the discriminator's steps on a batch has the same real images, augmented anew, and other made ones. Random
    numbers are functions of the run's seed, the sample, its view and the turn.
    """

    is_aligned = True
    lecam_state: Tensor

    def __init__(self, options: GanOptions, context: Context) -> None:
        super().__init__(options)
        student, teacher = context.student, context.teacher
        assert isinstance(student.preprocessing, Preprocessing), "it makes images"
        self.options, self.seed = options, context.seed
        self.preprocessing = student.preprocessing
        side = student.preprocessing.image_size[0]
        channels = options.channels or channels_like(side, student.feature_dims["pooled"])
        self.is_conditional = bool(student.num_classes)
        self.student_reads = Reads(heads=(IMAGE,))
        self.taps = Reads((options.teacher_tap,))
        self.critic = Critic(side, channels, student.num_classes)
        self.pair: ProjectedPair | None = None
        self.kd_head: nn.Module | None = None
        if options.reads_teacher:
            assert teacher is not None, "the plan lets it pass only with a teacher"
            width = teacher.feature_dims[options.teacher_tap]
            if options.projector is not None:
                assert options.lr_scale is not None, "the plan settles the projector's rate"
                self.pair = ProjectedPair(
                    build_projector(options.projector, self.critic.width, width, orthogonal_map=options.orthogonal_map),
                    lr_scale=options.lr_scale,
                    normalize_student=normalizer(options.normalize_student),
                    normalize_teacher=normalizer(options.normalize),
                )
            if options.kd_dlgan:
                self.kd_head = nn.Sequential(
                    normed(nn.Linear(self.critic.width, width)),
                    normed(nn.Linear(width, width)),
                )
        self.distance = _distance(options)
        self.register_buffer("lecam_state", losses.lecam_start())

    @property
    def adversary(self) -> nn.Module:
        """The discriminator with what maps its features."""
        parts = (self.critic, self.pair, self.kd_head)
        return nn.ModuleList([part for part in parts if part is not None])

    def projections(self) -> Sequence[Projected]:
        """Return the projector of the discriminator's features, where they are matched."""
        return () if self.pair is None else (self.pair,)

    def student_loss(self, scene: Scene) -> Losses:
        """Return the generator's loss of what the discriminator says of its images."""
        images = scene.output.heads[IMAGE]
        scores = self._scores(self._features(self._augmented(images, scene, 0, _MADE)), scene)
        return Losses(
            {"adversarial": Share.of(losses.generator_loss(scores, kind=self.options.loss))},
            {"images": images.flatten(1)},
        )

    def adversary_loss(self, scene: Scene) -> Losses:
        """Return the discriminator's loss, with the terms that read the teacher."""
        turn, options = scene.turn + 1, self.options
        batch = turned(scene.batch, turn)
        with torch.no_grad():
            made = scene.student(scene.student.prepare(batch), self.student_reads).heads[IMAGE]
        seen = [
            self._augmented(images, scene, turn, kind)
            for images, kind in ((self.real(scene), _REAL), (made.detach(), _MADE))
        ]
        features = [self._features(images) for images in seen]
        real, fake = (self._scores(found, scene) for found in features)
        terms: dict[str, Tensor | Share] = {
            options.loss: Share.of(losses.discriminator_loss(real, fake, kind=options.loss))
        }
        if options.lecam:
            gathered = [scene.gather(side.detach()) for side in (real, fake)]
            self.lecam_state.copy_(losses.lecam_update(self.lecam_state, *gathered))
            terms["lecam"] = Share.of(options.lecam * losses.lecam(real, fake, self.lecam_state))
        if options.reads_teacher:
            terms |= self._matched(scene, seen, features)
        return Losses(terms, dict(zip((_REAL, _MADE), features, strict=True)))

    def _matched(self, scene: Scene, seen: list[Tensor], features: list[Tensor]) -> dict[str, Tensor]:
        """Return the terms that read the teacher, of the whole batch."""
        options = self.options
        number = 1 if self.kd_head is None and options.matched == "real" else 2
        teacher = scene.teacher
        assert teacher is not None, "the plan lets it pass only with a teacher"
        known = [scene.gather(self._known(teacher, images)) for images in seen[:number]]
        found: dict[str, Tensor] = {}
        if self.pair is not None:
            sides = zip(features[: 1 if options.matched == "real" else 2], known, strict=False)
            distances = [self.distance(*self.pair.project(scene.gather(ours), theirs)) for ours, theirs in sides]
            found["features"] = options.feature_weight * torch.stack(distances).mean()
        if self.kd_head is not None:
            heads = [full_precision(scene.gather(self.kd_head(ours))) for ours in features]
            pulls = [(theirs - ours).norm(dim=1).mean() for theirs in known for ours in heads]
            found["kd_dlgan"] = options.kd_dlgan * torch.stack(pulls).sum()
        return found

    def real(self, scene: Scene) -> Tensor:
        """Return the batch's real images as the discriminator reads them, float32 (B, 3, H, W) from -1 to 1."""
        assert isinstance(scene.batch, Batch)
        return prepare(scene.batch.images, self.preprocessing)

    def sides_in(self, scene: Scene) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what the projector is applied to: features of the real images, without DiffAugment."""
        assert scene.teacher is not None
        images = self.real(scene)
        yield self._features(images), self._known(scene.teacher, images)

    def _augmented(self, images: Tensor, scene: Scene, turn: int, kind: str) -> Tensor:
        if not self.options.diff_augment:
            return images
        batch = turned(scene.batch, turn)
        draws = draw(batch.samples, batch.view, NUM_DRAWS, "diff_augment", kind, self.seed, uniform=True)
        return diff_augment_by(images, self.options.diff_augment, draws)

    def _features(self, images: Tensor) -> Tensor:
        return self.critic.features(images)

    def _scores(self, features: Tensor, scene: Scene) -> Tensor:
        return self.critic.scores(features, scene.batch.targets if self.is_conditional else None)

    @torch.no_grad()
    def _known(self, teacher: Model, images: Tensor) -> Tensor:
        """Return the teacher's features (B, d) of images from -1 to 1, brought to its input by its own filter."""
        pixels = ((images.detach() + 1) * 127.5).clamp(0, 255)
        batch = Batch(images=pixels, targets=[], samples=torch.arange(len(pixels), device=pixels.device))
        return full_precision(teacher(teacher.prepare(batch), self.taps).features[self.options.teacher_tap])


def _distance(options: GanOptions) -> Callable[[Tensor, Tensor], Tensor]:
    if options.distance == "log_sum":
        return partial(losses.log_sum, alpha=options.log_sum_alpha)
    return partial({"mse": losses.mse, "smooth_l1": losses.smooth_l1}[options.distance], reduction="mean")


build = Gan
