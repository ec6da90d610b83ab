"""The part of an evaluation that compares crystals: unique, novel, stable, S.U.N., nearest known crystal.

Crystals are matched composition by composition (see `matching`), so a job holds the samples and the references of one
reduced composition; jobs run in parallel, and references are built a batch of jobs at a time.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int64

from crystalforge.common.progress import Progress
from crystalforge.crystal import MAX_SITES, Crystal, Tokens
from crystalforge.crystal.keys import composition_key, prototype_keys
from crystalforge.evaluation.judging.relaxing import relaxed_crystals
from crystalforge.evaluation.judging.scoring import crystals_of, formula
from crystalforge.evaluation.judging.stability import second_opinions, stability
from crystalforge.evaluation.matching.matcher import Matcher, Reduced
from crystalforge.evaluation.matching.reference import Nearest, Reference
from crystalforge.evaluation.protocols import MatcherSettings, Protocol
from crystalforge.evaluation.validity import reduced_composition

BATCH = 256  # jobs whose reference crystals are in memory together


@dataclass(frozen=True, eq=False)
class Job:
    """All that there is of one reduced composition.

    rows: sample numbers, ascending; scopes: samples are duplicates of each other only within a scope (one model, one
    seed); stable: for each way of being stable, whether each sample is.
    """

    rows: list[int]
    crystals: list[Crystal]
    scopes: list[int]
    stable: dict[str, list[bool]]
    reference_rows: list[int]
    references: list[Crystal | None]


@dataclass(frozen=True, eq=False)
class Verdict:
    """Answers to a job, one entry per sample.

    heads: row of the first member of the sample's group, -1 if it cannot be compared; stable_heads: the same among the
    stable samples alone, -1 for the others. match: row of the best matching reference, -1 for none; rms: its distance.
    """

    rows: list[int]
    heads: list[int]
    stable_heads: dict[str, list[int]]
    match: list[int]
    rms: list[float]


def run_job(settings: MatcherSettings, job: Job) -> Verdict:
    """Match one composition."""
    matcher = Matcher(settings)
    samples = [matcher.reduce(crystal) for crystal in job.crystals]
    references = [
        (row, reduced)
        for row, crystal in zip(job.reference_rows, job.references, strict=True)
        if (reduced := matcher.reduce(crystal)) is not None
    ]
    everything = [True] * len(job.rows)
    best: dict[bytes, tuple[int, float]] = {}  # samples are often bit-wise equal
    for sample in samples:
        if sample is not None and sample.token not in best:
            best[sample.token] = _best(matcher, references, sample)
    found = [(-1, math.nan) if sample is None else best[sample.token] for sample in samples]
    return Verdict(
        rows=job.rows,
        heads=_heads(matcher, job, samples, everything),
        stable_heads={name: _heads(matcher, job, samples, mask) for name, mask in job.stable.items()},
        match=[row for row, _ in found],
        rms=[rms for _, rms in found],
    )


def _best(matcher: Matcher, references: Sequence[tuple[int, Reduced]], sample: Reduced) -> tuple[int, float]:
    """The matching reference of least rms displacement, (-1, NaN) when none matches."""
    best = (-1, math.nan)
    for row, reference in references:
        if matcher.fit(reference, sample):
            rms = matcher.rms(reference, sample)
            if best[0] < 0 or rms < best[1]:
                best = (row, rms)
    return best


def _heads(matcher: Matcher, job: Job, samples: Sequence[Reduced | None], mask: Sequence[bool]) -> list[int]:
    """Greedy groups within each scope among the samples in `mask`, named by the row of their first member."""
    heads = [-1] * len(samples)
    for scope in sorted(set(job.scopes)):
        members = [k for k, (s, keep) in enumerate(zip(job.scopes, mask, strict=True)) if s == scope and keep]
        first: dict[int, int] = {}
        for k, group in zip(members, matcher.greedy([samples[k] for k in members]), strict=True):
            if group >= 0:
                heads[k] = first.setdefault(group, job.rows[k])
    return heads


def judge(
    table: pa.Table,
    reference: Reference,
    protocols: Sequence[Protocol],
    *,
    processes: int = 1,
    nearest: bool = True,
    quiet: bool = False,
) -> pa.Table:
    """Add what each protocol says of each sample.

    New columns: counted (whether the sample is in the denominator of the protocol's rates), group (row of the first
    sample of the same kind within the model and seed; -1: cannot be compared), unique, novel, reference_match (bool),
    stable, stable_group, sun (and metastable, metastable_group, msun where the protocol has them), nearest_id,
    nearest_formula, nearest_kind, nearest_distance. The first protocol's columns have these names, those of further
    ones `name:protocol`. A protocol that judges relaxed crystals counts those that were to be relaxed; when none was,
    it has no columns of stability. What other judges make of the first protocol's limit is in the columns
    <prefix>stable, for the prefixes of `other_judges`, and agreed: stable, and every held-out judge says so too.
    """
    generated = crystals_of(table)
    asked = table.column("relaxed_asked").to_numpy() if "relaxed_asked" in table.column_names else None
    relaxed = relaxed_crystals(table.column("atomic_numbers").to_pylist(), table) if asked is not None else None
    scopes = _scopes(table)
    by_matcher: dict[tuple[MatcherSettings, bool], list[Protocol]] = defaultdict(list)
    for protocol in protocols:
        by_matcher[protocol.matcher, protocol.compare == "relaxed" and relaxed is not None].append(protocol)
    table = second_opinions(table, protocols[0])
    remembered = reference.remembers(tokens_of(table))
    for (settings, after), group in by_matcher.items():
        crystals = relaxed if after and relaxed is not None else generated
        stable = {}
        for protocol in group:
            stable |= {f"{kind}:{protocol.name}": mask for kind, mask in stability(table, protocol).items()}
        columns = match_all(
            crystals, reference, settings, scopes=scopes, stable=stable, processes=processes, quiet=quiet
        )
        for protocol in group:
            suffix = "" if protocol is protocols[0] else f":{protocol.name}"
            counted = asked if protocol.energy == "relaxed" and asked is not None else np.ones(len(table), dtype=bool)
            table = _write(table, columns, remembered, stable, counted, protocol.name, suffix)
        if nearest and protocols[0] in group:
            compositions = [reduced_composition(crystal) if crystal is not None else None for crystal in crystals]
            relatives = _nearest(table, compositions, columns, reference)
            table = _write_nearest(table, relatives, reference)
    return table


def match_all(
    crystals: Sequence[Crystal | None],
    reference: Reference,
    settings: MatcherSettings,
    *,
    scopes: Int64[np.ndarray, " n"] | None = None,
    stable: Mapping[str, Bool[np.ndarray, " n"]] | None = None,
    processes: int = 1,
    quiet: bool = True,
) -> Matches:
    """Group the crystals (within each scope; by default there is one) and look every one of them up."""
    compositions = [reduced_composition(crystal) if crystal is not None else None for crystal in crystals]
    where = np.zeros(len(crystals), dtype=np.int64) if scopes is None else scopes
    masks = stable or {}
    verdicts = _match(crystals, compositions, where, masks, reference, settings, processes, quiet)
    return _collect(verdicts, len(crystals), masks)


def _scopes(table: pa.Table) -> Int64[np.ndarray, " n"]:
    pairs = list(zip(table.column("label").to_pylist(), table.column("seed").to_pylist(), strict=True))
    number = {pair: k for k, pair in enumerate(dict.fromkeys(pairs))}
    return np.array([number[pair] for pair in pairs], dtype=np.int64)


def _match(
    crystals: Sequence[Crystal | None],
    compositions: Sequence[tuple[tuple[int, int], ...] | None],
    scopes: Int64[np.ndarray, " n"],
    stable: Mapping[str, Bool[np.ndarray, " n"]],
    reference: Reference,
    settings: MatcherSettings,
    processes: int,
    quiet: bool,
) -> Iterator[Verdict]:
    buckets: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for row, composition in enumerate(compositions):
        if composition is not None:
            buckets[composition].append(row)

    def job(composition: tuple[tuple[int, int], ...], rows: list[int]) -> Job:
        known = reference.rows_of(composition_key(composition))
        return Job(
            rows=rows,
            crystals=[crystal for row in rows if (crystal := crystals[row]) is not None],
            scopes=[int(scopes[row]) for row in rows],
            stable={name: [bool(mask[row]) for row in rows] for name, mask in stable.items()},
            reference_rows=[int(row) for row in known],
            references=reference.crystals(known) if len(known) else [],
        )

    # The largest first: the last job to finish is then a short one.
    todo = sorted(buckets.items(), key=lambda item: -len(item[1]))
    executor = None
    if processes > 1 and len(todo) > 1:
        # A fresh interpreter per worker: forking a process whose numerical libraries run threads may deadlock.
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(variable, "1")
        executor = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    progress = None if quiet else Progress("match", len(todo), unit="compositions")
    try:
        for first in range(0, len(todo), BATCH):
            jobs = [job(composition, rows) for composition, rows in todo[first : first + BATCH]]
            if executor is None:
                answers = (run_job(settings, item) for item in jobs)
            else:
                answers = executor.map(run_job, [settings] * len(jobs), jobs, chunksize=4)
            for verdict in answers:
                if progress is not None:
                    progress.update()
                yield verdict
    finally:
        if progress is not None:
            progress.__exit__()
        if executor is not None:
            executor.shutdown(cancel_futures=True)


@dataclass(frozen=True, eq=False)
class Matches:
    """Verdicts in the order of the samples; see `Verdict` for the meaning of each."""

    heads: Int64[np.ndarray, " n"]
    match: Int64[np.ndarray, " n"]
    rms: Float64[np.ndarray, " n"]
    stable_heads: dict[str, Int64[np.ndarray, " n"]]


def _collect(verdicts: Iterator[Verdict], rows: int, stable: Mapping[str, object]) -> Matches:
    columns = Matches(
        np.full(rows, -1, np.int64),
        np.full(rows, -1, np.int64),
        np.full(rows, np.nan),
        {name: np.full(rows, -1, np.int64) for name in stable},
    )
    for verdict in verdicts:
        columns.heads[verdict.rows] = verdict.heads
        columns.match[verdict.rows] = verdict.match
        columns.rms[verdict.rows] = verdict.rms
        for name, heads in verdict.stable_heads.items():
            columns.stable_heads[name][verdict.rows] = heads
    return columns


def _write(
    table: pa.Table,
    columns: Matches,
    remembered: Bool[np.ndarray, " n"],
    stable: Mapping[str, Bool[np.ndarray, " n"]],
    counted: Bool[np.ndarray, " n"],
    protocol: str,
    suffix: str,
) -> pa.Table:
    own = np.arange(len(table))
    comparable = columns.heads >= 0
    known = (columns.match >= 0) | remembered
    novel = comparable & ~known
    new: dict[str, pa.Array] = {
        "counted": pa.array(counted),
        "group": pa.array(columns.heads),
        "unique": pa.array(columns.heads == own),
        "novel": pa.array(novel),
        "reference_match": pa.array(known),
    }
    for kind, sun in (("stable", "sun"), ("metastable", "msun")):
        name = f"{kind}:{protocol}"
        if name in stable:
            heads = columns.stable_heads[name]
            new[kind] = pa.array(stable[name])
            new[f"{kind}_group"] = pa.array(heads)
            new[sun] = pa.array((heads == own) & novel)
    for name, values in new.items():
        table = table.append_column(f"{name}{suffix}", values)
    return table


def _nearest(
    table: pa.Table,
    compositions: Sequence[tuple[tuple[int, int], ...] | None],
    columns: Matches,
    reference: Reference,
) -> list[Nearest | None]:
    """For each sample its nearest known crystal; None for samples that are no crystal and for empty references."""
    found: list[Nearest | None] = [None] * len(compositions)
    if not len(reference):
        return found
    prototypes = prototype_keys(tokens_of(table))
    has_tokens = table.column("spacegroup").to_numpy() > 0
    cache: dict[tuple[tuple[tuple[int, int], ...], int | None], Nearest | None] = {}
    open_questions: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for row, composition in enumerate(compositions):
        if composition is None:
            continue
        if columns.match[row] >= 0:
            found[row] = Nearest(int(columns.match[row]), "match", float(columns.rms[row]))
            continue
        key = (composition, int(prototypes[row]) if has_tokens[row] else None)
        if key not in cache:
            cache[key] = reference.nearest_by_chemistry(*key)
        found[row] = cache[key]
        if found[row] is None:
            open_questions[composition].append(row)
    asked = list(open_questions)
    for composition, answer in zip(asked, reference.similar(asked) if asked else [], strict=True):
        for row in open_questions[composition]:
            found[row] = answer
    return found


def tokens_of(table: pa.Table) -> Tokens:
    """The token columns again; rows without tokens are all pads in space group 1."""
    size = len(table)
    wyckoff, element = np.zeros((size, MAX_SITES), np.int32), np.zeros((size, MAX_SITES), np.int32)
    for row, (letters, elements) in enumerate(
        zip(table.column("wyckoff").to_pylist(), table.column("element").to_pylist(), strict=True)
    ):
        wyckoff[row, : len(letters)], element[row, : len(elements)] = letters, elements
    spacegroup = np.maximum(table.column("spacegroup").to_numpy(), 1).astype(np.int32)
    return Tokens(spacegroup, wyckoff, element, np.zeros((size, MAX_SITES, 3)), np.zeros((size, 6)))


def _write_nearest(table: pa.Table, relatives: Sequence[Nearest | None], reference: Reference) -> pa.Table:
    rows = np.array(sorted({relative.row for relative in relatives if relative is not None}), dtype=np.int64)
    ids = dict(zip(rows.tolist(), reference.ids(rows) if len(rows) else [], strict=True))
    counts = dict(zip(rows.tolist(), reference.counts(rows) if len(rows) else [], strict=True))

    names = {row: formula({int(z): int(counts[row][z]) for z in np.flatnonzero(counts[row])}) for row in rows.tolist()}
    columns = {
        "nearest_id": pa.array([None if r is None else ids[r.row] for r in relatives], pa.string()),
        "nearest_formula": pa.array([None if r is None else names[r.row] for r in relatives], pa.string()),
        "nearest_kind": pa.array([None if r is None else r.kind for r in relatives], pa.string()),
        "nearest_distance": pa.array([None if r is None else r.distance for r in relatives], pa.float64()),
    }
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table
