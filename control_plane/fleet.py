"""The fleet as this replica knows it, with the recent changes that watchers resume from."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterable
from typing import TypeVar

import structlog
from google.protobuf.message import DecodeError
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import model_pb2, node_pb2

from control_plane.keys import Keys
from control_plane.store.mirror import ChangeKind, MirrorChange
from control_plane.store.port import KeyValue

_log = structlog.get_logger("control_plane.fleet")

HISTORY_LENGTH = 1024

M = TypeVar("M", cp.NodeRecord, model_pb2.ModelInfo, cp.GatewayHello)


class FleetView:
    """Nodes and models at one version; versions are the store's revisions.

    It is filled by :meth:`apply` and read by any number of watchers. None of them has
    a queue: each asks for what came :meth:`since` its version, and gets it as one delta,
    so that a burst of changes costs a watcher few messages; one that was too slow for the
    bounded history is given a snapshot.
    """

    def __init__(self, *, keys: Keys, history_length: int = HISTORY_LENGTH) -> None:
        # 0 until the store was read for the first time.
        self.version = 0
        self._keys = keys
        self._nodes: dict[str, cp.NodeRecord] = {}
        # Asked for by every node's health watch at every tick: counted once.
        self._ready: set[str] = set()
        self._models: dict[str, model_pb2.ModelInfo] = {}
        self._gateways: dict[str, cp.GatewayHello] = {}
        self._history: deque[tuple[int, cp.FleetDelta]] = deque()
        self._history_length = history_length
        # The history holds every change after this version.
        self._floor = 0
        # Watchers tend to be at the same version: what one is told is kept for the others.
        self._told: dict[int, cp.WatchFleetResponse] = {}
        # Rises when what watchers know is void.
        self.epoch = 0
        self._changed = asyncio.Event()

    @property
    def nodes(self) -> Collection[cp.NodeRecord]:
        """Every node's record; not to be changed."""
        return self._nodes.values()

    @property
    def gateways(self) -> Collection[cp.GatewayHello]:
        """Every live gateway's hello; not to be changed."""
        return self._gateways.values()

    @property
    def node_count(self) -> int:
        """Nodes in the fleet, whatever their state."""
        return len(self._nodes)

    @property
    def ready_node_count(self) -> int:
        """Nodes that take work."""
        return len(self._ready)

    def unnamed_models(self) -> set[str]:
        """Digests of the model infos that no node's record names."""
        named = {model.manifest_sha256 for node in self._nodes.values() for model in node.models}
        return self._models.keys() - named

    def apply(self, change: MirrorChange) -> None:
        """Takes a change of the store over and wakes the watchers."""
        if change.kind is ChangeKind.SNAPSHOT:
            self._nodes.clear()
            self._ready.clear()
            self._models.clear()
            self._gateways.clear()
            self._history.clear()
            self._floor = change.revision
            self.epoch += 1
        delta = self._take(change)
        self.version = change.revision
        self._told.clear()
        if change.kind is ChangeKind.DELTA and delta.ByteSize() > 0:
            self._remember(change.revision, delta)
        self.wake()

    def wake(self) -> None:
        """Lets every watcher look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def snapshot(self) -> cp.WatchFleetResponse:
        """The whole fleet."""
        snapshot = cp.FleetSnapshot(
            nodes=self._nodes.values(),
            models=self._models.values(),
            gateways=self._gateways.values(),
        )
        return cp.WatchFleetResponse(version=self.version, snapshot=snapshot)

    def since(self, version: int) -> cp.WatchFleetResponse | None:
        """What came after a version as one delta, or None where only a snapshot will do.

        The delta is empty where nothing changed. It is shared: not to be changed.
        """
        if not self._floor <= version <= self.version:
            return None
        told = self._told.get(version)
        if told is None:
            told = self._told[version] = cp.WatchFleetResponse(
                version=self.version, delta=self._merged(version)
            )
        return told

    def _merged(self, version: int) -> cp.FleetDelta:
        newer = []
        for at, delta in reversed(self._history):
            if at <= version:
                break
            newer.append(delta)
        if len(newer) == 1:
            return newer[0]
        return _merge(reversed(newer))

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change, a new one for each; take it before looking."""
        return self._changed

    async def wait_until(self, version: int) -> None:
        """Returns when the view has reached the version."""
        while self.version < version:
            await self._changed.wait()

    def _remember(self, version: int, delta: cp.FleetDelta) -> None:
        self._history.append((version, delta))
        while len(self._history) > self._history_length:
            self._floor, _ = self._history.popleft()

    def _count(self, node: cp.NodeRecord) -> None:
        if node.state == node_pb2.NODE_STATE_READY:
            self._ready.add(node.node_id)
        else:
            self._ready.discard(node.node_id)

    def _take(self, change: MirrorChange) -> cp.FleetDelta:
        delta = cp.FleetDelta()
        for kv in change.upserts:
            if kv.key.startswith(self._keys.nodes):
                node = _decoded(cp.NodeRecord(), kv)
                if node is not None and self._nodes.get(node.node_id) != node:
                    self._nodes[node.node_id] = node
                    self._count(node)
                    delta.upserted_nodes.append(node)
            elif kv.key.startswith(self._keys.models):
                model = _decoded(model_pb2.ModelInfo(), kv)
                if model is not None and self._models.get(model.manifest_sha256) != model:
                    self._models[model.manifest_sha256] = model
                    delta.upserted_models.append(model)
            elif kv.key.startswith(self._keys.gateways):
                gateway = _decoded(cp.GatewayHello(), kv)
                if gateway is not None and self._gateways.get(gateway.gateway_id) != gateway:
                    self._gateways[gateway.gateway_id] = gateway
                    delta.upserted_gateways.append(gateway)
        for key in change.deleted_keys:
            if key.startswith(self._keys.nodes):
                node_id = key.removeprefix(self._keys.nodes)
                if self._nodes.pop(node_id, None) is not None:
                    self._ready.discard(node_id)
                    delta.removed_node_ids.append(node_id)
            elif key.startswith(self._keys.models):
                self._models.pop(key.removeprefix(self._keys.models), None)
            elif key.startswith(self._keys.gateways):
                gateway_id = key.removeprefix(self._keys.gateways)
                if self._gateways.pop(gateway_id, None) is not None:
                    delta.removed_gateway_ids.append(gateway_id)
        return delta


