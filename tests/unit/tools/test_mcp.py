"""The agent's interface, driven by a real client of the protocol over a pipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from crystalforge.common.errors import InputError
from crystalforge.tools.mcp import Workbench, _tools

mcp = pytest.importorskip("mcp", reason="the extra mcp is not installed")


def test_a_client_lists_the_tools_samples_scores_and_stays_in_its_folder(tmp_path: Path) -> None:
    from mcp.client import Client
    from mcp.client.stdio import StdioServerParameters

    (tmp_path / "outside.cif").write_text("data_x")
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [*["-m", "crystalforge.cli", "mcp", "--most", "5", "--folder"], str(folder)]
    server = StdioServerParameters(command=sys.executable, args=command)

    async def talk() -> dict[str, Any]:
        found: dict[str, Any] = {}
        async with Client(server) as client:
            found["tools"] = [tool.name for tool in (await client.list_tools()).tools]
            wish = {"n": 3, "formula": "NaCl", "spacegroup": 225, "seed": 1, "save": True}
            drawn = found["sample"] = _content(await client.call_tool("sample", wish))
            text = drawn["crystals"][0]["cif"]
            files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.cif"))
            found["score"] = _content(await client.call_tool("score", {"crystals": [text, files[0]]}))
            for name, call in {
                "too many": ("sample", {"n": 6}),
                "outside": ("score", {"crystals": ["../outside.cif"]}),
                "nonsense": ("sample", {"n": 1, "formula": "Xx2"}),
            }.items():
                found[name] = await client.call_tool(*call)
        return found

    found = anyio.run(talk)
    assert found["tools"] == ["sample", "score", "judge", "screen"]
    assert found["sample"]["done"] == 3
    assert found["sample"]["in_time"]
    assert {row["formula"] for row in found["sample"]["crystals"]} == {"NaCl"}
    first, again = found["score"]["crystals"]
    assert first["log_prob"] == pytest.approx(again["log_prob"])
    assert first["log_prob"] < 0
    for name, words in {"too many": "1 to 5 are allowed", "outside": "outside the server", "nonsense": "Xx"}.items():
        assert found[name].is_error
        assert words in found[name].content[0].text


@pytest.mark.timeout(900)
def test_a_screening_by_the_protocol_goes_through_the_funnel_and_ends_by_number_and_time(tmp_path: Path) -> None:
    pytest.importorskip("chgnet")
    from mcp.client import Client
    from mcp.client.stdio import StdioServerParameters

    command = [*["-m", "crystalforge.cli", "mcp", "--most", "16", "--seconds", "600", "--folder"], str(tmp_path)]
    server = StdioServerParameters(command=sys.executable, args=command)
    wish = {"n": 16, "best": 1, "elements": "Na K Cl Br", "spacegroup": 225, "seed": 2}

    async def talk() -> dict[str, Any]:
        async with Client(server) as client:
            found = {"first": await client.call_tool("screen", wish), "again": await client.call_tool("screen", wish)}
            for name, change in {"n": {"n": 17}, "best": {"best": 17}, "model": {"model": "../other"}}.items():
                found[name] = await client.call_tool("screen", wish | change)
        return found

    found = anyio.run(talk)
    first = _content(found["first"])
    assert (first["asked"], first["in_time"]) == (16, True)
    assert first["ended"] in ("the wish is met", "the budget of crystals is spent")
    folder = tmp_path / first["folder"]
    told = json.loads((folder / "funnel.json").read_text())
    assert first["done"] == told["counts"]["drawn"] == 16
    assert told["counts"]["relaxed"] >= len(first["crystals"])
    assert len(list((folder / "cif").glob("*.cif"))) == len(first["crystals"])
    for row in first["crystals"]:
        assert row["cif"].startswith("data_") or "_cell_length_a" in row["cif"]
        assert row["fulfils"] == (row["chgnet_e_above_hull"] <= 0.1)
    assert _content(found["again"]) == first, "asked again it is read, not made anew"
    for name, words in {"n": "1 to 16", "best": "best is 17", "model": "outside the server"}.items():
        assert found[name].is_error
        assert words in found[name].content[0].text


def test_a_screening_without_time_says_so(tmp_path: Path) -> None:
    screen = {tool.__name__: tool for tool in _tools(Workbench(tmp_path, seconds=1e-3))}["screen"]
    found = screen(n=16, best=1, elements="Na Cl")
    assert (found["in_time"], found["crystals"]) == (False, [])
    assert found["ended"] == "the budget of seconds is spent"
    assert found["done"] < 16


def _content(answer: Any) -> dict[str, Any]:
    assert not answer.is_error, answer.content
    return answer.structured_content or json.loads(answer.content[0].text)


def test_time_and_number_are_bounded(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, most=20, seconds=0.0)
    assert [list(piece) for piece in bench.pieces(20)] == [list(range(8))], "the first piece always, then the clock"
    assert sum(len(piece) for piece in Workbench(tmp_path, seconds=1e9).pieces(20)) == 20
    with pytest.raises(InputError, match="20 are allowed"):
        bench.read(["data_x\n"] * 21)
    with pytest.raises(InputError, match="outside"):
        bench.inside("/etc/passwd")
    with pytest.raises(InputError, match="no such folder"):
        Workbench(tmp_path / "none")
