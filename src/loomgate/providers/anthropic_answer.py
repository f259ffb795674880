"""Anthropic's Messages dialect, sans-I/O: what comes back. Answer bytes to `Chunk` values, error bodies to
`ProviderError`.

What must live here: events, messages and errors of this wire format. What must not: the request (``anthropic``).
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec

from loomgate.errors import ProviderError, ProviderErrorKind
from loomgate.providers.events import EventDecoder
from loomgate.providers.failure import error_answer, masked, status_kind
from loomgate.wire.chat import (
    Chunk,
    Finish,
    FinishReason,
    RedactedThinking,
    RefusalDelta,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)

_encode = msgspec.json.Encoder().encode

# The tool that stands for a response schema with models that know no other way; never shown to anyone.
ANSWER_TOOL = "loomgate_answer"

# --- errors --------------------------------------------------------------------------------------------------------

_KINDS: dict[str, ProviderErrorKind] = {
    "invalid_request_error": "invalid",
    "authentication_error": "auth",
    "permission_error": "auth",
    "billing_error": "quota",
    "not_found_error": "model_not_found",
    "conflict_error": "overloaded",
    "request_too_large": "invalid",
    "rate_limit_error": "rate_limit",
    "timeout_error": "timeout",
    "api_error": "server",
    "overloaded_error": "overloaded",
}


def failure(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """What an error answer means (GATEWAY GERR-02). ``headers`` has lower-case names, ``body`` may be anything."""
    return error_answer(status, headers, body, _error)


def _error(found: dict[str, Any], status: int | None, wait: float | None) -> ProviderError:
    """The error in ``found``; ``status`` is None within a stream, where only the type tells (GATEWAY GERR-02)."""
    inner: Any = found.get("error", found)
    fields = cast(dict[str, Any], inner) if isinstance(inner, dict) else {"message": inner}
    kind = _KINDS.get(str(fields.get("type")), "server") if status is None else status_kind(status)
    said = fields.get("message")
    if said is not None and not isinstance(said, str):
        said = _encode(said).decode()
    if kind == "invalid" and said and "credit balance" in said:  # a 400 as any other, but for its words
        kind = "quota"
    message = masked(said) if said else f"The endpoint answered HTTP {status} without a message."
    return ProviderError(kind, message[:2000], status=status, retry_after=wait)


# --- the answer ----------------------------------------------------------------------------------------------------


class _OutputDetails(msgspec.Struct):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None


class _Block(msgspec.Struct):
    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


class _StopDetails(msgspec.Struct):
    explanation: str | None = None


class _Delta(msgspec.Struct):
    type: str | None = None
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    signature: str | None = None
    stop_sequence: str | None = None
    stop_reason: str | None = None
    stop_details: _StopDetails | None = None


class _Message(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    usage: _Usage | None = None


class _Event(msgspec.Struct):
    """An event of any type, or a whole message: vendors' policy is that new types may come at any time."""

    type: str
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    error: Any = None
    content: list[_Block] | None = None
    id: str | None = None
    model: str | None = None
    stop_sequence: str | None = None
    stop_reason: str | None = None
    stop_details: _StopDetails | None = None


_decode = msgspec.json.Decoder(_Event).decode

# GATEWAY FR-10, and the two that it does not have.
_FINISH: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}


class _Open:
    """A block that has begun. ``call``: our index of the tool call, None for text and for an answer as a tool."""

    __slots__ = ("call", "kind", "said")

    def __init__(self, kind: str, call: int | None) -> None:
        self.kind = kind
        self.call = call
        self.said = False


