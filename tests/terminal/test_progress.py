"""What a run prints: fits the terminal, hides nothing, tells the right time, and JSON is JSON."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import re
import runpy
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

import kdcli.terminal.progress as progress
from kdcli.config.parse import parse_config
from kdcli.runs.folder import RunFolder
from kdcli.terminal.live import LiveReporter, sparkline
from kdcli.terminal.progress import make_reporter
from kdcli.terminal.reporters import JsonReporter, PlainReporter, QuietReporter, SilentReporter

TERMS = {"supervised": 0.9, "projection": 0.4}
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "live_view.py"


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def make_console(width=80, height=40, *, terminal=True):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, height=height, highlight=False)


def printed(console):
    """Return the lines on ``console``, without control codes."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", console.file.getvalue()).splitlines()


def seen(reporter, console):
    """Return the lines of the view as it is now."""
    with console.capture() as capture:
        console.print(reporter)
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capture.get()).splitlines()


def train_values(step, terms=TERMS, **values):
    shared = {"epoch": 1, "step": step, "lr": 0.02, "images_per_second": 350.6, "data_wait": 0.04, "loss": 2.5}
    return shared | terms | {"feature_std/pooled": 0.98} | values


def play(reporter, clock, *, epochs=4, steps_per_epoch=20, seconds=0.5, step=0, terms=TERMS):
    """Tell ``reporter`` a whole run: losses every 10 steps, a validation an epoch, the third epoch's the best."""
    reporter.started(total_steps=epochs * steps_per_epoch, steps_per_epoch=steps_per_epoch, step=step)
    accuracy = [0.5, 0.6, 0.8, 0.7, 0.65, 0.75]
    while step < epochs * steps_per_epoch:
        clock.now += seconds
        step += 1
        reporter.stepped(step)
        epoch = math.ceil(step / steps_per_epoch)
        if step % 10 == 0:
            scaled = {name: value / step for name, value in terms.items()}
            reporter.logged(train_values(step, scaled, epoch=epoch, loss=25.0 / step))
        if step % steps_per_epoch == 0:
            reporter.saved(step)
            values = {"epoch": epoch, "step": step, "accuracy": accuracy[epoch - 1], "loss": 1 / epoch}
            reporter.validated(values, best=epoch <= 3)


def test_live_view_of_a_run():
    console, clock = make_console(), Clock()
    reporter = LiveReporter("distil", console, clock=clock)
    assert seen(reporter, console) == ["distil: starting"]
    play(reporter, clock, epochs=6, step=60)
    assert [line.rstrip() for line in printed(console)] == [
        "distil epoch 4  train loss 0.3125  validation accuracy 0.7000  loss 0.2500",
        "distil epoch 5  train loss 0.2500  validation accuracy 0.6500  loss 0.2000",
        "distil epoch 6  train loss 0.2083  validation accuracy 0.7500  loss 0.1667",
    ]
    view = "\n".join(seen(reporter, console))
    for part in (
        r"─ distil ─",
        r"epoch 6/6 .*step 20/20 ",
        r"step 120/120 .*elapsed 0:00:30  ETA 0:00:00",
        r"lr 0\.02   351 images/s   4% waiting for data   checkpoint at step 120",
        r"loss          0\.2083  ↓ 0\.019 .*█.*▁",
        r"supervised  0\.007500 ",
        r"validation    accuracy        loss",
        r"epoch 4         0\.7000      0\.2500",
        r"epoch 6         0\.7500      0\.1667",
        r"all 3              ▄▁█         █▄▁",
    ):
        assert re.search(part, view), part
    assert "feature_std" not in view


def test_the_best_validation_stays_in_view():
    console, clock = make_console(), Clock()
    reporter = LiveReporter("distil", console, clock=clock)
    play(reporter, clock, epochs=6)
    rows = [line for line in seen(reporter, console) if re.match(r"│ epoch \d ", line)]
    assert [re.match(r"│ (epoch \d( best)?)", row)[1] for row in rows] == ["epoch 3 best", "epoch 5", "epoch 6"]
    assert sum("best" in line for line in printed(console)) == 3  # each at its time


