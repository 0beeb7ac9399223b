from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps

from kdcli.base.errors import UserError
from kdcli.config.data import AugmentConfig
from kdcli.data import Augmentation, Batch, Mix
from kdcli.data.images.augment import ERASED
from kdcli.machine.seeding import seeded, stable_seed

EVERYTHING = AugmentConfig(policy="trivial", color_jitter=0.4, erase=0.5)
CONFIGS = [
    AugmentConfig(),
    EVERYTHING,
    AugmentConfig(policy="rand", crop_scale=(1, 1), erase=1.0, color_jitter=0.2),
    AugmentConfig(policy="three", color_jitter=0.3),
]


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8))


@pytest.fixture
def _no_other_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's and numpy's global generators raise when they are drawn from."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("drew from a generator that is not torch's")

    for name in ("random", "randint", "uniform", "choice", "shuffle", "sample", "betavariate", "getrandbits"):
        monkeypatch.setattr(random, name, forbidden)
    for name in ("rand", "random", "randint", "uniform", "choice", "permutation", "beta", "normal"):
        monkeypatch.setattr(np.random, name, forbidden)


def test_stable_seed_is_fixed_for_ever() -> None:
    """By hand: the first 8 bytes of blake2b of the key's repr, little-endian, without the lowest bit."""
    import hashlib

    digest = hashlib.blake2b(b"('augment', 0, 1, 2)", digest_size=8).digest()
    assert stable_seed("augment", 0, 1, 2) == int.from_bytes(digest, "little") // 2
    assert stable_seed("augment", 0, 12) != stable_seed("augment", 0, 1, 2) != stable_seed("mix", 0, 1, 2)


def test_seeded_restores_torchs_generator_and_depends_on_the_key_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with seeded("a", 1):
        first = torch.rand(3)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    with seeded("a", 1):
        assert torch.equal(torch.rand(3), first)
    with seeded("a", 2):
        assert not torch.equal(torch.rand(3), first)


