"""Calls to a service of the region's control plane, on any replica of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import grpc
from grpc import aio

from gateway.errors import JobStoreAway
from reelkit.clock import Clock
from reelkit.rpc import internal_channel

# A sound replica answers within milliseconds; one whose store is being elected in seconds.
CALL_TIMEOUT_S: Final = 2.0
RETRY_AFTER_S: Final = 1.0
# A replica that had this long and said nothing is not the one to ask next.
_SLOW_S: Final = 0.25
_PATIENCE_AWAY_S: Final = 1.0
_FIRST_DELAY_S: Final = 0.05
_MAX_DELAY_S: Final = 0.5
# What another replica, or the same one in a moment, may answer otherwise.
_AGAIN: Final = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    )
)

T = TypeVar("T")
Stub = TypeVar("Stub")


class NoRecord(Exception):  # noqa: N818 - an answer, not a failure
    """There is no such record of this tenant."""


class Replicas(Generic[Stub]):
    """Asks one replica after the other, and again, for a while.

    Args:
        endpoints: The control plane's replicas; the one that answered last is asked first.
        stub_of: Makes the service's stub on a channel.
        told: What a refusal means.
        clock: For patience and pauses.
        patience_s: How long a call is repeated, on all replicas, before the store counts
            as away.
        open_channel: Makes a channel to a replica.
    """

    def __init__(
        self,
        *,
        endpoints: Sequence[str],
        stub_of: Callable[[aio.Channel], Any],
        told: Callable[[aio.AioRpcError], Exception],
        clock: Clock,
        patience_s: float,
        open_channel: Callable[[str], aio.Channel] = internal_channel,
    ) -> None:
        self.away = False
        """Whether the last call found no replica that could answer."""
        self._channels = [open_channel(endpoint) for endpoint in endpoints]
        self._stubs: list[Stub] = [stub_of(channel) for channel in self._channels]
        self._told = told
        self._turn = 0
        self._clock = clock
        self._patience_s = patience_s

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels:
            await channel.close()

    @property
    def next(self) -> Stub:
        """The replica that is asked next, for a call that is not to be repeated."""
        return self._stubs[self._turn]

    async def find(self, ask: Callable[[Stub, float], Awaitable[T]]) -> T | None:
        """The answer, or None where there is no such record."""
        try:
            return await self.ask(ask)
        except NoRecord:
            return None

    async def ask(self, ask: Callable[[Stub, float], Awaitable[T]]) -> T:
        """The answer of the first replica that gives one; ``ask`` is told its time limit.

        Raises:
            JobStoreAway: None did in time; whether a write was applied is not known.
            Exception: What ``told`` makes of a refusal.
        """
        # Nobody waits long for records that were away a moment ago.
        patience_s = min(_PATIENCE_AWAY_S, self._patience_s) if self.away else self._patience_s
        give_up_s = self._clock.monotonic() + patience_s
        delay_s, failures = _FIRST_DELAY_S, 0
        while True:
            asked_s, turn = self._clock.monotonic(), self._turn
            limit_s = max(min(CALL_TIMEOUT_S, give_up_s - asked_s), 0.05)
            try:
                answer = await ask(self._stubs[turn], limit_s)
            except aio.AioRpcError as error:
                if error.code() not in _AGAIN:
                    self.away = False
                    raise self._told(error) from None
                self._pass_over(turn)
                failures += 1
            except asyncio.CancelledError:
                if self._clock.monotonic() - asked_s >= _SLOW_S:
                    # Whoever asked would wait no longer; the next one asks elsewhere.
                    self.away = True
                    self._pass_over(turn)
                raise
            else:
                self.away = False
                return answer
            # Every replica once without a pause: the next one is sound where one died.
            if failures >= len(self._stubs):
                if self._clock.monotonic() + delay_s >= give_up_s:
                    self.away = True
                    raise JobStoreAway(
                        "the region's job records cannot be written now; try again",
                        retry_after_s=RETRY_AFTER_S,
                    )
                await self._clock.sleep(delay_s)
                delay_s = min(2 * delay_s, _MAX_DELAY_S)

    def _pass_over(self, turn: int) -> None:
        """The next call goes to another replica, unless one that failed too saw to that."""
        if self._turn == turn:
            self._turn = (turn + 1) % len(self._stubs)
