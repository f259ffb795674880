"""What has to be fetched before a call can prove who makes it: access tokens of Google and Microsoft, roles of AWS.

What must live here: the exchanges, and what they gave until shortly before it ends. What must not: keys that are sent
or signed with as they are (`Target`, ``sigv4``). Rules: OAuth 2.0 client credentials with Microsoft Entra (RFC 6749
section 4.4, RFC 7523 section 2.2 for workload identity), "managed identities for Azure resources", AWS's AssumeRole.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Hashable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
from msgspec.structs import replace

from loomgate import clock
from loomgate.errors import ProviderError
from loomgate.providers.dialect import HttpCall, Target
from loomgate.providers.failure import masked, retry_after, status_kind
from loomgate.providers.oci import OciSignature
from loomgate.providers.service_account import AccessTokens
from loomgate.providers.sigv4 import DEFAULT_REGION, AwsKeys, SigV4
from loomgate.providers.transport import Timeouts, Transport

_SPARE = 300.0  # seconds before its end at which something is fetched anew, so that none ends on its way
_MOST = 1000  # things held; far more than a gateway has accounts
_LONGEST_ANSWER = 64 * 1024
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}

_COGNITIVE = "https://cognitiveservices.azure.com"
_AUTHORITY = "https://login.microsoftonline.com"
_METADATA = "http://169.254.169.254/metadata/identity/oauth2/token"
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Bearer(msgspec.Struct, frozen=True):
    """The `Auth` of an access token."""

    token: str

    def __repr__(self) -> str:
        return "Bearer(***)"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may show."""
        return (self.token,)

    def __call__(self, call: HttpCall) -> HttpCall:
        """``call`` with the token."""
        return replace(call, headers={**call.headers, "Authorization": "Bearer " + self.token})


class _Held(msgspec.Struct):
    """What an exchange gave and when it ends, in seconds of `loomgate.clock`; one caller at a time fetches it."""

    lock: asyncio.Lock
    value: Any = None
    end: float = 0.0

    @property
    def fresh(self) -> bool:
        return clock.now() < self.end - _SPARE


class _Token(msgspec.Struct):
    access_token: str
    expires_in: float | str = 3600


_role = re.compile(
    r"<AccessKeyId>([^<]+)</AccessKeyId>|<SecretAccessKey>([^<]+)</SecretAccessKey>"
    r"|<SessionToken>([^<]+)</SessionToken>|<Expiration>([^<]+)</Expiration>"
)
_said = re.compile(r"<Message>([^<]+)</Message>")


