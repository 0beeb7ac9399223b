"""Make the film reviews of ``recipes/text/``: ``train.csv`` and ``test.csv`` with the columns text and label.

Sentences with the sign of their mean human rating, of those rated at least 0.5 from neutral on a scale from -4 to 4: the
ground truth that the VADER sentiment project releases under the MIT licence (C. Hutto and E. Gilbert, ICWSM 2014). A
fifth, by a hash of the text, is the test split. The ratings are in the source distribution of a package:

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python tests/benchmarks/movie_reviews.py vaderSentiment-3.3.2.tar.gz movie_reviews
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import tarfile
from pathlib import Path

INNER = "hutto_ICWSM_2014.tar.gz"
TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def read_ratings(archive: Path) -> list[tuple[str, float]]:
    """Return the texts with their mean ratings."""
    with tarfile.open(archive) as outer:
        inner = next(member for member in outer if member.name.endswith(INNER))
        content = outer.extractfile(inner)
        assert content is not None
        with tarfile.open(fileobj=io.BytesIO(content.read())) as tar:
            table = tar.extractfile(TABLE)
            assert table is not None
            lines = table.read().decode("utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return [(text.strip(), float(rating)) for _, rating, text in rows]


def write_splits(ratings: list[tuple[str, float]], folder: Path) -> None:
    """Write both splits."""
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for text, rating in ratings:
        if abs(rating) >= 0.5:
            is_test = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 5 == 0
            splits["test" if is_test else "train"].append((text, "positive" if rating > 0 else "negative"))
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
        print(f"{folder / split}.csv: {len(rows)} texts")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="vaderSentiment-3.3.2.tar.gz")
    parser.add_argument("folder", type=Path, help="where to write")
    arguments = parser.parse_args()
    write_splits(read_ratings(arguments.archive), arguments.folder)
