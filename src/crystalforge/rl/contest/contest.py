"""Every algorithm against every other at the same reward budget, from the same base, over several seeds.

Learners spend the budget on training and are then judged by fresh crystals; searches spend it on looking and are
judged by what they return. The base is judged like a learner that learned nothing. For one seed all models are asked
for the same space groups with the same random numbers, so their differences carry less noise than their means.

Everything lies in folders of its own, `<label>-seed<k>`, and goes on where it was interrupted.

Shapes: B crystals judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from crystalforge.common.seeds import derived
from crystalforge.model.batch import TokenBatch
from crystalforge.model.checkpoint import load_model
from crystalforge.model.sampling.shares import log_ratio, tilt_of, tilted_shares
from crystalforge.rewards import tilted
from crystalforge.rewards.protocol import Reward
from crystalforge.rl import journal
from crystalforge.rl.config import FinetuneConfig, switched_to
from crystalforge.rl.contest.config import ContestConfig
from crystalforge.rl.finetune import finetune
from crystalforge.rl.journal import Scored, join, unique_share
from crystalforge.rl.monitor import IsKnown
from crystalforge.rl.policy import make_plan, measure
from crystalforge.rl.rollout import Screen, Source, roll_out, score, weights_within
from crystalforge.rl.search import SearchConfig, search
from crystalforge.rl.supervised import Relaxer

BASE = "base"
STABLE_BELOW = 0.1  # eV/atom, the paper's threshold
STEP = 256  # crystals judged between two records
PIECE_TOKENS = 4096  # of one pass that records no graph


@dataclass(frozen=True)
class Outcome:
    """What one participant came to with one seed; JSON-able.

    kind: base, learner or search. reward: mean over the crystals judged. kl: mean of ln(p/p_base) over them, nats;
    None for searches. stable: share with E_hull < 0.1 eV/atom, None where the reward gives no E_hull. novel: share
    unknown to the training set. scored: crystals that it had scored. cpu_seconds: of this process, without judging.
    stopped: why it ended before its budget, or None. held_out: mean value by the judge that guided nobody, or None.
    objective, filtered: L of the law that drew the crystals, and of its restriction to those that pass the reward's
    guards; optimum: L* by the base's crystals (`rewards.tilted`). None where the participant has no law, or is not the
    base.
    """

    label: str
    kind: Literal["base", "learner", "search"]
    seed: int
    tau: float
    judged: int
    reward: float
    unique: float
    floors: float
    kl: float | None
    stable: float | None
    novel: float | None
    scored: int
    cpu_seconds: float
    stopped: str | None = None
    held_out: float | None = None
    objective: float | None = None
    filtered: float | None = None
    optimum: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Ground:
    """The ground that all share. held_out: judges in the end, see `ContestConfig.held_out`. screen: the reward's
    guards, for learners that draw against them.
    """

    base: Path
    reward: Reward
    weights: Float64[np.ndarray, " 230"]
    out: Path
    is_known: IsKnown | None = None
    relaxer: Relaxer | None = None
    held_out: Reward | None = None
    screen: Screen | None = None


def contest(config: ContestConfig, tuning: FinetuneConfig, ground: Ground) -> Iterator[Outcome]:
    """Let everybody take part, seed by seed; yields as each one is judged."""
    for seed in config.seeds:
        yield _judge_model(config, tuning, ground, label=BASE, kind="base", seed=seed, model_dir=ground.base)
        for label, settings in learners(config, tuning):
            result = finetune(
                settings,
                ground.base,
                ground.reward,
                ground.weights,
                ground.out / f"{label}-seed{seed}",
                seed=seed,
                is_known=ground.is_known,
                relaxer=ground.relaxer if settings.relax is not None else None,
                screen=ground.screen if settings.filter else None,
            )
            early = result.stopped is not None and not result.stopped.startswith("budget")
            yield _judge_model(
                config,
                settings,
                ground,
                label=label,
                kind="learner",
                seed=seed,
                model_dir=result.model_dir,
                scored=result.scored,
                cpu_seconds=result.seconds.get("cpu", 0.0),
                stopped=result.stopped if early else None,
            )
        for method in config.searches:
            wish = SearchConfig(
                method=method,
                scored=config.scored,
                batch_size=tuning.batch_size,
                keep=config.keep,
                tau=tuning.tau,
                spacegroups=tuning.spacegroups,
                constraints=tuning.constraints,
            )
            out = ground.out / f"{method}-seed{seed}"
            found = search(wish, ground.base, ground.reward, ground.weights, out, seed=seed)
            yield _outcome(
                ground,
                found.picked,
                label=method,
                kind="search",
                seed=seed,
                tau=tuning.tau,
                kl=None,
                scored=found.scored,
                cpu_seconds=found.cpu_seconds,
            )


def learners(config: ContestConfig, tuning: FinetuneConfig) -> list[tuple[str, FinetuneConfig]]:
    """Each learner's label and settings: `finetune`, cut to the budget, with what it needs otherwise."""
    found = []
    for place, algorithm in enumerate(config.algorithms):
        taus = (tuning.tau, *(tau for tau in config.taus if tau != tuning.tau)) if place == 0 else (tuning.tau,)
        for tau in taus:
            mine = {"tau": tau} | config.settings.get(algorithm, {})
            values = switched_to(algorithm, tuning.model_dump()) | mine
            label = algorithm if tau == tuning.tau else f"{algorithm}-tau{tau!r}"
            found.append((label, _within(config.scored, values)))
    found += [(label, _within(config.scored, tuning.model_dump() | own)) for label, own in config.variants.items()]
    return found


