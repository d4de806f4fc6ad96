"""Key sets that an attacker, or a careless issuer, serves; and floods that make them be fetched."""

import asyncio
import contextlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm

from reelkit.clock import ManualClock
from reelkit.settings import ConfigError
from reelkit.tokens.keys import MAX_KEYS, parse_jwks
from reelkit.tokens.refreshed import COOLDOWN_S, Loaded, RefreshedKeys, SourceAway
from tests.support.forgeries import encoded
from tests.support.tokens import TokenIssuer


@pytest.fixture
def clock():
    return ManualClock(start_s=1000.0)


def ec_member(curve, **changes):
    public = ec.generate_private_key(curve).public_key()
    return {**ECAlgorithm.to_jwk(public, as_dict=True), "kid": "e", **changes}


def _small_order(y):
    return {"kty": "OKP", "crv": "Ed25519", "x": encoded(y.to_bytes(32, "little")), "kid": "s"}


P25519 = 2**255 - 19
ORDER_8 = 2707385501144840649318225287225658788936804267575313519463743609750303021400
SMALL = [0, 1, P25519 - 1, P25519, P25519 + 1, ORDER_8, P25519 - ORDER_8]


@pytest.mark.parametrize("y", SMALL + [y + 2**255 for y in SMALL])
def test_a_key_of_small_order_is_refused(y):
    # R = the identity and S = 0 would be its signature for about every message.
    with pytest.raises(ConfigError, match=r"small order|no signature key"):
        parse_jwks(json.dumps({"keys": [_small_order(y)]}).encode(), source="test")


def test_a_key_of_small_order_on_the_larger_curve_is_refused():
    prime = 2**448 - 2**224 - 1
    for y in (0, 1, prime - 1):
        for sign in (0, 0x80):
            x = encoded(y.to_bytes(56, "little") + bytes([sign]))
            member = {"kty": "OKP", "crv": "Ed448", "alg": "EdDSA", "x": x, "kid": "s"}
            with pytest.raises(ConfigError, match=r"small order|no signature key"):
                parse_jwks(json.dumps({"keys": [member]}).encode(), source="test")


def test_that_is_what_such_a_key_would_do():
    identity = (1).to_bytes(32, "little")
    key = ed25519.Ed25519PublicKey.from_public_bytes(identity)
    key.verify(identity + bytes(32), b"any message at all")


