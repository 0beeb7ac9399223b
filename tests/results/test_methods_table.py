"""Methods as rows: what is shown of them, what is folded, and how it looks on paper; on runs written down here."""

from __future__ import annotations

import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.results.compare import Run, compare_runs
from kdcli.results.comparison import write_comparison
from kdcli.results.methods_table import (
    bars_of,
    columns_of,
    is_of_one_loss,
    methods_table,
    settings_table,
    to_latex,
)
from kdcli.results.pictures.bars import plot_bars
from kdcli.statistics.shares import is_share

ALONE = {"teacher.name": "none", "relation": "none", "methods.supervised.weight": 1.0, "projector": "auto"}
TAUGHT = {"teacher.name": "resnet50", "teacher.weights": "x.pth", "relation": "same", "methods.supervised.weight": 1.0}
KD = TAUGHT | {"methods.kd.weight": 2.0, "methods.kd.temperature": 4, "projector": "auto"}
COOL = KD | {"methods.kd.temperature": 1}
MAPPED = TAUGHT | {"methods.map.projector": "linear", "projector": "linear"}


def make_runs(name: str, accuracies, settings, **more) -> list[Run]:
    return [
        Run(
            Path("runs") / f"{name}_{seed}",
            f"{name}_{seed}",
            seed,
            {"task": "image-classification", "optim.lr": 0.1} | settings,
            {"validation accuracy": value - 0.25, "validation loss": 1 - value, "test accuracy": value} | more,
            {"validation accuracy": {1: 0.1, 2: value}, "training loss": {1: 2.0, 2: 1.0}},
            True,
        )
        for seed, value in enumerate(accuracies)
    ]


def table_of(comparison, *metrics):
    return methods_table(comparison, columns_of(comparison, metrics))


def test_methods_are_rows_in_percent_with_paired_differences():
    """Differences of kd: 0.1 and 0.2, mean 0.15, standard error 0.05, t(0.975, 1) = 12.7062."""
    runs = [*make_runs("alone", [0.5, 0.6], ALONE), *make_runs("kd", [0.6, 0.8], KD), *make_runs("one", [0.7], MAPPED)]
    headings, rows = table_of(compare_runs(runs, baseline="alone_0"))
    assert headings == ["method", "seeds", "validation accuracy %", "test accuracy %", "Δ test accuracy %"]
    assert rows == [
        ["alone_0", "0, 1", "30.00 ± 7.07", "55.00 ± 7.07", "baseline"],
        ["kd_0", "0, 1", "45.00 ± 14.14", "70.00 ± 14.14", "+15.00 [-48.53, +78.53]"],
        ["one_0", "0", "45.00", "70.00", "+20.00"],
    ]
    headings, rows = table_of(compare_runs(runs), "loss", "accuracy")
    assert headings == ["method", "seeds", "validation loss", "validation accuracy %", "test accuracy %"]
    assert rows[2] == ["one_0", "0", "0.3000", "45.00", "70.00"]
    with pytest.raises(UserError, match=r"No run has a metric 'acuracy'\. Did you mean accuracy\?"):
        table_of(compare_runs(runs), "acuracy")


def test_states_and_many_seeds():
    many = make_runs("many", [0.5] * 9, ALONE)
    headings, rows = table_of(compare_runs([*many[:-1], replace(many[-1], finished=False)]))
    assert headings[-1] == "state"
    assert rows == [["many_0", "0-8", "25.00 ± 0.00", "50.00 ± 0.00", "seed 8 unfinished, left out"]]
    rows = table_of(compare_runs([*many[:2], *many[5:]]))[1]
    assert rows[0][1] == "0, 1, 5, 6, 7, 8"
    rows = table_of(compare_runs([replace(run, seed=2 * run.seed) for run in many]))[1]
    assert rows[0][1] == "9 seeds"
    begun = replace(many[0], metrics={}, finished=False)
    assert table_of(compare_runs([begun])) == (["method", "seeds", "state"], [["many_0", "0", "unfinished"]])


def test_arms_of_episodes_have_a_column_each():
    run = Run(Path("e"), "e", 3, {"task": "t"}, {"episodes distilled": 0.25, "episodes alone": 0.5}, {}, True)
    task = {"task": "image-classification"}
    comparison = compare_runs([replace(run, settings=task)])
    assert table_of(comparison) == (
        ["method", "seeds", "episodes distilled %", "episodes alone %"],
        [["e", "3", "25.00", "50.00"]],
    )


