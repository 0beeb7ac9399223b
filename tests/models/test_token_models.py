"""transformers' language models from tiny configs, each against what transformers itself computes."""

import copy
import json

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.config.methods import LogitKDOptions
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.data import Masking, TextBatch, TextSource, cut_into_tokens
from kdcli.methods import build_method
from kdcli.methods.base import Context
from kdcli.models import build_student, load_saved, load_teacher
from kdcli.models.transformers.tokens import HFTokenModel
from kdcli.tasks import task_class

TEXTS = ["the film was good", "a very dull plot with a weak end and quite poor music", "lovely film"]
PADDING = 5
"""So many more tokens have the models than their tokenizers."""

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SMALL |= {"initializer_range": 0.5}  # with the usual 0.02 all logits of such widths are all but 0
BERT = SMALL | {"max_position_embeddings": 64}
ROBERTA = SMALL | {"max_position_embeddings": 66, "pad_token_id": 0}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
LLAMA = BERT | {"num_key_value_heads": 1, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.5}
GPT2 |= {"bos_token_id": 3, "eos_token_id": 3}
# config class: its arguments, the layer that is tapped
MASKED = {
    "Bert": (BERT, "encoder.layer.0"),
    "DistilBert": (
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "initializer_range": 0.5},
        "transformer.layer.0",
    ),
    "Roberta": (ROBERTA, "encoder.layer.0"),
    "Albert": (BERT | {"embedding_size": 8}, None),
    "Electra": (BERT | {"embedding_size": 8}, "encoder.layer.0"),
    "DebertaV2": (BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, "encoder.layer.0"),
    "MPNet": (ROBERTA, "encoder.layer.0"),
    "ModernBert": (BERT | SPECIAL | {"global_attn_every_n_layers": 2, "local_attention": 8}, "layers.0"),
}
CAUSAL = {
    "GPT2": (GPT2, "h.0"),
    "OPT": (
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "init_std": 0.5}
        | {"word_embed_proj_dim": 8, "max_position_embeddings": 64},
        "decoder.layers.0",
    ),
    "Llama": (LLAMA, "layers.0"),
    "Llama tied": (LLAMA | {"tie_word_embeddings": True}, "layers.0"),
    "Qwen2": (LLAMA, "layers.0"),
    "Mistral": (LLAMA, "layers.0"),
    "Gemma2": (LLAMA | {"head_dim": 8, "final_logit_softcapping": 3.0}, "layers.0"),
    "Granite": (LLAMA | {"logits_scaling": 8.0}, "layers.0"),
    "Cohere": (LLAMA | {"logit_scale": 0.25}, "layers.0"),
    "Phi": (LLAMA | {"partial_rotary_factor": 0.5}, "layers.0"),
    "GPTJ": (GPT2 | {"rotary_dim": 4}, "h.0"),
}
TASKS = {"masked-lm": (MASKED, AutoModelForMaskedLM), "causal-lm": (CAUSAL, AutoModelForCausalLM)}
CASES = [(task, name) for task, (models, _) in TASKS.items() for name in models]


def data_of(task):
    return DataFacts("reviews", task, (), 9, 9, 3, 3, label_kind="tokens")


def batch_of(model, task, texts=TEXTS):
    """The texts' tokens, padded, as training gets them."""
    tokenizer, masking = model.tokenizer, None
    if task == "masked-lm":
        special = frozenset(tokenizer.all_special_ids)
        masking = Masking(0.3, tokenizer.mask_token_id, special, len(tokenizer), 0)
    source = TextSource(tuple(texts), (-1,) * len(texts), split="train")
    return cut_into_tokens(source, tokenizer, max_length=64, masking=masking).batch(range(len(texts)), 1)


def logits_of(output):
    return output.logits if output.vocabulary is None else output.vocabulary.dense()


def config_of(name, vocab_size):
    sizes = TASKS["masked-lm"][0].get(name) or TASKS["causal-lm"][0][name]
    return getattr(transformers, f"{name.split()[0]}Config")(vocab_size=vocab_size, **sizes[0])


@pytest.fixture(scope="module")
def tokenizers(make_tokenizer):
    return {"masked-lm": make_tokenizer(kind="masked"), "causal-lm": make_tokenizer(kind="gpt2")}


