"""The report in a real browser: drawn, quiet, closed to the network, usable by mouse, keyboard and thumb."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.crystal.convert import tokenize_many
from crystalforge.evaluation.config import EvaluateConfig
from crystalforge.evaluation.drawing.samples import SampleSet
from crystalforge.evaluation.evaluate import evaluate_samples
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.evaluation.metrics.summary import summarise
from crystalforge.evaluation.report import write_report
from crystalforge.evaluation.report.pictures import DESKTOP, PHONE, chromium, find_chromium
from crystalforge.rewards.protocol import RewardVersion, Scores, Status

pytestmark = pytest.mark.browser
NO_CHROMIUM = "no Chromium on this machine (apt-get install chromium)"

# Pixels of a canvas; how many different colours it has (an empty one has one).
PIXELS = """
  const copy = document.createElement('canvas');  // reading the canvas itself would change how Chromium draws on it
  [copy.width, copy.height] = [canvas.width, canvas.height];
  const pen = copy.getContext('2d', { willReadFrequently: true });
  pen.drawImage(canvas, 0, 0);
  const data = pen.getImageData(0, 0, copy.width, copy.height).data;
"""
COLOURS = f"""canvas => {{{PIXELS}
  const seen = new Set();
  for (let k = 0; k < data.length; k += 4) seen.add(data[k] << 16 | data[k + 1] << 8 | data[k + 2]);
  return seen.size;
}}"""
# Share of pixels that clearly differ from those of the first call on the page.
CHANGE = f"""canvas => {{{PIXELS}
  window.first ||= data;
  let changed = 0;
  for (let k = 0; k < data.length; k += 4)
    changed += [0, 1, 2].some(c => Math.abs(data[k + c] - window.first[k + c]) > 60);
  return changed / (data.length / 4);
}}"""


class RandomReward:
    """Energies that depend on the crystal alone; every seventh lies far below the hull."""

    version = RewardVersion("random", "0" * 12)

    def score(self, crystals):
        energy = np.array(
            [
                np.nan
                if c is None
                else np.random.default_rng(int(1e4 * c.volume)).gamma(1.0, 0.15)
                - (0.6 if int(c.volume) % 7 == 0 else 0.03)
                for c in crystals
            ]
        )
        status = np.where(np.isnan(energy), int(Status.NOT_BUILT), int(Status.OK)).astype(np.int32)
        return Scores(np.where(np.isnan(energy), -2.0, -np.nan_to_num(energy)), status, {"e_above_hull": energy})


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A report on real crystals posing as samples."""
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("report")
    table = pq.read_table(str(files("crystalforge.data") / "prototypes.parquet"))
    chosen = table.take(np.random.default_rng(0).permutation(len(table))[:120]).to_pylist()
    crystals = [Crystal.of(row["lattice"], row["atomic_numbers"], row["frac_coords"]) for row in chosen]
    found = tokenize_many(crystals)
    tokens, ids = found.tokens, [chosen[k]["id"] for k in found.index]
    reference = Reference.from_tokens(tokens[:40], ids[:40])
    half = np.full(60, -30.0)
    sources = [
        SampleSet.from_tokens("base", tokens[:60], log_prob=half, log_prob_base=half),
        SampleSet.from_tokens("fine-tuned", tokens[30:90], log_prob=half, log_prob_base=half - 2),
    ]
    judged = evaluate_samples(sources, RandomReward(), reference, EvaluateConfig(), out=folder, quiet=True)
    histories = {
        "pretrain": [{"step": k, "train/nll": 40 + 50 / (1 + k), "val/nll": 42 + 50 / (1 + k)} for k in range(20)],
        "finetune": [
            {"step": k, "reward/mean": -1 / (1 + k / 9), "reward/q10": -2.0, "reward/q90": 0.0, "kl/base": k / 20}
            for k in range(40)
        ],
    }
    metadata = {"title": "Crystals under test", "run": {"id": "browser"}, "config": {"seed": 0}}
    write_report(folder / "report.html", judged, summarise(judged), histories, metadata)
    return folder / "report.html"


@pytest.fixture
def shortlist_page(tmp_path) -> Path:
    """The page of a screening, whose energies are a rule's."""
    from crystalforge.screening import report, shortlist
    from crystalforge.screening.funnel import Funnel
    from crystalforge.thermo import HullStore
    from tests.unit.screening.conftest import Here, Rules, config_of, crystal_number

    config = config_of(top=16)
    known = Reference.from_crystals([crystal_number(4)], ["known"])
    (tmp_path / "work").mkdir()
    pool: Any = Here(tmp_path / "work", Rules(), 0)
    funnel = Funnel(tmp_path / "work", config, pool, known, HullStore.open("embedded"), on_progress=lambda funnel: None)
    funnel.run()
    best = shortlist.ranked(funnel.candidates, config)
    table = shortlist.shortlist(best, config, known, {"seed": 0})
    summary = {"title": "New salts", "ended": funnel.ended, "fulfilled": len(best), "counts": dict(funnel.counts)}
    report.write_report(tmp_path / "list.html", best, table, config, summary | {"experiment": {"run": {"seed": 0}}})
    return tmp_path / "list.html"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """The system's Chromium, headless."""
    if find_chromium() is None:
        pytest.skip(NO_CHROMIUM)
    with chromium() as opened:
        yield opened


