"""A process that fetches weights, as the agent holds it: started, told, listened to, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

# A line of the child's output is far below this.
_LINE_BYTES: Final = 64 * 1024


class FetchChild:
    """Speaks to a child in lines of JSON; :func:`fetch_child` starts one."""

    def __init__(self, process: subprocess.Popen[bytes], lines: asyncio.StreamReader) -> None:
        self._process = process
        self._lines = lines

    def tell(self, line: Mapping[str, Any]) -> None:
        """Says something more to it; nothing where it has ended or does not listen."""
        stdin = self._process.stdin
        if stdin is None or stdin.closed:
            # It is being waited for.
            return
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(stdin.fileno(), json.dumps(line).encode() + b"\n")

    def kill(self) -> None:
        """Ends it at once; what it says ends too."""
        self._process.kill()

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """What it says, until it ends."""
        async for line in self._lines:
            yield json.loads(line)


@contextlib.asynccontextmanager
async def fetch_child(module: str, request: Mapping[str, Any]) -> AsyncIterator[FetchChild]:
    """A running child that was told what to do; leaving the block kills it.

    What it has got is used by the next one.
    """
    process = _start(module)
    assert process.stdin is not None  # noqa: S101 - asked for
    assert process.stdout is not None  # noqa: S101 - likewise
    reader = asyncio.StreamReader(limit=_LINE_BYTES)
    output, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), process.stdout
    )
    try:
        # Smaller than a pipe's buffer, so this never blocks.
        os.set_blocking(process.stdin.fileno(), False)
        child = FetchChild(process, reader)
        child.tell(request)
        yield child
    finally:
        process.kill()
        process.stdin.close()
        output.close()
        await asyncio.to_thread(process.wait)


def _start(module: str) -> subprocess.Popen[bytes]:
    """The child, without asyncio's help: uvloop's would run Python between fork and exec.

    That Python is gRPC's, whose threads are not in the child: one start in four then crashed the
    agent with a closed transport, where a plain child did in none of twelve.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
