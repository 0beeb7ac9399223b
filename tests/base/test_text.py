"""Text made of numbers."""

import pytest

from kdcli.base.text import counted, have


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (counted(0, "image"), "0 images"),
        (counted(1, "image"), "1 image"),
        (counted(2, "depth file"), "2 depth files"),
        (counted(1, "image", of=9), "1 of 9 images"),
        (counted(1, "image", of=1), "1 of 1 image"),
        (f"{have(1)}, {have(0)}, {have(2)}", "has, have, have"),
    ],
)
def test_counted_nouns(told, expected):
    assert told == expected