def _rsa_member(modulus, exponent):
    def text(number):
        return encoded(number.to_bytes((number.bit_length() + 7) // 8 or 1, "big"))

    return {"kty": "RSA", "alg": "RS256", "kid": "r", "n": text(modulus), "e": text(exponent)}


def _off_curve():
    good = ec_member(ec.SECP256R1())
    return {**good, "y": good["x"]}


def _modulus():
    return rsa.generate_private_key(65537, 2048).public_key().public_numbers().n


SETS = [
    ("not JSON", lambda: "nothing", "not a JSON Web Key Set"),
    ("keys no list", lambda: {"keys": {}}, "must be a list"),
    ("a key no object", lambda: {"keys": ["k"]}, "must be a list"),
    ("a shared secret", lambda: [{"kty": "oct", "k": "c2VjcmV0", "kid": "s"}], "private or symm"),
    (
        "a shared secret beside a key",
        lambda: [TokenIssuer().public_jwk(), {"kty": "oct", "k": "c2VjcmV0", "kid": "s"}],
        "private or symmetric",
    ),
    (
        "a private key",
        lambda: [OKPAlgorithm.to_jwk(TokenIssuer().private_key, as_dict=True)],
        "private or symmetric",
    ),
    ("one kid twice", lambda: [TokenIssuer().public_jwk(), TokenIssuer().public_jwk()], "two keys"),
    ("a kid of a list", lambda: [{**TokenIssuer().public_jwk(), "kid": ["a"]}], "not a string"),
    ("a kid of a number", lambda: [{**TokenIssuer().public_jwk(), "kid": 1}], "not a string"),
    (
        "10,000 keys",
        lambda: [{**TokenIssuer().public_jwk(), "kid": "0"}] * 10_000,
        f"at most {MAX_KEYS}",
    ),
    ("RSA of 1,024 bits", lambda: [_rsa_member(2**1023 + 1, 65537)], "2048"),
    ("RSA of 20,000 bits", lambda: [_rsa_member(2**20000 + 1, 65537)], "16384"),
    ("RSA with e = 1", lambda: [_rsa_member(_modulus(), 1)], "no signature key"),
    ("RSA with an even e", lambda: [_rsa_member(_modulus(), 65536)], "no signature key"),
    ("a point off its curve", lambda: [_off_curve()], "no signature key"),
    (
        "a curve that is not its algorithm's",
        lambda: [ec_member(ec.SECP384R1(), alg="ES256")],
        "no signature key",
    ),
    (
        "an algorithm that is not its kind's",
        lambda: [{**TokenIssuer().public_jwk(), "alg": "HS256"}],
        "no signature key",
    ),
    ("oct without a secret", lambda: [{"kty": "oct", "kid": "s"}], "no signature key"),
    ("alg none", lambda: [{**TokenIssuer().public_jwk(), "alg": "none"}], "no signature key"),
    (
        "secp256k1",
        lambda: [ec_member(ec.SECP256K1())],
        "no signature key",
    ),
]


@pytest.mark.parametrize(("make", "why"), [s[1:] for s in SETS], ids=[s[0] for s in SETS])
async def test_a_bad_key_set_is_refused_whole_and_the_last_good_one_kept(clock, make, why):
    made = make()
    text = (
        made
        if isinstance(made, str)
        else json.dumps({"keys": made} if isinstance(made, list) else made)
    )
    with pytest.raises(ConfigError, match=why):
        parse_jwks(text.encode(), source="test")
    said = [json.dumps({"keys": [TokenIssuer(kid="good").public_jwk()]}).encode()]

    async def load(_tag):
        return Loaded(said[-1], "", 60.0)

    keys = RefreshedKeys(load, source="test", clock=clock)
    good = await keys.find("good")
    said.append(text.encode())
    await clock.advance(COOLDOWN_S)
    assert await keys.find("unknown") is None
    assert await keys.find("good") is good


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_MEMBER = st.fixed_dictionaries(
    {},
    optional={
        "kty": st.sampled_from(["RSA", "EC", "OKP", "oct", "XYZ"]) | _JSON,
        "alg": st.sampled_from(["RS256", "PS256", "ES256", "EdDSA", "HS256", "none"]) | _JSON,
        "crv": st.sampled_from(["P-256", "P-521", "Ed25519", "Ed448", "X25519"]) | _JSON,
        "use": st.sampled_from(["sig", "enc"]) | _JSON,
        **{name: st.sampled_from(["AQAB", "", "AA", "!"]) | _JSON for name in ("n", "e", "x", "y")},
        "kid": st.text(max_size=3) | _JSON,
    },
)


@given(st.lists(_MEMBER, max_size=4) | _JSON)
@settings(max_examples=400, deadline=None)
def test_no_key_set_at_all_makes_the_reader_fail(members):
    with contextlib.suppress(ConfigError):
        parse_jwks(json.dumps({"keys": members}).encode(), source="test")


# --- floods ---


class Source:
    """An issuer's server, which may answer slowly."""

    def __init__(self, *members):
        self.text = json.dumps({"keys": list(members)}).encode()
        self.asked = 0
        self.answering = asyncio.Event()
        self.answering.set()

    async def load(self, _tag):
        self.asked += 1
        try:
            async with asyncio.timeout(5.0):
                await self.answering.wait()
        except TimeoutError:
            raise SourceAway("no answer in 5 s") from None
        return Loaded(self.text, "", 3600.0)


async def test_unknown_kids_have_the_keys_fetched_once_a_cooldown_however_many_come(clock):
    source = Source(TokenIssuer().public_jwk())
    keys = RefreshedKeys(source.load, source="test", clock=clock)
    await keys.find("test-1")
    for cooldown in range(1, 4):
        await clock.advance(COOLDOWN_S)
        for batch in range(5):
            names = [f"forged-{cooldown}-{batch}-{number}" for number in range(200)]
            assert set(await asyncio.gather(*map(keys.find, names))) == {None}
        assert source.asked == 1 + cooldown


async def test_good_tokens_do_not_wait_behind_a_slow_key_server(clock):
    source = Source(TokenIssuer().public_jwk())
    keys = RefreshedKeys(source.load, source="test", clock=clock)
    good = await keys.find("test-1")
    source.answering.clear()
    await clock.advance(COOLDOWN_S)
    asking = [asyncio.ensure_future(keys.find(f"forged-{number}")) for number in range(50)]
    await asyncio.sleep(0)
    assert source.asked == 2
    async with asyncio.timeout(1.0):
        assert await keys.find("test-1") is good
    source.answering.set()
    assert set(await asyncio.gather(*asking)) == {None}
    assert source.asked == 2
