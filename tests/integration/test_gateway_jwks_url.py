"""Key sets from a real HTTP server, and a gateway's edges that follow it."""

import asyncio
import contextlib
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.auth import errors as auth_errors
from gateway.auth.config import AuthConfig, IssuerConfig
from gateway.auth.tokens import TokenVerifier
from gateway.edge.error_table import row_for
from gateway.edge_http import jwks as fetch
from reelkit.clock import SystemClock
from reelkit.tasks import TaskScope
from reelkit.tokens import fetched, refreshed, sources
from reelkit.tokens.refreshed import SourceAway
from tests.support.tokens import AUDIENCE, ISSUER, TokenIssuer

pytestmark = pytest.mark.timeout(60)


class Issuer:
    """A server of key sets that does what the test says."""

    def __init__(self):
        self.answer = lambda: web.json_response({"keys": []})
        self.seen = []

    async def serve(self, request):
        self.seen.append(dict(request.headers))
        answer = self.answer()
        return await answer if asyncio.iscoroutine(answer) else answer


@pytest.fixture
async def issuer():
    served = Issuer()
    app = web.Application()
    app.router.add_get("/jwks.json", served.serve)
    async with TestServer(app) as server:
        served.url = str(server.make_url("/jwks.json"))
        yield served


@pytest.fixture(params=["gateway", "control plane"])
def loading(request, monkeypatch):
    """The readers of both parts, which promise the same."""
    monkeypatch.setattr(fetch, "TIMEOUT_S", 2.0)
    monkeypatch.setattr(fetched, "TIMEOUT_S", 2.0)

    @contextlib.asynccontextmanager
    async def loading(url):
        if request.param == "control plane":
            yield fetched.loader_of(url)
            return
        async with fetch.open_jwks_loaders() as loader_of:
            yield loader_of(url)

    return loading


async def test_what_the_server_says_is_read_with_its_tag_and_time(issuer, loading):
    issuer.answer = lambda: web.Response(
        body=b'{"keys": 1}', headers={"ETag": '"v1"', "Cache-Control": "public, max-age=120"}
    )
    async with loading(issuer.url) as load:
        loaded = await load("")
        assert (loaded.text, loaded.tag, loaded.fresh_s) == (b'{"keys": 1}', '"v1"', 120.0)
        issuer.answer = lambda: web.Response(status=304)
        again = await load('"v1"')
        assert (again.text, again.tag) == (None, '"v1"')
    assert issuer.seen[1]["If-None-Match"] == '"v1"'
    assert "Authorization" not in issuer.seen[0]


@pytest.mark.parametrize(
    ("said", "fresh_s"),
    [
        ("", fetched.DEFAULT_FRESH_S),
        ("no-store", fetched.DEFAULT_FRESH_S),
        ("max-age=0", fetched.MIN_FRESH_S),
        ("private,Max-Age = 300", 300.0),
        ("s-maxage=5, max-age=99999999", fetched.MAX_FRESH_S),
        ("max-age=x", fetched.DEFAULT_FRESH_S),
    ],
)
def test_how_long_it_may_be_kept_has_bounds(said, fresh_s):
    assert fetched.fresh_for_s(said) == fresh_s


async def _never():
    await asyncio.sleep(30)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: web.Response(status=500), "answered 500"),
        (lambda: web.Response(status=304), "answered 304"),
        (lambda: web.Response(status=302, headers={"Location": "/jwks.json"}), "answered 302"),
        (lambda: web.Response(body=b" " * (fetch.MAX_BYTES + 1)), "larger than"),
        (_never, "no answer in"),
    ],
)
async def test_what_is_no_key_set_is_told_apart(issuer, answer, reason, loading):
    issuer.answer = answer
    async with loading(issuer.url) as load:
        with pytest.raises(SourceAway, match=reason):
            await load("")
    assert len(issuer.seen) == 1


