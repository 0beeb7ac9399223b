"""The walkthroughs are read, not run, here: each is listed, parses, and names commands and options that there are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from kdcli.cli.app import app

FOLDER = Path(__file__).parent
SCRIPTS = sorted(file for file in FOLDER.iterdir() if re.match(r"\d", file.name))


def test_the_readme_lists_every_script():
    listed = re.findall(r"^\| `([^`]+)` \|", (FOLDER / "README.md").read_text(encoding="utf-8"), re.M)
    assert listed == [file.name for file in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_a_script_parses_and_ends_with_what_it_did(script):
    text = script.read_text(encoding="utf-8")
    if script.suffix == ".py":
        compile(text, script.name, "exec")
    else:
        subprocess.run(["sh", "-n", str(script)], check=True)
        (check,) = re.findall(r"<<'CHECK'\n(.*?)^CHECK$", text, re.M | re.S)
        compile(check, script.name, "exec")
    assert 'print(f"Done: ' in text


@pytest.mark.parametrize("script", [file for file in SCRIPTS if file.suffix == ".sh"], ids=lambda file: file.name)
def test_a_script_names_commands_and_options_that_there_are(script):
    lines = script.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    calls = [
        call.split()
        for line in lines
        if not line.startswith("#")
        for call in re.findall(r"\bkdcli ([a-z][^;)|]*)", line)
    ]
    assert len(calls) >= 3
    for name, *words in calls:
        command = get_command(app).commands[name]
        if words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words[0]]
        known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, name
