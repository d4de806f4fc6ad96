"""``reelctl``: nodes, gateways and regions; see :mod:`control_plane.reelctl.app`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from reelkit.extras import needs_extra


@needs_extra("control", program="reelctl", parts="the control plane's parts")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    from control_plane.reelctl.app import run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
