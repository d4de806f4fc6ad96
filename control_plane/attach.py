"""Attach: a node agent's stream, from hello to goodbye."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import structlog
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import node_pb2

from control_plane.attach_stream import AttachStream, Leasing, OpenStreams, first_request
from control_plane.desired import DesiredStates
from control_plane.errors import InvalidRequestError, StoreError
from control_plane.keys import Keys
from control_plane.records import encode_node, model_puts, node_record, worth_writing
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
    ) -> None:
        self.streams = OpenStreams()
        self._region = region
        self._replica_id = replica_id
        self._keys = keys
        self._leasing = leasing
        self._desired = desired

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
        )
        await stream.open()
        with self._desired.waking(stream.wake):
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
        self._desired = desired
        self._told: cp.DesiredNodeState | None = None
        self._record = node_record(hello, hello.status)

    async def open(self) -> None:
        """Puts the node in the store, under its earlier lease where that still lasts."""
        await self.session.open(encode_node(self._record), lease_id=self._hello.lease_id)
        _log.info(
            "node attached",
            node=self._hello.node_id,
            address=self._hello.address,
            kept_lease=self.session.record.lease_id == self._hello.lease_id,
        )

    def responses(self) -> list[cp.AttachResponse]:
        news = []
        if self.lease_news():
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
        return news

    def receive(self, request: cp.AttachRequest) -> None:
        if request.WhichOneof("message") != "status":
            raise InvalidRequestError("message", "must be a status after the hello")
        check_node_status(request.status, hello=self._hello)
        record = node_record(self._hello, request.status)
        if worth_writing(self._record, record):
            self._record = record
        self.session.report(encode_node(self._record))

    async def goodbye(self) -> None:
        if self._record.state != node_pb2.NODE_STATE_DRAINING:
            return
        try:
            await self.session.close()
        except StoreError as error:
            # The lease takes the record out in its time.
            _log.info("goodbye not stored", node=self._hello.node_id, error=str(error))
        else:
            _log.info("node left", node=self._hello.node_id)
