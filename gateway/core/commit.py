"""How a job ends: the terminal write decides, and whoever loses it relays the winner's.

The order is fixed: the artifact is written under a key of its own, the record is
swapped to COMPLETED (the commit point), readers are told, the node may forget.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import structlog
from grpc import aio
from reelmesh.v1 import job_service_pb2, node_service_pb2, video_pb2

from gateway.core.execution import Disowned, Execution, Whole
from gateway.core.metrics import GatewayMetrics
from gateway.core.node_run import OWN_DISK, Fault
from gateway.errors import JobStoreAway
from gateway.fleet.node_link import NodeLink
from gateway.jobs import records
from gateway.jobs.attempts import FIRST_ATTEMPT, ordinal_of
from gateway.jobs.store import TERMINAL_STATUSES, JobStore
from gateway.output.artifacts import ArtifactError, ArtifactStore, artifact_key, delete_video
from gateway.output.spool import BytesGone, VideoBytes
from gateway.output.spool_budget import SpoolFull
from gateway.output.spool_file import SpoolFile
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

_log = structlog.get_logger("gateway.commit")

# An object store that answers 503 now often answers within a second or two.
_WRITE_DELAYS_S: Final = (0.2, 1.0, 3.0)
# Between tries to write an end while the records are away.
_FIRST_SWAP_DELAY_S: Final = 0.1
_MAX_SWAP_DELAY_S: Final = 2.0
_NODE_CALL_TIMEOUT_S: Final = 2.0
# What nobody waits for is done when the last event is on its way: each takes a while of
# the one loop that also ends the client's stream.
_AFTER_ANSWERS_S: Final = 0.005
_NODE_CALL_DELAYS_S: Final = (0.5, 1.0, 2.0, 4.0)

_STATES: Final = {
    video_pb2.VIDEO_STATUS_COMPLETED: "completed",
    video_pb2.VIDEO_STATUS_FAILED: "failed",
    video_pb2.VIDEO_STATUS_CANCELLED: "cancelled",
}


def _nobody(_record: job_service_pb2.JobRecord) -> None:
    """Whom an end is told that nobody asked for."""


class Committer:
    """Makes records terminal and clears up after the loser.

    Args:
        scope: Owns what goes on after an answer: releasing, cancelling and deleting.
        retention_s: How long a terminal record and its artifact are kept.
        patience_s: How long a client that only streams waits for the records of its job
            to be written before it is told without.
    """

    def __init__(
        self,
        *,
        jobs: JobStore,
        artifacts: ArtifactStore,
        clock: Clock,
        scope: TaskScope,
        metrics: GatewayMetrics,
        retention_s: float,
        patience_s: float,
    ) -> None:
        self._patience_s = patience_s
        self._jobs = jobs
        self._artifacts = artifacts
        self._clock = clock
        self._scope = scope
        self._metrics = metrics
        self._retention_s = retention_s
        self.on_end: Callable[[job_service_pb2.JobRecord], None] = _nobody
        """Told of each end, once it is written or is sure to be."""
        self._pending: set[asyncio.Task[None]] = set()
        self._closed = False
        self.on_stored: Callable[[job_service_pb2.JobRecord], None] = lambda _record: None
        """Called with the record of each video that is complete and in the store."""

    def close(self) -> None:
        """Starts nothing more after answers; the scope is about to end."""
        self._closed = True

    # --- the ends ---

    async def complete(
        self, execution: Execution, link: NodeLink, event: node_service_pb2.NodeEvent
    ) -> Fault | None:
        """Commits a finished video; None once the job's record is terminal.

        Cancellation, once another terminal write has won, leaves no artifact.
        """
        # From here on the node has nothing to stop: it is told to forget.
        execution.committing = True
        forget = True
        try:
            return await self._commit(execution, event)
        except asyncio.CancelledError:
            # Where it has not ended, its next owner takes the bytes from the node.
            forget = execution.log.terminal is not None
            raise
        finally:
            execution.committing = False
            if forget and not execution.disowned:
                self._later("release", self._release, link, execution)

    async def _commit(
        self, execution: Execution, event: node_service_pb2.NodeEvent
    ) -> Fault | None:
        spooled = execution.log.spooled
        result = video_pb2.CompletedEvent()
        result.CopyFrom(event.completed)
        try:
            sha256 = await spooled.seal()
        except (SpoolFull, OSError) as error:
            _log.error("spool failed", job_id=execution.video_id, error=str(error))
            return OWN_DISK
        if not spooled.size or (sha256, spooled.size) != (result.sha256, result.size_bytes):
            return Fault("corrupt_video", "the video's bytes did not match their checksum")
        # The first of the jobs that wait for it and is not ended by somebody else meanwhile.
        while jobs := execution.jobs:
            key = await self._write(spooled, jobs[0].video_id, event.attempt)
            if key is None:
                return _NO_STORE
            try:
                if await self._commit_job(jobs[0], result, key, jobs[0].log.attempt):
                    execution.deliver(Whole(key, result))
                    break
            except Disowned:
                jobs[0].on_disowned()
        self._let_go_of_spool(execution)
        return None

    async def share(self, execution: Execution, whole: Whole) -> bool:
        """Commits a job whose video was drawn for another; its record is terminal then.

        Its artifact is its own, and so is that one's deletion. False: the video is nowhere
        any more, and the job has to be run.

        Raises:
            Disowned: It has another owner.
        """
        spooled, attempt = execution.log.spooled, max(execution.log.attempt, FIRST_ATTEMPT)
        size, sha256 = whole.result.size_bytes, whole.result.sha256
        copy = artifact_key(execution.video_id, attempt)
        key: str | None = copy
        try:
            await self._artifacts.copy(whole.key, copy, size=size, sha256=sha256)
        except ArtifactError as error:
            _log.info("artifact not copied", job_id=execution.video_id, error=str(error))
            # It was deleted meanwhile, say: then the spool has it still.
            key = None
            if spooled.size == size:
                key = await self._write(spooled, execution.video_id, attempt)
        if key is None:
            return False
        await self._commit_job(execution, whole.result, key, attempt)
        self._let_go_of_spool(execution)
        return True

    async def share_record(self, standing: job_service_pb2.JobRecord, whole: Whole) -> bool:
        """The same for a job that this gateway owns and has not taken up again.

        Raises:
            JobStoreAway: Its end could not be written.
        """
        attempt = ordinal_of(standing.epoch, 1)
        key = artifact_key(standing.video.id, attempt)
        size, sha256 = whole.result.size_bytes, whole.result.sha256
        try:
            await self._artifacts.copy(whole.key, key, size=size, sha256=sha256)
        except ArtifactError as error:
            _log.info("artifact not copied", job_id=standing.video.id, error=str(error))
            return False
        ended = self._completed(standing, whole.result, key, attempt)
        if await self._jobs.finish(ended):
            self.on_end(ended)
        else:
            self.discard(key)
        return True

    def _completed(
        self,
        record: job_service_pb2.JobRecord,
        drawn: video_pb2.CompletedEvent,
        key: str,
        attempt: int,
    ) -> job_service_pb2.JobRecord:
        """The record of one of the jobs that a video was drawn for."""
        result = video_pb2.CompletedEvent()
        result.CopyFrom(drawn)
        result.attempt = attempt
        result.cache = record.video.cache or video_pb2.CACHE_STATUS_MISS
        if record.follows:
            # Whom it follows pays.
            result.gpu_seconds = 0.0
        return records.completed(
            record,
            result,
            artifact_key=key,
            now_s=self._clock.wall(),
            retention_s=self._retention_s,
        )

    async def _commit_job(
        self, execution: Execution, drawn: video_pb2.CompletedEvent, key: str, attempt: int
    ) -> bool:
        """Swaps one job's record to COMPLETED; False where another end won.

        What was written under the key stays only where the record names it.
        """
        record = self._completed(execution.record, drawn, key, attempt)
        try:
            standing = await self._settle_patiently(execution, record)
        except asyncio.CancelledError:
            # Without an end that is known the swap may have been made, and name this artifact.
            known = execution.log.terminal is not None
            if known and execution.record.artifact_key != key:
                self.discard(key)
            raise
        except Disowned:
            self.discard(key)
            raise
        if standing is None or standing.artifact_key != key:
            self.discard(key)
            return False
        execution.log.rebase(partial(self._artifacts.read, key))
        self.on_stored(standing)
        return True

    def _let_go_of_spool(self, execution: Execution) -> None:
        """The spool's file goes once every log that reads it has an artifact of its own."""
        run = execution.log.run
        if run.stored:
            run.spooled.rebase(_gone)
            execution.log.settle_memory()

    async def fail(self, execution: Execution, error: video_pb2.FailedEvent) -> None:
        """Ends a job as failed, unless it has ended already.

        Raises:
            Disowned: It has another owner.
        """
        record = records.failed(
            execution.record, error, now_s=self._clock.wall(), retention_s=self._retention_s
        )
        await self._settle_patiently(execution, record)

    async def cancel(self, execution: Execution, reason: str) -> None:
        """Ends a job as cancelled, unless it has ended already.

        Raises:
            Disowned: It has another owner.
            JobStoreAway: Nothing was changed: the job goes on.
        """
        record = records.cancelled(
            execution.record, reason, now_s=self._clock.wall(), retention_s=self._retention_s
        )
        await self._settle(execution, record)

    async def _settle(
        self, execution: Execution, record: job_service_pb2.JobRecord
    ) -> job_service_pb2.JobRecord | None:
        """The first terminal write wins; answers the record that stands, None if deleted."""
        await execution.recorded.wait()
        standing = await self._jobs.finish(record)
        if standing is not None and standing.video.status not in TERMINAL_STATUSES:
            raise Disowned
        # Deleted under way: readers still get an end, this one.
        self._tell_end(execution, standing or record)
        return standing

    async def _settle_patiently(
        self, execution: Execution, record: job_service_pb2.JobRecord
    ) -> job_service_pb2.JobRecord | None:
        """The same through an outage of the records.

        Where only a streaming client waits, it is told first, and it is written later.
        """
        delay_s = _FIRST_SWAP_DELAY_S
        limit = self._patience_s if execution.may_answer_first else None
        try:
            async with asyncio.timeout(limit):
                while True:
                    try:
                        return await self._settle(execution, record)
                    except JobStoreAway as error:
                        _log.warning("end not written", job_id=record.video.id, error=error.code)
                    await self._clock.sleep(delay_s)
                    delay_s = min(2 * delay_s, _MAX_SWAP_DELAY_S)
        except TimeoutError:
            self._tell_end(execution, record)
            self._later("swap", self._swap_in_time, record)
            return record

    async def _swap_in_time(self, record: job_service_pb2.JobRecord) -> None:
        """Writes an end that its client has heard of already, once the records are back."""
        delay_s = _FIRST_SWAP_DELAY_S
        while True:
            try:
                standing = await self._jobs.finish(record)
            except JobStoreAway:
                await self._clock.sleep(delay_s)
                delay_s = min(2 * delay_s, _MAX_SWAP_DELAY_S)
                continue
            if standing is None or standing.artifact_key != record.artifact_key:
                # Its readers may still read this one's artifact; the sweeper takes it later.
                _log.warning(
                    "an end that was told was not the one that stands", job_id=record.video.id
                )
            return

    def _tell_end(self, execution: Execution, standing: job_service_pb2.JobRecord) -> None:
        first = not execution.ended
        execution.finish(standing)
        if first:
            video = execution.record.video
            lasted_ns = video.completed_at.ToNanoseconds() - video.created_at.ToNanoseconds()
            self._metrics.ended(
                _STATES[video.status],
                video.error.code,
                max(lasted_ns, 0) / 1e9,
                video.result.size_bytes,
            )
            self.on_end(execution.record)
            self._later("log", self._log_end, video)

    def note(self, execution: Execution) -> None:
        """Writes what is known of a job that goes on, in the background; lost if it fails."""
        self._later("note", self._note, execution)

    async def _note(self, execution: Execution) -> None:
        await execution.recorded.wait()
        # One at a time: an older one that is repeated must not undo a newer.
        async with execution.noting:
            if execution.ended:
                return
            try:
                await self._jobs.update(execution.record)
            except JobStoreAway:
                _log.info("attempt not noted", job_id=execution.video_id)

    async def _log_end(self, video: video_pb2.Video) -> None:
        await self._clock.sleep(_AFTER_ANSWERS_S)
        _log.info("job ended", job_id=video.id, state=_STATES[video.status], cause=video.error.code)

    # --- what goes on after an answer ---

    def _later(
        self, name: str, work: Callable[..., Awaitable[None]], *args: Any
    ) -> asyncio.Task[None] | None:
        if self._closed:
            # A task that ends with the scope; nodes and sweeper clear up by themselves.
            return None
        task = self._scope.spawn(self._supervise(name, work, *args), name=name)
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return task

    async def _supervise(self, name: str, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        # Takes no coroutine: one whose task is cancelled before its first step is a warning.
        try:
            await work(*args)
        except Exception:  # noqa: BLE001 - a supervisor: nobody's video depends on it any more
            _log.exception("clearing up failed", step=name)

    async def flush(self, limit_s: float) -> None:
        """Waits until nodes and store have heard of what ended, but no longer than that."""
        if self._pending:
            await asyncio.wait(self._pending, timeout=limit_s)

    # --- the artifact ---

    async def _write(self, spooled: VideoBytes, video_id: str, attempt: int) -> str | None:
        """The key under which the whole video now is; None: the store would not take it."""
        # Its own file: whoever ends the job meanwhile closes the spool's.
        whole = spooled.finished()
        try:
            for delay_s in (*_WRITE_DELAYS_S, None):
                # A new one for each try: one that was given up may still be at work.
                key = artifact_key(video_id, attempt)
                try:
                    await self._artifacts.put(key, whole)
                except ArtifactError as error:
                    _log.warning("artifact not written", job_id=video_id, error=str(error))
                else:
                    return key
                if delay_s is not None:
                    await self._clock.sleep(delay_s)
            return None
        finally:
            if isinstance(whole, SpoolFile):
                whole.close()

    def discard(self, key: str) -> None:
        """Deletes an artifact that no record names, in the background."""
        self._later("discard", self._discard, key)

    async def _discard(self, key: str) -> None:
        try:
            await delete_video(self._artifacts, key)
        except ArtifactError as error:
            # The sweeper collects what nobody refers to.
            _log.warning("artifact not deleted", error=str(error))

    # --- the node ---

    async def _release(self, link: NodeLink, execution: Execution) -> None:
        await self._clock.sleep(_AFTER_ANSWERS_S)
        request = node_service_pb2.ReleaseRequest(job_id=execution.video_id, epoch=execution.epoch)
        await self._tell(
            lambda: link.stub.Release(request, timeout=_NODE_CALL_TIMEOUT_S), what="release"
        )

    def stop_at_node(
        self, link: NodeLink, execution: Execution, reason: str
    ) -> asyncio.Task[None] | None:
        """Has the node stop the job's run, in the background; None: too late for that.

        The node is told of the job and not of a try: cancel the task before another try
        there, which replaces the earlier run by itself.
        """
        return self._later("stop", self._stop, link, execution, reason)

    async def _stop(self, link: NodeLink, execution: Execution, reason: str) -> None:
        request = node_service_pb2.CancelRequest(
            job_id=execution.video_id, epoch=execution.epoch, reason=reason
        )
        await self._tell(
            lambda: link.stub.Cancel(request, timeout=_NODE_CALL_TIMEOUT_S), what="cancel"
        )

    async def _tell(self, call: Callable[[], Awaitable[object]], *, what: str) -> None:
        for delay_s in (*_NODE_CALL_DELAYS_S, None):
            try:
                await call()
            except aio.AioRpcError as error:
                if delay_s is None:
                    # The node lets go by itself after its grace time.
                    _log.warning("node not told", what=what, code=error.code().name)
                    return
                await self._clock.sleep(delay_s)
            except aio.UsageError:
                # The node has left the fleet, its channel is closed.
                return
            else:
                return


_NO_STORE = Fault(
    "artifact_store",
    "the finished video could not be stored",
    retryable=False,
    of_node=False,
    client_may_retry=True,
)


async def _gone(_offset: int, _length: int) -> bytes:
    """Where a log would read that has no artifact of its own."""
    raise BytesGone
