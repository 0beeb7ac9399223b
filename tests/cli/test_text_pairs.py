"""A run on pairs of texts: plan, training with the teacher's stored outputs, evaluation, export."""

from __future__ import annotations

import json
import random

import pytest
import yaml

WORDS = [
    "the",
    "film",
    "plot",
    "actor",
    "scene",
    "music",
    "was",
    "is",
    "and",
    "with",
    "very",
    "quite",
    "story",
    "end",
    "script",
]


def write_pairs(file, count, *, columns=("premise", "hypothesis")):
    """Write texts; the label is whether the second one's first word is the first one's."""
    draw = random.Random(0)
    lines = []
    for number in range(count):
        first = draw.choices(WORDS, k=3)
        second = [first[0] if number % 2 else "dull", *draw.choices(WORDS, k=2)]
        texts = {columns[0]: " ".join(first), columns[1]: " ".join(second)}
        lines.append(json.dumps({**texts, "genre": "x", "label": ["other", "same"][number % 2]}))
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory, run_cli_in, bert_folder, distilbert_folder):
    """A finished run, whose teacher reads each pair once; beside it ``pairs.jsonl``."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder / "pairs.jsonl", 120)
    outcome = run_cli_in(
        "distill", "--task", "text-classification", "--teacher", bert_folder, "--student", distilbert_folder, "--lr", "0.005",
        "--data", "pairs.jsonl", "--epochs", "8", "--batch-size", "16", "--device", "cpu", "--output", "run", cwd=folder,
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    assert "pairs of texts from premise and hypothesis, labels from label. Not read: genre." in outcome.stdout
    assert "puts nothing between them" in outcome.stdout  # the tokenizer of these models has no pairs of its own
    return folder / "run"


def test_both_texts_are_learnt_from_and_kept_in_the_config(run):
    config = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert (config["text_column"], config["text_pair_column"]) == ("premise", "hypothesis")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if line["event"] == "test"][-1]["accuracy"] > 0.9  # "dull" is in second texts alone


def test_evaluation_is_of_pairs_too(run, run_cli_in):
    def evaluate(*arguments):
        return run_cli_in("evaluate", "run", *arguments, "--device", "cpu", "--json", cwd=run.parent)

    own = json.loads(evaluate().stdout)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    tested = [line for line in lines if line["event"] == "test"][-1]
    assert own["models"]["student"]["top1"] == pytest.approx(tested["accuracy"])
    write_pairs(run.parent / "others.jsonl", 40, columns=("sentence1", "sentence2"))
    assert json.loads(evaluate("--data", "others.jsonl").stdout)["models"]["student"]["top1"] > 0.7
    (run.parent / "single.csv").write_text(
        "text,label\n" + "".join(f"film {n},{['other', 'same'][n % 2]}\n" for n in range(20))
    )
    refused = evaluate("--data", "single.csv")
    assert refused.exit_code == 2
    assert "was trained on pairs of texts, and single.csv has single texts" in refused.stderr


def test_export_and_resume(run, run_cli_in):
    outcome = run_cli_in("export", "run", "--output", "out", cwd=run.parent)
    assert outcome.exit_code == 0, outcome.stderr
    resumed = run_cli_in("distill", "--resume", "run", "--epochs", "9", cwd=run.parent)
    assert resumed.exit_code == 0, resumed.stderr
    assert "going on from step 40" in resumed.stdout
