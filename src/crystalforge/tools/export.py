"""Crystals that a run wrote and that several judges disagree on -> a training set for their successors.

1. Candidates: rows of an evaluation's table that were scored, of valid structure, the first of their kind, and (where
   asked for) not far above the hull, and not below given values of given columns.
2. Judges: columns of the table, property predictors, or both. Their disagreement on a crystal is the population
   standard deviation of their answers: query by committee (Seung, Opper & Sompolinsky 1992).
3. The most disputed are taken greedily, at most so many of one composition and of one chemical system: ten variants of
   one crystal teach little more than one.
4. They are relaxed, and judged again as they then are.
5. The label is the teacher's answer, or the mean of all. It is a stand-in: a calculation from first principles replaces
   the column `<label>`, and what was predicted stays in the columns beside it.

Shapes: n crystals, J judges.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict, Field

from crystalforge.common.errors import InputError, one_of
from crystalforge.common.files import atomic_file, sha256_json
from crystalforge.common.progress import Progress

if TYPE_CHECKING:
    import pyarrow as pa

    from crystalforge.crystal import Crystal
    from crystalforge.potentials.base import Potential, PropertyModel

LONGEST_STEPS = 200  # of a relaxation; what is reached then is kept, and said not to have converged
FMAX = 0.1  # eV/Å
ENERGIES = ("e_above_hull", "held_out_e_above_hull")  # eV/atom: the reward's, else the held-out judge's
VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")  # order of six outputs: a dielectric tensor, of which the mean eigenvalue


class ExportSettings(BaseModel):
    """What to take, and what to call it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = Field(default="eps_total", description="column that a training reads as its target")
    number: int = Field(default=100, ge=1, description="crystals at most")
    per_composition: int = Field(default=1, ge=1, description="of one reduced composition at most")
    per_system: int = Field(default=5, ge=1, description="of one set of elements at most")
    max_e_above_hull: float | None = Field(
        default=None, description="eV/atom, of the reward or the held-out judge. None: any"
    )
    at_least: dict[str, float] = Field(
        default={}, description="least value by column: a gap of 0.5 eV leaves out metals"
    )
    teacher: str | None = Field(default=None, description="judge whose answer is the label; None: the mean of all")


def export_training_set(
    table: Path,
    out: Path,
    settings: ExportSettings,
    *,
    predictors: Mapping[str, Path],
    columns: Sequence[str] = (),
    relax: str | Path | None = None,
) -> dict[str, Any]:
    """Write the most disputed crystals of `table`, an evaluation's, to the parquet file `out`; returns counts.

    predictors: folders of MatGL property models by name; columns: further judges, columns of the table. relax: `chgnet`
    or the folder of a MatGL potential; without it the table's relaxed crystals are taken where it has them, else the
    crystals as they were generated. What is relaxed is kept in `out` with the ending .relaxed.jsonl until the end: an
    interrupted call goes on. Raises InputError when there are fewer than two judges, a column is missing, or no crystal
    is left.

    Columns of `out`: material_id, formula, lattice, atomic_numbers, frac_coords, <label>, label_by, disagreement,
    judge_<name> (of the final crystal), relaxed, converged, model_hash, and those given in `columns`.
    """
    import pyarrow.parquet as parquet

    from crystalforge.evaluation.evaluate import read_table
    from crystalforge.potentials.matgl import MatGLProperty

    names = [*columns, *predictors]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise InputError(f"judges: {', '.join(names) or 'none'}", remedy="name at least two, each once")
    if settings.teacher is not None and settings.teacher not in names:
        raise InputError(
            f"the teacher {settings.teacher!r} is no judge",
            remedy=one_of("give one of", names, nothing="name judges by --predictor or --column"),
        )
    rows = read_table(table)
    candidates, crystals, moved = _candidates(rows, table, settings, columns, use_relaxed=relax is None)
    models = {name: MatGLProperty(path) for name, path in predictors.items()}
    given = np.stack([candidates[name].to_numpy() for name in columns], axis=1) if columns else None
    spread = _judged(models, crystals, given).std(axis=1)
    chosen = pick([_symbols(crystal) for crystal in crystals], spread, settings)
    if not len(chosen):
        raise InputError("the judges answer together for no crystal", source=table)
    final, converged = [crystals[row] for row in chosen], np.full(len(chosen), moved)
    if relax is not None:
        relaxed, converged = _relax(_potential(relax), final, out.with_suffix(".relaxed.jsonl"))
        usable = np.array([crystal is not None for crystal in relaxed], dtype=bool)
        final = [crystal for crystal in relaxed if crystal is not None]
        chosen, converged = chosen[usable], converged[usable]
    answers = _judged(models, final, None if given is None else given[chosen])
    label = answers[:, names.index(settings.teacher)] if settings.teacher else answers.mean(axis=1)
    known = np.isfinite(answers).all(axis=1)
    result = _result(candidates, chosen, final, settings, names, answers, label, relax is not None or moved, converged)
    result = result.filter(known)
    if not len(result):
        raise InputError("no crystal has an answer of every judge once it is relaxed", source=table)
    with atomic_file(out) as temporary:
        parquet.write_table(result, temporary, compression="zstd")
    out.with_suffix(".relaxed.jsonl").unlink(missing_ok=True)
    exported = result["disagreement"].to_numpy()
    return {
        "out": str(out),
        "rows": len(rows),
        "candidates": len(crystals),
        "exported": len(result),
        "lost_in_relaxing": int(len(chosen) - known.sum()) if relax is not None else 0,
        "disagreement_candidates": float(np.nanmedian(spread)),
        "disagreement_exported": float(np.median(exported)),
        "label_by": settings.teacher or "mean",
    }


