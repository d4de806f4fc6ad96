"""TLS and users, against a real etcd that demands both."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from control_plane.errors import StoreDeniedError, StoreUnavailableError
from control_plane.store.etcd import EtcdSettings
from control_plane.store.port import Put
from reelkit.settings import ConfigError, load_settings
from tests.support.certs import Authority
from tests.support.etcd import EtcdProcess
from tests.support.stores import etcd_store, eventually, running_etcd, take_events

TOKEN_TTL_S = 1


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
async def tls_etcd(tmp_path, authority: Authority):
    server = authority.issue("etcd")
    extra = (
        f"--cert-file={server.cert}",
        f"--key-file={server.key}",
        f"--trusted-ca-file={authority.cert}",
        "--client-cert-auth",
    )
    async with running_etcd(tmp_path, scheme="https", extra=extra) as etcd:
        yield etcd


@pytest.fixture
async def users_etcd(tmp_path):
    async with running_etcd(tmp_path, extra=(f"--auth-token-ttl={TOKEN_TTL_S}",)) as etcd:
        for args in (
            ("user", "add", "root:secret"),
            ("user", "grant-role", "root", "root"),
            ("user", "add", "control:pass1"),
            ("role", "add", "control"),
            ("role", "grant-permission", "control", "readwrite", "--prefix=true", "/reelmesh/"),
            ("user", "grant-role", "control", "control"),
            ("auth", "enable"),
        ):
            etcd.ctl(*args)
        yield etcd


@pytest.fixture
def password_file(tmp_path):
    path = tmp_path / "password"
    path.write_text("pass1\n")
    return path


# TLS


async def test_mutual_tls_works(tls_etcd, authority):
    client = authority.issue("control-plane")
    files = {"ca": authority.cert, "cert": client.cert, "key": client.key}
    async with etcd_store(tls_etcd.endpoint, **files) as store:
        revision = await store.put("/a", b"1")
        async with contextlib.aclosing(store.watch("/a", from_revision=revision)) as watch:
            await take_events(watch, 1)
        lease = await store.grant(5)
        await store.keep_alive(lease.lease_id)


async def test_a_server_of_another_ca_is_not_trusted(tls_etcd, authority, tmp_path):
    stranger = Authority(tmp_path / "stranger")
    client = authority.issue("control-plane-2")
    files = {"ca": stranger.cert, "cert": client.cert, "key": client.key}
    async with etcd_store(tls_etcd.endpoint, **files) as store:
        with pytest.raises(StoreUnavailableError):
            await store.put("/a", b"1")


async def test_a_client_without_a_certificate_is_not_let_in(tls_etcd, authority):
    async with etcd_store(tls_etcd.endpoint, ca=authority.cert) as store:
        with pytest.raises(StoreUnavailableError):
            await store.get("/a")


async def test_renewed_certificates_are_taken_without_a_restart(tmp_path, authority):
    """etcd comes back with another authority's certificate, and demands such a one of us."""
    stranger = Authority(tmp_path / "stranger")
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    server = {name: tmp_path / f"server-{name}.pem" for name in ("ca", "cert", "key")}

    def give(signer: Authority) -> None:
        for place, name in ((files, "control"), (server, "etcd-server")):
            identity = signer.issue(name)
            place["ca"].write_bytes(signer.cert.read_bytes())
            place["cert"].write_bytes(identity.cert.read_bytes())
            place["key"].write_bytes(identity.key.read_bytes())

    give(authority)
    extra = (
        f"--cert-file={server['cert']}",
        f"--key-file={server['key']}",
        f"--trusted-ca-file={server['ca']}",
        "--client-cert-auth",
    )
    async with (
        running_etcd(tmp_path, scheme="https", extra=extra) as etcd,
        etcd_store(etcd.endpoint, **files) as store,
    ):
        await store.put("/a", b"1")
        etcd.kill()
        # While the files are being replaced, what was read last is what is tried.
        files["ca"].unlink()
        with pytest.raises(StoreUnavailableError):
            await store.get("/a")
        give(stranger)
        await etcd.start()
        await eventually(lambda: answers(store, b"1"))


async def answers(store, value) -> bool:
    try:
        return (await store.get("/a")).value == value
    except StoreUnavailableError:
        return False


# Users


def as_control(etcd: EtcdProcess, password_file):
    return etcd_store(etcd.endpoint, user="control", password_file=password_file)


