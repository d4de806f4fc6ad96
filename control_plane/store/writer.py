"""Writes with a definite outcome, though the answer may be lost (R4 of the etcd rules).

A transaction whose answer is lost may have been applied, may be applied in a moment,
or never. Reading the key back settles only the first. So every transaction also puts a
token into a slot key of its writer and compares the slot's revision:

- The slot holds our token: the transaction was applied, at the slot's mod_revision.
- The slot is as it was before: we overwrite it by a fence, comparing the same
  revision. If that succeeds, our transaction was not applied, and never can be, since
  its comparison fails from now on.

Both the transaction and the fence compare the slot's revision, so that a late copy of
either does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence

import structlog

from control_plane.errors import OutcomeUnknownError, StoreUnavailableError
from control_plane.store.port import Compare, Get, Op, Put, Store, TxnResult, unchanged
from reelkit.clock import Clock

_log = structlog.get_logger("control_plane.store.writer")

RETRY_DELAY_S = 0.2
DEFAULT_PATIENCE_S = 5.0


class _Slot:
    def __init__(self, key: str) -> None:
        self.key = key
        # 0: absent. None: to be read.
        self.revision: int | None = None


class FencedWriter:
    """Runs transactions and always learns what became of them.

    Args:
        store: Where to.
        prefix: Where the slot keys of this writer lie. Two live writers that share it
            slow one another down and find out less, but never a wrong answer.
        clock: For the patience.
        slots: Transactions that may be on their way at once.
    """

    def __init__(self, store: Store, *, prefix: str, clock: Clock, slots: int = 64) -> None:
        self._store = store
        self._clock = clock
        self._free: asyncio.LifoQueue[_Slot] = asyncio.LifoQueue()
        for number in reversed(range(slots)):
            self._free.put_nowait(_Slot(f"{prefix}{number}"))

    async def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Op],
        reads_on_failure: Sequence[Get] = (),
        *,
        patience_s: float = DEFAULT_PATIENCE_S,
    ) -> TxnResult:
        """Runs ``success`` if all comparisons hold, else the reads; applied once or not.

        An answer that was lost is found out, and a transaction that surely was not
        applied is sent again, until ``patience_s`` is over. Where a lost answer was
        found to be a success, ``gets`` is empty.

        Raises:
            StoreUnavailableError: Not applied, and it will not be.
            OutcomeUnknownError: The store stayed away; applied or not.
            StoreError: As :meth:`~control_plane.store.port.Store.txn`.
        """
        deadline_s = self._clock.monotonic() + patience_s
        async with self._slot(patience_s) as slot:
            while True:
                try:
                    result = await self._attempt(
                        slot, compares, success, reads_on_failure, deadline_s
                    )
                except StoreUnavailableError:
                    if self._clock.monotonic() + RETRY_DELAY_S >= deadline_s:
                        raise
                    await self._clock.sleep(RETRY_DELAY_S)
                    continue
                if result is not None:
                    return result

    @contextlib.asynccontextmanager
    async def _slot(self, patience_s: float) -> AsyncIterator[_Slot]:
        try:
            async with asyncio.timeout(patience_s):
                slot = await self._free.get()
        except TimeoutError:
            raise StoreUnavailableError("too many writes wait for the store") from None
        try:
            yield slot
        except BaseException:
            # Whatever interrupted us, we no longer know what the slot holds.
            slot.revision = None
            raise
        finally:
            self._free.put_nowait(slot)

    async def _attempt(
        self,
        slot: _Slot,
        compares: Sequence[Compare],
        success: Sequence[Op],
        reads: Sequence[Get],
        deadline_s: float,
    ) -> TxnResult | None:
        """The result, or None where the slot was in the way and another try may win."""
        if slot.revision is None:
            kv = await self._store.get(slot.key)
            slot.revision = kv.mod_revision if kv else 0
        before = slot.revision
        token = uuid.uuid4().bytes
        try:
            result = await self._store.txn(
                [unchanged(slot.key, before), *compares],
                [Put(slot.key, token), *success],
                [Get(slot.key), *reads],
            )
        except OutcomeUnknownError:
            return await self._find_out(slot, before, token, deadline_s)
        if result.succeeded:
            slot.revision = result.revision
            return result
        kv = result.gets[0]
        slot_now = kv.mod_revision if kv else 0
        if slot_now != before:
            slot.revision = slot_now
            return None
        return TxnResult(False, result.revision, result.gets[1:])

    async def _find_out(
        self, slot: _Slot, before: int, token: bytes, deadline_s: float
    ) -> TxnResult | None:
        """The success that was not answered, or None once it can never happen."""
        fence = b"fence" + token
        while True:
            try:
                result = await self._store.txn(
                    [unchanged(slot.key, before)], [Put(slot.key, fence)], [Get(slot.key)]
                )
                break
            except (OutcomeUnknownError, StoreUnavailableError):
                # Sending the fence again is safe: it compares the revision.
                if self._clock.monotonic() + RETRY_DELAY_S >= deadline_s:
                    raise OutcomeUnknownError("the store stayed away after a write") from None
                await self._clock.sleep(RETRY_DELAY_S)
        kv = None if result.succeeded else result.gets[0]
        if kv is not None and kv.value == token:
            _log.info("a write whose answer was lost had been applied", slot=slot.key)
            slot.revision = kv.mod_revision
            return TxnResult(True, kv.mod_revision)
        if result.succeeded or (kv is not None and kv.value == fence):
            _log.info("a write whose answer was lost was fenced off", slot=slot.key)
            slot.revision = kv.mod_revision if kv else result.revision
            return None
        raise OutcomeUnknownError(
            "somebody else wrote this writer's slot: is replica_id unique? was the store restored?"
        )
