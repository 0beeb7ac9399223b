"""Settings that nothing reads are told, and what is hard on tiny images."""

from __future__ import annotations

import pytest

import kdcli


def planned(few_digits, **settings):
    return kdcli.plan(teacher="none", student="cifar:resnet8", data="demo:digits", device="cpu", settings=settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"train.cache_dtype": "float16"}, "train.cache_dtype: there is no teacher"),
        ({"augment.crop_scale": [1, 1], "augment.crop_ratio": [0.5, 2]}, "augment.crop_ratio: nothing is cropped"),
        ({"data.labelled_share": 0.5}, "data.labelled_share: all"),
        ({"data.labelled_share": 0.5, "data.labels_per_class": 2, "augment.crop_ratio": [0.5, 2]}, ""),
    ],
)
def test_settings_without_effect_are_told(few_digits, settings, told):
    warnings = [one.warning for one in planned(few_digits, **settings).decisions if one.name == "without effect"]
    assert len(warnings) == bool(told)
    assert all(told in warning and "no effect" in warning for warning in warnings)


def test_tiny_images_get_a_hint_where_their_crops_are_those_of_large_ones(few_digits):
    hints = {
        name: [one for one in planned(few_digits, **settings).decisions if one.name == "crops"]
        for name, settings in {
            "usual": {},
            "padded": {"augment.pad": 4},
            "gentle": {"augment.crop_scale": [0.8, 1]},
            "larger": {"student.image_size": 48},
        }.items()
    }
    assert {name: len(found) for name, found in hints.items()} == {"usual": 1, "padded": 0, "gentle": 0, "larger": 0}
    assert "leave 19 pixels a side" in hints["usual"][0].reason  # 32 times the root of 0.35
