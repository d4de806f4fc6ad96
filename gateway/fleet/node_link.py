"""One node as this gateway sees it: its channel, its last status and what was sent since.

The status comes over a ``WatchStatus`` stream that is held to every node. While that
stream is broken the node is no candidate, whatever anybody else says of it; the other
rules are in :mod:`gateway.fleet.candidates`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from grpc import aio
from reelmesh.v1 import control_plane_service_pb2, node_pb2, node_service_pb2
from reelmesh.v1.node_service_pb2_grpc import NodeServiceStub

from gateway.fleet.candidates import NO_WORD, Sight
from gateway.fleet.ejection import Standing
from gateway.fleet.order import Line
from gateway.fleet.placement import ModelKey, NodeView
from gateway.fleet.ticket_stream import TicketStream
from gateway.fleet.tickets import SOON_S
from gateway.output.wire import NodeChunk, decode_run_response
from reelkit.clock import Clock
from reelkit.rpc import in_words, internal_channel
from reelkit.tasks import TaskScope, retry_forever

if TYPE_CHECKING:
    # Exists in the stubs alone.
    from reelmesh.v1.node_service_pb2_grpc import NodeServiceAsyncStub

    from gateway.fleet.waiting import Ticket

    RunCall = aio.UnaryStreamMultiCallable[
        node_service_pb2.RunRequest, node_service_pb2.RunResponse | NodeChunk
    ]


_LIVE_WORKERS = (node_pb2.WORKER_STATE_IDLE, node_pb2.WORKER_STATE_BUSY)

# A node that answered BUSY is left alone until its next status, or for this long where
# that status was lost on the way.
BUSY_HOLD_S = 1.0

# The status comes at once on a sound node.
FIRST_STATUS_S = 5.0


class StreamBroken(Exception):  # noqa: N818 - named for what happened
    """A long-lived stream ended with an error; says which in one line."""


def broken(error: aio.AioRpcError | TimeoutError) -> StreamBroken:
    """The error in one line, without grpc's debugging text."""
    if isinstance(error, aio.AioRpcError):
        return StreamBroken(f"{error.code().name}: {in_words(error.details())}")
    return StreamBroken("no word in time")


