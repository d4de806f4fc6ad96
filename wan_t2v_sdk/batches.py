"""Batches, asynchronously: many videos in one request, which outlive their client."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from typing import Protocol, TypeVar, Unpack

from reelmesh.v1 import batch_service_pb2 as pb

from wan_t2v_sdk.arguments import Priority, VideoSettings, check_key, check_priority, request_of
from wan_t2v_sdk.batch_records import (
    BatchItemRecord,
    BatchRecord,
    BatchRow,
    batch_of,
    item_of,
    row_of,
)
from wan_t2v_sdk.connection import CALL_TIMEOUT_S, Connection
from wan_t2v_sdk.errors import OverloadedError, UnavailableError
from wan_t2v_sdk.result import GenerationResult

T = TypeVar("T")

# A submission is checked row by row, and ten thousand take a while.
SUBMIT_TIMEOUT_S = 120.0
ITEMS_PAGE = 1_000
FOLLOW_EVERY_S = 1.0
# A region that is away for that long is told of; the batch goes on without its follower.
FOLLOW_PATIENCE_S = 120.0
_PREFIX = "batch_"

Download = Callable[[str], Awaitable[GenerationResult]]


class First(Protocol):
    """Asks one gateway after another, a video's home first."""

    async def __call__(self, ask: Callable[[Connection], Awaitable[T]], *, video_id: str = "") -> T:
        """The answer of the first gateway that can give one."""
        ...


