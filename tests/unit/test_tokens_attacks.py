"""What attackers do to tokens and to key sets; none of it lets anybody in."""

import base64
import hashlib
import hmac
import json
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as how
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from gateway.auth import errors as auth_errors
from gateway.auth.config import AuthConfig, IssuerConfig
from gateway.auth.tokens import TokenVerifier
from gateway.errors import Unauthenticated
from reelkit.clock import ManualClock
from tests.support.forgeries import FORGERIES, encoded, forged, header_of, signed
from tests.support.tokens import AUDIENCE, ISSUER, TokenIssuer

NOW_S = 1_700_000_000
LEEWAY_S = 30


class Issuer(TokenIssuer):
    """One whose clock stands where the verifier's does."""

    def claims(self, **changes):
        return super().claims(**{"iat": NOW_S, "exp": NOW_S + 60, **changes})


@pytest.fixture
def clock():
    return ManualClock(start_s=float(NOW_S))


@pytest.fixture
def issuer():
    return Issuer()


@pytest.fixture
def verifier(issuer, clock, tmp_path):
    return verifier_of(clock, issuer.write_jwks(tmp_path / "jwks.json"))


def verifier_of(clock, *jwks_files, issuers=(ISSUER,)):
    configs = tuple(
        IssuerConfig(issuer=name, audience=AUDIENCE, jwks_file=file)
        for name, file in zip(issuers, jwks_files, strict=True)
    )
    return TokenVerifier(AuthConfig(issuers=configs, leeway_s=LEEWAY_S), clock=clock)


def key_file(tmp_path: Path, *members):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": list(members)}))
    return path


async def code_of(verifier, token):
    """What it is refused with; "" where it is let in."""
    try:
        await verifier.verify(f"Bearer {token}")
    except Unauthenticated as error:
        return error.code
    return ""


# --- tokens ---


@pytest.mark.parametrize("attack", FORGERIES, ids=lambda attack: attack.name)
async def test_every_forgery_is_refused_with_its_code(verifier, issuer, attack):
    assert await code_of(verifier, issuer.issue()) == ""
    assert await code_of(verifier, attack.make(issuer)) == attack.code


@pytest.mark.parametrize("attack", FORGERIES, ids=lambda attack: attack.name)
async def test_no_forgery_is_remembered_or_known(verifier, issuer, attack):
    token = attack.make(issuer)
    await code_of(verifier, token)
    assert verifier.known(f"Bearer {token}") is None


async def test_one_token_has_one_spelling(verifier, issuer):
    # Else one good token could fill the memory of verdicts, or pass a list of refused ones.
    token = issuer.issue()
    for position in range(0, len(token), 7):
        for junk in ("!", "\n", "=", "%", "\u00e9", "\x00"):
            other = token[:position] + junk + token[position:]
            assert await code_of(verifier, other) in {"malformed_token", "wrong_algorithm"}
    assert len(verifier._jwt._remembered) == 0


TIMES = [
    ("exp", "NaN", "bad_claims"),
    ("exp", "Infinity", "bad_claims"),
    ("exp", "-Infinity", "bad_claims"),
    ("exp", '"9999999999"', "bad_claims"),
    ("exp", "true", "bad_claims"),
    ("exp", "[9999999999]", "bad_claims"),
    ("exp", "{}", "bad_claims"),
    ("exp", "null", "bad_claims"),
    ("exp", "1e400", "bad_claims"),
    ("exp", "9" * 400, "bad_claims"),
    ("exp", "-1", "token_expired"),
    ("exp", "0", "token_expired"),
    ("exp", "-0.0", "token_expired"),
    ("exp", str(NOW_S - LEEWAY_S), "token_expired"),
    ("exp", str(NOW_S - LEEWAY_S + 1), ""),
    ("exp", f"{NOW_S}.5", ""),
    ("nbf", str(NOW_S + LEEWAY_S), ""),
    ("nbf", str(NOW_S + LEEWAY_S + 1), "token_not_yet_valid"),
    ("nbf", "1e14", "token_not_yet_valid"),
    ("nbf", "NaN", "bad_claims"),
    ("nbf", '"0"', "bad_claims"),
    ("nbf", "-1e14", ""),
    ("iat", str(NOW_S + LEEWAY_S + 1), "token_not_yet_valid"),
    ("iat", "Infinity", "bad_claims"),
    ("iat", '"now"', "bad_claims"),
    ("iat", "false", "bad_claims"),
    ("iat", "-1e14", ""),
]


