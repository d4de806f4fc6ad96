"""The command line that every long-running part has: a file, overrides, a check."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from reelkit.settings import (
    CONFIG_ERROR_CODE,
    ConfigError,
    Settings,
    dump_settings,
    load_settings,
)

S = TypeVar("S", bound=Settings)


def run_part(
    argv: Sequence[str] | None,
    *,
    program: str,
    about: str,
    settings: type[S],
    env_prefix: str,
    run: Callable[[S], int],
) -> int:
    """Reads the configuration and runs the part; returns the process's exit code.

    Args:
        argv: Arguments without the program's name; the process's own by default.
        program: The command's name.
        about: What it is, for ``--help``.
        settings: Its configuration's root.
        env_prefix: Environment variables with it override the file.
        run: Serves until a signal and returns the exit code. It is called after the
            configuration was found good, and may import what is heavy.
    """
    arguments = _parser(program, about, env_prefix).parse_args(argv)
    try:
        config = load_settings(
            settings, file=arguments.config, env_prefix=env_prefix, overrides=arguments.set
        )
    except ConfigError as error:
        sys.stderr.write(f"{program}: the configuration cannot be used\n{error}\n")
        return CONFIG_ERROR_CODE
    if arguments.check_config:
        sys.stdout.write(dump_settings(config))
        return 0
    return run(config)


def _parser(program: str, about: str, env_prefix: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"""\
examples:
  {program} --config /etc/reelmesh/config.yaml
  {program} --config config.yaml --set log.level=debug
  {program} --config config.yaml --check-config

Any field can also be set by the environment: {env_prefix}LOG__LEVEL=debug.
SIGTERM drains and stops; a second one stops at once.
""",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.SUB=VALUE",
        help="override one setting; may be given again",
    )
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="print the effective settings, secrets masked, or every mistake, and exit",
    )
    return parser
