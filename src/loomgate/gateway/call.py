"""What travels through the gateway: a request, one answer to it, and the endpoint's side of the way between them.

What must live here: values. What must not: decisions. A `Request` is made by ``http/`` (a run's by `Gateway.chat`) and
not changed on its way: what a target of the config changes about it is the target's own.
"""

import copy
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import UNSET, UnsetType

from loomgate.errors import ApiError, ProviderError
from loomgate.gateway import forms
from loomgate.providers.openai import fields_of
from loomgate.wire.chat import Chat, Chunk, Usage
from loomgate.wire.endpoints import Endpoint
from loomgate.wire.policy import Breaker, CachePolicy, Naming, Retry, Strategy

if TYPE_CHECKING:
    from loomgate.gateway.realtime import Session
    from loomgate.gateway.straight import Passing
    from loomgate.providers.jobs.job import Source

Fields = dict[str, Any]

_decode = msgspec.json.Decoder().decode


class Request:
    """A request as the client sent it.

    ``path`` is below ``/v1``; ``headers`` has lower-case names; ``content_type`` is without parameters, maybe "".
    """

    __slots__ = (
        "_fields",
        "_form_model",
        "ahead",
        "body",
        "chat",
        "content_type",
        "endpoint",
        "headers",
        "method",
        "naming",
        "path",
        "query",
        "run",
        "source",
        "workspace",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        naming: Naming,
        workspace: str,
        *,
        method: str = "POST",
        path: str = "",
        query: str = "",
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        body: bytes = b"",
        chat: Chat | None = None,
        run: tuple[str, str] = ("", ""),
        fields: Fields | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.naming = naming
        self.workspace = workspace
        self.method = method
        self.path = path or endpoint.path
        self.query = query
        self.headers: Mapping[str, str] = headers or {}
        self.content_type = content_type
        self.body = body
        self.chat = chat  # a run's model call: its answer is wanted as chunks
        self.run = run  # whose call it is: the run's id and its thread's
        self._fields = fields
        self._form_model: str | UnsetType | None = UNSET  # looked for once, though every target asks
        self.source: Source | None = None  # a body that is too large to be held, and so not in ``body``
        self.ahead: Passing | None = None  # what was done of it already, see `loomgate.gateway.straight`

    @property
    def fields(self) -> Fields:
        """The JSON body, decoded once; ``{}`` for other bodies and for none (CND-10).

        Do not change it. Raises a 400 `ApiError` when the body is not a JSON object.
        """
        found = self._fields
        if found is None:
            found = self._fields = self._decoded()
        return found

    def _decoded(self) -> Fields:
        if self.chat is not None:
            return fields_of(self.chat)
        if self.content_type != "application/json" or not self.body.strip():
            return {}
        try:
            found = _decode(self.body)
        except RecursionError:
            raise ApiError(
                400, "The request body is not valid: it is nested too deeply.", code="invalid_json"
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ApiError(400, f"The request body is not valid JSON: {error}", code="invalid_json") from None
        if not isinstance(found, dict):
            raise ApiError(400, "The request body is not valid: expected a JSON object.", code="invalid_json")
        return cast(Fields, found)

    @property
    def model(self) -> str | None:
        """The body's ``model``, if it names one."""
        if self.chat is not None:
            return self.chat.model
        found = self.fields.get("model")
        return found if isinstance(found, str) else None

    @property
    def is_form(self) -> bool:
        """Whether the body is a multipart form."""
        return self.content_type == "multipart/form-data"

    @property
    def form_model(self) -> str | None:
        """The ``model`` of a form."""
        if not self.is_form:
            return None
        if self._form_model is UNSET:
            self._form_model = forms.model_in(self.body, self.headers.get("content-type", ""))
        return self._form_model

    def with_form_model(self, model: str) -> "Request":
        """The same form, but for its ``model``."""
        made = copy.copy(self)
        made.body = forms.with_model(self.body, self.headers.get("content-type", ""), model)
        made._form_model = model
        return made

    @property
    def stream(self) -> bool:
        """Whether the client asked for a stream (STM-01)."""
        return self.fields.get("stream") is True


class Effective(msgspec.Struct, frozen=True, kw_only=True):
    """One target of a config with everything it inherits (GATEWAY section 6.2) and its place, as RSP-02 tells it.

    ``options`` are the provider data of CFG-27 under their config names, ``before`` and ``after`` compiled guardrails.
    ``circuit``: whose failures ``breaker`` counts together, this target of this config; "" without a breaker.
    """

    path: str = "config"
    index: int = 0
    name: str | None = None
    provider: str | None = None
    virtual_key: str | None = None
    api_key: str | None = None
    custom_host: str | None = None
    options: Mapping[str, Any] = {}
    weight: float = 1.0
    override_params: Fields = {}
    default_params: Fields = {}
    drop_params: tuple[str, ...] = ()
    forward_headers: tuple[str, ...] = ()
    retry: Retry | None = None
    cache: CachePolicy | None = None
    request_timeout: int | None = None
    strict: bool | None = None
    passthrough: bool = False
    breaker: Breaker | None = None
    circuit: str = ""
    before: tuple[Any, ...] = ()
    after: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return f"Effective(path={self.path!r}, provider={self.provider!r}, virtual_key={self.virtual_key!r})"


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A config, compiled: a leaf (no ``strategy``) is called, anything else chooses among its ``targets``."""

    effective: Effective
    strategy: Strategy | None = None
    targets: tuple["Node", ...] = ()


class Answer:
    """What goes back to the client, whole (``body``) or as it comes (``stream``), or to a run (``chunks``); or the open
    WebSocket of a realtime call (``session``).

    ``headers`` are those of the endpoint that are passed on, names in lower case. The rest is for the headers of
    GATEWAY section 4, the log and the strategies: where it came from (``provider``, ``model``, ``path``), the retries
    it took, what the cache did, ``usage``. ``error`` says in our words what an error status means. ``final``: made by
    the gateway because of an error of its own, so no fallback is tried (FB-04, RSP-06). ``tries``: how often in all
    a run may call where it came from when no config says it; ``None``: as often as the gateway's settings say.
    ``release`` lets go of what ``stream`` or ``chunks`` are read from, once or more often.
    """

    __slots__ = (
        "body",
        "cache",
        "chunks",
        "error",
        "final",
        "headers",
        "model",
        "path",
        "provider",
        "release",
        "retries",
        "session",
        "status",
        "stream",
        "trace_id",
        "tries",
        "usage",
    )

    def __init__(
        self,
        status: int,
        body: bytes | None = None,
        *,
        stream: AsyncGenerator[bytes, None] | None = None,
        chunks: AsyncGenerator[Chunk, None] | None = None,
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        self.status = status
        self.body = body
        self.stream = stream
        self.chunks = chunks
        self.headers = headers or []
        self.provider = ""
        self.model = ""
        self.path = "config"
        self.trace_id = ""
        self.retries = 0
        self.cache = "DISABLED"
        self.usage: Usage | None = None
        self.error: ProviderError | None = None
        self.final = False
        self.tries: int | None = None
        self.session: Session | None = None
        self.release: Callable[[], None] | None = None

    async def close(self) -> None:
        """Let go of what is still open: an answer that is not used must not keep its connection."""
        for source in (self.stream, self.chunks):
            if source is not None:
                await source.aclose()
        if self.session is not None:
            self.session.end()
        # A generator that nobody has begun to read does nothing when it is closed.
        release, self.release = self.release, None  # which may know us, and what we hold
        if release is not None:
            release()
