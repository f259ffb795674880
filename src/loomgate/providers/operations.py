"""Which operation or dialect an endpoint gets: the table of endpoint and vendor, and what passes untranslated.

What must live here: that choice, bodies that pass as they are, proxied requests. What must not: a vendor's own format
(``own``, the dialect files), and sending.
"""

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from loomgate.errors import bad_request
from loomgate.providers import azure, vertex
from loomgate.providers.anthropic import Anthropic
from loomgate.providers.bedrock import Bedrock
from loomgate.providers.cohere import Cohere
from loomgate.providers.dialect import Dialect, HttpCall, Target
from loomgate.providers.gemini import Gemini
from loomgate.providers.jobs import bedrock as bedrock_jobs
from loomgate.providers.jobs import cohere as cohere_jobs
from loomgate.providers.jobs import fireworks as fireworks_jobs
from loomgate.providers.jobs import vertex as vertex_jobs
from loomgate.providers.jobs.job import Verbs
from loomgate.providers.openai import OpenAI
from loomgate.providers.operation import Asked, Fields, Made, Operation, encode
from loomgate.providers.own import (
    ai21,
    bytez,
    cohere_generate,
    embeddings,
    images,
    oracle,
    palm,
    reka,
    rerank,
    triton,
    workers_ai,
)
from loomgate.wire.endpoints import ENDPOINTS, EndpointName

_OPENAI = OpenAI()
_ANTHROPIC = Anthropic()
_DIALECTS: dict[str, Dialect] = {
    "anthropic": _ANTHROPIC,
    "ai21": ai21.AI21(),
    "bedrock": Bedrock(),
    "bytez": bytez.Bytez(),
    "cohere": Cohere(),
    "gemini": Gemini(),
    "openai": _OPENAI,
    "oracle": oracle.Oracle(),
    "palm": palm.Palm(),
    "reka-ai": reka.Reka(),
    "workers-ai": workers_ai.WorkersAI(),
}
# Vendors whose completions are another endpoint than their chat, in a format of its own.
_COMPLETIONS: dict[str, Dialect] = {
    "ai21": ai21.AI21Complete(),
    "cohere": cohere_generate.CohereGenerate(),
    "palm": palm.PalmText(),
    "triton": triton.Triton(),
    "workers-ai": workers_ai.WorkersAIPrompt(),
}
_PLAYED = frozenset({"chat", "complete", "messages"})
_ANTHROPICS = frozenset({"messages", "count_tokens"})


def dialect_of(target: Target, model: str | None = None, endpoint: EndpointName = "chat") -> Dialect | None:
    """The dialect in which ``target`` plays a model call of a client's ``endpoint``; None if it cannot.

    It depends on the model on Vertex AI (GATEWAY TR-21) and AI21, and on the address for azure-ai (PV-03).
    """
    vendor = target.vendor
    if endpoint not in _PLAYED and endpoint != "respond":
        return None
    if endpoint == "complete" and "complete" in vendor.endpoints and vendor.dialect in _COMPLETIONS:
        own = _COMPLETIONS[vendor.dialect]
        return _OPENAI if vendor.dialect == "ai21" and not ai21.is_old(model) else own
    if "chat" not in vendor.endpoints:
        return None
    match vendor.dialect:
        case "vertex-ai":
            return vertex.dialect_of(model)
        case "azure-ai":
            return _ANTHROPIC if azure.speaks_anthropic(target.base_url) else _OPENAI
        case "ai21" if not ai21.is_old(model):
            return _OPENAI
        case other:
            return _DIALECTS.get(other)