def test_what_is_printed_stays_when_the_view_goes():
    console, clock = make_console(), Clock()
    with LiveReporter("distil", console, clock=clock) as reporter:
        reporter.live.refresh()
        play(reporter, clock)
        reporter.live.refresh()
        reporter.warned("The student's features collapse.")
        reporter.skipped("a/b.jpg")
    text = console.file.getvalue()
    assert "step 80/80" in text
    last = text.rpartition("╰")[2]
    assert "\x1b[1A\x1b[2K" * 5 in last  # the view is erased
    assert "distil: steps 1 to 80 of 80 in 0:00:40" in last
    assert text.endswith("\n")
    for line in ("Warning: The student's features collapse.", "Skipped an unreadable image: a/b.jpg"):
        assert line in printed(console)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is shown again


def stop_after(reporter, clock, *, steps):
    with reporter:
        reporter.started(total_steps=80, steps_per_epoch=20, step=40)
        for step in range(41, 41 + steps):
            clock.now += 2
            reporter.stepped(step)
        raise KeyboardInterrupt


def test_an_interrupted_view_says_how_far_it_came():
    console, clock = make_console(), Clock()
    with pytest.raises(KeyboardInterrupt):
        stop_after(LiveReporter("distil", console, clock=clock), clock, steps=3)
    assert printed(console)[-1] == "distil: steps 41 to 43 of 80 in 0:00:06"
    console = make_console()
    with pytest.raises(KeyboardInterrupt):
        stop_after(LiveReporter("distil", console, clock=clock), clock, steps=0)
    assert "distil: steps" not in console.file.getvalue()


@pytest.mark.parametrize("num_terms", [1, 2, 4, 5, 12, 13, 30])
@pytest.mark.parametrize("width", [80, 140])
def test_the_view_fits_whatever_the_losses(num_terms, width):
    console, clock = make_console(width), Clock()
    reporter = LiveReporter("distil", console, clock=clock)
    terms = {f"a_rather_long_name_of_a_loss_term_or_method-{number}": -1e-7 for number in range(num_terms)}
    metrics = {f"mean_average_precision_{number}": -1.23e-12 for number in range(9)}
    reporter.started(total_steps=12_345_678, steps_per_epoch=1_234_567, step=2_345_678)
    for step in (2_345_679, 2_345_680):
        clock.now += 1.25e5
        reporter.stepped(step)
        reporter.logged(
            train_values(step, terms, lr=1.2345e-5, images_per_second=1e6, data_wait=1.0, loss=-1e-9 * step)
        )
        reporter.saved(step)
        with console.capture():
            reporter.validated({"epoch": 2, "step": step, **metrics}, best=True)
    lines = seen(reporter, console)
    assert len(lines) <= 18
    assert {len(line) for line in lines} == {min(width, 100)}  # a line that wraps would break the frame
    assert lines[-1].startswith("╰")
    text = "\n".join(lines)
    for number in range(min(num_terms, 12)):  # its number shows, however it is cut
        assert re.search(rf"m?-{number} ", text), number
    assert ("18 more" in text) == (num_terms == 30)
    assert "epoch 2 best" in text
    assert "0.000" not in text  # tiny is not nothing


@pytest.mark.parametrize(("height", "rows"), [(40, 3), (13, 1), (12, 0)])
def test_a_low_terminal_shows_fewer_validations(height, rows):
    console, clock = make_console(height=height), Clock()
    reporter = LiveReporter("distil", console, clock=clock)
    play(reporter, clock)
    lines = seen(reporter, console)
    assert len(lines) <= height
    assert sum(bool(re.match(r"│ epoch \d (best)? ", line)) for line in lines) == rows


