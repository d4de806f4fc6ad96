"""Which tokens hold, and with what code each other kind is refused."""

import base64
import hashlib
import hmac
import json

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from gateway.auth import errors as auth_errors
from gateway.auth.config import AuthConfig, IssuerConfig
from gateway.auth.tokens import TokenVerifier
from gateway.errors import Unauthenticated
from reelkit.clock import ManualClock
from reelkit.settings import ConfigError
from reelkit.tokens.errors import TokenError
from reelkit.tokens.verifier import MAX_REMEMBERED
from tests.support.tokens import AUDIENCE, ISSUER, TokenIssuer

NOW_S = 1_700_000_000.0
LEEWAY_S = 30.0


@pytest.fixture
def issuer():
    return TokenIssuer()


@pytest.fixture
def clock():
    return ManualClock(start_s=NOW_S)


@pytest.fixture
def verifier(issuer, clock, tmp_path):
    return make_verifier(issuer.write_jwks(tmp_path / "jwks.json"), clock)


def make_verifier(jwks_file, clock, **changes):
    config = IssuerConfig(issuer=ISSUER, audience=AUDIENCE, jwks_file=jwks_file, **changes)
    return TokenVerifier(AuthConfig(issuers=(config,), leeway_s=LEEWAY_S), clock=clock)


def issue(issuer, **changes):
    return issuer.issue(**{"iat": int(NOW_S), "exp": int(NOW_S) + 60, **changes})


def write_keys(path, *keys):
    path.write_text(json.dumps({"keys": list(keys)}))
    return path


def forged(header, claims, signature=b"forged"):
    """A token of any parts at all."""
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(p).rstrip(b"=").decode() for p in parts)


async def refused(verifier, token):
    with pytest.raises(Unauthenticated) as raised:
        await verifier.verify(f"Bearer {token}")
    # No part of a token is ever said again.
    for part in token.split("."):
        assert len(part) < 5 or part not in raised.value.message
    return type(raised.value)


async def test_a_good_token_names_its_caller(verifier, issuer):
    token = issue(issuer, tenant="acme", sub="ann", scope="video:read fleet:read")
    caller = await verifier.verify(f"Bearer {token}")
    assert (caller.tenant, caller.subject) == ("acme", "ann")
    assert caller.scopes == {"video:read", "fleet:read"}


async def test_the_scheme_is_read_in_any_case(verifier, issuer):
    assert await verifier.verify(f"bEARER  {issue(issuer)} ")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "token"])
async def test_a_missing_token_is_called_missing(verifier, header):
    with pytest.raises(auth_errors.MissingToken):
        await verifier.verify(header)


@pytest.mark.parametrize("token", ["x", "a.b", "a.b.c.d", "..", "a.b.c", "é.é.é", "W10.W10.x"])
async def test_what_is_no_jwt_is_malformed(verifier, token):
    assert await refused(verifier, token) is auth_errors.MalformedToken


async def test_a_jwt_without_claims_has_no_issuer(verifier):
    assert await refused(verifier, "e30.e30.") is auth_errors.UnknownIssuer


async def test_deep_nesting_is_malformed(verifier):
    nested = base64.urlsafe_b64encode(b"[" * 4_000).rstrip(b"=").decode()
    assert await refused(verifier, f"{nested}.e30.x") is auth_errors.MalformedToken


async def test_an_oversized_token_is_not_looked_at(verifier, issuer):
    token = issue(issuer, padding="x" * 9_000)
    assert await refused(verifier, token) is auth_errors.TokenTooLarge


async def test_a_token_just_under_the_limit_holds(verifier, issuer):
    token = issue(issuer, padding="x" * 5_600)
    assert 7_500 < len(token) <= 8_192
    assert await verifier.verify(f"Bearer {token}")


async def test_alg_none_is_refused(verifier, issuer):
    claims = issuer.claims(exp=int(NOW_S) + 60)
    for alg in ("none", "None", "", None):
        token = forged({"alg": alg, "kid": issuer.kid}, claims, b"")
        assert await refused(verifier, token) is auth_errors.WrongAlgorithm