async def test_a_server_that_dribbles_is_cut_off(loading):
    """Each byte comes in time, and all of them never do; no thread is left that reads on."""
    over = asyncio.Event()

    async def dribble(_reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)
        over.set()

    server = await asyncio.start_server(dribble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, loading(f"http://127.0.0.1:{port}/jwks.json") as load:
        with pytest.raises(SourceAway, match=r"no answer in|cannot be fetched"):
            await load("")
        async with asyncio.timeout(20):
            await over.wait()


async def test_nobody_listens(loading):
    async with loading("http://127.0.0.1:1/jwks.json") as load:
        with pytest.raises(SourceAway, match="cannot be fetched"):
            await load("")


@contextlib.asynccontextmanager
async def verifying(url, **changes):
    config = AuthConfig(
        issuers=(IssuerConfig(issuer=ISSUER, audience=AUDIENCE, jwks_url=url, **changes),)
    )
    async with fetch.open_jwks_loaders() as loader_of, TaskScope("test") as scope:
        verifier = TokenVerifier(config, clock=SystemClock(), loader_of=loader_of)
        verifier.follow_keys(scope)
        yield verifier


async def test_a_key_that_the_issuer_withdraws_takes_its_tokens_along(
    issuer, tmp_path, monkeypatch
):
    monkeypatch.setattr(fetched, "MIN_FRESH_S", 0.05)
    monkeypatch.setattr(refreshed, "COOLDOWN_S", 0.05)
    one, other = TokenIssuer(), TokenIssuer()
    texts = [signer.write_jwks(tmp_path / "jwks.json").read_text() for signer in (one, other)]
    current = texts[0]
    issuer.answer = lambda: web.Response(text=current, headers={"Cache-Control": "max-age=0"})
    async with verifying(issuer.url) as verifier:
        token = f"Bearer {one.issue()}"
        assert (await verifier.verify(token)).tenant
        current = texts[1]
        async with asyncio.timeout(10):
            while True:
                try:
                    await verifier.verify(token)
                except (auth_errors.UnknownKey, auth_errors.BadSignature):
                    break
                await asyncio.sleep(0.02)
        assert (await verifier.verify(f"Bearer {other.issue()}")).tenant


async def test_a_gateway_whose_issuer_is_away_says_so_and_does_not_blame_the_token(issuer):
    issuer.answer = lambda: web.Response(status=503)
    async with verifying(issuer.url) as verifier:
        with pytest.raises(auth_errors.KeysAway) as raised:
            await verifier.verify(f"Bearer {TokenIssuer().issue()}")
    assert (raised.value.code, row_for(raised.value).http_status) == ("keys_unavailable", 503)
    assert raised.value.retry_after_s


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://keys.example.com/jwks.json", "plain http"),
        ("ftp://127.0.0.1/jwks.json", "no https URL"),
        ("https:///jwks.json", "no https URL"),
        ("https://user:secret@keys.example.com/", "user or a password"),
    ],
)
def test_a_url_that_others_could_change_is_refused(url, rule):
    with pytest.raises(ValueError, match=rule):
        IssuerConfig(issuer=ISSUER, audience=AUDIENCE, jwks_url=url)


async def test_a_file_is_read_again_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "FILE_FRESH_S", 0.05)
    path = tmp_path / "jwks.json"
    one, other = TokenIssuer(), TokenIssuer()
    one.write_jwks(path)
    config = AuthConfig(issuers=(IssuerConfig(issuer=ISSUER, audience=AUDIENCE, jwks_file=path),))
    async with TaskScope("test") as scope:
        verifier = TokenVerifier(config, clock=SystemClock())
        verifier.follow_keys(scope)
        token = f"Bearer {one.issue()}"
        await verifier.verify(token)
        # Half a file, and none at all, change nothing.
        path.write_text(json.dumps({"keys": []})[:5])
        await asyncio.sleep(0.2)
        await verifier.verify(token)
        path.unlink()
        await asyncio.sleep(0.2)
        await verifier.verify(token)
        other.write_jwks(path)
        async with asyncio.timeout(15):
            while True:
                try:
                    await verifier.verify(f"Bearer {other.issue()}")
                except (auth_errors.UnknownKey, auth_errors.BadSignature):
                    await asyncio.sleep(0.05)
                else:
                    break
        with pytest.raises((auth_errors.UnknownKey, auth_errors.BadSignature)):
            await verifier.verify(token)
