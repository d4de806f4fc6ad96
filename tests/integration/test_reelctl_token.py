"""``reelctl token``: what it makes holds at a gateway."""

import json

import pytest

from control_plane.reelctl.app import run
from gateway.auth.config import AuthConfig, IssuerConfig
from gateway.auth.tokens import TokenVerifier
from reelkit.clock import SystemClock
from reelkit.tokens.ring import JWKS_FILE

ISSUER = "https://tokens.example.com"


@pytest.fixture
def keys(tmp_path, capsys):
    folder = tmp_path / "keys"
    assert run(["token", "keys", "init", str(folder), "--issuer", ISSUER]) == 0
    capsys.readouterr()
    return folder


def verifier_of(folder):
    issuer = IssuerConfig(issuer=ISSUER, audience="reelmesh", jwks_file=folder / JWKS_FILE)
    return TokenVerifier(AuthConfig(issuers=(issuer,)), clock=SystemClock())


def issued(keys, capsys, *more):
    arguments = ["token", "issue", "--keys", str(keys), "--subject", "alice", "--tenant", "t"]
    assert run([*arguments, *more]) == 0
    return capsys.readouterr().out.strip()


async def test_a_token_holds_at_a_gateway(keys, capsys):
    caller = await verifier_of(keys).verify(f"Bearer {issued(keys, capsys)}")
    assert (caller.tenant, caller.subject) == ("t", "alice")
    assert caller.scopes == {"video:generate", "video:read", "fleet:read"}
    made = json.loads(issued(keys, capsys, "-o", "json", "--scope", "video:read", "--for", "8h"))
    assert (await verifier_of(keys).verify(f"Bearer {made['token']}")).scopes == {"video:read"}
    assert {"kid", "jti", "expires_at"} <= made.keys()


async def test_tokens_of_before_and_after_a_rotation_hold(keys, capsys):
    before = issued(keys, capsys)
    assert run(["token", "keys", "rotate", str(keys), "--lead", "0s"]) == 0
    assert "signs now" in capsys.readouterr().out
    after = issued(keys, capsys)
    verifier = verifier_of(keys)
    for token in (before, after):
        assert (await verifier.verify(f"Bearer {token}")).subject == "alice"
    assert run(["token", "keys", "show", str(keys), "-o", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [each["signs"] for each in shown] == [False, True]
    assert shown[0]["taken_out_at"]
    assert run(["token", "keys", "show", str(keys)]) == 0
    table = capsys.readouterr().out
    assert "retired" in table
    assert "PRIVATE" not in table
    assert run(["token", "keys", "prune", str(keys)]) == 0
    assert "no key is over" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["issue", "--keys", "KEYS", "--subject", "a", "--for", "soon"], 2, "no length of time"),
        (["issue", "--keys", "KEYS", "--subject", "a", "--for", "900d"], 2, "try 31622400s"),
        (["issue", "--keys", "KEYS", "--subject", " "], 1, "--subject is empty"),
        (["issue", "--keys", "NONE", "--subject", "a"], 1, "make a ring there first"),
        (["keys", "init", "KEYS", "--issuer", "i"], 1, "holds a ring already"),
        (["keys", "rotate", "NONE"], 1, "make a ring there first"),
        (["keys", "rotate", "KEYS", "--lead", "-1s"], 2, "no length of time"),
    ],
)
def test_what_cannot_be_done_is_told(keys, tmp_path, capsys, arguments, code, said):
    names = {"KEYS": str(keys), "NONE": str(tmp_path / "none")}
    assert run(["token", *(names.get(each, each) for each in arguments)]) == code
    assert said in capsys.readouterr().err.replace("\n", " ")
