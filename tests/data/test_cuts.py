"""Splits that are cut from a folder: by each sample's name alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdcli.base.facts import UNLABELLED
from kdcli.config.data import DataConfig
from kdcli.data import ImageData, TextData, open_data, open_texts, open_unlabelled
from kdcli.data.splits import cut_indices, hold_out
from kdcli.machine.seeding import stable_share

from .conftest import write_image

CLASSES = ("cat", "dog", "emu")


def cut(names: list[str], labels: list[int], *, fraction: float = 0.2, seed: int = 0) -> set[str]:
    rest, part = cut_indices(labels, fraction, CLASSES, range(3), seed=seed, purpose="test", names=names)
    assert sorted([*rest, *part]) == list(range(len(names)))
    return {names[index] for index in part}


def samples(count: int) -> tuple[list[str], list[int]]:
    return [f"{CLASSES[number % 3]}/{number}.png" for number in range(count)], [number % 3 for number in range(count)]


def test_a_sample_more_or_less_moves_no_other() -> None:
    names, labels = samples(300)
    whole = cut(names, labels)
    for number in range(0, 300, 7):
        without = cut(names[:number] + names[number + 1 :], labels[:number] + labels[number + 1 :])
        assert without == whole - {names[number]}
    assert cut(names[::-1], labels[::-1]) == whole


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_cut_in_proportion(seed: int) -> None:
    names, labels = samples(6000)
    part = cut(names, labels, seed=seed)
    for name in CLASSES:
        assert sum(held_out.startswith(name) for held_out in part) == pytest.approx(400, abs=5 * np.sqrt(2000 * 0.16))


def test_seeds_and_purposes_are_independent() -> None:
    names, _ = samples(5000)
    cuts = [
        set(hold_out(names, 0.2, seed=seed, purpose=purpose)) for seed in range(3) for purpose in ("test", "validation")
    ]
    for number, first in enumerate(cuts):
        for second in cuts[:number]:
            assert len(first & second) == pytest.approx(200, abs=75)


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.7])
def test_every_class_is_on_both_sides(fraction: float) -> None:
    names, labels = samples(12)
    part = cut(names, labels, fraction=fraction)
    assert {name[:3] for name in part} == {name[:3] for name in set(names) - part} == set(CLASSES)


def test_of_few_samples_those_of_the_lowest_hash_are_held_out() -> None:
    names, _ = samples(10)
    few = [set(hold_out(names, 1e-9, seed=0, purpose="test", fewest=number)) for number in (1, 2, 3)]
    assert [len(part) for part in few] == [1, 2, 3]
    assert few[0] < few[1] < few[2]


def test_samples_without_names_keep_the_cut_by_place() -> None:
    """The quickstart's numbers rest on it."""
    from sklearn.model_selection import train_test_split

    labels = [number % 3 for number in range(90)]
    _, part = cut_indices(labels, 0.2, CLASSES, range(3), seed=3, purpose="test")
    _, expected = train_test_split(np.arange(90), test_size=18, stratify=labels, random_state=3)
    assert part.tolist() == sorted(expected)


def split_of(data: ImageData | TextData, root: Path) -> dict[str, str]:
    sources = {"train": data.train, "validation": data.validation, "test": data.test}
    return {
        str(source.load(index).inputs)
        if isinstance(data, TextData)
        else str(Path(source.describe(index)).relative_to(root)): split
        for split, source in sources.items()
        if source is not None
        for index in range(len(source))
    }


@pytest.mark.parametrize("is_labelled", [True, False])
def test_a_file_more_moves_no_other(make_folder: Callable[..., Path], tmp_path: Path, is_labelled: bool) -> None:
    root = make_folder({"cat": 40, "dog/old": 40})

    def opened(folder: Path) -> dict[str, str]:
        config = DataConfig(name=str(folder))
        return split_of(open_data(config, seed=1) if is_labelled else open_unlabelled(config, None, seed=1), folder)

    before = opened(root)
    write_image(root / "cat" / "000-first.png", seed=7)
    after = opened(root)
    assert before.items() < after.items()
    (root / "dog" / "old" / "003.png").unlink()
    del after["dog/old/003.png"]
    assert opened(root) == after
    assert opened(root.rename(tmp_path / "elsewhere")) == after


@pytest.mark.parametrize("task", ["text-classification", "sentence-embedding", "token-classification"])
def test_a_text_more_moves_no_other(tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(numbers: list[int]) -> dict[str, str]:
        file = tmp_path / ("set.conll" if task.startswith("token") else "set.csv")
        if file.suffix == ".csv":
            lines = ["text,label", *(f"text {number},{'ab'[number % 2]}" for number in numbers)]
        else:
            lines = [f"word{number} {'ab'[number % 2]}\n" for number in numbers]
        file.write_text("\n".join(lines) + "\n")
        data = open_texts(DataConfig(name=str(file)), task=task, seed=1)
        assert task != "text-classification" or UNLABELLED not in data.train.labels
        return split_of(data, tmp_path)

    whole = opened(list(range(60)))
    assert set(whole.values()) == {"train", "validation", "test"}
    assert opened(list(range(5, 60))).items() < whole.items()
    assert whole.items() < opened([*range(70, 0, -1), 0]).items()


def test_at_least_half_of_the_fraction_is_held_out() -> None:
    """Of 40 names a tenth is 4. Where fewer than 2 lie below it by their hash, the 2 lowest are taken; never more."""
    sizes = []
    for seed in range(300):
        names = [f"{number}.png" for number in range(40)]
        shares = sorted(stable_share("test", seed, name) for name in names)
        chosen = hold_out(names, 0.1, seed=seed, purpose="test")
        assert len(chosen) == max(sum(share < 0.1 for share in shares), 2)
        assert max(stable_share("test", seed, names[index]) for index in chosen) == shares[len(chosen) - 1]
        sizes.append(sum(share < 0.1 for share in shares))
    assert min(sizes) < 2