def test_accelerators_are_not_reseeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.manual_seed`` would reseed every accelerator, from which dropout draws in the same process."""

    def forbidden(*_: object) -> None:
        raise AssertionError("reseeded every device")

    for module, name in ((torch, "manual_seed"), (torch.random, "manual_seed"), (torch.cuda, "manual_seed_all")):
        monkeypatch.setattr(module, name, forbidden)
    Augmentation(EVERYTHING, canvas=(8, 8), seed=0)(picture(), epoch=0, index=0)
    Mix(AugmentConfig(mixup=1.0), 3, 0)(batch_of([0, 1]), 0, 0)


@pytest.mark.usefixtures("_no_other_generators")
@pytest.mark.parametrize("config", CONFIGS)
def test_augmentation_is_pure(config: AugmentConfig) -> None:
    first, second = (Augmentation(config, canvas=(24, 20), seed=3) for _ in range(2))
    image, before = picture(), picture()
    keys = [(epoch, index) for epoch in range(2) for index in range(20)]
    results = {(epoch, index): first(image, epoch=epoch, index=index)[0] for epoch, index in keys}
    torch.manual_seed(123)
    for epoch, index in reversed(keys):
        assert torch.equal(second(image, epoch=epoch, index=index)[0], results[epoch, index])
    assert image == before
    assert all(result.shape == (3, 24, 20) and result.dtype == torch.uint8 for result in results.values())
    distinct = {result.contiguous().numpy().tobytes() for result in results.values()}
    assert len(distinct) > 35
    other = Augmentation(config, canvas=(24, 20), seed=4)
    assert any(not torch.equal(other(image, epoch=e, index=i)[0], results[e, i]) for e, i in keys[:5])


def test_without_randomness_it_is_a_resize() -> None:
    plain = Augmentation(AugmentConfig(crop_scale=(1, 1), flip=0), canvas=(16, 12), seed=0)
    expected = np.asarray(picture().resize((12, 16), Image.Resampling.BICUBIC))
    result, _ = plain(picture(), epoch=0, index=0)
    np.testing.assert_array_equal(result.permute(1, 2, 0).numpy(), expected)


def test_a_padded_crop_moves_the_image_by_at_most_the_padding() -> None:
    plain = AugmentConfig(crop_scale=(1, 1), flip=0)
    image = Augmentation(plain, canvas=(16, 12), seed=0)(picture(), epoch=0, index=0)[0]
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    augmentation = Augmentation(plain.model_copy(update={"pad": 4}), canvas=(16, 12), seed=0)
    seen = set()
    for index in range(60):
        result, _ = augmentation(picture(), epoch=0, index=index)
        places = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if torch.equal(result, padded[:, top : top + 16, left : left + 12])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert {top for top, _ in seen} == {left for _, left in seen} == set(range(9))


def test_three_augment_is_always_one_of_three() -> None:
    """Grey: equal channels. Solarised: PIL's own, at 128. Blurred: PIL's own by the radius that is drawn, 0.1 to 2."""
    image = picture()
    grey = np.asarray(image.convert("L").convert("RGB"))
    solarised = np.asarray(ImageOps.solarize(image, 128))
    augmentation = Augmentation(AugmentConfig(crop_scale=(1, 1), flip=0, policy="three"), canvas=(30, 40), seed=0)
    counts = {"grey": 0, "solarised": 0, "blurred": 0}
    spreads = []
    for index in range(150):
        result = augmentation(image, epoch=0, index=index)[0].permute(1, 2, 0).numpy()
        if np.array_equal(result, grey):
            counts["grey"] += 1
        elif np.array_equal(result, solarised):
            counts["solarised"] += 1
        else:
            counts["blurred"] += 1
            spreads.append(result.std())
    assert min(counts.values()) > 30
    strongest = np.asarray(image.filter(ImageFilter.GaussianBlur(2))).std()
    assert strongest <= min(spreads) < 1.5 * strongest
    assert 0.8 * np.asarray(image).std() < max(spreads) <= np.asarray(image).std()


def test_flip_and_erase() -> None:
    always = AugmentConfig(crop_scale=(1, 1), flip=1, erase=1)
    result = Augmentation(always, canvas=(30, 40), seed=0)(picture(), epoch=0, index=0)[0].permute(1, 2, 0).numpy()
    flipped = np.asarray(picture())[:, ::-1]
    erased = (result != flipped).any(axis=-1)
    assert 0.01 < erased.mean() < 0.5
    assert (result[erased] == ERASED).all()
    np.testing.assert_array_equal(result[~erased], flipped[~erased])


def test_reversed_ranges_are_the_users_error() -> None:
    with pytest.raises(UserError, match="crop_scale"):
        Augmentation(AugmentConfig(crop_scale=(1.0, 0.5)), canvas=(8, 8), seed=0)


def batch_of(labels: list[int]) -> Batch:
    images = torch.arange(len(labels) * 3 * 8 * 8).reshape(-1, 3, 8, 8).remainder(251).to(torch.uint8)
    return Batch(images=images, targets=torch.tensor(labels), samples=torch.arange(len(labels)), skipped=["x"])


def test_no_mixing_returns_the_batch_itself() -> None:
    batch = batch_of([0, 1, -1])
    assert Mix(AugmentConfig(), 2, 0)(batch, 0, 0) is batch


def test_mixup_by_hand() -> None:
    """Each image is lam * itself + (1 - lam) * its partner; targets likewise, -1 counting as class 3 of 3 + 1."""
    batch = batch_of([0, 2, -1, 1, 0])
    mixed = Mix(AugmentConfig(mixup=1.0), 3, seed=5)(batch, 1, 2)
    one_hot = torch.eye(4)[torch.tensor([0, 2, 3, 1, 0])]
    lam = float(mixed.targets[0, 0])
    assert 0 < lam < 1
    images = batch.images.float()
    torch.testing.assert_close(mixed.targets, lam * one_hot + (1 - lam) * one_hot[[1, 0, 3, 2, 4]])
    torch.testing.assert_close(mixed.images, lam * images + (1 - lam) * images[[1, 0, 3, 2, 4]])
    assert mixed.images.dtype == mixed.targets.dtype == torch.float32
    assert mixed.skipped == ["x"]
    assert batch.images.dtype == torch.uint8


def test_cutmix_targets_are_the_shares_of_pixels() -> None:
    batch = batch_of([0, 2, -1, 1])
    mix = Mix(AugmentConfig(cutmix=1.0), 3, seed=0)
    for step in range(20):
        mixed = mix(batch, 0, step)
        kept = (mixed.images == batch.images.float()).all(dim=1).float().mean(dim=(1, 2))
        torch.testing.assert_close(mixed.targets[[0, 1, 2, 3], [0, 2, 3, 1]], kept, rtol=0, atol=1e-6)
        torch.testing.assert_close(mixed.targets.sum(1), torch.ones(4))


@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"cutmix": 1.0}])
def test_slices_are_mixed_as_the_whole(options) -> None:
    batch = batch_of([0, 2, -1, 1, 1, 0, 2, -1])
    mix = Mix(AugmentConfig(**options), 3, seed=0)
    for step in range(5):
        whole = mix(batch, 0, step)
        for part in (slice(0, 4), slice(4, 8)):
            own = Batch(images=batch.images[part], targets=batch.targets[part], samples=batch.samples[part])
            mixed = mix(own, 0, step)
            assert torch.equal(mixed.images, whole.images[part])
            assert torch.equal(mixed.targets, whole.targets[part])


@pytest.mark.usefixtures("_no_other_generators")
def test_mixing_is_a_function_of_seed_epoch_and_step() -> None:
    batch, both = batch_of([0, 1, 2, 0]), AugmentConfig(mixup=0.8, cutmix=1.0)
    first = {(e, s): Mix(both, 3, 0)(batch, e, s).images for e in range(2) for s in range(10)}
    torch.manual_seed(99)
    mix = Mix(both, 3, 0)
    state = torch.get_rng_state()
    assert all(torch.equal(mix(batch, e, s).images, images) for (e, s), images in reversed(first.items()))
    assert torch.equal(torch.get_rng_state(), state)
    assert len({images.numpy().tobytes() for images in first.values()}) == 20
    is_cutmix = [bool((images == images.round()).all()) for images in first.values()]
    assert any(is_cutmix)
    assert not all(is_cutmix)
