"""Commands on masked and causal language models, with tiny ones."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from kdcli.data import TextBatch
from kdcli.models import load_saved

SENTENCES = (
    "the film was good and the actor was great",
    "a very dull plot with a weak end",
    "quite poor music is in the scene",
    "the story was superb and the script was lovely",
)


def plan_of(run):
    return json.loads((run / "plan.json").read_text())


def decisions_of(run):
    return {decision["name"]: decision for decision in plan_of(run)["decisions"]}


def result_of(run):
    return json.loads((run / "result.json").read_text())


def metrics_of(run, event):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """A txt of 224 lines of two sentences out of four, so that most of a text follows from its beginning."""
    file = tmp_path_factory.mktemp("data") / "sentences.txt"
    file.write_text(
        "".join(f"{SENTENCES[n % 4]} {SENTENCES[n // 4 % 4]} {'very ' * (n // 16 % 4)}\n" for n in range(224))
    )
    return file


@pytest.fixture(scope="module")
def distil(run_cli_in, language_models, sentences):
    """``distil(cwd, task, *more)``: a command of a few steps; the teacher is the untrained one unless ``more`` has one."""

    def run(cwd, task, *more):
        kind = task.partition("-")[0]
        models = {
            "--teacher": language_models / kind,
            "--student": language_models / f"{kind}-student",
            "--data": sentences,
        }
        given = [word for option, value in models.items() if option not in more for word in (option, value)]
        options = ("--task", task, "--batch-size", "16", "--epochs", "1", "--device", "cpu")
        if "--teacher" not in more:
            options += ("--unchecked-teacher",)
        return run_cli_in("distill", *options, *given, *more, cwd=cwd)

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory, distil, language_models):
    """For each task a teacher trained alone, and a student distilled from it. Not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    for kind in ("masked", "causal"):
        learn = (f"{kind}-lm", "--lr", "0.02", "--epochs", "9")
        alone = ("--teacher", "none", "--student", language_models / kind, "--method", "none")
        teacher = distil(root, *learn, *alone, "--output", f"{kind}-teacher")
        assert teacher.exit_code == 0, teacher.stderr
        student = distil(root, *learn, "--teacher", root / f"{kind}-teacher", "--output", kind, "--baseline")
        assert student.exit_code == 0, student.stderr
        (root / f"{kind}.txt").write_text(student.stdout)
    return root


