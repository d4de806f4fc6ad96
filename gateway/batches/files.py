"""A batch's files in the artifact store: its items, and how they ended."""

from __future__ import annotations

import contextlib

import structlog
from reelmesh.v1 import batch_record_service_pb2 as pb

from gateway.batches import segments
from gateway.output.artifacts import ArtifactError, ArtifactStore

_log = structlog.get_logger("gateway.batches")


class BatchFiles:
    """Reads and writes them; every file is written once, under a key of its own.

    Every method may raise ArtifactError.
    """

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts

    async def put_items(self, batch_id: str, data: bytes) -> str:
        """Writes the items; answers their key."""
        key = segments.input_key(batch_id, segments.new_token())
        await self._artifacts.put(key, data)
        return key

    async def items(self, record: pb.BatchRecord, segment: int) -> pb.BatchInputSegment:
        """The items of a segment.

        Raises:
            ArtifactMissing: They are gone.
        """
        offset, length = segments.where(record, segment)
        data = await self._artifacts.read(record.input_key, offset, length)
        return pb.BatchInputSegment.FromString(data)

    async def outcomes(self, record: pb.BatchRecord, segment: int) -> pb.BatchOutcomeSegment:
        """What the record says has ended in a segment.

        Raises:
            ArtifactMissing: The record is older than what lies there.
        """
        token, _, size = record.outcome_tokens[segment].partition(".")
        if not token:
            return pb.BatchOutcomeSegment()
        key = segments.outcomes_key(record.batch.id, segment, token)
        data = await self._artifacts.read(key, 0, int(size))
        return pb.BatchOutcomeSegment.FromString(data)

    async def put_outcomes(
        self, batch_id: str, segment: int, outcomes: list[pb.BatchOutcome]
    ) -> str:
        """Writes a segment's outcomes; answers what the record is to say of it."""
        token = segments.new_token()
        data = pb.BatchOutcomeSegment(outcomes=outcomes).SerializeToString()
        await self._artifacts.put(segments.outcomes_key(batch_id, segment, token), data)
        return f"{token}.{len(data)}"

    async def drop_outcomes(self, batch_id: str, segment: int, mark: str) -> None:
        """Removes outcomes that no record names any more; what stays goes with the batch."""
        token = mark.partition(".")[0]
        try:
            await self._artifacts.delete(segments.outcomes_key(batch_id, segment, token))
        except ArtifactError as error:
            _log.info("outcomes not removed yet", batch_id=batch_id, error=str(error))

    async def tidy(self, record: pb.BatchRecord) -> None:
        """Removes what drivers that died left behind; what stays goes with the batch."""
        marks = enumerate(record.outcome_tokens)
        named = {
            segments.outcomes_key(record.batch.id, segment, mark.partition(".")[0])
            for segment, mark in marks
        }
        try:
            async with contextlib.aclosing(
                self._artifacts.listing(f"{segments.FOLDER}/{record.batch.id}")
            ) as pages:
                async for page in pages:
                    for file in page:
                        if file.key not in named and file.key != record.input_key:
                            await self._artifacts.delete(file.key)
        except ArtifactError as error:
            _log.info("batch not tidied", batch_id=record.batch.id, error=str(error))

    async def remove_all(self, batch_id: str) -> None:
        """Removes every file of a batch."""
        async with contextlib.aclosing(
            self._artifacts.listing(f"{segments.FOLDER}/{batch_id}")
        ) as pages:
            async for page in pages:
                for file in page:
                    await self._artifacts.delete(file.key)

    async def remove_input(self, key: str) -> None:
        """Removes the items of a batch that was refused after all."""
        try:
            await self._artifacts.delete(key)
        except ArtifactError as error:
            # The sweeper collects what belongs to no batch.
            _log.info("items not removed yet", error=str(error))
