"""Questions and answers with a child process: one JSON object a line, over its pipes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

Answer = dict[str, Any]
Handler = Callable[..., Awaitable[Answer]]

ANSWER_LIMIT_S = 240.0
STOP_LIMIT_S = 10.0
# A list of latencies is a long line.
_LINE_BYTES = 64 * 1024 * 1024


class Child:
    """A Python module run as a niced process that answers questions."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def ask(self, what: str, **details: Any) -> Answer:
        """Asks and waits for the answer.

        Raises:
            RuntimeError: The child failed or said nothing in time.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"ask": what, **details}).encode() + b"\n")
        async with asyncio.timeout(ANSWER_LIMIT_S):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a child ended while it was asked to {what}; see above")
        answer: Answer = json.loads(line)
        return answer

    def begin(self, what: str, **details: Any) -> asyncio.Task[Answer]:
        """Asks, and goes on; the answer is awaited later."""
        return asyncio.ensure_future(self.ask(what, **details))

    async def stop(self) -> None:
        """Ends it: its input closes, and after a while it is killed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@contextlib.asynccontextmanager
async def child(module: str, *args: str, nice: int = 5) -> AsyncIterator[Child]:
    """Starts ``python -m module args`` and stops it when the block is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *args,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
        preexec_fn=lambda: os.nice(nice) and None,
    )
    started = Child(process)
    try:
        yield started
    finally:
        await started.stop()


async def answer_questions(handlers: Mapping[str, Handler]) -> None:
    """The child's side: answers until its input ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        question = json.loads(line)
        answer = await handlers[question.pop("ask")](**question)
        print(json.dumps(answer), flush=True)