def limits(values: Sequence[str]) -> dict[str, float]:
    """`column=value` texts as a dictionary; InputError for anything else.

    >>> limits(["band_gap=0.5"])
    {'band_gap': 0.5}
    """
    found = {}
    for value in values:
        name, _, number = value.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise InputError(f"{value!r} is not of the form column=number", remedy="such as band_gap=0.5") from None
    return found


def pick(
    compositions: Sequence[Mapping[str, int]], disagreement: Float64[np.ndarray, " n"], settings: ExportSettings
) -> np.ndarray:
    """Rows by falling disagreement, within the limits for one composition and one chemical system; NaN never.

    >>> pick([{"Na": 1, "Cl": 1}, {"Na": 1, "Cl": 1}, {"K": 1}], np.array([1.0, 2.0, 0.5]), ExportSettings()).tolist()
    [1, 2]
    """
    taken: list[int] = []
    of_composition: Counter[tuple[tuple[str, int], ...]] = Counter()
    of_system: Counter[tuple[str, ...]] = Counter()
    for row in np.argsort(-disagreement, kind="stable").tolist():
        if len(taken) == settings.number or not np.isfinite(disagreement[row]):
            break
        composition = tuple(sorted(compositions[row].items()))
        system = tuple(name for name, _ in composition)
        if of_composition[composition] < settings.per_composition and of_system[system] < settings.per_system:
            of_composition[composition] += 1
            of_system[system] += 1
            taken.append(row)
    return np.array(taken, dtype=np.int64)


def _candidates(
    rows: pa.Table, source: Path, settings: ExportSettings, columns: Sequence[str], *, use_relaxed: bool
) -> tuple[pa.Table, list[Crystal], bool]:
    """Rows worth asking about, their crystals, and whether these are relaxed."""
    from crystalforge.crystal import Crystal
    from crystalforge.rewards.protocol import Status

    energy = next((name for name in ENERGIES if name in rows.column_names), ENERGIES[0])
    wanted = [*columns, *settings.at_least, *([energy] if settings.max_e_above_hull is not None else [])]
    if missing := [name for name in wanted if name not in rows.column_names]:
        raise InputError(
            f"has no column {', '.join(missing)}",
            source=source,
            remedy=one_of("it has", rows.column_names, nothing="it has no columns at all: give an evaluation's table"),
        )
    moved = use_relaxed and "relaxed_lattice" in rows.column_names
    prefix = "relaxed_" if moved else ""
    mask = (rows["status"].to_numpy() == Status.OK) & rows["structure_valid"].to_numpy().astype(bool)
    if "unique" in rows.column_names:
        mask &= rows["unique"].to_numpy().astype(bool)
    if settings.max_e_above_hull is not None:
        mask &= rows[energy].to_numpy() <= settings.max_e_above_hull
    for name, least in settings.at_least.items():
        mask &= rows[name].to_numpy() >= least
    if moved:
        mask &= np.array([bool(values) for values in rows["relaxed_lattice"].to_pylist()])
    found = rows.filter(mask)
    cells = (found[name].to_pylist() for name in (f"{prefix}lattice", "atomic_numbers", f"{prefix}frac_coords"))
    crystals = [Crystal.of(*parts) for parts in zip(*cells, strict=True)]
    if not crystals:
        raise InputError("no crystal was scored, valid and near enough to the hull", source=source)
    return found, crystals, moved


