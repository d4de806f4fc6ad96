"""The key set and the token that docs/tokens.md shows hold at a gateway."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gateway.auth.access import Scope
from gateway.auth.config import AuthConfig
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
    keys, settings, signing = blocks_of("docs/tokens.md")
    assert run(keys.text, tmp_path) == ""
    assert (tmp_path / "signing-key.pem").stat().st_mode & 0o077 == 0
    token = run(signing.text, tmp_path)
    monkeypatch.chdir(tmp_path)
    config = AuthConfig.model_validate(yaml.safe_load(settings.text)["auth"])
    caller = await TokenVerifier(config, clock=SystemClock()).verify(f"Bearer {token}")
    assert (caller.subject, caller.tenant) == ("alice", "studio-7")
    assert caller.scopes == {scope.value for scope in Scope}


@pytest.mark.parametrize("document", ["docs/tokens.md", "README.md"])
def test_every_scope_is_told(document):
    text = (REPO / document).read_text(encoding="utf-8")
    assert [scope.value for scope in Scope if f"`{scope.value}`" not in text] == []