@pytest.fixture
def visit(browser, report):
    """Opens the report in a window of a given size; afterwards nothing may have been complained about or requested."""
    complaints: list[str] = []
    contexts = []

    def on_request(request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            complaints.append(f"requested {request.url}")

    def go(viewport, file=report, **settings):
        context = browser.new_context(viewport=viewport, accept_downloads=True, offline=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", on_request)
        page.goto(file.as_uri())
        page.wait_for_selector(".candidates tbody tr")
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


def test_figures_and_crystals_are_drawn(visit):
    page = visit(DESKTOP)
    places = page.query_selector_all(".figure")
    assert len(places) >= 7
    for place in places:
        svg = place.query_selector("svg.main-svg")
        assert svg is not None, place.get_attribute("id")
        box = svg.bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert box["height"] > 150
        assert place.query_selector_all(".trace, .hm image, .barlayer path, .scatterlayer path"), place.get_attribute(
            "id"
        )
    canvases = page.query_selector_all(".gallery canvas")
    assert 3 <= len(canvases) <= 12
    assert all(canvas.evaluate(COLOURS) > 50 for canvas in canvases)


def test_the_first_twelve_are_believable_and_say_what_speaks_against_them(visit):
    """None of the cards is farther below the hull than judges err; warnings stand on the card, and in the list."""
    page = visit(DESKTOP)
    data = page.evaluate("JSON.parse(document.getElementById('report-data').textContent)")
    by_id = {candidate["id"]: candidate for candidate in data["candidates"]}
    first = [by_id[name] for name in data["gallery"]]
    cards = page.query_selector_all(".gallery .card")
    rows = page.query_selector_all(".candidates tbody tr")
    assert len(cards) == len(first) == 12
    assert min(candidate["energy"] for candidate in first + data["candidates"][:12]) >= -0.1
    assert sum(len(warnings(candidate)) for candidate in first) > 0
    for candidate, card in zip(first, cards, strict=True):
        assert all(name in card.inner_text() for name in warnings(candidate))
    for candidate, row in zip(data["candidates"], rows, strict=False):
        assert all(name in row.inner_text() for name in warnings(candidate)), candidate["id"]
    low = [candidate for candidate in data["candidates"] if candidate["energy"] < -0.1]
    assert len(low) >= 5
    assert all("below-hull" in warnings(candidate) for candidate in low)


def warnings(candidate: dict) -> list[str]:
    """Names of the flags that are more than a note."""
    return [flag["name"] for flag in candidate["flags"] if flag["level"] != "note"]


def test_view_turns_with_mouse_and_keyboard(visit):
    page = visit(DESKTOP)
    canvas = page.query_selector(".gallery canvas")
    canvas.scroll_into_view_if_needed()
    assert canvas.evaluate(CHANGE) == 0
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 80, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 110, steps=4)
    page.mouse.up()
    assert canvas.evaluate(CHANGE) > 0.05
    canvas.focus()
    page.keyboard.press("0")
    assert canvas.evaluate(CHANGE) < 0.01
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert canvas.evaluate(CHANGE) > 0.05
    page.keyboard.press("0")
    page.keyboard.press("+")
    assert canvas.evaluate(CHANGE) > 0.05
    assert "Arrow keys" in canvas.get_attribute("aria-label")


def test_details_open_by_keyboard_and_close_again(visit):
    page = visit(DESKTOP)
    page.focus(".card button")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open] canvas")
    assert page.query_selector("dialog canvas").evaluate(COLOURS) > 50
    text = page.inner_text("dialog")
    assert "Space group" in text
    assert "Nearest known" in text
    page.keyboard.press("Escape")
    assert not page.query_selector("dialog[open]")


def test_cif_download_is_the_crystal(visit):
    from pymatgen.core import Structure

    page = visit(DESKTOP)
    row = page.query_selector(".candidates tbody tr")
    formula = row.query_selector("th").inner_text().replace("\n", "")
    with page.expect_download() as download:
        row.query_selector("button >> text=CIF").click()
    assert download.value.suggested_filename.endswith(".cif")
    structure = Structure.from_str(Path(download.value.path()).read_text(), fmt="cif")
    assert structure.composition.reduced_formula == formula
    with page.expect_download() as download:
        page.click("#all-csv")
    lines = Path(download.value.path()).read_text().splitlines()
    assert len(lines) - 1 == int(page.inner_text("#count").split()[0])


