"""Cohere's chat dialect (v2), sans-I/O: a `Chat` to request bytes, the answer's event stream to `Chunk` values.

What must live here: this wire format (GATEWAY TR-24, FR-17). What must not: Cohere's models on other vendors'
endpoints, which speak those vendors' dialects.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from loomgate.errors import ProviderError, ProviderErrorKind
from loomgate.providers.dialect import HttpCall, Target, undropped
from loomgate.providers.events import EventDecoder
from loomgate.providers.failure import error_answer, masked, status_kind
from loomgate.providers.parts import encoded, own_words, refused, spoken, texts_only
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Chunk,
    ContentPart,
    Finish,
    FinishReason,
    FunctionTool,
    ImagePart,
    NamedFunction,
    TextDelta,
    TextPart,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)
from loomgate.wire.ids import new_id

# --- the request ---------------------------------------------------------------------------------------------------


def _text(content: str | list[ContentPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content if isinstance(part, TextPart))


def _content(content: str | list[ContentPart] | None) -> Any:
    """Text as it is; parts as a list without empty texts; nothing as None."""
    if content is None or isinstance(content, str):
        return content or None
    return [_part(part) for part in spoken(content) if not isinstance(part, TextPart) or part.text] or None


def _part(part: ContentPart) -> ContentPart:
    if not isinstance(part, TextPart | ImagePart):
        raise refused("messages", "text and images, since Cohere takes no files and no sound")
    return msgspec.structs.replace(part, cache_control=None) if part.cache_control is not None else part


def _message(message: ChatMessage) -> dict[str, Any] | None:
    """A message, or None for one that says nothing: Cohere refuses those."""
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": _text(message.content)}
    if message.role != "assistant":
        content = _content(message.content)
        role = "system" if message.role == "developer" else message.role
        return {"role": role, "content": content} if content is not None else None
    said = "\n".join(text for text in (_text(message.content), message.refusal) if text)
    made: dict[str, Any] = {"role": "assistant"}
    if message.tool_calls:
        made["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}
            for call in message.tool_calls
        ]
    if said:
        made["tool_plan" if message.tool_calls else "content"] = said  # beside calls, text has this place
    return made if len(made) > 1 else None


def _tool(tool: FunctionTool) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": tool.name,
        "parameters": tool.parameters or {"type": "object", "properties": {}},
    }
    if tool.description:
        made["description"] = tool.description
    return {"type": "function", "function": made}


def _tools(call: Chat) -> dict[str, Any]:
    tools, choice = call.tools, call.tool_choice
    if not tools:
        return {"tools": call.vendor_tools} if call.vendor_tools else {}
    if isinstance(choice, NamedFunction):
        # No choice has a name; to have to call the only one there is means the same.
        tools = [tool for tool in tools if tool.name == choice.name]
        choice = "required"
        if not tools:
            raise ProviderError("invalid", "The function that tool_choice names is not among the tools.")
    made: dict[str, Any] = {"tools": [*(_tool(tool) for tool in tools), *call.vendor_tools]}
    if any(tool.strict for tool in tools):
        made["strict_tools"] = True  # for all of them or none
    if choice in ("none", "required"):
        made["tool_choice"] = choice.upper()
    return made


def _body(call: Chat) -> dict[str, Any]:
    messages = [made for message in texts_only(call.messages) if (made := _message(message)) is not None]
    body: dict[str, Any] = {"model": call.model, "messages": messages, **_tools(call)}
    if call.stream:
        body["stream"] = True
    asked = call.response_format or {"type": "text"}
    if asked["type"] == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif asked["type"] == "json_schema":
        body["response_format"] = {"type": "json_object", "json_schema": asked["json_schema"].get("schema") or {}}
    if call.temperature is not None:
        body["temperature"] = call.temperature
    if call.top_p is not None:
        body["p"] = min(max(call.top_p, 0.01), 0.99)  # Cohere's range (GATEWAY TR-02)
    if call.max_completion_tokens is not None:
        body["max_tokens"] = call.max_completion_tokens
    if call.stop:
        body["stop_sequences"] = call.stop
    if call.thinking is not None:
        body["thinking"] = _thinking(call.thinking)
    elif call.reasoning_effort is not None:  # on or off is all there is to say
        body["thinking"] = {"type": "disabled" if call.reasoning_effort == "none" else "enabled"}
    for name, value in (("frequency_penalty", call.frequency_penalty), ("presence_penalty", call.presence_penalty)):
        if value is not None:
            body[name] = min(max(value, 0.0), 1.0)  # Cohere's range (GATEWAY TR-02)
    if call.seed is not None:
        body["seed"] = call.seed
    if call.top_k is not None:
        body["k"] = min(max(call.top_k, 0), 500)
    body.update(own_words(call, "Cohere"))
    return body


def _thinking(asked: dict[str, Any]) -> dict[str, Any]:
    """Anthropic's object in Cohere's words."""
    if asked.get("type") == "disabled":
        return {"type": "disabled"}
    budget = asked.get("budget_tokens")
    return {"type": "enabled", **({"token_budget": budget} if budget is not None else {})}


class Cohere:
    """The `Dialect` of Cohere's own endpoint."""

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The request for ``call``. Raises `ProviderError` ``invalid`` for what Cohere cannot be told."""
        base, path = target.base_url.rstrip("/"), target.vendor.chat_path
        url = base + (path.removeprefix("/v2") if base.endswith("/v2") else path)
        accept = "text/event-stream" if call.stream else "application/json"
        headers = {"Content-Type": "application/json", "Accept": accept}
        if target.api_key:
            headers["Authorization"] = "Bearer " + target.api_key
        return HttpCall(url, {**headers, **target.headers}, encoded(lambda: _body(undropped(call, target))))

    def decoder(self) -> "AnswerDecoder":
        """A fresh decoder for one answer."""
        return AnswerDecoder()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What an error answer means. ``headers`` has lower-case names; ``body`` may be anything, or empty."""
        return error_answer(status, headers, body, _refusal)


