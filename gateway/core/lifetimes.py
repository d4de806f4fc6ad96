"""How long executions live: their tasks, deadlines, absent clients, and shutdown."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
from reelmesh.v1 import video_pb2

from gateway.core.commit import Committer
from gateway.core.execution import Disowned, Execution, Whole
from gateway.core.runner import Runner
from gateway.core.sharing import Sharing
from gateway.fleet.waiting import WaitingRoom
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

# What drain gives nodes and the artifact store to hear of the end, beyond its limit.
_FLUSH_S = 2.0

# After that a job's record says that it runs, and on which node.
_NOTE_AFTER_S = 1.0

# Between attempts to write a job's end where the store fails.
_STORE_FIRST_DELAY_S = 0.2
_STORE_MAX_DELAY_S = 5.0

_BROKEN = video_pb2.FailedEvent(
    code="internal", message="the gateway failed to run this video", retryable=True
)

_log = structlog.get_logger("gateway.lifetimes")


class Lifetimes:
    """The executions that this gateway owns, from admission until nobody needs them.

    Args:
        sharing: The runs that jobs share.
        scope: Owns each job's task.
        client_grace_s: How long a job that nobody keeps runs on unwatched.
        linger_s: How long an ended one is kept, for readers that come back.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        waiting: WaitingRoom,
        committer: Committer,
        sharing: Sharing,
        clock: Clock,
        scope: TaskScope,
        client_grace_s: float,
        linger_s: float,
    ) -> None:
        self._runner = runner
        self._waiting = waiting
        self._committer = committer
        self._sharing = sharing
        self._clock = clock
        self._scope = scope
        self._client_grace_s = client_grace_s
        self._linger_s = linger_s
        self._executions: dict[str, Execution] = {}
        # Until when, by id, in that order: all linger equally long. (A dict whose first entries
        # are taken one by one is searched from its old beginning each time.)
        self._lingering: OrderedDict[str, float] = OrderedDict()
        self._pruning = False
        self._live = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self.draining = False

    @property
    def live(self) -> int:
        """Jobs that have not ended."""
        return self._live

    @property
    def held(self) -> int:
        """Jobs that are live or ended a short while ago."""
        return len(self._executions)

    def get(self, video_id: str) -> Execution | None:
        """The execution of a video that is live or ended a short while ago."""
        self._prune()
        return self._executions.get(video_id)

    def forget(self, video_id: str) -> None:
        """Drops a deleted one; those who read it read on."""
        self._executions.pop(video_id, None)
        self._lingering.pop(video_id, None)

    # --- a life ---

    def begin(self, execution: Execution) -> None:
        """Starts the job."""
        self._executions[execution.video_id] = execution
        self._live += 1
        self._idle.clear()
        execution.log.on_readers = partial(self._readers_changed, execution)
        execution.on_running = partial(self._note_running, execution)
        execution.on_disowned = partial(self.disown, execution)
        if execution.leader is None:
            self._sharing.open(execution)
        left_s = execution.deadline_at_s - self._clock.monotonic()
        deadline = self._scope.spawn(
            self._expire(execution, left_s), name=f"deadline/{execution.video_id}"
        )
        execution.task = self._scope.spawn(
            self._supervise(execution), name=f"job/{execution.video_id}"
        )
        # No finally inside the task: one that is cancelled before its first step runs none.
        execution.task.add_done_callback(lambda _task: self._end(execution, deadline))
        if not execution.keep:
            self._readers_changed(execution, 0)

    async def _supervise(self, execution: Execution) -> None:
        try:
            await self._run(execution)
        except asyncio.CancelledError as cancelled:
            # The task keeps it, with each frame of its traceback, and some refer to the task:
            # a circle that holds all of the job until a garbage collection comes by.
            cancelled.__traceback__ = None
            raise
        except Disowned:
            self.disown(execution)
        except Exception:  # noqa: BLE001 - the supervisor of jobs: one job's bug ends that job
            _log.exception("job broke off", job_id=execution.video_id)
            execution.deliver(_BROKEN)
            await self._until_ended(execution, lambda: self._committer.fail(execution, _BROKEN))

    async def _run(self, execution: Execution) -> None:
        """Runs the job, or waits for the run that it shares."""
        if execution.outcome is not None:
            outcome = await execution.outcome
            if isinstance(outcome, Whole):
                if await self._committer.share(execution, outcome):
                    return
                self._sharing.lead(execution)
            elif outcome is not None:
                await self._committer.fail(execution, outcome)
                return
        await self._runner.run(execution)

    async def _until_ended(
        self, execution: Execution, write: Callable[[], Awaitable[None]]
    ) -> None:
        """Makes a job terminal; a store that fails is asked again until the job has ended."""
        delay_s = _STORE_FIRST_DELAY_S
        while not execution.ended:
            try:
                await write()
            except Disowned:
                self.disown(execution)
            except Exception as error:  # noqa: BLE001 - a supervisor: the end must come
                _log.warning("end not written", job_id=execution.video_id, error=str(error))
                await self._clock.sleep(delay_s)
                delay_s = min(2 * delay_s, _STORE_MAX_DELAY_S)

    def disown(self, execution: Execution) -> None:
        """Stops to own a job whose record says another: its run and its readers move on."""
        _log.info("job has another owner", job_id=execution.video_id)
        execution.disowned = True
        self._give_up(execution)
        task = execution.task
        if task is not None and not task.done() and task is not asyncio.current_task():
            task.cancel()

    def _give_up(self, execution: Execution) -> None:
        """The job is none of this gateway's any more."""
        execution.ended = True
        execution.log.abandon()
        if self._executions.get(execution.video_id) is execution:
            del self._executions[execution.video_id]

    def abort(self, execution: Execution, reason: str) -> None:
        """Ends one that was never recorded, as if it had never been."""
        execution.recorded.set()
        self._give_up(execution)
        self._stop(execution, reason)

    def _note_running(self, execution: Execution) -> None:
        """Has the record say that it runs, and where, if it still does in a while."""
        if not execution.ended and not self._closed:
            self._scope.spawn(self._note_later(execution), name=f"note/{execution.video_id}")

    async def _note_later(self, execution: Execution) -> None:
        # Most small videos are done by then, and cost the records no further write.
        await self._clock.sleep(_NOTE_AFTER_S)
        if not execution.ended and not self._closed:
            self._committer.note(execution)

    def _end(self, execution: Execution, deadline: asyncio.Task[None]) -> None:
        deadline.cancel()
        self._waiting.abandon(execution.ticket)
        self._part(execution)
        self._live -= 1
        if not self._live:
            self._idle.set()
        if execution.grace is not None:
            execution.grace.cancel()
            execution.grace = None
        execution.let_go()
        if self._executions.get(execution.video_id) is execution:
            self._lingering[execution.video_id] = self._clock.monotonic() + self._linger_s
        self._prune()
        if self._lingering and not self._pruning and not self._closed:
            self._pruning = True
            self._scope.spawn(self._prune_in_time(), name="prune")

    def _part(self, execution: Execution) -> None:
        """A job that has ended shares no run; one that nobody waits for is stopped."""
        self._sharing.close(execution)
        leader = self._sharing.left(execution)
        if self._closed:
            return
        self._sharing.regroup(execution)
        if leader is not None:
            self._stop_run(leader, execution.record.video.error.code or "client")

    async def _prune_in_time(self) -> None:
        """Drops each when its time has come, until there is none: no request need come."""
        while self._lingering:
            first_s = next(iter(self._lingering.values()))
            await self._clock.sleep(max(first_s - self._clock.monotonic(), 0.0))
            self._prune()
        self._pruning = False

    def _prune(self) -> None:
        """Drops those that ended long enough ago."""
        now_s = self._clock.monotonic()
        while self._lingering:
            video_id, until_s = next(iter(self._lingering.items()))
            if until_s > now_s:
                return
            self.forget(video_id)

    async def _expire(self, execution: Execution, left_s: float) -> None:
        await self._clock.sleep(left_s)
        error = video_pb2.FailedEvent(
            code="deadline_exceeded", message="the job's deadline passed", retryable=True
        )
        await self._until_ended(execution, lambda: self._committer.fail(execution, error))
        self._stop(execution, "deadline")

    # --- ends from outside ---

    async def cancel(self, execution: Execution, reason: str) -> None:
        """Makes the job cancelled unless it has ended, and stops its run."""
        await self._committer.cancel(execution, reason)
        self._stop(execution, reason)

    def _stop(self, execution: Execution, reason: str) -> None:
        """Ends the task of a job that has ended otherwise than by it.

        A run that others share goes on for them.
        """
        if execution.task is None or execution.task.done():
            return
        if execution.record.video.status == video_pb2.VIDEO_STATUS_COMPLETED:
            # Its own commit has won and is about to say so.
            return
        if not self._sharing.hand_on(execution):
            self._stop_run(execution, reason)

    def _stop_run(self, execution: Execution, reason: str) -> None:
        self._sharing.close(execution)
        if execution.link is not None and not execution.committing:
            self._committer.stop_at_node(execution.link, execution, reason)
        if execution.task is not None:
            execution.task.cancel()

    # --- clients that leave ---

    def keep(self, execution: Execution) -> None:
        """From now on the job runs whether anybody watches or not."""
        if not execution.keep and not execution.ended:
            execution.record.keep = True
            # Whoever owns it next must know.
            self._committer.note(execution)
        if execution.grace is not None:
            execution.grace.cancel()
            execution.grace = None

    def _readers_changed(self, execution: Execution, readers: int) -> None:
        if execution.keep or execution.ended:
            return
        if readers and execution.grace is not None:
            execution.grace.cancel()
            execution.grace = None
        elif not readers and execution.grace is None and not self._closed:
            execution.grace = self._scope.spawn(
                self._miss(execution), name=f"grace/{execution.video_id}"
            )

    async def _miss(self, execution: Execution) -> None:
        await self._clock.sleep(self._client_grace_s)
        execution.grace = None
        reason = "disconnected"
        await self._until_ended(execution, lambda: self._committer.cancel(execution, reason))
        self._stop(execution, reason)

    # --- shutdown ---

    async def drain(self, limit_s: float) -> None:
        """Admits nothing more, waits for live jobs to end, and fails those that do not."""
        self.draining = True
        waiting = self._scope.spawn(self._idle.wait(), name="drain", fatal=False)
        timer = self._scope.spawn(self._clock.sleep(limit_s), name="drain-limit", fatal=False)
        await asyncio.wait([waiting, timer], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        timer.cancel()
        # Those that share a run before the one that leads it.
        left = [e for e in self._executions.values() if not e.ended]
        left.sort(key=lambda execution: execution.leader is None)
        if left:
            _log.warning("jobs given up", jobs=len(left))
        for execution in left:
            if execution.record.video.durable:
                # Its record outlives this gateway: another one goes on with it, attaching to
                # the run that the node keeps for a while.
                self.disown(execution)
                continue
            error = video_pb2.FailedEvent(
                code="gateway_stopped",
                message="the gateway was shut down before the video was done",
                retryable=True,
            )
            try:
                await self._committer.fail(execution, error)
            except Exception:  # noqa: BLE001 - a supervisor: the others are ended too
                _log.exception("end not written", job_id=execution.video_id)
            self._stop(execution, "gateway_stopped")
        await self._committer.flush(_FLUSH_S)

    def close(self) -> None:
        """Starts nothing more; the scope is about to cancel what is left."""
        self.draining = self._closed = True
        self._waiting.close()
        self._committer.close()
