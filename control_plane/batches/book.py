"""The region's batch records in the store; each write is one transaction.

Like :mod:`control_plane.jobs.book`: any replica may run any of these at any time, also
twice. A live batch has its owner beside its record, and so is told with the orphans.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from reelmesh.v1 import batch_pb2
from reelmesh.v1 import batch_record_service_pb2 as pb

from control_plane.batches.records import (
    decode,
    encode,
    encode_live,
    ended,
    expires_at_ms,
    merged,
    same_end,
    same_owner,
)
from control_plane.errors import NotFinishedError, NotFoundError, SupersededError
from control_plane.keys import Keys
from control_plane.store.port import (
    Compare,
    Delete,
    Get,
    KeyValue,
    Op,
    Put,
    Store,
    absent,
    unchanged,
)
from control_plane.store.writer import FencedWriter

# Each try lost to somebody else's write of the same batch.
MAX_TRIES: Final = 8


class BatchBook:
    """Creates, claims, updates, lists and deletes records."""

    def __init__(self, *, store: Store, writer: FencedWriter, keys: Keys) -> None:
        self._store = store
        self._writer = writer
        self._keys = keys

    async def create(self, record: pb.BatchRecord) -> tuple[pb.BatchRecord, bool]:
        """The record that stands, and whether it is this one.

        Raises:
            RecordTooLargeError: It passes the store's limit.
            StoreError: Whether it was written is not known; call again.
        """
        batch_id, tenant = record.batch.id, record.tenant
        puts = [
            Put(self._keys.batch(batch_id), encode(record)),
            Put(self._keys.owned(batch_id), encode_live(record)),
            Put(self._keys.tenant_batches(tenant) + batch_id, b""),
        ]
        compares = [absent(self._keys.batch(batch_id))]
        reads = [Get(self._keys.batch(batch_id))]
        if record.idempotency_key:
            key = self._keys.batch_key(tenant, record.idempotency_key)
            puts.append(Put(key, batch_id.encode()))
            compares.append(absent(key))
            reads.append(Get(key))
        for _ in range(MAX_TRIES):
            result = await self._writer.txn(compares, puts, reads)
            if result.succeeded:
                return decode(puts[0].value, revision=result.revision), True
            found = result.gets[0]
            if found is not None:
                standing = _record(found)
                return standing, same_owner(standing, record) and not ended(standing)
            index = result.gets[1] if len(result.gets) > 1 else None
            if index is not None:
                earlier = await self._store.get(self._keys.batch(index.value.decode()))
                if earlier is not None:
                    return _record(earlier), False
            # Its batch was deleted just now, and the key with it: look again.
        raise _restless(batch_id)

    async def get(self, tenant: str, batch_id: str) -> pb.BatchRecord:
        """The tenant's record of that id.

        Raises:
            NotFoundError: There is none of this tenant, or it was deleted.
        """
        return _record(await self._own(tenant, batch_id))

    async def find_key(self, tenant: str, idempotency_key: str) -> pb.BatchRecord:
        """The record that a tenant's key made; raises NotFoundError where there is none."""
        index = await self._store.get(self._keys.batch_key(tenant, idempotency_key))
        if index is None:
            raise NotFoundError("the key was never used, or its batch is gone")
        return await self.get(tenant, index.value.decode())

    async def claim(
        self, batch_id: str, *, epoch: int, gateway_id: str, incarnation: str
    ) -> tuple[pb.BatchRecord, bool]:
        """The record as it stands, and whether the claimant owns it now.

        Raises:
            NotFoundError: There is no such batch.
        """
        wanted = pb.BatchRecord(
            owner_gateway=gateway_id, owner_incarnation=incarnation, epoch=epoch + 1
        )
        for _ in range(MAX_TRIES):
            found = await self._any(batch_id)
            standing = _record(found)
            if ended(standing) or standing.epoch != epoch:
                return standing, same_owner(standing, wanted) and not ended(standing)
            standing.epoch = wanted.epoch
            standing.owner_gateway = gateway_id
            standing.owner_incarnation = incarnation
            live = Put(self._keys.owned(batch_id), encode_live(standing))
            written = await self._swap(found, standing, [live])
            if written is not None:
                return written, True
        raise _restless(batch_id)

    async def update(self, record: pb.BatchRecord) -> tuple[pb.BatchRecord, bool]:
        """The record as it stands, and whether it is what the caller asked for.

        Raises:
            NotFoundError: It was deleted or has expired.
            RecordTooLargeError: It passes the store's limit.
        """
        batch_id = record.batch.id
        for _ in range(MAX_TRIES):
            found = await self._any(batch_id)
            standing = _record(found)
            if standing.tenant != record.tenant:
                raise _no_batch(batch_id)
            if ended(standing):
                return standing, same_end(standing, record)
            if not same_owner(standing, record):
                return standing, False
            wanted, more = merged(standing, record), list[Op]()
            if ended(wanted):
                more.append(Delete(self._keys.owned(batch_id)))
                more.append(Put(self._keys.batch_expiry(expires_at_ms(wanted), batch_id), b""))
                if wanted.webhook_url:
                    more.append(Put(self._keys.webhook(batch_id), encode_live(wanted)))
            written = await self._swap(found, wanted, more)
            if written is not None:
                return written, True
        raise _restless(batch_id)

    async def cancel(self, tenant: str, batch_id: str) -> pb.BatchRecord:
        """Asks for its end; answers what stands.

        Raises:
            NotFoundError: There is none of this tenant.
        """
        for _ in range(MAX_TRIES):
            found = await self._own(tenant, batch_id)
            standing = _record(found)
            if ended(standing) or standing.cancel_requested:
                return standing
            standing.cancel_requested = True
            standing.batch.status = batch_pb2.BATCH_STATUS_CANCELLING
            written = await self._swap(found, standing, [])
            if written is not None:
                return written
        raise _restless(batch_id)

    async def delete(self, tenant: str, batch_id: str) -> pb.BatchRecord:
        """Hides an ended batch, and has it expired at once; answers what was hidden.

        Raises:
            NotFoundError: There is none of this tenant.
            NotFinishedError: It has not ended.
        """
        for _ in range(MAX_TRIES):
            found = await self._own(tenant, batch_id)
            standing = _record(found)
            if not ended(standing):
                raise NotFinishedError(f"batch {batch_id} has not ended; cancel it first")
            more: list[Op] = [Delete(self._keys.batch_expiry(expires_at_ms(standing), batch_id))]
            standing.deleted = True
            more.append(Put(self._keys.batch_expiry(expires_at_ms(standing), batch_id), b""))
            written = await self._swap(found, standing, [*more, *self._unlisted(standing)])
            if written is not None:
                return written
        raise _restless(batch_id)

    async def purge(self, batch_id: str) -> None:
        """Removes what is left of an ended batch; one that is gone is fine.

        Raises:
            NotFinishedError: It has not ended.
        """
        for _ in range(MAX_TRIES):
            found = await self._store.get(self._keys.batch(batch_id))
            if found is None:
                return
            record = _record(found)
            if not ended(record):
                raise NotFinishedError(f"batch {batch_id} has not ended; cancel it first")
            ops: list[Op] = [
                Delete(found.key),
                Delete(self._keys.batch_expiry(expires_at_ms(record), batch_id)),
            ]
            if not record.deleted:
                ops.extend(self._unlisted(record))
            result = await self._writer.txn([unchanged(found.key, found.mod_revision)], ops)
            if result.succeeded:
                return
        raise _restless(batch_id)

    def _unlisted(self, record: pb.BatchRecord) -> list[Op]:
        """Takes a record out of its tenant's list, its key out of use, its webhook off."""
        ops: list[Op] = [Delete(self._keys.tenant_batches(record.tenant) + record.batch.id)]
        if record.idempotency_key:
            ops.append(Delete(self._keys.batch_key(record.tenant, record.idempotency_key)))
        if record.webhook_url:
            ops.append(Delete(self._keys.webhook(record.batch.id)))
        return ops

    async def list_page(
        self, tenant: str, *, limit: int, after: str
    ) -> tuple[list[pb.BatchRecord], bool]:
        """Up to ``limit`` records after an id, newest first, and whether more follow."""
        prefix = self._keys.tenant_batches(tenant)
        page = await self._store.range(
            prefix, after=prefix + after if after else None, limit=limit, descending=True
        )
        found = await self._all([item.key.removeprefix(prefix) for item in page.items])
        return [_record(kv) for kv in found if kv is not None], page.more

    async def expired(self, now_ms: int, *, limit: int) -> list[pb.BatchRecord]:
        """Ended records whose time is over, the oldest first."""
        page = await self._store.range(self._keys.batch_expiries, limit=limit)
        due = []
        for item in page.items:
            at_ms, _, batch_id = item.key.removeprefix(self._keys.batch_expiries).partition("/")
            if int(at_ms) <= now_ms:
                due.append(batch_id)
        return [_record(kv) for kv in await self._all(due) if kv is not None]

    async def known(self, batch_ids: Sequence[str]) -> list[str]:
        """Those of the ids that have a record, deleted ones too."""
        found = await self._all(batch_ids)
        return [each for each, kv in zip(batch_ids, found, strict=True) if kv is not None]

    async def _swap(
        self, found: KeyValue, record: pb.BatchRecord, more: Sequence[Op]
    ) -> pb.BatchRecord | None:
        """Writes the record in the place of what was read; None: that has changed."""
        put = Put(found.key, encode(record))
        result = await self._writer.txn([unchanged(found.key, found.mod_revision)], [put, *more])
        return decode(put.value, revision=result.revision) if result.succeeded else None

    async def _all(self, batch_ids: Sequence[str]) -> Sequence[KeyValue | None]:
        if not batch_ids:
            return []
        no_compare: list[Compare] = []
        gets = [Get(self._keys.batch(batch_id)) for batch_id in batch_ids]
        return (await self._store.txn(no_compare, gets)).gets

    async def _any(self, batch_id: str) -> KeyValue:
        found = await self._store.get(self._keys.batch(batch_id))
        if found is None:
            raise _no_batch(batch_id)
        return found

    async def _own(self, tenant: str, batch_id: str) -> KeyValue:
        """One of another tenant is none: nobody learns that it exists."""
        found = await self._any(batch_id)
        record = _record(found)
        if record.tenant != tenant or record.deleted:
            raise _no_batch(batch_id)
        return found


def _no_batch(batch_id: str) -> NotFoundError:
    return NotFoundError(f"there is no batch {batch_id}")


def _restless(batch_id: str) -> SupersededError:
    return SupersededError(f"batch {batch_id} is written by others all the time; ask again")


def _record(kv: KeyValue) -> pb.BatchRecord:
    return decode(kv.value, revision=kv.mod_revision)
