"""The report's static text: the opening sentences, the headline table, the experiment's summary. HTML fragments."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from crystalforge.evaluation.metrics.measures import METRICS
from crystalforge.evaluation.metrics.objective import CAPTIONS

Interval = Mapping[str, Any]  # value, low, high, n, as `Estimate.as_dict` writes them
MINUS = "\u2212"
SMALLEST_P = 1e-4  # below it the number says nothing more


def lede(summary: Mapping[str, Any]) -> str:
    """The result in one or two sentences."""
    models = summary["models"]
    counts = ", ".join(f"{model['n']:,} from {escape(label)}" for label, model in models.items())
    opening = f"{sum(model['n'] for model in models.values()):,} crystals judged: {counts}."
    base = summary["baseline"]
    for label, differences in summary["comparison"].items():
        for name in ("sun_rate", "stable_rate", "mean_reward"):
            if name in differences and _known(differences[name]):
                before = shown(name, models[base]["metrics"][name]["value"])
                after = shown(name, models[label]["metrics"][name]["value"])
                clear = (
                    "the difference is clear"
                    if _clear(differences[name])
                    else "the samples do not show a clear difference"
                )
                return (
                    f"{opening} {METRICS[name][0]} went from {before} ({escape(base)}) to {after} "
                    f"({escape(label)}); {clear}."
                )
    return opening


def headline_table(summary: Mapping[str, Any]) -> str:
    """Every figure of every model with its interval, and each model's difference from the first."""
    models, comparison = summary["models"], summary["comparison"]
    names = [n for n in METRICS if any(_known(model["metrics"].get(n)) for model in models.values())]
    head = "".join(f'<th scope="col">{escape(label)}{_trainings(model)}</th>' for label, model in models.items())
    head += "".join(f'<th scope="col">{escape(_versus(summary, label))}</th>' for label in comparison)
    lines = []
    for name in names:
        caption, unit, direction = METRICS[name]
        label = caption if unit in ("", "%") else f"{caption} <small>({unit})</small>"
        cells = "".join(_cell(name, model["metrics"].get(name), column) for column, model in models.items())
        for model, differences in comparison.items():
            p = summary.get("tests", {}).get(model, {}).get(name)
            cells += _difference(name, differences.get(name), direction, _versus(summary, model), p)
        lines.append(f'<tr><th scope="row">{label.replace("E_hull", "E<sub>hull</sub>")}</th>{cells}</tr>')
    return (
        '<div class="scroll"><table class="headline stack"><thead><tr><th scope="col">95 % intervals below</th>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def objective_table(summary: Mapping[str, Any]) -> str:
    """L and the attained share of every model, and what is left of the comparison behind the filter; "" where not
    measured."""
    found = summary.get("objective")
    if found is None:
        return ""
    rows = ("mean_reward", "stable_rate", "sun_rate", "novel_rate", "kl_to_base")
    captions = {name: METRICS[name][:2] for name in rows} | CAPTIONS
    columns: dict[str, dict[str, Any]] = {}
    for label, plain in found["models"].items():
        columns[label] = summary["models"][label]["metrics"] | plain
        columns[f"{label}, filtered"] = found["filtered"][label]
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in columns)
    lines = []
    for name, (caption, unit) in captions.items():
        cells = "".join(
            f'<td data-label="{escape(label)}"><span>{_with_interval(column.get(name), unit)}</span></td>'
            for label, column in columns.items()
        )
        label = caption if unit in ("", "%") else f"{caption} <small>({unit})</small>"
        lines.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    best = found["optimum"]
    return (
        "<h3>The objective, and what a filter gives</h3><p>Filtered: only crystals that pass the reward's guards, "
        "which ask no model, so that it costs nothing to draw again until one passes; compare the filtered models to "
        f"see what was learned. L = E[r] − tau KL(p ‖ p<sub>base</sub>), tau {found['tau']:g}, is what tuning "
        f"maximises; it can be at most L* = {_with_interval(best, '')} (effective sample size "
        f"{best['effective']:.0f}).</p>"
        '<div class="scroll"><table class="stack"><thead><tr><th scope="col">95 % intervals in brackets</th>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _with_interval(found: Interval | None, unit: str) -> str:
    if not _known(found):
        return "–"
    assert found is not None
    scale, digits = (100, 1) if unit == "%" else (1, 3)
    numbers = [
        "?" if found[key] is None else f"{scale * found[key]:.{digits}f}".replace("-", MINUS)
        for key in ("value", "low", "high")
    ]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def status_table(summary: Mapping[str, Any]) -> str:
    """How many crystals ended in each status, per model."""
    models = summary["models"]
    names = sorted({name for model in models.values() for name in model["status"]}, key=lambda n: (n != "ok", n))
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in models)
    lines = "".join(
        f'<tr><th scope="row">{STATUS.get(name, escape(name))}</th>'
        + "".join(
            f'<td data-label="{escape(label)}"><span>{model["status"].get(name, 0):,} '
            f"<small>{percent(model['status'].get(name, 0) / max(model['n'], 1))}</small></span></td>"
            for label, model in models.items()
        )
        + "</tr>"
        for name in names
    )
    return (
        "<p>Crystals that the reward could not or would not judge get its floor; they count in every percentage.</p>"
        f'<div class="scroll"><table class="headline stack"><thead><tr><th scope="col">Outcome</th>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


STATUS = {
    "ok": "Scored",
    "not_built": "No crystal could be built",
    "bad_cell": "Cell not finite or of absurd volume",
    "too_close": "Atoms too close",
    "too_large": "Too many atoms",
    "unknown_element": "Element the reward does not know",
    "not_finite": "The reward's model gave no number",
    "out_of_bounds": "Outside physical bounds",
    "sparse_hull": "Too few reference phases",
    "failed": "The reward's model failed",
    "excluded": "Excluded by the wish",
}


def key_values(values: Mapping[str, Any]) -> str:
    """Nested mappings as sections that can be folded; the first one is open."""
    if not values:
        return "<p>Nothing was recorded.</p>"
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    nested = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    parts = [_list(plain)] if plain else []
    for number, (key, value) in enumerate(nested.items()):
        opened = " open" if number == 0 else ""
        parts.append(f"<details{opened}><summary>{escape(_words(key))}</summary>{_list(_flat(value))}</details>")
    return "".join(parts)


def shown(name: str, value: float | None) -> str:
    """A figure as text, rates in per cent."""
    if value is None:
        return "–"
    return percent(value) if METRICS[name][1] == "%" else signed(f"{value:.3f}")


def percent(value: float) -> str:
    """A share as per cent with one decimal."""
    return signed(f"{100 * value:.1f} %")


def signed(text: str) -> str:
    """The typographic minus instead of the hyphen."""
    return text.replace("-", MINUS)


def _cell(name: str, figure: Interval | None, label: str) -> str:
    if figure is None or not _known(figure):
        return f'<td data-label="{escape(label)}">–</td>'
    text = f"<b>{shown(name, figure['value'])}</b>{_interval(name, figure)}"
    return f'<td data-label="{escape(label)}"><span>{text}</span></td>'


def _difference(name: str, figure: Interval | None, direction: int, label: str, test: Mapping[str, Any] | None) -> str:
    if figure is None or not _known(figure):
        return f'<td data-label="{escape(label)}">–</td>'
    value = figure["value"]
    text = f"{100 * value:+.1f} points" if METRICS[name][1] == "%" else f"{value:+.3f}"
    kind, word = "", "not clear"
    if _clear(figure):
        word = "higher" if value > 0 else "lower"
        if direction:
            kind = "better" if value * direction > 0 else "worse"
            word = kind
    return (
        f'<td class="{kind}" data-label="{escape(label)}"><span><b>{signed(text)}</b>'
        f"{_interval(name, figure, points=True, word=word)}{_p_value(test)}</span></td>"
    )


def _interval(name: str, figure: Interval, *, points: bool = False, word: str = "") -> str:
    if figure["low"] is None or figure["high"] is None:
        return ""
    scale, digits = (100, 1) if METRICS[name][1] == "%" else (1, 3)
    sign = "+" if points else ""
    low, high = (f"{scale * figure[end]:{sign}.{digits}f}" for end in ("low", "high"))
    return f"<small>{signed(low)} to {signed(high)}{f' · {word}' if word else ''}</small>"


def _p_value(test: Mapping[str, Any] | None) -> str:
    if test is None:
        return ""
    value = f"p = {test['p']:.2g}" if test["p"] >= SMALLEST_P else f"p &lt; {SMALLEST_P:g}"
    return f"<small>{value} ({escape(test['test'])})</small>"


def _known(figure: Interval | None) -> bool:
    return figure is not None and figure["value"] is not None


def _clear(figure: Interval) -> bool:
    return figure["low"] is not None and (figure["low"] > 0 or figure["high"] < 0)


def _trainings(model: Mapping[str, Any]) -> str:
    count = model.get("experiments", 1)
    return f" <small>{count} trainings</small>" if count > 1 else ""


def _versus(summary: Mapping[str, Any], label: str) -> str:
    return f"{label} {MINUS} {summary['baseline']}"


def _words(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level with dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def _list(values: Mapping[str, Any]) -> str:
    items = "".join(f"<dt>{escape(str(key))}</dt><dd>{escape(_text(value))}</dd>" for key, value in values.items())
    return f"<dl>{items}</dl>"


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
