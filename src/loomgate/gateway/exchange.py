"""One exchange with an endpoint: request out, answer in, translated where the two sides speak differently.

What must live here: which way a body goes (as it is, by an operation, or through a front and a dialect), and what an
endpoint's status, headers and failure become. What must not: whether it is tried again, or somewhere else.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable

import msgspec

from loomgate import clock
from loomgate.errors import ApiError, ProviderError, ProviderErrorKind
from loomgate.gateway.call import Answer, Effective, Fields, Request
from loomgate.gateway.finish import finished_as
from loomgate.gateway.fronts import FRONTS
from loomgate.gateway.fronts.errors import ANTHROPIC, error_body, messages_error_body, refusal_body
from loomgate.gateway.fronts.front import About, Encoder, answer_id
from loomgate.gateway.fronts.messages import MessagesFront
from loomgate.gateway.gather import led
from loomgate.gateway.jobs import JOBS, worked
from loomgate.gateway.realtime import open_session, realtime_call
from loomgate.gateway.resolve import Resolved
from loomgate.providers import scripted
from loomgate.providers.credentials import Credentials
from loomgate.providers.dialect import Auth, Decoder, HttpCall, Target
from loomgate.providers.failure import masked
from loomgate.providers.jobs.job import Verbs, too_large_for
from loomgate.providers.operations import Passes, dialect_of, operation, proxied, verbs_of
from loomgate.providers.transport import Line, Reply, Started, Timeouts, Transport
from loomgate.wire.chat import Chat, Chunk, Finish
from loomgate.wire.ids import new_id

_LONGEST_ERROR = 64 * 1024
_LONGEST_WHOLE = 64 * 1024 * 1024  # an answer that has to be read as a whole before it can be translated
_SMALL = 256 * 1024  # a whole answer up to this size is taken in one piece, a larger one passes as it comes
# After the last chunk: how long to wait for the end of the body, so that the connection can be used again.
_DRAIN = Timeouts(idle=0.5)
_EXPLAIN = Timeouts(idle=10.0)  # for the body of an error, which says little more than its status

_encode = msgspec.json.Encoder().encode
_MESSAGES = MessagesFront()

# Headers that concern one connection (RFC 9110 7.6.1), or are made anew for the client (RSP-07).
_OURS = frozenset(
    b"connection keep-alive proxy-authenticate proxy-connection te trailer transfer-encoding upgrade content-length "
    b"date server alt-svc set-cookie strict-transport-security".split()
)
_OUR_PREFIX = b"x-portkey-"

# The status by which a failure without an answer is told (RTY-10, GERR-03), and its type.
_STATUS = {"timeout": 504, "connect": 503, "cut": 502, "malformed": 502, "auth": 401, "invalid": 400}
# What a refusal of our own means to a run (PRX-19), by its status or else by what it is about: a way that leads nowhere
# is no fault of the prompt.
_KIND: dict[int, ProviderErrorKind] = {
    401: "auth",
    404: "model_not_found",
    408: "timeout",
    412: "quota",
    429: "rate_limit",
}
_ASTRAY = frozenset(
    "unknown_provider provider_required provider_address_required invalid_custom_host invalid_config "
    "model_not_allowed".split()
)
_TYPE = {"timeout": "timeout_error", "auth": "authentication_error", "invalid": "invalid_request_error"}

JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")
EVENTS: tuple[bytes, bytes] = (b"content-type", b"text/event-stream; charset=utf-8")


class Exchange:
    """Sends requests to endpoints. One per gateway."""

    def __init__(self, transport: Transport, timeouts: Timeouts) -> None:
        self._transport = transport
        self._timeouts = timeouts
        self._credentials = Credentials(transport)

    async def send(self, request: Request, resolved: Resolved, effective: Effective, fields: Fields) -> Answer:
        """What the endpoint answers, whatever its status; ``fields`` is the body after the config's params.

        A failure without an answer becomes one, with the `ProviderError` in `Answer.error` (RTY-10, TMO-01).
        Raises `ApiError` for a request that cannot be made into one for this endpoint.
        """
        target = resolved.target
        timeouts = resolved.config.timeouts or self._timeouts
        limit = effective.request_timeout
        if limit is not None:
            timeouts = msgspec.structs.replace(timeouts, first_byte=limit / 1000)
        secrets = target.secrets
        try:
            if Credentials.needed(target):
                target = await self._credentials.opened(target, timeouts, trusted=resolved.vouched)
                secrets = (*target.secrets, *secrets)
            answer = await self._send(request, resolved, target, effective, fields, timeouts)
            if answer.error is not None:  # an endpoint may repeat what it was sent
                answer.error.message = masked(answer.error.message, *secrets)
        except ProviderError as error:
            if limit is not None and error.kind == "timeout":
                answer = timed_out(limit)
                answer.error = error
            else:
                told = ProviderError(
                    error.kind, masked(error.message, *secrets), status=error.status, retry_after=error.retry_after
                )
                answer = failed(request, resolved.provider, told)
        if answer.status == 401 and Credentials.needed(resolved.target):
            self._credentials.forget(secrets[0] if secrets else None)
        answer.provider = resolved.provider
        answer.model = resolved.model or ""
        return answer

    async def play(self, request: Request, fields: Fields, tries: int) -> Answer:
        """The deterministic model's answer: no endpoint, the same ways back."""
        if request.endpoint.name == "count_tokens":
            answer = await _counted(fields)
            answer.provider, answer.model = "scripted", str(fields.get("model"))
            return answer
        call = _chat(request, fields)
        about = _about("scripted", call.model, fields)
        try:
            answer = await self._told(request, scripted.stream(call, tries), about, stream=call.stream)
        except ProviderError as error:
            answer = failed(request, "scripted", error)
        answer.provider, answer.model = "scripted", call.model
        return answer

    async def _send(
        self,
        request: Request,
        resolved: Resolved,
        target: Target,
        effective: Effective,
        fields: Fields,
        timeouts: Timeouts,
    ) -> Answer:
        name = request.endpoint.name
        if name == "realtime":
            return await self._opened(request, resolved, target, effective, timeouts)
        if not request.endpoint.mapped:
            call = proxied(request.method, request.path, request.query, request.headers, request.body, target)
            return await self._passed(request, await self._reply(call, target, effective, request, timeouts))
        if name in JOBS and (verbs := verbs_of(target, name)) is not None:
            return await self._worked(request, resolved, target, effective, fields, timeouts, verbs)
        if request.source is not None:
            raise too_large_for(resolved.provider)
        doing = None if request.chat is not None else operation(target, name, resolved.model)
        if doing is not None:
            raw = request.body if fields is request.fields else None
            call = doing.request(request, fields, raw, target)
            reply = await self._reply(call, target, effective, request, timeouts)
            if reply.status >= 400:
                return (await self._refused(request, resolved, reply))[0]
            if doing.passes:
                answer = await self._passed(request, reply)
                if target.vendor.finish and answer.status == 200 and _strict(request, effective):
                    answer = finished_as(answer, target.vendor.finish)
                return answer
            async with reply:
                body = await reply.read(_LONGEST_WHOLE)
            content_type = reply.headers.get("content-type", "")
            made = doing.answer(body, content_type, fields, target)
            return Answer(
                200, made.body, headers=[(b"content-type", made.content_type.encode("latin-1")), *_passing(reply)]
            )
        if name == "count_tokens" and dialect_of(target, resolved.model, "messages") is not None:
            return await _counted(fields)
        front, dialect = FRONTS.get(name), dialect_of(target, resolved.model, name)
        if front is None or dialect is None:
            return unsupported(request, resolved.provider)
        chat = _chat(request, fields)
        if chat.model != resolved.model and resolved.model is not None:
            chat = msgspec.structs.replace(chat, model=resolved.model)
        reply = await self._reply(dialect.request(chat, target), target, effective, request, timeouts)
        if reply.status != 200:
            answer, said = await self._refused(request, resolved, reply)
            answer.error = dialect.error(reply.status, reply.headers, said)
            return answer
        about = _about(resolved.provider, chat.model, fields, strict=_strict(request, effective))
        decoder = dialect.decoder()
        chunks = _chunks(reply, decoder, target.secrets)
        answer = await self._told(request, chunks, about, stream=chat.stream, decoder=decoder)
        answer.headers += _passing(reply)
        answer.release = reply.close
        return answer

    async def _worked(
        self,
        request: Request,
        resolved: Resolved,
        target: Target,
        effective: Effective,
        fields: Fields,
        timeouts: Timeouts,
        verbs: Verbs,
    ) -> Answer:
        """What a vendor's own files and jobs answer (TR-25)."""
        more = _forwarded(request, effective, target)

        async def send(call: HttpCall, auth: Auth | None) -> Reply:
            call = msgspec.structs.replace(call, headers={**call.headers, **more}, public_only=target.public_only)
            return await self._transport.send(call if auth is None else auth(call), timeouts)

        async def fetch(call: HttpCall) -> Reply:
            return await self._transport.send(call, timeouts)

        answer = await worked(request, target, resolved.provider, fields, verbs, (send, fetch))
        return answer if isinstance(answer, Answer) else unsupported(request, resolved.provider, answer)

    async def _opened(
        self, request: Request, resolved: Resolved, target: Target, effective: Effective, timeouts: Timeouts
    ) -> Answer:
        """The open WebSocket of a realtime call."""
        if "realtime" not in target.vendor.endpoints:
            return unsupported(request, resolved.provider)
        call = realtime_call(target, resolved.model, request.query, request.headers)
        answer = Answer(200)
        answer.session = await open_session(self._transport, _proven(call, target, effective, request), timeouts)
        return answer

    async def _reply(
        self, call: HttpCall, target: Target, effective: Effective, request: Request, timeouts: Timeouts
    ) -> Reply:
        started = None if request.ahead is None else request.ahead.taken()
        return await self._transport.send(_proven(call, target, effective, request), timeouts, started)

    def line(self, request: Request, resolved: Resolved, effective: Effective) -> tuple[Line, Passes] | None:
        """What all chats like ``request`` share whose bodies this endpoint takes as they are, and what says whether it
        does; ``None`` when the one or the other cannot be said. Raises what making a request raises."""
        target = resolved.target
        doing = operation(target, "chat", resolved.model)
        asks = target.base_url + target.vendor.endpoints.get("chat", "")
        if (
            not isinstance(doing, Passes)
            or "{user}" in asks
            or target.auth is not None
            or target.vendor.finish
            or Credentials.needed(target)
        ):
            return None
        call = doing.request(request, request.fields, request.body, target)
        if call.body is not request.body:
            return None
        line = self._transport.line(_proven(call, target, effective, request))
        return None if line is None else (line, doing)

    def start(
        self, line: Line, body: bytes, listener: Callable[[], None], admit: Callable[[], bool] | None
    ) -> Started | None:
        """`Transport.start`."""
        return self._transport.start(line, body, listener, admit)

    async def _passed(self, request: Request, reply: Reply) -> Answer:
        """The endpoint's answer as it is: whole when it is small, else piece by piece."""
        headers = passing(reply.raw_headers)
        kind = next((value for name, value in headers if name == b"content-type"), b"")
        if kind.startswith(b"text/event-stream"):  # even if all of it is here: guardrails read it as a stream
            return _streamed(reply, headers)
        whole = reply.whole
        if whole is None:
            length = reply.headers.get("content-length", "")
            if length.isdecimal() and int(length) <= _SMALL:
                async with reply:
                    whole = await reply.read(_SMALL)
            elif request.endpoint.cached and kind.startswith(b"application/json"):
                # Guardrails and the cache look at it as one, however it comes.
                async with reply:
                    whole = await reply.read(_LONGEST_WHOLE + 1)
                if len(whole) > _LONGEST_WHOLE:
                    raise ProviderError("malformed", f"The answer is longer than {_LONGEST_WHOLE >> 20} MiB.")
        if whole is not None:
            reply.close()
            return Answer(reply.status, whole, headers=headers)
        return _streamed(reply, headers)

    async def _refused(self, request: Request, resolved: Resolved, reply: Reply) -> tuple[Answer, bytes]:
        """An error of a mapped endpoint in OpenAI's shape (GERR-01, GERR-09), and what the endpoint said."""
        reply.hurry(_EXPLAIN)
        async with reply:
            said = await reply.read(_LONGEST_ERROR)
        shape = messages_error_body if request.endpoint.name in ANTHROPIC else error_body
        made = shape(resolved.provider, reply.status, said, resolved.target.vendor.dialect)
        body = masked(_encode(made).decode(), *resolved.target.secrets).encode()
        return Answer(reply.status, body, headers=[JSON, *_passing(reply)]), said

    async def _told(
        self,
        request: Request,
        chunks: AsyncGenerator[Chunk, None],
        about: About,
        *,
        stream: bool,
        decoder: Decoder | None = None,
    ) -> Answer:
        """``chunks`` as the client reads them; the first one is awaited, so that an error before it has its status."""
        first = await anext(chunks)
        told = led(first, chunks)
        if request.chat is not None:
            return Answer(200, chunks=told)
        if decoder is not None:
            id = answer_id(decoder.id, about.provider, clock.now())
            about = msgspec.structs.replace(about, id=id, model=decoder.model or about.model)
        front = FRONTS[request.endpoint.name]
        if stream:
            answer = Answer(200, headers=[EVENTS])
            answer.stream = _encoded(answer, told, front.encoder(about))
            return answer
        whole = front.whole([chunk async for chunk in told], about)
        return Answer(200, _encode(whole), headers=[JSON])


