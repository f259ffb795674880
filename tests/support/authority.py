"""A certificate authority of a test's own, and the certificates it gives."""

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """``ca_file`` is what a client trusts; `context` is what a server uses. Files go to ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._made = 0
        made = self._sign("an authority", self._key, x509.BasicConstraints(ca=True, path_length=None), [])
        self.ca_file = folder / "authority.pem"
        self.ca_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def context(self, *names: str) -> ssl.SSLContext:
        """For a server that is called by these names (or addresses)."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._sign("a server", key, x509.BasicConstraints(ca=False, path_length=None), list(names))
        public, private = self._folder / f"{self._made}.pem", self._folder / f"{self._made}.key"
        public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        private.write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(public, private)
        return context

    def _sign(
        self, name: str, key: ec.EllipticCurvePrivateKey, kind: x509.BasicConstraints, names: list[str]
    ) -> x509.Certificate:
        self._made += 1
        # Fixed, since OpenSSL goes by the machine's clock, which tests that move ours do not move.
        begin, end = (
            datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
            datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC),
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name("an authority"))
            .public_key(key.public_key())
            .serial_number(self._made)
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(kind, critical=True)
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general(one) for one in names]), critical=False
            )
        return builder.sign(self._key, hashes.SHA256())


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
