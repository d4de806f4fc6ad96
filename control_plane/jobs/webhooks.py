"""Webhooks that are not delivered: an owner each, written with the end that they tell of.

The key is there from the transaction that ends the job or batch until its owner says that
the webhook is delivered or given up, or the record itself is deleted.
"""

from __future__ import annotations

from typing import Final

from reelmesh.v1 import job_service_pb2 as pb

from control_plane.errors import NotFoundError, SupersededError
from control_plane.keys import Keys
from control_plane.store.port import Delete, Put, Store, unchanged
from control_plane.store.writer import FencedWriter

MAX_TRIES: Final = 8


def owner_value(*, tenant: str, gateway_id: str, incarnation: str, epoch: int) -> bytes:
    """Who delivers it, as it is stored."""
    owner = pb.JobRecord(
        tenant=tenant, owner_gateway=gateway_id, owner_incarnation=incarnation, epoch=epoch
    )
    return owner.SerializeToString(deterministic=True)


def webhook_put(keys: Keys, record: pb.JobRecord) -> list[Put]:
    """What the end of a job writes: nothing where nobody wants to be told."""
    if not record.webhook_url:
        return []
    value = owner_value(
        tenant=record.tenant,
        gateway_id=record.owner_gateway,
        incarnation=record.owner_incarnation,
        epoch=record.epoch,
    )
    return [Put(keys.webhook(record.video.id), value)]


class WebhookBook:
    """Changes hands of webhooks, and takes them off."""

    def __init__(self, *, store: Store, writer: FencedWriter, keys: Keys) -> None:
        self._store = store
        self._writer = writer
        self._keys = keys

    async def claim(
        self, webhook_id: str, *, epoch: int, gateway_id: str, incarnation: str
    ) -> bool:
        """Whether the claimant owns it now.

        Raises:
            NotFoundError: It was delivered or given up.
        """
        key = self._keys.owned(webhook_id)
        for _ in range(MAX_TRIES):
            found = await self._store.get(key)
            if found is None:
                raise NotFoundError(f"there is no webhook {webhook_id}")
            standing = pb.JobRecord.FromString(found.value)
            if standing.epoch != epoch:
                wanted = (gateway_id, incarnation, epoch + 1)
                return _owner(standing) == wanted
            value = owner_value(
                tenant=standing.tenant,
                gateway_id=gateway_id,
                incarnation=incarnation,
                epoch=epoch + 1,
            )
            result = await self._writer.txn([unchanged(key, found.mod_revision)], [Put(key, value)])
            if result.succeeded:
                return True
        raise SupersededError(f"webhook {webhook_id} is written by others all the time")

    async def finish(self, webhook_id: str, *, gateway_id: str, incarnation: str) -> None:
        """Takes it off, where it is the caller's; anything else is fine."""
        key = self._keys.owned(webhook_id)
        found = await self._store.get(key)
        if found is None:
            return
        if _owner(pb.JobRecord.FromString(found.value))[:2] == (gateway_id, incarnation):
            await self._writer.txn([unchanged(key, found.mod_revision)], [Delete(key)])


def _owner(record: pb.JobRecord) -> tuple[str, str, int]:
    return record.owner_gateway, record.owner_incarnation, record.epoch
