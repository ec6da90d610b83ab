"""Stage 4: any number of models, judged by the same protocol -> one table, one summary, one report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.common.errors import InputError
from crystalforge.common.files import sha256_file, sha256_json, write_json
from crystalforge.common.seeds import derived
from crystalforge.stages.base import RECORD, Stage, read_record, reward_lineage
from crystalforge.stages.models import asked_shares, spacegroup_weights, training_fingerprints

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float64

    from crystalforge.config import Config
    from crystalforge.crystal import Crystal
    from crystalforge.data.store import TokenStore
    from crystalforge.evaluation.drawing.samples import Source
    from crystalforge.evaluation.matching.reference import Reference
    from crystalforge.rewards import Reward
    from crystalforge.thermo import HullStore

TABLE, SUMMARY, REPORT, HISTORIES = "crystals.parquet", "summary.json", "report.html", "histories.json"
Named = Sequence[tuple[str, Path]]


@dataclass(frozen=True)
class Entry:
    """One set of samples to judge. number: how many of this label came before; stage: whose directory `path` is, ""
    for a bare model; content: hash of the weights or of the samples."""

    label: str
    number: int
    path: Path
    stage: str
    content: str
    samples: bool = False

    @property
    def name(self) -> str:
        """As it is called among the histories."""
        return self.label if not self.number else f"{self.label} {self.number + 1}"

    @property
    def model(self) -> Path:
        """Directory of the weights."""
        return self.path / "model" if self.stage else self.path


def evaluate(
    config: Config,
    data: Path,
    base: Path | None,
    tuned: Path | None,
    out: Path,
    *,
    models: Named = (),
    samples: Named = (),
) -> dict[str, Any]:
    """Draw from all models, score, match against the known crystals; leaves the per-crystal table, `summary.json`,
    `histories.json` and `report.html` in `out`.

    base, tuned: outputs of `pretrain` and `finetune`, called `base` and `tuned`. models: further ones by name, each a
    stage's output or a directory of weights; a name given several times is one method trained with several seeds.
    samples: crystals drawn before, see `evaluation.samples_file`. The first of all is what the others are compared
    with, and whose likelihood gives the KL divergence. All models get the same space groups and random streams
    (repetitions of a name streams of their own). Resumes where an interrupted call stopped. Returns the stage's record.
    Raises RewardUnavailable when the reward service is away for too long, InputError for paths that are no models.
    """
    entries = list(_entries(base, tuned, models, samples))
    if not entries:
        raise InputError("there is nothing to evaluate", remedy="give --base and --tuned, --model or --samples")
    inputs = {"data": data} | {name: path for name, path in (("base", base), ("tuned", tuned)) if path is not None}
    further = [{"label": e.label, "content": e.content} for e in entries if e.path not in (base, tuned)]
    options: dict[str, Any] = {"tau": config.finetune.tau} | ({"further": further} if further else {})
    if config.evaluate.reference is not None:
        options["reference"] = read_record(config.evaluate.reference, "evaluate.reference")["content"]
    sections = ("seed", "reward", "evaluate")
    with Stage("evaluate", config, out, sections=sections, inputs=inputs, options=options) as stage:
        if stage.finished is None:
            from crystalforge.data.store import TokenStore
            from crystalforge.evaluation.evaluate import CHUNKS, evaluate_samples
            from crystalforge.evaluation.judging.relaxing import PotentialRelaxer
            from crystalforge.evaluation.metrics.sets import set_metrics
            from crystalforge.evaluation.metrics.summary import summarise
            from crystalforge.evaluation.report.write import write_report
            from crystalforge.integrations.triton.service import open_reward
            from crystalforge.rewards import build
            from crystalforge.rl.rollout import weights_within

            store = TokenStore.open(data / "store")
            settings = config.evaluate
            run_id = (stage.run.run_id if stage.run is not None else "") or ""
            seeds = {entry: _seed(config, entry) for entry in entries}
            first = entries[0]
            weights = store.spacegroup_weights("train") if first.samples else spacegroup_weights(first.model, data)
            weights = weights_within(weights, settings.spacegroups)
            sources = [_source(config, entry, first, weights, seeds[entry]) for entry in entries]
            known = {"run_id": run_id, "data_hash": read_record(data, "data")["content"]}
            lineage = {(e.label, seeds[e]): {**known, "model_hash": e.content} for e in entries}
            with open_reward(config, out) as reward:
                held_out = [build(judge) for judge in settings.held_out]
                relaxer = None if settings.relax is None else PotentialRelaxer.of(settings.relax)
                table = evaluate_samples(
                    sources, reward, _reference(config, store, first), settings,
                    out=out, held_out=held_out, relaxer=relaxer, lineage=lineage, tau=config.finetune.tau,
                )  # fmt: skip
                judges = {"reward": reward, **{f"held-out {k}": judge for k, judge in enumerate(held_out, start=1)}}
                metadata = _metadata(config, store, judges, entries, known)
                judged_by = reward_lineage(reward.version)
                summary = summarise(table)
                if len(settings.protocols) > 1:
                    summary["further"] = {name: summarise(table, protocol=name) for name in settings.protocols[1:]}
                if settings.coverage is not None:
                    real = _real_crystals(store, settings.coverage.split)
                    summary["coverage"] = set_metrics(
                        table, real, reward, crystals=settings.coverage.crystals, out=out / CHUNKS
                    )
            write_json(out / SUMMARY, summary)
            histories = _histories(entries)
            write_json(out / HISTORIES, histories)
            write_report(
                out / REPORT,
                table,
                summary,
                histories,
                metadata,
                gallery=settings.gallery,
                rows=settings.candidates,
                hull=_hull(config),
            )
            for name in (SUMMARY, REPORT, TABLE):
                stage.artifact(out / name)
            stage.finish(sha256_file(out / TABLE), _headline(summary), judged_by)
    return stage.outcome


def named_paths(values: Sequence[str], option: str) -> list[tuple[str, Path]]:
    """`name=path` pairs of a repeatable option; InputError for anything else.

    >>> named_paths(["sft=work/sft"], "--model")[0][0]
    'sft'
    """
    found = []
    for value in values:
        name, separator, path = value.partition("=")
        if not (name and separator and path):
            raise InputError(
                f"{option} {value!r} is not of the form name=path", remedy=f"such as {option} sft=work/sft"
            )
        found.append((name, Path(path)))
    return found


def _entries(base: Path | None, tuned: Path | None, models: Named, samples: Named) -> Iterator[Entry]:
    counts: dict[str, int] = {}
    given = [("base", base)] if base is not None else []
    given += [("tuned", tuned)] if tuned is not None else []
    for label, path, drawn in [*((*item, False) for item in (*given, *models)), *((*item, True) for item in samples)]:
        number = counts[label] = counts.get(label, -1) + 1
        if drawn:
            files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
            if not files or not files[0].is_file():
                raise InputError("there are no samples here", source=path, remedy="give a parquet file, or a directory")
            content = sha256_json([sha256_file(file) for file in files])
            yield Entry(label, number, path, "", content, samples=True)
        elif (path / RECORD).exists():
            record = read_record(path, label)
            yield Entry(label, number, path, record["stage"], record["content"])
        elif label in ("base", "tuned"):
            read_record(path, label)  # raises, and says what was expected
        else:
            from crystalforge.model.checkpoint import load_model, weights_hash

            yield Entry(label, number, path, "", weights_hash(load_model(path).model))


def _seed(config: Config, entry: Entry) -> int:
    """Of the samples; not one of those that fine-tuning drew with. Crystals that were drawn elsewhere have one of their
    own: their rows are nobody's pairs."""
    if entry.samples:
        return derived(config.seed, f"samples {entry.content} {entry.number}")
    return derived(config.seed, "evaluate" if not entry.number else f"evaluate {entry.number}")


