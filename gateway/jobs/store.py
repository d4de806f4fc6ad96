"""Job records: the port to wherever they are kept.

The first terminal write wins: :meth:`JobStore.finish` answers the record that stands,
which is the caller's only if it was first. Each write compares the owner and its epoch. A
record names its tenant; a reader of another tenant finds nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Protocol

from reelmesh.v1 import job_service_pb2, video_pb2

from gateway.errors import IdempotencyConflict

TERMINAL_STATUSES: Final = frozenset(
    (
        video_pb2.VIDEO_STATUS_COMPLETED,
        video_pb2.VIDEO_STATUS_FAILED,
        video_pb2.VIDEO_STATUS_CANCELLED,
    )
)


@dataclass(frozen=True, slots=True)
class Owner:
    """A gateway in one of its lives."""

    gateway_id: str
    incarnation: str


class KeyElsewhere(Exception):  # noqa: N818 - an answer, not a failure
    """A tenant's idempotency key was assigned to another region."""

    def __init__(self, region: str) -> None:
        super().__init__(region)
        self.region = region


class JobStore(Protocol):
    """Where job records are kept. Records are given and taken as copies.

    Every method may raise JobStoreAway: nobody knows whether a write was applied, and the
    call may be repeated, which then finds its own earlier write.
    """

    @property
    def durable(self) -> bool:
        """Whether a record outlives this gateway."""
        ...

    @property
    def away(self) -> bool:
        """Whether the last call found nobody who could answer; a hint for patience."""
        ...

    async def create(
        self, record: job_service_pb2.JobRecord, *, over_assignment: bool = False
    ) -> tuple[job_service_pb2.JobRecord, bool]:
        """Writes a new record; answers the record that stands and whether it is this one.

        One that has ended already holds nothing of its tenant's limits.

        Raises:
            KeyElsewhere: Its key was assigned to another region, and ``over_assignment``
                does not say that it is made here all the same.
            IdempotencyConflict: The tenant used the key with another request.
            ResourceExhausted: There is no room for another record.
        """
        ...

    async def find_key(self, tenant: str, key: str) -> job_service_pb2.JobRecord | None:
        """The record that a tenant's idempotency key made.

        Raises:
            KeyElsewhere: The key was assigned to another region.
        """
        ...

    async def assign_key(
        self, tenant: str, key: str, *, region: str, over_region: str, keep_s: int
    ) -> str | None:
        """Says that a key's video is made in another region; answers the region that stands.

        None: the key has made a video here. The first assignment stands, unless it is to
        ``over_region``; it is forgotten after ``keep_s`` seconds or later.
        """
        ...

    async def supersede(self, tenant: str, job_id: str, *, keep_s: int) -> bool:
        """Says for all regions that a client goes on elsewhere with a job of another one.

        False: nobody keeps such words here.
        """
        ...

    async def get(self, tenant: str, job_id: str) -> job_service_pb2.JobRecord | None:
        """The tenant's record of that id."""
        ...

    async def list_page(
        self, tenant: str, *, limit: int, after: str, oldest_first: bool
    ) -> tuple[list[job_service_pb2.JobRecord], bool]:
        """Up to ``limit`` records after an id in the order asked for, and whether more follow.

        The id need not exist any more; "" begins at the first.
        """
        ...

    async def finish(self, record: job_service_pb2.JobRecord) -> job_service_pb2.JobRecord | None:
        """Writes a terminal record unless one is there; answers what stands.

        None: the record is gone (deleted or expired). A record that stands and is not
        terminal has another owner by now.
        """
        ...

    async def update(self, record: job_service_pb2.JobRecord) -> None:
        """Writes what its owner has learnt of a job that goes on; nothing of another's."""
        ...

    async def claim(
        self, job_id: str, *, epoch: int, owner: Owner
    ) -> tuple[job_service_pb2.JobRecord | None, bool]:
        """Makes ``owner`` the owner at ``epoch + 1`` unless it has ended or is another's.

        Answers the record that stands, None where there is none, and whether it is the
        claimant's now.
        """
        ...

    async def delete(self, tenant: str, job_id: str) -> job_service_pb2.JobRecord | None:
        """Removes an ended record and its key; answers what was removed.

        Raises:
            NotFinished: It has not ended.
        """
        ...

    async def expired(self, now_s: float, *, limit: int) -> list[job_service_pb2.JobRecord]:
        """Terminal records whose time is over, at most ``limit``."""
        ...

    async def known(self, job_ids: Collection[str]) -> set[str]:
        """Those of the ids that have a record, whatever their tenant."""
        ...

    async def owned(self, owner: Owner, *, prefix: str) -> list[job_service_pb2.Orphan]:
        """What an owner has of what has not ended, by the beginning of its id; some hundreds.

        It may be a moment old. Empty where records do not outlive their owner.
        """
        ...

    async def claim_webhook(self, webhook_id: str, *, epoch: int, owner: Owner) -> bool:
        """Makes ``owner`` deliver a webhook whose owner is gone; False: it is another's, or over.

        Webhooks are written with the end of their job, by where the records outlive their owner.
        """
        ...

    async def finish_webhook(self, webhook_id: str, *, owner: Owner) -> None:
        """A webhook of ``owner``'s is delivered or given up; one that is not there is fine."""
        ...


def check_digest(standing: job_service_pb2.JobRecord, digest: str) -> None:
    """Makes sure that a key is used again with the same request.

    Raises:
        IdempotencyConflict: It was used with another.
    """
    if standing.request_digest != digest:
        raise IdempotencyConflict(
            "the idempotency key was used with another request; use a new key for a new video"
        )


def copied(record: job_service_pb2.JobRecord) -> job_service_pb2.JobRecord:
    """A copy that its holder may change."""
    copy = job_service_pb2.JobRecord()
    copy.CopyFrom(record)
    return copy
