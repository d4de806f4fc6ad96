"""The gRPC face of the batch records: calls in, errors out by the one table."""

from __future__ import annotations

from typing import Any, Final

from reelmesh.v1 import batch_record_service_pb2 as pb
from reelmesh.v1 import batch_record_service_pb2_grpc as pb_grpc

from control_plane.batches.book import BatchBook
from control_plane.batches.records import check
from control_plane.calls import MAX_PAGE, Observe, answer, check_count, check_id, check_text
from control_plane.errors import InvalidRequestError

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["BatchRecordService"].full_name


class BatchRecordService(pb_grpc.BatchRecordServiceServicer):
    """Serves one region's batch records on this replica.

    Args:
        book: The records.
        observe: Told the method and the outcome of each call.
    """

    def __init__(self, *, book: BatchBook, observe: Observe) -> None:
        self._book = book
        self._observe = observe

    async def CreateBatchRecord(  # noqa: N802 - gRPC names it
        self, request: pb.CreateBatchRecordRequest, context: Any
    ) -> pb.CreateBatchRecordResponse:
        """See batch_record_service.proto."""
        return await answer(self._observe, "CreateBatchRecord", self._create, request, context)

    async def GetBatchRecord(  # noqa: N802 - as above
        self, request: pb.GetBatchRecordRequest, context: Any
    ) -> pb.GetBatchRecordResponse:
        """See batch_record_service.proto."""
        return await answer(self._observe, "GetBatchRecord", self._get, request, context)

    async def FindBatchRecordByKey(  # noqa: N802 - as above
        self, request: pb.FindBatchRecordByKeyRequest, context: Any
    ) -> pb.FindBatchRecordByKeyResponse:
        """See batch_record_service.proto."""
        return await answer(self._observe, "FindBatchRecordByKey", self._find, request, context)

    async def ListBatchRecords(  # noqa: N802 - as above
        self, request: pb.ListBatchRecordsRequest, context: Any
    ) -> pb.ListBatchRecordsResponse:
        """See batch_record_service.proto."""
        return await answer(self._observe, "ListBatchRecords", self._list, request, context)

    async def ClaimBatchRecord(  # noqa: N802 - as above
        self, request: pb.ClaimBatchRecordRequest, context: Any
    ) -> pb.ClaimBatchRecordResponse:
        """See batch_record_service.proto."""
        return await answer(self._observe, "ClaimBatchRecord", self._claim, request, context)

    async def UpdateBatchRecord(  # noqa: N802 - as above
        self, request: pb.UpdateBatchRecordRequest, context: Any
    ) -> pb.UpdateBatchRecordResponse:
        """See batch_record_service.proto."""
        return await answer(self._observe, "UpdateBatchRecord", self._update, request, context)

    async def CancelBatchRecord(  # noqa: N802 - as above
        self, request: pb.CancelBatchRecordRequest, context: Any
    ) -> pb.CancelBatchRecordResponse:
        """See batch_record_service.proto."""
        return await answer(self._observe, "CancelBatchRecord", self._cancel, request, context)

    async def DeleteBatchRecord(  # noqa: N802 - as above
        self, request: pb.DeleteBatchRecordRequest, context: Any
    ) -> pb.DeleteBatchRecordResponse:
        """See batch_record_service.proto."""
        return await answer(self._observe, "DeleteBatchRecord", self._delete, request, context)

    async def ListExpiredBatchRecords(  # noqa: N802 - as above
        self, request: pb.ListExpiredBatchRecordsRequest, context: Any
    ) -> pb.ListExpiredBatchRecordsResponse:
        """See batch_record_service.proto."""
        name = "ListExpiredBatchRecords"
        return await answer(self._observe, name, self._expired, request, context)

    async def PurgeBatchRecord(  # noqa: N802 - as above
        self, request: pb.PurgeBatchRecordRequest, context: Any
    ) -> pb.PurgeBatchRecordResponse:
        """See batch_record_service.proto."""
        return await answer(self._observe, "PurgeBatchRecord", self._purge, request, context)

    async def KnownBatchRecords(  # noqa: N802 - as above
        self, request: pb.KnownBatchRecordsRequest, context: Any
    ) -> pb.KnownBatchRecordsResponse:
        """See batch_record_service.proto."""
        return await answer(self._observe, "KnownBatchRecords", self._known, request, context)

    # --- the calls ---

    async def _create(self, request: pb.CreateBatchRecordRequest) -> pb.CreateBatchRecordResponse:
        check(request.record)
        record, created = await self._book.create(request.record)
        return pb.CreateBatchRecordResponse(record=record, created=created)

    async def _get(self, request: pb.GetBatchRecordRequest) -> pb.GetBatchRecordResponse:
        check_id("batch_id", request.batch_id)
        record = await self._book.get(request.tenant, request.batch_id)
        return pb.GetBatchRecordResponse(record=record)

    async def _find(
        self, request: pb.FindBatchRecordByKeyRequest
    ) -> pb.FindBatchRecordByKeyResponse:
        check_text("idempotency_key", request.idempotency_key)
        record = await self._book.find_key(request.tenant, request.idempotency_key)
        return pb.FindBatchRecordByKeyResponse(record=record)

    async def _list(self, request: pb.ListBatchRecordsRequest) -> pb.ListBatchRecordsResponse:
        check_count("page_size", request.page_size)
        records, more = await self._book.list_page(
            request.tenant, limit=request.page_size, after=request.after_batch_id
        )
        return pb.ListBatchRecordsResponse(records=records, more=more)

    async def _claim(self, request: pb.ClaimBatchRecordRequest) -> pb.ClaimBatchRecordResponse:
        for field in ("batch_id", "gateway_id", "incarnation"):
            check_id(field, getattr(request, field))
        record, claimed = await self._book.claim(
            request.batch_id,
            epoch=request.epoch,
            gateway_id=request.gateway_id,
            incarnation=request.incarnation,
        )
        return pb.ClaimBatchRecordResponse(record=record, claimed=claimed)

    async def _update(self, request: pb.UpdateBatchRecordRequest) -> pb.UpdateBatchRecordResponse:
        check(request.record)
        record, written = await self._book.update(request.record)
        return pb.UpdateBatchRecordResponse(record=record, written=written)

    async def _cancel(self, request: pb.CancelBatchRecordRequest) -> pb.CancelBatchRecordResponse:
        check_id("batch_id", request.batch_id)
        record = await self._book.cancel(request.tenant, request.batch_id)
        return pb.CancelBatchRecordResponse(record=record)

    async def _delete(self, request: pb.DeleteBatchRecordRequest) -> pb.DeleteBatchRecordResponse:
        check_id("batch_id", request.batch_id)
        record = await self._book.delete(request.tenant, request.batch_id)
        return pb.DeleteBatchRecordResponse(record=record)

    async def _expired(
        self, request: pb.ListExpiredBatchRecordsRequest
    ) -> pb.ListExpiredBatchRecordsResponse:
        check_count("limit", request.limit)
        records = await self._book.expired(request.now.ToMilliseconds(), limit=request.limit)
        return pb.ListExpiredBatchRecordsResponse(records=records)

    async def _purge(self, request: pb.PurgeBatchRecordRequest) -> pb.PurgeBatchRecordResponse:
        check_id("batch_id", request.batch_id)
        await self._book.purge(request.batch_id)
        return pb.PurgeBatchRecordResponse()

    async def _known(self, request: pb.KnownBatchRecordsRequest) -> pb.KnownBatchRecordsResponse:
        if len(request.batch_ids) > MAX_PAGE:
            raise InvalidRequestError("batch_ids", f"must be at most {MAX_PAGE}")
        known = await self._book.known(request.batch_ids)
        return pb.KnownBatchRecordsResponse(batch_ids=known)
