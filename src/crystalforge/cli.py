"""The command line: one verb for each stage, and the tools a chemist asks for beside them.

Imports are inside the verbs: `--help` must not wait for torch.
"""

from __future__ import annotations

import sys
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
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Directory for the outputs.")]
DataOption = Annotated[Path, typer.Option("--data", help="Output directory of `ingest`.")]
BaseOption = Annotated[
    Path, typer.Option("--base", help="Output directory of `pretrain`, or the name of a shipped model, such as mp20.")
]
TunedOption = Annotated[Path, typer.Option("--tuned", help="Output directory of `finetune`.")]


def _load(config: Path | None, assignments: list[str] | None) -> Config:
    from crystalforge.config import load

    return load(config, assignments or [])


def _example(text: str) -> str:
    return f"**Example:** `{text}`"


STAGES, TOOLS, PLATFORM = "Stages", "Tools", "Platform"


@app.command(rich_help_panel=STAGES, epilog=_example("crystalforge run --config params.yaml --set seed=1"))
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

    from crystalforge.stages.base import end_with
    from crystalforge.stages.recipes import find_recipe
    from crystalforge.stages.run import run as execute

    if end_with_parent:
        end_with(os.getppid())
    execute(_load(find_recipe(recipe) if recipe is not None else config, set_), directory, fresh=fresh)


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
    epilog=_example(
        "crystalforge evaluate --data work/data --base work/base --model sft=work/sft --model ppo=work/ppo-0 "
        "--model ppo=work/ppo-1 -o work/evaluation"
    ),
)
def evaluate(
    data: DataOption,
    out: OutOption,
    base: Annotated[Path | None, typer.Option("--base", help="Output directory of `pretrain`.")] = None,
    tuned: Annotated[Path | None, typer.Option("--tuned", help="Output directory of `finetune`.")] = None,
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
    _stage("evaluate", config, set_, replace, out, data=data, base=base, tuned=tuned, **further)


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


ModelOption = Annotated[
    Path, typer.Option("--model", "-m", help="Directory of a model, or the name of a shipped one, such as mp20.")
]
SourcesArgument = Annotated[list[Path], typer.Argument(help="CIF files, directories of them, parquet files.")]
ProcessesOption = Annotated[int | None, typer.Option("--processes", "-j", help="Processes; none: all cores.")]


@app.command(
    rich_help_panel=TOOLS, epilog=_example("crystalforge figures sft=runs/sft ppo=runs/ppo-0 ppo=runs/ppo-1 -o figures")
)
def figures(
    runs: Annotated[
        list[str], typer.Argument(help="Evaluations, runs or studies; name=directory names what was tuned there.")
    ],
    out: OutOption,
) -> None:
    """The paper's figures 2 to 6 and tables S2 and S3 of finished evaluations, as files."""
    from crystalforge.stages.figures import figures as execute

    _show(execute(runs, out))


@app.command(
    rich_help_panel=TOOLS,
    epilog=_example("crystalforge sample -m mp20 -n 100 --spacegroup 225 -o crystals --cif"),
)
def sample(
    model: ModelOption,
    out: OutOption,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many crystals.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Crystal i depends on (seed, i) alone.")] = 0,
    spacegroup: Annotated[
        list[int] | None, typer.Option(help="1 to 230, repeatable: these in turn. None: as in the training set.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Output of `ingest`: space groups as in its training split.")
    ] = None,
    elements: Annotated[str | None, typer.Option(help="Only these elements, such as 'Li,O,Ti'.")] = None,
    exclude: Annotated[
        str | None, typer.Option(help="Without these: symbols, or sets such as 'radioactive,toxic,rare'.")
    ] = None,
    chemical_system: Annotated[str | None, typer.Option(help="All of these and no other, such as 'Ca-Ti-O'.")] = None,
    formula: Annotated[str | None, typer.Option(help="Composition up to a factor, such as CaTiO3.")] = None,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Atoms in the conventional cell at most.")] = None,
    constraints: Annotated[
        Path | None, typer.Option(help="YAML file of constraints, for templates of sites and the rest.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of every choice; below 1: nearer to the training set.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Probability mass that choices are drawn from.")] = 1.0,
    first_element_temperature: Annotated[float | None, typer.Option(help="Of the first site's element.")] = None,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 (faster) or float64.")] = "float32",
    cif: Annotated[bool, typer.Option("--cif", help="One CIF per crystal besides the parquet files.")] = False,
) -> None:
    """Write new crystals to files as they are drawn; an interrupted call goes on."""
    from crystalforge.common.errors import InputError
    from crystalforge.common.settings import read_yaml, validated
    from crystalforge.model.constraints import Constraints
    from crystalforge.model.constraints_elements import SETS
    from crystalforge.stages.tools import sample as execute

    if precision not in ("float32", "bfloat16", "float64"):
        raise InputError(f"precision {precision!r}", remedy="choose float32, bfloat16 or float64")
    wish = read_yaml(constraints) if constraints is not None else {}
    without = (exclude or "").replace(",", " ").split()
    given = {
        "elements": elements,
        "exclude": [name for name in without if name in SETS],
        "forbidden_elements": [name for name in without if name not in SETS],
        "chemical_system": chemical_system,
        "composition": formula,
        "max_atoms": max_atoms,
    }
    wish |= {key: value for key, value in given.items() if value}
    weights = None
    if data is not None:
        from crystalforge.data.store import TokenStore

        weights = TokenStore.open(data / "store").spacegroup_weights("train")
    _show(
        execute(
            model,
            out,
            n,
            seed=seed,
            spacegroups=spacegroup or None,
            weights=weights,
            constraints=validated(Constraints, wish, source=constraints or "constraints") if wish else None,
            temperature=temperature,
            top_p=top_p,
            first_element_temperature=first_element_temperature,
            precision=precision,  # type: ignore[arg-type]  # checked above
            cif=cif,
        )
    )


@app.command(
    rich_help_panel=TOOLS, epilog=_example("crystalforge score -m runs/latest/pretrain/model a.cif b.cif -o s.parquet")
)
def score(model: ModelOption, sources: SourcesArgument, out: OutOption, processes: ProcessesOption = None) -> None:
    """Log-probability of crystals, whole and by factor, most surprising first."""
    from crystalforge.stages.tools import score as execute

    _show(execute(model, sources, out, processes=processes))


@app.command(rich_help_panel=TOOLS, epilog=_example("crystalforge tokenize structures/ -o tokens.parquet"))
def tokenize(sources: SourcesArgument, out: OutOption, processes: ProcessesOption = None) -> None:
    """Tokens of any CIF or parquet files as one parquet file."""
    from crystalforge.stages.tools import tokenize as execute

    _show(execute(sources, out, processes=processes))


@app.command(rich_help_panel=TOOLS, epilog=_example("crystalforge parity tests/parity/model_tiny.npz"))
def parity(file: Annotated[Path, typer.Argument(help="Reference arrays (.npz).")]) -> None:
    """Compare the model with reference arrays; exit code 1 when one differs by more than its tolerance."""
    from crystalforge.model.parity import check

    report, agrees = check(file)
    _show(report)
    if not agrees:
        raise typer.Exit(1)


@app.command(
    name="import-checkpoint",
    rich_help_panel=TOOLS,
    epilog=_example("crystalforge import-checkpoint epoch_005500.pkl -o models/alex20"),
)
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="A published CrystalFormer checkpoint (Haiku pickle).")], out: OutOption
) -> None:
    """Published parameters into safetensors; nothing in the pickle is executed."""
    from crystalforge.model.haiku import import_checkpoint as execute

    _show(execute(file, out).model_dump())


