"""BatchService of a made-up gateway: its items are videos of the gateway's own."""
# ruff: noqa: N802 - methods are named and called as the service says

import grpc
from reelmesh.v1 import batch_pb2, batch_service_pb2, batch_service_pb2_grpc, video_pb2


class FakeBatches(batch_service_pb2_grpc.BatchServiceServicer):
    """Every item is made at once, unless ``held`` says how many are."""

    def __init__(self, *, enter, make, abort):
        self.submitted: list[batch_service_pb2.SubmitBatchRequest] = []
        self.cancelled: list[str] = []
        self.held: int | None = None
        """Items beyond this number are not begun."""
        self.refuse: list[tuple[str, str]] = []
        """(field, rule) of rows that the next submission is refused for."""
        self.fail: set[str] = set()
        """Prompts whose videos fail."""
        self._enter, self._make, self._abort = enter, make, abort
        self._batches: dict[str, batch_pb2.Batch] = {}
        self._items: dict[str, list[batch_pb2.BatchItem]] = {}
        self._keys: dict[str, str] = {}

    def SubmitBatch(self, request, context):
        self._enter("SubmitBatch", context)
        if self.refuse:
            wrong, self.refuse = self.refuse, []
            text = "; ".join(f"{field}: {rule}" for field, rule in wrong)
            code = grpc.StatusCode.INVALID_ARGUMENT
            self._abort(context, code, "invalid_request", text, violations=wrong)
        known = self._keys.get(request.idempotency_key)
        if known is None:
            self.submitted.append(request)
            known = self._keys[request.idempotency_key] = f"batch_ap-{len(self._batches):026d}"
            self._batches[known] = batch_pb2.Batch(id=known, region="ap")
            self._items[known] = [
                batch_pb2.BatchItem(
                    index=index,
                    prompt=row.spec.prompt,
                    custom_id=row.custom_id,
                    status=video_pb2.VIDEO_STATUS_QUEUED,
                )
                for index, row in enumerate(request.rows)
            ]
        return batch_service_pb2.SubmitBatchResponse(batch=self._as_it_stands(known, context))

    def GetBatch(self, request, context):
        self._enter("GetBatch", context)
        return batch_service_pb2.GetBatchResponse(
            batch=self._as_it_stands(request.batch_id, context)
        )

    def ListBatches(self, request, context):
        self._enter("ListBatches", context)
        batches = [self._as_it_stands(each, context) for each in list(self._batches)[::-1]]
        return batch_service_pb2.ListBatchesResponse(batches=batches[: request.page_size or 20])

    def ListBatchItems(self, request, context):
        self._enter("ListBatchItems", context)
        self._as_it_stands(request.batch_id, context)
        items = self._items[request.batch_id]
        end = request.from_index + (request.page_size or 100)
        return batch_service_pb2.ListBatchItemsResponse(
            items=items[request.from_index : end], more=end < len(items)
        )

    def CancelBatch(self, request, context):
        self._enter("CancelBatch", context)
        self._as_it_stands(request.batch_id, context)
        self.cancelled.append(request.batch_id)
        for item in self._items[request.batch_id]:
            if item.status == video_pb2.VIDEO_STATUS_QUEUED:
                item.status = video_pb2.VIDEO_STATUS_CANCELLED
        return batch_service_pb2.CancelBatchResponse(
            batch=self._as_it_stands(request.batch_id, context)
        )

    def DeleteBatch(self, request, context):
        self._enter("DeleteBatch", context)
        self._as_it_stands(request.batch_id, context)
        del self._batches[request.batch_id]
        return batch_service_pb2.DeleteBatchResponse()

    def _as_it_stands(self, batch_id, context):
        batch = self._batches.get(batch_id)
        if batch is None:
            self._abort(context, grpc.StatusCode.NOT_FOUND, "batch_not_found", "no such batch")
        items = self._items[batch_id]
        for item in items[: self.held]:
            if item.status == video_pb2.VIDEO_STATUS_QUEUED:
                self._end(item, self.submitted_row(batch_id, item.index))
        counts = batch.counts
        counts.total = len(items)
        for name in ("queued", "completed", "failed", "cancelled"):
            status = video_pb2.VideoStatus.Value(f"VIDEO_STATUS_{name.upper()}")
            setattr(counts, name, sum(item.status == status for item in items))
        batch.status = (
            batch_pb2.BATCH_STATUS_IN_PROGRESS
            if counts.queued
            else batch_pb2.BATCH_STATUS_CANCELLED
            if batch_id in self.cancelled
            else batch_pb2.BATCH_STATUS_COMPLETED
        )
        return batch

    def submitted_row(self, batch_id, index):
        number = list(self._items).index(batch_id)
        return self.submitted[number].rows[index]

    def _end(self, item, row):
        if item.prompt in self.fail:
            item.status = video_pb2.VIDEO_STATUS_FAILED
            item.error.code, item.error.message = "poison", "it kills workers"
            return
        video = self._make(row.spec)
        item.status, item.video_id = video_pb2.VIDEO_STATUS_COMPLETED, video.id
        item.sha256, item.size_bytes = video.result.sha256, video.result.size_bytes