def _judged(
    models: Mapping[str, PropertyModel], crystals: Sequence[Crystal], given: Float64[np.ndarray, "n _"] | None
) -> Float64[np.ndarray, "n J"]:
    """Answers of all judges: the columns given, then the models; NaN where one has none."""
    from crystalforge.rewards.properties import mean_eigenvalue

    parts = [] if given is None else [given]
    for name, model in models.items():
        values = model.predict_values(crystals).values
        if values.shape[1] not in (1, len(VOIGT)):
            raise InputError(f"answers {values.shape[1]} numbers", source=name, remedy="give models of one property")
        parts.append(mean_eigenvalue(values, VOIGT)[:, None])
    return np.concatenate(parts, axis=1)


def _potential(relax: str | Path) -> Potential:
    from crystalforge.potentials import CHGNetConfig, MatGLConfig, load

    return load(CHGNetConfig() if str(relax) == "chgnet" else MatGLConfig(path=Path(relax)))


def _relax(potential: Potential, crystals: Sequence[Crystal], journal: Path) -> tuple[list[Crystal | None], np.ndarray]:
    """Relaxed crystals, None where it failed, and whether each converged; what `journal` has is not done again."""
    from crystalforge.crystal import Crystal
    from crystalforge.potentials.relax import relax

    done: dict[str, dict[str, Any]] = {}
    if journal.exists():
        whole = journal.read_text().rpartition("\n")[0]  # a line that a kill cut short is computed again
        done = {line["key"]: line for line in map(json.loads, whole.splitlines())}
        journal.write_text("".join(json.dumps(line) + "\n" for line in done.values()))
    journal.parent.mkdir(parents=True, exist_ok=True)
    found: list[Crystal | None] = []
    converged = []
    with Progress("relax", len(crystals), unit="crystals") as progress, journal.open("a") as stream:
        for crystal in crystals:
            parts = [crystal.lattice.tolist(), crystal.numbers.tolist(), crystal.frac.tolist()]
            key = sha256_json([potential.digest, LONGEST_STEPS, FMAX, *parts])
            if key not in done:
                answer = relax(potential, [crystal], fmax=FMAX, steps=LONGEST_STEPS)
                end = answer.crystals[0] if answer.problems[0] is None else None
                done[key] = {
                    "key": key,
                    "cell": None if end is None else [end.lattice.tolist(), end.numbers.tolist(), end.frac.tolist()],
                    "converged": bool(answer.converged[0]),
                }
                stream.write(json.dumps(done[key]) + "\n")
                stream.flush()
            cell = done[key]["cell"]
            found.append(None if cell is None else Crystal.of(*cell))
            converged.append(done[key]["converged"])
            progress.update()
    return found, np.array(converged, dtype=bool)


def _result(
    candidates: pa.Table,
    chosen: np.ndarray,
    crystals: Sequence[Crystal],
    settings: ExportSettings,
    names: Sequence[str],
    answers: Float64[np.ndarray, "n J"],
    label: Float64[np.ndarray, " n"],
    relaxed: bool,
    converged: np.ndarray,
) -> pa.Table:
    import pyarrow as pa

    rows = candidates.take(chosen)
    origin = zip(*(rows[name].to_pylist() for name in ("label", "seed", "index")), strict=True)
    return pa.table(
        {
            "material_id": pa.array([f"{model}-{seed}-{index}" for model, seed, index in origin], pa.string()),
            "formula": rows["formula"],
            "lattice": pa.array([crystal.lattice.ravel().tolist() for crystal in crystals], pa.list_(pa.float64())),
            "atomic_numbers": pa.array([crystal.numbers.tolist() for crystal in crystals], pa.list_(pa.int32())),
            "frac_coords": pa.array([crystal.frac.ravel().tolist() for crystal in crystals], pa.list_(pa.float64())),
            settings.label: label,
            "label_by": pa.array([settings.teacher or "mean"] * len(crystals), pa.string()),
            "disagreement": answers.std(axis=1),
            **{f"judge_{name}": answers[:, k] for k, name in enumerate(names)},
            "relaxed": pa.array([relaxed] * len(crystals), pa.bool_()),
            "converged": pa.array(converged.tolist(), pa.bool_()),
            "model_hash": rows["model_hash"],
        }
    )


def _symbols(crystal: Crystal) -> dict[str, int]:
    """Reduced composition by symbol."""
    from pymatgen.core import Composition

    reduced = Composition(crystal.formula).reduced_composition
    return {str(element): round(count) for element, count in reduced.items()}
