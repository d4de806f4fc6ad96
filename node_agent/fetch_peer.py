"""Files from other nodes of the region, by threads of a process that fetches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Final

import grpc
from reelmesh.v1.weights_service_pb2 import ReadFileRequest
from reelmesh.v1.weights_service_pb2_grpc import WeightsServiceStub

from node_agent.fetch_watch import StallWatch, awaited
from reelkit.clock import SystemClock
from reelkit.mtls.config import MutualTlsSettings
from reelkit.mtls.identity import Role, server_name
from reelkit.mtls.material import MutualTls
from reelkit.rpc import internal_channel_options

_STALL_S: Final = 10.0


class PeerLacksError(Exception):
    """The peer does not have the file (yet)."""


class PeerBusyError(Exception):
    """As many as may read from it already."""


class PeerAwayError(Exception):
    """The peer cannot be reached, or broke off."""


class Peers:
    """Connections to other nodes; safe in any thread.

    Args:
        region: Whose nodes they must be.
        mtls: Who asks; None: in plain text, on one host.
        stall_s: A peer that sends nothing for so long is given up.
    """

    def __init__(
        self, *, region: str, mtls: MutualTlsSettings | None, stall_s: float = _STALL_S
    ) -> None:
        self._region = region
        self._tls = None if mtls is None else MutualTls(mtls, clock=SystemClock())
        self._stall_s = stall_s
        self._channels: dict[str, grpc.Channel] = {}
        self._lock = threading.Lock()

    def read(self, address: str, sha256: str, offset: int) -> Iterator[bytes]:
        """A file's bytes from an offset on; nobody vouches for them but their digest.

        Raises:
            PeerLacksError, PeerBusyError, PeerAwayError: As they say.
        """
        stub: Any = WeightsServiceStub(self._channel(address))
        call = stub.ReadFile(ReadFileRequest(sha256=sha256, offset=offset))
        watch = StallWatch(self._stall_s, lambda _sentence: call.cancel())
        try:
            yield from awaited((response.data for response in call), watch, address)
        except grpc.RpcError as error:
            code = call.code()
            if code is grpc.StatusCode.NOT_FOUND:
                raise PeerLacksError from None
            if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise PeerBusyError from None
            raise PeerAwayError(f"{address}: {code.name if code else error}") from None
        finally:
            call.cancel()

    def close(self) -> None:
        """Closes every connection."""
        for channel in self._channels.values():
            channel.close()

    def _channel(self, address: str) -> grpc.Channel:
        with self._lock:
            if address not in self._channels:
                self._channels[address] = self._open(address)
            return self._channels[address]

    def _open(self, address: str) -> grpc.Channel:
        options = internal_channel_options()
        if self._tls is None:
            return grpc.insecure_channel(address, options=options)
        name = server_name(Role.NODE, region=self._region, id="")
        options.append(("grpc.ssl_target_name_override", name))
        return grpc.secure_channel(address, self._tls.channel_credentials(), options=options)