@app.command(
    name="build-prototypes",
    rich_help_panel=TOOLS,
    epilog=_example("crystalforge build-prototypes --seed 0 -o prototypes.parquet"),
)
def build_prototypes(
    out: OutOption, seed: Annotated[int, typer.Option(min=0, help="Of the substitutions drawn.")] = 0
) -> None:
    """Make the embedded data set anew: prototypes, substitution, labels, hull."""
    from crystalforge.stages.prototypes import build

    _show(build(out, seed=seed))


@app.command(
    name="build-dielectric",
    rich_help_panel=TOOLS,
    epilog=_example("crystalforge build-dielectric petousis2017.csv --constants mp.parquet -o dielectric.parquet"),
)
def build_dielectric(
    tensors: Annotated[Path, typer.Argument(help="Petousis et al. 2017: CSV of structures and full tensors.")],
    out: OutOption,
    constants: Annotated[
        Path | None, typer.Option(help="Parquet of further constants: material_id, eps_total, perhaps cif.")
    ] = None,
    structures: Annotated[
        list[Path] | None, typer.Option(help="Parquet with structures by material_id, for rows without. Repeatable.")
    ] = None,
) -> None:
    """Dielectric tensors and constants as one table for train-predictor."""
    from crystalforge.data.dielectric import build as execute

    _show(execute(tensors, out, constants=constants, structures=structures or []))