def _within(scored: int, settings: dict[str, Any]) -> FinetuneConfig:
    """Settings cut to a budget of scored crystals, in whole steps."""
    cut = {"max_scored": scored, "steps": scored // settings["batch_size"]}
    return FinetuneConfig.model_validate(settings | cut)


def _judge_model(
    config: ContestConfig,
    tuning: FinetuneConfig,
    ground: Ground,
    *,
    label: str,
    kind: Literal["base", "learner"],
    seed: int,
    model_dir: Path,
    scored: int = 0,
    cpu_seconds: float = 0.0,
    stopped: str | None = None,
) -> Outcome:
    """Fresh crystals from a model, scored in steps that are journalled."""
    loaded, base = load_model(model_dir), load_model(ground.base).model
    model, weights = loaded.model, weights_within(ground.weights, tuning.spacegroups, tuning.constraints)
    shares = weights if kind == "base" else tilted_shares(weights, tilt_of(loaded.info))
    source = Source(shares, derived(seed, "judge"), tuning.constraints)
    folder = ground.out / f"{label}-seed{seed}" / "judged"
    parts = []
    for step, first in enumerate(range(0, config.judged, STEP)):
        count = min(STEP, config.judged - first)
        rollout = roll_out(model, source, ground.reward, step=step, first_index=first, count=count, folder=folder)
        parts.append(rollout.scored)
    drawn = join(parts)
    batch = TokenBatch.from_tokens(drawn.tokens)
    plan = make_plan(drawn.tokens.n_sites, np.arange(len(drawn)), piece_tokens=PIECE_TOKENS)
    now, before = (measure(m, batch, plan, as_in_update=False).total.double().numpy() for m in (model, base))
    ratio = now - before + log_ratio(weights, shares, drawn.tokens.spacegroup.astype(np.int64))
    reward = drawn.scores.values
    return _outcome(
        ground,
        drawn,
        label=label,
        kind=kind,
        seed=seed,
        tau=tuning.tau,
        kl=float(ratio[np.isfinite(ratio)].mean()),
        scored=scored,
        cpu_seconds=cpu_seconds,
        stopped=stopped,
        objective=tilted.objective(reward, ratio, tuning.tau).value,
        filtered=tilted.objective(reward, ratio, tuning.tau, ~drawn.scores.refused).value,
        optimum=tilted.optimum(reward, tuning.tau).value if kind == "base" else None,
    )


def _outcome(ground: Ground, drawn: Scored, **known: Any) -> Outcome:
    """The figures of judged crystals, with what is `known` of the participant otherwise."""
    scores = drawn.scores
    hull = scores.components.get("e_above_hull")
    stable = None if hull is None else float((scores.ok & (np.nan_to_num(hull, nan=np.inf) < STABLE_BELOW)).mean())
    if ground.held_out is not None:
        digest = ground.held_out.version.digest[:12]  # another judge must not be answered for by this one's scores
        place = ground.out / f"{known['label']}-seed{known['seed']}" / f"held_out-{digest}.parquet"
        judged = journal.recall_scores(place, drawn.index)
        if judged is None:
            judged = score(ground.held_out, drawn.tokens)
            journal.write_scores(place, drawn.index, judged)
        known["held_out"] = float(judged.values.mean())
    return Outcome(
        judged=len(drawn),
        reward=float(scores.values.mean()),
        unique=unique_share(drawn.tokens),
        floors=float(1 - scores.ok.mean()),
        stable=stable,
        novel=None if ground.is_known is None else float(1 - ground.is_known(drawn.tokens).mean()),
        **known,
    )
