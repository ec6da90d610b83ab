"""Messages name what is wrong, never what opens a door, and never an empty list."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalforge.common.errors import InputError, one_of, redacted, without_secrets
from crystalforge.rewards import RewardUnavailable

SECRET = "hunter2"  # put together below: no file of the project holds an address with a password


def address(user: str = "svc", secret: str = SECRET, scheme: str = "http", rest: str = "host:5000/path") -> str:
    return f"{scheme}://{user}:{secret}@{rest}"


@pytest.mark.parametrize("scheme", ["http", "https", "postgresql", "mysql+pymysql", "s3", "redis"])
@pytest.mark.parametrize("secret", [SECRET, "p@ss", "a:b:c", "%2Fx", "ünï", "x" * 80])
def test_the_password_of_an_address_is_in_no_message(scheme: str, secret: str) -> None:
    where = address(secret=secret, scheme=scheme)
    error = InputError(f"{where} refused", source=where, record=1, remedy=f"mend {where}, or 'mlflow --uri {where}'")
    for text in (str(error), error.problem, str(error.source), error.remedy, str(pickle.loads(pickle.dumps(error)))):
        assert secret not in str(text)
        assert "svc" not in str(text)
    assert "host:5000/path refused" in str(error)
    assert secret not in str(RewardUnavailable(f"{where} does not answer"))


@pytest.mark.parametrize(
    "text",
    [
        "https://bucket/x?X-Amz-Signature=hunter2&page=3",
        "https://bucket/x?page=3&X-Amz-Security-Token=hunter2",
        "https://blob/x?sv=2022&sig=hunter2&page=3",
        "GET /x?page=3&access_token=hunter2 HTTP/1.1",
        "https://h/?page=3&api_key=hunter2#top",
        "sent Authorization: Bearer hunter2.abc page=3",
    ],
)
def test_tokens_and_signatures_are_hidden_and_the_rest_is_not(text: str) -> None:
    assert SECRET not in redacted(text)
    if "page" in text:
        assert "page=3" in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "models:/crystalforge-generator@production", "sqlite:////home/me/a@b/mlflow.db", "s3://bucket/key@2",
        "https://host/path?spacegroup=225&n=3", "mail me@example.org", "file:///data/x@y.cif", "a token is missing",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


@given(st.text())
def test_redacting_twice_is_redacting_once(text: str) -> None:
    assert redacted(redacted(text)) == redacted(text)


def test_nested_values_are_redacted_too() -> None:
    value = {"a": [address(), {"b": address()}], "n": 3, "none": None}
    assert SECRET not in str(without_secrets(value))
    assert without_secrets(value)["n"] == 3


def test_no_message_ends_with_an_empty_list() -> None:
    for remedy in ("choose one of: ", "use one of ", "known: ", "it has ", f"choose one of {', '.join([])}"):
        assert "(there are none)" in str(InputError("x", remedy=remedy)), remedy
    assert one_of("choose one of", (), nothing="nothing came along") == "nothing came along"
    assert "none)" not in str(InputError("what is known", remedy="choose one of: a, b"))
