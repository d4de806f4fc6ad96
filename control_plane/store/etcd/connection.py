"""Channels to the endpoints: one in use, the next one when it fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import structlog
from grpc import aio
from pydantic import Field, model_validator

from control_plane.errors import StoreUnavailableError
from reelkit.clock import Clock
from reelkit.settings import ConfigError, Settings, blame_field

_log = structlog.get_logger("control_plane.store.connection")

# R5. etcd's servers allow a ping every 5 s and only while a stream is open.
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # A keepalive that finds gRPC's own bandwidth probe on its way waits for that one
    # instead, and its timeout is a minute by default: a cut could go unnoticed so long.
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # A listing of 250 records of 16 KiB, and a fragment of a watch's replay, fit.
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    # A fresh channel connects anew instead of sharing a broken connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 5.0
# No loop spins, even where another endpoint is free at once.
LEAST_PAUSE_S = 0.05


class EtcdSettings(Settings):
    """Where etcd is and who we are there."""

    endpoints: list[str] = Field(
        default=["http://127.0.0.1:2379"],
        min_length=1,
        description="Client URLs of the members, http:// or https://, all of one kind; "
        "more than one lets the control plane outlive a member.",
    )
    ca: Path | None = Field(
        default=None,
        description="PEM file of the CA that signed the members' certificates; the system's by "
        "default. Read again, as cert and key are, for each new connection: renewed files need no "
        "restart.",
    )
    cert: Path | None = Field(
        default=None, description="PEM file of our client certificate; goes with key."
    )
    key: Path | None = Field(default=None, description="PEM file of our client key.")
    user: str | None = Field(
        default=None, description="etcd user; none by default, since etcd has no users at first."
    )
    password_file: Path | None = Field(
        default=None, description="File that holds the user's password; goes with user."
    )
    request_timeout_s: float = Field(
        default=1.0,
        gt=0,
        le=30,
        description="Deadline of one request, seconds; a healthy etcd answers in milliseconds, "
        "and 1 s notices a lost one before a lease of 10 s is in danger.",
    )
    prefix: str = Field(
        default="/reelmesh",
        pattern=r"^(/[A-Za-z0-9._-]+)+$",
        description="Where all keys lie, so that several meshes can share one etcd.",
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> EtcdSettings:
        kinds = {urlsplit(url).scheme for url in self.endpoints}
        if not kinds <= {"http", "https"} or len(kinds) != 1:
            raise ValueError("endpoints: write all as http://host:port or all as https://host:port")
        for url in self.endpoints:
            if urlsplit(url).hostname is None or urlsplit(url).port is None:
                raise ValueError(f"endpoints: {url} needs a host and a port")
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together: give both or neither")
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file go together: give both or neither")
        if self.ca is not None and kinds != {"https"}:
            raise ValueError("ca: endpoints must be https:// where a CA is given")
        return self


def channel_credentials(settings: EtcdSettings) -> grpc.ChannelCredentials | None:
    """TLS credentials from the settings' files; None for http endpoints.

    Raises:
        ConfigError: A file cannot be read.
    """
    if not settings.endpoints[0].startswith("https://"):
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=_read("etcd.ca", settings.ca),
        private_key=_read("etcd.key", settings.key),
        certificate_chain=_read("etcd.cert", settings.cert),
    )


def _read(field: str, file: Path | None) -> bytes | None:
    with blame_field(field, file):
        return file.read_bytes() if file is not None else None


class Connection:
    """A channel to one endpoint, closed when it is retired and its last user left."""

    def __init__(self, channel: aio.Channel, *, endpoint: str, index: int) -> None:
        self.channel = channel
        self.endpoint = endpoint
        self.index = index
        self.users = 0
        self.retired = False
        # When the last answer to a call came, by the clock of Endpoints.
        self.heard_s = float("-inf")

    def hold(self) -> None:
        """Keeps the channel open until :meth:`release`, also when it is retired."""
        self.users += 1

    async def release(self) -> None:
        """Ends one hold; the last one closes a retired channel."""
        self.users -= 1
        if self.retired and self.users == 0:
            await self.channel.close()


class Endpoints:
    """Hands out a connection that is ready, moving on when one fails."""

    def __init__(self, settings: EtcdSettings, *, clock: Clock) -> None:
        self._targets = [urlsplit(url).netloc for url in settings.endpoints]
        self._settings = settings
        self._credentials = channel_credentials(settings)
        self._timeout_s = settings.request_timeout_s
        self._clock = clock
        self._current: Connection | None = None
        self._next_index = 0
        # Per endpoint: failures in a row, and the time before which it rests.
        self._failures = [0] * len(self._targets)
        self._rests_until_s = [0.0] * len(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        """A connection that is up, and stays open for as long as the block runs.

        Raises:
            StoreUnavailableError: None came up in the request timeout, or all rest after a
                failure. Nothing was sent.
        """
        if self._current is None:
            self._current = self._open(self._choose())
        connection = self._current
        # Held from here on: another task may find it failed and retire it at any await.
        connection.hold()
        try:
            await self._bring_up(connection)
            yield connection
        finally:
            await connection.release()

    async def _bring_up(self, connection: Connection) -> None:
        if connection.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await _until_ready(connection.channel)
        except (TimeoutError, ConnectionError) as error:
            await self.failed(connection)
            raise StoreUnavailableError(
                f"cannot connect to {connection.endpoint}: {error}"
            ) from None

    def succeeded(self, connection: Connection) -> None:
        """An answer came: the endpoint's next rest is a short one again."""
        self._failures[connection.index] = 0
        connection.heard_s = self._clock.monotonic()

    async def unanswered(self, connection: Connection, *, since_s: float) -> None:
        """A call sent at ``since_s`` missed its deadline.

        An endpoint that has answered another call since then is not away: it is slow, or
        we are, and to leave it would fail all the calls that wait for it besides.
        """
        if connection.heard_s < since_s:
            await self.failed(connection)

    async def failed(self, connection: Connection) -> None:
        """No answer came: the endpoint rests, and new calls go to the next one.

        Streams stay on the failed channel until they fail by themselves: one slow
        answer must not tear every watch.
        """
        if connection.retired:
            return
        connection.retired = True
        if self._current is connection:
            self._current = None
        index = connection.index
        self._failures[index] += 1
        rest_s = min(FIRST_BACKOFF_S * 2 ** (self._failures[index] - 1), MAX_BACKOFF_S)
        self._rests_until_s[index] = self._clock.monotonic() + rest_s
        self._next_index = (index + 1) % len(self._targets)
        _log.info("endpoint failed", endpoint=connection.endpoint, rests_s=rest_s)
        if connection.users == 0:
            await connection.channel.close()

    async def rest(self) -> None:
        """Sleeps until an endpoint may be tried again; what a stream does before it resumes."""
        delay_s = min(self._rests_until_s) - self._clock.monotonic()
        await self._clock.sleep(
            max(delay_s, LEAST_PAUSE_S) if self._current is None else LEAST_PAUSE_S
        )

    async def close(self) -> None:
        """Closes the channel in use; calls on it fail."""
        if self._current is not None:
            self._current.retired = True
            await self._current.channel.close()
            self._current = None

    def _choose(self) -> int:
        now_s = self._clock.monotonic()
        count = len(self._targets)
        for step in range(count):
            index = (self._next_index + step) % count
            if self._rests_until_s[index] <= now_s:
                return index
        wait_s = min(self._rests_until_s) - now_s
        raise StoreUnavailableError(f"no endpoint answers; next try in {wait_s:.1f} s")

    def _open(self, index: int) -> Connection:
        target = self._targets[index]
        try:
            # A renewed certificate is taken by the next connection.
            self._credentials = channel_credentials(self._settings)
        except ConfigError as error:
            _log.warning("certificate not taken; the last one serves on", reason=str(error))
        return Connection(open_channel(target, self._credentials), endpoint=target, index=index)


def open_channel(target: str, credentials: grpc.ChannelCredentials | None) -> aio.Channel:
    """A channel to one member; it connects when it is first used."""
    if credentials is None:
        return aio.insecure_channel(target, options=_OPTIONS)
    return aio.secure_channel(target, credentials, options=_OPTIONS)


async def _until_ready(channel: aio.Channel) -> None:
    """Returns when the channel is up; raises ConnectionError at its first failure."""
    while True:
        state = channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY:
            return
        if state in (
            grpc.ChannelConnectivity.TRANSIENT_FAILURE,
            grpc.ChannelConnectivity.SHUTDOWN,
        ):
            raise ConnectionError("refused or unreachable")
        await channel.wait_for_state_change(state)