def test_candidates_sort_filter_and_search(visit):
    page = visit(DESKTOP)

    def column(number: int) -> list[str]:
        cells = page.query_selector_all(f".candidates tbody tr > :nth-child({number})")
        return [cell.inner_text() for cell in cells]

    def energies() -> list[float]:
        return [float(text.replace("\u2212", "-")) for text in column(3)]

    head = page.query_selector(".candidates thead th:nth-child(3)")
    head.query_selector("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert energies() == sorted(energies())
    head.query_selector("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert energies() == sorted(energies(), reverse=True)

    everything = int(page.inner_text("#count").split()[0])
    page.fill("#filters input[name=search]", "O")
    assert 0 < int(page.inner_text("#count").split()[0]) < everything
    oxides = page.evaluate("JSON.parse(document.getElementById('report-data').textContent).candidates"
                           ".filter(c => c.numbers.includes(8)).length")  # fmt: skip
    assert int(page.inner_text("#count").split()[0]) == oxides
    page.fill("#filters input[name=search]", "nothing is called this")
    assert page.query_selector_all(".candidates tbody tr") == []
    page.fill("#filters input[name=search]", "")
    page.fill("#filters input[name=most]", "0.05")
    assert all(energy <= 0.05 for energy in energies())
    page.fill("#filters input[name=most]", "")
    page.check("#filters input[name=sun]")
    assert all("S.U.N." in text for text in column(6))
    page.uncheck("#filters input[name=sun]")
    page.select_option("#filters select[name=model]", "base")
    names = [cell.inner_text().strip() for cell in page.query_selector_all(".candidates thead th")]
    assert set(column(names.index("Model") + 1)) == {"base"}


def test_phone_has_no_sideways_scrolling(visit):
    page = visit(PHONE, device_scale_factor=2, has_touch=True, is_mobile=True)
    wide = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
        " && !e.closest('.skip, thead')).map(e => e.tagName + '.' + e.className)"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], wide
    assert all(canvas.evaluate(COLOURS) > 50 for canvas in page.query_selector_all(".gallery canvas"))
    page.tap(".card button")
    page.wait_for_selector("dialog[open] canvas")
    box = page.query_selector("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    page.tap("dialog .close")


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["laptop", "phone"])
def test_the_page_of_a_screening(visit, shortlist_page, viewport):
    """Flags on every card that has some, each energy on one line, nothing to choose where there is one model."""
    page = visit(viewport, file=shortlist_page)
    data = page.evaluate("JSON.parse(document.getElementById('report-data').textContent)")
    cards = page.query_selector_all(".gallery .card")
    assert len(cards) == 12
    for candidate, card in zip(data["candidates"], cards, strict=False):
        assert all(name in card.inner_text() for name in warnings(candidate))
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    lines = page.evaluate(
        "[...document.querySelectorAll('.candidates td.number span')].map(e => e.getClientRects().length)"
    )
    assert set(lines) == {1}
    assert page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('.scroll'))") <= 1
    assert not page.is_visible("#filters select[name=model]")
    page.click(".card button")
    assert "which took no part" in page.inner_text("dialog")


def test_controls_have_names_and_text_has_contrast(visit):
    page = visit(DESKTOP)
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, select, canvas, a')].filter(e => !(e.getAttribute('aria-label')"
        " || e.innerText.trim() || (e.labels && e.labels.length && e.labels[0].innerText.trim())"
        " || e.closest('.modebar'))).map(e => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    colours = page.evaluate(
        "['h1', '.lede', 'section > p', '.headline small', 'nav a', '.badge', 'footer p'].map(q => {"
        " const e = document.querySelector(q); return [q, getComputedStyle(e).color]; })"
    )
    for name, colour in colours:
        assert contrast(colour) >= 4.5, f"{name}: {contrast(colour):.1f}"


def contrast(colour: str) -> float:
    """WCAG 2 contrast of an `rgb(r, g, b)` colour on white."""
    channels = [int(part) / 255 for part in colour[4:-1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 1.05 / (luminance + 0.05)


def test_pictures_of_a_report_are_of_that_report(browser, report, tmp_path):
    made = subprocess.run(
        [sys.executable, "-m", "crystalforge.evaluation.report.pictures", report, tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout.split() == [str(tmp_path / "report-desktop.png"), str(tmp_path / "report-phone.png")]
    for name, viewport in (("desktop", DESKTOP), ("phone", PHONE)):
        picture = (tmp_path / f"report-{name}.png").read_bytes()
        assert struct.unpack(">II", picture[16:24]) == (viewport["width"], viewport["height"])
        assert len(picture) > 20_000, "an empty page compresses to less"
