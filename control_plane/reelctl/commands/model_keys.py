"""``reelctl model keys``: the keys that sign models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from control_plane.reelctl.errors import CtlError, UsageError
from control_plane.reelctl.options import OutputOption
from control_plane.reelctl.output import Format, print_record, say
from reelkit.help_text import flow
from reelkit.signatures import KeyFileError, make_keys, read_public_key

INIT_HELP = """Make a pair of Ed25519 keys: FILE, which signs, and FILE.pub, which nodes trust.

FILE is readable by you alone, and no part of a mesh ever needs it. Copy FILE.pub to the nodes and
name it in `registry.trusted_keys` of theirs.

\b
  reelctl model keys init model.key"""
SHOW_HELP = """Show a public key's id, as the registry names it.

\b
  reelctl model keys show model.key.pub"""

app = typer.Typer(help="The keys that sign models.", no_args_is_help=True)


@app.command("init", help=flow(INIT_HELP))
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to.", show_default=False)],
    output: OutputOption = Format.TABLE,
) -> None:
    """Makes keys."""
    public = file.with_name(file.name + ".pub")
    try:
        made = make_keys(file, public)
    except FileExistsError as error:
        raise UsageError(
            f"{error.filename or file}: is there already", hint="a key is never written over"
        ) from None
    except OSError as error:
        raise CtlError(f"{file}: cannot be written: {error.strerror}") from None
    if output is Format.TABLE:
        say(f"key {made.public.key_id}")
        say(f"{file} signs; keep it where only you can read it")
        say(f"{public} is for the nodes: name it in registry.trusted_keys")
    else:
        told = {"key_id": made.public.key_id, "private": str(file), "public": str(public)}
        print_record(told, output)


@app.command("show", help=flow(SHOW_HELP))
def show(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The public key.", show_default=False)
    ],
) -> None:
    """Shows a key's id."""
    try:
        say(read_public_key(file).key_id)
    except KeyFileError as error:
        raise UsageError(str(error)) from None
