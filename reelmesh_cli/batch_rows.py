"""The prompts of a batch: read from a file, every row checked before anything is made."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reelmesh_cli.errors import UsageError
from wan_t2v_sdk import VideoSettings

MAX_SHOWN_PROBLEMS = 20
Value = str | int | float


def _whole(text: str) -> int:
    return int(text)


# Column of the file: (setting, how its text is read, what it must be).
_COLUMNS: dict[str, tuple[str, Callable[[str], Value], str]] = {
    "negative_prompt": ("negative_prompt", str, "text"),
    "model": ("model", str, "text"),
    "resolution": ("resolution", str, "text"),
    "width": ("width", _whole, "a whole number"),
    "height": ("height", _whole, "a whole number"),
    "num_frames": ("num_frames", _whole, "a whole number"),
    "seconds": ("length_sec", float, "a number"),
    "length_sec": ("length_sec", float, "a number"),
    "fps": ("fps", float, "a number"),
    "steps": ("steps", _whole, "a whole number"),
    "guidance_scale": ("guidance_scale", float, "a number"),
    "flow_shift": ("flow_shift", float, "a number"),
    "seed": ("seed", _whole, "a whole number"),
    "quality": ("quality", str, "text"),
}


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One video to make."""

    line: int
    """Line of the file, from 1."""
    prompt: str
    settings: VideoSettings
    digest: str
    """Names the row by its content: prompt, settings, and which of several equal ones."""

    @property
    def file_name(self) -> str:
        """Name of its MP4: sorts as the file does, and no other content has the same."""
        return f"{self.line:05d}-{self.digest[:10]}.mp4"


def read_rows(path: Path) -> list[BatchRow]:
    """The rows of a ``.csv`` (with a header) or of a text file (one prompt a line).

    In a text file, empty lines and those that begin with ``#`` are skipped. In a CSV they are
    not: a prompt may begin as it likes.

    Raises:
        UsageError: Names each bad row by line and column; nothing of the file is used.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{path}: line {line} is not UTF-8", hint="save the file as UTF-8"
        ) from None
    parsed = _csv_rows(path, text) if path.suffix.lower() == ".csv" else _text_rows(text)
    seen: Counter[str] = Counter()
    rows = []
    for line, prompt, settings in parsed:
        content = _digest(prompt, settings, 0)
        rows.append(BatchRow(line, prompt, settings, _digest(prompt, settings, seen[content])))
        seen[content] += 1
    if not rows:
        raise UsageError(f"{path}: there is no prompt in it")
    return rows


def _text_rows(text: str) -> list[tuple[int, str, VideoSettings]]:
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
    return [(number, line, VideoSettings()) for number, line in lines if line and line[0] != "#"]


def _csv_rows(path: Path, text: str) -> list[tuple[int, str, VideoSettings]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    problems: list[str] = []
    rows: list[tuple[int, str, VideoSettings]] = []
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        _check_header(path, header)
        before = reader.line_num
        for cells in reader:
            # A quoted prompt may span lines: the row is named by its first.
            line, before = before + 1, reader.line_num
            if any(cell.strip() for cell in cells):
                prompt, settings = _row(line, header, cells, problems)
                rows.append((line, prompt, settings))
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.line_num}: is no CSV: {error}") from None
    if problems:
        shown = problems[:MAX_SHOWN_PROBLEMS]
        more = len(problems) - len(shown)
        listed = "\n  ".join([*shown, f"and {more} more"] if more else shown)
        raise UsageError(f"{path}: rows that cannot be used:\n  {listed}")
    return rows


def _check_header(path: Path, header: list[str]) -> None:
    if "prompt" not in header:
        raise UsageError(
            f"{path}: line 1: there is no column named prompt",
            hint="a CSV begins with a header such as: prompt,resolution,seconds,steps,seed",
        )
    for name in header:
        if name != "prompt" and name not in _COLUMNS:
            known = ["prompt", *_COLUMNS]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(known)}"
            raise UsageError(f"{path}: line 1: the column {name!r} is unknown", hint=hint)
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if {"seconds", "length_sec"} <= set(header):
        repeated = ["seconds", "length_sec"]
    if repeated:
        raise UsageError(f"{path}: line 1: columns mean the same: {', '.join(repeated)}")


def _row(
    line: int, header: list[str], cells: list[str], problems: list[str]
) -> tuple[str, VideoSettings]:
    if len(cells) > len(header):
        problems.append(f"line {line}: {len(cells)} cells for {len(header)} columns")
    prompt, values = "", {}
    for name, cell in zip(header, cells, strict=False):
        text = cell.strip()
        if name == "prompt":
            prompt = text
        elif text:
            setting, read, kind = _COLUMNS[name]
            try:
                values[setting] = read(text)
            except ValueError:
                problems.append(f"line {line}, column {name}: {text!r} is not {kind}")
    if not prompt:
        problems.append(f"line {line}, column prompt: is empty")
    # The table above names settings of VideoSettings alone.
    return prompt, VideoSettings(**values)  # type: ignore[typeddict-item]


def _digest(prompt: str, settings: VideoSettings, occurrence: int) -> str:
    content = json.dumps([prompt, settings, occurrence], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
