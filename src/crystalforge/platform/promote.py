"""From candidate to production: the alias moves only when the evaluation says so, and the version says why.

Gates, each a sentence in the version's tags:
- *comparable*: judged by the same protocol and the same reward version as the model in production;
- *discovery*: with 95 % confidence the share of S.U.N. crystals is not lower than the reference's by more than a margin
  (a non-inferiority test: too few samples fail it);
- *held-out potential*: where other potentials judged the crystals, none contradicts the gain that the reward's own
  potential sees;
- *objective*: where its evaluation measured L = E[r] - tau KL(p || p_base), that is not below its base model's: what it
  gained then cost more than it is worth by the very objective that it was tuned for;
- *uniqueness*: the lower end of the interval is above a floor.
The reference is the model in production; without one, the base model of the candidate's own evaluation.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from crystalforge.common.errors import InputError
from crystalforge.common.names import checked
from crystalforge.evaluation.config import MOST_HELD_OUT
from crystalforge.evaluation.judging.parts import held_out_prefix
from crystalforge.evaluation.metrics import statistics
from crystalforge.evaluation.metrics.statistics import Estimate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from crystalforge.config import Config


class PromotionGates(BaseModel):
    """What a candidate must show."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str = Field(default="sun_rate", description="share that must not be worse: sun_rate, msun_rate, novel_rate")
    margin: float = Field(default=0.05, ge=0, le=1, description="loss of `metric` that is borne, as a share of samples")
    smallest_unique: float = Field(default=0.5, ge=0, le=1, description="share of unique crystals, lower 95 % bound")


@dataclass(frozen=True)
class Gate:
    """A gate's name, whether it was passed, and why."""

    name: str
    passed: bool
    why: str


@dataclass(frozen=True)
class Judged:
    """One model's figures, by whom they were found, and what it is called in messages."""

    name: str
    protocol: Mapping[str, Any]
    reward: str
    metrics: Mapping[str, Mapping[str, Any]]

    def figure(self, metric: str) -> Estimate:
        """The figure with its interval; NaN where it was not measured."""
        found = self.metrics.get(metric) or {"value": None, "low": None, "high": None, "n": 0}
        value, low, high = (math.nan if found[key] is None else found[key] for key in ("value", "low", "high"))
        return Estimate(value, low, high, found["n"])


def judge(candidate: Judged, reference: Judged | None, gates: PromotionGates) -> list[Gate]:
    """Every gate's verdict; `reference` is None for a base model that is the first to be promoted."""
    unique = candidate.figure("unique_rate")
    found = [
        Gate(
            "uniqueness",
            unique.low >= gates.smallest_unique,
            f"unique crystals {_percent(unique)}, at least {100 * gates.smallest_unique:g} % wanted",
        )
    ]
    if reference is None:
        return [*found, Gate("discovery", True, "the first model, and nothing to be worse than")]
    same = candidate.protocol == reference.protocol and candidate.reward == reference.reward
    how = f"protocol {candidate.protocol['name']}, reward {candidate.reward[:12]}"
    other = f"protocol {reference.protocol['name']}, reward {reference.reward[:12]}"
    found.append(
        Gate("comparable", same, f"both judged by {how}" if same else f"judged by {how}; {reference.name} by {other}")
    )
    change = statistics.difference(reference.figure(gates.metric), candidate.figure(gates.metric))
    found.append(
        Gate(
            "discovery",
            change.low >= -gates.margin,
            f"{gates.metric} {_percent(change, sign='+')} against {reference.name}, a loss of "
            f"{100 * gates.margin:g} points is borne",
        )
    )
    return [*found, _held_out(candidate, reference)]


def _held_out(candidate: Judged, reference: Judged) -> Gate:
    """What every held-out potential that judged both says; one that contradicts is enough."""
    metrics = (f"mean_{held_out_prefix(number)}e_above_hull" for number in range(MOST_HELD_OUT))
    found = [opinion for metric in metrics if (opinion := _opinion(candidate, reference, metric)) is not None]
    if not found:
        return Gate("held-out potential", True, "not measured")
    return Gate("held-out potential", all(passed for passed, _ in found), "; ".join(why for _, why in found))


def _opinion(candidate: Judged, reference: Judged, metric: str) -> tuple[bool, str] | None:
    """E_hull by a held-out potential must not be higher for sure, nor stand still where the reward's own clearly falls;
    None where it was not measured."""
    figures = [model.figure(metric) for model in (reference, candidate)]
    if any(math.isnan(figure.value) for figure in figures):
        return None
    held_out = statistics.difference(*figures)
    own = statistics.difference(*(model.figure("mean_e_above_hull") for model in (reference, candidate)))
    said = f"mean E_hull {_energy(held_out)} against {reference.name}, by the reward's own potential {_energy(own)}"
    if held_out.low > 0:
        return False, f"higher with 95 % confidence: {said}"
    if own.high < 0 <= held_out.value:
        return False, f"does not see the gain: {said}"
    return True, f"agrees: {said}"


