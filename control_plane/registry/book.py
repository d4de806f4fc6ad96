"""The registered versions of the whole mesh, as this replica reads them in the global store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeVar

import structlog
from google.protobuf.message import DecodeError
from reelmesh.v1 import registry_pb2 as reg

from control_plane.errors import (
    ChangedMeanwhileError,
    InvalidRequestError,
    NotFoundError,
    StillWantedError,
)
from control_plane.keys import GlobalKeys
from control_plane.registry.record import check_order, check_registration, merged
from control_plane.store.mirror import ChangeKind, MirrorChange
from control_plane.store.port import Delete, KeyValue, Op, Put, Store, absent, unchanged
from control_plane.store.writer import FencedWriter
from reelkit.clock import Clock

_log = structlog.get_logger("control_plane.registry")

# Each replica keeps them all, up to 16 KiB each; a list of them goes into one message of 4 MiB.
MAX_VERSIONS: Final = 2_000
MAX_ORDERS: Final = 32
MAX_WRITE_TRIES: Final = 5

R = TypeVar("R", reg.RegisteredModel, reg.PrefetchOrder)


class ModelRegistry:
    """Filled by :meth:`apply`; what was read last holds while the store is away.

    Args:
        on_change: Called after each change; wakes whoever tells nodes.
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
        self.loaded = False
        self._keys = keys
        self._store = store
        self._writer = writer
        self._clock = clock
        self._on_change = on_change
        self._models: dict[str, reg.RegisteredModel] = {}
        self._orders: dict[str, reg.PrefetchOrder] = {}

    def models(self) -> list[reg.RegisteredModel]:
        """Every version by name, then the oldest first; not to be changed."""
        return sorted(
            self._models.values(),
            key=lambda each: (each.name, each.registered_at.ToNanoseconds(), each.version),
        )

    def orders(self) -> list[reg.PrefetchOrder]:
        """Every standing order, the oldest first; not to be changed."""
        return sorted(
            self._orders.values(),
            key=lambda each: (each.ordered_at.ToNanoseconds(), each.name, each.version),
        )

    def wanted(self) -> Iterable[tuple[reg.PrefetchOrder, reg.RegisteredModel]]:
        """Each standing order with its version, where that is one to have."""
        models: Mapping[tuple[str, str], reg.RegisteredModel] = {
            (each.name, each.version): each for each in self._models.values()
        }
        for order in self.orders():
            model = models.get((order.name, order.version))
            if model is not None and model.state == reg.REGISTRATION_STATE_ACTIVE:
                yield order, model

    def apply(self, change: MirrorChange) -> None:
        """Takes a change of the store over."""
        if change.kind is ChangeKind.SNAPSHOT:
            self._models.clear()
            self._orders.clear()
        for kv in change.upserts:
            try:
                if kv.key.startswith(self._keys.model_versions):
                    self._models[kv.key] = _model(kv)
                elif kv.key.startswith(self._keys.prefetches):
                    self._orders[kv.key] = reg.PrefetchOrder.FromString(kv.value)
            except DecodeError:
                # What it was before holds.
                _log.error("a record of the registry cannot be read", key=kv.key)
        for key in change.deleted_keys:
            self._models.pop(key, None)
            self._orders.pop(key, None)
        self.loaded = True
        self._on_change()

    async def get(self, name: str, version: str) -> reg.RegisteredModel:
        """A version as it stands in the store, with its revision.

        Raises:
            NotFoundError: It is not registered.
            StoreError: The global store is away.
        """
        found = await self._store.get(self._keys.model_version(name, version))
        if found is None:
            known = sorted({each.version for each in self._models.values() if each.name == name})
            hint = f"; of {name} there are: {', '.join(known[-10:])}" if known else ""
            raise NotFoundError(f"{name}@{version} is not registered{hint}")
        return _model(found)

    async def register(
        self, asked: reg.RegisteredModel, *, by: str
    ) -> tuple[reg.RegisteredModel, bool]:
        """Adds a version; the same again adds its new sources and signatures.

        Returns:
            What stands, and whether the version is new.

        Raises:
            InvalidRequestError: A field breaks a rule, or there are too many versions.
            AlreadyRegisteredError: The version has other content.
            ChangedMeanwhileError: Others change it all the time.
            StoreError: The global store is away; nothing was changed, ask again.
        """
        check_registration(asked)
        key = self._keys.model_version(asked.name, asked.version)
        for _ in range(MAX_WRITE_TRIES):
            found = await self._store.get(key)
            if found is None:
                made = self._new(asked, by)
            else:
                standing = _model(found)
                made = merged(standing, asked)
                if made == standing:
                    return standing, False
            result = await self._writer.txn(
                [unchanged(key, found.mod_revision if found else 0)], [_put(key, made)]
            )
            if result.succeeded:
                made.revision = result.revision
                _log.info(
                    "model registered",
                    model=f"{made.name}@{made.version}",
                    manifest=made.manifest_sha256,
                    by=by,
                )
                return made, found is None
        raise _changed(asked.name, asked.version)

    def _new(self, asked: reg.RegisteredModel, by: str) -> reg.RegisteredModel:
        if len(self._models) >= MAX_VERSIONS:
            raise InvalidRequestError("model", f"there are {MAX_VERSIONS} versions already")
        made = reg.RegisteredModel()
        made.CopyFrom(asked)
        made.state = reg.REGISTRATION_STATE_ACTIVE
        made.registered_by = by
        made.registered_at.FromNanoseconds(self._now_ns())
        for field in ("changed_by", "changed_at", "reason", "revision"):
            made.ClearField(field)
        return made

    async def set_state(
        self,
        name: str,
        version: str,
        *,
        state: reg.RegistrationState.ValueType,
        reason: str,
        revision: int,
        by: str,
    ) -> reg.RegisteredModel:
        """Retires a version of a revision, or takes that back.

        Raises:
            NotFoundError: It is not registered.
            StillWantedError: Nodes are told to have it.
            ChangedMeanwhileError: Somebody else wrote since.
            StoreError: The global store is away.
        """
        made = await self.get(name, version)
        if made.revision != revision:
            raise _changed(name, version)
        made.state, made.reason, made.changed_by = state, reason, by
        made.changed_at.FromNanoseconds(self._now_ns())
        key, order = (
            self._keys.model_version(name, version),
            self._keys.prefetch(name, version),
        )
        result = await self._writer.txn(
            [unchanged(key, revision), absent(order)], [_put(key, made)]
        )
        if not result.succeeded:
            if await self._store.get(order) is not None:
                raise StillWantedError(
                    f"nodes are told to have {name}@{version}; take its prefetch back first"
                )
            raise _changed(name, version)
        _log.info("model's state set", model=f"{name}@{version}", state=state, by=by)
        made.revision = result.revision
        return made

    async def order(self, asked: reg.PrefetchOrder, *, by: str) -> reg.PrefetchOrder:
        """Has nodes fetch and keep a version, in place of an earlier order of it.

        Raises:
            InvalidRequestError: A field breaks a rule, or there are too many orders.
            NotFoundError: The version is not registered, or is retired.
            ChangedMeanwhileError: It was changed at the same moment.
            StoreError: The global store is away.
        """
        check_order(asked)
        model = await self.get(asked.name, asked.version)
        if model.state != reg.REGISTRATION_STATE_ACTIVE:
            raise NotFoundError(f"{asked.name}@{asked.version} is retired")
        key = self._keys.prefetch(asked.name, asked.version)
        if key not in self._orders and len(self._orders) >= MAX_ORDERS:
            raise InvalidRequestError(
                "order", f"{MAX_ORDERS} versions are prefetched already; take one back"
            )
        made = reg.PrefetchOrder()
        made.CopyFrom(asked)
        made.ordered_by = by
        made.ordered_at.FromNanoseconds(self._now_ns())
        # A version that is retired at the same moment is not ordered.
        still = unchanged(self._keys.model_version(asked.name, asked.version), model.revision)
        result = await self._writer.txn([still], [_put(key, made)])
        if not result.succeeded:
            raise _changed(asked.name, asked.version)
        _log.info("prefetch ordered", model=f"{made.name}@{made.version}", by=by)
        return made

    async def take_back(self, name: str, version: str, *, by: str) -> None:
        """Ends an order; nodes may drop the version.

        Raises:
            NotFoundError: There is none.
            StoreError: The global store is away.
        """
        key = self._keys.prefetch(name, version)
        found = await self._store.get(key)
        if found is None:
            raise NotFoundError(f"nothing of {name}@{version} was ordered")
        writes: list[Op] = [Delete(key)]
        await self._writer.txn([], writes)
        _log.info("prefetch taken back", model=f"{name}@{version}", by=by)

    def _now_ns(self) -> int:
        return int(self._clock.wall() * 1e9)


def _model(kv: KeyValue) -> reg.RegisteredModel:
    model = reg.RegisteredModel.FromString(kv.value)
    model.revision = kv.mod_revision
    return model


def _put(key: str, record: R) -> Put:
    stored = type(record)()
    stored.CopyFrom(record)
    if isinstance(stored, reg.RegisteredModel):
        stored.revision = 0
    return Put(key, stored.SerializeToString(deterministic=True))


def _changed(name: str, version: str) -> ChangedMeanwhileError:
    return ChangedMeanwhileError(
        f"{name}@{version} was changed by somebody else meanwhile; look and ask again"
    )
