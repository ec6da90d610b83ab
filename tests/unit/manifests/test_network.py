"""Who may talk to whom, worked out from the policies as the cluster's network would, and held against a list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

Objects = list[dict[str, Any]]

OURS = "crystalforge"


@dataclass(frozen=True)
class Party:
    """Somebody on the network. Only pods in our namespace are bound by our policies."""

    name: str
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    namespace: str = OURS


def _app(name: str) -> Party:
    return Party(name, {"app.kubernetes.io/name": name})


STEP = {"pipelines.kubeflow.org/v2_component": "true"}
PARTIES = [
    *map(_app, ("rewards", "mlflow", "postgres", "object-store")),
    Party("learner", {"crystalforge.dev/role": "learner"}),
    Party("step", STEP),
    Party("stranger"),
    Party("standalone step", STEP, "kubeflow"),
    Party("pipeline service", {"app": "ml-pipeline"}, "kubeflow"),
    Party("trainer", {"app.kubernetes.io/name": "trainer"}, "kubeflow-system"),
    Party("prometheus", {"app.kubernetes.io/name": "prometheus"}, "monitoring"),
    Party("dns", {"k8s-app": "kube-dns"}, "kube-system"),
    Party("neighbour", {"app.kubernetes.io/name": "rewards"}, "default"),
    Party("API server or internet", {}, "outside"),
]
PORTS = (22, 53, 80, 443, 5000, 5432, 6443, 8001, 8002, 8003, 8080, 8333, 8887, 8888, 9000, 10443, 29400)


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "teach this evaluation the other kinds of selectors"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def _meets(peers: list[dict[str, Any]] | None, other: Party) -> bool:
    """Whether one of a rule's peers is `other`; a rule without peers is about everybody."""
    if not peers:
        return True
    for peer in peers:
        assert set(peer) <= {"podSelector", "namespaceSelector"}, "teach this evaluation about address blocks"
        space = peer.get("namespaceSelector")
        there = (
            other.namespace == OURS
            if space is None
            else _selects(space, {"kubernetes.io/metadata.name": other.namespace})
        )
        if there and _selects(peer.get("podSelector", {}), other.labels):
            return True
    return False


def _allows(policies: Objects, direction: str, party: Party, other: Party, port: int) -> bool:
    """What the policies of `party` say of traffic with `other`: everything when none selects it."""
    if party.namespace != OURS:
        return True
    specs = [policy["spec"] for policy in policies]
    about = [spec for spec in specs if direction in spec["policyTypes"] and _selects(spec["podSelector"], party.labels)]
    if not about:
        return True
    key, peers = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    return any(
        _meets(rule.get(peers), other)
        and (not rule.get("ports") or any(entry["port"] == port for entry in rule["ports"]))
        for spec in about
        for rule in spec.get(key, [])
    )


def flows(objects: Objects) -> set[tuple[str, str, int]]:
    """(from, to, port) of all traffic that passes and touches a pod of ours, name look-ups and API server left out."""
    policies = [item for item in objects if item["kind"] == "NetworkPolicy"]
    assert all(policy["metadata"]["namespace"] == OURS for policy in policies)
    return {
        (one.name, other.name, port)
        for one in PARTIES
        for other in PARTIES
        for port in PORTS
        if OURS in (one.namespace, other.namespace)
        and _allows(policies, "Egress", one, other, port)
        and _allows(policies, "Ingress", other, one, port)
        and not (other.name == "dns" and port == 53)
    }


def _all_ports(one: str, other: str) -> set[tuple[str, str, int]]:
    return {(one, other, port) for port in PORTS}


_OUTSIDE = {
    "API server or internet",
    "trainer",
    "pipeline service",
    "prometheus",
    "dns",
    "neighbour",
    "standalone step",
}
NEEDED = {
    ("learner", "rewards", 8001),
    ("learner", "mlflow", 5000),
    ("learner", "trainer", 10443),
    ("step", "rewards", 8001),
    ("step", "mlflow", 5000),
    ("mlflow", "postgres", 5432),
    *_all_ports("learner", "learner"),  # gradients: the collectives choose their ports
    *(
        ("step", peer, port)
        for peer in ("pipeline service", "standalone step")
        for port in (8080, 8333, 8887, 8888, 9000)
    ),
    *(("step", peer, port) for peer in _OUTSIDE for port in (443, 6443)),  # the API server has no labels to select
}
STORE = {("mlflow", "object-store", 9000)}
STANDALONE = {("standalone step", "rewards", 8001), ("standalone step", "mlflow", 5000)}
SITE = {("prometheus", "rewards", 8002), *{("mlflow", peer, 443) for peer in _OUTSIDE}}


def test_only_the_needed_flows_pass(builds: dict[str, Objects]) -> None:
    assert flows(builds["local"]) == NEEDED | STORE | STANDALONE
    assert flows(builds["kserve"]) == NEEDED | STORE
    # There is no object store of ours here: nothing selects that label but the policies for everybody.
    assert flows(builds["a100"]) == NEEDED | SITE


@pytest.mark.parametrize(
    ("name", "spoil", "opened"),
    [
        ("default-deny", lambda o: o["spec"].update(policyTypes=["Egress"]), ("neighbour", "stranger", 8001)),
        ("rewards", lambda o: o["spec"]["ingress"].append({"ports": [{"port": 8001}]}), ("neighbour", "rewards", 8001)),
        (
            "postgres",
            lambda o: o["spec"]["ingress"][0]["from"].append({"podSelector": {}}),
            ("learner", "postgres", 5432),
        ),
    ],
)
def test_a_hole_in_the_network_policies_is_seen(
    changed: Callable[..., Objects], name: str, spoil: Callable[[dict[str, Any]], Any], opened: tuple[str, str, int]
) -> None:
    objects = changed(spoil, "NetworkPolicy", name)
    if opened[0] == "learner":  # both ends must agree: open the learner's side too
        learner = next(o for o in objects if o["kind"] == "NetworkPolicy" and o["metadata"]["name"] == "learner")
        learner["spec"]["egress"].append({"to": [{"podSelector": {}}]})
    assert opened in flows(objects)