# --- answers that no endpoint made -----------------------------------------------------------------------------------


def refused(request: Request, error: ApiError, provider: str = "", meant: ProviderError | None = None) -> Answer:
    """The answer that ``error`` is, of ``provider`` if one had its part in it; ``meant``: what it means to a run."""
    headers = [JSON, *((name.encode("latin-1"), value.encode("latin-1")) for name, value in error.headers.items())]
    answer = Answer(error.status, refusal_body(error, request.endpoint, provider), headers=headers)
    answer.error = meant or error_of(error)
    return answer


def failed(request: Request, provider: str, error: ProviderError) -> Answer:
    """The answer for an exchange that broke (RTY-10)."""
    status = error.status if error.status is not None and error.status >= 400 else _STATUS.get(error.kind, 502)
    type = _TYPE.get(error.kind, "api_error")
    waits = {} if error.retry_after is None else {"retry-after": str(math.ceil(error.retry_after))}
    told = ApiError(status, f"{provider} error: {error.message}", type=type, code=error.kind, headers=waits)
    return refused(request, told, provider, error)


def error_of(error: ApiError, *, astray: bool = False) -> ProviderError:
    """What a refusal of our own means to a run (PRX-19); ``astray``: it came before any target was reached."""
    kind = _KIND.get(error.status)
    if kind is None:
        is_route = astray or error.code in _ASTRAY
        kind = "server" if error.status >= 500 else "route" if is_route else "invalid"
    asked = error.headers.get("retry-after", "")
    return ProviderError(
        kind, error.message, status=error.status, retry_after=float(asked) if asked.isdecimal() else None
    )


