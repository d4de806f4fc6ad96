"""A call to a node's own address, as a gateway would make it."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from reelkit import rpc
from reelkit.mtls.channels import OpenChannel


@dataclasses.dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """Whether the node answered, and why not."""

    ok: bool
    reason: str = ""


class Prober(Protocol):
    """Calls nodes."""

    async def probe(self, address: str, *, timeout_s: float) -> ProbeOutcome:
        """One call, connecting included; never raises for what the node does."""
        ...


class GrpcProber:
    """Asks ``grpc.health.v1`` whether the agent serves, on a connection made for it.

    A new connection each time: it shows that gateways could connect now, and one that
    failed before has no back-off that would make a node look away for longer than it
    is. The service asked for is the server as a whole: whether the node takes work it
    says itself.

    Args:
        open_channel: Makes a channel to a node of the region.
    """

    def __init__(self, open_channel: OpenChannel = rpc.internal_channel) -> None:
        self._open_channel = open_channel

    async def probe(self, address: str, *, timeout_s: float) -> ProbeOutcome:
        """See :class:`Prober`."""
        try:
            async with self._open_channel(address) as channel:
                answer = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=timeout_s
                )
        except aio.AioRpcError as error:
            return ProbeOutcome(ok=False, reason=_why(error, timeout_s))
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
            return ProbeOutcome(ok=False, reason=f"it answers {name}")
        return ProbeOutcome(ok=True)


def _why(error: aio.AioRpcError, timeout_s: float) -> str:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer in {timeout_s:g} s"
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return _no_connection(error.details())
    return error.code().name


def _no_connection(details: str | None) -> str:
    meaning = rpc.in_words(details)
    # Without grpc's own text: it becomes the node's reason, which people read.
    return "no connection" if meaning == details else f"no connection: {meaning.split(' (')[0]}"
