"""Distillation of images without labels: from a folder of images to a backbone that is fine-tuned."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("few_points")

WITHOUT_KDCLI = """
import json, sys
sys.modules["kdcli"] = None
import torch
folder, kind = sys.argv[1:]
images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
if kind == "timm":
    import timm
    features = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().forward_features(images).mean((2, 3))
else:
    from transformers import AutoModel
    features = AutoModel.from_pretrained(folder).eval()(images).last_hidden_state[:, 1:].mean(1)
print(json.dumps(features.tolist()))
"""
TASK = ("--task", "image-embedding")
ROWS = ("knn_accuracy", "linear_probe_accuracy")


def metrics_of(run, event):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def decisions_of(run):
    return {entry["name"]: entry for entry in json.loads((run / "plan.json").read_text())["decisions"]}


@pytest.fixture(scope="module")
def options(trained_teacher, tiny):
    return (*TASK, "--teacher", trained_teacher, "--student", "test_resnet?stem_width=16", *tiny)


@pytest.fixture(scope="module")
def unsorted(photos, tmp_path_factory):
    """The photographs without their folders, some of them deeper down, and a file that is no image. Not to be changed."""
    root = tmp_path_factory.mktemp("data") / "unsorted"
    (root / "more" / "deep").mkdir(parents=True)
    for number, file in enumerate(sorted(photos.rglob("*.*"))):
        place = root if number % 3 else root / "more" / "deep"
        shutil.copy(file, place / f"{number:03d}{file.suffix}")
    (root / "broken.jpg").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def run(options, photos, run_cli_in, tmp_path_factory):
    """A finished run on class folders: distilled without labels, measured with them. Not to be changed."""
    cwd = tmp_path_factory.mktemp("runs")
    outcome = run_cli_in("distill", *options, "--data", photos, "--epochs", "3", "--output", "run", cwd=cwd)
    assert outcome.exit_code == 0, outcome.stderr
    for expected in ("Frozen features", "5-NN accuracy", "as initialised", "linear probe accuracy"):
        assert expected in outcome.stdout
    return cwd / "run"


def test_labels_are_measured_on_and_never_trained_on(run):
    plan = json.loads((run / "plan.json").read_text())
    assert (plan["relation"], plan["label_map"]) == ("same", None)
    assert [(m["method"], m["projector"]) for m in plan["methods"]] == [("projection", "orthogonal")]
    decisions = decisions_of(run)
    assert "no labels" in decisions["data"]["value"]
    assert "No labels are read" in decisions["relation"]["reason"]
    assert decisions["student"]["value"].endswith("no head")
    assert "3 classes, 52 training and 14 test images" in decisions["evaluation"]["value"]
    assert list(metrics_of(run, "validation")[0])[:4] == ["event", "epoch", "step", "spearman"]
    test = metrics_of(run, "test")[-1]
    assert {"spearman", "recall_at_10", "loss"} <= test.keys()
    assert {prefix + row for prefix in ("", "initial_", "teacher_") for row in ROWS} <= test.keys()
    assert test["teacher_linear_probe_accuracy"] == 1.0  # it was trained on these classes
    assert "pipeline_tag: image-feature-extraction" in (run / "README.md").read_text()


def test_the_measured_accuracies_are_those_of_the_saved_student(run, photos):
    """Recomputed from the run folder, by scikit-learn alone, for the nearest neighbours."""
    from sklearn.neighbors import KNeighborsClassifier

    from kdcli.base.reads import Reads
    from kdcli.config.data import DataConfig
    from kdcli.data import Loading, open_unlabelled
    from kdcli.models import load_saved

    labelled = open_unlabelled(DataConfig(name=str(photos)), None, seed=0).labelled
    model = load_saved(run / "student")

    def features(source):
        loader = source.eval_batches(Loading(7, workers=0, strict=True), model.facts.preprocessing)
        with torch.no_grad():
            parts = [
                (model(model.prepare(batch), Reads(("pooled",)) | model.predictions).features["pooled"], batch.targets)
                for batch in loader
            ]
        return [torch.cat(column).numpy() for column in zip(*parts, strict=True)]

    nearest = KNeighborsClassifier(5, metric="cosine").fit(*features(labelled.train))
    assert nearest.score(*features(labelled.test)) == pytest.approx(metrics_of(run, "test")[-1]["knn_accuracy"])


def test_a_backbone_is_exported_for_timm_alone(run, run_cli, tmp_path):
    outcome = run_cli("export", run, "--output", "out")
    assert outcome.exit_code == 0, outcome.stderr
    assert "forward_features" in (tmp_path / "out" / "README.md").read_text()
    assert_same_features(tmp_path / "out", "timm", run)
    assert run_cli("export", run, "--format", "onnx", "--output", "onnx").exit_code == 0
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    assert [output.name for output in session.get_outputs()] == ["embedding"]


def assert_same_features(folder, kind, run):
    from kdcli.base.reads import Reads
    from kdcli.models import load_saved

    done = subprocess.run([sys.executable, "-c", WITHOUT_KDCLI, str(folder), kind], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = load_saved(run / "student")(images, Reads(("pooled",))).features["pooled"]
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_backbone_of_transformers(hf_folder, unsorted, run_cli, tmp_path, trained_teacher, tiny):
    """Trained on loose images alone, one of which can't be read."""
    models = ("--teacher", trained_teacher, "--student", hf_folder)
    outcome = run_cli("distill", *TASK, *models, "--data", unsorted, *tiny, "--output", "run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "Frozen features" not in outcome.stdout
    assert "unreadable images skipped" in outcome.stdout
    assert "images beside its class folders, and only" in decisions_of(tmp_path / "run")["data"]["reason"]
    assert "--eval-data names labelled images" in decisions_of(tmp_path / "run")["evaluation"]["reason"]
    assert run_cli("export", "run").exit_code == 0
    assert_same_features(tmp_path / "run" / "export", "transformers", tmp_path / "run")


def test_it_is_what_a_classifier_starts_from(run, run_cli, tmp_path, photos, tiny):
    arguments = ("--teacher", "none", "--student", run, "--student-pretrained", "--data", photos)
    # So low a rate leaves the backbone as it is.
    outcome = run_cli("distill", *arguments, *tiny, "--method", "none", "--lr", "1e-12", "--output", "tuned")
    assert outcome.exit_code == 0, outcome.stderr
    tuned = load_file(tmp_path / "tuned" / "student" / "model.safetensors")
    backbone = load_file(run / "student" / "model.safetensors")
    weights = [key for key, value in backbone.items() if value.is_floating_point() and "running" not in key]
    assert len(weights) > 10
    assert all(torch.allclose(tuned[key], backbone[key], atol=1e-6) for key in weights)
    assert {key for key in tuned if key not in backbone} == {"fc.weight", "fc.bias"}
    probed = run_cli("models", "probe", "--teacher", run, "--data", photos, "--json")
    assert probed.exit_code == 0, probed.stderr


def test_labelled_images_of_their_own(options, unsorted, photos, run_cli, tmp_path):
    outcome = run_cli("distill", *options, "--data", unsorted, "--eval-data", photos, "--output", "run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "linear_probe_accuracy" in metrics_of(tmp_path / "run", "test")[-1]
    assert "linear probe on" in decisions_of(tmp_path / "run")["evaluation"]["value"]
    refused = run_cli("distill", *options, "--data", photos, "--eval-data", photos, "--dry-run")
    assert (refused.exit_code, "--eval-data is --data itself" in refused.stderr) == (2, True)
    nothing = run_cli("distill", *options, "--data", photos, "--eval-data", "none", "--dry-run")
    assert (nothing.exit_code, "Asked for by --eval-data none" in nothing.stdout) == (0, True)


def test_what_comes_after_training(run, run_cli, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    refused = run_cli("evaluate", copy)
    assert (refused.exit_code, "has no classes" in refused.stderr, "models probe" in refused.stderr) == (2, True, True)
    analysed = run_cli("analyze-projector", copy)
    assert analysed.exit_code == 0, analysed.stderr
    compared = run_cli("compare", copy, "--all")
    assert compared.exit_code == 0, compared.stderr
    assert "knn_accuracy" in compared.stdout


def test_a_stopped_run_goes_on_as_if_it_had_not(options, photos, run_cli, tmp_path):
    """Mixed images go with it: what mixing would do to labels concerns nobody."""
    more = ("--checkpoint-every", "3", "--set", "train.keep_checkpoints=9", "--set", "augment.mixup=0.4")
    whole = run_cli("distill", *options, "--data", photos, *more, "--epochs", "2", "--output", "whole")
    assert whole.exit_code == 0, whole.stderr
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for later in sorted((tmp_path / "part" / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(later)
    outcome = run_cli("distill", "--resume", "part")
    assert outcome.exit_code == 0, outcome.stderr
    first, second = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("whole", "part"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    tests = [metrics_of(tmp_path / name, "test")[-1] for name in ("whole", "part")]
    assert tests[0] == tests[1]


def test_a_sweep_ranks_by_the_teachers_space(options, photos, run_cli, tmp_path, trained_teacher):
    (tmp_path / "mine.yaml").write_text(
        f"task: image-embedding\nteacher: {trained_teacher}\nstudent: {{name: test_resnet, image_size: 32}}\n"
        f"data: {photos}\ntrain: {{epochs: 1, batch_size: 16, device: cpu}}\n"
    )
    outcome = run_cli("sweep", "mine.yaml", "--seeds", "1", "--vary", "projector=orthogonal,linear", "--no-test")
    assert outcome.exit_code == 0, outcome.stderr
    assert "spearman" in outcome.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--teacher", "none"), "all there is to learn from is a teacher"),
        (("--teacher", "random:test_vit"), "the relation is random"),
        (("--baseline",), "no labels that it could learn from"),
        (("--method", "refilled"), "needs labels"),
        (("--method", "dkd"), "needs labels"),
        (("--classes", "0-1"), "data.classes is about labels"),
        (("--set", "data.labels_per_class=3"), "data.labels_per_class is about labels"),
        (("--set", "teacher.pooling=cls"), "teacher.pooling is set, which is about texts"),
        (("--ways", "2", "--shots", "2"), "image-embedding"),
        (("--data", "no/such"), "There is no data set or folder"),
        (("--eval-data", "no/such"), "There is no data set or folder"),
        (("--set", "eval_data={name: demo:digits, text_column: x}"), "eval_data.text_column has no effect"),
        (("--set", "eval_data={name: demo:digits, workers: 1}"), "eval_data.workers has no effect"),
    ],
)
def test_what_can_not_work_is_refused(more, message, options, photos, run_cli, tmp_path):
    data = () if "--data" in more else ("--data", photos)
    outcome = run_cli("distill", *options, *data, *more)
    assert outcome.exit_code == 2, outcome.stdout
    assert message in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_other_tasks_have_no_such_data(photos, run_cli):
    outcome = run_cli("distill", "--teacher", "none", "--student", "test_vit", "--data", photos, "--eval-data", photos)
    assert (outcome.exit_code, "eval_data is for the task image-embedding" in outcome.stderr) == (2, True)


def test_an_untrained_space_is_taken_when_asked_for(options, photos, run_cli):
    arguments = ("--teacher", "random:test_vit", "--relation", "same", "--data", photos, "--dry-run")
    assert run_cli("distill", *options, *arguments).exit_code == 0


def test_files_of_several_pixels_are_hashed_apart():
    """What is known of an image is looked up by its pixels, whatever split it is of."""
    from kdcli.data import Batch
    from kdcli.machine.team import Team
    from kdcli.tasks.embedding.images import ImageEmbedding
    from kdcli.training.evaluation import run_meter

    asked = []

    def reference(batch):
        asked.append(len(batch))
        return batch.images.float().mean((2, 3))

    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), dtype=np.uint8))

    def batches(start):
        yield Batch(
            images=images[start:4],
            targets=torch.full((4 - start,), -1),
            samples=torch.arange(4 - start),
            skipped=["broken.jpg"],
        )

    task = ImageEmbedding(reference)
    for start in (0, 0, 1):
        team = Team.alone()
        metrics = run_meter(task.meter(team), lambda batch: batch.images.float().mean((2, 3)), batches(start), team)
        assert metrics["spearman"] == pytest.approx(1.0)
    assert asked == [4]
