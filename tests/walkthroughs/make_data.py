"""Small data for the walkthroughs, made offline, in the forms in which users have theirs.

python make_data.py photos FOLDER      FOLDER/0 ... FOLDER/9, PNG files of handwritten digits in class folders
python make_data.py masks FOLDER       FOLDER/images and FOLDER/masks, PNG files of equal names
python make_data.py texts FILE.csv     the columns text and label, sentences of Python's manual
python make_data.py encoder FOLDER     an untrained BERT with a tokenizer, as ``save_pretrained`` writes it
python make_data.py checkpoint RUN FILE.pth.tar   a run's student as timm's train.py would have saved it
"""

from __future__ import annotations

import csv
import random
import re
import sys
from pathlib import Path
from pydoc_data.topics import topics

CLASSES = {"statements": "for if while try with assert del pass break import global", "types": "typesmapping typesseq"}
CLASSES |= {"numbers": "numeric-types numbers integers floating", "names": "naming attribute-access customization"}


def photos(folder: Path) -> None:
    """Write scikit-learn's 1,797 digits at 32 x 32 pixels, a folder a class."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 15).astype("uint8")).resize((32, 32))
        image.save(folder / str(label) / f"{number:04}.png")


def masks(folder: Path) -> None:
    """Write 160 images of a disc or a box on noise, with masks: 0 background, 1 disc, 2 box."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(160):
        image = generator.integers(0, 160, (64, 64, 3))
        mask = np.zeros((64, 64), "uint8")
        for kind in (1, 2):
            row, column, size = generator.integers((12, 12, 6), (52, 52, 12)).tolist()
            away = (np.abs(rows - row), np.abs(columns - column))
            inside = np.hypot(*away) < size if kind == 1 else np.maximum(*away) < size
            image[inside] = generator.integers(150, 255, 3)
            mask[inside] = kind
        Image.fromarray(image.astype("uint8")).save(folder / "images" / f"{number:03}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:03}.png")


def sentences() -> list[tuple[str, str]]:
    """Return sentences of Python's manual, each with what its page is about."""
    found = []
    for label, pages in CLASSES.items():
        for page in pages.split():
            words = " ".join(topics[page].split())
            found += [(each, label) for each in re.split(r"(?<=[.:]) ", words) if len(each) > 40]
    random.Random(0).shuffle(found)
    return found


def texts(file: Path) -> None:
    """Write a csv of sentences with four classes."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([("text", "label"), *sentences()])


def encoder(folder: Path) -> None:
    """Write a BERT of four layers, 128 wide, with a tokenizer of 2,000 words."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = BertWordPieceTokenizer()
    words.train_from_iterator([text for text, _ in sentences()], vocab_size=2000, show_progress=False)
    folder.mkdir(parents=True)
    words.save_model(str(folder))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    BertModel(BertConfig(vocab_size=words.get_vocab_size(), max_position_embeddings=64, **sizes)).save_pretrained(
        folder
    )


def checkpoint(run: Path, file: Path) -> None:
    """Write a run's student as a checkpoint of timm's ``train.py``: architecture, arguments and weights."""
    import argparse

    import torch

    import kdcli

    student = kdcli.load(run).student
    told = student.pretrained_cfg
    arguments = argparse.Namespace(img_size=32, mean=list(told["mean"]), std=list(told["std"]))
    arch = told["architecture"]
    torch.save({"arch": arch, "state_dict": student.state_dict(), "args": arguments, "epoch": 8}, file)


if __name__ == "__main__":
    kind, *paths = sys.argv[1:]
    {"photos": photos, "masks": masks, "texts": texts, "encoder": encoder, "checkpoint": checkpoint}[kind](
        *map(Path, paths)
    )
