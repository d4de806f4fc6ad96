"""One video from request to result, over as many streams and regions as it takes.

The order in which trouble is met:

1. The stream breaks: it is taken up again on the same gateway, after the last event.
2. The gateway stays away: another one of the same region goes on after the last event.
3. The region is gone or full: the next one makes the video anew, under the same
   idempotency key and naming the copy that it replaces. Earlier bytes are thrown away.
4. Every region was asked: a pause, then all of it again, ``max_retries`` times.
5. The video itself failed for a cause that is not its own: again, under the next key.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from reelmesh.v1 import tenant_pb2, video_pb2, video_service_pb2
from reelmesh.v1.tenant_pb2 import Priority

from wan_t2v_sdk.assembly import Assembly
from wan_t2v_sdk.buffer import VideoBuffer
from wan_t2v_sdk.calls import cancel_video, get_video
from wan_t2v_sdk.connection import Connection, responses
from wan_t2v_sdk.download import RESUME_ATTEMPTS, fetch, resume_delay_s
from wan_t2v_sdk.errors import (
    ConnectionLostError,
    DeadlineError,
    GenerationFailedError,
    IntegrityError,
    OtherRegionError,
    OverloadedError,
    ReelmeshError,
    ServerError,
    UnavailableError,
    VideoNotFoundError,
)
from wan_t2v_sdk.events import VideoEvent, event_of
from wan_t2v_sdk.regions import RegionRouter, is_home
from wan_t2v_sdk.result import GenerationResult, facts_of
from wan_t2v_sdk.tracing import trace_id_of

CANCEL_TIMEOUT_S = 3.0
# The code of a gateway that cannot write the region's job records now.
JOB_STORE_AWAY = "job_store_unavailable"
# The code of a gateway whose region does not reach the one that a video lives in.
HOME_UNREACHABLE = "home_unreachable"
# Under a second where another gateway waits to be asked.
RESUME_ATTEMPTS_BEFORE_NEXT = 2
MAX_PAUSE_S = 30.0
RETRIES_AT_FIRST = 1

Notify = Callable[[VideoEvent], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOrder:
    """What to make, and how long to try."""

    spec: video_pb2.VideoSpec | None
    """None: follow the video ``video_id`` and make nothing."""
    video_id: str = ""
    idempotency_key: str = ""
    key_is_drawn: bool = False
    """The key was made up for this call's own retries: nobody else will ever ask by it."""
    durable: bool = False
    """The video runs on when this call is given up."""
    deadline_s: float | None = None
    """The job's own deadline, kept by the gateway."""
    priority: Priority.ValueType = tenant_pb2.PRIORITY_UNSPECIFIED
    """Unspecified: the tenant's."""
    no_cache: bool = False
    """Drawn for this call, whatever there is."""
    timeout_s: float
    max_retries: int
    traceparent: str


