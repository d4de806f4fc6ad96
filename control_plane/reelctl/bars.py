"""Progress on stderr: a bar that moves where a person looks, nothing where nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def share_bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar that is told (done, in all, how things are) anew at each look."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[words]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=None, words="")
        yield lambda done, total, words: progress.update(
            task, completed=done, total=total or None, words=words
        )


def is_drawn() -> bool:
    """Whether somebody sees bars."""
    return Console(stderr=True).is_terminal


@contextmanager
def byte_bar(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar over bytes; call what it yields with each number that was done, from any thread."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=total_bytes)
        yield lambda count: progress.update(task, advance=count)
