"""What answers at an address that is no Kubeflow Pipelines: one message each, and no token goes astray. And sweeps:
no two variants share a folder."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from crystalforge.common.errors import InputError
from crystalforge.config import Config, from_sections
from crystalforge.platform.submit import submit
from pipelines.arguments import variants

TOKEN = "sekret-token-123"


class Login(BaseHTTPRequestHandler):
    """Notes every Authorization that it is sent."""

    seen: list[str | None]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization"))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"looks": "like an answer"}')


@pytest.fixture
def serve() -> Iterator[Callable[[type[BaseHTTPRequestHandler]], int]]:
    servers = []

    def start(handler: type[BaseHTTPRequestHandler]) -> int:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return server.server_address[1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_token_follows_no_redirection(
    serve: Callable[[type[BaseHTTPRequestHandler]], int], tmp_path: Path, status: int, host: str
) -> None:
    login = type("Here", (Login,), {"seen": []})
    there = serve(login)

    class Gateway(Login):
        seen: list[str | None] = []  # noqa: RUF012

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Location", f"http://{host}:{there}/dex/auth?state=hunter2")
            self.end_headers()

    (tmp_path / "token").write_text(TOKEN + "\n")
    with pytest.raises(InputError, match=r"sends us on to http://\S+/dex/auth") as caught:
        submit("ingest", Config(), endpoint=f"http://127.0.0.1:{serve(Gateway)}", token=tmp_path / "token")
    assert login.seen == []
    assert TOKEN not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("http://127.0.0.1:port", "port"),
        ("http://127.0.0.1:99999", ""),
        ("http://[::1", ""),
        ("http://", ""),
        ("ftp://127.0.0.1", r"is no http\(s\) address"),
        ("http://no-such-host.invalid", "cannot be reached"),
        ("http://me:" + "hunter2@127.0.0.1:9", "--token-file"),
    ],
)
def test_addresses_that_are_none(endpoint: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        submit("ingest", Config(), endpoint=endpoint)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.9\r\n", b"", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe"]
)
def test_a_socket_that_speaks_otherwise(answer: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def once() -> None:
        connection, _ = listener.accept()
        connection.recv(1000)
        connection.sendall(answer)
        connection.close()

    threading.Thread(target=once, daemon=True).start()
    with pytest.raises(InputError, match=r"127\.0\.0\.1"):
        submit("ingest", Config(), endpoint=f"http://127.0.0.1:{listener.getsockname()[1]}")
    listener.close()


@pytest.mark.parametrize("content", [None, b"", b"two words", b"\xff\xfe\x00"])
def test_token_files_that_hold_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "token"
    path.mkdir() if content is None else path.write_bytes(content)
    for file in (path, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"token|absent"):
            submit("ingest", Config(), endpoint="http://127.0.0.1:9", token=file)


@pytest.mark.parametrize("taus", [[0.1234567, 0.1234568], [1e-7, 2e-7], [1.0, 1.0000001], [100000.5, 100000.25]])
def test_variants_that_differ_have_folders_that_differ(taus: list[float]) -> None:
    found = variants(Config(), "w", taus, [0, 1], ["ppo", "rloo"])
    assert len({variant["workspace"] for variant in found}) == len(found) == 8
    assert [json.loads(variant["finetune_config"])["tau"] for variant in found[::2]] == 2 * taus


@pytest.mark.parametrize(
    ("given", "said"),
    [({"taus": [0.1, 0.10]}, "--tau: 0.1 is given twice"), ({"seeds": [1, 2, 1]}, "--seed: 1 is given twice"),
     ({"algorithms": ["ppo", "ppo"]}, "--algorithm: 'ppo' is given twice")],
)  # fmt: skip
def test_what_is_given_twice_is_refused(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        submit("sweep", Config(), output=tmp_path / "sweep.yaml", **given)


def test_runs_of_a_study_that_would_share_a_folder_are_refused() -> None:
    for study in (
        [{"name": "a", "seeds": [0, 0]}],
        [{"name": "a"}, {"name": "a"}],
        [{"name": "a", "seeds": [1]}, {"name": "a", "seeds": [2, 1]}],
    ):
        with pytest.raises(InputError, match="would share the folder 'a-"):
            from_sections(study=study)
    assert len(from_sections(study=[{"name": "a", "seeds": [0, 1]}, {"name": "b"}]).study) == 2
