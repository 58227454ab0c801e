"""Which pods reach which, as NetworkPolicies say: what a cluster's network makes of them, for the rules that we use.

A connection needs both sides: a policy that lets it out and one that lets it in. A side that no policy selects is open.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec

Object = dict[str, Any]


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    namespace: str
    labels: dict[str, str]
    ports: dict[str, int] = msgspec.field(default_factory=dict)
    """By name."""


def reaches(policies: Iterable[Object], source: Pod, target: Pod, port: int) -> bool:
    everyone = [*policies]
    return _is_open(everyone, "egress", source, target, port) and _is_open(everyone, "ingress", target, source, port)


def reaches_address(policies: Iterable[Object], source: Pod, address: str, port: int) -> bool:
    """Somewhere that is no pod."""
    return _is_open([*policies], "egress", source, address, port)


def _is_open(policies: Sequence[Object], direction: str, at: Pod, other: Pod | str, port: int) -> bool:
    selecting = [
        policy
        for policy in policies
        if direction.capitalize() in policy["spec"]["policyTypes"]
        and policy["metadata"]["namespace"] == at.namespace
        and selects(policy["spec"]["podSelector"], at.labels)
    ]
    if not selecting:
        return True
    listening = other if direction == "egress" else at
    peers = "to" if direction == "egress" else "from"
    return any(
        _is_on(rule.get("ports"), port, listening) and _is_with(rule.get(peers), other, policy["metadata"]["namespace"])
        for policy in selecting
        for rule in policy["spec"].get(direction, ())
    )


def _is_on(ports: Sequence[Object] | None, port: int, listening: Pod | str) -> bool:
    if not ports:
        return True
    names = listening.ports if isinstance(listening, Pod) else {}
    return any(names.get(each["port"], each["port"]) == port for each in ports)


def _is_with(peers: Sequence[Object] | None, other: Pod | str, namespace: str) -> bool:
    return not peers or any(_is_peer(peer, other, namespace) for peer in peers)


def _is_peer(peer: Object, other: Pod | str, namespace: str) -> bool:
    if isinstance(other, str):
        if "ipBlock" not in peer:
            return False
        address, block = ip_address(other), peer["ipBlock"]
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(each) for each in block.get("except", ())
        )
    if "ipBlock" in peer:
        return False
    if "namespaceSelector" in peer:
        is_there = selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace})
    else:
        is_there = other.namespace == namespace
    return is_there and selects(peer.get("podSelector", {}), other.labels)


def selects(selector: Object, labels: dict[str, str]) -> bool:
    for expression in selector.get("matchExpressions", ()):
        is_among = labels.get(expression["key"]) in expression["values"]
        if {"In": is_among, "NotIn": not is_among}[expression["operator"]] is False:
            return False
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
