"""Batch records: the port to wherever they are kept; see also :mod:`gateway.jobs.store`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from reelmesh.v1 import batch_record_service_pb2 as pb

from gateway.errors import IdempotencyConflict
from gateway.jobs.store import Owner


class BatchStore(Protocol):
    """Where batch records are kept. Records are given and taken as copies.

    Every method may raise JobStoreAway: nobody knows whether a write was applied, and the
    call may be repeated, which then finds its own earlier write.
    """

    @property
    def durable(self) -> bool:
        """Whether a record outlives this gateway."""
        ...

    async def create(self, record: pb.BatchRecord) -> tuple[pb.BatchRecord, bool]:
        """Writes a new record; answers the record that stands and whether it is this one.

        Raises:
            IdempotencyConflict: The tenant used the key with another request.
        """
        ...

    async def get(self, tenant: str, batch_id: str) -> pb.BatchRecord | None:
        """The tenant's record of that id, unless it was deleted."""
        ...

    async def find_key(self, tenant: str, key: str) -> pb.BatchRecord | None:
        """The record that a tenant's idempotency key made."""
        ...

    async def list_page(
        self, tenant: str, *, limit: int, after: str
    ) -> tuple[list[pb.BatchRecord], bool]:
        """Up to ``limit`` records after an id, newest first, and whether more follow."""
        ...

    async def update(self, record: pb.BatchRecord) -> tuple[pb.BatchRecord | None, bool]:
        """Writes what its owner says; answers what stands and whether that is it.

        That a cancel was asked for meanwhile is in what stands. None: the record is gone.
        """
        ...

    async def claim(
        self, batch_id: str, *, epoch: int, owner: Owner
    ) -> tuple[pb.BatchRecord | None, bool]:
        """Makes ``owner`` the owner at ``epoch + 1`` unless it has ended or is another's."""
        ...

    async def cancel(self, tenant: str, batch_id: str) -> pb.BatchRecord | None:
        """Asks for a batch's end; answers what stands."""
        ...

    async def delete(self, tenant: str, batch_id: str) -> pb.BatchRecord | None:
        """Hides an ended batch, and has it expired; answers what was hidden.

        Raises:
            BatchNotFinished: It goes on.
        """
        ...

    async def expired(self, now_s: float, *, limit: int) -> list[pb.BatchRecord]:
        """Ended or deleted ones whose time is over, at most ``limit``."""
        ...

    async def purge(self, batch_id: str) -> None:
        """Removes what is left of an ended batch; none is fine."""
        ...

    async def known(self, batch_ids: Collection[str]) -> set[str]:
        """Those of the ids that have a record, deleted ones too."""
        ...


def check_digest(standing: pb.BatchRecord, digest: str) -> None:
    """Makes sure that a key is used again with the same request.

    Raises:
        IdempotencyConflict: It was used with another.
    """
    if standing.request_digest != digest:
        raise IdempotencyConflict(
            "the idempotency key was used with another batch; use a new key for a new one"
        )


def copied(record: pb.BatchRecord) -> pb.BatchRecord:
    """A copy that its holder may change."""
    copy = pb.BatchRecord()
    copy.CopyFrom(record)
    return copy
