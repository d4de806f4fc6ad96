"""How each node's state changed, and what is left of nodes that are gone.

The region's leader writes it from what the store shows, each write under its fence. It
compares every record with the newest event of its history and writes the difference, so
that a leader that takes over neither repeats what the one before it wrote nor misses the
state that it left: at most a state that came and went in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import structlog
from google.protobuf.message import DecodeError
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import node_pb2
from reelmesh.v1 import operator_service_pb2 as op
from reelmesh.v1.node_pb2 import NodeState

from control_plane.election import Leadership
from control_plane.health.shares import believable_losses
from control_plane.keys import Keys
from control_plane.records import decoded_node, encode_node
from control_plane.store.mirror import ChangeKind, Mirror, MirrorChange
from control_plane.store.port import Delete, Op, Put, Store, unchanged
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

_log = structlog.get_logger("control_plane.history")

MAX_EVENTS = 64
# 64 events with such reasons stay below the store's limit for a record.
MAX_REASON_BYTES = 192
KEEP_GONE_S = 24 * 3600.0
SWEEP_EVERY_S = 600.0
TICK_S = 0.5
# Of a lease's time: how long a loss is looked at before it is called one. Leases that are
# lost together run out within a third of their time of one another.
SETTLE_SHARE = 0.5
MAX_WRITES_AT_ONCE = 16
MAX_WRITE_TRIES = 5
PAGE_SIZE = 64

READY = node_pb2.NODE_STATE_READY
DRAINING = node_pb2.NODE_STATE_DRAINING
LOST = node_pb2.NODE_STATE_LOST
# In a history: gone, without its being called lost.
GONE = node_pb2.NODE_STATE_UNSPECIFIED
_NO_FALL = (READY, DRAINING, node_pb2.NODE_STATE_CORDONED, GONE)


def appended(
    history: op.NodeHistory, *, to: NodeState.ValueType, reason: str, at_s: float
) -> op.NodeHistory:
    """The history with one more event and the oldest beyond 64 left out."""
    new = op.NodeHistory()
    new.CopyFrom(history)
    event = op.NodeEventRecord(to=to, reason=_shortened(reason))
    event.at.FromNanoseconds(int(at_s * 1e9))
    # "from" is a keyword of Python: the field can only be set by name.
    setattr(event, "from", last_state(history))
    new.events.append(event)
    del new.events[:-MAX_EVENTS]
    return new


def last_state(history: op.NodeHistory) -> NodeState.ValueType:
    """The state that the newest event leads to; unspecified where there is none."""
    return history.events[-1].to if history.events else GONE


def falls_ago_s(value: bytes, *, now_s: float, within_s: float) -> list[float]:
    """How long ago a node fell from READY, for each time within ``within_s``.

    Args:
        value: Its history as stored.
        now_s: Wall time.
        within_s: How far to look back.
    """
    ages_s = []
    for event in _decoded(value).events:
        age_s = now_s - event.at.ToNanoseconds() / 1e9
        if getattr(event, "from") == READY and event.to not in _NO_FALL and 0 <= age_s <= within_s:
            ages_s.append(age_s)
    return ages_s


@dataclasses.dataclass(frozen=True, slots=True)
class _Last:
    """The newest event of a history."""

    state: NodeState.ValueType
    at_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HistoryKeeper:
    """A duty of the region's leader: see the module."""

    store: Store
    keys: Keys
    clock: Clock
    lease_ttl_s: float
    """Of the nodes' leases."""
    max_share: float
    """Of the nodes that may vanish within one lease and be called lost."""
    relist_s: float
    """As for :class:`~control_plane.store.mirror.Mirror`."""

    async def keep(self, reign: Leadership) -> None:
        """Writes histories for as long as the reign lasts.

        Raises:
            NotLeaderError: It is over.
            StoreError: The store is away: begin anew.
        """
        await _Reign(self, reign).run()


