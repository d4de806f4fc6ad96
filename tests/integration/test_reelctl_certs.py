"""``reelctl certs``: from nothing to parts that know one another, and to a new authority."""

import json
import stat
import subprocess
import sys

import pytest

from reelkit.clock import SystemClock
from reelkit.mtls.config import MutualTlsSettings
from reelkit.mtls.identity import Role
from reelkit.mtls.material import open_mutual_tls


def reelctl(*arguments, cwd, code=0):
    ran = subprocess.run(
        [sys.executable, "-m", "control_plane.reelctl", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == code, ran.stderr
    return ran.stdout if code == 0 else ran.stderr


def files_in(folder):
    return MutualTlsSettings(
        ca_file=folder / "ca.pem", cert_file=folder / "cert.pem", key_file=folder / "key.pem"
    )


NODE = ("--region", "ap", "--role", "node", "--id", "gpu-1")


def test_a_part_starts_with_what_was_issued(tmp_path):
    reelctl("certs", "ca", "init", "ca", cwd=tmp_path)
    reelctl("certs", "issue", "--ca", "ca", *NODE, "--dns", "h1", "--out", "n1", cwd=tmp_path)
    tls = open_mutual_tls(
        files_in(tmp_path / "n1"), region="ap", role=Role.NODE, id="gpu-1", clock=SystemClock()
    )
    assert tls.identity.uri == "spiffe://reelmesh/ap/node/gpu-1"
    for file in (tmp_path / "n1").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (told,) = json.loads(reelctl("certs", "show", "n1/cert.pem", "-o", "json", cwd=tmp_path))
    assert told["names"] == [
        "spiffe://reelmesh/ap/node/gpu-1",
        "node.ap.reelmesh.internal",
        "gpu-1.node.ap.reelmesh.internal",
        "h1",
    ]
    # The same again renews it, and a running part takes it.
    reelctl("certs", "issue", "--ca", "ca", *NODE, "--out", "n1", cwd=tmp_path)
    assert tls.refresh()


def test_an_authority_is_replaced_by_the_commands(tmp_path):
    reelctl("certs", "ca", "init", "ca", cwd=tmp_path)
    assert "stage one first" in reelctl("certs", "ca", "switch", "ca", cwd=tmp_path, code=1)
    for step in ("stage", "switch", "retire"):
        reelctl("certs", "ca", step, "ca", cwd=tmp_path)
        reelctl("certs", "issue", "--ca", "ca", *NODE, "--out", step, cwd=tmp_path)
        count = {"stage": 2, "switch": 2, "retire": 1}[step]
        assert (tmp_path / step / "ca.pem").read_text().count("BEGIN CERT") == count


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--region", "ap", "--role", "node"), "--id of a part"),
        (("--name", "x", "--role", "node"), "no part"),
        (("--region", "AP", "--role", "node", "--id", "n1"), "region 'AP'"),
        (("--region", "ap", "--role", "boss", "--id", "n1"), "role"),
        ((*NODE, "--host", "a host"), "neither a DNS name"),
        ((*NODE, "--for", "1s"), "--for"),
        (("--name", "a b"), "--name"),
    ],
)
def test_what_cannot_be_issued_is_told(tmp_path, arguments, said):
    reelctl("certs", "ca", "init", "ca", cwd=tmp_path)
    told = reelctl("certs", "issue", "--ca", "ca", "--out", "o", *arguments, cwd=tmp_path, code=2)
    assert said in told
    assert not (tmp_path / "o").exists()


def test_a_folder_without_an_authority_is_told(tmp_path):
    told = reelctl("certs", "issue", "--ca", "ca", "--out", "o", *NODE, cwd=tmp_path, code=1)
    assert "No such file" in told
