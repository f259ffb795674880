"""The whole pipeline on one page: name, choose a target, check, look in the cache, try, check, keep, answer.

What must live here: the order of these steps. What must not: how any of them is done.
"""

import logging
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec

from loomgate import clock
from loomgate.errors import RETRYABLE, ApiError, ProviderError, bad_request
from loomgate.gateway import hosts, params, retry
from loomgate.gateway.cache import AnswerCache, cache_status
from loomgate.gateway.call import Answer, Effective, Fields, Node, Request
from loomgate.gateway.config import GatewayConfig, Stored
from loomgate.gateway.exchange import Exchange, error_of, refused
from loomgate.gateway.gather import whole_body
from loomgate.gateway.guard import Guard
from loomgate.gateway.guardrails import Guardrail, Guards, compile_guardrails
from loomgate.gateway.kept import keep, recorded, replayed
from loomgate.gateway.limits import Limits
from loomgate.gateway.meter import Meter, Record
from loomgate.gateway.models import Models, names_upstream
from loomgate.gateway.prices import Prices
from loomgate.gateway.resolve import Resolved, Resolver
from loomgate.gateway.route import Router, is_repeatable
from loomgate.gateway.straight import Straight, Way
from loomgate.gateway.tree import compile_config, compile_naming
from loomgate.providers import scripted
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.failure import status_kind
from loomgate.providers.transport import Transport
from loomgate.wire.chat import Chat, Chunk, Upstream
from loomgate.wire.endpoints import ENDPOINTS
from loomgate.wire.policy import Config, Naming, Retry

log = logging.getLogger(__name__)

