"""What tenants have of their limits, read from and written with their jobs' own keys.

There is no count that could go wrong: a tenant's live jobs are the keys that are there for
as long as each has not ended, and what ended jobs took is added up in a key for each
(tenant, day, gateway), in the transaction that removes the live one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from reelmesh.v1 import job_service_pb2 as pb

from control_plane.jobs.quota import Usage, charge_of
from control_plane.jobs.records import ended
from control_plane.keys import Keys
from control_plane.store.mirror import list_all
from control_plane.store.port import Compare, Get, KeyValue, Put, Store, unchanged

# Spent keys whose value is remembered, some 200 bytes each.
_MAX_REMEMBERED: Final = 10_000
_LOCKS: Final = 256


class Locks:
    """As many locks as anybody needs, by name; two names may share one."""

    def __init__(self) -> None:
        self._locks = [asyncio.Lock() for _ in range(_LOCKS)]

    def of(self, name: str) -> asyncio.Lock:
        """The lock of a name."""
        return self._locks[hash(name) % _LOCKS]


class Ledger:
    """Reads what tenants have, and adds up what their jobs took."""

    def __init__(self, *, store: Store, keys: Keys) -> None:
        self._store = store
        self._keys = keys
        # What is known of spent keys, so that adding to one needs no reading first.
        self._spent: OrderedDict[str, tuple[float, int]] = OrderedDict()

    async def usage(self, tenant: str, day: str, *, with_gpu: bool = True) -> Usage:
        """What the tenant has now, or a little more: never less.

        Args:
            tenant: Whose.
            day: Whose GPU-seconds.
            with_gpu: Whether those are wanted.
        """
        # Live jobs first: one that ends in between is counted twice, not missed.
        live, revision = await list_all(self._store, self._keys.tenants_live_jobs(tenant))
        if not with_gpu:
            return Usage(len(live), 0.0, {}, revision)
        prefix = self._keys.spent_on(tenant, day)
        spent, _ = await list_all(self._store, prefix)
        return Usage(
            live_jobs=len(live),
            reserved_gpu_seconds=sum(_reserved(kv, day) for kv in live),
            spent_gpu_seconds={kv.key.removeprefix(prefix): _amount(kv) for kv in spent},
            revision=revision,
        )

    def charging(self, record: pb.JobRecord, reservation: pb.QuotaReservation) -> Charge | None:
        """What is to be added up with a job's end, None where that is nothing."""
        if not ended(record):
            return None
        charge_s = charge_of(record, reservation)
        if charge_s <= 0:
            return None
        prefix = self._keys.spent_on(record.tenant, reservation.day)
        return Charge(self, prefix + record.owner_gateway, charge_s)

    def known(self, key: str) -> tuple[float, int]:
        """A spent key's value and revision as last seen; it may have changed since."""
        return self._spent.get(key, (0.0, 0))

    def note(self, key: str, amount_s: float, revision: int) -> None:
        """Remembers a spent key's value at a revision."""
        self._spent[key] = (amount_s, revision)
        self._spent.move_to_end(key)
        if len(self._spent) > _MAX_REMEMBERED:
            self._spent.popitem(last=False)


class Charge:
    """An amount on its way into a spent key."""

    def __init__(self, ledger: Ledger, key: str, amount_s: float) -> None:
        self.key = key
        self._ledger = ledger
        self._amount_s = amount_s
        self._sum_s = 0.0

    def compare(self) -> Compare:
        """That the key is as it was last seen."""
        return unchanged(self.key, self._ledger.known(self.key)[1])

    def write(self) -> Put:
        """The key with the amount added."""
        self._sum_s = self._ledger.known(self.key)[0] + self._amount_s
        spent = pb.QuotaSpent(gpu_seconds=self._sum_s)
        return Put(self.key, spent.SerializeToString(deterministic=True))

    def read(self) -> Get:
        """For where it was not as last seen."""
        return Get(self.key)

    def written(self, revision: int) -> None:
        """The write was made."""
        self._ledger.note(self.key, self._sum_s, revision)

    def found(self, kv: KeyValue | None) -> bool:
        """It was not: this is what stands; answers whether it is not what was last seen."""
        seen = self._ledger.known(self.key)[1]
        self._ledger.note(self.key, _amount(kv) if kv else 0.0, kv.mod_revision if kv else 0)
        return seen != self._ledger.known(self.key)[1]


def _reserved(kv: KeyValue, day: str) -> float:
    live = pb.JobRecord.FromString(kv.value)
    return live.reservation.gpu_seconds if live.reservation.day == day else 0.0


def _amount(kv: KeyValue) -> float:
    return pb.QuotaSpent.FromString(kv.value).gpu_seconds