@app.command(
    rich_help_panel=PLATFORM,
    epilog=_example("crystalforge submit sweep --tau 0.05 --tau 0.1 --tau 0.2 --seed 0 --seed 1 --local"),
)
def submit(
    pipeline: Annotated[str, typer.Argument(help="discovery, finetune, sweep, train-predictor or ingest.")],
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
    from crystalforge.stages.submit import submit as execute

    _show(
        execute(
            pipeline,
            _load(config, set_),
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


@app.command(rich_help_panel=PLATFORM, epilog=_example("crystalforge promote --min-unique 0.8"))
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
    from crystalforge.stages.promote import PromotionGates
    from crystalforge.stages.promote import promote as execute

    gates = PromotionGates(metric=metric, margin=margin, smallest_unique=min_unique)
    verdict = execute(_load(config, set_), gates, source=source, target=target)
    _show(verdict)
    if not verdict["promoted"]:
        raise typer.Exit(1)


@app.command(
    rich_help_panel=PLATFORM, epilog=_example("crystalforge fetch models:/crystalforge-generator@production -o base")
)
def fetch(
    model: Annotated[str, typer.Argument(help="models:/name@alias, models:/name/version, or a directory.")],
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    replace: ReplaceOption = False,
) -> None:
    """Bring a registered generator, checked: what `finetune --base` takes."""
    _stage("fetch", config, set_, replace, out, model=model)


@app.command(
    rich_help_panel=PLATFORM,
    epilog=_example(
        "crystalforge compare --tuned a/tuned --evaluation a/eval --tuned b/tuned --evaluation b/eval -o c"
    ),
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
    _stage("compare", config, set_, replace, out, tuned=tuned, evaluations=evaluation)


@app.command(
    rich_help_panel=PLATFORM,
    epilog=_example("crystalforge study --recipe stability --set reward.potential.path=M3GNET -o work/stability"),
)
def study(
    out: OutOption,
    config: ConfigOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """One base model tuned in several ways with several seeds, judged side by side; prints the table."""
    from crystalforge.stages.recipes import find_recipe
    from crystalforge.stages.study import study as execute

    found = execute(_load(find_recipe(recipe) if recipe is not None else config, set_), out)
    print(Path(found["table"]).read_text())
    print(f"report      {found['report']}")


@app.command(
    rich_help_panel=PLATFORM,
    epilog=_example(
        "crystalforge contest -c recipes/algorithms.yaml --data work/data --base work/base -o work/contest"
    ),
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
    replace: ReplaceOption = False,
) -> None:
    """All algorithms and searches at the same reward budget, over several seeds: one table."""
    _stage("contest", config, set_, replace, out, data=data, base=base, page=page)


@app.command(
    name="train-predictor",
    rich_help_panel=PLATFORM,
    epilog=_example("crystalforge train-predictor --set predictor.data=dielectric.parquet -o work/dielectric"),
)
def train_predictor(
    out: OutOption, config: ConfigOption = None, set_: SetOption = None, replace: ReplaceOption = False
) -> None:
    """Train a property predictor from structures with known values, and register it with its parity plot."""
    _stage("train_predictor", config, set_, replace, out)


@app.command(
    name="export-training-set",
    rich_help_panel=PLATFORM,
    epilog=_example(
        "crystalforge export-training-set crystals.parquet --predictor a=A --predictor b=B --relax chgnet -o x.parquet"
    ),
)
def export_training_set(
    table: Annotated[Path, typer.Argument(help="crystals.parquet of an evaluation.")],
    out: OutOption,
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
    from crystalforge.stages.export import ExportSettings, limits
    from crystalforge.stages.export import export_training_set as execute

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
    _show(execute(table, out, settings, predictors=predictors, columns=column or [], relax=relax))


def _show(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2))


def _stage(name: str, config: Path | None, set_: list[str] | None, replace: bool, out: Path, **inputs: Any) -> None:
    """Run one stage and print its record; `replace` drops outputs of another configuration first."""
    import shutil
    from importlib import import_module

    from crystalforge.stages.base import StaleOutputs, leads
    from crystalforge.stages.models import find_base

    if inputs.get("base") is not None:
        inputs["base"] = find_base(inputs["base"])
    function = getattr(import_module(f"crystalforge.stages.{name}"), name)
    resolved = _load(config, set_)
    try:
        record = function(resolved, **inputs, out=out)
    except StaleOutputs:
        if not replace:
            raise
        shutil.rmtree(out)
        record = function(resolved, **inputs, out=out)
    if leads():  # of the processes that torchrun started
        _show(record)


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
