"""Reading a submission of a batch: JSON, or a form with a file of JSON lines or CSV.

A row says what the template names, and settings of a create request under their usual
names. What is neither is refused: a column that nothing uses is a mistake.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web
from reelmesh.v1 import tenant_pb2, video_pb2

from gateway.batches.application import Row, Submission
from gateway.batches.defaults import over, replaced
from gateway.batches.template import BadTemplate, parse
from gateway.edge_http.batch_form import Rows, read_form
from gateway.edge_http.body import CreateRequest, check_content_type, parse_json
from gateway.edge_http.fields import FIELDS, WrongValue, printable
from gateway.errors import FieldViolation, InvalidRequest, PayloadTooLarge
from gateway.priority import BY_NAME

FORM: Final = "multipart/form-data"
_ROWS_AT_ONCE: Final = 100
_SETTINGS: Final = frozenset(name for name, field in FIELDS.items() if not field.option)
_OWN: Final = ("template", "defaults", "model", "priority", "metadata", "webhook_url")
_KNOWN: Final = ("rows", "items", *_OWN, "max_in_flight")


@dataclass
class _Head:
    """What a submission says beside its rows."""

    defaults: CreateRequest
    template: str = ""
    names: frozenset[str] = frozenset()
    violations: list[FieldViolation] = field(default_factory=list)
    priority: tenant_pb2.Priority.ValueType = tenant_pb2.PRIORITY_UNSPECIFIED
    metadata: dict[str, str] = field(default_factory=dict)
    webhook_url: str = ""
    max_in_flight: int = 0


async def read_submission(
    request: web.Request, *, max_bytes: int, max_items: int, timeout_s: float
) -> Submission:
    """Reads and parses the body.

    Raises:
        InvalidRequest: The body is not what its content type says.
        PayloadTooLarge: It is over a limit.
        web.HTTPException: 415 for another content type, 408 when it arrives too slowly.
    """
    media_type = check_content_type(request, ("application/json", FORM))
    body = await _read_body(request, max_bytes=max_bytes, timeout_s=timeout_s)
    if media_type == FORM:
        fields, rows = await read_form(request, body)
        head = _head(fields)
        if rows is None:
            rule = "is missing: a part with JSON lines or CSV"
            raise InvalidRequest((FieldViolation("file", rule), *head.violations))
    else:
        head, rows = _of_json(parse_json(body))
    return Submission(
        rows=await _made(head, rows, max_items=max_items),
        template=head.template,
        rows_name=rows.name,
        priority=head.priority,
        metadata=head.metadata,
        webhook_url=head.webhook_url,
        max_in_flight=head.max_in_flight,
        violations=head.violations,
    )


async def _read_body(request: web.Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """The body under a limit of its own: a batch is larger than what other routes take."""
    too_large = PayloadTooLarge(f"the body is over the limit of {max_bytes} bytes")
    if (request.content_length or 0) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for data in request.content.iter_any():
                body += data
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError:
        raise web.HTTPRequestTimeout(
            text=f"the body did not arrive within {timeout_s:g} s"
        ) from None
    return bytes(body)


# --- JSON ---


def _of_json(fields: dict[str, Any]) -> tuple[_Head, Rows]:
    head = _head(fields)
    lists = [name for name in ("rows", "items") if fields.get(name) is not None]
    if len(lists) != 1:
        rule = "is missing: send rows or items" if not lists else "excludes rows; send one of them"
        raise InvalidRequest(
            (FieldViolation(lists[-1] if lists else "rows", rule), *head.violations)
        )
    (name,) = lists
    if name == "items" and head.template:
        head.violations.append(FieldViolation("items", "excludes a template; call them rows"))
    listed = fields[name]
    if not isinstance(listed, list):
        raise InvalidRequest((FieldViolation(name, "must be a list of objects"), *head.violations))
    return head, Rows(name, ((f"{name}[{at}]", _object(row)) for at, row in enumerate(listed)))


def _object(row: Any) -> Mapping[str, Any] | FieldViolation:
    return row if isinstance(row, dict) else FieldViolation("row", "must be an object")


# --- what both hold ---


def _head(fields: dict[str, Any]) -> _Head:
    violations: list[FieldViolation] = []
    for name in fields:
        if name not in _KNOWN and name != "file":
            near = tuple(difflib.get_close_matches(name[:64], _KNOWN, n=2))
            hint = "" if near else "; settings of all rows belong into defaults"
            rule = f"is not a field of this request{hint}"
            violations.append(FieldViolation(printable(name[:64]), rule, near))
    head = _Head(_defaults(fields, violations), violations=violations)
    head.template = _own_text(fields, "template", violations)
    if head.template:
        try:
            head.names = frozenset(parse(head.template).names)
        except BadTemplate:
            # The application says what is wrong with it.
            head.names = frozenset()
        for name in sorted(head.names & ({*FIELDS, "custom_id"})):
            rule = f"must not name {name}, which is a field of a row; call it otherwise"
            violations.append(FieldViolation("template", rule))
    head.webhook_url = _own_text(fields, "webhook_url", violations)
    head.priority = _priority(fields.get("priority"), violations)
    head.metadata = _metadata(fields.get("metadata"), violations)
    wanted = fields.get("max_in_flight")
    if wanted is not None:
        if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted < 2**31:
            rule = "must be a whole number, 1 or more"
            violations.append(FieldViolation("max_in_flight", rule, ("1",)))
        else:
            head.max_in_flight = wanted
    return head


def _defaults(fields: dict[str, Any], violations: list[FieldViolation]) -> CreateRequest:
    given = fields.get("defaults")
    if given is None:
        given = {}
    if not isinstance(given, dict):
        violations.append(FieldViolation("defaults", "must be an object"))
        given = {}
    given = dict(given)
    if fields.get("model") is not None:
        if "model" in given:
            violations.append(FieldViolation("model", "is in defaults too; send it once"))
        given["model"] = fields["model"]
    for name in [name for name in given if name in FIELDS and FIELDS[name].option]:
        violations.append(FieldViolation(f"defaults.{name}", "is no setting of a video"))
        del given[name]
    if given.get("prompt") is not None:
        violations.append(FieldViolation("defaults.prompt", "belongs into the rows, or a template"))
    try:
        return CreateRequest(given, from_text=False)
    except InvalidRequest as error:
        violations.extend(_under("defaults", error))
        return CreateRequest({}, from_text=False)


def _under(place: str, error: InvalidRequest) -> list[FieldViolation]:
    return [FieldViolation(f"{place}.{v.field}", v.message, v.nearest) for v in error.violations]


def _own_text(fields: dict[str, Any], name: str, violations: list[FieldViolation]) -> str:
    text = fields.get(name)
    if text is None:
        return ""
    if not isinstance(text, str) or not text:
        violations.append(FieldViolation(name, "must be a string that says something"))
        return ""
    if broken(text):
        violations.append(FieldViolation(name, "must be valid Unicode"))
        return ""
    return text


def broken(text: str) -> bool:
    """Whether no UTF-8 text is it."""
    # JSON can spell half of a surrogate pair; no UTF-8 text holds one.
    return any("\ud800" <= char <= "\udfff" for char in text)


def _priority(name: Any, violations: list[FieldViolation]) -> tenant_pb2.Priority.ValueType:
    if name is None:
        return tenant_pb2.PRIORITY_UNSPECIFIED
    found = BY_NAME.get(name) if isinstance(name, str) else None
    if found is None:
        violations.append(FieldViolation("priority", "must be batch or interactive", ("batch",)))
        return tenant_pb2.PRIORITY_UNSPECIFIED
    return found


def _metadata(given: Any, violations: list[FieldViolation]) -> dict[str, str]:
    if given is None:
        return {}
    texts = isinstance(given, dict) and all(isinstance(v, str) for v in given.values())
    if not texts or any(broken(text) for pair in given.items() for text in pair):
        violations.append(FieldViolation("metadata", "must be an object of strings"))
        return {}
    return dict(given)


# --- rows ---


async def _made(head: _Head, rows: Rows, *, max_items: int) -> list[Row]:
    made: list[Row] = []
    for place, said in rows.found:
        if len(made) >= max_items:
            raise PayloadTooLarge(f"{rows.name} holds more than the {max_items} that make a batch")
        made.append(_row(head, place, said, from_text=rows.from_text))
        if len(made) % _ROWS_AT_ONCE == 0:
            # Others have the loop in between.
            await asyncio.sleep(0)
    return made


def _row(
    head: _Head, place: str, said: Mapping[str, Any] | FieldViolation, *, from_text: bool
) -> Row:
    row = Row(spec=video_pb2.VideoSpec(), place=place)
    if isinstance(said, FieldViolation):
        row.violations = [said]
        return row
    violations: list[FieldViolation] = []
    settings: dict[str, Any] = {}
    variables: dict[str, str] = {}
    for name, value in said.items():
        try:
            if name == "custom_id":
                row.custom_id = _word(value)
            elif name in head.names:
                variables[name] = _word(value)
            elif name in _SETTINGS:
                settings[name] = value
            else:
                violations.append(_unknown(name, head))
        except WrongValue as error:
            violations.append(FieldViolation(name, str(error)))
    row.variables = variables
    try:
        wish = CreateRequest(settings, from_text=from_text)
    except InvalidRequest as error:
        row.violations = [*violations, *error.violations]
        return row
    wish.names |= head.defaults.names
    row.in_clients_words = wish.in_clients_words
    row.spec = over(head.defaults.spec, wish.spec, wish.unfit)
    gone = replaced(wish.spec, wish.unfit)
    kept = {name: n for name, n in head.defaults.unfit.items() if name not in gone}
    row.unfit = {**kept, **wish.unfit}
    row.violations = violations
    return row


def _word(value: Any) -> str:
    if isinstance(value, str):
        if broken(value):
            raise WrongValue("must be valid Unicode: it holds half of a surrogate pair")
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    raise WrongValue("must be a string or a number")


def _unknown(name: str, head: _Head) -> FieldViolation:
    known = ["custom_id", *sorted(head.names), *sorted(_SETTINGS)]
    shown = printable(name[:64])
    near = tuple(difflib.get_close_matches(name[:64], known, n=3))
    if name in FIELDS:
        return FieldViolation(shown, "is of the whole batch, or of single videos alone")
    named = "named by the template nor " if head.template else ""
    return FieldViolation(shown, f"is neither {named}a setting of a video nor custom_id", near)
