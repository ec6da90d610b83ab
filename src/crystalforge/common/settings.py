"""From YAML and `--set section.key=value` to validated, frozen pydantic models, with errors that help.

A wrong key is answered with the nearest right one, a wrong type with the value seen and the value meant. Types are
strict: a number in quotes is text, and a text is no number.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from crystalforge.common import yaml12
from crystalforge.common.errors import InputError

Model = TypeVar("Model", bound=BaseModel)
WANTED = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text"}
TRUE, FALSE = ("yes", "on", "y", "true", "1"), ("no", "off", "n", "false", "0")
SEXAGESIMAL = re.compile(r"[-+]?[1-9][0-9]*(?::[0-5]?[0-9])+(?:\.[0-9]*)?")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; InputError when the file is absent, malformed, no mapping, or says a key twice."""
    try:
        value = yaml12.parse(path.read_bytes())
    except FileNotFoundError:
        raise InputError("file not found", source=path, remedy="give the path of a YAML file with --config") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", source=path, remedy="give a YAML file") from None
    except yaml12.Repeated as error:
        raise InputError(str(error), source=path, remedy="join the two: one of them would be dropped") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"not valid YAML: {error}", source=path, remedy="mend the line that it names") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(
            f"holds a {type(value).__name__}, expected sections of keys and values",
            source=path,
            remedy="see params.yaml for the layout",
        )
    return value


def override(values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A deep copy of `values` with `section.key=value` assignments applied; values are read as YAML.

    >>> override({"finetune": {"steps": 10}}, ["finetune.steps=20"])
    {'finetune': {'steps': 20}}
    """
    result = _copy(values)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise InputError(f"cannot read {assignment!r}", source="--set", remedy="write --set section.key=value")
        *parents, last = path.split(".")
        target = result
        for name in parents:
            below = target.setdefault(name, {})
            if not isinstance(below, dict):
                raise InputError(
                    f"{name!r} in {path!r} is a single value ({below!r}), not a section",
                    source="--set",
                    remedy="leave out what stands after it",
                )
            target = below
        try:
            target[last] = yaml12.parse(text) if text else None
        except (yaml.YAMLError, ValueError) as error:
            raise InputError(f"the value of {path!r} is not valid YAML: {error}", source="--set") from None
    return result


def validated(model: type[Model], values: Mapping[str, Any], *, source: object) -> Model:
    """`values` as a `model`; InputError naming each wrong key with its nearest right one, or value, otherwise."""
    try:
        return model.model_validate_json(as_json(values, source), strict=True)
    except ValidationError as error:
        raise InputError(explained(error, [model]), source=source, remedy="correct the key or the value") from None


def validated_as(kind: Any, values: Any, *, source: object, models: Iterable[type[BaseModel]] = ()) -> Any:
    """`validated` for what is no single model, such as a union of them (`models`, for the nearest right key)."""
    try:
        return TypeAdapter(kind).validate_json(as_json(values, source), strict=True)
    except ValidationError as error:
        raise InputError(explained(error, list(models)), source=source, remedy="correct the key or the value") from None


def as_json(values: Any, source: object) -> str:
    """JSON of plain values, paths and models: the form in which types are strict, and lists and paths still known."""
    return json.dumps(_plain(values, "", source), default=_others)


def explained(error: ValidationError, models: list[type[BaseModel]]) -> str:
    """Every problem that pydantic found, in our words."""
    return "; ".join(_describe(models, detail) for detail in error.errors())


def _plain(value: Any, place: str, source: object) -> Any:
    """Mappings keep their keys, which JSON would turn into text without a word."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(
                    f"the key {key!r} {f'in {place} ' if place else ''}is read as {_called(key)}, not as a name",
                    source=source,
                    remedy=f'write it in quotes: "{_text(key)}"',
                )
        return {key: _plain(item, f"{place}.{key}".lstrip("."), source) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, place, source) for item in value]
    if value is None or isinstance(value, (str, int, float, Path, BaseModel)) or hasattr(value, "item"):
        return value
    raise InputError(
        f"{place} = {value!r} is a {type(value).__name__}, which no setting takes",
        source=source,
        remedy="write it without a tag",
    )


def _others(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    return value.item() if hasattr(value, "item") else str(value)


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _describe(models: list[type[BaseModel]], detail: Any) -> str:
    location = [str(part) for part in detail["loc"]]
    name = ".".join(location)
    if detail["type"] == "extra_forbidden":
        known = _keys_beside(models, location)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        if not known:
            return f"unknown key {name!r}"
        hint = f", did you mean {near[0]!r}?" if near else f"; known here: {', '.join(sorted(known))}"
        return f"unknown key {name!r}{hint}"
    seen = detail.get("input")
    wanted = detail["type"].removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")
    if wanted in WANTED:
        return f"{name} = {seen!r}: {WANTED[wanted]} is wanted, this is {_called(seen)}{_meant(wanted, seen)}"
    return f"{name} = {seen!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _called(value: Any) -> str:
    """What a value is, in words.

    >>> _called(True), _called("no"), _called(1e3)
    ('a truth value', 'text', 'a number with a fraction')
    """
    if value is None:
        return "nothing"
    kinds = {bool: "a truth value", int: "a whole number", float: "a number with a fraction", str: "text"}
    kinds |= {list: "a list", dict: "a section"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) or value is None else str(value)


def _meant(wanted: str, seen: Any) -> str:
    """What was probably meant, as the words that end the message; empty where nobody can tell.

    >>> _meant("int", 1000.0), _meant("bool", "off"), _meant("string", True)
    (': write 1000', ': write false', ': write it in quotes, "true"')
    """
    if wanted == "string":
        return f': write it in quotes, "{_text(seen)}"' if isinstance(seen, (bool, int, float)) else ""
    if wanted == "bool":
        said = _text(seen).strip().lower() if isinstance(seen, (str, int)) else ""
        return ": write true" if said in TRUE else ": write false" if said in FALSE else ""
    if isinstance(seen, float) and seen.is_integer():
        return f": write {int(seen)}"
    if not isinstance(seen, str):
        return ""
    text = seen.strip().replace("_", "").replace(" ", "")
    if SEXAGESIMAL.fullmatch(text):
        return ": a colon makes it no number; write the sum in one unit"
    zeros = re.fullmatch(r"([-+]?)0+([0-9]+)", text)
    if zeros:
        octal = (
            f", or 0o{zeros[2]} for the octal number" if wanted == "int" and set(zeros[2]) <= set("01234567") else ""
        )
        return f": write {zeros[1]}{zeros[2]}{octal}"
    for candidate in (text, text.replace(",", ".")):
        number = float(candidate) if re.fullmatch(r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?", candidate) else None
        if number is not None and (wanted == "float" or number.is_integer()):
            return f": write {int(number) if wanted == 'int' else candidate} without quotes"
    return ""


def _keys_beside(models: list[type[BaseModel]], location: list[str]) -> list[str]:
    """Names that would be right where `location` ends: a walk through nested models and unions of models."""
    candidates = models
    for part in location[:-1]:
        below: list[type[BaseModel]] = []
        for candidate in candidates:
            fields = {field.alias or name: field for name, field in candidate.model_fields.items()}
            if part in fields:
                below += _models_in(fields[part].annotation)
        # A discriminated union puts the tag of the chosen member in the location: stay where we are then.
        candidates = below or candidates
    return sorted({field.alias or name for model in candidates for name, field in model.model_fields.items()})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
