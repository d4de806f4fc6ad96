"""Where people and scripts read: answers go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import yaml
from google.protobuf.message import Message
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from control_plane.reelctl.errors import CtlError
from control_plane.reelctl.words import plain

# What is piped has no width; a table is then as wide as it is.
_PIPED_WIDTH = 1_000


# From here on there is room for the columns that few need.
_WIDE = 130


class Format(StrEnum):
    """How an answer is written."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def console() -> Console:
    """Where answers go, as it is now."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def is_wide() -> bool:
    """Whether there is room for everything."""
    return console().width >= _WIDE


def print_all(
    messages: Sequence[Message], fmt: Format, table: Callable[[], Table], *, empty: str
) -> None:
    """An answer with any number of things; ``empty`` is said of none, to people only."""
    if fmt is Format.TABLE:
        if messages:
            print_table(table())
        else:
            note(empty)
    else:
        print_record([plain(message) for message in messages], fmt)


def print_record(value: Any, fmt: Format) -> None:
    """A document that is not made of messages."""
    sys.stdout.write(written(value, fmt))
    sys.stdout.flush()


def written(value: Any, fmt: Format) -> str:
    """A document for programs."""
    if fmt is Format.YAML:
        text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
        return text
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def print_table(table: Table) -> None:
    """The table without the blanks that would end its lines."""
    out = console()
    with out.capture() as capture:
        out.print(table)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))
    sys.stdout.flush()


def say(text: str) -> None:
    """One line of an answer."""
    console().print(text, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """One line on stderr that is no error."""
    Console(stderr=True, highlight=False).print(f"[dim]{escape(text)}[/]", soft_wrap=True)


def print_error(error: CtlError) -> None:
    """Says what went wrong and what to do next."""
    err = Console(stderr=True, highlight=False)
    err.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
    if error.hint:
        err.print(f"[dim]{escape(error.hint)}[/]", soft_wrap=True)
