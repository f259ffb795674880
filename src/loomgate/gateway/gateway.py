"""The whole pipeline on one page: name, choose a target, check, look in the cache, try, check, keep, answer.

What must live here: the order of these steps. What must not: how any of them is done.
"""

import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec

from loomgate import clock
from loomgate.errors import RETRYABLE, ApiError, ProviderError, ProviderErrorKind, bad_request
from loomgate.gateway import hosts, params, retry
from loomgate.gateway.cache import AnswerCache, cache_status
from loomgate.gateway.call import Answer, Effective, Fields, Node, Request
from loomgate.gateway.config import GatewayConfig, Stored
from loomgate.gateway.exchange import Exchange, refused
from loomgate.gateway.gather import whole_body
from loomgate.gateway.guard import Guard
from loomgate.gateway.guardrails import Guardrail, Guards, compile_guardrails
from loomgate.gateway.kept import keep, recorded, replayed
from loomgate.gateway.limits import Limits
from loomgate.gateway.meter import Meter, Record
from loomgate.gateway.prices import Prices
from loomgate.gateway.resolve import Resolved, Resolver
from loomgate.gateway.route import Router
from loomgate.gateway.tree import compile_config, compile_naming
from loomgate.providers import scripted
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.transport import Transport
from loomgate.wire.chat import Chat, Chunk, Upstream
from loomgate.wire.endpoints import ENDPOINTS
from loomgate.wire.policy import Config, Naming

_CHAT = ENDPOINTS["chat"]
_PLAYED = frozenset({"chat", "complete", "messages"})
_MOST_COMPILED = 1000
# What a refusal of the gateway's own means to a run (PRX-19).
_KINDS: dict[int, ProviderErrorKind] = {
    401: "auth",
    404: "model_not_found",
    408: "timeout",
    412: "quota",
    429: "rate_limit",
}


