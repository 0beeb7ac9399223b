"""Guides: each is listed, printed and well linked; the README is short."""

from __future__ import annotations

import io
import json
import re
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

import kdcli
from kdcli.base.guides import GUIDES, for_terminals, guide_file, guide_text, guide_title
from kdcli.terminal.markdown import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *map(guide_file, GUIDES)]


def test_the_topics_are_listed_with_their_titles(run_cli):
    outcome = run_cli("guide")
    assert outcome.exit_code == 0
    for topic in GUIDES:
        assert topic in outcome.stdout
        assert guide_title(topic).split()[0] in outcome.stdout


@pytest.mark.parametrize("topic", GUIDES)
def test_a_guide_is_printed_as_it_is_into_a_pipe(topic, run_cli):
    outcome = run_cli("guide", topic)
    assert outcome.exit_code == 0
    assert outcome.stdout == for_terminals(guide_text(topic))
    assert not re.search(r"\]\((?!https?:)", outcome.stdout)


@pytest.mark.parametrize("topic", GUIDES)
def test_tables_of_a_guide_are_whole_on_a_narrow_terminal(topic):
    written = io.StringIO()
    Console(file=written, width=80, color_system=None).print(Page(for_terminals(guide_text(topic))))
    shown = "".join(written.getvalue().split())
    assert "…" not in shown
    assert max(map(len, written.getvalue().splitlines())) <= 80
    for name in re.findall(r"^\| `([^`|]+)` \|", guide_text(topic), re.M):
        assert re.sub(r"\s", "", name) in shown or len(name) > 20, name


def test_the_readme_lists_every_guide_in_order():
    listed = re.findall(r"^\| \[([\w-]+)\]\(kdcli/guides/([\w-]+)\.md\) \|", (ROOT / "README.md").read_text(), re.M)
    assert listed == [(topic, topic) for topic in GUIDES]
    assert "| `kdcli guide config` |" in (ROOT / "README.md").read_text()


def test_guides_as_json(run_cli):
    listed = json.loads(run_cli("guide", "--json").stdout)["guides"]
    assert [entry["topic"] for entry in listed] == [*GUIDES, "config"]
    assert listed[0]["title"] == guide_title("start")
    one = json.loads(run_cli("guide", "names", "--json").stdout)
    assert one == {"topic": "names", "title": guide_title("names"), "text": for_terminals(guide_text("names"))}
    assert "train.batch_size" in json.loads(run_cli("guide", "config", "--json").stdout)["text"].replace("`", "")


def test_the_citation_is_of_this_version():
    text = guide_text("how-it-works")
    assert re.search(r"version = \{(.*?)\}", text)[1] == kdcli.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"{{{{{project['authors'][0]['name']}}}}}" in text


def test_an_unknown_topic_is_refused_with_the_nearest(run_cli):
    outcome = run_cli("guide", "metods")
    assert outcome.exit_code == 2
    assert "methods" in outcome.stderr


def test_every_file_is_a_topic():
    assert {file.stem for file in guide_file("start").parent.glob("*.md")} == set(GUIDES)


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_point_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


def test_the_readme_is_short_and_names_every_guide():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 8192
    for topic in GUIDES:
        assert f"](kdcli/guides/{topic}.md)" in text


def test_the_guide_to_the_config_has_every_key_of_today(run_cli):
    from kdcli.config.described import describe_keys

    outcome = run_cli("guide", "config")
    assert outcome.exit_code == 0
    rows = {
        cells[1].strip(" `"): [cell.strip() for cell in cells[2:5]]
        for cells in (re.split(r"(?<!\\)\|", line) for line in outcome.stdout.splitlines() if line.startswith("| `"))
    }
    keys = {key.name: key for key in describe_keys()}
    assert rows.keys() == keys.keys()
    _, default, text = rows["train.epochs"]
    assert default == f"`{keys['train.epochs'].default}`"
    assert text == " ".join(keys["train.epochs"].text.split())
    headings = re.findall(r"^## (.*)$", outcome.stdout, re.M)
    assert headings[0] == "At the top"
    assert len(headings) == len(set(headings))
    assert {"train", "optim", "methods.projection"} <= set(headings)
    listed = run_cli("guide").stdout
    assert re.search(r"\| config +\| Every key of a config", listed)


def test_a_typo_of_the_guide_to_the_config_is_refused(run_cli):
    outcome = run_cli("guide", "cofig")
    assert outcome.exit_code == 2
    assert "Did you mean config" in outcome.stderr
