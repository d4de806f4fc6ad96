"""BatchService over the port of :mod:`gateway.batches.application`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any, Final

from google.protobuf.message import Message
from reelmesh.v1 import batch_pb2, video_pb2
from reelmesh.v1 import batch_service_pb2 as pb

from gateway.application import Caller, Download, VideoApplication
from gateway.batches.application import BatchApplication, Row, Submission
from gateway.batches.defaults import over
from gateway.edge.streams import closing
from gateway.edge.zipped import zipped
from gateway.edge_grpc.writing import Write

SERVICE: Final = pb.DESCRIPTOR.services_by_name["BatchService"]


class BatchServicer:
    """The methods are called by their names in the contract."""

    def __init__(self, batches: BatchApplication, application: VideoApplication) -> None:
        self._batches = batches
        self._application = application

    async def SubmitBatch(  # noqa: N802 - the name of the RPC
        self, caller: Caller, request: pb.SubmitBatchRequest
    ) -> Message:
        """See batch_service.proto."""
        submission = Submission(
            rows=[_row(request.defaults, row) for row in request.rows],
            template=request.template,
            idempotency_key=request.idempotency_key,
            priority=request.priority,
            metadata=dict(request.metadata),
            webhook_url=request.webhook_url,
            max_in_flight=request.max_in_flight,
        )
        return pb.SubmitBatchResponse(batch=await self._batches.submit(caller, submission))

    async def GetBatch(self, caller: Caller, request: pb.GetBatchRequest) -> Message:  # noqa: N802 - likewise
        """See batch_service.proto."""
        return pb.GetBatchResponse(batch=await self._batches.get(caller, request.batch_id))

    async def ListBatches(self, caller: Caller, request: pb.ListBatchesRequest) -> Message:  # noqa: N802 - likewise
        """See batch_service.proto."""
        batches, token = await self._batches.list_page(
            caller, page_size=request.page_size, page_token=request.page_token
        )
        return pb.ListBatchesResponse(batches=batches, next_page_token=token)

    async def ListBatchItems(self, caller: Caller, request: pb.ListBatchItemsRequest) -> Message:  # noqa: N802 - likewise
        """See batch_service.proto."""
        items, more = await self._batches.items(
            caller, request.batch_id, from_index=request.from_index, limit=request.page_size
        )
        return pb.ListBatchItemsResponse(items=items, more=more)

    async def CancelBatch(self, caller: Caller, request: pb.CancelBatchRequest) -> Message:  # noqa: N802 - likewise
        """See batch_service.proto."""
        return pb.CancelBatchResponse(batch=await self._batches.cancel(caller, request.batch_id))

    async def DeleteBatch(self, caller: Caller, request: pb.DeleteBatchRequest) -> Message:  # noqa: N802 - likewise
        """See batch_service.proto."""
        await self._batches.delete(caller, request.batch_id)
        return pb.DeleteBatchResponse()

    async def DownloadBatch(  # noqa: N802 - likewise
        self, caller: Caller, request: pb.DownloadBatchRequest, write: Write
    ) -> None:
        """See batch_service.proto."""

        async def opened(video_id: str) -> Download:
            return await self._application.download(caller, video_id, offset=0)

        items = self._all_items(caller, request.batch_id)
        async with contextlib.aclosing(zipped(items, opened, _described)) as pieces:
            async for piece in pieces:
                if piece:
                    await write(pb.DownloadBatchResponse(data=piece))

    async def _all_items(
        self, caller: Caller, batch_id: str
    ) -> AsyncGenerator[batch_pb2.BatchItem]:
        async with closing(self._batches.all_items(caller, batch_id)) as items:
            async for item in items:
                yield item


def _row(defaults: video_pb2.VideoSpec, given: pb.BatchRow) -> Row:
    return Row(
        spec=over(defaults, given.spec),
        custom_id=given.custom_id,
        variables=dict(given.variables),
    )


def _described(item: batch_pb2.BatchItem) -> dict[str, Any]:
    """An item as the manifest in a zip has it."""
    return {
        "index": item.index,
        "custom_id": item.custom_id or None,
        "prompt": item.prompt,
        "status": video_pb2.VideoStatus.Name(item.status).removeprefix("VIDEO_STATUS_").lower(),
        "video_id": item.video_id or None,
        "sha256": item.sha256 or None,
        "bytes": item.size_bytes or None,
        "error": {"code": item.error.code, "message": item.error.message}
        if item.HasField("error")
        else None,
    }