def _source(config: Config, entry: Entry, first: Entry, weights: Float64[np.ndarray, " 230"], seed: int) -> Source:
    from crystalforge.evaluation.drawing.files import read_samples
    from crystalforge.evaluation.drawing.generate import ModelSource

    if entry.samples:
        return read_samples(entry.label, entry.path, seed=seed)
    return ModelSource(
        label=entry.label,
        model=entry.model,
        base=None if first.samples else first.model,
        spacegroup_weights=weights,
        asked=None if entry is first else asked_shares(entry.model, weights),
        samples=config.evaluate.samples,
        seed=seed,
        law=config.evaluate.law,
    )


def _reference(config: Config, store: TokenStore, first: Entry) -> Reference:
    """The known crystals, and those that the first model was trained on, where these are other ones."""
    from crystalforge.data.store import TokenStore
    from crystalforge.evaluation.matching.reference import Reference

    if config.evaluate.reference is None:
        reference = Reference.from_store(store)
    else:
        reference = Reference.from_store(TokenStore.open(config.evaluate.reference / "store"), ["all"])
    remembered = None if first.samples else training_fingerprints(first.model, store.manifest.get("data_hash"))
    return reference if remembered is None else reference.remembering(remembered)


def _hull(config: Config) -> HullStore | None:
    """The reference phases of the reward, where it has such and they are at hand."""
    from crystalforge.rewards.config import EHullReward
    from crystalforge.thermo import HullStore

    if not isinstance(config.reward, EHullReward):
        return None
    try:
        return HullStore.open(config.reward.hull, scale=config.reward.hull_scale)
    except InputError:  # a service elsewhere has them
        return None


