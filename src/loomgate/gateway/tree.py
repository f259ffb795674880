"""From what a client wrote to what is to be tried: configs and headers made into a `Node` (GATEWAY section 6.2).

What must live here: who inherits what from whom, and which of header and config counts. What must not: choosing among
targets (``gateway/route``), or looking up what a slug stands for. Pure.
"""

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, TypeVar, cast

import msgspec
import msgspec.structs

from loomgate.errors import ApiError
from loomgate.gateway import automaton, hosts
from loomgate.gateway.call import Effective, Node
from loomgate.wire.configs import check_options, config_error
from loomgate.wire.policy import Config, Naming
from loomgate.wire.provider_data import OPTION_HEADERS, SECRET_OPTIONS, URL_OPTIONS

Guardrails = tuple[tuple[Any, ...], tuple[Any, ...]]
CompileGuardrails = Callable[[Config], Guardrails]

T = TypeVar("T")

_BARE = Effective()


def no_guardrails(_config: Config) -> Guardrails:
    """For callers without guardrails: none."""
    return (), ()


def compile_config(
    config: Config,
    compile_guardrails: CompileGuardrails = no_guardrails,
    *,
    trusted: frozenset[str] = frozenset(),
    providers: frozenset[str] | None = None,
    where: str = "x-portkey-config",
) -> Node:
    """``config`` with everything inherited (INH-01 to INH-04) and every target's place.

    ``compile_guardrails`` makes the guardrails of one config, before and after the call, out of its own fields.
    ``trusted``: see `hosts.check`. ``providers``: the provider names that exist, if they are to be checked (CFG-09);
    ``@slugs`` are not. Raises a 400 `ApiError` that names the place in the config, which is called ``where``.

    The same config object with the same ``compile_guardrails`` is compiled once for a while: when guardrails change
    that are named by a slug, pass another callable.
    """
    key = (id(config), compile_guardrails, trusted, providers)
    found = _compiled.get(key)
    if found is not None:
        return found[1]
    node = _Compiler(config, compile_guardrails, trusted, providers, where).node(config, _BARE, "", 0)
    if _count(node) <= _MOST_NODES_KEPT:
        if len(_compiled) >= _MOST_KEPT:
            del _compiled[next(iter(_compiled))]
        _compiled[key] = config, node  # with the config, so that its id stays its own
    return node


_MOST_KEPT = 64
_MOST_NODES_KEPT = 200
_compiled: dict[tuple[int, CompileGuardrails, frozenset[str], frozenset[str] | None], tuple[Config, Node]] = {}


def _count(node: Node) -> int:
    return 1 + sum(map(_count, node.targets))


def compile_naming(
    naming: Naming,
    saved: Config | None,
    compile_guardrails: CompileGuardrails = no_guardrails,
    *,
    trusted: frozenset[str] = frozenset(),
    providers: frozenset[str] | None = None,
    compiled: Node | None = None,
) -> Node:
    """What the headers of a request say, over the config that they name or hold.

    ``saved`` is the config that ``naming.config`` names. ``compiled``: what `compile_config` made of ``saved`` or of
    ``naming.inline``, if the caller kept it; then this is cheap. The rest as for `compile_config`, with its errors.

    A target that names no provider itself takes it from the headers, with the key and the provider data (CFG-34,
    CFG-24, RH-50). For every target a header's custom host, time-out and forwarded headers count before the config's
    (RH-05, RH-11, RH-13), a header ``false`` switches strictness off (STR-04), and the default guardrails come in
    addition (RH-18, INH-03).
    """
    config = naming.inline if naming.inline is not None else saved
    if config is None and compiled is None and _says_only_who(naming):
        return Node(
            effective=Effective(provider=naming.provider, virtual_key=naming.virtual_key, api_key=naming.api_key)
        )
    if compiled is not None:
        node = compiled
    elif config is None:
        node = Node(effective=_BARE)
    else:
        where = "x-portkey-config" if naming.inline is not None else f"config '{naming.config}'"
        node = compile_config(config, compile_guardrails, trusted=trusted, providers=providers, where=where)
    return _Overlay(naming, compile_guardrails, trusted, saved=naming.inline is None and config is not None).node(node)


def split_model(model: str) -> tuple[str | None, str]:
    """``@slug/model`` as ``@slug`` and the model, which may have slashes itself (AUTH-08); else None and ``model``."""
    if model.startswith("@"):
        slug, slash, rest = model.partition("/")
        if slash and len(slug) > 1 and rest:
            return slug, rest
    return None, model


def needs_headers(effective: Effective) -> bool:
    """Whether a target names no provider, so that it takes it from the headers, or else from the body's model."""
    if effective.provider is not None or effective.virtual_key is not None:
        return False
    model = effective.override_params.get("model")
    return not (isinstance(model, str) and split_model(model)[0] is not None)


