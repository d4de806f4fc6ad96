"""Weights from the Hugging Face Hub, or a server that speaks its protocol.

The library downloads; what it downloads is chosen and checked here. Left alone it takes
a folder for complete when the Hub cannot be reached, it does not hash what came over
plain HTTP, and it waits for ever for a server that says nothing.
"""

from __future__ import annotations

import glob
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node_agent.errors import WeightsError
from node_agent.fetch_watch import Progress, StallWatch, first_line
from node_agent.manifest import ALLOWED_SUFFIXES, MANIFEST_NAME
from node_agent.model_folder import ModelFolder
from node_agent.weights_cache import (
    FetchedModel,
    LastFetched,
    ManifestFile,
    WeightsCache,
    parse_manifest,
)

HUB_SCHEME = "hf://"

_PARALLEL_FILES = 4


@dataclass(frozen=True)
class _File:
    """What is known of a file before it is fetched; ``sha256`` is None for small text."""

    size_bytes: int
    sha256: str | None


def fetch_from_hub(
    source: str,
    description: ManifestFile | None,
    cache: WeightsCache,
    *,
    watch: StallWatch,
    on_progress: Progress,
) -> FetchedModel:
    """Fetches a repository's weights: the files that the manifest lists, else the admissible.

    Where the Hub cannot be reached, what was last fetched whole for this source serves.

    Raises:
        WeightsError: The Hub cannot be reached or refuses, something is missing or
            altered, or there is no manifest in the repository and none was named.
    """
    repository = _Repository(source, cache, watch)
    last = LastFetched(repository.folder, description, cache)
    if description is not None and description.manifest is not None:
        found = cache.find(description.label, description.digest)
        if found is not None:
            return FetchedModel(found, verified=True)
    try:
        commit, listed = repository.listing()
    except _UnreachableError as error:
        found_last = last.read()
        if found_last is None:
            raise WeightsError(str(error)) from None
        return found_last
    with cache.locked(f"hub/{repository.folder.name}.lock"):
        found_last = last.read(commit)
        if found_last is not None:
            return found_last
        repository.discard_abandoned()
        if description is None:
            description = repository.manifest(commit, listed)
        wanted = _wanted(source, description, listed)
        repository.download(commit, wanted, on_progress)
        folder = repository.adopt(commit, description, wanted)
        fetched = FetchedModel(folder, verified=description.manifest is not None)
        last.write(commit, fetched)
        return fetched


class _UnreachableError(Exception):
    """The Hub gave no answer, which says nothing about the repository."""


