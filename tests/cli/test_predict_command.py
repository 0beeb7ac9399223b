"""``kdcli predict``: its answers against what evaluation counts, what it prints and writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

CPU = ("--device", "cpu")


@pytest.fixture
def predict(run_cli):
    """Run ``predict ... --json``; return the object, which must be all that is printed."""

    def run(*arguments, code=0):
        outcome = run_cli("predict", *arguments, *CPU, "--json")
        assert outcome.exit_code == code, outcome.stderr
        assert code or outcome.stderr == ""
        return json.loads(outcome.stdout)

    return run


@pytest.fixture
def refused(run_cli, tmp_path):
    """Run ``predict``, which must be refused without a trace; return its message and hint."""

    def run(*arguments):
        before = sorted(tmp_path.rglob("*"))
        exit_code, stdout, stderr = run_cli("predict", *arguments, *CPU)
        assert (exit_code, stdout) == (2, ""), stdout + stderr
        assert [line[:5] for line in stderr.splitlines()] == ["Error", "Hint:"], stderr
        assert stderr.split("\nHint: ")[1].strip(), "an empty hint"
        assert sorted(tmp_path.rglob("*")) == before
        return stderr

    return run


@pytest.fixture
def album(photos, tmp_path):
    """Two folders with an image of the same name, one that is rotated by its EXIF, and odd names and modes."""
    folder = tmp_path / "album"
    for kind in ("apple", "sky"):
        (folder / kind).mkdir(parents=True)
        shutil.copy(photos / kind / "291155-01.png", folder / kind / "a.png")
    image = Image.open(photos / "leaf" / "291155-01.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.resize((60, 40)).save(folder / "Ωμέγα.jpg", exif=exif, quality=95)
    image.convert("RGBA").save(folder / "clear.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    return folder


# --- classes ----------------------------------------------------------------------------------------------------------


def test_labels_are_those_that_evaluation_counted(same_run, predict, run_cli):
    from kdcli.data.images.sources import file_paths
    from kdcli.runs.folder import RunFolder
    from kdcli.training.prepare import reopen_job

    evaluated = json.loads(run_cli("evaluate", same_run, *CPU, "--json", "--output", "evaluation").stdout)
    source = reopen_job(RunFolder.open(same_run)).data.test
    found = predict(same_run, *file_paths(source), "--teacher", "--batch-size", "5")
    names = found["models"]["student"]["class_names"]
    assert names == evaluated["class_names"]
    for role in ("student", "teacher"):
        confusion = np.zeros((3, 3), int)
        for each, true in zip(found["predictions"], source.labels, strict=True):
            best = each["answers"][role]
            assert sum(one["probability"] for one in best) == pytest.approx(1)
            assert [one["probability"] for one in best] == sorted((one["probability"] for one in best), reverse=True)
            confusion[true, names.index(best[0]["label"])] += 1
        assert confusion.tolist() == evaluated["models"][role]["confusion"]


def test_a_table_csv_and_json_have_the_same(alone_run, album, run_cli, predict, tmp_path, monkeypatch):
    monkeypatch.setattr("kdcli.cli.predict._SHOWN", 2)
    outcome = run_cli("predict", alone_run, album, *CPU, "--top", "2", "--output", "found.csv")
    assert outcome.exit_code == 0, outcome.stderr
    with (tmp_path / "found.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = predict(alone_run, album, "--top", "2")
    assert [each["input"] for each in found["predictions"]] == [
        f"{album}/{name}" for name in ("clear.png", "deep.png", "Ωμέγα.jpg", "apple/a.png", "sky/a.png")
    ]
    flat = [
        (each["input"], str(rank), one["label"], pytest.approx(one["probability"]))
        for each in found["predictions"]
        for rank, one in enumerate(each["answers"]["student"], 1)
    ]
    assert [(row["input"], row["rank"], row["label"], float(row["probability"])) for row in rows] == flat
    best = found["predictions"][0]["answers"]["student"][0]
    assert f"{best['label']} {best['probability']:.1%}" in outcome.stdout
    assert "Wrote found.csv" in outcome.stdout
    assert "Shown: the first 2 of 5; found.csv has all of them." in outcome.stdout
    assert "deep.png" in outcome.stdout
    assert "Ωμέγα.jpg" not in outcome.stdout


def test_an_exported_folder_and_a_run_as_against_answer_alike(alone_run, album, predict):
    found = predict(alone_run / "student", album / "clear.png", "--against", alone_run)
    (answers,) = (each["answers"] for each in found["predictions"])
    assert answers["model"] == answers["against-1"]


def test_classes_of_another_model_are_its_own(alone_run, album, predict):
    found = predict(alone_run, album / "clear.png", "--against", "random:test_vit", "--top", "1")
    assert len(found["models"]["against-1"]["class_names"]) == 1000
    assert found["predictions"][0]["answers"]["against-1"][0]["label"].isdigit()
    assert any("its own classes" in note for note in found["notes"])


def test_one_image_that_cannot_be_read_is_told_and_the_others_are_answered(alone_run, album, predict, run_cli):
    (album / "apple" / "torn.png").write_bytes((album / "clear.png").read_bytes()[:200])
    found = predict(alone_run, album, code=1)
    assert found["unreadable"] == [f"{album}/apple/torn.png"]
    assert (found["num_inputs"], len(found["predictions"])) == (6, 5)
    outcome = run_cli("predict", alone_run, album, *CPU)
    assert outcome.exit_code == 1
    assert "torn.png" in outcome.stderr


def test_what_is_refused(alone_run, classified_run, language_models, album, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("good\n")
    (tmp_path / "torn.png").write_bytes((album / "clear.png").read_bytes()[:200])
    (tmp_path / "own.csv").write_text("a,b\ngood film,bad plot\n")
    assert "has no images. It is empty" in refused(alone_run, "empty")
    assert "notes.txt is no image" in refused(alone_run, album, "notes.txt")
    assert "There is no file or folder missing.png" in refused(alone_run, album, "missing.png")
    assert "can't be read" in refused(alone_run, "torn.png", "--output", "out")
    assert "reads no texts" in refused(alone_run, "--text", "good")
    assert "Nothing is named" in refused(alone_run)
    assert "An input is empty" in refused(alone_run, "")
    (tmp_path / "mine.csv").write_text("keep,me\n")
    assert "holds no predictions" in refused(alone_run, album, "--output", "mine.csv")
    assert (tmp_path / "mine.csv").read_text() == "keep,me\n"
    other = refused(alone_run, album, "--against", "random:torchvision:ssdlite320_mobilenet_v3_large")
    assert "Leave --against random:torchvision" in other
    assert "holds files that are no predictions" in refused(alone_run, album, "--output", album)
    assert "which is read" in refused(classified_run, "own.csv", "--text-column", "a", "--output", "own.csv")
    assert ".npy file is for embeddings" in refused(alone_run, album, "--output", "x.npy")
    assert "--score is for boxes" in refused(alone_run, album, "--score", "0.5")
    assert "is a folder, and the model reads texts" in refused(classified_run, album)
    assert "--text-column" in refused(classified_run, "own.csv")
    assert "without a teacher" in refused(alone_run, album, "--teacher")
    assert "pipeline('text-generation'" in refused(language_models / "causal", "--text", "good")


# --- texts ------------------------------------------------------------------------------------------------------------


def test_texts_are_classified_as_evaluation_counts(classified_run, reviews, predict, run_cli, monkeypatch, tmp_path):
    evaluated = json.loads(
        run_cli(
            "evaluate", classified_run, "--split", "validation", *CPU, "--no-teacher", "--json", "--output", "e"
        ).stdout
    )
    from kdcli.runs.folder import RunFolder
    from kdcli.training.prepare import reopen_job

    source = reopen_job(RunFolder.open(classified_run)).data.validation
    (tmp_path / "texts.txt").write_text("\n\n".join(source.texts) + "\n")
    found = predict(classified_run, "texts.txt")
    names = found["models"]["student"]["class_names"]
    right = [
        names.index(each["answers"]["student"][0]["label"]) == label
        for each, label in zip(found["predictions"], source.labels, strict=True)
    ]
    assert np.mean(right) == pytest.approx(evaluated["models"]["student"]["top1"])
    table = predict(classified_run, reviews)
    assert len(table["predictions"]) == 240
    assert table["predictions"][0]["input"] == f"{reviews} row 1"
    monkeypatch.setattr("sys.stdin", __import__("io").StringIO(f"{source.texts[0]}\n"))
    both = predict(classified_run, "-", "--text", source.texts[0])
    assert [each["input"] for each in both["predictions"]] == ["text 1", "stdin line 1"]
    told = [each["answers"]["student"][0]["probability"] for each in (*both["predictions"], found["predictions"][0])]
    assert told == pytest.approx([told[0]] * 3, abs=1e-5)


def test_embeddings_are_those_that_the_exported_folder_gives(embedded_run, run_cli, tmp_path):
    assert run_cli("export", embedded_run, "--output", "exported").exit_code == 0
    texts = [part for text in ("the film was great", "dull plot", "a story") for part in ("--text", text)]
    for name, file in ((embedded_run, "run.npy"), ("exported", "exported.npy")):
        outcome = run_cli("predict", name, *texts, *CPU, "--output", file)
        assert outcome.exit_code == 0, outcome.stderr
    own, exported = (np.load(tmp_path / name) for name in ("run.npy", "exported.npy"))
    assert own.shape == (3, 32)
    assert np.linalg.norm(own, axis=1) == pytest.approx(1)
    assert own == pytest.approx(exported, abs=1e-5)
    assert abs(own[0] @ own[1]) < 0.9999


def test_entities_have_their_places_in_the_text(bert_folder, make_tokenizer, predict, tmp_path):
    """Weights are made so that the words ``good`` and ``bad`` are entities, whatever stands beside them."""
    from transformers import BertConfig, BertForTokenClassification

    tokenizer = make_tokenizer(max_length=12)
    names = ("O", "B-GOOD", "B-BAD")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=12, id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)}, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForTokenClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "LayerNorm.weight" in name else 0.0)
        words = model.bert.embeddings.word_embeddings.weight
        words[:, 0] = 1.0
        for place, word in ((1, "good"), (2, "bad")):
            words[tokenizer.convert_tokens_to_ids(word)] = 5 * torch.nn.functional.one_hot(torch.tensor(place), 16)
        model.classifier.weight[torch.arange(3), torch.arange(3)] = 1.0
    model.save_pretrained(tmp_path / "words")
    tokenizer.save_pretrained(tmp_path / "words")
    text = "good, the film was a very bad end. The music: quite good and the plot with the script bad"
    found = predict("words", "--text", text)
    entities = found["predictions"][0]["answers"]["model"]
    assert [(each["entity"], each["text"]) for each in entities] == [
        ("GOOD", "good"), ("BAD", "bad"), ("GOOD", "good"), ("BAD", "bad"),
    ]  # fmt: skip
    assert [text[each["start"] : each["end"]] for each in entities] == ["good", "bad", "good", "bad"]
    assert entities[0]["start"] == 0
    assert entities[-1]["end"] == len(text)


# --- masks, depth and boxes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segmented(tmp_path_factory, run_cli_in):
    """A folder with ``run``, of images of 32 x 40 pixels that the model takes as they are, and ``data``."""
    pytest.importorskip("segmentation_models_pytorch")
    cwd, generator = tmp_path_factory.mktemp("segmented"), np.random.default_rng(0)
    for split, number in (("train", 12), ("val", 4), ("test", 5)):
        for kind in ("images", "masks"):
            (cwd / "data" / split / kind).mkdir(parents=True)
        for index in range(number):
            mask = np.zeros((32, 40), np.uint8)
            top, left = generator.integers(2, 16, 2)
            mask[top : top + 12, left : left + 14] = 1
            image = np.array([[220, 220, 200], [30, 40, 120]])[mask] + generator.normal(0, 12, (32, 40, 1))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(cwd / "data" / split / "images" / f"{index}.png")
            Image.fromarray(mask).save(cwd / "data" / split / "masks" / f"{index}.png")
    outcome = run_cli_in(
        "distill", "--task", "semantic-segmentation", "--data", "data", "--teacher", "none",
        "--student", "smp:linknet/mobilenetv3_small_050?encoder_depth=3", "--set", "student.image_size=[32,40]",
        "--set", "data.class_names=[paper,ink]", "--set", "data.workers=0",
        "--batch-size", "4", "--lr", "0.005", "--epochs", "4", "--output", "run", *CPU, cwd=cwd,
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    return cwd


def test_masks_are_those_that_evaluation_counted(segmented, run_cli_in, tmp_path):
    evaluated = json.loads(run_cli_in("evaluate", "run", *CPU, "--json", cwd=segmented).stdout)
    out = tmp_path / "masks"
    outcome = run_cli_in("predict", "run", "data/test/images", *CPU, "--output", out, cwd=segmented)
    assert outcome.exit_code == 0, outcome.stderr
    confusion = np.zeros((2, 2), int)
    for number in range(5):
        mask = np.asarray(Image.open(out / f"{number}_mask.png"))
        np.add.at(confusion, (np.asarray(Image.open(segmented / f"data/test/masks/{number}.png")), mask), 1)
        assert Image.open(out / f"{number}.png").width > 900
    assert confusion.tolist() == evaluated["models"]["student"]["confusion"]
    found = json.loads((out / "predictions.json").read_text())
    shares = {one["label"]: one["share"] for one in found["predictions"][4]["answers"]["student"]}
    assert shares.get("ink", 0) == pytest.approx((mask == 1).mean())
    assert f"paper {shares['paper']:.1%}" in outcome.stdout


def test_pictures_of_one_name_lie_beside_each_other_and_are_replaced(segmented, album, run_cli_in, tmp_path):
    out = tmp_path / "out"
    inputs = (album, album / "apple" / "a.png", album / "sky" / "a.png", segmented / "data/val/images/0.png")

    def files(*arguments):
        outcome = run_cli_in("predict", segmented / "run" / "student", *arguments, *CPU, "--output", out, cwd=tmp_path)
        assert outcome.exit_code == 0, outcome.stderr
        return {path.relative_to(out).as_posix() for path in out.rglob("*.png")}

    names = ("clear", "deep", "Ωμέγα", "apple/a", "sky/a", "0")  # a file that is named twice is read once
    assert files(*inputs) == {f"{name}{end}.png" for name in names for end in ("", "_mask")}
    assert Image.open(out / "Ωμέγα_mask.png").size == (40, 60), "upright, as the loader turns it"
    same = (album / "apple" / "a.png", album / "sky" / "a.png")
    assert files(*same) == {"a.png", "a_mask.png", "a-2.png", "a-2_mask.png"}
    content = json.loads((out / "predictions.json").read_text())["predictions"]
    assert [each["files"] for each in content] == [["a.png", "a_mask.png"], ["a-2.png", "a-2_mask.png"]]
    assert not (out / "apple").exists()

    (tmp_path / "precious.png").write_bytes(b"mine")
    content[0]["files"] += ["../precious.png", str(tmp_path / "precious.png"), "x/../../precious.png"]
    (out / "predictions.json").write_text(json.dumps({"predictions": content}))
    Image.new("RGB", (1, 3000), "white").save(tmp_path / "tall.png")
    assert files("tall.png") == {"tall.png", "tall_mask.png"}
    assert (tmp_path / "precious.png").read_bytes() == b"mine", "whatever the list of a folder says"
    assert Image.open(out / "tall.png").height < 2500


def test_depth_is_in_millimetres_of_the_image(album, run_cli, tmp_path):
    from kdcli.base.facts import DataFacts, DepthFacts
    from kdcli.config.models import StudentConfig
    from kdcli.models import build_student

    name = "hf:glpn?hidden_sizes=[8,8,16,16]&depths=[1,1,1,1]&num_attention_heads=[1,1,1,1]&decoder_hidden_size=8"
    facts = DataFacts("", "depth-estimation", ("depth",), 1, 1, 0, 0, label_kind="depth", depth=DepthFacts(0.001, 8.0))
    build_student(StudentConfig(name=name, image_size=32), facts, seed=0).eval().save(tmp_path / "model")
    outcome = run_cli("predict", "model", album / "clear.png", album / "Ωμέγα.jpg", *CPU, "--output", "out")
    assert outcome.exit_code == 0, outcome.stderr
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    for each, (width, height) in zip(found["predictions"], ((40, 40), (40, 60)), strict=True):
        (record,) = each["answers"]["model"]
        depth = np.asarray(Image.open(tmp_path / "out" / each["files"][1]))
        assert (depth.dtype, depth.shape) == (np.uint16, (height, width))
        assert np.median(depth) == pytest.approx(1000 * record["median"], abs=1)
        assert record["kind"] == "metres"
        assert 0 < record["smallest"] <= record["largest"] <= 8

    far = DataFacts("", "depth-estimation", ("depth",), 1, 1, 0, 0, label_kind="depth", depth=DepthFacts(0.001, 200.0))
    build_student(StudentConfig(name=name, image_size=32), far, seed=0).eval().save(tmp_path / "far")
    outcome = run_cli("predict", "far", album / "clear.png", *CPU, "--output", "far_out", "--json")
    (found,) = json.loads(outcome.stdout)["predictions"]
    assert found["files"] == ["clear.png", "clear_depth.npy"]
    depth = np.load(tmp_path / "far_out" / "clear_depth.npy")
    assert depth.max() == pytest.approx(found["answers"]["model"][0]["largest"])
    assert 70 < depth.max() <= 200, "metres of the model's own range, which nothing clamps"


def test_deep_images_are_black_and_white_where_they_were_in_training(album, tmp_path):
    """Also of a run that is not the first that is named; runs that differ are not asked together."""
    from kdcli.base.errors import UserError
    from kdcli.data.own import Item
    from kdcli.results.predict import _deep_range

    def run(deep_range):
        return SimpleNamespace(read_config=lambda: SimpleNamespace(data=SimpleNamespace(deep_range=deep_range)))

    notes = []
    items = [Item("deep", str(album / "deep.png"), "deep")]
    assert _deep_range("a", None, {"b": run((0.0, 4095.0))}, items, notes) == (0.0, 4095.0)
    assert _deep_range("a", run(None), {"b": run((0.0, 4095.0)), "c": None}, items, notes) == (0.0, 4095.0)
    assert notes == []
    with pytest.raises(UserError, match="a and b take different values"):
        _deep_range("a", run((0.0, 255.0)), {"b": run((0.0, 4095.0))}, items, notes)
    assert _deep_range("a", None, {}, [Item("clear", str(album / "clear.png"), "clear")], notes) is None
    assert notes == []
    assert _deep_range("a", None, {}, items, notes) is None
    assert "scaled each by its own values" in notes[0]


def test_boxes_are_in_pixels_of_the_image(album, run_cli, tmp_path):
    """The detector squashes 40 x 60 pixels, as they are turned, to its own size."""
    from kdcli.config.models import TeacherConfig
    from kdcli.data import fit
    from kdcli.data.images.decode import decode_image
    from kdcli.models import load_teacher

    name = "random:torchvision:ssdlite320_mobilenet_v3_large"
    model = load_teacher(TeacherConfig(name=name), seed=0, task="object-detection")
    height, width = model.facts.preprocessing.image_size
    image = fit(decode_image(str(album / "Ωμέγα.jpg")), model.facts.preprocessing)
    from kdcli.data import Batch

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    batch = Batch(images=pixels, targets=[], samples=torch.zeros(1, dtype=torch.int64))
    with torch.inference_mode():
        raw = model(model.prepare(batch)).heads["boxes"].boxes[0]
    best = raw["boxes"][0].double() * torch.tensor([40 / width, 60 / height] * 2)
    outcome = run_cli(
        "predict", name, album / "Ωμέγα.jpg", *CPU, "--score", "0", "--top", "3", "--output", "out", "--json"
    )
    assert outcome.exit_code == 0, outcome.stderr
    found = json.loads(outcome.stdout)["predictions"][0]
    boxes = found["answers"]["model"]
    assert len(boxes) == 3
    assert [boxes[0][edge] for edge in ("left", "top", "right", "bottom")] == pytest.approx(best.tolist(), abs=1e-3)
    assert boxes[0]["score"] == pytest.approx(float(raw["scores"][0]), abs=1e-6)
    assert found["files"] == ["Ωμέγα.png"]
    assert "no box" in run_cli("predict", name, album / "Ωμέγα.jpg", *CPU, "--score", "1").stdout


@pytest.mark.parametrize(("geometry", "size"), [("squash", (40, 60)), ("crop", (40, 60)), ("border", (60, 30))])
def test_masks_go_back_to_where_the_image_was(geometry, size):
    """A mask of a canvas is that of the image wherever the canvas shows it, and nothing elsewhere."""
    from kdcli.base.facts import Preprocessing
    from kdcli.data.images.preprocess import fit_geometry, geometry_at
    from kdcli.tasks.dense.answers import back_to

    height, width = size
    preprocessing = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, geometry=geometry)
    truth = np.zeros(size, np.float32)
    truth[10:30, 10:20] = 1
    moves = fit_geometry(Image.new("RGB", (width, height)), preprocessing)
    from torchvision import tv_tensors

    canvas = moves.of_target(tv_tensors.Mask(torch.from_numpy(truth)[None]), fill=0.0)
    assert canvas.shape == (1, 32, 32)
    axes = geometry_at(height, width, preprocessing).along_axes(height, width)
    parts = list(back_to(canvas, size, axes))
    found = torch.cat([values for _, values, _ in parts], dim=1)[0].numpy()
    shown = torch.cat([part for *_, part in parts]).numpy()
    assert shown.mean() == pytest.approx(2 / 3 if geometry == "crop" else 1.0, abs=0.01)
    wrong = ((found > 0.5) != (truth > 0.5)) & shown
    edge = np.zeros(size, bool)
    edge[8:32, 8:22] = True
    edge[12:28, 12:18] = False
    assert not (wrong & ~edge).any()
    assert wrong.mean() < 0.06