def test_what_tells_methods_apart_and_what_follows_from_it():
    groups = {"alone": ALONE, "kd": KD, "cool": COOL, "map": MAPPED, "slow": KD | {"optim.lr": 0.01}}
    comparison = compare_runs([run for name, values in groups.items() for run in make_runs(name, [0.5], values)])
    assert {"teacher.weights", "relation", "methods.kd.weight", "projector"} <= set(comparison.settings)
    headings, rows = settings_table(comparison)
    assert headings == ["setting", *(f"{name}_0" for name in groups)]
    kd = "supervised + kd"
    assert rows == [
        ["methods", "supervised", kd, kd, "supervised + map", kd],
        ["optim.lr", "0.1", "0.1", "0.1", "0.1", "0.01"],
        ["teacher.name", "none", *["resnet50"] * 4],
        ["methods.kd.temperature", "-", "4", "1", "-", "4"],
    ]
    assert not is_of_one_loss(comparison)
    same = compare_runs([*make_runs("kd", [0.5], KD), *make_runs("slow", [0.5], KD | {"optim.lr": 0.01})])
    assert settings_table(same)[1] == [["optim.lr", "0.1", "0.01"]]
    assert is_of_one_loss(same)
    asked = compare_runs([*make_runs("a", [0.5], {"projector": "auto"}), *make_runs("b", [0.5], {"projector": "mlp"})])
    assert settings_table(asked)[1] == [["projector", "auto", "mlp"]], "nothing else tells it"
    assert settings_table(compare_runs(make_runs("kd", [0.5, 0.6], KD)))[1] == []


def test_latex_is_booktabs(tmp_path):
    runs = [*make_runs("alone", [0.5, 0.6], ALONE), *make_runs("kd&{T}^$#~\\%", [0.4, 0.8], KD)]
    text = to_latex(*table_of(compare_runs(runs, baseline="alone_0")))
    assert text.splitlines() == [
        r"\begin{tabular}{lrrrr}",
        r"\toprule",
        r"method & seeds & validation accuracy \% & test accuracy \% & $\Delta$ test accuracy \% \\",
        r"\midrule",
        r"alone\_0 & 0, 1 & 30.00 $\pm$ 7.07 & 55.00 $\pm$ 7.07 & baseline \\",
        r"kd\&\{T\}\textasciicircum{}\$\#\textasciitilde{}\textbackslash{}\%\_0 & 0, 1 & 35.00 $\pm$ 28.28"
        r" & 60.00 $\pm$ 28.28 & +5.00 [$-$185.59, +195.59] \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if shutil.which("pdflatex"):
        page = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + text + r"\end{document}"
        (tmp_path / "t.tex").write_text(page)
        subprocess.run(["pdflatex", "-interaction=batchmode", "t.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_bars_have_means_and_intervals_of_what_is_finite(tmp_path):
    """0.5 and 0.7: mean 0.6, standard error 0.1, t(0.975, 1) = 12.706205; in percent."""
    runs = [*make_runs("alone", [0.5, 0.7, math.nan], ALONE), *make_runs("kd", [0.8], KD)]
    first, second = bars_of(compare_runs(runs), "test accuracy")
    assert first.values == pytest.approx((50, 70))
    assert (first.mean, first.low, first.high) == pytest.approx((60, 60 - 127.06204736, 60 + 127.06204736))
    assert (second.name, second.values, second.low) == ("kd_0", (80.0,), None)
    assert bars_of(compare_runs(runs), "test loss") == []
    for name, bars in (("wide", [first, second]), ("alike", [second, replace(second, values=(79.0,), mean=79.0)])):
        pixels = np.asarray(Image.open(plot_bars(tmp_path / f"{name}.png", bars, label="a_b $x % of")).convert("L"))
        assert pixels.std() > 10
    wide, alike = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("wide", "alike"))
    blue = [np.abs(picture.astype(int) - (166, 206, 227)).max(axis=2) < 30 for picture in (wide, alike)]
    assert blue[0].sum() > 20 * blue[1].sum(), "bars from 0, or dots"


@pytest.mark.parametrize(("settings", "has_loss"), [(KD, False), (ALONE | {"optim.lr": 0.2}, True)])
def test_training_losses_are_drawn_where_they_compare(tmp_path, settings, has_loss, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "kdcli.results.comparison.plot_learning_curves", lambda path, panels, **_: drawn.update(dict.fromkeys(panels))
    )
    comparison = compare_runs([*make_runs("alone", [0.5], ALONE), *make_runs("other", [0.5], settings)])
    names = [file.name for file in write_comparison(comparison, tmp_path)]
    assert names == ["compare.csv", "compare.md", "table.csv", "table.tex", "bars.png", "curves.png"]
    assert list(drawn) == ["validation accuracy", *["training loss"] * has_loss]


def test_shares_by_name():
    shares = ["accuracy", "top5", "mean_iou", "pixel_accuracy", "map", "map_50", "entity_f1", "macro_f1", "delta1"]
    shares += ["precision_efficientnet_lite0", "ncm_accuracy", "mean_average_precision", "entity_recall"]
    others = ["loss", "perplexity", "rmse", "fid_untrained_resnet18", "kid_a", "pearson", "log_likelihood", "silog"]
    assert [name for name in (*shares, *others) if is_share(name)] == shares
