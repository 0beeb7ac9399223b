"""Commands on words with labels, with models whose tokenizers cut differently."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from kdcli.base.reads import Reads
from kdcli.config.data import DataConfig
from kdcli.data import TextBatch, open_texts
from kdcli.models import load_saved

TASK = ("--task", "token-classification")
SHORT = ("--batch-size", "16", "--device", "cpu", "--lr", "0.005")
PIPELINE = """
import json, sys
sys.modules["kdcli"] = None
import torch
from transformers import pipeline
torch.set_num_threads(1)
recognise = pipeline("token-classification", sys.argv[1], ignore_labels=[])
texts = json.loads(sys.argv[2])
found = [[(token["start"], token["entity"]) for token in text] for text in recognise(texts)]
with torch.no_grad():
    logits = recognise.model(**recognise.tokenizer(texts[0], return_tensors="pt")).logits[0]
print(json.dumps([found, logits.tolist()]))
"""


def plan_of(run):
    return json.loads((run / "plan.json").read_text())


def decisions_of(run):
    return {decision["name"]: decision for decision in plan_of(run)["decisions"]}


def last(run, event):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event][-1]


@pytest.fixture(scope="module")
def roberta_folder(tmp_path_factory, make_byte_tokenizer):
    """A config of a tiny RoBERTa with a byte-level tokenizer, in which a space is part of the word after it."""
    from transformers import RobertaConfig

    folder = tmp_path_factory.mktemp("models") / "tiny-roberta"
    tokenizer = make_byte_tokenizer()
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"max_position_embeddings": 66, "initializer_range": 0.2, "pad_token_id": 1}
    RobertaConfig(vocab_size=len(tokenizer), **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(run_cli_in, tmp_path_factory, bert_folder, entities):
    """A finished run without a teacher: a BERT that knows the labels."""
    cwd = tmp_path_factory.mktemp("runs")
    outcome = run_cli_in(
        "distill", *TASK, "--teacher", "none", "--student", bert_folder, "--data", entities,
        *SHORT, "--epochs", "12", "--output", "teacher", cwd=cwd,
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    return cwd / "teacher"


@pytest.fixture(scope="module")
def same_run_of_words(run_cli_in, tmp_path_factory, teacher, roberta_folder, entities):
    """A finished run: a RoBERTa learns from the BERT, each with its own tokenizer."""
    cwd = tmp_path_factory.mktemp("runs")
    outcome = run_cli_in(
        "distill", *TASK, "--teacher", teacher / "student", "--student", roberta_folder, "--data", entities,
        *SHORT, "--epochs", "12", "--output", "same", cwd=cwd,
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    return cwd / "same"


def test_without_a_teacher_entities_are_learnt(teacher):
    assert decisions_of(teacher)["data"]["value"].startswith(f"{open_name(teacher)}: 4 classes of words")
    assert last(teacher, "validation")["entity_f1"] > 0.7
    test = last(teacher, "test")
    assert {"accuracy", "macro_f1", "entity_f1", "entity_precision", "entity_recall", "loss"} <= set(test)
    assert test["entity_f1"] > 0.7


def open_name(run):
    import yaml

    return yaml.safe_load((run / "config.yaml").read_text())["data"]["name"]


def test_a_teacher_with_the_labels_and_another_tokenizer(same_run_of_words):
    plan, decisions = plan_of(same_run_of_words), decisions_of(same_run_of_words)
    assert (plan["relation"], plan["label_map"]) == ("same", [0, 1, 2, 3])
    assert [m["method"] for m in plan["methods"]] == ["supervised", "projection", "logit_kd"]
    assert decisions["relation"]["reason"] == "Both have the same 4 labels."
    assert "each word's first token" in decisions["features: projection"]["reason"]
    assert decisions["words"]["value"].endswith("for training, in 216 pieces")
    assert last(same_run_of_words, "test")["entity_f1"] > 0.5
    assert last(same_run_of_words, "train")["logit_kd"] > 0


def test_the_export_answers_alone_as_it_was_measured(same_run_of_words, run_cli, tmp_path, entities):
    outcome = run_cli("export", same_run_of_words, "--output", "out")
    assert outcome.exit_code == 0, outcome.stderr
    assert 'pipeline("token-classification", "PATH")' in (tmp_path / "out" / "README.md").read_text()
    test = open_texts(DataConfig(name=str(entities)), task="token-classification", seed=0).test
    command = [sys.executable, "-c", PIPELINE, str(tmp_path / "out"), json.dumps(list(test.texts))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, logits = json.loads(done.stdout.splitlines()[-1])
    student = load_saved(same_run_of_words / "student")
    with torch.no_grad():
        expected = student(
            student.prepare(TextBatch(texts=[test.texts[0]], targets=torch.zeros(1), samples=torch.arange(1)))
        ).logits
    assert torch.allclose(torch.tensor(logits), expected, atol=1e-5)
    names, right = ("B-BAD", "B-GOOD", "I-BAD", "O"), []
    for words, tags, tokens in zip(test.words, test.tags, found, strict=True):
        start = 0
        for word, tag in zip(words, tags, strict=True):
            first = next(label for place, label in tokens if place in (start, start - 1))
            right.append(first == names[tag])
            start += len(word) + 1
    assert sum(right) / len(right) == pytest.approx(last(same_run_of_words, "test")["accuracy"])


def test_an_encoder_is_a_teacher_across_tasks(bert_folder, distilbert_folder, entities, run_cli, tmp_path):
    outcome = run_cli(
        "distill", *TASK, "--teacher", bert_folder, "--student", distilbert_folder, "--data", entities,
        *SHORT, "--epochs", "2", "--output", "cross", "--set", "data.train_texts=48",
        "--set", "teacher.max_length=8", "--set", "train.batch_size=8",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    run = tmp_path / "cross"
    assert plan_of(run)["relation"] == "cross"
    assert [m.get("projector") for m in plan_of(run)["methods"]] == [None, "inverted"]
    pieces = int(decisions_of(run)["words"]["value"].split()[-2])
    assert pieces > 48  # the teacher takes six words at most
    assert last(run, "train")["projection"] > 0
    outcome = run_cli("analyze-projector", run)
    assert outcome.exit_code == 0, outcome.stderr
    assert "words" in outcome.stdout
    analysis = json.loads((run / "analysis" / "analysis.json").read_text())
    validation = open_texts(DataConfig(name=str(entities)), task="token-classification", seed=0).validation
    assert (analysis["samples"], analysis["num_samples"]) == ("word", validation.num_words)
    (result,) = analysis["projectors"].values()
    assert len(result["tsne"]["knn_accuracy"]) == 4
    assert result["tsne"]["num_samples"] == min(500, validation.num_words)


def test_a_student_made_of_the_teacher_and_a_teacher_with_other_labels(teacher, entities, run_cli, tmp_path):
    lines = entities.read_text().replace("B-GOOD", "B-FINE")
    (tmp_path / "other.conll").write_text(lines)
    outcome = run_cli(
        "distill", *TASK, "--teacher", teacher / "student", "--student", "teacher?layers=1",
        "--data", tmp_path / "other.conll", "--dry-run",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    assert "the teacher has no label 'B-FINE'" in outcome.stdout
    assert "loss: logit kd" not in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "data.label_kind=class"), "data.label_kind is set, but the task is token-classification"),
        (("--set", "data.unlabelled=x"), "data.unlabelled is set, but the task is token-classification"),
        (("--set", "data.labels_per_class=3"), "data.labels_per_class needs texts with one class each"),
        (("--set", "data.mask_probability=0.3"), "nothing is masked"),
        (("--set", "student.pooling=cls"), "each token stands for itself"),
        (("--classes", "0-1"), "data.classes is set, which is about images"),
        (("--method", "crd"), "crd keeps an embedding of every sample, and here samples are the words of texts"),
        (("--method", "refilled"), "needs one class a sample"),
    ],
)
def test_what_words_have_not_is_refused(arguments, message, bert_folder, entities, run_cli, tmp_path):
    outcome = run_cli(
        "distill", *TASK, "--teacher", bert_folder, "--student", bert_folder, "--data", entities,
        *SHORT, *arguments, "--output", "run",
    )  # fmt: skip
    assert outcome.exit_code == 2, outcome.stdout
    assert message in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_evaluate_counts_words_and_entities(same_run_of_words, teacher, roberta_folder, entities, run_cli, tmp_path):
    outcome = run_cli("evaluate", same_run_of_words, "--against", teacher, "--json", "--output", "out")
    assert outcome.exit_code == 0, outcome.stderr
    evaluation = json.loads(outcome.stdout)
    test = open_texts(DataConfig(name=str(entities)), task="token-classification", seed=0).test
    assert (evaluation["samples"], evaluation["num_images"]) == ("word", test.num_words)
    models = evaluation["models"]
    for role, run in (("student", same_run_of_words), ("against-1", teacher)):
        measured = last(run, "test")
        assert models[role]["top1"] == pytest.approx(measured["accuracy"])
        assert models[role]["cross_entropy"] == pytest.approx(measured["loss"], rel=1e-4)
        for name in ("entity_f1", "entity_precision", "entity_recall"):
            assert models[role][name] == pytest.approx(measured[name])
    assert models["against-1"]["agreement_with_teacher"] == 1.0  # it is the teacher
    assert 0.5 < models["student"]["agreement_with_teacher"] < 1.0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["class_names"] == [
        "B-BAD", "B-GOOD", "I-BAD", "O",
    ]  # fmt: skip

    task = ("--task", "token-classification", "--data", entities)
    shown = run_cli("evaluate", teacher / "student", *task)
    assert shown.exit_code == 0, shown.stderr
    assert f"{test.num_words} test words" in shown.stdout
    assert "entity f1" in shown.stdout
    assert "texts per second" in shown.stdout
    refused = run_cli("evaluate", f"random:{roberta_folder}", *task)
    assert (refused.exit_code, "has no classifier" in refused.stderr) == (2, True)


def test_a_stopped_run_goes_on_as_if_it_had_not(bert_folder, distilbert_folder, entities, run_cli, tmp_path):
    options = ("--teacher", bert_folder, "--student", distilbert_folder, "--data", entities, "--epochs", "2")
    options += (*SHORT, "--checkpoint-every", "4", "--set", "train.keep_checkpoints=9", "--set", "data.train_texts=80")
    assert run_cli("distill", *TASK, *options, "--output", "whole").exit_code == 0
    run = shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    checkpoints = sorted((run / "checkpoints").iterdir())
    assert len(checkpoints) > 1
    for later in checkpoints[1:]:
        shutil.rmtree(later)
    (run / "result.json").unlink()
    outcome = run_cli("distill", "--resume", run)
    assert outcome.exit_code == 0, outcome.stderr
    whole, resumed = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert last(run, "test") == last(tmp_path / "whole", "test")


def test_words_are_the_rows_of_both_models(same_run_of_words, teacher):
    """Features and logits of a word are those of the token that begins it, whatever its number in either tokenizer."""
    from kdcli.config.models import TeacherConfig
    from kdcli.data import WordBatch
    from kdcli.models import load_teacher

    student = load_saved(same_run_of_words / "student")
    name = str(teacher / "student")
    model = load_teacher(TeacherConfig(name=name), seed=0, task="token-classification")
    batch = WordBatch(
        words=[["superb", "plot"], ["the", "film", "was"]], targets=torch.zeros(5).long(), samples=torch.arange(2)
    )
    for each in (student, model):
        with torch.no_grad():
            output = each(each.prepare(batch), Reads(("pooled",)) | each.predictions)
            alone = each(
                each.prepare(WordBatch(words=batch.words[1:], targets=batch.targets[2:], samples=torch.arange(1))),
                Reads(("pooled",)) | each.predictions,
            )
        assert output.logits.shape == (5, 4)
        assert torch.allclose(output.features["pooled"][2:], alone.features["pooled"], atol=1e-5)
        assert torch.allclose(output.logits[2:], alone.logits, atol=1e-5)
