"""Reading the body of a create request: JSON or multipart/form-data, strictly."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import BodyPartReader, MultipartReader, StreamReader, web
from aiohttp.http_exceptions import BadHttpMessage
from reelmesh.v1 import video_pb2, video_service_pb2

from gateway.edge_http.fields import (
    FIELDS,
    CreateField,
    Kind,
    OutsideField,
    WrongValue,
    parse_value,
    printable,
    unknown_field,
)
from gateway.errors import FieldViolation, InvalidRequest, PayloadTooLarge

ACCEPTED = ("application/json", "multipart/form-data")
# Form fields are bounded by the body; this bounds the work per byte.
MAX_PARTS = 64


class MalformedBody(InvalidRequest):
    """The body is not what its content type says."""

    code = "malformed_body"

    def __init__(self, message: str) -> None:
        super().__init__((FieldViolation("body", message),))


class CreateRequest:
    """A create request as the application takes it."""

    def __init__(self, fields: dict[str, Any], *, from_text: bool) -> None:
        """Turns fields into messages.

        Raises:
            InvalidRequest: Names every field that is unknown or of the wrong type.
        """
        self.spec = video_pb2.VideoSpec()
        self.options = video_service_pb2.CreateOptions()
        self.names = frozenset(fields)
        self.unfit: dict[str, int] = {}
        """By the spec's field, whole numbers that it cannot hold."""
        violations: list[FieldViolation] = []
        for name, value in fields.items():
            field = FIELDS.get(name)
            if field is None:
                violations.append(unknown_field(name, first=not violations))
                continue
            if value is None:
                # OpenAI's clients write null for what is left to the default.
                continue
            try:
                self._set(field, parse_value(field, value, from_text=from_text))
            except OutsideField as error:
                self._set_outside(field, error.value)
            except WrongValue as error:
                violations.append(FieldViolation(name, str(error), error.nearest))
        if fields.get("size") is not None and fields.get("resolution") is not None:
            violations.append(FieldViolation("size", "means the same as resolution; send one"))
        if violations:
            raise InvalidRequest(tuple(violations))

    def _set(self, field: CreateField, value: Any) -> None:
        setattr(self.options if field.option else self.spec, field.target, value)

    def _set_outside(self, field: CreateField, value: float) -> None:
        """Keeps it, for the application to say which of the model's rules it breaks."""
        if field.kind is Kind.WHOLE:
            self.unfit[field.target] = int(value)
        else:
            # A double holds what is not finite, too.
            self._set(field, value)

    def in_clients_words(self, error: InvalidRequest) -> InvalidRequest:
        """The same error with the field names that this client wrote."""
        if type(error) is not InvalidRequest:
            return error
        names = {"steps": "num_inference_steps"}
        if "size" in self.names:
            names["resolution"] = "size"
        renamed = tuple(
            FieldViolation(names.get(v.field, v.field), v.message, v.nearest)
            for v in error.violations
        )
        return InvalidRequest(renamed)


async def read_create_request(request: web.Request, *, timeout_s: float) -> CreateRequest:
    """Reads and parses the body.

    Args:
        request: Its body must not have been read; the application's size limit holds.
        timeout_s: Seconds for the whole body to arrive.

    Raises:
        InvalidRequest: The body or a field of it is malformed.
        PayloadTooLarge: It is over the limit.
        web.HTTPException: 415 for another content type, 408 when it arrives too slowly.
    """
    media_type = check_content_type(request, ACCEPTED)
    body = await _read_body(request, timeout_s=timeout_s)
    if media_type == "application/json":
        return CreateRequest(parse_json(body), from_text=False)
    return CreateRequest(await _parse_form(request, body), from_text=True)


def check_content_type(request: web.Request, accepted: tuple[str, ...]) -> str:
    """The body's media type; raises 415 where it is none of these, or is encoded."""
    media_type = request.content_type if "Content-Type" in request.headers else ""
    if media_type not in accepted:
        raise web.HTTPUnsupportedMediaType(
            text=f"send Content-Type: {' or '.join(accepted)}",
            headers={"Accept-Post": ", ".join(accepted)},
        )
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise web.HTTPUnsupportedMediaType(
            text="send the body without Content-Encoding", headers={"Accept-Encoding": "identity"}
        )
    return media_type


async def _read_body(request: web.Request, *, timeout_s: float) -> bytes:
    try:
        async with asyncio.timeout(timeout_s):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise PayloadTooLarge(f"the body is over the limit: {error.text}") from None
    except TimeoutError:
        raise web.HTTPRequestTimeout(
            text=f"the body did not arrive within {timeout_s:g} s"
        ) from None


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object with each name once.

    NaN and Infinity, which JSON does not have, are read all the same, so that the field
    that holds one can be named.

    Raises:
        InvalidRequest: It is anything else.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedBody(f"is not UTF-8: the byte at {error.start} is wrong") from None
    try:
        parsed = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise MalformedBody(
            f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise MalformedBody("is nested too deep; it should be one flat object") from None
    except ValueError:
        raise MalformedBody("holds a number of too many digits") from None
    if not isinstance(parsed, dict):
        raise MalformedBody("must be a JSON object")
    return parsed


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidRequest((FieldViolation(printable(name[:64]), "is given twice"),))
        found[name] = value
    return found


async def _parse_form(request: web.Request, body: bytes) -> dict[str, Any]:
    # Parsed from memory: what goes wrong below is the form's fault, never the network's.
    stream = StreamReader(request.protocol, limit=len(body) + 1)
    stream.feed_data(body)
    stream.feed_eof()
    fields: dict[str, Any] = {}
    try:
        reader = MultipartReader(request.headers, stream)
        while (part := await reader.next()) is not None:
            name, text = await _read_part(part)
            if name in fields:
                raise InvalidRequest((FieldViolation(printable(name[:64]), "is given twice"),))
            fields[name] = text
            if len(fields) > MAX_PARTS:
                raise MalformedBody(f"has more than {MAX_PARTS} parts")
    except (ValueError, RuntimeError, AssertionError, LookupError, BadHttpMessage):
        # aiohttp's reader says "malformed" in all these ways.
        raise MalformedBody("is not multipart/form-data as RFC 7578 has it") from None
    return fields


async def _read_part(part: BodyPartReader | MultipartReader) -> tuple[str, str]:
    if isinstance(part, MultipartReader) or part.name is None:
        raise MalformedBody("has a part without a field name")
    if part.filename is not None:
        raise InvalidRequest((_file_violation(part.name),))
    data = bytes(await part.read(decode=True))
    try:
        return part.name, data.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"is not UTF-8: the byte at {error.start} is wrong"
        raise InvalidRequest((FieldViolation(printable(part.name[:64]), message),)) from None


def _file_violation(name: str) -> FieldViolation:
    if name in FIELDS:
        return FieldViolation(name, "must be a plain form field, not a file")
    return unknown_field(name)
