"""What travels between a learner and the reward service: tensors, versions, and how work is cut into pieces.

Both ends import this file and nothing here knows Triton, so that client and server cannot drift apart.
Tensors are flat and ragged (all atoms of all crystals end to end): no padding, no limit on the number of
sites. Text travels as UINT8, because BYTES tensors cannot leave Triton's Python backend under numpy 2.

Shapes: B crystals, N = sum of their atoms, K components. On the wire every tensor has a leading 1, Triton's
batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from jaxtyping import Float64, Int32, UInt8

from crystalforge.crystal.crystal import Crystal, PackedCrystals
from crystalforge.rewards.protocol import RewardVersion, Scores

WIRE_VERSION = 1  # of this layout; a client and a server with different numbers refuse each other

INPUTS = {"lattice": "FP64", "n_atoms": "INT32", "numbers": "INT32", "frac": "FP64"}
# `digest` comes with every answer, so that a value can never be taken from a server that was exchanged
# meanwhile.
SCORE_OUTPUTS = ("values", "status", "components", "digest")
ABOUT = "about"


class WireError(ValueError):
    """Tensors that do not describe crystals or scores. The text is safe to show to the other side."""


@dataclass(frozen=True)
class About:
    """What a server says of itself: enough to pin the version, read the answers and size the requests.

    components: names of the K columns. canary: the value of `canary()` when the server started. instances:
    how many workers answer in parallel. chunk_structures, chunk_atoms: the largest forward pass; max_atoms:
    the largest request that is accepted.
    """

    name: str
    digest: str
    components: tuple[str, ...]
    canary: float
    instances: int
    chunk_structures: int
    chunk_atoms: int
    max_atoms: int
    golden: Mapping[str, float] = field(default_factory=dict)
    wire: int = WIRE_VERSION

    @property
    def version(self) -> RewardVersion:
        """The version of the reward that answers."""
        return RewardVersion(self.name, self.digest, dict(self.golden))

    def to_bytes(self) -> UInt8[np.ndarray, " n"]:
        """As JSON in a UINT8 tensor."""
        return text_to_bytes(json.dumps(asdict(self)))

    @classmethod
    def from_bytes(cls, data: np.ndarray) -> About:
        """Read what `to_bytes` wrote; WireError when it is something else or of another wire version."""
        try:
            fields = json.loads(bytes_to_text(data))
            wire = fields["wire"]
            if wire != WIRE_VERSION:
                raise WireError(f"the server speaks wire version {wire}, this client {WIRE_VERSION}")
            return cls(**{**fields, "components": tuple(fields["components"])})
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise WireError(f"the server's description of itself cannot be read ({error})") from error


def text_to_bytes(text: str) -> UInt8[np.ndarray, " n"]:
    """UTF-8 bytes of `text`."""
    return np.frombuffer(text.encode(), dtype=np.uint8).copy()


def bytes_to_text(data: np.ndarray) -> str:
    """The text again; raises WireError when the bytes are no UTF-8."""
    try:
        return np.ascontiguousarray(data, dtype=np.uint8).tobytes().decode()
    except UnicodeDecodeError as error:
        raise WireError("a text tensor is not UTF-8") from error


def canary() -> Crystal:
    """The crystal that every reward can score: rock salt, NaCl, primitive cell, a = 5.64 Å."""
    half = 5.64 / 2
    return Crystal.of([[0, half, half], [half, 0, half], [half, half, 0]], [11, 17], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])


def encode(crystals: Sequence[Crystal | None]) -> dict[str, np.ndarray]:
    """Tensors of one request, without the leading 1. `numbers` and `frac` end with one row of zeros.

    That sentinel belongs to no crystal: it keeps the tensors from being empty when no crystal could be built,
    because Triton's Python backend cannot hand over a tensor without elements.
    """
    packed = PackedCrystals.pack(crystals)
    return {
        "lattice": np.ascontiguousarray(packed.lattice, dtype=np.float64),
        "n_atoms": np.ascontiguousarray(packed.n_atoms, dtype=np.int32),
        "numbers": np.concatenate([packed.numbers, np.zeros(1, np.int32)]).astype(np.int32),
        "frac": np.concatenate([packed.frac, np.zeros((1, 3))]).astype(np.float64),
    }


def decode(tensors: Mapping[str, np.ndarray]) -> list[Crystal | None]:
    """The crystals of one request (tensors without the leading 1); raises WireError when the shapes disagree.

    Only the frame is judged here. Absurd cells, NaN coordinates and unknown elements pass: they are data, and
    the reward gives them their status.
    """
    lattice, n_atoms, numbers, frac = (np.asarray(tensors[name]) for name in INPUTS)
    if lattice.ndim != 3 or lattice.shape[1:] != (3, 3) or n_atoms.ndim != 1 or numbers.ndim != 1:
        raise WireError("expected lattice [B,3,3], n_atoms [B], numbers [N+1], frac [N+1,3]")
    if frac.ndim != 2 or frac.shape[1] != 3:
        raise WireError(f"frac has shape {list(frac.shape)}, expected [N+1, 3]")
    if len(n_atoms) == 0 or len(lattice) != len(n_atoms):
        raise WireError(f"{len(lattice)} lattices for {len(n_atoms)} crystals")
    if (n_atoms < 0).any():
        raise WireError("n_atoms must not be negative")
    expected = int(n_atoms.astype(np.int64).sum()) + 1
    if len(numbers) != expected or len(frac) != expected:
        raise WireError(
            f"n_atoms asks for {expected} rows (one of them the closing row of zeros), "
            f"but numbers has {len(numbers)} and frac {len(frac)}"
        )
    return PackedCrystals(
        lattice.astype(np.float64), n_atoms.astype(np.int32), numbers[:-1].astype(np.int32),
        frac[:-1].astype(np.float64),
    ).unpack()  # fmt: skip


def component_table(scores: Scores, names: Sequence[str]) -> Float64[np.ndarray, "B K"]:
    """The components as columns in the order of `names`."""
    assert set(scores.components) == set(names), f"the reward changed its components: {list(scores.components)}"
    if not names:
        return np.zeros((len(scores), 0))
    return np.stack([scores.components[name] for name in names], axis=1)


def chunks(n_atoms: Int32[np.ndarray, " B"], max_structures: int, max_atoms: int) -> list[slice]:
    """Cut B crystals into consecutive pieces of at most `max_structures` crystals and `max_atoms` atoms.

    A crystal with more atoms than that is a piece of its own. The cut depends on the sizes alone, never on
    timing: a forward pass over other neighbours may differ in the last bits, so this keeps a learner's
    results repeatable.
    """
    assert max_structures > 0
    assert max_atoms > 0
    pieces: list[slice] = []
    begin, atoms = 0, 0
    for index, count in enumerate(n_atoms):
        if index > begin and (index - begin >= max_structures or atoms + int(count) > max_atoms):
            pieces.append(slice(begin, index))
            begin, atoms = index, 0
        atoms += int(count)
    if begin < len(n_atoms):
        pieces.append(slice(begin, len(n_atoms)))
    return pieces
