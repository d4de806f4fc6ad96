"""A batch as a form: a file of JSON lines or CSV, and what is said beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import BodyPartReader, MultipartReader, StreamReader, web
from aiohttp.http_exceptions import BadHttpMessage

from gateway.edge_http.body import MalformedBody, parse_json
from gateway.edge_http.fields import printable
from gateway.errors import FieldViolation, InvalidRequest

MAX_FORM_FIELDS: Final = 32
# Of a form, beside the file.
MAX_FORM_TEXT_BYTES: Final = 64 * 1024


@dataclass
class Rows:
    """The rows as they were read: where each stands and what it says, or what is wrong."""

    name: str
    found: Iterator[tuple[str, Mapping[str, Any] | FieldViolation]]
    from_text: bool = False


async def read_form(request: web.Request, body: bytes) -> tuple[dict[str, Any], Rows | None]:
    """A form's fields, and the rows of its file.

    Raises:
        InvalidRequest: It is not what it says.
    """
    stream = StreamReader(request.protocol, limit=len(body) + 1)
    stream.feed_data(body)
    stream.feed_eof()
    fields: dict[str, Any] = {}
    rows: Rows | None = None
    try:
        reader = MultipartReader(request.headers, stream)
        while (part := await reader.next()) is not None:
            if isinstance(part, MultipartReader) or part.name is None:
                raise MalformedBody("has a part without a field name")
            if part.name in fields or (part.name == "file" and rows is not None):
                raise InvalidRequest((FieldViolation(printable(part.name[:64]), "is given twice"),))
            text = _text(part.name, bytes(await part.read(decode=True)))
            if part.name == "file":
                rows = _of_file(part, text)
            else:
                fields[part.name] = _form_value(part.name, text)
            if len(fields) > MAX_FORM_FIELDS:
                raise MalformedBody(f"has more than {MAX_FORM_FIELDS} fields")
    except (ValueError, RuntimeError, AssertionError, LookupError, BadHttpMessage):
        raise MalformedBody("is not multipart/form-data as RFC 7578 has it") from None
    return fields, rows


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        rule = f"is not UTF-8: the byte at {error.start} is wrong"
        raise InvalidRequest((FieldViolation(printable(name[:64]), rule),)) from None


def _form_value(name: str, text: str) -> Any:
    """A form has texts alone: these two hold JSON, and one a number."""
    if len(text) > MAX_FORM_TEXT_BYTES:
        raise InvalidRequest((FieldViolation(printable(name[:64]), "is too long"),))
    if name in ("defaults", "metadata"):
        return parse_json(text.encode())
    if name == "max_in_flight" and text.isascii() and text.isdigit():
        return int(text[:9])
    return text


def _of_file(part: BodyPartReader, text: str) -> Rows:
    kind = part.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    name = (part.filename or "").lower()
    if name.endswith(".csv") or kind == "text/csv":
        return Rows("file", _csv_rows(text), from_text=True)
    return Rows("file", _json_lines(text))


def _json_lines(text: str) -> Iterator[tuple[str, Mapping[str, Any] | FieldViolation]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        place = f"file line {number}"
        try:
            yield place, parse_json(line.encode("utf-8", "surrogatepass"))
        except InvalidRequest as error:
            first = error.violations[0]
            yield place, FieldViolation("row", first.message)


def _csv_rows(text: str) -> Iterator[tuple[str, Mapping[str, Any] | FieldViolation]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not any(header) or len(set(header)) != len(header):
            yield "file line 1", FieldViolation("header", "must name each column, and once")
            return
        before = reader.line_num
        for cells in reader:
            # A quoted cell may span lines: the row is named by its first.
            place, before = f"file line {before + 1}", reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(header):
                rule = f"has {len(cells)} cells for {len(header)} columns"
                yield place, FieldViolation("row", rule)
                continue
            # An empty cell says nothing.
            yield place, {n: c.strip() for n, c in zip(header, cells, strict=False) if c.strip()}
    except csv.Error as error:
        yield f"file line {reader.line_num}", FieldViolation("row", f"is no CSV: {error}")
