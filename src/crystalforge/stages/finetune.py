"""Stage 3: reinforcement of the base model against the reward -> the tuned model."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.common.errors import InputError
from crystalforge.stages.base import Stage, reward_lineage, write_history

if TYPE_CHECKING:
    from crystalforge.config import Config
    from crystalforge.crystal import Crystal
    from crystalforge.data.store import TokenStore
    from crystalforge.potentials.config import PotentialConfig
    from crystalforge.rewards import Reward, RewardConfig
    from crystalforge.rl.monitor import IsKnown
    from crystalforge.rl.supervised import Relaxer
    from crystalforge.training.ranks import Ranks

log = logging.getLogger(__name__)


def finetune(config: Config, data: Path, base: Path, out: Path) -> dict[str, Any]:
    """Tune `base/model` on its own samples, space groups drawn as in its training set; leaves `out/model`.

    Crystals count as new when `data`'s training split does not hold them. The judge of `finetune.monitor.held_out`
    runs in this process. The record's metrics hold the monitor's verdict as `monitor` (`rl.monitor.conclusion`), and
    why the run ended early as `stopped`; `history.csv` holds what each look saw, as columns `monitor/...`.

    Under torchrun every process calls it, on the same (shared) directories; the first one records.

    Resumes where an interrupted call stopped. Returns the stage's record. Raises RewardUnavailable when the reward
    service is away for longer than it is waited for; what was computed is kept.
    """
    inputs = {"data": data, "base": base}
    with Stage("finetune", config, out, sections=("seed", "reward", "finetune"), inputs=inputs) as stage:
        if stage.finished is None:
            from crystalforge.data.store import TokenStore
            from crystalforge.model.checkpoint import load_model, weights_hash
            from crystalforge.rewards.screen import Screen
            from crystalforge.rl.finetune import finetune as run
            from crystalforge.stages.engines import engine_maker
            from crystalforge.stages.models import spacegroup_weights
            from crystalforge.training.ranks import open_ranks

            engine = config.finetune.engine
            store = TokenStore.open(data / "store")
            held_out = held_out_judge(config.reward, config.finetune.monitor.held_out)
            with open_ranks(engine.device) as ranks, one_reward(config, out, ranks) as reward:
                result = run(
                    config.finetune,
                    base / "model",
                    reward,
                    spacegroup_weights(base / "model", data),
                    out,
                    seed=config.seed,
                    held_out=held_out,
                    is_known=known_to(store),
                    relaxer=relaxer_of(config),
                    screen=Screen.of(config.reward),
                    on_metrics=stage.on_metrics,
                    ranks=ranks,
                    make_engine=engine_maker(engine),
                )
                version = reward.version
                content = ranks.by_first(lambda: weights_hash(load_model(result.model_dir).model))
            if stage.records:
                write_history(out)
                stage.artifact(out / "history.csv")
            metrics = result.metrics | {
                "reward": version.name,
                "reward_digest": version.digest,
                "stopped": result.stopped,
                "monitor": result.monitor,
            }
            stage.finish(content, metrics, reward_lineage(version))
    return stage.outcome


@contextmanager
def one_reward(config: Config, out: Path, ranks: Ranks) -> Iterator[Reward]:
    """`open_reward` for all ranks: each has a client of its own, of one server, which merges their requests.

    A server that is not there yet is started by the first rank, for the ranks of its node. Raises InputError when
    there are others.
    """
    from crystalforge.integrations.triton.service import URL_VARIABLE, local_server, open_reward

    with ExitStack() as stack:
        served = os.environ.get(URL_VARIABLE) or config.service.url or config.service.mode == "in-process"
        if ranks.world_size > 1 and not served:
            from serving.launcher import available

            if int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world_size)) < ranks.world_size:
                raise InputError(
                    "processes on several nodes need a reward server that all of them can reach",
                    source="service.url",
                    remedy="give the address of one that runs, or set service.mode=in-process",
                )
            if available()[0]:
                url = ranks.by_first(lambda: stack.enter_context(local_server(config, out / "service")).grpc_url)
                stack.callback(os.environ.pop, URL_VARIABLE)
                os.environ[URL_VARIABLE] = url
        yield stack.enter_context(open_reward(config, out))


def known_to(store: TokenStore) -> IsKnown:
    """Marks crystals whose fingerprint occurs in the training split: the same formula, space group and orbits.

    Cheap enough for every step, and a little too strict: whether free coordinates differ is left to the evaluation.
    """
    import numpy as np
    from jaxtyping import Bool

    from crystalforge.crystal.tokens import Tokens
    from crystalforge.data.fingerprint import fingerprints, orbit_codes

    known = np.unique(orbit_codes(np.asarray(store.column("fingerprint")[store.split("train")])))

    def is_known(tokens: Tokens) -> Bool[np.ndarray, " B"]:
        return np.isin(orbit_codes(fingerprints(tokens)), known)

    return is_known


def held_out_judge(
    reward: RewardConfig, held_out: RewardConfig | None, *, source: str = "finetune.monitor.held_out"
) -> Reward | None:
    """A judge that nothing is trained on, built in this process; None when there is none. source: its section.

    Raises InputError when it is the reward itself. One that shares a model with the reward is allowed, with a
    warning: it sees what is wrong with the rest of the reward, not with that model.
    """
    if held_out is None:
        return None
    from crystalforge.rewards import build
    from crystalforge.rewards.base import value_settings

    mine, theirs = (value_settings(part.model_dump(mode="json")) for part in (held_out, reward))
    if mine == theirs and _models(held_out) == _models(reward):
        raise InputError(
            "the held-out judge is the reward itself: it can reveal nothing",
            source=source,
            remedy="give it another potential",
        )
    for shared in sorted(_models(held_out) & _models(reward)):
        log.warning("the held-out judge uses %s, as the reward does: it cannot reveal that model's errors", shared)
    return build(held_out)


def relaxer_of(config: Config) -> Relaxer | None:
    """Relaxes with the potential of the reward, in this process; None where nothing is to be relaxed or by nothing."""
    settings = config.finetune.relax
    potential = None if settings is None else _potential(config.reward)
    if settings is None or potential is None:
        return None
    from crystalforge.potentials import load
    from crystalforge.potentials.relax import relax

    loaded = load(potential)

    def relaxer(crystals: Sequence[Crystal]) -> tuple[list[Crystal | None], Any]:
        found = relax(loaded, crystals, fmax=settings.fmax, steps=settings.steps, fix_symmetry=settings.fix_symmetry)
        return [c if p is None else None for c, p in zip(found.crystals, found.problems, strict=True)], found.steps

    return relaxer


def _potential(reward: RewardConfig) -> PotentialConfig | None:
    """The first potential that a reward judges energies with."""
    from crystalforge.rewards.config import CompositeReward, EHullReward, EnsembleReward

    if isinstance(reward, EHullReward):
        return reward.potential
    parts: Iterable[RewardConfig] = ()
    if isinstance(reward, CompositeReward):
        parts = (term.reward for term in reward.terms)
    elif isinstance(reward, EnsembleReward):
        parts = reward.members
    return next((found for part in parts if (found := _potential(part)) is not None), None)


def _models(config: RewardConfig) -> set[str]:
    """Names of the learned models that a reward rests on."""

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if value.get("kind") in ("chgnet", "matgl", "orb", "mace"):
                yield f"{value['kind']} {value.get('model') or ''}{value.get('path') or ''}".strip()
            for item in value.values():
                yield from walk(item)
        elif isinstance(value, list):
            for item in value:
                yield from walk(item)

    return set(walk(config.model_dump(mode="json")))
