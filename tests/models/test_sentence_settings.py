"""Settings of sentence-transformers' folders: each is obeyed, as computed here from tokenizer and model, or refused."""

import json

import pytest
import torch
import transformers
from transformers import AutoModel, AutoTokenizer

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.data import TextBatch, TextPair
from kdcli.models import build_student, load_saved, load_teacher
from kdcli.models.transformers.sentence import read_sentence_settings

TEXTS = ["the film was good", "a very dull plot with a weak end and quite poor music", "lovely"]
PROMPT = "the story is "
KINDS = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
FILES = {
    "modules.json": [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in KINDS.items()],
    "sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": False},
    "config_sentence_transformers.json": {
        "__version__": {"sentence_transformers": "5.0.0"},
        "model_type": "SentenceTransformer",
        "prompts": {"query": PROMPT, "document": "", "cluster": "a plot with "},
        "default_prompt_name": "query",
        "similarity_fn_name": "cosine",
    },
    "1_Pooling/config.json": {"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": True},
    "2_Normalize/config.json": {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"},
}
EMBEDDING = DataFacts("reviews", "sentence-embedding", (), 9, 0, 3, 3, label_kind="none")
CLASSES = DataFacts("reviews", "text-classification", ("bad", "good"), 9, 9, 3, 3)


def write(folder, **changes):
    """Write the files, each with the keys that are given for it: ``model={"prompts": {}}``."""
    names = {
        "modules": "modules.json",
        "transformer": "sentence_bert_config.json",
        "model": "config_sentence_transformers.json",
        "pooling": "1_Pooling/config.json",
        "normalize": "2_Normalize/config.json",
    }
    for short, name in names.items():
        content = FILES[name]
        if short in changes:
            content = changes[short] if isinstance(content, list) else {**content, **changes[short]}
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(bert_folder, tmp_path):
    """A BERT with all files of sentence-transformers."""
    AutoModel.from_pretrained(bert_folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)
    return write(tmp_path)


