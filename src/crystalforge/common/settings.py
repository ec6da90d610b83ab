"""From YAML and `--set section.key=value` to validated, frozen pydantic models, with errors that help.

A wrong key is answered with the nearest right one, a wrong type with the value seen and what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from crystalforge.common.errors import InputError

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; InputError when the file is absent, malformed or no mapping."""
    try:
        value = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError("file not found", source=path, remedy="give the path of a YAML file with --config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
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
            target[last] = yaml.safe_load(text) if text else None
        except yaml.YAMLError as error:
            raise InputError(f"the value of {path!r} is not valid YAML: {error}", source="--set") from None
    return result


def validated(model: type[Model], values: Mapping[str, Any], *, source: object) -> Model:
    """`values` as a `model`; InputError naming each wrong key with its nearest right one, or value, otherwise."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_describe(model, detail) for detail in error.errors()]
        raise InputError("; ".join(problems), source=source, remedy="correct the key or the value") from None


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _describe(model: type[BaseModel], detail: Any) -> str:
    location = [str(part) for part in detail["loc"]]
    name = ".".join(location)
    if detail["type"] == "extra_forbidden":
        known = _keys_beside(model, location)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f", did you mean {near[0]!r}?" if near else f"; known here: {', '.join(sorted(known))}"
        return f"unknown key {name!r}{hint}"
    seen = detail.get("input")
    return f"{name} = {seen!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _keys_beside(model: type[BaseModel], location: list[str]) -> list[str]:
    """Names that would be right where `location` ends: a walk through nested models and unions of models."""
    candidates: list[type[BaseModel]] = [model]
    for part in location[:-1]:
        below: list[type[BaseModel]] = []
        for candidate in candidates:
            if part in candidate.model_fields:
                below += _models_in(candidate.model_fields[part].annotation)
        # A discriminated union puts the tag of the chosen member in the location: stay where we are then.
        candidates = below or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
