"""Writes the model repository that Triton serves: one folder per reward, from one template.

The reward's whole configuration is written into the folder, so that what is served is exactly what the run
was configured with. Nothing that clients can read (`config.pbtxt`) names a path of this machine;
`settings.json` does, and stays on the server.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from string import Template
from typing import Any

from pydantic import BaseModel

import crystalforge
from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_directory, sha256_json
from crystalforge.integrations.triton.wire import WIRE_VERSION
from serving.service import Limits

TEMPLATES = Path(__file__).resolve().parent / "model_repository"
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class ModelSettings:
    """How one reward is served.

    instances: workers (processes with one thread each on a CPU). max_requests: how many small requests may
    share an execution; queue_delay_us: how long to wait for them. expected_digest: refuse to serve anything
    else.
    """

    instances: int = 1
    kind: str = "KIND_CPU"
    limits: Limits = field(default_factory=Limits)
    max_requests: int = 16
    queue_delay_us: int = 0
    expected_digest: str | None = None


def write_model(
    repository: Path,
    name: str,
    reward: BaseModel,
    settings: ModelSettings,
    *,
    paths: list[str] | None = None,
) -> Path:
    """Write `repository/name`, whole or not at all, and return it.

    paths: where the workers find modules; by default where this process finds them.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name for a model", remedy="use letters, digits, '_', '-' and '.'")
    configuration = reward.model_dump(mode="json")
    limits = settings.limits
    if _depends_on_batch(configuration):
        limits = replace(limits, merge_below=0)  # other people's crystals must not count
    content = {
        "reward": configuration,
        "limits": asdict(limits),
        "instances": settings.instances,
        "expected_digest": settings.expected_digest,
        "python_path": python_path() if paths is None else paths,
    }
    config = Template((TEMPLATES / "config.pbtxt").read_text()).substitute(
        name=name, instances=settings.instances, kind=settings.kind, max_requests=settings.max_requests,
        queue_delay_us=settings.queue_delay_us, wire=WIRE_VERSION,
    )  # fmt: skip
    with atomic_directory(repository / name) as folder:
        (folder / "1").mkdir()
        (folder / "config.pbtxt").write_text(config)
        (folder / "1" / "settings.json").write_text(json.dumps(content, indent=2) + "\n")
        shutil.copyfile(TEMPLATES / "model.py", folder / "1" / "model.py")
    return repository / name


def _depends_on_batch(configuration: Any) -> bool:
    """Whether a reward, or a part of it, compares the crystals of one request with each other."""
    if isinstance(configuration, Mapping):
        return configuration.get("kind") == "diversity" or any(map(_depends_on_batch, configuration.values()))
    return isinstance(configuration, list | tuple) and any(map(_depends_on_batch, configuration))


def python_path() -> list[str]:
    """Where this process finds modules outside its installation: a user's own reward is found there as well."""
    ours = [Path(crystalforge.__file__ or "").resolve().parent.parent, Path(__file__).resolve().parent.parent]
    installed = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    others = [Path(entry).absolute() for entry in sys.path if not entry.startswith(installed)]
    return list(dict.fromkeys(str(path) for path in (*ours, *others) if path.is_dir()))


def fingerprint(rewards: Mapping[str, BaseModel], settings: ModelSettings, extra: Any = None) -> str:
    """A hash over all that decides what is served; equal means that a running server can be reused."""
    return sha256_json(
        {
            "rewards": {name: reward.model_dump(mode="json") for name, reward in rewards.items()},
            "settings": asdict(settings),
            "wire": WIRE_VERSION,
            "extra": extra,
        }
    )
