"""PeerService: what other gateways ask of this one.

Callers are believed: the listener is for gateways alone. Nothing here is reached with a
user's token, and the hops that a call came through bound what it may lead to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc
import structlog
from google.protobuf.message import Message
from grpc import aio
from reelmesh.v1 import peer_service_pb2 as pb

from gateway import errors
from gateway.application import FROM_PEER, FROM_REGION, Caller, VideoApplication
from gateway.edge.streams import closing
from gateway.edge_grpc.status import internal_status, rich_status
from gateway.edge_grpc.writing import Write

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["PeerService"].full_name

T = TypeVar("T")

_log = structlog.get_logger("gateway.peer_api")


def add_peer_service(server: aio.Server, *, application: VideoApplication) -> None:
    """Adds PeerService to a server of its own; call it before the server starts."""
    peers = _Peers(application)
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "GetPeerVideo": _unary(pb.GetPeerVideoRequest, peers.get),
        "CancelPeerVideo": _unary(pb.CancelPeerVideoRequest, peers.cancel),
        "DeletePeerVideo": _unary(pb.DeletePeerVideoRequest, peers.delete),
        "CreatePeerVideo": _unary(pb.CreatePeerVideoRequest, peers.create),
        "LinkPeerVideo": _unary(pb.LinkPeerVideoRequest, peers.link),
        "WatchPeerVideo": _stream(pb.WatchPeerVideoRequest, peers.watch),
        "DownloadPeerVideo": _stream(pb.DownloadPeerVideoRequest, peers.download),
        "WatchLoad": grpc.unary_stream_rpc_method_handler(
            peers.loads,
            request_deserializer=pb.WatchLoadRequest.FromString,
            response_serializer=_serialize,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))


class _Peers:
    """The answers, each for a caller that the first gateway verified."""

    def __init__(self, application: VideoApplication) -> None:
        self._application = application

    async def get(self, caller: Caller, request: pb.GetPeerVideoRequest) -> Message:
        video = await self._application.get(caller, request.video_id)
        return pb.GetPeerVideoResponse(video=video)

    async def create(self, caller: Caller, request: pb.CreatePeerVideoRequest) -> Message:
        video = await self._application.create(
            caller, request.spec, request.options, streamed=request.streamed
        )
        return pb.CreatePeerVideoResponse(video=video)

    async def cancel(self, caller: Caller, request: pb.CancelPeerVideoRequest) -> Message:
        video = await self._application.cancel(caller, request.video_id)
        return pb.CancelPeerVideoResponse(video=video)

    async def delete(self, caller: Caller, request: pb.DeletePeerVideoRequest) -> Message:
        await self._application.delete(caller, request.video_id)
        return pb.DeletePeerVideoResponse()

    async def watch(self, caller: Caller, request: pb.WatchPeerVideoRequest, write: Write) -> None:
        # A WatchPeerVideoResponse has the encoding of a WatchVideoResponse.
        watched = self._application.watch_encoded(
            caller, request.video_id, after_seq=request.after_seq
        )
        async with closing(watched) as messages:
            async for message in messages:
                await write(message)

    async def download(
        self, caller: Caller, request: pb.DownloadPeerVideoRequest, write: Write
    ) -> None:
        found = await self._application.download(
            caller, request.video_id, offset=request.offset, variant=request.variant
        )
        head = pb.DownloadPeerVideoResponse(
            total_bytes=found.total_bytes, sha256=found.sha256, content_type=found.content_type
        )
        await write(head.SerializeToString())
        async with closing(found.chunks) as chunks:
            async for data in chunks:
                await write(pb.DownloadPeerVideoResponse(data=data).SerializeToString())

    async def link(self, caller: Caller, request: pb.LinkPeerVideoRequest) -> Message:
        link = await self._application.link(caller, request.video_id, variant=request.variant)
        response = pb.LinkPeerVideoResponse(
            url=link.url, size_bytes=link.total_bytes, sha256=link.sha256
        )
        response.expires_at.FromNanoseconds(int(link.expires_at_s * 1e9))
        return response

    async def loads(self, _request: pb.WatchLoadRequest, context: Any) -> None:
        async with closing(self._application.loads()) as loads:
            async for load in loads:
                await context.write(load)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _unary(
    request: type[Message], answer: Callable[[Caller, Any], Awaitable[Message]]
) -> grpc.RpcMethodHandler[Any, Any]:
    async def handle(message: Any, context: Any) -> Message | None:
        return await _guarded(context, lambda: answer(_caller(message.identity), message))

    return grpc.unary_unary_rpc_method_handler(
        handle,
        request_deserializer=request.FromString,
        response_serializer=_serialize,
    )


def _stream(
    request: type[Message], answer: Callable[[Caller, Any, Write], Awaitable[None]]
) -> grpc.RpcMethodHandler[Any, Any]:
    async def handle(message: Any, context: Any) -> None:
        context.set_compression(grpc.Compression.NoCompression)
        await _guarded(context, lambda: answer(_caller(message.identity), message, context.write))

    return grpc.unary_stream_rpc_method_handler(handle, request_deserializer=request.FromString)


async def _guarded(context: Any, answer: Callable[[], Awaitable[T]]) -> T | None:
    try:
        return await answer()
    except errors.GatewayError as error:
        status = rich_status(error)
    except Exception:  # noqa: BLE001 - the process's boundary: logged, told bare
        _log.exception("unexpected error")
        status = internal_status()
    await context.abort(status.code, status.details, status.trailing_metadata)
    return None


def _caller(identity: pb.PeerIdentity) -> Caller:
    """Who asks, as the first gateway verified.

    Raises:
        InvalidRequest: No tenant, or a number of hops that no gateway sends.
    """
    if not identity.tenant:
        raise errors.InvalidRequest((errors.FieldViolation("identity.tenant", "is missing"),))
    if not FROM_REGION <= identity.hops <= FROM_PEER:
        rule = f"must be {FROM_REGION} or {FROM_PEER}, not {identity.hops}"
        raise errors.InvalidRequest((errors.FieldViolation("identity.hops", rule),))
    return Caller(
        tenant=identity.tenant,
        subject=identity.subject,
        scopes=frozenset(identity.scopes),
        hops=identity.hops,
        batch_id=identity.batch_id,
        batch_keep_until_s=identity.batch_keep_until_s,
    )
