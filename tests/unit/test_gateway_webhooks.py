"""Which URLs and addresses are called, how webhooks are signed, and when they are tried again."""

import base64
import datetime as dt
import secrets
import socket

import pytest
import standardwebhooks
from aiohttp.abc import AbstractResolver
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.edge_http.webhook_sender import PublicResolver, open_sender
from gateway.webhooks.addresses import UrlRules, refused_because
from gateway.webhooks.config import WebhookConfig
from gateway.webhooks.schedule import DELAYS_S, FAILURES_TO_OPEN, Circuits, delay_s
from gateway.webhooks.sender import DeliveryFailed
from gateway.webhooks.signing import BadSecret, headers_of, parse_secret

ON = UrlRules(enabled=True)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",  # noqa: S104 - a text
        "0.1.2.3",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "192.0.2.1",
        "198.18.0.1",
        "203.0.113.5",
        "168.63.129.16",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::10.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::7f00:1",
        "2002:a00:1::1",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "2606:4700::1%1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "100::1",
        "no address",
        "2130706433",
        "0177.0.0.1",
    ],
)
def test_what_is_not_public_is_not_called(address):
    assert refused_because(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111"])
def test_what_is_public_is(address):
    assert refused_because(address) == ""
    assert refused_because("::ffff:8.8.8.8") == ""


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_is_judged_alike_in_whatever_it_is_wrapped(number):
    text = str(socket.inet_ntoa(number.to_bytes(4, "big")))
    plain = refused_because(text) == ""
    assert (refused_because(f"::ffff:{text}") == "") == plain
    assert (refused_because(f"64:ff9b::{text}") == "") == plain


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://example.com/", "https://"),
        ("ftp://example.com/", "https://"),
        ("example.com", "https://"),
        ("https://", "host"),
        ("https://user:pw@example.com/", "user name"),
        ("https://example.com@127.0.0.1/", "user name"),
        ("https://example.com\\@127.0.0.1/", "user name"),
        ("https://example.com/#x", "fragment"),
        ("https://example.com:22/", "port 443"),
        ("https://example.com:99999/", "no URL"),
        ("https://[::1]/", "address"),
        ("https://[::ffff:10.0.0.1]/", "address"),
        ("https://127.0.0.1/", "address"),
        ("https://169.254.169.254/latest", "address"),
        ("https://2130706433/", "address"),
        ("https://0177.0.0.1/", "address"),
        ("https://127.1/", "address"),
        ("https://127.0.0.1./", "address"),
        ("https://exa mple.com/", "ASCII"),
        ("https://exämple.com/", "ASCII"),
        ("https://example.com/\r\nX: y", "ASCII"),
        ("https://e.com/" + "x" * 3_000, "2048"),
    ],
)
def test_urls_that_are_refused_say_why(url, rule):
    assert rule in ON.wrong_with(url)
    (violation,) = ON.check(url)
    assert violation.field == "webhook_url"


def test_off_by_default_and_nothing_is_wrong_with_none():
    assert "off" in UrlRules().wrong_with("https://example.com/")
    assert UrlRules().check("") == []
    assert not WebhookConfig().enabled
    assert ON.check("https://example.com/hook?x=1") == []
    assert ON.check("https://example.com:443/") == []


def test_hosts_may_be_listed():
    rules = UrlRules(enabled=True, hosts=("a.example.com", "*.hooks.example"))
    assert rules.check("https://a.example.com/") == []
    assert rules.check("https://x.hooks.example/") == []
    for other in ("https://example.com/", "https://hooks.example/", "https://evilhooks.example/"):
        assert "allow" in rules.wrong_with(other)


# --- the look-up ---


class Names(AbstractResolver):
    """Says what a test does, and a different thing each time."""

    def __init__(self, *answers):
        self.answers = list(answers)

    async def resolve(self, host, port=0, family=socket.AF_INET):  # noqa: ARG002 - aiohttp's
        hosts = self.answers.pop(0)
        return [
            {
                "hostname": host,
                "host": each,
                "port": port,
                "family": socket.AF_INET6 if ":" in each else socket.AF_INET,
                "proto": 0,
                "flags": 0,
            }
            for each in hosts
        ]

    async def close(self):
        pass


