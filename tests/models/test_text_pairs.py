"""Pairs of texts: a model gets what its own tokenizer makes of the first and the second one."""

import json

import pytest
import torch
import transformers
from tokenizers import processors

from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.data import TextBatch, TextPair
from kdcli.models import build_student, load_teacher

PAIRS = [
    TextPair("the film was good", "a very dull plot with a weak end and quite poor music and a script " * 6),
    TextPair("a very dull plot with a weak end and quite poor music " * 8, "lovely"),
    TextPair("superb", "awful"),
]
DATA = DataFacts("pairs", "text-classification", ("no", "maybe", "yes"), 9, 9, 3, 3)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SHORT = {"max_position_embeddings": 64, "initializer_range": 0.3}
# config class: its arguments, the tokens around a pair, and whether the model tells the two texts apart by type
KINDS = {
    "Bert": (SIZES | SHORT, "[CLS] $A [SEP] $B:1 [SEP]:1", True),
    "DebertaV2": (SIZES | SHORT | {"type_vocab_size": 2}, "[CLS] $A [SEP] $B:1 [SEP]:1", True),
    "Albert": (SIZES | SHORT | {"embedding_size": 8}, "[CLS] $A [SEP] $B:1 [SEP]:1", True),
    "DistilBert": ({"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "initializer_range": 0.3}, "[CLS] $A [SEP] $B:1 [SEP]:1", False),
    "Roberta": (SIZES | SHORT | {"max_position_embeddings": 66, "pad_token_id": 0, "type_vocab_size": 1}, "[CLS] $A [SEP] [SEP] $B [SEP]", False),
    "GPT2": ({"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}, "$A $B", False),
}  # fmt: skip


def with_pairs(tokenizer, single, pair):
    """Return the tokenizer with these tokens around texts, which gives types of tokens too."""
    special = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=special
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=64,
        model_input_names=names,
        **tokenizer.special_tokens_map,
    )


def batch_of(texts):
    return TextBatch(texts=list(texts), targets=torch.zeros(len(texts)), samples=torch.arange(len(texts)))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_are_those_of_transformers_own_encoding(kind, make_tokenizer, tmp_path):
    sizes, template, has_types = KINDS[kind]
    single = "$A" if kind == "GPT2" else "[CLS] $A [SEP]"
    tokenizer = with_pairs(make_tokenizer(kind="gpt2" if kind == "GPT2" else "bert"), single, template)
    tokenizer.save_pretrained(tmp_path)
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer) + 1, num_labels=3, **sizes)
    torch.manual_seed(0)
    native = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    native.config.pad_token_id = 0 if kind != "GPT2" else tokenizer.eos_token_id
    native.save_pretrained(tmp_path)

    teacher = load_teacher(TeacherConfig(name=str(tmp_path)), seed=0, task="text-classification")
    inputs = teacher.prepare(batch_of(PAIRS))
    own = transformers.AutoTokenizer.from_pretrained(tmp_path)
    if own.pad_token is None:
        own.pad_token = own.eos_token
    firsts, seconds = [pair.first for pair in PAIRS], [pair.second for pair in PAIRS]
    tokens = own(firsts, seconds, padding=True, truncation="longest_first", max_length=64, return_tensors="pt")
    assert ("token_type_ids" in inputs) == has_types
    for name, values in inputs.items():
        assert torch.equal(values, tokens[name])
    assert inputs["input_ids"].shape[1] == 64
    logits = native(**{name: tokens[name] for name in inputs}).logits
    torch.testing.assert_close(teacher(inputs).logits, logits, rtol=0, atol=1e-6)
    pooled = teacher(inputs, Reads(("pooled",))).features["pooled"]
    torch.testing.assert_close(
        teacher(inputs, Reads(("pooled",)) | teacher.predictions).features["pooled"], pooled, rtol=0, atol=1e-6
    )
    swapped = teacher(teacher.prepare(batch_of([TextPair(*reversed(pair)) for pair in PAIRS]))).logits
    assert (swapped - logits).abs().max() > 1e-3
    assert teacher.separates_pairs == (kind != "GPT2")
    alone = teacher.prepare(batch_of(firsts))
    assert "token_type_ids" not in alone
    assert torch.equal(alone["input_ids"], own(firsts, padding=True, truncation=True, max_length=64, return_tensors="pt")["input_ids"])  # fmt: skip


def test_a_student_without_token_types_takes_a_tokenizer_that_has_them(make_tokenizer, tmp_path):
    tokenizer = with_pairs(make_tokenizer(), "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    tokenizer.save_pretrained(tmp_path)
    config = {"model_type": "roberta", "pad_token_id": 0, "type_vocab_size": 1, **SIZES, "max_position_embeddings": 66}
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": len(tokenizer)}))
    student = build_student(StudentConfig(name=str(tmp_path)), DATA, seed=0)
    inputs = student.prepare(batch_of(PAIRS))
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert student(inputs).logits.shape == (3, 3)
