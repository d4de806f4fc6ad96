"""Where people read: answers go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

from reelmesh_cli.errors import CommandError
from wan_t2v_sdk import InvalidRequestError, ReelmeshError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout, for scripts."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def print_error(error: CommandError | ReelmeshError, *, as_json: bool = False) -> None:
    """Says what went wrong and what to do next."""
    if as_json:
        print_json({"error": describe_error(error)})
        return
    err.print(f"[bold red]error:[/] {escape(error.message)}")
    if isinstance(error, InvalidRequestError):
        for violation in error.violations:
            values = ", ".join(violation.nearest)
            # A gateway's message says them itself, for as many fields as it has room.
            if values and not _says(error.message, values):
                err.print(f"  {escape(violation.field)}: the nearest: {escape(values)}")
    hint = error.hint if isinstance(error, CommandError) else _HINTS.get(error.code, "")
    if hint:
        err.print(f"[dim]{escape(hint)}[/]")


def _says(message: str, values: str) -> bool:
    return re.search(rf"nearest (is|are) {re.escape(values)}(;|$)", message) is not None


def describe_error(error: CommandError | ReelmeshError) -> dict[str, Any]:
    """The same for programs."""
    if isinstance(error, CommandError):
        return {"code": "command", "message": error.message, "retryable": False}
    described = {
        "code": error.code,
        "message": error.message,
        "retryable": error.retryable,
        "video_id": error.video_id,
    }
    if isinstance(error, InvalidRequestError):
        described["fields"] = [
            {"field": each.field, "message": each.message, "nearest": list(each.nearest)}
            for each in error.violations
        ]
    return described


_HINTS = {
    "unauthenticated": "the token is expired or of another mesh: take the one that "
    "`reelmesh up` printed, or pass --mesh DIR/mesh.json",
    "no_gateway": "is the mesh up? start one with `reelmesh up`",
    "resource_exhausted": "the mesh is full; try again later",
    "deadline_exceeded": "give it more time with --timeout",
}
