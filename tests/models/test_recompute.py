"""Activation checkpointing: less is kept, and every number is the same, bit for bit."""

import copy

import pytest
import torch
import transformers

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig
from kdcli.models import build_student


def student_of(name, *, noun="image", **options):
    task = "text-classification" if noun == "text" else "image-classification"
    data = DataFacts("made-up", task, ("a", "b", "c"), 8, 8, 8, 8)
    return build_student(StudentConfig(name=name, **options), data, seed=0)


def step(model, reads):
    """Everything that a pass and its gradient leave behind, dropout included."""
    model.train().zero_grad()
    torch.manual_seed(1)
    output = model(model.example(4), reads)
    found = (*output.features.values(), *output.maps.values(), *output.heads.values())
    loss = sum(((value - 0.3) ** 2).mean() for value in found)
    edges = [edge for tap in output.edges.values() for edge in tap]
    of_edges = torch.autograd.grad(loss, edges, retain_graph=True)
    loss.backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    return [loss.detach(), torch.rand(1), *of_edges], gradients, state


@pytest.mark.parametrize(
    ("name", "options", "tap"),
    [
        ("test_resnet", {}, "layer2"),  # running statistics; a stage that timm then runs block by block
        ("test_efficientnet", {"drop_path": 0.3}, "blocks.1"),
        ("test_vit?proj_drop_rate=0.2", {"drop_path": 0.3}, "blocks.0.attn"),  # within a block
        ("BERT", {"noun": "text"}, "encoder.layer.0.attention"),  # averaged with a mask
    ],
)
@pytest.mark.parametrize("alone", [False, True], ids=["beside", "alone"])
def test_numbers_are_the_same_and_less_is_kept(name, options, tap, alone, bert_folder):
    text = options.get("noun") == "text"
    plain = student_of(str(bert_folder) if text else name, **options, **({} if text else {"image_size": 32}))
    tap = next(layer for layer, _ in plain.module.named_modules() if layer.endswith(tap))
    plain.open_taps([tap])
    other = copy.deepcopy(plain)
    other.recompute_activations()
    assert other.facts.activation_bytes < plain.facts.activation_bytes
    reads = Reads((tap,)) if alone else Reads((tap, "pooled"), maps=() if text else (tap,), heads=("logits",))
    for _ in range(2):
        expected, got = step(plain, reads), step(other, reads)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None, "a pass that ended early left nothing"


def test_what_cannot_have_it_is_refused(tmp_path):
    with pytest.raises(UserError, match="cifar:resnet8 can't have it: its network has no checkpoints between"):
        student_of("cifar:resnet8").recompute_activations()
    sizes = {"num_channels": 3, "embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}
    transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="transformers has no checkpoints in its ResNetForImageClassification"):
        student_of(str(tmp_path)).recompute_activations()
    pytest.importorskip("segmentation_models_pytorch")
    data = DataFacts("made-up", "semantic-segmentation", ("a", "b"), 8, 8, 8, 8, label_kind="pixels")
    config = StudentConfig(name="smp:linknet/mobilenetv3_small_050?encoder_depth=4", image_size=32)
    with pytest.raises(UserError, match="models of segmentation-models-pytorch have none"):
        build_student(config, data, seed=0).recompute_activations()
