"""What a chemist asks of a model outside a pipeline: tokens of files, likelihood of files, crystals to files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_file, only_writer, sha256_json, write_json
from crystalforge.common.progress import Progress

if TYPE_CHECKING:
    import pyarrow as pa

    from crystalforge.crystal import Crystal, Tokens
    from crystalforge.crystal.convert import Tokenized
    from crystalforge.model.sampling.config import SamplingConfig
    from crystalforge.model.sampling.sampler import Precision
    from crystalforge.model.sampling.samples import Samples

PART = 1000  # crystals of one file: what an interrupted sampling loses at most
REQUEST = "request.json"


def tokenize(sources: Sequence[Path], out: Path, *, processes: int | None = None) -> dict[str, int]:
    """Tokens of CIF files, directories of them, or parquet files, as the parquet file `out`; one row per crystal.

    Unusable crystals are listed in `out` with the ending .rejects.jsonl. Returns counts. Raises InputError when a
    source is missing or nothing is usable.
    """
    import pyarrow.parquet as pq

    ids, done = _tokens_of(sources, out.with_suffix(".rejects.jsonl"), processes)
    with atomic_file(out) as temporary:
        pq.write_table(_token_table([ids[row] for row in done.index], done.tokens), temporary)
    return {"crystals": len(done.tokens), "rejected": len(ids) - len(done.tokens)}


def score(model: str | Path, sources: Sequence[Path], out: Path, *, processes: int | None = None) -> dict[str, Any]:
    """log p(crystal | space group) of every crystal under `model`, whole and by factor, most surprising first.

    Columns of the parquet file `out`: id, formula-free token columns, log_prob and log_prob_<factor> in nats,
    log_prob_per_site. Returns counts and the mean. Raises InputError as `tokenize` does, and when `model` cannot be
    loaded.
    """
    import pyarrow.parquet as pq

    from crystalforge.api.generator import load

    generator = load(model)
    ids, done = _tokens_of(sources, out.with_suffix(".rejects.jsonl"), processes)
    tokens = done.tokens.with_slots(generator.model.config.max_sites)
    with Progress("score", len(tokens), unit="crystals") as progress:
        factors = generator.factors(tokens, progress=progress)
    total = np.sum(list(factors.values()), axis=0)
    table = _token_table([ids[row] for row in done.index], tokens)
    for name, values in {
        "log_prob": total,
        "log_prob_per_site": total / tokens.n_sites,
        **{f"log_prob_{name}": values for name, values in factors.items()},
    }.items():
        table = table.append_column(name, [values])
    with atomic_file(out) as temporary:
        pq.write_table(table.take(np.argsort(total)), temporary)
    return {"crystals": len(tokens), "rejected": len(ids) - len(tokens), "mean_log_prob": float(total.mean())}


def sample(
    model: str | Path,
    out: Path,
    n: int,
    *,
    seed: int,
    spacegroups: Sequence[int] | None = None,
    weights: Float64[np.ndarray, " 230"] | None = None,
    law: SamplingConfig | None = None,
    precision: Precision = "float32",
    cif: bool = False,
) -> dict[str, Any]:
    """Write `n` crystals to `out/part-*.parquet` as they are drawn (and, with `cif`, one CIF each to `out/cif`).

    spacegroups: these in turn, equally often; else drawn with `weights`; else as often as in the model's training
    set. law: how they are drawn, by default as the model says. Crystal i depends on (seed, i) alone: a call that is
    interrupted goes on with the parts that are missing, a larger n adds crystals. With `law.valid` the result says how
    many were drawn, and what share of the law passes the checks, with its 95 % interval. Raises InputError when `out`
    holds crystals of another request, or another process writes there. Nothing that is whole is written again.
    """
    import pyarrow.parquet as pq

    from crystalforge.api.generator import load
    from crystalforge.crystal.convert import to_crystals
    from crystalforge.evaluation.metrics.statistics import share
    from crystalforge.model.sampling.config import SamplingConfig

    law = law or SamplingConfig()
    generator = load(model)
    if spacegroups is None and weights is None:
        weights = generator.spacegroup_weights
    request = {
        "model": generator.hash,
        "seed": seed,
        "spacegroups": None if spacegroups is None else [int(g) for g in spacegroups],
        "weights": None if weights is None else sha256_json(weights.tolist()),
        **law.model_dump(mode="json", exclude={"max_draws"}),  # which changes no crystal
        "precision": precision,
    }
    built, draws, rows = 0, [np.zeros(0, np.int64)], 0
    with only_writer(out), Progress("sample", n, unit="crystals") as progress:
        _refuse_other(out, request)
        for first in range(0, n, PART):
            count = min(PART, n - first)
            path = out / f"part-{first:08d}.parquet"
            known = _whole_part(path)
            if known is not None and len(known) >= count:  # more than asked for stays, too
                if cif:
                    _write_cifs(out / "cif", _crystals_of(known.slice(0, count)))
                rows += len(known)
                known = known.slice(0, count)
                built += int(np.sum(known.column("built").to_numpy()))
                draws.append(_draws(known))
                progress.update(count, note="found")
                continue
            samples = generator.draw(
                first, count, seed=seed, spacegroups=spacegroups, weights=weights, law=law, precision=precision
            )
            draws.append(samples.draws.astype(np.int64))
            crystals = to_crystals(samples.tokens)
            if not first:  # only now is it certain that the request can be met
                write_json(out / REQUEST, request)
            if cif:
                _write_cifs(out / "cif", zip(samples.index, samples.tokens.spacegroup, crystals, strict=True))
            with atomic_file(path) as temporary:
                pq.write_table(_sample_table(samples, crystals), temporary)
            built += sum(crystal is not None for crystal in crystals)
            rows += count
            progress.update(count)
    if rows > n:
        print(f"{out} holds {rows} crystals of this request; the first {n} were asked for", file=sys.stderr)
    found = {"crystals": n, "built": built, "directory": str(out)}
    if law.valid is None:
        return found
    took = np.concatenate(draws)
    passing = share(took == 1)
    return found | {"drawn": int(took.sum()), "share_valid": passing.value, "interval": [passing.low, passing.high]}


def _draws(table: pa.Table) -> np.ndarray:
    """How many draws each crystal of a part took; parts of earlier versions do not say, and refused none."""
    if "draws" not in table.column_names:
        return np.ones(len(table), dtype=np.int64)
    return table.column("draws").to_numpy().astype(np.int64)


def _tokens_of(sources: Sequence[Path], rejects: Path, processes: int | None) -> tuple[list[str], Tokenized]:
    """Read and tokenise; the first value names every record, also those that were rejected."""
    from crystalforge.crystal.convert import tokenize_many
    from crystalforge.crystal.reading.reasons import Unusable
    from crystalforge.crystal.reading.text import printable
    from crystalforge.data.shards import Reject

    ids: list[str] = []
    origins: list[tuple[str, int]] = []
    unusable: dict[int, Unusable] = {}

    def crystals() -> Iterator[Crystal | None]:
        from crystalforge.data.sources.paths import records

        for record in records(sources):
            place = len(ids)
            ids.append(record.id)
            origins.append((record.file, record.number))
            try:
                yield record.crystal()
            except Unusable as error:
                unusable[place] = error
                yield None

    with Progress("tokenize", None, unit="crystals") as progress:
        done = tokenize_many(crystals(), processes=processes or os.cpu_count() or 1, progress=progress)
    lines = []
    for reject in done.rejects:
        error = unusable.get(reject.index) or Unusable(reject.reason.replace("_", "-"), reject.message)
        file, number = origins[reject.index]
        lines.append(Reject(file, number, ids[reject.index], error.reason, error.value, str(error), error.remedy))
    if lines:
        with atomic_file(rejects) as temporary:
            temporary.write_text("".join(json.dumps(asdict(line)) + "\n" for line in lines))
        print(f"{len(lines)} of {len(ids)} rejected, listed in {rejects}", file=sys.stderr)
    else:
        rejects.unlink(missing_ok=True)  # an earlier call's
    if not len(done.tokens):
        first = f"; the first, {lines[0].id}: {lines[0].message}" if lines else ""
        raise InputError(
            f"none of {len(ids)} records is usable{first}" if ids else "there are no records",
            source=", ".join(map(printable, sources)),
            remedy=f"see {rejects}" if ids else "give crystal files, a directory of them, or a parquet file",
        )
    return ids, done


def _token_table(ids: Sequence[str], tokens: Tokens) -> pa.Table:
    import pyarrow as pa

    n = tokens.n_sites
    return pa.table(
        {
            "id": list(ids),
            "spacegroup": tokens.spacegroup,
            "n_sites": n,
            "wyckoff": [row[:k].tolist() for row, k in zip(tokens.wyckoff, n, strict=True)],
            "element": [row[:k].tolist() for row, k in zip(tokens.element, n, strict=True)],
            "coords": [row[:k].reshape(-1).tolist() for row, k in zip(tokens.coords, n, strict=True)],
            "lattice": [row.tolist() for row in tokens.lattice],
        }
    )


def _sample_table(samples: Samples, crystals: Sequence[Crystal | None]) -> pa.Table:
    """Tokens, log-probabilities, and the conventional cell in the layout that the parquet source reads."""
    table = _token_table([str(i) for i in samples.index], samples.tokens).rename_columns({"lattice": "token_lattice"})
    columns: dict[str, Any] = {
        "index": samples.index,
        "built": [crystal is not None for crystal in crystals],
        "log_prob": samples.total_log_prob,
        "log_prob_drawn": samples.total_log_prob_drawn,
        "draws": samples.draws,
        "lattice": [None if crystal is None else crystal.lattice.reshape(-1).tolist() for crystal in crystals],
        "atomic_numbers": [None if crystal is None else crystal.numbers.tolist() for crystal in crystals],
        "frac_coords": [None if crystal is None else crystal.frac.reshape(-1).tolist() for crystal in crystals],
    }
    for name, values in columns.items():
        table = table.append_column(name, [values])
    return table


def _whole_part(path: Path) -> pa.Table | None:
    """The table of a part, None where there is none or the file is damaged (cut by a full disk or a copy)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        print(f"{path} is damaged and is drawn again ({error})", file=sys.stderr)
        return None


