"""One run of ``reelmesh batch``: submits what is to be made, follows it, and saves what ends."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from reelmesh_cli import console
from reelmesh_cli.batch_results import COMPLETED, FAILED, ResultsFile, RowResult
from reelmesh_cli.batch_rows import BatchRow
from reelmesh_cli.batch_state import BatchState, Submitted
from reelmesh_cli.commands.generate import PriorityName
from reelmesh_cli.errors import UsageError
from wan_t2v_sdk import (
    AsyncTextToVideoGenerator,
    BatchItemRecord,
    BatchRecord,
    GenerationResult,
    InvalidRequestError,
    VideoNotFoundError,
)
from wan_t2v_sdk import BatchRow as Row

_DOWNLOADS_AT_ONCE = 4
_PLACE = re.compile(r"rows\[(\d+)\]\.(.*)")


class BatchRun:
    """Follows at most two batches: the one of an earlier run, and one of what is left.

    Args:
        client: Closed by this.
        rows: Of the file.
        concurrency: Videos under way at once; 0: as the mesh has it.
    """

    def __init__(
        self,
        client: AsyncTextToVideoGenerator,
        out: Path,
        results: ResultsFile,
        state: BatchState,
        rows: Sequence[BatchRow],
        *,
        quiet: bool,
        priority: PriorityName | None = PriorityName.BATCH,
        concurrency: int = 0,
    ) -> None:
        self.completed = 0
        self.failed = 0
        self.batch_id = ""
        self._client = client
        self._out = out
        self._results = results
        self._state = state
        self._rows = {row.digest: row for row in rows}
        # Of the file's rows, what is still to be made.
        self._todo = {row.digest: row for row in rows if not results.finished(row.digest)}
        self.skipped = len(rows) - len(self._todo)
        self._quiet = quiet
        self._priority = priority
        self._concurrency = concurrency
        self._downloads = asyncio.Semaphore(_DOWNLOADS_AT_ONCE)

    @property
    def left(self) -> int:
        """Rows that have not ended."""
        return len(self._todo)

    async def make_all(self) -> None:
        """Has every row made and saves it; a row's failure is recorded and the rest goes on.

        Raises:
            UsageError: The mesh cannot make some of the rows; nothing was begun.
            ReelmeshError: The mesh cannot be asked. Rows that ended before are kept.
        """
        async with self._client:
            earlier = self._state.read()
            if earlier is not None:
                await self._take_up(earlier)
            if self._todo:
                rows = tuple(self._todo)
                await self._follow(await self._submit(self._state.about_to_submit(rows)))
            self._state.forget()

    async def cancel(self) -> None:
        """Stops the batch of an earlier run; what it has made meanwhile is saved."""
        async with self._client:
            earlier = self._state.read()
            if earlier is None or not earlier.batch_id:
                raise UsageError(f"{self._out}: no batch of it is under way")
            await self._client.batches.cancel(earlier.batch_id)
            await self._follow(earlier)
            self._state.forget()

    async def _take_up(self, earlier: Submitted) -> None:
        """Goes on with the batch of an earlier run, where the mesh still knows it."""
        if not earlier.batch_id:
            if set(earlier.rows) <= self._rows.keys():
                # Its answer was not seen: the same key is the same batch.
                await self._follow(await self._submit(earlier))
            return
        try:
            found = await self._client.batches.get(earlier.batch_id)
        except VideoNotFoundError:
            return
        # Of one that is over, what failed is tried again.
        await self._follow(earlier, retry=found.finished)

    async def _submit(self, batch: Submitted) -> Submitted:
        rows = [self._rows[digest] for digest in batch.rows]
        try:
            record = await self._client.batches.submit(
                [Row(prompt=row.prompt, settings=row.settings) for row in rows],
                idempotency_key=batch.key,
                priority=None if self._priority is None else self._priority.value,
                max_in_flight=self._concurrency,
            )
        except InvalidRequestError as error:
            self._state.forget()
            raise _refused(error, rows) from None
        return self._state.submitted(batch, record.id)

    async def _follow(self, batch: Submitted, *, retry: bool = False) -> None:
        self.batch_id = batch.batch_id
        with self._progress() as progress:
            task = progress.add_task("videos", total=len(self._rows))

            def show(_record: BatchRecord) -> None:
                progress.update(task, completed=self.skipped + self.completed + self.failed)

            try:
                async with asyncio.TaskGroup() as group:
                    items = self._client.batches.follow(batch.batch_id, on_progress=show)
                    async with contextlib.aclosing(items):
                        async for item in items:
                            row = self._todo.get(batch.rows[item.index])
                            if row is None or (retry and item.status != COMPLETED):
                                continue
                            group.create_task(self._save(row, item, progress), name=row.file_name)
            except ExceptionGroup as errors:
                # Each download that met it says the same; the first is enough.
                raise errors.exceptions[0] from None
            progress.update(task, completed=self.skipped + self.completed + self.failed)

    async def _save(self, row: BatchRow, item: BatchItemRecord, progress: Progress) -> None:
        if item.status == COMPLETED:
            async with self._downloads:
                with await self._client.download(item.video_id) as result:
                    self._complete(row, result, progress)
        else:
            self._fail(row, item, progress)
        self._todo.pop(row.digest, None)

    def _complete(self, row: BatchRow, result: GenerationResult, progress: Progress) -> None:
        result.save(self._out / row.file_name)
        facts = result.facts
        self._results.add(
            RowResult(
                line=row.line,
                prompt=row.prompt,
                status=COMPLETED,
                file=row.file_name,
                video_id=facts.id,
                region=facts.region,
                node=facts.node,
                model=f"{facts.model}@{facts.model_version}",
                width=str(facts.width),
                height=str(facts.height),
                num_frames=str(facts.num_frames),
                fps=f"{facts.fps:g}",
                seed=str(facts.seed),
                attempts=str(facts.attempts),
                seconds_taken=f"{facts.timings['total_s']:.3f}",
                sha256=facts.sha256,
                digest=row.digest,
            )
        )
        self.completed += 1
        self._say(progress, f"line {row.line}: {row.file_name}")

    def _fail(self, row: BatchRow, item: BatchItemRecord, progress: Progress) -> None:
        code = item.error_code or item.status
        self._results.add(
            RowResult(
                line=row.line,
                prompt=row.prompt,
                status=FAILED,
                code=code,
                message=item.error_message,
                video_id=item.video_id,
                digest=row.digest,
            )
        )
        self.failed += 1
        self._say(progress, f"line {row.line}: {item.status} ({code}): {item.error_message}")

    def _say(self, progress: Progress, text: str) -> None:
        if not self._quiet:
            progress.console.print(text, markup=False)

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console.err,
            transient=True,
            disable=self._quiet or not console.err.is_terminal,
        )


def _refused(error: InvalidRequestError, rows: Sequence[BatchRow]) -> UsageError:
    """The same in the words of the file."""
    told = []
    for violation in error.violations:
        match = _PLACE.fullmatch(violation.field)
        if match is None:
            told.append(f"{violation.field}: {violation.message}")
        else:
            line = rows[int(match.group(1))].line
            told.append(f"line {line}, {match.group(2)}: {violation.message}")
    listed = "\n  ".join(told or [error.message])
    return UsageError(f"rows that the mesh cannot make; nothing was begun:\n  {listed}")
