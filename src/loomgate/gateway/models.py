"""The models that a workspace can name, for ``GET /v1/models`` when no upstream is asked (GATEWAY RT-03, RT-04).

What must live here: which names are known, and the list's shape. What must not: which upstream a request goes to
(``resolve``). Known are exact names only: those of providers whose ``models`` are no patterns, the models and
deployments of stored keys, and the deterministic model. Any other name may work as well.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast
from urllib.parse import parse_qsl, unquote

import msgspec

from loomgate.errors import ApiError, bad_request
from loomgate.gateway.call import Answer, Request
from loomgate.gateway.config import GatewayConfig, Stored, StoredKey
from loomgate.wire.policy import Naming

_PATTERN = frozenset("*?[")
_SORTS = {"name": "id", "provider": "provider", "ai_service": "owned_by"}
_QUERY = frozenset({"ai_service", "provider", "limit", "offset", "sort", "order", "pretty"})

_encode = msgspec.json.Encoder().encode


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One entry: OpenAI's four members and what Portkey adds. ``id`` is the name that a request uses, ``slug`` the
    vendor's own; ``created`` is 0, since nobody here knows it; ``owned_by`` is the vendor."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str
    slug: str
    canonical_slug: str
    provider: str


def names_upstream(naming: Naming) -> bool:
    """Does a request itself say whose list it wants?"""
    return any((naming.provider, naming.virtual_key, naming.config, naming.inline, naming.custom_host))


class Models:
    """Answers for the workspace's own list."""

    def __init__(self, config: GatewayConfig, stored: Stored) -> None:
        self._config = config
        self._stored = stored

    async def answer(self, request: Request) -> Answer:
        """``GET /models``, or ``GET /models/{id}``. Raises `ApiError`: 404 for an unknown model, 400 for a query that
        cannot be read, 405 for other methods."""
        if request.method not in ("GET", "HEAD"):
            raise ApiError(
                405,
                "This list is the gateway's own: its models cannot be changed. Name a provider to reach its models.",
                headers={"allow": "GET, HEAD"},
            )
        found = self.known(await self._stored.keys(request.workspace))
        wanted = unquote(request.path.removeprefix("/models").removeprefix("/"))  # the path is as it was written
        headers = [(b"content-type", b"application/json")]
        if not wanted:
            return Answer(200, _encode(_page(list(found.values()), request.query)), headers=headers)
        model = found.get(wanted)
        if model is None:
            raise ApiError(404, f"The model '{wanted[:200]}' does not exist", param="model", code="model_not_found")
        return Answer(200, _encode(model), headers=headers)

    def known(self, keys: Mapping[str, StoredKey]) -> dict[str, Model]:
        """Every model by its ``id``; ``keys`` are the workspace's stored ones by slug. Of two providers with the same
        model the first is told, since requests go there."""
        found: dict[str, Model] = {}
        for name, provider in self._config.providers.items():
            for model in _named(provider.models, provider.options):
                found.setdefault(model, _model(model, model, provider.vendor, name))
        for slug, key in keys.items():
            operators = self._config.providers.get(key.provider)
            vendor = key.provider if operators is None else operators.vendor
            names = list(_named((), key.options))
            if operators is not None:
                names += _named(operators.models, operators.options)
            if key.opened is not None:
                names = [name for name, enabled in key.opened.models.items() if enabled] + [
                    name for name in names if key.opened.allows(name)
                ]
            for name in names:
                id = f"@{slug}/{name}"
                found.setdefault(id, _model(id, name, vendor, slug))
        if self._config.scripted:
            found.setdefault("scripted", _model("scripted", "scripted", "loomgate", "scripted"))
        return found


def _model(id: str, slug: str, vendor: str, provider: str) -> Model:
    return Model(id=id, owned_by=vendor, slug=slug, canonical_slug=slug, provider=provider)


def _named(models: tuple[str, ...], options: Mapping[str, Any]) -> Iterator[str]:
    """The exact names among ``models``, and those of Azure's deployments."""
    yield from (model for model in models if _PATTERN.isdisjoint(model))
    deployments = options.get("deployments")
    for each in cast("list[Any]", deployments) if isinstance(deployments, list) else ():
        if isinstance(each, dict):
            entry = cast("dict[str, Any]", each)
            name = entry.get("alias") or entry.get("deployment_id")
            if isinstance(name, str):
                yield name


def _page(models: list[Model], query: str) -> dict[str, Any]:
    """The list that ``query`` asks for; ``total`` counts what its filters leave."""
    asked = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(asked.keys() - _QUERY):
        raise bad_request(f"Unknown query parameter: '{unknown[0][:100]}'.", unknown[0][:100], "unknown_parameter")
    if vendor := asked.get("ai_service"):
        models = [model for model in models if model.owned_by == vendor]
    if provider := asked.get("provider"):
        provider = provider.removeprefix("@")
        models = [model for model in models if provider in (model.provider, model.owned_by)]
    sort = _SORTS.get(asked.get("sort") or "name")
    if sort is None:
        raise _wrong("sort", f"one of {', '.join(_SORTS)}", asked["sort"])
    order = asked.get("order") or "asc"
    if order not in ("asc", "desc"):
        raise _wrong("order", "asc or desc", order)
    models.sort(key=lambda model: (getattr(model, sort), model.id), reverse=order == "desc")
    start = _number(asked, "offset", 0)
    most = _number(asked, "limit", len(models))
    return {"object": "list", "total": len(models), "data": models[start : start + most]}


def _number(asked: Mapping[str, str], name: str, default: int) -> int:
    value = asked.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdecimal()) or len(value) > 9:
        raise _wrong(name, "a whole number that is not negative", value)
    return int(value)


def _wrong(name: str, expected: str, value: str) -> ApiError:
    return bad_request(f"Invalid '{name}': expected {expected}, but got '{value[:100]}'.", name, "invalid_value")
