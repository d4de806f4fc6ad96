"""Channels to other parts, as the part that a certificate names.

grpc cannot give a channel other credentials, so a renewed certificate means another
channel. :class:`RenewedChannel` does it unseen: calls go over the newest one, those that
run end on the one that they began on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
from grpc import aio

from reelkit.mtls.identity import Role, server_name
from reelkit.mtls.material import MutualTls
from reelkit.rpc import internal_channel

OpenChannel = Callable[[str], aio.Channel]
"""Makes a channel to an address."""


class Channels:
    """Opens channels to the parts of the mesh.

    Args:
        tls: Who opens them; None: in plain text, on one host.
    """

    def __init__(self, tls: MutualTls | None = None) -> None:
        self._tls = tls
        self._open: weakref.WeakSet[RenewedChannel] = weakref.WeakSet()

    def to(self, role: Role, *, region: str) -> OpenChannel:
        """What opens channels to parts of a role and a region, and to no others."""
        return lambda address: self.open(address, role=role, region=region)

    def open(self, address: str, *, role: Role, region: str, id: str = "") -> aio.Channel:  # noqa: A002 - as everywhere
        """A channel to a part; it connects to none but one of the role and region, and of the id.

        Args:
            address: host:port.
            role: Its role.
            region: Its region.
            id: Its id; any by default.
        """
        tls = self._tls
        if tls is None:
            return internal_channel(address)
        name = server_name(role, region=region, id=id)

        def fresh() -> aio.Channel:
            return internal_channel(
                address, credentials=tls.channel_credentials(), server_name=name
            )

        channel = RenewedChannel(fresh, generation=lambda: tls.generation)
        self._open.add(channel)
        return channel

    async def follow(self) -> None:
        """Takes renewed files, and closes what they replaced once it is idle; for ever."""
        while self._tls is not None:
            await self._tls.follow_once()
            await self.sweep()

    async def sweep(self) -> None:
        """Closes what was replaced and has no call left."""
        for channel in list(self._open):
            await channel.sweep()


PLAINTEXT = Channels()
"""Channels of a part without a certificate."""


class _Line:
    """One channel of grpc's and the calls that run on it."""

    def __init__(self, channel: aio.Channel, generation: int) -> None:
        self.channel = channel
        self.generation = generation
        self.calls = 0

    def count(self, call: Any) -> None:
        self.calls += 1
        call.add_done_callback(self._ended)

    def _ended(self, _call: Any) -> None:
        self.calls -= 1


class RenewedChannel(aio.Channel):
    """A channel that takes the newest credentials for each new call.

    Args:
        open_now: Opens a channel with the credentials of now.
        generation: Rises when there are others.
    """

    def __init__(
        self, open_now: Callable[[], aio.Channel], *, generation: Callable[[], int]
    ) -> None:
        self._open_now = open_now
        self._generation = generation
        self._line = _Line(open_now(), generation())
        self._replaced: list[_Line] = []

    def line(self) -> _Line:
        """Where a call goes now."""
        generation = self._generation()
        if self._line.generation != generation:
            self._replaced.append(self._line)
            self._line = _Line(self._open_now(), generation)
        return self._line

    async def sweep(self) -> None:
        """Closes the channels that were replaced and have no call left."""
        over = [line for line in self._replaced if line.calls == 0]
        self._replaced = [line for line in self._replaced if line.calls]
        for line in over:
            await line.channel.close()

    # --- the channel ---

    async def close(self, grace: float | None = None) -> None:
        """Closes it, with every call on it."""
        lines, self._replaced = [*self._replaced, self._line], []
        for line in lines:
            await line.channel.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Of the newest."""
        return self.line().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Of the newest."""
        await self.line().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Of the newest."""
        await self.line().channel.channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See :class:`grpc.aio.Channel`."""
        return _Method(self, lambda channel: channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See :class:`grpc.aio.Channel`."""
        return _Method(self, lambda channel: channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See :class:`grpc.aio.Channel`."""
        return _Method(self, lambda channel: channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See :class:`grpc.aio.Channel`."""
        return _Method(self, lambda channel: channel.stream_stream(*args, **kwargs))


class _Method:
    """A method of a stub, on whichever channel is the newest."""

    def __init__(self, owner: RenewedChannel, make: Callable[[aio.Channel], Any]) -> None:
        self._owner = owner
        self._make = make
        self._made: tuple[_Line, Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        line = self._owner.line()
        if self._made is None or self._made[0] is not line:
            self._made = (line, self._make(line.channel))
        call = self._made[1](*args, **kwargs)
        line.count(call)
        return call