class _Compiler:
    def __init__(
        self,
        root: Config,
        compile_guardrails: CompileGuardrails,
        trusted: frozenset[str],
        providers: frozenset[str] | None,
        where: str,
    ) -> None:
        self._root = root
        self._compile_guardrails = compile_guardrails
        self._trusted = trusted
        self._providers = providers
        self._where = where
        self._digest = ""

    def node(self, config: Config, above: Effective, place: str, index: int) -> Node:
        """``above`` is what is inherited; ``place`` the path as errors tell it, without ``config``."""
        own = self._effective(config, above, place, index)
        strategy, targets = config.strategy, config.targets
        if strategy is None or targets is None:
            return Node(effective=own)
        self._check_patterns(config, place)
        heritage = own
        if strategy.cb_config is not None:
            heritage = msgspec.structs.replace(own, breaker=strategy.cb_config)
        dot = "." if place else ""
        children = tuple(
            self.node(target, heritage, f"{place}{dot}targets[{i}]", i) for i, target in enumerate(targets)
        )
        return Node(effective=own, strategy=strategy, targets=children)

    def _effective(self, config: Config, above: Effective, place: str, index: int) -> Effective:
        before, after = self._guardrails(config, above, place)
        breaker = _first(config.cb_config, above.breaker)
        path = f"config.{place}" if place else "config"
        self._check_provider(config.provider, place)
        return Effective(
            path=path,
            index=index,
            name=config.name,
            provider=config.provider,
            virtual_key=config.virtual_key,
            api_key=config.api_key,
            custom_host=self._host(config.custom_host, place, "custom_host") or above.custom_host,
            options=self._options(config, place),
            weight=config.weight,
            override_params=_merged(above.override_params, config.override_params),
            default_params=_merged(above.default_params, config.default_params),
            drop_params=above.drop_params if config.drop_params is None else tuple(config.drop_params),
            forward_headers=above.forward_headers
            if config.forward_headers is None
            else tuple(name.lower() for name in config.forward_headers),
            retry=_first(config.retry, above.retry),
            cache=_first(config.cache, above.cache),
            request_timeout=_first(config.request_timeout, above.request_timeout),
            # `false` at any level switches off (STR-04).
            strict=above.strict if above.strict is False else _first(config.strict_open_ai_compliance, above.strict),
            passthrough=bool(config.passthrough),
            breaker=breaker,
            circuit=self._circuit(path) if breaker is not None and config.targets is None else "",
            before=before,
            after=after,
        )

    def _guardrails(self, config: Config, above: Effective, place: str) -> Guardrails:
        has_before = config.input_guardrails is not None or config.before_request_hooks is not None
        has_after = config.output_guardrails is not None or config.after_request_hooks is not None
        if not has_before and not has_after:
            return above.before, above.after
        try:
            before, after = self._compile_guardrails(config)
        except ApiError as error:
            message = f"{error.message} (in {self._where}, path: {place or 'config'})"
            raise ApiError(error.status, message, param=error.param, code=error.code, details=error.details) from None
        return before if has_before else above.before, after if has_after else above.after

    def _circuit(self, path: str) -> str:
        """The config's identity and the path: equal configs share their circuits, within a workspace."""
        if not self._digest:
            self._digest = blake2b(msgspec.json.encode(self._root), digest_size=16).hexdigest()
        return f"{self._digest}:{path}"

    def _options(self, config: Config, place: str) -> dict[str, Any]:
        found = config.options()
        for name in URL_OPTIONS:
            if name in found:
                found[name] = self._host(found[name], place, name)
        return found

    def _host(self, url: str | None, place: str, name: str) -> str | None:
        if url is None:
            return None
        try:
            return hosts.check(url, self._trusted)
        except ApiError as error:
            raise config_error(self._where, f"{place}.{name}" if place else name, error.message) from None

    def _check_provider(self, provider: str | None, place: str) -> None:
        known = self._providers
        if provider is None or provider.startswith("@") or known is None or provider in known:
            return
        raise config_error(
            self._where,
            f"{place}.provider" if place else "provider",
            f"Invalid 'provider' value. Must be one of: {', '.join(sorted(known))}",
        )

    def _check_patterns(self, config: Config, place: str) -> None:
        """Refuse now what `conditions` would have to refuse for every request."""
        assert config.strategy is not None
        for index, condition in enumerate(config.strategy.conditions or ()):
            for pattern in _patterns_in(condition.query):
                try:
                    automaton.check(pattern)
                except ApiError as error:
                    at = f"{place}." if place else ""
                    raise config_error(self._where, f"{at}strategy.conditions[{index}].query", error.message) from None


