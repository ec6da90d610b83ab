"""The whole experiment as one value: each section is owned and documented by the package it configures.

config = load(Path("params.yaml"), ["finetune.steps=50"])
config.finetune.steps
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from crystalforge.common.files import sha256_json
from crystalforge.common.names import Address, ExperimentName, RegisteredAlias, RegisteredName
from crystalforge.common.settings import override, read_yaml, validated
from crystalforge.data.config import DataConfig
from crystalforge.evaluation.config import EvaluateConfig
from crystalforge.model.config import ModelConfig
from crystalforge.potentials.predictor.config import PredictorConfig
from crystalforge.rewards.config import EHullReward, RewardConfig
from crystalforge.rl.config import FinetuneConfig
from crystalforge.rl.contest.config import ContestConfig
from crystalforge.screening.config import ScreenConfig
from crystalforge.training.config import PretrainConfig


class ServiceConfig(BaseModel):
    """Where crystals are scored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["auto", "triton", "in-process"] = Field(
        default="auto",
        description="auto: a local Triton where its wheel has a build, else in process; triton: insist on it",
    )
    url: str | None = Field(
        default=None, description="host:port of a Triton that already runs (gRPC); none: start one here"
    )
    model: str | None = Field(
        default=None, description="model's name in the server's repository; none: the reward's name"
    )
    instances: int = Field(
        default=2, ge=1, description="copies of the reward model in a server started here, one core each"
    )
    chunk_structures: int = Field(
        default=64, ge=1, description="crystals in one request; decides the last bits of a result"
    )
    deadline_s: float = Field(default=120.0, gt=0, description="for one request, queueing included")
    patience_s: float = Field(default=60.0, ge=0, description="how long a server that is away is waited for")
    tls: bool = Field(default=False, description="encrypt the connection; implied by a root certificate")
    root_certificate: Path | None = Field(default=None, description="PEM of the authority that signed the server")
    certificate: Path | None = Field(default=None, description="PEM with this client's certificate (mutual TLS)")
    key: Path | None = Field(default=None, description="PEM with this client's key (mutual TLS)")
    token_file: Path | None = Field(default=None, description="file with the secret that the server asks for")
    expected_version: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="digest of the reward that the run is pinned to; none: of the first that scores for it",
    )


class TrackingConfig(BaseModel):
    """Where runs are recorded. MLFLOW_TRACKING_URI in the environment wins over `uri`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    uri: Address | None = Field(
        default=None, description="MLflow tracking URI, without a password; none: SQLite in `directory`"
    )
    directory: str = Field(default="runs", description="where the local database and its artifacts are")
    experiment: ExperimentName = "crystalforge"


class RegisterConfig(BaseModel):
    """What becomes of the better model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: RegisteredName = Field(default="crystalforge-generator", description="registered model's name")
    alias: RegisteredAlias = Field(default="candidate", description="alias that the new version gets")
    predictor: RegisteredName = Field(
        default="crystalforge-predictor", description="registered name of a trained predictor"
    )


class Variant(BaseModel):
    """One way of fine-tuning in a study.

    >>> Variant(name="tau 0.2", finetune={"tau": 0.2}).seeds
    (0,)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=100, pattern=r"^[^/\x00]+$", description="how tables call it")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="of the fine-tuning, one run each")
    finetune: dict[str, Any] = Field(default_factory=dict, description="what differs from the section finetune")


class Config(BaseModel):
    """Every parameter of a run; frozen, and nothing unknown is accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0, lt=2**63, description="of everything random: data order, weights, samples")
    base: str | None = Field(
        default=None,
        description="run: start from this model instead of pre-training: the name of a shipped one, a directory, or "
        "models:/name@alias; the data then serve as known crystals",
    )
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    pretrain: PretrainConfig = Field(default_factory=PretrainConfig)
    reward: RewardConfig = Field(default_factory=EHullReward)
    service: ServiceConfig = Field(default_factory=ServiceConfig)
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig)
    contest: ContestConfig = Field(default_factory=ContestConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    screen: ScreenConfig = Field(default_factory=ScreenConfig)
    register_: RegisterConfig = Field(default_factory=RegisterConfig, alias="register")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    predictor: PredictorConfig | None = Field(default=None, description="what train-predictor learns, and from what")
    study: tuple[Variant, ...] = Field(default=(), description="what `study` compares with the base model")

    @model_validator(mode="after")
    def _distinct(self) -> Config:
        runs = [f"{variant.name}-{seed}" for variant in self.study for seed in variant.seeds]
        for run in runs:
            if runs.count(run) > 1:
                raise ValueError(f"study: two of its runs would share the folder {run!r}: name variants and seeds once")
        return self

    def sections(self, names: Iterable[str]) -> dict[str, Any]:
        """The named sections as plain JSON values."""
        values = self.model_dump(mode="json", by_alias=True)
        return {name: values[name] for name in names}

    @property
    def digest(self) -> str:
        """SHA-256 of the resolved configuration, without what cannot change a result."""
        return sha256_json(self.sections(name for name in _SECTIONS if name not in UNRELATED))


UNRELATED = ("service", "tracking", "contest", "screen")  # sections that change no result of a run
_SECTIONS = [field.alias or name for name, field in Config.model_fields.items()]


def load(path: Path | None, assignments: Iterable[str] = ()) -> Config:
    """Read `path` (none: the defaults), apply `section.key=value` assignments, validate. Raises InputError."""
    values = override(read_yaml(path) if path is not None else {}, assignments)
    return validated(Config, values, source=path if path is not None else "--set")


def from_sections(**sections: Any) -> Config:
    """A configuration from some of its sections, defaults for the rest: the form that pipeline components use."""
    return validated(Config, sections, source="pipeline parameters")