class NodeLink:
    """The gateway's end of one node.

    Args:
        record: What the control plane knows of the node.
        channel: Kept open, and so warm, for as long as the link lives.
        clock: For ejection and the hold after BUSY.
        on_change: Called with the link after each change of what :meth:`view` says.
        on_offer: Called with the link and a job that it keeps a slot for; whether that job
            takes it.
        on_first_ticket: Called once there is something for :attr:`tickets` to do.
    """

    def __init__(
        self,
        record: control_plane_service_pb2.NodeRecord,
        *,
        channel: aio.Channel,
        clock: Clock,
        on_change: Callable[[NodeLink], None],
        on_close: Callable[[NodeLink], None],
        on_offer: Callable[[NodeLink, str], bool] = lambda _link, _job_id: False,
        on_first_ticket: Callable[[NodeLink], None] = lambda _link: None,
    ) -> None:
        self.record = record
        self.channel = channel
        self.stub: NodeServiceAsyncStub = NodeServiceStub(channel)
        self.run: RunCall = channel.unary_stream(
            "/reelmesh.v1.NodeService/Run",
            request_serializer=node_service_pb2.RunRequest.SerializeToString,
            response_deserializer=decode_run_response,
        )
        """``stub.Run``, but chunks come as :class:`gateway.output.wire.NodeChunk`."""
        self.status: node_pb2.NodeStatus | None = None
        self.connected = False
        self.seen = False
        """Whether it has answered, or turned out not to, since it was heard of."""
        self.standing = Standing()
        self.tickets = TicketStream(
            stub=self.stub, clock=clock, on_offer=lambda job_id: on_offer(self, job_id)
        )
        self._on_first_ticket: Callable[[NodeLink], None] | None = on_first_ticket
        self._clock = clock
        self._on_change = on_change
        self._on_close = on_close
        self._sent: dict[str, float] = {}
        self._sent_at_s: dict[str, float] = {}
        self._reported: frozenset[str] = frozenset()
        self._busy_until_s = 0.0
        # A refusal holds until a status that is newer than it.
        self._refusal_version = 0
        self._free_at_s = 0.0
        self._alone: str | None = None
        self._trial: str | None = None
        self._view: NodeView | None = None

    @property
    def node_id(self) -> str:
        """The node's id."""
        return self.record.node_id

    # --- its stream ---

    async def watch(self) -> None:
        """Follows the node's status until its stream breaks.

        Raises:
            StreamBroken: It did, or the node takes the stream and says nothing; the node
                is not routable until the next stream brings a status.
        """
        call = self.stub.WatchStatus(node_service_pb2.WatchStatusRequest())
        try:
            async with asyncio.timeout(FIRST_STATUS_S):
                response = await call.read()
            # Later silence is no fault: the channel's pings tell a quiet node from a cut.
            while isinstance(response, node_service_pb2.WatchStatusResponse):
                self._take(response.status)
                response = await call.read()
        except (aio.AioRpcError, TimeoutError) as error:
            raise broken(error) from None
        finally:
            call.cancel()
            self.seen = True
            if self.connected:
                self.connected = False
                self._changed()

    def _take(self, status: node_pb2.NodeStatus) -> None:
        if self.status is not None and self.status.incarnation != status.incarnation:
            self.standing.restarted(self._clock.monotonic())
            self._refusal_version = 0
        self.status = status
        self.connected = self.seen = True
        if not self._refusal_version or status.version > self._refusal_version:
            self._busy_until_s = self._free_at_s = 0.0
        self._reported = frozenset(execution.job_id for execution in status.executions)
        for job_id in self._reported & self._sent.keys():
            del self._sent[job_id]
        self._changed()

    def close(self) -> None:
        """Forgets the node: its watch ends and its channel closes with it."""
        self.connected = False
        self._on_close(self)

    def holds(self, job_id: str) -> bool:
        """Whether the node reported a run of the job last."""
        return job_id in self._reported

    # --- jobs that wait for it ---

    def leave_ticket(self, ticket: Ticket, line: Line[Ticket]) -> bool:
        """Leaves a waiting job's ticket; False where enough lie there."""
        first, self._on_first_ticket = self._on_first_ticket, None
        if first is not None:
            first(self)
        soon = SOON_S if ticket.wants_soon else None
        return self.tickets.leave(ticket.job_id, ticket, line, soon)

    def withdraw_ticket(self, job_id: str) -> None:
        """Takes it back."""
        self.tickets.withdraw(job_id)

    # --- what this gateway sends ---

    def assign(self, job_id: str, seconds: float, *, alone: bool = False) -> None:
        """Counts a job as sent, until a report holds it or :meth:`unassign`."""
        self._sent[job_id] = seconds
        self._sent_at_s[job_id] = self._clock.monotonic()
        if alone:
            self._alone = job_id
        if self.standing.suspect:
            self._trial = job_id
        self._view = None

    def unassign(self, job_id: str) -> None:
        """The job is no longer there on this gateway's account."""
        self._sent.pop(job_id, None)
        self._sent_at_s.pop(job_id, None)
        if self._alone == job_id:
            self._alone = None
        if self._trial == job_id:
            self._trial = None
        self._changed()

    def answered_busy(self, answer: node_service_pb2.Busy | None = None) -> None:
        """Takes its word that it is full or has so much work, until it says otherwise.

        A status that was on its way when it refused is older than the refusal.
        """
        now_s = self._clock.monotonic()
        answer = answer or node_service_pb2.Busy()
        self._refusal_version = answer.status_version
        self._free_at_s = now_s + answer.remaining_work_s
        if not answer.too_long:
            self._busy_until_s = now_s + BUSY_HOLD_S
        self._changed()

    def note_end(self, job_id: str, *, failed: bool) -> float:
        """Learns from the end of a run, before :meth:`unassign`.

        Args:
            job_id: The run's.
            failed: For a cause of the node's own; else it brought the video.

        Returns:
            Seconds for which the node is to rest; 0: nothing follows.
        """
        now_s = self._clock.monotonic()
        sent_at_s = self._sent_at_s.get(job_id, now_s)
        was_suspect = self.standing.suspect
        rest_s = self.standing.note(now_s, sent_at_s=sent_at_s, failed=failed)
        if rest_s or was_suspect != self.standing.suspect:
            self._changed()
        return rest_s

    def _changed(self) -> None:
        self._view = None
        self._on_change(self)

    # --- what it can do ---

    @property
    def ready(self) -> bool:
        """Connected and READY by its own word."""
        return (
            self.connected
            and self.status is not None
            and self.status.state == node_pb2.NODE_STATE_READY
        )

    @property
    def workers(self) -> int:
        """Workers that serve or would."""
        if self.status is None:
            return self.record.worker_count
        return sum(worker.state in _LIVE_WORKERS for worker in self.status.workers)

    @property
    def ready_workers(self) -> int:
        """Workers that take work now."""
        return self.workers if self.ready else 0

    @property
    def models(self) -> frozenset[ModelKey]:
        """The versions it serves, by its own word or else by its record."""
        versions = self.record.models if self.status is None else self.status.models
        return frozenset((version.name, version.version) for version in versions)

    def sight(self, *, listed: bool, word_holds: bool) -> Sight:
        """What there is to judge it by; see :mod:`gateway.fleet.candidates`."""
        status, record = self.status, self.record
        same_life = status is None or record.incarnation in ("", status.incarnation)
        return Sight(
            node_id=self.node_id,
            ready=self.ready,
            said=record.state if word_holds and listed and same_life else NO_WORD,
            listed=listed,
            suspect=self.standing.suspect,
            rests_until_s=self.standing.rests_until_s,
        )

    def view(self, now_s: float, *, routable: bool, on_trial: bool = False) -> NodeView:
        """What placement may know of it now, judged as it was."""
        held_back = now_s < self._busy_until_s
        work_s = max(self._free_at_s - now_s, 0.0)
        if held_back or on_trial or work_s:
            # These end by themselves: what was seen then must not outlive them.
            self._view = None
            return self._make_view(
                routable=routable, held_back=held_back, on_trial=on_trial, work_s=work_s
            )
        view = self._view
        if view is None or view.routable != routable:
            view = self._make_view(routable=routable, held_back=False, on_trial=False)
            self._view = view
        return view

    def _make_view(
        self, *, routable: bool, held_back: bool, on_trial: bool, work_s: float = 0.0
    ) -> NodeView:
        status = self.status or node_pb2.NodeStatus()
        free = max(status.free_slots - len(self._sent), 0)
        if held_back or self._alone in self._sent:
            # Once the node reports the one that is alone, its own figure says it all.
            free = 0
        elif on_trial:
            free = 0 if self._trial else min(free, 1)
        return NodeView(
            node_id=self.node_id,
            models=self.models,
            routable=routable,
            free_slots=free,
            workers=self.workers,
            remaining_work_s=max(status.remaining_work_s, work_s),
            sent_work_s=sum(self._sent.values()),
            units_per_second=status.units_per_second or self.record.units_per_second,
            held_jobs=len(self._reported | self._sent.keys()),
            on_trial=on_trial,
        )


