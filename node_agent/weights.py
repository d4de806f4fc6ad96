"""The agent's side of getting a model: a folder as it is, anything else by a child process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import structlog

from node_agent.config import ModelSettings
from node_agent.errors import WeightsError
from node_agent.fetch_child import fetch_child
from node_agent.fetch_watch import public_url
from node_agent.model_folder import ModelFolder, ModelFolderError, open_model_folder

_log = structlog.get_logger("node_agent.weights")


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
    try:
        async with fetch_child("node_agent.fetch", request) as child:
            async with asyncio.timeout(settings.fetch_timeout_s):
                return await _result(child.lines(), on_progress)
    except TimeoutError:
        raise WeightsError(
            f"{source}: was not fetched within {settings.fetch_timeout_s:g} s"
        ) from None
    except ConnectionError:
        raise WeightsError(f"{source}: the fetching process died") from None


async def _result(
    lines: AsyncIterator[dict[str, Any]], on_progress: Callable[[int, int], None]
) -> str:
    async for told in lines:
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
