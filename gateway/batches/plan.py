"""A submission against the template's and the model's rules. Pure.

Everything that is wrong in any row is told, each with the row, the field, the rule and the
nearest valid values; nothing of a submission is used unless all of it is right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from reelmesh.v1 import batch_record_service_pb2 as pb
from reelmesh.v1 import job_service_pb2, tenant_pb2, video_pb2

from gateway.application import Caller
from gateway.batches.application import Row, Submission
from gateway.batches.template import BadTemplate, Template, check_values, parse
from gateway.errors import FieldViolation, InvalidRequest
from gateway.jobs.records import check_size
from gateway.priority import check_priority
from gateway.validation.fields import MAX_KEY_CHARS, quoted
from gateway.validation.policy import resolve_within
from gateway.validation.request import Catalog

MAX_TOLD: Final = 100
MAX_METADATA: Final = 16
MAX_METADATA_KEY_CHARS: Final = 64
MAX_METADATA_VALUE_CHARS: Final = 512
# Of the record's 16 KiB; the rest is progress.
MAX_METADATA_BYTES: Final = 4_096
MAX_IN_FLIGHT: Final = 64

_CUSTOM_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY: Final = re.compile(rf"[!-~]{{1,{MAX_KEY_CHARS}}}")
# As long as any item's key and digest are.
_KEY_ROOM: Final = "k" * 96
_DIGEST_ROOM: Final = "d" * 64


@dataclass
class Told:
    """What is wrong so far, the first of it by name."""

    violations: list[FieldViolation] = field(default_factory=list)
    more: int = 0

    def add(self, found: Sequence[FieldViolation], place: str = "") -> None:
        """Notes some, of a row where one is named."""
        for each in found:
            if len(self.violations) >= MAX_TOLD:
                self.more += 1
                continue
            name = f"{place}.{each.field}" if place else each.field
            self.violations.append(FieldViolation(name, each.message, each.nearest))

    def check(self, rows_name: str) -> None:
        """Raises InvalidRequest where anything is wrong."""
        if not self.violations:
            return
        if self.more:
            rule = f"hold {self.more} more mistakes; the first {MAX_TOLD} are told"
            self.violations.append(FieldViolation(rows_name, rule))
        raise InvalidRequest(tuple(self.violations))


class Plan:
    """The items of a submission, made row by row so that its maker can let others in between.

    Args:
        submission: What is asked for.
        caller: Whose records the items will be.
        catalog: What is served.
        policy: What the tenant may do.
        check_webhook: What is wrong with a URL to be told at.
    """

    def __init__(
        self,
        submission: Submission,
        caller: Caller,
        catalog: Catalog,
        policy: tenant_pb2.TenantPolicy,
        check_webhook: Callable[[str], Sequence[FieldViolation]],
    ) -> None:
        self._policy = policy
        self._submission = submission
        self._caller = caller
        self._catalog = catalog
        self._told = Told()
        self._custom_ids: dict[str, str] = {}
        self._template: Template | None = None
        self.items: list[pb.BatchInput] = []
        self._told.add(submission.violations)
        self._told.add(check_head(submission))
        self._told.add(check_priority(submission.priority, policy))
        self._told.add(check_webhook(submission.webhook_url))
        if submission.template:
            try:
                self._template = parse(submission.template)
            except BadTemplate as error:
                self._told.add([FieldViolation("template", str(error))])

    def add(self, index: int, row: Row) -> None:
        """Checks one row and makes its item."""
        place = row.place or f"{self._submission.rows_name}[{index}]"
        found = list(row.violations)
        found.extend(self._check_custom_id(row.custom_id, place))
        if self._submission.template:
            found.extend(self._fill_in(row))
        elif row.variables:
            name = next(iter(row.variables))
            found.append(FieldViolation(name, "is a variable, and there is no template"))
        if not found:
            found.extend(self._check_spec(row))
        self._told.add(found, place)
        if not self._told.violations:
            self.items.append(pb.BatchInput(spec=row.spec, custom_id=row.custom_id))

    def check(self) -> None:
        """Raises InvalidRequest where anything of it is wrong."""
        self._told.check(self._submission.rows_name)

    def _check_custom_id(self, custom_id: str, place: str) -> list[FieldViolation]:
        if not custom_id:
            return []
        if not _CUSTOM_ID.fullmatch(custom_id):
            rule = f"must be 1 to 64 letters, digits, '.', '_' or '-', not {quoted(custom_id)}"
            return [FieldViolation("custom_id", rule)]
        earlier = self._custom_ids.setdefault(custom_id, place)
        if earlier != place:
            return [FieldViolation("custom_id", f"is that of {earlier} too; each must differ")]
        return []

    def _fill_in(self, row: Row) -> list[FieldViolation]:
        """Makes the row's prompt of the template; answers what is wrong with its variables."""
        if self._template is None:
            return []
        found = check_values(self._template.names, row.variables)
        if row.spec.prompt:
            found.append(FieldViolation("prompt", "excludes the template; give one of the two"))
        if not found:
            row.spec.prompt = self._template.render(row.variables)
        return found

    def _check_spec(self, row: Row) -> Sequence[FieldViolation]:
        try:
            resolved = resolve_within(
                self._policy, row.spec, self._catalog, drawn_seed=2**31 - 1, unfit=row.unfit
            )
            check_size(
                job_service_pb2.JobRecord(
                    video=video_pb2.Video(id=_KEY_ROOM, batch_id=_KEY_ROOM, spec=resolved),
                    tenant=self._caller.tenant,
                    subject=self._caller.subject,
                    idempotency_key=_KEY_ROOM,
                    request_digest=_DIGEST_ROOM,
                    owner_gateway=_DIGEST_ROOM,
                )
            )
        except InvalidRequest as error:
            return row.in_clients_words(error).violations
        return ()


