from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from crystalforge.common.errors import InputError
from crystalforge.common.settings import override, read_yaml, validated


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int = 3
    rate: float = 0.1


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    other: Inner | None = None


def test_override_reads_yaml_and_leaves_the_original_alone() -> None:
    values = {"inner": {"steps": 1}}
    assert override(values, ["inner.steps=2", "inner.rate=1e-3", "other.steps=4"]) == {
        "inner": {"steps": 2, "rate": "1e-3"},  # YAML 1.1 reads 1e-3 as text; pydantic turns it into a number
        "other": {"steps": 4},
    }
    assert values == {"inner": {"steps": 1}}
    assert validated(Outer, {"inner": {"rate": "1e-3"}}, source="x").inner.rate == 1e-3


@pytest.mark.parametrize("bad", ["steps", "=3", "inner.steps.deeper=1"])
def test_override_refuses(bad: str) -> None:
    with pytest.raises(InputError, match="--set"):
        override({"inner": {"steps": 1}}, [bad])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"inner": {"stepz": 1}}, "unknown key 'inner.stepz', did you mean 'steps'?"),
        ({"iner": {}}, "unknown key 'iner', did you mean 'inner'?"),
        ({"other": {"ratte": 1}}, "did you mean 'rate'?"),
        ({"inner": {"steps": "many"}}, "inner.steps = 'many'"),
    ],
)
def test_errors_name_the_nearest_key_and_the_value_seen(values: dict, said: str) -> None:
    with pytest.raises(InputError, match=r"params\.yaml") as caught:
        validated(Outer, values, source="params.yaml")
    assert said in str(caught.value)


def test_read_yaml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="file not found"):
        read_yaml(tmp_path / "absent.yaml")
    for content, said in (("a: [1", "not valid YAML"), ("- 1", "expected sections")):
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(InputError, match=said):
            read_yaml(tmp_path / "bad.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") == {}
