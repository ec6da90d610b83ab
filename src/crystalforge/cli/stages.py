"""The main job and its five stages, one verb each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crystalforge.cli.common import (
    STAGES,
    BaseOption,
    ConfigOption,
    DataOption,
    MaybeBaseOption,
    MaybeTunedOption,
    OutOption,
    RecipeOption,
    ReplaceOption,
    SetOption,
    TunedOption,
    app,
    example,
    load_config,
    run_stage,
)


@app.command(rich_help_panel=STAGES, epilog=example("crystalforge run --config params.yaml --set seed=1"))
def run(
    config: ConfigOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    directory: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew even when an unfinished run could go on.")] = False,
    end_with_parent: Annotated[bool, typer.Option("--end-with-parent", hidden=True)] = False,
) -> None:
    """The main job: all five stages, run here as one pipeline."""
    import os

    from crystalforge.platform.run import run as execute
    from crystalforge.stages.base import end_with

    if end_with_parent:
        end_with(os.getppid())
    execute(load_config(config, set_, recipe), directory, fresh=fresh)


@app.command(rich_help_panel=STAGES, epilog=example("crystalforge ingest -c params.yaml -o work/data"))
def ingest(out: OutOption, config: ConfigOption = None, set_: SetOption = None, replace: ReplaceOption = False) -> None:
    """Crystals from any source into one store of tokens; unusable ones are listed in rejects.jsonl."""
    run_stage("ingest", config, set_, replace, out)


@app.command(rich_help_panel=STAGES, epilog=example("crystalforge pretrain --data work/data -o work/base"))
def pretrain(
    data: DataOption,
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    replace: ReplaceOption = False,
) -> None:
    """Train the generator by maximum likelihood."""
    run_stage("pretrain", config, set_, replace, out, data=data)


@app.command(
    rich_help_panel=STAGES,
    epilog=example("crystalforge finetune --data work/data --base work/base -o work/tuned --set finetune.steps=50"),
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
    run_stage("finetune", config, set_, replace, out, data=data, base=base)


@app.command(
    rich_help_panel=STAGES,
    epilog=example(
        "crystalforge evaluate --data work/data --base work/base --model sft=work/sft --model ppo=work/ppo-0 "
        "--model ppo=work/ppo-1 -o work/evaluation"
    ),
)
def evaluate(
    data: DataOption,
    out: OutOption,
    base: MaybeBaseOption = None,
    tuned: MaybeTunedOption = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A further model: name=directory. One name again: another seed of it."),
    ] = None,
    samples: Annotated[
        list[str] | None, typer.Option("--samples", help="Crystals drawn before: name=parquet file. Repeatable.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    replace: ReplaceOption = False,
) -> None:
    """Judge base, tuned and any other models side by side, and write the report."""
    from crystalforge.stages.evaluate import named_paths

    further = {"models": named_paths(model or [], "--model"), "samples": named_paths(samples or [], "--samples")}
    run_stage("evaluate", config, set_, replace, out, data=data, base=base, tuned=tuned, **further)


@app.command(
    rich_help_panel=STAGES,
    epilog=example(
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
    run_stage("register", config, set_, replace, out, base=base, tuned=tuned, evaluation=evaluation)