@pytest.mark.parametrize(("height", "rows"), [(40, 3), (14, 1), (13, 0)])
def test_the_teacher_stands_below_the_validations(height, rows):
    """Its line is printed once; in the view it has a row of its own, wherever there is room for a validation."""
    console, clock = make_console(height=height), Clock()
    reporter = LiveReporter("distil", console, clock=clock)
    reporter.measured({"accuracy": 0.875, "loss": 0.5})
    assert printed(console) == ["distil teacher  validation accuracy 0.8750  loss 0.5000"]
    play(reporter, clock)
    lines = seen(reporter, console)
    assert len(lines) <= min(height, 18)
    assert sum(bool(re.match(r"│ epoch \d (best)? ", line)) for line in lines) == rows
    assert sum(bool(re.match(r"│ teacher +0\.8750 ", line)) for line in lines) == (rows > 0)


def test_losses_and_metrics_of_another_stage_replace_those_before():
    console = make_console()
    reporter = LiveReporter("distil", console, clock=Clock())
    reporter.started(total_steps=40, steps_per_epoch=20, step=0)
    reporter.logged(train_values(20, {"embedding": 0.5}))
    reporter.validated({"epoch": 1, "step": 20, "nearest_mean": 0.4}, best=True)
    reporter.logged(train_values(40, {"classifier": math.nan}))
    reporter.validated({"epoch": 2, "step": 40, "accuracy": 0.6, "nearest_mean": 0.5}, best=True)
    view = "\n".join(seen(reporter, console))
    assert "embedding" not in view
    assert re.search(r"classifier +nan", view)
    assert re.search(r"epoch 1 +0\.4000 ", view)
    assert re.search(r"epoch 2 best +0\.6000 +0\.5000 ", view)


@pytest.mark.parametrize("kind", [LiveReporter, PlainReporter])
def test_names_are_printed_as_they_are(kind):
    console, clock = make_console(), Clock()
    reporter = kind("[red]:x:", console, clock=clock)
    play(reporter, clock, terms={"[bold]x": 0.5, ":smile:": 0.5})
    reporter.skipped("[/]:boom:\n\x1b[2J\udcff.jpg")
    reporter.warned("[/] :boom:")
    lines = printed(console)
    assert lines[-2:] == [r"Skipped an unreadable image: [/]:boom:\n\x1b[2J\udcff.jpg", "Warning: [/] :boom:"]
    text = "\n".join([*lines, *seen(reporter, console)] if kind is LiveReporter else lines)
    for name in ("[red]:x: epoch", "[bold]x ", ":smile: "):
        assert name in text


def eta(reporter, console):
    return re.search(r"ETA (\S+)", "\n".join(seen(reporter, console)))[1]


def test_the_time_left_after_a_resume_counts_only_what_this_run_did():
    console, clock = make_console(), Clock()
    reporter = LiveReporter("distil", console, clock=clock)
    reporter.started(total_steps=10_000, steps_per_epoch=100, step=5000)
    assert eta(reporter, console) == "-:--:--"
    clock.now += 91.5  # loader processes start, kernels are compiled
    reporter.stepped(5001)
    assert eta(reporter, console) == "-:--:--"
    for step in range(5002, 5101):
        clock.now += 0.5
        reporter.stepped(step)
    assert eta(reporter, console) == "0:40:50"  # 4900 steps of half a second
    for step in range(5101, 5501):
        clock.now += 0.1
        reporter.stepped(step)
    assert eta(reporter, console) == "0:07:30"  # 4500 steps, as fast as the last 200
    view = "\n".join(seen(reporter, console))
    assert "epoch 55/100" in view
    assert "step 100/100" in view
    assert "elapsed 0:03:01" in view  # 91.5 s and 99 x 0.5 s and 400 x 0.1 s


