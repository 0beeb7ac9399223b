"""A teacher of other classes is probed before it teaches: good, untrained and constant ones, and what is known from before."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from kdcli.training.teachers import cache as teacher_cache
from kdcli.training.teachers import features as teacher_features

SIZE = ("--set", "teacher.image_size=32", "--set", "student.image_size=32", "--set", "data.workers=0")
RUN = ("--student", "test_resnet", "--batch-size", "16", "--epochs", "1", "--device", "cpu", *SIZE)
COLOURS = ("red", "green", "blue")
PER_CLASS = 30


def noise(generator, mean=60.0):
    return np.clip(generator.normal(mean, 40, (32, 32, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders ``colours`` (a class shows in its colour) and ``noise`` (in nothing), and weights of test_vit.

    ``good.pth`` is untrained, and its features tell colours as any projection of the pixels does; ``constant.pth`` gives the
    same features for everything.
    """
    cwd, generator = tmp_path_factory.mktemp("probe"), np.random.default_rng(0)
    for split, count in {"train": PER_CLASS, "val": 4, "test": 4}.items():
        for channel, name in enumerate(COLOURS):
            for data in ("colours", "noise"):
                folder = cwd / data / split / name
                folder.mkdir(parents=True)
                for number in range(count):
                    mean = np.where(np.arange(3) == channel, 190.0, 60.0) if data == "colours" else 100.0
                    Image.fromarray(noise(generator, mean)).save(folder / f"{number}.png")
    torch.manual_seed(0)
    state = timm.create_model("test_vit", num_classes=7).state_dict()
    torch.save(state, cwd / "good.pth")
    blind = {name: 0 * value for name, value in state.items() if name.startswith("patch_embed.")}
    torch.save(state | blind, cwd / "constant.pth")
    return cwd


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kdcli" / "teachers"


@pytest.fixture
def plan_of(place, run_cli):
    def plan(*arguments, data="colours", teacher=("--teacher", "test_vit", "--teacher-weights", "good.pth"), cwd=place):
        teacher_cache._of_this_process.clear()  # as a process of its own
        command = ("distill", *teacher, "--data", data, *RUN, "--dry-run", "--log-format", "json", *arguments)
        outcome = run_cli(*command, cwd=cwd)
        assert outcome.exit_code == 0, outcome.stderr
        return json.loads(outcome.stdout)

    return plan


def probed(plan):
    found = [decision for decision in plan["decisions"] if decision["name"] == "teacher probed"]
    assert len(found) < 2
    return found[0] if found else None


def test_a_teacher_that_knows_the_classes(plan_of):
    plan = plan_of()
    decision = probed(plan)
    assert plan["relation"] == "cross"
    (tap,) = {method["teacher_tap"] for method in plan["methods"] if method["method"] == "projection"}
    found = plan["teacher_probe"]["accuracy"]
    assert decision["value"] == f"accuracy {found:.4f} ({tap}), 90 training images of 3 classes"
    assert plan["teacher_probe"]["accuracy"] > 0.9
    assert plan["teacher_probe"]["level"] == "above"
    assert "Guessing gives an accuracy of 0.33" in decision["reason"]
    assert f"the images themselves, 8x8 pixels, {plan['teacher_probe']['of_input']:.4f}" in decision["reason"]
    assert "Warning" not in decision["reason"]
    assert decision["reason"].endswith(" s, once.")


def test_an_untrained_teacher_is_probed_too(plan_of):
    plan = plan_of(teacher=("--teacher", "random:test_vit"))
    assert (plan["relation"], plan["teacher_probe"]["level"]) == ("random", "above")


@pytest.mark.parametrize(("data", "weights"), [("noise", "good.pth"), ("colours", "constant.pth")])
def test_features_that_tell_nothing_are_warned_of(plan_of, data, weights, monkeypatch):
    """Of classes that are in no pixel, and of features that are the same for every image: guessing, a third right."""
    named = ("--teacher", "test_vit", "--teacher-weights", weights, "--feature-layers", "pooled:pooled")
    plan = plan_of(data=data, teacher=named)
    assert plan["teacher_probe"]["accuracy"] < 0.45
    assert plan["teacher_probe"]["level"] == "near"
    assert "Warning: they tell nothing of your classes, so expect no help of this teacher" in probed(plan)["reason"]
    assert "'kdcli models probe' ranks others" in probed(plan)["reason"]
    is_told_by_pixels = plan["teacher_probe"]["of_input"] > 0.9
    assert is_told_by_pixels == (data == "colours")
    if data == "noise":
        monkeypatch.setattr(teacher_features, "MOST_SAMPLES", 12)
        few = plan_of(data=data)
        assert few["teacher_probe"]["level"] != "above"


def test_what_is_probed_is_what_is_distilled(plan_of):
    layers = ("--feature-layers", "pooled:blocks.1", "--feature-layers", "pooled:pooled")
    assert "(blocks.1), " in probed(plan_of(*layers))["value"]
    assert probed(plan_of(*layers))["value"].count("(pooled)") == 1


