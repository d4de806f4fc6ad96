"""Delivers webhooks: at least once each, for as long as their owner lives, and then by another.

What is to be delivered stands in etcd from the transaction that ends the job or batch. This
gateway hears of its own at once, of those whose owner is gone from the control plane, and
asks for what it may have missed.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import structlog
from reelmesh.v1 import batch_record_service_pb2, job_service_pb2

from gateway.errors import GatewayError, JobStoreAway
from gateway.jobs.store import JobStore, Owner
from gateway.webhooks.config import WebhookConfig
from gateway.webhooks.metrics import WebhookMetrics
from gateway.webhooks.schedule import Circuits, delay_s
from gateway.webhooks.sender import DeliveryFailed, Sender
from gateway.webhooks.signing import headers_of
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

_log = structlog.get_logger("gateway.webhooks")

PREFIX: Final = "hook_"
HEIR_FIRST_S: Final = 2.0
AGAIN_S: Final = 2.0
LOOK_S: Final = 30.0
# The receiver wants no more: the specification's word for it.
GONE: Final = 410


@dataclass(frozen=True, slots=True)
class Notice:
    """What a receiver is told."""

    url: str
    body: bytes
    ended_at_s: float
    """Seconds since 1970."""


FindNotice = Callable[[str, str], Awaitable[Notice | None]]
"""Of a tenant's ended job or batch by its id; None: it is gone."""


