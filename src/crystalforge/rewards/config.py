"""What is wanted, as data: one configuration per kind of reward, told apart by `kind`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from crystalforge.crystal.geometry import Geometry
from crystalforge.model.constraints.constraints import Constraints, Symbols
from crystalforge.potentials.config import CHGNetConfig, PotentialConfig


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Chemistry(_Record):
    """What a crystal may be made of. The same words as in the sampler's constraints: there they keep it from being
    drawn, here they keep it from being paid.
    """

    elements: Symbols | None = Field(default=None, description="only these elements may appear")
    forbidden_elements: Symbols = Field(default=(), description="these elements may not appear")
    exclude: Symbols = Field(
        default=(),
        description="named sets not to appear: radioactive, toxic, rare, noble_gases, lanthanides, actinides",
    )
    chemical_system: Symbols | None = Field(default=None, description="all of these elements appear, and no other")
    composition: dict[str, int] | str | None = Field(
        default=None, description="formula, such as CaTiO3, met up to a factor"
    )

    @model_validator(mode="after")
    def _check(self) -> Chemistry:
        self.constraints()
        return self

    def constraints(self) -> Constraints:
        """The same demands in the sampler's form; raises where they contradict each other or name nothing known."""
        return Constraints.model_validate(self.model_dump())


class Guards(Geometry):
    """What a crystal must satisfy before any model sees it. Each has a status of its own: distances and bonds
    TOO_CLOSE; length, height and volume of the cell BAD_CELL.
    """

    min_distance: float = Field(default=0.7, ge=0, description="Å between two atoms, images included -> TOO_CLOSE")
    min_bond: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="least distance as a part of the two atoms' summed covalent radii, for models that saw relaxed "
        "crystals only and know no repulsion; None: not asked -> TOO_CLOSE",
    )
    max_atoms: int = Field(default=200, gt=0, description="atoms in the cell -> TOO_LARGE")
    elements: tuple[int, ...] | None = Field(
        default=None, description="atomic numbers allowed; None: all that the model knows -> UNKNOWN_ELEMENT"
    )
    min_elements: int = Field(default=1, ge=1, description="distinct elements; 2 shuts out pure elements -> EXCLUDED")
    chemistry: Chemistry | None = Field(default=None, description="what it may be made of; None: anything -> EXCLUDED")


class RelaxConfig(_Record):
    """Relax before judging (FIRE on positions and cell)."""

    fmax: float = Field(default=0.1, gt=0, description="eV/Å at which a relaxation ends")
    steps: int = Field(default=100, gt=0, description="steps at most; what is reached then is judged")
    fix_symmetry: bool = Field(default=False, description="keep the space group")


class _Reward(_Record):
    """What all kinds share."""

    name: str = Field(default="", description="for people and for component names; empty: the kind")
    guards: Guards = Field(default_factory=Guards, description="checks made before any model")
    floor: float = Field(default=-2.0, description="the value of a crystal that cannot be judged; no value is lower")
    cap: float | None = Field(default=None, description="no value is higher; None: unlimited")
    golden: dict[str, float] | None = Field(
        default=None,
        description="values by formula that the reward must reproduce before it serves (see rewards.golden)",
    )
    golden_tolerance: float = Field(default=5e-4, gt=0, description="by how much a golden value may differ")


