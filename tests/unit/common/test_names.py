"""What the registry refuses is refused when the configuration is read; its own rules are asked, not ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.utils import validation

from crystalforge.common.errors import InputError
from crystalforge.common.names import registered_alias, registered_name
from crystalforge.config import load


def refuses(rule, text: str) -> bool:
    try:
        rule(text)
    except (ValueError, MlflowException):
        return True
    return False


def their_alias(text: str) -> None:
    validation._validate_model_alias_name(text)
    validation._validate_model_alias_name_reserved(text)


ODD = ["", " ", "team/gen", "a:b", ".", "..", "a@b", "it's", 'a"b', "a\\b", "a\nb", " a", "a ", "x" * 251, "é" * 200]


@pytest.mark.parametrize("text", ODD)
def test_odd_names_of_models_are_refused(text: str) -> None:
    assert refuses(registered_name, text)
    with pytest.raises(InputError, match=r"register\.name"):
        load(None, ["register.name=" + repr(text)] if "'" not in text and "\n" not in text else ['register.name="a/b"'])


@pytest.mark.parametrize("text", ["", "latest", "LATEST", "v1", "V23", "a b", "a/b", "a.b", "x" * 251])
def test_odd_aliases_are_refused(text: str) -> None:
    assert refuses(registered_alias, text)
    with pytest.raises(InputError, match=r"register\.alias"):
        load(None, [f'register.alias="{text}"'])


@given(st.text(max_size=40))
def test_what_we_take_the_registry_takes(text: str) -> None:
    assert refuses(registered_name, text) or not refuses(validation._validate_model_name, text)
    assert refuses(registered_alias, text) or not refuses(their_alias, text)


@pytest.mark.parametrize("text", ["crystalforge-generator", "my generator 2", "Ωmega.v2", "v1"])
def test_usual_names_are_taken(text: str) -> None:
    assert registered_name(text) == text


@pytest.mark.parametrize("text", ["production", "v1-final", "eu_2", "latest-good", "v"])
def test_usual_aliases_are_taken(text: str) -> None:
    assert registered_alias(text) == text


def test_an_address_with_a_password_is_refused_without_repeating_it() -> None:
    secret = "://svc:" + "hunter2@db/x"
    for assignment in (f"tracking.uri=postgresql{secret}", "data.source={kind: mp20, path: 'https" + secret + "'}"):
        with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD") as caught:
            load(None, [assignment])
        assert "hunter2" not in str(caught.value)
    assert load(None, ["tracking.uri=http://mlflow:5000"]).tracking.uri == "http://mlflow:5000"
