"""What each node should be, as operators wrote it, for the sessions that pass it on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import structlog
from google.protobuf.message import DecodeError
from reelmesh.v1 import control_plane_service_pb2 as cp

from control_plane.keys import Keys
from control_plane.store.mirror import ChangeKind, MirrorChange

_log = structlog.get_logger("control_plane.desired")


class DesiredStates:
    """The desired state of every node that has one; others have the default."""

    def __init__(self, *, keys: Keys) -> None:
        self._keys = keys
        self._states: dict[str, cp.DesiredNodeState] = {}
        # Before the first read nobody is told anything: a cordoned node must not hear
        # in between that it is not.
        self.loaded = False
        self._watchers: set[asyncio.Event] = set()

    @contextlib.contextmanager
    def waking(self, wake: asyncio.Event) -> Iterator[None]:
        """Sets ``wake`` at each change while the block runs."""
        self._watchers.add(wake)
        try:
            yield
        finally:
            self._watchers.discard(wake)

    def of(self, node_id: str) -> cp.DesiredNodeState:
        """What the node should be."""
        return self._states.get(node_id) or cp.DesiredNodeState()

    def apply(self, change: MirrorChange) -> None:
        """Takes a change of the store over and wakes the sessions."""
        if change.kind is ChangeKind.SNAPSHOT:
            self._states.clear()
            self.loaded = True
        for kv in change.upserts:
            try:
                state = cp.DesiredNodeState.FromString(kv.value)
            except DecodeError:
                _log.error("a desired state cannot be read; it is left out", key=kv.key)
                continue
            self._states[kv.key.removeprefix(self._keys.desired_states)] = state
        for key in change.deleted_keys:
            self._states.pop(key.removeprefix(self._keys.desired_states), None)
        for wake in self._watchers:
            wake.set()