def objective_gate(summary: Mapping[str, Any], label: str) -> Gate:
    """Whether the model called `label` in an evaluation is at least as good as the base by the objective of tuning."""
    measured = summary.get("objective") or {}
    if label not in measured.get("comparison", {}):
        return Gate("objective", True, "a base model" if label == summary["baseline"] else "not measured")
    change, own = measured["comparison"][label]["objective"], measured["models"][label]["objective"]
    if change["value"] is None:
        return Gate("objective", True, "not measured")
    said = (
        f"L {own['value']:.3f}, {change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}] against its base "
        f"(tau {measured['tau']:g})"
    )
    return Gate("objective", change["value"] >= 0, said)


def promote(
    config: Config, gates: PromotionGates, *, source: str = "candidate", target: str = "production"
) -> dict[str, Any]:
    """Judge the version that the alias `source` of `config.register.name` means, and move `target` to it when every
    gate is passed; either way its tags say what was found. Returns the verdict, also printed by the command line.

    Raises InputError when nothing is registered so, or its evaluation cannot be found.
    """
    from crystalforge.integrations.mlflow import tracking
    from crystalforge.integrations.mlflow.recording import answered

    checked("alias", target, source="--to")
    if source.lower() != "latest":  # the newest version may be asked for promotion, under whatever alias
        checked("alias", source, source="--from")
    if source == target:
        raise InputError(
            f"the alias {target!r} is to be judged and to be moved",
            source="--to",
            remedy="give two aliases, such as --from candidate --to production",
        )
    api = tracking.client(tracking.tracking_uri(config.tracking.uri, Path(config.tracking.directory)))
    with answered(api.tracking_uri):
        return _promote(api, config.register_.name, gates, source=source, target=target)


def _promote(api: MlflowClient, name: str, gates: PromotionGates, *, source: str, target: str) -> dict[str, Any]:
    from crystalforge.integrations.mlflow import registry

    candidate = registry.version_of(api, f"models:/{name}@{source}")
    # Not by its address: an alias that nobody has set is no error here, a registry that is away is.
    holder = api.get_registered_model(name).aliases.get(target)
    current = None if holder is None else registry.version_of(api, f"models:/{name}/{holder}")
    if current is not None and current.version == candidate.version:
        return {"promoted": True, "name": name, "version": str(current.version), "why": [f"is {target} already"]}
    summary = _summary(api, candidate)
    judged = _judged(candidate, summary)
    if current is not None:
        reference = _judged(current, _summary(api, current))
    elif candidate.tags["model"] != summary["baseline"]:
        reference = _judged(candidate, summary, summary["baseline"])
    else:
        reference = None
    found = [*judge(judged, reference, gates), objective_gate(summary, candidate.tags["model"])]
    passed = all(gate.passed for gate in found)
    tags = {f"gate.{gate.name.replace(' ', '_')}": f"{_word(gate.passed)}: {gate.why}" for gate in found}
    tags["promotion"] = f"{'to' if passed else 'refused for'} {target}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    if current is not None:
        tags["promotion.over"] = f"version {current.version}"
    for key, value in tags.items():
        api.set_model_version_tag(name, str(candidate.version), key, value)
    if passed:
        api.set_registered_model_alias(name, target, str(candidate.version))
    return {
        "promoted": passed,
        "name": name,
        "version": str(candidate.version),
        "over": None if current is None else str(current.version),
        "why": [f"{gate.name} {_word(gate.passed)}: {gate.why}" for gate in found],
    }


def _summary(api: MlflowClient, version: ModelVersion) -> dict[str, Any]:
    """The evaluation's summary, from the run that the version names."""
    from crystalforge.integrations.mlflow.registry import download

    run = version.tags.get("evaluation_run_id")
    if not run:
        raise InputError(
            f"version {version.version} of {version.name} does not name its evaluation",
            remedy="promote a version that 'crystalforge register' made",
        )
    with tempfile.TemporaryDirectory() as temporary:
        return json.loads(download(api, f"runs:/{run}/summary.json", Path(temporary)).read_text())


def _judged(version: ModelVersion, summary: Mapping[str, Any], label: str | None = None) -> Judged:
    chosen = label or version.tags["model"]
    said = f"version {version.version}" if label is None else f"its {label} model"
    return Judged(
        said, summary["protocol"], version.tags.get("reward_digest", ""), summary["models"][chosen]["metrics"]
    )


def _word(passed: bool) -> str:
    return "passed" if passed else "failed"


def _percent(figure: Estimate, sign: str = "") -> str:
    if math.isnan(figure.value):
        return "not measured"
    return f"{100 * figure.value:{sign}.1f} % [{100 * figure.low:{sign}.1f}, {100 * figure.high:{sign}.1f}]"


def _energy(figure: Estimate) -> str:
    return f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}] eV/atom"
