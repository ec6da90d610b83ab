"""crystalforge: from a wish for a material to a ranked, reproducible list of crystals.

The names below are the public interface; everything else may change without notice (see CHANGELOG.md). They are
imported when they are first used: `import crystalforge` itself costs nothing, and torch waits until a model is loaded.

>>> import crystalforge
>>> crystals = crystalforge.load("mp20").sample(10, valid=True)              # doctest: +SKIP
>>> crystalforge.judge("chgnet")(crystals).sorted_by("e_above_hull")[:3]     # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystalforge.api.crystals import Crystals, read
    from crystalforge.api.evaluation import Evaluation, evaluate
    from crystalforge.api.generator import Generator, load
    from crystalforge.api.judge import Judge, judge
    from crystalforge.api.screening import screen
    from crystalforge.common.errors import InputError
    from crystalforge.crystal.crystal import Crystal
    from crystalforge.model.sampling.config import SamplingConfig

__version__ = "0.1.0"
__all__ = [
    "Crystal",
    "Crystals",
    "Evaluation",
    "Generator",
    "InputError",
    "Judge",
    "SamplingConfig",
    "evaluate",
    "judge",
    "load",
    "read",
    "screen",
]

_HOMES = {
    "Crystal": "crystal.crystal",
    "Crystals": "api.crystals",
    "Evaluation": "api.evaluation",
    "Generator": "api.generator",
    "InputError": "common.errors",
    "Judge": "api.judge",
    "SamplingConfig": "model.sampling.config",
    "evaluate": "api.evaluation",
    "judge": "api.judge",
    "load": "api.generator",
    "read": "api.crystals",
    "screen": "api.screening",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'crystalforge' has no attribute {name!r}; public: {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(f"crystalforge.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
