"""What a model says of a text is the same alone and beside a longer one, whatever the kind of network."""

import json

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.data import TextBatch
from kdcli.models import build_student, load_saved, load_teacher

TEXTS = ["the film was good", "a very dull plot with a weak end and quite poor music", "lovely", "was the film bad ?"]
DATA = DataFacts("reviews", "text-classification", ("bad", "fine", "good"), 9, 9, 3, 3)
FREE = DataFacts("reviews", "sentence-embedding", (), 9, 0, 3, 3, label_kind="none")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SIZES |= {"initializer_range": 0.3, "max_position_embeddings": 64}
CANINE = {"num_hash_functions": 2, "num_hash_buckets": 32, "downsampling_rate": 2, "upsampling_kernel_size": 2}
# config class: its arguments, and whether padding changes it in transformers
KINDS = {
    "XLNet": ({"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "initializer_range": 0.3}, True),
    "FNet": (SIZES | {"use_tpu_fourier_optimizations": False}, True),
    "ConvBert": (SIZES | {"embedding_size": 16, "head_ratio": 1, "conv_kernel_size": 3}, True),
    "Canine": (SIZES | CANINE | {"max_position_embeddings": 128}, True),
    "Nystromformer": (SIZES, True),
    "Bert": (SIZES, False),
    "GPT2": ({"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}, False),
}
TAKES_LONGER = "texts of each length are run by themselves"


def batch_of(texts):
    return TextBatch(texts=list(texts), targets=torch.zeros(len(texts)), samples=torch.arange(len(texts)))


def has_layer(model, name):
    return name in dict(model.module.named_modules())


@pytest.fixture(params=KINDS)
def kind(request, make_tokenizer, tmp_path):
    """A folder with the config of each kind and a tokenizer that pads on the right; whether padding changes it."""
    sizes, changes = KINDS[request.param]
    tokenizer = make_tokenizer()
    size = {} if request.param == "Canine" else {"vocab_size": len(tokenizer)}
    getattr(transformers, f"{request.param}Config")(**size, **sizes).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path, changes


def test_a_batch_and_single_texts_are_the_same(kind, tmp_path_factory):
    folder, changes = kind
    student = build_student(StudentConfig(name=str(folder)), DATA, seed=0)
    assert any(TAKES_LONGER in remark for remark in student.facts.preprocessing.remarks) == changes
    layers = [
        name for name in ("bert.encoder.layer.0", "transformer.h.0", "fnet.encoder.layer.0") if has_layer(student, name)
    ]
    taps = ("pooled", "embedding", *layers)
    student.open_taps(layers)
    student.eval()
    with torch.no_grad():
        together = student(student.prepare(batch_of(TEXTS)), Reads(taps) | student.predictions)
        for index, text in enumerate(TEXTS):
            inputs = student.prepare(batch_of([text]))
            alone = student(inputs, Reads(taps) | student.predictions)
            for tap in taps:
                torch.testing.assert_close(together.features[tap][index], alone.features[tap][0], rtol=1e-4, atol=1e-5)
            # What transformers itself says of the text alone.
            torch.testing.assert_close(together.logits[index], student.module(**inputs).logits[0], rtol=1e-4, atol=1e-5)
    folder = tmp_path_factory.mktemp("saved")
    student.save(folder)
    with torch.no_grad():
        again = load_saved(folder)(student.prepare(batch_of(TEXTS)))
    torch.testing.assert_close(again.logits, together.logits)
    student.train()
    output = student(student.prepare(batch_of(TEXTS)), Reads(("pooled",)) | student.predictions)
    (output.logits.sum() + output.features["pooled"].sum()).backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())


def test_a_classifier_that_names_another_token_as_padding(make_tokenizer, tmp_path):
    """A decoder's classifier takes the last token that its config does not name as padding: the tokenizer's is."""
    tokenizer = make_tokenizer()
    config = transformers.GPT2Config(vocab_size=len(tokenizer), pad_token_id=7, num_labels=3, **KINDS["GPT2"][0])
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    teacher = load_teacher(TeacherConfig(name=str(tmp_path)), seed=0, task="text-classification")
    native = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    inputs = teacher.prepare(batch_of(TEXTS))
    with torch.no_grad():
        logits = teacher(inputs).logits
        single = [native(**AutoTokenizer.from_pretrained(tmp_path)(text, return_tensors="pt")).logits for text in TEXTS]
        torch.testing.assert_close(logits, torch.cat(single), rtol=1e-4, atol=1e-5)
        assert (native(**inputs).logits - logits).abs().max() > 0.01
    assert teacher.facts.preprocessing.remarks == ()


def test_the_plan_says_what_takes_longer_and_the_export_is_the_same(make_tokenizer, run_cli, tmp_path, reviews):
    tokenizer = make_tokenizer()
    transformers.XLNetConfig(vocab_size=len(tokenizer), **KINDS["XLNet"][0]).save_pretrained(tmp_path / "xlnet")
    tokenizer.save_pretrained(tmp_path / "xlnet")
    options = ("--teacher", "none", "--data", reviews, "--task", "text-classification", "--device", "cpu")
    options += ("--set", "data.train_texts=40", "--epochs", "1", "--output", "run")
    outcome = run_cli("distill", "--student", "xlnet", *options)
    assert outcome.exit_code == 0, outcome.stderr
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    reasons = {decision["name"]: decision["reason"] for decision in plan["decisions"]}
    assert TAKES_LONGER in reasons["student input"]
    exported = run_cli("export", "run", "--output", "out")
    assert exported.exit_code == 0, exported.stderr
