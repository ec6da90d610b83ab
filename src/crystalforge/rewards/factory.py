"""From a configuration to a reward that has proved itself on its golden values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from crystalforge.common.settings import validated_as
from crystalforge.potentials.base import Potential, PropertyModel
from crystalforge.rewards.base import GuardedReward, Judge
from crystalforge.rewards.combine import CompositeJudge, EnsembleJudge
from crystalforge.rewards.config import (
    CompositeReward,
    CustomReward,
    Descriptor,
    DielectricReward,
    DiversityReward,
    EHullReward,
    EnsembleReward,
    NoveltyReward,
    PropertyReward,
    PropertySource,
    RewardConfig,
)
from crystalforge.rewards.golden import golden_values, verify, verify_potential, verify_property
from crystalforge.rewards.protocol import Reward, RewardVersion

KINDS = get_args(get_args(RewardConfig)[0])


def parse(settings: Any) -> RewardConfig:
    """A reward's configuration from plain data (YAML, JSON); InputError names the key that is wrong."""
    kind = settings.get("kind") if isinstance(settings, Mapping) else getattr(settings, "kind", None)
    named = [model for model in KINDS if model.model_fields["kind"].default == kind]
    return validated_as(RewardConfig, settings, source="reward", models=named)


def build(config: RewardConfig) -> Reward:
    """Load models and hull, judge the golden crystals, and return the reward.

    Raises InputError when a file or package is missing, when scales do not fit together, and when the golden
    values are not reproduced. For speed on a CPU call `torch.set_num_threads(1)` and run one process per
    core.
    """
    return _Builder().build(config)


class _Builder:
    """Builds a tree of rewards; equal potentials, models and hulls within it are loaded once."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def build(self, config: RewardConfig) -> GuardedReward:
        judge = self._judge(config)
        reward = GuardedReward(
            judge,
            name=config.name or config.kind,
            settings=config.model_dump(mode="json"),
            guards=config.guards,
            floor=config.floor,
            cap=config.cap,
        )
        seen = golden_values(reward)
        verify(reward.version.name, seen, config.golden or {}, config.golden_tolerance)
        reward.version = RewardVersion(reward.version.name, reward.version.digest, seen)
        return reward

    def _judge(self, config: RewardConfig) -> Judge:
        match config:
            case EHullReward():
                from crystalforge.rewards.ehull import EHullJudge
                from crystalforge.rewards.own_hull import own_hull
                from crystalforge.thermo import HullStore

                potential = self._potential(config.potential)

                def open_hull() -> HullStore:
                    if config.hull == "own":
                        return own_hull(potential)
                    return HullStore.open(config.hull, scale=config.hull_scale)

                own = config.potential.model_dump_json() if config.hull == "own" else ""
                hull = self._once(f"hull|{config.hull}|{config.hull_scale}|{own}", open_hull)
                return EHullJudge(config, potential, hull)
            case PropertyReward():
                from crystalforge.rewards.properties import PropertyJudge

                return PropertyJudge(config, self._property(config.source))
            case DielectricReward():
                from crystalforge.rewards.properties import DielectricJudge

                tensors = [self._property(source) for source in (config.tensor, *config.others)]
                return DielectricJudge(config, tensors, self._property(config.gap))
            case CompositeReward():
                return CompositeJudge(config, [self.build(term.reward) for term in config.terms])
            case EnsembleReward():
                return EnsembleJudge(config.k, [self.build(member) for member in config.members])
            case NoveltyReward():
                from crystalforge.rewards.novelty import NoveltyJudge, load_reference

                return NoveltyJudge(load_reference(config.reference), config.scale)
            case DiversityReward():
                from crystalforge.rewards.novelty import DiversityJudge

                return DiversityJudge(config.scale)
            case CustomReward():
                from crystalforge.rewards.custom import CustomJudge

                return CustomJudge(config)

    def _property(self, config: PropertySource) -> PropertyModel:
        if isinstance(config, Descriptor):
            from crystalforge.rewards.properties import DescriptorModel

            return DescriptorModel(config)

        def make() -> PropertyModel:
            from crystalforge.potentials.matgl import MatGLProperty

            model = MatGLProperty(
                config.path,
                state=config.state,
                aggregate=config.aggregate,
                device=config.device,
                batch_atoms=config.batch_atoms,
            )
            verify_property(model)
            return model

        return self._once(config.model_dump_json(), make)

    def _potential(self, config: Any) -> Potential:
        from crystalforge.potentials import load

        def make() -> Potential:
            potential = load(config)
            verify_potential(potential)
            return potential

        return self._once(config.model_dump_json(), make)

    def _once(self, key: str, make: Any) -> Any:
        if key not in self._loaded:
            self._loaded[key] = make()
        return self._loaded[key]