def timed_out(milliseconds: int) -> Answer:
    """TMO-01."""
    message = f"Request exceeded the timeout sent in the request: {milliseconds}ms"
    made = {"error": {"message": message, "type": "timeout_error", "param": None, "code": None}}
    return Answer(408, _encode(made), headers=[JSON])


def unsupported(request: Request, provider: str, inner: str = "") -> Answer:
    """GERR-04; ``inner``: of the endpoint's names that of what is asked."""
    message = f"{inner or request.endpoint.inner} is not supported by {provider}"
    answer = refused(
        request, ApiError(500, message, code="unsupported_endpoint"), meant=ProviderError("route", message)
    )
    answer.final = True
    return answer


# --- pieces ----------------------------------------------------------------------------------------------------------


async def _counted(fields: Fields) -> Answer:
    """An estimate, where the vendor counts no tokens. In a thread: long prompts take a while."""
    found = await asyncio.to_thread(_MESSAGES.count_tokens, fields)
    return Answer(200, _encode(found), headers=[JSON])


def _chat(request: Request, fields: Fields) -> Chat:
    """The model call that ``fields`` are: a run's own, if no more than its model is another."""
    call = request.chat
    if call is None:
        return FRONTS[request.endpoint.name].chat(fields)
    given = request.fields
    if fields is given:
        return call
    if len(fields) == len(given) and all(fields[name] is given.get(name) for name in fields if name != "model"):
        return msgspec.structs.replace(call, model=str(fields["model"]))
    return FRONTS[request.endpoint.name].chat(fields)