class _Overlay:
    """What the headers change about every target of a tree."""

    def __init__(
        self, naming: Naming, compile_guardrails: CompileGuardrails, trusted: frozenset[str], *, saved: bool
    ) -> None:
        self._naming = naming
        self._saved = saved
        self._everywhere: dict[str, Any] = {}
        self._guardrails: Guardrails = (), ()
        if naming.custom_host is not None:
            self._everywhere["custom_host"] = _header_host(naming.custom_host, trusted, "x-portkey-custom-host")
        if naming.request_timeout is not None:
            self._everywhere["request_timeout"] = naming.request_timeout
        if naming.forward:
            self._everywhere["forward_headers"] = tuple(naming.forward)
        if not naming.strict:
            self._everywhere["strict"] = False
        if naming.input_guardrails or naming.output_guardrails:
            self._guardrails = compile_guardrails(
                Config(
                    input_guardrails=naming.input_guardrails or None, output_guardrails=naming.output_guardrails or None
                )
            )
        self._options: dict[str, Any] = naming.options
        if naming.options:
            check_options(naming.options)
            for name in URL_OPTIONS:
                if name in naming.options:
                    header = next(key for key, option in OPTION_HEADERS.items() if option == name)
                    url = _header_host(naming.options[name], trusted, f"x-portkey-{header}")
                    self._options = {**self._options, name: url}

        self._is_silent = not self._everywhere and not any(self._guardrails)

    def node(self, node: Node) -> Node:
        if node.strategy is None:
            changes = self._changes(node.effective)
            return Node(effective=msgspec.structs.replace(node.effective, **changes)) if changes else node
        targets = tuple(map(self.node, node.targets))
        if all(new is old for new, old in zip(targets, node.targets, strict=True)):
            return node
        return Node(effective=node.effective, strategy=node.strategy, targets=targets)

    def _changes(self, leaf: Effective) -> dict[str, Any]:
        if self._is_silent and not needs_headers(leaf):
            return self._everywhere
        changes = dict(self._everywhere)
        before, after = self._guardrails
        if before:
            changes["before"] = leaf.before + before
        if after:
            changes["after"] = leaf.after + after
        if "custom_host" in changes and self._saved and _holds_secrets(leaf):
            # Whoever may use a saved config must not learn its keys by having them sent elsewhere.
            raise ApiError(
                400,
                "The header 'x-portkey-custom-host' cannot be used with a saved config that holds keys of its own "
                f"({leaf.path}).",
                param="x-portkey-custom-host",
                code="invalid_value",
            )
        if needs_headers(leaf):
            changes |= self._provider(leaf)
        return changes

    def _provider(self, leaf: Effective) -> dict[str, Any]:
        naming = self._naming
        changes: dict[str, Any] = {}
        for name, value in (
            ("provider", naming.provider),
            ("virtual_key", naming.virtual_key),
            ("api_key", naming.api_key),
        ):
            if value is not None:
                changes[name] = value
        if self._options:
            changes["options"] = {**leaf.options, **self._options}
        if leaf.circuit:
            # One config with different providers in the headers: their failures have nothing to do with each other.
            named = (naming.provider, naming.virtual_key, naming.api_key, naming.custom_host, self._options)
            digest = blake2b(msgspec.json.encode(named), digest_size=16).hexdigest()
            changes["circuit"] = f"{leaf.circuit}:{digest}"
        return changes


def _patterns_in(query: object) -> Iterator[str]:
    """Every ``$regex`` of a query."""
    if isinstance(query, list):
        for item in cast("list[object]", query):
            yield from _patterns_in(item)
    elif isinstance(query, dict):
        for key, value in cast("dict[str, object]", query).items():
            if key == "$regex" and isinstance(value, str):
                yield value
            else:
                yield from _patterns_in(value)


def _says_only_who(naming: Naming) -> bool:
    """Most requests: a provider or a virtual key, and a key."""
    return naming.strict and not (
        naming.options
        or naming.custom_host
        or naming.request_timeout
        or naming.forward
        or naming.input_guardrails
        or naming.output_guardrails
    )


def _holds_secrets(leaf: Effective) -> bool:
    return leaf.api_key is not None or any(name in leaf.options for name in SECRET_OPTIONS)


def _header_host(url: str, trusted: frozenset[str], header: str) -> str:
    try:
        return hosts.check(url, trusted)
    except ApiError as error:
        error.param = header
        raise


def _first(own: T | None, inherited: T | None) -> T | None:
    return own if own is not None else inherited


def _merged(above: dict[str, Any], own: dict[str, Any] | None) -> dict[str, Any]:
    return {**above, **own} if own else above
