"""Asking another gateway for what it owns, over ``PeerService``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from reelmesh.v1 import peer_service_pb2 as pb
from reelmesh.v1 import video_pb2
from reelmesh.v1.peer_service_pb2_grpc import PeerServiceStub

from gateway.application import FROM_PEER, Caller
from gateway.errors import Unavailable

if TYPE_CHECKING:
    # Exists in the stubs alone.
    from reelmesh.v1.peer_service_pb2_grpc import PeerServiceAsyncStub

ERROR_DOMAIN: Final = "reelmesh"
# A gateway beside this one answers within milliseconds, or it stands still.
READ_TIMEOUT_S: Final = 0.5
# A cancel waits for the records too.
WRITE_TIMEOUT_S: Final = 5.0
FIRST_EVENT_S: Final = 1.0

T = TypeVar("T")


class PeerGone(Exception):  # noqa: N818 - named for what happened
    """The gateway does not answer."""


class NotItsOwn(Exception):  # noqa: N818 - likewise
    """It answers, and does not own the video, or not any more."""


class Peers:
    """Calls to gateways by their peer address; channels are kept warm.

    Args:
        open_channel: Makes a channel to an address.
    """

    def __init__(self, *, open_channel: Callable[[str], aio.Channel]) -> None:
        self._open_channel = open_channel
        self._channels: dict[str, aio.Channel] = {}

    async def close(self) -> None:
        """Closes every channel."""
        for channel in self._channels.values():
            await channel.close()

    def _channel(self, address: str) -> aio.Channel:
        if address not in self._channels:
            self._channels[address] = self._open_channel(address)
        return self._channels[address]

    def _stub(self, address: str) -> PeerServiceAsyncStub:
        return PeerServiceStub(self._channel(address))

    async def get(self, address: str, caller: Caller, video_id: str) -> video_pb2.Video:
        """The video as its owner has it now.

        Raises:
            PeerGone: No answer in time.
            NotItsOwn: It is another's by now.
        """
        request = pb.GetPeerVideoRequest(identity=identity_of(caller), video_id=video_id)
        stub = self._stub(address)
        return (await _answer(stub.GetPeerVideo(request, timeout=READ_TIMEOUT_S))).video

    async def cancel(self, address: str, caller: Caller, video_id: str) -> video_pb2.Video:
        """Has its owner cancel a video; answers what became of it.

        Raises:
            PeerGone: No answer in time; it may have been cancelled.
            NotItsOwn: It is another's by now.
            Unavailable: The owner could not write it.
        """
        request = pb.CancelPeerVideoRequest(identity=identity_of(caller), video_id=video_id)
        stub = self._stub(address)
        return (await _answer(stub.CancelPeerVideo(request, timeout=WRITE_TIMEOUT_S))).video

    async def delete(self, address: str, caller: Caller, video_id: str) -> None:
        """Has its owner delete a video; raises as :meth:`cancel`."""
        request = pb.DeletePeerVideoRequest(identity=identity_of(caller), video_id=video_id)
        stub = self._stub(address)
        await _answer(stub.DeletePeerVideo(request, timeout=WRITE_TIMEOUT_S))

    async def watch(
        self, address: str, caller: Caller, video_id: str, *, after_seq: int
    ) -> AsyncGenerator[bytes]:
        """Events after a seq from the owner, each an encoded ``WatchVideoResponse``.

        (A ``WatchPeerVideoResponse`` has the same encoding.)

        Raises:
            PeerGone: It does not answer, or not any more.
            NotItsOwn: It is another's by now.
        """
        call: Any = self._channel(address).unary_stream(
            "/reelmesh.v1.PeerService/WatchPeerVideo",
            request_serializer=pb.WatchPeerVideoRequest.SerializeToString,
            response_deserializer=None,
        )(
            pb.WatchPeerVideoRequest(
                identity=identity_of(caller), video_id=video_id, after_seq=after_seq
            )
        )
        try:
            # QUEUED comes at once; after that the channel's pings tell a quiet one from a gone.
            async with asyncio.timeout(FIRST_EVENT_S):
                message = await call.read()
            while isinstance(message, bytes):
                yield message
                message = await call.read()
        except TimeoutError:
            raise PeerGone("no event in time") from None
        except aio.AioRpcError as error:
            raise _told(error) from None
        finally:
            call.cancel()


def identity_of(caller: Caller, hops: int = FROM_PEER) -> pb.PeerIdentity:
    """Who asks, as the token said at the first gateway."""
    return pb.PeerIdentity(
        tenant=caller.tenant, subject=caller.subject, scopes=sorted(caller.scopes), hops=hops
    )


async def _answer(call: Awaitable[T]) -> T:
    try:
        return await call
    except aio.AioRpcError as error:
        raise _told(error) from None


def _told(error: aio.AioRpcError) -> Exception:
    code = error.code()
    if code is grpc.StatusCode.NOT_FOUND:
        return NotItsOwn(error.details())
    if code is grpc.StatusCode.UNAVAILABLE and _is_its_word(error):
        return Unavailable(error.details() or "the video's gateway cannot answer now")
    return PeerGone(f"{code.name}: {error.details()}")


def _is_its_word(error: aio.AioRpcError) -> bool:
    """Whether the gateway itself said so, and not the connection to it."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.domain) == ERROR_DOMAIN
    return False
