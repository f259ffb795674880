"""What an endpoint other than a chat needs to be done with a request: the protocol, and the translation by table.

What must live here: the shape of an operation and the plain values around it. What must not: a vendor's format
(``own``), and which operation an endpoint gets (``operations``).
"""

import base64
import struct
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import msgspec

from loomgate.errors import ApiError, ProviderError
from loomgate.providers.dialect import HttpCall, Target
from loomgate.wire.endpoints import EndpointName

Fields = dict[str, Any]

# What looking into an answer raises when it is not shaped as it should be.
_UNFOUND = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError, struct.error)

encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Asked(Protocol):
    """A client's request, as the gateway has it. ``path`` is below ``/v1``; header names are in lower case;
    ``content_type`` is without parameters; ``query`` without the question mark."""

    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def query(self) -> str: ...  # noqa: D102
    @property
    def headers(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def content_type(self) -> str: ...  # noqa: D102
    @property
    def body(self) -> bytes: ...  # noqa: D102


class Made(msgspec.Struct, frozen=True):
    """A body for the client."""

    body: bytes
    content_type: str = "application/json"


class Operation(Protocol):
    """How one endpoint of one vendor is called. ``passes``: its answers go to the client as they are, streams too."""

    @property
    def passes(self) -> bool: ...  # noqa: D102

    def request(self, asked: Asked, fields: Fields, raw: bytes | None, target: Target) -> HttpCall:
        """The vendor's request. ``fields`` is the JSON body after the config's params, ``raw`` the client's bytes if
        they still say the same. Raises a 4xx `ApiError`, or `ProviderError`, for what this endpoint cannot do."""
        ...

    def answer(self, body: bytes, content_type: str, fields: Fields, target: Target) -> Made:
        """A success in OpenAI's shape. Raises `ProviderError` ``malformed`` for what is no answer."""
        ...


def refused(param: str, expected: str, found: str = "") -> ApiError:
    """The 400 for a field that this endpoint cannot honour."""
    message = f"Invalid '{param}': expected {expected}" + (f", but got {found}." if found else ".")
    return ApiError(400, message, param=param, code="invalid_value")


def texts_of(fields: Fields, name: str = "input") -> list[str]:
    """The field's text or texts. Raises a 400 `ApiError` for anything else (token ids, nothing)."""
    found = fields.get(name)
    if isinstance(found, str):
        return [found]
    if isinstance(found, list) and found and all(isinstance(each, str) for each in cast("list[Any]", found)):
        return cast("list[str]", found)
    raise refused(name, "a text or a list of texts")


def malformed(vendor: str, body: bytes) -> ProviderError:
    """GATEWAY GERR-03; ours is a 502."""
    said = body[:300].decode("utf-8", "replace")
    return ProviderError("malformed", f"Invalid response received from {vendor}: {said}")


class Translated(msgspec.Struct, frozen=True, kw_only=True):
    """An operation by two functions: ``ask`` gives the body (an object, or bytes with ``content_type``), ``tell`` turns
    the decoded answer into OpenAI's.

    ``path`` replaces the row's, for one that depends on the request, and ``url`` the whole address. ``tell`` gets bytes
    if the answer is a picture; it may raise `KeyError`, `TypeError` or `IndexError` for what it does not find. Fields
    that ``ask`` does not know are not sent, as in the reference (GATEWAY TR-01); it refuses what would change the
    answer's shape.
    """

    endpoint: EndpointName
    ask: Callable[[Fields, Target], Any]
    tell: Callable[[Any, Fields, Target], Any]
    path: Callable[[Fields, Target], str] | None = None
    url: Callable[[str | None, Target], str] | None = None
    headers: Mapping[str, str] = {}
    content_type: str = "application/json"
    passes: bool = False

    def request(self, asked: Asked, fields: Fields, raw: bytes | None, target: Target) -> HttpCall:
        """See `Operation.request`."""
        model, user = fields.get("model"), fields.get("user")
        model = model if isinstance(model, str) else None
        if self.url is not None:
            url = self.url(model, target)
        elif self.path is None:
            url = target.endpoint_url(self.endpoint, model, user if isinstance(user, str) else None)
        else:
            url = target.addressed(self.path(fields, target), self.endpoint, model)
        body = self.ask(fields, target)
        headers = {"Content-Type": self.content_type, **self.headers, **target.own_headers()}
        if isinstance(body, Form):
            headers["Content-Type"] = body.content_type
            body = body.body
        return HttpCall(url, headers, body if isinstance(body, bytes) else encode(body))

    def answer(self, body: bytes, content_type: str, fields: Fields, target: Target) -> Made:
        """See `Operation.answer`."""
        try:
            found = body if content_type.startswith("image/") else _decode(body)
            told = self.tell(found, fields, target)
        except (msgspec.DecodeError, UnicodeDecodeError, *_UNFOUND):
            raise malformed(target.vendor.name, body) from None
        return Made(encode({**told, "provider": target.vendor.name}))


class Form(msgspec.Struct, frozen=True):
    """A body of ``multipart/form-data``."""

    fields: Mapping[str, str]

    @property
    def content_type(self) -> str:
        """With the boundary."""
        return f"multipart/form-data; boundary={self._boundary}"

    @property
    def body(self) -> bytes:
        """RFC 7578, each field a part."""
        lines: list[str] = []
        for name, value in self.fields.items():
            lines += [f"--{self._boundary}", f'Content-Disposition: form-data; name="{name}"', "", value]
        return "\r\n".join([*lines, f"--{self._boundary}--", ""]).encode()

    @property
    def _boundary(self) -> str:
        # One that no value can have within it, since it depends on all of them.
        import hashlib

        return "form-" + hashlib.sha256(repr(sorted(self.fields.items())).encode()).hexdigest()[:32]


def embeddings(
    vectors: list[list[float]], fields: Fields, prompt_tokens: int = 0, total_tokens: int | None = None
) -> Fields:
    """OpenAI's list of embeddings, in base64 if the client asked for that (its SDKs do)."""
    packed = fields.get("encoding_format") == "base64"
    data: list[Fields] = [
        {"object": "embedding", "index": index, "embedding": _base64(each) if packed else each}
        for index, each in enumerate(vectors)
    ]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": total_tokens or prompt_tokens}
    return {"object": "list", "data": data, "model": fields.get("model") or "", "usage": usage}


def _base64(vector: list[float]) -> str:
    """Little-endian 32-bit floats, as OpenAI packs them."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