async def test_a_user_reads_and_writes_what_it_may(users_etcd, password_file):
    async with as_control(users_etcd, password_file) as store:
        await store.put("/reelmesh/a", b"1")
        assert (await store.get("/reelmesh/a")).value == b"1"
        with pytest.raises(StoreDeniedError):
            await store.put("/elsewhere", b"1")
        with pytest.raises(StoreDeniedError):
            await store.get("/elsewhere")
        with pytest.raises(StoreDeniedError):
            await store.txn([], [Put("/reelmesh/a", b"2"), Put("/elsewhere", b"")])
        assert (await store.get("/reelmesh/a")).version == 1


async def test_a_wrong_password_is_said_to_be_one(users_etcd, password_file):
    password_file.write_text("wrong")
    async with as_control(users_etcd, password_file) as store:
        with pytest.raises(StoreDeniedError):
            await store.get("/reelmesh/a")
        # Set right while the process runs: no restart is needed.
        password_file.write_text("pass1")
        assert await store.get("/reelmesh/a") is None


async def test_a_missing_password_file_is_said_to_be_missing(users_etcd, tmp_path):
    with pytest.raises(ConfigError, match=r"etcd\.password_file .*No such file"):
        async with as_control(users_etcd, tmp_path / "nowhere"):
            pass


async def test_a_password_file_that_goes_away_is_said_to_be_missing(users_etcd, tmp_path):
    file = tmp_path / "password"
    file.write_text("is not asked for before the first call")
    async with as_control(users_etcd, file) as store:
        file.unlink()
        with pytest.raises(StoreDeniedError, match="password_file"):
            await store.get("/reelmesh/a")


async def test_no_user_is_denied(users_etcd):
    async with etcd_store(users_etcd.endpoint) as store:
        with pytest.raises(StoreDeniedError):
            await store.get("/reelmesh/a")


async def test_tokens_that_expire_are_renewed_unseen(users_etcd, password_file):
    """etcd forgets a token after a second without use; calls, watches and leases go on."""
    async with as_control(users_etcd, password_file) as store:
        start = await store.put("/reelmesh/a", b"0")
        lease = await store.grant(20)
        watch = store.watch("/reelmesh/", from_revision=start + 1)
        async with contextlib.aclosing(watch):
            waiting = asyncio.ensure_future(take_events(watch, 3))
            for number in range(3):
                # Not a wait for a state: the token's own lifetime must pass.
                await asyncio.sleep(TOKEN_TTL_S * 1.5)
                await store.put("/reelmesh/a", str(number).encode())
                await store.keep_alive(lease.lease_id)
            events = await waiting
        assert [event.kv.value for event in events] == [b"0", b"1", b"2"]


async def test_a_watch_that_begins_with_an_expired_token_begins_anyway(users_etcd, password_file):
    async with as_control(users_etcd, password_file) as store:
        start = await store.put("/reelmesh/a", b"0")
        # Tokens of etcd live in memory: a restart voids them all at once.
        users_etcd.kill()
        await users_etcd.start()
        await answers_as_user(store)
        async with contextlib.aclosing(store.watch("/reelmesh/", from_revision=start)) as watch:
            users_etcd.kill()
            await users_etcd.start()
            (event,) = await take_events(watch, 1)
        assert event.kv.value == b"0"


async def test_a_watch_of_what_is_forbidden_is_denied(users_etcd, password_file):
    async with as_control(users_etcd, password_file) as store:
        watch = store.watch("/elsewhere/", from_revision=1)
        async with contextlib.aclosing(watch), asyncio.timeout(10):
            with pytest.raises(StoreDeniedError):
                await anext(watch)


async def answers_as_user(store) -> None:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(StoreUnavailableError):
                await store.get("/reelmesh/probe")
                return
            await asyncio.sleep(0.05)


# Settings


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"endpoints": []}, "endpoints"),
        ({"endpoints": ["127.0.0.1:2379"]}, "http://host:port"),
        ({"endpoints": ["http://a:1", "https://b:1"]}, "all as"),
        ({"endpoints": ["http://a"]}, "host and a port"),
        ({"cert": "c.pem"}, "cert and key"),
        ({"user": "u"}, "user and password_file"),
        ({"ca": "ca.pem"}, "https"),
        ({"prefix": "reelmesh"}, "prefix"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(wrong, said):
    overrides = [f"{key}={value}" for key, value in wrong.items()]
    with pytest.raises(ConfigError, match=said):
        load_settings(EtcdSettings, file=None, env_prefix="X__", overrides=overrides, environ={})
