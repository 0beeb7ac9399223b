"""Translation without pairs, there and back again (CycleGAN: Zhu et al., ICCV 2017, arXiv 1703.10593)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcli import losses
from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, Preprocessing
from kdcli.base.reads import IMAGE, Reads
from kdcli.config.methods import CycleGANOptions
from kdcli.config.models import StudentConfig
from kdcli.machine.seeding import stable_seed
from kdcli.methods.adversary import AdversarialMethod, Losses, Scene
from kdcli.methods.base import Context
from kdcli.methods.patch_gan import PatchDiscriminator, of_each, pictures_of, translate
from kdcli.methods.share import Share
from kdcli.models import build_student
from kdcli.tasks.translation.task import target_at


class ImagePool(nn.Module):
    """Made images of earlier steps (Shrivastava et al., CVPR 2017), of which a discriminator sees some.

    It is filled first. Then an image that is shown is, by one half, exchanged for one of those that are kept, whose
    place it takes; which, is a function of ``key`` and of the image's sample.

    Args:
        size: images that are kept; 0 shows every image itself.
        shape: of an image, (3, H, W).
        key: what it draws by.
    """

    images: Tensor
    filled: Tensor

    def __init__(self, size: int, shape: tuple[int, ...], *key: int | str) -> None:
        super().__init__()
        self._key = key
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def shown(self, made: Tensor, samples: Tensor, view: Tensor, turn: int) -> Tensor:
        """Return what is shown in place of made images (B, 3, H, W), and keep some of these.

        Args:
            made: of all processes.
            samples: their ids, int64 (B,).
            view: which augmentation of each, int64 (B,).
            turn: which of the phase's steps on the batch it is.
        """
        size, filled = len(self.images), int(self.filled)
        if not size:
            return made
        found = made.detach().clone()
        for number, ids in enumerate(zip(samples.tolist(), view.tolist(), strict=True)):
            drawn = stable_seed(*self._key, *ids, turn)
            if filled < size:
                self.images[filled] = made[number]
                filled += 1
            elif drawn % 2:
                place = (drawn >> 1) % size
                found[number] = self.images[place]
                self.images[place] = made[number]
        self.filled.fill_(filled)
        return found


class CycleGAN(AdversarialMethod):
    """The student makes images of kind B of those of kind A; ``second`` makes A of B.

    The student's phase trains both. Their losses: what the discriminators make of made images; ``cycle`` times the mean
    absolute difference of an image and what comes back; ``identity`` times that of what is made of images that are of
    the wanted kind already. Discriminators are stepped first, on what the generators make before their own step, and
    their losses are halved.

    Attributes:
        second: the generator from B to A.
        judge_a: tells images A from made ones.
        judge_b: tells images B from made ones.
    """

    student_reads = Reads(heads=(IMAGE,))

    def __init__(self, options: CycleGANOptions, context: Context) -> None:
        super().__init__(options)
        assert options.second is not None, "the plan settles the second generator"
        assert options.discriminator_layers is not None, "and the discriminators' layers"
        self.options = options
        wanted = context.student.preprocessing
        assert isinstance(wanted, Preprocessing), "it is a model of images"
        data = DataFacts.of_labels((), task=context.task.row().name)
        config = StudentConfig(name=options.second, image_size=wanted.image_size)
        # Of another seed than the student, which may be the same network.
        model = build_student(config, data, seed=stable_seed("second", context.seed))
        if model.preprocessing.mean != (0.5,) * 3 or model.preprocessing.std != (0.5,) * 3:  # type: ignore[union-attr]
            raise UserError(
                f"cycle_gan.second: {options.second} does not take images from -1 to 1.", "Name another generator."
            )
        self.second = model.module
        sides = options.discriminator_channels, options.discriminator_layers
        self.judge_a, self.judge_b = (PatchDiscriminator(3, *sides) for _ in range(2))
        shape = (3, *wanted.image_size)
        self.pool_a, self.pool_b = (ImagePool(options.pool, shape, "pool", context.seed, side) for side in "ab")

    @property
    def adversary(self) -> nn.Module:
        """Both discriminators."""
        return nn.ModuleList([self.judge_a, self.judge_b])

    def student_loss(self, scene: Scene) -> Losses:
        """Return the losses of both generators."""
        options, student = self.options, scene.student
        a, b, made_b = self._images(scene)
        made_a = self.second(b)
        fooled = [of_each(losses.generator_loss(logits, kind=options.loss)) for logits in self._judged(made_a, made_b)]
        back = losses.image_l1(self.second(made_b), a) + losses.image_l1(translate(student, made_a), b)
        terms = {"fool_b": Share.of(fooled[1]), "fool_a": Share.of(fooled[0]), "cycle": Share.of(options.cycle * back)}
        if options.identity:
            same = losses.image_l1(translate(student, b), b) + losses.image_l1(self.second(a), a)
            terms["identity"] = Share.of(options.cycle * options.identity * same)
        return Losses(terms)

    def adversary_loss(self, scene: Scene) -> Losses:
        """Return the halved losses of both discriminators, over the samples of all processes."""
        a, b, made_b = self._images(scene)
        with torch.no_grad():
            made_a = self.second(b)
            a, b, made_a, made_b = map(scene.gather, (a, b, made_a, made_b))
            ids = scene.gather(scene.batch.samples), scene.gather(scene.batch.view), scene.turn
            made_a, made_b = self.pool_a.shown(made_a, *ids), self.pool_b.shown(made_b, *ids)
        real, fake = self._judged(a, b), self._judged(made_a, made_b)
        values = [
            0.5 * losses.discriminator_loss(*pair, kind=self.options.loss).mean()
            for pair in zip(real, fake, strict=True)
        ]
        return Losses({"judge_a": values[0], "judge_b": values[1]})

    def _images(self, scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
        """Return the images A, the images B beside them, and what the student makes of A, each (B, 3, H, W)."""
        made = scene.output.heads[IMAGE].float()
        return pictures_of(scene.batch, scene.student), target_at(scene.batch.targets, made), made

    def _judged(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.judge_a(a), self.judge_b(b)


build = CycleGAN
