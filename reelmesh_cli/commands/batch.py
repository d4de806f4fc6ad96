"""``reelmesh batch``: a file of prompts in, a folder of videos and a results.csv out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from reelmesh_cli import console
from reelmesh_cli.batch_results import ResultsFile
from reelmesh_cli.batch_rows import read_rows
from reelmesh_cli.batch_run import BatchRun
from reelmesh_cli.batch_state import BatchState
from reelmesh_cli.commands.generate import (
    TIMEOUT_S,
    MeshOption,
    PriorityName,
    PriorityOption,
    RegionOption,
)
from reelmesh_cli.config import open_client
from reelmesh_cli.errors import StoppedError
from reelmesh_cli.outputs import make_folder, naming

HELP = """Make a video for every row of a file.

PROMPTS is a CSV with a column prompt and any of resolution, seconds, num_frames, width, height,
steps, seed, guidance_scale, flow_shift, negative_prompt, model, quality; or a text file with a
prompt in each line, where lines that begin with # are comments (a prompt with # in front needs the
CSV). OUT gets an MP4 for each row and results.csv, which grows as rows end.

All rows are checked by the mesh before any is made: a row that it cannot make is named, and
nothing is begun. The mesh then makes them by itself, after whatever somebody is waiting for, and
this command follows and downloads. Ctrl-C ends the following alone; OUT/batch.json names the batch,
and the same command goes on with it. --cancel stops it.

Rows that are finished, by their content, are skipped, and those that failed are tried again. The
exit code is 1 if any row failed.

\b
  reelmesh batch prompts.csv --out videos
  reelmesh batch prompts.txt --out videos --concurrency 8
  reelmesh batch prompts.csv --out videos --cancel       stop what the mesh makes of it
  reelmesh batch prompts.csv --out videos --no-resume    every video anew"""


def batch(
    prompts: Annotated[Path, typer.Argument(help="A .csv or a text file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False)],
    concurrency: Annotated[
        int,
        typer.Option(
            min=0,
            max=64,
            help="Videos under way at once, at most; 0: as many as the mesh allows a batch.",
        ),
    ] = 0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume",
            help="Go on with the batch that OUT/batch.json names, and skip what is finished.",
        ),
    ] = True,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Stop the batch that OUT/batch.json names.")
    ] = False,
    priority: PriorityOption = PriorityName.BATCH,
    region: RegionOption = "auto",
    mesh: MeshOption = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Runs the command; see :data:`HELP`."""
    rows = read_rows(prompts)
    client = open_client(mesh, region=region, timeout_s=TIMEOUT_S)
    make_folder("--out", out)
    results, state = ResultsFile(out), BatchState(out)
    with naming("--out", results.path):
        results.open(resume=resume)
    if not resume:
        state.forget()
    run = BatchRun(
        client,
        out,
        results,
        state,
        rows,
        quiet=json_output,
        priority=priority,
        concurrency=concurrency,
    )
    try:
        asyncio.run(run.cancel() if cancel else run.make_all())
    except KeyboardInterrupt:
        raise _stopped(run, results.path) from None
    finally:
        results.close(row.digest for row in rows)
    _tell(run, len(rows), results.path, as_json=json_output)
    raise typer.Exit(1 if run.failed else 0)


def _tell(run: BatchRun, rows: int, results: Path, *, as_json: bool) -> None:
    summary = {
        "rows": rows,
        "skipped": run.skipped,
        "completed": run.completed,
        "failed": run.failed,
        "batch_id": run.batch_id,
        "results": str(results),
    }
    if as_json:
        console.print_json(summary)
    else:
        console.out.print(
            f"{run.completed} made, {run.skipped} finished before, {run.failed} failed; "
            f"{escape(str(results))}"
        )


def _stopped(run: BatchRun, results: Path) -> StoppedError:
    goes_on = f"the batch {run.batch_id} goes on" if run.batch_id else "nothing was submitted"
    return StoppedError(
        f"interrupted: {run.completed} made, {run.skipped} finished before, {run.failed} failed, "
        f"{run.left} left; {goes_on}; {results}",
        hint="run the same command again to go on, without --no-resume; with --cancel to stop it",
    )
