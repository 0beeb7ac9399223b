"""Names: the grammar, the errors, and what is asked of the network."""

import os
import shutil
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models import build_student, hub, load_teacher, parse_name
from kdcli.models.libraries import library_of
from kdcli.models.locate import locate
from kdcli.models.spec import ModelName


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """A hub that does not answer, and an empty cache."""
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resnet50", ModelName("resnet50", "resnet50", None, False)),
        ("timm:resnet50.a1_in1k", ModelName("timm:resnet50.a1_in1k", "resnet50.a1_in1k", "timm", False)),
        ("hf:org/name", ModelName("hf:org/name", "org/name", "transformers", False)),
        ("random:hf:org/name", ModelName("random:hf:org/name", "org/name", "transformers", True)),
        ("random:some/folder", ModelName("random:some/folder", "some/folder", None, True)),
        ("package:some/folder", ModelName("package:some/folder", "package:some/folder", None, False)),
        ("hf:package:some/folder", ModelName("hf:package:some/folder", "package:some/folder", "transformers", False)),
        ("none", None),
    ],
)
def test_grammar(text, expected):
    assert parse_name(text) == expected


@pytest.mark.parametrize("text", ["tim:resnet50", "random:", "timm:", "random:none"])
def test_names_of_nothing_are_refused(text):
    with pytest.raises(UserError) as error:
        parse_name(text)
    assert repr(text) in error.value.message
    assert "random:NAME" in error.value.hint


def test_package_and_grammar_import_no_torch():
    code = "import sys, kdcli.models; kdcli.models.parse_name('resnet50'); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("resnet5", "resnet50"),
        ("timm:mobilenetv3_small", "mobilenetv3_small_100"),
        ("resnet50.a1_in2k", "resnet50.a1_in1k"),
        ("./no_such_folder", "no folder ./no_such_folder"),
        ("random:resnet5", "resnet50"),
    ],
)
def test_unknown_names_list_the_nearest(name, part):
    with pytest.raises(UserError) as error:
        load_teacher(TeacherConfig(name=name), seed=0)
    assert part in error.value.message
    assert error.value.hint


@pytest.mark.parametrize("name", ["resnet18", "org/name", "hf:org/name", "timm:org/name", "mobilevit_xxs.cvnets_in1k"])
@pytest.mark.usefixtures("unreachable")
def test_a_teacher_without_its_weights_is_never_random(name):
    with pytest.raises(UserError, match="can't be reached") as error:
        load_teacher(TeacherConfig(name=name), seed=0)
    assert "--teacher-weights" in error.value.hint
    assert "random:NAME" in error.value.hint
    assert "HF_HOME" in error.value.hint


def test_the_hub_is_asked_once_and_briefly(monkeypatch):
    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append((url, timeout))
            raise OSError("no network")

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_session", Session)
    hub.reachable.cache_clear()
    assert not hub.reachable()
    assert not hub.reachable()
    hub.reachable.cache_clear()
    assert asked == [(hub.constants.ENDPOINT, 5)]


@pytest.mark.usefixtures("unreachable")
def test_offline_mode_is_named(monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        load_teacher(TeacherConfig(name="resnet18"), seed=0)


@pytest.mark.usefixtures("unreachable")
def test_a_pretrained_student_is_never_random():
    with pytest.raises(UserError, match="can't be reached"):
        build_student(StudentConfig(name="resnet18", pretrained=True), DataFacts.of_labels(["a", "b"]), seed=0)


def test_a_model_that_was_never_published_with_weights():
    with pytest.raises(UserError, match="no pretrained weights") as error:
        load_teacher(TeacherConfig(name="resnet50_mlp"), seed=0)
    assert "random:NAME" in error.value.hint


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "1_Pooling/config.json"])
def test_a_pipe_in_the_place_of_a_file_is_refused_before_it_is_read(bert_folder, tmp_path, name):
    """Whoever reads one waits until somebody writes."""
    folder = tmp_path / "model"
    shutil.copytree(bert_folder, folder)
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    os.mkfifo(folder / name)
    for find in (lambda: library_of(folder), lambda: locate(parse_name(str(folder)), weights=True, modality="text")):
        with pytest.raises(UserError, match=f"{name} is a pipe, socket or device"):
            find()


