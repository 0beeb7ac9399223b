"""What every library of models and every model keeps to: kdcli's own libraries and another package's."""

from __future__ import annotations

import dataclasses
import re
import sys

import pytest
import torch
from safetensors.torch import save_file

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.base.reads import Reads
from kdcli.base.tasks import TASKS
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.data import Batch, TextBatch
from kdcli.models import build_student, load_saved, load_teacher, parse_name
from kdcli.models.libraries import LIBRARIES, library_called, library_of
from kdcli.models.locate import locate
from kdcli.models.search.catalogue import Catalogue

LABELS = ("ant", "bee", "cat")
SOURCE = {"tokenizer": "of its own folder", "note": ""}
"""What tells where preprocessing is from, and changes nothing of it."""
GRID = """
from torch import nn
from kdcli.base.facts import Preprocessing
from kdcli.models.networks import Networks

class Net(nn.Module):
    def __init__(self, num_outputs=5, width=8):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1))
        self.head = nn.Sequential(nn.Conv2d(2 * width, num_outputs, 1), nn.Upsample(scale_factor=4))

class AsWideAsAsked(Net):
    def __init__(self, num_outputs, width=8):
        super().__init__(num_outputs, width)

class Grid(Networks):
    name = prefix = "grid"
    networks = {"net": Net, "wide": AsWideAsAsked}
    preprocessing = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
"""
"""A package with a network of its own kind, whose logits are (B, C, H, W)."""


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    info = folder / "kdcli_grid-1.0.dist-info"
    info.mkdir()
    (folder / "kdcli_grid.py").write_text(GRID)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdcli-grid\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kdcli.models]\ngrid = kdcli_grid:Grid\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield
        sys.modules.pop("kdcli_grid", None)


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def equal(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


class Contract:
    """Of a library and a model of it; a member says what to build, and a layer of it.

    Attributes:
        library: its name.
        name: of an architecture, as users write it.
        unknown: a name that only this library could have.
        layer: of the architecture, with features at every position or token.
        shelved: a pattern of names that ``models search`` finds.
        task: that it is built for.
        size: of the images; None for its own.
        logits: their shape for two samples and three labels.
    """

    library: str
    name: str
    unknown: str
    layer: str
    shelved: str
    task = "image-classification"
    size: int | None = None
    logits: tuple[int, ...] = (2, 3)

    @pytest.fixture(scope="class")
    @classmethod
    def named(cls):
        """The architecture's name."""
        return cls.name

    @classmethod
    def build(cls, name):
        config = StudentConfig(name=name, image_size=cls.size)
        return build_student(config, DataFacts.of_labels(LABELS, task=cls.task), seed=3).eval()

    @pytest.fixture(scope="class")
    @classmethod
    def student(cls, named):
        return cls.build(named)

    @pytest.fixture(scope="class")
    @classmethod
    def saved(cls, student, tmp_path_factory):
        folder = tmp_path_factory.mktemp("saved")
        student.save(folder)
        return folder

    def prediction(self, output):
        """What the model predicts, as tensors."""
        return output.logits

    def shape(self, output):
        """What ``logits`` says."""
        return tuple(output.logits.shape)

    def batch(self, student):
        indices = torch.arange(2)
        if TASKS[self.task].modality == "text":
            return TextBatch(
                texts=["a good film", "a plot"], targets=torch.zeros(2, dtype=torch.int64), samples=indices
            )
        images = torch.randint(0, 256, (2, 3, *student.facts.preprocessing.image_size), dtype=torch.uint8)
        return Batch(images=images, targets=torch.zeros(2, dtype=torch.int64), samples=indices)

    @torch.no_grad()
    def test_outputs_are_what_the_facts_tell(self, student):
        facts = student.facts
        assert (facts.library, facts.task, facts.label_names) == (self.library, self.task, LABELS)
        assert (facts.pretrained, facts.num_classes) == (False, 3)
        assert facts.num_parameters == sum(parameter.numel() for parameter in student.parameters())
        assert min(facts.macs, facts.activation_bytes) > 0
        inputs = student.prepare(self.batch(student))
        output = student(inputs, Reads(tuple(facts.feature_dims), tuple(facts.grids)) | student.predictions)
        assert {tap: value.shape for tap, value in output.features.items()} == {
            tap: (2, width) for tap, width in facts.feature_dims.items()
        }
        assert {tap: value.shape for tap, value in output.maps.items()} == {
            tap: (2, facts.feature_dims[tap], *grid) for tap, grid in facts.grids.items()
        }
        assert set(output.heads) == set(facts.predictions)
        assert self.shape(output) == self.logits
        same(self.prediction(student(inputs)), self.prediction(output))
        same(student(inputs, Reads(("pooled",))).features["pooled"], output.features["pooled"])
        assert student(inputs, Reads()).heads == {}

    def test_an_example_is_what_prepare_gives(self, student):
        example, inputs = student.example(2), student.prepare(self.batch(student))
        if isinstance(inputs, torch.Tensor):
            assert (example.shape, example.dtype, inputs.dtype) == (inputs.shape, torch.float32, torch.float32)
        else:
            assert {name: value.dtype for name, value in example.items()} == {n: v.dtype for n, v in inputs.items()}
        torch.testing.assert_close(student.example(1, seed=5), student.example(1, seed=5))

    @torch.no_grad()
    def test_a_layer_becomes_a_tap(self, named):
        student = self.build(named)
        student.open_taps([self.layer])
        width = student.facts.feature_dims[self.layer]
        maps = (self.layer,) if self.layer in student.facts.grids else ()
        output = student(student.prepare(self.batch(student)), Reads((self.layer,), maps))
        assert output.features[self.layer].shape == (2, width)
        assert output.heads == {}
        for found in output.maps.values():
            assert found.shape == (2, width, *student.facts.grids[self.layer])
            same(found.mean((2, 3)), output.features[self.layer])
        with pytest.raises(UserError, match="has no layer 'nowhere'"):
            student.open_taps(["nowhere"])
        with pytest.raises(ValueError, match="nowhere"):
            student(student.example(), Reads(("nowhere",)))

    @torch.no_grad()
    def test_a_saved_folder_is_the_library_s_and_gives_equal_outputs(self, student, saved):
        assert library_of(saved).name == self.library
        inputs = student.example(2, seed=1)
        expected = student(inputs, Reads(tuple(student.facts.feature_dims)) | student.predictions)
        for other in (load_saved(saved), load_teacher(TeacherConfig(name=str(saved)), seed=0, task=self.task)):
            output = other(inputs, Reads(tuple(student.facts.feature_dims)) | other.predictions)
            same(self.prediction(output), self.prediction(expected))
            same(output.features, expected.features)
            assert not other.training
            assert (
                dataclasses.asdict(other.preprocessing) | SOURCE == dataclasses.asdict(student.preprocessing) | SOURCE
            )
            for key in ("label_names", "num_classes", "feature_dims", "grids", "heads", "task", "macs"):
                assert getattr(other.facts, key) == getattr(student.facts, key), key

    def test_the_library_alone_loads_what_is_exported(self, student, tmp_path):
        library = library_called(self.library)
        library.export(student, tmp_path, projector=None)
        pairs = list(library.reload(student, tmp_path, projector=None))
        assert pairs
        for pair in pairs:
            assert pair.found.shape == pair.expected.shape
            same(pair.found, pair.expected)
        assert {file.name for file in tmp_path.iterdir()} <= library.files
        compile(library.snippet(tmp_path, TASKS[self.task]), "card", "exec")

    def trained(self, saved, labels, *, seed=0, pretrained=True):
        """The state of a student of the saved folder, which has its size already."""
        config = StudentConfig(name=str(saved), pretrained=pretrained)
        return build_student(config, DataFacts.of_labels(labels, task=self.task), seed=seed).state_dict()

    def test_an_untrained_student_is_a_function_of_the_seed_alone(self, named):
        torch.manual_seed(0)
        first = self.build(named).state_dict()
        following = torch.rand(1)
        torch.rand(7)
        equal(first, self.build(named).state_dict())
        torch.manual_seed(0)
        assert torch.equal(torch.rand(1), following)

    def test_a_pretrained_student_keeps_its_head_where_the_labels_are_the_same(self, saved):
        original = load_saved(saved).state_dict()
        equal(self.trained(saved, LABELS), original)
        first, second, third = (self.trained(saved, ("x", "y", "z"), seed=seed) for seed in (0, 0, 1))
        equal(first, second)
        replaced = {name for name in first if not torch.equal(first[name], original[name])}
        assert replaced == {name for name in first if not torch.equal(first[name], third[name])}
        assert replaced
        wider = self.trained(saved, "vwxyz")
        assert {name for name in wider if wider[name].shape != original[name].shape} >= replaced
        untrained, other = (self.trained(saved, LABELS, seed=seed, pretrained=False) for seed in (0, 1))
        new = {name for name in untrained if not torch.equal(untrained[name], other[name])}
        assert len(new) > len(replaced), "the body is new as well"

    def test_a_teacher_is_frozen_and_untrained_only_by_name(self, saved):
        teacher = load_teacher(TeacherConfig(name=str(saved)), seed=0, task=self.task)
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        assert (teacher.facts.pretrained, teacher.facts.label_names) == (True, LABELS)
        untrained = load_teacher(TeacherConfig(name=f"random:{saved}"), seed=0, task=self.task).facts
        assert (untrained.pretrained, untrained.label_names, untrained.num_classes) == (False, None, 3)

    def test_names_that_are_not_there(self):
        modality = TASKS[self.task].modality
        with pytest.raises(UserError) as error:
            locate(parse_name(self.unknown), weights=False, modality=modality)
        assert re.split("[:.]", self.unknown)[-1] in error.value.message
        assert error.value.hint

    def test_every_name_on_the_shelf_is_found(self):
        catalogue = Catalogue(self.task, pattern=self.shelved)
        places = [place for place in catalogue.find() if place.library == self.library]
        assert places
        for place in places:
            assert locate(parse_name(place.name), weights=False, modality=TASKS[self.task].modality).architecture


class TestTimmConvNet(Contract):
    library, name, unknown, shelved = "timm", "test_resnet", "timm:test_resnett", "test_resnet*"
    layer, size = "layer2", 32


class TestTimmViT(Contract):
    library, name, unknown, shelved = "timm", "test_vit", "test_vit.no_such_tag", "test_vit*"
    layer, size = "blocks.1", 64


class TestTransformersOfImages(Contract):
    library, unknown, shelved = "transformers", "hf:vitt", "hf:vit*"
    layer = "vit.layers.0"

    @pytest.fixture(scope="class")
    @classmethod
    def named(cls, hf_folder):
        return str(hf_folder)


class TestTransformersOfTexts(Contract):
    library, unknown, shelved = "transformers", "hf:bertt", "hf:distilbert"
    layer, task = "bert.encoder.layer.0", "text-classification"

    @pytest.fixture(scope="class")
    @classmethod
    def named(cls, bert_folder):
        return str(bert_folder)


class TestTorchvisionDetectors(Contract):
    library, name, unknown = "torchvision_detection", "torchvision:ssdlite/mobilenet_v3_small", "torchvision:ssdlight"
    layer, size, shelved = "backbone.features.0", 64, "torchvision:ssdlite*"
    task, logits = "object-detection", (2, 6 * (4 * 4 + 2 * 2 + 1 + 1 + 1 + 1), 4)  # anchors, classes and background

    def prediction(self, output):
        return output.heads["boxes"].raw

    def shape(self, output):
        return tuple(output.heads["boxes"].raw["cls_logits"].shape)


@pytest.mark.usefixtures("grid")
class TestAnotherPackage(Contract):
    library, name, unknown, shelved = "grid", "grid:net?width=4", "grid:nett", "grid:*"
    layer, logits = "features.0", (2, 3, 32, 32)

    def test_a_teacher_without_weights_has_the_outputs_of_its_default(self, tmp_path):
        def load(name, **options):
            return load_teacher(TeacherConfig(name=name, **options), seed=0, task=self.task).facts

        assert load("random:grid:net").num_classes == 5
        with pytest.raises(UserError, match=r"random:grid:wide can't be a teacher: it has as many outputs as"):
            load("random:grid:wide")
        for name, asked in (("grid:net", True), ("grid:wide", False)):
            with pytest.raises(UserError, match="no published weights") as error:
                load(name)
            assert ("random:NAME" in error.value.hint) == asked
        file = tmp_path / "weights.safetensors"
        save_file(self.build("grid:wide").module.state_dict(), file)
        assert load("grid:wide", weights=str(file)).num_classes == 3


def test_every_library_has_a_name_and_prefixes_of_its_own():
    assert len({library.name for library in LIBRARIES}) == len(LIBRARIES)
    prefixes = [prefix for library in LIBRARIES for prefix in (library.prefix, *library.families)]
    assert len(set(prefixes)) == len(prefixes)