class EHullReward(_Reward):
    """r = -E_hull, eV/atom: distance to the convex hull of known phases, energy from a potential."""

    kind: Literal["ehull"] = "ehull"
    potential: PotentialConfig = Field(default_factory=CHGNetConfig, description="what predicts the energy")
    hull: str = Field(
        default="embedded",
        description="hull store, file of entries, `embedded`, or `own`: the embedded phases with the potential's own "
        "energies",
    )
    hull_scale: Literal["mp2020", "pbe", "r2scan", "formation"] | None = Field(
        default=None, description="what the hull's energies are measured against; None: from the file"
    )
    corrections: Literal["auto", "none", "mp2020"] = Field(
        default="auto",
        description="auto: apply MP2020 corrections when the potential is raw PBE and the hull is corrected",
    )
    relax: RelaxConfig | None = Field(default=None, description="relax first; None: judge as given")
    energy_bounds: tuple[float, float] = Field(
        default=(-20.0, 5.0),
        description="eV/atom that are physical (r2SCAN's totals have no lower bound) -> OUT_OF_BOUNDS",
    )
    max_below_hull: float = Field(
        default=1.0, ge=0, description="eV/atom: farther below the hull is an escape of the model -> OUT_OF_BOUNDS"
    )
    min_compounds: int = Field(
        default=0, ge=0, description="compounds that the chemical system's hull must hold -> SPARSE_HULL"
    )


class MatGLProperty(_Record):
    """A MatGL property model from a local folder."""

    kind: Literal["matgl"] = "matgl"
    path: Path = Field(description="folder with model.json, model.pt, state.pt")
    state: int | None = Field(default=None, description="global state, e.g. the fidelity of a multi-fidelity model")
    aggregate: Literal["auto", "source", "destination"] = Field(
        default="auto", description="the node that messages are summed into; auto: destination for old checkpoints"
    )
    device: str = Field(default="cpu", description="torch device")
    batch_atoms: int = Field(default=400, gt=0, description="atoms in one batch; changes no value")


class Descriptor(_Record):
    """A property that needs no model: read off the structure."""

    kind: Literal["descriptor"] = "descriptor"
    quantity: Literal["density", "volume_per_atom", "n_elements", "n_atoms"] = Field(
        description="g/cm^3, Å^3 per atom, or a count"
    )


PropertySource = Annotated[MatGLProperty | Descriptor, Field(discriminator="kind")]


class Maximise(_Record):
    """r = scale x property; a negative scale minimises."""

    kind: Literal["maximise"] = "maximise"
    scale: float = Field(default=1.0, description="reward per unit of the property")


class Target(_Record):
    """r = -|property - value| / width."""

    kind: Literal["target"] = "target"
    value: float = Field(description="the property's wanted value")
    width: float = Field(default=1.0, gt=0, description="a miss by this much costs 1")


class Range(_Record):
    """r = 0 inside, minus the distance to the nearer end in units of `width` outside."""

    kind: Literal["range"] = "range"
    low: float = Field(description="lower end")
    high: float = Field(description="upper end")
    width: float = Field(default=1.0, gt=0, description="a miss by this much costs 1")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


Goal = Annotated[Maximise | Target | Range, Field(discriminator="kind")]


class PropertyReward(_Reward):
    """A predicted property driven to a maximum, a target or a range."""

    kind: Literal["property"] = "property"
    source: PropertySource = Field(description="what predicts the property")
    column: int = Field(default=0, ge=0, description="which of the model's outputs")
    goal: Goal = Field(default_factory=Maximise, description="what is wanted of it")
    bounds: tuple[float, float] | None = Field(default=None, description="values that are physical -> OUT_OF_BOUNDS")


class DielectricReward(_Reward):
    """Figure of merit of a dielectric: total dielectric constant x band gap (eV).

    The constant is the mean eigenvalue of the predicted tensor, a third of its trace. Predictors of it have seen a
    thousand crystals or so, and reinforcement goes where they are wrong in the right direction: with further models the
    constant is their mean less `k` standard deviations, and each model's answer must be physical.
    """

    kind: Literal["dielectric"] = "dielectric"
    tensor: PropertySource = Field(description="model of the tensor: 6 components, or 1 (the constant itself)")
    others: tuple[PropertySource, ...] = Field(
        default=(), description="further models of the tensor or of the constant: a committee"
    )
    k: float = Field(default=1.0, ge=0, description="price of the committee's disagreement (population standard dev.)")
    order: tuple[str, ...] = Field(
        default=("xx", "yy", "zz", "yz", "xz", "xy"), description="what the 6 outputs are (Voigt's order)"
    )
    gap: PropertySource = Field(description="model of the band gap, eV; negative gaps count as 0")
    even_electrons: bool = Field(
        default=False,
        description="shut out cells with an odd number of electrons, which no model of the gap counts: a filled band "
        "holds two per primitive cell, so without magnetism these are metals -> EXCLUDED",
    )
    constant_bounds: tuple[float, float] = Field(
        default=(1.0, 100.0), description="physical constants -> OUT_OF_BOUNDS"
    )
    gap_bounds: tuple[float, float] = Field(default=(-1.0, 20.0), description="physical gaps, eV -> OUT_OF_BOUNDS")
    floor: float = Field(default=0.0, description="the value of a crystal that cannot be judged; no value is lower")

    @model_validator(mode="after")
    def _six(self) -> DielectricReward:
        if sorted(self.order) != ["xx", "xy", "xz", "yy", "yz", "zz"]:
            raise ValueError(f"order {self.order} must name xx, yy, zz, yz, xz, xy once each")
        return self


