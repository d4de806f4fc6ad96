"""The agent's side of getting a model: a folder as it is, anything else by a child process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from node_agent.config import ModelSettings
from node_agent.errors import WeightsError
from node_agent.fetch_watch import public_url
from node_agent.model_folder import ModelFolder, ModelFolderError, open_model_folder

_log = structlog.get_logger("node_agent.weights")

# A line of the child's output is far below this.
_LINE_BYTES = 64 * 1024


async def prepare_weights(
    settings: ModelSettings, *, on_progress: Callable[[int, int], None]
) -> ModelFolder:
    """A local folder with a manifest, fetched first where the source is elsewhere.

    Args:
        settings: Where the model is.
        on_progress: Called with (bytes done, bytes in all) while it is fetched.

    Raises:
        WeightsError: Names the source and what is wrong.

    Cancelling kills the fetch; what it has got is used by the next one.
    """
    path = settings.source
    if "://" in path or settings.manifest is not None:
        path = await _fetch(settings, on_progress)
    try:
        return await asyncio.to_thread(open_model_folder, Path(path))
    except ModelFolderError as error:
        raise WeightsError(str(error)) from None


async def _fetch(settings: ModelSettings, on_progress: Callable[[int, int], None]) -> str:
    request = settings.model_dump(
        mode="json",
        include={
            "source",
            "manifest",
            "cache_dir",
            "store_options",
            "client_options",
            "fetch_stall_s",
        },
    )
    source = public_url(settings.source)
    process = _start()
    assert process.stdin is not None  # noqa: S101 - asked for
    assert process.stdout is not None  # noqa: S101 - likewise
    reader = asyncio.StreamReader(limit=_LINE_BYTES)
    output, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), process.stdout
    )
    try:
        # Smaller than a pipe's buffer, so this never blocks.
        process.stdin.write(json.dumps(request).encode() + b"\n")
        async with asyncio.timeout(settings.fetch_timeout_s):
            return await _result(reader, on_progress)
    except TimeoutError:
        raise WeightsError(
            f"{source}: was not fetched within {settings.fetch_timeout_s:g} s"
        ) from None
    except ConnectionError:
        raise WeightsError(f"{source}: the fetching process died") from None
    finally:
        process.kill()
        process.stdin.close()
        output.close()
        await asyncio.to_thread(process.wait)


def _start() -> subprocess.Popen[bytes]:
    """The child, without asyncio's help: uvloop's would run Python between fork and exec.

    That Python is gRPC's, whose threads are not in the child: one start in four then crashed the
    agent with a closed transport, where a plain child did in none of twelve.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "node_agent.fetch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )


async def _result(lines: asyncio.StreamReader, on_progress: Callable[[int, int], None]) -> str:
    async for line in lines:
        told = json.loads(line)
        if "error" in told:
            raise WeightsError(str(told["error"]))
        if "folder" in told:
            if not told["verified"]:
                _log.warning(
                    "weights unverified: the manifest lists no files, so their digests "
                    "were taken from what was found",
                    folder=told["folder"],
                )
            return str(told["folder"])
        on_progress(int(told["done_bytes"]), int(told["total_bytes"]))
    raise WeightsError("the fetching process died; its error is in the log")
