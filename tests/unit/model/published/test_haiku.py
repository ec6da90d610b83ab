"""Published checkpoints come in; nothing else does, and nothing in a file runs."""

from __future__ import annotations

import collections
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crystalforge.common.errors import InputError
from crystalforge.model.checkpoint import load_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.model.published.haiku import from_haiku, import_checkpoint, infer_config, to_haiku
from crystalforge.model.published.parity import fixture_config, haiku_parameters, load_fixture
from crystalforge.model.published.restricted_pickle import read_haiku_pickle

FIXTURE = Path(__file__).parents[3] / "parity" / "model_tiny.npz"
RAN: list[str] = []  # what a hostile pickle managed to run


def nested(flat: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    tree: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        module, _, leaf = name.rpartition("/")
        tree.setdefault(module, {})[leaf] = value
    return tree


@pytest.fixture
def jax_names(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Modules with the names under which JAX and Optax pickle, and a class that pickles as JAX's arrays do."""
    array_module, optax_module = types.ModuleType("jax._src.array"), types.ModuleType("optax._src.transform")

    def _reconstruct_array(function, arguments, state, aval):
        raise AssertionError("JAX's code ran")

    _reconstruct_array.__module__ = "jax._src.array"
    _reconstruct_array.__qualname__ = "_reconstruct_array"
    array_module._reconstruct_array = _reconstruct_array  # type: ignore[attr-defined]
    state = collections.namedtuple("ScaleByAdamState", ["count", "mu"])
    state.__module__ = "optax._src.transform"
    optax_module.ScaleByAdamState = state  # type: ignore[attr-defined]
    for name in ("jax", "jax._src", "optax", "optax._src"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "jax._src.array", array_module)
    monkeypatch.setitem(sys.modules, "optax._src.transform", optax_module)

    class JaxArray:
        def __init__(self, value: np.ndarray) -> None:
            self.value = value

        def __reduce__(self) -> Any:
            function, arguments, state = self.value.__reduce__()
            return _reconstruct_array, (function, arguments, state, {"weak_type": False})

    return types.SimpleNamespace(JaxArray=JaxArray, AdamState=state)


def parameters() -> tuple[dict[str, np.ndarray], ModelConfig]:
    fixture = load_fixture(FIXTURE)
    return haiku_parameters(fixture), fixture_config(fixture)


def test_names_and_layout_go_both_ways() -> None:
    flat, config = parameters()
    back = to_haiku(from_haiku(flat, config), config)
    assert set(back) == set(flat)
    assert all(np.array_equal(back[name], value) for name, value in flat.items())


def test_a_checkpoint_with_jax_arrays_and_optimiser_state_comes_in(tmp_path: Path, jax_names: Any) -> None:
    flat, config = parameters()
    arrays = nested({name: jax_names.JaxArray(value) for name, value in flat.items()})
    state = (jax_names.AdamState(jax_names.JaxArray(np.int32(5) * np.ones(1, np.int32)), arrays), {"empty": ()})
    file = tmp_path / "epoch_005500.pkl"
    file.write_bytes(pickle.dumps({"params": arrays, "opt_state": state}))
    assert import_checkpoint(file, tmp_path / "model", config=config) == config
    loaded = load_model(tmp_path / "model")
    expected = from_haiku(flat, config)
    assert all(torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items())
    assert loaded.info["source"] == file.name


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_plain_numpy_arrays_come_in_from_every_protocol(tmp_path: Path, protocol: int, order: str) -> None:
    values = np.asarray(np.arange(6, dtype=">f8").reshape(2, 3), order=order)  # type: ignore[call-overload]
    file = tmp_path / "p.pkl"
    file.write_bytes(pickle.dumps({"params": {"linear": {"w": values}}}, protocol=protocol))
    np.testing.assert_array_equal(read_haiku_pickle(file)["linear/w"], values)


def test_the_shape_is_inferred() -> None:
    config = ModelConfig(layers=3, heads=4, head_size=8, width=16, embedding=8, first_wyckoff_hidden=12, widening=2)
    flat = to_haiku(CrystalFormer(config).state_dict(), config)
    assert infer_config(flat, base=ModelConfig(heads=4)) == config


class Hostile:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def note(text: str) -> None:
    RAN.append(text)


HOSTILE = {
    "own function": lambda: {"params": Hostile(note, "ran")},
    "eval": lambda: {"params": {"a": {"w": Hostile(eval, "1+1")}}},
    "exec in the optimiser": lambda: {"params": {"a": {"w": np.ones(1)}}, "opt_state": Hostile(exec, "x=1")},
    "getattr": lambda: {"params": Hostile(getattr, "text", "upper")},
    "numpy function": lambda: {"params": {"a": {"w": Hostile(np.load, "x.npy")}}},
    "object array": lambda: {"params": {"a": {"w": np.array([Hostile(note, "ran")], dtype=object)}}},
    "structured array": lambda: {"params": {"a": {"w": np.zeros(2, dtype=[("x", "f4")])}}},
    "text array": lambda: {"params": {"a": {"w": np.array(["text"])}}},
    "set": lambda: {"params": {"a": {"w": {1, 2}}}},
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path: Path, kind: str, protocol: int) -> None:
    file = tmp_path / "bad.pkl"
    file.write_bytes(pickle.dumps(HOSTILE[kind](), protocol=protocol))
    RAN.clear()
    with pytest.raises(InputError, match=r"bad\.pkl"):
        read_haiku_pickle(file)
    assert not RAN


def test_written_opcodes_are_refused(tmp_path: Path) -> None:
    """A system call by hand, the older opcodes included."""
    file = tmp_path / "bad.pkl"
    marker = tmp_path / "ran"
    for program in (
        f"cos\nsystem\n(S'touch {marker}'\ntR.",
        f"(S'touch {marker}'\nios\nsystem\n.",
        f"(cposix\nsystem\nS'touch {marker}'\no.",
        "Pnumber\n.",  # a persistent object
        "cnumpy\nndarray\n(tR}(S'numpy'\nI1\nub.",  # tampers with a stand-in
    ):
        file.write_bytes(program.encode())
        with pytest.raises(InputError):
            read_haiku_pickle(file)
    assert not marker.exists()


def test_arrays_that_lie_about_their_size_are_refused(tmp_path: Path) -> None:
    content = pickle.dumps({"params": {"a": {"w": np.ones(4, np.float32)}}}, protocol=4)
    shortened = content.replace(np.ones(4, np.float32).tobytes(), np.ones(4, np.float16).tobytes() + b"\0" * 8)
    claimed = content.replace(b"K\x04\x85", b"K\x7f\x85")
    assert claimed != content
    (tmp_path / "claimed.pkl").write_bytes(claimed)
    with pytest.raises(InputError, match="shape"):
        read_haiku_pickle(tmp_path / "claimed.pkl")
    (tmp_path / "short.pkl").write_bytes(shortened[:-20])
    with pytest.raises(InputError, match="no readable pickle"):
        read_haiku_pickle(tmp_path / "short.pkl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "no 'params'"),
        ({"params": {}}, "no 'params'"),
        ({"params": {"a": np.ones(2)}}, "no module"),
        ({"params": {"a": {"w": "text"}}}, "no array"),
        ({"params": {"a": {"w": np.array([np.nan])}}}, "no finite"),
        ({"params": {"linear": {"w": np.ones((2, 3))}}}, "not CrystalFormer's"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: object, message: str) -> None:
    file = tmp_path / "c.pkl"
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=message):
        import_checkpoint(file, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_files_that_are_missing_or_no_pickles_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.pkl"):
        read_haiku_pickle(tmp_path / "absent.pkl")
    (tmp_path / "text.pkl").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="no readable pickle"):
        read_haiku_pickle(tmp_path / "text.pkl")


def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    flat, config = parameters()
    file = tmp_path / "c.pkl"
    file.write_bytes(pickle.dumps({"params": nested(flat)}))
    for change, message in (({"layers": 3}, "missing"), ({"layers": 1}, "no place"), ({"width": 64}, "shape")):
        with pytest.raises(InputError, match=message):
            import_checkpoint(file, tmp_path / "model", config=config.model_copy(update=change))
