"""``reelmesh``: its commands, its own options, and what becomes of their errors."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from reelkit.extras import DISTRIBUTION, MissingExtraError
from reelkit.help_text import flow
from reelmesh_cli import console
from reelmesh_cli.commands import batch, demo, generate, up
from reelmesh_cli.errors import CommandError
from wan_t2v_sdk import InvalidRequestError, ReelmeshError

HELP = """Self-hosted text-to-video: a sentence in, an MP4 out.

\b
  reelmesh demo                      a mesh, one video, and it is gone again
  reelmesh up --regions ap,eu        a mesh that stays until Ctrl-C
  reelmesh generate "a big red ball bouncing" -o ball.mp4
  reelmesh batch prompts.csv --out videos

`reelmesh COMMAND --help` has more of each."""

_SETTINGS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="reelmesh",
    help=flow(HELP),
    no_args_is_help=True,
    context_settings=_SETTINGS,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(asked: bool) -> None:
    if asked:
        console.out.print(f"reelmesh {importlib.metadata.version(DISTRIBUTION)}", markup=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options that stand before a command."""


app.command("up", help=flow(up.HELP))(up.up)
app.command("demo", help=flow(demo.HELP))(demo.demo)
app.command("generate", help=flow(generate.HELP))(generate.generate)
app.command("batch", help=flow(batch.HELP))(batch.batch)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command and ends the process, or returns the exit code of its failure.

    0 done, 1 failed, 2 asked for something impossible, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    try:
        app(arguments)
    except MissingExtraError as error:
        console.print_error(CommandError(str(error)), as_json=as_json)
        return 1
    except CommandError as error:
        console.print_error(error, as_json=as_json)
        return error.exit_code
    except ReelmeshError as error:
        console.print_error(error, as_json=as_json)
        return 2 if isinstance(error, InvalidRequestError) else 1
    except OSError as error:
        console.print_error(CommandError(str(error)), as_json=as_json)
        return 1
    return 0
