"""result.json is noticed when it changes, and read by later versions."""

import pytest
from pydantic import ValidationError

from kdcli.base.result import Mean, Outcome, Result

OUTCOME = Outcome(
    verdict="helped", sentence="It helped.", split="test", metric="accuracy", samples=9,
    differences={"accuracy": Mean(mean=0.1, low=None, high=0.3)}, tries=[],
)  # fmt: skip
RESULT = Result(
    validation={"accuracy": 0.5, "loss": float("nan")}, test={}, steps=1, seconds=1.0, skipped=0, outcome=OUTCOME
)


class Later(Result):
    """Of a version that knows one number more."""

    patience: int = 3


def test_a_file_of_an_earlier_version_is_read_whole():
    content = RESULT.with_checksums({"config.yaml": "ab"}).to_json()
    found = Later.model_validate(content)
    assert (found.patience, found.outcome, found.files) == (3, OUTCOME, {"config.yaml": "ab"})


@pytest.mark.parametrize("name", ["test", "steps", "outcome", "teacher"])
def test_a_changed_or_missing_value_is_noticed(name):
    content = RESULT.with_checksums({}).to_json()
    changed = {"test": {"accuracy": 1.0}, "steps": 2, "outcome": None, "teacher": {"test": {"loss": 1.0}}}[name]
    with pytest.raises(ValidationError, match="its checksum is another"):
        Result.model_validate(content | {name: changed})
    if name in ("outcome", "teacher"):
        with pytest.raises(ValidationError, match="its checksum is another"):
            Result.model_validate({key: value for key, value in content.items() if key != name})
