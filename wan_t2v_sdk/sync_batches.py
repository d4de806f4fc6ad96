"""Batches, synchronously."""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from typing import TypeVar, Unpack

from wan_t2v_sdk.arguments import Priority, VideoSettings
from wan_t2v_sdk.batch_records import BatchItemRecord, BatchRecord, BatchRow
from wan_t2v_sdk.batches import FOLLOW_EVERY_S, AsyncBatches
from wan_t2v_sdk.loop_thread import shared_loop_thread
from wan_t2v_sdk.result import GenerationResult

T = TypeVar("T")


class Batches:
    """``client.batches``; see :class:`wan_t2v_sdk.batches.AsyncBatches`."""

    def __init__(self, batches: AsyncBatches) -> None:
        self._batches = batches

    def submit(
        self,
        rows: Iterable[BatchRow | str | Mapping[str, str]],
        *,
        template: str = "",
        idempotency_key: str | None = None,
        priority: Priority | None = None,
        metadata: Mapping[str, str] | None = None,
        webhook_url: str = "",
        max_in_flight: int = 0,
        **settings: Unpack[VideoSettings],
    ) -> BatchRecord:
        """Has many videos made; see :meth:`AsyncBatches.submit`."""
        return shared_loop_thread().run(
            self._batches.submit(
                rows,
                template=template,
                idempotency_key=idempotency_key,
                priority=priority,
                metadata=metadata,
                webhook_url=webhook_url,
                max_in_flight=max_in_flight,
                **settings,
            )
        )

    def get(self, batch_id: str) -> BatchRecord:
        """The batch as it stands; a second old at most."""
        return shared_loop_thread().run(self._batches.get(batch_id))

    def list(self, *, limit: int = 20) -> builtins.list[BatchRecord]:
        """The nearest region's batches, newest first, at most ``limit``."""
        return shared_loop_thread().run(self._batches.list(limit=limit))

    def items(self, batch_id: str) -> Iterator[BatchItemRecord]:
        """Every item, in the order of the submission."""
        return _stepped(self._batches.items(batch_id))

    def cancel(self, batch_id: str) -> BatchRecord:
        """Begins no further item and stops those that run; idempotent."""
        return shared_loop_thread().run(self._batches.cancel(batch_id))

    def delete(self, batch_id: str) -> None:
        """Removes an ended batch with its videos."""
        shared_loop_thread().run(self._batches.delete(batch_id))

    def follow(
        self,
        batch_id: str,
        *,
        every_s: float = FOLLOW_EVERY_S,
        on_progress: Callable[[BatchRecord], object] | None = None,
    ) -> Iterator[BatchItemRecord]:
        """Each item once, as it ends; ``on_progress`` is called in the library's own thread."""
        return _stepped(self._batches.follow(batch_id, every_s=every_s, on_progress=on_progress))

    def results(self, batch_id: str) -> Iterator[tuple[BatchItemRecord, GenerationResult | None]]:
        """Each item as it ends, with its video; None for one that has none."""
        return _stepped(self._batches.results(batch_id))


def _stepped(items: AsyncGenerator[T, None]) -> Iterator[T]:
    """An asynchronous iteration, step by step in the library's own thread."""
    thread = shared_loop_thread()

    async def step() -> tuple[T, ...]:
        async for item in items:
            return (item,)
        return ()

    async def stop() -> None:
        await items.aclose()

    try:
        while found := thread.run(step()):
            yield found[0]
    finally:
        thread.run(stop())
