"""The whole experiment as one value: each section is owned and documented by the package it configures.

config = load(Path("params.yaml"), ["finetune.steps=50"])
config.finetune.steps
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from crystalforge.common.files import sha256_json
from crystalforge.common.settings import override, read_yaml, validated
from crystalforge.data.config import DataConfig
from crystalforge.evaluation.config import EvaluateConfig
from crystalforge.model.config import ModelConfig
from crystalforge.rewards.config import EhullReward, RewardConfig
from crystalforge.rl.config import FinetuneConfig
from crystalforge.training.config import PretrainConfig


class ServiceConfig(BaseModel):
    """Where crystals are scored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["auto", "triton", "in-process"] = Field(
        "auto",
        description="auto: a local Triton where its wheel has a build, else in process; triton: insist on it",
    )
    url: str | None = Field(
        None, description="host:port of a Triton that already runs (gRPC); none: start one here"
    )
    model: str = Field("reward", description="model name in the server's repository")
    instances: int = Field(
        2, ge=1, description="copies of the reward model in a server started here, one core each"
    )
    chunk: int = Field(64, ge=1, description="crystals in one request; part of the result's reproducibility")
    deadline_seconds: float = Field(120.0, gt=0, description="for one request")
    patience_seconds: float = Field(20.0, ge=0, description="how long an unreachable server is waited for")
    tls_ca: str | None = Field(
        None, description="PEM file of the authority that signed the server's certificate"
    )
    token_env: str | None = Field(
        None, description="environment variable that holds the server's access token"
    )


class TrackingConfig(BaseModel):
    """Where runs are recorded. MLFLOW_TRACKING_URI in the environment wins over `uri`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    uri: str | None = Field(None, description="MLflow tracking URI; none: SQLite in `directory`")
    directory: str = Field("runs", description="where the local database and its artifacts are")
    experiment: str = "crystalforge"


class RegisterConfig(BaseModel):
    """What becomes of the better model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("crystalforge-generator", description="registered model's name")
    alias: str = Field("candidate", description="alias that the new version gets")


class Config(BaseModel):
    """Every parameter of a run; frozen, and nothing unknown is accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0, lt=2**63, description="of everything random: data order, weights, samples")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    reward: RewardConfig = Field(default_factory=EhullReward)
    service: ServiceConfig = ServiceConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    register_: RegisterConfig = Field(RegisterConfig(), alias="register")
    tracking: TrackingConfig = TrackingConfig()

    def sections(self, names: Iterable[str]) -> dict[str, Any]:
        """The named sections as plain JSON values."""
        values = self.model_dump(mode="json", by_alias=True)
        return {name: values[name] for name in names}

    @property
    def digest(self) -> str:
        """SHA-256 of the resolved configuration, without what cannot change a result."""
        return sha256_json(self.sections(name for name in _SECTIONS if name not in ("service", "tracking")))


_SECTIONS = [field.alias or name for name, field in Config.model_fields.items()]


def load(path: Path | None, assignments: Iterable[str] = ()) -> Config:
    """Read `path` (none: the defaults), apply `section.key=value` assignments, validate. Raises InputError."""
    values = override(read_yaml(path) if path is not None else {}, assignments)
    return validated(Config, values, source=path if path is not None else "--set")


def from_sections(**sections: Any) -> Config:
    """A configuration from some of its sections, defaults for the rest: the form that pipeline components use."""
    return validated(Config, sections, source="pipeline parameters")
