"""The documentation as a site that works offline: `python docs/site/build.py`, or `make docs`.

Pages are those of docs/, README, CHANGELOG and CONTRIBUTING; the reference of verbs and configuration is generated from
the program, that of the Python interface from its docstrings, and the notebooks of examples/ are executed (not with
--plain). Links are checked: one that leads nowhere ends the build.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGES, SITE = ROOT / "build" / "pages", ROOT / "build" / "site"
MOVED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md",
         "docs/README.md": "overview.md"}  # fmt: skip
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", action="store_true", help="do not execute the notebooks")
    options = parser.parse_args()
    write_pages(execute=not options.plain)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(configuration())]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    for page in SITE.rglob(
        "*.html"
    ):  # searching without a server needs a shim that the theme would fetch from elsewhere
        shim = "../" * (len(page.relative_to(SITE).parts) - 1) + "iframe-worker.js"
        page.write_text(page.read_text().replace("https://unpkg.com/iframe-worker/shim", shim))
    raise SystemExit(done.returncode)


def write_pages(*, execute: bool) -> None:
    """All pages as Markdown in build/pages."""
    shutil.rmtree(PAGES, ignore_errors=True)
    sources = [*ROOT.glob("docs/**/*.md"), *(ROOT / name for name in MOVED if "/" not in name)]
    for source in sources:
        target = PAGES / place(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(relinked(source.read_text(), source))
    shutil.copytree(ROOT / "docs" / "assets", PAGES / "assets", dirs_exist_ok=True)
    for name in ("extra.css", "iframe-worker.js"):
        shutil.copy(HERE / name, PAGES / name)
    reference = PAGES / "reference"
    reference.mkdir(exist_ok=True)
    (reference / "python.md").write_text(python_page())
    (reference / "verbs.md").write_text(verbs_page())
    (reference / "configuration.md").write_text(configuration_page())
    (PAGES / "notebooks").mkdir()
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        (PAGES / "notebooks" / f"{notebook.stem}.md").write_text(notebook_page(notebook, execute=execute))


def configuration() -> Path:
    """mkdocs.yml with the how-tos and results that there are, in build/."""
    settings = yaml.safe_load((HERE / "mkdocs.yml").read_text())
    folders = {"HOWTO": "how-to", "RESULTS": "results"}
    for entry in settings["nav"]:
        ((title, value),) = entry.items()
        if isinstance(value, str) and value in folders:
            found = sorted(path.relative_to(PAGES) for path in (PAGES / folders[value]).glob("*.md"))
            entry[title] = (["results.md"] if value == "RESULTS" else []) + [str(path) for path in found]
    known = set(re.findall(r"[\w/-]+\.md", yaml.safe_dump(settings["nav"])))
    rest = sorted(
        str(path.relative_to(PAGES)) for path in PAGES.rglob("*.md") if str(path.relative_to(PAGES)) not in known
    )
    if rest:
        settings["nav"].append({"More": rest})
    settings |= {"docs_dir": str(PAGES), "site_dir": str(SITE)}
    handler = next(part["mkdocstrings"] for part in settings["plugins"] if "mkdocstrings" in part)["handlers"]["python"]
    handler["paths"] = [str(ROOT / "src")]
    handler["options"]["extensions"] = [str(HERE / "doctests.py")]
    target = ROOT / "build" / "mkdocs.yml"
    target.write_text(yaml.safe_dump(settings, sort_keys=False))
    return target


# ---- pages that lie in the repository ------------------------------------------------------------------------


def place(source: Path) -> str:
    """Where a page of the repository lies in the site."""
    name = str(source.relative_to(ROOT))
    return MOVED.get(name, name.removeprefix("docs/"))


def relinked(text: str, source: Path) -> str:
    """The page with its links as the site has them; what the site does not have is named, not linked."""
    depth = place(source).count("/")

    def changed(match: re.Match[str]) -> str:
        bang, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (source.parent / target).resolve()
        inside = path.is_relative_to(ROOT / "docs") or str(path.relative_to(ROOT)) in MOVED
        if path.is_file() and inside and path.suffix in (".md", ".png", ".svg"):
            return f"{bang}[{words}]({'../' * depth}{place(path)}{anchor})"
        return f"{words} (`{path.relative_to(ROOT)}`)"

    return LINK.sub(changed, text)


# ---- pages made from the program -----------------------------------------------------------------------------


def python_page() -> str:
    """The public interface, from the docstrings."""
    import crystalforge

    homes = crystalforge._HOMES
    parts = [f"::: crystalforge.{homes[name]}.{name}\n" for name in crystalforge.__all__]
    opening = "# Python\n\nEvery name is imported from `crystalforge`. All else may change without notice.\n\n"
    return opening + "\n".join(parts)


def verbs_page() -> str:
    """Every verb with its options, as `--help` has them."""
    import click
    import typer

    from crystalforge.cli import app

    group: Any = typer.main.get_command(app)
    parts = ["# Verbs\n"]
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        parts.append(f"## {name}\n\n{command.help or ''}\n\n| Option | Default | |\n|---|---|---|")
        for parameter in command.params:
            if getattr(parameter, "hidden", False) or parameter.name == "help":
                continue
            is_option = isinstance(parameter, click.Option) or parameter.param_type_name == "option"
            names = ", ".join(f"`{opt}`" for opt in parameter.opts) if is_option else f"`{parameter.name.upper()}`"
            default = parameter.default if not callable(parameter.default) else None
            parts.append(f"| {names} | {cell(default)} | {text(getattr(parameter, 'help', None) or '')} |")
        if command.epilog:
            parts += [f"\n```sh\n{found}\n```" for found in re.findall(r"`([^`]+)`", command.epilog)]
        parts.append("")
    return "\n".join(parts)


def configuration_page() -> str:
    """Every key of params.yaml: name, type, default, description."""
    from crystalforge.config import Config

    parts = [
        "# Configuration\n\nThe sections of `params.yaml`. A record that occurs in several places stands here once.\n"
    ]
    for model in reachable(Config):
        title = "Sections" if model is Config else model.__name__
        opening = text((model.__doc__ or "").split("\n\n")[0].replace("\n", " "))
        parts.append(f"## {title}\n\n{opening}\n\n| Key | Type | Default | |\n|---|---|---|---|")
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else cell(field.get_default(call_default_factory=True))
            kind = type_text(field.annotation)
            parts.append(f"| `{field.alias or name}` | {kind} | {default} | {text(field.description or '')} |")
        parts.append("")
    return "\n".join(parts)


def reachable(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The model and all models in its fields, in the order in which they are met."""
    found: dict[type[BaseModel], None] = {}

    def walk(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if kind not in found:
                found[kind] = None
                for field in kind.model_fields.values():
                    walk(field.annotation)
            return
        for part in get_args(kind):
            walk(part)

    walk(model)
    return list(found)


def type_text(kind: Any) -> str:
    """A type as people write it, with links to records."""
    models = list(_models(kind))
    words = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", kind.__name__ if isinstance(kind, type) else str(kind))
    if models:
        return " or ".join(f"[{m.__name__}](#{m.__name__.lower().strip('_')})" for m in models)
    words = re.sub(r"Annotated\[(\w+), [^\]]*?\]+", r"\1", words)
    return f"`{words[:80].replace(' | ', ' or ')}`"


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type):
        if issubclass(kind, BaseModel):
            yield kind
        return
    for part in get_args(kind):
        yield from _models(part)