class Credentials:
    """Every exchange of one process: each is made once until what it gave ends, however many calls there are.

    ``environment`` has the names that Azure and AWS have for their addresses and for a server's own identity.
    """

    def __init__(self, transport: Transport, environment: Mapping[str, str] = os.environ) -> None:
        self._transport = transport
        self._environment = environment
        self._google = AccessTokens(transport)
        self._held: dict[Hashable, _Held] = {}

    @staticmethod
    def needed(target: Target) -> bool:
        """Whether `opened` has anything to do for ``target``: most vendors need no look at it."""
        auth = target.vendor.auth
        return auth in ("service_account", "entra", "oci") or (auth == "aws" and bool(target.options.get(_ROLE)))

    async def opened(self, target: Target, timeouts: Timeouts, *, trusted: bool) -> Target:
        """``target`` with what proves who calls.

        ``trusted``: whether all of the key and the provider data are the operator's. A client's own may neither choose
        the address of an exchange nor use this server's own identity (managed and workload identities). Raises
        `ProviderError`: ``auth`` when there is nothing to prove it with, or the failure of the exchange.
        """
        match target.vendor.auth:
            case "service_account":
                return await self._google.opened(_with_key_file(target), timeouts, trusted=trusted)
            case "entra":
                return await self._entra(target, timeouts, trusted=trusted)
            case "oci":
                return replace(target, auth=OciSignature.of(target.options))
            case "aws":
                return await self._in_role(target, timeouts)
            case _:
                return target

    def forget(self, refused: str | None) -> None:
        """Fetch anew for the next call: the token ``refused`` is no longer taken, whatever its time."""
        self._google.forget(refused)
        for held in self._held.values():
            if refused and held.value == refused:
                held.end = 0.0

    async def _once(self, key: Hashable, fetch: Callable[[], Awaitable[tuple[Any, float]]]) -> Any:
        """What ``fetch`` gives, with the seconds that it lasts."""
        held = self._held.get(key)
        if held is None:
            if len(self._held) >= _MOST:
                for old in [known for known, each in self._held.items() if not each.lock.locked()]:
                    del self._held[old]
            held = self._held[key] = _Held(asyncio.Lock())
        if not held.fresh:
            async with held.lock:
                if not held.fresh:
                    asked = clock.now()
                    held.value, lasts = await fetch()
                    held.end = asked + lasts
        return held.value

    # --- Microsoft Entra ---

    async def _entra(self, target: Target, timeouts: Timeouts, *, trusted: bool) -> Target:
        options = target.options
        if given := options.get("azure_ad_token"):
            return replace(target, api_key=None, auth=Bearer(str(given).removeprefix("Bearer ")))
        mode = options.get("azure_auth_mode")
        if not mode:
            if not target.api_key:
                raise ProviderError("auth", f"There is no key for the provider '{target.vendor.name}'.")
            return target
        if mode not in ("entra", "managed", "workload"):
            raise ProviderError("invalid", "Invalid 'azure_auth_mode': expected 'entra', 'managed' or 'workload'.")
        if mode != "entra" and not trusted:
            said = f"The azure_auth_mode '{mode}' uses this server's own identity: only its operator can choose it."
            raise ProviderError("auth", said)
        scope = str(options.get("azure_entra_scope") or _COGNITIVE + "/.default")
        if mode == "managed":
            call = self._managed(options)
        else:
            call = self._client(options, scope) if mode == "entra" else await self._workload(options, scope)

        async def fetch() -> tuple[str, float]:
            return await self._token(call, timeouts)

        # A workload's assertion changes while what it stands for stays the same.
        same = (call.url, options.get("azure_workload_client_id")) if mode == "workload" else (call.url, call.body)
        token = await self._once((mode, scope, *same), fetch)
        return replace(target, api_key=None, auth=Bearer(token))

    def _authority(self, tenant: object) -> str:
        if not _ID.fullmatch(str(tenant)):
            raise ProviderError("invalid", "Invalid 'azure_entra_tenant_id': expected an id or a domain.")
        host = self._environment.get("AZURE_AUTHORITY_HOST", _AUTHORITY).rstrip("/")
        return f"{host}/{tenant}/oauth2/v2.0/token"

    def _client(self, options: Mapping[str, Any], scope: str) -> HttpCall:
        names = ("azure_entra_tenant_id", "azure_entra_client_id", "azure_entra_client_secret")
        if missing := [name for name in names if not options.get(name)]:
            raise ProviderError("auth", f"The azure_auth_mode 'entra' needs {', '.join(missing)}.")
        tenant, client, secret = (str(options[name]) for name in names)
        form = {"client_id": client, "client_secret": secret, "scope": scope, "grant_type": "client_credentials"}
        return HttpCall(self._authority(tenant), _FORM, urlencode(form).encode())

    async def _workload(self, options: Mapping[str, Any], scope: str) -> HttpCall:
        """Kubernetes gives the pod a token of its own, which stands for an application of Entra's."""
        client = options.get("azure_workload_client_id") or self._environment.get("AZURE_CLIENT_ID")
        tenant = options.get("azure_entra_tenant_id") or self._environment.get("AZURE_TENANT_ID")
        file = self._environment.get("AZURE_FEDERATED_TOKEN_FILE")
        if not client or not tenant or not file:
            said = "The azure_auth_mode 'workload' needs AZURE_CLIENT_ID, AZURE_TENANT_ID, AZURE_FEDERATED_TOKEN_FILE."
            raise ProviderError("auth", said)
        try:
            assertion = await asyncio.to_thread(Path(file).read_text, "utf-8")
        except OSError as error:
            raise ProviderError("auth", f"AZURE_FEDERATED_TOKEN_FILE cannot be read: {error.strerror}") from None
        form = {
            "client_id": str(client),
            "scope": scope,
            "grant_type": "client_credentials",
            "client_assertion_type": _ASSERTION,
            "client_assertion": assertion.strip(),
        }
        return HttpCall(self._authority(tenant), _FORM, urlencode(form).encode())

    def _managed(self, options: Mapping[str, Any]) -> HttpCall:
        """The machine's own service; App Service has one of another form."""
        scope = str(options.get("azure_entra_scope") or _COGNITIVE)
        query = {"resource": scope.removesuffix("/.default") + ("/" if "azure_entra_scope" not in options else "")}
        if client := options.get("azure_managed_client_id"):
            query["client_id"] = str(client)
        address, header = (self._environment.get(name) for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER"))
        if address and header:
            query["api-version"] = "2019-08-01"
            return HttpCall(f"{address}?{urlencode(query)}", {"X-IDENTITY-HEADER": header}, method="GET")
        query["api-version"] = "2018-02-01"
        return HttpCall(f"{_METADATA}?{urlencode(query)}", {"Metadata": "true"}, method="GET")

    async def _token(self, call: HttpCall, timeouts: Timeouts) -> tuple[str, float]:
        async with await self._transport.send(call, timeouts) as reply:
            body = await reply.read(_LONGEST_ANSWER)
            if reply.status != 200:
                raise _denied("Microsoft Entra gave no token", reply.status, reply.headers, body)
        try:
            found = msgspec.json.decode(body, type=_Token)
            return found.access_token, float(found.expires_in)
        except (msgspec.DecodeError, UnicodeError, ValueError):
            raise ProviderError("malformed", "Microsoft Entra answered without an access token.") from None

    # --- AWS ---

    async def _in_role(self, target: Target, timeouts: Timeouts) -> Target:
        """GATEWAY RH-32: the keys assume ``aws_role_arn``, and calls are signed with the keys of the role."""
        arn, external = str(target.options[_ROLE]), target.options.get("aws_external_id")
        auth = target.auth
        if not isinstance(auth, SigV4):
            raise ProviderError("auth", "aws_role_arn needs aws_access_key_id and aws_secret_access_key to assume it.")
        region = auth.region or DEFAULT_REGION
        form = {"Action": "AssumeRole", "Version": "2011-06-15", "RoleArn": arn, "RoleSessionName": "loomgate"}
        if external:
            form["ExternalId"] = str(external)
        host = self._environment.get("AWS_ENDPOINT_URL_STS") or f"https://sts.{region}.amazonaws.com"
        plain = HttpCall(host.rstrip("/") + "/", _FORM, urlencode(form).encode())

        async def fetch() -> tuple[AwsKeys, float]:
            call = SigV4(keys=auth.keys, region=region, service="sts")(plain)
            async with await self._transport.send(call, timeouts) as reply:
                body = await reply.read(_LONGEST_ANSWER)
                if reply.status != 200:
                    raise _denied("AWS did not let the keys assume the role", reply.status, reply.headers, body)
            return _role_of(body.decode("utf-8", "replace"))

        keys = await self._once(("aws", auth.keys, region, arn, external), fetch)
        return replace(target, auth=replace(auth, keys=keys))


_ROLE = "aws_role_arn"


def _with_key_file(target: Target) -> Target:
    """The target with the key file that came as provider data (GATEWAY RH-34), text or object."""
    given = target.options.get("vertex_service_account_json")
    if target.api_key or not given:
        return target
    text = given if isinstance(given, str) else msgspec.json.encode(given).decode()
    return replace(target, api_key=text)


def _role_of(xml: str) -> tuple[AwsKeys, float]:
    from datetime import datetime

    found: dict[int, str] = {}
    for match in _role.finditer(xml):
        index = match.lastindex or 0
        found[index] = match[index]
    try:
        keys = AwsKeys(access_key_id=found[1], secret_access_key=found[2], session_token=found[3])
        return keys, datetime.fromisoformat(found[4]).timestamp() - clock.now()
    except (KeyError, ValueError):
        raise ProviderError("malformed", "AWS answered without the keys of a role.") from None


def _denied(what: str, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """Why there are none: a 400 is about the account as well."""
    text = body.decode("utf-8", "replace")
    found = _said.search(text)
    said = found[1] if found else ""
    if not said:
        try:
            told = msgspec.json.decode(body, type=dict[str, Any])
            said = str(told.get("error_description") or told.get("error") or "")
        except (msgspec.DecodeError, UnicodeError):
            said = ""
    kind = "auth" if status in (400, 401, 403) else status_kind(status)
    message = f"{what} (HTTP {status}{': ' + masked(said) if said else ''})"
    return ProviderError(kind, message[:2000], status=status, retry_after=retry_after(headers))