def _crystals_of(table: pa.Table) -> Iterator[tuple[int, int, Crystal | None]]:
    """(index, space group, crystal) of the rows of a part."""
    from crystalforge.crystal import Crystal

    for row in table.select(["index", "spacegroup", "lattice", "atomic_numbers", "frac_coords"]).to_pylist():
        built = row["lattice"] is not None
        crystal = Crystal.of(row["lattice"], row["atomic_numbers"], row["frac_coords"]) if built else None
        yield row["index"], row["spacegroup"], crystal


def _write_cifs(directory: Path, drawn: Iterable[tuple[int, int, Crystal | None]]) -> None:
    """One CIF for each crystal that has none yet: a name says which crystal of the request it is."""
    from pymatgen.io.cif import CifWriter

    directory.mkdir(parents=True, exist_ok=True)
    for index, group, crystal in drawn:
        if crystal is not None:
            path = directory / f"{index:08d}-{group}-{crystal.formula.replace(' ', '')}.cif"
            if not path.exists():
                with atomic_file(path) as temporary:
                    temporary.write_text(str(CifWriter(crystal.to_structure(), symprec=0.01)))


def _refuse_other(out: Path, request: dict[str, Any]) -> None:
    """InputError when `out` holds crystals of another request, or crystals of which nobody says whence they are."""
    note = out / REQUEST
    if not note.exists():
        if found := next((path for pattern in ("part-*.parquet", "cif/*.cif") for path in out.glob(pattern)), None):
            raise InputError(
                f"holds crystals ({found.name}) but no {REQUEST} that says how they were drawn",
                source=out,
                remedy="give another output directory",
            )
        return
    try:
        known = json.loads(note.read_text())
    except ValueError as error:
        raise InputError(f"is damaged ({error})", source=note, remedy="give another output directory") from error
    different = [name for name in request if known.get(name) != request[name]]
    if different:
        name = different[0]
        raise InputError(
            f"holds crystals of another request: {name} was {known.get(name)!r}, now {request[name]!r}",
            source=out,
            remedy="give another output directory",
        )
