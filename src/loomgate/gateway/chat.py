"""`Gateway.chat`: pick the target, send, decode, and try again while nothing was given away yet."""

import logging
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from fnmatch import fnmatchcase

import msgspec

from loomgate import clock
from loomgate.errors import RETRYABLE, ProviderError
from loomgate.providers import scripted
from loomgate.providers.catalogue import CATALOGUE, Vendor
from loomgate.providers.dialect import Target
from loomgate.providers.failure import masked
from loomgate.providers.operations import dialect_of
from loomgate.providers.service_account import AccessTokens
from loomgate.providers.sigv4 import DEFAULT_REGION, AwsKeys, SigV4, region_of
from loomgate.providers.transport import Reply, Timeouts, Transport
from loomgate.wire.chat import Chat, Chunk, Finish, RedactedThinking, ThinkingDelta, Upstream

log = logging.getLogger(__name__)

_LONGEST_ERROR = 64 * 1024
# After the last chunk: how long to wait for the end of the body, so that the connection can be used again.
_DRAIN = Timeouts(idle=0.5)


class ProviderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint the operator has set up.

    ``vendor`` is a row of the catalogue; ``base_url`` replaces the row's; ``models`` are `fnmatch` patterns of the
    model names that go here by default (empty: the row's own); ``drop`` adds request fields the endpoint refuses;
    ``project`` and ``region`` are for vendors that take them, ``aws`` are AWS keys in place of ``api_key``;
    ``timeouts`` and ``attempts`` replace those of `GatewayConfig` and its `Retries`.
    """

    vendor: str
    base_url: str | None = None
    api_key: str | None = None
    project: str | None = None
    region: str | None = None
    aws: AwsKeys | None = None
    models: tuple[str, ...] = ()
    drop: frozenset[str] = frozenset()
    headers: dict[str, str] = {}
    timeouts: Timeouts | None = None
    attempts: int | None = None

    def __repr__(self) -> str:
        return f"ProviderConfig(vendor={self.vendor!r}, base_url={self.base_url!r})"


class Retries(msgspec.Struct, frozen=True, kw_only=True):
    """``attempts`` in all, the first included; back-off in seconds, doubling from ``base`` up to ``cap``.

    An endpoint that asks for more than ``longest_retry_after`` seconds is not tried again: sooner would be no use.
    """

    attempts: int = 4
    base: float = 0.5
    cap: float = 8.0
    longest_retry_after: float = 60.0


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``providers`` by the operator's names, in order; the one named by ``default`` takes what no pattern matches.

    ``scripted`` switches the deterministic model on.
    """

    providers: dict[str, ProviderConfig] = {}
    default: str | None = None
    retries: Retries = Retries()
    timeouts: Timeouts = Timeouts()
    scripted: bool = True


class ResolvedKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a virtual key or a sealed credential stands for: a provider's or vendor's name, a key, an address."""

    provider: str
    api_key: str | None = None
    base_url: str | None = None
    aws: AwsKeys | None = None

    def __repr__(self) -> str:
        return f"ResolvedKey(provider={self.provider!r}, base_url={self.base_url!r})"


Resolver = Callable[[Upstream, str], Awaitable[ResolvedKey | None]]


async def _nothing(_upstream: Upstream, _workspace: str) -> ResolvedKey | None:
    return None


class Gateway:
    """The way to every model. Make one per process, `close` it at the end.

    ``resolve_secret`` gets the upstream reference and the workspace and answers with the key it stands for, or
    None; ``dice`` gives a float in [0, 1) for the jitter of the back-off.
    """

    def __init__(
        self,
        config: GatewayConfig,
        transport: Transport | None = None,
        resolve_secret: Resolver = _nothing,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._config = config
        self._transport = transport or Transport()
        self._tokens = AccessTokens(self._transport)
        self._resolve_secret = resolve_secret
        self._dice = dice

    def refusal(self, model: str, upstream: Upstream) -> str | None:
        """Why a call with ``model`` cannot be routed, or ``None``. No I/O: stored keys are looked up later."""
        if self._plays(model) or upstream.kind in ("virtual_key", "sealed"):
            return None
        try:
            self._configured(model, upstream)
        except ProviderError as error:
            if error.kind == "model_not_found":
                return error.message
            return f"The model '{model}' cannot be used here. {error.message}"
        return None

    async def chat(self, call: Chat, upstream: Upstream, workspace: str) -> AsyncGenerator[Chunk, None]:
        """Make the model call and yield its chunks, the last one a `Finish`.

        ``upstream`` says where to, ``workspace`` whose stored keys may be used. Before the first chunk, failures in
        `RETRYABLE` are tried again with exponential back-off and full jitter (after what Retry-After asks for).
        Raises `ProviderError`, its message without keys. Closing or cancelling the iterator closes the connection
        at once; wrap it in `contextlib.aclosing` if you may leave it early.
        """
        attempt = 0
        given = False
        while True:
            secrets: tuple[str | None, ...] = ()
            attempts = self._config.retries.attempts
            try:
                if self._plays(call.model):
                    async with aclosing(scripted.stream(call, attempt)) as chunks:
                        async for chunk in chunks:
                            given = True
                            yield chunk
                    return
                target, config = await self._target(call.model, upstream, workspace)
                secrets, attempts = target.secrets, config.attempts or attempts
                timeouts = config.timeouts or self._config.timeouts
                if target.vendor.auth == "service_account":
                    target = await self._tokens.opened(target, timeouts, trusted=upstream.kind != "sealed")
                    secrets = (*target.secrets, *secrets)
                dialect = dialect_of(target, call.model)
                if dialect is None:
                    raise ProviderError("model_not_found", f"The provider '{target.vendor.name}' has no chat.")
                decoder = dialect.decoder()
                request = dialect.request(call, target)
                if target.auth is not None:
                    request = target.auth(request)
                async with await self._transport.send(request, timeouts) as reply:
                    if reply.status != 200:
                        raise dialect.error(reply.status, reply.headers, await reply.read(_LONGEST_ERROR))
                    over = False
                    while not over:
                        data = await reply.piece()
                        for chunk in decoder.feed(data) if data else decoder.end():
                            # Runs have no use for thoughts: they may be thought again.
                            given = given or not isinstance(chunk, ThinkingDelta | RedactedThinking)
                            yield chunk
                            over = isinstance(chunk, Finish)
                    await _drain(reply)
                return
            except ProviderError as error:
                if error.kind == "auth":
                    self._tokens.forget(secrets[0] if secrets else None)
                told = ProviderError(
                    error.kind,
                    masked(error.message, *secrets),
                    status=error.status,
                    retry_after=error.retry_after,
                )
                wait = None if given or attempt + 1 >= attempts else self._wait(told, attempt)
                if wait is None:
                    raise told from None
            log.info("model call failed (%s), next try in %.2f s: %s", told.kind, wait, told.message)
            await clock.sleep(wait)
            attempt += 1

    async def close(self) -> None:
        """Close the transport."""
        await self._transport.close()

    def _plays(self, model: str) -> bool:
        return self._config.scripted and scripted.is_scripted(model)

    def _wait(self, error: ProviderError, attempt: int) -> float | None:
        """Seconds until the next try, or None if trying again is no use."""
        retries = self._config.retries
        if error.kind not in RETRYABLE:
            return None
        if error.retry_after is None:
            return self._dice() * min(retries.cap, retries.base * 2**attempt)
        if error.retry_after > retries.longest_retry_after:
            return None
        return error.retry_after + self._dice() * retries.base

    async def _target(self, model: str, upstream: Upstream, workspace: str) -> tuple[Target, ProviderConfig]:
        if upstream.kind not in ("virtual_key", "sealed"):
            return self._configured(model, upstream)
        found = await self._resolve_secret(upstream, workspace)
        if found is None:
            what = "virtual key" if upstream.kind == "virtual_key" else "provider key for"
            raise ProviderError("auth", f"The {what} '{upstream.name}' does not exist any more in this workspace.")
        config = self._config.providers.get(found.provider) or ProviderConfig(vendor=found.provider)
        # Never the operator's key: it must not travel to an address that a workspace chose, nor pay its calls.
        base_url = found.base_url or config.base_url
        config = msgspec.structs.replace(config, api_key=found.api_key, aws=found.aws, base_url=base_url)
        return self._made(found.provider, config)

    def _configured(self, model: str, upstream: Upstream) -> tuple[Target, ProviderConfig]:
        """The target by the operator's configuration alone."""
        name = upstream.name if upstream.kind == "provider" else self._by_model(model)
        if name is None:
            raise ProviderError(
                "model_not_found",
                f"The model '{model}' does not exist here: no provider's models match it and there is no default "
                "provider. Configure a provider for it, or use the model 'scripted'.",
            )
        config = self._config.providers.get(name) or (ProviderConfig(vendor=name) if name in CATALOGUE else None)
        if config is None:
            raise ProviderError("model_not_found", f"The provider '{name}' is not configured.")
        return self._made(name, config)

    def _by_model(self, model: str) -> str | None:
        providers = self._config.providers
        for name, config in providers.items():
            row = CATALOGUE.get(config.vendor)
            if any(fnmatchcase(model, pattern) for pattern in config.models or (row.models if row else ())):
                return name
        return self._config.default

    def _made(self, name: str, config: ProviderConfig) -> tuple[Target, ProviderConfig]:
        vendor = CATALOGUE.get(config.vendor)
        if vendor is None:
            raise ProviderError("model_not_found", f"The provider '{name}' names an unknown vendor '{config.vendor}'.")
        base_url = config.base_url or vendor.base_url
        if base_url is None:
            raise ProviderError("model_not_found", f"The provider '{name}' has no base_url.")
        if not re.match(r"https?://[^/\s]+", base_url):
            raise ProviderError("model_not_found", f"The base_url of the provider '{name}' is not an http(s) address.")
        if vendor.needs_key and not config.api_key and not (vendor.auth == "aws" and config.aws):
            raise ProviderError("auth", f"There is no API key for the provider '{name}'.")
        return target_of(vendor, base_url, config), config


def target_of(vendor: Vendor, base_url: str, config: ProviderConfig) -> Target:
    """Where calls by ``config`` go and how they prove themselves; ``base_url`` is the configured one or the row's.

    An AWS region is the configured one, else the one that the address names, else `DEFAULT_REGION`.
    """
    auth = None
    if vendor.auth == "aws":
        region = config.region or region_of(base_url) or DEFAULT_REGION
        base_url = base_url.replace("{region}", region)
        if config.aws is not None:
            auth = SigV4(keys=config.aws, region=region, service=vendor.service or vendor.name)
    return Target(
        vendor=vendor,
        base_url=base_url,
        api_key=None if auth else config.api_key,
        auth=auth,
        project=config.project,
        region=config.region,
        drop=config.drop,
        headers=config.headers,
    )


async def _drain(reply: Reply) -> None:
    """Read what little may follow the last chunk."""
    reply.hurry(_DRAIN)
    try:
        while await reply.piece():
            pass
    except ProviderError:
        pass
