"""The gRPC edge: VideoService and FleetService over the application port.

For the composition root::

    server = aio.server(options=grpc_server_options(config.edge))
    add_grpc_services(server, application=..., door=..., metrics=..., ...)
    port = reelkit.rpc.listen(server, "127.0.0.1:0")
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from reelmesh.v1 import fleet_service_pb2 as fleet_pb2
from reelmesh.v1 import video_service_pb2 as video_pb2

from gateway.application import Caller, VideoApplication
from gateway.auth.door import Door
from gateway.batches.application import BatchApplication
from gateway.edge.config import EdgeConfig
from gateway.edge.metrics import EdgeMetrics
from gateway.edge.streams import closing
from gateway.edge_grpc.batches import SERVICE as BATCH_SERVICE
from gateway.edge_grpc.batches import BatchServicer
from gateway.edge_grpc.health import HealthFromReadiness
from gateway.edge_grpc.wrapper import GrpcEdge, Rpc
from gateway.edge_grpc.writing import Write
from reelkit.clock import Clock
from reelkit.rpc import MAX_MESSAGE_BYTES, server_options

# A token of 16 KiB fits beside the rest; grpc's own 8 KiB would cut one of 8 KiB off.
MAX_METADATA_BYTES = 24_576
# Pings that come too soon after one another before the connection is closed.
MAX_PING_STRIKES = 3
# Of one connection; a proxy opens another.
MAX_STREAMS = 1_000
# For TLS and the first frames: as long as nginx gives a request's head.
HANDSHAKE_TIMEOUT_MS = 60_000


def grpc_server_options(config: EdgeConfig) -> list[tuple[str, Any]]:
    """Options of the public gRPC server: small requests, large answers, long tokens.

    A message a little over the limit reaches our own check, which answers with a code
    and the limit; one far over it is cut off by grpc itself.
    """
    replaced = {
        "grpc.max_receive_message_length": max(MAX_MESSAGE_BYTES, 4 * config.max_body_bytes)
    }
    options = [
        (name, replaced.get(name, value))
        for name, value in server_options()
        if name != "grpc.http2.max_ping_strikes"
    ]
    return [
        *options,
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        # Our own client pings every 10 s, and a fast one at most every second: the parts of a
        # mesh, which ping faster, have listeners of their own.
        ("grpc.http2.max_ping_strikes", MAX_PING_STRIKES),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_connection_idle_ms", round(config.grpc_idle_timeout_s * 1000)),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
    ]


def add_grpc_services(
    server: aio.Server,
    *,
    application: VideoApplication,
    batches: BatchApplication,
    door: Door,
    metrics: EdgeMetrics,
    config: EdgeConfig,
    clock: Clock,
) -> None:
    """Adds VideoService, BatchService, FleetService, standard health and reflection to a server.

    Call it before the server starts. Every RPC but health and reflection needs a
    token with the scope that :mod:`gateway.auth.access` names for it. Health says SERVING
    exactly while ``application.ready()`` does.

    Raises:
        UnlistedEndpoint: An RPC is missing in the access table.
    """
    edge = GrpcEdge(
        door=door,
        metrics=metrics,
        clock=clock,
        max_message_bytes=config.max_body_bytes,
        write_timeout_s=config.write_timeout_s,
    )
    names = []
    servicers: tuple[tuple[ServiceDescriptor, object], ...] = (
        (video_pb2.DESCRIPTOR.services_by_name["VideoService"], _Videos(application)),
        (BATCH_SERVICE, BatchServicer(batches, application)),
        (fleet_pb2.DESCRIPTOR.services_by_name["FleetService"], _Fleet(application)),
    )
    for descriptor, servicer in servicers:
        names.append(descriptor.full_name)
        server.add_generic_rpc_handlers((_guarded_service(edge, descriptor, servicer),))
    health = HealthFromReadiness(
        application=application, services=tuple(names), clock=clock, poll_s=config.health_poll_s
    )
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection((*names, health_name, reflection.SERVICE_NAME), server)


def _guarded_service(
    edge: GrpcEdge, descriptor: ServiceDescriptor, servicer: object
) -> grpc.GenericRpcHandler:
    """Handlers for every method that the contract names; a missing one is an AttributeError."""
    handlers = {}
    for method in descriptor.methods:
        answer = getattr(servicer, method.name)
        rpc = Rpc(
            endpoint=f"/{descriptor.full_name}/{method.name}",
            request=GetMessageClass(method.input_type),
            streaming=answer if method.server_streaming else None,
            unary=None if method.server_streaming else answer,
            # A batch may be as large as a message; what it may hold is checked further in.
            max_bytes=MAX_MESSAGE_BYTES if method.name == "SubmitBatch" else None,
        )
        handlers[method.name] = edge.handler(rpc)
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)


class _Videos:
    """VideoService; the methods are called by their names in the contract."""

    def __init__(self, application: VideoApplication) -> None:
        self._application = application

    async def GenerateVideo(  # noqa: N802 - the name of the RPC
        self, caller: Caller, request: video_pb2.GenerateVideoRequest, write: Write
    ) -> None:
        video = await self._application.create(caller, request.spec, request.options, streamed=True)
        watched = self._application.watch_encoded(caller, video.id, after_seq=0)
        async with closing(watched) as messages:
            async for message in messages:
                await write(message)

    async def CreateVideo(  # noqa: N802 - likewise
        self, caller: Caller, request: video_pb2.CreateVideoRequest
    ) -> Message:
        video = await self._application.create(
            caller, request.spec, request.options, streamed=False
        )
        return video_pb2.CreateVideoResponse(video=video)

    async def GetVideo(  # noqa: N802 - likewise
        self, caller: Caller, request: video_pb2.GetVideoRequest
    ) -> Message:
        video = await self._application.get(caller, request.video_id)
        return video_pb2.GetVideoResponse(video=video)

    async def WatchVideo(  # noqa: N802 - likewise
        self, caller: Caller, request: video_pb2.WatchVideoRequest, write: Write
    ) -> None:
        watched = self._application.watch_encoded(
            caller, request.video_id, after_seq=request.after_seq
        )
        async with closing(watched) as messages:
            async for message in messages:
                await write(message)

    async def ListVideos(  # noqa: N802 - likewise
        self, caller: Caller, request: video_pb2.ListVideosRequest
    ) -> Message:
        videos, token = await self._application.list_page(
            caller, page_size=request.page_size, page_token=request.page_token
        )
        return video_pb2.ListVideosResponse(videos=videos, next_page_token=token)

    async def CancelVideo(  # noqa: N802 - likewise
        self, caller: Caller, request: video_pb2.CancelVideoRequest
    ) -> Message:
        video = await self._application.cancel(caller, request.video_id)
        return video_pb2.CancelVideoResponse(video=video)

    async def DeleteVideo(  # noqa: N802 - likewise
        self, caller: Caller, request: video_pb2.DeleteVideoRequest
    ) -> Message:
        await self._application.delete(caller, request.video_id)
        return video_pb2.DeleteVideoResponse()

    async def DownloadVideo(  # noqa: N802 - likewise
        self, caller: Caller, request: video_pb2.DownloadVideoRequest, write: Write
    ) -> None:
        download = await self._application.download(
            caller, request.video_id, offset=request.offset, variant=request.variant
        )
        head = video_pb2.DownloadVideoResponse(
            offset=request.offset,
            total_bytes=download.total_bytes,
            sha256=download.sha256,
            content_type=download.content_type,
        )
        offset = request.offset
        async with closing(download.chunks) as chunks:
            head.data = await anext(chunks, b"")
            # Sent even where no byte is left after the offset: it tells size and digest.
            await write(head)
            offset += len(head.data)
            async for data in chunks:
                await write(video_pb2.DownloadVideoResponse(offset=offset, data=data))
                offset += len(data)


class _Fleet:
    """FleetService, likewise."""

    def __init__(self, application: VideoApplication) -> None:
        self._application = application

    async def ListRegions(  # noqa: N802 - the name of the RPC
        self, _caller: Caller, _request: fleet_pb2.ListRegionsRequest
    ) -> Message:
        return fleet_pb2.ListRegionsResponse(regions=self._application.regions())

    async def ListModels(  # noqa: N802 - likewise
        self, _caller: Caller, _request: fleet_pb2.ListModelsRequest
    ) -> Message:
        models, default = self._application.models()
        return fleet_pb2.ListModelsResponse(models=models, default_model=default)
