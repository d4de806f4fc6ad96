"""The parts and places of one tier as its store has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import structlog
from google.protobuf.message import DecodeError
from reelmesh.v1 import quota_service_pb2 as pb

from control_plane.keys import ShareKeys
from control_plane.quotas.shares import Holding
from control_plane.store.mirror import ChangeKind, MirrorChange, list_all
from control_plane.store.port import KeyValue, Store

_log = structlog.get_logger("control_plane.quotas")

NOBODY: Final[Mapping[str, Holding]] = {}


class Place(NamedTuple):
    """A holder's slot."""

    number: int
    renewed_at_s: float
    pending: bool
    revision: int


class ShareView:
    """A copy of a tier, of a revision; followed by :meth:`apply` or read by :func:`read_view`."""

    def __init__(self, keys: ShareKeys) -> None:
        self.revision = 0
        """Everything up to it is in here; 0: nothing was read yet."""
        self.places: dict[str, Place] = {}
        self._keys = keys
        # By the prefix of a tenant's keys, as is its name.
        self._holdings: dict[str, dict[str, Holding]] = {}
        self._names: dict[str, str] = {}

    def holdings(self, tenant: str) -> Mapping[str, Holding]:
        """What each holder has of a tenant."""
        return self._holdings.get(self._keys.tenant_prefix(tenant), NOBODY)

    def tenants(self) -> Iterable[tuple[str, Mapping[str, Holding]]]:
        """Each tenant that somebody holds something of, with its holders."""
        return [(self._names[prefix], held) for prefix, held in self._holdings.items()]

    def apply(self, change: MirrorChange) -> None:
        """Takes a change of the store over."""
        if change.kind is ChangeKind.SNAPSHOT:
            self.places.clear()
            self._holdings.clear()
            self._names.clear()
        for kv in change.upserts:
            self.put(kv)
        for key in change.deleted_keys:
            self._forget(key)
        self.revision = change.revision

    def put(self, kv: KeyValue) -> None:
        """Takes one key over."""
        try:
            if kv.key.startswith(self._keys.slots):
                slot = pb.QuotaSlot.FromString(kv.value)
                renewed_s = slot.renewed_at.ToNanoseconds() / 1e9
                holder = kv.key.removeprefix(self._keys.slots)
                self.places[holder] = Place(slot.number, renewed_s, slot.pending, kv.mod_revision)
            elif kv.key.startswith(self._keys.shares):
                share = pb.QuotaShare.FromString(kv.value)
                prefix, _, holder = kv.key.rpartition("/")
                held = Holding(share.part, share.demand, share.number)
                self._names[f"{prefix}/"] = share.tenant
                self._holdings.setdefault(f"{prefix}/", {})[holder] = held
        except DecodeError:
            _log.error("a part cannot be read; it counts as the whole", key=kv.key)
            prefix, _, holder = kv.key.rpartition("/")
            self._names.setdefault(f"{prefix}/", "")
            self._holdings.setdefault(f"{prefix}/", {})[holder] = Holding(part=1.0)

    def _forget(self, key: str) -> None:
        if key.startswith(self._keys.slots):
            self.places.pop(key.removeprefix(self._keys.slots), None)
            return
        prefix, _, holder = key.rpartition("/")
        holders = self._holdings.get(f"{prefix}/", {})
        holders.pop(holder, None)
        if not holders:
            self._holdings.pop(f"{prefix}/", None)
            self._names.pop(f"{prefix}/", None)


async def read_view(store: Store, keys: ShareKeys, tenant: str | None = None) -> ShareView:
    """The tier as it stands now; of the parts, those of one tenant alone where one is named.

    Raises:
        StoreError: The store is away, or has forgotten the revision meanwhile: read again.
    """
    view = ShareView(keys)
    prefix = keys.base if tenant is None else keys.tenant_prefix(tenant)
    items, view.revision = await list_all(store, prefix)
    if tenant is not None:
        # Places of a later revision: what compares with the earlier one only fails more often.
        items += (await list_all(store, keys.slots))[0]
    for kv in items:
        view.put(kv)
    return view