def check_head(submission: Submission) -> list[FieldViolation]:
    """What is wrong with a submission outside its rows."""
    found = []
    if not submission.rows:
        found.append(FieldViolation(submission.rows_name, "must hold at least one"))
    key = submission.idempotency_key
    if key and not _KEY.fullmatch(key):
        rule = f"must be 1 to {MAX_KEY_CHARS} visible ASCII characters without spaces"
        found.append(FieldViolation("idempotency_key", rule))
    if not 0 <= submission.max_in_flight <= MAX_IN_FLIGHT:
        rule = f"must be 1 to {MAX_IN_FLIGHT}, or left out, not {submission.max_in_flight}"
        nearest = str(min(max(submission.max_in_flight, 1), MAX_IN_FLIGHT))
        found.append(FieldViolation("max_in_flight", rule, (nearest,)))
    found.extend(check_metadata(submission.metadata))
    return found


def check_metadata(metadata: Mapping[str, str]) -> list[FieldViolation]:
    """What is wrong with a client's own words."""
    found = []
    if len(metadata) > MAX_METADATA:
        rule = f"must hold at most {MAX_METADATA} pairs, not {len(metadata)}"
        found.append(FieldViolation("metadata", rule, (str(MAX_METADATA),)))
    for key, value in list(metadata.items())[:MAX_METADATA]:
        if not 1 <= len(key) <= MAX_METADATA_KEY_CHARS:
            rule = f"names must have 1 to {MAX_METADATA_KEY_CHARS} characters, not {len(key)}"
            found.append(FieldViolation("metadata", rule))
        if len(value) > MAX_METADATA_VALUE_CHARS:
            rule = f"must be at most {MAX_METADATA_VALUE_CHARS} characters, not {len(value)}"
            found.append(FieldViolation(f"metadata.{key[:64]}", rule))
    size = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items())
    if size > MAX_METADATA_BYTES and not found:
        rule = f"must be at most {MAX_METADATA_BYTES} bytes in UTF-8, not {size}"
        found.append(FieldViolation("metadata", rule))
    return found
