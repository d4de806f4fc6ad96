"""Makes the videos of one batch, a few at a time, and keeps its record true.

Who drives is whom the record names as owner. Items become ordinary jobs under keys that
the batch's id and their number make, so two drivers at once, or an heir that begins again
where its forerunner's last word was, make nothing twice: the record takes the words of its
owner's epoch alone, and the other stops when it hears so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog
from reelmesh.v1 import batch_pb2, video_pb2, video_service_pb2
from reelmesh.v1 import batch_record_service_pb2 as pb

from gateway.application import VideoApplication
from gateway.batches import records
from gateway.batches.config import BatchConfig
from gateway.batches.files import BatchFiles
from gateway.batches.keeper import STORE_DELAY_S, Keeper, NotMine
from gateway.batches.segments import ENDED, failed_outcome, item_key, outcome_of
from gateway.batches.store import BatchStore
from gateway.batches.tally import Tally
from gateway.errors import GatewayError, OtherRegion, VideoNotFound
from gateway.jobs.store import KeyElsewhere
from gateway.output.artifacts import ArtifactError, ArtifactMissing
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

_log = structlog.get_logger("gateway.batches")

# Between looks at a video that goes on.
_FIRST_LOOK_S: Final = 0.1
_MAX_LOOK_S: Final = 1.0
_MIN_PAUSE_S: Final = 0.2
# How soon whoever waits for a slot hears that the batch is to stop.
_SLOT_S: Final = 0.5
# How many items ahead of the last begun one the record allows for, by those in flight.
_AHEAD: Final = 8

FindVideo = Callable[[str, str], Awaitable[video_pb2.Video | None]]
"""The video of this region that a tenant's idempotency key has made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverParts:
    """What every driver of a gateway works with."""

    videos: VideoApplication
    find_video: FindVideo
    store: BatchStore
    files: BatchFiles
    clock: Clock
    config: BatchConfig
    slots: asyncio.Semaphore
    """Videos of all batches that may be under way."""


