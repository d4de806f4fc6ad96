"""Who can answer for a video: this gateway, the one that owns it, or its record.

A reader does not notice when that changes under it: the next source goes on after the
last seq that the reader got.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from reelmesh.v1 import job_service_pb2, video_pb2, video_service_pb2

from gateway.application import FROM_PEER, Caller
from gateway.core.adoption import Adoption
from gateway.core.execution import Disowned, Execution
from gateway.core.lifetimes import Lifetimes
from gateway.errors import GatewayError, Unavailable
from gateway.jobs.ids import not_here, region_of
from gateway.jobs.store import TERMINAL_STATUSES, JobStore, Owner
from gateway.output.artifacts import ArtifactStore
from gateway.output.event_log import EventLog, LogAbandoned
from gateway.output.replay import replay
from gateway.output.wire import encode_event, seq_of_encoded
from gateway.peers.client import NotItsOwn, PeerGone, Peers
from gateway.peers.gateways import Gateways
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

T = TypeVar("T")

# Each turn is an owner that changed under the reader; more are a mesh that cannot agree.
MAX_TURNS: Final = 12
TURN_DELAY_S: Final = 0.05
# About a second of an owner that says the video is not its own.
TURNS_OF_NOBODYS: Final = 6
RETRY_AFTER_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Remote:
    """A live video that another gateway of the region owns."""

    address: str
    """Its owner's peer address."""
    record: job_service_pb2.JobRecord


Found = Execution | job_service_pb2.JobRecord | Remote
"""A video of this gateway's, the record of one that has ended, or where it is."""


