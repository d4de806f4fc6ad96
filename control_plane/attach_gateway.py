"""AttachGateway: a gateway's stream; liveness alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import structlog
from reelmesh.v1 import control_plane_service_pb2 as cp

from control_plane.attach_stream import AttachStream, Leasing, OpenStreams, first_request
from control_plane.errors import InvalidRequestError, StoreError
from control_plane.keys import Keys
from control_plane.records import encode_gateway
from control_plane.validation import check_gateway_hello

_log = structlog.get_logger("control_plane.attach_gateway")


class GatewayAttachment:
    """Serves AttachGateway for one region on this replica."""

    def __init__(self, *, region: str, replica_id: str, keys: Keys, leasing: Leasing) -> None:
        self.streams = OpenStreams()
        self._region = region
        self._replica_id = replica_id
        self._keys = keys
        self._leasing = leasing

    async def serve(
        self, requests: AsyncIterator[cp.AttachGatewayRequest]
    ) -> AsyncGenerator[cp.AttachGatewayResponse, None]:
        """Responses of one stream: the lease at first, and again when it had to change.

        Raises:
            InvalidRequestError: A message breaks a rule; names the field.
            SupersededError: The gateway attached anew elsewhere.
            NotReadyError: This replica stops.
            StoreError: The store is away and the gateway is not in it yet.
        """
        first = await first_request(requests)
        if first.WhichOneof("message") != "hello":
            raise InvalidRequestError("message", "the first one must be a hello")
        check_gateway_hello(first.hello, region=self._region)
        stream = _GatewayStream(
            first.hello,
            replica_id=self._replica_id,
            keys=self._keys,
            leasing=self._leasing,
            streams=self.streams,
        )
        async with self._leasing.opening:
            await stream.open()
        async with contextlib.aclosing(stream.run(requests)) as responses:
            async for response in responses:
                yield response


class _GatewayStream(AttachStream[cp.AttachGatewayRequest, cp.AttachGatewayResponse]):
    def __init__(
        self,
        hello: cp.GatewayHello,
        *,
        replica_id: str,
        keys: Keys,
        leasing: Leasing,
        streams: OpenStreams,
    ) -> None:
        super().__init__(
            name=f"attach-gateway/{hello.gateway_id}",
            key=keys.gateway(hello.gateway_id),
            leasing=leasing,
            streams=streams,
            also=(),
        )
        self._hello = hello
        self._replica_id = replica_id
        self._value = encode_gateway(hello)

    async def open(self) -> None:
        """Puts the gateway in the store, under its earlier lease where that still lasts."""
        await self.session.open(self._value, lease_id=self._hello.lease_id)
        _log.info("gateway attached", gateway=self._hello.gateway_id)

    def responses(self) -> list[cp.AttachGatewayResponse]:
        if not self.lease_news():
            return []
        return [
            cp.AttachGatewayResponse(
                lease_id=self.session.record.lease_id,
                lease_ttl_s=self.session.record.ttl_s,
                replica_id=self._replica_id,
            )
        ]

    def receive(self, request: cp.AttachGatewayRequest) -> None:
        if request.WhichOneof("message") != "beat":
            raise InvalidRequestError("message", "must be a beat after the hello")
        self.session.report(self._value)

    async def goodbye(self) -> None:
        """Takes the record out at once: the gateway has handed its jobs over."""
        try:
            await self.session.close()
        except StoreError as error:
            # The lease takes the record out in its time.
            _log.info("goodbye not stored", gateway=self._hello.gateway_id, error=str(error))
        else:
            _log.info("gateway left", gateway=self._hello.gateway_id)
