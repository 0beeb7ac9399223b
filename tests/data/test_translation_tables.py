"""Pairs in tables: every form gives the same images; columns are told apart; what is not understood is refused."""

import csv
import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.base.facts import Preprocessing
from kdcli.config.data import DataConfig
from kdcli.data import Loading, open_translation
from kdcli.data.images.pictures import as_pixels

UNIT = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, geometry="squash")
COUNTS = {"train": 5, "validation": 2, "test": 3}


@pytest.fixture
def rows(tmp_path):
    """Images whose red is their number, and their partners, whose blue it is, under names of their own."""
    found = []
    for number in range(sum(COUNTS.values())):
        split = [name for name, count in COUNTS.items() for _ in range(count)][number]
        paths = f"in/{number}.png", f"out/{chr(97 + number)}.png"
        for path, colour in zip(paths, ((number, 0, 0), (0, 0, number)), strict=True):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            Image.new("RGB", (16, 16), colour).save(tmp_path / path)
        found.append({"input": paths[0], "target": paths[1], "note": f"row {number}", "split": split})
    return found


def write(root, form, rows):
    """Write the rows as a table; return its name."""
    name = root / f"pairs.{form}"
    if form in ("csv", "tsv"):
        with name.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="," if form == "csv" else "\t")
            table.writeheader()
            table.writerows(rows)
    elif form == "jsonl":
        name.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif form == "parquet":
        Dataset.from_list(rows).to_parquet(name)
    else:
        images = Features({"target": ImageFeature(), "input": ImageFeature(), "note": Value("string")})
        tables = {}
        for split in COUNTS:
            own = [row for row in rows if row["split"] == split]
            cells = {key: [row[key] and str(root / row[key]) for row in own] for key in ("target", "input")}
            tables[split] = Dataset.from_dict({**cells, "note": [row["note"] for row in own]}, features=images)
        name = root / "cells"
        if form == "saved":
            DatasetDict(tables).save_to_disk(name)
        else:
            name.mkdir()
            for split, table in tables.items():
                table.to_parquet(name / f"{split}.parquet")
    return name


def opened(name, **settings):
    return open_translation(DataConfig(name=str(name), **settings), "image-translation", seed=0)


def numbers(source):
    """Return the numbers of a split's images, and those of their partners; None where there is none."""
    (batch,) = source.eval_batches(Loading(16), UNIT)
    known = batch.targets.flatten(1).isfinite().all(dim=1).tolist()
    both = batch.images.amax(dim=(1, 2, 3)).tolist(), as_pixels(batch.targets).amax(dim=(1, 2, 3)).tolist()
    return both[0], [number if is_known else None for number, is_known in zip(both[1], known, strict=True)]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet", "cells", "saved"])
def test_every_form_of_table_has_the_pairs_of_its_rows(tmp_path, rows, form):
    name = write(tmp_path, form, rows)
    data = opened(name)
    assert data.facts.label_kind == "image"
    assert "A from input, B from target" in " ".join(data.facts.notes)
    assert numbers(data.train) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    assert numbers(data.validation) == ([5, 6], [5, 6])
    assert numbers(data.test) == ([7, 8, 9], [7, 8, 9])
    image, target = opened(name, direction="b-to-a").train.load(3)
    assert np.asarray(image)[0, 0].tolist() == [0, 0, 3]
    assert np.asarray(target.image)[0, 0].tolist() == [3, 0, 0]


@pytest.mark.parametrize("form", ["jsonl", "cells"])
def test_a_row_without_a_target_is_unlabelled_in_training_and_left_out_elsewhere(tmp_path, rows, form):
    for number in (1, 8):
        rows[number]["target"] = None
    data = opened(write(tmp_path, form, rows))
    assert numbers(data.train) == ([0, 1, 2, 3, 4], [0, None, 2, 3, 4])
    assert numbers(data.test) == ([7, 9], [7, 9])
    assert data.facts.num_labelled == 4
    notes = " ".join(data.facts.notes)
    assert "1 of 5 images of the train split has no target: unlabelled." in notes
    assert "1 of 3 images of the test split has no target: left out." in notes


