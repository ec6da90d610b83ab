"""A trained generator at hand: draw crystals, ask what it thinks of given ones, tune it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from crystalforge.api.crystals import ID, PROBLEM, Crystals
from crystalforge.common.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from crystalforge.crystal import Tokens
    from crystalforge.model.network import CrystalFormer
    from crystalforge.model.sampling.config import SamplingConfig
    from crystalforge.model.sampling.sampler import Precision
    from crystalforge.model.sampling.samples import Samples
    from crystalforge.rewards import Reward

LIKELIHOOD_BATCH = 256
REGISTERED = "models:/"


def load(model: str | Path = "mp20", *, device: str = "cpu", tracking_uri: str | None = None) -> Generator:
    """A generator: the name of a shipped one, a directory as `pretrain` or `finetune` leaves it, or models:/name@alias.

    tracking_uri: of the registry, for models:/...; None: MLFLOW_TRACKING_URI, else the one in `runs`. Raises InputError
    when there is no such model, or it is damaged.

    >>> generator = load("mp20")                                   # doctest: +SKIP
    >>> generator.sample(5, formula="CaTiO3", spacegroup=221)      # doctest: +SKIP
    <5 crystals: CaTiO3, CaTiO3, CaTiO3, CaTiO3, CaTiO3; columns: index, spacegroup, log_prob, draws>
    """
    from crystalforge.model.checkpoint import load_model
    from crystalforge.stages.models import find_model

    if str(model).startswith(REGISTERED):
        from crystalforge.integrations.mlflow import registry, tracking

        api = tracking.client(tracking.tracking_uri(tracking_uri, Path("runs")))
        with tempfile.TemporaryDirectory() as temporary:
            version = registry.version_of(api, str(model))
            loaded = load_model(registry.download_generator(api, version, Path(temporary)), device=device)
    else:
        loaded = load_model(find_model(Path(model)), device=device)
    return Generator(loaded.model, loaded.info, name=str(model))


class Generator:
    """p(crystal | space group) with the space groups of its training set.

    model: the network. info: what was saved with it. Crystal i of a seed is the same whatever is drawn with it.
    """

    def __init__(self, model: CrystalFormer, info: dict[str, Any], *, name: str = "") -> None:
        self.model, self.info, self.name = model, info, name

    @property
    def hash(self) -> str:
        """Of the weights."""
        from crystalforge.model.checkpoint import weights_hash

        return weights_hash(self.model)

    @property
    def spacegroup_weights(self) -> Float64[np.ndarray, " 230"]:
        """How often each space group occurred in the training set. Raises InputError when the model does not say."""
        weights = self.info.get("spacegroup_weights")
        if weights is None:
            raise InputError(
                "the model does not say how often each space group occurred in its training set", source=self.name,
                remedy="name space groups (--spacegroup), or on the command line --data with the output of ingest",
            )  # fmt: skip
        return np.asarray(weights, dtype=np.float64)

    def sample(
        self,
        n: int,
        *,
        spacegroup: int | Sequence[int] | None = None,
        formula: str | None = None,
        elements: str | Sequence[str] | None = None,
        valid: bool = False,
        seed: int = 0,
        first: int = 0,
        temperature: float = 1.0,
        law: SamplingConfig | None = None,
    ) -> Crystals:
        """n crystals, with the columns index, spacegroup, log_prob (nats, under the model) and draws.

        spacegroup: one, or several in turn; None: as often as in the training set. formula: composition up to a factor.
        elements: only these, such as "Li O Ti". valid: draw each again until its distances and cell are possible.
        first: index of the first one. law: everything that can be said of sampling, instead of the arguments before it.
        Crystals are conventional cells. Raises InputError for what no crystal can meet.

        >>> load("mp20").sample(2, spacegroup=225, seed=1)["spacegroup"].tolist()      # doctest: +SKIP
        [225, 225]
        """
        law = self._law(law, formula=formula, elements=elements, valid=valid, temperature=temperature)
        return _as_crystals(self.draw(first, n, seed=seed, spacegroups=_several(spacegroup), law=law))

    def stream(self, n: int, *, batch_size: int = 512, first: int = 0, **options: Any) -> Iterator[Crystals]:
        """As `sample`, a batch at a time in the order of their index: memory stays flat."""
        for start in range(first, first + n, batch_size):
            yield self.sample(min(batch_size, first + n - start), first=start, **options)

    def draw(
        self,
        first: int,
        count: int,
        *,
        seed: int,
        spacegroups: Sequence[int] | None = None,
        weights: Float64[np.ndarray, " 230"] | None = None,
        law: SamplingConfig | None = None,
        precision: Precision = "float32",
    ) -> Samples:
        """Crystals first .. first + count - 1 as tokens with their log-probabilities by factor.

        spacegroups: these in turn; else drawn with `weights`; else with the training set's.
        """
        from crystalforge.model.sampling.config import SamplingConfig
        from crystalforge.model.sampling.sampler import draw_spacegroups, sample

        if spacegroups is not None:
            if not len(spacegroups):
                raise InputError("no space group is named", remedy="name one, or leave the list out")
            turn = (first + np.arange(count)) % len(spacegroups)
            groups = np.asarray(spacegroups, dtype=np.int64)[turn]
        else:
            shares = self.spacegroup_weights if weights is None else weights
            groups = draw_spacegroups(shares, count, seed=seed, first_index=first)
        options = (law or SamplingConfig()).options()
        return sample(self.model, groups, seed=seed, first_index=first, precision=precision, **options)

    def log_prob(self, crystals: Any) -> pd.DataFrame:
        """log p(crystal | space group) of given crystals in nats, one row each in their order.

        crystals: whatever `Crystals.of` reads. Columns: id, formula, spacegroup, log_prob, its factors
        (log_prob_wyckoff, log_prob_element, log_prob_coords, log_prob_lattice), log_prob_per_site, and problem: why
        there is none. The symmetry of each is found anew; a drawn crystal that happens to have more than it was drawn
        with is scored under what it has, and its figure then differs from the one that was recorded with the draw.

        >>> load("mp20").log_prob("structures/").sort_values("log_prob_per_site")      # doctest: +SKIP
        """
        import pandas as pd

        from crystalforge.crystal.convert import tokenize_many

        found = Crystals.of(crystals)
        done = tokenize_many(found, max_sites=self.model.config.max_sites - 1)
        problems = found.columns.get(PROBLEM, np.full(len(found), "", dtype=object)).copy()
        for reject in done.rejects:
            problems[reject.index] = problems[reject.index] or reject.message
        frame = pd.DataFrame({
            "id": found.columns.get(ID, np.arange(len(found))), "formula": found.formulas, "spacegroup": 0,
        })  # fmt: skip
        frame.loc[done.index, "spacegroup"] = done.tokens.spacegroup
        factors = self.factors(done.tokens)
        total = np.sum(list(factors.values()), axis=0)
        for name, values in {
            "log_prob": total,
            **{f"log_prob_{name}": values for name, values in factors.items()},
            "log_prob_per_site": total / np.maximum(done.tokens.n_sites, 1),
        }.items():
            frame[name] = np.nan
            frame.loc[done.index, name] = values
        return frame.assign(problem=problems)

    def factors(self, tokens: Tokens, *, progress: Any = None) -> dict[str, Float64[np.ndarray, " n"]]:
        """Log-probabilities of tokens in nats: wyckoff, element, coords, lattice."""
        import torch

        from crystalforge.model.batch import TokenBatch
        from crystalforge.model.likelihood import log_prob
        from crystalforge.model.sampling.samples import FACTORS

        tokens = tokens.with_slots(self.model.config.max_sites)
        parts: dict[str, list[np.ndarray]] = {name: [np.zeros(0)] for name in FACTORS}
        with torch.inference_mode():
            for start in range(0, len(tokens), LIKELIHOOD_BATCH):
                batch = TokenBatch.from_tokens(
                    tokens[start : start + LIKELIHOOD_BATCH], device=self.model.head.weight.device
                )
                found = log_prob(self.model, batch.truncated())
                for name in FACTORS:
                    parts[name].append(getattr(found, name).double().cpu().numpy())
                if progress is not None:
                    progress.update(len(batch))
        return {name: np.concatenate(values) for name, values in parts.items()}

    def finetune(
        self, reward: Reward, *, steps: int = 100, out: str | Path | None = None, seed: int = 0, **settings: Any
    ) -> Generator:
        """A tuned generator: reinforcement against `reward` (see `judge`) on a leash to this one, which stays as it is.

        settings: those of the section `finetune` of params.yaml, such as batch_size, tau, spacegroups. out: directory
        of the run, which a further call with the same arguments resumes; None: a temporary one. Raises InputError for
        settings that are none.

        >>> tuned = load("mp20").finetune(judge("chgnet"), steps=50, out="tuned")      # doctest: +SKIP
        """
        from crystalforge.common.settings import validated
        from crystalforge.model.checkpoint import load_model
        from crystalforge.rl.config import FinetuneConfig
        from crystalforge.rl.finetune import finetune
        from crystalforge.stages.engines import engine_maker

        config = validated(FinetuneConfig, {"steps": steps, **settings}, source="finetune")
        with tempfile.TemporaryDirectory() as temporary:
            base = self.save(Path(temporary) / "base")
            place = Path(temporary) / "run" if out is None else Path(out)
            engine = engine_maker(config.engine)
            weights = self.spacegroup_weights
            result = finetune(config, base, reward, weights, place, seed=seed, make_engine=engine)
            loaded = load_model(result.model_dir)
        return Generator(loaded.model, {**self.info, **loaded.info}, name=f"{self.name}, tuned")

    def save(self, directory: str | Path) -> Path:
        """Weights and information as files, which `load` reads."""
        from crystalforge.model.checkpoint import save_model

        save_model(Path(directory), self.model, info=self.info)
        return Path(directory)

    def __repr__(self) -> str:
        weights = sum(parameter.numel() for parameter in self.model.parameters())
        return f"<generator {self.name}: {weights:,} weights>"

    @staticmethod
    def _law(law: SamplingConfig | None, *, formula: str | None, elements: str | Sequence[str] | None, valid: bool,
             temperature: float) -> SamplingConfig:  # fmt: skip
        from crystalforge.common.settings import validated
        from crystalforge.model.sampling.config import SamplingConfig

        wish = {"composition": formula, "elements": elements}
        wish = {name: value for name, value in wish.items() if value is not None}
        if law is not None:
            if wish or valid or temperature != 1.0:
                raise InputError(
                    "the law is given twice", remedy="put formula, elements, valid and temperature into law"
                )
            return law
        settings: dict[str, Any] = {"temperature": temperature, "valid": valid}
        return validated(SamplingConfig, settings | ({"constraints": wish} if wish else {}), source="sample")


def _several(spacegroup: int | Sequence[int] | None) -> list[int] | None:
    if spacegroup is None:
        return None
    return [int(spacegroup)] if isinstance(spacegroup, int | np.integer) else [int(g) for g in spacegroup]


def _as_crystals(samples: Samples) -> Crystals:
    from crystalforge.crystal.convert import to_crystals

    return Crystals(
        to_crystals(samples.tokens),
        {
            "index": samples.index,
            "spacegroup": samples.tokens.spacegroup,
            "log_prob": samples.total_log_prob,
            "draws": samples.draws,
        },
    )