_CHAT = ENDPOINTS["chat"]
_MODELS = ENDPOINTS["models"]
_PLAYED = frozenset({"chat", "complete", "messages", "count_tokens", "respond"})
_MOST_COMPILED = 1000
# What of a request says where its model calls go; the rest is about how.
_NAMING = "provider virtual_key config inline custom_host options input_guardrails output_guardrails".split()
# Headers that vendors of models know besides ours (RH-20, RH-21).
_SENT_ON = frozenset("anthropic-beta anthropic-version x-portkey-anthropic-beta x-portkey-anthropic-version".split())
_NETWORK = frozenset({"connect", "cut"})


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
        self._models = Models(config, self._stored)
        self._guards = Guards(self._transport.send, trusted=lambda url: hosts.is_trusted(url, config.trusted))
        self._cache = AnswerCache(0, None) if cache is None else cache  # an empty one is false
        self._meter = meter or Meter(None, Prices())
        self._limits = limits or Limits()
        self.straight = Straight(config, self._stored, self._resolver, self._exchange, self._meter, self._limits)
        self._compiled: dict[int, tuple[Config, Mapping[str, dict[str, Any]], Node]] = {}
        self._named: dict[tuple[Any, ...], Node] = {}

    # --- the pipeline ---

    async def call(self, request: Request, skip: frozenset[str] = frozenset(), broke: int = 0) -> Answer:
        """The answer to ``request``, whatever its status: read it to its end or close it.

        ``skip``: places of targets (RSP-02) that broke in the middle of an answer and are not asked again; ``broke``:
        how often that was. Raises `ApiError` for a request that cannot go anywhere.
        """
        run_id, thread_id = request.run
        ahead = request.ahead
        record = self._meter.begin(request, run_id=run_id, thread_id=thread_id) if ahead is None else ahead.record
        try:
            if request.endpoint is _MODELS and await self._wants_own_models(request):
                return recorded(record, await self._models.answer(request))
            node = await self._node(request)
            if request.chat is None:
                answer = await self._router.walk(node, request, partial(self._attempt, request, record, 0), skip)
            else:
                answer = await self._persist(node, request, record, skip, broke)
        except ApiError as error:
            record.finish(Answer(error.status), error=error.message)
            raise
        except BaseException as error:
            record.abandon(cause=error)
            raise
        finally:
            if ahead is not None:
                ahead.leave()  # what nobody took
        return recorded(record, answer)

    async def _persist(self, node: Node, request: Request, record: Record, skip: frozenset[str], broke: int) -> Answer:
        """`Router.walk` for a run: again from the start after a failure that may pass, when no config says how often to
        try. Nobody else would try again, and a fallback must not wait for the back-off of the target before it."""
        own = self._config.retries
        tries = 1
        while True:
            answer = await self._router.walk(
                node, request, partial(self._attempt, request, record, broke + tries - 1), skip
            )
            error = answer.error
            if tries > 1:
                answer.retries = tries - 1 if error is None else -1
            if error is None or error.kind not in RETRYABLE or answer.final:
                return answer
            if tries >= (own.attempts if answer.tries is None else answer.tries):
                return answer
            if error.retry_after is not None and error.retry_after > own.longest_retry_after:
                return answer
            wait = own.wait(error, tries, self._dice())
            log.info("model call failed (%s), next try in %.2f s: %s", error.kind, wait, error.message)
            await answer.close()
            await clock.sleep(wait)
            tries += 1

    async def _attempt(self, request: Request, record: Record, before: int, effective: Effective) -> Answer:
        """One target's answer; what is wrong with the target is one, too, so that the next may be tried.

        ``before``: how often all targets were asked in vain already.
        """
        try:
            return await self._asked(request, record, effective, before)
        except ApiError as error:
            return refused(request, error)

    async def _asked(self, request: Request, record: Record, effective: Effective, before: int) -> Answer:
        fields = params.apply(request.fields, effective)
        model = fields.get("model") or request.form_model
        resolved = None
        if not self._plays(request, effective, model):
            resolved = await self._resolver.resolve(request, effective, model if isinstance(model, str) else None)
            if resolved.model != model and request.is_form and resolved.model is not None:
                request = request.with_form_model(resolved.model)
            elif resolved.model != model:
                fields = {**fields, "model": resolved.model}
            if (
                resolved.budgets
                and request.ahead is None  # else it was let in already
                and (refusal := await self._limits.admitted(resolved.budgets)) is not None
            ):
                raise refusal
        guard = Guard(self._guards, request, effective, resolved) if effective.before or effective.after else None
        if guard is not None and (refused := await guard.admits(fields)) is not None:
            return refused
        fields = fields if guard is None else guard.fields
        plan = None if effective.cache is None else self._cache.cacheable(request, effective, fields)
        if plan is None:
            return await self._tries(request, record, effective, resolved, fields, guard, before)
        hit = await self._cache.lookup(plan)
        provider = "scripted" if resolved is None else resolved.provider
        answer = None if hit is None else replayed(request, hit, provider, model)
        if answer is not None:
            answer = answer if guard is None else await guard.checked(answer)  # CCH-08
        else:
            hit = None
            answer = await self._tries(request, record, effective, resolved, fields, guard, before)
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
        before: int,
    ) -> Answer:
        """Ask the endpoint until it answers or no try is left (GATEWAY 6.7)."""
        tries, waited = 1, 0.0
        while True:
            began = clock.monotonic()
            if resolved is None:
                answer = await self._exchange.play(request, fields, before + tries - 1)
            else:
                answer = await self._exchange.send(request, resolved, effective, fields)
            stored = None if resolved is None else resolved.stored
            record.attempted(answer.provider, answer.status, clock.monotonic() - began, virtual_key=stored)
            if guard is not None:
                answer = await guard.checked(answer)
            wait = None if effective.retry is None else _wait(request, effective.retry, answer, tries, waited)
            if wait is None:
                answer.retries = retry.exhausted_count(effective.retry, tries, _status(answer))
                answer.tries = 1 if effective.retry is not None else resolved.config.attempts if resolved else None
                return answer
            await answer.close()
            await clock.sleep(wait)
            tries += 1
            waited += wait

    async def straight_way(self, request: Request) -> Way | None:
        """What `straight` takes for calls like ``request``, if they need nothing else of the pipeline."""
        return await self.straight.way(request, self._node(request))

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

    async def _wants_own_models(self, request: Request) -> bool:
        """RT-04: the workspace's own list, unless the request names whose list it wants."""
        naming = request.naming
        if naming.integrated_models or not names_upstream(naming):
            return True
        config = await self._config_of(naming, request.workspace)
        return config is not None and config.fetch_integrated_models is True

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
        self,
        call: Chat,
        upstream: Upstream,
        workspace: str,
        run: tuple[str, str] = ("", ""),
        broken: Sequence[ProviderError] = (),
    ) -> AsyncGenerator[Chunk, None]:
        """Make a run's model call and yield its chunks, the last one a `Finish`.

        ``upstream`` says where to, ``workspace`` whose stored keys may be used, ``run`` (its id and its thread's) whose
        call it is. ``broken``: the errors with which earlier answers to this same call broke in the middle: it goes to
        a target that did not, if the config has one, else it waits as before any other try.

        Raises `ProviderError`, its message without keys; its ``path`` is set when the answer broke in the middle.
        Before that, all that trying again or elsewhere can do has been done. Closing or cancelling the iterator closes
        the connection at once; wrap it in `contextlib.aclosing` if you may leave it early.
        """
        skip = frozenset(error.path for error in broken if error.path is not None)
        try:
            naming = await self._naming(upstream, workspace, run[0])
            request = Request(_CHAT, naming, workspace, headers=naming.headers, chat=call, run=run)
            if broken and not self._router.leads_past(await self._node(request), request, skip):
                await clock.sleep(self._config.retries.wait(broken[-1], len(broken), self._dice()))
            answer = await self.call(request, skip, len(broken))
        except ApiError as error:
            raise error_of(error, astray=True) from None
        if answer.chunks is None:
            raise answer.error or _refusal(answer)
        try:
            async with aclosing(answer.chunks) as chunks:
                async for chunk in chunks:
                    yield chunk
        except ProviderError as error:
            error.path = answer.path
            raise

    async def _naming(self, upstream: Upstream, workspace: str, run_id: str) -> Naming:
        """What the run's reference stands for. A run is one trace, its own if its client named none (PRX-20)."""
        if upstream.kind != "sealed":
            found = self.way(upstream)
        else:
            found = await self._stored.naming(workspace, upstream.credential or "")
            if found is None:
                raise ApiError(401, f"What the run was created with ('{upstream.name}') does not exist any more.")
        return msgspec.structs.replace(found, trace_id=upstream.trace_id or run_id or None, metadata=upstream.metadata)

    def way(self, upstream: Upstream) -> Naming:
        """What a run's reference (any but a sealed one) stands for, without its trace."""
        name = upstream.name or None
        return Naming(
            provider=name if upstream.kind == "provider" else None,
            virtual_key=name if upstream.kind == "virtual_key" else None,
            config=name if upstream.kind == "config" else None,
        )

    async def kept(self, naming: Naming, workspace: str, headers: Mapping[bytes, bytes]) -> Naming:
        """``naming`` with those of the client's ``headers`` that the run's model calls will want to send on."""
        wanted = _SENT_ON
        if naming.config is not None or naming.inline is not None or naming.forward:
            leaves = _leaves(await self._node(Request(_CHAT, naming, workspace)))
            wanted = wanted.union(*(leaf.forward_headers for leaf in leaves))
        found = {name: headers[key].decode("latin-1") for name in wanted if (key := name.lower().encode()) in headers}
        return msgspec.structs.replace(naming, headers=found) if found else naming

    async def check(self, workspace: str, naming: Naming) -> None:
        """Raises a 400 `ApiError` that names the header when ``naming`` names what does not exist or cannot be used."""
        provider, custom_host = naming.provider, naming.custom_host
        if not any(getattr(naming, name) for name in _NAMING):
            return
        if naming.virtual_key is not None and await self._stored.key(workspace, naming.virtual_key) is None:
            raise _unknown("x-portkey-virtual-key", naming.virtual_key, "a virtual key of this workspace")
        if provider is not None:
            providers = self._config.providers
            if provider.startswith("@"):
                slug = provider[1:]
                if slug not in providers and await self._stored.key(workspace, slug) is None:
                    expected = "a virtual key of this workspace or a configured provider"
                    raise _unknown("x-portkey-provider", provider, expected)
            elif provider not in providers and provider not in CATALOGUE:
                raise _unknown("x-portkey-provider", provider, "a known provider")
        if custom_host is not None:
            try:
                hosts.check(custom_host, self._config.trusted)
            except ApiError as error:
                raise _invalid("x-portkey-custom-host", error) from None
        request = Request(_CHAT, naming, workspace)
        node = await self._node(request)
        if naming.config is None and naming.inline is None and (provider or naming.virtual_key) is not None:
            try:
                await self._resolver.resolve(request, node.effective, None)
            except ApiError as error:
                header = "custom-host" if custom_host is not None else "provider" if provider else "virtual-key"
                raise _invalid("x-portkey-" + header, error) from None

    async def refusal(self, model: str, naming: Naming, workspace: str) -> str | None:
        """Why a run with ``model`` cannot be routed (BEHAVIOUR RUN-16), or ``None``: one target of a config suffices.

        Raises `ApiError` as `check` does.
        """
        request = Request(_CHAT, naming, workspace)
        refusal = None
        for leaf in _leaves(await self._node(request)):
            asked = params.apply({"model": model}, leaf).get("model")
            if self._plays(request, leaf, asked) or not isinstance(asked, str):
                return None
            found = await self._resolver.refusal(request, leaf, asked)
            if found is None:
                return None
            refusal = refusal or found
        return refusal

    async def embed(self, text: str, model: str, workspace: str = "default") -> list[float]:
        """The vector of ``text`` by an embedding model named as clients do. Raises `ProviderError`, `ApiError`."""
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


def _invalid(header: str, error: ApiError) -> ApiError:
    return bad_request(f"Invalid header '{header}': {error.message}", code="invalid_value")


def _leaves(node: Node) -> Iterator[Effective]:
    """The targets of a config that are called, in its order."""
    if node.strategy is None:
        yield node.effective
    for target in node.targets:
        yield from _leaves(target)


def _wait(request: Request, rule: Retry, answer: Answer, tries: int, waited: float) -> float | None:
    """Seconds until the next try by the config's ``rule``, or None."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in answer.headers}
    return retry.wait(rule, tries, waited, _status(answer), headers, repeatable=is_repeatable(request))


def _status(answer: Answer) -> int:
    """The answer's status as retries count it: a connection that broke is no status (RTY-10)."""
    error = answer.error
    return retry.BROKEN if error is not None and error.status is None and error.kind in _NETWORK else answer.status


def _refusal(answer: Answer) -> ProviderError:
    """What an answer that is no model's means to a run (PRX-19)."""
    kind = "quota" if answer.status == 412 else status_kind(answer.status)
    return ProviderError(kind, f"The gateway answered HTTP {answer.status}.", status=answer.status)
