"""The agent's interface, driven by a real client of the protocol over a pipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from crystalforge.common.errors import InputError
from crystalforge.tools.mcp import Workbench

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