def _merge(deltas: Iterable[cp.FleetDelta]) -> cp.FleetDelta:
    """Deltas, oldest first, as one that leads to the same fleet."""
    nodes: dict[str, cp.NodeRecord | None] = {}
    gateways: dict[str, cp.GatewayHello | None] = {}
    models: dict[str, model_pb2.ModelInfo] = {}
    for delta in deltas:
        nodes.update((node.node_id, node) for node in delta.upserted_nodes)
        nodes.update((node_id, None) for node_id in delta.removed_node_ids)
        gateways.update((gateway.gateway_id, gateway) for gateway in delta.upserted_gateways)
        gateways.update((gateway_id, None) for gateway_id in delta.removed_gateway_ids)
        models.update((model.manifest_sha256, model) for model in delta.upserted_models)
    return cp.FleetDelta(
        upserted_nodes=[node for node in nodes.values() if node is not None],
        removed_node_ids=[node_id for node_id, node in nodes.items() if node is None],
        upserted_models=models.values(),
        upserted_gateways=[each for each in gateways.values() if each is not None],
        removed_gateway_ids=[each for each, gateway in gateways.items() if gateway is None],
    )


def _decoded(message: M, kv: KeyValue) -> M | None:
    """The record, or None for one that cannot be read: it must not stop the others."""
    try:
        message.ParseFromString(kv.value)
    except DecodeError:
        _log.error("a record cannot be read; it is left out", key=kv.key)
        return None
    return message
