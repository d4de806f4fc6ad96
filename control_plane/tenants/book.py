"""The policies of all tenants, as this replica reads them in the global store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
from google.protobuf.message import DecodeError
from reelmesh.v1 import tenant_pb2

from control_plane.errors import ChangedMeanwhileError, InvalidRequestError, NotFoundError
from control_plane.keys import GlobalKeys
from control_plane.store.mirror import ChangeKind, MirrorChange
from control_plane.store.port import Delete, KeyValue, Put, Store, unchanged
from control_plane.store.writer import FencedWriter
from control_plane.tenants.policy import EVERYBODY, check_policy
from reelkit.clock import Clock

_log = structlog.get_logger("control_plane.tenants")

# Each gateway is sent all of them in one message, of 4 MiB with all else that is in it.
MAX_BYTES: Final = 2 * 1024 * 1024


class TenantBook:
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
        self._keys = keys
        self._store = store
        self._writer = writer
        self._clock = clock
        self._on_change = on_change
        self._known: dict[str, tenant_pb2.TenantPolicy] = {}
        self._everybody = keys.tenant(EVERYBODY)

    def all(self) -> tenant_pb2.TenantPolicies:
        """Every policy by its tenant's name, that of everybody first."""
        by_name = sorted(self._known.values(), key=lambda each: (each.tenant != "*", each.tenant))
        return tenant_pb2.TenantPolicies(policies=by_name)

    def of(self, tenant: str) -> tenant_pb2.TenantPolicy:
        """The policy that holds for a tenant; not to be changed."""
        own = self._known.get(self._keys.tenant(tenant))
        return own or self._known.get(self._everybody) or _UNLIMITED

    def apply(self, change: MirrorChange) -> None:
        """Takes a change of the store over."""
        if change.kind is ChangeKind.SNAPSHOT:
            self._known.clear()
        for kv in change.upserts:
            try:
                self._known[kv.key] = _policy(kv)
            except DecodeError:
                # What it was before holds: a limit that cannot be read is not lifted.
                _log.error("a tenant's policy cannot be read; it stays as it was", key=kv.key)
        for key in change.deleted_keys:
            self._known.pop(key, None)
        self.version += 1
        self._on_change()

    async def get(self, tenant: str) -> tenant_pb2.TenantPolicy:
        """The tenant's own policy as it stands in the store, with its revision.

        Raises:
            NotFoundError: It has none.
            StoreError: The global store is away.
        """
        found = await self._store.get(self._keys.tenant(tenant))
        if found is None:
            raise NotFoundError(f"tenant {tenant!r} has no policy of its own")
        return _policy(found)

    async def set(self, policy: tenant_pb2.TenantPolicy, *, by: str) -> tenant_pb2.TenantPolicy:
        """Writes a policy in place of the one of its revision; answers what stands.

        Raises:
            InvalidRequestError: A field breaks a rule, or the policies grew too large.
            ChangedMeanwhileError: Somebody else wrote since.
            StoreError: The global store is away; nothing was changed, ask again.
        """
        check_policy(policy)
        made = tenant_pb2.TenantPolicy()
        made.CopyFrom(policy)
        made.revision = 0
        made.updated_by = by
        made.updated_at.FromNanoseconds(int(self._clock.wall() * 1e9))
        key, value = self._keys.tenant(made.tenant), made.SerializeToString(deterministic=True)
        others = sum(each.ByteSize() for name, each in self._known.items() if name != key)
        if others + len(value) > MAX_BYTES:
            raise InvalidRequestError(
                "tenant", f"all policies together must stay below {MAX_BYTES} bytes; unset some"
            )
        result = await self._writer.txn([unchanged(key, policy.revision)], [Put(key, value)])
        if not result.succeeded:
            raise _changed(made.tenant)
        _log.info("tenant's policy set", tenant=made.tenant, by=by)
        made.revision = result.revision
        return made

    async def unset(self, tenant: str, *, revision: int, by: str) -> None:
        """Removes the policy of a revision.

        Raises:
            NotFoundError: There is none.
            ChangedMeanwhileError: Somebody else wrote since.
            StoreError: The global store is away.
        """
        key = self._keys.tenant(tenant)
        result = await self._writer.txn([unchanged(key, revision)], [Delete(key)])
        if not result.succeeded:
            await self.get(tenant)
            raise _changed(tenant)
        _log.info("tenant's policy unset", tenant=tenant, by=by)


_UNLIMITED: Final = tenant_pb2.TenantPolicy()


def _policy(kv: KeyValue) -> tenant_pb2.TenantPolicy:
    policy = tenant_pb2.TenantPolicy.FromString(kv.value)
    policy.revision = kv.mod_revision
    return policy


def _changed(tenant: str) -> ChangedMeanwhileError:
    return ChangedMeanwhileError(
        f"the policy of {tenant!r} was changed by somebody else meanwhile; look and ask again"
    )