async def test_an_hmac_made_with_the_public_key_is_refused(verifier, issuer):
    public = issuer.private_key.public_key()
    claims = issuer.claims(exp=int(NOW_S) + 60)
    for secret in (
        public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw),
    ):
        signed = forged({"alg": "HS256", "kid": issuer.kid}, claims).rsplit(".", 1)[0]
        mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        token = f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
        assert await refused(verifier, token) is auth_errors.WrongAlgorithm


async def test_a_signature_of_another_key_is_refused(verifier):
    other = TokenIssuer()
    assert await refused(verifier, issue(other)) is auth_errors.BadSignature


async def test_changed_claims_break_the_signature(verifier, issuer):
    header, _claims, signature = issue(issuer).split(".")
    claims = json.dumps(issuer.claims(tenant="other", exp=int(NOW_S) + 60)).encode()
    changed = base64.urlsafe_b64encode(claims).rstrip(b"=").decode()
    token = f"{header}.{changed}.{signature}"
    assert await refused(verifier, token) is auth_errors.BadSignature


async def test_a_key_that_the_token_brings_along_is_not_used(verifier, issuer):
    other = TokenIssuer()
    token = other.issue(
        headers={"jwk": other.public_jwk(), "jku": "https://evil.test", "kid": issuer.kid},
        exp=int(NOW_S) + 60,
    )
    assert await refused(verifier, token) is auth_errors.BadSignature


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"iss": "https://evil.test"}, auth_errors.UnknownIssuer),
        ({"iss": None}, auth_errors.UnknownIssuer),
        ({"iss": [ISSUER]}, auth_errors.UnknownIssuer),
        ({"aud": "other"}, auth_errors.WrongAudience),
        ({"aud": None}, auth_errors.WrongAudience),
        ({"aud": []}, auth_errors.WrongAudience),
        ({"aud": {"reelmesh": 1}}, auth_errors.WrongAudience),
        ({"exp": None}, auth_errors.BadClaims),
        ({"exp": "tomorrow"}, auth_errors.BadClaims),
        ({"exp": True}, auth_errors.BadClaims),
        ({"exp": 10**400}, auth_errors.BadClaims),
        ({"exp": float("inf")}, auth_errors.BadClaims),
        ({"exp": int(NOW_S - LEEWAY_S)}, auth_errors.TokenExpired),
        ({"nbf": int(NOW_S + LEEWAY_S) + 1}, auth_errors.TokenNotYetValid),
        ({"iat": int(NOW_S + LEEWAY_S) + 1}, auth_errors.TokenNotYetValid),
        ({"nbf": "soon"}, auth_errors.BadClaims),
        ({"tenant": None}, auth_errors.BadClaims),
        ({"tenant": ""}, auth_errors.BadClaims),
        ({"tenant": "a/b"}, auth_errors.BadClaims),
        ({"tenant": "../etc"}, auth_errors.BadClaims),
        ({"tenant": "a" * 129}, auth_errors.BadClaims),
        ({"tenant": ["acme"]}, auth_errors.BadClaims),
        ({"sub": None}, auth_errors.BadClaims),
        ({"sub": "a\nb"}, auth_errors.BadClaims),
        ({"scope": 5}, auth_errors.BadClaims),
        ({"scope": [1]}, auth_errors.BadClaims),
    ],
)
async def test_claims_are_each_checked(verifier, issuer, changes, expected):
    assert await refused(verifier, issue(issuer, **changes)) is expected


async def test_clocks_may_differ_by_the_leeway(verifier, issuer):
    token = issue(
        issuer,
        exp=int(NOW_S - LEEWAY_S) + 1,
        nbf=int(NOW_S + LEEWAY_S),
        iat=int(NOW_S + LEEWAY_S),
    )
    assert await verifier.verify(f"Bearer {token}")


async def test_a_remembered_token_still_expires(verifier, issuer, clock):
    token = issue(issuer)
    assert await verifier.verify(f"Bearer {token}")
    await clock.advance(60 + LEEWAY_S)
    assert await refused(verifier, token) is auth_errors.TokenExpired


async def test_memory_of_tokens_is_bounded(verifier, issuer):
    for number in range(MAX_REMEMBERED + 5):
        await verifier.verify(f"Bearer {issue(issuer, jti=str(number))}")
    assert len(verifier._jwt._remembered) == MAX_REMEMBERED