class AsyncBatches:
    """``client.batches``.

    Every method may raise what single videos raise: VideoNotFoundError (with the code
    ``batch_not_found``) where there is no such batch of this tenant, UnavailableError,
    AuthenticationError and so on.
    """

    def __init__(self, *, first: First, download: Download, model: str | None) -> None:
        self._first = first
        self._download = download
        self._model = model

    async def submit(
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
        """Has many videos made; returns once all of it is accepted, or raises.

        Args:
            rows: Prompts; or, with a template, what its names stand for, by name, and
                ``custom_id``; or :class:`BatchRow`, which has settings of its own.
            template: A prompt with names in braces, such as ``a {color} cup spins``.
            idempotency_key: The same key and rows give the same batch; a fresh one by
                default, which covers this call's own retries.
            priority: ``batch`` by default: after what somebody waits for.
            metadata: Up to 16 pairs of the caller's own.
            webhook_url: Told of the batch's end, where the mesh allows that.
            max_in_flight: Videos under way at once; 0: as many as the gateway allows.
            **settings: Of every row that does not say otherwise.

        Raises:
            InvalidRequestError: Names each field of each row that is wrong; nothing was
                accepted.
        """
        request = pb.SubmitBatchRequest(
            rows=[row_of(row) for row in rows],
            template=template,
            defaults=request_of("", settings, default_model=self._model).to_spec(),
            idempotency_key=check_key(idempotency_key),
            priority=check_priority(priority),
            metadata=dict(metadata or {}),
            webhook_url=webhook_url,
            max_in_flight=max_in_flight,
        )

        async def ask(each: Connection) -> BatchRecord:
            answer = await each.call(
                lambda: each.batches.SubmitBatch(
                    request, metadata=each.metadata(), timeout=SUBMIT_TIMEOUT_S
                )
            )
            return batch_of(answer.batch)

        return await self._first(ask)

    async def get(self, batch_id: str) -> BatchRecord:
        """The batch as it stands; a second old at most."""
        request = pb.GetBatchRequest(batch_id=batch_id)

        async def ask(each: Connection) -> BatchRecord:
            answer = await each.call(
                lambda: each.batches.GetBatch(
                    request, metadata=each.metadata(), timeout=CALL_TIMEOUT_S
                )
            )
            return batch_of(answer.batch)

        return await self._first(ask, video_id=_home_of(batch_id))

    async def list(self, *, limit: int = 20) -> builtins.list[BatchRecord]:
        """The nearest region's batches, newest first, at most ``limit`` (100 at most)."""
        request = pb.ListBatchesRequest(page_size=limit)

        async def ask(each: Connection) -> builtins.list[BatchRecord]:
            answer = await each.call(
                lambda: each.batches.ListBatches(
                    request, metadata=each.metadata(), timeout=CALL_TIMEOUT_S
                )
            )
            return [batch_of(batch) for batch in answer.batches]

        return await self._first(ask)

    async def items(self, batch_id: str) -> AsyncGenerator[BatchItemRecord, None]:
        """Every item, in the order of the submission."""
        index, more = 0, True
        while more:
            page, more = await self._page(batch_id, index)
            for item in page:
                yield item
            index += len(page)

    async def cancel(self, batch_id: str) -> BatchRecord:
        """Begins no further item and stops those that run; idempotent."""
        request = pb.CancelBatchRequest(batch_id=batch_id)

        async def ask(each: Connection) -> BatchRecord:
            answer = await each.call(
                lambda: each.batches.CancelBatch(
                    request, metadata=each.metadata(), timeout=CALL_TIMEOUT_S
                )
            )
            return batch_of(answer.batch)

        return await self._first(ask, video_id=_home_of(batch_id))

    async def delete(self, batch_id: str) -> None:
        """Removes an ended batch with its videos.

        Raises:
            NotFinishedError: It goes on; cancel it first.
        """
        request = pb.DeleteBatchRequest(batch_id=batch_id)

        async def ask(each: Connection) -> None:
            await each.call(
                lambda: each.batches.DeleteBatch(
                    request, metadata=each.metadata(), timeout=CALL_TIMEOUT_S
                )
            )

        await self._first(ask, video_id=_home_of(batch_id))

    async def follow(
        self,
        batch_id: str,
        *,
        every_s: float = FOLLOW_EVERY_S,
        on_progress: Callable[[BatchRecord], object] | None = None,
    ) -> AsyncGenerator[BatchItemRecord, None]:
        """Each item once, as it ends, up to the last; giving up leaves the batch as it is.

        Args:
            batch_id: Which.
            every_s: Between looks.
            on_progress: Called with the batch after each look.

        A gateway that dies, or a region that is away for two minutes, is looked past.
        """
        told: set[int] = set()
        while True:
            batch = await self._patiently(lambda: self.get(batch_id))
            if on_progress is not None:
                on_progress(batch)
            async for item in self._ended_now(batch_id, told):
                yield item
            if batch.finished:
                return
            await asyncio.sleep(every_s)

    async def results(
        self, batch_id: str
    ) -> AsyncGenerator[tuple[BatchItemRecord, GenerationResult | None], None]:
        """Each item as it ends, with its video; None for one that has none."""
        async with contextlib.aclosing(self.follow(batch_id)) as items:
            async for item in items:
                complete = item.status == "completed"
                yield item, await self._download(item.video_id) if complete else None

    async def _ended_now(
        self, batch_id: str, told: set[int]
    ) -> AsyncGenerator[BatchItemRecord, None]:
        """Items that have ended and are not among those told of; adds them."""
        index, more = _first_missing(told), True
        while more:
            at = index
            page, more = await self._patiently(lambda at=at: self._page(batch_id, at))  # type: ignore[misc] # bound now
            for item in page:
                if item.finished and item.index not in told:
                    told.add(item.index)
                    yield item
            index += len(page)
            if not any(item.video_id or item.finished for item in page):
                # None of what follows is begun.
                return

    async def _page(self, batch_id: str, index: int) -> tuple[builtins.list[BatchItemRecord], bool]:
        request = pb.ListBatchItemsRequest(
            batch_id=batch_id, page_size=ITEMS_PAGE, from_index=index
        )

        async def ask(each: Connection) -> tuple[builtins.list[BatchItemRecord], bool]:
            answer = await each.call(
                lambda: each.batches.ListBatchItems(
                    request, metadata=each.metadata(), timeout=CALL_TIMEOUT_S
                )
            )
            return [item_of(item) for item in answer.items], answer.more

        return await self._first(ask, video_id=_home_of(batch_id))

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer, asked for again while there is nobody who can give it."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + FOLLOW_PATIENCE_S
        while True:
            try:
                return await ask()
            except (UnavailableError, OverloadedError) as error:
                if loop.time() >= give_up_s or error.code == "no_gateway":
                    raise
                await asyncio.sleep(error.retry_after_s or FOLLOW_EVERY_S)


def _first_missing(told: set[int]) -> int:
    index = 0
    while index in told:
        index += 1
    return index


def _home_of(batch_id: str) -> str:
    """As a video's id of the same region: what the routing goes by."""
    return batch_id.removeprefix(_PREFIX)
