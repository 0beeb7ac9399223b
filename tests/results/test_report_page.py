"""``kdcli report``: one page that needs no other file, for one run and for several."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from kdcli.results.drawn import worst_places
from kdcli.results.report.charts import line_chart
from kdcli.results.report.page import Fact, Page, Section, Table, render
from kdcli.results.report.runs import page_of
from kdcli.runs.folder import RunFolder

VOID = {"meta", "img", "br", "circle", "line", "polyline"}


class Reader(HTMLParser):
    """Keeps what a page says, and fails where a tag is not closed or another file is asked for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.said: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        assert (values.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
        assert "href" not in values
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.said.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.said))


def test_a_run_has_its_page_at_the_end(same_run):
    page = Reader((same_run / "report.html").read_text(encoding="utf-8"))
    result = json.loads((same_run / "result.json").read_text())
    assert f"{result['test']['accuracy']:.4f}" in page.text
    assert f"{result['teacher']['test']['accuracy']:.4f}" in page.text
    for words in ("What the plan decided", "keeps every direction by construction", "kdcli export", "loss: projection"):
        assert words in page.text
    assert page.tags.count("svg") >= 3
    assert "img" in page.tags
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_every_decision_of_the_plan_is_on_it(random_run):
    page = Reader(render(page_of(RunFolder(random_run))))
    for entry in json.loads((random_run / "plan.json").read_text())["decisions"]:
        assert re.sub(r"\s+", " ", entry["value"]) in page.text
        assert re.sub(r"\s+", " ", entry["reason"]) in page.text


def test_a_student_alone_is_not_asked_whether_distillation_helped(alone_run):
    page = page_of(RunFolder(alone_run))
    assert page.verdict == ""
    assert "What the projector did" not in Reader(render(page)).text


def test_the_outcome_is_its_verdict(same_run, tmp_path):
    run = Path(shutil.copytree(same_run, tmp_path / "run"))
    saved = json.loads((run / "result.json").read_text())
    difference = {"mean": -0.2, "low": -0.3, "high": -0.1}
    outcome = {
        "verdict": "harmed",
        "sentence": "It did not help <b>.",
        "split": "test",
        "metric": "accuracy",
        "samples": 9,
    }
    saved |= {
        "outcome": {**outcome, "differences": {"accuracy": difference}, "tries": ["another layer"]},
        "checksum": "",
    }
    (run / "result.json").write_text(json.dumps(saved))
    shutil.copytree(same_run, run / "baseline")
    text = render(page_of(RunFolder(run)))
    page = Reader(text)
    assert "<b>" not in text.partition("</style>")[2].partition("<figure")[0]
    assert "It did not help <b>." in page.text
    assert "-0.2000 [-0.3000, -0.1000]" in page.text
    assert "another layer" in page.text
    assert "harmed" in text


def test_one_run_by_command(same_run, run_cli, tmp_path):
    target = tmp_path / "mine.html"
    outcome = run_cli("report", same_run, "--output", target)
    assert outcome.exit_code == 0, outcome.stderr
    Reader(target.read_text(encoding="utf-8"))


def test_several_runs_side_by_side(same_run, alone_run, run_cli, tmp_path):
    target = tmp_path / "both.html"
    outcome = run_cli("report", same_run, alone_run, "--output", target)
    assert outcome.exit_code == 0, outcome.stderr
    page = Reader(target.read_text(encoding="utf-8"))
    for run in (same_run, alone_run):
        assert f"{json.loads((run / 'result.json').read_text())['test']['accuracy']:.4f}" in page.text
    assert "svg" in page.tags


def test_bad_requests_are_refused(same_run, alone_run, run_cli, tmp_path):
    several = run_cli("report", same_run, alone_run)
    assert several.exit_code == 2
    assert "--output" in several.stderr
    folder = run_cli("report", same_run, "--output", tmp_path)
    assert folder.exit_code == 2
    assert "is a folder" in folder.stderr
    unfinished = Path(shutil.copytree(same_run, tmp_path / "run"))
    (unfinished / "result.json").unlink()
    outcome = run_cli("report", unfinished)
    assert outcome.exit_code == 2
    assert "not finished" in outcome.stderr
    damaged = Path(shutil.copytree(same_run, tmp_path / "damaged"))
    (damaged / "analysis").mkdir(exist_ok=True)
    (damaged / "analysis" / "analysis.json").write_text("{")
    outcome = run_cli("report", damaged)
    assert outcome.exit_code == 2
    assert "analysis.json is damaged" in outcome.stderr


def test_words_of_others_are_no_html():
    evil = '<script>alert("x")</script>'
    section = Section(evil, lines=[evil], table=Table([evil], [[evil]]), facts=[Fact(evil, evil, evil)])
    section.charts = [line_chart({evil: [(0, 1), (1, 2)]}, x_label=evil, y_label=evil)]
    text = render(Page(evil, lead=[evil], verdict=evil, tries=[evil], sections=[section]))
    assert "<script" not in text
    Reader(text)


@pytest.mark.parametrize(
    ("points", "low", "high"),
    [
        ([(0, 0.2), (10, 0.9)], 0.2, 0.9),
        ([(5, 3.0)], 3.0, 3.0),
        ([(0, -1e-9), (1, 1e9)], -1e-9, 1e9),
        ([(0, 7.0), (1, 7.0)], 7.0, 7.0),
    ],
)
def test_ticks_enclose_the_points(points, low, high):
    chart = str(line_chart({"a": points}, x_label="step", y_label="value"))
    places = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]*)"', chart)[1].split()]
    assert all(64 <= x <= 626 and 12 <= y <= 210 for x, y in places)
    assert 4 <= chart.count('class="grid"') <= 12


def test_points_that_are_no_numbers_are_left_out():
    assert line_chart({"a": [(0, float("nan"))]}, x_label="step", y_label="loss") == ""
    chart = str(line_chart({"a": [(0, 1.0), (1, float("inf")), (2, 2.0)]}, x_label="step", y_label="loss"))
    assert len(re.search(r'points="([^"]*)"', chart)[1].split()) == 2


def test_the_worst_samples_are_those_with_the_lowest_metric(tmp_path):
    run = RunFolder(tmp_path)
    job = SimpleNamespace(monitor="accuracy", task=SimpleNamespace(num_pictures=2))
    assert worst_places(job, run) == []
    index = torch.tensor([10, 11, 12, 13])
    right = torch.tensor([[1, 1], [0, 1], [1, 1], [0, 1]], dtype=torch.float64)
    run.write_tensors("validation_samples.safetensors", {"index": index, "accuracy": right})
    assert worst_places(job, run) == [11, 13]
    run.write_tensors("validation_samples.safetensors", {"index": index, "accuracy": torch.ones(4, 2)})
    assert worst_places(job, run) == []


def test_a_run_with_wrong_answers_has_a_picture_of_them(random_run):
    sums = load_file(random_run / "validation_samples.safetensors")["accuracy"]
    assert (random_run / "worst.png").is_file() == bool((sums[:, 0] < sums[:, 1]).any())
