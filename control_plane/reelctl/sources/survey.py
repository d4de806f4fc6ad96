"""Reads a source through: what is admissible in it, and the sha256 of each file of that."""

from __future__ import annotations

import fnmatch
import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from control_plane.reelctl.errors import CtlError
from control_plane.reelctl.sources import admissible
from control_plane.reelctl.sources.admissible import Verdict
from control_plane.reelctl.sources.document import File
from control_plane.reelctl.sources.origin import Origin, SourceFile

# Hashing releases the interpreter lock, and a store answers several at once.
_PARALLEL: Final = 4
_SHOWN: Final = 5

OnRead = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Selection:
    """The files to register, and those that are left out."""

    taken: tuple[SourceFile, ...]
    left_out: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Of what is taken."""
        return sum(file.size_bytes for file in self.taken)


def select(files: Sequence[SourceFile], *, exclude: Sequence[str] = ()) -> Selection:
    """Chooses by names alone.

    Raises:
        CtlError: There are pickles, code or strange paths, or no weights; each is named.
    """
    taken, left_out, problems = [], [], []
    for file in files:
        if any(fnmatch.fnmatchcase(file.path, pattern) for pattern in exclude):
            left_out.append(file.path)
            continue
        problem = admissible.path_problem(file.path)
        verdict, reason = admissible.judge(file.path)
        if problem or verdict is Verdict.REFUSED:
            problems.append(f"{file.path}: {problem or reason}")
        elif verdict is Verdict.TAKEN:
            taken.append(file)
        elif file.path != admissible.MANIFEST_NAME:
            left_out.append(file.path)
    if problems:
        raise _refusal(problems)
    if not any(file.path.endswith(".safetensors") for file in taken):
        raise CtlError("there is no .safetensors file", hint="is it the folder of a model?")
    return Selection(tuple(taken), tuple(left_out))


def check_heads(origin: Origin, files: Sequence[SourceFile]) -> None:
    """Makes sure that each file is what its name says, by its first bytes.

    Raises:
        CtlError: Names each that is not.
    """
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="head") as pool:
        found = pool.map(lambda file: (file.path, _head_problem(origin, file)), files)
        problems = [f"{path}: {problem}" for path, problem in found if problem]
    if problems:
        raise _refusal(problems)


def _head_problem(origin: Origin, file: SourceFile) -> str:
    if not file.size_bytes:
        return "is empty" if file.path.endswith(".safetensors") else ""
    head = origin.head(file.path, admissible.HEAD_BYTES)
    problem = admissible.start_problem(file.path, head)
    if problem or not file.path.endswith(".safetensors"):
        return problem
    length = admissible.header_length(head, file.size_bytes)
    if length is None:
        return "is no safetensors file, whatever its name says"
    header = origin.head(file.path, length, offset=admissible.HEAD_BYTES)
    return admissible.header_problem(header, file.size_bytes - admissible.HEAD_BYTES - length)


def hash_all(
    origin: Origin, files: Sequence[SourceFile], *, read_all: bool, on_read: OnRead
) -> list[File]:
    """The files with their digests, and their sizes as they were read.

    Args:
        origin: Where they are.
        files: Which.
        read_all: Also those whose digest the place itself vouches for.
        on_read: Told of bytes as they are read, from several threads.

    Raises:
        CtlError: One cannot be read.
    """
    stop = threading.Event()

    def hashed(file: SourceFile) -> File:
        if file.sha256 is not None and not read_all:
            on_read(file.size_bytes)
            return File(file.path, file.sha256, file.size_bytes)
        digest, size_bytes = hashlib.sha256(), 0
        for block in origin.blocks(file.path):
            if stop.is_set():
                break
            digest.update(block)
            size_bytes += len(block)
            on_read(len(block))
        return File(file.path, digest.hexdigest(), size_bytes)

    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="hash") as pool:
        try:
            return list(pool.map(hashed, files))
        except BaseException:
            # Ctrl-C, or one that cannot be read: the others need not be read to their ends.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def differences(wanted: Sequence[File], found: Sequence[File]) -> list[str]:
    """In which files the two differ, and how, a line each."""
    there = {file.path: file for file in found}
    told = []
    for file in wanted:
        other = there.pop(file.path, None)
        if other is None:
            told.append(f"{file.path}: is missing")
        elif other.size_bytes != file.size_bytes:
            told.append(f"{file.path}: has {other.size_bytes} bytes, not {file.size_bytes}")
        elif other.sha256 != file.sha256:
            told.append(f"{file.path}: its sha256 is {other.sha256[:12]}…, not {file.sha256[:12]}…")
    return told + [f"{path}: is not in the manifest" for path in there]


def _refusal(problems: Sequence[str]) -> CtlError:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return CtlError(
        "refused: " + "; ".join(problems[:_SHOWN]) + more,
        hint="weights are safetensors; leave out what does not belong to them with --exclude",
    )
