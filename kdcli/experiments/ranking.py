"""The runs of a sweep in order, by validation alone."""

from __future__ import annotations

from kdcli.base.errors import UserError
from kdcli.experiments.sweep import EPISODES, Sweep, check_variant
from kdcli.experiments.variants import Variant
from kdcli.results.compare import Comparison, Summary, compare_runs, read_runs


def compare_sweep(sweep: Sweep, *, baseline: Variant | None) -> tuple[Comparison, list[str]]:
    """Compare all runs of the sweep that have begun.

    Returns:
        The comparison, and what is missing in it, a sentence each.

    Raises:
        UserError: there is no run yet, or what is there is of another config.
    """
    for variant in sweep.variants:
        check_variant(variant, sweep.folder / variant.name)
    by_variant = sorted(sweep.runs, key=lambda run: sweep.variants.index(run.variant))
    begun = [run for run in by_variant if (run.path / "config.yaml").is_file()]
    missing = [run.label for run in by_variant if run not in begun]
    if not begun:
        raise UserError(f"There is no run in {sweep.folder}.", "Run the sweep first, without --report-only.")
    alone = [path for run in begun if ((path := run.path / "baseline") / "config.yaml").is_file()]
    remarks = [f"Not begun: {', '.join(missing)}."] if missing else []
    has_pairs = baseline is not None and len({run.variant.name for run in begun}) > 1
    if baseline is not None and not (has_pairs and any(run.variant == baseline for run in begun)):
        remarks.append(f"No differences: {baseline.name} and another variant have no runs yet.")
        baseline = None
    runs = read_runs([*(run.path for run in begun), *alone], force=sweep.force)
    return compare_runs(runs, baseline=None if baseline is None else baseline.name), remarks


RANKING_RULE = (
    "Ranked by the mean over the seeds, higher first; ties go to the lower mean validation loss, then to the order"
    " given."
)


def rank_variants(sweep: Sweep, comparison: Comparison) -> tuple[list[str], list[list[str]], list[str]]:
    """Rank each recipe's variants by the monitored validation metric, without any test data.

    Variants of episodes, whose queries are validation images here, go by the accuracy of their students.

    Returns:
        Columns and rows of a table, and a line for each recipe: its best variant. A variant has to have finished with
        every seed to be ranked.
    """
    groups = {group.name: group for group in comparison.groups}
    rows: list[list[str]] = []
    best: list[str] = []
    for recipe in dict.fromkeys(variant.recipe for variant in sweep.variants):
        ranked: list[tuple[float, float, str, str, Summary]] = []
        left_out: list[tuple[str, str]] = []
        for variant in (variant for variant in sweep.variants if variant.recipe == recipe):
            group = groups.get(variant.name)
            if group is None or {run.seed for run in group.finished} != set(sweep.seeds):
                left_out.append((variant.name, "not finished"))
                continue
            # A run of features alone has another metric than one that trains the classifier.
            own = [name for name in group.runs[0].metrics if name.startswith("validation ")]
            metric = own[0] if variant.config.episodes is None else EPISODES
            if ranked and metric != ranked[0][3]:
                left_out.append((variant.name, f"{metric}: not to be compared"))
                continue
            score, loss = group.summary(metric), group.summary("validation loss")
            assert score is not None
            ranked.append((-score.mean, 0.0 if loss is None else loss.mean, variant.name, metric, score))
        ranked.sort(key=lambda entry: entry[:2])  # stable: equal ones stay in the order given
        for place, (_, loss_mean, name, metric, score) in enumerate(ranked, start=1):
            spread = "" if score.std is None else f" ± {score.std:.4f}"
            tie = "-" if groups[name].summary("validation loss") is None else f"{loss_mean:.4f}"
            rows.append([recipe, str(place), name, metric, f"{score.mean:.4f}{spread}", tie])
        rows += [[recipe, "-", name, reason, "-", "-"] for name, reason in left_out]
        if ranked:
            _, _, name, metric, score = ranked[0]
            best.append(f"Best variant of {recipe}: {name} ({metric} {score.mean:.4f}, {len(sweep.seeds)} seeds)")
    return ["recipe", "rank", "variant", "metric", "mean", "validation loss"], rows, best
