"""``kdcli export``: what it writes is loaded by the libraries alone, in a process that can't import kdcli."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from kdcli.base.facts import Preprocessing
from kdcli.models import load_saved

CLASSES = ["apple", "leaf", "sky"]
WITHOUT_KDCLI = """
import sys
sys.modules["kdcli"] = None
try:
    import kdcli
except ImportError:
    pass
else:
    raise SystemExit("kdcli can be imported")
import json
import torch
from safetensors.torch import load_file
torch.set_num_threads(1)
folder, file = sys.argv[1:]
reference = load_file(file)
"""
TIMM = """
import timm
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
names = model.pretrained_cfg["label_names"]
with torch.inference_mode():
    logits = model(reference["images"])
size = list(model.pretrained_cfg["input_size"])
"""
TRANSFORMERS = """
from transformers import AutoImageProcessor, AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(folder).eval()
names = [model.config.id2label[index] for index in range(model.config.num_labels)]
with torch.inference_mode():
    logits = model(reference["images"]).logits
height, width = (AutoImageProcessor.from_pretrained(folder).crop_size[key] for key in ("height", "width"))
size = [3, height, width]
"""
COMPARE = """
difference = float((logits - reference["logits"]).abs().max() / reference["logits"].abs().max())
print(json.dumps({"names": list(names), "difference": difference, "size": size}))
"""


@pytest.fixture(params=["timm", "transformers"])
def library(request) -> str:
    return request.param


@pytest.fixture
def run(library, same_run, hf_run) -> Path:
    return {"timm": same_run, "transformers": hf_run}[library]


def reference_of(run: Path, batch: int = 2) -> dict[str, torch.Tensor]:
    """Images and the logits that kdcli's own student gives for them."""
    from kdcli.models import load_saved

    student = load_saved(run / "student")
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        return {"images": images, "logits": student(images).logits.clone()}


def test_the_library_alone_gives_the_same_logits_and_labels(run_cli, tmp_path, run, library):
    outcome = run_cli("export", run, "--output", "out/student")
    assert outcome.exit_code == 0, outcome.stderr
    assert "out/student" in outcome.stdout
    save_file(reference_of(run), tmp_path / "reference.safetensors")
    code = WITHOUT_KDCLI + (TIMM if library == "timm" else TRANSFORMERS) + COMPARE
    result = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "out" / "student"), str(tmp_path / "reference.safetensors")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["names"] == CLASSES
    assert found["difference"] <= 1e-5
    assert found["size"] == [3, 32, 32]


def probabilities(outcome) -> list[dict[str, float]]:
    """What ``predict --json`` says of the student, by label."""
    assert outcome.exit_code == 0, outcome.stderr
    found = [each["answers"]["student"] for each in json.loads(outcome.stdout)["predictions"]]
    return [{one["label"]: one["probability"] for one in answers} for answers in found]


def compare_pipeline(kind: str, folder: Path, inputs: list[str], expected: list[dict[str, float]]) -> None:
    """Compare what transformers' pipeline makes of a folder, read and prepared by itself, to 1e-5."""
    from transformers import pipeline

    answers = pipeline(kind, model=str(folder), device="cpu")(inputs, top_k=len(expected[0]))
    assert len(answers) == len(expected)
    for answer, own in zip(answers, expected, strict=True):
        assert {one["label"]: one["score"] for one in answer} == pytest.approx(own, abs=1e-5)


def test_a_pipeline_reads_images_as_predict_does(run_cli, tmp_path, run, photos):
    assert run_cli("export", run, "--output", "out").exit_code == 0
    files = [str(file) for file in sorted(photos.rglob("*.*"))[:40:30]]  # of two classes
    expected = probabilities(run_cli("predict", run, *files, "--top", "3", "--json", "--device", "cpu"))
    assert [set(one) for one in expected] == [set(CLASSES)] * 2
    compare_pipeline("image-classification", tmp_path / "out", files, expected)