@pytest.fixture(params=CASES, ids=lambda case: case[1])
def case(request, tokenizers, tmp_path):
    """A folder with the weights of a model whose vocabulary is padded, and its tokenizer; the task, the layer to tap.

    Qwen2's own kind of tokenizer adds a token.
    """
    task, name = request.param
    models, auto = TASKS[task]
    torch.manual_seed(0)
    native = auto.from_config(config_of(name, len(tokenizers[task]) + PADDING))
    for parameter_name, parameter in native.named_parameters():
        if parameter_name.endswith("bias"):  # as initialised they are 0, and nobody would miss them
            torch.nn.init.normal_(parameter)
    native.save_pretrained(tmp_path)
    tokenizers[task].save_pretrained(tmp_path)
    return tmp_path, task, models[name][1]


@torch.no_grad()
def test_logits_and_features_are_transformers_own(case):
    folder, task, layer = case
    teacher = load_teacher(TeacherConfig(name=str(folder)), seed=0, task=task)
    assert isinstance(teacher, HFTokenModel)
    native = TASKS[task][1].from_pretrained(folder).eval()
    size = native.config.vocab_size
    assert (teacher.facts.task, teacher.facts.num_classes, teacher.preprocessing.pooling) == (task, size, "none")
    assert teacher.preprocessing.vocab_size == len(teacher.tokenizer) < size
    prefix = f"{native.base_model_prefix}." if hasattr(native, native.base_model_prefix) else ""
    taps = ["pooled"] if layer is None else ["pooled", prefix + layer]
    teacher.open_taps(taps)

    batch = batch_of(teacher, task)
    real, predicted = batch.attention_mask.bool(), batch.predicted
    assert predicted.sum() < real.sum() < real.numel()
    output = native(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    ours = teacher(teacher.prepare(batch), Reads(tuple(taps)) | teacher.predictions)
    assert (ours.vocabulary is None) == (task == "masked-lm")
    torch.testing.assert_close(logits_of(ours), output.logits[predicted], rtol=1e-4, atol=1e-4)
    labels = torch.full_like(batch.input_ids, -100)
    if task == "masked-lm":
        labels[predicted] = batch.targets
    else:
        labels[real] = batch.input_ids[real]
    own = native(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
    logits = ours.logits if ours.vocabulary is None else ours.vocabulary
    loss = task_class(task)().supervised_loss(logits, batch.targets, label_smoothing=0.0)
    torch.testing.assert_close(loss, own, rtol=1e-4, atol=1e-5)
    assert output.logits.std() > 0.1
    encoder = native.get_submodule(prefix[:-1]) if prefix else native
    last = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    torch.testing.assert_close(ours.features["pooled"], last[real], rtol=1e-4, atol=1e-4)
    if layer is not None:
        torch.testing.assert_close(ours.features[prefix + layer], output.hidden_states[1][real], rtol=1e-4, atol=1e-4)
    assert teacher.facts.feature_dims == {tap: features.shape[1] for tap, features in ours.features.items()}
    # Features alone are the same, and so are a text's tokens without any padding.
    alone = teacher(teacher.prepare(batch), Reads(tuple(taps)))
    assert alone.logits is alone.vocabulary is None
    shorter = batch_of(teacher, task, TEXTS[:1])
    length = shorter.attention_mask.sum()
    by_itself = teacher(teacher.prepare(shorter), Reads(("pooled",))).features["pooled"]
    for tap in taps:
        torch.testing.assert_close(alone.features[tap], ours.features[tap], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_itself, ours.features["pooled"][:length], rtol=1e-4, atol=1e-4)


def test_a_student_trains_every_parameter_and_is_what_transformers_loads(case, tmp_path_factory):
    folder, task, _ = case
    student = build_student(StudentConfig(name=str(folder)), data_of(task), seed=3)
    batch = batch_of(student, task)
    inputs = student.prepare(batch)
    assert student.training
    output = student(inputs, Reads(("pooled",)) | student.predictions)
    (logits_of(output).square().sum() + output.features["pooled"].sum()).backward()
    idle = [name for name, parameter in student.named_parameters() if parameter.grad is None]
    assert not idle  # several training processes would wait for their gradients

    student.eval()
    saved = tmp_path_factory.mktemp("saved")
    student.save(saved)
    native = TASKS[task][1].from_pretrained(saved).eval()
    again = load_saved(saved)
    copied = copy.deepcopy(student)
    with torch.no_grad():
        ours = student(inputs, Reads(("pooled",)) | student.predictions)
        theirs = again(inputs, Reads(("pooled",)) | again.predictions)
        assert torch.equal(logits_of(theirs), logits_of(ours))
        assert torch.equal(theirs.features["pooled"], ours.features["pooled"])
        dense = native(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[batch.predicted]
        torch.testing.assert_close(dense, logits_of(ours), rtol=1e-4, atol=1e-4)
        assert AutoTokenizer.from_pretrained(saved)(TEXTS)["input_ids"] == student.tokenizer(TEXTS)["input_ids"]
        # An average of the weights is a model of its own.
        expected = logits_of(ours).clone()
        for parameter in student.parameters():
            parameter.zero_()
        found = copied(inputs, Reads(("pooled",)) | copied.predictions)
        assert torch.equal(logits_of(found), expected)
        assert not torch.equal(logits_of(student(inputs)), expected)
        assert (again.facts.task, again.facts.num_classes) == (task, student.facts.num_classes)


def write(folder, module, tokenizer):
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_encoder_is_no_causal_language_model(tokenizers, tmp_path):
    """BERT has a head for it, but without ``is_decoder`` it sees the tokens that it is to predict."""
    tokenizer = tokenizers["masked-lm"]
    write(tmp_path, config_of("Bert", len(tokenizer)), tokenizer)
    with pytest.raises(UserError, match="it looks ahead"):
        build_student(StudentConfig(name=str(tmp_path)), data_of("causal-lm"), seed=0)
    decoder = config_of("Bert", len(tokenizer))
    decoder.is_decoder = True
    decoder.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="more than a linear layer"):
        build_student(StudentConfig(name=str(tmp_path)), data_of("causal-lm"), seed=0)
    write(tmp_path, config_of("DistilBert", len(tokenizer)), tokenizer)
    with pytest.raises(UserError, match="no causal language model of the kind 'distilbert'"):
        build_student(StudentConfig(name=str(tmp_path)), data_of("causal-lm"), seed=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda config: transformers.BertModel(config), "saved as a backbone alone"),
        (lambda config: AutoModelForSequenceClassification.from_config(config), "saved as a classifier of texts"),
        (lambda config: transformers.BertLMHeadModel(config), "saved as a causal language model"),
    ],
)
def test_a_teacher_with_another_head_is_refused(build, message, tokenizers, tmp_path):
    tokenizer = tokenizers["masked-lm"]
    config = config_of("Bert", len(tokenizer))
    config.is_decoder = "causal" in message
    write(tmp_path, build(config), tokenizer)
    with pytest.raises(UserError, match=f"is no masked language model: it was {message}"):
        load_teacher(TeacherConfig(name=str(tmp_path)), seed=0, task="masked-lm")
    untrained = load_teacher(TeacherConfig(name=f"random:{tmp_path}"), seed=0, task="masked-lm")
    assert (untrained.facts.task, untrained.facts.pretrained) == ("masked-lm", False)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("task", TASKS)
