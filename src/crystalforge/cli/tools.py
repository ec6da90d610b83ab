"""What a chemist asks for beside the stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crystalforge.cli.common import (
    TOOLS,
    ModelOption,
    OutFileOption,
    OutOption,
    ProcessesOption,
    SourcesArgument,
    app,
    example,
    show,
)


@app.command(
    rich_help_panel=TOOLS, epilog=example("crystalforge figures sft=runs/sft ppo=runs/ppo-0 ppo=runs/ppo-1 -o figures")
)
def figures(
    runs: Annotated[
        list[str], typer.Argument(help="Evaluations, runs or studies; name=directory names what was tuned there.")
    ],
    out: OutOption,
) -> None:
    """The paper's figures 2 to 6 and tables S2 and S3 of finished evaluations, as files."""
    from crystalforge.studies.figures import figures as execute

    show(execute(runs, out))


@app.command(
    rich_help_panel=TOOLS,
    epilog=example("crystalforge sample -m mp20 -n 100 --spacegroup 225 -o crystals --cif"),
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
    letter_temperature: Annotated[float | None, typer.Option(help="Instead, of Wyckoff letters.")] = None,
    element_temperature: Annotated[float | None, typer.Option(help="Instead, of elements.")] = None,
    first_element_temperature: Annotated[float | None, typer.Option(help="Of the first site's element.")] = None,
    coord_temperature: Annotated[float | None, typer.Option(help="Instead, of coordinates.")] = None,
    lattice_temperature: Annotated[float | None, typer.Option(help="Instead, of the lattice.")] = None,
    top_p: Annotated[float, typer.Option(help="Probability mass that choices are drawn from.")] = 1.0,
    valid: Annotated[
        bool,
        typer.Option(
            "--valid",
            help="Draw each crystal again, in its space group, until its distances (0.7 of summed covalent radii) and "
            "its cell are possible; says how many were drawn.",
        ),
    ] = False,
    max_draws: Annotated[int, typer.Option(min=1, help="With --valid: draws of one crystal before giving up.")] = 1000,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 (faster) or float64.")] = "float32",
    cif: Annotated[bool, typer.Option("--cif", help="One CIF per crystal besides the parquet files.")] = False,
) -> None:
    """Write new crystals to files as they are drawn; an interrupted call goes on."""
    from crystalforge.common.errors import InputError
    from crystalforge.common.settings import read_yaml, validated
    from crystalforge.model.constraints.constraints import Constraints
    from crystalforge.model.constraints.elements import SETS
    from crystalforge.model.sampling.config import SamplingConfig
    from crystalforge.tools.crystals import sample as execute

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
    law = {
        "temperature": temperature,
        "letter_temperature": letter_temperature,
        "element_temperature": element_temperature,
        "first_element_temperature": first_element_temperature,
        "coord_temperature": coord_temperature,
        "lattice_temperature": lattice_temperature,
        "top_p": top_p,
        "valid": valid,
        "max_draws": max_draws,
        "constraints": validated(Constraints, wish, source=constraints or "constraints") if wish else None,
    }
    weights = None
    if data is not None:
        from crystalforge.data.store import TokenStore

        weights = TokenStore.open(data / "store").spacegroup_weights("train")
    show(
        execute(
            model,
            out,
            n,
            seed=seed,
            spacegroups=spacegroup or None,
            weights=weights,
            law=validated(SamplingConfig, law, source="sample"),
            precision=precision,  # type: ignore[arg-type]  # checked above
            cif=cif,
        )
    )


@app.command(
    rich_help_panel=TOOLS, epilog=example("crystalforge score -m runs/latest/pretrain/model a.cif b.cif -o s.parquet")
)
def score(model: ModelOption, sources: SourcesArgument, out: OutFileOption, processes: ProcessesOption = None) -> None:
    """Log-probability of crystals, whole and by factor, most surprising first."""
    from crystalforge.tools.crystals import score as execute

    show(execute(model, sources, out, processes=processes))


@app.command(rich_help_panel=TOOLS, epilog=example("crystalforge tokenize structures/ -o tokens.parquet"))
def tokenize(sources: SourcesArgument, out: OutFileOption, processes: ProcessesOption = None) -> None:
    """Tokens of crystals in any files as one parquet file."""
    from crystalforge.tools.crystals import tokenize as execute

    show(execute(sources, out, processes=processes))


@app.command(rich_help_panel=TOOLS, epilog=example("crystalforge mcp --folder structures"))
def mcp(
    folder: Annotated[Path, typer.Option(help="The only folder whose files are read and written.")] = Path(),
    most: Annotated[int, typer.Option(min=1, help="Crystals in one call at most.")] = 100,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of one call; what is done by then is given.")] = 120,
) -> None:
    """Serve an agent over the Model Context Protocol (standard input and output): sample, score, judge, screen."""
    from crystalforge.tools.mcp import serve

    serve(folder, most=most, seconds=seconds)


@app.command(rich_help_panel=TOOLS, epilog=example("crystalforge parity tests/parity/model_tiny.npz"))
def parity(file: Annotated[Path, typer.Argument(help="Reference arrays (.npz).")]) -> None:
    """Compare the model with reference arrays; exit code 1 when one differs by more than its tolerance."""
    from crystalforge.model.published.parity import check

    report, agrees = check(file)
    show(report)
    if not agrees:
        raise typer.Exit(1)


@app.command(
    name="import-checkpoint",
    rich_help_panel=TOOLS,
    epilog=example("crystalforge import-checkpoint epoch_005500.pkl -o models/alex20"),
)
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="A published CrystalFormer checkpoint (Haiku pickle).")], out: OutOption
) -> None:
    """Published parameters into safetensors; nothing in the pickle is executed."""
    from crystalforge.model.published.haiku import import_checkpoint as execute

    show(execute(file, out).model_dump())


@app.command(
    name="build-prototypes",
    rich_help_panel=TOOLS,
    epilog=example("crystalforge build-prototypes --seed 0 -o prototypes.parquet"),
)
def build_prototypes(
    out: OutFileOption, seed: Annotated[int, typer.Option(min=0, help="Of the substitutions drawn.")] = 0
) -> None:
    """Make the embedded data set anew: prototypes, substitution, labels, hull."""
    from crystalforge.prototypes.build import build

    show(build(out, seed=seed))


@app.command(
    name="build-dielectric",
    rich_help_panel=TOOLS,
    epilog=example("crystalforge build-dielectric petousis2017.csv --constants mp.parquet -o dielectric.parquet"),
)
def build_dielectric(
    tensors: Annotated[Path, typer.Argument(help="Petousis et al. 2017: CSV of structures and full tensors.")],
    out: OutFileOption,
    constants: Annotated[
        Path | None, typer.Option(help="Parquet of further constants: material_id, eps_total, perhaps cif.")
    ] = None,
    structures: Annotated[
        list[Path] | None, typer.Option(help="Parquet with structures by material_id, for rows without. Repeatable.")
    ] = None,
) -> None:
    """Dielectric tensors and constants as one table for train-predictor."""
    from crystalforge.data.dielectric import build as execute

    show(execute(tensors, out, constants=constants, structures=structures or []))
