"""Vertex AI beside Gemini: models of other publishers, each in its own dialect, and what is no chat (GATEWAY TR-21).

What must live here: which publisher a model's name means, and the addresses of each. What must not: the dialects.
"""

import re
from collections.abc import Mapping

import msgspec

from loomgate.errors import ProviderError
from loomgate.providers.anthropic import Anthropic
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import Decoder, Dialect, HttpCall, Target
from loomgate.providers.gemini import VertexAI
from loomgate.providers.google_cloud import regional, versioned
from loomgate.providers.openai import OpenAI
from loomgate.providers.operation import Asked, Fields, Made, encode
from loomgate.wire.chat import Chat

_VERSION = "vertex-2023-10-16"  # of Anthropic's API, as Vertex AI calls it
_PUBLISHERS = ("anthropic", "meta", "mistralai", "endpoints", "google")
_NAME = re.compile(r"[A-Za-z0-9][\w.@-]*", re.ASCII)
_decode = msgspec.json.Decoder(dict).decode


def split(model: str | None) -> tuple[str, str]:
    """The publisher that a model's name means, and the name without it. Raises `ProviderError` for no model's name."""
    if not model:
        raise ProviderError("invalid", "Model is required")  # GATEWAY GERR-07
    name = model.removeprefix("publishers/").replace("/models/", "/", 1).removeprefix("models/")
    for publisher in _PUBLISHERS:
        for mark in (".", "/"):
            if name.startswith(publisher + mark):
                return publisher, _checked(name[len(publisher) + 1 :], model)
    return "google", _checked(name, model)


def publisher_of(model: str | None) -> str:
    """The publisher that a model's name means; Google for none."""
    return split(model)[0] if model else "google"


def _checked(name: str, model: str) -> str:
    if not _NAME.fullmatch(name):
        raise ProviderError("model_not_found", f"'{model[:200]}' is not the name of a model on Vertex AI.")
    return name


def place(target: Target, version: str) -> str:
    """The address of the target's project and region, with a slash at its end.

    Raises `ProviderError` ``invalid`` without a project.
    """
    if target.project is None:
        said = "The provider 'vertex-ai' needs vertex_project_id, or a service account, which names its project."
        raise ProviderError("invalid", said)
    region = target.region or "global"
    if not re.fullmatch(r"[a-z0-9-]+", region) or not re.fullmatch(r"[a-z0-9][a-z0-9.:-]*", target.project):
        raise ProviderError("invalid", "Invalid vertex_region or vertex_project_id: expected the id of one.")
    base = target.base_url if target.base_url != target.vendor.base_url else regional(target.base_url, region)
    return f"{versioned(base, version)}projects/{target.project}/locations/{region}/"


def _headers(target: Target) -> dict[str, str]:
    return {"Content-Type": "application/json", **target.own_headers()}


def predict_url(model: str | None, target: Target) -> str:
    """Where one of Google's models that do not chat (embeddings, Imagen) is asked."""
    publisher, name = split(model)
    if publisher == "endpoints":
        return f"{place(target, 'v1')}endpoints/{name}:predict"
    return f"{place(target, 'v1')}publishers/{publisher}/models/{name}:predict"


class _Elsewhere:
    """A dialect as Vertex AI speaks it: other addresses, and small changes to the body."""

    def __init__(self, inner: Dialect, vendor: str) -> None:
        self._inner = inner
        self._vendor = vendor

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The request of the inner dialect, at the address and with the credentials of ``target``."""
        row = CATALOGUE[self._vendor]
        plain = Target(
            vendor=row, base_url=str(row.base_url), drop=target.drop, headers=target.headers, options=target.options
        )
        made = self._inner.request(call, plain)
        body = _decode(made.body)
        url = self._moved(call.model, body, target)
        headers = {name: value for name, value in made.headers.items() if name != "anthropic-version"}
        return HttpCall(url, {**headers, **target.own_headers()}, encode(body))

    def decoder(self) -> Decoder:
        """A fresh decoder for one answer."""
        return self._inner.decoder()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What an error answer means."""
        return self._inner.error(status, headers, body)

    def _moved(self, model: str, body: Fields, target: Target) -> str:
        """Change ``body`` and return the address."""
        publisher, name = split(model)
        if publisher == "anthropic":
            _as_anthropic(body)
        elif publisher == "mistralai":
            body["model"] = name
        elif publisher == "meta":
            body["model"] = f"meta/{name}"
            return f"{place(target, 'v1beta1')}endpoints/openapi/chat/completions"
        else:
            body.pop("model", None)
            return f"{place(target, 'v1beta1')}endpoints/{name}/chat/completions"
        return _raw_predict(publisher, name, target, stream=body.get("stream") is True)


def _as_anthropic(body: Fields) -> None:
    body.pop("model", None)  # the address has it
    body.setdefault("anthropic_version", _VERSION)


def _raw_predict(publisher: str, name: str, target: Target, *, stream: bool) -> str:
    verb = "streamRawPredict" if stream else "rawPredict"
    return f"{place(target, 'v1')}publishers/{publisher}/models/{name}:{verb}"


_DIALECTS: dict[str, Dialect] = {
    "google": VertexAI(),
    "anthropic": _Elsewhere(Anthropic(), "anthropic"),
    "mistralai": _Elsewhere(OpenAI(), "mistral-ai"),
    "meta": _Elsewhere(OpenAI(), "openai-compatible"),
    "endpoints": _Elsewhere(OpenAI(), "openai-compatible"),
}


def dialect_of(model: str | None) -> Dialect:
    """The dialect of a model on Vertex AI."""
    return _DIALECTS[publisher_of(model)]


class _Messages(msgspec.Struct, frozen=True):
    """Anthropic's Messages on Vertex AI for clients that speak them: the body is theirs but for two fields."""

    passes: bool = True

    def request(self, asked: Asked, fields: Fields, raw: bytes | None, target: Target) -> HttpCall:
        """See `operation.Operation.request`."""
        given = fields.get("model")
        publisher, name = split(given if isinstance(given, str) else None)
        body = dict(fields)
        if asked.path.endswith("/count_tokens"):
            url = _raw_predict(publisher, "count-tokens", target, stream=False)
            return HttpCall(url, _headers(target), encode({**body, "model": name}))
        _as_anthropic(body)
        url = _raw_predict(publisher, name, target, stream=body.get("stream") is True)
        return HttpCall(url, _headers(target), encode(body))

    def answer(self, body: bytes, content_type: str, fields: Fields, target: Target) -> Made:
        """See `operation.Operation.answer`."""
        return Made(body, content_type)


MESSAGES = _Messages()