class _Repository:
    """One revision of a repository, and the folder that it is downloaded to."""

    def __init__(self, source: str, cache: WeightsCache, watch: StallWatch) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.errors
            import huggingface_hub.utils
        except ImportError:
            raise WeightsError(
                f"{source}: huggingface_hub is not installed; pip install 'reelmesh[node]'"
            ) from None
        self._hub: Any = huggingface_hub
        # The agent's status shows the progress; bars would fill its log.
        self._hub.utils.disable_progress_bars()
        self._source = source
        self._cache = cache
        self._watch = watch
        path = source.removeprefix(HUB_SCHEME)
        self._name, _, self._revision = path.partition("@")
        self.folder = cache.root / "hub" / path.replace("/", "--")

    def listing(self) -> tuple[str, dict[str, _File]]:
        """The commit that the revision is now, and its files."""
        with self._watch.waiting(self._source):
            try:
                info = self._hub.HfApi().model_info(
                    self._name,
                    revision=self._revision or None,
                    files_metadata=True,
                    timeout=self._watch.limit_s / 3,
                )
            except self._errors() as error:
                raise self._described(error) from None
        files = {
            file.rfilename: _File(file.size or 0, file.lfs.sha256 if file.lfs else None)
            for file in info.siblings or ()
        }
        return str(info.sha), files

    def discard_abandoned(self) -> None:
        """Removes the parts of files that a killed fetch left; the library uses none again."""
        for part in self.folder.glob(".cache/huggingface/**/*.incomplete"):
            part.unlink()

    def manifest(self, commit: str, listed: dict[str, _File]) -> ManifestFile:
        """The repository's own manifest; asked for before gigabytes are."""
        if MANIFEST_NAME not in listed:
            raise WeightsError(
                f"{self._source}: has no {MANIFEST_NAME}; name one in model.manifest, such as the "
                "wan2.2-ti2v-5b.manifest.json that ships in node_agent/models"
            )
        self._snapshot(commit, [MANIFEST_NAME])
        data = (self.folder / MANIFEST_NAME).read_bytes()
        return parse_manifest(data, where=f"{self._source}/{MANIFEST_NAME}")

    def download(self, commit: str, wanted: dict[str, _File], on_progress: Progress) -> None:
        """The wanted files into :attr:`folder`, each of its size."""
        total_bytes = sum(file.size_bytes for file in wanted.values())
        self._cache.require_room(
            sum(file.size_bytes for name, file in wanted.items() if not self._has(name, file))
        )
        seen_bytes = -1

        def look() -> None:
            nonlocal seen_bytes
            there_bytes = _bytes_below(self.folder)
            if there_bytes != seen_bytes:
                seen_bytes = there_bytes
                self._watch.beat()
                on_progress(min(there_bytes, total_bytes), total_bytes)

        self._snapshot(commit, sorted(wanted), look)
        missing = [name for name, file in wanted.items() if not self._has(name, file)]
        if missing:
            # The library calls what is there complete when the Hub goes away.
            raise WeightsError(
                f"{self._source}: {', '.join(missing[:5])} did not come whole; is the Hub up?"
            )
        on_progress(total_bytes, total_bytes)

    def _has(self, name: str, file: _File) -> bool:
        path = self.folder / name
        return path.is_file() and path.stat().st_size == file.size_bytes

    def _snapshot(self, commit: str, names: list[str], look: Any = None) -> None:
        with self._watch.waiting(self._source, look):
            try:
                self._hub.snapshot_download(
                    self._name,
                    revision=commit,
                    local_dir=self.folder,
                    allow_patterns=[glob.escape(name) for name in names],
                    max_workers=_PARALLEL_FILES,
                )
            except self._errors() as error:
                raise WeightsError(str(self._described(error))) from None

    def adopt(
        self, commit: str, description: ManifestFile, wanted: dict[str, _File]
    ) -> ModelFolder:
        """A folder of the wanted files in the cache, if every known digest is right."""
        listed = description.manifest is not None
        known = {name: file.sha256 for name, file in wanted.items() if file.sha256 is not None}
        try:
            return self._cache.adopt(
                self.folder,
                description,
                names=sorted(wanted),
                digests=known,
                version=description.digest if listed else description.digest_with(commit),
            )
        except WeightsError as error:
            # The library never looks again at a file that it has put there itself.
            self._discard_altered(wanted)
            raise WeightsError(f"{self._source}: {error}") from None

    def _discard_altered(self, wanted: dict[str, _File]) -> None:
        for name, file in wanted.items():
            path = self.folder / name
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if path.stat().st_size != file.size_bytes or file.sha256 not in (None, digest):
                path.unlink()

    def _errors(self) -> tuple[type[Exception], ...]:
        # The HTTP client's errors derive from neither; which client it is depends on the
        # library's version, and its base is a base of the library's own error.
        http = [base for base in self._hub.errors.HfHubHTTPError.__mro__ if "HTTP" in base.__name__]
        return (OSError, ValueError, RuntimeError, *http)

    def _described(self, error: Exception) -> Exception:
        """What an error of the library means to the operator."""
        errors, source = self._hub.errors, self._source
        answer = getattr(error, "response", None)
        status = answer.status_code if answer is not None else 0
        if isinstance(error, errors.GatedRepoError):
            said = "is gated: accept its terms on the Hub and set HF_TOKEN in the environment"
        elif isinstance(error, errors.RevisionNotFoundError):
            said = f"the repository has no revision {self._revision or 'main'}; mend model.source"
        elif status in (401, 403) and self._hub.get_token():
            said = "the Hub refuses the token, or it may not see this; check HF_TOKEN"
        elif isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
            said = "there is no such repository, or it is private; check the name, or set HF_TOKEN"
        elif isinstance(error, errors.HFValidationError | errors.RemoteEntryNotFoundError):
            said = first_line(error)
        else:
            return _UnreachableError(
                f"{source}: cannot be fetched: {first_line(error)}. Is the Hub reachable "
                "(HF_ENDPOINT names a mirror)? Offline, name a local folder"
            )
        return WeightsError(f"{source}: {said}")


def _wanted(source: str, description: ManifestFile, listed: dict[str, _File]) -> dict[str, _File]:
    """The files to take, and what the manifest or else the Hub says of them."""
    if description.manifest is None:
        wanted = {
            name: file
            for name, file in listed.items()
            if Path(name).suffix in ALLOWED_SUFFIXES
            and name != MANIFEST_NAME
            and not any(part.startswith(".") for part in name.split("/"))
        }
        if not any(name.endswith(".safetensors") for name in wanted):
            raise WeightsError(f"{source}: holds no .safetensors file; is it the model's?")
        return wanted
    wanted, problems = {}, []
    for entry in description.manifest.files:
        wanted[entry.path] = _File(entry.size_bytes, entry.sha256)
        there = listed.get(entry.path)
        if there is None:
            problems.append(f"{entry.path} is missing")
        elif there.size_bytes != entry.size_bytes or there.sha256 not in (None, entry.sha256):
            problems.append(f"{entry.path} is another one")
    if problems:
        # Known before the first byte is fetched.
        raise WeightsError(
            f"{source}: is not what the manifest says: {'; '.join(problems[:5])}; name the "
            "revision that it was made for, or make one for this revision"
        )
    return wanted


def _bytes_below(folder: Path) -> int:
    """Bytes of all files, those that are still coming in included."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            # It was renamed when it was whole.
            continue
    return total