async def test_audience_may_be_one_of_several(verifier, issuer):
    assert await verifier.verify(f"Bearer {issue(issuer, aud=['other', AUDIENCE])}")


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"], "exp": 1},
        {"crit": []},
        {"crit": ["b64"], "b64": False},
        {"crit": "b64"},
        {"b64": False},
        {"b64": True},
    ],
)
async def test_critical_extensions_are_refused(verifier, issuer, header):
    token = forged(
        {"alg": "EdDSA", "kid": issuer.kid, **header}, issuer.claims(exp=int(NOW_S) + 60)
    )
    assert await refused(verifier, token) is auth_errors.UnsupportedToken


@pytest.mark.parametrize("kid", [["a"], {"a": 1}, 5, None])
async def test_a_kid_of_another_type_is_malformed(verifier, issuer, kid):
    token = forged({"alg": "EdDSA", "kid": kid}, issuer.claims(exp=int(NOW_S) + 60))
    assert await refused(verifier, token) is auth_errors.MalformedToken


async def test_an_unknown_kid_is_refused(verifier, issuer):
    token = issuer.issue(headers={"kid": "other"}, exp=int(NOW_S) + 60)
    assert await refused(verifier, token) is auth_errors.UnknownKey


async def test_a_missing_kid_is_refused_where_there_are_several_keys(issuer, clock, tmp_path):
    other = TokenIssuer(kid="test-2")
    keys = write_keys(tmp_path / "keys.json", issuer.public_jwk(), other.public_jwk())
    verifier = make_verifier(keys, clock)
    token = jwt.encode(issuer.claims(exp=int(NOW_S) + 60), issuer.private_key, algorithm="EdDSA")
    assert await refused(verifier, token) is auth_errors.UnknownKey
    assert await verifier.verify(f"Bearer {issue(other)}")


async def test_a_missing_kid_means_the_only_key(verifier, issuer):
    token = jwt.encode(
        issuer.claims(exp=int(NOW_S) + 60, iat=None), issuer.private_key, algorithm="EdDSA"
    )
    assert await verifier.verify(f"Bearer {token}")


def asymmetric_keys():
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for alg in ("RS256", "RS512", "PS256", "PS384"):
        yield alg, rsa_key, RSAAlgorithm.to_jwk(rsa_key.public_key(), as_dict=True)
    for alg, curve in (
        ("ES256", ec.SECP256R1()),
        ("ES384", ec.SECP384R1()),
        ("ES512", ec.SECP521R1()),
    ):
        key = ec.generate_private_key(curve)
        yield alg, key, ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    okp = ed25519.Ed25519PrivateKey.generate()
    yield "EdDSA", okp, OKPAlgorithm.to_jwk(okp.public_key(), as_dict=True)


async def test_every_asymmetric_algorithm_holds_with_its_own_key_only(issuer, clock, tmp_path):
    found = list(asymmetric_keys())
    members = [{**jwk, "kid": alg, "alg": alg} for alg, _key, jwk in found]
    verifier = make_verifier(write_keys(tmp_path / "keys.json", *members), clock)
    claims = issuer.claims(exp=int(NOW_S) + 60, iat=None)
    for alg, key, _jwk in found:
        token = jwt.encode(claims, key, algorithm=alg, headers={"kid": alg})
        assert await verifier.verify(f"Bearer {token}")
    rs_key = found[0][1]
    crossed = jwt.encode(claims, rs_key, algorithm="PS256", headers={"kid": "RS256"})
    assert await refused(verifier, crossed) is auth_errors.WrongAlgorithm


class TestSharedSecret:
    SECRET = "s3cret-of-more-than-32-bytes-in-all"

    @pytest.fixture
    def verifier(self, clock, tmp_path):
        path = tmp_path / "secret"
        path.write_text(self.SECRET + "\n")
        config = IssuerConfig(issuer=ISSUER, audience=AUDIENCE, shared_secret_file=path)
        return TokenVerifier(AuthConfig(issuers=(config,)), clock=clock)

    async def test_hs256_holds_where_a_secret_is_configured(self, verifier, issuer):
        claims = issuer.claims(exp=int(NOW_S) + 60, iat=None)
        assert await verifier.verify(f"Bearer {jwt.encode(claims, self.SECRET, 'HS256')}")

    async def test_nothing_but_hs256_holds(self, verifier, issuer):
        claims = issuer.claims(exp=int(NOW_S) + 60, iat=None)
        token = jwt.encode(claims, self.SECRET * 2, "HS512")
        assert await refused(verifier, token) is auth_errors.WrongAlgorithm
        assert await refused(verifier, issue(issuer)) is auth_errors.WrongAlgorithm

    async def test_another_secret_is_refused(self, verifier, issuer):
        claims = issuer.claims(exp=int(NOW_S) + 60, iat=None)
        token = jwt.encode(claims, self.SECRET + "x", "HS256")
        assert await refused(verifier, token) is auth_errors.BadSignature

    def test_a_short_secret_is_a_configuration_error(self, clock, tmp_path):
        path = tmp_path / "short"
        path.write_text("short")
        config = IssuerConfig(issuer=ISSUER, audience=AUDIENCE, shared_secret_file=path)
        with pytest.raises(ConfigError, match="at least 32"):
            TokenVerifier(AuthConfig(issuers=(config,)), clock=clock)


