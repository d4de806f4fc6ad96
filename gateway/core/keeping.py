"""Copies of other regions' videos, put together."""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

from gateway.cache.kept import KeptVideos
from gateway.config import CacheConfig
from gateway.core.cache_metrics import CacheMetrics
from gateway.core.metrics import GatewayMetrics
from gateway.output.artifacts import ArtifactError, open_store
from gateway.output.threads import Threads
from reelkit.clock import Clock
from reelkit.settings import blame_field
from reelkit.tasks import TaskScope

_THREADS: Final = 2
_CLOSE_S: Final = 1.0


def open_kept(
    config: CacheConfig,
    folder: Path,
    *,
    metrics: GatewayMetrics,
    cache_metrics: CacheMetrics,
    clock: Clock,
    scope: TaskScope,
    stack: AsyncExitStack,
) -> KeptVideos | None:
    """The copies, none at first; None where there are to be none.

    Args:
        config: The section.
        folder: Theirs alone; what it holds of another life goes.
        metrics: Shows what is held.
        cache_metrics: Counts.
        clock: For their time.
        scope: Owns what fetches and drops them.
        stack: Closes what is opened here.

    Raises:
        ConfigError: The folder cannot be used.
    """
    if not config.kept_bytes:
        return None
    with blame_field("state_dir", folder, OSError), blame_field("state_dir", folder, ArtifactError):
        if folder.exists():
            shutil.rmtree(folder)
        store = open_store(str(folder))
    stack.push_async_callback(store.close)
    threads = Threads(_THREADS, "kept")
    stack.push_async_callback(threads.close, _CLOSE_S)
    kept = KeptVideos(
        store=store,
        folder=folder,
        executor=threads,
        max_bytes=config.kept_bytes,
        max_entries=config.max_entries,
        keep_s=config.keep_s,
        clock=clock,
        scope=scope,
        on_evict=partial(cache_metrics.evicted, "kept"),
        on_bytes=cache_metrics.kept_bytes,
    )
    scope.spawn(kept.run(), name="kept")
    held = "Bytes of copies of other regions' videos, those on their way included."
    metrics.watch_figure("kept_copies_bytes", held, lambda: float(kept.bytes_held))
    return kept
