"""Running the HTTP application: limits of the parser, and its own errors as problems."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.web_request import BaseRequest

from gateway.edge_http.connections import Connections
from gateway.edge_http.problem import problem_of_status, problem_response
from reelkit.rpc import HANDSHAKE_TIMEOUT_S

_log = structlog.get_logger("gateway.http")

# A token of the largest configured size and its scheme fit; aiohttp's 8,190 do not hold 8 KiB.
MAX_HEADER_BYTES = 20_480
# The parser bounds each field and their number, and holds 128 of the largest; a request of ours
# has one that is large.
MAX_HEAD_BYTES: Final = 65_536

_HEAD_TOO_LARGE: Final = problem_of_status(431, detail="the request's head is over the limit")


class _ProblemProtocol(web.RequestHandler):
    """A connection whose parser errors read like every other error.

    aiohttp's own answer and log line quote the raw header, which may be a token. What one
    address may hold is bounded here, and so is a head in sum.
    """

    __slots__ = ("_address", "_connections", "_head_bytes")

    def __init__(
        self, manager: web.Server, *, connections: Connections | None = None, **kwargs: Any
    ) -> None:
        super().__init__(manager, **kwargs)
        self._connections = connections
        self._address: str | None = None
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._connections is not None:
            peer = transport.get_extra_info("peername")
            self._address = self._connections.enter(peer[0] if peer else None)
            if self._address is None:
                self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self._connections is not None and self._address is not None:
            self._connections.leave(self._address)
            self._address = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waiter is None or self._waiter.done():
            # No request is waited for: what came is the end of a head, or a body.
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and self.transport is not None:
            self._refuse_head(self.transport)

    def _refuse_head(self, transport: asyncio.Transport) -> None:
        """There is no request to answer: the parser still waits for its end."""
        response = problem_response(_HEAD_TOO_LARGE, instance="/")
        body = response.body if isinstance(response.body, bytes) else b""
        lines = (
            "HTTP/1.1 431 Request Header Fields Too Large",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        transport.write("\r\n".join((*lines, "", "")).encode() + body)
        self.force_close()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - quotes what the client sent
    ) -> web.StreamResponse:
        if status >= 500 and not isinstance(exc, ConnectionError):
            _log.error("unexpected error outside the routes", exc_info=exc)
        else:
            # Without the text of the error: it quotes what the client sent.
            _log.debug("request could not be read", status=status, cause=type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer is sent; the connection is cut")
        response = problem_response(problem_of_status(status), instance="/")
        response.force_close()
        return response


class _ProblemServer(web.Server):
    def __init__(
        self, inner: web.Server, *, connections: Connections | None, **kwargs: Any
    ) -> None:
        super().__init__(inner.request_handler, request_factory=inner.request_factory, **kwargs)
        self._handler_args = {**kwargs, "connections": connections}

    def __call__(self) -> web.RequestHandler:
        args = {k: v for k, v in self._handler_args.items() if k != "handler_cancellation"}
        return _ProblemProtocol(self, loop=self._loop, **args)


class _ProblemRunner(web.AppRunner):
    __slots__ = ("_handler_args",)

    def __init__(self, app: web.Application, *, shutdown_timeout: float, **kwargs: Any) -> None:
        super().__init__(app, shutdown_timeout=shutdown_timeout)
        self._handler_args = kwargs

    async def _make_server(self) -> web.Server:
        return _ProblemServer(await super()._make_server(), **self._handler_args)


def http_runner(
    app: web.Application,
    *,
    shutdown_timeout_s: float = 5.0,
    idle_timeout_s: float = 75.0,
    connections: Connections | None = None,
) -> web.AppRunner:
    """A runner with what the routes rely on.

    Handlers are cancelled when their client leaves, tokens of the configured size fit
    into a header, bodies are not decompressed, and no access log is written.

    Args:
        app: What :func:`gateway.edge_http.api.build_http_app` made.
        shutdown_timeout_s: Seconds that ``cleanup`` waits for open answers before it
            cancels them.
        idle_timeout_s: Seconds after which a connection without a request in hand is
            closed, one that only dribbles headers too; 75 is nginx's.
        connections: Bounds how many an address holds; without it nothing does.
    """
    return _ProblemRunner(
        app,
        shutdown_timeout=shutdown_timeout_s,
        connections=connections,
        handler_cancellation=True,
        keepalive_timeout=idle_timeout_s,
        access_log=None,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        auto_decompress=False,
    )


class _Site(web.TCPSite):
    """A listener that bounds handshakes, which aiohttp leaves to the event loop: a minute."""

    __slots__ = ()

    async def start(self) -> None:
        if self._ssl_context is None:
            await super().start()
            return
        self._runner._reg_site(self)  # noqa: SLF001 - what every site does first
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner is not set up")
        self._server = await asyncio.get_running_loop().create_server(
            server,
            self._host,
            self._port,
            ssl=self._ssl_context,
            backlog=self._backlog,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
        )


async def listen_http(
    runner: web.AppRunner, address: str, *, context: ssl.SSLContext | None = None
) -> int:
    """Binds ``host:port`` (port 0: a free one) and returns the port.

    Args:
        runner: Set up.
        address: Where.
        context: Speaks TLS; plain text without.

    Raises:
        OSError: The address cannot be bound; the message names it.
    """
    host, _, port = address.rpartition(":")
    site = _Site(runner, host.strip("[]"), int(port), reuse_port=False, ssl_context=context)
    try:
        await site.start()
    except OSError as error:
        raise OSError(f"cannot listen on {address}: {error.strerror}") from error
    bound: int = runner.addresses[0][1]
    return bound