class MessageDecoder(EventDecoder):
    """The `Decoder` of this dialect."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[int, _Open] = {}
        self._calls = 0
        self._usage: dict[str, Any] = {}
        self._stop_sequence: str | None = None

    def read(self, data: bytes) -> Iterator[Chunk]:
        """The chunks of one event, or of a whole message. Raises `ProviderError`: its error, or ``malformed``."""
        try:
            event = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            said = f"The endpoint sent something that is not a part of a message: {error}"
            raise ProviderError("malformed", said) from None
        if event.type == "error":
            raise _error(msgspec.json.decode(data), None, None)
        yield from self._read(event)

    def _read(self, event: _Event) -> Iterator[Chunk]:
        """The chunks of one event; pings and whatever is new have none (GATEWAY STM-04, STM-06)."""
        match event.type:
            case "content_block_delta" if event.delta is not None:
                yield from self._more(event.index, event.delta)
            case "content_block_start" if event.content_block is not None:
                yield from self._begin(event.index, event.content_block)
            case "content_block_stop":
                yield from self._stop(event.index)
            case "message_start" if event.message is not None:
                self.id, self.model = event.message.id, event.message.model
                self._count(event.message.usage)
            case "message_delta":
                self._count(event.usage)
                if event.delta is not None:
                    self._stop_sequence = event.delta.stop_sequence
                    yield from self._reasoned(event.delta.stop_reason, event.delta.stop_details)
            case "message_stop":
                yield self.finish()
            case "message":
                self.id, self.model, self._stop_sequence = event.id, event.model, event.stop_sequence
                for index, block in enumerate(event.content or ()):
                    yield from self._begin(index, block)
                    yield from self._stop(index)
                self._count(event.usage)
                yield from self._reasoned(event.stop_reason, event.stop_details)
            case _:
                pass

    def _begin(self, index: int, block: _Block) -> Iterator[Chunk]:
        open = self._open[index] = _Open(block.type, None)
        if block.type == "text" and block.text:
            yield TextDelta(block.text)
        elif block.type == "thinking" and (block.thinking or block.signature):
            yield ThinkingDelta(block.thinking or "", block.signature or None)
        elif block.type == "redacted_thinking" and block.data:
            yield RedactedThinking(block.data)
        if block.type != "tool_use":
            return
        if not block.name or not block.id:
            raise ProviderError("malformed", "The endpoint sent a tool call without a name or an id.")
        if block.name != ANSWER_TOOL:
            open.call, self._calls = self._calls, self._calls + 1
            yield ToolCallDelta(open.call, block.id, block.name, "")
        if block.input:  # in a stream it is empty here and comes as deltas
            yield self._argued(open, _encode(block.input).decode())

    def _more(self, index: int, delta: _Delta) -> Iterator[Chunk]:
        if delta.type == "text_delta" and delta.text:
            yield TextDelta(delta.text)
        elif delta.type == "thinking_delta" and delta.thinking:
            yield ThinkingDelta(delta.thinking)
        elif delta.type == "signature_delta" and delta.signature:
            yield ThinkingDelta("", delta.signature)
        elif delta.type == "input_json_delta" and delta.partial_json:
            open = self._open.get(index)
            if open is None:
                raise ProviderError("malformed", "The endpoint sent arguments of a tool call that has not begun.")
            if open.kind == "tool_use":  # the endpoint's own tools have arguments, too
                yield self._argued(open, delta.partial_json)

    def _stop(self, index: int) -> Iterator[Chunk]:
        open = self._open.pop(index, None)
        if open is not None and open.kind == "tool_use" and not open.said:
            yield self._argued(open, "{}")

    def _argued(self, open: _Open, text: str) -> Chunk:
        open.said = True
        return TextDelta(text) if open.call is None else ToolCallDelta(open.call, None, None, text)

    def _reasoned(self, reason: str | None, details: _StopDetails | None) -> Iterator[Chunk]:
        self.reason = reason or self.reason
        if reason == "refusal" and details is not None and details.explanation:
            yield RefusalDelta(details.explanation)

    def _count(self, usage: _Usage | None) -> None:
        """Counts are totals so far, and absent where they have not changed."""
        if usage is not None:
            self._usage |= {name: value for name, value in msgspec.structs.asdict(usage).items() if value is not None}

    def finish(self) -> Finish:
        """The last chunk."""
        reason = _FINISH.get(self.reason or "end_turn", "stop")
        # With an answer as a tool the reason is tool_use; what happened counts.
        if reason in ("stop", "tool_calls"):
            reason = "tool_calls" if self._calls else "stop"
        raw = "end_turn" if self.reason == "tool_use" and not self._calls else self.reason
        return Finish(reason, _usage(**self._usage) if self._usage else None, raw, self._stop_sequence)


def _usage(
    input_tokens: int = 0,
    output_tokens: int = 0,
    cache_creation_input_tokens: int = 0,
    cache_read_input_tokens: int = 0,
    output_tokens_details: _OutputDetails | None = None,
) -> Usage:
    """Theirs leaves what was read from and written to the cache out of the input; our prompt is all of it (TR-17)."""
    prompt = input_tokens + cache_creation_input_tokens + cache_read_input_tokens
    thoughts = output_tokens_details.thinking_tokens if output_tokens_details else None
    return Usage(prompt, output_tokens, cache_read_input_tokens, thoughts or 0, cache_creation_input_tokens)
