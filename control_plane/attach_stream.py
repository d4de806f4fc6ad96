"""What the streams of nodes and gateways have in common: hello, reports, end."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import dataclasses
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Sequence,
)
from typing import Any, Generic, TypeVar

from control_plane.errors import ControlPlaneError, InvalidRequestError, NotReadyError
from control_plane.leased_record import LeasedRecord
from control_plane.session import Session, Waiting
from control_plane.store.port import Put, Store
from control_plane.store.writer import FencedWriter
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

Req = TypeVar("Req")
Resp = TypeVar("Resp")

HELLO_TIMEOUT_S = 10.0
# More at once make each of them slower than its deadline, and after a restart of the control
# plane the whole region comes at once: the others wait for their turn.
MAX_OPENING = 64
# gRPC delivers a break of the connection as an end of the requests first, and cancels
# the call right after it; a true end is not followed by that.
END_PAUSE_S = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Leasing:
    """What it takes to keep records under leases."""

    store: Store
    writer: FencedWriter
    clock: Clock
    ttl_s: float
    on_lost_lease: Callable[[], None] = lambda: None
    opening: asyncio.Semaphore = dataclasses.field(
        default_factory=lambda: asyncio.Semaphore(MAX_OPENING)
    )
    """Held while a record is put in the store for the first time."""
    waiting: Waiting = dataclasses.field(default_factory=Waiting)

    def record(self, key: str) -> LeasedRecord:
        """The record at ``key``, not claimed yet."""
        return LeasedRecord(
            store=self.store, writer=self.writer, clock=self.clock, key=key, ttl_s=self.ttl_s
        )


class OpenStreams:
    """The streams that stand, so that stopping can end them."""

    def __init__(self) -> None:
        self.stopping = False
        self._wakes: set[asyncio.Event] = set()

    def __len__(self) -> int:
        return len(self._wakes)

    @contextlib.contextmanager
    def listed(self, wake: asyncio.Event) -> Iterator[None]:
        """Counts a stream while the block runs."""
        self._wakes.add(wake)
        try:
            yield
        finally:
            self._wakes.discard(wake)

    def stop(self) -> None:
        """Makes every stream end with a word that sends its client to another replica."""
        self.stopping = True
        for wake in self._wakes:
            wake.set()


class AttachStream(abc.ABC, Generic[Req, Resp]):
    """One stream after its hello. Subclasses say what requests and responses mean."""

    def __init__(
        self, *, name: str, key: str, leasing: Leasing, streams: OpenStreams, also: Sequence[Put]
    ) -> None:
        self.wake = asyncio.Event()
        self.session = Session(
            leasing.record(key),
            clock=leasing.clock,
            also=also,
            on_new_lease=self._note_lease,
            on_lost_lease=leasing.on_lost_lease,
            waiting=leasing.waiting,
        )
        self._name = name
        self._clock = leasing.clock
        self._streams = streams
        self._lease_is_new = False
        self._ended = False
        self._error: ControlPlaneError | None = None

    async def run(self, requests: AsyncIterator[Req]) -> AsyncGenerator[Resp, None]:
        """Responses until the client leaves; cancelling leaves the lease to run out.

        Raises:
            ControlPlaneError: Why the stream cannot go on.
        """
        async with TaskScope(self._name) as scope:
            scope.spawn(self._guarded(self._read(requests)), name="read")
            scope.spawn(self._guarded(self.session.keep()), name="keep")
            for work in self.background():
                scope.spawn(self._guarded(work), name="background")
            with self._streams.listed(self.wake):
                while True:
                    self.wake.clear()
                    for response in self.responses():
                        yield response
                    if self._error is not None:
                        raise self._error
                    if scope.failure is not None:
                        raise scope.failure
                    if self._streams.stopping:
                        raise NotReadyError("this replica is stopping; attach to another")
                    if self._ended:
                        return
                    await self.wake.wait()

    def lease_news(self) -> bool:
        """Whether the agent has yet to hear of its lease; true once per lease."""
        is_new, self._lease_is_new = self._lease_is_new, False
        return is_new

    @abc.abstractmethod
    def responses(self) -> list[Resp]:
        """What the client should hear now."""

    @abc.abstractmethod
    def receive(self, request: Req) -> None:
        """Takes a request after the hello; raises InvalidRequestError for one that is wrong."""

    def background(self) -> Sequence[Coroutine[Any, Any, None]]:
        """What runs beside the stream, as long as it stands."""
        return ()

    async def goodbye(self) -> None:
        """Called when the client ended its side in good order."""

    def _note_lease(self) -> None:
        self._lease_is_new = True
        self.wake.set()

    async def _read(self, requests: AsyncIterator[Req]) -> None:
        async for request in requests:
            self.receive(request)
        await self._clock.sleep(END_PAUSE_S)
        await self.goodbye()
        self._ended = True

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except ControlPlaneError as error:
            self._error = error
        finally:
            self.wake.set()


async def first_request(requests: AsyncIterator[Req]) -> Req:
    """The stream's first message.

    Raises:
        InvalidRequestError: None came in time.
    """
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            return await anext(requests)
    except (TimeoutError, StopAsyncIteration):
        raise InvalidRequestError("hello", "must be the first message, and sent at once") from None
