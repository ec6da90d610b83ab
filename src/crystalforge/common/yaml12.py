"""YAML that means what it says: version 1.2's core types, no key twice.

PyYAML reads YAML 1.1, where `no` is false, `1e3` is text, `010` is eight, `1:30` is ninety and `2024-01-01` is a date.
Here `true` and `false` are the only truth values, `1e3` is a number, and what is no plain number is text, which a
setting that wants a number refuses.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*|0o[0-7]+|0x[0-9a-fA-F]+)$")
FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
TYPES = (
    ("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", INTEGER, list("-+0123456789")),
    ("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789")),
    ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:merge", re.compile(r"<<$"), ["<"]),
)

UNICODE_LINE_ENDS = "\x85\u2028\u2029"  # a reader folds them as it does line ends: they must be escaped


class Repeated(yaml.YAMLError):
    """A mapping has a key twice, so that one of its values would be dropped."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  # PyYAML's own way to say it

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:  # before `<<` brings keys that may be said anew
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise Repeated(f"the key {key.value!r} is given twice, in line {lines[key.value]} and in line {line}")
            lines[key.value] = line
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what either version would take for something else than text."""


for _tag, _pattern, _first in TYPES:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def _integer(loader: Any, node: Any) -> int:
    return int(str(loader.construct_scalar(node)), 0)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def parse(text: str | bytes) -> Any:
    """The one value in a text, or in a file's bytes (UTF-8 or UTF-16); yaml.YAMLError otherwise."""
    return yaml.load(text, Loader=_Loader)


def dump(value: Any, *, sort_keys: bool = False) -> str:
    """`value` as YAML that `parse` reads as it was."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=sort_keys, allow_unicode=True)
    if any(end in text for end in UNICODE_LINE_ENDS):
        return yaml.dump(value, Dumper=_Dumper, sort_keys=sort_keys, allow_unicode=False)
    return text