class Gateway:
    """The way to every model. Make one per process, `close` it at the end.

    ``stored`` looks up what workspaces have stored; ``dice`` gives a float in [0, 1) for weights and jitter.
    """

    def __init__(
        self,
        config: GatewayConfig,
        transport: Transport | None = None,
        stored: Stored | None = None,
        dice: Callable[[], float] = random.random,
        *,
        cache: AnswerCache | None = None,
        meter: Meter | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._config = config
        self._stored = stored or Stored()
        self._dice = dice
        self._transport = transport or Transport()
        self._resolver = Resolver(config, self._stored)
        self._exchange = Exchange(self._transport, config.timeouts)
        self._router = Router(dice)
        self._guards = Guards(self._transport.send, trusted=lambda url: hosts.is_trusted(url, config.trusted))
        self._cache = cache or AnswerCache(0, None)
        self._meter = meter or Meter(None, Prices())
        self._limits = limits or Limits()
        self._compiled: dict[int, tuple[Config, Mapping[str, dict[str, Any]], Node]] = {}
        self._named: dict[tuple[Any, ...], Node] = {}

    # --- the pipeline ---

    async def call(self, request: Request, skip: frozenset[str] = frozenset()) -> Answer:
        """The answer to ``request``, whatever its status: read it to its end or close it.

        ``skip``: places of targets (RSP-02) that broke in the middle of an answer and are not asked again. Raises
        `ApiError` for a request that cannot go anywhere.
        """
        record = self._meter.begin(request)
        try:
            node = await self._node(request)
            answer = await self._router.walk(node, request, partial(self._attempt, request, record), skip)
        except ApiError as error:
            record.finish(Answer(error.status), error=error.message)
            raise
        except BaseException:
            record.abandon()
            raise
        return recorded(record, answer)

    async def _attempt(self, request: Request, record: Record, effective: Effective) -> Answer:
        """One target's answer; what is wrong with the target is one, too, so that the next may be tried."""
        try:
            return await self._asked(request, record, effective)
        except ApiError as error:
            return refused(request, error)

    async def _asked(self, request: Request, record: Record, effective: Effective) -> Answer:
        fields = params.apply(request.fields, effective)
        model = fields.get("model")
        resolved = None
        if not self._plays(request, effective, model):
            resolved = await self._resolver.resolve(request, effective, model if isinstance(model, str) else None)
            if resolved.model != model:
                fields = {**fields, "model": resolved.model}
            for budget in resolved.budgets:
                if (refusal := self._limits.admit(budget.id, budget.limits)) is not None:
                    raise refusal
        guard = Guard(self._guards, request, effective, resolved) if effective.before or effective.after else None
        if guard is not None and (refused := await guard.admits(fields)) is not None:
            return refused
        fields = fields if guard is None else guard.fields
        plan = None if effective.cache is None else self._cache.cacheable(request, effective, fields)
        if plan is None:
            return await self._tries(request, record, effective, resolved, fields, guard)
        hit = await self._cache.lookup(plan)
        if hit is not None:
            answer = replayed(request, hit, "scripted" if resolved is None else resolved.provider, model)
            answer = answer if guard is None else await guard.checked(answer)  # CCH-08
        else:
            answer = await self._tries(request, record, effective, resolved, fields, guard)
            await keep(self._cache, plan, request, answer)
        answer.cache = cache_status(plan, hit)
        return answer

    async def _tries(
        self,
        request: Request,
        record: Record,
        effective: Effective,
        resolved: Resolved | None,
        fields: Fields,
        guard: Guard | None,
    ) -> Answer:
        """Ask the endpoint until it answers or no try is left (GATEWAY 6.7)."""
        tries, waited = 0, 0.0
        while True:
            began = clock.monotonic()
            if resolved is None:
                answer = await self._exchange.play(request, fields, tries)
            else:
                answer = await self._exchange.send(request, resolved, effective, fields)
            stored = None if resolved is None else resolved.stored
            record.attempted(answer.provider, answer.status, clock.monotonic() - began, virtual_key=stored)
            if guard is not None:
                answer = await guard.checked(answer)
            wait = self._wait(request, effective, resolved, answer, tries, waited)
            if wait is None:
                answer.retries = retry.exhausted_count(effective.retry, tries, answer.status)
                return answer
            await answer.close()
            await clock.sleep(wait)
            tries += 1
            waited += wait

    def _wait(
        self,
        request: Request,
        effective: Effective,
        resolved: Resolved | None,
        answer: Answer,
        tries: int,
        waited: float,
    ) -> float | None:
        """Seconds until the next try, or None. A run is tried again even when no config says how: nobody else would."""
        error = answer.error
        if effective.retry is not None or request.chat is None or error is None:
            if effective.retry is None:
                return None
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in answer.headers}
            return retry.wait(effective.retry, tries, waited, answer.status, headers)
        own = self._config.retries
        attempts = (resolved.config.attempts if resolved is not None else None) or own.attempts
        if error.kind not in RETRYABLE or tries + 1 >= attempts:
            return None
        if error.retry_after is not None and error.retry_after > own.longest_retry_after:
            return None
        return own.wait(error, tries + 1, self._dice())

    async def _node(self, request: Request) -> Node:
        """What the request's headers say, over the config they name."""
        naming = request.naming
        config = await self._config_of(naming, request.workspace)
        if config is None:
            return self._without_config(naming)
        saved = await self._stored.guardrails(request.workspace)
        kept = self._compiled.get(id(config))
        if kept is None or kept[0] is not config or kept[1] is not saved:
            if len(self._compiled) >= _MOST_COMPILED:
                self._compiled.clear()
            where = "x-portkey-config" if naming.inline is not None else f"config '{naming.config or 'default'}'"
            guardrails = partial(_guardrails, saved)
            node = compile_config(config, guardrails, trusted=self._config.trusted, where=where)
            kept = self._compiled[id(config)] = (config, saved, node)
        return compile_naming(
            naming, config, partial(_guardrails, saved), trusted=self._config.trusted, compiled=kept[2]
        )

    def _without_config(self, naming: Naming) -> Node:
        """What headers alone say, kept for the next request that says the same."""
        if naming.forward or naming.options or naming.input_guardrails or naming.output_guardrails:
            return compile_naming(naming, None, _no_guardrails, trusted=self._config.trusted)
        said = (
            naming.provider,
            naming.virtual_key,
            naming.api_key,
            naming.custom_host,
            naming.request_timeout,
            naming.strict,
        )
        node = self._named.get(said)
        if node is None:
            node = compile_naming(naming, None, _no_guardrails, trusted=self._config.trusted)
            if len(self._named) >= _MOST_COMPILED:
                self._named.clear()
            self._named[said] = node
        return node

    async def _config_of(self, naming: Naming, workspace: str) -> Config | None:
        if naming.inline is not None:
            return naming.inline
        if naming.config is not None:
            found = await self._stored.config(workspace, naming.config)
            if found is None:
                raise _unknown("x-portkey-config", naming.config, "the slug of a saved config, or a config as JSON")
            return found
        if naming.provider is None and naming.virtual_key is None and naming.custom_host is None:
            return await self._stored.default_config(workspace)
        return None

    def _plays(self, request: Request, effective: Effective, model: object) -> bool:
        """Whether the deterministic model is meant."""
        return (
            self._config.scripted
            and isinstance(model, str)
            and scripted.is_scripted(model)
            and request.endpoint.name in _PLAYED
        )

    # --- runs ---

    async def chat(
        self, call: Chat, upstream: Upstream, workspace: str, skip: frozenset[str] = frozenset(), broke: int = 0
    ) -> AsyncGenerator[Chunk, None]:
        """Make a run's model call and yield its chunks, the last one a `Finish`.

        ``upstream`` says where to, ``workspace`` whose stored keys may be used. A turn whose answer broke in the middle
        ``broke`` times is called again after a while, and not on the targets in ``skip`` if there are others. Raises
        `ProviderError`, its message without keys and its ``path`` that of the target which broke. Closing or cancelling
        the iterator closes the connection at once; wrap it in `contextlib.aclosing` if you may leave it early.
        """
        if broke:
            await clock.sleep(self._dice() * min(self._config.retries.cap, self._config.retries.base * 2**broke))
        try:
            naming = self.way(upstream) if upstream.kind != "sealed" else await self._opened(upstream, workspace)
            answer = await self.call(Request(_CHAT, naming, workspace, chat=call), skip)
        except ApiError as error:
            raise ProviderError(_KINDS.get(error.status, "invalid"), error.message, status=error.status) from None
        if answer.chunks is None:
            raise answer.error or _refusal(answer)
        try:
            async with aclosing(answer.chunks) as chunks:
                async for chunk in chunks:
                    yield chunk
        except ProviderError as error:
            error.path = answer.path
            raise

    def way(self, upstream: Upstream) -> Naming:
        """What a run's reference (any but a sealed one) stands for."""
        name = upstream.name or None
        return Naming(
            provider=name if upstream.kind == "provider" else None,
            virtual_key=name if upstream.kind == "virtual_key" else None,
            config=name if upstream.kind == "config" else None,
            trace_id=upstream.trace_id,
            metadata=upstream.metadata,
        )

    async def _opened(self, upstream: Upstream, workspace: str) -> Naming:
        found = await self._stored.naming(workspace, upstream.credential or "")
        if found is None:
            raise ApiError(401, f"The provider key for '{upstream.name}' does not exist any more in this workspace.")
        return msgspec.structs.replace(found, trace_id=upstream.trace_id, metadata=upstream.metadata)

    async def check(self, workspace: str, naming: Naming) -> None:
        """Raises a 400 `ApiError` that names the header when ``naming`` names what does not exist."""
        if naming.virtual_key is not None and await self._stored.key(workspace, naming.virtual_key) is None:
            raise _unknown("x-portkey-virtual-key", naming.virtual_key, "a virtual key of this workspace")
        if naming.config is not None and await self._stored.config(workspace, naming.config) is None:
            raise _unknown("x-portkey-config", naming.config, "the slug of a saved config, or a config as JSON")
        if naming.custom_host is not None:
            hosts.check(naming.custom_host, self._config.trusted)
        provider = naming.provider
        if provider is None:
            return
        providers = self._config.providers
        if provider.startswith("@"):
            slug = provider[1:]
            if slug not in providers and await self._stored.key(workspace, slug) is None:
                raise _unknown(
                    "x-portkey-provider", provider, "a virtual key of this workspace or a configured provider"
                )
        elif provider not in providers and provider not in CATALOGUE:
            raise _unknown("x-portkey-provider", provider, "a known provider")

    async def refusal(self, model: str, naming: Naming, workspace: str) -> str | None:
        """Why a run with ``model`` cannot be routed, or ``None`` (BEHAVIOUR RUN-16). What a config says is seen later."""
        if naming.config is not None or naming.inline is not None:
            return None
        node = compile_naming(naming, None, _no_guardrails, trusted=self._config.trusted)
        request = Request(_CHAT, naming, workspace)
        if self._plays(request, node.effective, model):
            return None
        return await self._resolver.refusal(request, node.effective, model)

    async def embed(self, text: str, model: str, workspace: str = "default") -> list[float]:
        """The vector of ``text`` by an embedding model, named as clients name it. Raises `ProviderError`, `ApiError`."""
        body = msgspec.json.encode({"model": model, "input": text})
        answer = await self.call(Request(ENDPOINTS["embed"], Naming(debug=False), workspace, body=body))
        found = whole_body(answer)
        if answer.status != 200 or found is None:
            raise answer.error or _refusal(answer)
        try:
            return [float(number) for number in found["data"][0]["embedding"]]
        except (KeyError, IndexError, TypeError, ValueError):
            raise ProviderError("malformed", f"The embedding model '{model}' did not answer with a vector.") from None

    async def close(self) -> None:
        """Close the transport, after the last checks and log records."""
        await self._guards.close(1.0)
        await self._meter.close()
        await self._transport.close()


def _guardrails(
    saved: Mapping[str, dict[str, Any]], config: Config
) -> tuple[tuple[Guardrail, ...], tuple[Guardrail, ...]]:
    """The guardrails of ``config``, compiled: before and after the call."""
    return (
        compile_guardrails(config.input_guardrails or (), config.before_request_hooks or (), "input", saved),
        compile_guardrails(config.output_guardrails or (), config.after_request_hooks or (), "output", saved),
    )


_no_guardrails = partial(_guardrails, {})


def _unknown(header: str, value: str, expected: str) -> ApiError:
    return bad_request(
        f"Invalid header '{header}': '{value[:100]}' is not known here. Expected {expected}.", code="invalid_value"
    )


def _refusal(answer: Answer) -> ProviderError:
    """What an answer that is no model's means to a run (PRX-19)."""
    kind = _KINDS.get(answer.status) or ("server" if answer.status >= 500 else "invalid")
    return ProviderError(kind, f"The gateway answered HTTP {answer.status}.", status=answer.status)
