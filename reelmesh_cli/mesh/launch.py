"""Becomes another program that dies with the process that started this one.

Run by path, as ``python -I -S launch.py PARENT_PID PROGRAM ARGUMENTS...``, so that it
imports nothing of Reelmesh. A mesh whose ``reelmesh up`` was killed with SIGKILL would
otherwise live on without anybody to stop it. The pid stays: the program replaces this.

On systems without PR_SET_PDEATHSIG it only becomes the program.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Never returns."""
    parent, program = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the call above.
    if os.getppid() != parent:
        sys.exit(f"the parent {parent} is gone already")
    os.execv(program, sys.argv[2:])  # noqa: S606 - a program and its arguments, no shell


if __name__ == "__main__":
    main()
