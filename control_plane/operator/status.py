"""Asks nodes how they are, all at once and not for long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from grpc import aio
from reelmesh.v1 import node_pb2
from reelmesh.v1.node_service_pb2 import WatchStatusRequest
from reelmesh.v1.node_service_pb2_grpc import NodeServiceStub

from reelkit import rpc
from reelkit.mtls.channels import OpenChannel

MAX_AT_ONCE = 64


class StatusAsker(Protocol):
    """Asks nodes for their statuses."""

    async def statuses(self, addresses: Mapping[str, str]) -> dict[str, node_pb2.NodeStatus]:
        """What those that answered said, by node id."""
        ...


class GrpcStatusAsker:
    """Takes the first word of each node's WatchStatus.

    Args:
        timeout_s: What one node gets, connecting included; a list of very many nodes
            takes as many times this as :data:`MAX_AT_ONCE` goes into them, at worst.
        open_channel: Makes a channel to a node of the region.
    """

    def __init__(
        self, *, timeout_s: float, open_channel: OpenChannel = rpc.internal_channel
    ) -> None:
        self._open_channel = open_channel
        self._timeout_s = timeout_s

    async def statuses(self, addresses: Mapping[str, str]) -> dict[str, node_pb2.NodeStatus]:
        """See :class:`StatusAsker`."""
        gate = asyncio.Semaphore(MAX_AT_ONCE)

        async def ask(node_id: str, address: str) -> tuple[str, node_pb2.NodeStatus | None]:
            async with gate:
                return node_id, await self._status(address)

        answers: Iterable[tuple[str, node_pb2.NodeStatus | None]] = await asyncio.gather(
            *(ask(node_id, address) for node_id, address in addresses.items())
        )
        return {node_id: status for node_id, status in answers if status is not None}

    async def _status(self, address: str) -> node_pb2.NodeStatus | None:
        async with self._open_channel(address) as channel:
            # Any: by its name alone the stub's type is that of blocking calls.
            stub: Any = NodeServiceStub(channel)
            call = stub.WatchStatus(WatchStatusRequest(), timeout=self._timeout_s)
            try:
                response = await call.read()
            except aio.AioRpcError:
                return None
            finally:
                call.cancel()
        return None if response is aio.EOF else response.status
