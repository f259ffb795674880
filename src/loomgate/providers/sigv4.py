"""AWS Signature Version 4: the headers that prove who sends a finished request.

What must live here: the canonical form of a request and its signature, and which region an address is in. What must
not: where keys come from (the settings) and what is sent. Rules: "Signature Version 4 signing process" of AWS's
documentation; a path is encoded a second time, for every service but S3.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, unquote, urlsplit

import msgspec
import msgspec.structs

from loomgate import clock
from loomgate.providers.dialect import HttpCall

DEFAULT_REGION = "us-east-1"  # GATEWAY TR-22

_ALGORITHM = "AWS4-HMAC-SHA256"
_PORTS = {"http": 80, "https": 443}
# An address such as bedrock-runtime-fips.eu-west-1.amazonaws.com or vpce-1-a.bedrock-runtime.eu-west-1.vpce.…
_REGIONAL = re.compile(r"(?:^|\.)[a-z-]+\.([a-z]{2,4}(?:-[a-z]+)+-\d+)\.(?:vpce\.)?(?:amazonaws|api)\.")


class AwsKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Long-lived keys, or temporary ones with their session token. Never shown by ``repr``."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        return "AwsKeys(***)"


class SigV4(msgspec.Struct, frozen=True, kw_only=True):
    """The `Auth` of an AWS service in a region: call it with a request, get the request signed as of now."""

    keys: AwsKeys
    region: str
    service: str

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may show. AWS repeats the request in its answer to a wrong signature."""
        keys = self.keys
        return tuple(filter(None, (keys.secret_access_key, keys.session_token, keys.access_key_id)))

    def __call__(self, call: HttpCall) -> HttpCall:
        """``call`` with the headers of `signature` in addition."""
        more = self.signature(call.method, call.url, call.headers, call.body, clock.now())
        return msgspec.structs.replace(call, headers={**call.headers, **more})

    def signature(self, method: str, url: str, headers: Mapping[str, str], body: bytes, at: float) -> dict[str, str]:
        """The headers to add: date, session token and authorization, for a request sent ``at`` (seconds, `clock.now`).

        All of ``headers`` are signed, and so is the host of ``url``, whose path must be as it goes over the wire.
        """
        parts = urlsplit(url)
        stamp = datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%SZ")
        more = {"X-Amz-Date": stamp}
        if self.keys.session_token:
            more["X-Amz-Security-Token"] = self.keys.session_token
        host = parts.hostname or ""
        if parts.port not in (None, _PORTS.get(parts.scheme)):
            host += f":{parts.port}"
        canonical = {name.lower(): " ".join(value.split()) for name, value in {**headers, **more, "host": host}.items()}
        names = sorted(canonical)
        request = "\n".join(
            (
                method,
                (parts.path or "/") if self.service == "s3" else quote(parts.path or "/", safe="/-._~"),
                _query(parts.query),
                *(f"{name}:{canonical[name]}" for name in names),
                "",
                ";".join(names),
                hashlib.sha256(body).hexdigest(),
            )
        )
        scope = f"{stamp[:8]}/{self.region}/{self.service}/aws4_request"
        text = "\n".join((_ALGORITHM, stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
        key = ("AWS4" + self.keys.secret_access_key).encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        credential = f"Credential={self.keys.access_key_id}/{scope}"
        more["Authorization"] = f"{_ALGORITHM} {credential}, SignedHeaders={';'.join(names)}, Signature={signature}"
        return more


def region_of(url: str) -> str | None:
    """The region that the host of an AWS address names, or None."""
    found = _REGIONAL.search(urlsplit(url).hostname or "")
    return found[1] if found else None


def _query(query: str) -> str:
    pairs = [pair.partition("=")[::2] for pair in query.split("&") if pair]
    encoded = sorted([quote(unquote(part), safe="-._~") for part in pair] for pair in pairs)
    return "&".join(map("=".join, encoded))