def test_a_pipeline_reads_texts_as_predict_does(run_cli, tmp_path, classified_run):
    assert run_cli("export", classified_run, "--output", "out").exit_code == 0
    texts = ["a good film that I liked", "bad"]
    given = [word for text in texts for word in ("--text", text)]
    expected = probabilities(run_cli("predict", classified_run, *given, "--top", "9", "--json", "--device", "cpu"))
    assert len(expected[0]) > 1
    compare_pipeline("text-classification", tmp_path / "out", texts, expected)


def test_exported_weights_are_the_runs(run_cli, tmp_path, run):
    outcome = run_cli("export", run, "--output", "out")
    assert outcome.exit_code == 0, outcome.stderr
    exported, kept = load_file(tmp_path / "out" / "model.safetensors"), load_file(run / "student" / "model.safetensors")
    assert exported.keys() == kept.keys()
    assert all(torch.equal(exported[name], kept[name]) for name in kept)
    assert not [name for name in exported if "projector" in name or "teacher" in name]
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "README.md"} <= names
    assert names - {"preprocessor_config.json"} == {"config.json", "model.safetensors", "README.md"}


def test_default_place_and_a_second_time(run_cli, tmp_path, same_run):
    run = shutil.copytree(same_run, tmp_path / "run")
    for _ in range(2):
        outcome = run_cli("export", run)
        assert outcome.exit_code == 0, outcome.stderr
    assert (run / "export" / "model.safetensors").is_file()
    assert [file.name for file in run.iterdir() if file.name.startswith(".")] == [".lock"]  # of the training


def test_a_card_that_was_edited_is_kept_beside_the_new_one(run_cli, tmp_path, same_run):
    card, told = tmp_path / "out" / "README.md", "README-edited-1.md, beside the new one"
    outcomes = [run_cli("export", same_run, "--output", "out")]
    own, edited = card.read_text(), "# My model\n"
    card.write_text(edited)
    outcomes += [run_cli("export", same_run, "--output", "out") for _ in range(2)]
    assert [outcome.exit_code for outcome in outcomes] == [0, 0, 0]
    assert [told in outcome.stdout for outcome in outcomes] == [False, True, False]
    assert card.read_text() == own
    assert (tmp_path / "out" / "README-edited-1.md").read_text() == edited
    assert len(list((tmp_path / "out").glob("README*"))) == 2


def run_card(folder: Path, title: str, photo: Path | str) -> dict[str, Any]:
    """Run what a model card says to run a graph with; return its variables."""
    card = (folder / "README.md").read_text()
    (code,) = re.findall(rf"^With {title}:\n\n```python\n(.*?)\n```$", card, re.M | re.S)
    code = code.replace("PATH", str(folder)).replace('"photo.jpg"', repr(str(photo))).replace('"A text."', repr(photo))
    variables: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, variables)
    return variables


def check_card(folder: Path, title: str, run_cli, run: Path, photos: Path) -> None:
    """Compare a card's code with ``kdcli predict``, on a photo."""
    photo = sorted(photos.rglob("*.*"))[30]
    (expected,) = probabilities(run_cli("predict", run, photo, "--top", "3", "--json", "--device", "cpu"))
    found = run_card(folder, title, photo)
    # transformers' images are resized by torchvision, whose rounding is another
    limit = 1e-5 if run.name.startswith("same") else 0.02
    assert dict(zip(found["labels"], found["probabilities"], strict=True)) == pytest.approx(expected, abs=limit)
    assert "library_name" not in (folder / "README.md").read_text()


