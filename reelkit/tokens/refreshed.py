"""An issuer's keys as they are now: read again while the process runs, from a file or a URL.

The last good keys are kept through anything: a source that is away, or that says
nonsense for a while, takes nobody's token away. A key that its issuer took out is gone at
the next reading.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import jwt
import structlog

from reelkit.clock import Clock
from reelkit.settings import ConfigError
from reelkit.tokens.errors import KeysAway
from reelkit.tokens.keys import parse_jwks

_log = structlog.get_logger("reelkit.tokens")

# A token that names an unknown key makes the source be asked at most this often: anybody
# can make such tokens.
COOLDOWN_S: Final = 30.0
# After a reading that failed, doubled up to the last.
_FIRST_RETRY_S: Final = 5.0
_MAX_RETRY_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a source said."""

    text: bytes | None
    """The key set; None: unchanged since the tag."""
    tag: str
    """Of this version: an ETag, or a file's time."""
    fresh_s: float
    """When it should be read again."""


class SourceAway(Exception):  # noqa: N818 - named for what happened
    """The source gave no key set; the message says why, for operators."""


Load = Callable[[str], Awaitable[Loaded]]
"""Reads the source, given the tag that is known; raises SourceAway."""


class RefreshedKeys:
    """A :class:`reelkit.tokens.keys.KeySource` that follows its source.

    Args:
        load: Reads the source, within a deadline of its own.
        source: Its name, for messages.
        clock: For the cooldown and the pauses.
        first: The key set that was read already, if it was.
    """

    def __init__(
        self, load: Load, *, source: str, clock: Clock, first: bytes | None = None
    ) -> None:
        self.generation = 0
        """Rises when a key was removed or replaced."""
        self._load = load
        self._source = source
        self._clock = clock
        self._keys: dict[str | None, jwt.PyJWK] | None = None
        self._members: dict[str, str] = {}
        self._tag = ""
        self._retry_s = _FIRST_RETRY_S
        self._failing = ""
        self._asked_s = float("-inf")
        self._reading = asyncio.Lock()
        if first is not None:
            self._take(first)

    async def find(self, kid: str | None) -> jwt.PyJWK | None:
        """The key of that id; without an id, the only key there is; else None.

        Raises:
            KeysAway: The source was never read, and cannot be now.
        """
        found = self._known(kid)
        if found is not None or self._cools():
            return found if self._keys is not None else self._away()
        async with self._reading:
            # Whoever waited for another's reading has its answer.
            if self._known(kid) is None and not self._cools():
                await self._read()
        return self._known(kid) if self._keys is not None else self._away()

    async def keep_fresh(self) -> None:
        """Reads the source whenever it is due; for ever."""
        while True:
            async with self._reading:
                due_s = await self._read()
            await self._clock.sleep(due_s)

    def _known(self, kid: str | None) -> jwt.PyJWK | None:
        keys = self._keys or {}
        if kid is None:
            return next(iter(keys.values())) if len(keys) == 1 else None
        return keys.get(kid)

    def _cools(self) -> bool:
        return self._clock.monotonic() - self._asked_s < COOLDOWN_S

    def _away(self) -> jwt.PyJWK | None:
        raise KeysAway("the keys of the token's issuer cannot be fetched now; try again")

    async def _read(self) -> float:
        """Reads once; answers when to read again."""
        try:
            try:
                loaded = await self._load(self._tag)
            finally:
                self._asked_s = self._clock.monotonic()
            if loaded.text is not None:
                self._take(loaded.text)
        except (SourceAway, ConfigError) as error:
            self._note_failure(str(error))
            due_s, self._retry_s = self._retry_s, min(2 * self._retry_s, _MAX_RETRY_S)
            return due_s
        self._tag = loaded.tag
        self._retry_s = _FIRST_RETRY_S
        if self._failing:
            _log.info("keys are read again", source=self._source)
            self._failing = ""
        return loaded.fresh_s

    def _take(self, text: bytes) -> None:
        keys = parse_jwks(text, source=self._source)
        members = {
            str(member.get("kid")): json.dumps(member, sort_keys=True)
            for member in json.loads(text)["keys"]
        }
        if any(members.get(kid) != member for kid, member in self._members.items()):
            self.generation += 1
        if self._members and members != self._members:
            _log.info("keys changed", source=self._source, kids=sorted(str(kid) for kid in keys))
        self._keys, self._members = keys, members

    def _note_failure(self, reason: str) -> None:
        # Said once an outage.
        if reason != self._failing:
            kept = self._keys is not None
            _log.warning("keys not read", source=self._source, reason=reason, kept=kept)
        self._failing = reason
