"""What every store refuses before it asks anybody."""

from __future__ import annotations

from collections.abc import Sequence

from control_plane.errors import RecordTooLargeError, StoreRefusedError
from control_plane.store.port import MAX_TXN_OPS, MAX_VALUE_BYTES, Compare, Delete, Op, Put, Target


def check_prefix(prefix: str) -> None:
    """Raises StoreRefusedError for an empty prefix: nobody here may read the whole store."""
    if not prefix:
        raise StoreRefusedError("a prefix must not be empty")


def check_value(key: str, value: bytes) -> None:
    """Raises RecordTooLargeError for a value that would slow raft for everybody."""
    if not key:
        raise StoreRefusedError("a key must not be empty")
    if len(value) > MAX_VALUE_BYTES:
        raise RecordTooLargeError(key, size_bytes=len(value), limit_bytes=MAX_VALUE_BYTES)


def check_txn(compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]) -> None:
    """Raises StoreRefusedError for what etcd would refuse, and RecordTooLargeError."""
    if max(len(compares), len(success), len(failure)) > MAX_TXN_OPS:
        raise StoreRefusedError(f"a transaction has at most {MAX_TXN_OPS} operations")
    for compare in compares:
        if compare.prefix:
            check_prefix(compare.key)
        if isinstance(compare.operand, bytes) != (compare.target is Target.VALUE):
            raise StoreRefusedError(
                f"{compare.key}: {compare.target.value} compares with another type"
            )
    for ops in (success, failure):
        written: set[str] = set()
        for op in ops:
            if isinstance(op, Put):
                check_value(op.key, op.value)
                # etcd: "duplicate key given in txn request".
                if op.key in written:
                    raise StoreRefusedError(f"{op.key} is written twice in one transaction")
                written.add(op.key)
        for op in ops:
            if isinstance(op, Delete) and op.key in written:
                raise StoreRefusedError(f"{op.key} is written and removed in one transaction")
