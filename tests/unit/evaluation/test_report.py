"""The report as a file: complete, closed to the network, safe against what users name their models."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.evaluation.config import EvaluateConfig
from crystalforge.evaluation.drawing.samples import SampleSet
from crystalforge.evaluation.evaluate import evaluate_samples
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.evaluation.metrics.summary import summarise
from crystalforge.evaluation.report import write_report
from crystalforge.evaluation.report.candidates import choose
from crystalforge.evaluation.report.cif import symmetrised
from crystalforge.evaluation.report.elements import ELEMENTS
from crystalforge.evaluation.report.figures import spacegroup_symbol

NASTY = "</script><b>tuned & co"


@pytest.fixture(scope="module")
def page(prototypes, tmp_path_factory):
    from tests.unit.evaluation.conftest import RuleReward

    folder = tmp_path_factory.mktemp("report")
    sources = [
        SampleSet.of("base", [*prototypes[:12], None], log_prob=np.zeros(13), log_prob_base=np.zeros(13)),
        SampleSet.of(NASTY, prototypes[8:30], log_prob=np.ones(22), log_prob_base=np.zeros(22)),
    ]
    reference = Reference.from_crystals(prototypes[:10], [f"known-{k}" for k in range(10)])
    table = evaluate_samples(sources, RuleReward(), reference, EvaluateConfig(), out=folder, quiet=True)
    histories = {
        "pretrain": [{"step": 10, "train/nll": 90.0}, {"step": 20, "val/nll": 80.0, "train/nll": 79.0}],
        "finetune": [{"step": k, "reward/mean": -1.0 + k / 10, "kl/base": k / 5} for k in range(5)],
    }
    metadata = {
        "title": "A <title> & more",
        "training": {"spacegroups": {"225": 60.0, "62": 40.0}, "elements": {"8": 50.0}},
        "run": {"id": "r-1", "seed": 0},
        "config": {"finetune": {"tau": 0.1}},
    }
    write_report(folder / "report.html", table, summarise(table), histories, metadata, gallery=4, rows=20)
    return (folder / "report.html").read_text(), table


def data_of(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found.group(1))


def test_headline_stands_without_javascript(page):
    text, _ = page
    for caption in ("Mean reward", "Stable", "Unique", "Novel", "S.U.N.", "Valid", "KL to base"):
        assert f'<th scope="row">{caption}' in text
    assert "+1.000" in text, "KL of the second model minus that of the first"
    assert "r-1" in text
    assert "finetune.tau" in text


def test_names_cannot_break_out_of_the_page(page):
    text, _ = page
    assert NASTY not in text
    assert "A &lt;title&gt; &amp; more" in text
    data = data_of(text)
    assert {c["label"] for c in data["candidates"]} == {"base", NASTY}
    assert "</script" not in text.split('id="report-data">')[1].split("</script>")[0]


def test_nothing_is_fetched(page):
    text, _ = page
    own = text.replace(_plotly(), "")
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', own)
    assert "default-src 'none'" in own
    assert own.count("<script>") == 3, "plotly, the viewer and the page, each once"
    assert text.count(_plotly()[:200]) == 1


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def test_page_has_all_its_figures_and_crystals(page):
    text, table = page
    data = data_of(text)
    assert {"figure-energy", "figure-finetune", "figure-pretrain", "figure-elements-0"} <= set(data["figures"])
    for name in data["figures"]:
        assert f'id="{name}"' in text
    assert len(data["candidates"]) == 20
    assert len(data["gallery"]) == 4
    best = data["candidates"][0]
    assert best["sun"] is True
    assert best["why"]
    assert "_symmetry_equiv_pos_as_xyz" in best["cif"]
    assert best["id"] in {f"{r['label']}/{r['seed']}/{r['index']}" for r in table.to_pylist() if r["sun"]}


def test_best_candidates_come_first(page):
    _, table = page
    rows = choose(table, 100).to_pylist()
    assert all(row["unique"] and row["built"] for row in rows)
    sun = [row["sun"] for row in rows]
    assert sun == sorted(sun, reverse=True)
    energies = [row["e_above_hull"] for row in rows if row["sun"]]
    assert energies == sorted(energies)
    assert len(choose(table, 3)) == 3
    nothing = choose(table.slice(0, 0), 3)
    assert (len(nothing), nothing.column_names[-1]) == (0, "flags"), "a model that built no crystal has a report too"


def test_cif_gives_the_crystal_back(prototypes):
    """Parsed by pymatgen, the CIF has the same atoms, the same structure and the same space group."""
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

    matcher = StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.1)
    seen = set()
    for crystal in prototypes[::4]:
        group, conventional, text = symmetrised(crystal)
        parsed = Structure.from_str(text, fmt="cif")
        assert len(parsed) == len(conventional)
        assert matcher.fit(parsed, crystal.to_structure()), text
        assert parsed.get_space_group_info(symprec=0.01)[1] == group
        seen.add(group)
    assert len(seen) >= 10


def test_cif_of_a_crystal_without_findable_symmetry():
    overlapping = Crystal.of(4 * np.eye(3), [6, 6], [[0, 0, 0], [0, 0, 1e-6]])
    group, conventional, text = symmetrised(overlapping)
    assert group == 1
    assert conventional is overlapping
    assert "'x, y, z'" in text


@pytest.mark.parametrize(
    ("group", "symbol"), [(225, "Fm3\u0305m"), (14, "P2\u2081/c"), (5, "C2"), (8, "Cm"), (62, "Pnma"), (2, "P1\u0305")]
)
def test_symbols_are_typeset(group, symbol):
    assert spacegroup_symbol(group) == symbol


def test_every_element_has_a_place_of_its_own():
    places = {(element.row, element.column) for element in ELEMENTS.values()}
    assert len(places) == len(ELEMENTS) == 118
    assert (ELEMENTS[57].row, ELEMENTS[57].column) == (8, 3)
    assert (ELEMENTS[26].row, ELEMENTS[26].column) == (4, 8)


def test_the_list_does_not_begin_with_what_nobody_believes(prototypes, tmp_path):
    """A new crystal far below a thin hull stands last, says why, and is not in the gallery."""
    from tests.unit.evaluation.conftest import RuleReward

    class Deceived(RuleReward):
        def score(self, crystals):
            found = super().score(crystals)
            found.components["e_above_hull"][:2] = -0.8
            return found

    source = SampleSet.of("tuned", prototypes[10:22])
    table = evaluate_samples(
        [source], Deceived(), Reference.from_crystals([], []), EvaluateConfig(), out=tmp_path, quiet=True
    )
    rows = choose(table, 100).to_pylist()
    assert [row["e_above_hull"] for row in rows[-2:]] == [-0.8, -0.8]
    assert all("below-hull" in [flag["name"] for flag in row["flags"]] for row in rows[-2:])
    write_report(tmp_path / "report.html", table, summarise(table), {}, {})
    data = data_of((tmp_path / "report.html").read_text())
    energies = {c["id"]: c["energy"] for c in data["candidates"]}
    assert data["gallery"]
    assert min(energies[name] for name in data["gallery"]) > -0.1
