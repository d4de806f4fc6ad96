"""Makes executions: of a job that is admitted here, and of one that had another owner."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from reelmesh.v1 import job_service_pb2, video_pb2

from gateway.core.execution import Execution
from gateway.fleet.node_link import NodeLink
from gateway.fleet.nodes import Fleet
from gateway.fleet.order import Standing
from gateway.fleet.placement import Ask, work_units
from gateway.fleet.waiting import Ticket, WaitingRoom
from gateway.output.event_log import EventLog
from gateway.output.spool import VideoBytes
from gateway.priority import rank
from gateway.tenants import Policies, weight_of
from reelkit.clock import Clock

# A node tells its status within milliseconds of being heard of, or is not there.
SIGHT_S: Final = 1.0
SIGHT_EVERY_S: Final = 0.02


def ask_of(spec: video_pb2.ResolvedSpec) -> Ask:
    """What a job needs of a node."""
    units = work_units(spec.width, spec.height, spec.num_frames, spec.steps)
    return Ask(model=(spec.model, spec.model_version), units=units)


class Executions:
    """Makes executions from records.

    Args:
        policies: Where tenants' weights are looked up.
        new_bytes: Makes the spool of an attempt.
        max_lifetime_s: Deadline of a job that names none, from its admission.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        waiting: WaitingRoom,
        policies: Policies,
        new_bytes: Callable[[], VideoBytes],
        clock: Clock,
        max_lifetime_s: float,
    ) -> None:
        self._fleet = fleet
        self._waiting = waiting
        self._policies = policies
        self._new_bytes = new_bytes
        self._clock = clock
        self._max_lifetime_s = max_lifetime_s

    def admitted(self, record: job_service_pb2.JobRecord) -> Execution:
        """A new job; it stands in line, or has a node, when this returns."""
        ask, standing = ask_of(record.video.spec), self._standing(record)
        log = self._log(record, standing)
        ticket = self._waiting.enter(record.video.id, ask, standing, log.tell_position)
        return self._execution(record, log, ticket)

    def following(self, record: job_service_pb2.JobRecord, leader: Execution) -> Execution:
        """A job that shares another's run; see :meth:`gateway.core.sharing.Sharing.join`."""
        ask, standing = ask_of(record.video.spec), self._standing(record)
        log = self._log(record, standing, follows=leader.log)
        self._waiting.hasten(leader.ticket, standing)
        ticket = self._waiting.ticket(record.video.id, ask, standing, log.tell_position)
        return self._execution(record, log, ticket)

    def adopted(self, record: job_service_pb2.JobRecord) -> Execution:
        """One whose former owner is gone; it goes on at the node that still runs it."""
        ask, standing = ask_of(record.video.spec), self._standing(record)
        log = self._log(record, standing)
        ticket = self._waiting.ticket(record.video.id, ask, standing, log.tell_position)
        execution = self._execution(record, log, ticket)
        execution.adopted_from = self._runs_at(record)
        # Whoever cancels it before its run begins anew must reach that node.
        execution.link = execution.adopted_from
        execution.recorded.set()
        return execution

    async def look_around(self) -> None:
        """Gives nodes that were heard of just now a moment to say what they run.

        Else a job that goes on at one of them would be begun anew at another.
        """
        give_up_s = self._clock.monotonic() + SIGHT_S
        while not self._fleet.sighted and self._clock.monotonic() < give_up_s:
            await self._clock.sleep(SIGHT_EVERY_S)

    def _standing(self, record: job_service_pb2.JobRecord) -> Standing:
        now_s, wall_s = self._clock.monotonic(), self._clock.wall()
        deadline_at_s = math.inf
        if record.HasField("deadline"):
            deadline_at_s = now_s + record.deadline.ToNanoseconds() / 1e9 - wall_s
        age_s = max(wall_s - record.video.created_at.ToNanoseconds() / 1e9, 0.0)
        return Standing(
            tenant=record.tenant,
            rank=rank(record.video.priority),
            weight=weight_of(self._policies.of(record.tenant)),
            deadline_at_s=deadline_at_s,
            came_at_s=now_s - age_s,
        )

    def _log(
        self,
        record: job_service_pb2.JobRecord,
        standing: Standing,
        *,
        follows: EventLog | None = None,
    ) -> EventLog:
        model = ask_of(record.video.spec).model
        queued = video_pb2.QueuedEvent(
            position=self._waiting.ahead(model, standing),
            # None, and so unset, where the last node went since it was admitted.
            eta_s=self._waiting.predicted_wait_s(model, standing),
            durable=record.video.durable,
            spec=record.video.spec,
        )
        if follows is not None:
            queued.position = follows.position
        return EventLog(
            video_id=record.video.id,
            new_bytes=self._new_bytes,
            queued=queued,
            follows=None if follows is None else follows.run,
            epoch=record.epoch,
        )

    def _execution(
        self, record: job_service_pb2.JobRecord, log: EventLog, ticket: Ticket
    ) -> Execution:
        now_s = self._clock.wall()
        if record.HasField("deadline"):
            left_s = record.deadline.ToNanoseconds() / 1e9 - now_s
        else:
            age_s = now_s - record.video.created_at.ToNanoseconds() / 1e9
            left_s = self._max_lifetime_s - max(age_s, 0.0)
        return Execution(
            record=record,
            log=log,
            ticket=ticket,
            deadline_at_s=self._clock.monotonic() + left_s,
        )

    def _runs_at(self, record: job_service_pb2.JobRecord) -> NodeLink | None:
        """The node that holds a run of the job, by its own word or else by the record."""
        for link in self._fleet.links:
            if link.connected and link.holds(record.video.id):
                return link
        if record.follows:
            # It shared a run that went by another's id.
            return None
        last = next((a for a in reversed(record.attempts) if not a.cause), None)
        then = self._fleet.link(last.node_id) if last is not None else None
        return then if then is not None and then.connected else None
