"""The application behind the edges: what can be done with batches in this region."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final

import structlog
from reelmesh.v1 import batch_pb2
from reelmesh.v1 import batch_record_service_pb2 as pb

from gateway.application import Caller
from gateway.batches import records, segments
from gateway.batches.application import DEFAULT_ITEMS_PAGE, MAX_ITEMS_PAGE, Submission
from gateway.batches.config import BatchConfig
from gateway.batches.drivers import Drivers
from gateway.batches.files import BatchFiles
from gateway.batches.ids import PREFIX, batch_region_of, no_such_batch
from gateway.batches.plan import Plan
from gateway.batches.purge import Purge
from gateway.batches.store import BatchStore, check_digest
from gateway.errors import (
    FieldViolation,
    GatewayError,
    InvalidRequest,
    JobStoreAway,
    PayloadTooLarge,
    ResourceExhausted,
    Unavailable,
)
from gateway.jobs.ids import VideoIds
from gateway.jobs.store import Owner
from gateway.output.artifacts import ArtifactError, ArtifactMissing
from gateway.tenants import Policies
from gateway.validation.fields import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from gateway.validation.request import Catalog
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

_log = structlog.get_logger("gateway.batches")

# Rows are checked so many at a time, and others have the loop in between.
_ROWS_AT_ONCE: Final = 50
# A reader may come between a record and the files that it names no more.
_MAX_READS: Final = 5
RETRY_AFTER_S: Final = 5.0


class Batches:
    """A :class:`gateway.batches.application.BatchApplication`.

    Args:
        region: Home of the batches made here.
        owner: Of their records: this gateway in this life.
        store: Their records.
        files: Their items and outcomes.
        drivers: Makes their videos.
        purge: Removes what is over.
        catalog: What is served now.
        policies: What tenants may do.
        check_webhook: What is wrong with a URL to be told at.
        draining: Whether operators have the region take nothing more.
        scope: Owns the step from a record to its driver, which a client cannot break off.
    """

    def __init__(
        self,
        *,
        region: str,
        owner: Owner,
        store: BatchStore,
        files: BatchFiles,
        drivers: Drivers,
        purge: Purge,
        catalog: Callable[[], Catalog],
        policies: Policies,
        check_webhook: Callable[[str], Sequence[FieldViolation]],
        draining: Callable[[], bool],
        config: BatchConfig,
        scope: TaskScope,
        clock: Clock,
    ) -> None:
        self._region = region
        self._owner = owner
        self._store = store
        self._files = files
        self._drivers = drivers
        self._purge = purge
        self._catalog = catalog
        self._policies = policies
        self._check_webhook = check_webhook
        self._draining = draining
        self._config = config
        self._scope = scope
        self._clock = clock
        self._ids = VideoIds(region, clock=clock)
        self._submitting = 0

    @property
    def max_items(self) -> int:
        """See :attr:`BatchApplication.max_items`."""
        return self._config.max_items

    # --- submit ---

    async def submit(self, caller: Caller, submission: Submission) -> batch_pb2.Batch:
        """See :meth:`BatchApplication.submit`."""
        if self._drivers.draining or self._draining():
            raise Unavailable("this gateway takes no batch now; try another", retry_after_s=1.0)
        if len(submission.rows) > self._config.max_items:
            raise PayloadTooLarge(
                f"{submission.rows_name} holds {len(submission.rows)}; at most "
                f"{self._config.max_items} make a batch"
            )
        if self._submitting >= self._config.max_submissions:
            raise ResourceExhausted(
                "other batches are being checked; come back in a moment", retry_after_s=2.0
            )
        self._submitting += 1
        try:
            return await self._submit(caller, submission)
        finally:
            self._submitting -= 1

    async def _submit(self, caller: Caller, submission: Submission) -> batch_pb2.Batch:
        items = await self._planned(caller, submission)
        digest = segments.digest(
            items,
            priority=submission.priority,
            webhook_url=submission.webhook_url,
            metadata=submission.metadata.items(),
        )
        if submission.idempotency_key:
            standing = await self._store.find_key(caller.tenant, submission.idempotency_key)
            if standing is not None:
                check_digest(standing, digest)
                return self._again(standing)
        if self._drivers.live_of(caller.tenant) >= self._config.max_live_per_tenant:
            raise ResourceExhausted(
                f"{self._config.max_live_per_tenant} batches go on already; wait for one to end",
                retry_after_s=60.0,
            )
        batch_id = PREFIX + self._ids.draw()
        data, sizes = segments.cut(items)
        try:
            key = await self._files.put_items(batch_id, data)
        except ArtifactError as error:
            _log.error("batch not kept", batch_id=batch_id, error=str(error))
            raise Unavailable(
                "the batch cannot be kept now; try again", retry_after_s=RETRY_AFTER_S
            ) from None
        record = records.new_record(
            batch_id=batch_id,
            region=self._region,
            caller=caller,
            submission=submission,
            digest=digest,
            input_key=key,
            segment_bytes=sizes,
            owner=self._owner,
            durable=self._store.durable,
            now_s=self._clock.wall(),
            lifetime_s=self._config.max_lifetime_s,
            retention_s=self._config.retention_s,
        )
        # A client that leaves now leaves no record behind that nobody drives.
        begun = self._scope.spawn(self._begin(record), name="submit", fatal=False)
        begun.add_done_callback(_look_at)
        return await asyncio.shield(begun)

    async def _planned(self, caller: Caller, submission: Submission) -> list[pb.BatchInput]:
        catalog = self._catalog()
        if not catalog.models:
            raise Unavailable("no node of this region has told its models yet", retry_after_s=5.0)
        policy = self._policies.of(caller.tenant)
        plan = Plan(submission, caller, catalog, policy, self._check_webhook)
        for index, row in enumerate(submission.rows):
            plan.add(index, row)
            if index % _ROWS_AT_ONCE == _ROWS_AT_ONCE - 1:
                await asyncio.sleep(0)
        plan.check()
        return plan.items

    async def _begin(self, record: pb.BatchRecord) -> batch_pb2.Batch:
        """Writes the record, which is what accepts the batch, and has it driven."""
        try:
            standing, created = await self._store.create(record)
        except JobStoreAway:
            if not record.idempotency_key:
                self._drivers.disclaim(record)
            raise
        except GatewayError:
            # Surely not written. Whatever else breaks this off says no such thing.
            await self._files.remove_input(record.input_key)
            raise
        if created:
            self._drivers.begin(standing)
            return standing.batch
        await self._files.remove_input(record.input_key)
        return self._again(standing)

    def _again(self, standing: pb.BatchRecord) -> batch_pb2.Batch:
        """A key that was used before: the same batch, driven if it was not yet."""
        if Owner(standing.owner_gateway, standing.owner_incarnation) == self._owner:
            self._drivers.begin(standing)
        return standing.batch

    # --- read ---

    async def get(self, caller: Caller, batch_id: str) -> batch_pb2.Batch:
        """See :meth:`BatchApplication.get`."""
        return (await self._record(caller, batch_id)).batch

    async def list_page(
        self, caller: Caller, *, page_size: int, page_token: str
    ) -> tuple[list[batch_pb2.Batch], str]:
        """See :meth:`BatchApplication.list_page`."""
        violations = []
        if not 0 <= page_size <= MAX_PAGE_SIZE:
            rule = f"must be 1 to {MAX_PAGE_SIZE}, or 0 for {DEFAULT_PAGE_SIZE}, not {page_size}"
            violations.append(FieldViolation("page_size", rule, (str(MAX_PAGE_SIZE),)))
        if page_token and batch_region_of(page_token) is None:
            violations.append(FieldViolation("page_token", "must be the id of a batch"))
        if violations:
            raise InvalidRequest(tuple(violations))
        found, more = await self._store.list_page(
            caller.tenant, limit=page_size or DEFAULT_PAGE_SIZE, after=page_token
        )
        batches = [record.batch for record in found]
        return batches, batches[-1].id if more and batches else ""

    async def items(
        self, caller: Caller, batch_id: str, *, from_index: int, limit: int
    ) -> tuple[list[batch_pb2.BatchItem], bool]:
        """See :meth:`BatchApplication.items`."""
        if not 0 <= limit <= MAX_ITEMS_PAGE:
            rule = f"must be 1 to {MAX_ITEMS_PAGE}, or 0 for {DEFAULT_ITEMS_PAGE}, not {limit}"
            raise InvalidRequest((FieldViolation("page_size", rule, (str(MAX_ITEMS_PAGE),)),))
        record = await self._record(caller, batch_id)
        total = record.batch.counts.total
        if not 0 <= from_index <= total:
            rule = f"must be 0 to {total}, the batch's number of items, not {from_index}"
            nearest = str(min(max(from_index, 0), total))
            raise InvalidRequest((FieldViolation("from_index", rule, (nearest,)),))
        until = min(from_index + (limit or DEFAULT_ITEMS_PAGE), total)
        found: list[batch_pb2.BatchItem] = []
        while from_index + len(found) < until:
            segment = (from_index + len(found)) // record.items_per_segment
            for item in await self._segment(caller, record, segment):
                if from_index + len(found) == item.index < until:
                    found.append(item)
        return found, until < total

    async def all_items(self, caller: Caller, batch_id: str) -> AsyncGenerator[batch_pb2.BatchItem]:
        """See :meth:`BatchApplication.all_items`."""
        record = await self._record(caller, batch_id)
        for segment in range(len(record.segment_bytes)):
            for item in await self._segment(caller, record, segment):
                yield item

    async def _segment(
        self, caller: Caller, record: pb.BatchRecord, segment: int
    ) -> list[batch_pb2.BatchItem]:
        """A segment's items, by the newest record where its files were replaced meanwhile."""
        for _ in range(_MAX_READS):
            try:
                inputs = await self._files.items(record, segment)
                outcomes = await self._files.outcomes(record, segment)
            except ArtifactMissing:
                record = await self._record(caller, record.batch.id)
            except ArtifactError as error:
                _log.error("batch not readable", batch_id=record.batch.id, error=str(error))
                break
            else:
                over = records.ended(record)
                return segments.items_of(record, segment, inputs, outcomes, over=over)
        raise Unavailable("the batch's items cannot be read now", retry_after_s=RETRY_AFTER_S)

    async def _record(self, caller: Caller, batch_id: str) -> pb.BatchRecord:
        if batch_region_of(batch_id) != self._region:
            raise no_such_batch(batch_id, region=self._region)
        record = await self._store.get(caller.tenant, batch_id)
        if record is None:
            raise no_such_batch(batch_id, region=self._region)
        return record

    # --- end ---

    async def cancel(self, caller: Caller, batch_id: str) -> batch_pb2.Batch:
        """See :meth:`BatchApplication.cancel`."""
        if batch_region_of(batch_id) != self._region:
            raise no_such_batch(batch_id, region=self._region)
        standing = await self._store.cancel(caller.tenant, batch_id)
        if standing is None:
            raise no_such_batch(batch_id, region=self._region)
        self._drivers.cancel(batch_id)
        return standing.batch

    async def delete(self, caller: Caller, batch_id: str) -> None:
        """See :meth:`BatchApplication.delete`."""
        if batch_region_of(batch_id) != self._region:
            raise no_such_batch(batch_id, region=self._region)
        removed = await self._store.delete(caller.tenant, batch_id)
        if removed is None:
            raise no_such_batch(batch_id, region=self._region)
        # What is left when this gateway dies meanwhile, any one's sweep takes.
        self._scope.spawn(self._purge.try_remove(removed), name=f"purge/{batch_id}", fatal=False)


def _look_at(begun: asyncio.Task[batch_pb2.Batch]) -> None:
    if not begun.cancelled():
        # Its client may have left: then nobody else looks at it.
        begun.exception()
