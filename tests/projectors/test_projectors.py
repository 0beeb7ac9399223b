"""Projectors: shapes, what is saved, and that the orthogonal one stays orthogonal under any optimiser."""

from __future__ import annotations

import copy

import pytest
import timm.optim
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdcli.losses import smooth_l1
from kdcli.projectors.maps import (
    InvertedProjector,
    LinearProjector,
    MLPProjector,
    OrthogonalProjector,
    Projector,
    build_projector,
    describe_projector,
    projector_name,
)
from kdcli.projectors.stiefel import orthogonality_error

TORCH_MAPS = ("matrix_exp", "cayley", "householder")
DIMS = [(6, 10), (10, 6), (7, 7)]


def train(projector: Projector, optimizer, *, steps: int, bf16: bool = False, watch=lambda: None) -> None:
    width = projector.student_dim
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = projector(torch.randn(16, width))
            loss = smooth_l1(output, torch.randn(16, projector.teacher_dim)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch()


@pytest.mark.parametrize(
    ("name", "kind", "direction", "weight_decay"),
    [
        ("linear", LinearProjector, "student_to_teacher", True),
        ("mlp", MLPProjector, "student_to_teacher", True),
        ("orthogonal", OrthogonalProjector, "student_to_teacher", False),
        ("inverted", InvertedProjector, "teacher_to_student", True),
    ],
)
@pytest.mark.parametrize("dims", DIMS)
class TestEveryProjector:
    def test_maps_one_space_to_the_other(self, name, kind, direction, weight_decay, dims):
        projector = build_projector(name, *dims)
        assert type(projector) is kind
        assert projector.direction == direction
        assert projector.weight_decay is weight_decay
        width, out = dims if direction == "student_to_teacher" else dims[::-1]
        features = torch.randn(2, 3, width)
        assert projector(features).shape == (2, 3, out)
        if name != "mlp":
            assert projector.matrix().shape == (width, out)
            expected = features.double() @ projector.matrix().detach().double()
            torch.testing.assert_close(projector(features).double(), expected, rtol=1e-5, atol=1e-6)

    def test_saves_to_safetensors_and_back(self, name, kind, direction, weight_decay, dims, tmp_path):
        projector = build_projector(name, *dims)
        save_file(projector.state_dict(), tmp_path / "projector.safetensors")
        loaded = load_file(tmp_path / "projector.safetensors")
        assert name == "mlp" or list(loaded) == ["weight"]
        other = build_projector(name, *dims)
        other.load_state_dict(loaded)
        for key, tensor in projector.state_dict().items():
            assert torch.equal(other.state_dict()[key], tensor)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_features(self, name, kind, direction, weight_decay, dims, dtype):
        projector = build_projector(name, *dims)
        features = torch.randn(4, dims[0] if direction == "student_to_teacher" else dims[1], dtype=dtype)
        assert projector(features).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert projector(features).dtype == torch.bfloat16
        assert {parameter.dtype for parameter in projector.parameters()} == {torch.float32}


class TestInitialisation:
    def test_linear_is_that_of_nn_linear(self):
        torch.manual_seed(0)
        actual, reference = LinearProjector(64, 512).matrix(), nn.Linear(64, 512).weight
        assert actual.abs().max().item() == pytest.approx(64**-0.5, rel=1e-3)
        assert actual.std().item() == pytest.approx(reference.std().item(), rel=0.02)

    @pytest.mark.parametrize("dims", DIMS)
    def test_inverted_starts_with_a_flat_spectrum(self, dims):
        values = torch.linalg.svdvals(InvertedProjector(*dims).matrix().detach().double())
        torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("dims", DIMS)
    @pytest.mark.parametrize("orthogonal_map", ["retraction", *TORCH_MAPS])
    def test_orthogonal_starts_on_the_manifold(self, dims, orthogonal_map):
        projector = OrthogonalProjector(*dims, orthogonal_map=orthogonal_map)
        matrix = projector.matrix().detach().double()
        gram = matrix @ matrix.T if dims[0] <= dims[1] else matrix.T @ matrix
        torch.testing.assert_close(gram, torch.eye(min(dims), dtype=torch.float64), rtol=0, atol=2e-6)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dims", [(24, 96), (40, 16)])
def test_a_thousand_adamw_steps(dims, bf16):
    torch.manual_seed(0)
    projector = OrthogonalProjector(*dims)
    start = projector.weight.detach().clone()
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3, weight_decay=0)
    projector.attach(optimizer)
    errors: list[float] = []
    train(
        projector,
        optimizer,
        steps=1000,
        bf16=bf16,
        watch=lambda: errors.append(orthogonality_error(projector.weight).item()),
    )
    assert len(errors) == 1000
    assert max(errors) <= 2e-6
    assert (projector.weight - start).norm() > 1
    assert projector.weight.dtype == torch.float32


def test_inner_products_of_student_features_are_preserved():
    projector = OrthogonalProjector(24, 96)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=0.1)
    projector.attach(optimizer)
    train(projector, optimizer, steps=5)
    features = torch.randn(10, 24)
    projected = projector(features).detach()
    torch.testing.assert_close(projected @ projected.T, features @ features.T, rtol=0, atol=1e-4)


