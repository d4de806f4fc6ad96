"""Batches as the edges see them: one port for gRPC and for HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from reelmesh.v1 import batch_pb2, tenant_pb2, video_pb2

from gateway.application import ALL_FIT, Caller
from gateway.errors import FieldViolation, InvalidRequest

MAX_ITEMS_PAGE: Final = 1_000
DEFAULT_ITEMS_PAGE: Final = 100


def as_it_is(error: InvalidRequest) -> InvalidRequest:
    """A client that wrote the fields by their own names."""
    return error


@dataclass(slots=True)
class Row:
    """One row of a submission, as an edge read it."""

    spec: video_pb2.VideoSpec
    """With the defaults in it."""
    custom_id: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    unfit: Mapping[str, int] = field(default_factory=lambda: ALL_FIT)
    """As of :meth:`gateway.application.VideoApplication.create`."""
    violations: Sequence[FieldViolation] = ()
    """What the edge found wrong already."""
    in_clients_words: Callable[[InvalidRequest], InvalidRequest] = as_it_is
    place: str = ""
    """Where it stands, such as ``line 7``; its number in the list by default."""


@dataclass(slots=True, kw_only=True)
class Submission:
    """What is asked for."""

    rows: Sequence[Row]
    template: str = ""
    """Empty: each row has its own prompt."""
    rows_name: str = "rows"
    """What the client calls the list."""
    idempotency_key: str = ""
    priority: tenant_pb2.Priority.ValueType = tenant_pb2.PRIORITY_UNSPECIFIED
    metadata: Mapping[str, str] = field(default_factory=dict)
    webhook_url: str = ""
    max_in_flight: int = 0
    violations: Sequence[FieldViolation] = ()
    """Of fields outside the rows, found by the edge."""


class BatchApplication(Protocol):
    """What can be done with batches. Every method sees the caller's own tenant alone.

    Each that takes an id raises BatchNotFound, BatchElsewhere, or JobStoreAway.
    """

    async def submit(self, caller: Caller, submission: Submission) -> batch_pb2.Batch:
        """Accepts all of it or nothing; what is accepted outlives this gateway.

        Raises:
            InvalidRequest: Names each field of each row that breaks a rule, up to a bound.
            PayloadTooLarge: It has too many rows.
            IdempotencyConflict: The key was used with other rows.
            ResourceExhausted: Too many go on already.
            Unavailable: It cannot be kept now.
        """
        ...

    async def get(self, caller: Caller, batch_id: str) -> batch_pb2.Batch:
        """The batch as it was last written."""
        ...

    async def list_page(
        self, caller: Caller, *, page_size: int, page_token: str
    ) -> tuple[list[batch_pb2.Batch], str]:
        """A page of the tenant's, newest first, and the token of the next, "" on the last."""
        ...

    async def items(
        self, caller: Caller, batch_id: str, *, from_index: int, limit: int
    ) -> tuple[list[batch_pb2.BatchItem], bool]:
        """Up to ``limit`` items from an index on, and whether more follow.

        Raises:
            InvalidRequest: The limit or the index is out of range.
            Unavailable: What is known of them cannot be read now.
        """
        ...

    def all_items(self, caller: Caller, batch_id: str) -> AsyncIterator[batch_pb2.BatchItem]:
        """Every item, in order, read as the iteration goes on."""
        ...

    async def cancel(self, caller: Caller, batch_id: str) -> batch_pb2.Batch:
        """Begins no further item and stops those that run; an ended one stays what it is."""
        ...

    async def delete(self, caller: Caller, batch_id: str) -> None:
        """Removes an ended batch with its videos: it is gone at once, they soon after.

        Raises:
            BatchNotFinished: It goes on.
        """
        ...

    @property
    def max_items(self) -> int:
        """Rows of one submission, at most."""
        ...