async def test_claims_can_have_other_names(issuer, clock, tmp_path):
    verifier = make_verifier(
        issuer.write_jwks(tmp_path / "jwks.json"),
        clock,
        tenant_claim="org_id",
        subject_claim="client_id",
        scope_claim="scp",
    )
    token = issue(issuer, org_id="o1", client_id="c1", scp=["video:read"], tenant=None, scope=None)
    caller = await verifier.verify(f"Bearer {token}")
    assert (caller.tenant, caller.subject, caller.scopes) == ("o1", "c1", {"video:read"})


def small_rsa():
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - weak on purpose
    return {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "small"}


def private_ed25519():
    key = ed25519.Ed25519PrivateKey.generate()
    return {**OKPAlgorithm.to_jwk(key, as_dict=True), "kid": "private"}


@pytest.mark.parametrize(
    ("make_text", "message"),
    [
        (lambda: "nothing", "not a JSON Web Key Set"),
        (lambda: "[]", "not a JSON Web Key Set"),
        (lambda: '{"keys": {}}', "must be a list"),
        (lambda: '{"keys": []}', "holds no signature key"),
        (lambda: json.dumps({"keys": [{"kty": "oct", "k": "YQ", "kid": "1"}]}), "private or symm"),
        (lambda: json.dumps({"keys": [private_ed25519()]}), "private or symmetric"),
        (lambda: json.dumps({"keys": [small_rsa()]}), "2048"),
        (lambda: json.dumps({"keys": [TokenIssuer().public_jwk()] * 2}), "two keys"),
    ],
)
def test_a_key_set_that_cannot_be_used_is_a_configuration_error(
    clock, tmp_path, make_text, message
):
    path = tmp_path / "jwks.json"
    path.write_text(make_text())
    with pytest.raises(ConfigError, match=message):
        make_verifier(path, clock)


def test_a_missing_key_file_is_a_configuration_error(clock, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        make_verifier(tmp_path / "none.json", clock)


async def test_keys_of_other_uses_and_kinds_are_left_out(issuer, clock, tmp_path):
    encryption = {**TokenIssuer(kid="enc").public_jwk(), "use": "enc"}
    strange = {"kty": "XYZ", "kid": "strange"}
    keys = write_keys(tmp_path / "keys.json", encryption, strange, issuer.public_jwk())
    assert await make_verifier(keys, clock).verify(f"Bearer {issue(issuer)}")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"jwks_file": "a", "shared_secret_file": "b"},
    ],
)
def test_an_issuer_has_exactly_one_source_of_keys(fields):
    with pytest.raises(ValueError, match="exactly one"):
        IssuerConfig(issuer=ISSUER, audience=AUDIENCE, **fields)


def test_an_issuer_is_listed_once():
    issuer = IssuerConfig(issuer=ISSUER, audience=AUDIENCE, jwks_file="a")
    with pytest.raises(ValueError, match="once"):
        AuthConfig(issuers=(issuer, issuer))


def test_there_is_no_way_to_configure_no_issuer():
    with pytest.raises(ValueError, match="at least 1"):
        AuthConfig(issuers=())


@pytest.mark.parametrize("kind", TokenError.__subclasses__())
def test_every_cause_of_the_kit_is_an_answer_of_the_gateway(kind):
    refusal = auth_errors.refusal_of(kind("why"))
    assert (refusal.code, refusal.message) == (kind.code, "why")
    assert type(refusal) is not Unauthenticated
