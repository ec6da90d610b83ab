"""Good crystals from an unchanged model: what fine-tuning must beat at the same number of scored crystals.

- best_of_n: draw and score N crystals, keep the best.
- resample: draw and score N crystals, draw n of them with weights exp(r/tau): importance sampling of
  p_base exp(r/tau)/Z, the very distribution at which PPO aims.
- mcmc: Metropolis-Hastings chains whose stationary distribution is p_base exp(r/tau)/Z (the method of
  arXiv 2403.15734 for posteriors). Every sweep proposes one move per chain and scores it:
  a fresh crystal from the base with the same space group (accepted with min(1, exp(dr/tau)), for p cancels), or a
  small symmetric step: another element on one site, a shift of one site's free coordinates, a shift of the free
  lattice parameters (accepted with min(1, p'/p exp(dr/tau))).
  Deviations from the published code, which targets p with a penalty of its own: coordinates step in the units in
  which they are drawn, sites are chosen uniformly among those that exist, the lattice's density is part of p, and
  letters change too, through fresh crystals.

Every step is journalled as in fine-tuning: killed and called again, a search scores nothing twice.

Shapes: B crystals per step (chains, for mcmc).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pydantic import BaseModel, ConfigDict, Field

from crystalforge.common.files import write_json
from crystalforge.common.progress import Progress
from crystalforge.crystal import wyckoff as symmetry
from crystalforge.crystal.tokens import Tokens
from crystalforge.model.batch import TokenBatch
from crystalforge.model.checkpoint import load_model, weights_hash
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.model.distributions import symmetrise_lattice
from crystalforge.model.network import CrystalFormer
from crystalforge.rewards.protocol import Reward
from crystalforge.rl import journal
from crystalforge.rl.checkpoint import claim
from crystalforge.rl.config import Method
from crystalforge.rl.journal import Scored, join, pick, unique_share
from crystalforge.rl.policy import make_plan, measure
from crystalforge.rl.rollout import Source, roll_out, score, weights_within

OnMetrics = Callable[[int, dict[str, float]], None]
MOVES = ("fresh", "element", "coords", "lattice")


class SearchConfig(BaseModel):
    """How to look for good crystals without changing the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = "best_of_n"
    scored: int = Field(default=1000, ge=1, description="crystals to score, the budget")
    batch_size: int = Field(default=100, ge=1, description="crystals per step; for mcmc the number of chains")
    keep: int = Field(default=100, ge=1, description="crystals to return (mcmc returns its chains' last states)")
    tau: float = Field(default=0.1, gt=0, description="temperature of exp(r/tau)")
    spacegroups: tuple[int, ...] | None = Field(
        default=None, description="draw from these space groups only; null: all"
    )
    constraints: Constraints | None = Field(default=None, description="what the sampler may draw")
    fresh: float = Field(default=0.25, gt=0, le=1, description="mcmc: share of moves that draw a fresh crystal")
    coord_width: float = Field(default=0.03, gt=0, description="mcmc: step of fractional coordinates")
    length_width: float = Field(default=0.05, gt=0, description="mcmc: step of scaled lengths in Å")
    angle_width: float = Field(default=0.03, gt=0, description="mcmc: step of angles in radians")


@dataclass(frozen=True, eq=False)
class SearchResult:
    """picked: the crystals found. scored: what they cost, with the seconds of all sessions and this process's share of
    them. metrics: summary, as in `result.json`.
    """

    picked: Scored
    scored: int
    seconds: float
    cpu_seconds: float
    metrics: dict[str, float]


def search(
    config: SearchConfig,
    base: Path,
    reward: Reward,
    spacegroup_weights: Float64[np.ndarray, " 230"],
    out: Path,
    *,
    seed: int,
    on_metrics: OnMetrics | None = None,
) -> SearchResult:
    """Spend `config.scored` reward evaluations; leaves `out/samples` (everything scored) and `out/picked.parquet`.

    Raises InputError when `out` holds another search.
    """
    model = load_model(base).model
    weights = weights_within(np.asarray(spacegroup_weights, dtype=np.float64), config.spacegroups, config.constraints)
    claim(
        out / "identity.json",
        {
            "seed": seed,
            "base": weights_hash(model),
            "config": config.model_dump(mode="json"),
            "reward": {"name": reward.version.name, "digest": reward.version.digest},
        },
    )
    source = Source(weights, seed, config.constraints)
    run = _mcmc if config.method == "mcmc" else _draw_all
    clock = _Clock(out / "seconds.json")
    picked, metrics = run(config, model, source, reward, out, clock, on_metrics)
    journal.write(out / "picked.parquet", 0, picked)
    metrics |= {
        "reward/mean": float(picked.scores.values.mean()),
        "reward/best": float(picked.scores.values.max()),
        "unique/share": unique_share(picked.tokens),
        "floors/share": float(1 - picked.scores.ok.mean()),
        "budget/scored": float(config.scored),
    }
    result = SearchResult(picked, config.scored, clock.spent["wall"], clock.spent["cpu"], metrics)
    write_json(out / "result.json", {"scored": result.scored, "seconds": clock.spent, "metrics": metrics})
    return result


