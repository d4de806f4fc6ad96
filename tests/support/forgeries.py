"""Tokens that attackers make, each with the code that it must be refused with.

One table for the verifier and for both edges: :data:`FORGERIES`. Every entry starts from
an issuer whose tokens hold, and knows no more of it than its public key and a good token.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import serialization

from tests.support.tokens import TokenIssuer

_PEM = serialization.Encoding.PEM
_DER = serialization.Encoding.DER
_RAW = serialization.Encoding.Raw
_INFO = serialization.PublicFormat.SubjectPublicKeyInfo


def encoded(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header: Any, claims: Any, signature: bytes = b"forged") -> str:
    """A token of any parts; bytes stand as they are, the rest becomes JSON."""
    parts = [p if isinstance(p, bytes) else json.dumps(p).encode() for p in (header, claims)]
    return ".".join(encoded(part) for part in (*parts, signature))


def signed(issuer: TokenIssuer, header: Any, claims: Any) -> str:
    """The same with a signature of the issuer's own: what a careless issuer could make."""
    head = forged(header, claims, b"")[:-1]
    return f"{head}.{encoded(issuer.private_key.sign(head.encode()))}"


def header_of(issuer: TokenIssuer, **changes: Any) -> dict[str, Any]:
    """The header of a good token; a change to None leaves the member out."""
    header = {"alg": "EdDSA", "typ": "JWT", "kid": issuer.kid, **changes}
    return {name: value for name, value in header.items() if value is not None}


def hmac_with_public_key(issuer: TokenIssuer, key: bytes, *, alg: str = "HS256") -> str:
    """Key confusion: the public key used as if it were a shared secret."""
    head = forged(header_of(issuer, alg=alg), issuer.claims(), b"")[:-1]
    return f"{head}.{encoded(hmac.new(key, head.encode(), hashlib.sha256).digest())}"


@dataclass(frozen=True)
class Forgery:
    """One attack."""

    name: str
    make: Callable[[TokenIssuer], str]
    code: str


def _unsigned(**header: Any) -> Callable[[TokenIssuer], str]:
    return lambda issuer: forged(header_of(issuer, **header), issuer.claims())


def _by_another(**header: Any) -> Callable[[TokenIssuer], str]:
    """Signed well, with the attacker's key, which the header tries to bring along."""

    def make(issuer: TokenIssuer) -> str:
        attacker = TokenIssuer()
        own = {"jwk": attacker.public_jwk()} if header.get("jwk") else {}
        return signed(attacker, header_of(issuer, **{**header, **own}), issuer.claims())

    return make


def _signature(change: Callable[[bytes], bytes]) -> Callable[[TokenIssuer], str]:
    def make(issuer: TokenIssuer) -> str:
        head, _, signature = issuer.issue().rpartition(".")
        raw = base64.urlsafe_b64decode(signature + "==")
        return f"{head}.{encoded(change(raw))}"

    return make


def _text(change: Callable[[str], str]) -> Callable[[TokenIssuer], str]:
    return lambda issuer: change(issuer.issue())


def _part(number: int, change: Callable[[str], str]) -> Callable[[TokenIssuer], str]:
    def make(issuer: TokenIssuer) -> str:
        parts = issuer.issue().split(".")
        parts[number] = change(parts[number])
        return ".".join(parts)

    return make


def _raw(header: str = "", claims: str = "") -> Callable[[TokenIssuer], str]:
    """Signed by the issuer, with JSON written by hand; {} is the usual content."""

    def make(issuer: TokenIssuer) -> str:
        usual = json.dumps(header_of(issuer))[1:-1], json.dumps(issuer.claims())[1:-1]
        texts = [
            (text or "{%s}").replace("%s", inside).encode()
            for text, inside in zip((header, claims), usual, strict=True)
        ]
        return signed(issuer, *texts)

    return make


def _public(encoding: Any, form: Any) -> Callable[[TokenIssuer], bytes]:
    return lambda issuer: issuer.private_key.public_key().public_bytes(encoding, form)


def _confused(key: Callable[[TokenIssuer], bytes]) -> Callable[[TokenIssuer], str]:
    return lambda issuer: hmac_with_public_key(issuer, key(issuer))