class BatchDriver:
    """One batch, from where its record stands to its end.

    Args:
        record: This gateway's own.
        parts: What it works with.
    """

    def __init__(self, record: pb.BatchRecord, parts: DriverParts) -> None:
        self.batch_id = record.batch.id
        self.tenant = record.tenant
        self._parts = parts
        self._clock = parts.clock
        self._config = parts.config
        self._tally = Tally(record)
        self._keeper = Keeper(
            record,
            self._tally,
            store=parts.store,
            files=parts.files,
            on_cancel=self.cancel,
            retention_s=parts.config.retention_s,
            clock=parts.clock,
        )
        self._caller = records.caller_of(record)
        self._own_slots = asyncio.Semaphore(
            min(record.max_in_flight or self._config.max_in_flight_per_batch, self._most)
        )
        # No further item is begun.
        self._stopping = asyncio.Event()
        self._end = batch_pb2.BATCH_STATUS_COMPLETED
        self._error: video_pb2.FailedEvent | None = None
        self._leaving = False
        self.ended: pb.BatchRecord | None = None
        """Its record once it has ended."""

    @property
    def _most(self) -> int:
        return self._config.max_in_flight_per_batch

    @property
    def in_flight(self) -> int:
        """Videos under way."""
        return len(self._tally.in_flight)

    def cancel(self) -> None:
        """Has it end as cancelled: what runs is stopped."""
        self._stop(batch_pb2.BATCH_STATUS_CANCELLED)

    def leave(self) -> None:
        """Begins nothing more and lets go of what runs, for another gateway to go on."""
        self._leaving = True
        self._stopping.set()

    def _stop(
        self,
        status: batch_pb2.BatchStatus.ValueType,
        error: video_pb2.FailedEvent | None = None,
    ) -> None:
        if not self._stopping.is_set():
            self._end, self._error = status, error
            self._stopping.set()

    async def run(self) -> None:
        """Returns at the batch's end, when :meth:`leave` was called, or it is another's.

        Cancellation leaves the record as it was last written.
        """
        try:
            await self._recall()
            async with TaskScope(f"batch/{self.batch_id}") as scope:
                keeping = scope.spawn(self._keep_record(), name="record", fatal=False)
                making = scope.spawn(self._make_all(scope), name="items", fatal=False)
                await asyncio.wait((keeping, making), return_when=asyncio.FIRST_COMPLETED)
                if keeping.done():
                    # It ends by its error alone.
                    keeping.result()
                await making
            await self._finish()
        except NotMine:
            _log.info("batch has another owner", batch_id=self.batch_id)

    # --- where it stands ---

    async def _recall(self) -> None:
        """Reads how its items ended, as the record has it."""
        while True:
            try:
                await self._keeper.recall()
            except ArtifactError as error:
                await self._wait_for_files(error)
            else:
                return

    async def _wait_for_files(self, error: ArtifactError) -> None:
        _log.warning("batch's files not readable", batch_id=self.batch_id, error=str(error))
        if self._leaving:
            raise NotMine
        await self._clock.sleep(STORE_DELAY_S)

    # --- items ---

    async def _make_all(self, scope: TaskScope) -> None:
        followers: list[asyncio.Task[None]] = []
        for segment in range(len(self._keeper.record.segment_bytes)):
            if self._tally.full(segment):
                continue
            if self._nothing_left(segment):
                break
            for index, item in await self._items(segment):
                if self._tally.has_ended(index):
                    continue
                video = await self._begun(index, item)
                if video is None:
                    continue
                following = self._follow(index, video)
                followers.append(scope.spawn(following, name=f"item {index}", fatal=False))
            followers = [each for each in followers if not _well_done(each)]
        for follower in followers:
            await follower

    def _nothing_left(self, segment: int) -> bool:
        """Whether none of a segment's items, or of later ones, can have a video."""
        first = segment * self._keeper.record.items_per_segment
        return self._leaving or (self._stopping.is_set() and first >= self._tally.begun_until)

    async def _items(self, segment: int) -> list[tuple[int, pb.BatchInput]]:
        first = segment * self._keeper.record.items_per_segment
        while True:
            try:
                inputs = await self._parts.files.items(self._keeper.record, segment)
            except ArtifactMissing:
                message = "the batch's items are lost; submit it again"
                self._stop(
                    batch_pb2.BATCH_STATUS_FAILED,
                    video_pb2.FailedEvent(code="batch_items_lost", message=message, retryable=True),
                )
                return []
            except ArtifactError as error:
                await self._wait_for_files(error)
            else:
                return list(enumerate(inputs.items, start=first))

    async def _begun(self, index: int, item: pb.BatchInput) -> video_pb2.Video | None:
        """Has the item's video made, or finds it, however often it is refused for a while.

        Holds a slot of the batch's and one of the gateway's where it answers a video.
        """
        await self._until_allowed(index)
        if not await self._acquire(self._own_slots):
            return await self._sought(index, item)
        while not self._stopping.is_set():
            if not await self._acquire(self._parts.slots):
                break
            try:
                video = await self._create(index, item)
            except GatewayError as error:
                self._parts.slots.release()
                if not error.retryable:
                    self._own_slots.release()
                    self._tally.settle(failed_outcome(index, error.code, error.message))
                    return None
                await self._pause(self._delay_of(error))
            except BaseException:
                self._parts.slots.release()
                raise
            else:
                self._tally.begin(index, video)
                return video
        self._own_slots.release()
        return await self._sought(index, item)

    async def _create(self, index: int, item: pb.BatchInput) -> video_pb2.Video:
        options = video_service_pb2.CreateOptions(
            idempotency_key=item_key(self.batch_id, index),
            durable=True,
            priority=self._keeper.record.batch.priority,
        )
        spec = video_pb2.VideoSpec()
        spec.CopyFrom(item.spec)
        return await self._parts.videos.create(self._caller, spec, options, streamed=False)

    def _delay_of(self, error: GatewayError) -> float:
        _log.info("item refused for now", batch_id=self.batch_id, cause=error.code)
        wanted = error.retry_after_s or STORE_DELAY_S
        return min(max(wanted, _MIN_PAUSE_S), self._config.max_pause_s)

    async def _acquire(self, slots: asyncio.Semaphore) -> bool:
        """Takes a slot; False: the batch is to stop."""
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SLOT_S):
                    await slots.acquire()
                    return True
        return False

    async def _until_allowed(self, index: int) -> None:
        """Begins nothing that the record does not say may have been begun."""
        while index >= self._tally.begun_until and not self._stopping.is_set():
            self._tally.want(index + _AHEAD * self._most)
            if not await self._keeper.write():
                await self._pause(STORE_DELAY_S)

    async def _sought(self, index: int, item: pb.BatchInput) -> video_pb2.Video | None:
        """The video of an item that is not to be begun any more, where it has one.

        It may have been begun by whoever drove the batch before, and not been told of.
        """
        if index >= self._tally.begun_until or self._leaving:
            return None
        flying = self._tally.in_flight.get(index)
        while True:
            try:
                if flying is not None:
                    video: video_pb2.Video | None = await self._parts.videos.get(
                        self._caller, flying.video_id
                    )
                else:
                    key = item_key(self.batch_id, index)
                    try:
                        video = await self._parts.find_video(self._caller.tenant, key)
                    except KeyElsewhere:
                        # That region alone can say; it answers the one that it has made.
                        video = await self._create(index, item)
            except (VideoNotFound, OtherRegion):
                return None
            except GatewayError as error:
                if self._leaving or not error.retryable:
                    return None
                await self._clock.sleep(self._delay_of(error))
            else:
                break
        if video is None:
            return None
        await self._parts.slots.acquire()
        await self._own_slots.acquire()
        self._tally.begin(index, video)
        return video

    async def _follow(self, index: int, video: video_pb2.Video) -> None:
        """Sees an item's video to its end; gives both slots back."""
        delay_s = _FIRST_LOOK_S
        try:
            while video.status not in ENDED:
                # Looked at less and less often; when the batch is to stop, at once.
                await self._pause(delay_s)
                delay_s = min(2 * delay_s, _MAX_LOOK_S)
                if self._leaving:
                    return
                try:
                    video = await self._looked_at(video.id)
                except (VideoNotFound, OtherRegion):
                    gone = "the video was deleted before the batch had ended"
                    lost = failed_outcome(index, "video_deleted", gone, video_id=video.id)
                    self._tally.settle(lost)
                    return
                except GatewayError as error:
                    await self._clock.sleep(min(error.retry_after_s or delay_s, _MAX_LOOK_S))
                else:
                    self._tally.note(index, video)
            self._tally.settle(outcome_of(index, video))
        finally:
            self._parts.slots.release()
            self._own_slots.release()

    async def _looked_at(self, video_id: str) -> video_pb2.Video:
        if not self._stopping.is_set():
            return await self._parts.videos.get(self._caller, video_id)
        video = await self._parts.videos.cancel(self._caller, video_id)
        if video.status not in ENDED:
            await self._clock.sleep(_FIRST_LOOK_S)
        return video

    async def _pause(self, seconds: float) -> None:
        """Waits, but not on when the batch is to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _keep_record(self) -> None:
        """Keeps the record, and to the batch's time; for ever.

        Raises:
            NotMine: It is another's.
        """
        deadline_s = records.seconds(self._keeper.record.deadline)
        while True:
            await self._clock.sleep(self._config.checkpoint_s)
            if self._clock.wall() >= deadline_s:
                self._stop(batch_pb2.BATCH_STATUS_EXPIRED)
            await self._keeper.refresh()

    async def _finish(self) -> None:
        """Writes the end; on leaving, its progress once."""
        if self._leaving:
            await self._keeper.write()
            return
        self.ended = await self._keeper.finish(
            self._end, self._error, going_on=lambda: not self._leaving
        )
        if self.ended is not None:
            counts = self.ended.batch.counts
            _log.info(
                "batch ended",
                batch_id=self.batch_id,
                state=batch_pb2.BatchStatus.Name(self.ended.batch.status),
                completed=counts.completed,
                failed=counts.failed,
            )


def _well_done(task: asyncio.Task[None]) -> bool:
    """Whether it has ended, and not by an error, which its awaiter is to see."""
    return task.done() and not task.cancelled() and task.exception() is None
