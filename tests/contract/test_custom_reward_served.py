"""The how-to's example of a reward of one's own, behind the real server, as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serving.launcher import available

ROOT = Path(__file__).resolve().parents[2]
USABLE, REASON = available()
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not USABLE, reason=REASON),
]


def test_the_documented_example_is_served_as_written(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "how-to" / "custom-reward.md").read_text()
    module, local, served = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(module.splitlines()) + len(served.splitlines()) < 30
    for name, content in {"my_rewards.py": module, "local.py": local, "served.py": served}.items():
        (tmp_path / name).write_text(content)
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "served.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"^custom@[0-9a-f]{12} \[\s*(-[\d.]+)\s+-20\.\s*\]$", done.stdout.strip())
    assert found, done.stdout
    sys.path.insert(0, str(tmp_path))
    try:
        from my_rewards import light_and_cheap  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.pop(0)
    from crystalforge.crystal import Crystal

    salt = Crystal.of([[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]], [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert float(found[1]) == pytest.approx(light_and_cheap([salt])[0], abs=1e-6)
