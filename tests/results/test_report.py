"""The pictures exist, have the promised size, show something, and change nothing outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.projectors import spectra as analysis
from kdcli.results import pictures as report

BLUE, VERMILLION = (0, 114, 178), (213, 94, 0)


def _pixels(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Check that ``path`` is the only file of its folder, a PNG of ``size``, and not blank; return its RGB pixels."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with Image.open(path) as image:
        assert image.size == size
        pixels = np.asarray(image.convert("RGB"))
    painted = (pixels != 255).any(axis=2).mean()
    assert 0.02 < painted < 0.9
    assert pixels.std() > 10
    return pixels


def _count(pixels: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((np.abs(pixels.astype(int) - color).max(axis=2) <= 2).sum())


def _falling(num_steps: int, num_values: int) -> torch.Tensor:
    """Spectra of an inverted projector whose smaller values fall faster."""
    time = torch.linspace(0, 1, num_steps)[:, None]
    index = torch.linspace(0, 1, num_values)[None]
    return torch.exp(-9 * time * index)


def test_spectrum_shows_kept_and_dropped(tmp_path: Path) -> None:
    values = _falling(2, 48)[-1]
    rank = analysis.numerical_rank(values)
    path = report.plot_spectrum(tmp_path / "s.png", values, rank=rank, title="t", reference=torch.ones(48))
    pixels = _pixels(path, (1200, 675))
    assert _count(pixels, BLUE) > 200
    assert _count(pixels, VERMILLION) > 200


def test_spectrum_of_full_rank_has_nothing_dropped(tmp_path: Path) -> None:
    pixels = _pixels(report.plot_spectrum(tmp_path / "s.png", [1.0] * 500, rank=500, title="t"), (1200, 675))
    assert _count(pixels, BLUE) > 200
    assert _count(pixels, VERMILLION) == 0


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0], [1.0, 0.0, 0.0]])
def test_degenerate_spectra_are_drawn(values: list[float], tmp_path: Path) -> None:
    rank = analysis.numerical_rank(values)
    _pixels(report.plot_spectrum(tmp_path / "s.png", values, rank=rank, title="t"), (1200, 675))


@pytest.mark.parametrize(
    ("kind", "num_steps"), [("orthogonal", 1), ("orthogonal", 30), ("falling", 2), ("falling", 30), ("zero", 1)]
)
def test_evolution_is_drawn(kind: str, num_steps: int, tmp_path: Path) -> None:
    values = {
        "orthogonal": torch.ones(num_steps, 90),
        "falling": _falling(num_steps, 90),
        "zero": torch.zeros(num_steps, 3),
    }[kind]
    path = report.plot_evolution(
        tmp_path / "e.png",
        [100 * t for t in range(num_steps)],
        values,
        ranks=analysis.rank_evolution(values),
        title="t",
        epoch_steps=50,
    )
    _pixels(path, (1200, 975))


def test_evolution_draws_at_most_64_curves_with_the_first_and_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    values = torch.arange(200.0, 0.0, -1.0).expand(5, 200)
    drawn = []
    plot = Axes.plot

    def spy(self: Axes, *args: object, **kwargs: object) -> object:
        if kwargs.get("label") is None:
            drawn.append(float(np.asarray(args[1])[0]))
        return plot(self, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", spy)
    report.plot_evolution(tmp_path / "e.png", range(5), values, ranks={}, title="t")
    assert len(drawn) == 64
    assert drawn[0] == 1.0
    assert drawn[-1] == 200.0
    assert drawn == sorted(drawn)


def test_evolution_refuses_lengths_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each of the 2 steps"):
        report.plot_evolution(tmp_path / "e.png", [0, 1], torch.ones(3, 4), ranks={}, title="t")
    with pytest.raises(ValueError, match=r"ranks\['stable'\]"):
        report.plot_evolution(tmp_path / "e.png", [0, 1], torch.ones(2, 4), ranks={"stable": [1.0]}, title="t")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("a", "b"), [(6, 12), (300, 200)])
def test_decomposition_shows_both_parts(a: int, b: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, a, generator=generator), torch.randn(50, b, generator=generator)
    matrix = torch.zeros(a, b)
    matrix[:5, :5] = torch.eye(5)
    path = report.plot_decomposition(tmp_path / "d.png", analysis.decompose(x, y, matrix), title="t")
    pixels = _pixels(path, (1200, 675))
    assert _count(pixels, BLUE) > 500
    assert _count(pixels, VERMILLION) > 500


def test_decomposition_of_nothing_is_drawn(tmp_path: Path) -> None:
    zeros = torch.zeros(3, 3)
    _pixels(
        report.plot_decomposition(tmp_path / "d.png", analysis.decompose(zeros, zeros, zeros), title="t"), (1200, 675)
    )


@pytest.mark.parametrize(("num_classes", "side"), [(2, 900), (10, 900), (16, 900), (100, 2475), (130, 2475)])
def test_confusion_is_drawn_by_row(num_classes: int, side: int, tmp_path: Path) -> None:
    """All right but class 1, which has no images: a dark diagonal, and a grey row."""
    counts = 7 * np.eye(num_classes, dtype=int)
    counts[1] = 0
    names = ["a name that is far too long for an axis", "$x", *(f"class {n}" for n in range(2, num_classes))]
    path = report.plot_confusion(tmp_path / "c.png", counts, class_names=names, title="t", subtitle="s")
    pixels = _pixels(path, (side, side))
    full, empty, grey = (_count(pixels, color) for color in ((8, 48, 107), (247, 251, 255), (217, 217, 217)))
    # Counts are written over a part of few cells only.
    assert full == pytest.approx(grey * (num_classes - 1) / num_classes, rel=0.35)
    assert empty > 0.4 * (num_classes - 2) * full


def test_confusion_writes_counts_in_up_to_15_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    written = []
    monkeypatch.setattr(Axes, "text", lambda self, x, y, text, **_: written.append((x, y, text)))
    for num_classes in (15, 16):
        counts = np.zeros((num_classes, num_classes), dtype=int)
        counts[0, 1], counts[2, 2] = 3, 12
        report.plot_confusion(tmp_path / "c.png", counts, class_names=["x"] * num_classes, title="t", subtitle="s")
    assert len(written) == 15 * 15
    # Rows are true classes, and run along y.
    assert {entry for entry in written if entry[2] != "0"} == {(1, 0, "3"), (2, 2, "12")}


def test_confusion_refuses_what_does_not_fit(tmp_path: Path) -> None:
    for counts, names in ((np.ones((2, 3)), ["a", "b"]), (np.ones((2, 2)), ["a"])):
        with pytest.raises(ValueError, match="square"):
            report.plot_confusion(tmp_path / "c.png", counts, class_names=names, title="t", subtitle="s")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("picture", ["confusion", "curves"])
def test_names_that_the_font_or_a_formula_can_not_draw(
    picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of a box the character's code; half characters of file names too; between dollar signs no formula."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    drawn = []
    save = Figure.savefig

    def savefig(figure: Figure, *arguments: object, **options: object) -> None:
        save(figure, *arguments, **options)
        drawn.extend(text.get_text() for text in figure.findobj(Text))

    monkeypatch.setattr(Figure, "savefig", savefig)
    names = ["\u82f9\u679c", "\U0001f34e red", "\udcff", r"$\frac$", "été"]
    if picture == "confusion":
        title = subtitle = "$\\frac$ \u82f9"
        report.plot_confusion(tmp_path / "c.png", np.eye(5), class_names=names, title=title, subtitle=subtitle)
        assert drawn.count(r"$\frac$ \u82f9") == 2
    else:
        panels = {"loss $\\frac$ \u82f9": {name: [{1: 1.0, 2: 0.5}] for name in names}}
        report.plot_learning_curves(tmp_path / "c.png", panels, title="$\\frac$ \u82f9")
        assert drawn.count(r"loss $\frac$ \u82f9") == drawn.count(r"$\frac$ \u82f9") == 1
    assert {r"\u82f9\u679c", r"\U0001f34e red", r"\udcff", r"$\frac$", "été"} <= set(drawn)


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    path = tmp_path / "s.png"
    path.write_bytes(b"old")

    def fail(self: Figure, target: Path, **_: object) -> None:
        target.write_bytes(b"half")
        raise OSError("planted")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="planted"):
        report.plot_spectrum(path, [1.0], rank=1, title="t")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["s.png"]


def test_matplotlib_is_lazy_and_pyplot_never_used(tmp_path: Path) -> None:
    code = (
        "import sys; from kdcli.results import pictures as report; assert 'matplotlib' not in sys.modules; "
        f"report.plot_spectrum({str(tmp_path / 's.png')!r}, [1.0, 0.5], rank=2, title='t'); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- learning curves --------------------------------------------------------------------------------------------------


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_learning_curves_draw_mean_range_and_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    lines, bands = [], []
    plot, fill = Axes.plot, Axes.fill_between

    def spy_plot(self: Axes, x: object, y: object, **kwargs: object) -> object:
        lines.append((kwargs["color"], list(x), [round(value, 9) for value in y]))
        return plot(self, x, y, **kwargs)

    def spy_fill(self: Axes, x: object, low: object, high: object, **kwargs: object) -> object:
        bands.append((list(x), list(low), list(high)))
        return fill(self, x, low, high, **kwargs)

    monkeypatch.setattr(Axes, "plot", spy_plot)
    monkeypatch.setattr(Axes, "fill_between", spy_fill)
    seeds = [{10: 0.1, 20: 0.4, 30: 0.5}, {10: 0.3, 20: 0.8}, {}]  # one stopped early, one has just begun
    panels = {
        "validation accuracy": {"a": seeds, "b": [{10: 0.6, 20: 0.7}]},
        "training loss": {"a": [{}] * 3, "b": [{}]},
    }
    path = report.plot_learning_curves(tmp_path / "c.png", panels, title="t")
    assert (lines[0][1:], lines[1][1:]) == (([10, 20, 30], [0.1, 0.4, 0.5]), ([10, 20], [0.3, 0.8]))
    assert lines[2][1:] == ([10, 20], [0.2, 0.6])
    assert lines[3][1:] == ([10, 20], [0.6, 0.7])
    assert len({line[0] for line in lines[:3]}) == 1 != len({line[0] for line in lines})
    assert bands == [([10, 20], [0.1, 0.4], [0.3, 0.8])]
    pixels = _pixels(path, _size(path))
    assert _count(pixels, BLUE) > 200
    assert _count(pixels, VERMILLION) > 200


def test_learning_curves_of_twelve_groups_look_different_and_have_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    entries = []
    legend = Figure.legend

    def spy(self: Figure, lines: list, names: list, **kwargs: object) -> object:
        entries.extend((line.get_color(), line.get_linestyle(), name) for line, name in zip(lines, names, strict=True))
        return legend(self, lines, names, **kwargs)

    monkeypatch.setattr(Figure, "legend", spy)
    names = [f"a-long-name-of-a-run-that-says-everything-about-it-{number}" for number in range(12)]
    groups = {name: [{step: 0.01 * number * step for step in range(1, 40)}] for number, name in enumerate(names)}
    many = report.plot_learning_curves(tmp_path / "many" / "c.png", {"accuracy": groups}, title="t")
    assert len({entry[:2] for entry in entries}) == 12
    assert all(name.endswith(entry[2].removeprefix("…")) for name, entry in zip(names, entries, strict=True))
    few = report.plot_learning_curves(tmp_path / "few" / "c.png", {"accuracy": {"a": [{1: 0.5}]}}, title="t")
    assert _size(few)[0] == _size(many)[0] == 1350
    assert _size(many)[1] > _size(few)[1] + 100


@pytest.mark.parametrize(("values", "scale"), [((0.1, 2.0), "log"), ((1.0, 2.0), "linear"), ((-0.1, 2.0), "linear")])
def test_a_loss_that_spans_decades_is_logarithmic(
    values: tuple[float, float], scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    scales = []
    save = Figure.savefig

    def spy(self: Figure, *args: object, **kwargs: object) -> None:
        scales.extend(axes.get_yscale() for axes in self.axes)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    groups = {"a": [dict(enumerate(values))]}
    report.plot_learning_curves(
        tmp_path / "c.png", {"accuracy": groups, "loss": groups}, title="t", logarithmic=["loss"]
    )
    assert scales == ["linear", scale]


def test_learning_curves_of_nothing_are_drawn(tmp_path: Path) -> None:
    path = report.plot_learning_curves(tmp_path / "c.png", {"training loss": {"a": [{}]}}, title="t")
    assert _size(path)[0] == 1350


# --- t-SNE ------------------------------------------------------------------------------------------------------------


def _scatter_spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Return what is drawn: colour, marker and number of points of every group of every panel."""
    from matplotlib.axes import Axes

    drawn = []
    scatter = Axes.scatter

    def spy(self: Axes, x: np.ndarray, y: np.ndarray, **style: object) -> object:
        drawn.append((style["color"], style["marker"], len(x)))
        return scatter(self, x, y, **style)

    monkeypatch.setattr(Axes, "scatter", spy)
    return drawn