class TestAttach:
    @pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lookahead_sgd"])
    def test_timm_optimizers(self, name):
        torch.manual_seed(0)
        projector = OrthogonalProjector(8, 20)
        student = nn.Linear(3, 8)
        optimizer = timm.optim.create_optimizer_v2(
            nn.ModuleList([student, projector]), opt=name, lr=0.05, weight_decay=0
        )
        handle = projector.attach(optimizer)
        errors: list[float] = []
        train(projector, optimizer, steps=13, watch=lambda: errors.append(orthogonality_error(projector.weight).item()))
        assert max(errors) <= 2e-6
        handle.remove()
        train(projector, optimizer, steps=13)
        assert orthogonality_error(projector.weight) > 1e-5

    def test_the_first_step_counts_without_zero_grad(self):
        class Unhooked(timm.optim.Lookahead):
            def step(self, closure=None):  # a `step` of its own: no earlier test has made it run hooks
                return self._base_optimizer.step(closure)

        projector = OrthogonalProjector(4, 8)
        optimizer = Unhooked(torch.optim.SGD(projector.parameters(), lr=1.0))
        projector.attach(optimizer)
        smooth_l1(projector(torch.randn(16, 4)), torch.randn(16, 8)).mean().backward()
        optimizer.step()
        assert orthogonality_error(projector.weight) <= 2e-6

    def test_wrapped_optimizer(self):
        class Wrapper:
            def __init__(self, optimizer):
                self.optimizer = optimizer

        projector = OrthogonalProjector(4, 8)
        optimizer = torch.optim.SGD(projector.parameters(), lr=1.0)
        projector.attach(Wrapper(optimizer))
        train(projector, optimizer, steps=2)
        assert orthogonality_error(projector.weight) <= 2e-6

    def test_refuses_an_optimizer_of_other_parameters(self):
        projector, other = OrthogonalProjector(4, 8), OrthogonalProjector(4, 8)
        with pytest.raises(ValueError, match="not among the optimiser's"):
            projector.attach(torch.optim.SGD(other.parameters(), lr=0.1))

    def test_follows_the_module_through_a_loaded_state(self):
        projector = OrthogonalProjector(4, 8)
        optimizer = torch.optim.SGD(projector.parameters(), lr=1.0)
        projector.attach(optimizer)
        projector.load_state_dict(OrthogonalProjector(4, 8).state_dict())
        train(projector, optimizer, steps=1)
        assert orthogonality_error(projector.weight) <= 2e-6

    def test_a_copy_is_independent(self):
        projector = OrthogonalProjector(4, 8)
        optimizer = torch.optim.SGD(projector.parameters(), lr=1.0)
        projector.attach(optimizer)
        clone = copy.deepcopy(projector)
        before = clone.weight.detach().clone()
        train(projector, optimizer, steps=1)
        assert torch.equal(clone.weight, before)
        assert not torch.equal(projector.weight, before)

    @pytest.mark.parametrize("orthogonal_map", TORCH_MAPS)
    @pytest.mark.parametrize("dims", DIMS)
    def test_torch_maps_need_no_retraction(self, orthogonal_map, dims):
        torch.manual_seed(0)
        projector = OrthogonalProjector(*dims, orthogonal_map=orthogonal_map)
        start = projector.matrix().detach().clone()
        optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-2, weight_decay=0)
        projector.attach(optimizer)
        train(projector, optimizer, steps=3)
        assert orthogonality_error(projector.matrix().detach()) <= 1e-5
        assert (projector.matrix() - start).abs().max() > 1e-3
        clone = copy.deepcopy(projector)
        assert torch.equal(clone.matrix(), projector.matrix())
        fresh = OrthogonalProjector(*dims, orthogonal_map=orthogonal_map)
        fresh.load_state_dict(projector.state_dict())
        torch.testing.assert_close(fresh.matrix(), projector.matrix(), rtol=0, atol=1e-6)


class TestErrors:
    def test_unknown_projector(self):
        with pytest.raises(ValueError, match="'conv'; valid are linear, mlp, orthogonal, inverted"):
            build_projector("conv", 3, 4)  # type: ignore[arg-type]

    def test_unknown_map(self):
        with pytest.raises(ValueError, match="'qr'; valid are retraction, matrix_exp, cayley, householder"):
            OrthogonalProjector(3, 4, orthogonal_map="qr")  # type: ignore[arg-type]

    @pytest.mark.parametrize("dims", [(0, 4), (4, -1)])
    def test_dimensions(self, dims):
        with pytest.raises(ValueError, match="must be positive"):
            build_projector("linear", *dims)


def test_projectors_are_called_as_in_a_config():
    """Torch's parametrisations give the projector a class of their own."""
    for name in ("linear", "mlp", "inverted"):
        assert projector_name(build_projector(name, 3, 4)) == name
    for orthogonal_map in ("retraction", *TORCH_MAPS):
        projector = build_projector("orthogonal", 3, 4, orthogonal_map=orthogonal_map)
        assert projector_name(projector) == "orthogonal"
        assert describe_projector(projector, "run-1") == f"Orthogonal projector ({orthogonal_map}) of run-1"
    assert describe_projector(build_projector("inverted", 3, 4), "x") == "Inverted projector of x"