def test_onnx_for_any_batch_size(run_cli, tmp_path, run, photos):
    outcome = run_cli("export", run, "--format", "onnx", "--output", "deploy")
    assert outcome.exit_code == 0, outcome.stderr
    import onnxruntime

    assert "model.onnx" in {file.name for file in (tmp_path / "deploy").iterdir()}
    said, own = json.loads((tmp_path / "deploy" / "preprocessing.json").read_text()), load_saved(run / "student")
    labels = said.pop("labels")
    assert tuple(labels) == own.facts.label_names
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
    assert Preprocessing(**tuples) == own.facts.preprocessing
    session = onnxruntime.InferenceSession(tmp_path / "deploy" / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        reference = reference_of(run, batch)
        (logits,) = session.run(["logits"], {"images": reference["images"].numpy()})
        assert logits.shape == (batch, 3)
        expected = reference["logits"].numpy()
        assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    check_card(tmp_path / "deploy", "ONNX", run_cli, run, photos)


def test_onnx_of_texts_runs_as_its_card_says(run_cli, tmp_path, classified_run):
    assert run_cli("export", classified_run, "--format", "onnx", "--output", "out").exit_code == 0
    text = "a good film that I liked"
    (expected,) = probabilities(
        run_cli("predict", classified_run, "--text", text, "--top", "9", "--json", "--device", "cpu")
    )
    found = run_card(tmp_path / "out", "ONNX", text)
    assert dict(zip(found["labels"], found["probabilities"], strict=True)) == pytest.approx(expected, abs=1e-5)


def test_onnx_and_safetensors_in_one_folder(run_cli, tmp_path, same_run):
    for format_ in ("safetensors", "onnx"):
        outcome = run_cli("export", same_run, "--format", format_, "--output", "both")
        assert outcome.exit_code == 0, outcome.stderr
    assert {"model.onnx", "model.safetensors"} <= {file.name for file in (tmp_path / "both").iterdir()}
    card = (tmp_path / "both" / "README.md").read_text()
    loads = card.partition("## Load it")[2]
    assert loads.index("With timm:") < loads.index("local-dir:PATH") < loads.index("With ONNX:")
    assert "library_name: timm" in card
    assert run_cli("export", same_run, "--output", "both").exit_code == 0
    assert (tmp_path / "both" / "README.md").read_text() == card


def test_model_card(run_cli, tmp_path, same_run):
    outcome = run_cli("export", same_run, "--output", "out")
    assert outcome.exit_code == 0, outcome.stderr
    card = (tmp_path / "out" / "README.md").read_text()
    own, shown = (same_run / "README.md").read_text(), "![What its models make of some validation samples](samples.png)"
    without = own.replace(f"## Some validation samples\n\n{shown}\n\n", "")
    assert without != own
    assert card.splitlines()[:-1] == without.splitlines()[:-1]  # the last line is a checksum
    plan = json.loads((same_run / "plan.json").read_text())
    decisions = {entry["name"]: entry for entry in plan["decisions"]}
    test = [json.loads(line) for line in (same_run / "metrics.jsonl").read_text().splitlines()][-1]
    cells = [line.split(" | ", 1) for line in card.splitlines() if line.startswith("| ") and " | " in line.strip("| ")]
    rows = {key.strip("| "): value.removesuffix(" |") for key, value in cells}
    assert rows["Student"] == decisions["student"]["value"]
    assert "test_convnext" in rows["Student"]
    assert "parameters" in rows["Student"]
    assert rows["Teacher"] == decisions["teacher"]["value"]
    assert rows["Relation"].startswith("same: Both have the same 3 labels.")
    assert rows["Projector"].startswith("orthogonal")
    assert "3 classes" in rows["Data"]
    assert rows["Trainable parameters"] == decisions["trainable parameters"]["value"]
    assert rows["Test accuracy"] == f"{test['accuracy']:.4f}"
    assert "Validation accuracy" in rows
    assert plan["command"] in card
    assert 'timm.create_model("local-dir:' in card
    head = card.split("---")[1]
    assert "library_name: timm" in head
    assert "pipeline_tag: image-classification" in head
    data = ModelCard(card).data  # as the hub reads it
    assert data.tags == ["knowledge-distillation", "kdcli"]
    assert {result.dataset_name for result in data.eval_results} == {"photos"}
    found = {(result.dataset_split, result.metric_type): result.metric_value for result in data.eval_results}
    assert found["test", "accuracy"] == test["accuracy"]
    assert {split for split, _ in found} == {"validation", "test"}
    assert "loss" not in {name for _, name in found}


def test_model_card_of_a_transformers_student(hf_run):
    card = (hf_run / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "AutoModelForImageClassification" in card
    assert "timm.create_model" not in card


def test_model_card_without_a_teacher(alone_run):
    card = (alone_run / "README.md").read_text()
    assert "| Teacher | none |" in card
    assert "| Projector | none |" in card


@pytest.mark.parametrize("damage", ["weights", "labels", "crash"])
def test_a_save_that_goes_wrong_is_found_and_leaves_nothing(run_cli, tmp_path, same_run, monkeypatch, damage):
    from kdcli.models.timm.model import TimmModel

    save = TimmModel.save

    def sabotaged(self, folder):
        save(self, folder)
        if damage == "crash":
            raise OSError(28, "No space left on device")
        if damage == "weights":
            state = load_file(folder / "model.safetensors")
            state["head.fc.bias"] = state["head.fc.bias"] + 0.1
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            config = (folder / "config.json").read_text()
            (folder / "config.json").write_text(config.replace("apple", "pear"))

    monkeypatch.setattr(TimmModel, "save", sabotaged)
    exit_code, stdout, stderr = run_cli("export", same_run, "--output", "out")
    assert exit_code == 2, stdout + stderr
    assert stderr.startswith("Error: ")
    assert "Traceback" not in stderr
    assert "Exported" not in stdout
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_survives_one_that_goes_wrong(run_cli, tmp_path, same_run, monkeypatch):
    assert run_cli("export", same_run, "--output", "out").exit_code == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    from kdcli.results import export

    monkeypatch.setattr(export, "_TOLERANCE", -1.0)
    assert run_cli("export", same_run, "--output", "out").exit_code == 2
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_nothing_is_uploaded_before_the_export_is_whole(run_cli, tmp_path, same_run, monkeypatch):
    from kdcli.results import export, push

    uploads = []
    monkeypatch.setattr(push, "check_target", lambda text: text.removeprefix("hf:"))
    monkeypatch.setattr(push, "push", lambda folder, repo, *, public: uploads.append((folder, repo, public)) or ["Up."])
    asked = ("export", same_run, "--output", "out", "--push-to", "hf:me/photos")
    with monkeypatch.context() as patch:
        patch.setattr(export, "_TOLERANCE", -1.0)
        assert run_cli(*asked).exit_code == 2
    assert uploads == []
    outcome = run_cli(*asked, "--public")
    assert outcome.stdout.splitlines()[-1] == "Up."
    assert uploads == [(Path("out"), "me/photos", True)]
    outcome = run_cli("export", same_run, "--output", "other", "--public")
    assert outcome.exit_code == 2
    assert "--public is for --push-to" in outcome.stderr
    assert not (tmp_path / "other").exists()


def test_onnx_that_differs_is_found_and_leaves_nothing(run_cli, tmp_path, same_run, monkeypatch):
    from kdcli.results import graphs

    class Doubled(graphs._AnswerModule):
        def forward(self, *inputs):
            return 2 * super().forward(*inputs)

    monkeypatch.setattr(graphs, "_AnswerModule", Doubled)
    exit_code, _, stderr = run_cli("export", same_run, "--format", "onnx", "--output", "out")
    assert exit_code == 2, stderr
    assert "The model that ONNX loads gives other logits" in stderr
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_the_extra(run_cli, tmp_path, same_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    exit_code, _, stderr = run_cli("export", same_run, "--format", "onnx", "--output", "out")
    assert exit_code == 2, stderr
    assert "kdcli[onnx]" in stderr
    assert list(tmp_path.iterdir()) == []


def test_a_program_of_torch_for_any_batch_size(run_cli, tmp_path, run, photos):
    outcome = run_cli("export", run, "--format", "torch-export", "--output", "deploy")
    assert outcome.exit_code == 0, outcome.stderr
    assert {file.name for file in (tmp_path / "deploy").iterdir()} == {"model.pt2", "preprocessing.json", "README.md"}
    program = torch.export.load(tmp_path / "deploy" / "model.pt2").module()
    for batch in (1, 5):
        reference = reference_of(run, batch)
        torch.testing.assert_close(program(reference["images"]), reference["logits"], rtol=0, atol=1e-5)
    check_card(tmp_path / "deploy", "torch.export", run_cli, run, photos)


@pytest.mark.parametrize("package", ["openvino", "executorch"])
def test_formats_without_their_package(run_cli, tmp_path, same_run, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    exit_code, _, stderr = run_cli("export", same_run, "--format", package, "--output", "out")
    assert exit_code == 2, stderr
    assert f"pip install {package}" in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "title", "files"),
    [("openvino", "OpenVINO", {"model.xml", "model.bin"}), ("executorch", "ExecuTorch", {"model.pte"})],
)
def test_formats_whose_package_is_there(run_cli, tmp_path, same_run, photos, package, title, files):
    pytest.importorskip(package)
    outcome = run_cli("export", same_run, "--format", package, "--output", "out")
    assert outcome.exit_code == 0, outcome.stderr
    assert {file.name for file in (tmp_path / "out").iterdir()} == files | {"preprocessing.json", "README.md"}
    check_card(tmp_path / "out", title, run_cli, same_run, photos)


def test_whole_numbers_beside_floats_are_measured_on_validation(run_cli, tmp_path, same_run):
    import onnxruntime

    outcome = run_cli(
        *("export", same_run, "--format", "onnx", "--quantize", "int8", "--calibrate", "20", "--output", "deploy")
    )
    assert outcome.exit_code == 0, outcome.stderr
    told = json.loads((tmp_path / "deploy" / "quantization.json").read_text())
    assert (told["quantization"], told["calibration_samples"], told["split"]) == ("static", 20, "validation")
    # the float graph has what the run's own student had at its best epoch
    best = json.loads((same_run / "result.json").read_text())["validation"]
    assert told["metric"] == "accuracy"
    for name, value in told["models"]["float32"]["metrics"].items():
        assert value == pytest.approx(best[name], abs=1e-5)
    assert f"{told['models']['int8']['metrics']['accuracy']:.4f}" in outcome.stdout
    sizes = {name: (tmp_path / "deploy" / name).stat().st_size / 1e6 for name in ("model.onnx", "model.int8.onnx")}
    assert [told["models"][name]["size_mb"] for name in ("float32", "int8")] == list(sizes.values())
    session = onnxruntime.InferenceSession(tmp_path / "deploy" / "model.int8.onnx", providers=["CPUExecutionProvider"])
    reference = reference_of(same_run, 3)
    (logits,) = session.run(["logits"], {"images": reference["images"].numpy()})
    error = np.abs(logits - reference["logits"].numpy()).max() / np.abs(reference["logits"].numpy()).max()
    assert "PATH/model.int8.onnx" in (tmp_path / "deploy" / "README.md").read_text()
    assert 0 < error < 1  # whole numbers; noise goes beyond what the training images set the ranges to
    losses = {name: model["metrics"]["loss"] for name, model in told["models"].items()}
    assert 0 < abs(losses["int8"] - losses["float32"]) < 0.2 * losses["float32"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--quantize", "int8"), "--quantize is for --format onnx"),
        (("--format", "onnx", "--quantize", "int4"), "There is no quantisation 'int4'"),
        (("--format", "onxx"), "Did you mean onnx?"),
    ],
)
def test_what_is_refused(run_cli, tmp_path, same_run, arguments, message):
    exit_code, _, stderr = run_cli("export", same_run, *arguments, "--output", "out")
    assert exit_code == 2
    assert message in stderr
    assert list(tmp_path.iterdir()) == []
