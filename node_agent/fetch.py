"""Fetches a model's files into the weights cache; a process of its own under the agent.

``python -m node_agent.fetch`` reads its settings as JSON from the first line of stdin
and writes JSON lines to stdout: ``{"done_bytes": ..., "total_bytes": ...}`` as it goes,
then ``{"folder": ..., "verified": ...}`` or ``{"error": ...}``. It ends when stdin
does: the agent can kill it at any time, the agent's own memory stays small, and
nothing outlives it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node_agent.errors import WeightsError
from node_agent.fetch_hub import HUB_SCHEME, fetch_from_hub
from node_agent.fetch_store import fetch_from_store, open_store
from node_agent.fetch_watch import Progress, StallWatch, first_line, public_url
from node_agent.model_folder import ModelFolderError, open_model_folder
from node_agent.weights_cache import FetchedModel, WeightsCache, read_manifest_file


def fetch(
    *,
    source: str,
    manifest_file: Path | None,
    cache_dir: Path,
    store_options: Mapping[str, str],
    client_options: Mapping[str, str],
    watch: StallWatch,
    on_progress: Progress,
) -> FetchedModel:
    """A complete model folder made from ``source``, in the cache.

    Raises:
        WeightsError: Names the source and what to do about it.
    """
    cache = WeightsCache(cache_dir)
    description = read_manifest_file(manifest_file) if manifest_file is not None else None
    if source.startswith(HUB_SCHEME):
        return fetch_from_hub(source, description, cache, watch=watch, on_progress=on_progress)
    if "://" in source:
        where = public_url(source).rstrip("/")
        store = open_store(source, store_options, client_options, stall_s=watch.limit_s)
        folder = fetch_from_store(
            store, description, cache, where=where, watch=watch, on_progress=on_progress
        )
        return FetchedModel(folder, verified=True)
    if description is None:
        return FetchedModel(open_model_folder(Path(source)), verified=True)
    folder = cache.adopt(Path(source), description)
    return FetchedModel(folder, verified=description.manifest is not None)


def main() -> int:
    """The process's body."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_the_agent, daemon=True).start()
    speaking = threading.Lock()

    def tell(**line: Any) -> None:
        with speaking:
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()

    def give_up(sentence: str) -> None:
        tell(error=sentence)
        # The thread that waits cannot be woken; files that it has begun are gone on with.
        os._exit(1)

    manifest = request["manifest"]
    try:
        fetched = fetch(
            source=request["source"],
            manifest_file=Path(manifest) if manifest else None,
            cache_dir=Path(request["cache_dir"]),
            store_options=request["store_options"],
            client_options=request["client_options"],
            watch=StallWatch(request["fetch_stall_s"], give_up),
            on_progress=lambda done, total: tell(done_bytes=done, total_bytes=total),
        )
    except (WeightsError, ModelFolderError, OSError) as error:
        tell(error=str(error))
        return 1
    except Exception as error:  # noqa: BLE001 - the process's boundary: the agent must hear of it
        traceback.print_exc()
        tell(error=f"{public_url(request['source'])}: {type(error).__name__}: {first_line(error)}")
        return 1
    tell(folder=str(fetched.folder.path), verified=fetched.verified)
    return 0


def _leave_with_the_agent() -> None:
    # Not sys.stdin: its lock, held here, would hang the interpreter's exit.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