@pytest.mark.parametrize("steps_per_epoch", [30, 250, 12_001])
def test_the_time_left_counts_validations(steps_per_epoch):
    console, clock = make_console(), Clock()
    reporter = LiveReporter("distil", console, clock=clock)
    reporter.started(total_steps=100 * steps_per_epoch, steps_per_epoch=steps_per_epoch, step=0)
    for step in range(1, 12 * steps_per_epoch + 1):
        clock.now += 1
        reporter.stepped(step)
        if step % steps_per_epoch == 0:
            clock.now += steps_per_epoch  # a validation takes as long as its epoch
    hours, minutes, seconds = map(int, eta(reporter, console).split(":"))
    left = hours * 3600 + minutes * 60 + seconds
    assert left == pytest.approx(88 * 2 * steps_per_epoch, rel=0.01)


def test_plain_lines_come_at_most_every_30_seconds():
    console, clock = make_console(terminal=False), Clock()
    with PlainReporter("alone", console, clock=clock) as reporter:
        play(reporter, clock, epochs=5)  # logs every 5 seconds, for 50
        reporter.warned("odd")
        reporter.skipped("x.png")
    rates = "lr 0.02  351 images/s  4% waiting for data"
    assert console.file.getvalue().splitlines() == [
        f"alone epoch 1  step 10/100  loss 2.500  supervised 0.09000  projection 0.04000  {rates}  ETA 0:00:45",
        "alone epoch 1  train loss 1.2500  validation accuracy 0.5000  loss 1.0000  best",
        "alone epoch 2  train loss 0.6250  validation accuracy 0.6000  loss 0.5000  best",
        "alone epoch 3  train loss 0.4167  validation accuracy 0.8000  loss 0.3333  best",
        f"alone epoch 4  step 70/100  loss 0.3571  supervised 0.01286  projection 0.005714  {rates}  ETA 0:00:15",
        "alone epoch 4  train loss 0.3125  validation accuracy 0.7000  loss 0.2500",
        "alone epoch 5  train loss 0.2500  validation accuracy 0.6500  loss 0.2000",
        "Warning: odd",
        "Skipped an unreadable image: x.png",
    ]


def test_json_lines_hold_every_event_in_full():
    def refuse(constant):
        raise AssertionError(constant)

    console, clock = make_console(width=20), Clock()
    with JsonReporter("distil", console) as reporter:
        reporter.started(total_steps=80, steps_per_epoch=20, step=5)
        reporter.measured({"accuracy": 2 / 3, "loss": math.nan})
        reporter.stepped(6)
        reporter.logged(train_values(6, {"supervised": 0.1 + 0.2, "projection": math.nan, "other": -math.inf}))
        reporter.validated({"epoch": 1, "step": 20, "accuracy": 1 / 3}, best=True)
        reporter.saved(20)
        reporter.warned('[bold]"odd"\nÄ')
        reporter.skipped("\udcff.jpg")
    events = [json.loads(line, parse_constant=refuse) for line in console.file.getvalue().splitlines()]
    assert events == [
        {"event": "started", "run": "distil", "total_steps": 80, "steps_per_epoch": 20, "step": 5},
        {"event": "teacher", "run": "distil", "accuracy": 2 / 3, "loss": None},
        {"event": "train", "run": "distil"}
        | train_values(6, {"supervised": 0.30000000000000004, "projection": None, "other": None}),
        {"event": "validation", "run": "distil", "epoch": 1, "step": 20, "accuracy": 1 / 3, "best": True},
        {"event": "saved", "run": "distil", "step": 20},
        {"event": "warning", "run": "distil", "message": '[bold]"odd"\nÄ'},
        {"event": "skipped", "run": "distil", "name": "\udcff.jpg"},
    ]
    play(JsonReporter("distil", console), clock)
    assert all(json.loads(line) for line in console.file.getvalue().splitlines())