def test_no_probe_without_a_reason(plan_of):
    """Of a teacher that has the classes its answers are measured; with one label a class nothing can be held out."""
    same = plan_of("--unchecked-teacher", "--set", "teacher.label_names=[red, green, blue, a, b, c, d]")
    assert (same["relation"], same["teacher_probe"], probed(same)) == ("same", None, None)
    alone = probed(plan_of("--set", "data.labels_per_class=1"))
    assert alone["value"] == "no"
    assert alone["reason"] == "There are no two classes with two labelled training images each."


def test_a_costly_teacher_gets_fewer_samples(plan_of, monkeypatch):
    monkeypatch.setattr(teacher_features, "MOST_SAMPLES", 12)
    assert plan_of()["teacher_probe"]["samples"] == 12
    monkeypatch.setattr(teacher_features, "MOST_MACS", 1.0)
    monkeypatch.setattr(teacher_features, "MOST_SAMPLES", 500)
    monkeypatch.setattr(teacher_features, "FEWEST_SAMPLES", 9)
    assert plan_of()["teacher_probe"]["samples"] == 9


def test_what_is_known_is_not_measured_again_until_teacher_or_data_change(plan_of, place, tmp_path, cache, monkeypatch):
    runs = []
    measure = teacher_features.features_of

    def count(*arguments, **options):
        runs.append(1)
        return measure(*arguments, **options)

    monkeypatch.setattr(teacher_features, "features_of", count)
    first = plan_of()
    again = plan_of("--seed", "5", "--set", "optim.lr=0.01")
    assert (len(runs), len(list(cache.iterdir()))) == (1, 1), (
        "the layer is chosen and probed by one pass over the sample"
    )
    assert again["teacher_probe"] == first["teacher_probe"]
    assert probed(again) == probed(first)
    (before,) = (decision for decision in first["decisions"] if decision["name"] == "teacher's layer")
    assert before in again["decisions"], "all seeds take one layer"
    moved = shutil.copytree(place / "colours", tmp_path / "moved")
    plan_of(data=moved)
    assert len(runs) == 1, "it is the samples that count, not where they lie"
    Image.fromarray(noise(np.random.default_rng(1))).save(moved / "train" / "red" / "0.png")
    plan_of(data=moved)
    assert len(runs) == 2, "another image"
    shutil.move(moved / "train" / "red" / "1.png", moved / "train" / "blue" / "red-1.png")
    plan_of(data=moved)
    assert len(runs) == 3, "another label"
    state = torch.load(place / "good.pth")
    torch.save(state | {"norm.bias": state["norm.bias"] + 0.1}, tmp_path / "other.pth")
    plan_of(teacher=("--teacher", "test_vit", "--teacher-weights", tmp_path / "other.pth"))
    assert len(runs) == 4, "other weights"
    asked = plan_of("--feature-layers", "pooled:norm")
    plan_of("--set", "teacher.mean=[0,0,0]")
    assert len(runs) == 6, "other features, another input"
    assert probed(plan_of())["value"] == probed(first)["value"] != probed(asked)["value"]
    assert probed(plan_of("--feature-layers", "pooled:norm"))["value"] == probed(asked)["value"]
    assert len(runs) == 6, "what is known of other features stays"
    for file in cache.iterdir():
        file.write_text('{"accuracy": 5}')
    plan_of()
    assert len(runs) == 7, "a damaged file is as none"


def test_a_cache_that_can_not_be_written_costs_nothing(plan_of, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    runs, measure = [], teacher_features.features_of
    monkeypatch.setattr(teacher_features, "features_of", lambda *a, **k: runs.append(1) or measure(*a, **k))
    assert plan_of()["teacher_probe"]["level"] == "above"
    assert len(runs) == 1


def test_unreadable_images_are_left_out(plan_of, place, tmp_path):
    """Training replaces them; to be probed a class wants two that can be read."""
    damaged = shutil.copytree(place / "colours", tmp_path / "damaged")
    for name, kept in (("red", 1), ("green", 20)):
        for file in sorted((damaged / "train" / name).iterdir())[kept:]:
            file.write_bytes(b"no image")
    assert probed(plan_of(data=damaged))["value"].endswith(f"{20 + PER_CLASS} training images of 2 classes")


def test_texts(run_cli, bert_folder, distilbert_folder, reviews, monkeypatch):
    command = ("distill", "--task", "text-classification", "--teacher", bert_folder, "--student", distilbert_folder)
    options = ("--data", reviews, "--device", "cpu", "--dry-run", "--log-format", "json")
    outcome = run_cli(*command, *options)
    assert outcome.exit_code == 0, outcome.stderr
    plan = json.loads(outcome.stdout)
    assert plan["teacher_probe"]["of_input"] > 0.95, "two words of each text tell its class"
    assert "counts of words" in probed(plan)["reason"]
    assert probed(plan)["value"].endswith("training texts of 2 classes")
