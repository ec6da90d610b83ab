"""Figures of a set of crystals by a protocol: valid, stable, unique, novel, each with its interval."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crystalforge.api.crystals import ID, Crystals

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from crystalforge.evaluation.matching.reference import Reference
    from crystalforge.rewards import Reward


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation found. table: one row for each crystal. summary: figures and differences, as JSON."""

    table: pa.Table
    summary: dict[str, Any]

    @property
    def crystals(self) -> Crystals:
        """The crystals with all verdicts as columns."""
        return Crystals.of(self.table.to_pandas())

    def to_frame(self) -> pd.DataFrame:
        """The figures: one row each, with value, low, high of every label; shares are shares, not per cent."""
        import pandas as pd

        from crystalforge.evaluation.metrics.measures import METRICS

        rows = {
            (METRICS[name][0], label): {key: found[key] for key in ("value", "low", "high", "n")}
            for label, model in self.summary["models"].items()
            for name, found in model["metrics"].items()
            if found["value"] is not None
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["figure", "crystals"])

    def _repr_html_(self) -> str:
        name = html.escape(self.summary["protocol"]["name"])
        return f"<p>protocol {name}</p>{self.to_frame().to_html(float_format=lambda x: f'{x:.4g}')}"


def evaluate(
    crystals: Any,
    *,
    protocol: str = "crystalformer-rl",
    judge: Reward | None = None,
    known: Any = None,
    seed: int = 0,
    out: str | Path | None = None,
    **settings: Any,
) -> Evaluation:
    """Judge crystals as a set. Needs the extra `evaluation`.

    crystals: whatever `Crystals.of` reads, or a mapping from names to such sets, the first being what the others are
    compared with. judge: default CHGNet with the embedded hull (extra `potentials`). known: what novelty is measured
    against, likewise; None: the embedded crystals. out: directory for the table and the pieces of an interrupted
    evaluation; None: a temporary one. settings: those of the section `evaluate`. Raises InputError for an unknown
    protocol or setting.

    >>> evaluate({"base": base.sample(200), "tuned": tuned.sample(200)}).to_frame()      # doctest: +SKIP
    """
    from crystalforge.common.settings import validated
    from crystalforge.evaluation.config import EvaluateConfig
    from crystalforge.evaluation.drawing.samples import SampleSet
    from crystalforge.evaluation.evaluate import evaluate_samples
    from crystalforge.evaluation.judging.relaxing import PotentialRelaxer
    from crystalforge.evaluation.metrics.summary import summarise

    if judge is None:
        from crystalforge.api.judge import judge as make

        judge = make()
    config = validated(EvaluateConfig, {"protocols": (protocol,), **settings}, source="evaluate")
    sets = crystals if isinstance(crystals, Mapping) else {"crystals": crystals}
    sources = [SampleSet.of(str(label), list(Crystals.of(found)), seed=seed) for label, found in sets.items()]
    relaxer = None if config.relax is None else PotentialRelaxer.of(config.relax)
    with tempfile.TemporaryDirectory() as temporary:
        table = evaluate_samples(
            sources, judge, _reference(known), config, out=Path(out or temporary), relaxer=relaxer, quiet=True
        )
    return Evaluation(table, summarise(table))


def _reference(known: Any) -> Reference:
    from crystalforge.evaluation.matching.reference import Reference

    if known is None:
        from crystalforge.data.sources.tables import embedded

        records = [(record.id, record.crystal()) for record in embedded().records()]
        return Reference.from_crystals([crystal for _, crystal in records], [name for name, _ in records])
    found = Crystals.of(known)
    ids = found.columns.get(ID, np.arange(len(found)))
    pairs = [(str(name), crystal) for name, crystal in zip(ids, found, strict=True) if crystal is not None]
    return Reference.from_crystals([crystal for _, crystal in pairs], [name for name, _ in pairs])
