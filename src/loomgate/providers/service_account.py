"""Google service accounts: a key file's JSON is exchanged for an access token, which is kept until shortly before it
ends (RFC 7523, and Google's "Using OAuth 2.0 for server to server applications").

What must live here: the signed assertion, the exchange, the tokens held. What must not: what a token is used for.
"""

import asyncio
import base64
import contextlib
import re
from urllib.parse import urlencode, urlsplit

import msgspec
from msgspec.structs import replace

from loomgate import clock
from loomgate.errors import ProviderError
from loomgate.providers.dialect import HttpCall, Target
from loomgate.providers.failure import masked, retry_after, status_kind
from loomgate.providers.transport import Timeouts, Transport

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_LIFETIME = 3600  # seconds that an assertion, and with it the token, is asked for: the most that Google allows
_SPARE = 300.0  # seconds before its end at which a token is replaced, so that none ends on its way
_LONGEST_ANSWER = 64 * 1024


class ServiceAccount(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="service_account"):
    """What Google's JSON file for a service account's key holds, as far as it is needed. ``repr`` shows no key."""

    client_email: str
    private_key: str
    private_key_id: str = ""
    project_id: str | None = None
    token_uri: str = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address

    def __repr__(self) -> str:
        return f"ServiceAccount({self.client_email!r})"


_decode = msgspec.json.Decoder(ServiceAccount).decode


def service_account(key: str) -> ServiceAccount | None:
    """The account if ``key`` is the text of its key file; None if it is no JSON: a token or an API key.

    Raises `ProviderError` ``auth`` for JSON of another kind.
    """
    if not key.lstrip().startswith("{"):
        return None
    try:
        account = _decode(key)
    except (msgspec.DecodeError, UnicodeError) as error:
        said = f"The key is JSON, but not the key file of a Google service account: {error}"
        raise ProviderError("auth", said) from None
    if account.project_id is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.:-]*", account.project_id):
        raise ProviderError("auth", "The project_id in the service account's key file is not the id of a project.")
    return account


def project_for(account: ServiceAccount, given: str | None, *, trusted: bool) -> str | None:
    """The project to call in: ``given``, the provider's, comes first unless the account is a client's own."""
    return (given or account.project_id) if trusted else (account.project_id or given)


class _Token(msgspec.Struct):
    """A token and when it ends, in seconds of `loomgate.clock`; the lock lets one caller at a time fetch it."""

    lock: asyncio.Lock
    value: str = ""
    end: float = 0.0

    @property
    def fresh(self) -> bool:
        return clock.now() < self.end - _SPARE


class _Granted(msgspec.Struct):
    access_token: str
    expires_in: float = _LIFETIME


class _Denied(msgspec.Struct):
    error: str
    error_description: str = ""


class AccessTokens:
    """The tokens of the service accounts in use: one exchange per account and hour, however many calls there are."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._tokens: dict[ServiceAccount, _Token] = {}

    async def opened(self, target: Target, timeouts: Timeouts, *, trusted: bool) -> Target:
        """``target`` with an access token for its key, and with a project (`project_for`).

        A key that is no key file stays what it is. ``trusted``: whether the operator vouches for the key; a client's
        own must not choose the address that the exchange goes to. Raises `ProviderError`: ``auth`` when there is no
        token for this account, or the failure of the exchange.
        """
        account = service_account(target.api_key or "")
        if account is None:
            return target
        if not trusted and not _is_googles(account.token_uri):
            raise ProviderError("auth", "The token_uri in the service account's key file is not an address of Google.")
        token = await self._token(account, timeouts)
        return replace(target, api_key=token, project=project_for(account, target.project, trusted=trusted))

    def forget(self, refused: str | None) -> None:
        """Fetch a new token for the next call: ``refused`` is no longer taken, whatever its time."""
        for token in self._tokens.values():
            if refused and token.value == refused:
                token.end = 0.0

    async def _token(self, account: ServiceAccount, timeouts: Timeouts) -> str:
        held = self._tokens.get(account)
        if held is None:
            for old in [known for known, token in self._tokens.items() if not token.fresh and not token.lock.locked()]:
                del self._tokens[old]
            held = self._tokens[account] = _Token(asyncio.Lock())
        if not held.fresh:
            async with held.lock:
                if not held.fresh:
                    asked = clock.now()
                    granted = await self._exchange(account, timeouts)
                    held.value, held.end = granted.access_token, asked + granted.expires_in
        return held.value

    async def _exchange(self, account: ServiceAccount, timeouts: Timeouts) -> _Granted:
        # Checking and using an RSA key takes milliseconds: not on the event loop.
        assertion = await asyncio.to_thread(_assertion, account, clock.timestamp())
        form = urlencode({"grant_type": _GRANT, "assertion": assertion}).encode()
        call = HttpCall(account.token_uri, {"Content-Type": "application/x-www-form-urlencoded"}, form)
        async with await self._transport.send(call, timeouts) as reply:
            body = await reply.read(_LONGEST_ANSWER)
            if reply.status != 200:
                raise _denied(account, reply.status, reply.headers, body)
        try:
            return msgspec.json.decode(body, type=_Granted)
        except (msgspec.DecodeError, UnicodeError):
            raise ProviderError("malformed", f"{_host(account)} answered without an access token.") from None


def _is_googles(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme == "https" and (parts.hostname or "").endswith(".googleapis.com")


def _host(account: ServiceAccount) -> str:
    return urlsplit(account.token_uri).hostname or "The token_uri"


def _denied(account: ServiceAccount, status: int, headers: dict[str, str], body: bytes) -> ProviderError:
    """Why there is no token (RFC 6749 section 5.2): a 400 is about the account as well."""
    said = ""
    with contextlib.suppress(msgspec.DecodeError, UnicodeError):
        told = msgspec.json.decode(body, type=_Denied)
        said = f": {told.error}" + (f": {told.error_description}" if told.error_description else "")
    kind = "auth" if status in (400, 401, 403) else status_kind(status)
    message = f"No access token for the service account {account.client_email} (HTTP {status}{masked(said)})"
    return ProviderError(kind, message[:2000], status=status, retry_after=retry_after(headers))


def _assertion(account: ServiceAccount, now: int) -> str:
    """The JWT that asks for a token (RFC 7523 section 3), signed with RS256 (RFC 7518 section 3.3).

    Raises `ProviderError` ``auth`` when the account's private key is none.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(account.private_key.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise ProviderError("auth", f"The private_key of the service account {account.client_email} is not an RSA key.")
    head = {"alg": "RS256", "typ": "JWT", "kid": account.private_key_id}
    claims = {
        "iss": account.client_email,
        "scope": _SCOPE,
        "aud": account.token_uri,
        "iat": now,
        "exp": now + _LIFETIME,
    }
    signed = b".".join(_base64url(msgspec.json.encode(part)) for part in (head, claims))
    return (signed + b"." + _base64url(key.sign(signed, PKCS1v15(), SHA256()))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