class Generation:
    """Runs one order. Cancelling :meth:`run` cancels the video, unless it is durable."""

    def __init__(self, order: GenerationOrder, *, router: RegionRouter, notify: Notify) -> None:
        self._order = order
        self._router = router
        self._notify = notify
        self._assembly = Assembly(VideoBuffer())
        self._assembly.video_id = order.video_id
        self._connection: Connection | None = None
        self._home: str | None = None
        self._supersedes = ""
        self._failed_runs = 0
        self._without_key = False

    async def run(self) -> GenerationResult:
        """The finished video, its bytes checked.

        Raises:
            ReelmeshError: See :mod:`wan_t2v_sdk.errors`.
        """
        started_s = time.monotonic()
        limit = asyncio.timeout(self._order.timeout_s)
        try:
            async with limit:
                await self._until_complete()
            return self._result(client_s=time.monotonic() - started_s)
        except ReelmeshError as error:
            raise self._named(error) from error.__cause__
        except TimeoutError:
            if not limit.expired():
                raise  # a callback's own
            raise self._named(
                DeadlineError(f"the video was not done within {self._order.timeout_s:g} s")
            ) from None
        finally:
            if self._assembly.completed is None:
                await self._give_up()
                self._assembly.buffer.close()

    async def _until_complete(self) -> None:
        rounds = 0
        while (error := await self._ask_all()) is not None:
            rounds += 1
            # A mesh that never answered is more likely misnamed than passing away.
            limit = self._order.max_retries if self._router.reached else RETRIES_AT_FIRST
            if rounds > min(limit, self._order.max_retries):
                raise error
            pause_s = error.retry_after_s or min(0.5 * 2**rounds, MAX_PAUSE_S)
            await self._say_reconnecting(error)
            # Jitter, so that the clients of a region that fell do not come back as one.
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311 - no secret

    async def _ask_all(self) -> ReelmeshError | None:
        """Asks the gateways in order; None once the video is complete, else why not."""
        try:
            connections = await self._router.order()
        except UnavailableError as error:
            return error
        last: ReelmeshError = UnavailableError("no gateway is known")
        while connections:
            if self._assembly.video_id:
                # Its home first: there it goes on, elsewhere it begins anew.
                connections = self._router.for_video(self._assembly.video_id, connections)
            connection, *connections = connections
            try:
                await self._follow(connection, patience=_patience(connection, connections))
            except GenerationFailedError as error:
                if not error.retryable or self._order.spec is None:
                    raise
                self._failed_runs += 1
                self._named(error)
                self._assembly.forget()
                return error
            except (UnavailableError, OverloadedError) as error:
                if self._has_lost_its_home(error):
                    # It was made in another region than the one that was asked, and that is
                    # gone: this one makes it anew, under the same key.
                    self._start_over()
                    self._home = None
                    await self._say_reconnecting(error)
                    connections = [connection, *connections]
                    continue
                if self._may_go_without_key(error):
                    self._without_key = True
                    connections = [connection, *connections]
                    continue
                self._without_key = False
                self._router.forget()
                last = error
                await self._say_reconnecting(error)
            else:
                return None
        return last

    def _has_lost_its_home(self, error: ReelmeshError) -> bool:
        return (
            error.code == HOME_UNREACHABLE
            and self._order.spec is not None
            and bool(self._assembly.video_id)
        )

    def _may_go_without_key(self, error: ReelmeshError) -> bool:
        """Whether the video can be had though the region's job records are away.

        A gateway then admits what it need not find again: a stream without a key.
        """
        return (
            error.code == JOB_STORE_AWAY
            and self._order.key_is_drawn
            and not self._order.durable
            and not self._assembly.video_id
            and not self._without_key
        )

    async def _follow(self, connection: Connection, *, patience: int) -> None:
        """Follows the video on one gateway to its end, over several streams if need be.

        Gives up after ``patience`` connections in a row that were lost and brought nothing
        new.
        """
        breaks = 0
        while True:
            seen = self._assembly.last_seq
            try:
                return await self._one_stream(connection)
            except (VideoNotFoundError, OtherRegionError) as error:
                if not self._assembly.video_id or self._order.spec is None:
                    raise
                # The gateway lost it with its memory, or is of another region than the one
                # that is gone: it is made anew under the same key.
                self._start_over()
                lost: ReelmeshError = error
            except ConnectionLostError as error:
                if not self._assembly.video_id:
                    raise
                lost = error
            except (IntegrityError, ServerError) as error:
                if not error.retryable:
                    raise
                self._assembly.rewind()
                lost = error
            breaks = 1 if self._assembly.last_seq > seen else breaks + 1
            limit = patience if isinstance(lost, ConnectionLostError) else RESUME_ATTEMPTS
            if breaks > limit:
                raise lost
            await self._say_reconnecting(lost)
            await asyncio.sleep(resume_delay_s(breaks))

    async def _one_stream(self, connection: Connection) -> None:
        await connection.connect()
        self._connection = connection
        async with contextlib.aclosing(self._events(connection)) as events:
            async for event in events:
                self._assembly.accept(event)
                if event.WhichOneof("event") is not None:
                    await self._notify(event_of(event, with_data=False))
                if self._assembly.over:
                    break
        if self._assembly.error is not None:
            raise self._assembly.error
        if self._assembly.completed is None:
            raise ConnectionLostError(f"{connection.endpoint}: the stream ended before the video")
        await self._check(connection, self._assembly.completed)

    async def _check(self, connection: Connection, completed: video_pb2.CompletedEvent) -> None:
        """Makes sure that the bytes are there and right; else fetches them whole."""
        buffer = self._assembly.buffer
        try:
            buffer.verify(sha256=completed.sha256, size_bytes=completed.size_bytes)
        except IntegrityError:
            video_id = self._assembly.video_id
            await fetch(connection, video_id, buffer, traceparent=self._order.traceparent)
            buffer.verify(sha256=completed.sha256, size_bytes=completed.size_bytes)
        if self._assembly.spec is None:
            video = await get_video(connection, self._assembly.video_id)
            self._assembly.spec = video.spec
            self._assembly.region = self._assembly.region or video.region

    def _events(self, connection: Connection) -> AsyncGenerator[video_pb2.VideoEvent, None]:
        watched = self._assembly.video_id
        # Where it was asked for, or where it was made: a region may have it made in another.
        at_home = connection.region == self._home or is_home(connection.region, watched)
        if watched and (self._order.spec is None or at_home):
            return self._watch(connection, watched)
        if watched:
            self._start_over()
        self._home = connection.region
        return self._generate(connection)

    async def _generate(self, connection: Connection) -> AsyncGenerator[video_pb2.VideoEvent, None]:
        options = video_service_pb2.CreateOptions(
            idempotency_key=self._key(),
            durable=self._order.durable,
            deadline_s=self._order.deadline_s,
            supersedes=self._supersedes,
            priority=self._order.priority,
            no_cache=self._order.no_cache,
        )
        call = connection.videos.GenerateVideo(
            video_service_pb2.GenerateVideoRequest(spec=self._order.spec, options=options),
            metadata=connection.metadata(self._order.traceparent),
            timeout=self._order.timeout_s,
        )
        async with contextlib.aclosing(responses(call, connection=connection)) as answers:
            async for answer in answers:
                yield answer.event

    async def _watch(
        self, connection: Connection, video_id: str
    ) -> AsyncGenerator[video_pb2.VideoEvent, None]:
        call = connection.videos.WatchVideo(
            video_service_pb2.WatchVideoRequest(
                video_id=video_id, after_seq=self._assembly.last_seq
            ),
            metadata=connection.metadata(self._order.traceparent),
            timeout=self._order.timeout_s,
        )
        async with contextlib.aclosing(responses(call, connection=connection)) as answers:
            async for answer in answers:
                yield answer.event

    def _start_over(self) -> None:
        self._supersedes = self._assembly.video_id
        self._assembly.forget()

    def _key(self) -> str:
        """The key of this run: a failed video keeps its own, so another run needs the next."""
        if self._without_key:
            return ""
        key = self._order.idempotency_key
        return f"{key}.{self._failed_runs}" if self._failed_runs else key

    async def _give_up(self) -> None:
        """Tells the gateway at once, rather than leave it to the broken stream's grace time."""
        video_id, connection = self._assembly.video_id, self._connection
        leave = self._order.durable or self._order.spec is None or self._assembly.over
        if leave or not video_id or connection is None:
            return
        # Best effort: a gateway that is gone notices the broken stream by itself.
        with contextlib.suppress(ReelmeshError, TimeoutError):
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
                await cancel_video(connection, video_id)

    async def _say_reconnecting(self, error: ReelmeshError) -> None:
        await self._notify(
            VideoEvent(kind="reconnecting", video_id=self._assembly.video_id, message=error.message)
        )

    def _named(self, error: ReelmeshError) -> ReelmeshError:
        error.video_id = error.video_id or self._assembly.video_id or None
        error.region = error.region or self._assembly.region or self._home
        return error

    def _result(self, *, client_s: float) -> GenerationResult:
        assembly = self._assembly
        if assembly.completed is None or assembly.spec is None:
            raise ServerError("the video ended without saying what was made")
        facts = facts_of(
            video_id=assembly.video_id,
            completed=assembly.completed,
            spec=assembly.spec,
            region=assembly.region,
            node=assembly.node,
            attempts=assembly.restarts + self._failed_runs + 1,
            client_s=client_s,
            trace_id=trace_id_of(self._order.traceparent),
        )
        return GenerationResult(facts=facts, buffer=assembly.buffer)


def _patience(connection: Connection, others: Sequence[Connection]) -> int:
    """How often a gateway that was lost is asked again before the next one is.

    Never where another of its region can go on with the video: any of them knows it.
    """
    if any(other.region == connection.region for other in others):
        return 0
    return RESUME_ATTEMPTS_BEFORE_NEXT if others else RESUME_ATTEMPTS
