"""transformers' architectures from tiny configs, each against what transformers itself computes."""

import copy
import dataclasses

import pytest
import torch
import transformers
from PIL import Image
from torchvision.transforms.functional import to_tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.data import Batch
from kdcli.models import build_student, load_saved, load_teacher
from kdcli.models.transformers.build import config_values, read_config
from kdcli.models.transformers.kinds import KINDS, place_of

LABELS = ("ant", "bee", "cat")
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 32, "patch_size": 4}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_channels": 3}
HGNET = {
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 8, 16, 16],
    "stage_mid_channels": [8] * 4,
    "stage_out_channels": [8, 16, 16, 32],
    "stage_num_blocks": [1] * 4,
    "stage_numb_of_layers": [1] * 4,
    "hidden_sizes": [8, 16, 16, 32],
    "depths": [1] * 4,
}
TWO_TOWERS = {
    "text_config": {k: VIT[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    | {"vocab_size": 50, "projection_dim": 16},
    "vision_config": VIT | {"projection_dim": 16},
}
DINO = {key: value for key, value in VIT.items() if key != "intermediate_size"} | {"mlp_ratio": 2}

MAP, SEQUENCE = "map", "sequence"
# config class: its arguments, the child with the backbone, what the backbone returns, tokens before the patches
ARCHITECTURES = {
    "ViT": (VIT, "vit", 1),
    "DeiT": (VIT, "deit", 2),
    "Beit": (VIT, "beit", 1),
    "Dinov2": (DINO, "dinov2", 1),
    "Dinov2WithRegisters": (DINO | {"num_register_tokens": 4}, "dinov2_with_registers", 5),
    "Swin": (SWIN, "swin", 0),
    "Swinv2": (SWIN, "swinv2", 0),
    "CLIP": (TWO_TOWERS, "vision_model", 1),
    "Siglip": (TWO_TOWERS, "vision_model", 0),
    "ConvNext": ({"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "image_size": 64}, "convnext", None),
    "ConvNextV2": ({"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "image_size": 64}, "convnextv2", None),
    "ResNet": (STAGES, "resnet", None),
    "RegNet": (STAGES | {"groups_width": 8}, "regnet", None),
    "MobileNetV2": ({"image_size": 64, "depth_multiplier": 0.25}, "mobilenet_v2", None),
    "EfficientNet": (
        {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
        "efficientnet",
        None,
    ),
    "MobileViT": (
        {"image_size": 64, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 16, 32]},
        "mobilevit",
        None,
    ),
    "Levit": ({"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2]}, "levit", 0),
    "PoolFormer": ({"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}, "poolformer", None),
    "PvtV2": (
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4, "image_size": 64},
        "pvt_v2",
        None,
    ),
    "Pvt": (
        {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "image_size": 64},
        "pvt",
        1,
    ),
    "Cvt": ({"embed_dim": [8, 16, 32], "depth": [1, 2, 3], "num_heads": [1, 1, 2]}, "cvt", None),
}


def config_of(name, **extra):
    if name == "DeiT":
        extra.setdefault("architectures", ["DeiTForImageClassificationWithTeacher"])
    settings = copy.deepcopy(ARCHITECTURES[name][0]) | extra
    return getattr(transformers, f"{name}Config")(**settings)


def shake(module):
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


@pytest.fixture(params=ARCHITECTURES, scope="module")
def student(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    config_of(request.param).save_pretrained(folder)
    arguments = ARCHITECTURES[request.param][0]
    size = None if "image_size" in arguments.get("vision_config", arguments) else 64
    model = build_student(StudentConfig(name=str(folder), image_size=size), DataFacts.of_labels(LABELS), seed=3)
    shake(model)
    model.eval().test_name = request.param
    return model


def images_for(model, count=2):
    height, width = model.facts.preprocessing.image_size
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


def pooled_by_hand(hidden, num_prefix):
    if num_prefix is None:
        return hidden.flatten(2).mean(-1)
    return hidden[:, num_prefix:].mean(1)


def test_outputs_are_those_of_the_native_model(student):
    images = images_for(student)
    _, backbone, num_prefix = ARCHITECTURES[student.test_name]
    given = []
    classifiers = [student.module.get_submodule(name) for name in student.classifier_names]
    with torch.no_grad():
        output = student(images, Reads(("pooled", "embedding")) | student.predictions)
        hidden = student.module.get_submodule(backbone)(images).last_hidden_state
        handles = [c.register_forward_pre_hook(lambda m, args: given.append(args[0])) for c in classifiers]
        native = student.module(images).logits
        for handle in handles:
            handle.remove()
        alone = student(images, Reads(("pooled",)))
    torch.testing.assert_close(output.logits, native, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.features["pooled"], pooled_by_hand(hidden, num_prefix), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone.features["pooled"], output.features["pooled"], atol=1e-5, rtol=1e-5)
    embedding = torch.stack([value.flatten(1) for value in given]).mean(0)
    torch.testing.assert_close(output.features["embedding"], embedding, atol=1e-5, rtol=1e-5)
    assert {tap: f.shape[1] for tap, f in output.features.items()} == student.facts.feature_dims


def test_save_and_load(student, tmp_path):
    images = images_for(student)
    student.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    ours = load_saved(tmp_path)
    native = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = student(images).logits
        torch.testing.assert_close(native(images).logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(images).logits, expected, atol=1e-5, rtol=1e-5)
    assert native.config.id2label == dict(enumerate(LABELS))
    assert native.config.label2id == {name: i for i, name in enumerate(LABELS)}
    assert ours.facts.label_names == LABELS
    assert ours.facts.preprocessing == student.facts.preprocessing
    size = student.facts.preprocessing.image_size
    picture = Image.new("RGB", (90, 70), (200, 30, 40))
    assert AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt").pixel_values.shape[2:] == size
    best = pipeline("image-classification", model=str(tmp_path), device="cpu")(picture)
    assert {entry["label"] for entry in best} == set(LABELS)


def test_a_copy_trains_and_leaves_the_original_alone(student):
    images = images_for(student)
    twin = copy.deepcopy(student).train()
    output = twin(images, Reads(("pooled", "embedding")) | twin.predictions)
    assert output.logits.shape == (2, 3)
    (output.logits.square().sum() + sum(f.square().sum() for f in output.features.values())).backward()
    assert any(p.grad is not None for p in twin.parameters())
    assert all(p.grad is None for p in student.parameters())
    assert twin._hidden is not student._hidden
    assert twin._hidden.value is None


@pytest.mark.parametrize(
    ("name", "auto"),
    [("ViT", "ViTModel"), ("Dinov2", "Dinov2Model"), ("ResNet", "ResNetModel"), ("Swin", "SwinModel")],
)
def test_a_backbone_without_a_head(tmp_path, name, auto):
    module = getattr(transformers, auto)(config_of(name))
    module.save_pretrained(tmp_path)
    teacher = load_teacher(TeacherConfig(name=str(tmp_path), image_size=None if name != "ResNet" else 64), seed=0)
    assert (teacher.facts.task, teacher.facts.num_classes) == ("image-embedding", 0)
    assert tuple(teacher.facts.feature_dims) == ("pooled",)
    images = images_for(teacher)
    hidden = module.eval()(images).last_hidden_state
    output = teacher(images, Reads(("pooled",)) | teacher.predictions)
    assert output.logits is None
    torch.testing.assert_close(
        output.features["pooled"], pooled_by_hand(hidden, ARCHITECTURES[name][2]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_of_two_towers_the_vision_tower(tmp_path, name):
    module = getattr(transformers, f"{name}Model")(config_of(name)).eval()
    module.save_pretrained(tmp_path)
    teacher = load_teacher(TeacherConfig(name=str(tmp_path)), seed=0)
    images = images_for(teacher)
    hidden = module.vision_model(images).last_hidden_state
    expected = pooled_by_hand(hidden, ARCHITECTURES[name][2])
    torch.testing.assert_close(
        teacher(images, Reads(("pooled",)) | teacher.predictions).features["pooled"], expected, atol=1e-5, rtol=1e-5
    )


def test_a_masked_autoencoder_sees_the_whole_image(tmp_path):
    module = transformers.ViTMAEModel(transformers.ViTMAEConfig(**VIT)).eval()
    module.save_pretrained(tmp_path)
    teacher = load_teacher(TeacherConfig(name=str(tmp_path)), seed=0)
    images = images_for(teacher)
    first, second = (teacher(images, Reads(("pooled",)) | teacher.predictions).features["pooled"] for _ in range(2))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)  # a mask would be another one each time


def classifier_folder(folder, **extra):
    config = config_of("ViT", id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}, **extra)
    module = transformers.ViTForImageClassification(config)
    shake(module)
    module.save_pretrained(folder)
    return module


def test_image_size(tmp_path):
    classifier_folder(tmp_path)
    teacher = load_teacher(TeacherConfig(name=str(tmp_path), image_size=48), seed=0)
    assert teacher(torch.randn(1, 3, 48, 48)).logits.shape == (1, 2)  # interpolated on the way
    student = build_student(StudentConfig(name=str(tmp_path), image_size=48), DataFacts.of_labels(LABELS), seed=0)
    assert student.module.config.image_size == 48
    assert student(torch.randn(1, 3, 48, 48)).logits.shape == (1, 3)
    with pytest.raises(UserError, match="32 pixels"):
        build_student(
            StudentConfig(name=str(tmp_path), pretrained=True, image_size=48), DataFacts.of_labels(LABELS), seed=0
        )


def test_image_size_of_two_towers_and_of_a_config_with_two_sides(tmp_path):
    transformers.CLIPForImageClassification(config_of("CLIP", num_labels=2)).save_pretrained(tmp_path / "clip")
    teacher = load_teacher(TeacherConfig(name=str(tmp_path / "clip"), image_size=64), seed=0)
    images = images_for(teacher)
    native = teacher.module(images, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(teacher(images).logits, native, atol=1e-5, rtol=1e-5)

    sizes = {"embed_dim": 16, "depths": [1] * 4, "num_heads": [1, 2, 4, 8], "image_size": [224, 224]}
    transformers.HieraConfig(**sizes).save_pretrained(tmp_path / "hiera")
    student = build_student(
        StudentConfig(name=str(tmp_path / "hiera"), image_size=64), DataFacts.of_labels(LABELS), seed=0
    )
    assert tuple(student.module.config.image_size) == (64, 64)
    assert student(torch.randn(1, 3, 64, 64)).logits.shape == (1, 3)


def test_patches_in_place_of_an_image(tmp_path):
    """SigLIP2 takes what its image processor cuts an image into."""
    vision = VIT | {"num_patches": 16}
    del vision["image_size"]
    config = transformers.Siglip2Config(vision_config=vision, text_config=TWO_TOWERS["text_config"])
    config.save_pretrained(tmp_path / "config")
    student = build_student(
        StudentConfig(name=str(tmp_path / "config"), image_size=48), DataFacts.of_labels(LABELS), seed=0
    ).eval()
    assert student.facts.grids == {"pooled": (6, 6)}
    shake(student)
    student.save(tmp_path / "saved")
    native = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    image = Image.effect_noise((48, 48), 80).convert("RGB")  # of its own size: nothing is resized
    inputs = AutoImageProcessor.from_pretrained(tmp_path / "saved")(image, return_tensors="pt")
    assert inputs["spatial_shapes"].tolist() == [[6, 6]]
    pixels = to_tensor(image)[None]
    wanted = student.facts.preprocessing
    ours = (pixels - torch.tensor(wanted.mean).view(3, 1, 1)) / torch.tensor(wanted.std).view(3, 1, 1)
    with torch.no_grad():
        output = student(ours, Reads(("pooled", "embedding")) | student.predictions)
        torch.testing.assert_close(output.logits, native(**inputs).logits, atol=1e-4, rtol=1e-4)
        hidden = native.vision_model(**inputs).last_hidden_state
    torch.testing.assert_close(output.features["pooled"], hidden.mean(1), atol=1e-4, rtol=1e-4)
    again = load_saved(tmp_path / "saved")
    assert again.facts.preprocessing.image_size == (48, 48)
    torch.testing.assert_close(again(ours).logits, output.logits, atol=1e-5, rtol=1e-5)


def test_an_encoder_that_does_not_take_the_image_itself(tmp_path):
    transformers.HGNetV2Config(**HGNET).save_pretrained(tmp_path)
    model = build_student(StudentConfig(name=str(tmp_path), image_size=64), DataFacts.of_labels(LABELS), seed=0).eval()
    images = images_for(model)
    with torch.no_grad():
        output = model(images, Reads(("pooled", "embedding")) | model.predictions)
        alone = model(images, Reads(("pooled",)))
        hidden = model.module.encoder(model.module.embedder(images)).last_hidden_state
        torch.testing.assert_close(output.logits, model.module(images).logits, atol=1e-6, rtol=1e-6)
    for features in (output.features, alone.features):
        torch.testing.assert_close(features["pooled"], hidden.mean(dim=(2, 3)), atol=1e-6, rtol=1e-6)
    assert alone.logits is None


def test_a_backbone_that_returns_maps(tmp_path):
    module = transformers.HGNetV2Backbone(transformers.HGNetV2Config(**HGNET)).eval()
    module.save_pretrained(tmp_path)
    teacher = load_teacher(TeacherConfig(name=str(tmp_path), image_size=64), seed=0)
    images = images_for(teacher)
    expected = module(images).feature_maps[-1].mean(dim=(2, 3))
    torch.testing.assert_close(
        teacher(images, Reads(("pooled",)) | teacher.predictions).features["pooled"], expected, atol=1e-6, rtol=1e-6
    )


def test_default_names_are_no_names(tmp_path):
    transformers.ViTForImageClassification(config_of("ViT")).save_pretrained(tmp_path)
    assert load_teacher(TeacherConfig(name=str(tmp_path)), seed=0).facts.label_names is None


def test_half_precision_files_load_as_float32(tmp_path):
    classifier_folder(tmp_path / "full")
    module = AutoModelForImageClassification.from_pretrained(tmp_path / "full", dtype=torch.bfloat16)
    module.save_pretrained(tmp_path / "half")
    teacher = load_teacher(TeacherConfig(name=str(tmp_path / "half")), seed=0)
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}


def test_incomplete_weights_are_refused(tmp_path):
    transformers.ViTModel(config_of("ViT")).save_pretrained(tmp_path)
    config_of("ViT", architectures=["ViTForImageClassification"]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="of 40 tensors 2 are missing"):
        load_teacher(TeacherConfig(name=str(tmp_path)), seed=0)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="can't be loaded"):
        load_teacher(TeacherConfig(name=str(tmp_path)), seed=0)


def test_a_local_checkpoint_decides_the_number_of_classes(tmp_path):
    config_of("ViT", architectures=["ViTForImageClassification"]).save_pretrained(tmp_path)
    module = transformers.ViTForImageClassification(config_of("ViT", num_labels=5)).eval()
    torch.save({"model": module.state_dict()}, tmp_path / "weights.pth")
    teacher = load_teacher(TeacherConfig(name=str(tmp_path), weights=str(tmp_path / "weights.pth")), seed=0)
    images = images_for(teacher)
    torch.testing.assert_close(teacher(images).logits, module(images).logits, atol=1e-6, rtol=1e-6)
    assert teacher.facts.num_classes == 5


def test_a_teacher_of_bgr_images_gets_them(tmp_path):
    module = transformers.MobileViTForImageClassification(config_of("MobileViT")).eval()
    module.save_pretrained(tmp_path)
    transformers.MobileViTImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
    ).save_pretrained(tmp_path)
    teacher = load_teacher(TeacherConfig(name=str(tmp_path)), seed=0)
    batch = photograph(64)
    native = transformers.AutoImageProcessor.from_pretrained(tmp_path)(batch.images, return_tensors="pt").pixel_values
    torch.testing.assert_close(teacher.prepare(batch), native, atol=1e-6, rtol=0)
    torch.testing.assert_close(teacher(teacher.prepare(batch)).logits, module(native).logits, atol=1e-6, rtol=1e-6)


def photograph(size):
    """A batch of two random pictures."""
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(images=images, targets=torch.zeros(2, dtype=torch.int64), samples=torch.arange(2))


@pytest.mark.parametrize("how", ["made of the teacher", "pretrained", "untrained"])
def test_a_student_of_bgr_images_gets_them(tmp_path, how):
    """Here, reloaded, and by the image processor that is saved with it."""
    folder = tmp_path / "teacher"
    transformers.MobileViTForImageClassification(config_of("MobileViT")).save_pretrained(folder)
    transformers.MobileViTImageProcessor(
        size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}
    ).save_pretrained(folder)
    asked = TeacherConfig(name=str(folder))
    teacher = load_teacher(asked, seed=0)
    name, source = (str(folder), None) if how != "made of the teacher" else ("teacher?width=1.0", (asked, teacher))
    config = StudentConfig(name=name, pretrained=how == "pretrained")
    student = build_student(config, DataFacts.of_labels(LABELS), seed=0, source=source).eval()
    batch = photograph(64)
    torch.testing.assert_close(student.prepare(batch), batch.images.flip(1) / 255, atol=1e-6, rtol=0)
    assert student.facts.preprocessing == teacher.facts.preprocessing
    student.save(tmp_path / "saved")
    saved = load_saved(tmp_path / "saved")
    assert saved.facts.preprocessing == student.facts.preprocessing
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "saved")
    native = processor(batch.images, do_resize=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(native, student.prepare(batch), atol=1e-6, rtol=0)
    module = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(module(native).logits, saved(saved.prepare(batch)).logits, atol=1e-6, rtol=1e-6)


def test_compiled_in_one_graph(tmp_path):
    config_of("ViT").save_pretrained(tmp_path)
    model = build_student(StudentConfig(name=str(tmp_path)), DataFacts.of_labels(LABELS), seed=0).eval()
    images = images_for(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for taps in ((), ("pooled", "embedding")):
        expected, found = (
            model(images, Reads(taps) | model.predictions),
            compiled(images, Reads(taps) | compiled.predictions),
        )
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.features, expected.features, atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()


def test_models_that_are_not_for_images_are_refused(tmp_path):
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no image classifier of the kind 'bert'"):
        build_student(StudentConfig(name=str(tmp_path)), DataFacts.of_labels(LABELS), seed=0)


@torch.no_grad()
def test_the_encoder_of_a_masked_autoencoder_sees_all_in_order(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTMAEConfig(**sizes, image_size=32, patch_size=8)
    transformers.ViTMAEModel(config).save_pretrained(tmp_path)
    teacher = load_teacher(TeacherConfig(name=str(tmp_path)), seed=0)
    student = build_student(StudentConfig(name=str(tmp_path)), DataFacts.of_labels(()), seed=0).eval()
    for model in (teacher, student):
        images = model.example(2)
        first, second = (model(images, Reads(("pooled",), maps=("pooled",))) for _ in range(2))
        torch.testing.assert_close(first.maps["pooled"], second.maps["pooled"])
        assert first.maps["pooled"].shape == (2, 16, 4, 4)
        changed = images.clone()
        changed[:, :, 8:16, 24:] += 1
        embedded = [
            model.module.embeddings.patch_embeddings(pixels).unflatten(1, (4, 4)) for pixels in (images, changed)
        ]
        moved = (embedded[0] - embedded[1]).abs().sum(dim=3).nonzero()[:, 1:].unique(dim=0).tolist()
        assert moved == [[1, 3]]
        tokens = model.module.embeddings(changed, noise=model._native_inputs(changed)["noise"])[0][:, 1:]
        before = model.module.embeddings(images, noise=model._native_inputs(images)["noise"])[0][:, 1:]
        assert (tokens - before).abs().sum(dim=2).nonzero()[:, 1].unique().tolist() == [1 * 4 + 3]


@pytest.mark.parametrize("kind", ["hiera", "timm_wrapper", "gemma3n", "gemma4", "gemma4_text", "dots3_note_text"])
def test_keys_that_a_kind_has_not_are_no_arguments(kind):
    """Their configs map keys to ones that are not there, or that differ by layer, or have no vision tower by default."""
    if kind not in KINDS["image"] | KINDS["text"]:
        pytest.skip("this version of transformers has no such kind")
    place = place_of(kind)
    assert config_values(place)
    with pytest.raises(UserError, match="there is no argument 'nothing'"):
        read_config(dataclasses.replace(place, arguments={"nothing": 1}))
