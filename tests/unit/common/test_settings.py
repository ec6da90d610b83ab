from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from crystalforge.common import yaml12
from crystalforge.common.errors import InputError
from crystalforge.common.settings import override, read_yaml, validated
from crystalforge.config import Config, load
from crystalforge.rewards import parse


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int = 3
    rate: float = 0.1
    on: bool = False
    name: str = ""
    many: tuple[int, ...] = ()
    place: Path | None = None
    labels: dict[str, str] = {}


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    other: Inner | None = None


def test_override_reads_yaml_and_leaves_the_original_alone() -> None:
    values = {"inner": {"steps": 1}}
    assert override(values, ["inner.steps=2", "inner.rate=1e-3", "other.steps=4"]) == {
        "inner": {"steps": 2, "rate": 1e-3},
        "other": {"steps": 4},
    }
    assert values == {"inner": {"steps": 1}}


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


def settings(tmp_path: Path, text: str) -> Inner:
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    return validated(Inner, read_yaml(tmp_path / "p.yaml"), source="p.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # what YAML 1.1 makes something else of, and the value meant
        ("steps: 1e3", "steps = 1000.0: a whole number is wanted, this is a number with a fraction: write 1000"),
        ("steps: 2.0", "write 2"),
        ("steps: 010", "write 10, or 0o10 for the octal number"),
        ("steps: 089", "write 89"),
        ("steps: 1_000", "write 1000 without quotes"),
        ("steps: '7'", "steps = '7': a whole number is wanted, this is text: write 7 without quotes"),
        ("steps: 1:30", "a colon makes it no number"),
        ("steps: yes", "steps = 'yes': a whole number is wanted, this is text"),
        ("steps: true", "steps = True: a whole number is wanted, this is a truth value"),
        ("steps:", "steps = None: a whole number is wanted, this is nothing"),
        ("steps: 2.5", "this is a number with a fraction"),
        ("rate: '1e-3'", "write 1e-3 without quotes"),
        ("rate: 1,5", "write 1.5 without quotes"),
        ("rate: 1:30", "a colon makes it no number"),
        ("rate: 00.5", "rate = '00.5': a number is wanted, this is text"),
        ("rate: true", "rate = True"),
        ("rate: 2024-01-01", "rate = '2024-01-01'"),
        ("on: no", "on = 'no': true or false is wanted, this is text: write false"),
        ("on: on", "write true"),
        ("on: Off", "write false"),
        ("on: 1", "on = 1: true or false is wanted, this is a whole number: write true"),
        ("on: 'true'", "write true"),
        ("name: 2024", 'name = 2024: text is wanted, this is a whole number: write it in quotes, "2024"'),
        ("name: true", 'write it in quotes, "true"'),
        ("name: 1.5", 'write it in quotes, "1.5"'),
        ("name: [a]", "name = ['a']: text is wanted, this is a list"),
        ("many: [1, '2']", "many.1 = '2'"),
        ("many: 3", "many = 3"),
        ("labels: {gpu: true}", 'labels.gpu = True: text is wanted, this is a truth value: write it in quotes, "true"'),
        ("labels: {1: a}", "the key 1 in labels is read as a whole number, not as a name"),
        ("labels: {true: a}", "the key True in labels is read as a truth value"),
        ("name: !!binary aGk=", "name = b'hi' is a bytes"),
        ("name: !!timestamp 2024-01-01", "is a date, which no setting takes"),
        # keys twice, at any depth and however they are written
        ("steps: 1\nsteps: 2", "the key 'steps' is given twice, in line 1 and in line 2"),
        ("{steps: 1, 'steps': 1}", "given twice"),
        ("labels:\n  a: b\n  a: c", "'a' is given twice, in line 2 and in line 3"),
        ("many: [1]\nname: x\nmany: [1]", "'many' is given twice, in line 1 and in line 3"),
    ],
)
def test_what_would_silently_be_something_else_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        settings(tmp_path, text)
    assert said in str(caught.value)
    assert "p.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("name: no", "name", "no"), ("name: on", "name", "on"), ("name: 2024-01-01", "name", "2024-01-01"),
        ("name: 1:30", "name", "1:30"), ("name: 010", "name", "010"), ("name: 1_000", "name", "1_000"),
        ("rate: 1e3", "rate", 1000.0), ("rate: 1e-3", "rate", 0.001), ("rate: 3", "rate", 3.0),
        ("rate: .5", "rate", 0.5), ("rate: -1.5E+2", "rate", -150.0), ("rate: .inf", "rate", float("inf")),
        ("steps: 0x10", "steps", 16), ("steps: 0o17", "steps", 15),
        ("steps: +4", "steps", 4), ("steps: -4", "steps", -4),
        ("on: TRUE", "on", True), ("many: [1, 2]", "many", (1, 2)), ("place: a b/ü", "place", Path("a b/ü")),
        ("place: ~", "place", None), ("\ufeffsteps: 5", "steps", 5),
        ("labels: &x {a: b, c: d}\nname: &y x", "labels", {"a": "b", "c": "d"}),
    ],
)  # fmt: skip
def test_what_is_meant_is_read(tmp_path: Path, text: str, field: str, value: Any) -> None:
    assert getattr(settings(tmp_path, text), field) == value


def test_a_merged_key_may_be_said_anew() -> None:
    assert yaml12.parse("base: &b {a: 1, c: 2}\nx: {<<: *b, a: 3}")["x"] == {"a": 3, "c": 2}


def test_bytes_of_utf16_are_read_and_others_refused(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_bytes("steps: 5\nname: ü".encode("utf-16"))
    assert read_yaml(tmp_path / "p.yaml") == {"steps": 5, "name": "ü"}
    (tmp_path / "p.yaml").write_bytes("name: ü".encode("latin-1"))
    with pytest.raises(InputError, match="not valid YAML"):
        read_yaml(tmp_path / "p.yaml")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        read_yaml(tmp_path)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))
def test_what_is_dumped_is_read_as_it_was(value: Any) -> None:
    assert yaml12.parse(yaml12.dump(value)) == value
    text = isinstance(value, str)
    assert not text or yaml.safe_load(yaml12.dump(value)) == value, "other readers take it for the same text"


def test_the_whole_configuration_and_every_recipe_are_strict(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    for file in (root / "params.yaml", *(root / "recipes").glob("*.yaml")):
        config = load(file)
        (tmp_path / "again.yaml").write_text(yaml12.dump(config.model_dump(mode="json", by_alias=True)))
        assert load(tmp_path / "again.yaml") == config
    for assignment, said in {
        "seed='1'": "seed = '1'",
        "data.split.train=0.8e0x": "data.split.train",
        "reward={kind: ehull, floor: '-2'}": "reward.ehull.floor = '-2'",
        "finetune.algorithm=1": "finetune.algorithm",
        "tracking.enabled=off": "write false",
        "finetune.tau=1,5": "write 1.5",
    }.items():
        with pytest.raises(InputError) as caught:
            load(None, [assignment])
        assert said in str(caught.value)
    assert load(None, ["finetune.tau=1e-1", "data.split.seed=7"]).finetune.tau == 0.1
    assert Config().digest == load(None).digest


def test_a_served_reward_is_as_strict() -> None:
    with pytest.raises(InputError, match=r"ehull\.floor = '-2': a number is wanted, this is text: write -2"):
        parse({"kind": "ehull", "floor": "-2"})
    with pytest.raises(InputError, match="did you mean 'floor'"):
        parse({"kind": "ehull", "flor": -2.0})
