"""Gets a version's files by their digests: from peers first, from the source where it must be.

Each file is gone on with where it stopped, by whoever has it; nobody's word is taken but the
digest's. A peer whose bytes were wrong is asked no more. The source is asked by the one node of
the region whose turn it is; the others wait for peers to have what they lack.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from node_agent.bandwidth import Throttle
from node_agent.content import ContentStore, Part
from node_agent.errors import WeightsError
from node_agent.fetch_peer import PeerAwayError, PeerBusyError, PeerLacksError, Peers
from node_agent.fetch_source import OtherFileError, Source
from node_agent.fetch_watch import StallWatch, awaited
from node_agent.manifest import MANIFEST_NAME, FileEntry
from node_agent.trust import TrustedVersion

_READ_BYTES: Final = 1024 * 1024
# Between two looks whether a peer has what is missing; it doubles up to the second.
_LOOK_FIRST_S: Final = 0.2
_LOOK_MAX_S: Final = 2.0
# As often a peer that broke off after few bytes is passed over before it is asked again.
_PASSED_OVER: Final = 5
# Whoever may go to the source waits so many looks for peers that are busy.
_BUSY_LOOKS: Final = 20


@dataclass
class Routes:
    """Where files may come from now; changed while a fetch goes on, by another thread."""

    peers: Sequence[str] = ()
    may_use_origin: bool = False
    avoided: set[str] = field(default_factory=set)
    """Peers whose bytes were wrong."""


@dataclass
class Tally:
    """How many bytes came from where; safe in any thread."""

    total_bytes: int
    on_change: Callable[[Tally], None]
    done_bytes: int = 0
    origin_bytes: int = 0
    peer_bytes: int = 0
    waiting: int = 0
    """Files that nobody has yet who may be asked."""
    _told: tuple[int, bool] = (0, False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, count: int, *, origin: int = 0, peer: int = 0, waiting: int = 0) -> None:
        """Adds bytes, negative for those that were useless, and files that wait."""
        with self._lock:
            self.done_bytes += count
            self.origin_bytes += origin
            self.peer_bytes += peer
            self.waiting += waiting
            told_bytes, was_idle = self._told
            news_bytes = abs(self.done_bytes - told_bytes)
            idle = self.waiting > 0
            if (
                news_bytes * 100 >= self.total_bytes
                or self.done_bytes == self.total_bytes
                or idle != was_idle
            ):
                self._told = (self.done_bytes, idle)
                self.on_change(self)


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """What gets a version.

    Args:
        store: Where to.
        sources: In the order in which they are asked.
        peers: How other nodes are asked.
        routes: Who may be asked.
        throttle: For all that comes.
        stall_s: Silence of a source that is borne.
        on_stall: Called then, from a thread; it should end the process.
        on_bad_peer: Told of a peer whose bytes were wrong.
        parallel: Files at once.
    """

    store: ContentStore
    sources: Sequence[Source]
    peers: Peers
    routes: Routes
    throttle: Throttle
    stall_s: float
    on_stall: Callable[[str], None]
    on_bad_peer: Callable[[str], None]
    parallel: int
    stop: threading.Event = field(default_factory=threading.Event)

    def get_all(self, version: TrustedVersion, tally: Tally) -> None:
        """Every file of a version, checked, into the store.

        Raises:
            WeightsError: One cannot be had; what came is kept for the next try.
        """
        # A file may be listed under several names; the manifest is one for those who ask us.
        files = {entry.sha256: entry for entry in version.files}
        missing = []
        for entry in files.values():
            if self.store.is_sound(entry.sha256):
                tally.add(entry.size_bytes)
            else:
                missing.append(entry)
        self.store.make_room(sum(entry.size_bytes for entry in missing), wanted=version)
        with ThreadPoolExecutor(self.parallel, thread_name_prefix="fetch") as pool:
            jobs = [pool.submit(self._get, entry, tally) for entry in missing]
            done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            # After a failure the others stop at their next block.
            self.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for job in done:
                job.result()

    def get_manifest(self, digest: str, size_bytes: int) -> bytes:
        """A manifest that lies beside the weights, by its digest.

        Raises:
            WeightsError: It cannot be had.
        """
        entry = FileEntry.model_construct(path=MANIFEST_NAME, sha256=digest, size_bytes=size_bytes)
        if not self.store.is_sound(digest):
            self._get(entry, Tally(size_bytes, lambda _tally: None))
        return self.store.path_of(digest).read_bytes()

    def _get(self, entry: FileEntry, tally: Tally) -> None:
        part = self.store.part(entry.sha256)
        try:
            _FileFetch(self, entry, part, tally).run()
        except OSError as error:
            raise WeightsError(
                f"{entry.path}: cannot be written to {self.store.root}: {error.strerror}"
            ) from None
        finally:
            # What could not be written cannot be on closing either.
            with contextlib.suppress(OSError):
                part.close()


class _FileFetch:
    """One file on its way."""

    def __init__(self, fetch: Fetch, entry: FileEntry, part: Part, tally: Tally) -> None:
        self._fetch = fetch
        self._entry = entry
        self._part = part
        self._tally = tally
        self._digest: Any = hashlib.sha256()
        # The file that the digest is of, and how much of it.
        self._file: BinaryIO | None = None
        self._size = 0
        # Whose bytes the part holds; None: an earlier fetch's.
        self._from: set[str | None] = set()
        self._passed_over: dict[str, int] = {}
        self._wrong_sources: set[str] = set()
        self._waiting = False
        # Whether the bytes of different places may no longer be put together.
        self._alone = False

    def run(self) -> None:
        """The file whole in the store.

        Raises:
            WeightsError: No source that may be asked has it.
        """
        looks, before = 0, 0
        try:
            while not self._step(looks):
                looks = looks + 1 if self._size == before else 0
                before = self._size
                self._wait(True)
                self._fetch.stop.wait(min(_LOOK_FIRST_S * 2 ** min(looks, 8), _LOOK_MAX_S))
        finally:
            self._wait(False)

    def _wait(self, waiting: bool) -> None:
        if waiting is not self._waiting:
            self._waiting = waiting
            self._tally.add(0, waiting=1 if waiting else -1)

    def _step(self, looks: int) -> bool:
        """Goes on as far as it goes now; whether the file is there."""
        with self._part.held() as held:
            if self._fetch.stop.is_set():
                raise WeightsError(f"{self._entry.path}: was stopped")
            if self._fetch.store.has(self._entry.sha256):
                # Another agent of this machine has fetched it meanwhile.
                self._tally.add(self._entry.size_bytes - self._size)
                if held:
                    self._part.path.unlink(missing_ok=True)
                return True
            if not held:
                return False
            self._take_up()
            while not self._complete():
                came, busy = self._ask_peers()
                if not came:
                    if not self._origins_turn(busy, looks):
                        return False
                    self._ask_sources()
            self._fetch.store.keep(self._entry.sha256, self._part)
            return True

    def _take_up(self) -> None:
        """Reads what an earlier fetch, or another agent, left."""
        file = self._part.file
        there = os.fstat(file.fileno()).st_size
        if file is self._file and there == self._size:
            return
        self._tally.add(there - self._size)
        self._file, self._size, self._digest = file, there, hashlib.sha256()
        self._from = {None} if there else set()
        file.seek(0)
        while block := file.read(_READ_BYTES):
            self._digest.update(block)

    def _complete(self) -> bool:
        """Whether all is there and right; what is wrong is thrown away and told of."""
        if self._size < self._entry.size_bytes:
            return False
        if self._size == self._entry.size_bytes:
            if self._digest.hexdigest() == self._entry.sha256:
                return True
            self._blame()
        self._begin_anew()
        return False

    def _blame(self) -> None:
        if len(self._from) != 1 or None in self._from:
            # Who of them it was shows when each is taken alone.
            self._alone = True
            return
        whose = str(next(iter(self._from)))
        if any(source.where == whose for source in self._fetch.sources):
            self._wrong_sources.add(whose)
        elif whose not in self._fetch.routes.avoided:
            self._fetch.routes.avoided.add(whose)
            self._fetch.on_bad_peer(whose)

    def _begin_anew(self) -> None:
        self._tally.add(-self._size)
        self._part.file.seek(0)
        self._part.file.truncate()
        self._digest, self._size, self._from = hashlib.sha256(), 0, set()

    def _begin_with(self, whose: str) -> int:
        """Where to go on by the next one that is asked."""
        if self._alone and self._from - {whose}:
            self._begin_anew()
        return self._size

    def _ask_peers(self) -> tuple[bool, bool]:
        """Whether bytes came, and whether a peer that has them had no time."""
        busy = False
        routes = self._fetch.routes
        for address in tuple(routes.peers):
            if address in routes.avoided or self._is_passed_over(address):
                continue
            before = self._begin_with(address)
            try:
                blocks = self._fetch.peers.read(address, self._entry.sha256, before)
                self._append(blocks, address, is_peer=True)
            except PeerLacksError:
                continue
            except PeerBusyError:
                busy = True
                continue
            except PeerAwayError:
                if self._size - before < _READ_BYTES:
                    self._passed_over[address] = _PASSED_OVER
            if self._size > before:
                return True, busy
        return False, busy

    def _is_passed_over(self, address: str) -> bool:
        left = self._passed_over.get(address, 0)
        if left:
            self._passed_over[address] = left - 1
        return left > 0

    def _origins_turn(self, busy: bool, looks: int) -> bool:
        return self._fetch.routes.may_use_origin and not (busy and looks < _BUSY_LOOKS)

    def _ask_sources(self) -> None:
        """Goes on by the first source that has it.

        Raises:
            WeightsError: None has; the first one's reason.
        """
        path, problems = self._entry.path, []
        for source in self._fetch.sources:
            if source.where in self._wrong_sources:
                problems.append(
                    WeightsError(
                        f"{source.where}/{path}: is not what was registered (its sha256 differs); "
                        "upload the file again"
                    )
                )
                continue
            before = self._begin_with(source.where)
            watch = StallWatch(self._fetch.stall_s, self._fetch.on_stall)
            blocks = source.read(path, before, self._entry.size_bytes)
            try:
                self._append(awaited(blocks, watch, source.where), source.where, is_peer=False)
            except OtherFileError as error:
                problems.append(error)
            except WeightsError as error:
                # Cut again and again, a large file still arrives.
                if self._size == before:
                    problems.append(error)
            if self._size > before:
                return
        raise problems[0] if problems else WeightsError(f"{path}: there is no source")

    def _append(self, blocks: Iterator[bytes], whose: str, *, is_peer: bool) -> None:
        file, size_bytes = self._part.file, self._entry.size_bytes
        for block in blocks:
            if self._fetch.stop.is_set():
                raise WeightsError(f"{self._entry.path}: was stopped")
            data = block[: size_bytes - self._size + 1]
            self._fetch.throttle.take(len(data))
            self._from.add(whose)
            self._wait(False)
            file.write(data)
            self._size += len(data)
            self._digest.update(data)
            count = len(data)
            self._tally.add(count, peer=count if is_peer else 0, origin=0 if is_peer else count)
            if self._size > size_bytes:
                # More than there may be: it is judged, and whoever sent it with it.
                self._blame_length(whose)
                return
            if self._size == size_bytes:
                return

    def _blame_length(self, whose: str) -> None:
        self._from = {whose}
        self._blame()
