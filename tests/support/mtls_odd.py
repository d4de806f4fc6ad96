"""Certificates that no command of ours would issue."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from reelkit.mtls import authority as module
from reelkit.mtls.authority import Authority, Issued


def issue_with_uris(authority: Authority, uris: Sequence[str]) -> Issued:
    """A sound certificate with these URIs and no other name of consequence."""
    key, signer = authority._signer()
    own = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    until = now + dt.timedelta(hours=1)
    names = [x509.DNSName("anything"), *map(x509.UniformResourceIdentifier, uris)]
    certificate = (
        module._builder(module._name("odd"), signer.subject, own.public_key(), now, until)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Issued(module._pem(certificate), module._private_pem(own), until)
