"""Fetches a model's files into the weights cache; a process of its own under the agent.

``python -m node_agent.fetch`` reads its settings as JSON from the first line of stdin
and writes JSON lines to stdout: ``{"done_bytes": ..., "total_bytes": ...}`` as it goes,
then ``{"folder": ..., "verified": ...}`` or ``{"error": ...}``. It ends when stdin
does: the agent can kill it at any time, the agent's own memory stays small, and
nothing outlives it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from node_agent.errors import WeightsError
from node_agent.manifest import ALLOWED_SUFFIXES, MANIFEST_NAME, FileEntry
from node_agent.model_folder import ModelFolder, ModelFolderError, open_model_folder
from node_agent.weights_cache import (
    ManifestFile,
    WeightsCache,
    parse_manifest,
    read_manifest_file,
)
from reelkit.files import write_atomic

HUB_SCHEME = "hf://"

_PARALLEL_FILES = 4
_BLOCK_BYTES = 4 * 1024 * 1024
_MAX_MANIFEST_BYTES = 4 * 1024 * 1024

Progress = Callable[[int, int], None]
# Any obstore store; the library's own types are not visible to mypy.
Store = Any


def fetch(
    *,
    source: str,
    manifest_file: Path | None,
    cache_dir: Path,
    store_options: Mapping[str, str],
    client_options: Mapping[str, str],
    on_progress: Progress,
) -> ModelFolder:
    """A complete model folder made from ``source``, in the cache.

    Raises:
        WeightsError: Names the source and what to do about it.
    """
    cache = WeightsCache(cache_dir)
    description = read_manifest_file(manifest_file) if manifest_file is not None else None
    if source.startswith(HUB_SCHEME):
        return fetch_from_hub(source, description, cache)
    if "://" in source:
        store = open_store(source, store_options, client_options)
        return fetch_from_store(store, description, cache, where=source, on_progress=on_progress)
    if description is None:
        return open_model_folder(Path(source))
    return cache.adopt(Path(source), description)


def open_store(
    url: str, store_options: Mapping[str, str], client_options: Mapping[str, str]
) -> Store:
    """The object store at a URL.

    Raises:
        WeightsError: The URL or an option is not understood, or a folder is missing.
    """
    options: dict[str, Any] = {}
    if store_options:
        options["config"] = dict(store_options)
    if client_options:
        options["client_options"] = dict(client_options)
    try:
        return from_url(url, **options)
    except (BaseError, ValueError, TypeError) as error:
        raise WeightsError(f"{url}: {_first_line(error)}") from None


def fetch_from_store(
    store: Store,
    description: ManifestFile | None,
    cache: WeightsCache,
    *,
    where: str,
    on_progress: Progress,
) -> ModelFolder:
    """Fetches the manifest and each file it lists, checking every byte on the way.

    Raises:
        WeightsError: Something is missing, altered or cannot be read.
    """
    if description is None:
        data = _get_small(store, MANIFEST_NAME, where=where)
        description = parse_manifest(data, where=f"{where}/{MANIFEST_NAME}")
    manifest = description.manifest
    if manifest is None:
        raise WeightsError(
            f'{where}: the manifest lists no files ("files": null), so there is nothing to '
            "fetch; list them with sha256 and size"
        )
    digest = hashlib.sha256(description.data).hexdigest()
    with cache.locked():
        found = cache.find(description.label, digest)
        if found is not None:
            return found
        partial = cache.partial(description.label, digest)
        meter = _Meter(sum(entry.size_bytes for entry in manifest.files), on_progress)
        missing = [entry for entry in manifest.files if not _is_there(partial, entry, meter)]
        cache.require_room(sum(entry.size_bytes for entry in missing))
        with ThreadPoolExecutor(_PARALLEL_FILES, thread_name_prefix="fetch") as pool:
            for _ in pool.map(lambda entry: _get(store, entry, partial, where, meter), missing):
                pass
        write_atomic(partial / MANIFEST_NAME, description.data)
        return cache.commit(description.label, digest)


def fetch_from_hub(
    source: str, description: ManifestFile | None, cache: WeightsCache
) -> ModelFolder:
    """Fetches a repository of the Hugging Face Hub.

    Raises:
        WeightsError: It cannot be reached or does not exist, or has no manifest and
            none was named.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise WeightsError(
            f"{source}: huggingface_hub is not installed; pip install 'reelmesh[node]'"
        ) from None
    repository, _, revision = source.removeprefix(HUB_SCHEME).partition("@")
    target = cache.root / "hub" / source.removeprefix(HUB_SCHEME).replace("/", "--")
    try:
        huggingface_hub.snapshot_download(
            repository,
            revision=revision or None,
            local_dir=target,
            allow_patterns=[f"*{suffix}" for suffix in sorted(ALLOWED_SUFFIXES)],
            max_workers=_PARALLEL_FILES,
        )
    except (OSError, ValueError) as error:
        # All of the library's errors are one of these, its HTTP client's included.
        raise WeightsError(
            f"{source}: cannot be fetched: {_first_line(error)}. Is the Hub reachable and the "
            "name right (and HF_TOKEN set for a gated one)? Offline, name a local folder."
        ) from None
    if description is not None:
        return cache.adopt(target, description)
    if not (target / MANIFEST_NAME).exists():
        raise WeightsError(
            f"{source}: has no {MANIFEST_NAME}; name one in model.manifest, such as the "
            "wan2.2-ti2v-5b.manifest.json that ships in node_agent/models"
        )
    return open_model_folder(target)