class _Reign:
    """One reign's work; begins with what the store holds."""

    def __init__(self, keeper: HistoryKeeper, reign: Leadership) -> None:
        self._keeper = keeper
        self._reign = reign
        self._last: dict[str, _Last] = {}
        self._present: dict[str, bytes] = {}
        # Monotonic times of losses: of those that are looked at, and of those judged.
        self._vanished_s: dict[str, float] = {}
        self._judged_s: dict[str, float] = {}
        # The mirror's changes and the clock's ticks never work at the same time.
        self._turn = asyncio.Lock()
        self._swept_s = float("-inf")

    async def run(self) -> None:
        await self._load()
        async with TaskScope("histories") as scope:
            # Not fatal: that the reign is over, or the store away, is no failure to log.
            works = (self._follow(), self._tick_on())
            tasks = [scope.spawn(work, name="history", fatal=False) for work in works]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _load(self) -> None:
        # Page by page and only the newest event of each: all of them would fill the memory.
        prefix, after = self._keeper.keys.histories, None
        while True:
            page = await self._keeper.store.range(prefix, after=after, limit=PAGE_SIZE)
            for kv in page.items:
                self._note(kv.key.removeprefix(prefix), _decoded(kv.value))
            if not page.more:
                return
            after = page.items[-1].key

    async def _follow(self) -> None:
        keeper = self._keeper
        mirror = Mirror(
            keeper.store, keeper.keys.nodes, clock=keeper.clock, relist_s=keeper.relist_s
        )
        async with contextlib.aclosing(mirror.changes()) as changes:
            async for change in changes:
                async with self._turn:
                    await self._take(change)

    async def _take(self, change: MirrorChange) -> None:
        prefix, now_s = self._keeper.keys.nodes, self._keeper.clock.monotonic()
        gone = {key.removeprefix(prefix) for key in change.deleted_keys}
        before = self._present
        if change.kind is ChangeKind.SNAPSHOT:
            known = {node for node, last in self._last.items() if last.state not in (LOST, GONE)}
            gone = (known | before.keys()) - {kv.key.removeprefix(prefix) for kv in change.upserts}
        work: list[Callable[[], Awaitable[None]]] = []
        for kv in change.upserts:
            node_id = kv.key.removeprefix(prefix)
            self._vanished_s.pop(node_id, None)
            work.append(partial(self._seen, node_id, kv.value, before.get(node_id)))
            self._present[node_id] = kv.value
        for node_id in sorted(gone):
            self._present.pop(node_id, None)
            self._vanished_s[node_id] = now_s
            work.append(partial(self._check_goodbye, node_id))
        await _all(work)

    async def _seen(self, node_id: str, value: bytes, before: bytes | None) -> None:
        """A record was written: is it news?"""
        record = decoded_node(value)
        if record is None:
            return
        last = self._last.get(node_id)
        old = decoded_node(before) if before is not None else None
        restarted = old is not None and old.incarnation != record.incarnation
        if last is not None and last.state == record.state and not restarted:
            return
        now_s = self._keeper.clock.wall()
        reason, at_s, also = record.reason, now_s, list[Op]()
        if last is None or last.state in (LOST, GONE):
            also.append(Delete(self._keeper.keys.departed(node_id)))
            if last is not None:
                reason = "; ".join(filter(None, ("back", reason)))
        elif record.HasField("state_since"):
            at_s = min(max(last.at_s, record.state_since.ToNanoseconds() / 1e9), now_s)
        if restarted:
            reason = "; ".join(filter(None, ("its agent was started anew", reason)))
        await self._write(
            node_id, record.state, reason, at_s=at_s, also=also, even_if_same=restarted
        )

    async def _check_goodbye(self, node_id: str) -> None:
        """A record is gone: did its node say goodbye?"""
        key = self._keeper.keys.departed(node_id)
        found = await self._keeper.store.get(key)
        left = decoded_node(found.value) if found is not None else None
        if left is not None and left.state == DRAINING:
            self._vanished_s.pop(node_id, None)
            now_s = self._keeper.clock.wall()
            await self._write(node_id, GONE, left.reason, at_s=now_s, also=[Delete(key)])

    async def _tick_on(self) -> None:
        while True:
            await self._keeper.clock.sleep(TICK_S)
            async with self._turn:
                await self._judge_losses()
                await self._sweep()

    async def _judge_losses(self) -> None:
        keeper, now_s = self._keeper, self._keeper.clock.monotonic()
        due = [
            n
            for n, at_s in self._vanished_s.items()
            if now_s - at_s >= keeper.lease_ttl_s * SETTLE_SHARE
        ]
        if not due:
            return
        self._judged_s = {
            node: at_s
            for node, at_s in self._judged_s.items()
            if now_s - at_s <= 2 * keeper.lease_ttl_s and node not in self._vanished_s
        }
        together = {**self._judged_s, **self._vanished_s}
        believed = believable_losses(
            together,
            present=len(self._present),
            window_s=keeper.lease_ttl_s,
            max_share=keeper.max_share,
        )
        for node_id in due:
            await self._lose(
                node_id, believed=node_id in believed, together=len(together), now_s=now_s
            )
            self._judged_s[node_id] = self._vanished_s.pop(node_id)

    async def _lose(self, node_id: str, *, believed: bool, together: int, now_s: float) -> None:
        keeper = self._keeper
        if believed:
            state, reason = LOST, "its lease ran out without a goodbye"
        else:
            of = together + len(self._present)
            state, reason = GONE, f"vanished with {together} of {of} nodes at once; may be at work"
        at_s = keeper.clock.wall() - (now_s - self._vanished_s[node_id])
        left = cp.NodeRecord(node_id=node_id, state=state, reason=reason)
        left.state_since.FromNanoseconds(int(at_s * 1e9))
        key = keeper.keys.departed(node_id)
        _log.warning("node lost" if believed else "node vanished with many", node=node_id)
        await self._write(node_id, state, reason, at_s=at_s, also=[Put(key, encode_node(left))])

    async def _sweep(self) -> None:
        """Forgets nodes that have been gone for a day."""
        now_s = self._keeper.clock.monotonic()
        if now_s - self._swept_s < SWEEP_EVERY_S:
            return
        self._swept_s = now_s
        oldest_s = self._keeper.clock.wall() - KEEP_GONE_S
        keys = self._keeper.keys
        for node_id, last in list(self._last.items()):
            if last.state in (LOST, GONE) and last.at_s < oldest_s:
                ops = [Delete(keys.history(node_id)), Delete(keys.departed(node_id))]
                await self._reign.txn([], ops)
                del self._last[node_id]

    async def _write(
        self,
        node_id: str,
        to: NodeState.ValueType,
        reason: str,
        *,
        at_s: float,
        also: Sequence[Op] = (),
        even_if_same: bool = False,
    ) -> None:
        """Appends an event and runs ``also``, in one transaction under the fence."""
        key = self._keeper.keys.history(node_id)
        for _ in range(MAX_WRITE_TRIES):
            found = await self._keeper.store.get(key)
            history = _decoded(found.value) if found is not None else op.NodeHistory()
            history.node_id = node_id
            new = history
            if even_if_same or not history.events or last_state(history) != to:
                new = appended(history, to=to, reason=reason, at_s=at_s)
            result = await self._reign.txn(
                [unchanged(key, found.mod_revision if found else 0)],
                [Put(key, new.SerializeToString(deterministic=True)), *also],
            )
            if result.succeeded:
                self._note(node_id, new)
                return
        _log.error("a node's history is written by somebody else", node=node_id)

    def _note(self, node_id: str, history: op.NodeHistory) -> None:
        if history.events:
            newest = history.events[-1]
            self._last[node_id] = _Last(newest.to, newest.at.ToNanoseconds() / 1e9)


async def _all(work: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Does everything, some at a time, and raises the first error once all have ended.

    Takes no coroutines: those that a cancellation finds waiting would never be awaited.
    """
    gate = asyncio.Semaphore(MAX_WRITES_AT_ONCE)

    async def gated(each: Callable[[], Awaitable[None]]) -> None:
        async with gate:
            await each()

    outcomes = await asyncio.gather(*map(gated, work), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


def _decoded(value: bytes) -> op.NodeHistory:
    """A stored history; an empty one in place of what cannot be read."""
    try:
        return op.NodeHistory.FromString(value)
    except DecodeError:
        _log.error("a node's history cannot be read; it begins anew")
        return op.NodeHistory()


def _shortened(reason: str) -> str:
    encoded = reason.encode()
    if len(encoded) <= MAX_REASON_BYTES:
        return reason
    # A letter that was cut in two is left out.
    return encoded[: MAX_REASON_BYTES - 3].decode(errors="ignore") + "…"
