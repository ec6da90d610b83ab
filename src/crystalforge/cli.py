"""The command line: one verb for each stage, and the tools a chemist asks for beside them.

Imports are inside the verbs: `--help` must not wait for torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
ReplaceOption = Annotated[bool, typer.Option("--replace", help="Drop outputs of another configuration.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Directory for the outputs.")]
DataOption = Annotated[Path, typer.Option("--data", help="Output directory of `ingest`.")]
BaseOption = Annotated[Path, typer.Option("--base", help="Output directory of `pretrain`.")]
TunedOption = Annotated[Path, typer.Option("--tuned", help="Output directory of `finetune`.")]


def _load(config: Path | None, assignments: list[str] | None) -> Config:
    from crystalforge.config import load

    return load(config, assignments or [])


def _example(text: str) -> str:
    return f"**Example:** `{text}`"


STAGES, TOOLS = "Stages", "Tools"


@app.command(rich_help_panel=STAGES, epilog=_example("crystalforge run --config params.yaml --set seed=1"))
def run(
    config: ConfigOption = None,
    set_: SetOption = None,
    directory: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew even when an unfinished run could go on.")] = False,
    end_with_parent: Annotated[bool, typer.Option("--end-with-parent", hidden=True)] = False,
) -> None:
    """The main job: all five stages, run here as one pipeline."""
    import os

    from crystalforge.stages.base import end_with
    from crystalforge.stages.run import run as execute

    if end_with_parent:
        end_with(os.getppid())
    execute(_load(config, set_), directory, fresh=fresh)


@app.command(rich_help_panel=STAGES, epilog=_example("crystalforge ingest -c params.yaml -o work/data"))
def ingest(out: OutOption, config: ConfigOption = None, set_: SetOption = None, replace: ReplaceOption = False) -> None:
    """Crystals from any source into one store of tokens; unusable ones are listed in rejects.jsonl."""
    _stage("ingest", config, set_, replace, out)


@app.command(rich_help_panel=STAGES, epilog=_example("crystalforge pretrain --data work/data -o work/base"))
def pretrain(
    data: DataOption,
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    replace: ReplaceOption = False,
) -> None:
    """Train the generator by maximum likelihood."""
    _stage("pretrain", config, set_, replace, out, data=data)


@app.command(
    rich_help_panel=STAGES,
    epilog=_example("crystalforge finetune --data work/data --base work/base -o work/tuned --set finetune.steps=50"),
)
def finetune(
    data: DataOption,
    base: BaseOption,
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    replace: ReplaceOption = False,
) -> None:
    """Reinforce the generator on its own samples against the reward."""
    _stage("finetune", config, set_, replace, out, data=data, base=base)


@app.command(
    rich_help_panel=STAGES,
    epilog=_example("crystalforge evaluate --data work/data --base work/base --tuned work/tuned -o work/evaluation"),
)
def evaluate(
    data: DataOption,
    base: BaseOption,
    tuned: TunedOption,
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    replace: ReplaceOption = False,
) -> None:
    """Judge base and tuned model side by side, and write the report."""
    _stage("evaluate", config, set_, replace, out, data=data, base=base, tuned=tuned)


@app.command(
    rich_help_panel=STAGES,
    epilog=_example(
        "crystalforge register --base work/base --tuned work/tuned --evaluation work/evaluation -o work/registered"
    ),
)
def register(
    base: BaseOption,
    tuned: TunedOption,
    evaluation: Annotated[Path, typer.Option("--evaluation", help="Output directory of `evaluate`.")],
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    replace: ReplaceOption = False,
) -> None:
    """Put the better model into the registry."""
    _stage("register", config, set_, replace, out, base=base, tuned=tuned, evaluation=evaluation)


def _stage(name: str, config: Path | None, set_: list[str] | None, replace: bool, out: Path, **inputs: Path) -> None:
    """Run one stage and print its record; `replace` drops outputs of another configuration first."""
    import json
    import shutil
    from importlib import import_module

    from crystalforge.stages.base import StaleOutputs

    function = getattr(import_module(f"crystalforge.stages.{name}"), name)
    resolved = _load(config, set_)
    try:
        record = function(resolved, **inputs, out=out)
    except StaleOutputs:
        if not replace:
            raise
        shutil.rmtree(out)
        record = function(resolved, **inputs, out=out)
    print(json.dumps(record, indent=2))


def main() -> None:
    """Entry point: users' mistakes are one message and exit code 2, never a traceback."""
    from crystalforge.common.errors import InputError

    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; what was computed is kept, the same command goes on", file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        # The class stands above the rewards package, which is not imported for commands that do not need it.
        if type(error).__name__ != "RewardUnavailable":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
