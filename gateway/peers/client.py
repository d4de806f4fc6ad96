"""Asking another gateway for what it owns, over ``PeerService``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
from grpc import aio
from reelmesh.v1 import peer_service_pb2 as pb
from reelmesh.v1 import video_pb2, video_service_pb2
from reelmesh.v1.peer_service_pb2_grpc import PeerServiceStub

from gateway.application import FROM_PEER, MP4, Caller, Download, Link, Variant
from gateway.errors import (
    ConcurrentJobsQuota,
    FieldViolation,
    GatewayError,
    GpuSecondsQuota,
    IdempotencyConflict,
    InvalidRequest,
    JobStoreAway,
    ModelNotFound,
    NotFinished,
    PictureFailed,
    QueuedJobsQuota,
    QuotaTooSmall,
    ResourceExhausted,
    Unavailable,
    VideoCancelled,
    VideoDamaged,
    VideoFailed,
)
from reelkit.rpc_errors import details_of
from reelkit.tracing import trace_metadata

if TYPE_CHECKING:
    # Exists in the stubs alone.
    from reelmesh.v1.peer_service_pb2_grpc import PeerServiceAsyncStub

ERROR_DOMAIN: Final = "reelmesh"
# A gateway beside this one answers within milliseconds, or it stands still.
READ_TIMEOUT_S: Final = 0.5
# A cancel waits for the records too.
WRITE_TIMEOUT_S: Final = 5.0
FIRST_EVENT_S: Final = 1.0
RETRY_AFTER_S: Final = 1.0
# Two thirds of a second as a rule; a busy gateway may take as long as it gives its own.
PICTURE_S: Final = 25.0

T = TypeVar("T")


class PeerGone(Exception):  # noqa: N818 - named for what happened
    """The gateway does not answer."""


class NotItsOwn(Exception):  # noqa: N818 - likewise
    """It answers, and does not own the video, or not any more."""


class PeerFailed(Unavailable):
    """It failed, and said nothing of whether it did what it was asked for."""

    code = "peer_failed"


class Peers:
    """Calls to gateways by their peer address; channels are kept warm.

    Args:
        open_channel: Makes a channel to an address.
        hops: What this gateway is to those it asks: one of their region, or of another.
        read_timeout_s: For an answer that needs no write.
    """

    def __init__(
        self,
        *,
        open_channel: Callable[[str], aio.Channel],
        hops: int = FROM_PEER,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._open_channel = open_channel
        self._hops = hops
        self._read_timeout_s = read_timeout_s
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
        request = pb.GetPeerVideoRequest(identity=self._identity(caller), video_id=video_id)
        stub = self._stub(address)
        call = stub.GetPeerVideo(request, timeout=self._read_timeout_s, metadata=trace_metadata())
        return (await _answer(call)).video

    async def create(
        self,
        address: str,
        caller: Caller,
        spec: video_pb2.VideoSpec,
        options: video_service_pb2.CreateOptions,
        *,
        streamed: bool,
    ) -> video_pb2.Video:
        """Has another region make a video, which is its home from then on.

        Raises:
            PeerGone: No answer in time; it may have been made.
            GatewayError: It was refused there, in that gateway's words.
        """
        request = pb.CreatePeerVideoRequest(
            identity=self._identity(caller), spec=spec, options=options, streamed=streamed
        )
        call = self._stub(address).CreatePeerVideo(
            request, timeout=WRITE_TIMEOUT_S, metadata=trace_metadata()
        )
        return (await _answer(call)).video

    async def cancel(self, address: str, caller: Caller, video_id: str) -> video_pb2.Video:
        """Has its owner cancel a video; answers what became of it.

        Raises:
            PeerGone: No answer in time; it may have been cancelled.
            NotItsOwn: It is another's by now.
            Unavailable: The owner could not write it.
        """
        request = pb.CancelPeerVideoRequest(identity=self._identity(caller), video_id=video_id)
        stub = self._stub(address)
        return (
            await _answer(
                stub.CancelPeerVideo(request, timeout=WRITE_TIMEOUT_S, metadata=trace_metadata())
            )
        ).video

    async def delete(self, address: str, caller: Caller, video_id: str) -> None:
        """Has its owner delete a video; raises as :meth:`cancel`."""
        request = pb.DeletePeerVideoRequest(identity=self._identity(caller), video_id=video_id)
        stub = self._stub(address)
        await _answer(
            stub.DeletePeerVideo(request, timeout=WRITE_TIMEOUT_S, metadata=trace_metadata())
        )

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
                identity=self._identity(caller), video_id=video_id, after_seq=after_seq
            ),
            metadata=trace_metadata(),
        )
        try:
            # QUEUED comes at once; after that the channel's pings tell a quiet one from a gone.
            async with asyncio.timeout(max(FIRST_EVENT_S, self._read_timeout_s)):
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

    async def download(
        self, address: str, caller: Caller, video_id: str, *, offset: int, variant: Variant
    ) -> Download:
        """The finished bytes from an offset, from another region.

        Raises:
            PeerGone: No answer in time. The iterator of the bytes raises it too.
            GatewayError: Refused there, in that gateway's words.
        """
        request = pb.DownloadPeerVideoRequest(
            identity=self._identity(caller), video_id=video_id, offset=offset, variant=variant
        )
        call = self._stub(address).DownloadPeerVideo(request, metadata=trace_metadata())
        patience_s = max(FIRST_EVENT_S, self._read_timeout_s, _drawing_s(variant))
        try:
            async with asyncio.timeout(patience_s):
                head = await call.read()
        except TimeoutError:
            call.cancel()
            raise PeerGone("no answer in time") from None
        except aio.AioRpcError as error:
            raise _told(error) from None
        if not isinstance(head, pb.DownloadPeerVideoResponse):
            raise PeerGone("the answer ended before it began")
        return Download(
            head.total_bytes,
            head.sha256,
            _pieces(call, head.data),
            content_type=head.content_type or MP4,
        )

    async def link(self, address: str, caller: Caller, video_id: str, *, variant: Variant) -> Link:
        """A URL of the store of another region.

        Raises:
            PeerGone: No answer in time.
            GatewayError: Refused there, in that gateway's words.
        """
        request = pb.LinkPeerVideoRequest(
            identity=self._identity(caller), video_id=video_id, variant=variant
        )
        patience_s = max(WRITE_TIMEOUT_S, _drawing_s(variant))
        call = self._stub(address).LinkPeerVideo(
            request, timeout=patience_s, metadata=trace_metadata()
        )
        found = await _answer(call)
        expires_at_s = found.expires_at.ToNanoseconds() / 1e9
        return Link(found.url, expires_at_s, found.size_bytes, found.sha256)

    def _identity(self, caller: Caller) -> pb.PeerIdentity:
        """Who asks, as the token said at the first gateway."""
        return pb.PeerIdentity(
            tenant=caller.tenant,
            subject=caller.subject,
            scopes=sorted(caller.scopes),
            hops=self._hops,
            batch_id=caller.batch_id,
            batch_keep_until_s=caller.batch_keep_until_s,
        )


def _drawing_s(variant: Variant) -> float:
    """How long an answer may take because a picture is drawn for it."""
    pictures = (
        video_service_pb2.VIDEO_VARIANT_THUMBNAIL,
        video_service_pb2.VIDEO_VARIANT_SPRITESHEET,
    )
    return PICTURE_S if variant in pictures else 0.0


async def _pieces(call: Any, first: bytes) -> AsyncGenerator[bytes]:
    try:
        data = first
        while True:
            if data:
                yield data
            response = await call.read()
            if not isinstance(response, pb.DownloadPeerVideoResponse):
                return
            data = response.data
    except aio.AioRpcError as error:
        raise _told(error) from None
    finally:
        call.cancel()


async def _answer(call: Awaitable[T]) -> T:
    try:
        return await call
    except aio.AioRpcError as error:
        raise _told(error) from None


def _told(error: aio.AioRpcError) -> Exception:
    """What a gateway said of itself, or that there is none."""
    code, info = error.code(), details_of(error)
    if info is None or info.domain != ERROR_DOMAIN:
        return PeerGone(f"{code.name}: {error.details()}")
    message = error.details() or "the video's gateway gave no reason"
    if code is grpc.StatusCode.NOT_FOUND:
        return NotItsOwn(message)
    refused = _ERRORS.get(info.reason)
    if refused is InvalidRequest:
        return InvalidRequest((FieldViolation("request", message),))
    if refused is not None:
        usual_s = RETRY_AFTER_S if refused.retryable else None
        return refused(message, retry_after_s=info.retry_after_s or usual_s)
    return PeerFailed(message, retry_after_s=RETRY_AFTER_S)


# What one gateway may be told by another in its own words, by the error's code.
_ERRORS: dict[str, type[GatewayError]] = {
    each.code: each
    for each in (
        ConcurrentJobsQuota,
        GpuSecondsQuota,
        IdempotencyConflict,
        InvalidRequest,
        JobStoreAway,
        ModelNotFound,
        NotFinished,
        PictureFailed,
        QueuedJobsQuota,
        QuotaTooSmall,
        ResourceExhausted,
        Unavailable,
        VideoCancelled,
        VideoDamaged,
        VideoFailed,
    )
}
