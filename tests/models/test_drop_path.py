import pytest

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.config.models import StudentConfig
from kdcli.models import build_student


def test_stochastic_depth_is_a_setting_of_the_student():
    rates = {}
    for rate in (None, 0.3):
        student = build_student(
            StudentConfig(name="vit_tiny_patch16_224", image_size=32, drop_path=rate), DataFacts.of_labels("ab"), seed=0
        )
        rates[rate] = getattr(student.module.blocks[-1].drop_path1, "drop_prob", 0.0)
    assert rates == {None: 0.0, 0.3: pytest.approx(0.3)}


def test_an_architecture_without_it_is_refused():
    with pytest.raises(UserError, match="no stochastic depth"):
        build_student(StudentConfig(name="vgg11", image_size=32, drop_path=0.1), DataFacts.of_labels("ab"), seed=0)