@torch.no_grad()
def embeddings(folder, texts, length=12):
    """The mean of the last hidden states of each text by itself, at length 1."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    found = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        found.append(model(**inputs).last_hidden_state[0].mean(dim=0))
    return torch.nn.functional.normalize(torch.stack(found), dim=1)


@torch.no_grad()
def pooled(model, texts=TEXTS):
    return model(model.prepare(TextBatch(texts=list(texts), targets=torch.zeros(0), samples=torch.arange(len(texts)))), Reads(("pooled",))).features["pooled"]  # fmt: skip


def load(folder, **options):
    return load_teacher(TeacherConfig(name=str(folder), **options), seed=0, task="sentence-embedding")


def test_the_default_prompt_stands_before_every_text(folder):
    teacher = load(folder)
    assert teacher.preprocessing.prompt == PROMPT
    torch.testing.assert_close(pooled(teacher), embeddings(folder, [PROMPT + text for text in TEXTS]))
    assert "Its prompts cluster are for other uses" in teacher.preprocessing.remarks[0]
    for asked in ("", "a scene: "):
        torch.testing.assert_close(
            pooled(load(folder, prompt=asked)), embeddings(folder, [asked + text for text in TEXTS])
        )
    with pytest.raises(UserError, match="these are pairs"):
        teacher.prepare(TextBatch(texts=[TextPair("a", "b")], targets=torch.zeros(1), samples=torch.zeros(1)))


def test_without_a_default_no_prompt_is_used_and_it_is_said(folder):
    write(folder, model={"default_prompt_name": None, "similarity_fn_name": "dot"})
    teacher = load(folder)
    torch.testing.assert_close(pooled(teacher), embeddings(folder, TEXTS))
    query, similarity = teacher.preprocessing.remarks
    assert "query, cluster" in query
    assert "similarity is dot" in similarity


def test_small_letters(make_byte_tokenizer, tmp_path):
    """A tokenizer that tells letters apart is told not to."""
    tokenizer = make_byte_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    transformers.BertModel(
        transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.2, **sizes)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loud = [text.upper() for text in TEXTS]
    for lower in (True, False):
        write(tmp_path, transformer={"do_lower_case": lower, "max_seq_length": 64}, model={"default_prompt_name": None})
        expected = embeddings(tmp_path, TEXTS if lower else loud, length=64)
        torch.testing.assert_close(pooled(load(tmp_path), loud), expected)
    write(tmp_path, transformer={"do_lower_case": True})
    student = build_student(StudentConfig(name=str(tmp_path)), CLASSES, seed=0)
    student.save(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved(loud)["input_ids"] == tokenizer(TEXTS)["input_ids"] != tokenizer(loud)["input_ids"]


def test_a_student_keeps_the_prompt_where_it_embeds(folder, tmp_path):
    config = StudentConfig(name=str(folder), pretrained=True)
    student = build_student(config, EMBEDDING, seed=0).eval()
    assert student.preprocessing.prompt == PROMPT
    assert any("layers that come after its pooling" in remark for remark in student.preprocessing.remarks)
    student.save(tmp_path / "saved")
    again = load_saved(tmp_path / "saved")
    expected = embeddings(folder, [PROMPT + text for text in TEXTS])
    torch.testing.assert_close(torch.nn.functional.normalize(pooled(again), dim=1), expected)
    settings = json.loads((tmp_path / "saved" / "config_sentence_transformers.json").read_text())
    assert settings["prompts"][settings["default_prompt_name"]] == PROMPT
    classifier = build_student(config, CLASSES, seed=0)
    assert classifier.preprocessing.prompt == ""
    assert any(repr(PROMPT) in remark for remark in classifier.preprocessing.remarks)
    classifier.save(tmp_path / "classifier")
    assert not (tmp_path / "classifier" / "config_sentence_transformers.json").exists()


def module(kind, path):
    return {"path": path, "type": f"sentence_transformers.models.{kind}"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"truncate_dim": 64}}, r"sets 'truncate_dim' to 64, a setting that kdcli does not know"),
        ({"model": {"model_type": "SparseEncoder"}}, "sets model_type to 'SparseEncoder'"),
        ({"model": {"default_prompt_name": "passage"}}, "default_prompt_name is 'passage', and the prompts are query"),
        ({"model": {"prompts": ["query: "]}}, "prompts is"),
        ({"transformer": {"do_lower_case": "yes"}}, "do_lower_case is 'yes'"),
        ({"transformer": {"model_args": {"dtype": "float16"}}}, "sets 'model_args'"),
        ({"transformer": {"transformer_task": "fill-mask"}}, "sets transformer_task to 'fill-mask'"),
        ({"pooling": {"include_prompt": False}}, "leaves the prompt 'the story is ' out of its pooling"),
        ({"pooling": {"pooling_mode": ["cls", "mean"]}}, "pools by"),
        ({"pooling": {"layers": 3}}, "sets 'layers' to 3"),
        ({"normalize": {"module_input_name": "token_embeddings"}}, "module_input_name to 'token_embeddings'"),
        ({"modules": [module("Router", "")]}, "a module 'Router', which kdcli does not have"),
        ({"modules": [module("Transformer", "")]}, "lists Transformer, and kdcli reads"),
        ({"modules": [module("Transformer", "0_T"), module("Pooling", "1_Pooling")]}, "Transformer in the folder 0_T"),
    ],
)
def test_what_is_not_known_is_refused(changes, message, folder):
    write(folder, **changes)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_a_prompt_outside_the_pooling_can_be_left_out(folder):
    write(folder, pooling={"include_prompt": False})
    torch.testing.assert_close(pooled(load(folder, prompt="")), embeddings(folder, TEXTS))


def test_settings_of_other_names_and_of_today(folder):
    """As sentence-transformers 6 writes them, and as its first versions called the file of other kinds."""
    (folder / "sentence_bert_config.json").rename(folder / "sentence_roberta_config.json")
    assert read_sentence_settings(folder).max_length == 12
    today = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
    }
    (folder / "sentence_bert_config.json").write_text(json.dumps(today))
    assert read_sentence_settings(folder).max_length is None


def test_the_plan_says_the_prompt_and_the_export_has_it(folder, run_cli, tmp_path, reviews):
    models = ("--teacher", folder, "--student", folder, "--set", "student.pretrained=true")
    options = ("--data", reviews, "--task", "sentence-embedding", "--epochs", "0", "--device", "cpu", "--output", "run")
    outcome = run_cli("distill", *models, *options)
    assert outcome.exit_code == 0, outcome.stderr
    decisions = {
        entry["name"]: entry for entry in json.loads((tmp_path / "run" / "plan.json").read_text())["decisions"]
    }
    for role in ("teacher", "student"):
        assert decisions[f"{role} input"]["value"].endswith(f"pooled by mean, after the prompt {PROMPT!r}")
        assert "Its prompts cluster are for other uses" in decisions[f"{role} input"]["reason"]
    assert run_cli("export", "run", "--output", "out").exit_code == 0
    settings = read_sentence_settings(tmp_path / "out")
    assert (settings.prompt, settings.max_length, settings.pooling) == (PROMPT, 12, "mean")
    refused = run_cli(
        "distill", "--task", "masked-lm", *models, "--data", reviews, "--set", "teacher.prompt=x", "--output", "other"
    )
    assert refused.exit_code == 2
    assert "teacher.prompt" in refused.stderr