def _uncanonical(text: str) -> str:
    """Another spelling of the same bytes: the bits of the last character that mean nothing."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) + 1]


_ALGORITHM = (
    *(
        Forgery(f"alg {alg}", _unsigned(alg=alg), "wrong_algorithm")
        for alg in ("none", "None", "NONE", "nOnE", "", " EdDSA", "eddsa", "Ed25519")
    ),
    Forgery("alg none, no signature", _text(lambda _: ""), "missing_token"),
    Forgery("alg missing", _unsigned(alg=None), "wrong_algorithm"),
    Forgery("alg a number", _unsigned(alg=0), "wrong_algorithm"),
    Forgery("alg a list", _unsigned(alg=["EdDSA"]), "wrong_algorithm"),
    Forgery("alg of another family", _unsigned(alg="ES256"), "wrong_algorithm"),
    Forgery("public PEM as secret", _confused(_public(_PEM, _INFO)), "wrong_algorithm"),
    Forgery("public DER as secret", _confused(_public(_DER, _INFO)), "wrong_algorithm"),
    Forgery(
        "public bytes as secret",
        _confused(_public(_RAW, serialization.PublicFormat.Raw)),
        "wrong_algorithm",
    ),
    Forgery("empty secret", _confused(lambda _: b""), "wrong_algorithm"),
)

_HEADER = (
    Forgery("its own jwk", _by_another(jwk=True), "bad_signature"),
    Forgery("its own jku", _by_another(jku="http://127.0.0.1:1/jwks.json"), "bad_signature"),
    Forgery("its own x5u", _by_another(x5u="http://127.0.0.1:1/cert.pem"), "bad_signature"),
    Forgery("its own x5c", _by_another(x5c=["MIIB"]), "bad_signature"),
    Forgery("kid of a path", _by_another(kid="../../../dev/null"), "unknown_key"),
    Forgery("kid of SQL", _by_another(kid="x' UNION SELECT 'secret"), "unknown_key"),
    Forgery("kid of a shell", _by_another(kid="key;$(id)|`id`"), "unknown_key"),
    Forgery("kid of a URL", _by_another(kid="http://127.0.0.1:1/"), "unknown_key"),
    Forgery("kid with a NUL", _by_another(kid="test-1\x00"), "unknown_key"),
    Forgery("kid of another case", _by_another(kid="TEST-1"), "unknown_key"),
    Forgery("kid with a space", _by_another(kid=" test-1"), "unknown_key"),
    Forgery("kid empty", _by_another(kid=""), "unknown_key"),
    Forgery("kid very long", _by_another(kid="k" * 4_000), "unknown_key"),
    Forgery("kid a list", _by_another(kid=["test-1"]), "malformed_token"),
    Forgery("kid an object", _by_another(kid={"a": 1}), "malformed_token"),
    Forgery("crit", _unsigned(crit=["exp"]), "unsupported_token"),
    Forgery("crit empty", _unsigned(crit=[]), "unsupported_token"),
    Forgery("b64 false", _unsigned(b64=False, crit=["b64"]), "unsupported_token"),
    Forgery("encrypted", _text(lambda t: f"{t}.AA.AA"), "malformed_token"),
    Forgery(
        "encrypted header in three parts",
        _unsigned(alg="RSA-OAEP", enc="A256GCM"),
        "wrong_algorithm",
    ),
)

_SIGNATURE = (
    Forgery("signature stripped", _signature(lambda _: b""), "bad_signature"),
    Forgery("signature cut", _signature(lambda s: s[:-1]), "bad_signature"),
    Forgery("signature and more", _signature(lambda s: s + b"\x00"), "bad_signature"),
    Forgery("signature of zeros", _signature(lambda s: bytes(len(s))), "bad_signature"),
    Forgery("signature of ones", _signature(lambda s: b"\xff" * len(s)), "bad_signature"),
    Forgery(
        "signature with a bit turned",
        _signature(lambda s: s[:-1] + bytes([s[-1] ^ 1])),
        "bad_signature",
    ),
    Forgery("signature part gone", _text(lambda t: t.rpartition(".")[0]), "malformed_token"),
    Forgery("signed by another", lambda _: TokenIssuer().issue(), "bad_signature"),
)

_SPELLING = (
    Forgery("signature spelt otherwise", _part(2, _uncanonical), "malformed_token"),
    Forgery("signature padded", _part(2, lambda p: p + "=="), "malformed_token"),
    Forgery("header padded", _part(0, lambda p: p + "=" * (-len(p) % 4 or 4)), "malformed_token"),
    Forgery("junk inside", _part(2, lambda p: p[:9] + "!" + p[9:]), "malformed_token"),
    Forgery("a line break inside", _part(1, lambda p: p[:9] + "\\n" + p[9:]), "malformed_token"),
    Forgery("a space inside", _part(1, lambda p: p[:9] + " " + p[9:]), "malformed_token"),
    Forgery("the other base64", _part(2, lambda p: "+/" + p[2:]), "malformed_token"),
    Forgery("a fourth part", _text(lambda t: f"{t}.e30"), "malformed_token"),
    Forgery("a second token", _text(lambda t: f"{t},{t}"), "malformed_token"),
    Forgery("a second token behind a space", _text(lambda t: f"{t} {t}"), "malformed_token"),
    Forgery("data behind the claims", _raw(claims="{%s} {}"), "malformed_token"),
    Forgery("data behind the header", _raw(header="{%s}x"), "malformed_token"),
    Forgery("a tenant twice", _raw(claims='{%s, "tenant": "victim"}'), "malformed_token"),
    Forgery("an algorithm twice", _raw(header='{%s, "alg": "none"}'), "malformed_token"),
    Forgery("a kid twice", _raw(header='{%s, "kid": "other"}'), "malformed_token"),
    Forgery("a name twice, deep", _raw(claims='{%s, "x": {"a": 1, "a": 2}}'), "malformed_token"),
    Forgery("a name twice by escape", _raw(claims='{%s, "ten\\u0061nt": "v"}'), "malformed_token"),
    Forgery("claims that nest", _raw(claims='{%s, "x": ' + "[" * 2_900 + "}"), "malformed_token"),
    Forgery("a header that nests", _raw(header='{"a":' * 700), "malformed_token"),
    Forgery("a token in the claims", _raw(claims='"e30.e30.e30"'), "malformed_token"),
    Forgery("not UTF-8", lambda i: signed(i, header_of(i), b'{"iss": "\xff"}'), "malformed_token"),
    Forgery("5,000 digits", _raw(claims='{%s, "x": ' + "9" * 5_000 + "}"), "malformed_token"),
    Forgery("oversized", lambda i: i.issue(padding="x" * 9_000), "token_too_large"),
)  # fmt: skip

FORGERIES: tuple[Forgery, ...] = (*_ALGORITHM, *_HEADER, *_SIGNATURE, *_SPELLING)
"""Whoever verifies must refuse each of them, with this code."""
