"""Keys that follow their source: what is kept, what is dropped, and how often it is asked."""

import asyncio
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from jwt.algorithms import OKPAlgorithm

from reelkit.clock import ManualClock
from reelkit.tokens.errors import KeysAway
from reelkit.tokens.refreshed import COOLDOWN_S, Loaded, RefreshedKeys, SourceAway


def member(kid):
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    return {**OKPAlgorithm.to_jwk(public, as_dict=True), "kid": kid, "alg": "EdDSA"}


class Server:
    """An issuer's key set, and how often it was asked for."""

    def __init__(self, *members):
        self.members = list(members)
        self.away = False
        self.text = None
        self.asked = 0

    async def load(self, tag):
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise SourceAway("the server answered 500")
        text = self.text or json.dumps({"keys": self.members}).encode()
        return Loaded(None if tag == str(hash(text)) else text, str(hash(text)), 600.0)


@pytest.fixture
def clock():
    return ManualClock(start_s=1000.0)


def keys_of(server, clock):
    return RefreshedKeys(server.load, source="the issuer", clock=clock)


async def test_the_first_token_has_the_keys_fetched_and_the_next_do_not(clock):
    server = Server(member("a"), member("b"))
    keys = keys_of(server, clock)
    found = await asyncio.gather(*(keys.find("a") for _ in range(50)))
    assert {key.key_id for key in found} == {"a"}
    assert (await keys.find("b")).key_id == "b"
    # Without an id there is no choosing between two.
    assert await keys.find(None) is None
    assert server.asked == 1


async def test_a_new_key_is_found_and_a_flood_of_unknown_ones_asks_once_a_cooldown(clock):
    server = Server(member("a"))
    keys = keys_of(server, clock)
    await keys.find("a")
    server.members.append(member("b"))
    assert await keys.find("b") is None
    await clock.advance(COOLDOWN_S)
    assert (await keys.find("b")).key_id == "b"
    before = server.asked
    for number in range(200):
        assert await keys.find(f"forged-{number}") is None
    assert server.asked == before
    await clock.advance(COOLDOWN_S)
    await asyncio.gather(*(keys.find(f"forged-{number}") for number in range(200)))
    assert server.asked == before + 1


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b'{"keys": []}', b'{"keys": [{"kty": "oct", "k": "AA"}]}']
)
async def test_the_last_good_keys_are_kept_through_anything(clock, text):
    server = Server(member("a"))
    keys = keys_of(server, clock)
    good = await keys.find("a")
    server.text = text
    following = asyncio.ensure_future(keys.keep_fresh())
    await clock.advance(1.0)
    assert await keys.find("a") is good
    server.away = True
    await clock.advance(10_000.0)
    assert await keys.find("a") is good
    assert keys.generation == 0
    following.cancel()


async def test_a_key_that_was_taken_out_or_replaced_is_gone_at_the_next_reading(clock):
    server = Server(member("a"), member("b"))
    keys = keys_of(server, clock)
    old = await keys.find("a")
    following = asyncio.ensure_future(keys.keep_fresh())
    await clock.advance(1.0)
    assert keys.generation == 0
    server.members[0] = member("a")
    await clock.advance(600.0)
    assert (await keys.find("a")) is not old
    assert keys.generation == 1
    # Verdicts of earlier tokens are void then, and one that comes is no reason.
    server.members.append(member("c"))
    await clock.advance(600.0)
    assert keys.generation == 1
    del server.members[1]
    await clock.advance(600.0)
    assert await keys.find("b") is None
    assert keys.generation == 2
    following.cancel()


async def test_a_source_that_was_never_read_says_nothing_of_a_token(clock):
    server = Server(member("a"))
    server.away = True
    keys = keys_of(server, clock)
    for _ in range(20):
        with pytest.raises(KeysAway):
            await keys.find("a")
    assert server.asked == 1
    server.away = False
    await clock.advance(COOLDOWN_S)
    assert (await keys.find("a")).key_id == "a"


async def test_a_source_that_is_away_is_asked_again_and_more_seldom(clock):
    server = Server(member("a"))
    server.away = True
    keys = keys_of(server, clock)
    following = asyncio.ensure_future(keys.keep_fresh())
    for _ in range(3600):
        await clock.advance(1.0)
    assert 10 <= server.asked <= 25
    server.away = False
    await clock.advance(300.0)
    assert (await keys.find("a")).key_id == "a"
    following.cancel()
