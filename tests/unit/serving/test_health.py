"""What the launcher tells of its server, without a server: each answer by what is known at that moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError

import pytest

from serving import health
from serving.health import LIVE, READY, Health, HealthEndpoint, ask
from serving.watch import PROBE_S


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(health, "time", found)
    return found


def test_only_a_fresh_golden_value_and_living_workers_are_healthy(clock: Clock) -> None:
    gone: list[str] = []
    state = Health(lambda: gone[0] if gone else None)
    assert "starting" in str(state.ready().problem)
    assert state.live().healthy, "a start takes its time"
    state.proved()
    clock.now += 3 * PROBE_S
    assert state.ready() == health.Report(True, 3 * PROBE_S, None), "two canaries in a row may come late"
    clock.now += PROBE_S
    late = state.ready()
    assert not late.healthy
    assert "has not got its golden value for 40 s" in str(late.problem)
    assert state.live().healthy, "the launcher is about to mend it"
    state.proved()
    gone.append("1 of 2 workers died")
    assert (state.ready().healthy, state.ready().problem) == (False, "1 of 2 workers died")
    assert state.live().healthy
    gone.clear()
    state.starts()
    assert "starting" in str(state.ready().problem), "what the server before it proved does not count"
    assert state.live().healthy


def test_a_launcher_that_gave_up_or_does_nothing_is_not_live(clock: Clock) -> None:
    state = Health(lambda: None, hung_s=900)
    state.proved()
    clock.now += 899
    assert state.live().healthy
    clock.now += 2
    assert "did not mend it" in str(state.live().problem)
    state.proved()
    state.gave_up("giving up: it died 6 times")
    assert state.live().problem == state.ready().problem == "giving up: it died 6 times"


def test_over_http() -> None:
    state = Health(lambda: None)
    with HealthEndpoint(state) as endpoint:
        assert ask(endpoint.url + READY).golden_age_s is None
        state.proved()
        answer = ask(endpoint.url + READY)
        assert answer.healthy
        assert answer.golden_age_s is not None
        assert answer.golden_age_s < 5
        assert ask(endpoint.url + LIVE).healthy
        with pytest.raises(HTTPError, match="404"):
            ask(endpoint.url + "/model_repository")
    with pytest.raises(OSError, match="refused"):
        ask(endpoint.url + READY)


def test_asking_the_launcher_imports_nothing_of_the_stack(tmp_path: Path) -> None:
    """The difference between milliseconds and a second of CPU, at every call of a container's health check."""
    program = (
        "import sys; from serving.probe import main; code = main(['--run-dir', sys.argv[1]]); "
        "print(code, sorted({'numpy', 'torch', 'crystalforge', 'grpc', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "1 []"
    assert "no server yet" in done.stderr
