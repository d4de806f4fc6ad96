"""Where fetched weights are kept: a folder per version, there whole or not at all.

A version is assembled in ``<name>.partial`` and renamed when every file is verified,
so a crash in between leaves nothing that looks complete, and what was fetched is used
again. A lock file keeps agents of the same machine from fetching the same twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from node_agent.errors import WeightsError
from node_agent.manifest import ALLOWED_SUFFIXES, MANIFEST_NAME, Manifest
from node_agent.model_folder import (
    ModelFolder,
    ModelFolderError,
    open_model_folder,
    write_manifest,
)
from reelkit.files import write_atomic, write_json_atomic

# Room left on the disk beside the weights.
_SPARE_BYTES = 256 * 1024 * 1024

_ANY_FILE = {"path": "any.json", "sha256": "0" * 64, "size_bytes": 0}


@dataclass(frozen=True)
class ManifestFile:
    """A manifest kept apart from the weights.

    ``manifest`` is None where it lists no files ("files": null): then the digests are
    taken from the files that are found, and nothing vouches for those.
    """

    fields: dict[str, Any]
    data: bytes
    manifest: Manifest | None

    @property
    def label(self) -> str:
        """Name and version, for folder names."""
        return f"{self.fields.get('name', 'model')}-{self.fields.get('version', '0')}"

    @property
    def digest(self) -> str:
        """The manifest's own sha256."""
        return hashlib.sha256(self.data).hexdigest()

    def digest_with(self, origin_version: str) -> str:
        """The same of the manifest and the version of what it describes."""
        return hashlib.sha256(self.data + origin_version.encode()).hexdigest()


def read_manifest_file(file: Path) -> ManifestFile:
    """Reads a manifest that lies elsewhere.

    Raises:
        WeightsError: It cannot be read or breaks a rule.
    """
    try:
        return parse_manifest(file.read_bytes(), where=str(file))
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read: {error.strerror}") from None


