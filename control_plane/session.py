"""One attached node or gateway: its record follows its reports, through outages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from control_plane.errors import LeaseNotFoundError, StoreError
from control_plane.leased_record import LeasedRecord
from control_plane.store.port import Put
from reelkit.clock import Clock

_log = structlog.get_logger("control_plane.session")

RETRY_DELAY_S = 1.0


class Waiting:
    """Which records wait for the store now; says so once an outage, not once a try."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def begin(self, key: str, error: StoreError) -> None:
        """The store would not take the record."""
        if not self._keys:
            _log.info("records wait for the store", first=key, error=str(error))
        self._keys.add(key)

    def end(self, key: str) -> None:
        """It took it, or nobody wishes it any more."""
        if key in self._keys:
            self._keys.remove(key)
            if not self._keys:
                _log.info("no record waits for the store any more", last=key)


class Session:
    """Keeps a record in step with reports, while its stream stands.

    The lease is renewed when a report comes and never without one, so a process that
    hangs behind a standing connection is noticed. While the store is away, the newest
    wish is kept and the stream stands (static stability).
    """

    def __init__(
        self,
        record: LeasedRecord,
        *,
        clock: Clock,
        also: Sequence[Put] = (),
        on_new_lease: Callable[[], None],
        on_lost_lease: Callable[[], None],
        waiting: Waiting | None = None,
    ) -> None:
        self.record = record
        self._waiting = waiting or Waiting()
        self._clock = clock
        self._also = also
        self._on_new_lease = on_new_lease
        self._on_lost_lease = on_lost_lease
        self._wanted = b""
        self._reported_s = clock.monotonic()
        # Whether there was a report that the lease has yet to be renewed for.
        self._heard = False
        self._work = asyncio.Event()

    async def open(self, value: bytes, *, lease_id: int) -> None:
        """Puts the record in the store.

        Raises:
            StoreError: The store is away: the agent should try another replica.
        """
        self._wanted = value
        self._reported_s = self._clock.monotonic()
        await self.record.claim(value, lease_id=lease_id, also=self._also)
        self._on_new_lease()

    def report(self, value: bytes) -> None:
        """Takes note that the agent lives, and of the record as it should be now."""
        self._heard = True
        self._reported_s = self._clock.monotonic()
        self.revise(value)

    def revise(self, value: bytes) -> None:
        """Takes note of the record as it should be now; no sign of life of the agent."""
        self._wanted = value
        self._work.set()

    async def keep(self) -> None:
        """Brings record and lease up to date after each report; runs for ever.

        Raises:
            SupersededError: Another stream holds the record now.
        """
        try:
            await self._keep()
        finally:
            self._waiting.end(self.record.key)

    async def _keep(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            if self._clock.monotonic() - self._reported_s > self.record.ttl_s:
                # The store was away for longer than the agent was heard of.
                continue
            try:
                await self._bring_up_to_date()
                self._waiting.end(self.record.key)
            except StoreError as error:
                # Whatever the store says, a node that serves is not sent away for it.
                self._waiting.begin(self.record.key, error)
                await self._clock.sleep(RETRY_DELAY_S)
                self._work.set()

    async def close(self, *, also: Sequence[Put] = ()) -> None:
        """Takes the record out at once, and writes ``also``: the agent said goodbye.

        Raises:
            StoreError: The store is away; the lease takes the record out in its time.
        """
        await self.record.remove(also=also)

    async def _bring_up_to_date(self) -> None:
        wanted = self._wanted
        try:
            await self._renew()
            if wanted != self.record.value:
                await self.record.write(wanted, also=self._also)
        except LeaseNotFoundError:
            _log.warning("lease ran out while its agent reports", key=self.record.key)
            self._on_lost_lease()
            await self.record.claim(wanted, also=self._also)
            self._on_new_lease()

    async def _renew(self) -> None:
        heard, self._heard = self._heard, False
        if not heard:
            return
        try:
            await self.record.renew()
        except StoreError:
            self._heard = True
            raise
