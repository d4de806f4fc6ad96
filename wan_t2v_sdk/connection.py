"""A channel to one gateway, and calls on it that fail in this library's own terms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
from grpc import aio
from reelmesh.v1 import (
    batch_service_pb2_grpc,
    fleet_service_pb2_grpc,
    video_service_pb2_grpc,
)

from wan_t2v_sdk.config import Endpoint, MeshAccess
from wan_t2v_sdk.errors import ConnectionLostError
from wan_t2v_sdk.rpc_status import error_of

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]

CONNECT_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 20.0

_CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    # A gateway that stands still or a cut link ends a stream within 15 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
]


class Connection:
    """One gateway. Make and use it inside one running event loop."""

    def __init__(self, endpoint: Endpoint, access: MeshAccess) -> None:
        self.endpoint = endpoint
        self.region = endpoint.region
        """Learnt from the gateway itself where the endpoint did not say."""
        self._access = access
        self._dial()

    def _dial(self) -> None:
        self._channel = _open_channel(self.endpoint, self._access)
        self.videos = video_service_pb2_grpc.VideoServiceStub(self._channel)
        self.batches = batch_service_pb2_grpc.BatchServiceStub(self._channel)
        self.fleet = fleet_service_pb2_grpc.FleetServiceStub(self._channel)

    def metadata(self, traceparent: str | None = None) -> Metadata:
        """What every call carries."""
        base = (("authorization", f"Bearer {self._access.token}"),)
        return (*base, ("traceparent", traceparent)) if traceparent else base

    async def connect(self, *, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Returns once the connection stands.

        Raises:
            ConnectionLostError: It was refused, or did not come about in time.
        """
        if self._channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            # That is old news, and gRPC keeps saying so while it tries: dial afresh.
            self._dial()
        channel = self._channel
        state = channel.get_state(try_to_connect=True)
        try:
            async with asyncio.timeout(timeout_s):
                while state is not grpc.ChannelConnectivity.READY:
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        raise ConnectionLostError(self._cannot_connect("it refuses connections"))
        except TimeoutError:
            raise ConnectionLostError(
                self._cannot_connect(f"no answer within {timeout_s:g} s")
            ) from None

    async def call(self, send: Callable[[], Awaitable[T]]) -> T:
        """Connects, makes one unary call and translates what goes wrong."""
        await self.connect()
        try:
            return await send()
        except aio.AioRpcError as error:
            raise error_of(error, endpoint=str(self.endpoint)) from error

    async def close(self) -> None:
        """Ends every call on this connection."""
        await self._channel.close()

    def _cannot_connect(self, why: str) -> str:
        hint = ""
        if self.endpoint.tls:
            hint = "; TLS was used: write grpc://host:port where the gateway speaks plain text"
        return f"{self.endpoint}: cannot connect: {why}{hint}"


async def responses(
    call: aio.UnaryStreamCall[Any, T], *, connection: Connection
) -> AsyncGenerator[T, None]:
    """The messages of a server stream, its errors translated; closing it cancels the call."""
    try:
        async for message in call:
            yield message
    except aio.AioRpcError as error:
        raise error_of(error, endpoint=str(connection.endpoint)) from error
    finally:
        call.cancel()


def _open_channel(endpoint: Endpoint, access: MeshAccess) -> aio.Channel:
    if not endpoint.tls:
        return aio.insecure_channel(endpoint.address, options=_CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(root_certificates=access.ca_pem)
    return aio.secure_channel(endpoint.address, credentials, options=_CHANNEL_OPTIONS)