class Sources:
    """Finds who can answer for a video.

    Args:
        region: This gateway's.
        owner: This gateway in this life.
        scope: Owns what is told to others after an answer.
    """

    def __init__(
        self,
        *,
        region: str,
        owner: Owner,
        lifetimes: Lifetimes,
        jobs: JobStore,
        artifacts: ArtifactStore,
        gateways: Gateways,
        peers: Peers,
        adoption: Adoption,
        scope: TaskScope,
        clock: Clock,
    ) -> None:
        self._scope = scope
        self._region = region
        self._owner = owner
        self._lifetimes = lifetimes
        self._jobs = jobs
        self._artifacts = artifacts
        self._gateways = gateways
        self._peers = peers
        self._adoption = adoption
        self._clock = clock

    def own(self, caller: Caller, video_id: str) -> Execution | None:
        """This gateway's execution of the caller's video, live or ended a short while ago."""
        execution = self._lifetimes.get(video_id)
        if execution is None or execution.record.tenant != caller.tenant:
            return None
        return execution

    async def record(self, caller: Caller, video_id: str) -> job_service_pb2.JobRecord:
        """The video's record; this gateway's own word where that is newer.

        Raises:
            VideoNotFound: There is none of this tenant.
            OtherRegion: There is none here, and the id names another region.
            JobStoreAway: The records cannot be read now.
        """
        execution = self.own(caller, video_id)
        if execution is not None and execution.record.video.status in TERMINAL_STATUSES:
            return execution.record
        if region_of(video_id) != self._region:
            # No video of this region has such an id: the records need not be asked.
            raise not_here(video_id, region=self._region)
        record = await self._jobs.get(caller.tenant, video_id)
        if record is None:
            raise not_here(video_id, region=self._region)
        return record

    async def locate(self, caller: Caller, video_id: str) -> Found:
        """Who can answer for a video; a live one whose owner is no more is adopted.

        Raises:
            VideoNotFound: There is none of this tenant, or none of this gateway's own where
                another gateway asks.
            OtherRegion: There is none here, and the id names another region.
            JobStoreAway: The records cannot be read, or not be written.
            Unavailable: Nobody can be asked now.
        """
        execution = self.own(caller, video_id)
        if execution is not None:
            return execution
        if caller.hops >= FROM_PEER:
            raise not_here(video_id, region=self._region)
        record = await self.record(caller, video_id)
        if record.video.status in TERMINAL_STATUSES:
            return record
        if not self._is_mine(record):
            address = self._gateways.address_of(record.owner_gateway, record.owner_incarnation)
            if address is not None:
                return Remote(address, record)
            if not self._gateways.heard:
                raise Unavailable(
                    "this gateway does not know the others yet", retry_after_s=RETRY_AFTER_S
                )
        return await self.take_over(record) or await self.record(caller, video_id)

    def _is_mine(self, record: job_service_pb2.JobRecord) -> bool:
        return Owner(record.owner_gateway, record.owner_incarnation) == self._owner

    def forget_elsewhere(self, caller: Caller, removed: job_service_pb2.JobRecord) -> None:
        """Has the gateway that ended a job, whose record is gone, keep its events no longer.

        In the background and once: they go by themselves in a while.
        """
        if self._is_mine(removed):
            return
        address = self._gateways.address_of(removed.owner_gateway, removed.owner_incarnation)
        if address is not None:
            forgetting = self._forget_at(address, caller, removed.video.id)
            self._scope.spawn(forgetting, name=f"forget/{removed.video.id}", fatal=False)

    async def _forget_at(self, address: str, caller: Caller, video_id: str) -> None:
        with contextlib.suppress(PeerGone, NotItsOwn, GatewayError):
            await self._peers.delete(address, caller, video_id)

    async def take_over(self, record: job_service_pb2.JobRecord) -> Execution | None:
        """Adopts a live job whose owner does not answer; None: it has changed meanwhile.

        Raises:
            Unavailable: This gateway is stopping.
            JobStoreAway: The records cannot be written now.
        """
        if self._lifetimes.draining:
            raise Unavailable(
                "this gateway is shutting down; ask another", retry_after_s=RETRY_AFTER_S
            )
        return await self._adoption.adopt(record)

    async def answer(
        self,
        caller: Caller,
        video_id: str,
        *,
        own: Callable[[Execution], Awaitable[T]],
        remote: Callable[[Remote], Awaitable[T]],
        ended: Callable[[job_service_pb2.JobRecord], T],
    ) -> T:
        """The answer of whoever can give it; asked anew while the video changes hands.

        Raises:
            GatewayError: As :meth:`locate`, or what the one who was asked raises.
        """
        for turn in range(1, MAX_TURNS + 1):
            found = await self.locate(caller, video_id)
            try:
                if isinstance(found, Execution):
                    return await own(found)
                if isinstance(found, Remote):
                    return await remote(found)
                return ended(found)
            except PeerGone:
                assert isinstance(found, Remote)  # noqa: S101 - nothing else asks a peer
                await self.take_over(found.record)
            except (NotItsOwn, Disowned):
                await self._await_arrival(found, turn)
        raise _restless()

    async def _await_arrival(self, found: Found, turn: int) -> None:
        """Gives a video that changes hands time; one that nobody has is taken over."""
        await self._clock.sleep(TURN_DELAY_S * turn)
        if isinstance(found, Remote) and turn >= TURNS_OF_NOBODYS:
            # The record has named that owner all the while, or the claim comes to nothing.
            await self.take_over(found.record)

    def events(
        self, caller: Caller, video_id: str, *, after_seq: int
    ) -> AsyncGenerator[video_pb2.VideoEvent]:
        """Events after a seq up to the terminal one, whoever makes them."""
        return self._stream(
            caller,
            video_id,
            after_seq,
            of_log=EventLog.read,
            of_event=lambda event: event,
            of_message=lambda data: video_service_pb2.WatchVideoResponse.FromString(data).event,
        )

    def encoded(self, caller: Caller, video_id: str, *, after_seq: int) -> AsyncGenerator[bytes]:
        """The same events, each as an encoded ``WatchVideoResponse``."""
        return self._stream(
            caller,
            video_id,
            after_seq,
            of_log=EventLog.read_encoded,
            of_event=encode_event,
            of_message=lambda data: data,
        )

    async def _stream(
        self,
        caller: Caller,
        video_id: str,
        seq: int,
        *,
        of_log: Callable[[EventLog, int], AsyncGenerator[T]],
        of_event: Callable[[video_pb2.VideoEvent], T],
        of_message: Callable[[bytes], T],
    ) -> AsyncGenerator[T]:
        for turn in range(1, MAX_TURNS + 1):
            found = await self.locate(caller, video_id)
            try:
                if isinstance(found, Execution):
                    async with contextlib.aclosing(of_log(found.log, seq)) as items:
                        async for item in items:
                            yield item
                elif isinstance(found, Remote):
                    relayed = self._peers.watch(found.address, caller, video_id, after_seq=seq)
                    async with contextlib.aclosing(relayed) as messages:
                        async for message in messages:
                            seq = max(seq, seq_of_encoded(message))
                            yield of_message(message)
                else:
                    replayed = replay(found, self._artifacts, after_seq=seq)
                    async with contextlib.aclosing(replayed) as events:
                        async for event in events:
                            yield of_event(event)
            except LogAbandoned as moved:
                seq = max(seq, moved.seq)
            except NotItsOwn:
                pass
            except PeerGone:
                assert isinstance(found, Remote)  # noqa: S101 - nothing else asks a peer
                await self.take_over(found.record)
                continue
            else:
                return
            await self._await_arrival(found, turn)
        raise _restless()


def _restless() -> Unavailable:
    return Unavailable("the video changes its gateway again and again", retry_after_s=RETRY_AFTER_S)