class Deliveries:
    """Delivers what this gateway owns.

    Args:
        owner: This gateway in this life.
        jobs: Who owns which webhook.
        find_notice: Reads what is to be told, anew for each try.
        send: Posts it.
        secrets: What it is signed with.
        scope: Owns a task for each.
    """

    def __init__(
        self,
        *,
        config: WebhookConfig,
        owner: Owner,
        jobs: JobStore,
        find_notice: FindNotice,
        send: Sender,
        secrets: Sequence[bytes],
        metrics: WebhookMetrics,
        scope: TaskScope,
        clock: Clock,
    ) -> None:
        self._config = config
        self._owner = owner
        self._jobs = jobs
        self._find_notice = find_notice
        self._send = send
        self._secrets = secrets
        self._metrics = metrics
        self._scope = scope
        self._clock = clock
        self._pending: set[str] = set()
        self._listed: dict[str, job_service_pb2.Orphan] = {}
        self._circuits = Circuits()
        self._slots = asyncio.Semaphore(config.max_parallel)
        self._host_slots: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(config.max_parallel_per_host)
        )
        self._waiting: defaultdict[str, int] = defaultdict(int)

    @property
    def pending(self) -> int:
        """Held here and not delivered."""
        return len(self._pending)

    @property
    def open_circuits(self) -> int:
        """Hosts that are left alone until they answer."""
        return self._circuits.open

    def job_ended(self, record: job_service_pb2.JobRecord) -> None:
        """A job of this gateway's has ended; somebody may want to be told."""
        if record.webhook_url:
            self._add(PREFIX + record.video.id, record.tenant)

    def batch_ended(self, record: batch_record_service_pb2.BatchRecord) -> None:
        """Likewise a batch."""
        if record.webhook_url:
            self._add(PREFIX + record.batch.id, record.tenant)

    def _add(self, webhook_id: str, tenant: str) -> None:
        # What finds no room is found by a later look.
        if webhook_id not in self._pending and len(self._pending) < self._config.max_pending:
            self._pending.add(webhook_id)
            self._scope.spawn(
                self._deliver(webhook_id, tenant), name=f"webhook/{webhook_id}", fatal=False
            )

    # --- those that are found ---

    def take(self, orphans: Iterable[job_service_pb2.Orphan]) -> None:
        """Takes the whole list of orphans; webhooks that are new on it are looked after."""
        hooks = {each.job_id: each for each in orphans if each.job_id.startswith(PREFIX)}
        former, self._listed = self._listed, hooks
        for webhook_id, orphan in hooks.items():
            known = former.get(webhook_id)
            if known is None or known.epoch != orphan.epoch:
                self._scope.spawn(self._adopt(orphan), name=f"adopt/{webhook_id}", fatal=False)

    async def _adopt(self, orphan: job_service_pb2.Orphan) -> None:
        if orphan.heir_gateway not in ("", self._owner.gateway_id):
            await self._clock.sleep(HEIR_FIRST_S)
        asked = False
        # A claim without an answer may have been applied, and then it is on no list.
        while asked or self._listed.get(orphan.job_id) == orphan:
            try:
                claimed = await self._jobs.claim_webhook(
                    orphan.job_id, epoch=orphan.epoch, owner=self._owner
                )
            except JobStoreAway:
                asked = True
                await self._clock.sleep(AGAIN_S)
                continue
            if claimed:
                self._add(orphan.job_id, orphan.tenant)
            return

    async def run(self) -> None:
        """Looks for what this gateway owns and does not deliver; cancellation ends it."""
        while True:
            await self._clock.sleep(LOOK_S)
            try:
                await self.look()
            except GatewayError as error:
                _log.info("own webhooks not listed", cause=error.code)
            except Exception:  # noqa: BLE001 - a supervisor: the next look goes on
                _log.exception("look at own webhooks broke off")

    async def look(self) -> None:
        """Once."""
        for owned in await self._jobs.owned(self._owner, prefix=PREFIX):
            self._add(owned.job_id, owned.tenant)

    # --- one of them ---

    async def _deliver(self, webhook_id: str, tenant: str) -> None:
        try:
            await self._until_settled(webhook_id, tenant)
            await self._finish(webhook_id)
        except Exception:  # noqa: BLE001 - a supervisor: a later look takes it up again
            _log.exception("webhook broke off", webhook_id=webhook_id)
        finally:
            self._pending.discard(webhook_id)

    async def _until_settled(self, webhook_id: str, tenant: str) -> None:
        failures = 0
        while True:
            try:
                notice = await self._find_notice(tenant, webhook_id.removeprefix(PREFIX))
            except GatewayError:
                await self._clock.sleep(AGAIN_S)
                continue
            if notice is None:
                # Deleted or expired: there is nothing left to tell of.
                self._metrics.webhook("gone")
                return
            if await self._try(webhook_id, notice):
                return
            failures += 1
            pause_s = delay_s(failures, random.random())  # noqa: S311 - spreads tries, guards nothing
            over_s = notice.ended_at_s + self._config.give_up_after_s
            if self._clock.wall() + pause_s >= over_s:
                self._metrics.webhook("given_up")
                _log.warning("webhook given up", webhook_id=webhook_id, tries=failures)
                return
            await self._clock.sleep(pause_s)

    async def _try(self, webhook_id: str, notice: Notice) -> bool:
        """Whether it is settled, by a delivery or by the receiver's word that it wants none."""
        host = urlsplit(notice.url).netloc
        self._waiting[host] += 1
        try:
            async with self._host_slots[host], self._slots:
                return await self._post(webhook_id, notice, host)
        finally:
            self._waiting[host] -= 1
            if not self._waiting[host]:
                del self._waiting[host], self._host_slots[host]

    async def _post(self, webhook_id: str, notice: Notice, host: str) -> bool:
        now_s = self._clock.monotonic()
        if not self._circuits.enter(host, now_s):
            self._metrics.webhook("held_back")
            return False
        headers = headers_of(
            f"evt_{webhook_id.removeprefix(PREFIX)}",
            notice.body,
            at_s=int(self._clock.wall()),
            secrets=self._secrets,
        )
        try:
            status = await self._send(notice.url, headers, notice.body)
        except DeliveryFailed as error:
            cause = str(error)
        else:
            if 200 <= status < 300 or status == GONE:
                self._circuits.succeeded(host)
                self._metrics.webhook("delivered" if status != GONE else "given_up")
                return True
            cause = f"status {status}"
        self._circuits.failed(host, self._clock.monotonic())
        self._metrics.webhook("failed")
        _log.info("webhook not delivered", webhook_id=webhook_id, cause=cause)
        return False

    async def _finish(self, webhook_id: str) -> None:
        """Takes it off; until that is done another may deliver it again, which is allowed."""
        while True:
            try:
                await self._jobs.finish_webhook(webhook_id, owner=self._owner)
            except JobStoreAway:
                await self._clock.sleep(AGAIN_S)
            else:
                return
