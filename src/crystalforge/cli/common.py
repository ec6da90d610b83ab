"""What the verbs share: options of the same meaning everywhere, and how a stage is run from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from crystalforge.config import Config

app = typer.Typer(
    name="crystalforge",
    help="From a wish for a material to a ranked, reproducible list of crystals.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file of parameters; none: the defaults.")
]

SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one parameter: section.key=value. Repeatable.")
]

RecipeOption = Annotated[
    str | None, typer.Option("--recipe", help="A file of recipes/, by its name: in the place of --config.")
]

ReplaceOption = Annotated[bool, typer.Option("--replace", help="Drop outputs of another configuration.")]


def _folder(path: Path) -> Path:
    """Refuse a file where a verb writes a folder, before anything is computed."""
    if path.exists() and not path.is_dir():
        from crystalforge.common.errors import InputError

        raise InputError("is a file; this verb writes a folder", source=path, remedy="give a folder as --out")
    return path


def _file(path: Path) -> Path:
    """Refuse a folder where a verb writes one file, before anything is computed."""
    if path.is_dir():
        from crystalforge.common.errors import InputError

        raise InputError("is a folder; this verb writes one file", source=path, remedy="give a file as --out")
    return path


OutOption = Annotated[Path, typer.Option("--out", "-o", callback=_folder, help="Directory for the outputs.")]
OutFileOption = Annotated[Path, typer.Option("--out", "-o", callback=_file, help="File to write.")]

DataOption = Annotated[Path, typer.Option("--data", help="Output directory of `ingest`.")]

BASE = typer.Option("--base", help="Output directory of `pretrain`, or the name of a shipped model, such as mp20.")

BaseOption = Annotated[Path, BASE]
MaybeBaseOption = Annotated[Path | None, BASE]

TUNED = typer.Option("--tuned", help="Output directory of `finetune`.")

TunedOption = Annotated[Path, TUNED]
MaybeTunedOption = Annotated[Path | None, TUNED]

STAGES, TOOLS, PLATFORM = "Stages", "Tools", "Platform"

ModelOption = Annotated[
    Path, typer.Option("--model", "-m", help="Directory of a model, or the name of a shipped one, such as mp20.")
]

SourcesArgument = Annotated[list[Path], typer.Argument(help="CIF, POSCAR, JSON, extxyz; directories; parquet.")]

ProcessesOption = Annotated[int | None, typer.Option("--processes", "-j", help="Processes; none: all cores.")]


def load_config(config: Path | None, assignments: list[str] | None, recipe: str | None = None) -> Config:
    """The configuration in a file, or in the recipe of a name, with assignments of single values. Raises InputError."""
    from crystalforge.config import load
    from crystalforge.platform.recipes import find_recipe

    return load(config if recipe is None else find_recipe(recipe), assignments or [])


def example(text: str) -> str:
    """The line beneath a verb's help."""
    return f"**Example:** `{text}`"


def show(value: Any) -> None:
    """Print what a verb gives back, as JSON."""
    import json

    print(json.dumps(value, indent=2))


def run_stage(name: str, config: Path | None, set_: list[str] | None, replace: bool, out: Path, **inputs: Any) -> None:
    """Run one stage and print its record; `replace` drops outputs of another configuration first."""
    from crystalforge.stages.models import find_base

    if inputs.get("base") is not None:
        inputs["base"] = find_base(inputs["base"])
    run_configured(name, load_config(config, set_), replace, out, **inputs)


def run_configured(name: str, resolved: Config, replace: bool, out: Path, **inputs: Any) -> None:
    """`run_stage` with a configuration that is there already."""
    import shutil

    from crystalforge.stages.base import StaleOutputs, find_stage, leads

    function = find_stage(name)
    try:
        record = function(resolved, **inputs, out=out)
    except StaleOutputs:
        if not replace:
            raise
        shutil.rmtree(out)
        record = function(resolved, **inputs, out=out)
    if leads():  # of the processes that torchrun started
        show(record)