def test_rows_that_are_no_tokens_lose_their_probability(task, divergence, tokenizers, tmp_path):
    """By distillation alone, whose teacher gives them some, too; what it gives the tokens is what is learnt."""
    torch.manual_seed(0)
    tokenizer, size = tokenizers[task], len(tokenizers[task])
    config = config_of("Bert" if task == "masked-lm" else "GPT2", size + PADDING)
    folders = [write(tmp_path / name, TASKS[task][1].from_config(config), tokenizer) for name in ("teacher", "student")]
    teacher = load_teacher(TeacherConfig(name=str(folders[0])), seed=0, task=task)
    own = StudentConfig(name=str(folders[1]), pretrained=True)
    student = build_student(own, data_of(task), seed=1).eval()
    options = LogitKDOptions(divergence=divergence, temperature=1.0)
    method = build_method(options, Context(task_class(task)(), student.facts, teacher.facts, ()))
    inputs = student.prepare(batch_of(student, task))
    target = logits_of(teacher(inputs)).detach()[:, :size].softmax(dim=1)
    optimizer, outside, apart = torch.optim.Adam(student.parameters(), lr=0.02), [], []
    for _ in range(80):
        output = student(inputs)
        found = logits_of(output).softmax(dim=1)
        outside.append(found[:, size:].sum(dim=1).mean().item())
        apart.append((found[:, :size] - target).abs().sum(dim=1).mean().item())
        optimizer.zero_grad()
        method(output, teacher(inputs), torch.zeros(0), torch.zeros(0)).mean.backward()
        optimizer.step()
    assert outside[0] > 0.02 > 5e-3 > outside[-1]
    assert apart[-1] < apart[0] / 3


