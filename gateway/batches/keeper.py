"""Keeps a batch's record true: what its owner knows goes to files, and then to the record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from reelmesh.v1 import batch_pb2, video_pb2
from reelmesh.v1 import batch_record_service_pb2 as pb

from gateway.batches import records
from gateway.batches.files import BatchFiles
from gateway.batches.store import BatchStore
from gateway.batches.tally import Tally
from gateway.errors import JobStoreAway
from gateway.output.artifacts import ArtifactError, ArtifactMissing
from reelkit.clock import Clock

_log = structlog.get_logger("gateway.batches")

STORE_DELAY_S: Final = 1.0


class NotMine(Exception):  # noqa: N818 - named for what happened
    """The batch has another owner, or is gone."""


class Keeper:
    """The record of one batch, as its owner writes it. One write at a time.

    Args:
        record: The owner's own.
        tally: What is to be written.
        on_cancel: Called when somebody has asked for the batch's end.
        retention_s: How long it is kept after its end.
    """

    def __init__(
        self,
        record: pb.BatchRecord,
        tally: Tally,
        *,
        store: BatchStore,
        files: BatchFiles,
        on_cancel: Callable[[], None],
        retention_s: float,
        clock: Clock,
    ) -> None:
        self.record = record
        """As it was last written or read."""
        self._tally = tally
        self._store = store
        self._files = files
        self._on_cancel = on_cancel
        self._retention_s = retention_s
        self._clock = clock
        self._writing = asyncio.Lock()

    @property
    def batch_id(self) -> str:
        """The batch's id."""
        return self.record.batch.id

    async def recall(self) -> None:
        """Reads how items ended, as the record has it.

        Raises:
            ArtifactError: Not now; call again.
        """
        for segment in range(len(self.record.segment_bytes)):
            if not self.record.outcome_tokens[segment] or self._tally.full(segment):
                continue
            try:
                outcomes = await self._files.outcomes(self.record, segment)
            except ArtifactMissing:
                # Its items are asked for again, by their keys.
                _log.error("outcomes are lost", batch_id=self.batch_id, segment=segment)
            else:
                self._tally.recall(segment, outcomes)
        if self.record.cancel_requested:
            self._on_cancel()

    async def refresh(self) -> None:
        """Writes what changed; where nothing did, looks whether others want something.

        Raises:
            NotMine: It is another's.
        """
        if self._tally.changed:
            await self.write()
            return
        # No write meanwhile: what is read must not be taken for newer than it.
        async with self._writing:
            try:
                standing = await self._store.get(self.record.tenant, self.batch_id)
            except JobStoreAway:
                return
            if standing is None or standing.epoch != self.record.epoch:
                raise NotMine
            self._heed(standing)

    async def write(self) -> bool:
        """Writes what is known of it; False: not now.

        Raises:
            NotMine: It is another's.
        """
        async with self._writing:
            try:
                self._heed(await self._save(lambda record: record))
            except (JobStoreAway, ArtifactError) as error:
                _log.warning("batch not written", batch_id=self.batch_id, error=str(error))
                return False
        return True

    async def finish(
        self,
        status: batch_pb2.BatchStatus.ValueType,
        error: video_pb2.FailedEvent | None,
        *,
        going_on: Callable[[], bool],
    ) -> pb.BatchRecord | None:
        """Writes the end, however long that takes; None: not while it went on.

        Raises:
            NotMine: It is another's.
        """
        # Once: a write whose answer was lost is known again by it.
        now_s = self._clock.wall()

        def ended(record: pb.BatchRecord) -> pb.BatchRecord:
            return records.finished(
                record, status, now_s=now_s, retention_s=self._retention_s, error=error
            )

        while going_on():
            try:
                async with self._writing:
                    record = await self._save(ended)
            except (JobStoreAway, ArtifactError) as away:
                _log.warning("end not written", batch_id=self.batch_id, error=str(away))
                await self._clock.sleep(STORE_DELAY_S)
            else:
                await self._files.tidy(record)
                return record
        return None

    def _heed(self, standing: pb.BatchRecord) -> None:
        self.record = standing
        if standing.cancel_requested:
            self._on_cancel()

    async def _save(self, change: Callable[[pb.BatchRecord], pb.BatchRecord]) -> pb.BatchRecord:
        """Writes new outcomes to files, and then the record that names them."""
        snapshot = self._tally.snapshot()
        marks = list(self.record.outcome_tokens)
        replaced: list[tuple[int, str]] = []
        for segment, outcomes in snapshot.outcomes.items():
            mark = await self._files.put_outcomes(self.batch_id, segment, outcomes)
            if marks[segment]:
                replaced.append((segment, marks[segment]))
            marks[segment] = mark
        wanted = records.progress(
            self.record, snapshot.ends, snapshot.in_flight, begun_until=snapshot.begun_until
        )
        del wanted.outcome_tokens[:]
        wanted.outcome_tokens.extend(marks)
        standing, written = await self._store.update(change(wanted))
        if standing is None or not written:
            for segment in snapshot.outcomes:
                await self._files.drop_outcomes(self.batch_id, segment, marks[segment])
            raise NotMine
        self._tally.saved(snapshot)
        for segment, mark in replaced:
            await self._files.drop_outcomes(self.batch_id, segment, mark)
        return standing
