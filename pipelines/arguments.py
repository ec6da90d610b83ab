"""A configuration as pipeline parameters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crystalforge.common.errors import InputError
from crystalforge.common.settings import validated
from crystalforge.config import Config
from crystalforge.integrations.dvc import source_version, version_of
from crystalforge.rl.config import FinetuneConfig, switched_to


def arguments(
    pipeline: Any,
    config: Config,
    workspace: str,
    *,
    base_model: str | None = None,
    taus: Sequence[float] = (),
    seeds: Sequence[int] = (),
    algorithms: Sequence[str] = (),
) -> dict[str, Any]:
    """The values of `pipeline`'s parameters: each section as JSON text, with a stable key order.

    base_model: for `finetune`. taus, seeds, algorithms: for `sweep`; none: the configuration's own. Raises InputError
    when the pipeline needs something that was not given.
    """
    sections = config.model_dump(mode="json", by_alias=True)
    seed = sections.pop("seed")
    texts = {f"{name}_config": _text(value) for name, value in sections.items()}
    wanted = set(pipeline.component_spec.inputs or {})
    known: dict[str, Any] = {"workspace": workspace, "seed": _text(seed), **texts}
    if "base_model" in wanted:
        if base_model is None:
            raise InputError("no base model", remedy="give --base-model models:/name@alias, or a directory")
        known["base_model"] = base_model
    if "predictor_config" in wanted and config.predictor is None:
        raise InputError("no predictor section", remedy="give --set predictor.data=table.parquet, or a section of it")
    if "variants" in wanted:
        known["variants"] = variants(config, workspace, taus, seeds, algorithms)
    if "data_version" in wanted:
        table = config.predictor.data if config.predictor is not None and "predictor_config" in wanted else None
        known["data_version"] = source_version(config.data) if table is None else version_of(str(table), _there(table))
    return {name: value for name, value in known.items() if name in wanted}


def variants(
    config: Config, workspace: str, taus: Sequence[float], seeds: Sequence[int], algorithms: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Every algorithm and tau with every seed, each in a folder of its own; all with the same steps and batches.

    Raises InputError when an algorithm cannot work with the configuration, and when something is given twice.

    >>> [v["workspace"] for v in variants(Config(), "w", [0.1, 0.3], [0])]
    ['w/tau0.1-seed0', 'w/tau0.3-seed0']
    >>> [v["workspace"] for v in variants(Config(), "w", [0.1], [0], ["ppo", "rloo"])]
    ['w/ppo-tau0.1-seed0', 'w/rloo-tau0.1-seed0']
    """
    for name, values in (("--tau", taus), ("--seed", seeds), ("--algorithm", algorithms)):
        twice = [value for position, value in enumerate(values) if value in list(values)[:position]]
        if twice:
            raise InputError(
                f"{twice[0]!r} is given twice", source=name, remedy="give each once: variants share no folder"
            )
    section = config.model_dump(mode="json", by_alias=True)["finetune"]
    found = []
    for algorithm in algorithms or [config.finetune.algorithm]:
        name = f"{algorithm}-" if algorithms else ""
        for tau in taus or [config.finetune.tau]:
            settings = switched_to(algorithm, section) | {"tau": tau}
            validated(FinetuneConfig, settings, source=f"sweep over {algorithm}")
            found += [
                {
                    "workspace": f"{workspace}/{name}tau{_digits(tau)}-seed{seed}",
                    "seed": _text(seed),
                    "finetune_config": _text(settings),
                }
                for seed in (seeds or [config.seed])
            ]
    return found


def _there(file: Path) -> list[Path]:
    return [file] if file.is_file() else []


def _digits(value: float) -> str:
    """As short as tells it from every other number.

    >>> _digits(0.1), _digits(1.0), _digits(0.1234567), _digits(1e-7)
    ('0.1', '1', '0.1234567', '1e-07')
    """
    return repr(float(value)).removesuffix(".0")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
