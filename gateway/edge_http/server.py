"""Running the HTTP application: limits of the parser, and its own errors as problems."""

from __future__ import annotations

import ssl
from typing import Any

import structlog
from aiohttp import web
from aiohttp.web_request import BaseRequest

from gateway.edge_http.problem import problem_of_status, problem_response

_log = structlog.get_logger("gateway.http")

# A token of the largest configured size and its scheme fit; aiohttp's 8,190 do not hold 8 KiB.
MAX_HEADER_BYTES = 20_480


class _ProblemProtocol(web.RequestHandler):
    """A connection whose parser errors read like every other error.

    aiohttp's own answer and log line quote the raw header, which may be a token.
    """

    __slots__ = ()

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
    def __init__(self, inner: web.Server, **kwargs: Any) -> None:
        super().__init__(inner.request_handler, request_factory=inner.request_factory, **kwargs)
        self._handler_args = kwargs

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
    app: web.Application, *, shutdown_timeout_s: float = 5.0, idle_timeout_s: float = 75.0
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
    """
    return _ProblemRunner(
        app,
        shutdown_timeout=shutdown_timeout_s,
        handler_cancellation=True,
        keepalive_timeout=idle_timeout_s,
        access_log=None,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        auto_decompress=False,
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
    site = web.TCPSite(runner, host.strip("[]"), int(port), reuse_port=False, ssl_context=context)
    try:
        await site.start()
    except OSError as error:
        raise OSError(f"cannot listen on {address}: {error.strerror}") from error
    bound: int = runner.addresses[0][1]
    return bound
