"""Batch records with the region's control plane, any replica of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final

import grpc
import structlog
from grpc import aio
from reelmesh.v1 import batch_record_service_pb2 as pb
from reelmesh.v1.batch_record_service_pb2_grpc import BatchRecordServiceStub

from gateway.batches.store import check_digest
from gateway.errors import (
    BatchNotFinished,
    FieldViolation,
    InvalidRequest,
    ResourceExhausted,
    Unavailable,
)
from gateway.jobs.replicas import RETRY_AFTER_S, NoRecord, Replicas
from gateway.jobs.store import Owner
from reelkit.clock import Clock
from reelkit.rpc import internal_channel

if TYPE_CHECKING:
    # Exists in the stubs alone.
    from reelmesh.v1.batch_record_service_pb2_grpc import BatchRecordServiceAsyncStub

_log = structlog.get_logger("gateway.batch_records")

_MAX_PAGE: Final = 100


class RemoteBatchStore:
    """A :class:`gateway.batches.store.BatchStore` over ``BatchRecordService``.

    Args as those of :class:`gateway.jobs.remote.RemoteJobStore`.
    """

    def __init__(
        self,
        *,
        endpoints: Sequence[str],
        clock: Clock,
        patience_s: float,
        open_channel: Callable[[str], aio.Channel] = internal_channel,
    ) -> None:
        self._replicas: Replicas[BatchRecordServiceAsyncStub] = Replicas(
            endpoints=endpoints,
            stub_of=BatchRecordServiceStub,
            told=_told,
            clock=clock,
            patience_s=patience_s,
            open_channel=open_channel,
        )
        self._ask = self._replicas.ask
        self._find = self._replicas.find

    async def close(self) -> None:
        """Closes the channels."""
        await self._replicas.close()

    @property
    def durable(self) -> bool:
        """True: the region's etcd."""
        return True

    async def create(self, record: pb.BatchRecord) -> tuple[pb.BatchRecord, bool]:
        """See :meth:`BatchStore.create`."""
        request = pb.CreateBatchRecordRequest(record=record)
        answer = await self._ask(lambda stub, s: stub.CreateBatchRecord(request, timeout=s))
        if not answer.created:
            check_digest(answer.record, record.request_digest)
        return answer.record, answer.created

    async def get(self, tenant: str, batch_id: str) -> pb.BatchRecord | None:
        """See :meth:`BatchStore.get`."""
        request = pb.GetBatchRecordRequest(tenant=tenant, batch_id=batch_id)
        answer = await self._find(lambda stub, s: stub.GetBatchRecord(request, timeout=s))
        return None if answer is None else answer.record

    async def find_key(self, tenant: str, key: str) -> pb.BatchRecord | None:
        """See :meth:`BatchStore.find_key`."""
        request = pb.FindBatchRecordByKeyRequest(tenant=tenant, idempotency_key=key)
        answer = await self._find(lambda stub, s: stub.FindBatchRecordByKey(request, timeout=s))
        return None if answer is None else answer.record

    async def list_page(
        self, tenant: str, *, limit: int, after: str
    ) -> tuple[list[pb.BatchRecord], bool]:
        """See :meth:`BatchStore.list_page`."""
        request = pb.ListBatchRecordsRequest(tenant=tenant, page_size=limit, after_batch_id=after)
        answer = await self._ask(lambda stub, s: stub.ListBatchRecords(request, timeout=s))
        return list(answer.records), answer.more

    async def update(self, record: pb.BatchRecord) -> tuple[pb.BatchRecord | None, bool]:
        """See :meth:`BatchStore.update`."""
        request = pb.UpdateBatchRecordRequest(record=record)
        answer = await self._find(lambda stub, s: stub.UpdateBatchRecord(request, timeout=s))
        return (None, False) if answer is None else (answer.record, answer.written)

    async def claim(
        self, batch_id: str, *, epoch: int, owner: Owner
    ) -> tuple[pb.BatchRecord | None, bool]:
        """See :meth:`BatchStore.claim`."""
        request = pb.ClaimBatchRecordRequest(
            batch_id=batch_id,
            gateway_id=owner.gateway_id,
            incarnation=owner.incarnation,
            epoch=epoch,
        )
        answer = await self._find(lambda stub, s: stub.ClaimBatchRecord(request, timeout=s))
        return (None, False) if answer is None else (answer.record, answer.claimed)

    async def cancel(self, tenant: str, batch_id: str) -> pb.BatchRecord | None:
        """See :meth:`BatchStore.cancel`."""
        request = pb.CancelBatchRecordRequest(tenant=tenant, batch_id=batch_id)
        answer = await self._find(lambda stub, s: stub.CancelBatchRecord(request, timeout=s))
        return None if answer is None else answer.record

    async def delete(self, tenant: str, batch_id: str) -> pb.BatchRecord | None:
        """See :meth:`BatchStore.delete`."""
        request = pb.DeleteBatchRecordRequest(tenant=tenant, batch_id=batch_id)
        answer = await self._find(lambda stub, s: stub.DeleteBatchRecord(request, timeout=s))
        return None if answer is None else answer.record

    async def expired(self, now_s: float, *, limit: int) -> list[pb.BatchRecord]:
        """See :meth:`BatchStore.expired`."""
        request = pb.ListExpiredBatchRecordsRequest(limit=min(limit, _MAX_PAGE))
        request.now.FromNanoseconds(int(now_s * 1e9))
        answer = await self._ask(lambda stub, s: stub.ListExpiredBatchRecords(request, timeout=s))
        return list(answer.records)

    async def purge(self, batch_id: str) -> None:
        """See :meth:`BatchStore.purge`."""
        request = pb.PurgeBatchRecordRequest(batch_id=batch_id)
        await self._ask(lambda stub, s: stub.PurgeBatchRecord(request, timeout=s))

    async def known(self, batch_ids: Collection[str]) -> set[str]:
        """See :meth:`BatchStore.known`."""
        found: set[str] = set()
        ids = sorted(batch_ids)
        for start in range(0, len(ids), _MAX_PAGE):
            request = pb.KnownBatchRecordsRequest(batch_ids=ids[start : start + _MAX_PAGE])
            found.update(await self._known_page(request))
        return found

    async def _known_page(self, request: pb.KnownBatchRecordsRequest) -> Sequence[str]:
        answer = await self._ask(lambda stub, s: stub.KnownBatchRecords(request, timeout=s))
        return answer.batch_ids


def _told(error: aio.AioRpcError) -> Exception:
    match error.code():
        case grpc.StatusCode.NOT_FOUND:
            return NoRecord()
        case grpc.StatusCode.FAILED_PRECONDITION:
            return BatchNotFinished("the batch has not ended; cancel it first")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ResourceExhausted(
                "the region's records take no more now", retry_after_s=RETRY_AFTER_S
            )
        case grpc.StatusCode.INVALID_ARGUMENT:
            # All else was checked before.
            return InvalidRequest((FieldViolation("metadata", "is too long to be kept"),))
    _log.error("batch records refused a call", code=error.code().name, details=error.details())
    return Unavailable("the region's records refused this", retry_after_s=RETRY_AFTER_S)
