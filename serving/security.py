"""What a reward server asks of its clients, as options of Triton."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from crystalforge.common.errors import InputError

# Locked for everybody: nobody who only wants crystals scored has any business there.
ADMINISTRATION = "model-repository,logging,trace,shared-memory"


@dataclass(frozen=True)
class ServerSecurity:
    """What a client must show. Paths are PEM files.

    certificate and key switch TLS on; client_ca asks clients for a certificate as well (mutual TLS). token is
    a secret that clients send in a header with each call (`ClientConfig.token_file`).
    """

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InputError("TLS needs both a certificate and its key", remedy="give both, or neither")
        if self.client_ca is not None and self.certificate is None:
            raise InputError("mutual TLS needs the server's own certificate", remedy="give certificate and key")

    def arguments(self) -> list[str]:
        """The server's command line options."""
        arguments = [f"--grpc-restricted-protocol={ADMINISTRATION}:admin={secrets.token_urlsafe(32)}"]
        if self.token is not None:
            open_ones = "inference,health,metadata,statistics,model-config"
            arguments.append(f"--grpc-restricted-protocol={open_ones}:crystalforge={self.token}")
        if self.certificate is not None:
            arguments += [
                "--grpc-use-ssl=true",
                f"--grpc-server-cert={self.certificate}",
                f"--grpc-server-key={self.key}",
            ]
        if self.client_ca is not None:
            arguments += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_ca}"]
        return arguments
