"""Pipelines, registry, studies over several runs, property predictors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crystalforge.cli.common import (
    PLATFORM,
    BaseOption,
    ConfigOption,
    DataOption,
    OutFileOption,
    OutOption,
    RecipeOption,
    ReplaceOption,
    SetOption,
    app,
    example,
    load_config,
    run_stage,
    show,
)


@app.command(
    rich_help_panel=PLATFORM,
    epilog=example("crystalforge submit sweep --tau 0.05 --tau 0.1 --tau 0.2 --seed 0 --seed 1 --local"),
)
def submit(
    pipeline: Annotated[str, typer.Argument(help="discovery, finetune, sweep, screen, train-predictor or ingest.")],
    config: ConfigOption = None,
    set_: SetOption = None,
    local: Annotated[bool, typer.Option("--local", help="Run it here, under --directory.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="Write the compiled pipeline (YAML) here.")] = None,
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="Kubeflow Pipelines' address, to run it.")] = None,
    directory: Annotated[Path, typer.Option(help="Where --local keeps its runs.")] = Path("runs"),
    cluster: Annotated[
        Path | None, typer.Option(help="YAML file of what steps get on the cluster; see pipelines/clusters.")
    ] = None,
    workspace: Annotated[str | None, typer.Option(help="Folder on the cluster's volume where a run goes on.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with a bearer token for the endpoint.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="finetune: models:/name@alias, models:/name/version, or a directory.")
    ] = None,
    tau: Annotated[list[float] | None, typer.Option(help="sweep: one strength of the KL term. Repeatable.")] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="sweep: one seed of all variants. Repeatable.")] = None,
    algorithm: Annotated[list[str] | None, typer.Option(help="sweep: one algorithm, such as rloo. Repeatable.")] = None,
) -> None:
    """Compile a pipeline with these parameters, and run it: here, or by Kubeflow Pipelines."""
    from crystalforge.platform.submit import submit as execute

    show(
        execute(
            pipeline,
            load_config(config, set_),
            endpoint=endpoint,
            output=output,
            local=directory if local else None,
            cluster=cluster,
            workspace=workspace,
            token=token_file,
            base_model=base_model,
            taus=tau or [],
            seeds=seed or [],
            algorithms=algorithm or [],
        )
    )


@app.command(rich_help_panel=PLATFORM, epilog=example("crystalforge promote --min-unique 0.8"))
def promote(
    config: ConfigOption = None,
    set_: SetOption = None,
    source: Annotated[str, typer.Option("--from", help="Alias of the version to judge.")] = "candidate",
    target: Annotated[str, typer.Option("--to", help="Alias that moves when every gate is passed.")] = "production",
    metric: Annotated[str, typer.Option(help="Share that must not be worse.")] = "sun_rate",
    margin: Annotated[float, typer.Option(min=0, max=1, help="Loss of it that is borne.")] = 0.05,
    min_unique: Annotated[float, typer.Option(min=0, max=1, help="Share of unique crystals, lower bound.")] = 0.5,
) -> None:
    """Move an alias when the evaluation's gates are passed; exit code 1 when one is not. The version says why."""
    from crystalforge.platform.promote import PromotionGates
    from crystalforge.platform.promote import promote as execute

    gates = PromotionGates(metric=metric, margin=margin, smallest_unique=min_unique)
    verdict = execute(load_config(config, set_), gates, source=source, target=target)
    show(verdict)
    if not verdict["promoted"]:
        raise typer.Exit(1)


@app.command(
    rich_help_panel=PLATFORM, epilog=example("crystalforge fetch models:/crystalforge-generator@production -o base")
)
def fetch(
    model: Annotated[str, typer.Argument(help="models:/name@alias, models:/name/version, or a directory.")],
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    replace: ReplaceOption = False,
) -> None:
    """Bring a registered generator, checked: what `finetune --base` takes."""
    run_stage("fetch", config, set_, replace, out, model=model)


