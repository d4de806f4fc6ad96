"""``reelmesh-gateway``: the edge of a region as a process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway.allocator import keep_chunk_memory
from gateway.app import build_app
from gateway.config import load_config
from reelkit.lifecycle import run_app
from reelkit.logs import setup_logging
from reelkit.settings import ConfigError, dump_settings


def _run(
    config: Annotated[
        Path | None, typer.Option(help="YAML file; REELMESH_GATEWAY__… and --set win over it.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key.sub=value; may be given again.")
    ] = None,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Print the effective configuration and exit.")
    ] = False,
) -> None:
    """Serve a region's videos until SIGTERM; a second signal forces the exit."""
    try:
        settings = load_config(config, set_ or ())
    except ConfigError as error:
        typer.echo(f"reelmesh-gateway: the configuration cannot be used\n{error}", err=True)
        raise typer.Exit(2) from None
    if check_config:
        typer.echo(dump_settings(settings), nl=False)
        return
    keep_chunk_memory()
    setup_logging(level=settings.log.level, fmt=settings.log.format, process="gateway")
    sys.exit(run_app(lambda: build_app(settings), name="gateway"))


def main() -> None:
    """Entry point."""
    typer.run(_run)


if __name__ == "__main__":
    main()
