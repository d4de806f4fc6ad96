"""Runs something on a local mesh and stops the mesh, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from reelkit.logs import setup_logging
from reelmesh_cli import console
from reelmesh_cli.mesh.interrupts import catch_interrupts
from reelmesh_cli.mesh.live_board import LiveBoard
from reelmesh_cli.mesh.local import LocalMesh, local_mesh
from reelmesh_cli.mesh.supervisor import Mesh


async def run_session(
    asked: LocalMesh, work: Callable[[Mesh], Awaitable[int]], *, quiet: bool
) -> int:
    """The exit code of ``work``, or 128 and the signal that ended it.

    A first signal cancels the start or the work and stops the mesh in order; a second
    kills every process and this one.

    Raises:
        CommandError: The mesh did not come up.
    """
    setup_logging(level="error", fmt="console", process="reelmesh")
    board = LiveBoard(console.err, quiet=quiet)
    running: list[Mesh] = []

    def kill() -> None:
        board.hide()
        for mesh in running:
            mesh.kill_at_once()

    with catch_interrupts(on_second=kill) as interrupts:
        try:
            with board:
                async with local_mesh(asked, board=board, on_made=running.append) as mesh:
                    board.hide()
                    return await work(mesh)
        except asyncio.CancelledError:
            if interrupts.signum is None:
                raise
            return interrupts.exit_code
