"""From a wish to a ranked list, and the hulls that judges need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crystalforge.cli.common import (
    TOOLS,
    ConfigOption,
    ModelOption,
    OutOption,
    ProcessesOption,
    ReplaceOption,
    SetOption,
    app,
    example,
    load_config,
    run_configured,
    show,
)


@app.command(
    rich_help_panel=TOOLS,
    epilog=example("crystalforge screen -m mp20 --chemical-system Li-P-S --top 50 -o wish"),
)
def screen(
    model: ModelOption,
    out: OutOption,
    top: Annotated[
        int | None, typer.Option(min=1, help="How many crystals that every judge finds stable. [default: 20]")
    ] = None,
    chemical_system: Annotated[str | None, typer.Option(help="All of these and no other, such as 'Li-P-S'.")] = None,
    formula: Annotated[
        str | None, typer.Option(help="Composition up to a factor, such as CaTiO3: structure prediction.")
    ] = None,
    elements: Annotated[str | None, typer.Option(help="Only these elements, such as 'Li,O,Ti'.")] = None,
    exclude: Annotated[
        str | None, typer.Option(help="Without these: symbols, or sets such as 'radioactive,toxic,rare'.")
    ] = None,
    spacegroup: Annotated[
        list[int] | None, typer.Option(help="1 to 230, repeatable: these in turn. None: as in the training set.")
    ] = None,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Atoms in the conventional cell at most.")] = None,
    constraints: Annotated[
        Path | None, typer.Option(help="YAML file of constraints, for templates of sites and the rest.")
    ] = None,
    property_: Annotated[
        Path | None, typer.Option("--property", help="YAML file of a reward that values a property wished for.")
    ] = None,
    at_least: Annotated[
        float | None, typer.Option(help="Value of --property from which the wish is fulfilled.")
    ] = None,
    limit: Annotated[
        float | None, typer.Option(help="eV/atom of E_hull that every judge must find. [default: 0.1]")
    ] = None,
    max_crystals: Annotated[int | None, typer.Option(min=1, help="Budget: crystals drawn. [default: 20000]")] = None,
    max_calls: Annotated[int | None, typer.Option(min=1, help="Budget: crystals scored, each judge counting.")] = None,
    max_seconds: Annotated[float | None, typer.Option(min=0, help="Budget: time of this call.")] = None,
    known: Annotated[
        Path | None, typer.Option(help="Parquet of crystals that are known besides the embedded ones.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Crystal i depends on (seed, i) alone.")] = None,
    processes: ProcessesOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    replace: ReplaceOption = False,
) -> None:
    """From a wish to a ranked list: draw, judge, relax and judge again until enough crystals convince every judge.

    An interrupted call goes on where it was; a finished one goes on when it is asked for more. The list, its CIFs and a
    page to look at lie in the output directory. What the options do not say comes from the section `screen` of the
    configuration.
    """
    from crystalforge.common.errors import InputError
    from crystalforge.common.settings import read_yaml, validated
    from crystalforge.config import Config
    from crystalforge.model.constraints.elements import SETS

    given = load_config(config, set_)
    values = given.model_dump(mode="json", by_alias=True)
    section = values["screen"]
    wish = read_yaml(constraints) if constraints is not None else {}
    without = (exclude or "").replace(",", " ").split()
    wish |= _given(
        elements=elements,
        exclude=[name for name in without if name in SETS],
        forbidden_elements=[name for name in without if name not in SETS],
        chemical_system=chemical_system,
        composition=formula,
        max_atoms=max_atoms,
    )
    if wish:
        section["constraints"] = (section["constraints"] or {}) | wish
    if (property_ is None) != (at_least is None):
        raise InputError("--property and --at-least go together", remedy="give both, or neither")
    if property_ is not None:
        section["wish"] = {"reward": read_yaml(property_), "at_least": at_least}
    section |= _given(
        top=top,
        limit=limit,
        spacegroups=spacegroup,
        processes=processes,
        known=None if known is None else str(known),
    )
    section["budget"] |= _given(crystals=max_crystals, calls=max_calls, seconds=max_seconds)
    values |= _given(seed=seed)
    source = constraints or property_ or config or "the options"
    run_configured("screen", validated(Config, values, source=source), replace, out, model=model)


def _given(**options: object) -> dict[str, object]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None and value != []}


@app.command(
    name="own-hull",
    rich_help_panel=TOOLS,
    epilog=example("crystalforge own-hull --potential judge.yaml --phases phases.parquet -o hull.parquet"),
)
def own_hull(
    out: OutOption,
    potential: Annotated[Path | None, typer.Option(help="YAML file of a potential (kind, ...). None: CHGNet.")] = None,
    phases: Annotated[
        Path | None, typer.Option(help="Parquet of structures, elements among them. None: the embedded ones.")
    ] = None,
) -> None:
    """Reference phases with a potential's own energies: a hull on which its systematic errors cancel."""
    import torch
    from pydantic import TypeAdapter, ValidationError

    from crystalforge.common.errors import InputError
    from crystalforge.common.settings import read_yaml
    from crystalforge.potentials import PotentialConfig, load
    from crystalforge.rewards.own_hull import build

    values = {"kind": "chgnet"} if potential is None else read_yaml(potential)
    try:
        settings = TypeAdapter(PotentialConfig).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", source=potential) from error
    torch.set_num_threads(1)
    show(build(load(settings), phases, out))