def operation(target: Target, endpoint: EndpointName, model: str | None = None) -> Operation | None:
    """What to do with a request for ``endpoint``: None where it is played by a dialect (`dialect_of`), is done by
    verbs (`verbs_of`), or not offered at all (GATEWAY GERR-04)."""
    vendor = target.vendor
    if endpoint not in vendor.endpoints:
        return None
    if endpoint == "chat" and vendor.dialect == "openai":
        return _CHAT  # what most calls are
    if endpoint in _JOB_ENDPOINTS and vendor.name in _JOBS:
        return None
    own = _OWN.get((vendor.name, endpoint))
    if own is not None:
        return own
    if endpoint in _PLAYED or endpoint in _ANTHROPICS:
        if endpoint in _ANTHROPICS and vendor.dialect == "vertex-ai":
            return vertex.MESSAGES if vertex.publisher_of(model) == "anthropic" else None
        speaks = dialect_of(target, model)
        passes = speaks is _ANTHROPIC if endpoint in _ANTHROPICS else speaks is _OPENAI
        if not passes or (endpoint == "complete" and vendor.dialect == "ai21"):
            return None
    return _PASSES[endpoint]


def verbs_of(target: Target, endpoint: EndpointName) -> Verbs | None:
    """What is done with requests for files and jobs of a vendor whose are not OpenAI's (GATEWAY TR-25); None for any
    other vendor. The vendor's row says which of the endpoints it has: to others there is no verb."""
    found = _JOBS.get(target.vendor.name)
    return found if found is None or endpoint in target.vendor.endpoints else {}


_JOB_ENDPOINTS = frozenset({"files", "batches", "fine_tuning"})
_JOBS: dict[str, Verbs] = {
    "bedrock": bedrock_jobs.VERBS,
    "cohere": cohere_jobs.VERBS,
    "fireworks-ai": fireworks_jobs.VERBS,
    "vertex-ai": vertex_jobs.VERBS,
}
_OWN: dict[tuple[str, EndpointName], Operation] = {
    **{(vendor, "embed"): made for vendor, made in embeddings.TABLE.items()},
    **{(vendor, "generate_image"): made for vendor, made in images.TABLE.items()},
    **{(vendor, "rerank"): made for vendor, made in rerank.TABLE.items()},
}


# --- what passes as it is ------------------------------------------------------------------------------------------

_ANTHROPIC_VERSION = "2023-06-01"
_NEEDS_MODEL = frozenset({"chat", "complete", "embed", "messages", "rerank"})


class Passes(msgspec.Struct, frozen=True):
    """An endpoint that speaks the client's format: bytes go through, but for what the row says about fields."""

    endpoint: EndpointName
    passes: bool = True

    def request(self, asked: Asked, fields: Fields, raw: bytes | None, target: Target) -> HttpCall:
        """See `Operation.request`. Exactly ``raw`` is sent when nothing has to be renamed, dropped or filled in, and
        a body that is not JSON always is what the client sent."""
        body, headers = b"", target.own_headers()
        if self.endpoint in _ANTHROPICS:
            headers["anthropic-version"] = asked.headers.get("anthropic-version") or _ANTHROPIC_VERSION
            if beta := asked.headers.get("anthropic-beta"):
                headers["anthropic-beta"] = beta
        model: str | None = None
        if asked.method not in ("GET", "DELETE", "HEAD"):  # PRX-17
            kind = asked.headers.get("content-type") or ("application/json" if asked.body or fields else "")
            if kind:
                headers = {"Content-Type": kind, **headers}
            if asked.content_type == "application/json":
                fitted = self._fitted(fields, raw, target)
                body = raw if raw is not None and fitted is fields else encode(fitted)
                found = fitted.get("model")
                model = found if isinstance(found, str) else None
            else:
                body = asked.body
        user = fields.get("user")
        url = target.endpoint_url(self.endpoint, model, user if isinstance(user, str) else None)
        rest = asked.path.removeprefix(_PREFIXES[self.endpoint])
        return HttpCall(_extended(url, rest, asked.query), headers, body, asked.method)

    def takes(self, fields: Fields, raw: bytes, target: Target) -> bool:
        """Whether exactly ``raw``, which says ``fields``, is sent. Raises as `request`."""
        return self._fitted(fields, raw, target) is fields

    def answer(self, body: bytes, content_type: str, fields: Fields, target: Target) -> Made:
        """See `Operation.answer`."""
        return Made(body, content_type)

    def _fitted(self, fields: Fields, raw: bytes | None, target: Target) -> Fields:
        """``fields`` as this endpoint takes them; the same object if that is how they are."""
        vendor, endpoint = target.vendor, self.endpoint
        made = fields
        if endpoint in ("chat", "complete"):
            if vendor.default_model is not None and "model" not in fields:
                made = {**fields, "model": vendor.default_model}  # PV-90
            drop = vendor.drop | target.drop if target.drop else vendor.drop
            if drop and not drop.isdisjoint(made):
                made = {name: value for name, value in made.items() if name not in drop}
            for ours, theirs in vendor.rename.items():
                if ours in made:
                    made = {**made}
                    value = made.pop(ours)
                    made.setdefault(theirs, value)
            if endpoint == "chat" and not vendor.developer and (raw is None or b'"developer"' in raw):
                made = _without_developers(made)
        if vendor.name == "azure-openai":
            made = _at_azure(made, target)
        elif endpoint in _NEEDS_MODEL and "model" not in made and vendor.name != "azure-ai":
            raise bad_request("Model is required", "model", "missing_required_parameter")  # TR-03, GERR-07
        return made


