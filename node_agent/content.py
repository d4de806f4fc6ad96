"""Files kept by what they are: each once under its sha256, versions as folders of hard links.

::

    <cache_dir>/content/objects/ab/ab12…     a whole file, read only
    <cache_dir>/content/parts/ab12…          the beginning of one, gone on with by the next fetch
    <cache_dir>/content/versions/<name>-<version>-<digest>/
                                             a whole version with its manifest.json
    <cache_dir>/content/staging/             what is being put together or taken apart
    <cache_dir>/content/pins/<node id>       what an agent that lives must not lose

Several agents of a machine may share it: whatever is changed is changed under a lock file, a part
is locked by whoever fetches it, and a pin counts while its agent holds the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from node_agent.errors import WeightsError
from node_agent.manifest import MANIFEST_NAME
from node_agent.trust import TrustedVersion

_READ_BYTES: Final = 1024 * 1024
# Room left on the disk beside the weights.
_SPARE_BYTES: Final = 256 * 1024 * 1024
# What belongs to no version is kept this long: a fetch may go on with it.
_ABANDONED_S: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """A whole version on the disk."""

    folder: Path
    digest: str
    used_at_s: float


class Part:
    """The beginning of a file, which agents of a machine write one at a time.

    Whoever waits for others lets go of it meanwhile, or those that have what is missing could not
    add it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    @property
    def file(self) -> BinaryIO:
        """It, while it is held."""
        assert self._file is not None  # noqa: S101 - held() opened it
        return self._file

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Holds it while the block runs; False where another does."""
        if not self._lock():
            yield False
            return
        try:
            yield True
        finally:
            self.file.flush()
            fcntl.flock(self.file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Closes it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _lock(self) -> bool:
        if self._file is None:
            self._file = self.path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(self._file.fileno()).st_ino == self.path.stat().st_ino:
                return True
        # Whoever had it made it an object, or threw it away.
        self.close()
        return False


class ContentStore:
    """The files of one cache folder.

    Args:
        cache_dir: Made when something is kept.
        max_bytes: Bound on all that is kept; None: what the disk has.
    """

    def __init__(self, cache_dir: Path, *, max_bytes: int | None = None) -> None:
        self.root = cache_dir / "content"
        self._max_bytes = max_bytes
        self._objects = self.root / "objects"
        self._parts = self.root / "parts"
        self._versions = self.root / "versions"
        self._staging = self.root / "staging"
        self.pins = self.root / "pins"

    def make_folders(self) -> None:
        """Makes what the others rely on."""
        for folder in (self._objects, self._parts, self._versions, self._staging, self.pins):
            folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the store against other processes; for moments, not for fetches."""
        with (self.root / ".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    # --- files ---

    def path_of(self, sha256: str) -> Path:
        """Where a whole file lies, or would."""
        return self._objects / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        """Whether a file is here whole."""
        return self.path_of(sha256).is_file()

    def is_sound(self, sha256: str) -> bool:
        """Whether a file is here and still what its name says; one that is not is removed."""
        path = self.path_of(sha256)
        try:
            with path.open("rb") as file:
                sound = hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except FileNotFoundError:
            return False
        if not sound:
            path.unlink(missing_ok=True)
        return sound

    def part(self, sha256: str) -> Part:
        """The beginning of a file, to be gone on with."""
        return Part(self._parts / sha256)

    def keep(self, sha256: str, part: Part) -> None:
        """Makes a part that is held and was checked the file."""
        part.file.flush()
        # After a crash it is whole, or not there.
        os.fsync(part.file.fileno())
        os.fchmod(part.file.fileno(), 0o444)
        target = self.path_of(sha256)
        target.parent.mkdir(exist_ok=True)
        part.path.replace(target)

    # --- versions ---

    def find(self, digest: str) -> Path | None:
        """The folder of a whole version, by its manifest's sha256."""
        for kept in self.versions():
            if kept.digest == digest:
                return kept.folder
        return None

    def versions(self) -> list[KeptVersion]:
        """Every whole version, the longest unused first."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for folder in self._versions.iterdir():
                # A folder that is evicted at this moment is none.
                with contextlib.suppress(FileNotFoundError):
                    data = (folder / MANIFEST_NAME).read_bytes()
                    used_at_s = folder.stat().st_mtime
                    digest = hashlib.sha256(data).hexdigest()
                    found.append(KeptVersion(folder, digest, used_at_s))
        return sorted(found, key=lambda kept: kept.used_at_s)

    def use(self, digest: str) -> None:
        """Takes note that a version is used now: it is evicted later than others."""
        folder = self.find(digest)
        if folder is not None:
            os.utime(folder)

    def commit(self, version: TrustedVersion) -> Path:
        """Puts a version's folder together; each of its files must be here.

        Raises:
            FileNotFoundError: One is not any more.
        """
        name = f"{version.name}-{version.version}-{version.digest[:12]}"
        with self.locked():
            found = self.find(version.digest)
            if found is not None:
                return found
            staged = self._staging / f"{name}.new"
            shutil.rmtree(staged, ignore_errors=True)
            for entry in version.files:
                target = staged / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(self.path_of(entry.sha256), target)
            (staged / MANIFEST_NAME).write_bytes(version.data)
            return staged.rename(self._versions / name)

    # --- room ---

    def tidy(self) -> None:
        """Removes what was left of commits, and what for a day has belonged to nothing."""
        if not self.root.exists():
            return
        self.make_folders()
        with self.locked():
            for left in self._staging.iterdir():
                shutil.rmtree(left, ignore_errors=True)
            long_ago_s = time.time() - _ABANDONED_S
            for file in self._orphans(but=()):
                with contextlib.suppress(FileNotFoundError):
                    if file.stat().st_mtime < long_ago_s:
                        file.unlink()

    def make_room(self, needed_bytes: int, *, wanted: TrustedVersion) -> None:
        """Evicts what was longest unused, until ``needed_bytes`` more fit.

        What an agent has pinned stays, and so do files of ``wanted``.

        Raises:
            WeightsError: They do not fit; says what there is and what may be done.
        """
        files = {entry.sha256 for entry in wanted.files} | {wanted.digest}
        with self.locked():
            pinned = self._pinned() | {wanted.digest}
            evictable = [kept for kept in self.versions() if kept.digest not in pinned]
            while (missing_bytes := self._missing(needed_bytes)) > 0:
                orphan = next(self._orphans(but=files), None)
                if orphan is not None:
                    orphan.unlink(missing_ok=True)
                elif evictable:
                    self._evict(evictable.pop(0))
                else:
                    raise WeightsError(
                        f"{wanted.name}@{wanted.version}: {missing_bytes / 1e9:.2f} GB more are "
                        f"needed in {self.root}, and what is kept there is wanted; raise "
                        "registry.max_bytes, make room on the disk, or have fewer versions"
                    )

    def _missing(self, needed_bytes: int) -> int:
        missing = needed_bytes + _SPARE_BYTES - shutil.disk_usage(self.root).free
        if self._max_bytes is not None:
            missing = max(missing, self.kept_bytes() + needed_bytes - self._max_bytes)
        return missing

    def kept_bytes(self) -> int:
        """Bytes of all whole files and of the beginnings of others."""
        total = 0
        for file in self._files():
            with contextlib.suppress(FileNotFoundError):
                total += file.stat().st_size
        return total

    def _files(self) -> Iterator[Path]:
        yield from self._objects.glob("*/*")
        yield from self._parts.iterdir()

    def _orphans(self, *, but: Collection[str]) -> Iterator[Path]:
        """Files that no version has; those first that are parts."""
        for part in self._parts.iterdir():
            if part.name not in but and not _is_locked(part):
                yield part
        for file in self._objects.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                if file.name not in but and file.stat().st_nlink == 1:
                    yield file

    def _evict(self, kept: KeptVersion) -> None:
        gone = self._staging / f"{kept.folder.name}.gone"
        shutil.rmtree(gone, ignore_errors=True)
        kept.folder.rename(gone)
        shutil.rmtree(gone)

    def _pinned(self) -> set[str]:
        pinned: set[str] = set()
        for file in self.pins.iterdir():
            if _is_locked(file):
                pinned.update(file.read_text().split())
            else:
                # Its agent is gone.
                file.unlink(missing_ok=True)
        return pinned


class Pins:
    """What one agent must not lose, for as long as it lives.

    Args:
        store: Of which.
        node_id: Whose.
    """

    def __init__(self, store: ContentStore, *, node_id: str) -> None:
        self._store = store
        self._file = store.pins / node_id
        self._handle: BinaryIO | None = None

    def hold(self, digests: Collection[str]) -> None:
        """Holds these versions, and no others."""
        if self._handle is None:
            if not digests:
                return
            self._store.make_folders()
            with self._store.locked():
                self._handle = self._file.open("ab+")
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with self._store.locked():
            self._handle.truncate(0)
            self._handle.write("\n".join(sorted(digests)).encode())
            self._handle.flush()

    def close(self) -> None:
        """Lets go of all."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def _is_locked(file: Path) -> bool:
    try:
        with file.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
