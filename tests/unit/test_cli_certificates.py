"""The certificates of a local mesh: made at the start, made anew while it runs."""

import datetime as dt
import stat

import pytest
from cryptography import x509

from reelkit.mtls.identity import Role
from reelmesh_cli.errors import UsageError
from reelmesh_cli.mesh.certificates import LIFE, CertificateBook, issue, open_authorities

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def plans(tmp_path):
    book = CertificateBook(tmp_path, enabled=True)
    book.mtls(Role.NODE, "ap", "ap-node-0")
    book.public("ap-gateway-0")
    book.etcd_member("global", "etcd")
    book.etcd_client("global", "ap-control-0")
    return book.plans


def certificates(plans):
    return [x509.load_pem_x509_certificate(each.files.cert.read_bytes()) for each in plans]


def authorities(plans):
    return {each.files.ca.read_bytes() for each in plans}


def test_each_is_signed_by_the_authority_of_its_kind_and_lives_a_day(plans):
    open_authorities(plans, now=NOW)
    issue(plans, now=NOW)
    assert len(authorities(plans)) == 3
    for plan, found in zip(plans, certificates(plans), strict=True):
        found.verify_directly_issued_by(x509.load_pem_x509_certificate(plan.files.ca.read_bytes()))
        assert abs(found.not_valid_after_utc - (NOW + LIFE)) <= dt.timedelta(seconds=1)
        for file in (plan.files.cert, plan.files.key):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_authorities_outlive_a_start_and_certificates_do_not(plans):
    open_authorities(plans, now=NOW)
    issue(plans, now=NOW)
    believed, before = authorities(plans), certificates(plans)
    open_authorities(plans, now=NOW)
    issue(plans, now=NOW)
    assert authorities(plans) == believed
    assert not {each.serial_number for each in before} & {
        each.serial_number for each in certificates(plans)
    }


def test_an_authority_that_is_nearly_over_is_replaced_at_the_start(plans):
    open_authorities(plans, now=NOW)
    believed = authorities(plans)
    open_authorities(plans, now=NOW + dt.timedelta(days=340))
    assert not believed & authorities(plans)


def test_an_authority_that_is_broken_is_told(plans):
    open_authorities(plans, now=NOW)
    (plans[0].files.ca.parent / "ca-key.pem").write_text("nonsense")
    with pytest.raises(UsageError, match=r"ca-key\.pem"):
        open_authorities(plans, now=NOW)
    with pytest.raises(UsageError, match="cannot be made"):
        issue(plans, now=NOW)


def test_without_tls_nothing_is_noted(tmp_path):
    book = CertificateBook(tmp_path, enabled=False)
    assert book.mtls(Role.NODE, "ap", "n") == {}
    assert book.public("g") == {}
    assert book.etcd_member("global", "e") == ()
    assert book.etcd_client("global", "c") == {}
    assert (book.plans, book.ca) == ((), None)
    assert book.url("127.0.0.1:1") == "http://127.0.0.1:1"