@pytest.mark.parametrize(("claim", "value", "code"), TIMES)
async def test_times_at_their_edges(verifier, issuer, claim, value, code):
    usual = json.dumps(issuer.claims(**{claim: None}))[1:-1]
    token = signed(issuer, header_of(issuer), f'{{{usual}, "{claim}": {value}}}'.encode())
    assert await code_of(verifier, token) == code


@pytest.mark.parametrize(
    ("aud", "code"),
    [
        (AUDIENCE, ""),
        ([AUDIENCE], ""),
        (["other", AUDIENCE], ""),
        (None, "wrong_audience"),
        ([], "wrong_audience"),
        ("", "wrong_audience"),
        ("other", "wrong_audience"),
        (AUDIENCE.upper(), "wrong_audience"),
        (f"{AUDIENCE} ", "wrong_audience"),
        (f"{AUDIENCE} other", "wrong_audience"),
        ([[AUDIENCE]], "wrong_audience"),
        ({AUDIENCE: AUDIENCE}, "wrong_audience"),
        (True, "wrong_audience"),
    ],
)
async def test_a_token_made_for_another_service_is_not_replayed_here(verifier, issuer, aud, code):
    assert await code_of(verifier, issuer.issue(aud=aud)) == code


@pytest.mark.parametrize(
    "changes",
    [
        {"jti": 5},
        {"jti": ["1"]},
        {"jti": None, "sub": ["somebody"]},
        {"tenant": "acme/../other"},
        {"tenant": "acme\n"},
        {"tenant": "*"},
        {"tenant": "аcme"},  # a Cyrillic a
        {"tenant": 7},
        {"tenant": {"$ne": ""}},
        {"scope": {"video:generate": True}},
        {"scope": [["video:generate"]]},
    ],
)
async def test_claims_of_the_wrong_kind_are_bad(verifier, issuer, changes):
    assert await code_of(verifier, issuer.issue(**changes)) == "bad_claims"


async def test_a_scope_is_a_whole_word(verifier, issuer):
    for scope in ("video:generate,video:read", "video:*", "*", "xvideo:read", "VIDEO:READ"):
        caller = await verifier.verify(f"Bearer {issuer.issue(scope=scope)}")
        assert not caller.scopes & {"video:generate", "video:read", "fleet:read"}


async def test_a_tenants_token_is_that_tenants_whatever_was_asked_before(verifier, issuer):
    one, other = issuer.issue(tenant="acme"), issuer.issue(tenant="other")
    for _ in range(2):
        assert (await verifier.verify(f"Bearer {one}")).tenant == "acme"
        assert (await verifier.verify(f"Bearer {other}")).tenant == "other"
    # Parts of two good tokens are not a third.
    mixed = ".".join([*one.split(".")[:1], other.split(".")[1], one.split(".")[2]])
    assert await code_of(verifier, mixed) == "bad_signature"


# --- issuers ---


async def test_a_key_is_good_for_its_own_issuer_alone(clock, tmp_path):
    # Both name their key the same, as several products do.
    one, other = Issuer(issuer="https://one.test"), Issuer(issuer="https://other.test")
    verifier = verifier_of(
        clock,
        one.write_jwks(tmp_path / "one.json"),
        other.write_jwks(tmp_path / "other.json"),
        issuers=(one.issuer, other.issuer),
    )
    for signer in (one, other):
        assert await code_of(verifier, signer.issue()) == ""
    assert await code_of(verifier, one.issue(iss=other.issuer)) == "bad_signature"
    assert await code_of(verifier, other.issue(iss=one.issuer)) == "bad_signature"
    for iss in (f"{one.issuer}/", one.issuer.upper(), f" {one.issuer}", [one.issuer], None):
        assert await code_of(verifier, one.issue(iss=iss)) == "unknown_issuer"


# --- keys of other families ---


def rsa_key(bits=2048, exponent=65537):
    return rsa.generate_private_key(public_exponent=exponent, key_size=bits)


