"""A study: one base model, tuned in several ways with several seeds, all judged side by side -> one table.

    out/data, out/base          where the configuration names no base model: its own
    out/tuned/<variant>-<seed>  outputs of `finetune`
    out/evaluation              output of `evaluate` over all of them: the table of crystals, the report
    out/table.md, table.csv     each model and seed with intervals

Every part is a stage: an interrupted study goes on, and a finished part is reused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_file
from crystalforge.common.settings import validated

if TYPE_CHECKING:
    import pyarrow as pa

    from crystalforge.config import Config, Variant
    from crystalforge.evaluation.metrics.statistics import Estimate

TABLE = "table"
SHOWN = 4  # significant digits of the CSV file


def study(config: Config, out: Path) -> dict[str, Any]:
    """Run the study that `config.study` describes in `out`; returns the headline figures of every model.

    Raises InputError when the study names no variant, or a variant's settings are wrong.
    """
    from crystalforge.stages.evaluate import evaluate
    from crystalforge.stages.finetune import finetune
    from crystalforge.stages.ingest import ingest

    if not config.study:
        raise InputError("the study has no variants", source="study", remedy="see recipes/stability.yaml")
    runs = list(variants(config))  # a wrong setting ends here, not hours later
    data = out / "data"
    ingest(config, data)
    base = _base(config, data, out)
    tuned = []
    for variant, settings in runs:
        place = out / "tuned" / f"{variant.name}-{settings.seed}"
        finetune(settings, data, base, place)
        tuned.append((variant.name, place))
    evaluate(config, data, base, None, out / "evaluation", models=tuned)
    found = figures(out / "evaluation")
    write_table(out, found)
    return {
        "table": str(out / f"{TABLE}.md"),
        "report": str(out / "evaluation" / "report.html"),
        "models": {
            _called(label, number): {name: estimate.as_dict()["value"] for name, estimate in row.items()}
            for label, number, row in found
        },
    }


def variants(config: Config) -> Iterator[tuple[Variant, Config]]:
    """Every variant with each of its seeds, and the configuration that its fine-tuning gets."""
    from crystalforge.config import Config

    plain = config.model_dump(mode="json", by_alias=True)
    for variant in config.study:
        for seed in variant.seeds:
            values = plain | {"seed": seed, "finetune": _merged(plain["finetune"], variant.finetune)}
            yield variant, validated(Config, values, source=f"study {variant.name}")


def figures(evaluation: Path) -> list[tuple[str, int | None, dict[str, Estimate]]]:
    """(model, number of its seed, headline figures) for each set of samples in an output of `evaluate`.

    Models with one set of samples have no number; those with several come one by one, in the order they were given.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from crystalforge.evaluation.metrics.measures import measure

    table: pa.Table = pq.read_table(evaluation / "crystals.parquet")
    found: list[tuple[str, int | None, dict[str, Estimate]]] = []
    for label in dict.fromkeys(table.column("label").to_pylist()):
        rows = table.filter(pc.field("label") == label)
        seeds = list(dict.fromkeys(rows.column("seed").to_pylist()))
        for number, seed in enumerate(seeds):
            part = rows.filter(pc.field("seed") == seed)
            found.append((label, number if len(seeds) > 1 else None, measure(part)))
    return found


def write_table(out: Path, found: list[tuple[str, int | None, dict[str, Estimate]]]) -> None:
    """`table.md` to read and `table.csv` to draw: a line for each model and seed, 95 % intervals beside the figures."""
    from crystalforge.evaluation.metrics.measures import METRICS

    names = [name for name in METRICS if any(name in row for _, _, row in found)]
    heads = [" ".join(part for part in METRICS[name][:2] if part) for name in names]
    lines = [f"| model | {' | '.join(heads)} |", "|---" * (1 + len(names)) + "|"]
    csv = [",".join(["model", "number", *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))])]
    for label, number, row in found:
        lines.append(
            f"| {_called(label, number)} | {' | '.join(_cell(row.get(name), METRICS[name][1]) for name in names)} |"
        )
        values = [value for name in names for value in _numbers(row.get(name))]
        csv.append(",".join([label, "" if number is None else str(number), *values]))
    for ending, text in (("md", lines), ("csv", csv)):
        with atomic_file(out / f"{TABLE}.{ending}") as path:
            path.write_text("\n".join(text) + "\n")


def _called(label: str, number: int | None) -> str:
    return label if number is None else f"{label}, {number + 1}"


def _base(config: Config, data: Path, out: Path) -> Path:
    from crystalforge.stages.models import find_base

    if config.base is not None:
        return find_base(Path(config.base))
    from crystalforge.stages.pretrain import pretrain

    pretrain(config, data, out / "base")
    return out / "base"


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes`, sections within sections."""
    result = dict(values)
    for name, change in changes.items():
        both = isinstance(change, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = _merged(result[name], change) if both else change
    return result


def _cell(found: Estimate | None, unit: str) -> str:
    figure = None if found is None else found.as_dict()
    if figure is None or figure["value"] is None:
        return ""
    scale, digits = (100.0, 1) if unit == "%" else (1.0, 3)
    known = [value for key in ("value", "low", "high") if (value := figure[key]) is not None]
    shown = [f"{scale * value:.{digits}f}" for value in known]
    return shown[0] if len(shown) < 3 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _numbers(found: Estimate | None) -> list[str]:
    values = (math.nan,) * 3 if found is None else (found.value, found.low, found.high)
    return [f"{value:.{SHOWN}g}" if math.isfinite(value) else "" for value in values]