class _Clock:
    """Seconds spent on the search, by the wall and by this process, over all sessions."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.spent: dict[str, float] = json.loads(path.read_text()) if path.exists() else {"wall": 0.0, "cpu": 0.0}
        self._at = (time.perf_counter(), time.process_time())

    def tick(self, *, done_before: bool) -> None:
        """Count the time since the last tick, unless what it went into was only read back."""
        now = (time.perf_counter(), time.process_time())
        if not done_before:
            for name, end, begin in zip(("wall", "cpu"), now, self._at, strict=True):
                self.spent[name] += end - begin
            write_json(self._path, self.spent)
        self._at = now


def _draw_all(
    config: SearchConfig,
    model: CrystalFormer,
    source: Source,
    reward: Reward,
    out: Path,
    clock: _Clock,
    on_metrics: OnMetrics | None,
) -> tuple[Scored, dict[str, float]]:
    """Draw and score the whole budget from the base, then pick."""
    parts: list[Scored] = []
    with Progress(config.method, config.scored, unit="crystal") as progress:
        for step, first in enumerate(range(0, config.scored, config.batch_size)):
            count = min(config.batch_size, config.scored - first)
            rollout = roll_out(model, source, reward, step=step, first_index=first, count=count, folder=out / "samples")
            parts.append(rollout.scored)
            clock.tick(done_before=rollout.seconds_score == 0)
            mean = float(rollout.scored.scores.values.mean())
            if on_metrics is not None:
                on_metrics(step, {"reward/mean": mean, "budget/scored": float(first + count)})
            progress.update(count, note=f"reward {mean:.3f}")
    pool = join(parts)
    count = min(config.keep, len(pool))
    if config.method == "best_of_n":
        return pick(pool, np.argsort(-pool.scores.values, kind="stable")[:count]), {}
    weights = tilted_weights(pool.scores.values, config.tau)
    rng = np.random.default_rng([source.seed, 2])
    rows = rng.choice(len(pool), count, replace=True, p=weights)
    return pick(pool, rows), {"effective_samples": float(1 / (weights**2).sum())}


def tilted_weights(reward: Float64[np.ndarray, " B"], tau: float) -> Float64[np.ndarray, " B"]:
    """exp(r/tau), normalised over the given crystals."""
    weights = np.exp((reward - reward.max()) / tau)
    return weights / weights.sum()


def _mcmc(
    config: SearchConfig,
    model: CrystalFormer,
    source: Source,
    reward: Reward,
    out: Path,
    clock: _Clock,
    on_metrics: OnMetrics | None,
) -> tuple[Scored, dict[str, float]]:
    """Run the chains until the budget is spent; their last states are the sample."""
    chains = min(config.batch_size, config.scored)
    sweeps = config.scored // chains
    first = roll_out(model, source, reward, step=0, first_index=0, count=chains, folder=out / "samples")
    clock.tick(done_before=first.seconds_score == 0)
    now = first.scored
    tried, taken = dict.fromkeys(MOVES, 0), dict.fromkeys(MOVES, 0)
    with Progress("mcmc", sweeps, unit="sweep", start=1) as progress:
        for sweep in range(1, sweeps):
            rng = np.random.default_rng([source.seed, 3, sweep])
            index = np.arange(sweep * chains, (sweep + 1) * chains, dtype=np.int64)
            move = rng.choice(len(MOVES), chains, p=move_shares(config))
            path = journal.step_file(out / "samples", sweep)
            proposal = _propose(config, model, source, now, move, index, rng)
            known = journal.recall(path, index)
            done_before = known is not None
            if known is None:
                known = replace(proposal, scores=score(reward, proposal.tokens))
                journal.write(path, sweep, known)
            clock.tick(done_before=done_before)
            change = (known.scores.values - now.scores.values) / config.tau
            change = change + np.where(move == 0, 0.0, known.log_prob - now.log_prob)
            accept = np.log(rng.random(chains)) < np.nan_to_num(change, nan=-math.inf)
            for number, name in enumerate(MOVES):
                tried[name] += int((move == number).sum())
                taken[name] += int((accept & (move == number)).sum())
            now = merge(now, known, accept)
            mean = float(now.scores.values.mean())
            if on_metrics is not None:
                on_metrics(sweep, {"reward/mean": mean, "budget/scored": float((sweep + 1) * chains)})
            progress.update(note=f"reward {mean:.3f}")
    rates = {f"acceptance/{name}": taken[name] / tried[name] for name in MOVES if tried[name]}
    return now, rates


def move_shares(config: SearchConfig) -> list[float]:
    """How often each move is proposed. Under constraints elements change through fresh crystals only, which obey."""
    local = [1.0, 1.0, 1.0] if config.constraints is None else [0.0, 1.0, 1.0]
    return [config.fresh] + [(1 - config.fresh) * share / sum(local) for share in local]


def _propose(
    config: SearchConfig,
    model: CrystalFormer,
    source: Source,
    now: Scored,
    move: Int64[np.ndarray, " B"],
    index: Int64[np.ndarray, " B"],
    rng: np.random.Generator,
) -> Scored:
    """One proposal per chain with its log-probability under the base; scores are still those of `now`."""
    from crystalforge.model.sampling.sampler import sample

    drawn = sample(
        model,
        now.tokens.spacegroup.astype(np.int64),
        seed=source.seed,
        first_index=int(index[0]),
        constraints=source.constraints,
    ).tokens
    stepped = step_tokens(now.tokens, move, rng, config)
    fresh = move == 0
    tokens = select(stepped, drawn, fresh)
    batch = TokenBatch.from_tokens(tokens)
    plan = make_plan(tokens.n_sites, np.arange(len(tokens)), piece_tokens=4096)
    log_prob = measure(model, batch, plan, as_in_update=False).total.double().numpy()
    return Scored(index, tokens, now.scores, log_prob)


def step_tokens(
    tokens: Tokens, move: Int64[np.ndarray, " B"], rng: np.random.Generator, config: SearchConfig
) -> Tokens:
    """A small step of each crystal according to `move`; symmetric: as likely back as forth. Fresh ones stay."""
    count = len(tokens)
    rows = np.arange(count)
    site = (rng.random(count) * tokens.n_sites).astype(np.int64)
    element, coords, lattice = tokens.element.copy(), tokens.coords.copy(), tokens.lattice.copy()

    chosen = move == MOVES.index("element")
    element[rows[chosen], site[chosen]] = rng.integers(1, 119, count)[chosen]

    chosen = move == MOVES.index("coords")
    g, w = tokens.spacegroup - 1, tokens.wyckoff[rows, site]
    free = symmetry.is_free()[g, w]
    shift = rng.normal(0, config.coord_width, (count, 3)) * free
    moved = coords[rows, site] + shift
    representative = symmetry.representatives()[g, w]
    moved = np.einsum("bij,bj->bi", representative[:, :, :3], moved) + representative[:, :, 3]
    coords[rows[chosen], site[chosen]] = (moved - np.floor(moved))[chosen]

    chosen = move == MOVES.index("lattice")
    width = np.array([config.length_width] * 3 + [config.angle_width] * 3)
    shift = rng.normal(0, 1, (count, 6)) * width * symmetry.lattice_free()[g]
    lattice[chosen] += shift[chosen]
    lattice[chosen] = _symmetrised(lattice[chosen], tokens.spacegroup[chosen])
    return replace(tokens, element=element, coords=coords, lattice=lattice)


def _symmetrised(lattice: Float64[np.ndarray, "B 6"], spacegroup: Any) -> Float64[np.ndarray, "B 6"]:
    import torch

    return symmetrise_lattice(
        torch.from_numpy(lattice), torch.from_numpy(np.asarray(spacegroup, dtype=np.int64))
    ).numpy()


def select(first: Tokens, second: Tokens, take_second: Bool[np.ndarray, " B"]) -> Tokens:
    """Row by row from one of two batches."""
    both = Tokens.concatenate([first, second])
    return both[np.arange(len(first)) + len(first) * take_second]


def merge(now: Scored, then: Scored, accept: Bool[np.ndarray, " B"]) -> Scored:
    """Chains after a sweep: the proposal where accepted, what was there otherwise."""
    return pick(join([now, then]), np.arange(len(now)) + len(now) * accept)


def best(folder: Path, count: int) -> Scored:
    """The best `count` crystals of all that a run scored (`out/samples`), one per prototype, best first."""
    pool = join([scored for _, scored in journal.steps(folder)])
    order = np.argsort(-pool.scores.values, kind="stable")
    keys = journal.material_keys(pool.tokens)
    first: dict[bytes, int] = {}
    for row in order:
        if pool.scores.ok[row]:
            first.setdefault(keys[row], int(row))
    return pick(pool, np.array(list(first.values())[:count], dtype=np.int64))
