"""Certificate files that change while a part runs: what fits is taken, what does not is told."""

import datetime as dt
import shutil

import pytest
from structlog.testing import capture_logs

from reelkit.clock import SystemClock
from reelkit.mtls.config import MutualTlsSettings, refuse_plaintext
from reelkit.mtls.identity import Identity, Role
from reelkit.mtls.material import CertificateError, MutualTls, open_mutual_tls
from reelkit.settings import ConfigError
from tests.support.mtls import HOUR, MeshAuthority, mutual, now


@pytest.fixture
def mesh(tmp_path):
    return MeshAuthority(tmp_path)


@pytest.fixture
def files(mesh):
    return mesh.part("ap", Role.NODE, "n1")


def broken_files(mesh, files, kind):
    """Leaves the files as a renewal that was broken off might."""
    renewed = mesh.issue("ap", Role.NODE, "n1")
    match kind:
        case "certificate alone":
            files.cert_file.write_bytes(renewed.certificate)
        case "key alone":
            files.key_file.write_bytes(renewed.key)
        case "half a certificate":
            mesh.renew(files, renewed)
            files.cert_file.write_bytes(renewed.certificate[:300])
        case "half a key":
            mesh.renew(files, renewed)
            files.key_file.write_bytes(renewed.key[:100])
        case "empty":
            files.cert_file.write_bytes(b"")
        case "gone":
            files.key_file.unlink()
        case "half a bundle":
            whole = files.ca_file.read_bytes()
            files.ca_file.write_bytes(whole + whole[: len(whole) // 2])
        case "empty bundle":
            files.ca_file.write_bytes(b"# nobody\n")
        case "another's":
            mesh.renew(files, mesh.issue("ap", Role.NODE, "n2"))
        case "over":
            mesh.renew(files, mesh.issue("ap", Role.NODE, "n1", life=dt.timedelta(seconds=-240)))
    return renewed


KINDS = [
    "certificate alone",
    "key alone",
    "half a certificate",
    "half a key",
    "empty",
    "gone",
    "half a bundle",
    "empty bundle",
    "another's",
]


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_leave_the_last_good_and_are_told_once(mesh, files, kind):
    tls = mutual(files)
    before = tls.channel_credentials()
    renewed = broken_files(mesh, files, kind)
    with capture_logs() as logs:
        assert not tls.refresh()
        assert not tls.refresh()
    assert [each["event"] for each in logs] == ["certificate not taken; the last one serves on"]
    assert tls.generation == 1
    assert tls.channel_credentials() is before
    # The renewal ends well after all.
    mesh.give_ca(files)
    mesh.renew(files, renewed)
    assert tls.refresh()
    assert tls.generation == 2
    assert tls.channel_credentials() is not before


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_a_part_does_not_start_with_broken_files(mesh, files, kind):
    broken_files(mesh, files, kind)
    with pytest.raises(CertificateError, match=str(files.cert_file.parent)):
        MutualTls(files, clock=SystemClock())


def test_a_part_does_not_start_with_a_certificate_that_is_over(mesh, files):
    class Later(SystemClock):
        def wall(self):
            return super().wall() + 3700

    with pytest.raises(CertificateError, match="is valid from"):
        MutualTls(files, clock=Later())


def test_files_that_were_only_touched_change_nothing(mesh, files):
    tls = mutual(files)
    shutil.copy(files.cert_file, files.cert_file.with_suffix(".copy"))
    files.cert_file.with_suffix(".copy").replace(files.cert_file)
    assert not tls.refresh()
    assert tls.generation == 1


def opened(files, *who):
    region, role, id_ = who
    return open_mutual_tls(files, region=region, role=role, id=id_, clock=SystemClock())


def test_the_certificate_must_be_the_parts_own(files):
    assert opened(files, "ap", Role.NODE, "n1").identity == Identity("ap", Role.NODE, "n1")
    for other in (("ap", Role.NODE, "n2"), ("eu", Role.NODE, "n1"), ("ap", Role.GATEWAY, "n1")):
        with pytest.raises(ConfigError, match="is the certificate of node n1 of region ap"):
            opened(files, *other)
    with pytest.raises(ConfigError, match="id 'N_1'"):
        opened(files, "ap", Role.NODE, "N_1")
    assert opened(None, "ap", Role.NODE, "n1") is None


async def test_a_certificate_that_nobody_renews_is_told_of(mesh, files):
    tls = mutual(files)
    with capture_logs() as logs:
        tls._warn_when_late()
    assert logs == []
    mesh.renew(files, mesh.issue("ap", Role.NODE, "n1", life=dt.timedelta(minutes=1)))
    assert tls.refresh()
    with capture_logs() as logs:
        tls._warn_when_late()
        tls._warn_when_late()
    assert len(logs) == 1
    assert "not renewed" in logs[0]["event"]


def test_no_key_is_printed(files):
    tls = mutual(files)
    key = files.key_file.read_text().splitlines()[1]
    assert key not in repr(tls._in_use)


def test_a_certificate_never_outlives_its_authority(mesh):
    issued = mesh.issue("ap", Role.NODE, "n1", life=1000 * HOUR)
    assert issued.not_after <= now() + 24 * HOUR


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1"])
def test_plain_text_stays_on_its_host(address):
    refuse_plaintext([("listen", address)])


@pytest.mark.parametrize("address", ["0.0.0.0:1", "10.0.0.7:1", "[::]:1", "node.corp:1"])
def test_plain_text_between_hosts_is_refused_with_what_to_do(address):
    with pytest.raises(ValueError, match=r"peer\.listen .*mtls\.ca_file.*allow_plaintext"):
        refuse_plaintext([("peer.listen", address)])


def test_settings_name_three_files():
    assert set(MutualTlsSettings.model_fields) == {"ca_file", "cert_file", "key_file"}