def member_of(key, kid, **changes):
    makers = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    maker = next((m for kind, m in makers.items() if isinstance(key, kind)), OKPAlgorithm)
    return {**maker.to_jwk(key.public_key(), as_dict=True), "kid": kid, **changes}


async def test_an_algorithm_is_not_switched_within_its_family(issuer, clock, tmp_path):
    key = rsa_key()
    verifier = verifier_of(clock, key_file(tmp_path, member_of(key, "r", alg="RS256")))
    for alg in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"):
        token = jwt.encode(issuer.claims(), key, algorithm=alg, headers={"kid": "r"})
        assert await code_of(verifier, token) == ("" if alg == "RS256" else "wrong_algorithm")


async def test_an_rsa_key_is_no_hmac_secret(issuer, clock, tmp_path):
    key = rsa_key()
    verifier = verifier_of(clock, key_file(tmp_path, member_of(key, "r", alg="RS256")))
    public = key.public_key()
    numbers = public.public_numbers()
    modulus = numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big")
    jwk = json.dumps(member_of(key, "r", alg="RS256"), sort_keys=True).encode()
    for secret in (
        public.public_bytes(how.Encoding.PEM, how.PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(how.Encoding.PEM, how.PublicFormat.PKCS1),
        public.public_bytes(how.Encoding.DER, how.PublicFormat.SubjectPublicKeyInfo),
        modulus,
        jwk,
    ):
        for alg, digest in (("HS256", hashlib.sha256), ("HS512", hashlib.sha512)):
            head = forged({"alg": alg, "kid": "r"}, issuer.claims(), b"")[:-1]
            mac = hmac.new(secret, head.encode(), digest).digest()
            assert await code_of(verifier, f"{head}.{encoded(mac)}") == "wrong_algorithm"


@pytest.mark.parametrize(
    "signature",
    [bytes(64), b"\x00" * 32 + b"\x01" * 32, b"\xff" * 64, bytes(63), bytes(65), b"", bytes(132)],
    ids=["r=s=0", "r=0", "r=s>n", "short", "long", "none", "of P-521"],
)
async def test_an_ecdsa_signature_of_nothing_is_bad(issuer, clock, tmp_path, signature):
    # CVE-2022-21449 ("psychic signatures") took r = s = 0 for any message.
    key = ec.generate_private_key(ec.SECP256R1())
    verifier = verifier_of(clock, key_file(tmp_path, member_of(key, "e", alg="ES256")))
    header = {"alg": "ES256", "kid": "e"}
    good = jwt.encode(issuer.claims(), key, algorithm="ES256", headers={"kid": "e"})
    assert await code_of(verifier, good) == ""
    assert await code_of(verifier, forged(header, issuer.claims(), signature)) == "bad_signature"


async def test_an_ecdsa_signature_in_der_is_bad(issuer, clock, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    verifier = verifier_of(clock, key_file(tmp_path, member_of(key, "e", alg="ES256")))
    head = forged({"alg": "ES256", "kid": "e"}, issuer.claims(), b"")[:-1]
    der = key.sign(head.encode(), ec.ECDSA(hashes.SHA256()))
    assert await code_of(verifier, f"{head}.{encoded(der)}") == "bad_signature"


# --- secrets ---


async def test_a_shared_secret_is_compared_in_constant_time(clock, tmp_path, monkeypatch):
    # Its comparison is hmac.compare_digest and nothing before it.
    secret = tmp_path / "secret"
    secret.write_text("s" * 48)
    config = IssuerConfig(issuer=ISSUER, audience=AUDIENCE, shared_secret_file=secret)
    verifier = TokenVerifier(AuthConfig(issuers=(config,)), clock=clock)
    compared = []
    real = hmac.compare_digest

    def watched(one, other):
        compared.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    token = jwt.encode(Issuer().claims(), "s" * 48, algorithm="HS256")
    assert await code_of(verifier, token) == ""
    head, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    assert (
        await code_of(verifier, f"{head}.{encoded(bytes([raw[0] ^ 1]) + raw[1:])}")
        == "bad_signature"
    )
    assert compared == [(32, 32), (32, 32)]


def test_the_gateway_has_an_answer_for_each_of_these_codes():
    codes = {kind.code for kind in Unauthenticated.__subclasses__()}
    assert {attack.code for attack in FORGERIES} <= codes
    assert auth_errors.MalformedToken.code in codes
