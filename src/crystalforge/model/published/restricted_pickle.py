"""Reads the published checkpoints' pickles without running anything that they name.

A pickle is a program. This reader knows the few names that a Haiku checkpoint uses and gives each a stand-in that
only keeps what it is handed: no NumPy, JAX or Optax code runs while the file is read, and any other name is refused.
Arrays are built afterwards from their bytes, with type, shape and length checked.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from crystalforge.common.errors import InputError

MAX_BYTES = 4 << 30  # a full checkpoint with optimiser moments has 58 MB
# Numbers only: an object array could hold anything.
DTYPES = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
REMEDY = "give a checkpoint (.pkl) as published with CrystalFormer: a dictionary with 'params'"


class _Refused(pickle.UnpicklingError):
    """The pickle asks for something that a checkpoint does not need."""


class _Dtype:
    """Stand-in of numpy.dtype: keeps the type's code and byte order."""

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise _Refused("an array has an unknown type")
        self.order = str(state[1])

    def numpy(self) -> np.dtype:
        if self.code not in DTYPES:
            raise _Refused(f"an array has type {self.code!r}")
        return np.dtype(f"{self.order}{self.code}")


class _Array:
    """Stand-in of numpy.ndarray: keeps its state until `numpy` checks and builds it."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def numpy(self) -> np.ndarray:
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise _Refused("an array has no content")
        _, shape, dtype, fortran, data = self.state
        return _build(data, dtype, shape, "F" if fortran else "C")


class _Nothing:
    """Stand-in of optimiser state: holds nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _build(data: object, dtype: object, shape: object, order: object) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray | pickle.PickleBuffer):
        raise _Refused("an array is not made of numbers")
    if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise _Refused("an array has no valid shape")
    kind, content = dtype.numpy(), bytes(data)
    if len(content) != math.prod(shape) * kind.itemsize:
        raise _Refused(f"an array of shape {shape} has {len(content)} bytes")
    array = np.frombuffer(content, kind).reshape(shape, order="F" if order == "F" else "C")
    return np.array(array, dtype=kind.newbyteorder("native"))


def _frombuffer(data: object, dtype: object, shape: object, order: object) -> np.ndarray:
    return _build(data, dtype, shape, order)


def _jax_array(function: object, arguments: object, state: object, *_: object) -> _Array:
    """Stand-in of JAX's reconstruction: a NumPy array's parts, and what JAX knows beyond them (dropped)."""
    if function is not _Array:
        raise _Refused("an array is made in an unknown way")
    array = _Array()
    array.__setstate__(state)
    return array


def _scalar(dtype: object, data: object) -> np.ndarray:
    return _build(data, dtype, (), "C")


def _mapping(*arguments: object) -> dict[object, object]:
    return dict(arguments[0]) if arguments and isinstance(arguments[0], dict) else {}


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("jax._src.array", "_reconstruct_array"): _jax_array,
    ("collections", "OrderedDict"): _mapping,
    ("haiku._src.data_structures", "FlatMapping"): _mapping,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        if module == "optax" or module.startswith("optax."):
            return _Nothing
        raise _Refused(f"it names {module}.{name}, which a checkpoint does not need")


def read_haiku_pickle(path: Path) -> dict[str, np.ndarray]:
    """The parameters in a published checkpoint by flat name ("module/name"); the optimiser's state is left out.

    Raises InputError when the file is missing, too large, damaged, not a checkpoint, or names anything that a
    checkpoint does not need.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"has {size} bytes, more than the {MAX_BYTES} allowed", source=path, remedy=REMEDY)
        content = _Reader(io.BytesIO(path.read_bytes())).load()
    except _Refused as error:
        raise InputError(f"refused: {error}", source=path, remedy=REMEDY) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", source=path, remedy=REMEDY) from None
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way; none of ours ran
        raise InputError(
            f"is no readable pickle ({type(error).__name__}: {error})", source=path, remedy=REMEDY
        ) from None
    parameters = content.get("params") if isinstance(content, dict) else None
    if not isinstance(parameters, dict) or not parameters:
        raise InputError("holds no 'params'", source=path, remedy=REMEDY)
    flat: dict[str, np.ndarray] = {}
    for module, values in parameters.items():
        if not isinstance(module, str) or not isinstance(values, dict):
            raise InputError(f"'params' holds {module!r}, which is no module", source=path, remedy=REMEDY)
        for name, value in values.items():
            try:
                array = value.numpy() if isinstance(value, _Array) else value
            except _Refused as error:
                raise InputError(f"refused: {error}", source=path, record=f"{module}/{name}", remedy=REMEDY) from None
            if not isinstance(array, np.ndarray):
                raise InputError("is no array", source=path, record=f"{module}/{name}", remedy=REMEDY)
            if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
                raise InputError("holds values that are no finite reals", source=path, record=f"{module}/{name}")
            flat[f"{module}/{name}"] = array.astype(np.float32)
    return flat


def read_pickled_array(content: bytes, *, source: object = None) -> np.ndarray:
    """One NumPy or JAX array from its pickle, with the same care; raises InputError for anything else."""
    remedy = "give a file as CrystalFormer's tools write it"
    try:
        value = _Reader(io.BytesIO(content)).load()
        array = value.numpy() if isinstance(value, _Array) else value
    except _Refused as error:
        raise InputError(f"refused: {error}", source=source, remedy=remedy) from None
    except Exception as error:  # a damaged pickle can fail in any way; none of ours ran
        raise InputError(
            f"is no readable pickle ({type(error).__name__}: {error})", source=source, remedy=remedy
        ) from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"is a {type(array).__name__}, no array", source=source, remedy=remedy)
    return array
