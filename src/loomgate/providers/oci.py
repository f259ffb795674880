"""Oracle Cloud's request signature: the headers that prove who sends a finished request (GATEWAY PV-69).

What must live here: the signed text and its signature. What must not: where the key comes from. Rules: "Request
Signatures" of Oracle's documentation, which is the signing of HTTP messages with RSA (draft-cavage-http-signatures-08).
"""

import base64
import email.utils
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
import msgspec.structs

from loomgate import clock
from loomgate.errors import ProviderError
from loomgate.providers.dialect import HttpCall

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

_BODILESS = frozenset({"GET", "DELETE", "HEAD"})


class OciSignature(msgspec.Struct, frozen=True, kw_only=True):
    """The `Auth` of an API signing key: call it with a request, get the request signed as of now."""

    tenancy: str
    user: str
    fingerprint: str
    private_key: str
    passphrase: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "OciSignature":
        """The key in the provider data (GATEWAY RH-40). Raises `ProviderError` ``auth`` for what is missing."""
        names = ("tenancy", "user", "fingerprint", "private_key")
        missing = [f"oracle_{name}" for name in names if not options.get(f"oracle_{name}")]
        if missing:
            raise ProviderError("auth", f"The provider 'oracle' needs {', '.join(missing)}, which is not given.")
        given = {name: str(options[f"oracle_{name}"]) for name in names}
        phrase = options.get("oracle_key_passphrase")
        return cls(**given, passphrase=str(phrase) if phrase else None)

    def __repr__(self) -> str:
        return f"OciSignature({self.user!r})"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may show."""
        return (self.private_key, self.passphrase) if self.passphrase else (self.private_key,)

    def __call__(self, call: HttpCall) -> HttpCall:
        """``call`` with date, digest and signature. Raises `ProviderError` ``auth`` for a key that is none."""
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        parts = urlsplit(call.url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        more = {"Date": email.utils.formatdate(clock.now(), usegmt=True)}
        signed = {
            "date": more["Date"],
            "(request-target)": f"{call.method.lower()} {target}",
            "host": parts.netloc.rpartition("@")[2],
        }
        if call.method not in _BODILESS:
            more["x-content-sha256"] = base64.b64encode(hashlib.sha256(call.body).digest()).decode()
            kind = next((value for name, value in call.headers.items() if name.lower() == "content-type"), "")
            signed["content-length"] = str(len(call.body))
            signed["content-type"] = kind
            signed["x-content-sha256"] = more["x-content-sha256"]
        text = "\n".join(f"{name}: {value}" for name, value in signed.items())
        key = _key(self.private_key, self.passphrase)
        signature = base64.b64encode(key.sign(text.encode(), PKCS1v15(), SHA256())).decode()
        id = f"{self.tenancy}/{self.user}/{self.fingerprint}"
        more["Authorization"] = (
            f'Signature version="1",keyId="{id}",algorithm="rsa-sha256",headers="{" ".join(signed)}",'
            f'signature="{signature}"'
        )
        return msgspec.structs.replace(call, headers={**call.headers, **more})


@lru_cache(maxsize=64)
def _key(pem: str, passphrase: str | None) -> "RSAPrivateKey":
    """Reading a key costs as much as hundreds of signatures."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        # A header has no line breaks: there they are written as two characters.
        data = pem.replace("\\n", "\n").encode()
        key = load_pem_private_key(data, passphrase.encode() if passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise ProviderError("auth", "The oracle_private_key is not an RSA key, or oracle_key_passphrase is wrong.")
    return key
