"""The revocations of the whole mesh, as this replica reads them in the global store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

import structlog
from google.protobuf.message import DecodeError
from reelmesh.v1 import access_pb2

from control_plane.errors import InvalidRequestError, NotFoundError
from control_plane.keys import GlobalKeys
from control_plane.passing import PassingKeys
from control_plane.store.mirror import ChangeKind, MirrorChange
from control_plane.store.port import Delete, Put, Store
from control_plane.store.writer import FencedWriter
from reelkit.clock import Clock
from reelkit.tokens.revoked import RevokedTokens

_log = structlog.get_logger("control_plane.revocations")

# Each gateway is sent all of them, some 150 bytes each.
MAX_REVOCATIONS: Final = 10_000


class RevocationBook:
    """Filled by :meth:`apply`; what was read last holds while the store is away.

    Args:
        on_change: Called after each change; wakes whoever tells gateways.
    """

    def __init__(
        self,
        *,
        keys: GlobalKeys,
        store: Store,
        writer: FencedWriter,
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self.version = 0
        """Rises with each change; 0 until the store was read."""
        self.tokens = RevokedTokens()
        """For this process's own listener."""
        self._keys = keys
        self._writer = writer
        self._clock = clock
        self._on_change = on_change
        self._passing = PassingKeys(store=store, writer=writer, clock=clock)
        self._known: dict[str, access_pb2.TokenRevocation] = {}

    def all(self) -> access_pb2.TokenRevocations:
        """Every revocation, the newest first."""
        newest = sorted(
            self._known.values(), key=lambda each: each.revoked_at.ToNanoseconds(), reverse=True
        )
        return access_pb2.TokenRevocations(revocations=newest)

    def apply(self, change: MirrorChange) -> None:
        """Takes a change of the store over."""
        if change.kind is ChangeKind.SNAPSHOT:
            self._known.clear()
        for kv in change.upserts:
            try:
                self._known[kv.key] = access_pb2.TokenRevocation.FromString(kv.value)
            except DecodeError:
                _log.error("a revocation cannot be read; it is left out", key=kv.key)
        for key in change.deleted_keys:
            self._known.pop(key, None)
        self.tokens.replace(self._known.values())
        self.version += 1
        self._on_change()

    async def revoke(
        self, asked: access_pb2.TokenRevocation, *, by: str, keep_s: int
    ) -> access_pb2.TokenRevocation:
        """Writes a revocation; the same again renews it.

        Raises:
            InvalidRequestError: There are too many.
            StoreError: The global store is away; nothing was changed, ask again.
        """
        if len(self._known) >= MAX_REVOCATIONS:
            raise InvalidRequestError(
                "revocation",
                f"there are {MAX_REVOCATIONS} already; revoke whole subjects, or replace the "
                "issuer's key",
            )
        made = access_pb2.TokenRevocation()
        made.CopyFrom(asked)
        made.id = id_of(asked)
        made.revoked_by = by
        now_ns = int(self._clock.wall() * 1e9)
        made.revoked_at.FromNanoseconds(now_ns)
        made.expires_at.FromNanoseconds(now_ns + keep_s * 10**9)
        value = made.SerializeToString(deterministic=True)
        await self._passing.put(self._keys.revocation(made.id), value, keep_s=keep_s)
        _log.info("tokens revoked", id=made.id, which=asked.WhichOneof("which"), by=by)
        return made

    async def restore(self, revocation_id: str, *, by: str) -> None:
        """Takes a revocation back.

        Raises:
            NotFoundError: There is none of that id.
            StoreError: The global store is away.
        """
        key = self._keys.revocation(revocation_id)
        if key not in self._known:
            raise NotFoundError(f"there is no revocation {revocation_id!r}")
        writes: list[Put | Delete] = [Delete(key)]
        await self._writer.txn([], writes)
        _log.info("tokens restored", id=revocation_id, by=by)


def id_of(revocation: access_pb2.TokenRevocation) -> str:
    """The same for the same tokens."""
    which = revocation.WhichOneof("which") or ""
    value = revocation.jti or revocation.subject
    text = f"{revocation.issuer}\0{which}\0{value}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