def test_quiet_says_only_what_needs_attention(capsys):
    with make_reporter("distil", log_format="json", quiet=True) as reporter:
        play(reporter, Clock())
        reporter.warned("odd")
        reporter.skipped("x.png")
    assert capsys.readouterr() == ("", "Warning: odd\nSkipped an unreadable image: x.png\n")


def test_silent_says_nothing(capsys):
    with SilentReporter() as reporter:
        play(reporter, Clock())
        reporter.warned("odd")
        reporter.skipped("x.png")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("log_format", "quiet", "file", "environment", "kind"),
    [
        ("auto", False, Terminal, {}, LiveReporter),
        ("auto", False, Terminal, {"TERM": "dumb"}, PlainReporter),
        ("auto", False, io.StringIO, {}, PlainReporter),
        ("auto", False, io.StringIO, {"FORCE_COLOR": "1"}, PlainReporter),
        ("plain", False, Terminal, {}, PlainReporter),
        ("json", False, Terminal, {}, JsonReporter),
        ("auto", True, Terminal, {}, QuietReporter),
        ("json", True, Terminal, {}, QuietReporter),
    ],
)
def test_which_reporter(monkeypatch, log_format, quiet, file, environment, kind):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(progress, "console", Console(file=file()))
    assert type(make_reporter("distil", log_format=log_format, quiet=quiet)) is kind


def test_a_terminal_that_cannot_draw_gets_plain_lines(monkeypatch):
    class Old(Terminal):
        encoding = "latin-1"

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "console", Console(file=Old()))
    assert type(make_reporter("distil", log_format="auto", quiet=False)) is PlainReporter


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_loader_process_can_print_while_the_view_is_drawn(capfd):
    """The view takes stdout and stderr over; a child forked while it is drawn would wait for its lock for ever."""
    drawing, done = threading.Event(), threading.Event()

    def draw(lock):
        with lock:
            drawing.set()
            done.wait()

    with LiveReporter("distil", make_console(), clock=Clock()) as reporter:
        thread = threading.Thread(target=draw, args=(reporter.live._lock,))
        thread.start()
        drawing.wait()
        child = multiprocessing.get_context("fork").Process(target=print, args=("from the child",))
        child.start()
        child.join()
        done.set()
        thread.join()
    assert child.exitcode == 0
    assert capfd.readouterr().out == "from the child\n"


def test_sparkline():
    assert sparkline([], width=5) == ""
    assert sparkline([3.0], width=5) == "▁"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], width=8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 14, 14, 7, 7], width=3) == "▁█▅"  # 3.5 is rounded to 4, the fifth block
    assert sparkline([1, math.nan, 3, math.inf], width=4) == "▁ █ "
    assert len(sparkline(list(range(1000)), width=30)) == 30


def test_the_picture_is_of_a_real_run(tmp_path, monkeypatch, capsys):
    """60 % of 40 steps: both bars stand at step 24, the second epoch's first reading and one validation are known."""
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    values = {"teacher": "none", "student": "resnet18", "data": "demo:digits", "train": {"epochs": 2, "batch_size": 50}}
    run.write_config(parse_config(values, source="test"))
    for step in (10, 20, 22, 40):
        run.add_metrics("train", train_values(step, epoch=math.ceil(step / 20), images_per_second=100))
        if step % 20 == 0:
            metrics = {"epoch": step // 20, "step": step, "accuracy": 0.123456 * step / 20, "best": 1.0}
            run.add_metrics("validation", metrics)
    picture = tmp_path / "view.svg"
    main = runpy.run_path(str(SCRIPT))["main"]
    main(run.path, picture, share=0.6, width=90)
    text = capsys.readouterr().out
    assert re.search(r"epoch 2/2 .* step 4/20", text)
    assert re.search(r"step 24/40 .* elapsed 0:00:12  ETA 0:00:08", text)
    assert "0.1235" in text
    assert "0.2469" not in text
    svg = picture.read_text(encoding="utf-8")
    assert svg.startswith("<svg")
    assert "0.1235" in svg