def _without_developers(fields: Fields) -> Fields:
    """TR-05: the role that only OpenAI knows, as ``system``."""
    messages = fields.get("messages")
    if not isinstance(messages, list):
        return fields
    changed: list[Any] = [
        {**cast("Fields", each), "role": "system"}
        if isinstance(each, dict) and cast("Fields", each).get("role") == "developer"
        else each
        for each in cast("list[Any]", messages)
    ]
    return {**fields, "messages": changed} if changed != messages else fields


def _at_azure(fields: Fields, target: Target) -> Fields:
    """The body's model is the deployment's name where the address does not have it."""
    given = fields.get("model")
    model = given if isinstance(given, str) else None
    name = azure.deployment_of(model, target.options)
    return {**fields, "model": name} if name is not None and model is not None and name != model else fields


_PASSES: dict[EndpointName, Operation] = {name: Passes(name) for name in ENDPOINTS}
_CHAT = _PASSES["chat"]
_PREFIXES: dict[EndpointName, str] = {name: row.path.rstrip("/") for name, row in ENDPOINTS.items()}


def _extended(url: str, rest: str, query: str) -> str:
    """``url`` with ``rest`` at the end of its path and ``query`` in front of its own, which does not repeat names."""
    if not query and "?" not in url:
        return url + rest
    base, _, own = url.partition("?")
    names = {pair.partition("=")[0] for pair in query.split("&")} if query else frozenset[str]()
    pairs = [query] if query else []
    pairs += [pair for pair in own.split("&") if pair and pair.partition("=")[0] not in names]
    return base + rest + ("?" + "&".join(pairs) if pairs else "")


# --- what is proxied -----------------------------------------------------------------------------------------------

# Of the client's headers: what belongs to a connection, what its other end made of its body, and its own credentials,
# which are none of the endpoint's business (AUTH-11).
_STAY = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    "upgrade host content-length expect accept-encoding authorization api-key x-api-key x-goog-api-key cookie "
    "forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip".split()
)


def proxied(method: str, path: str, query: str, headers: Mapping[str, str], body: bytes, target: Target) -> HttpCall:
    """A request that is not translated (GATEWAY PRX-01 to PRX-05, PRX-13, PRX-17): ``path`` is below ``/v1``.

    A list of models is asked for where the vendor's other endpoints are. The client's headers go along, over the row's
    own, but never its credentials.
    """
    below = path
    if path == "/models" or path.startswith("/models/"):
        below = target.vendor.endpoints.get("models", "/models") + path.removeprefix("/models")
    made = {name.lower(): value for name, value in target.own_headers().items()}
    for name, value in headers.items():
        if name not in _STAY and not name.startswith("x-portkey-"):
            made[name] = value
    for name, value in target.headers.items():  # the operator's last word
        made[name.lower()] = value
    for name, value in target.proof().items():
        made[name.lower()] = value
    if method in ("GET", "DELETE", "HEAD"):
        body = b""
        made.pop("content-type", None)
    return HttpCall(_extended(target.addressed(below, "proxy"), "", query), made, body, method)
