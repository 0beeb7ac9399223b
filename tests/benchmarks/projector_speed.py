"""Time one training step of an orthogonal projector against nn.Linear, and see how orthogonal it stays.

python tests/benchmarks/projector_speed.py [--steps N] [--sizes 192x512,192x3024] [--device cpu]

A step is forward, smooth L1, backward and AdamW at batch 128. The contenders take turns within one run, so that the
ratios hold on a machine that is busy with other things, too; the times themselves then don't.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from time import perf_counter
from typing import Annotated, get_args

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from kdcli.base.names import OrthogonalMap
from kdcli.losses import smooth_l1
from kdcli.projectors.maps import OrthogonalProjector
from kdcli.projectors.stiefel import orthogonality_error

BATCH = 128
LEARNING_RATE = 2e-3
TORCH_MAP_ROUNDS = 2  # of these some take many seconds a step


def training_step(module: nn.Module, *, dims: tuple[int, int], device: str, bf16: bool = False) -> Callable[[], None]:
    """Return a function that trains ``module`` for one step on fresh random features."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=0)
    if isinstance(module, OrthogonalProjector):
        module.attach(optimizer)

    def step() -> None:
        features, target = torch.randn(BATCH, dims[0], device=device), torch.randn(BATCH, dims[1], device=device)
        with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
            loss = smooth_l1(module(features), target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], *, device: str) -> float:
    """Return how long ``step`` takes, until the device has finished."""
    start = perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


def drift(dims: tuple[int, int], *, steps: int, device: str, bf16: bool) -> float:
    """Return the largest orthogonality error after any of ``steps`` steps of a new retracted projector."""
    projector = OrthogonalProjector(*dims).to(device)
    step = training_step(projector, dims=dims, device=device, bf16=bf16)
    largest = torch.zeros((), device=device)
    for _ in range(steps):
        step()
        largest = torch.maximum(largest, orthogonality_error(projector.weight))
    return largest.item()


def main(
    steps: Annotated[int, typer.Option(help="Steps over which the error of the retraction is watched.")] = 1000,
    rounds: Annotated[int, typer.Option(help="Timed steps of nn.Linear and the retraction.")] = 30,
    sizes: Annotated[
        str, typer.Option(help="Comma-separated STUDENTxTEACHER dimensions.")
    ] = "192x512,384x2048,192x3024",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    maps: Annotated[str, typer.Option(help="Comma-separated maps to time.")] = ",".join(get_args(OrthogonalMap)),
) -> None:
    """Print the table."""
    torch.manual_seed(0)
    console = Console(width=120)
    table = Table(
        title=f"one training step, batch {BATCH}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for column in ("d_s → d_t", "map", "median ms", "min-max ms", "x nn.Linear", "error", "error bf16", "over steps"):
        table.add_column(column, justify="left" if column == "map" else "right")
    for size in sizes.split(","):
        student_dim, teacher_dim = (int(dim) for dim in size.split("x"))
        dims = (student_dim, teacher_dim)
        modules: dict[str, nn.Module] = {"nn.Linear": nn.Linear(*dims).to(device)}
        for name in maps.split(","):
            modules[name] = OrthogonalProjector(*dims, orthogonal_map=name).to(device)  # type: ignore[arg-type]
        timed = {name: training_step(module, dims=dims, device=device) for name, module in modules.items()}
        slow = {name for name in timed if name not in ("nn.Linear", "retraction")}
        times: dict[str, list[float]] = {name: [] for name in timed}
        with console.status(f"{size}: timing"):
            for name in timed:
                seconds(timed[name], device=device)
            for index in range(rounds):
                for name, step in timed.items():
                    if name not in slow or index < TORCH_MAP_ROUNDS:
                        times[name].append(seconds(step, device=device))
        for name, module in modules.items():
            took = times[name]
            row = [f"{student_dim} → {teacher_dim}", name, f"{median(took) * 1e3:.2f}"]
            row += [f"{min(took) * 1e3:.2f}-{max(took) * 1e3:.2f}", f"{median(took) / median(times['nn.Linear']):.2f}"]
            if name == "retraction":
                with console.status(f"{size}: {steps} steps in float32, then under bf16 autocast"):
                    errors = [drift(dims, steps=steps, device=device, bf16=bf16) for bf16 in (False, True)]
                row += [*(f"{error:.1e}" for error in errors), str(steps)]
            elif isinstance(module, OrthogonalProjector):
                row += [f"{orthogonality_error(module.matrix().detach()).item():.1e}", "", str(1 + len(took))]
            table.add_row(*row)
        table.add_section()
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
