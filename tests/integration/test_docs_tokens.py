"""The key set and the token that docs/tokens.md shows hold at a gateway."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from control_plane.reelctl.app import run as reelctl
from gateway.auth.access import Scope
from gateway.auth.config import AuthConfig, IssuerConfig
from gateway.auth.tokens import TokenVerifier
from reelkit.clock import SystemClock
from tests.support.documents import REPO, blocks_of


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


async def test_the_token_of_the_document_holds(tmp_path, monkeypatch):
    keys, settings, signing = blocks_of("docs/tokens.md", under="The same by hand")
    assert run(keys.text, tmp_path) == ""
    assert (tmp_path / "signing-key.pem").stat().st_mode & 0o077 == 0
    token = run(signing.text, tmp_path)
    monkeypatch.chdir(tmp_path)
    config = AuthConfig.model_validate(yaml.safe_load(settings.text)["auth"])
    caller = await TokenVerifier(config, clock=SystemClock()).verify(f"Bearer {token}")
    assert (caller.subject, caller.tenant) == ("alice", "studio-7")
    assert caller.scopes == {scope.value for scope in Scope}


async def test_the_commands_of_the_document_make_a_token_that_holds(tmp_path, monkeypatch, capsys):
    (block,) = blocks_of("docs/tokens.md", under="An issuer of your own, from the command line")
    monkeypatch.chdir(tmp_path)
    printed = []
    for line in block.text.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert (program, reelctl(arguments)) == ("reelctl", 0)
        printed.append(capsys.readouterr().out.strip())
    issuer = IssuerConfig(
        issuer="https://tokens.example.com",
        audience="reelmesh",
        jwks_file=tmp_path / "keys" / "jwks.json",
    )
    verifier = TokenVerifier(AuthConfig(issuers=(issuer,)), clock=SystemClock())
    caller = await verifier.verify(f"Bearer {printed[1]}")
    assert (caller.subject, caller.tenant) == ("alice", "studio-7")


@pytest.mark.parametrize("document", ["docs/tokens.md", "README.md"])
def test_every_scope_is_told(document):
    text = (REPO / document).read_text(encoding="utf-8")
    assert [scope.value for scope in Scope if f"`{scope.value}`" not in text] == []
