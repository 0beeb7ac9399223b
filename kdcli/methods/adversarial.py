"""A discriminator of an image beside the one that it was made of (pix2pix: Isola et al., CVPR 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcli import losses
from kdcli.base.reads import IMAGE, Reads
from kdcli.config.methods import AdversarialOptions
from kdcli.methods.adversary import AdversarialMethod, Losses, Scene
from kdcli.methods.base import Context
from kdcli.methods.patch_gan import PatchDiscriminator, mean_where, of_each, pictures_of
from kdcli.methods.share import Share
from kdcli.tasks.translation.task import is_known, target_at


class Adversarial(AdversarialMethod):
    """The student's images are to look like targets of their inputs; images without a target play no part.

    Attributes:
        discriminator: of (input, image), six channels.
    """

    student_reads = Reads(heads=(IMAGE,))

    def __init__(self, options: AdversarialOptions, context: Context) -> None:
        super().__init__(options)
        self.kind = options.loss
        assert options.discriminator_layers is not None, "the plan settles them"
        self.discriminator = PatchDiscriminator(6, options.discriminator_channels, options.discriminator_layers)

    @property
    def adversary(self) -> nn.Module:
        """The discriminator."""
        return self.discriminator

    def student_loss(self, scene: Scene) -> Losses:
        """Return what the discriminator makes of the student's images."""
        given, known = pictures_of(scene.batch, scene.student), is_known(scene.batch.targets)
        logits = self._judge(given, scene.output.heads[IMAGE])
        values = of_each(losses.generator_loss(logits, kind=self.kind))
        return Losses({"fool": Share(mean_where(values, known), known.sum())})

    def adversary_loss(self, scene: Scene) -> Losses:
        """Return how far it takes targets for made images, and made ones for targets, halved."""
        given, targets = pictures_of(scene.batch, scene.student), scene.batch.targets
        made, known = scene.output.heads[IMAGE], is_known(targets)
        real, fake = self._judge(given, target_at(targets, made)), self._judge(given, made)
        values = 0.5 * of_each(losses.discriminator_loss(real, fake, kind=self.kind))
        return Losses({"judge": Share(mean_where(values, known), known.sum())})

    def _judge(self, given: Tensor, image: Tensor) -> Tensor:
        logits: Tensor = self.discriminator(torch.cat([given, image.to(given.dtype)], dim=1))
        return logits


build = Adversarial
