"""A table that follows what it shows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from control_plane.reelctl.errors import NoAnswerError
from control_plane.reelctl.output import Format, console, note, print_table, written
from control_plane.reelctl.waiting import SYSTEM_CLOCK, Clock
from control_plane.reelctl.words import plain, span

M = TypeVar("M", bound=Message)


def watch(
    fetch: Callable[[], Sequence[M]],
    table: Callable[[Sequence[M]], Table],
    *,
    fmt: Format,
    every_s: float,
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Shows the newest answer until interrupted.

    On a terminal the table stays in its place; elsewhere it is printed again when
    something changed, JSON as one line, YAML as one document each. A control plane that
    is away later on is said, and what was known stays; at the first look it is an error.
    """
    shown = fetch()
    if fmt is Format.TABLE and console().is_terminal:
        _watch_live(shown, fetch, table, every_s=every_s, clock=clock)
        return
    _print(shown, table, fmt)
    away = False
    while True:
        clock.sleep(every_s)
        try:
            now = fetch()
        except NoAnswerError as error:
            if not away:
                note(error.message)
            away = True
            continue
        away = False
        if list(now) != list(shown):
            shown = now
            _print(shown, table, fmt)


def _watch_live(
    shown: Sequence[M],
    fetch: Callable[[], Sequence[M]],
    table: Callable[[Sequence[M]], Table],
    *,
    every_s: float,
    clock: Clock,
) -> None:
    with Live(table(shown), console=console(), auto_refresh=False) as live:
        heard_s = clock.monotonic()
        while True:
            clock.sleep(every_s)
            try:
                shown, heard_s = fetch(), clock.monotonic()
            except NoAnswerError as error:
                silent = f"{error.message}; this is {span(clock.monotonic() - heard_s)} old"
                live.update(Group(table(shown), Text(silent, style="red")), refresh=True)
            else:
                live.update(table(shown), refresh=True)


def _print(shown: Sequence[M], table: Callable[[Sequence[M]], Table], fmt: Format) -> None:
    documents = [plain(message) for message in shown]
    if fmt is Format.TABLE:
        print_table(table(shown))
    elif fmt is Format.JSON:
        sys.stdout.write(json.dumps(documents, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("---\n" + written(documents, fmt))
    sys.stdout.flush()
