"""The store as the control plane knows it: etcd's model, as few words of it as are used.

A store holds keys (text) and values (bytes). Every change has a revision, one number
for the whole store that only rises. :class:`~control_plane.store.memory.MemoryStore`
and :class:`~control_plane.store.etcd.EtcdStore` behave alike; the contract suite in
``tests/contract`` runs on both.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol, TypeAlias

# A record that is larger slows raft for everybody; see the design.
MAX_VALUE_BYTES = 16 * 1024
# etcd's own limit of operations in one transaction.
MAX_TXN_OPS = 128
DEFAULT_PAGE_SIZE = 250


@dataclasses.dataclass(frozen=True, slots=True)
class KeyValue:
    """A key at one revision. In a delete event value is empty and version 0."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    # Writes since the key was created, from 1.
    version: int
    # 0: under no lease.
    lease_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class RangePage:
    """One page of a listing, in key order."""

    items: tuple[KeyValue, ...]
    # The store's revision that the page shows; pass it on to list the rest of the same.
    revision: int
    more: bool


class Target(enum.Enum):
    """What of a key a comparison looks at; an absent key has 0 in all but VALUE."""

    VERSION = "version"
    CREATE_REVISION = "create_revision"
    MOD_REVISION = "mod_revision"
    # A comparison with an absent key's value is false, whatever the operator.
    VALUE = "value"
    LEASE = "lease"


class Operator(enum.Enum):
    """How a comparison compares."""

    EQUAL = "="
    NOT_EQUAL = "!="
    GREATER = ">"
    LESS = "<"


@dataclasses.dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a transaction: key's target, operator, operand."""

    key: str
    target: Target
    operand: int | bytes
    operator: Operator = Operator.EQUAL
    # The key is a prefix, and the condition one on every key that starts with it. Where
    # there is none of them it holds or not as on one absent key.
    prefix: bool = False


def absent(key: str) -> Compare:
    """Holds while the key does not exist."""
    return Compare(key, Target.CREATE_REVISION, 0)


def present(key: str) -> Compare:
    """Holds while the key exists."""
    return Compare(key, Target.CREATE_REVISION, 0, Operator.GREATER)


def unchanged(key: str, mod_revision: int) -> Compare:
    """Holds while the key is as it was at ``mod_revision``; 0: while it is absent."""
    return Compare(key, Target.MOD_REVISION, mod_revision)


def none_created_since(prefix: str, revision: int) -> Compare:
    """Holds while every key under ``prefix`` was there at ``revision`` already."""
    return Compare(prefix, Target.CREATE_REVISION, revision + 1, Operator.LESS, prefix=True)


def none_written_since(prefix: str, revision: int) -> Compare:
    """Holds while no key under ``prefix`` was written after ``revision``; it may be gone."""
    return Compare(prefix, Target.MOD_REVISION, revision + 1, Operator.LESS, prefix=True)


def holds(key: str, value: bytes) -> Compare:
    """Holds while the key has this value."""
    return Compare(key, Target.VALUE, value)


@dataclasses.dataclass(frozen=True, slots=True)
class Get:
    """Reads a key inside a transaction."""

    key: str


@dataclasses.dataclass(frozen=True, slots=True)
class Put:
    """Writes a key inside a transaction; lease_id 0 takes it off any lease."""

    key: str
    value: bytes
    lease_id: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Delete:
    """Removes a key inside a transaction; an absent one is fine."""

    key: str


Op: TypeAlias = Get | Put | Delete


@dataclasses.dataclass(frozen=True, slots=True)
class TxnResult:
    """What a transaction did."""

    succeeded: bool
    # The store's revision after it; that of its writes, where it wrote.
    revision: int
    # Answers of the Get operations of the branch that ran, in their order.
    gets: tuple[KeyValue | None, ...] = ()


class EventKind(enum.Enum):
    """What happened to a key."""

    PUT = "put"
    DELETE = "delete"


@dataclasses.dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change; ``kv.mod_revision`` is its revision."""

    kind: EventKind
    kv: KeyValue


@dataclasses.dataclass(frozen=True, slots=True)
class WatchBatch:
    """Changes in order, whole revisions only; or none, as proof of progress."""

    events: tuple[WatchEvent, ...]
    # Everything up to and including this revision has been seen.
    revision: int


@dataclasses.dataclass(frozen=True, slots=True)
class LeaseInfo:
    """How long a lease still lasts."""

    lease_id: int
    remaining_s: float
    granted_s: float


class Store(Protocol):
    """A store that keeps every promise below through the loss of its server.

    All calls may raise StoreUnavailableError, StoreRestoredError, StoreDeniedError and
    StoreRefusedError (see ``control_plane.errors``). Reads are repeated inside; a write
    that was sent is never repeated: no answer to it is OutcomeUnknownError, and
    :class:`~control_plane.store.writer.FencedWriter` finds out. Cancelling a write
    leaves its outcome unknown likewise.
    """

    async def get(self, key: str) -> KeyValue | None:
        """The key's newest value, linearizable; None where it is absent."""
        ...

    async def range(
        self,
        prefix: str,
        *,
        after: str | None = None,
        limit: int = DEFAULT_PAGE_SIZE,
        revision: int = 0,
        descending: bool = False,
    ) -> RangePage:
        """Keys that start with ``prefix``, in order, those after ``after`` only.

        Args:
            prefix: Not empty.
            after: Last key of the page before; it need not exist.
            limit: Most items to return, from 1.
            revision: Show the store as of then; 0: newest.
            descending: The order is from the last key to the first.

        Raises:
            CompactedError: ``revision`` is no longer kept.
        """
        ...

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int:
        """Writes the key and returns the write's revision.

        Raises:
            LeaseNotFoundError: The lease is gone; nothing was written.
            RecordTooLargeError: The value passes MAX_VALUE_BYTES.
            OutcomeUnknownError: Sent, not answered.
        """
        ...

    async def delete(self, key: str) -> bool:
        """Removes the key; False where it was absent already.

        Raises:
            OutcomeUnknownError: Sent, not answered.
        """
        ...

    async def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Op],
        failure: Sequence[Op] = (),
    ) -> TxnResult:
        """Runs ``success`` if all comparisons hold, else ``failure``, in one revision.

        Raises:
            LeaseNotFoundError: A Put of the branch that ran names a lease that is gone.
            RecordTooLargeError: A value passes MAX_VALUE_BYTES.
            OutcomeUnknownError: Sent, not answered.
        """
        ...

    async def grant(self, ttl_s: float) -> LeaseInfo:
        """A new lease; whole seconds, rounded up, and never below the store's minimum."""
        ...

    async def keep_alive(self, lease_id: int) -> float:
        """Renews the lease and returns the seconds it lasts from now.

        Calls of one process share one stream.

        Raises:
            LeaseNotFoundError: It ran out or was revoked; its keys are gone.
        """
        ...

    async def revoke(self, lease_id: int) -> None:
        """Ends the lease and removes its keys; idempotent: one that is gone is fine."""
        ...

    async def time_to_live(self, lease_id: int) -> LeaseInfo:
        """How long the lease lasts without renewal.

        Raises:
            LeaseNotFoundError: It ran out or was revoked.
        """
        ...

    def watch(self, prefix: str, *, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Every change of keys under ``prefix`` from that revision on, once, in order.

        Losses of the server are healed inside: the iteration waits and resumes. Close
        the iterator (``aclose``) to end the watch.

        Args:
            prefix: Not empty.
            from_revision: The first revision to report, from 1.

        Raises:
            CompactedError: Changes in between are no longer kept: relist.
            StoreRestoredError: The history is another one: relist.
        """
        ...