def passing(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Those of an endpoint's headers that go to the client with a body that passes."""
    return [pair for pair in headers if pair[0] not in _OURS and not pair[0].startswith(_OUR_PREFIX)]


def _passing(reply: Reply) -> list[tuple[bytes, bytes]]:
    """The endpoint's headers beside those of a body that was made anew."""
    return [
        pair
        for pair in reply.raw_headers
        if pair[0] not in _OURS
        and pair[0] not in (b"content-type", b"content-encoding", b"cache-control")
        and not pair[0].startswith(_OUR_PREFIX)
    ]


def _streamed(reply: Reply, headers: list[tuple[bytes, bytes]]) -> Answer:
    answer = Answer(reply.status, stream=_pieces(reply), headers=headers)
    answer.release = reply.close
    return answer


async def _pieces(reply: Reply) -> AsyncGenerator[bytes, None]:
    async with reply:
        while piece := await reply.piece():
            yield piece


async def _chunks(reply: Reply, decoder: Decoder, secrets: tuple[str | None, ...]) -> AsyncGenerator[Chunk, None]:
    async with reply:
        over = False
        try:
            while not over:
                data = await reply.piece()
                for chunk in decoder.feed(data) if data else decoder.end():
                    yield chunk
                    over = isinstance(chunk, Finish)
        except ProviderError as error:
            error.message = masked(error.message, *secrets)  # an endpoint may repeat the key within a stream, too
            raise
        reply.hurry(_DRAIN)
        try:
            while await reply.piece():
                pass
        except ProviderError:
            pass


async def _encoded(
    answer: Answer, chunks: AsyncGenerator[Chunk, None], encoder: Encoder
) -> AsyncGenerator[bytes, None]:
    """``chunks`` in the client's words; the error of those that break is told last, and is ``answer``'s."""
    try:
        async for chunk in chunks:
            if data := encoder.feed(chunk):
                yield data
    except ProviderError as error:
        answer.error = error
        yield encoder.error(error.message, _TYPE.get(error.kind, "api_error"), error.kind)
    finally:
        await chunks.aclose()


def _about(provider: str, model: str, fields: Fields, *, strict: bool = True) -> About:
    return About(
        id=new_id("chatcmpl"), created=clock.timestamp(), model=model, provider=provider, strict=strict, asked=fields
    )


def _strict(request: Request, effective: Effective) -> bool:
    """STR-04: one ``false`` suffices."""
    return request.naming.strict and effective.strict is not False


_OPENAI = frozenset({"openai", "azure-openai"})


def _proven(call: HttpCall, target: Target, effective: Effective, request: Request) -> HttpCall:
    """``call`` with what proves it and the headers that go along (RH-13, RH-19 to RH-21)."""
    more = _forwarded(request, effective, target)
    if more or target.public_only:
        call = msgspec.structs.replace(call, headers={**call.headers, **more}, public_only=target.public_only)
    return call if target.auth is None else target.auth(call)


def _forwarded(request: Request, effective: Effective, target: Target) -> dict[str, str]:
    """What of the client's own headers goes along."""
    given, made = request.headers, dict(request.naming.forward)
    for name in effective.forward_headers:
        if (value := given.get(name.lower())) is not None:
            made[name] = value
    if target.vendor.name in _OPENAI:
        _set(made, "OpenAI-Beta", given.get("x-portkey-openai-beta") or given.get("openai-beta"))
    elif target.vendor.dialect in ("anthropic", "azure-ai"):
        _set(made, "anthropic-beta", given.get("x-portkey-anthropic-beta") or given.get("anthropic-beta"))
        _set(made, "anthropic-version", given.get("x-portkey-anthropic-version") or given.get("anthropic-version"))
    return made


def _set(made: dict[str, str], name: str, value: object) -> None:
    if value:
        made[name] = str(value)
