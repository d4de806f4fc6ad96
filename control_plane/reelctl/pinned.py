"""``NAME@VERSION`` as people write it."""

from __future__ import annotations

from typing import Annotated

import typer

from control_plane.reelctl.errors import UsageError

ModelArgument = Annotated[
    str, typer.Argument(metavar="NAME@VERSION", help="The version.", show_default=False)
]


def split_pin(text: str) -> tuple[str, str]:
    """Name and version.

    Raises:
        UsageError: One of them is missing.
    """
    name, _, version = text.partition("@")
    if not name or not version:
        raise UsageError(
            f"{text!r} names no version", hint="write NAME@VERSION; see `reelctl model list`"
        )
    return name, version
