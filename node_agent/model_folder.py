"""A model's folder on disk: reading its manifest, checking its files, writing one.

A folder is trusted only as far as its manifest says: each file is listed with sha256
and size, lies inside the folder, is a regular file of a kind that cannot run code,
and nothing else lies beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from reelmesh.v1 import model_pb2

from node_agent.manifest import ALLOWED_SUFFIXES, MANIFEST_NAME, Manifest
from reelkit.files import write_atomic

_READ_BYTES = 1024 * 1024

# Hashing releases the interpreter lock: a few threads keep up with a fast disk.
_HASH_THREADS = 4

# A manifest is a few kilobytes; a larger file is none.
_MAX_MANIFEST_BYTES = 4 * 1024 * 1024


class ModelFolderError(Exception):
    """The folder cannot be used; the message names each file and what is wrong with it."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder whose manifest was read; its files are unchecked until :meth:`verify_files`."""

    path: Path
    manifest: Manifest
    manifest_sha256: str

    def to_model_info(self) -> model_pb2.ModelInfo:
        """What gateways see of this version."""
        return self.manifest.to_model_info(manifest_sha256=self.manifest_sha256)

    def verify_files(self) -> None:
        """Returns if the folder holds exactly the manifest's files, unchanged.

        Reads every byte (about a second a GB). Raises ``ModelFolderError`` that names all
        missing, extra, altered or inadmissible files.
        """
        verify_files(self.path, self.manifest)


def open_model_folder(path: Path) -> ModelFolder:
    """Reads and checks ``manifest.json`` of a folder.

    Raises:
        ModelFolderError: There is none, or it breaks a rule; every broken rule is named.
    """
    file = path / MANIFEST_NAME
    try:
        if file.is_symlink():
            raise ModelFolderError(f"{file}: is a symbolic link")
        with file.open("rb") as handle:
            data = handle.read(_MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ModelFolderError(f"{file}: cannot be read: {error.strerror}") from None
    if len(data) > _MAX_MANIFEST_BYTES:
        raise ModelFolderError(f"{file}: is larger than a manifest may be")
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise ModelFolderError(f"{file}: {_describe(error)}") from None
    return ModelFolder(path, manifest, hashlib.sha256(data).hexdigest())


def verify_files(path: Path, manifest: Manifest) -> None:
    """Returns if ``path`` holds exactly the manifest's files, unchanged.

    Raises:
        ModelFolderError: Names all that are missing, extra, altered or inadmissible.
    """
    found, problems = _survey(path)
    listed = {entry.path: entry for entry in manifest.files}
    problems += [f"{name}: is missing" for name in sorted(listed.keys() - found.keys())]
    problems += [f"{name}: is not in the manifest" for name in sorted(found.keys() - listed.keys())]
    to_hash = []
    for name in sorted(listed.keys() & found.keys()):
        if found[name] != listed[name].size_bytes:
            problems.append(
                f"{name}: has {found[name]} bytes, the manifest says {listed[name].size_bytes}"
            )
        else:
            to_hash.append(name)
    digests = _hash_all(path, to_hash)
    problems += [
        f"{name}: its sha256 is not the manifest's; fetch it again"
        for name in to_hash
        if digests[name] != listed[name].sha256
    ]
    if problems:
        raise ModelFolderError(f"{path}: " + "; ".join(problems))


def write_manifest(path: Path, fields: dict[str, Any]) -> ModelFolder:
    """Writes ``manifest.json`` for the files that lie in ``path``.

    Args:
        path: The folder, its weights in place.
        fields: The manifest without ``files``, which is made here.

    Raises:
        ModelFolderError: A file is inadmissible, or a field breaks a rule.
    """
    found, problems = _survey(path)
    if problems:
        raise ModelFolderError(f"{path}: " + "; ".join(problems))
    names = sorted(found)
    digests = _hash_all(path, names)
    files = [{"path": name, "sha256": digests[name], "size_bytes": found[name]} for name in names]
    try:
        manifest = Manifest.model_validate_json(json.dumps({**fields, "files": files}))
    except ValidationError as error:
        raise ModelFolderError(f"{path}: {_describe(error)}") from None
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
    write_atomic(path / MANIFEST_NAME, text.encode() + b"\n")
    # A temporary file is its owner's alone; weights are read by whoever serves them.
    (path / MANIFEST_NAME).chmod(0o644)
    return open_model_folder(path)


def _survey(path: Path) -> tuple[dict[str, int], list[str]]:
    """Sizes of the admissible files below ``path`` by name, and what is wrong with others."""
    found: dict[str, int] = {}
    problems: list[str] = []
    for folder, subfolders, files in os.walk(path, followlinks=False):
        for name in sorted([*subfolders, *files]):
            entry = Path(folder) / name
            relative = entry.relative_to(path).as_posix()
            info = entry.lstat()
            if stat.S_ISLNK(info.st_mode):
                problems.append(f"{relative}: is a symbolic link; put the file itself there")
            elif stat.S_ISDIR(info.st_mode):
                continue
            elif not stat.S_ISREG(info.st_mode):
                problems.append(f"{relative}: is no regular file")
            elif relative == MANIFEST_NAME:
                continue
            elif entry.suffix not in ALLOWED_SUFFIXES:
                kinds = ", ".join(sorted(ALLOWED_SUFFIXES))
                problems.append(f"{relative}: is of a kind that is not accepted ({kinds} are)")
            else:
                found[relative] = info.st_size
    return found, problems


def _hash_all(path: Path, names: list[str]) -> dict[str, str]:
    with ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="hash") as pool:
        return dict(zip(names, pool.map(lambda name: _hash(path / name), names), strict=True))


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    # A link that was put there since the survey is not followed.
    handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _describe(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in problem["loc"])
        lines.append(f"{where}: {problem['msg']}" if where else problem["msg"])
    return "; ".join(lines)
