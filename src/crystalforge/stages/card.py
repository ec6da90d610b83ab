"""Model cards: what a registered generator is, how it was judged, where it comes from. Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crystalforge.evaluation.metrics.measures import METRICS

# endings of the tags that say what the model was made of
LINEAGE = ("hash", "digest", "id", "base_model", "data_version", "reward_golden")

Figure = Mapping[str, Any]  # value, low, high


def model_card(name: str, summary: Mapping[str, Any], choice: str, reason: str, tags: Mapping[str, str]) -> str:
    """The card of the model `choice` ("base" or "tuned") of an evaluation's summary.

    tags: lineage; only hashes, digests, run ids and the base model's address are shown.
    """
    model, protocol = summary["models"][choice], summary["protocol"]
    compared = summary["comparison"].get(choice, {})
    lines = [
        f"# {name}",
        "",
        f"Autoregressive generator of crystals, given a space group: the {choice} model of its run.",
        f"Chosen because: {reason}.",
        "",
        "## How it was judged",
        "",
        f"{model['n']:,} crystals by the protocol `{protocol['name']}`; intervals are 95 %. The reward's own potential "
        "decides what is stable: figures of models that were judged by another reward version are no comparison.",
        "",
        "| figure | value | interval |" + (f" minus {summary['baseline']} |" if compared else ""),
        "|---|---|---|" + ("---|" if compared else ""),
    ]
    for metric, found in model["metrics"].items():
        if found["value"] is None:
            continue
        caption, unit, _ = METRICS[metric]
        cells = [f"{caption} ({unit})" if unit else caption, _shown(found["value"], unit), _interval(found, unit)]
        if compared:
            change = compared.get(metric)
            cells.append("" if change is None or change["value"] is None else _shown(change["value"], unit, sign="+"))
        lines.append(f"| {' | '.join(cells)} |")
    status = ", ".join(f"{count} {kind}" for kind, count in model["status"].items())
    lines += [
        "",
        f"Status of its crystals at the reward: {status}.",
        "",
        "## Limits",
        "",
        "Energies come from a machine-learned potential, not from first principles: a crystal called stable is a "
        "candidate for a calculation, not a discovery. The model writes crystals of at most the number of sites and "
        "the elements it was trained on.",
        "",
        "## Where it comes from",
        "",
        *(f"- {key}: `{value}`" for key, value in tags.items() if key.endswith(LINEAGE) and value),
        "",
        "## Use",
        "",
        "```python",
        f'sampler = mlflow.pyfunc.load_model("models:/{name}@candidate")',
        'sampler.predict(pandas.DataFrame({"spacegroup": [225], "n": [10], "seed": [0]}))',
        "```",
    ]
    return "\n".join(lines)


def _shown(value: float, unit: str, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}" if unit == "%" else f"{value:{sign}.3f}"


def _interval(found: Figure, unit: str) -> str:
    return "" if found["low"] is None else f"{_shown(found['low'], unit)} to {_shown(found['high'], unit)}"
