"""One child process: started under the parent's death signal, watched, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from reelmesh_cli.mesh.topology import ProcessPlan

LAUNCHER = Path(__file__).with_name("launch.py")
KILL_WAIT_S = 5.0


class Child:
    """A process of the mesh in one of its lives.

    It leads a process group of its own: Ctrl-C in the terminal reaches ``reelmesh up``
    alone, which stops the children in their order.
    """

    def __init__(self, plan: ProcessPlan, process: asyncio.subprocess.Process) -> None:
        self.plan = plan
        self._process = process

    @classmethod
    async def start(cls, plan: ProcessPlan, *, state_dir: Path) -> Child:
        """Starts it; what it prints is appended to its log.

        Raises:
            OSError: The program or the log cannot be opened.
        """
        if plan.ready_file is not None:
            plan.ready_file.unlink(missing_ok=True)
        log = os.open(state_dir / plan.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # No preexec_fn: it would run Python between fork and exec, beside gRPC's threads.
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                str(LAUNCHER),
                str(os.getpid()),
                *plan.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=state_dir,
                start_new_session=True,
            )
        finally:
            os.close(log)
        return cls(plan, process)

    @property
    def pid(self) -> int:
        """The process's id; that of the program itself, not of a wrapper."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it lives; negative after a signal."""
        return self._process.returncode

    async def wait(self) -> int:
        """Returns its exit code once it has ended, having swept what it left behind."""
        code = await self._process.wait()
        self._signal_group(signal.SIGKILL)
        return code

    async def stop(self, grace_s: float) -> None:
        """Asks it to end, and kills it and its children after ``grace_s``."""
        self._signal(signal.SIGTERM)
        # A stopped process (SIGSTOP) would never hear the request.
        self._signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """Ends it and everything in its process group now."""
        self.kill_at_once()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_WAIT_S):
                await self.wait()

    def kill_at_once(self) -> None:
        """The same without waiting; for the last moment."""
        self._signal_group(signal.SIGKILL)

    def _signal(self, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signum)

    def _signal_group(self, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signum)


def describe_exit(code: int) -> str:
    """How a process ended, for people."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def log_tail(path: Path, *, lines: int = 12) -> str:
    """The last lines of a log, or a note that there are none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"
