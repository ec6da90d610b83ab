"""Configurations that make no sense say so."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from crystalforge.data.config import DataConfig, PrototypesSource


def test_the_default_needs_nothing():
    assert DataConfig().source == PrototypesSource()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"source": {"kind": "mp20"}}, "path"),
        ({"source": {"kind": "mp21", "path": "x"}}, "'mp21'"),
        ({"source": {"kind": "prototypes", "path": "x"}}, "Extra inputs"),
        ({"sauce": 1}, "sauce"),
        ({"split": {"train": 0.9}}, "sum to 1, got 1.1"),
        ({"max_sites": 21}, "less than or equal to 20"),
        ({"symprec": "fine"}, "valid number"),
    ],
)
def test_mistakes_are_named(values, said):
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate(values)
    assert said in str(caught.value)