@app.command(
    rich_help_panel=PLATFORM,
    epilog=example("crystalforge compare --tuned a/tuned --evaluation a/eval --tuned b/tuned --evaluation b/eval -o c"),
)
def compare(
    tuned: Annotated[list[Path], typer.Option("--tuned", help="Output directory of `finetune`. Repeatable.")],
    evaluation: Annotated[list[Path], typer.Option("--evaluation", help="Output of `evaluate`. Repeatable.")],
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    replace: ReplaceOption = False,
) -> None:
    """Several fine-tunings of one base model as one table and one report."""
    run_stage("compare", config, set_, replace, out, tuned=tuned, evaluations=evaluation)


@app.command(
    rich_help_panel=PLATFORM,
    epilog=example("crystalforge study --recipe stability --set reward.potential.path=M3GNET -o work/stability"),
)
def study(
    out: OutOption,
    config: ConfigOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """One base model tuned in several ways with several seeds, judged side by side; prints the table."""
    from crystalforge.studies.study import study as execute

    found = execute(load_config(config, set_, recipe), out)
    print(Path(found["table"]).read_text())
    print(f"report      {found['report']}")


@app.command(
    rich_help_panel=PLATFORM,
    epilog=example("crystalforge contest -c recipes/algorithms.yaml --data work/data --base work/base -o work/contest"),
)
def contest(
    data: DataOption,
    base: BaseOption,
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    page: Annotated[
        Path | None, typer.Option(help="Markdown file whose marked place gets the table, such as docs' own page.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="PNG file that gets the attained share against scored crystals.")
    ] = None,
    replace: ReplaceOption = False,
) -> None:
    """All algorithms and searches at the same reward budget, over several seeds: one table, one figure."""
    run_stage("contest", config, set_, replace, out, data=data, base=base, page=page, figure=figure)


@app.command(
    name="train-predictor",
    rich_help_panel=PLATFORM,
    epilog=example("crystalforge train-predictor --set predictor.data=dielectric.parquet -o work/dielectric"),
)
def train_predictor(
    out: OutOption, config: ConfigOption = None, set_: SetOption = None, replace: ReplaceOption = False
) -> None:
    """Train a property predictor from structures with known values, and register it with its parity plot."""
    run_stage("train_predictor", config, set_, replace, out)


@app.command(
    name="export-training-set",
    rich_help_panel=PLATFORM,
    epilog=example(
        "crystalforge export-training-set crystals.parquet --predictor a=A --predictor b=B --relax chgnet -o x.parquet"
    ),
)
def export_training_set(
    table: Annotated[Path, typer.Argument(help="crystals.parquet of an evaluation.")],
    out: OutFileOption,
    predictor: Annotated[
        list[str] | None, typer.Option(help="A judge: name=FOLDER of a MatGL property model. Repeatable.")
    ] = None,
    column: Annotated[list[str] | None, typer.Option(help="A judge: a column of the table. Repeatable.")] = None,
    label: Annotated[str, typer.Option(help="Column of the new table that a training reads.")] = "eps_total",
    teacher: Annotated[str | None, typer.Option(help="Judge whose answer is the label; none: their mean.")] = None,
    relax: Annotated[str | None, typer.Option(help="Relax by chgnet, or by the MatGL potential in a folder.")] = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="How many crystals at most.")] = 100,
    per_composition: Annotated[int, typer.Option(min=1, help="Of one composition at most.")] = 1,
    per_system: Annotated[int, typer.Option(min=1, help="Of one set of elements at most.")] = 5,
    max_e_above_hull: Annotated[float | None, typer.Option(help="eV/atom; none: any.")] = None,
    at_least: Annotated[
        list[str] | None, typer.Option(help="column=value: leave out rows below, such as band_gap=0.5. Repeatable.")
    ] = None,
) -> None:
    """Crystals that judges disagree on most, relaxed and labelled: extra rows for train-predictor."""
    from crystalforge.stages.evaluate import named_paths
    from crystalforge.tools.export import ExportSettings, limits
    from crystalforge.tools.export import export_training_set as execute

    settings = ExportSettings(
        label=label,
        number=number,
        per_composition=per_composition,
        per_system=per_system,
        max_e_above_hull=max_e_above_hull,
        at_least=limits(at_least or []),
        teacher=teacher,
    )
    predictors = dict(named_paths(predictor or [], "--predictor"))
    show(execute(table, out, settings, predictors=predictors, columns=column or [], relax=relax))
