"""Attach: a node agent's stream, from hello to goodbye."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import Any

import structlog
from google.protobuf import timestamp_pb2
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import node_pb2, registry_pb2

from control_plane.attach_stream import AttachStream, Leasing, OpenStreams, first_request
from control_plane.desired import DesiredStates
from control_plane.errors import InvalidRequestError, StoreError
from control_plane.health.assess import Assessment
from control_plane.health.track import NodeTrack
from control_plane.health.watch import HealthWatch, NodeWatch
from control_plane.history import falls_ago_s
from control_plane.keys import Keys
from control_plane.records import (
    decoded_node,
    departed_record,
    encode_node,
    model_puts,
    node_record,
    routed_alike,
    worth_writing,
)
from control_plane.registry.wanted import WantedWeightsPlan
from control_plane.store.port import Put
from control_plane.validation import check_node_hello, check_node_status

_log = structlog.get_logger("control_plane.attach")


class NodeAttachment:
    """Serves Attach for one region on this replica."""

    def __init__(
        self,
        *,
        region: str,
        replica_id: str,
        keys: Keys,
        leasing: Leasing,
        desired: DesiredStates,
        weights: WantedWeightsPlan,
        health: HealthWatch,
    ) -> None:
        self.streams = OpenStreams()
        self._health = health
        self._region = region
        self._replica_id = replica_id
        self._keys = keys
        self._leasing = leasing
        self._desired = desired
        self._weights = weights

    async def serve(
        self, requests: AsyncIterator[cp.AttachRequest]
    ) -> AsyncGenerator[cp.AttachResponse, None]:
        """Responses of one stream.

        Raises:
            InvalidRequestError: A message breaks a rule; names the field.
            SupersededError: The node attached anew elsewhere.
            NotReadyError: This replica stops.
            StoreError: The store is away and the node is not in it yet.
        """
        first = await first_request(requests)
        if first.WhichOneof("message") != "hello":
            raise InvalidRequestError("message", "the first one must be a hello")
        hello = first.hello
        check_node_hello(hello, region=self._region)
        stream = _NodeStream(
            hello,
            replica_id=self._replica_id,
            keys=self._keys,
            leasing=self._leasing,
            streams=self.streams,
            desired=self._desired,
            weights=self._weights,
            health=self._health,
        )
        async with self._leasing.opening:
            await stream.open()
        with (
            self._desired.waking(stream.wake),
            self._weights.waking(hello.node_id, stream.wake),
        ):
            async with contextlib.aclosing(stream.run(requests)) as responses:
                async for response in responses:
                    yield response


class _NodeStream(AttachStream[cp.AttachRequest, cp.AttachResponse]):
    def __init__(
        self,
        hello: cp.NodeHello,
        *,
        replica_id: str,
        keys: Keys,
        leasing: Leasing,
        streams: OpenStreams,
        desired: DesiredStates,
        weights: WantedWeightsPlan,
        health: HealthWatch,
    ) -> None:
        super().__init__(
            name=f"attach/{hello.node_id}",
            key=keys.node(hello.node_id),
            leasing=leasing,
            streams=streams,
            also=model_puts(hello, keys),
        )
        self._hello = hello
        self._replica_id = replica_id
        self._keys = keys
        self._leasing = leasing
        self._desired = desired
        self._weights = weights
        self._health = health
        self._told: cp.DesiredNodeState | None = None
        self._told_weights: registry_pb2.NodeWeights | None = None
        # What the record was made from, and as the store has it.
        self._judged: Assessment | None = None
        self._taken = node_pb2.NodeStatus()
        self._value = b""
        self._welcomed = False

    async def open(self) -> None:
        """Puts the node in the store, under its earlier lease where that still lasts."""
        before = await self._before()
        self._track = NodeTrack(
            rules=self._health.rules,
            lease_ttl_s=self._leasing.ttl_s,
            status=self._hello.status,
            now_s=self._leasing.clock.monotonic(),
            before=before.state,
            before_reason=before.reason,
        )
        self._record, self._value = before, encode_node(before)
        self._take(self._track.now)
        await self.session.open(self._value, lease_id=self._hello.lease_id)
        _log.info(
            "node attached",
            node=self._hello.node_id,
            address=self._hello.address,
            kept_lease=self.session.record.lease_id == self._hello.lease_id,
        )

    async def _before(self) -> cp.NodeRecord:
        """What another replica judged of this life of the node, or nothing.

        A node that moves between replicas must not change its state for it.
        """
        found = await self._leasing.store.get(self._keys.node(self._hello.node_id))
        record = decoded_node(found.value) if found is not None else None
        if record is None or record.incarnation != self._hello.incarnation:
            return cp.NodeRecord()
        return record

    def responses(self) -> list[cp.AttachResponse]:
        news = []
        if self.lease_news():
            if self._welcomed:
                # The lease ran out under it: for everybody else it was gone for a moment.
                self._track.fell(now_s=self._leasing.clock.monotonic())
            self._welcomed = True
            welcome = cp.AttachWelcome(
                lease_id=self.session.record.lease_id,
                lease_ttl_s=self.session.record.ttl_s,
                replica_id=self._replica_id,
            )
            news.append(cp.AttachResponse(welcome=welcome))
        desired = self._desired.of(self._hello.node_id)
        if self._desired.loaded and desired != self._told:
            self._told = desired
            news.append(cp.AttachResponse(desired=desired))
        weights = self._weights.of(self._hello.node_id)
        if weights is not None and weights != self._told_weights:
            self._told_weights = weights
            news.append(cp.AttachResponse(weights=weights))
        return news

    def receive(self, request: cp.AttachRequest) -> None:
        if request.WhichOneof("message") != "status":
            raise InvalidRequestError("message", "must be a status after the hello")
        check_node_status(request.status, hello=self._hello)
        now_s = self._leasing.clock.monotonic()
        self._take(self._track.reported(request.status, now_s=now_s))
        self.session.report(self._value)

    def background(self) -> Sequence[Coroutine[Any, Any, None]]:
        watch = NodeWatch(
            self._health,
            node_id=self._hello.node_id,
            address=self._hello.address,
            models=self._hello.models,
            track=self._track,
            on_change=self._revise,
        )
        return (self._recall(), watch.run())

    async def _recall(self) -> None:
        """Learns from the node's history how often it fell of late."""
        window_s = self._health.rules.flapping.window_s
        try:
            found = await self._leasing.store.get(self._keys.history(self._hello.node_id))
        except StoreError as error:
            _log.info("a node's history is not known", node=self._hello.node_id, error=str(error))
            return
        if found is None:
            return
        clock = self._leasing.clock
        ages_s = falls_ago_s(found.value, now_s=clock.wall(), within_s=window_s)
        self._track.remember_falls(clock.monotonic() - age_s for age_s in ages_s)

    def _revise(self, judged: Assessment) -> None:
        before = self._record
        self._take(judged)
        if self._record is not before:
            self.session.revise(self._value)

    def _take(self, judged: Assessment) -> None:
        """Makes the record what was judged, where the store should hear of it."""
        status = self._track.status
        if judged == self._judged and routed_alike(status, self._taken):
            # Nearly every report: the node lives, and nothing is new.
            return
        self._judged, self._taken = judged, status
        old = self._record
        since = old.state_since
        if judged.state != old.state or not old.HasField("state_since"):
            since = timestamp_pb2.Timestamp()
            since.FromNanoseconds(int(self._leasing.clock.wall() * 1e9))
        record = node_record(self._hello, status, judged=judged, since=since)
        if not worth_writing(old, record):
            return
        if record.state != old.state:
            _log.info(
                "node state",
                node=record.node_id,
                state=node_pb2.NodeState.Name(record.state),
                was=node_pb2.NodeState.Name(old.state),
                reason=record.reason,
            )
        self._record, self._value = record, encode_node(record)

    async def goodbye(self) -> None:
        if self._record.state != node_pb2.NODE_STATE_DRAINING:
            return
        left = Put(
            self._keys.departed(self._hello.node_id),
            departed_record(self._record, reason="left in good order"),
        )
        try:
            await self.session.close(also=[left])
        except StoreError as error:
            # The lease takes the record out in its time.
            _log.info("goodbye not stored", node=self._hello.node_id, error=str(error))
        else:
            _log.info("node left", node=self._hello.node_id)