def _refusal(found: dict[str, Any], status: int, wait: float | None) -> ProviderError:
    said = found.get("message")
    message = masked(said)[:2000] if isinstance(said, str) and said else f"The endpoint answered HTTP {status}."
    kind = _STATUSES.get(status) or status_kind(status)
    if kind == "rate_limit" and _SPENT.search(message):
        kind = "quota"
    return ProviderError(kind, message, status=status, retry_after=wait)


# Where Cohere's statuses mean something of their own: a blocked prompt or answer, an operation it does not have.
_STATUSES: dict[int, ProviderErrorKind] = {498: "invalid", 501: "invalid"}
_SPENT = re.compile(r"(?i)(/|\bper) *month\b")  # a trial key's calls are counted by the month


# --- the answer ----------------------------------------------------------------------------------------------------


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    id: str | None = None
    function: _Function | None = None


class _Content(msgspec.Struct):
    """Text, or a thought."""

    text: str | None = None
    thinking: str | None = None


class _Message(msgspec.Struct):
    """Of an event, with one piece; of a whole answer, with lists. The lists of a beginning are empty."""

    content: _Content | list[_Content] | None = None
    tool_calls: _ToolCall | list[_ToolCall] | None = None


class _Tokens(msgspec.Struct):
    input_tokens: float | None = None
    output_tokens: float | None = None


class _Usage(msgspec.Struct):
    billed_units: _Tokens | None = None
    tokens: _Tokens | None = None
    cached_tokens: float | None = None


class _Delta(msgspec.Struct):
    message: _Message | None = None
    finish_reason: str | None = None
    usage: _Usage | None = None
    error: str | None = None


class _Event(msgspec.Struct):
    """An event, or (without a type) a whole answer."""

    type: str | None = None
    index: int | None = None
    delta: _Delta | None = None
    id: str | None = None
    message: Any = None
    finish_reason: str | None = None
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Event).decode

_FINISH: dict[str, FinishReason] = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "ERROR_LIMIT": "length",
    "TOOL_CALL": "tool_calls",
    "ERROR_TOXIC": "content_filter",
}
# GATEWAY FR-17 makes these a "stop", which would take half an answer for a whole one.
_BROKEN: dict[str, ProviderErrorKind] = {"ERROR": "server", "TIMEOUT": "timeout"}


