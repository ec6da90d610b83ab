"""The Service of the rewards is headless, so that a client sees every replica: it must then use them all."""

from __future__ import annotations

from concurrent import futures
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from crystalforge.integrations.triton.client import RemoteReward
from crystalforge.integrations.triton.connection import ClientConfig
from crystalforge.rewards import RewardUnavailable


class Replica(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A server that answers every request with an error of its own, and counts."""

    def __init__(self) -> None:
        self.asked = 0

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.asked += 1
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "only counting")
        return service_pb2.ModelInferResponse()


def test_a_client_uses_every_replica() -> None:
    replicas = [Replica(), Replica()]
    servers, ports = [], []
    for replica in replicas:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(replica, server)
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        server.start()
        servers.append(server)
    # Two addresses under one name, as the cluster's names give them for a headless Service.
    address = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    try:
        with RemoteReward(address, "ehull", config=ClientConfig(patience_s=0.0)) as reward:
            for _ in range(40):
                with pytest.raises(RewardUnavailable, match="only counting"):
                    reward.probe()
    finally:
        for server in servers:
            server.stop(None)
    assert sum(replica.asked for replica in replicas) == 40
    assert min(replica.asked for replica in replicas) >= 10, [replica.asked for replica in replicas]
