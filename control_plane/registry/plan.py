"""Which node of a region should have which weights, and from whom. Pure.

What holds of every plan:

- A node is told of exactly the versions whose orders name it.
- Whoever lacks a version may ask the nodes that have it, and those that are getting it.
- Of the nodes that lack a version one may go to its source, so that a region draws about one
  copy. As soon as that node has it, has failed or is gone, it is another one's turn: nobody waits
  for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import registry_pb2 as reg

MAX_PEERS: Final = 8

_FETCHING: Final = (reg.WEIGHTS_STATE_FETCHING, reg.WEIGHTS_STATE_WAITING)

Plan = Mapping[str, tuple[reg.WantedWeights, ...]]


def plan(
    wanted: Iterable[tuple[reg.PrefetchOrder, reg.RegisteredModel]],
    nodes: Sequence[cp.NodeRecord],
    *,
    region: str,
) -> Plan:
    """What each node is told, by node id; nodes that are told of nothing are left out.

    Args:
        wanted: The standing orders with their versions, in the order to fetch them in.
        nodes: The region's fleet.
        region: Its name.
    """
    told: dict[str, list[reg.WantedWeights]] = {}
    fleet = sorted(nodes, key=lambda node: node.node_id)
    for order, model in wanted:
        if order.regions and region not in order.regions:
            continue
        chosen = [n for n in fleet if not order.node_ids or n.node_id in order.node_ids]
        states = {node.node_id: _state(node, model.manifest_sha256) for node in fleet}
        origin_id = _may_use_origin(chosen, states, model.manifest_sha256)
        holders = _holders(fleet, states)
        for node in chosen:
            entry = reg.WantedWeights(model=model)
            if states[node.node_id] != reg.WEIGHTS_STATE_VERIFIED:
                entry.peers.extend(_peers(node, holders, model.manifest_sha256))
                entry.may_use_origin = node.node_id == origin_id
            told.setdefault(node.node_id, []).append(entry)
    return {node_id: tuple(entries) for node_id, entries in told.items()}


def _state(node: cp.NodeRecord, digest: str) -> int:
    for status in node.weights:
        if status.manifest_sha256 == digest:
            return status.state
    return reg.WEIGHTS_STATE_UNSPECIFIED


def _may_use_origin(
    nodes: Sequence[cp.NodeRecord], states: Mapping[str, int], digest: str
) -> str | None:
    """The node that may go to the source; those that failed come last."""
    lacking = [n for n in nodes if states[n.node_id] != reg.WEIGHTS_STATE_VERIFIED]
    if not lacking:
        return None
    return min(
        (
            states[node.node_id] == reg.WEIGHTS_STATE_FAILED,
            _draw(digest, node.node_id),
            node.node_id,
        )
        for node in lacking
    )[-1]


def _holders(
    nodes: Sequence[cp.NodeRecord], states: Mapping[str, int]
) -> tuple[list[str], list[str]]:
    """Addresses of the nodes that have it whole, and of those that have parts of it."""
    whole = [n.address for n in nodes if states[n.node_id] == reg.WEIGHTS_STATE_VERIFIED]
    parts = [n.address for n in nodes if states[n.node_id] in _FETCHING]
    return whole, parts


def _peers(
    node: cp.NodeRecord, holders: tuple[Sequence[str], Sequence[str]], digest: str
) -> list[str]:
    """Whom a node may ask; nodes begin at different ones, and each always at the same."""
    peers: list[str] = []
    turn = int(_draw(digest, node.node_id)[:8], 16)
    for addresses in holders:
        begin = turn % len(addresses) if addresses else 0
        for address in (*addresses[begin:], *addresses[:begin]):
            if len(peers) == MAX_PEERS:
                return peers
            if address != node.address:
                peers.append(address)
    return peers


def _draw(digest: str, node_id: str) -> str:
    """A number that differs from version to version, so that the work is spread."""
    return hashlib.sha256(f"{digest}/{node_id}".encode()).hexdigest()
