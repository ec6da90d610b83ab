"""One connection to a reward server: its settings, how it is opened, and what its errors mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from crystalforge.common.errors import InputError

if TYPE_CHECKING:
    import tritonclient.grpc as triton

TOKEN_HEADER = "triton-grpc-protocol-crystalforge"  # Triton's prefix for restricted protocols, and our key
CONNECT_S = 5.0  # for one attempt; gRPC's own 20 s would find a node that came back that much later
MESSAGE_LIMIT = 256 * 2**20  # bytes; a chunk of 4,096 atoms takes 0.2 MB


class ClientConfig(BaseModel):
    """How to talk to a reward server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chunk_structures: int = Field(default=64, ge=1, description="crystals in one request, at most")
    chunk_atoms: int = Field(
        default=4096, ge=1, description="atoms in one request, at most (a larger crystal goes alone)"
    )
    in_flight: int | None = Field(default=None, ge=1, description="requests under way at once; default: one per worker")
    deadline_s: float = Field(default=120.0, gt=0, description="seconds that one request may take, queueing included")
    patience_s: float = Field(default=60.0, ge=0, description="seconds to wait for a server that is away to come back")
    tls: bool = Field(default=False, description="encrypt the connection; implied by a root certificate")
    root_certificate: Path | None = Field(default=None, description="PEM of the authority that signed the server")
    certificate: Path | None = Field(default=None, description="PEM with this client's certificate (mutual TLS)")
    key: Path | None = Field(default=None, description="PEM with this client's key (mutual TLS)")
    token_file: Path | None = Field(default=None, description="file with the secret that the server asks for")
    connection_age_s: float = Field(
        default=300.0, gt=0, description="seconds after which a connection is renewed: new replicas are found then"
    )

    @model_validator(mode="after")
    def _pairs(self) -> ClientConfig:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("mutual TLS needs both certificate and key")
        return self


def close_all(clients: list[triton.InferenceServerClient]) -> None:
    """Close connections and forget them."""
    for client in clients:
        client.close()
    clients.clear()


def connect(url: str, config: ClientConfig) -> triton.InferenceServerClient:
    """A connection of its own; InputError when a file of certificates is missing."""
    import tritonclient.grpc as triton

    host = url.rsplit(":", 1)[0]
    arguments = [  # they replace the client's defaults, so everything that matters is said here
        ("grpc.max_send_message_length", MESSAGE_LIMIT),
        ("grpc.max_receive_message_length", MESSAGE_LIMIT),
        ("grpc.keepalive_time_ms", 60_000),  # more often would be taken for an attack by the server's defaults
        ("grpc.keepalive_timeout_ms", 20_000),
        # How long an attempt to connect may take, whatever its name says. Within the deadline of a request, so that a
        # node that does not answer at all shows as "cannot be reached", which is waited for.
        ("grpc.min_reconnect_backoff_ms", int(1000 * min(CONNECT_S, config.deadline_s / 2))),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # One connection per client: a dropped one is really new afterwards.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.lb_policy_name", "round_robin"),  # a headless Service has an address for each replica: use them all
        ("grpc.enable_http_proxy", int(host not in ("localhost", "127.0.0.1", "[::1]"))),
    ]
    return triton.InferenceServerClient(
        url,
        ssl=config.tls or config.root_certificate is not None,
        root_certificates=_path(config.root_certificate),
        private_key=_path(config.key),
        certificate_chain=_path(config.certificate),
        channel_args=arguments,
    )


def _path(path: Path | None) -> str | None:
    if path is None:
        return None
    if not path.is_file():
        raise InputError("no such file", source=path, remedy="correct the path in the client's configuration")
    return str(path)


def headers(config: ClientConfig) -> Mapping[str, str]:
    """What goes along with each request; InputError when a file named in `config` is missing."""
    for path in (config.root_certificate, config.certificate, config.key):
        _path(path)
    path = _path(config.token_file)
    return {TOKEN_HEADER: Path(path).read_text().strip()} if path is not None else {}


def diagnose(error: Any, deadline_s: float, *, served_before: bool) -> tuple[str, bool]:
    """What an error means, in words, and whether waiting may cure it."""
    status, text = str(error.status() or ""), str(error.message() or "")
    if "UNAVAILABLE" in status:
        if "restricted" in text:
            return "refuses this client: the token is missing or wrong (token_file)", False
        # Not "handshake": gRPC calls the end of a connection that times out "tcp handshaker shutdown".
        if any(word in text for word in ("SSL", "TLS", "ertificate")):
            return (
                f"cannot be reached safely: {safe(error)} (tls, root_certificate, certificate, key)",
                False,
            )
        return "cannot be reached", True
    if "DEADLINE_EXCEEDED" in status or "Request timeout expired" in text:
        return f"did not answer within the deadline of {deadline_s:g} s (deadline_s, chunk_structures)", False
    if "RESOURCE_EXHAUSTED" in status:
        return f"refuses the size of the message: {safe(error)} (chunk_structures, chunk_atoms)", False
    if "NOT_FOUND" in status or "unknown model" in text:
        return "does not serve this model", served_before  # a server that is stopping loses its models first
    if "INTERNAL" in status and "Stub process" in text:
        return f"lost a worker process: {safe(error)}", True
    return f"refused the request: {safe(error)}", False


def safe(error: Any) -> str:
    """First line of an error's text, of bounded length."""
    return (str(error.message() or error).strip().splitlines() or [""])[0][:300].rstrip(".")
