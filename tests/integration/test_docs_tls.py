"""The commands and sections that docs/tls.md shows do what it says."""

import shlex

import yaml

from control_plane.access import ACCESS as CONTROL_ACCESS
from control_plane.reelctl.app import run as reelctl
from gateway.edge_grpc.peer_access import PEER_ACCESS
from node_agent.access import ACCESS as NODE_ACCESS
from reelkit.clock import SystemClock
from reelkit.mtls.config import MutualTlsSettings
from reelkit.mtls.identity import Role
from reelkit.mtls.material import open_mutual_tls
from reelkit.rpc import _HANDSHAKES
from tests.support.documents import REPO, blocks_of


def run_lines(text):
    for line in text.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert (program, reelctl(arguments)) == ("reelctl", 0)


def test_the_certificates_of_the_document_are_those_of_parts_that_start(tmp_path, monkeypatch):
    section, parts, etcd, _ = blocks_of("docs/tls.md", under="Between hosts")
    monkeypatch.chdir(tmp_path)
    run_lines(parts.text)
    run_lines(etcd.text)
    assert set(yaml.safe_load(section.text)["mtls"]) == set(MutualTlsSettings.model_fields)
    for folder, role in (
        ("control-1", Role.CONTROL_PLANE),
        ("gateway-1", Role.GATEWAY),
        ("gpu-1", Role.NODE),
    ):
        files = {
            "ca_file": tmp_path / folder / "ca.pem",
            "cert_file": tmp_path / folder / "cert.pem",
            "key_file": tmp_path / folder / "key.pem",
        }
        opened = open_mutual_tls(
            MutualTlsSettings.model_validate(files),
            region="ap",
            role=role,
            id=folder,
            clock=SystemClock(),
        )
        assert opened is not None
    assert (tmp_path / "etcd-1" / "cert.pem").exists()


def test_what_the_log_says_is_explained():
    text = " ".join((REPO / "docs/tls.md").read_text(encoding="utf-8").split())
    for _, words in _HANDSHAKES:
        assert words.split(";")[0].split(",")[0] in text, words


def test_the_listeners_of_the_document_are_those_of_the_tables():
    """Who may call at all, besides health and reflection."""
    for table, roles in (
        (PEER_ACCESS, {Role.GATEWAY}),
        (NODE_ACCESS, {Role.GATEWAY, Role.CONTROL_PLANE, Role.NODE, Role.OPERATOR}),
        (CONTROL_ACCESS, {Role.NODE, Role.GATEWAY}),
    ):
        own = {m: rule for m, rule in table.items() if m.startswith("/reelmesh.")}
        assert {role for rule in own.values() for role in rule.roles} == roles