@pytest.mark.parametrize("form", ["csv", "cells"])
def test_two_columns_are_two_kinds_where_they_are_said_to_be(tmp_path, rows, form):
    rows[2]["input"] = None
    data = opened(write(tmp_path, form, rows), pairs="unpaired")
    assert data.facts.label_kind == "unpaired"
    assert "Images of the two kinds: train 4 and 5, validation 2 and 2, test 3 and 3." in data.facts.notes
    assert sorted(numbers(data.train)[0]) == [0, 0, 1, 3, 4]
    assert sorted(numbers(data.train)[1]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("names", "settings", "found"),
    [
        (("imageA", "imageB"), {}, ("imageA", "imageB")),
        (("edited_image", "original_image"), {}, ("original_image", "edited_image")),
        (("image", "conditioning_image"), {}, ("conditioning_image", "image")),
        (("target path", "photo"), {}, ("photo", "target path")),
        (("day", "night"), {}, ("day", "night")),
        (("day", "night"), {"image_column": "night"}, ("night", "day")),
        (("day", "night", "dusk"), {"image_column": "dusk", "label_column": "day"}, ("dusk", "day")),
        (("input", "mask", "output"), {}, ("input", "output")),
    ],
)
def test_columns_are_told_apart(tmp_path, rows, names, settings, found):
    """Their order in the file is that of ``names``; the first two have images of one kind each."""
    paths = [[row["input"] for row in rows], [row["target"] for row in rows], [row["target"] for row in rows]]
    table = [dict(zip(names, cells, strict=False)) for cells in zip(*paths, strict=True)]
    told = f"A from {found[0]}, B from {found[1]}"
    assert told in " ".join(opened(write(tmp_path, "csv", table), **settings).facts.notes)


@pytest.mark.parametrize(
    ("change", "settings", "told"),
    [
        (
            lambda rows: rows[3].update(target="out/none.png"),
            {},
            "Of 5 images in the column target .* 1 can't be found",
        ),
        (lambda rows: rows[3].update(input=""), {}, "Row 4 of the train split has no path in the column input"),
        (lambda rows: rows[3].update(input="in/0.png"), {}, "names the image in/0.png once more"),
        (lambda rows: [row.update(target="x") for row in rows], {}, "Expected two columns of images, and found input"),
        (lambda rows: [row.update(more=row["input"]) for row in rows], {"image_column": "target"}, "one other column"),
        (lambda rows: None, {"label_column": "targte"}, "the columns are"),
        (lambda rows: None, {"image_column": "input", "label_column": "input"}, "are both 'input'"),
        (lambda rows: None, {"subset": "x"}, "data.subset is set"),
        (lambda rows: None, {"pairs": "unpaired", "labelled_images": 2}, "labelled_images is set"),
    ],
)
def test_what_a_table_lacks_is_refused(tmp_path, rows, change, settings, told):
    change(rows)
    with pytest.raises(UserError, match=told):
        opened(write(tmp_path, "csv", rows), **settings)


def test_a_split_without_any_target_is_none(tmp_path, rows):
    """Then validation is cut from the training images that have one."""
    for number in (0, 5, 6):
        rows[number]["target"] = ""
    data = opened(write(tmp_path, "csv", rows))
    found, targets = numbers(data.validation)
    assert found == targets
    assert set(found) < {1, 2, 3, 4}
    assert set(numbers(data.train)[0]) == {0, 1, 2, 3, 4} - set(found)


def test_two_images_of_a_row_have_one_size(tmp_path, rows):
    Image.new("RGB", (16, 20)).save(tmp_path / rows[1]["target"])
    with pytest.raises(UserError, match=r"out/b.png is 16x20, and its image .*in/1.png is 16x16"):
        opened(write(tmp_path, "csv", rows))
    with pytest.raises(UserError, match="target is 16x20"):
        opened(write(tmp_path, "cells", rows)).train.load(1)


def test_a_list_in_a_folder_is_read_where_it_has_no_folders_a_and_b(tmp_path, rows):
    write(tmp_path, "csv", rows)
    assert numbers(opened(tmp_path).test) == ([7, 8, 9], [7, 8, 9])
    for side in "AB":
        (tmp_path / side).mkdir()
        for number in range(4):
            Image.new("RGB", (16, 16)).save(tmp_path / side / f"{number}.png")
    assert "folders A/ and B/" in " ".join(opened(tmp_path).facts.notes)
