"""A folder's own tokenizer and generation settings stay as they are in what is saved and exported."""

import json

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from kdcli.base.facts import DataFacts
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.data import TextBatch
from kdcli.models import build_student, load_saved, load_teacher

LONG = "the film was good and the plot was dull and the music was weak and the end was poor"
TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
SIZES = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 3, "eos_token_id": 3}
DATA = {
    "causal-lm": DataFacts("d", "causal-lm", (), 9, 9, 3, 3, label_kind="tokens"),
    "text-classification": DataFacts("d", "text-classification", ("bad", "good"), 9, 9, 3, 3),
    "sentence-embedding": DataFacts("d", "sentence-embedding", (), 9, 0, 3, 3, label_kind="none"),
}
SETTINGS = ("padding_side", "truncation_side", "chat_template", "special_tokens_map", "added_tokens_decoder")


@pytest.fixture
def folder(make_tokenizer, tmp_path):
    """A GPT-2 whose tokenizer pads and cuts on the left, has tokens of its own and a template, but none to pad with."""
    tokenizer = make_tokenizer(kind="gpt2", max_length=4096)
    tokenizer.add_tokens(["<own>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(tokenizer) + 5, initializer_range=0.5, **SIZES)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.7, eos_token_id=[3, 1])
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "tokenizer_config.json"  # sides that are set later are not saved
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left", "truncation_side": "left"}))
    return tmp_path / "model"


@pytest.mark.parametrize("task", DATA)
def test_what_is_saved_is_the_folders_own(task, folder, tmp_path):
    own = AutoTokenizer.from_pretrained(folder)
    assert own.pad_token is None
    student = build_student(StudentConfig(name=str(folder), max_length=9), DATA[task], seed=0)
    inputs = student.prepare(TextBatch(texts=[LONG, "good film"], targets=torch.zeros(2), samples=torch.arange(2)))
    assert inputs["attention_mask"].tolist() == [[1] * 9, [1] * 2 + [0] * 7]  # kdcli itself pads on the right
    student.save(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    differing = {name for name in SETTINGS if getattr(saved, name) != getattr(own, name)}
    # A model that reads a text as a whole gets what it needs to: a token to pad with, and the length of its training.
    assert differing == (set() if task == "causal-lm" else {"special_tokens_map"})
    assert saved.pad_token == (None if task == "causal-lm" else "[SEP]")
    assert saved.model_max_length == (4096 if task == "causal-lm" else 9)
    assert saved.get_vocab() == own.get_vocab()
    assert saved.padding_side == "left"
    for part in ("truncation", "padding"):
        assert getattr(saved.backend_tokenizer, part) == getattr(own.backend_tokenizer, part)
    assert load_saved(tmp_path / "saved").preprocessing.max_length == 9


def test_a_text_is_cut_where_its_tokenizer_cuts(folder):
    teacher = load_teacher(TeacherConfig(name=str(folder), max_length=5), seed=0, task="sentence-embedding")
    inputs = teacher.prepare(TextBatch(texts=[LONG], targets=torch.zeros(1), samples=torch.zeros(1)))
    own = AutoTokenizer.from_pretrained(folder)
    assert inputs["input_ids"].tolist() == own([LONG], truncation=True, max_length=5)["input_ids"]
    assert own.convert_ids_to_tokens(inputs["input_ids"][0])[-1] == "poor"
    assert teacher.preprocessing.remarks == ("Its tokenizer cuts long texts at their beginning.",)


@pytest.mark.parametrize("name", ["FOLDER", "teacher?layers=1"])
def test_generation_settings(name, folder, tmp_path):
    asked = TeacherConfig(name=str(folder))
    teacher = load_teacher(asked, seed=0, task="causal-lm")
    config = StudentConfig(name=name.replace("FOLDER", str(folder)))
    student = build_student(config, DATA["causal-lm"], teacher=teacher, seed=0, source=(asked, teacher))
    student.save(tmp_path / "saved")
    saved = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert (saved.do_sample, saved.temperature, saved.eos_token_id) == (True, 0.7, [3, 1])


def test_a_batch_is_generated_like_single_texts(folder, run_cli, tmp_path):
    """By the exported folder's tokenizer, which pads on the left as a decoder's has to."""
    (tmp_path / "texts.txt").write_text("".join(f"{LONG.partition(' and ')[0]} {'very ' * n}good\n" for n in range(40)))
    # GPT-2 numbers positions from the left: a Llama of the same tokenizer does not mind what pads it.
    student = "hf:llama?hidden_size=16&num_hidden_layers=1&num_attention_heads=2&num_key_value_heads=1"
    options = ("--task", "causal-lm", "--data", "texts.txt", "--epochs", "1", "--device", "cpu", "--output", "run")
    options += ("--unchecked-teacher",)  # it has learnt nothing
    outcome = run_cli("distill", "--teacher", folder, "--student", student, *options)
    assert outcome.exit_code == 0, outcome.stderr
    for _ in range(2):  # a second export finds nothing but files of the first
        exported = run_cli("export", "run", "--output", "out")
        assert exported.exit_code == 0, exported.stderr
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.padding_side, tokenizer.chat_template) == ("left", TEMPLATE)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    prompts = ["the film was", LONG]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 3}
    batch = model.generate(**tokenizer(prompts, padding=True, return_tensors="pt"), **options)[:, -4:]
    single = [model.generate(**tokenizer(text, return_tensors="pt"), **options)[0, -4:] for text in prompts]
    assert batch.tolist() == [tokens.tolist() for tokens in single]
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 3