def _real_crystals(store: TokenStore, split: str) -> list[Crystal]:
    from crystalforge.crystal.convert import to_crystals

    found = to_crystals(store.tokens(store.split(split)), primitive=True)
    return [crystal for crystal in found if crystal is not None]


def _histories(entries: Sequence[Entry]) -> dict[str, list[dict[str, Any]]]:
    """Courses of training by name, such as `finetune`, `finetune ppo 2`; those that left none are left out."""
    found = {}
    for entry in entries:
        path = entry.path / "metrics.jsonl"
        if entry.stage and path.exists():
            name = entry.stage if entry.name in ("base", "tuned") else f"{entry.stage} {entry.name}"
            found[name] = [json.loads(line) for line in path.read_text().splitlines()]
    return found


def _headline(summary: dict[str, Any]) -> dict[str, float]:
    """Each model's figures and the differences, flat: what the registry and the pipeline show."""
    flat = {}
    for label, model in summary["models"].items():
        flat |= {f"{label}.{name}": found["value"] for name, found in model["metrics"].items()}
    objective = summary["objective"]
    for part, prefix in (("models", ""), ("filtered", "filtered.")) if objective else ():
        for label, found in objective[part].items():
            flat |= {f"{label}.{prefix}{name}": value["value"] for name, value in found.items()}
    for label, found in summary["comparison"].items():
        flat |= {f"{label}-{summary['baseline']}.{name}": value["value"] for name, value in found.items()}
    return {name: value for name, value in flat.items() if value is not None}


def _metadata(
    config: Config, store: TokenStore, judges: dict[str, Reward], entries: Sequence[Entry], known: dict[str, str]
) -> dict[str, Any]:
    """What the report says about where its figures come from."""
    import numpy as np

    from crystalforge.evaluation.report.figures import spacegroup_shares

    tokens = store.tokens(store.split("train"))
    # A crystal counts once for each element in it, however often it occurs.
    elements = np.bincount(np.concatenate([np.unique(row[row > 0]) for row in tokens.element]), minlength=119)
    return {
        "title": "Crystals before and after fine-tuning",
        "training": {
            "spacegroups": spacegroup_shares(tokens.spacegroup),
            "elements": {int(z): 100 * float(n) / len(tokens) for z, n in enumerate(elements) if n},
        },
        "run": {"seed": config.seed, "config hash": config.digest, **known},
        "models": {entry.name: entry.content for entry in entries},
        "monitor": {
            entry.name: read_record(entry.path, entry.label)["metrics"].get("monitor") or {}
            for entry in entries
            if entry.stage == "finetune"
        },
        "data": {"source": config.data.source.kind, "hash": known["data_hash"], **store.manifest["counts"]},
        **{
            name: {
                "name": judge.version.name,
                "digest": judge.version.digest,
                **{f"golden {k}": v for k, v in judge.version.golden.items()},
            }
            for name, judge in judges.items()
        },
        "config": config.sections(("model", "pretrain", "finetune", "evaluate")),
        "versions": {name: version(name) for name in ("crystalforge", "torch", "numpy", "pymatgen", "spglib")},
    }
