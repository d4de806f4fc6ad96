"""``reelmesh batch``: a file of prompts in, a folder of videos and a results.csv out."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from reelmesh_cli import console
from reelmesh_cli.batch_results import COMPLETED, FAILED, ResultsFile, RowResult
from reelmesh_cli.batch_rows import BatchRow, read_rows
from reelmesh_cli.commands.generate import (
    TIMEOUT_S,
    MeshOption,
    PriorityName,
    PriorityOption,
    RegionOption,
    TimeoutOption,
)
from reelmesh_cli.config import open_client
from reelmesh_cli.errors import StoppedError
from reelmesh_cli.outputs import make_folder, naming
from wan_t2v_sdk import (
    AsyncTextToVideoGenerator,
    AuthenticationError,
    ConfigurationError,
    GenerationResult,
    PermissionDeniedError,
    ReelmeshError,
)

HELP = """Make a video for every row of a file.

PROMPTS is a CSV with a column prompt and any of resolution, seconds, num_frames, width, height,
steps, seed, guidance_scale, flow_shift, negative_prompt, model, quality; or a text file with a
prompt in each line, where lines that begin with # are comments (a prompt with # in front needs the
CSV). OUT gets an MP4 for each row and results.csv, which grows as rows end.

The rows are of priority batch, which waits for whatever somebody is waiting for.

Run it again after an interruption: rows that are finished, by their content, are skipped, and
those that failed are tried again. The exit code is 1 if any row failed.

\b
  reelmesh batch prompts.csv --out videos
  reelmesh batch prompts.txt --out videos --concurrency 8
  reelmesh batch prompts.csv --out videos --no-resume    every video anew"""

# These would meet every further row as well.
_FATAL = (AuthenticationError, PermissionDeniedError, ConfigurationError)
_MESH_GONE = "no_gateway"


def batch(
    prompts: Annotated[Path, typer.Argument(help="A .csv or a text file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False)],
    concurrency: Annotated[
        int, typer.Option(min=1, max=256, help="Videos that are asked for at once.")
    ] = 4,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Skip what an earlier run finished.")
    ] = True,
    priority: PriorityOption = PriorityName.BATCH,
    region: RegionOption = "auto",
    mesh: MeshOption = None,
    timeout: TimeoutOption = TIMEOUT_S,
    json_output: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Runs the command; see :data:`HELP`."""
    rows = read_rows(prompts)
    client = open_client(mesh, region=region, timeout_s=timeout)
    make_folder("--out", out)
    results = ResultsFile(out)
    with naming("--out", results.path):
        results.open(resume=resume)
    todo = [row for row in rows if not results.finished(row.digest)]
    run = BatchRun(client, out, results, total=len(rows), quiet=json_output, priority=priority)
    try:
        asyncio.run(run.make_all(todo, concurrency=concurrency))
    except KeyboardInterrupt:
        raise _stopped(run, rows=len(rows), todo=len(todo), results=results.path) from None
    finally:
        results.close(row.digest for row in rows)
    summary = {
        "rows": len(rows),
        "skipped": len(rows) - len(todo),
        "completed": run.completed,
        "failed": run.failed,
        "results": str(results.path),
    }
    if json_output:
        console.print_json(summary)
    else:
        console.out.print(
            f"{run.completed} made, {summary['skipped']} finished before, {run.failed} failed; "
            f"{escape(str(results.path))}"
        )
    raise typer.Exit(1 if run.failed else 0)


def _stopped(run: BatchRun, *, rows: int, todo: int, results: Path) -> StoppedError:
    left = todo - run.completed - run.failed
    return StoppedError(
        f"interrupted: {run.completed} made, {rows - todo} finished before, {run.failed} failed, "
        f"{left} left; videos under way are cancelled; {results}",
        hint="run the same command again to go on, without --no-resume: what is finished is "
        "skipped",
    )


class BatchRun:
    """Makes rows, some at a time."""

    def __init__(
        self,
        client: AsyncTextToVideoGenerator,
        out: Path,
        results: ResultsFile,
        *,
        total: int,
        quiet: bool,
        priority: PriorityName | None = PriorityName.BATCH,
    ) -> None:
        self.completed = 0
        self.failed = 0
        self._client = client
        self._out = out
        self._results = results
        self._total = total
        self._quiet = quiet
        self._priority = priority
        # A run's keys are its own: a row that failed before is drawn anew.
        self._run_id = secrets.token_hex(6)

    async def make_all(self, rows: Sequence[BatchRow], *, concurrency: int) -> None:
        """Makes every row; a row's failure is recorded and the rest goes on.

        Raises:
            ReelmeshError: What would meet every further row: a bad token, no mesh. Rows
                that ended before are kept.
        """
        waiting = iter(rows)
        with self._progress() as progress:
            overall = progress.add_task(
                "videos", total=self._total, completed=self._total - len(rows)
            )

            async def work() -> None:
                for row in waiting:
                    await self._make(row, progress)
                    progress.advance(overall)

            try:
                async with self._client, asyncio.TaskGroup() as group:
                    for number in range(min(concurrency, len(rows))):
                        group.create_task(work(), name=f"batch {number}")
            except ExceptionGroup as errors:
                # Each worker that met it says the same; the first is enough.
                raise errors.exceptions[0] from None

    async def _make(self, row: BatchRow, progress: Progress) -> None:
        task = progress.add_task(_title(row), total=None)
        try:
            result = await self._client.generate(
                row.prompt,
                idempotency_key=f"batch-{self._run_id}-{row.digest[:24]}",
                priority=None if self._priority is None else self._priority.value,
                progress=False,
                on_progress=lambda event: (
                    progress.update(
                        task,
                        total=event.total_steps or None,
                        completed=event.step,
                    )
                    if event.kind == "progress"
                    else None
                ),
                **row.settings,
            )
        except ReelmeshError as error:
            if isinstance(error, _FATAL) or error.code == _MESH_GONE:
                raise
            self._fail(row, error, progress)
        else:
            with result:
                self._complete(row, result, progress)
        finally:
            progress.remove_task(task)

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
                seconds_taken=f"{facts.timings['client_s']:.3f}",
                sha256=facts.sha256,
                digest=row.digest,
            )
        )
        self.completed += 1
        self._say(progress, f"line {row.line}: {row.file_name}")

    def _fail(self, row: BatchRow, error: ReelmeshError, progress: Progress) -> None:
        self._results.add(
            RowResult(
                line=row.line,
                prompt=row.prompt,
                status=FAILED,
                code=error.code,
                message=error.message,
                video_id=error.video_id or "",
                region=error.region or "",
                digest=row.digest,
            )
        )
        self.failed += 1
        self._say(progress, f"line {row.line}: failed ({error.code}): {error.message}")

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


def _title(row: BatchRow) -> str:
    shown = row.prompt if len(row.prompt) <= 32 else f"{row.prompt[:31]}…"
    return f"line {row.line}: {shown}"
