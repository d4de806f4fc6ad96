"""Weights from an object store: each listed file, resumed where it stopped, checked whole."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import obstore
from obstore.exceptions import (
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import from_url

from node_agent.errors import WeightsError
from node_agent.fetch_watch import Meter, Progress, StallWatch, first_line, public_url
from node_agent.manifest import MANIFEST_NAME, FileEntry
from node_agent.model_folder import ModelFolder
from node_agent.weights_cache import ManifestFile, WeightsCache, parse_manifest
from reelkit.files import write_atomic

_PARALLEL_FILES = 4
_BLOCK_BYTES = 256 * 1024
_MAX_MANIFEST_BYTES = 4 * 1024 * 1024

# A request is tried again this often, within some seconds; then the agent comes back.
_RETRIES = 5

# The instance metadata service: whom the S3 client asks when the environment has no keys.
_METADATA_SERVICE = re.compile(r"/latest/(api/token|meta-data)")

# Any obstore store; the library's own types are not visible to mypy.
Store = Any


def open_store(
    url: str,
    store_options: Mapping[str, str],
    client_options: Mapping[str, str],
    *,
    stall_s: float,
) -> Store:
    """The object store at a URL.

    A connection that is silent for a third of ``stall_s`` is dropped and tried anew.

    Raises:
        WeightsError: The URL or an option is not understood, or a folder is missing.
    """
    options: dict[str, Any] = {}
    if store_options:
        options["config"] = dict(store_options)
    if not url.startswith("file://"):
        # By itself the client ends each request, the reading of its body included, after
        # 30 s: less than a file of some GB takes.
        ours = {"timeout": "86400s", "read_timeout": f"{max(1, round(stall_s * 1000 / 3))}ms"}
        options["client_options"] = {**ours, **client_options}
        options["retry_config"] = {"max_retries": _RETRIES}
    try:
        return from_url(url, **options)
    except (BaseError, ValueError, TypeError) as error:
        raise WeightsError(f"{public_url(url)}: {first_line(error)}") from None


def fetch_from_store(
    store: Store,
    description: ManifestFile | None,
    cache: WeightsCache,
    *,
    where: str,
    watch: StallWatch,
    on_progress: Progress,
) -> ModelFolder:
    """Fetches the manifest and each file it lists, checking every byte on the way.

    Raises:
        WeightsError: Something is missing, altered or cannot be read.
    """
    if description is None:
        with watch.waiting(where):
            data = _get_manifest(store, where=where)
        description = parse_manifest(data, where=f"{where}/{MANIFEST_NAME}")
    manifest = description.manifest
    if manifest is None:
        raise WeightsError(
            f'{where}: the manifest lists no files ("files": null), so there is nothing to '
            "fetch; list them with sha256 and size"
        )
    with cache.locked():
        found = cache.find(description.label, description.digest)
        if found is not None:
            return found
        partial = cache.partial(description.label, description.digest)
        meter = Meter(sum(entry.size_bytes for entry in manifest.files), on_progress)
        missing = [entry for entry in manifest.files if not _is_there(partial, entry, meter)]
        cache.require_room(sum(entry.size_bytes for entry in missing))
        origin = _Origin(store, where, partial, meter, watch)
        with watch.waiting(where):
            _get_all(origin, missing)
        write_atomic(partial / MANIFEST_NAME, description.data)
        return cache.commit(description.label, description.digest)


def _get_all(origin: _Origin, entries: list[FileEntry]) -> None:
    with ThreadPoolExecutor(_PARALLEL_FILES, thread_name_prefix="fetch") as pool:
        files = [pool.submit(origin.get, entry) for entry in entries]
        done, _ = wait(files, return_when=FIRST_EXCEPTION)
        # After a failure the others stop at their next block: the operator learns of it now,
        # not when another ten gigabytes have come.
        origin.stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for file in done:
            file.result()


def _is_there(folder: Path, entry: FileEntry, meter: Meter) -> bool:
    """Whether an earlier fetch, cut short, has left the file whole."""
    file = folder / entry.path
    if not file.is_file() or file.stat().st_size != entry.size_bytes:
        return False
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:
            return False
    meter.add(entry.size_bytes)
    return True


def _get_manifest(store: Store, *, where: str) -> bytes:
    try:
        result = obstore.get(store, MANIFEST_NAME)
        if result.meta["size"] > _MAX_MANIFEST_BYTES:
            raise WeightsError(f"{where}/{MANIFEST_NAME}: is larger than a manifest may be")
        return bytes(result.bytes())
    except (OSError, BaseError) as error:
        advice = "upload one beside the weights, name one in model.manifest, or mend model.source"
        raise describe_store_error(error, f"{where}/{MANIFEST_NAME}", if_missing=advice) from None


@dataclass(frozen=True)
class _Origin:
    """The store and the folder that its files go into."""

    store: Store
    where: str
    folder: Path
    meter: Meter
    watch: StallWatch
    stop: threading.Event = field(default_factory=threading.Event)

    def get(self, entry: FileEntry) -> None:
        """The file whole and as the manifest says, or an error and no file of its name.

        What came before the error stays in ``<name>.part`` and is used by the next fetch.
        """
        target = self.folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        try:
            # The first half of another object, kept from an earlier fetch, spoils a good
            # one: only what was read in one go tells about the store.
            resumed = part.exists()
            if not self._complete(part, entry) and not (resumed and self._complete(part, entry)):
                raise WeightsError(
                    f"{self.where}/{entry.path}: is not what the manifest says (sha256 or size "
                    "differ); upload the file again, or a manifest that was made for it"
                )
            part.replace(target)
        except (OSError, BaseError) as error:
            advice = "the manifest lists it; upload it, or mend the manifest"
            raise describe_store_error(
                error, f"{self.where}/{entry.path}", if_missing=advice
            ) from None

    def _complete(self, part: Path, entry: FileEntry) -> bool:
        """Reads on from what ``part`` holds; False, and no part, when it is the wrong file."""
        digest = hashlib.sha256()
        with part.open("ab+") as file:
            file.seek(0)
            while block := file.read(_BLOCK_BYTES):
                self.watch.beat()
                digest.update(block)
            self.meter.add(file.tell())
            while file.tell() < entry.size_bytes:
                came_before = file.tell()
                try:
                    if not self._read_on(file, entry, digest):
                        break
                except (OSError, BaseError):
                    # Cut again and again, a large file still arrives; without a byte more
                    # it is the agent's turn to wait and come back.
                    if file.tell() == came_before:
                        raise
            size = file.tell()
        if size == entry.size_bytes and digest.hexdigest() == entry.sha256:
            return True
        self.meter.add(-size)
        part.unlink()
        return False

    def _read_on(self, file: BinaryIO, entry: FileEntry, digest: Any) -> bool:
        """Appends the object's rest; False: the object is not of the listed size."""
        offset = file.tell()
        # A range beyond the end of a truncated object would be an obscure error.
        if offset and obstore.head(self.store, entry.path)["size"] != entry.size_bytes:
            return False
        options = {"range": {"offset": offset}} if offset else {}
        result = obstore.get(self.store, entry.path, options=options)
        if result.meta["size"] != entry.size_bytes:
            return False
        for block in result.stream(min_chunk_size=_BLOCK_BYTES):
            self.watch.beat()
            if self.stop.is_set():
                raise WeightsError(f"{self.where}/{entry.path}: was stopped")
            if file.tell() + len(block) > entry.size_bytes:
                return False
            digest.update(block)
            file.write(block)
            self.meter.add(len(block))
        return file.tell() == entry.size_bytes


def describe_store_error(error: BaseException, what: str, *, if_missing: str) -> WeightsError:
    """What a store's error means to the operator."""
    if isinstance(error, FileNotFoundError | NotFoundError):
        if "NoSuchBucket" in str(error):
            return WeightsError(f"{what}: there is no such bucket; mend model.source")
        return WeightsError(f"{what}: is not there; {if_missing}")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        code = re.search(r"<Code>(\w+)</Code>", str(error))
        reason = f" ({code[1]})" if code else ""
        return WeightsError(
            f"{what}: the store refuses the credentials{reason}; check those in the node agent's "
            "environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if _METADATA_SERVICE.search(str(error)):
        return WeightsError(
            f"{what}: there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in "
            "the node agent's environment, or skip_signature in model.store_options for a "
            "public bucket"
        )
    return WeightsError(f"{what}: {first_line(error)}")
