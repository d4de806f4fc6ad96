"""``reelmesh``: up, demo, generate, batch; see :mod:`reelmesh_cli.app`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from reelkit.extras import needs_extra


@needs_extra("cli", program="reelmesh", parts="its command-line parts")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and ends the process, or returns the exit code of its failure."""
    from reelmesh_cli.app import run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
