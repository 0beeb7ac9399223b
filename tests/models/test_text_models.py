"""transformers' architectures for text from tiny configs, each against what transformers itself computes."""

import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.data import TextBatch
from kdcli.models import build_student, load_saved, load_teacher
from kdcli.models.transformers.padding import pool

TEXTS = ["the film was good", "a very dull plot with a weak end and quite poor music", "lovely"]
LABELS = ("bad", "fine", "good")
DATA = DataFacts("reviews", "text-classification", LABELS, 9, 9, 3, 3)
FREE = DataFacts("reviews", "sentence-embedding", (), 9, 0, 3, 3, label_kind="none")

BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SHORT = {"max_position_embeddings": 64}
T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 0,
}
LLAMA = BERT | SHORT | {"num_key_value_heads": 1}
OPT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "word_embed_proj_dim": 16}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
MODERN = BERT | SHORT | SPECIAL | {"global_attn_every_n_layers": 2, "local_attention": 8}
DEBERTA = BERT | SHORT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
# config class: its arguments, the tokenizer's kind, the layer that is tapped, pooling by itself
ARCHITECTURES = {
    "Bert": (BERT | SHORT, "bert", "encoder.layer.0", "mean"),
    "DistilBert": ({"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}, "bert", "transformer.layer.0", "mean"),
    "Roberta": (BERT | {"max_position_embeddings": 66, "pad_token_id": 0}, "bert", "encoder.layer.0", "mean"),
    "XLMRoberta": (BERT | {"max_position_embeddings": 66, "pad_token_id": 0}, "bert", "encoder.layer.0", "mean"),
    "Albert": (BERT | SHORT | {"embedding_size": 8}, "bert", "embeddings", "mean"),
    "Electra": (BERT | SHORT | {"embedding_size": 8}, "bert", "encoder.layer.0", "mean"),
    "DebertaV2": (DEBERTA, "bert", "encoder.layer.0", "mean"),
    "MPNet": (BERT | {"max_position_embeddings": 66, "pad_token_id": 0}, "bert", "encoder.layer.0", "mean"),
    "ModernBert": (MODERN, "bert", "layers.0", "mean"),
    "T5": (T5, "t5", "encoder.block.0", "mean"),
    "GPT2": ({"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}, "gpt2", "h.0", "last"),
    "OPT": (OPT | SHORT, "gpt2", "decoder.layers.0", "last"),
    "Llama": (LLAMA, "gpt2", "layers.0", "last"),
    "Qwen2": (LLAMA, "gpt2", "layers.0", "last"),
    "Mistral": (LLAMA, "gpt2", "layers.0", "last"),
}


def batch_of(texts):
    return TextBatch(texts=list(texts), targets=torch.zeros(len(texts)), samples=torch.arange(len(texts)))


@pytest.fixture(params=ARCHITECTURES)
def architecture(request, make_tokenizer, tmp_path):
    """A folder with a config and a tokenizer; its name, the layer to tap, the pooling."""
    sizes, kind, layer, pooling = ARCHITECTURES[request.param]
    tokenizer = make_tokenizer(kind=kind)
    config = getattr(transformers, f"{request.param}Config")(vocab_size=len(tokenizer) + 2, **sizes)  # Qwen adds one
    config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path, layer, pooling


def hidden_states(model, text):
    """Return the last and all hidden states of one text alone, without padding, by transformers."""
    tokens = model.prepare(batch_of([text]))
    encoder = model.module.get_encoder() if model.module.config.is_encoder_decoder else model.module.base_model
    return encoder(**tokens, output_hidden_states=True)


@torch.no_grad()
def test_a_teacher_pools_each_text_as_if_it_were_alone(architecture):
    folder, layer, pooling = architecture
    teacher = load_teacher(TeacherConfig(name=f"random:{folder}"), seed=0, task="text-classification")
    assert teacher.facts.task == "sentence-embedding"
    assert teacher.preprocessing.pooling == pooling
    teacher.open_taps([layer])
    features = teacher(teacher.prepare(batch_of(TEXTS)), Reads(("pooled", layer))).features
    assert teacher.facts.feature_dims == {"pooled": 16, layer: features[layer].shape[1]}
    for index, text in enumerate(TEXTS):
        output = hidden_states(teacher, text)
        last = output.last_hidden_state[0]
        expected = last[-1] if pooling == "last" else last.mean(dim=0)
        torch.testing.assert_close(features["pooled"][index], expected, rtol=1e-4, atol=1e-5)
        if layer != "embeddings":  # ALBERT's one layer runs twice, its embeddings are narrower than its states
            torch.testing.assert_close(features[layer][index], output.hidden_states[1][0].mean(0), rtol=1e-4, atol=1e-5)


def test_a_student_is_what_transformers_loads(architecture, tmp_path_factory):
    folder, _, _ = architecture
    student = build_student(StudentConfig(name=str(folder)), DATA, seed=3)
    inputs = student.prepare(batch_of(TEXTS))
    student.train()
    output = student(inputs, Reads(("pooled", "embedding"), heads=("logits",)))
    (output.logits.sum() + output.features["pooled"].sum()).backward()
    unused = [name for name, parameter in student.module.named_parameters() if parameter.grad is None]
    assert not unused  # several training processes would wait for their gradients

    student.eval()
    saved = tmp_path_factory.mktemp("saved")
    student.save(saved)
    native = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    tokens = AutoTokenizer.from_pretrained(saved)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    assert torch.equal(tokens["input_ids"], inputs["input_ids"])
    with torch.no_grad():
        logits = native(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits
        ours = student(inputs, Reads(("pooled", "embedding")) | student.predictions)
        torch.testing.assert_close(ours.logits, logits, rtol=0, atol=1e-6)
        assert list(native.config.id2label.values()) == list(LABELS)
        again = load_saved(saved)
        assert again.preprocessing.pooling == student.preprocessing.pooling
        theirs = again(inputs, Reads(("pooled", "embedding")) | again.predictions)
        for tap in ("pooled", "embedding"):
            assert torch.equal(theirs.features[tap], ours.features[tap])
        # The classifier's last layer, of the embedding, gives the logits.
        last = [m for m in student.module.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 3][-1]
        torch.testing.assert_close(last(ours.features["embedding"]), ours.logits, rtol=0, atol=1e-5)
        pooled = student(inputs, Reads(("pooled",)))
        assert pooled.logits is None
        torch.testing.assert_close(pooled.features["pooled"], ours.features["pooled"], rtol=0, atol=1e-6)
    copied = copy.deepcopy(student)
    with torch.no_grad():
        student.module.get_input_embeddings().weight.zero_()
        torch.testing.assert_close(
            copied(inputs, Reads(("pooled",)) | copied.predictions).features["pooled"], ours.features["pooled"]
        )


def test_a_student_without_labels_has_no_head_and_no_idle_parameters(architecture):
    student = build_student(StudentConfig(name=str(architecture[0])), FREE, seed=3)
    assert student.facts.num_classes == 0
    student(student.prepare(batch_of(TEXTS)), Reads(("pooled",))).features["pooled"].sum().backward()
    assert not [name for name, parameter in student.module.named_parameters() if parameter.grad is None]


def test_poolings_by_hand():
    hidden = torch.tensor([[[1.0, -5.0], [3.0, 2.0], [100.0, 100.0]], [[4.0, 4.0], [6.0, 0.0], [8.0, 2.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    expected = {
        "mean": [[2.0, -1.5], [6.0, 2.0]],
        "max": [[3.0, 2.0], [8.0, 4.0]],
        "cls": [[1.0, -5.0], [4.0, 4.0]],
        "last": [[3.0, 2.0], [8.0, 2.0]],
    }
    for pooling, values in expected.items():
        assert pool(hidden, mask, pooling).tolist() == values


@torch.no_grad()
def test_sentence_transformers_settings_are_followed(bert_folder, tmp_path):
    """Pooling by the class token, 20 tokens, a Dense layer with tanh, length 1: computed here from its files."""
    module = transformers.AutoModel.from_pretrained(bert_folder)
    module.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    dense = {
        "in_features": 32,
        "out_features": 5,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": 6},
        "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        "2_Dense/config.json": dense,
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    weight, bias = torch.randn(5, 32), torch.randn(5)
    save_file({"linear.weight": weight, "linear.bias": bias}, tmp_path / "2_Dense/model.safetensors")

    teacher = load_teacher(TeacherConfig(name=str(tmp_path)), seed=0, task="text-classification")
    assert (teacher.preprocessing.pooling, teacher.preprocessing.max_length) == ("cls", 6)
    assert teacher.facts.feature_dims["pooled"] == 5
    inputs = teacher.prepare(batch_of(TEXTS))
    assert inputs["input_ids"].shape[1] == 6
    first = module.eval()(**inputs).last_hidden_state[:, 0]
    expected = torch.nn.functional.normalize(torch.tanh(first @ weight.T + bias), dim=1)
    pooled = teacher(inputs, Reads(("pooled",))).features["pooled"]
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-6)

    asked = load_teacher(
        TeacherConfig(name=str(tmp_path), pooling="max", max_length=9), seed=0, task="text-classification"
    )
    assert (asked.preprocessing.max_length, asked.facts.feature_dims["pooled"]) == (9, 32)

    save_file({"linear.weight": weight / 0, "linear.bias": bias}, tmp_path / "2_Dense/model.safetensors")
    with pytest.raises(UserError, match=r"infinite or undefined values \(linear.weight\)"):
        load_teacher(TeacherConfig(name=str(tmp_path)), seed=0, task="text-classification")

    modules[2]["type"] = "evil.code.Runner"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="'Runner', which kdcli does not have"):
        load_teacher(TeacherConfig(name=str(tmp_path)), seed=0, task="text-classification")
    modules[2] = {"path": "../outside", "type": "sentence_transformers.models.Dense"}
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="no folder beside it"):
        load_teacher(TeacherConfig(name=str(tmp_path)), seed=0, task="text-classification")


def test_a_query_changes_the_config(bert_folder):
    name = f"hf:{bert_folder}?num_hidden_layers=1&hidden_act=relu&hidden_size=16"
    student = build_student(StudentConfig(name=name), DATA, seed=0)
    config = student.module.config
    assert (config.num_hidden_layers, config.hidden_act, config.hidden_size) == (1, "relu", 16)
    with pytest.raises(UserError, match=r"no argument 'num_layrs'. Did you mean num_hidden_layers"):
        build_student(StudentConfig(name=f"{bert_folder}?num_layrs=1"), DATA, seed=0)
    with pytest.raises(UserError, match="can't be built"):
        build_student(StudentConfig(name=f"{bert_folder}?hidden_size=15"), DATA, seed=0)


def test_a_kind_of_network_with_the_teachers_tokenizer(bert_folder):
    teacher = load_teacher(TeacherConfig(name=str(bert_folder)), seed=0, task="text-classification")
    name = "hf:distilbert?dim=16&n_layers=1&n_heads=2&hidden_dim=24"
    student = build_student(StudentConfig(name=name), DATA, teacher=teacher, seed=0)
    assert student.module.config.vocab_size == len(teacher.tokenizer)
    with pytest.raises(UserError, match="no published weights"):
        load_teacher(TeacherConfig(name="hf:distilbert"), seed=0, task="text-classification")


def test_a_student_of_the_teachers_layers(bert_folder):
    config = TeacherConfig(name=str(bert_folder))
    teacher = load_teacher(config, seed=0, task="text-classification")
    for data in (DATA, FREE):
        student = build_student(
            StudentConfig(name="teacher?layers=1"), data, teacher=teacher, seed=0, source=(config, teacher)
        )
        assert "copied from the teacher" in student.facts.weights
        ours, theirs = student.module.base_model.state_dict(), teacher.module.base_model.state_dict()
        same = [name for name, tensor in ours.items() if name in theirs and torch.equal(tensor, theirs[name])]
        assert {name for name in ours if not name.startswith("pooler")} == set(same)
        assert student.module.config.num_hidden_layers == 1


def test_a_student_without_a_tokenizer_takes_the_teachers(bert_folder, distilbert_folder):
    config = StudentConfig(name=str(distilbert_folder))
    with pytest.raises(UserError, match="no tokenizer, and there is no teacher"):
        build_student(config, DATA, seed=0)
    teacher = load_teacher(TeacherConfig(name=str(bert_folder), max_length=10), seed=0, task="text-classification")
    student = build_student(config, DATA, teacher=teacher, seed=0)
    assert student.module.config.vocab_size == len(teacher.tokenizer)
    assert (student.preprocessing.max_length, teacher.preprocessing.max_length) == (10, 10)
    with pytest.raises(UserError, match="has no tokenizer"):
        load_teacher(TeacherConfig(name=f"random:{distilbert_folder}"), seed=0, task="text-classification")


def test_a_model_without_a_table_of_tokens(make_tokenizer, tmp_path):
    """CANINE hashes its characters, so that any tokenizer goes with it."""
    sizes = BERT | {
        "num_hash_functions": 2,
        "num_hash_buckets": 32,
        "downsampling_rate": 2,
        "upsampling_kernel_size": 2,
    }
    transformers.CanineConfig(max_position_embeddings=128, **sizes).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    student = build_student(StudentConfig(name=str(tmp_path)), DATA, seed=0)
    inputs = student.prepare(batch_of(TEXTS[:1]))  # padding would change it
    torch.testing.assert_close(student.eval()(inputs).logits, student.module(**inputs).logits)


def test_the_text_part_of_a_larger_config_has_the_tokens(make_tokenizer, tmp_path):
    text = LLAMA | {"head_dim": 8, "vocab_size": 50}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    vision |= {"image_size": 32, "patch_size": 8}
    transformers.Gemma3Config(text_config=text, vision_config=vision).save_pretrained(tmp_path)
    tokenizer = make_tokenizer(kind="gpt2")
    tokenizer.save_pretrained(tmp_path)
    student = build_student(StudentConfig(name=str(tmp_path)), DATA, seed=0)
    assert student.module.config.text_config.vocab_size == len(tokenizer)
    assert student.module.config.text_config.pad_token_id == student.tokenizer.pad_token_id
    inputs = student.prepare(batch_of(TEXTS))
    torch.testing.assert_close(student.eval()(inputs).logits, student.module(**inputs).logits)


def test_what_does_not_fit_is_refused(bert_folder, hf_folder):
    with pytest.raises(UserError, match="at most 64 tokens, not 65"):
        load_teacher(TeacherConfig(name=str(bert_folder), max_length=65), seed=0, task="text-classification")
    with pytest.raises(UserError, match="has no tokenizer"):
        load_teacher(TeacherConfig(name=str(hf_folder)), seed=0, task="text-classification")
    teacher = load_teacher(TeacherConfig(name=str(bert_folder)), seed=0, task="text-classification")
    with pytest.raises(UserError, match=r"Did you mean encoder\.layer\.0"):
        teacher.open_taps(["encoder.layr.0"])


def test_longformer_s_features_are_the_same_with_and_without_logits(make_tokenizer, tmp_path):
    """Its classifier, unlike its encoder alone, lets the first token attend to all."""
    tokenizer = make_tokenizer()
    sizes = BERT | {"max_position_embeddings": 66, "pad_token_id": 0, "attention_window": [8, 8]}
    transformers.LongformerConfig(vocab_size=len(tokenizer), **sizes).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    student = build_student(StudentConfig(name=str(tmp_path)), DATA, seed=0).eval()
    inputs = student.prepare(batch_of(TEXTS))
    with torch.no_grad():
        both, alone = (
            student(inputs, Reads(("pooled",), heads=("logits",) if logits else ())).features["pooled"]
            for logits in (True, False)
        )
    torch.testing.assert_close(alone, both)