def test_an_encoder_with_a_decoder_is_refused(tokenizers, tmp_path):
    tokenizer = tokenizers["masked-lm"]
    config = transformers.BartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64,
    )  # fmt: skip
    write(tmp_path, config, tokenizer)
    for task in ("masked-lm", "causal-lm"):
        with pytest.raises(UserError, match="an encoder with a decoder"):
            build_student(StudentConfig(name=str(tmp_path)), data_of(task), seed=0)


@torch.no_grad()
def test_of_plain_texts_every_token_is_predicted(tokenizers, tmp_path):
    """What the export compares."""
    tokenizer = tokenizers["causal-lm"]
    write(tmp_path, config_of("GPT2", len(tokenizer)), tokenizer)
    model = load_teacher(TeacherConfig(name=f"random:{tmp_path}"), seed=0, task="causal-lm")
    inputs = model.prepare(TextBatch(texts=TEXTS, targets=torch.zeros(3), samples=torch.arange(3)))
    tokens = tokenizer(TEXTS)["input_ids"]
    expected = [model.module(input_ids=torch.tensor([ids])).logits[0] for ids in tokens]
    found = model(inputs).vocabulary.dense()
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_a_student_of_a_causal_teachers_layers(tokenizers, tmp_path):
    """GPT-2 calls its numbers n_layer, n_embd, n_head and n_inner."""
    tokenizer = tokenizers["causal-lm"]
    config = config_of("GPT2", len(tokenizer) + PADDING)
    write(tmp_path, AutoModelForCausalLM.from_config(config), tokenizer)
    asked = TeacherConfig(name=str(tmp_path))
    teacher = load_teacher(asked, seed=0, task="causal-lm")

    def student(name):
        return build_student(
            StudentConfig(name=name), data_of("causal-lm"), teacher=teacher, seed=0, source=(asked, teacher)
        )

    half = student("teacher?layers=1")
    assert (half.module.config.n_layer, half.facts.num_classes) == (1, len(tokenizer) + PADDING)
    ours, theirs = half.module.state_dict(), teacher.module.state_dict()
    assert "copied from the teacher" in half.facts.weights
    assert ours.keys() < theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    narrow = student("teacher?layers=1&width=0.5").module.config
    assert (narrow.n_embd, narrow.n_layer, narrow.n_embd % narrow.n_head) == (8, 1, 0)
    with pytest.raises(UserError, match="layers"):
        student("teacher?layers=3")


def test_a_student_without_a_tokenizer_gets_the_teachers(tokenizers, tmp_path):
    tokenizer = tokenizers["causal-lm"]
    write(
        tmp_path / "teacher", AutoModelForCausalLM.from_config(config_of("GPT2", len(tokenizer) + PADDING)), tokenizer
    )
    config_of("Llama", 32000).save_pretrained(tmp_path / "student")
    teacher = load_teacher(TeacherConfig(name=str(tmp_path / "teacher")), seed=0, task="causal-lm")
    for name in (
        str(tmp_path / "student"),
        "hf:llama?hidden_size=16&num_hidden_layers=1&num_attention_heads=2&num_key_value_heads=1",
    ):
        student = build_student(StudentConfig(name=name), data_of("causal-lm"), teacher=teacher, seed=0)
        assert student.facts.num_classes == teacher.facts.num_classes - PADDING == len(tokenizer)
        assert student.tokenizer.get_vocab() == tokenizer.get_vocab()
        assert student.module.config.vocab_size == len(tokenizer)
        special = {
            key: value for key, value in json.loads(student.module.config.to_json_string()).items() if "token_id" in key
        }
        assert all(value is None or value < len(tokenizer) for value in special.values()), special


def test_pretrained_weights_without_a_head_make_no_student(tokenizers, tmp_path):
    """A language model's head is not made up: it would have to be trained over the whole vocabulary."""
    tokenizer = tokenizers["masked-lm"]
    write(tmp_path, transformers.BertModel(config_of("Bert", len(tokenizer))), tokenizer)
    config = StudentConfig(name=str(tmp_path), pretrained=True)
    with pytest.raises(UserError, match="cls"):
        build_student(config, data_of("masked-lm"), seed=0)