def parse_manifest(data: bytes, *, where: str) -> ManifestFile:
    """The same of bytes that were fetched; ``where`` is named in errors.

    Raises:
        WeightsError: It is not JSON, or breaks a rule.
    """
    try:
        fields = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsError(f"{where}: is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise WeightsError(f"{where}: must be a JSON object")
    listed = fields.get("files") is not None
    # The rest of one that lists no files is checked now, and not after they were fetched.
    whole = data if listed else json.dumps({**fields, "files": [_ANY_FILE]}).encode()
    try:
        manifest = Manifest.model_validate_json(whole)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise WeightsError(f"{where}: {problems}") from None
    return ManifestFile(fields=fields, data=data, manifest=manifest if listed else None)


class WeightsCache:
    """The cache folder of one machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def locked(self, name: str = ".lock") -> Iterator[None]:
        """Holds the cache against other agents; waits for them as long as it takes.

        Another ``name`` holds a part of it: a lock file, such as ``hub/org--model.lock``.
        """
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def find(self, label: str, digest: str) -> ModelFolder | None:
        """The complete folder of a version, or None."""
        folder = self._folder(label, digest)
        return open_model_folder(folder) if (folder / MANIFEST_NAME).exists() else None

    def partial(self, label: str, digest: str) -> Path:
        """The folder in which a version is assembled; what a crash left in it stays."""
        folder = self._folder(label, digest)
        partial = folder.with_name(folder.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        return partial

    def commit(self, label: str, digest: str) -> ModelFolder:
        """Makes an assembled folder the version's; its manifest must be in place."""
        folder = self._folder(label, digest)
        self.partial(label, digest).rename(folder)
        return open_model_folder(folder)

    def require_room(self, needed_bytes: int) -> None:
        """Returns if the disk can take ``needed_bytes``.

        Raises:
            WeightsError: It cannot; says what is missing.
        """
        free_bytes = shutil.disk_usage(self.root).free
        if free_bytes < needed_bytes + _SPARE_BYTES:
            raise WeightsError(
                f"{self.root}: {needed_bytes / 1e9:.1f} GB are needed and "
                f"{free_bytes / 1e9:.1f} GB are free; make room or name another cache_dir"
            )

    def adopt(
        self,
        source: Path,
        description: ManifestFile,
        *,
        names: Sequence[str] | None = None,
        digests: Mapping[str, str] | None = None,
        version: str | None = None,
    ) -> ModelFolder:
        """A folder of ``source``'s files with the given manifest beside them.

        The files are hard links where source and cache share a disk, else copies.
        Without listed digests they are hashed once; a folder whose files have not
        changed since is used as it is.

        Args:
            source: Where the files are.
            description: The manifest, with or without listed files.
            names: The files to take; by default the listed ones, or all admissible ones.
            digests: sha256 that some of them must have, where the manifest lists none.
            version: Names the folder; by default the manifest and the files' times do.

        Raises:
            WeightsError: Files are missing or do not match.
        """
        if names is None:
            names = _files_of(source, description.manifest)
        digest = version or _fingerprint(source, names, description.data)
        with self.locked():
            found = self.find(description.label, digest)
            if found is not None:
                return found
            partial = self.partial(description.label, digest)
            shutil.rmtree(partial)
            try:
                for name in names:
                    self._link(source / name, partial / name)
                self._describe(partial, description, digests or {})
                return self.commit(description.label, digest)
            except ModelFolderError as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise WeightsError(str(error)) from None

    def _describe(
        self, partial: Path, description: ManifestFile, digests: Mapping[str, str]
    ) -> None:
        """Puts the manifest beside the files and checks them."""
        if description.manifest is not None:
            write_atomic(partial / MANIFEST_NAME, description.data)
            open_model_folder(partial).verify_files()
            return
        fields = {key: value for key, value in description.fields.items() if key != "files"}
        folder = write_manifest(partial, fields)
        altered = [
            entry.path
            for entry in folder.manifest.files
            if digests.get(entry.path, entry.sha256) != entry.sha256
        ]
        if altered:
            raise ModelFolderError(f"{', '.join(altered[:5])}: the sha256 is not the origin's")

    def _link(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A Hub download may hold links into its own store; the manifest wants files.
        real = source.resolve()
        try:
            os.link(real, target)
        except OSError:
            self.require_room(real.stat().st_size)
            shutil.copyfile(real, target)

    def _folder(self, label: str, digest: str) -> Path:
        return self.root / f"{label}-{digest[:12]}"


@dataclass(frozen=True)
class FetchedModel:
    """A complete folder of the cache."""

    folder: ModelFolder
    verified: bool
    """Whether a manifest vouched for the digests; else they were taken from what came."""


class LastFetched:
    """The note of what was last fetched whole for a source and a manifest."""

    def __init__(self, folder: Path, description: ManifestFile | None, cache: WeightsCache) -> None:
        key = "own" if description is None else description.digest[:12]
        self._file = folder.with_name(f"{folder.name}.{key}.json")
        self._cache = cache

    def read(self, commit: str | None = None) -> FetchedModel | None:
        """It, unless it is gone or of another commit than asked for."""
        try:
            note = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            return None
        folder = self._cache.root / note["folder"]
        if commit not in (None, note["commit"]) or not (folder / MANIFEST_NAME).exists():
            return None
        return FetchedModel(open_model_folder(folder), verified=note["verified"])

    def write(self, commit: str, fetched: FetchedModel) -> None:
        """Notes it, in place of an earlier one."""
        note = {
            "commit": commit,
            "folder": fetched.folder.path.name,
            "verified": fetched.verified,
        }
        write_json_atomic(self._file, note)


def _files_of(source: Path, manifest: Manifest | None) -> list[str]:
    """Names of the files to take: the listed ones, or all of admissible kinds."""
    if not source.is_dir():
        raise WeightsError(f"{source}: is no folder")
    if manifest is not None:
        names = [entry.path for entry in manifest.files]
        missing = [name for name in names if not (source / name).is_file()]
        if missing:
            raise WeightsError(f"{source}: {', '.join(missing[:5])} missing")
        return names
    names = sorted(
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file()
        and path.suffix in ALLOWED_SUFFIXES
        and path.name != MANIFEST_NAME
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
    )
    if not any(name.endswith(".safetensors") for name in names):
        raise WeightsError(f"{source}: holds no .safetensors file; is it the model's folder?")
    return names


def _fingerprint(source: Path, names: Sequence[str], manifest: bytes) -> str:
    digest = hashlib.sha256(manifest)
    for name in names:
        info = (source / name).stat()
        digest.update(f"{name}\0{info.st_size}\0{info.st_mtime_ns}\n".encode())
    return digest.hexdigest()