@pytest.mark.filterwarnings("error")
def test_tsne_colours_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = _scatter_spy(monkeypatch)
    points = np.random.default_rng(0).normal(size=(4, 60, 2))
    path = report.plot_tsne(
        tmp_path / "t.png",
        {f"panel {number}": values for number, values in enumerate(points)},
        title="$\\frac$ \u82f9",
        subtitle="s",
        remarks={"panel 0": "5-NN accuracy 50 %"},
        labels=[-1] * 10 + [0] * 20 + [1] * 30,
        class_names=["$x", "\u82f9"],
    )
    assert [count for _, _, count in drawn] == [10, 20, 30] * 4
    assert len(set(drawn)) == 3
    pixels = _pixels(path, _size(path))
    assert _count(pixels, BLUE) > 60  # of the legend alone: points are transparent
    assert _count(pixels, VERMILLION) > 60


def test_tsne_of_many_classes_marks_the_most_frequent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = _scatter_spy(monkeypatch)
    labels = [*range(30), *range(5, 26)]
    points = {"raw": np.random.default_rng(0).normal(size=(51, 2))}
    report.plot_tsne(
        tmp_path / "t.png",
        points,
        title="t",
        subtitle="s",
        remarks={},
        labels=labels,
        class_names=[f"class {number}" for number in range(30)],
    )
    assert [count for _, _, count in drawn] == [9, *[2] * 21]
    assert len({style[:2] for style in drawn}) == 22


