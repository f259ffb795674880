"""AWS Bedrock's Converse dialect, sans-I/O: what comes back. Answer bytes to `Chunk` values, errors to `ProviderError`.

What must live here: events, answers and exceptions of bedrock-runtime 2023-09-30. What must not: the request
(``bedrock``), the framing (``eventstream``).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from loomgate.errors import ProviderError, ProviderErrorKind
from loomgate.providers.eventstream import Frame, FrameParser
from loomgate.providers.failure import error_answer, masked, status_kind
from loomgate.wire.chat import (
    Chunk,
    Finish,
    FinishReason,
    RedactedThinking,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)

_encode = msgspec.json.Encoder().encode

# --- errors --------------------------------------------------------------------------------------------------------

# Names of exceptions, in lower case: as a header they begin with a capital, within a stream they do not.
_EXCEPTIONS: dict[str, ProviderErrorKind] = {
    "throttlingexception": "rate_limit",
    "toomanyrequestsexception": "rate_limit",
    "servicequotaexceededexception": "quota",
    "modelnotreadyexception": "overloaded",
    "serviceunavailableexception": "overloaded",
    "modeltimeoutexception": "timeout",
    "modelerrorexception": "server",
    "modelstreamerrorexception": "server",
    "internalserverexception": "server",
    "internalfailure": "server",
    "validationexception": "invalid",
    "resourcenotfoundexception": "model_not_found",
    "accessdeniedexception": "auth",
    "unrecognizedclientexception": "auth",
    "expiredtokenexception": "auth",
    "invalidsignatureexception": "auth",
    "signaturedoesnotmatch": "auth",
    "incompletesignatureexception": "auth",
    "missingauthenticationtokenexception": "auth",
}
_NO_MODEL = re.compile(r"(?i)model identifier is invalid|model version .*end of its life|not supported in this region")
_SPENT = re.compile(r"(?i)\bper (day|month)\b")
# A wrong signature is answered with the whole canonical request, session token included.
_CANONICAL = re.compile(r"\s*The Canonical String .*", re.DOTALL)


def failure(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """What an error answer means. ``headers`` has lower-case names, ``body`` may be anything."""

    def read(found: dict[str, Any], status: int, wait: float | None) -> ProviderError:
        # "ThrottlingException:http://internal.amazon.com/…", or in the body "com.amazon.coral.service#Throttling…".
        code = headers.get("x-amzn-errortype") or str(found.get("__type", "")).rpartition("#")[2]
        said = str(found.get("message") or found.get("Message") or "")  # AWS's front door writes it large
        return _failed(code.partition(":")[0], said, status, wait)

    return error_answer(status, headers, body, read)


def _failed(code: str, message: str, status: int | None = None, wait: float | None = None) -> ProviderError:
    """The exception ``code`` in our words; ``status`` is None within a stream, ``wait`` in seconds."""
    kind = _EXCEPTIONS.get(code.lower()) or (status_kind(status) if status else "server")
    if kind == "invalid" and _NO_MODEL.search(message):
        kind = "model_not_found"
    elif kind == "rate_limit" and _SPENT.search(message):
        kind = "quota"  # "Too many tokens per day, please wait before trying again."
    message = masked(_CANONICAL.sub("", message)) or f"The endpoint answered {code or status or 'with an error'}."
    return ProviderError(kind, message[:2000], status=status, retry_after=wait)


# --- the answer ----------------------------------------------------------------------------------------------------


class _ToolUse(msgspec.Struct, rename="camel"):
    tool_use_id: str = ""
    name: str = ""
    input: Any = ""  # text in a stream, a value in a whole answer


class _Thought(msgspec.Struct, rename="camel"):
    """More of a thought; in a whole answer the text and its signature are one level deeper."""

    text: str | None = None
    signature: str | None = None
    redacted_content: str | None = None
    reasoning_text: "_Thought | None" = None


class _Block(msgspec.Struct, rename="camel"):
    """A union: text, a thought, the beginning of a tool call, or more of its input. Citations are left out."""

    text: str | None = None
    tool_use: _ToolUse | None = None
    reasoning_content: _Thought | None = None


class _Message(msgspec.Struct):
    content: list[_Block]


class _Output(msgspec.Struct):
    message: _Message | None = None


class _Usage(msgspec.Struct, rename="camel"):
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0


class _Event(msgspec.Struct, rename="camel"):
    """The payload of any event or exception, or a whole answer: what is read of it."""

    output: _Output | None = None
    content_block_index: int = 0
    start: _Block | None = None
    delta: _Block | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None
    message: str | None = None


_decode = msgspec.json.Decoder(_Event).decode
_LONGEST_ANSWER = 16 * 1024 * 1024

# GATEWAY FR-11, and reasons that came later.
_FINISH: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
    "refusal": "content_filter",
}
# What the model wrote cannot be read: text so far is not an answer.
_BROKEN = frozenset({"malformed_model_output", "malformed_tool_use"})


class AnswerDecoder:
    """The `Decoder` of this dialect. The answer ends with ``metadata``, which holds the usage."""

    def __init__(self) -> None:
        self._frames = FrameParser()
        self._calls: dict[int, int] = {}  # content block -> our index of the tool call in it
        self._empty: set[int] = set()  # content blocks of tool calls without arguments so far
        self._reason: str | None = None
        self._done = False
        self._whole: bytearray | None = None
        self._begun = False
        self.id: str | None = None
        self.model: str | None = None

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """The chunks that ``data`` completes. Raises `ProviderError`: the stream's exception, or ``malformed``."""
        if self._done or not data:
            return
        if not self._begun:
            self._begun = True
            # As a frame's first byte, a brace would announce two gigabytes.
            self._whole = bytearray() if data[:1] == b"{" else None
        if self._whole is not None:
            self._whole += data
            if len(self._whole) > _LONGEST_ANSWER:
                raise ProviderError("malformed", f"The endpoint sent an answer of more than {_LONGEST_ANSWER} bytes.")
            return
        for frame in self._frames.feed(data):
            yield from self._read(frame)
            if self._done:
                return

    def end(self) -> Iterator[Chunk]:
        """The body is over. Raises `ProviderError` ``cut`` if the model had not finished."""
        if self._done:
            return
        if self._whole is not None:
            yield from self._answer(bytes(self._whole))
            return
        if self._reason is None:
            raise ProviderError("cut", "The endpoint's answer broke off before the model had finished.")
        yield self._finish(None)

    def _answer(self, body: bytes) -> Iterator[Chunk]:
        """The chunks of a whole answer (Converse)."""
        try:
            answer = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProviderError("malformed", f"The endpoint sent an answer that cannot be read: {error}") from None
        if answer.output is None or answer.output.message is None or answer.stop_reason is None:
            raise ProviderError("malformed", "The endpoint sent an answer without a message or a stop reason.")
        for index, block in enumerate(answer.output.message.content):
            if block.tool_use is not None:
                yield self._begin(index, block.tool_use)
                self._empty.discard(index)
                yield ToolCallDelta(self._calls[index], arguments=_encode(block.tool_use.input or {}).decode())
            else:
                yield from self._delta(index, block)
        self._end(answer.stop_reason)
        yield self._finish(answer.usage)

    def _end(self, reason: str | None) -> None:
        if reason in _BROKEN:
            raise ProviderError("server", f"The endpoint gave up with stop reason {reason!r}.")
        self._reason = reason or "end_turn"

    def _read(self, frame: Frame) -> Iterator[Chunk]:
        kind = frame.headers.get(":message-type")
        if kind == "error":  # the framing's own way to say it, without a payload
            code, said = frame.headers.get(":error-code", ""), frame.headers.get(":error-message", "")
            raise _failed(str(code), str(said))
        try:
            event = _decode(frame.payload or b"{}")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProviderError("malformed", f"The endpoint sent an event that cannot be read: {error}") from None
        if kind == "exception":
            raise _failed(str(frame.headers.get(":exception-type", "")), event.message or "")
        match frame.headers.get(":event-type"):
            case "contentBlockStart" if event.start and event.start.tool_use:
                yield self._begin(event.content_block_index, event.start.tool_use)
            case "contentBlockDelta" if event.delta:
                yield from self._delta(event.content_block_index, event.delta)
            case "contentBlockStop":
                yield from self._close(event.content_block_index)
            case "messageStop":
                self._end(event.stop_reason)
                for block in tuple(self._empty):
                    yield from self._close(block)
            case "metadata":
                if self._reason is None:
                    raise ProviderError("malformed", "The endpoint told the usage of an answer that had not ended.")
                yield self._finish(event.usage)
            case _:  # the beginning of a message or of a text, and whatever may be added to the format
                pass

    def _begin(self, block: int, call: _ToolUse) -> Chunk:
        if block in self._calls or not call.name or not call.tool_use_id:
            raise ProviderError("malformed", "The endpoint sent a tool call without a name, an id or a place.")
        self._calls[block] = len(self._calls)
        self._empty.add(block)
        return ToolCallDelta(self._calls[block], call.tool_use_id, call.name)

    def _delta(self, block: int, delta: _Block) -> Iterator[Chunk]:
        if delta.text:
            yield TextDelta(delta.text)
        if (thought := delta.reasoning_content) is not None:
            if thought.redacted_content:
                yield RedactedThinking(thought.redacted_content)
            said = thought.reasoning_text or thought
            if said.text or said.signature:
                yield ThinkingDelta(said.text or "", said.signature or None)
        if delta.tool_use and delta.tool_use.input:
            if block not in self._calls:
                raise ProviderError("malformed", "The endpoint sent arguments of a tool call that had not begun.")
            self._empty.discard(block)
            yield ToolCallDelta(self._calls[block], arguments=str(delta.tool_use.input))

    def _close(self, block: int) -> Iterator[Chunk]:
        if block in self._empty:
            self._empty.discard(block)
            yield ToolCallDelta(self._calls[block], arguments="{}")

    def _finish(self, usage: _Usage | None) -> Finish:
        self._done = True
        reason = _FINISH.get(self._reason or "", "stop")
        if reason in ("stop", "tool_calls"):
            reason = "tool_calls" if self._calls else "stop"
        return Finish(reason, _usage(usage) if usage else None, self._reason)


def _usage(found: _Usage) -> Usage:
    """GATEWAY TR-17: Converse counts what the cache gave or took beside the input; together they are the prompt."""
    read, written = found.cache_read_input_tokens, found.cache_write_input_tokens
    return Usage(found.input_tokens + read + written, found.output_tokens, read, 0, written)
