"""An authority of one's own: files for their owner alone, and steps that cannot be mixed up."""

import stat

import pytest
from cryptography import x509

from reelkit.mtls import authority as module
from reelkit.mtls.authority import Authority, AuthorityError, Wanted, write_issued
from reelkit.mtls.identity import Identity, Role
from tests.support.mtls import HOUR, now

WANTED = Wanted(
    common_name="n1", identity=Identity("ap", Role.NODE, "n1"), hosts=("host1.corp", "10.0.0.7")
)


def create(folder):
    return Authority.create(folder, name="mesh", now=now(), life=10 * HOUR)


def leaf(authority):
    issued = authority.issue(WANTED, now=now(), life=HOUR)
    return x509.load_pem_x509_certificate(issued.certificate)


def signer_of(certificate, authority):
    bundle = x509.load_pem_x509_certificates(authority.ca_file.read_bytes())
    return next(each for each in bundle if each.subject == certificate.issuer)


def test_a_certificate_says_who_where_and_for_what(tmp_path):
    found = leaf(create(tmp_path / "ca"))
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://reelmesh/ap/node/n1"
    ]
    assert names.get_values_for_type(x509.DNSName) == [
        "node.ap.reelmesh.internal",
        "n1.node.ap.reelmesh.internal",
        "host1.corp",
    ]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_every_file_is_its_owners_alone(tmp_path):
    authority = create(tmp_path / "ca")
    authority.stage(name="mesh", now=now(), life=10 * HOUR)
    write_issued(
        authority.issue(WANTED, now=now(), life=HOUR),
        cert_file=tmp_path / "cert.pem",
        key_file=tmp_path / "key.pem",
    )
    for file in [*(tmp_path / "ca").iterdir(), tmp_path / "key.pem"]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700


def test_an_authority_is_not_overwritten(tmp_path):
    create(tmp_path / "ca")
    before = (tmp_path / "ca" / "ca-key.pem").read_bytes()
    with pytest.raises(AuthorityError, match="already"):
        create(tmp_path / "ca")
    assert (tmp_path / "ca" / "ca-key.pem").read_bytes() == before


def test_it_is_replaced_in_three_steps_in_their_order(tmp_path):
    authority = create(tmp_path / "ca")
    first = leaf(authority).issuer
    for step in (authority.switch, authority.retire):
        with pytest.raises(AuthorityError):
            step()
    authority.stage(name="mesh", now=now(), life=10 * HOUR)
    assert leaf(authority).issuer == first
    with pytest.raises(AuthorityError, match="two authorities"):
        authority.stage(name="mesh", now=now(), life=10 * HOUR)
    with pytest.raises(AuthorityError, match="switch first"):
        authority.retire()
    authority.switch()
    second = leaf(authority)
    assert second.issuer != first
    second.verify_directly_issued_by(signer_of(second, authority))
    assert len(x509.load_pem_x509_certificates(authority.ca_file.read_bytes())) == 2
    authority.retire()
    (only,) = x509.load_pem_x509_certificates(authority.ca_file.read_bytes())
    assert only.subject == second.issuer
    assert leaf(Authority.open(tmp_path / "ca")).issuer == second.issuer


def test_a_switch_that_was_broken_off_is_made_good_by_the_next(tmp_path, monkeypatch):
    authority = create(tmp_path / "ca")
    authority.stage(name="mesh", now=now(), life=10 * HOUR)
    real = module.write_atomic

    def write_then_die(path, data):
        real(path, data)
        raise OSError(5, "died")

    monkeypatch.setattr(module, "write_atomic", write_then_die)
    with pytest.raises(AuthorityError):
        authority.switch()
    monkeypatch.undo()
    # Between the two nobody signs with the wrong key.
    with pytest.raises(AuthorityError, match="is not the key"):
        leaf(authority)
    authority.switch()
    found = leaf(authority)
    found.verify_directly_issued_by(signer_of(found, authority))


@pytest.mark.parametrize("broken", ["", "nonsense", None])
def test_an_authority_that_cannot_be_read_is_told(tmp_path, broken):
    create(tmp_path / "ca")
    file = tmp_path / "ca" / "ca-key.pem"
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)
    with pytest.raises(AuthorityError, match="ca-key"):
        Authority.open(tmp_path / "ca")
