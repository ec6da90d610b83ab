"""What the sampler asks of a network while a wave of crystals grows, for either layout of tokens.

A writer holds the network's memory of one wave. Slot by slot the sampler tells it what was drawn, and it answers with
the laws of what comes next; the sampler knows neither tokens nor positions.

Shapes: B rows of a wave, W letters, A elements, D width.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor

from crystalforge.model.network import TOKENS_PER_SITE, CoordMixture, LatticeMixture
from crystalforge.model.sampling.network import CloseRanks, Decoder
from crystalforge.model.sites import TOKENS_OF_SITE, SiteFormer, SoFar, structure_factors


@runtime_checkable
class Writer(Protocol):
    """See the module's docstring. `spacegroup` [B] is the same at every call but for rows that were let go."""

    letter_logits: Float[Tensor, "B W"]  # of the letter at the next slot

    def letter(
        self, slot: int, spacegroup: Int64[Tensor, " B"], letter: Int64[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B A"], LatticeMixture]:
        """The letter at `slot` was drawn: logits of its element, and the lattice where the letter is a pad."""
        ...

    def element(self, slot: int, spacegroup: Int64[Tensor, " B"], element: Int64[Tensor, " B"]) -> CoordMixture:
        """The element was drawn: the mixture of x."""
        ...

    def coord(
        self, slot: int, axis: int, spacegroup: Int64[Tensor, " B"], coords: Float[Tensor, "B 3"]
    ) -> CoordMixture | None:
        """Coordinate `axis` was drawn, `coords` holds it and those before: the next one's mixture.

        After the last there is none; `letter_logits` are then those of the next slot.
        """
        ...

    def close_ranks(self, move: CloseRanks) -> None:
        """Let go of the rows that `move` does not keep."""
        ...


def writer(decoder: Decoder, spacegroup: Int64[Tensor, " B"]) -> Writer:
    """A writer for a wave of these groups. A decoder serves one wave at a time."""
    if isinstance(decoder.network, SiteFormer):
        return SiteWriter(decoder, decoder.network, spacegroup)
    return TokenWriter(decoder, spacegroup)


class TokenWriter:
    """Five tokens a site, the published layout."""

    def __init__(self, decoder: Decoder, spacegroup: Int64[Tensor, " B"]) -> None:
        self.decoder, self.network = decoder, decoder.network
        self.memory = decoder.start(len(spacegroup))
        self.letter_logits = self.network.first_wyckoff_logits(spacegroup)

    def letter(
        self, slot: int, spacegroup: Int64[Tensor, " B"], letter: Int64[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B A"], LatticeMixture]:
        """See `Writer`."""
        token = self.network.embed_wyckoff(spacegroup, letter)
        return self.network.read_wyckoff_token(self._step(token, slot, 0))

    def element(self, slot: int, spacegroup: Int64[Tensor, " B"], element: Int64[Tensor, " B"]) -> CoordMixture:
        """See `Writer`."""
        return self.network.read_coord_token(self._step(self.network.embed_element(spacegroup, element), slot, 1))

    def coord(
        self, slot: int, axis: int, spacegroup: Int64[Tensor, " B"], coords: Float[Tensor, "B 3"]
    ) -> CoordMixture | None:
        """See `Writer`."""
        x = coords[:, axis].to(self.decoder.stream)
        hidden = self._step(self.network.embed_coord(axis, spacegroup, x), slot, 2 + axis)
        if axis < 2:
            return self.network.read_coord_token(hidden)
        self.letter_logits = self.network.read_z_token(hidden)
        return None

    def close_ranks(self, move: CloseRanks) -> None:
        """See `Writer`."""
        for block in self.memory:
            block.close_ranks(move)

    def _step(self, token: Float[Tensor, "B D"], slot: int, place: int) -> Float[Tensor, "B D"]:
        return self.decoder.step(token, self.memory, TOKENS_PER_SITE * slot + place)


class SiteWriter:
    """Two tokens a site (`crystalforge.model.sites`)."""

    def __init__(self, decoder: Decoder, network: SiteFormer, spacegroup: Int64[Tensor, " B"]) -> None:
        self.decoder, self.network = decoder, network
        self.memory = decoder.start(len(spacegroup))
        self.positions = network.positions(spacegroup)
        self.so_far = network.nothing(len(spacegroup))
        self._read(network.embed_group(spacegroup), 0)

    def letter(
        self, slot: int, spacegroup: Int64[Tensor, " B"], letter: Int64[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B A"], LatticeMixture]:
        """See `Writer`."""
        self._letter, self._position = letter.clone(), self.network.position_of(self.positions, letter)
        return self.network.read_element(self._context, self._position), self.network.read_lattice(self._context)

    def element(self, slot: int, spacegroup: Int64[Tensor, " B"], element: Int64[Tensor, " B"]) -> CoordMixture:
        """See `Writer`."""
        self._element = element
        token = self.network.embed_position(self._position, element, self.so_far)
        self._hidden = self.decoder.step(token, self.memory, TOKENS_OF_SITE * slot + 1)
        return self.network.read_coord(0, self._hidden, self._hidden[:, :0])

    def coord(
        self, slot: int, axis: int, spacegroup: Int64[Tensor, " B"], coords: Float[Tensor, "B 3"]
    ) -> CoordMixture | None:
        """See `Writer`."""
        known = coords[:, : axis + 1].to(self.decoder.stream)
        if axis < 2:
            return self.network.read_coord(axis + 1, self._hidden, known)
        factors = structure_factors(spacegroup, self._letter, known)
        self.so_far = self.so_far + self.network.own(spacegroup, self._letter, self._element, factors)
        token = self.network.embed_site(self._position, self._element, known, factors, self.so_far)
        self._read(token, TOKENS_OF_SITE * slot + 2)
        return None

    def close_ranks(self, move: CloseRanks) -> None:
        """See `Writer`."""
        for block in self.memory:
            block.close_ranks(move)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, move(value))
        self.so_far = SoFar(move(self.so_far.atoms), move(self.so_far.elements), move(self.so_far.factors))

    def _read(self, token: Float[Tensor, "B D"], position: int) -> None:
        self._context = self.decoder.step(token, self.memory, position)
        self.letter_logits = self.network.read_letter(self._context, self.positions)