class _Meter:
    """Counts bytes over all threads and tells about every hundredth."""

    def __init__(self, total_bytes: int, on_progress: Progress) -> None:
        self._total_bytes = total_bytes
        self._on_progress = on_progress
        self._done_bytes = self._told_bytes = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done_bytes += count
            if (self._done_bytes - self._told_bytes) * 100 >= self._total_bytes:
                self._told_bytes = self._done_bytes
                self._on_progress(self._done_bytes, self._total_bytes)


def _is_there(folder: Path, entry: FileEntry, meter: _Meter) -> bool:
    """Whether an earlier fetch, cut short, has left the file whole."""
    file = folder / entry.path
    if not file.is_file() or file.stat().st_size != entry.size_bytes:
        return False
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:
            return False
    meter.add(entry.size_bytes)
    return True


def _get_small(store: Store, key: str, *, where: str) -> bytes:
    try:
        result = obstore.get(store, key)
        if result.meta["size"] > _MAX_MANIFEST_BYTES:
            raise WeightsError(f"{where}/{key}: is larger than a manifest may be")
        return bytes(result.bytes())
    except (OSError, BaseError) as error:
        raise WeightsError(f"{where}/{key}: {_first_line(error)}") from None


def _get(store: Store, entry: FileEntry, folder: Path, where: str, meter: _Meter) -> None:
    target = folder / entry.path
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    digest, size = hashlib.sha256(), 0
    try:
        with part.open("wb") as file:
            for block in obstore.get(store, entry.path).stream(min_chunk_size=_BLOCK_BYTES):
                size += len(block)
                if size > entry.size_bytes:
                    break
                digest.update(block)
                file.write(block)
                meter.add(len(block))
        if size != entry.size_bytes or digest.hexdigest() != entry.sha256:
            raise WeightsError(
                f"{where}/{entry.path}: is not what the manifest says (sha256 or size differ)"
            )
        part.replace(target)
    except (OSError, BaseError) as error:
        raise WeightsError(f"{where}/{entry.path}: {_first_line(error)}") from None
    finally:
        part.unlink(missing_ok=True)


def _first_line(error: BaseException) -> str:
    """Obstore and the Hub append pages of debugging to their messages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def main() -> int:
    """The process's body."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_the_agent, daemon=True).start()

    def tell(**line: Any) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    manifest = request["manifest"]
    try:
        folder = fetch(
            source=request["source"],
            manifest_file=Path(manifest) if manifest else None,
            cache_dir=Path(request["cache_dir"]),
            store_options=request["store_options"],
            client_options=request["client_options"],
            on_progress=lambda done, total: tell(done_bytes=done, total_bytes=total),
        )
    except (WeightsError, ModelFolderError, OSError) as error:
        tell(error=str(error))
        return 1
    listed = manifest is None or read_manifest_file(Path(manifest)).manifest is not None
    tell(folder=str(folder.path), verified=listed)
    return 0


def _leave_with_the_agent() -> None:
    # Not sys.stdin: its lock, held here, would hang the interpreter's exit.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
