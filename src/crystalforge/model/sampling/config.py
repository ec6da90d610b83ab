"""How crystals are drawn: what changes the model's law, said once for the command line, evaluation and tuning."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from crystalforge.crystal.geometry import Geometry
from crystalforge.model.constraints.constraints import Constraints

MAX_DRAWS = 1000


def _switch(value: Any) -> Any:
    """True: the checks as they are by default; False: none."""
    return Geometry() if value is True else None if value is False else value


Valid = Annotated[Geometry | None, BeforeValidator(_switch)]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SamplingConfig(BaseModel):
    """The law that crystals are drawn from; by default the model's own.

    >>> SamplingConfig(valid=True, coord_temperature=0.8).valid.min_bond
    0.7
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: Temperature = Field(default=1.0, description="of every choice; below 1: nearer to what is likely")
    letter_temperature: Temperature | None = Field(default=None, description="of Wyckoff letters; None: temperature")
    element_temperature: Temperature | None = Field(default=None, description="of elements; None: temperature")
    first_element_temperature: Temperature | None = Field(
        default=None, description="of the first site's element; None: as of the others"
    )
    coord_temperature: Temperature | None = Field(default=None, description="of coordinates; None: temperature")
    lattice_temperature: Temperature | None = Field(default=None, description="of the lattice; None: temperature")
    top_p: float = Field(default=1.0, gt=0, le=1, description="probability mass that choices are drawn from")
    constraints: Constraints | None = Field(default=None, description="what may be drawn; None: anything")
    valid: Valid = Field(
        default=None,
        description="draw each crystal again until it passes these checks of distances and cell; true: the usual ones",
    )
    max_draws: int = Field(default=MAX_DRAWS, ge=1, description="with valid: draws of one crystal before giving up")

    def options(self) -> dict[str, Any]:
        """As keyword arguments of `sampler.sample` and its like."""
        return {name: getattr(self, name) for name in SamplingConfig.model_fields}
