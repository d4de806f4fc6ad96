"""``reelmesh-control --config FILE``: runs one replica of a region's control plane."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from control_plane.app import build_app
from control_plane.config import load_config
from reelkit.lifecycle import run_app
from reelkit.logs import setup_logging
from reelkit.settings import ConfigError, dump_settings

CONFIG_ERROR_CODE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code: 2 for a configuration that is wrong."""
    parser = argparse.ArgumentParser(prog="reelmesh-control", description=__doc__)
    parser.add_argument("--config", type=Path, help="YAML file; see deploy/ for an example")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.SUB=VALUE",
        help="override a field; may be given several times",
    )
    parser.add_argument(
        "--check-config", action="store_true", help="print the effective configuration and leave"
    )
    args = parser.parse_args(argv)
    try:
        config = load_config(args.config, args.set)
    except ConfigError as error:
        print(f"the configuration cannot be used:\n{error}", file=sys.stderr)  # noqa: T201  # said before logging is set up
        return CONFIG_ERROR_CODE
    if args.check_config:
        print(dump_settings(config), end="")  # noqa: T201  # the answer itself
        return 0
    setup_logging(level=config.log.level, fmt=config.log.format, process="control_plane")
    return run_app(lambda: build_app(config), name="control-plane")


if __name__ == "__main__":
    sys.exit(main())