def test_tsne_without_classes_has_one_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = _scatter_spy(monkeypatch)
    path = report.plot_tsne(tmp_path / "t.png", {"raw": np.eye(2)}, title="t", subtitle="s", remarks={})
    assert [count for _, _, count in drawn] == [2]
    assert path.is_file()
    with pytest.raises(ValueError, match="points"):
        report.plot_tsne(tmp_path / "t.png", {"raw": np.eye(2)}, title="t", subtitle="s", remarks={}, labels=[0])


# --- landscapes -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["two", "one", "flat", "zero"])
def test_landscapes_are_drawn(kind: str, tmp_path: Path) -> None:
    positions = np.linspace(-1, 1, 9).tolist()
    bowl = np.add.outer(np.square(positions), np.square(positions))
    panels = {
        "two": {"a": bowl, "b": 1e5 * bowl},
        "one": {"a": bowl},
        "flat": {"a": 0 * bowl + 7},
        "zero": {"a": 0 * bowl},
    }
    path = report.plot_landscape(
        tmp_path / "l.png", positions, panels[kind], title="$t", subtitle="s", remarks={"a": "range 2"}
    )
    with Image.open(path) as image:
        assert image.size == (750 * len(panels[kind]), 780)
        assert np.asarray(image.convert("RGB")).std() > 10


