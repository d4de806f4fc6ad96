"""The agent's stream to one of its control planes: who it is, how it fares, what it should be.

The stream moves on to the next replica when it breaks; the lease id goes with it, so
that the node's record stays while another replica takes over. Without any control
plane the node goes on serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import structlog
from grpc import aio
from reelmesh.v1.control_plane_service_pb2 import (
    AttachRequest,
    AttachResponse,
    DesiredNodeState,
    NodeHello,
)
from reelmesh.v1.control_plane_service_pb2_grpc import ControlPlaneServiceStub
from reelmesh.v1.model_pb2 import ModelInfo
from reelmesh.v1.node_pb2 import NodeStatus
from reelmesh.v1.registry_pb2 import NodeWeights

from node_agent.status import StatusBoard
from reelkit.clock import Clock
from reelkit.rpc import REPORTS_PER_LEASE, in_words, internal_channel
from reelkit.tasks import TaskScope, retry_forever

_log = structlog.get_logger("node_agent.attach")

# A replica whose store is slow still answers in this time, or another is asked.
_WELCOME_S = 5.0
_WRITE_S = 5.0
# Until the welcome says what a lease lasts.
_DEFAULT_TTL_S = 6.0
_MIN_BEAT_S = 0.2
_MAX_DELAY_S = 2.0

AttachCall = aio.StreamStreamCall[AttachRequest, AttachResponse]


class AttachLostError(Exception):
    """The replica ended the stream or did not answer."""


@dataclass(frozen=True)
class Identity:
    """Who attaches."""

    node_id: str
    region: str
    address: str
    incarnation: str


class Attachment:
    """Keeps the node attached to one of its control planes."""

    def __init__(
        self,
        *,
        identity: Identity,
        control_planes: Sequence[str],
        board: StatusBoard,
        models: Callable[[], Sequence[ModelInfo]],
        on_weights: Callable[[NodeWeights], None],
        clock: Clock,
        open_channel: Callable[[str], aio.Channel] = internal_channel,
    ) -> None:
        self._open_channel = open_channel
        self.lease_id = 0
        self.replica_id = ""
        self._identity = identity
        self._control_planes = control_planes
        self._board = board
        self._models = models
        self._on_weights = on_weights
        self._clock = clock
        # Nodes begin at different replicas, and each node always at the same.
        self._turn = zlib.crc32(identity.node_id.encode())
        self._ttl_s = _DEFAULT_TTL_S
        self._call: AttachCall | None = None
        self._leaving = False
        self._gone = asyncio.Event()

    async def run(self) -> None:
        """Attaches again and again until :meth:`goodbye` or cancelled."""
        if self._control_planes:
            await retry_forever(
                self._attach,
                name="attach",
                clock=self._clock,
                expected=(AttachLostError, TimeoutError),
                max_delay_s=_MAX_DELAY_S,
            )

    def renew_hello(self) -> None:
        """Attaches anew, since what the hello said (the models) has changed."""
        if self._call is not None:
            self._call.cancel()

    async def goodbye(self, *, timeout_s: float = 1.0) -> None:
        """Ends the stream cleanly, which takes the node's record out at once."""
        self._leaving = True
        if self._call is None:
            return
        # Wakes the reporter, which says it: only a draining node is taken out at once.
        self._board.wish(stopping=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._gone.wait()

    async def _attach(self) -> None:
        """One stream to one replica, from hello to its end."""
        if self._leaving:
            await asyncio.Event().wait()
        address = self._control_planes[self._turn % len(self._control_planes)]
        self._turn += 1
        async with self._open_channel(address) as channel:
            call = ControlPlaneServiceStub(channel).Attach()
            try:
                await self._converse(call, address)
            except aio.AioRpcError as error:
                # In one line: grpc's own text is for its authors.
                raise AttachLostError(f"{error.code().name}: {in_words(error.details())}") from None
            finally:
                self._call = None
                call.cancel()

    async def _converse(self, call: AttachCall, address: str) -> None:
        status = self._board.current
        hello = self._hello(status)
        async with asyncio.timeout(_WELCOME_S):
            await call.write(AttachRequest(hello=hello))
            self._take(await call.read())
        # From here on renew_hello and goodbye find the call.
        self._call = call
        if list(hello.models) != list(self._models()):
            raise AttachLostError("the models changed since the hello")
        _log.info("attached", replica=self.replica_id, address=address, lease_ttl_s=self._ttl_s)
        async with TaskScope("attach") as scope:
            scope.spawn(self._report(call, status), name="report", fatal=False)
            try:
                while True:
                    self._take(await call.read())
            except AttachLostError:
                if not self._leaving:
                    raise
                self._gone.set()
            except asyncio.CancelledError:
                if _told_to_stop():
                    raise
                # grpc's word for a call that this side dropped: see renew_hello.
                raise AttachLostError("the stream was dropped to attach anew") from None

    def _hello(self, status: NodeStatus) -> NodeHello:
        identity = self._identity
        return NodeHello(
            node_id=identity.node_id,
            region=identity.region,
            address=identity.address,
            incarnation=identity.incarnation,
            models=self._models(),
            pid=os.getpid(),
            status=status,
            lease_id=self.lease_id,
        )

    def _take(self, response: object) -> None:
        if not isinstance(response, AttachResponse):
            raise AttachLostError(
                f"control plane {self.replica_id or '(unnamed)'} ended the stream"
            )
        if response.HasField("welcome"):
            welcome = response.welcome
            self.lease_id, self.replica_id = welcome.lease_id, welcome.replica_id
            self._ttl_s = welcome.lease_ttl_s or _DEFAULT_TTL_S
        elif response.HasField("desired"):
            self._obey(response.desired)
        elif response.HasField("weights"):
            self._on_weights(response.weights)

    def _obey(self, desired: DesiredNodeState) -> None:
        wishes = self._board.wishes
        if (wishes.cordoned, wishes.draining) != (desired.cordoned, desired.draining):
            _log.info("desired state", cordoned=desired.cordoned, draining=desired.draining)
            self._board.wish(cordoned=desired.cordoned, draining=desired.draining)

    async def _report(self, call: AttachCall, said: NodeStatus) -> None:
        """Sends the status when it matters to the fleet, and as a beat well within the lease."""
        try:
            while not self._leaving:
                said = await self._next_report(said)
                async with asyncio.timeout(_WRITE_S):
                    await call.write(AttachRequest(status=said))
            await call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # The reader sees the same end and says why.
        except TimeoutError:
            _log.warning("control plane does not read", replica=self.replica_id)
            call.cancel()

    async def _next_report(self, said: NodeStatus) -> NodeStatus:
        beat_s = max(self._ttl_s / REPORTS_PER_LEASE, _MIN_BEAT_S)
        status = said
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(beat_s):
                while not self._leaving and _gist(status) == _gist(said):
                    status = await self._board.next(status.version)
        return self._board.current


def _told_to_stop() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _gist(status: NodeStatus) -> tuple[object, ...]:
    """What the fleet's record holds of a status; queue and progress are not in it."""
    return (
        status.state,
        status.reason,
        [(model.name, model.version, model.manifest_sha256) for model in status.models],
        [(worker.id, worker.pid) for worker in status.workers],
        [(each.manifest_sha256, each.state) for each in status.weights],
    )
