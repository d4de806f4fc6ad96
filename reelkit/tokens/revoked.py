"""Which tokens hold no more, though their signature and times do."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What a token is revoked by. Its signature vouches for them."""

    issuer: str
    subject: str
    jti: str
    """Empty where it has none."""
    issued_s: float
    """Seconds since 1970; minus infinity where it does not say."""


class Moment(Protocol):
    """A time, as protobuf has it."""

    def ToNanoseconds(self) -> int:  # noqa: N802 - protobuf names it
        """Since 1970."""
        ...


class Revocation(Protocol):
    """One token by its id, or a subject's tokens by their time."""

    @property
    def issuer(self) -> str:
        """Whose tokens."""
        ...

    @property
    def jti(self) -> str:
        """Empty where it is of a subject."""
        ...

    @property
    def subject(self) -> str:
        """Empty where it is of one token."""
        ...

    @property
    def issued_before(self) -> Moment:
        """Of a subject's tokens, those that were issued before."""
        ...


class RevokedTokens:
    """The list as it is now; replaced as a whole, asked for each call."""

    def __init__(self) -> None:
        self._ids: frozenset[tuple[str, str]] = frozenset()
        self._subjects: dict[tuple[str, str], float] = {}

    def __len__(self) -> int:
        return len(self._ids) + len(self._subjects)

    def replace(self, revocations: Iterable[Revocation]) -> None:
        """Takes the whole list."""
        ids: set[tuple[str, str]] = set()
        subjects: dict[tuple[str, str], float] = {}
        for each in revocations:
            if each.jti:
                ids.add((each.issuer, each.jti))
            elif each.subject:
                key = (each.issuer, each.subject)
                before_s = each.issued_before.ToNanoseconds() / 1e9
                subjects[key] = max(subjects.get(key, -math.inf), before_s)
        self._ids, self._subjects = frozenset(ids), subjects

    def holds(self, token: TokenFacts) -> bool:
        """Whether the token is on it."""
        if token.jti and (token.issuer, token.jti) in self._ids:
            return True
        before_s = self._subjects.get((token.issuer, token.subject))
        return before_s is not None and token.issued_s < before_s