class AnswerDecoder(EventDecoder):
    """The `Decoder` of this dialect. Plans for tools and citations are left out."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int, int] = {}  # Cohere's index -> ours
        self._empty: set[int] = set()  # calls without arguments so far, by Cohere's index
        self._usage: Usage | None = None

    def read(self, data: bytes) -> Iterator[Chunk]:
        """The chunks of one event. Raises `ProviderError`: its error, or ``malformed``."""
        if data.strip() in (b"", b"[DONE]"):
            return
        try:
            event = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProviderError("malformed", f"The endpoint sent an event that cannot be read: {error}") from None
        self.id = event.id or self.id
        if event.type is None:
            yield from self._whole_answer(event)
            return
        delta = event.delta or _Delta()
        message = delta.message or _Message()
        index = event.index or 0
        match event.type:
            case "content-start" | "content-delta":
                if isinstance(message.content, _Content):
                    yield from _said(message.content)
            case "tool-call-start" | "tool-call-delta":
                if isinstance(message.tool_calls, _ToolCall):
                    yield from self._call(index, message.tool_calls, begins=event.type == "tool-call-start")
            case "tool-call-end":
                yield from self._close(index)
            case "message-end":
                for open_index in tuple(self._empty):
                    yield from self._close(open_index)
                self._end(delta)
                yield self.finish()
            case _:  # message-start, tool-plan-delta, citations, and whatever may be added to the format
                pass

    def finish(self) -> Finish:
        """The last chunk."""
        reason = _FINISH.get(self.reason or "", "stop")
        if reason in ("stop", "tool_calls"):
            reason = "tool_calls" if self._calls else "stop"
        return Finish(reason, self._usage, self.reason)

    def _whole_answer(self, answer: _Event) -> Iterator[Chunk]:
        try:
            message = msgspec.convert(answer.message, _Message)
        except msgspec.ValidationError as error:
            raise ProviderError("malformed", f"The endpoint sent an answer that cannot be read: {error}") from None
        for content in message.content if isinstance(message.content, list) else ():
            yield from _said(content)
        for index, call in enumerate(message.tool_calls if isinstance(message.tool_calls, list) else ()):
            yield from self._call(index, call, begins=True)
            yield from self._close(index)
        self._end(_Delta(finish_reason=answer.finish_reason, usage=answer.usage))
        yield self.finish()

    def _call(self, index: int, call: _ToolCall, *, begins: bool) -> Iterator[Chunk]:
        function = call.function or _Function()
        arguments = function.arguments or ""
        if begins:
            if index in self._calls or not function.name:
                raise ProviderError("malformed", "The endpoint sent a tool call without a name or a place.")
            self._calls[index] = len(self._calls)
            if not arguments:
                self._empty.add(index)
            yield ToolCallDelta(self._calls[index], call.id or new_id("call"), function.name, arguments)
        elif arguments:
            if index not in self._calls:
                raise ProviderError("malformed", "The endpoint sent arguments of a tool call that had not begun.")
            self._empty.discard(index)
            yield ToolCallDelta(self._calls[index], arguments=arguments)

    def _close(self, index: int) -> Iterator[Chunk]:
        if index in self._empty:
            self._empty.discard(index)
            yield ToolCallDelta(self._calls[index], arguments="{}")

    def _end(self, end: _Delta) -> None:
        told = end.finish_reason or "COMPLETE"
        if end.error or told in _BROKEN:
            said = masked(end.error)[:2000] if end.error else f"The endpoint gave up with finish reason {told!r}."
            raise ProviderError(_BROKEN.get(told, "server"), said)
        self.reason = told
        self._usage = _usage(end.usage) if end.usage else None


def _said(content: _Content) -> Iterator[Chunk]:
    if content.thinking:
        yield ThinkingDelta(content.thinking)
    if content.text:
        yield TextDelta(content.text)


def _usage(found: _Usage) -> Usage | None:
    """``tokens`` are what the model read and wrote, ``billed_units`` what is paid for; the former where it is told."""
    tokens = found.tokens or found.billed_units
    if tokens is None:
        return None
    return Usage(int(tokens.input_tokens or 0), int(tokens.output_tokens or 0), int(found.cached_tokens or 0))