OpenNode = Callable[[str, str], aio.Channel]


def _plaintext(address: str, _node_id: str) -> aio.Channel:
    return internal_channel(address)


class NodeLinks:
    """Makes links to nodes, each with its own status stream and warm channel.

    Args:
        clock: For the links.
        open_channel: Makes a channel to an address and to the node of that id.
    """

    def __init__(self, *, clock: Clock, open_channel: OpenNode = _plaintext) -> None:
        self._clock = clock
        self._open_channel = open_channel
        self._scope: TaskScope | None = None
        self._tasks: dict[NodeLink, list[asyncio.Task[None]]] = {}
        self.on_change: Callable[[NodeLink], None] = lambda _link: None
        """Called with a link whose :meth:`NodeLink.view` changed."""
        self.on_offer: Callable[[NodeLink, str], bool] = lambda _link, _job_id: False
        """Called with a job that a node keeps a slot for; whether the job takes it."""

    def spawn_in(self, scope: TaskScope) -> None:
        """Names the scope that owns the streams; call it before :meth:`open`."""
        self._scope = scope

    def open(self, record: control_plane_service_pb2.NodeRecord) -> NodeLink:
        """A link to a node; its watch runs until the link is closed.

        Raises:
            RuntimeError: :meth:`spawn_in` was not called, or its scope is closed.
        """
        if self._scope is None:
            raise RuntimeError("links are opened after their scope is known")
        link = NodeLink(
            record,
            channel=self._open_channel(record.address, record.node_id),
            clock=self._clock,
            on_change=lambda changed: self.on_change(changed),
            on_close=self._closed,
            on_offer=lambda offering, job_id: self.on_offer(offering, job_id),
            on_first_ticket=self._follow_tickets,
        )
        watch = retry_forever(
            link.watch,
            name=f"watch-status {record.node_id}",
            clock=self._clock,
            expected=(StreamBroken,),
            first_delay_s=0.1,
            max_delay_s=1.0,
        )
        self._tasks[link] = [self._scope.spawn(watch, name=f"node/{record.node_id}")]
        return link

    def _follow_tickets(self, link: NodeLink) -> None:
        if self._scope is None or link not in self._tasks:
            return
        follow = retry_forever(
            link.tickets.run,
            name=f"tickets {link.node_id}",
            clock=self._clock,
            expected=(aio.AioRpcError,),
            first_delay_s=0.1,
            max_delay_s=1.0,
        )
        self._tasks[link].append(self._scope.spawn(follow, name=f"tickets/{link.node_id}"))

    def _closed(self, link: NodeLink) -> None:
        for task in self._tasks.pop(link):
            task.cancel()
        if self._scope is not None:
            self._scope.spawn(link.channel.close(), name=f"close/{link.node_id}", fatal=False)

    def stop(self) -> None:
        """Tells nobody of changes any more; the scope is about to end the streams."""
        self.on_change = lambda _link: None
        self.on_offer = lambda _link, _job_id: False

    async def close(self) -> None:
        """Closes every channel."""
        for link in self._tasks:
            await link.channel.close()