async def test_a_name_that_means_a_public_and_a_private_address_is_refused():
    resolver = PublicResolver(Names(["8.8.8.8", "10.0.0.1"]), allow_private=False)
    with pytest.raises(OSError, match="not public"):
        await resolver.resolve("both.example", 443)


async def test_a_name_that_changes_its_mind_is_looked_up_and_judged_each_time():
    names = Names(["127.0.0.1"], ["::1"], ["::ffff:169.254.169.254"])
    async with open_sender(ON, timeout_s=5.0, resolver=names) as send:
        for _ in range(3):
            with pytest.raises(DeliveryFailed, match="not public"):
                await send("https://rebinding.example/", {}, b"{}")
    assert names.answers == []


@pytest.mark.parametrize("url", ["https://127.0.0.1/", "https://[::1]/", "https://2130706433/"])
async def test_an_address_in_the_url_is_judged_too(url):
    async with open_sender(ON, timeout_s=5.0, resolver=Names()) as send:
        with pytest.raises(DeliveryFailed, match="address"):
            await send(url, {}, b"{}")


async def test_hexadecimal_names_of_addresses_are_judged_after_their_look_up():
    async with open_sender(ON, timeout_s=5.0) as send:
        with pytest.raises(DeliveryFailed):
            await send("https://0x7f000001/", {}, b"{}")


# --- signatures ---


def secret_of(size=32):
    return "whsec_" + base64.b64encode(secrets.token_bytes(size)).decode()


def test_the_official_library_verifies_each_of_two_secrets():
    old, new = secret_of(), secret_of()
    body = '{"type":"video.completed","data":{"prompt":"熊猫"}}'.encode()
    at_s = int(dt.datetime.now(tz=dt.UTC).timestamp())
    keys = [parse_secret(new), parse_secret(old)]
    headers = headers_of("evt_1", body, at_s=at_s, secrets=keys)
    for secret in (old, new):
        standardwebhooks.Webhook(secret).verify(body, headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(secret_of()).verify(body, headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(old).verify(body + b" ", headers)


@pytest.mark.parametrize("text", ["", "secret", "whsec_", "whsec_!!!", secret_of(8), secret_of(65)])
def test_what_is_no_secret_is_refused_without_repeating_it(text):
    with pytest.raises(BadSecret) as caught:
        parse_secret(text)
    assert text[6:] == "" or text[6:] not in str(caught.value)


def test_enabled_without_a_secret_is_refused():
    with pytest.raises(ValueError, match="never sent unsigned"):
        WebhookConfig(enabled=True)


# --- when ---


@given(st.integers(1, 60), st.floats(0, 1))
def test_pauses_grow_and_stay_bounded(failures, draw):
    pause_s = delay_s(failures, draw)
    assert 0.7 * DELAYS_S[0] <= pause_s <= 1.26 * DELAYS_S[-1]
    assert delay_s(failures + 1, 0.5) >= delay_s(failures, 0.5)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["enter", "ok", "bad"]), st.floats(0, 700)), max_size=60))
def test_a_failing_host_is_tried_by_one_at_a_time_and_never_given_up(steps):
    circuits, now_s, failures = Circuits(), 0.0, 0
    for step, passed_s in steps:
        now_s += passed_s
        if step == "ok":
            circuits.succeeded("h")
            failures = 0
        elif step == "bad":
            circuits.failed("h", now_s)
            failures += 1
        else:
            entered = circuits.enter("h", now_s)
            if failures < FAILURES_TO_OPEN:
                assert entered
            elif entered:
                assert not circuits.enter("h", now_s), "another came in at the same time"
        assert circuits.wait_s("h", now_s) <= 600
        # However long it failed, it has its turn in ten minutes.
        assert circuits.open == (failures >= FAILURES_TO_OPEN)
        assert circuits.wait_s("other", now_s) == 0
    assert circuits.enter("h", now_s + 601)