def cell(value: Any) -> str:
    """A default in a table's cell."""
    if value is None or value is ... or isinstance(value, BaseModel):
        return ""
    return f"`{str(value)[:60]}`".replace("|", "/").replace("\n", " ")


def text(words: str) -> str:
    """Prose in a table's cell."""
    return html.escape(words, quote=False).replace("|", "\\|").replace("\n", " ").replace("[", "\\[")


# ---- notebooks -----------------------------------------------------------------------------------------------


def notebook_page(path: Path, *, execute: bool) -> str:
    """A notebook as Markdown, with its outputs when it is executed."""
    import nbformat

    notebook: Any = nbformat.read(path, as_version=4)
    if execute:
        from nbclient import NotebookClient

        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "examples")}}).execute()
    parts = []
    for found in notebook.cells:
        parts.append(found.source if found.cell_type == "markdown" else f"```python\n{found.source}\n```")
        parts += [shown for output in found.get("outputs", []) if (shown := output_text(output))]
    return "\n\n".join(parts) + "\n"


def output_text(output: Any) -> str:
    """HTML as it is, anything else as preformatted text; progress and warnings are left out."""
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```" if output.name == "stdout" and output.text.strip() else ""
    data = output.get("data", {})
    if "text/html" in data:
        return f'<div class="output">\n{re.sub(chr(10) + "+", chr(10), data["text/html"])}\n</div>'
    if "image/png" in data:
        return f'<img alt="output" src="data:image/png;base64,{data["image/png"].strip()}">'
    return f"```text\n{data.get('text/plain', '').rstrip()}\n```" if data else ""


if __name__ == "__main__":
    main()