class Term(_Record):
    """One part of a composite."""

    reward: RewardConfig = Field(description="the part")
    weight: float = Field(default=1.0, description="its weight (sum, chebyshev) or exponent (product)")
    ideal: float = Field(default=0.0, description="chebyshev: the best value to hope for")
    satisfied: float | None = Field(
        default=None, description="lexicographic: above this value the part counts as fulfilled; None: never"
    )


class CompositeReward(_Reward):
    """Several wishes at once. A crystal floored by one part is floored as a whole.

    sum: sum of w r. product: product of max(r, 0)^w. chebyshev: max-min, -max of w (ideal - r) minus a small
    part of their sum (augmented Chebyshev scalarisation: reaches every point of a Pareto front, convex or
    not, by varying the weights). lexicographic: parts in order of importance; a part counts only where all
    before it are `satisfied`.
    """

    kind: Literal["composite"] = "composite"
    terms: tuple[Term, ...] = Field(min_length=1, description="the parts")
    how: Literal["sum", "product", "chebyshev", "lexicographic"] = Field(
        default="sum", description="how parts are joined"
    )
    augmentation: float = Field(default=0.05, ge=0, description="chebyshev: weight of the sum")


class EnsembleReward(_Reward):
    """Mean of several judges minus k times their disagreement (population standard deviation)."""

    kind: Literal["ensemble"] = "ensemble"
    members: tuple[RewardConfig, ...] = Field(min_length=2, description="rewards on one scale")
    k: float = Field(default=1.0, ge=0, description="price of disagreement")


class NoveltyReward(_Reward):
    """Distance to the nearest known crystal in fingerprint space, from 0 (known) to 1 (`scale` away or more)."""

    kind: Literal["novelty"] = "novelty"
    reference: Path | None = Field(
        default=None, description="npy array [n, fingerprint] of known crystals; None: the embedded prototypes"
    )
    scale: float = Field(default=1.0, gt=0, description="distance that counts as entirely new")


class DiversityReward(_Reward):
    """Distance to the nearest other crystal of the same batch, 0 for a copy, 1 for `scale` away or more.

    It depends on the batch by its nature: the same crystal in another batch has another value.
    """

    kind: Literal["diversity"] = "diversity"
    scale: float = Field(default=1.0, gt=0, description="distance that counts as entirely different")


class CustomReward(_Reward):
    """A user's own function: `package.module:function`, or the name of an entry point.

    It is called with a list of `Crystal` and answers one number per crystal (NaN: cannot judge).
    """

    kind: Literal["custom"] = "custom"
    function: str = Field(description="`package.module:function`, or an entry point in `crystalforge.rewards`")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for the function")


RewardConfig = Annotated[
    EHullReward
    | DielectricReward
    | PropertyReward
    | CompositeReward
    | EnsembleReward
    | NoveltyReward
    | DiversityReward
    | CustomReward,
    Field(discriminator="kind"),
]

for _model in (Term, CompositeReward, EnsembleReward):
    _model.model_rebuild()
