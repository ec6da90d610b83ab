"""A judge of crystals: energies, distances to the hull, properties; in this process or at an address."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from crystalforge.api.crystals import Crystals
from crystalforge.common.errors import InputError

if TYPE_CHECKING:
    from crystalforge.crystal import Crystal
    from crystalforge.rewards import Reward, RewardVersion, Scores

Function = Callable[[list["Crystal"]], Sequence[float]]


def judge(
    what: str | Path | Mapping[str, Any] | Function = "chgnet",
    *,
    hull: str | Path = "embedded",
    address: str | None = None,
    name: str | None = None,
    **settings: Any,
) -> Judge:
    """What judges crystals.

    what: a potential by name, whose energies are set against `hull` (a hull store, a file of entries, or `embedded`);
    or a reward's configuration, as a mapping or as a YAML file with the section `reward`; or a function of yours that
    gives one number for each of a list of crystals, larger being better. address: host:port of a server that judges
    instead; `name` then is its reward's. settings: further ones of the reward, such as floor, guards or relax. Raises
    InputError for a judge that does not exist, whose package is missing (with the extra that has it), or that does not
    reproduce its golden values.

    >>> judge("chgnet")(["quartz.cif"])["e_above_hull"]                              # doctest: +SKIP
    >>> judge(lambda crystals: [-c.volume / len(c) for c in crystals], name="dense")  # doctest: +SKIP
    """
    if address is not None:
        from crystalforge.integrations.triton.client import RemoteReward

        return Judge(RemoteReward(address, name or "ehull"))
    if callable(what):
        return Judge(_of_function(what, name or getattr(what, "__name__", "function"), settings))
    from crystalforge.rewards import build, parse

    return Judge(build(parse(_configuration(what, hull, settings) | ({"name": name} if name else {}))))


class Judge:
    """Gives every crystal a reward (larger is better), a status, and what the reward is made of.

    It is a `Reward` too: what `Generator.finetune` tunes against.
    """

    def __init__(self, reward: Reward) -> None:
        self._reward = reward

    @property
    def version(self) -> RewardVersion:
        """What exactly judges: name and digest."""
        return self._reward.version

    def score(self, crystals: Sequence[Crystal | None]) -> Scores:
        """The answer as arrays, as training takes it."""
        return self._reward.score(crystals)

    def __call__(self, crystals: Any) -> Crystals:
        """The crystals (whatever `Crystals.of` reads) with the judge's columns, such as e_above_hull (eV/atom),
        energy_per_atom, hull_energy, then reward and status. A crystal that cannot be judged has the floor as its
        reward and says why in `status`."""
        from crystalforge.rewards import Status

        found = Crystals.of(crystals)
        scores = self.score(list(found))
        words = [Status(int(code)).name.lower().replace("_", " ") for code in scores.status]
        return found.with_columns(**scores.components, reward=scores.values, status=words)

    def __repr__(self) -> str:
        return f"<judge {self.version}>"


def _configuration(what: Any, hull: str | Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(what, Mapping):
        return {**what, **settings}
    if isinstance(what, Path) or str(what).endswith((".yaml", ".yml")):
        from crystalforge.common.settings import read_yaml

        values = read_yaml(Path(what))
        return {**(values.get("reward", values)), **settings}
    known = _potentials()
    if what not in known:
        raise InputError(
            f"there is no potential {what!r}", source="judge",
            remedy=f"one of {', '.join(known)}; or give a reward's configuration, a YAML file or a function",
        )  # fmt: skip
    potential = settings.get("potential", {})
    rest = {key: value for key, value in settings.items() if key != "potential"}
    return {"kind": "ehull", "hull": str(hull), "potential": {"kind": what, **potential}, **rest}


def _potentials() -> list[str]:
    from crystalforge.potentials.config import PotentialConfig

    members = get_args(get_args(PotentialConfig)[0])
    return [str(member.model_fields["kind"].default) for member in members]


def _of_function(function: Function, name: str, settings: Mapping[str, Any]) -> Reward:
    """Like a reward of kind `custom`, without a module to import it from."""
    from crystalforge.common.settings import validated
    from crystalforge.rewards.base import GuardedReward
    from crystalforge.rewards.config import CustomReward
    from crystalforge.rewards.custom import CustomJudge

    values = {"kind": "custom", "name": name, "function": name, **settings}
    config = validated(CustomReward, values, source="judge")
    try:
        source = inspect.getsource(function).encode()
    except (OSError, TypeError):
        source = (getattr(function, "__code__", None) and function.__code__.co_code) or repr(function).encode()
    return GuardedReward(
        CustomJudge.of(function, source, config.options),
        name=name, settings=config.model_dump(mode="json"), guards=config.guards, floor=config.floor, cap=config.cap,
    )  # fmt: skip
