"""``reelmesh-control --config FILE``: runs one replica of a region's control plane."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reelkit.extras import needs_extra

if TYPE_CHECKING:
    from control_plane.config import ControlPlaneConfig

# The streams of 5,000 nodes are a million objects that live long. At Python's own thresholds
# their arrival makes full collections of up to a second each, in which no beat is heard and
# every deadline passes; hardly anything here is garbage by cycles.
GC_THRESHOLDS = (50_000, 20, 20)


@needs_extra("control", program="reelmesh-control", parts="the control plane's parts")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code: 2 for a configuration that is wrong."""
    from control_plane.config import ENV_PREFIX, ControlPlaneConfig
    from reelkit.commandline import run_part

    return run_part(
        argv,
        program="reelmesh-control",
        about="One replica of a region's control plane: nodes, gateways and the fleet.",
        settings=ControlPlaneConfig,
        env_prefix=ENV_PREFIX,
        run=_run,
    )


def _run(config: ControlPlaneConfig) -> int:
    # Imported here, so that --check-config answers at once.
    from control_plane.app import build_app
    from reelkit.lifecycle import run_app
    from reelkit.logs import setup_logging

    # What was imported stays: collections need not look at it.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    setup_logging(level=config.log.level, fmt=config.log.format, process="control_plane")
    return run_app(lambda: build_app(config), name="control-plane")


if __name__ == "__main__":
    sys.exit(main())
