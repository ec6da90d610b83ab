"""The documentation site: every key and verb is in its reference, its links hold, and it fetches nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import typer

from crystalforge.cli import app
from crystalforge.config import Config

ROOT = Path(__file__).parents[2]
pytest.importorskip("mkdocs", reason="the extra docs is not installed")


def test_the_site_is_built_strictly_and_fetches_nothing() -> None:
    done = subprocess.run([sys.executable, "docs/site/build.py", "--plain"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((ROOT / "build" / "site").rglob("*.html"))
    assert {"index.html", "verbs.html", "configuration.html", "python.html", "candidate.html"} <= {
        p.name for p in pages
    }
    for page in pages:
        assert re.findall(r"""<(?:script|link rel="stylesheet")[^>]*(?:src|href)="https?:""", page.read_text()) == [], (
            page
        )


def test_every_key_and_every_verb_is_in_the_reference(script: Callable[[str], ModuleType]) -> None:
    site = script("docs/site/build.py")
    keys, verbs = site.configuration_page(), site.verbs_page()
    for model in site.reachable(Config):
        for name, field in model.model_fields.items():
            assert f"| `{field.alias or name}` |" in keys, f"{model.__name__}.{name}"
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        if not command.hidden:
            assert f"\n## {name}\n" in verbs
    assert "--coord-temperature" in verbs