def by_frequency(tokenizer, texts, *, first):
    """The loss and accuracy of who knows nothing but how often each token comes; the first may not be predicted."""
    tokens = [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"][first:]]
    counts = Counter(tokens)
    loss = -sum(count * math.log(count / len(tokens)) for count in counts.values()) / len(tokens)
    return loss, max(counts.values()) / len(tokens)


TASKS = ("masked-lm", "causal-lm")


@pytest.fixture(params=TASKS)
def run(request, runs):
    """The distilled run of each task."""
    return runs / request.param.partition("-")[0]


def texts_of(run, split):
    from kdcli.data import open_texts
    from kdcli.runs.folder import RunFolder

    config = RunFolder(run).read_config()
    return getattr(open_texts(config.data, task=config.task, seed=config.seed), split).texts


def test_the_default_plan(run):
    plan, decisions = plan_of(run), decisions_of(run)
    assert (plan["relation"], plan["label_map"]) == ("same", [])
    methods = {method["method"]: method for method in plan["methods"]}
    assert list(methods) == ["supervised", "projection", "logit_kd"]
    assert methods["projection"]["projector"] == "orthogonal"
    assert methods["logit_kd"]["divergence"] == "forward_kl"
    assert methods["supervised"]["label_smoothing"] == 0
    assert "tokenizers are the same" in decisions["relation"]["reason"]
    assert "its own tokens" in decisions["data"]["value"]
    assert "pieces for training" in decisions["tokens"]["value"]
    assert ("15% of them predicted" in decisions["tokens"]["value"]) == (run.name == "masked")
    assert "each for itself" in decisions["student input"]["value"]
    assert "tokens" in decisions["teacher"]["value"]
    assert metrics_of(run, "train")[-1].keys() >= {"supervised", "projection", "logit_kd", "loss", "texts_per_second"}


def test_a_student_learns_what_the_words_before_and_around_say(run):
    """The teacher, the student and the student alone know far more than how often each token comes."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "student")
    loss, accuracy = by_frequency(tokenizer, texts_of(run, "test"), first=run.name == "causal")
    found = result_of(run)
    alone = result_of(run / "baseline")
    losses = [metrics["loss"] for metrics in (found["test"], found["teacher"]["test"], alone["test"])]
    assert max(losses) < 0.75 * loss, (losses, loss)
    for metrics in (found["test"], found["validation"], found["teacher"]["test"]):
        assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
        assert metrics["log_likelihood"] == -metrics["loss"]
        assert metrics["accuracy"] > 1.8 * accuracy
    validations = metrics_of(run, "validation")
    assert max(validations, key=lambda line: line["log_likelihood"])["epoch"] == found["validation"]["epoch"]


def test_the_teachers_own_metrics_stand_beside_the_students(run):
    """They are those that it had when it was trained: evaluation has the same tokens in every run."""
    found, own = result_of(run), result_of(run.with_name(f"{run.name}-teacher"))
    assert found["teacher"].keys() == {"validation", "test"}
    for split, metrics in found["teacher"].items():
        assert metrics == pytest.approx({key: own[split][key] for key in metrics}, rel=1e-5)
    assert own["teacher"] == {}
    table = run.with_suffix(".txt").read_text().partition("Result")[2]
    rows = {line.split("  ")[0].strip(" │|"): line.split() for line in table.splitlines() if line.strip()}
    row = next(words for name, words in rows.items() if "test perplexity" in " ".join(words))
    assert f"{found['teacher']['test']['perplexity']:.4f}" in row
    assert "teacher" in table


def test_the_export_is_transformers_own(run, run_cli, tmp_path):
    """What transformers loads has the same logits, and its pipeline answers with the token of the largest."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, pipeline

    outcome = run_cli("export", run, "--output", "out")
    assert outcome.exit_code == 0, outcome.stderr
    is_masked = run.name == "masked"
    kind, auto = ("fill-mask", AutoModelForMaskedLM) if is_masked else ("text-generation", AutoModelForCausalLM)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f'pipeline("{kind}", "PATH")' in card
    assert f"pipeline_tag: {kind}" in card
    assert "images" in run_cli("export", run, "--format", "onnx", "--output", "onnx").stderr

    student = load_saved(run / "student")
    text = f"the film was {'[MASK]' if is_masked else 'good'} and the actor"
    inputs = student.tokenizer(text, return_tensors="pt")
    tokens = inputs["input_ids"][0].tolist()
    with torch.no_grad():
        output = student(student.prepare(TextBatch(texts=[text], targets=torch.zeros(1), samples=torch.zeros(1))))
        logits = output.logits if output.vocabulary is None else output.vocabulary.dense()
        loaded = auto.from_pretrained(tmp_path / "out")(inputs["input_ids"], inputs["attention_mask"]).logits[0]
    torch.testing.assert_close(loaded, logits, rtol=1e-4, atol=1e-4)
    answer = pipeline(kind, str(tmp_path / "out"), device="cpu")
    if is_masked:
        assert answer(text)[0]["token"] == logits[tokens.index(student.tokenizer.mask_token_id)].argmax()
    else:
        (found,) = answer(text, max_new_tokens=1, return_tensors=True, do_sample=False)
        assert found["generated_token_ids"] == [*tokens, logits[-1].argmax()]


def test_losses_are_transformers_own_and_rows_that_are_no_tokens_get_nothing(distil, tmp_path, language_models):
    """Of a student with a padded vocabulary, by what transformers loads alone, text by text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = tmp_path / "run"
    student = ("--student", language_models / "causal", "--set", "student.pretrained=true", "--teacher", "none")
    outcome = distil(
        tmp_path, "causal-lm", *student, "--method", "none", "--lr", "0.02", "--epochs", "5", "--output", run
    )
    assert outcome.exit_code == 0, outcome.stderr
    model = AutoModelForCausalLM.from_pretrained(run / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "student")
    assert model.config.vocab_size == len(tokenizer) + 3
    assert f"{len(tokenizer)} tokens and 3 rows of padding" in decisions_of(run)["student"]["value"]
    total = count = outside = 0.0
    for text in texts_of(run, "test"):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            output = model(ids, labels=ids)
        total, count = total + output.loss.item() * (ids.shape[1] - 1), count + ids.shape[1] - 1
        outside += (
            output.logits[0, :-1, len(tokenizer) :].logsumexp(1).sub(output.logits[0, :-1].logsumexp(1)).exp().sum()
        )
    assert result_of(run)["test"]["loss"] == pytest.approx(total / count, rel=1e-4)
    assert outside / count < 4e-3


def test_what_comes_after_training(run, run_cli, tmp_path):
    analysed = shutil.copytree(run, tmp_path / "run")
    outcome = run_cli("analyze-projector", analysed)
    assert outcome.exit_code == 0, outcome.stderr
    analysis = json.loads((analysed / "analysis" / "analysis.json").read_text())
    assert (analysis["samples"], analysis["split"]) == ("token", "validation")
    assert analysis["num_samples"] > len(texts_of(run, "validation"))
    assert all(result["tsne"]["knn_accuracy"] == {} for result in analysis["projectors"].values())
    compared = run_cli("compare", run, run / "baseline", "--all")
    assert compared.exit_code == 0, compared.stderr
    assert "perplexity" in compared.stdout
    refused = run_cli("evaluate", run)
    assert (refused.exit_code, "has no classes" in refused.stderr) == (2, True)
    assert "teacher's" in refused.stderr


@pytest.mark.parametrize(("task", "divergence"), [("masked-lm", "jensen_shannon"), ("causal-lm", "reverse_kl")])
def test_other_divergences(task, divergence, distil, tmp_path):
    methods = f"methods=[{{method: logit_kd, divergence: {divergence}}}, {{method: logit_kd}}]"
    outcome = distil(tmp_path, task, "--set", methods, "--epochs", "3", "--output", "run")
    assert outcome.exit_code == 0, outcome.stderr
    first, last = (metrics_of(tmp_path / "run", "train")[place] for place in (0, -1))
    assert 0 < last["logit_kd"] < first["logit_kd"]
    assert first["logit_kd"] != pytest.approx(first["logit_kd-2"], rel=1e-5)


@pytest.mark.parametrize(("task", "layer"), [("masked-lm", "bert.encoder.layer.0"), ("causal-lm", "transformer.h.0")])
def test_layers_of_tokens(task, layer, distil, tmp_path):
    more = ("--method", "rkd_distance", "--feature-layers", f"pooled:{layer}", "--epochs", "3", "--output", "run")
    outcome = distil(tmp_path, task, *more)
    assert outcome.exit_code == 0, outcome.stderr
    lines = metrics_of(tmp_path / "run", "train")
    assert 0 < lines[-1]["rkd_distance"] < lines[0]["rkd_distance"]


@pytest.mark.parametrize("task", TASKS)
def test_a_stopped_run_goes_on_as_if_it_had_not(task, distil, run_cli, tmp_path):
    options = ("--epochs", "2", "--checkpoint-every", "4")
    options += ("--set", "train.keep_checkpoints=9", "--set", "train.ema=0.9")
    assert distil(tmp_path, task, *options, "--output", "whole").exit_code == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for later in sorted((tmp_path / "part" / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(later)
    outcome = run_cli("distill", "--resume", "part")
    assert outcome.exit_code == 0, outcome.stderr
    for file in ("student/model.safetensors", "projector.safetensors"):
        whole, part = (load_file(tmp_path / name / file) for name in ("whole", "part"))
        assert all(torch.equal(whole[key], part[key]) for key in whole)
    whole, part = (result_of(tmp_path / name) for name in ("whole", "part"))
    assert (whole["test"], whole["teacher"]) == (part["test"], part["teacher"])


def test_two_processes_train_as_one(distil, tmp_path, language_models, sentences, run_in_two_processes):
    """Texts of different length: each process has another number of tokens."""
    commands = []
    for task in TASKS:
        kind = task.partition("-")[0]
        # Plain steps: AdamW's first ones would turn the rounding of tiny gradients into differences.
        more = ("--set", "optim.optimizer=sgd", "--set", "optim.lr=0.05", "--set", "data.train_texts=64")
        assert distil(tmp_path, task, *more, "--output", f"{kind}-one").exit_code == 0
        models = (
            "--teacher",
            language_models / kind,
            "--student",
            language_models / f"{kind}-student",
            "--data",
            sentences,
        )
        options = ("--task", task, "--batch-size", "16", "--epochs", "1", "--device", "cpu", "--unchecked-teacher")
        command = ("distill", *models, *options, *more, "--output", tmp_path / f"{kind}-two")
        commands.append(command)
    run_in_two_processes(commands)
    for kind in ("masked", "causal"):
        one, two = tmp_path / f"{kind}-one", tmp_path / f"{kind}-two"
        for file in ("student/model.safetensors", "projector.safetensors"):
            first, second = load_file(one / file), load_file(two / file)
            for key, value in first.items():
                torch.testing.assert_close(second[key], value, rtol=1e-3, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
        first, second = result_of(one), result_of(two)
        assert second["test"] == pytest.approx(first["test"], rel=1e-3)
        assert second["teacher"]["test"] == pytest.approx(first["teacher"]["test"], rel=1e-3)
        for first, second in zip(metrics_of(one, "train"), metrics_of(two, "train"), strict=True):
            for key in ("loss", "supervised", "projection", "logit_kd"):
                assert second[key] == pytest.approx(first[key], rel=2e-3), key


class Largest(TorchDispatchMode):
    """How many elements the largest float tensor has that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                self.elements = max(self.elements, value.numel())
        return out


def test_the_logits_of_a_causal_batch_are_never_whole(distil, tmp_path, make_tokenizer, monkeypatch):
    """In a whole command: probing, two steps with all default losses, validation, test, the teacher's metrics."""
    from functools import partial

    from transformers import GPT2Config, GPT2LMHeadModel

    from kdcli.models.transformers import tokens as hf_token

    tokenizer = make_tokenizer(kind="gpt2")
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_inner": 8, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=3, eos_token_id=3, **sizes)).save_pretrained(
        tmp_path / "t"
    )
    tokenizer.save_pretrained(tmp_path / "t")
    student = "hf:gpt2?n_embd=8&n_layer=1&n_head=1&n_inner=8&n_positions=64"
    options = ("--teacher", "t", "--unchecked-teacher", "--student", student)
    options += ("--batch-size", "64", "--epochs", "2", "--output")
    made = []

    def small(*arguments, chunk=32):
        made.append(hf_token_logits(*arguments, chunk=chunk))
        return made[-1]

    hf_token_logits = hf_token.VocabularyLogits
    monkeypatch.setattr(hf_token, "VocabularyLogits", small)
    with Largest() as chunked:
        outcome = distil(tmp_path, "causal-lm", *options, "chunked")
    assert outcome.exit_code == 0, outcome.stderr
    whole = sorted(len(logits) * logits.num_classes for logits in made if len(logits) > 1000)
    assert len(whole) == 2 * result_of(tmp_path / "chunked")["steps"], "student's and teacher's"
    assert chunked.elements < whole[0] / 2
    monkeypatch.setattr(hf_token, "VocabularyLogits", partial(small, chunk=len(tokenizer)))
    with Largest() as dense:
        assert distil(tmp_path, "causal-lm", *options, "dense").exit_code == 0
    assert dense.elements >= whole[-1]  # what the count has to see
    one, two = (result_of(tmp_path / name)["test"] for name in ("chunked", "dense"))
    assert one == pytest.approx(two, rel=1e-4)


