"""``results.csv`` of a batch: a line for each row as it ends, readable after any crash."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from reelkit.files import write_atomic

RESULTS_FILE = "results.csv"
COMPLETED, FAILED = "completed", "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """What became of one row; the fields are the columns."""

    line: int
    prompt: str
    status: str
    """``completed`` or ``failed``."""
    file: str = ""
    """The MP4, relative to the folder."""
    code: str = ""
    message: str = ""
    video_id: str = ""
    region: str = ""
    node: str = ""
    model: str = ""
    width: str = ""
    height: str = ""
    num_frames: str = ""
    fps: str = ""
    seed: str = ""
    attempts: str = ""
    seconds_taken: str = ""
    sha256: str = ""
    digest: str = ""
    """Of the row's content; how a later run finds it again."""


_COLUMNS = [field.name for field in fields(RowResult)]


class ResultsFile:
    """The results of a batch in one folder.

    A row is appended by one write and synced, so a crash can tear the last line alone;
    a torn line is dropped when the file is opened again. At the end the file is
    rewritten, whole, in the order of the prompts.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / RESULTS_FILE
        self._rows: dict[str, RowResult] = {}

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._path

    def open(self, *, resume: bool) -> None:
        """Reads what an earlier run left, or begins anew, and writes the file whole.

        Raises:
            OSError: It cannot be read or written.
        """
        if resume and self._path.exists():
            self._rows = {row.digest: row for row in _parse(self._path.read_bytes())}
        self._write_whole(self._rows.values())

    def finished(self, digest: str) -> bool:
        """Whether the row is completed and its file lies there unchanged."""
        row = self._rows.get(digest)
        if row is None or row.status != COMPLETED or not row.sha256:
            return False
        try:
            with (self._folder / row.file).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == row.sha256
        except OSError:
            return False

    def add(self, row: RowResult) -> None:
        """Adds one line, durably."""
        self._rows[row.digest] = row
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, _format([row], header=False))
            os.fsync(handle)
        finally:
            os.close(handle)

    def close(self, order: Iterable[str]) -> None:
        """Rewrites the file with one line for each row, those of ``order`` first."""
        ordered = {digest: self._rows[digest] for digest in order if digest in self._rows}
        self._write_whole({**ordered, **self._rows}.values())

    def _write_whole(self, rows: Iterable[RowResult]) -> None:
        write_atomic(self._path, _format(rows, header=True))


def _format(rows: Iterable[RowResult], *, header: bool) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(_COLUMNS)
    for row in rows:
        # A line is a row, so that a torn end can be told from a whole one.
        writer.writerow(
            [str(getattr(row, name)).replace("\n", " ").replace("\r", " ") for name in _COLUMNS]
        )
    return text.getvalue().encode("utf-8", "replace")


def _parse(data: bytes) -> list[RowResult]:
    whole = data[: data.rfind(b"\n") + 1]
    reader = csv.DictReader(io.StringIO(whole.decode("utf-8", "replace"), newline=""))
    rows = []
    for cells in reader:
        known = {name: cells.get(name) or "" for name in _COLUMNS}
        line = known.pop("line")
        if known["digest"]:
            # Every field but line is text.
            rows.append(RowResult(line=int(line) if line.isdigit() else 0, **known))
    return rows