def test_contradictions_are_refused():
    with pytest.raises(UserError, match="untrained by its name"):
        load_teacher(TeacherConfig(name="random:resnet18", weights="x.pth"), seed=0)
    with pytest.raises(UserError, match="untrained by its name"):
        build_student(StudentConfig(name="random:resnet18", pretrained=True), DataFacts.of_labels(["a", "b"]), seed=0)
    with pytest.raises(UserError, match="no model to load"):
        build_student(StudentConfig(name="none"), DataFacts.of_labels(["a", "b"]), seed=0)


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        ("RepositoryNotFoundError", "no model"),
        ("GatedRepoError", "gated"),
        ("RevisionNotFoundError", "no revision"),
        ("HfHubHTTPError", "Could not download"),
    ],
)
def test_answers_of_the_hub_become_messages(monkeypatch, raised, message):
    kind = getattr(hub, raised)

    def refuse(*args, **kwargs):
        raise kind.__new__(kind)

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(UserError, match=message):
        hub.download("org/name@main", "config.json")


def hub_cache(root, repo, folder):
    """Lay ``folder`` into a hub cache as a downloaded repository."""
    snapshot = root / f"models--{repo.replace('/', '--')}" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "timm/test_resnet.r160_in1k"])
def test_cached_files_serve_without_the_hub(monkeypatch, tmp_path, name):
    made = build_student(StudentConfig(name="test_resnet"), DataFacts.of_labels([str(i) for i in range(1000)]), seed=7)
    made.save(tmp_path / "made")
    hub_cache(tmp_path / "hub", "timm/test_resnet.r160_in1k", tmp_path / "made")
    monkeypatch.setattr(hub, "reachable", lambda: False)
    download = hub.hf_hub_download
    monkeypatch.setattr(hub, "hf_hub_download", lambda *a, **k: download(*a, **k, cache_dir=tmp_path / "hub"))
    teacher = load_teacher(TeacherConfig(name=name), seed=0)
    assert teacher.facts.pretrained
    assert teacher.facts.name == f"timm:{name}"
    assert (teacher.facts.num_classes, len(teacher.facts.label_names)) == (1000, 1000)
    for ours, theirs in zip(teacher.parameters(), made.parameters(), strict=True):
        assert ours.equal(theirs)
    assert not any(isinstance(value, dict) for value in teacher.module.pretrained_cfg.values())
    images = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(teacher(images).logits, made.eval()(images).logits)


def test_folders_are_recognised_by_their_config(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        load_teacher(TeacherConfig(name=str(tmp_path)), seed=0)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="neither 'architecture'"):
        load_teacher(TeacherConfig(name=str(tmp_path)), seed=0)
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(UserError, match="no model that transformers can build"):
        load_teacher(TeacherConfig(name=str(tmp_path)), seed=0)
    (tmp_path / "config.json").write_text('{"architecture": "resnet_18", "pretrained_cfg": {}}')
    with pytest.raises(UserError, match="resnet18"):
        load_teacher(TeacherConfig(name=str(tmp_path)), seed=0)
    with pytest.raises(UserError, match="is a model of timm"):
        load_teacher(TeacherConfig(name=f"hf:{tmp_path}"), seed=0)


def test_a_missing_folder_beside_others_is_not_sought_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no folder runs/frist\. Did you mean runs/first") as error:
        locate(parse_name("runs/frist"), weights=True)
    assert "hf:runs/frist" in error.value.hint


def test_a_model_inside_an_installed_package(bert_folder, tmp_path, monkeypatch):
    package = tmp_path / "site" / "packaged_bert"
    shutil.copytree(bert_folder, package / "model")
    (package / "__init__.py").write_text("raise AssertionError('it is not imported')")
    monkeypatch.syspath_prepend(package.parent)
    without = ModuleType("without_a_spec")
    without.__spec__ = None
    monkeypatch.setitem(sys.modules, "without_a_spec", without)
    for text in ("package:packaged_bert/model", "hf:package:packaged_bert/model"):
        place = locate(parse_name(text), weights=True, modality="text")
        assert (place.library, place.name, place.folder) == (
            "transformers",
            "hf:package:packaged_bert/model",
            package / "model",
        )
    smaller = locate(parse_name("package:packaged_bert/model?num_hidden_layers=1"), weights=False, modality="text")
    assert smaller.arguments == {"num_hidden_layers": 1}
    for text, message in (
        ("package:packaged_bert/other", "has no file other"),
        ("package:no_such_package/model", "is not installed"),
        ("package:without_a_spec/model", "is not installed"),
        ("package:packaged_bert/../site", "is not package:NAME/PATH"),
        ("package:packaged_bert/__init__.py", "there is no folder"),
    ):
        with pytest.raises(UserError, match=message):
            locate(parse_name(text), weights=True, modality="text")
