"""``kdcli sweep`` and ``kdcli compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcli.base.errors import UserError
from kdcli.cli import complete
from kdcli.cli.distill import command_line
from kdcli.cli.shared import AsJson, Jobs

if TYPE_CHECKING:
    from kdcli.results.compare import Comparison


def sweep(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE",
            help="Recipes by name or file, or folders of .yaml files.",
            show_default=False,
            autocompletion=complete.recipes,
        ),
    ],
    seeds: Annotated[
        str,
        typer.Option(metavar="N|LIST", help="How many seeds (5 is 0 to 4), or a list: 3,7,9.", show_default=False),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set a key in every recipe. May be repeated.",
            autocompletion=complete.settings,
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2",
            help="Run each recipe with each of these values. Repeated: with every combination.",
            autocompletion=complete.settings,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The sweep's folder: runs go to DIR/RECIPE[-KEY=VALUE]/seed-S. Default: runs/sweeps/RECIPES.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Also show the difference to this recipe or variant, paired by seed, with 95 % intervals.",
            show_default=False,
            autocompletion=complete.recipes,
        ),
    ] = None,
    no_test: Annotated[
        bool, typer.Option("--no-test", help="Do not use the test split; rank the variants by validation.")
    ] = False,
    jobs: Jobs = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="slurm|local",
            help="Make each run a job of a SLURM cluster (submitit); local: of this machine. All at once, or --jobs.",
            show_default=False,
        ),
    ] = None,
    cluster_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="What a job asks for, as submitit calls it: slurm_partition=gpu, gpus_per_node=1. May be repeated.",
        ),
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Run nothing; compare the runs that exist.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Continue runs even if their data, teacher or files have changed. Cards and results then say so.",
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Also print the output of each run.")] = False,
) -> None:
    """Train recipes with several seeds and settings, and compare them.

    Finished runs are skipped, interrupted runs go on: after Ctrl-C give the same command again. If a run fails, the
    others go on. Writes tables (compare.md, compare.csv, table.csv, table.tex) and pictures. With --no-test it ranks
    the variants of each recipe by their mean validation metric.

    Examples:

        kdcli sweep quickstart mine.yaml --seeds 5 --baseline quickstart

        kdcli sweep recipes/ --seeds 3,7,9 --set train.epochs=20 --output runs/sweeps/methods

        kdcli sweep mine.yaml --seeds 3 --vary optim.lr=0.001,0.003 --vary train.batch_size=32,64 --no-test

        kdcli sweep mine.yaml --seeds 3 --vary optim.lr=0.001,0.003 --report-only

        kdcli sweep mine.yaml --seeds 9 --cluster slurm --cluster-set slurm_partition=gpu --cluster-set gpus_per_node=1
    """
    from kdcli.experiments.cluster import Cluster

    where = Cluster.parse(cluster, cluster_set or [])
    from kdcli.experiments.variants import find_recipes, make_variants, parse_seeds, parse_vary, safe_name

    files = find_recipes(recipes)
    numbers = parse_seeds(seeds)
    variants = make_variants(
        files, overrides=set_ or [], vary=parse_vary(vary or []), no_test=no_test, num_seeds=len(numbers)
    )
    is_folder = len(recipes) == 1 and Path(recipes[0]).is_dir()
    name = Path(recipes[0]).resolve().name if is_folder else "+".join(files)
    from kdcli.experiments.ranking import RANKING_RULE, compare_sweep, rank_variants
    from kdcli.experiments.sweep import Sweep, run_sweep
    from kdcli.terminal.console import show_lines, show_table

    swept = Sweep(output or Path("runs") / "sweeps" / safe_name(name), variants, numbers, force)
    reference = None if baseline is None else swept.find_variant(baseline)
    failed: dict[str, UserError] = {}
    if not report_only:
        code, failed = run_sweep(swept, jobs=jobs, command=command_line(), verbose=verbose, cluster=where)
        if code:
            show_lines([f"Stopped; all is saved. Go on with the same command: {command_line()}"])
            raise typer.Exit(code)
    if len(failed) < len(swept.runs):
        from kdcli.results.comparison import write_comparison

        comparison, remarks = compare_sweep(swept, baseline=reference)
        written = write_comparison(comparison, swept.folder)
        show_comparison(comparison)
        show_lines(remarks)
        if swept.is_untested:
            columns, rows, best = rank_variants(swept, comparison)
            show_table("Ranking without test data", columns, rows)
            show_lines([RANKING_RULE, *best])
        show_lines(f"Wrote {file}" for file in written)
    if failed:
        told = "\n".join(f"  - {label}: {error.message} {error.hint}" for label, error in failed.items())
        raise UserError(
            f"{len(failed)} of {len(swept.runs)} runs failed:\n{told}",
            "Mend what they name; the same command then runs what is missing.",
        )


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Run folders, or folders of sweeps.",
            show_default=False,
            autocompletion=complete.runs,
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="One of the runs: also show the difference to its method, paired by seed, with a 95 % interval.",
            show_default=False,
            autocompletion=complete.runs,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write tables (Markdown, csv, LaTeX) and pictures to this folder.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Show this metric instead of the one that chooses the best student. May be repeated.",
            show_default=False,
        ),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Show all metrics, and all settings that differ.")] = False,
    json_: AsJson = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Compare even if files have changed, or data of one name differ. The output then says so.",
        ),
    ] = False,
) -> None:
    """Compare methods side by side: their metrics, and the settings that differ.

    Runs that differ only in the seed are one method: shown as mean ± standard deviation, named after the first run.
    Shares are in percent. Unfinished runs are marked. A run with --baseline has its student alone in RUN/baseline.

    Examples:

        kdcli compare runs/quickstart runs/quickstart/baseline

        kdcli compare runs/kd-0 runs/kd-1 runs/alone-0 runs/alone-1 --baseline runs/alone-0

        kdcli compare runs/* --output comparison/

        kdcli compare runs/masks-* --metric mean_iou --metric pixel_accuracy --all

        kdcli compare runs/sweeps/mine --json
    """
    from kdcli.results.compare import compare_runs, find_runs, read_runs
    from kdcli.results.comparison import to_json, write_comparison
    from kdcli.results.methods_table import columns_of
    from kdcli.terminal.console import show_lines

    comparison = compare_runs(read_runs(find_runs(runs), force=force), baseline=baseline)
    columns_of(comparison, metric or ())  # refused before anything is written
    files = [] if output is None else write_comparison(comparison, output, metric or ())
    if json_:
        typer.echo(json.dumps(to_json(comparison), indent=2))
        return
    show_comparison(comparison, metric or (), everything=all_)
    show_lines([f"Wrote {file}" for file in files] or ["Add --output DIR for Markdown, csv, LaTeX and pictures."])


def show_comparison(comparison: Comparison, metrics: Sequence[str] = (), *, everything: bool = False) -> None:
    """Print the methods with their metrics, what tells them apart, and notes.

    Args:
        comparison: the groups.
        metrics: as for :func:`kdcli.results.methods_table.columns_of`.
        everything: also print all settings that differ and all metrics.
    """
    from kdcli.results.comparison import notes, table
    from kdcli.results.methods_table import columns_of, methods_table, settings_table
    from kdcli.terminal.console import show_lines, show_wide_table

    show_lines(f"Warning: {warning}" for warning in comparison.warnings)
    show_wide_table("Comparison", *methods_table(comparison, columns_of(comparison, metrics)))
    headings, settings = settings_table(comparison)
    if settings:
        show_wide_table("Settings that differ", headings, settings)
    if everything:
        show_wide_table("All settings and metrics", *table(comparison))
    show_lines(notes(comparison, metrics))
