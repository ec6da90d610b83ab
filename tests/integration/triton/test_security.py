"""Who may do what with the real server: nothing but scoring, and only for those whom it knows."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from crystalforge.integrations.triton.client import RemoteReward
from crystalforge.integrations.triton.connection import ClientConfig
from crystalforge.rewards import RewardUnavailable
from serving.launcher import ServerSecurity, TritonServer
from serving.testing import Authority, crystals, lengths, says_nothing_of, size_reward


def test_administration_is_closed_to_everybody(server: TritonServer) -> None:
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    evil = b"class TritonPythonModel:\n    pass\n"
    with contextlib.closing(triton.InferenceServerClient(server.grpc_url)) as client:
        for attempt in (
            lambda: client.load_model("evil", config='{"backend": "python"}', files={"file:1/model.py": evil}),
            lambda: client.unload_model(server.model),
            lambda: client.get_model_repository_index(),
            lambda: client.update_log_settings({"log_verbose_level": 9}),
            lambda: client.update_trace_settings(server.model, {"trace_level": ["TIMESTAMPS"]}),
            lambda: client.register_system_shared_memory("peek", "/crystalforge-peek", 16),
        ):
            with pytest.raises(InferenceServerException, match="restricted"):
                attempt()
        assert says_nothing_of(server, str(client.get_model_config(server.model)).replace('"model.py"', ""))
        assert says_nothing_of(server, str(client.get_server_metadata()))
    assert not (server.run_dir / "model_repository" / "evil").exists()


def test_loopback_only(server: TritonServer) -> None:
    ports = {int(server.grpc_url.rsplit(":")[-1]), int(server.metrics_url.rsplit(":", 1)[1].split("/")[0])}
    listening = set()
    for line in [*Path("/proc/net/tcp").read_text().splitlines()[1:], *_tcp6()]:
        fields = line.split()
        address, port = fields[1].split(":")
        if fields[3] == "0A" and int(port, 16) in ports:
            listening.add((address.removeprefix("0000000000000000FFFF0000"), int(port, 16)))  # IPv4 seen as IPv6
    assert listening == {("0100007F", port) for port in ports}


def _tcp6() -> list[str]:
    path = Path("/proc/net/tcp6")
    return path.read_text().splitlines()[1:] if path.exists() else []


def refused(server: TritonServer, config: ClientConfig, says: str) -> None:
    with (
        RemoteReward(server.grpc_url, server.model, config=config) as reward,
        pytest.raises(RewardUnavailable, match=says) as caught,
    ):
        reward.score(crystals(1))
    assert says_nothing_of(server, str(caught.value))


def test_tls_and_token(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    certificate, key = ours.issue("server")
    token, wrong = tmp_path / "token", tmp_path / "wrong"
    token.write_text("open-sesame\n")
    wrong.write_text("open-barley\n")
    right = ClientConfig(root_certificate=ours.certificate, token_file=token, patience_s=0)
    security = ServerSecurity(certificate=certificate, key=key, token="open-sesame")
    with TritonServer(
        size_reward(), run_dir=tmp_path / "server", security=security, client=right, watched=False
    ) as server:
        with RemoteReward(server.grpc_url, server.model, config=right) as reward:
            assert np.allclose(reward.score(crystals(5)).values, lengths(5))
        for config, says in [
            (ClientConfig(patience_s=0), "cannot be reached"),
            (ClientConfig(token_file=token, patience_s=0), "cannot be reached"),
            (ClientConfig(root_certificate=ours.certificate, patience_s=0), "token"),
            (ClientConfig(root_certificate=ours.certificate, token_file=wrong, patience_s=0), "token"),
            (ClientConfig(root_certificate=theirs.certificate, token_file=token, patience_s=0), "cannot be reached"),
            (ClientConfig(tls=True, token_file=token, patience_s=0), "cannot be reached"),
        ]:
            refused(server, config, says)
        assert server.statistics().structures == {"ok": 5}


def test_mutual_tls_lets_in_only_clients_with_a_certificate_of_its_authority(tmp_path: Path) -> None:
    """Server and clients may have authorities of their own: each side is told which one it trusts."""
    servers, clients, strangers = (Authority(tmp_path / name) for name in ("servers", "clients", "strangers"))
    certificate, key = servers.issue("server")
    ours, our_key = clients.issue("client")
    forged, forged_key = strangers.issue("client")
    right = ClientConfig(root_certificate=servers.certificate, certificate=ours, key=our_key, patience_s=0)
    security = ServerSecurity(certificate=certificate, key=key, client_ca=clients.certificate)
    with TritonServer(
        size_reward(), run_dir=tmp_path / "server", security=security, client=right, watched=False
    ) as server:
        with RemoteReward(server.grpc_url, server.model, config=right) as reward:
            assert np.allclose(reward.score(crystals(4)).values, lengths(4))
        for wrong in (
            ClientConfig(patience_s=0),
            ClientConfig(root_certificate=servers.certificate, patience_s=0),
            ClientConfig(root_certificate=servers.certificate, certificate=forged, key=forged_key, patience_s=0),
            ClientConfig(root_certificate=servers.certificate, certificate=ours, key=forged_key, patience_s=0),
            ClientConfig(root_certificate=strangers.certificate, certificate=ours, key=our_key, patience_s=0),
        ):
            refused(server, wrong, "cannot be reached")
        assert server.statistics().structures == {"ok": 4}
