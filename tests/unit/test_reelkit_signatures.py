"""Signatures hold for exactly one document of one kind under one key."""

import stat

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from reelkit.signatures import (
    KeyFileError,
    SigningKey,
    encoded,
    make_keys,
    read_public_key,
    read_signing_key,
)

KEY, OTHER = SigningKey(Ed25519PrivateKey.generate()), SigningKey(Ed25519PrivateKey.generate())


def test_the_encoding_is_dsses_own_example():
    # https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
    kind = "http://example.com/HelloWorld"
    assert (
        encoded(kind, b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@given(st.text(max_size=20), st.binary(max_size=100), st.text(max_size=20), st.binary(max_size=100))
def test_a_signature_holds_for_its_document_alone(kind, data, other_kind, other_data):
    signed = KEY.sign(kind, data)
    assert KEY.public.holds(signed.signature, kind, data)
    assert not OTHER.public.holds(signed.signature, kind, data)
    if (kind, data) != (other_kind, other_data):
        assert not KEY.public.holds(signed.signature, other_kind, other_data)


def test_no_two_documents_are_encoded_alike():
    assert encoded("a", b"1 b") != encoded("a 3 1", b"b")


@pytest.mark.parametrize("signature", [b"", b"x" * 63, b"\0" * 64])
def test_what_is_no_signature_does_not_hold(signature):
    assert not KEY.public.holds(signature, "k", b"d")


def test_keys_are_written_for_their_owner_alone_and_read_again(tmp_path):
    private, public = tmp_path / "k", tmp_path / "k.pub"
    made = make_keys(private, public)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    signed = read_signing_key(private).sign("k", b"d")
    assert signed.key_id == made.public.key_id == read_public_key(public).key_id
    assert read_public_key(public).holds(signed.signature, "k", b"d")
    with pytest.raises(FileExistsError):
        make_keys(private, tmp_path / "elsewhere.pub")
    with pytest.raises(FileExistsError):
        make_keys(tmp_path / "elsewhere", public)
    assert not (tmp_path / "elsewhere").exists()


def test_files_that_are_no_such_keys_are_told(tmp_path):
    private, public = tmp_path / "k", tmp_path / "k.pub"
    make_keys(private, public)
    for read, file in ((read_signing_key, tmp_path / "no"), (read_public_key, tmp_path / "no")):
        with pytest.raises(KeyFileError, match="cannot be read"):
            read(file)
    with pytest.raises(KeyFileError, match="no public key"):
        read_public_key(private)
    public.chmod(0o600)
    with pytest.raises(KeyFileError, match="no private key"):
        read_signing_key(public)
    private.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_signing_key(private)