def test_landscape_has_the_first_direction_along_x(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn = []
    contourf = Axes.contourf

    def spy(self: Axes, x: object, y: object, values: np.ndarray, **kwargs: object) -> object:
        drawn.append(values)
        return contourf(self, x, y, values, **kwargs)

    monkeypatch.setattr(Axes, "contourf", spy)
    losses = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [5.0, 0.0, 0.0]])  # large at the end of the first direction
    report.plot_landscape(tmp_path / "l.png", [-1, 0, 1], {"a": losses}, title="t", subtitle="s", remarks={})
    assert drawn[0][0, 2] == 5  # matplotlib's rows are y
    with pytest.raises(ValueError, match="3 x 3"):
        report.plot_landscape(tmp_path / "l.png", [-1, 0, 1], {"a": np.eye(2)}, title="t", subtitle="s", remarks={})


# --- ranks side by side -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")  # of matplotlib's own dependencies
def test_ranks_are_drawn_on_the_same_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    limits = []
    save = Figure.savefig

    def spy(self: Figure, *args: object, **kwargs: object) -> None:
        limits.extend((axes.get_xlim(), axes.get_ylim()) for axes in self.axes)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    panels = [
        ("a", "cross, inverted", range(30), _falling(30, 48)),
        ("$b", "same, orthogonal", [0, 7], 3 * torch.ones(2, 90)),
        ("c" * 50, "random, linear", [0], torch.ones(1, 3)),
        ("d", "cross, inverted", [0, 1], torch.zeros(2, 3)),
        ("e", "cross, inverted", [0, 1], torch.ones(2, 1)),
    ]
    path = report.plot_ranks(tmp_path / "r.png", panels, title="t")
    assert len(set(limits[0::2])) == len(set(limits[1::2])) == 1, "those of the values, and those of the ranks"
    assert len(limits) == 10
    assert _size(path) == pytest.approx((1920, 1470), abs=1), "inches to pixels round otherwise in older versions"
    with pytest.raises(ValueError, match="each of the 2 steps"):
        report.plot_ranks(tmp_path / "r.png", [("a", "", [0, 1], torch.ones(3, 4))], title="t")


def test_learning_curves_count_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    seen = []
    save = Figure.savefig

    def spy(self: Figure, *args: object, **kwargs: object) -> None:
        axes = self.axes[-1]
        seen.append((axes.get_xlabel(), axes.lines[-1].get_xdata().tolist() if axes.lines else []))
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    panels = {"accuracy": {"a": [{12: 0.1, 24: 0.4}]}}
    report.plot_learning_curves(tmp_path / "c.png", panels, title="t", epoch_steps=12)
    report.plot_learning_curves(tmp_path / "c.png", panels, title="t")
    assert seen == [("epoch", [1, 2]), ("step", [12, 24])]