def test_a_student_of_the_teachers_layers(distil, tmp_path, language_models):
    outcome = distil(tmp_path, "causal-lm", "--student", "teacher?layers=1", "--output", "run")
    assert outcome.exit_code == 0, outcome.stderr
    config, teacher = (
        json.loads((folder / "config.json").read_text())
        for folder in (tmp_path / "run/student", language_models / "causal")
    )
    assert (config["n_layer"], config["vocab_size"]) == (1, teacher["vocab_size"])


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("causal-lm", ("--set", "student.pooling=cls"), "each token stands for itself"),
        ("masked-lm", ("--set", "teacher.pooling=mean"), "each token stands for itself"),
        ("causal-lm", ("--set", "data.mask_probability=0.3"), "nothing is masked"),
        ("text-classification", ("--set", "data.mask_probability=0.3"), "nothing is masked"),
        ("masked-lm", ("--set", "data.label_kind=class"), "data.label_kind is set"),
        ("causal-lm", ("--method", "dkd"), "dkd needs one class a sample, and the labels are tokens"),
        ("masked-lm", ("--method", "crd"), "crd needs one class a sample, and the labels are tokens"),
        ("causal-lm", ("--method", "dist"), "dist wants all logits of a vocabulary at once"),
        ("masked-lm", ("--method", "refilled"), "needs one class a sample"),
        ("masked-lm", ("--set", "embedding.epochs=1"), "needs one class a sample"),
        ("causal-lm", ("--method", "similarity_preserving"), "has no positions"),
        ("causal-lm", ("--method", "attention_transfer"), "has no stages that kdcli can find"),
        ("masked-lm", ("--set", "augment.mixup=0.2"), "augment is set, which is about images"),
        ("causal-lm", ("--set", "methods=[{method: spectral_regularization}]"), "nothing trains what predicts"),
        ("masked-lm", ("--set", "data.labels_per_class=3"), "needs texts with one class each"),
        ("masked-lm", ("--set", "teacher.max_length=2"), "leaves no room for a text beside 2 special tokens"),
        ("masked-lm", ("--teacher", "CAUSAL"), "is no masked language model"),
        ("causal-lm", ("--teacher", "MASKED"), "is no causal language model"),
        ("masked-lm", ("--student", "CAUSAL"), "no masked language model of the kind 'gpt2'"),
        ("causal-lm", ("--student", "MASKED"), "it looks ahead"),
        ("masked-lm", ("--teacher", "none"), "no tokenizer, and there is no teacher"),
        ("masked-lm", ("--student", "BERT"), "are among the teacher's"),
        ("masked-lm", ("--teacher", "none", "--student", "BERT"), "has no mask token"),
    ],
)
def test_what_can_not_work_is_refused(task, more, message, distil, tmp_path, language_models, bert_folder):
    known = {"CAUSAL": language_models / "causal", "MASKED": language_models / "masked", "BERT": bert_folder}
    more = [known.get(word, word) for word in more]
    if task == "text-classification":
        more += ["--teacher", bert_folder, "--student", bert_folder]
    outcome = distil(tmp_path, task, *more)
    assert outcome.exit_code == 2, outcome.stdout
    assert message in outcome.stderr, outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_split_without_tokens_to_predict_is_refused_before_training(distil, tmp_path, sentences):
    (tmp_path / "texts").mkdir()
    shutil.copy(sentences, tmp_path / "texts" / "train.txt")
    (tmp_path / "texts" / "test.txt").write_text("a\nb\n")
    options = ("--data", tmp_path / "texts", "--output", "run")
    outcome = distil(tmp_path, "causal-lm", *options)
    assert outcome.exit_code == 2
    assert "The test texts have no tokens to predict" in outcome.stderr
    assert not (tmp_path / "run").exists()
    assert distil(tmp_path, "causal-lm", *options, "--no-test", "--dry-run").exit_code == 0


def test_tokenizers_that_cut_differently_are_refused(distil, tmp_path, language_models):
    """With the same vocabulary: one of them exchanges a word."""
    other = shutil.copytree(language_models / "causal", tmp_path / "other")
    settings = json.loads((other / "tokenizer.json").read_text())
    settings["normalizer"] = {"type": "Replace", "pattern": {"String": "good"}, "content": "bad"}
    (other / "tokenizer.json").write_text(json.dumps(settings))
    outcome = distil(tmp_path, "causal-lm", "--student", other)
    assert outcome.exit_code == 2
    assert "they have the same vocabulary, but cut" in outcome.stderr
    assert "texts differently" in outcome.stderr
