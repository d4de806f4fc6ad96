"""A local copy of a prefix that heals itself: list, watch, relist and diff (R3)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
from collections.abc import AsyncGenerator

import structlog

from control_plane.errors import CompactedError, StoreError, StoreRestoredError
from control_plane.store.port import EventKind, KeyValue, Store, WatchBatch
from reelkit.clock import Clock

_log = structlog.get_logger("control_plane.store.mirror")

DEFAULT_RELIST_S = 300.0
RETRY_DELAY_S = 1.0


class ChangeKind(enum.Enum):
    """How a change is to be taken."""

    # Everything, once, at the beginning and after a restore: drop what was known.
    SNAPSHOT = "snapshot"
    # What changed since the change before.
    DELTA = "delta"


@dataclasses.dataclass(frozen=True, slots=True)
class MirrorChange:
    """One step of the copy; after it the copy equals the prefix at ``revision``."""

    kind: ChangeKind
    revision: int
    upserts: tuple[KeyValue, ...]
    deleted_keys: tuple[str, ...] = ()


async def list_all(store: Store, prefix: str) -> tuple[list[KeyValue], int]:
    """All keys under ``prefix`` as of one revision, page by page, and that revision.

    Raises:
        CompactedError: The revision was compacted between two pages: begin anew.
    """
    page = await store.range(prefix)
    items, revision = list(page.items), page.revision
    while page.more:
        page = await store.range(prefix, after=items[-1].key, revision=revision)
        items.extend(page.items)
    return items, revision


class Mirror:
    """Follows a prefix for ever; iterate over :meth:`changes`, by one reader.

    The first change is a snapshot. Deltas follow in the order of their revisions,
    never one twice. A loss of the server shows as silence; compaction and the periodic
    relist show as a delta that holds the difference, if there is any; a restore shows
    as a snapshot.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        *,
        clock: Clock,
        relist_s: float = DEFAULT_RELIST_S,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._clock = clock
        self._relist_s = relist_s
        self._known: dict[str, KeyValue] = {}
        self._revision = 0
        self._fresh = True
        self._failing = False
        # For metrics: how often the copy was compared with the whole, and differed.
        self.relists = 0
        self.repairs = 0

    async def changes(self) -> AsyncGenerator[MirrorChange, None]:
        """Yields each change; ends only by being closed.

        Raises:
            StoreDeniedError: We may not read the prefix, found at the first read.
        """
        while True:
            try:
                change = await self._list()
                if change is not None:
                    yield change
                async with contextlib.aclosing(self._watched()) as watched:
                    async for change in watched:
                        yield change
            except StoreRestoredError:
                _log.warning("the store was restored: reading everything anew", prefix=self._prefix)
                self._known, self._revision, self._fresh = {}, 0, True
            except CompactedError as error:
                _log.info("history was compacted: relist", prefix=self._prefix, error=str(error))
            except StoreError as error:
                if self._fresh and not error.retryable:
                    # At the start a denial is a mistake in the configuration; later it
                    # is an outage like others, and what is known goes on being served.
                    raise
                self._note_failure(error)
                await self._clock.sleep(RETRY_DELAY_S)

    def _note_failure(self, error: StoreError) -> None:
        # Said once an outage: it may last for hours, and a try takes a second.
        if not self._failing:
            _log.warning("listing failed, tries on", prefix=self._prefix, error=str(error))
        self._failing = True

    async def _list(self) -> MirrorChange | None:
        items, revision = await list_all(self._store, self._prefix)
        if self._failing:
            _log.info("listing works again", prefix=self._prefix)
            self._failing = False
        listed = {kv.key: kv for kv in items}
        self.relists += 1
        if self._fresh:
            change: MirrorChange | None = MirrorChange(ChangeKind.SNAPSHOT, revision, tuple(items))
            self._fresh = False
        else:
            change = self._difference(listed, revision)
        self._known, self._revision = listed, revision
        return change

    def _difference(self, listed: dict[str, KeyValue], revision: int) -> MirrorChange | None:
        upserts = tuple(
            kv
            for key, kv in listed.items()
            if key not in self._known or self._known[key].mod_revision != kv.mod_revision
        )
        deleted = tuple(key for key in self._known if key not in listed)
        if not upserts and not deleted:
            return None
        self.repairs += 1
        return MirrorChange(ChangeKind.DELTA, revision, upserts, deleted)

    async def _watched(self) -> AsyncGenerator[MirrorChange, None]:
        """Changes of one watch, until it is time to relist."""
        relist_at_s = self._clock.monotonic() + self._relist_s
        batches = self._store.watch(self._prefix, from_revision=self._revision + 1)
        async with contextlib.aclosing(batches):
            while True:
                remaining_s = relist_at_s - self._clock.monotonic()
                if remaining_s <= 0:
                    return
                try:
                    async with asyncio.timeout(remaining_s):
                        batch = await anext(batches)
                except TimeoutError:
                    return
                change = self._take(batch)
                if change is not None:
                    yield change

    def _take(self, batch: WatchBatch) -> MirrorChange | None:
        self._revision = max(self._revision, batch.revision)
        upserts: dict[str, KeyValue] = {}
        deleted: dict[str, None] = {}
        for event in batch.events:
            key = event.kv.key
            if event.kind is EventKind.PUT:
                upserts[key] = self._known[key] = event.kv
                deleted.pop(key, None)
            else:
                upserts.pop(key, None)
                self._known.pop(key, None)
                deleted[key] = None
        if not upserts and not deleted:
            return None
        return MirrorChange(
            ChangeKind.DELTA, batch.revision, tuple(upserts.values()), tuple(deleted)
        )
