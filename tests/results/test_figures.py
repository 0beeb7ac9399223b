"""t-SNE's input and the landscape of a loss against values derived by hand and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcli.results import figures, paper_figures


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _clusters(num: int = 60, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(num) % 3
    return 4 * _randn(3, width)[labels] + _randn(num, width, seed=1), labels


# --- samples and maps ---


def test_samples_are_drawn_once_each_and_by_the_seed() -> None:
    chosen = figures.choose_samples(50, most=20, seed=3)
    assert len(chosen) == len(set(chosen.tolist())) == 20
    assert chosen.tolist() == sorted(chosen.tolist()) == figures.choose_samples(50, most=20, seed=3).tolist()
    assert chosen.tolist() != figures.choose_samples(50, most=20, seed=4).tolist()
    assert figures.choose_samples(5, most=20, seed=0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_random_maps(shape: tuple[int, int]) -> None:
    orthogonal = figures.random_orthogonal(*shape, seed=1)
    gram = orthogonal @ orthogonal.T if shape[0] <= shape[1] else orthogonal.T @ orthogonal
    torch.testing.assert_close(gram, torch.eye(min(shape), dtype=torch.float64), rtol=0, atol=1e-12)
    linear = figures.random_linear(*shape, seed=1)
    assert linear.shape == orthogonal.shape == shape
    assert 0.8 * shape[0] ** -0.5 < float(linear.abs().max()) <= shape[0] ** -0.5
    assert float(linear.min()) < 0 < float(linear.max())
    for make in (figures.random_linear, figures.random_orthogonal):
        assert torch.equal(make(*shape, seed=1), make(*shape, seed=1))
        assert not torch.equal(make(*shape, seed=1), make(*shape, seed=2))


# --- t-SNE ---


@pytest.mark.filterwarnings("error")
def test_tsne_is_the_same_for_a_seed_and_for_equal_distances() -> None:
    """It sees distances alone, and an orthogonal map with at least as many columns as rows changes none."""
    features, labels = _clusters()
    layout = figures.tsne(features, seed=0)
    assert layout.shape == (60, 2)
    assert np.isfinite(layout).all()
    assert np.array_equal(layout, figures.tsne(features, seed=0))
    turned = figures.tsne(7 * features @ figures.random_orthogonal(12, 20, seed=2) + 3, seed=0)
    np.testing.assert_allclose(turned, layout, atol=1e-2 * np.abs(layout).max())
    assert figures.neighbour_accuracy(torch.from_numpy(layout), labels, num_neighbours=5) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(4, 3), (5, 1), (7, 200)])
def test_tsne_of_few_samples_and_channels(shape: tuple[int, int]) -> None:
    layout = figures.tsne(_randn(*shape), seed=0)
    assert layout.shape == (shape[0], 2)
    assert np.isfinite(layout).all()
    assert len(np.unique(layout.round(3), axis=0)) == shape[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 1e3])
def test_tsne_of_features_that_are_all_the_same_is_one_point(value: float) -> None:
    features = value + 1e-13 * _randn(10, 4) * value
    assert not figures.tsne(features, seed=0).any()


def test_neighbours_vote_as_in_a_loop() -> None:
    features, labels = _randn(40, 3), torch.arange(40) % 4 - 1  # a quarter has no label
    right = counted = 0
    for i in range(40):
        if labels[i] < 0:
            continue
        others = [j for j in range(40) if j != i and labels[j] >= 0]
        nearest = sorted(others, key=lambda j: float((features[i] - features[j]).norm()))[:5]
        votes = [sum(int(labels[j]) == c for j in nearest) for c in range(3)]
        right += votes.index(max(votes)) == int(labels[i])
        counted += 1
    assert figures.neighbour_accuracy(features, labels, num_neighbours=5) == pytest.approx(right / counted, abs=1e-12)
    assert figures.neighbour_accuracy(features, torch.zeros(40, dtype=torch.int64), num_neighbours=5) is None
    assert figures.neighbour_accuracy(_randn(2, 3), torch.tensor([0, 1]), num_neighbours=5) == 0


# --- the landscape of a loss ---


def test_directions_are_as_long_as_their_images_and_orthogonal() -> None:
    images = _randn(4, 3, 5, 6).float() * torch.tensor([1.0, 10.0, 0.1, 0.0])[:, None, None, None]
    u, v = (direction.flatten(1) for direction in figures.input_directions(images, seed=0))
    assert u.dtype == torch.float32
    lengths = images.flatten(1).norm(dim=1)
    torch.testing.assert_close(u.norm(dim=1), lengths)
    torch.testing.assert_close(v.norm(dim=1), lengths)
    assert ((u * v).sum(1).abs() <= 1e-5 * lengths**2).all()
    cosine = float(u[0] @ u[1] / (lengths[0] * lengths[1]))
    assert abs(cosine) < 0.5, "every image has directions of its own"


def test_landscape_is_the_loss_of_the_moved_images() -> None:
    images, positions = _randn(3, 2, 4, 4), [-1.0, 0.0, 1.0]
    target = _randn(3, 2, 4, 4, seed=5)

    def losses(moved: torch.Tensor) -> list[float]:
        return [float((moved - target).square().mean()), float(moved.sum())]

    grids = figures.loss_landscape(losses, images, positions, seed=0)
    assert grids.shape == (2, 3, 3)
    assert grids[:, 1, 1].tolist() == losses(images)
    u, v = figures.input_directions(images, seed=0)
    assert grids[:, 2, 0].tolist() == losses(images + u - v)
    assert grids[:, 0, 1].tolist() == losses(images - u)


def test_numbers_of_a_landscape_by_hand() -> None:
    """``L = 2 + 3 a² + b``: second derivatives 6 and 0, mean 3, over 2; from 1 at (0, -1) to 6 at (±1, 1)."""
    positions = np.linspace(-1, 1, 5).tolist()
    a, b = np.meshgrid(positions, positions, indexing="ij")
    losses = 2 + 3 * a**2 + b
    assert figures.relative_range(losses) == pytest.approx(2.5)
    assert figures.relative_curvature(losses, positions) == pytest.approx(1.5)
    assert figures.relative_curvature(10 * losses, positions) == pytest.approx(1.5)
    assert figures.relative_curvature(1 + 0 * losses, positions) == figures.relative_range(1 + 0 * losses) == 0
    assert figures.relative_curvature(0 * losses, positions) is figures.relative_range(0 * losses) is None


@pytest.mark.parametrize(("macs", "side"), [(0, 21), (10**8, 21), (2 * 10**8, 15), (10**9, 7), (10**12, 7)])
def test_costly_models_get_fewer_points_of_a_landscape(macs: int, side: int) -> None:
    assert paper_figures._points_along(macs, torch.device("cpu")) == side
