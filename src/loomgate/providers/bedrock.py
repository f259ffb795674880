"""AWS Bedrock's Converse dialect, sans-I/O: a `Chat` to a ConverseStream request, its event stream to `Chunk` values.

What must live here: this wire format (bedrock-runtime 2023-09-30: ConverseStream) and what Bedrock refuses. What must
not: the framing (``eventstream``), the signature (``sigv4``), what each model family behind Converse can do: what a
model does not take, Bedrock says itself.
"""

import base64
import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import msgspec

from loomgate.errors import ProviderError, ProviderErrorKind
from loomgate.providers.dialect import HttpCall, Target, undropped
from loomgate.providers.eventstream import Frame, FrameParser
from loomgate.providers.failure import error_answer, masked, status_kind
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Chunk,
    ContentPart,
    Finish,
    FinishReason,
    FunctionTool,
    NamedFunction,
    TextDelta,
    TextPart,
    ToolCallDelta,
    Usage,
)

SIGNING_NAME = "bedrock"  # the service's name in signatures

# --- the request ---------------------------------------------------------------------------------------------------

_encode = msgspec.json.Encoder().encode

# What a path segment may hold unencoded (RFC 3986). The HTTP client sends these as they are, and a signature is over
# the path as it is sent.
_SEGMENT = "!$&'()*+,;=:@"
_DATA_URL = re.compile(r"data:image/(png|jpe?g|gif|webp)(?:;[^,;]+)*?(;base64)?,(.*)", re.DOTALL | re.IGNORECASE)
_IMAGES = "png, jpeg, gif or webp"
# Converse wants user and assistant in turns, the user first and last. This stands for a turn that a thread lacks.
_FILLER = {"role": "user", "content": [{"text": "Continue."}]}
_JSON_MODE = "Answer with one JSON object and nothing else."


def _texts(text: str) -> list[dict[str, Any]]:
    """A text block, unless the text is blank, which Bedrock refuses."""
    return [{"text": text}] if text.strip() else []


def _image(url: str) -> dict[str, Any]:
    found = _DATA_URL.fullmatch(url)
    if found is None:
        raise ProviderError(
            "invalid", f"Bedrock takes images as base64 data URLs ({_IMAGES}) only, not by address or in other formats."
        )
    kind, encoded, data = found[1].lower(), found[2], found[3]
    if not encoded:
        data = base64.b64encode(unquote_to_bytes(data)).decode()
    return {"image": {"format": "jpeg" if kind == "jpg" else kind, "source": {"bytes": data}}}


def _blocks(content: str | list[ContentPart] | None) -> list[dict[str, Any]]:
    if content is None or isinstance(content, str):
        return _texts(content or "")
    made: list[dict[str, Any]] = []
    for part in content:
        made += _texts(part.text) if isinstance(part, TextPart) else [_image(part.image_url.url)]
    return made


def _input(arguments: str) -> Any:
    """Arguments as Converse wants them: an object. What the model wrote wrongly is handed back to it under a name."""
    with contextlib.suppress(msgspec.DecodeError):
        if isinstance(msgspec.json.decode(arguments or "{}"), dict):
            return msgspec.Raw((arguments or "{}").encode())  # not decoded: numbers stay as they were written
    return {"arguments": arguments}


def _turn(message: ChatMessage) -> tuple[str, list[dict[str, Any]]]:
    """Whose turn a message is, and its content blocks."""
    if message.role == "tool":
        result = {"toolUseId": message.tool_call_id, "content": _blocks(message.content)}
        return "user", [{"toolResult": result}]
    blocks = _blocks(message.content) + _texts(message.refusal or "")
    for call in message.tool_calls:
        blocks.append({"toolUse": {"toolUseId": call.id, "name": call.name, "input": _input(call.arguments)}})
    return message.role, blocks


def _conversation(call: Chat) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The system blocks (GATEWAY TR-10), and the messages as user and assistant in turns."""
    system: list[dict[str, Any]] = []
    messages: list[dict[str, Any]] = []
    for message in call.messages:
        role, blocks = _turn(message)
        if role == "system":
            system += blocks
        elif blocks and messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        elif blocks:
            messages.append({"role": role, "content": blocks})
    if not messages or messages[0]["role"] == "assistant":
        messages.insert(0, _FILLER)
    if messages[-1]["role"] == "assistant":
        messages.append(_FILLER)
    return system, messages


def _tool(tool: FunctionTool) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": tool.name,
        "inputSchema": {"json": tool.parameters or {"type": "object", "properties": {}}},
    }
    if tool.description:
        made["description"] = tool.description
    if tool.strict:
        made["strict"] = True
    return {"toolSpec": made}


def _tools(call: Chat) -> dict[str, Any] | None:
    """The tools with the choice among them (GATEWAY TR-12). ``none`` can only be said by having no tools."""
    if not call.tools:
        return None
    choice = call.tool_choice
    if choice == "none":
        if any(message.tool_calls for message in call.messages):
            raise ProviderError("invalid", "Bedrock cannot forbid tools (tool_choice 'none') once some were called.")
        return None
    made: dict[str, Any] = {"tools": [_tool(tool) for tool in call.tools]}
    if isinstance(choice, NamedFunction):
        made["toolChoice"] = {"tool": {"name": choice.name}}
    elif choice == "required":
        made["toolChoice"] = {"any": {}}
    return made


def _body(call: Chat) -> dict[str, Any]:
    system, messages = _conversation(call)
    output: dict[str, Any] = {}
    asked = call.response_format or {"type": "text"}
    if asked["type"] == "json_schema":
        form = asked["json_schema"]
        schema = {"schema": _encode(form.get("schema") or {}).decode()}
        schema |= {name: form[name] for name in ("name", "description") if form.get(name)}
        output["textFormat"] = {"type": "json_schema", "structure": {"jsonSchema": schema}}
    elif asked["type"] == "json_object":
        system += _texts(_JSON_MODE)
    if call.reasoning_effort not in (None, "none"):  # without effort is Converse's default
        output["effort"] = "low" if call.reasoning_effort == "minimal" else call.reasoning_effort
    inference = {
        "maxTokens": call.max_completion_tokens,
        # OpenAI's range is up to 2 (GATEWAY TR-02).
        "temperature": None if call.temperature is None else min(call.temperature, 1.0),
        "topP": call.top_p,
        "stopSequences": call.stop or None,
    }
    body = {
        "messages": messages,
        "system": system,
        "inferenceConfig": {name: value for name, value in inference.items() if value is not None},
        "toolConfig": _tools(call),
        "outputConfig": output,
    }
    return {name: value for name, value in body.items() if value}


class Bedrock:
    """The `Dialect` of every model that Bedrock offers by Converse (GATEWAY TR-22)."""

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The ConverseStream request for ``call``: unsigned, or with the target's Bedrock API key as bearer token.

        Raises `ProviderError` ``invalid`` for what Converse cannot express, ``model_not_found`` for no model's name.
        """
        if call.model in (".", ".."):  # they would mean another path
            raise ProviderError("model_not_found", f"The model '{call.model}' does not exist.")
        url = f"{target.base_url.rstrip('/')}/model/{quote(call.model, safe=_SEGMENT)}/converse-stream"
        headers = {"Content-Type": "application/json", "Accept": "application/vnd.amazon.eventstream"}
        if target.api_key:
            headers["Authorization"] = "Bearer " + target.api_key
        return HttpCall(url, {**headers, **target.headers}, _encode(_body(undropped(call, target))))

    def decoder(self) -> "AnswerDecoder":
        """A fresh decoder for one answer."""
        return AnswerDecoder()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What an error answer means. ``headers`` has lower-case names; ``body`` may be anything, or empty."""

        def read(found: dict[str, Any], status: int, wait: float | None) -> ProviderError:
            # "ThrottlingException:http://internal.amazon.com/…", or in the body "com.amazon.coral.service#Throttling…".
            code = headers.get("x-amzn-errortype") or str(found.get("__type", "")).rpartition("#")[2]
            said = str(found.get("message") or found.get("Message") or "")  # AWS's front door writes it large
            return _failed(code.partition(":")[0], said, status, wait)

        return error_answer(status, headers, body, read)


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
    input: str = ""


class _Block(msgspec.Struct, rename="camel"):
    """A union: text, the beginning of a tool call, or more of its input. Thoughts and citations are left out."""

    text: str | None = None
    tool_use: _ToolUse | None = None


class _Usage(msgspec.Struct, rename="camel"):
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0


class _Event(msgspec.Struct, rename="camel"):
    """The payload of any event or exception: what is read of it."""

    content_block_index: int = 0
    start: _Block | None = None
    delta: _Block | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None
    message: str | None = None


_decode = msgspec.json.Decoder(_Event).decode

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

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """The chunks that ``data`` completes. Raises `ProviderError`: the stream's exception, or ``malformed``."""
        if self._done:
            return
        for frame in self._frames.feed(data):
            yield from self._read(frame)
            if self._done:
                return

    def end(self) -> Iterator[Chunk]:
        """The body is over. Raises `ProviderError` ``cut`` if the model had not finished."""
        if self._done:
            return
        if self._reason is None:
            raise ProviderError("cut", "The endpoint's answer broke off before the model had finished.")
        yield self._finish(None)

    def _read(self, frame: Frame) -> Iterator[Chunk]:
        kind = frame.headers.get(":message-type")
        if kind == "error":  # the framing's own way to say it, without a payload
            code, said = frame.headers.get(":error-code", ""), frame.headers.get(":error-message", "")
            raise _failed(str(code), str(said))
        try:
            event = _decode(frame.payload or b"{}")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
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
                if event.stop_reason in _BROKEN:
                    raise ProviderError("server", f"The endpoint gave up with stop reason {event.stop_reason!r}.")
                self._reason = event.stop_reason or "end_turn"
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
        if delta.tool_use and delta.tool_use.input:
            if block not in self._calls:
                raise ProviderError("malformed", "The endpoint sent arguments of a tool call that had not begun.")
            self._empty.discard(block)
            yield ToolCallDelta(self._calls[block], arguments=delta.tool_use.input)

    def _close(self, block: int) -> Iterator[Chunk]:
        if block in self._empty:
            self._empty.discard(block)
            yield ToolCallDelta(self._calls[block], arguments="{}")

    def _finish(self, usage: _Usage | None) -> Finish:
        self._done = True
        reason = _FINISH.get(self._reason or "", "stop")
        if reason in ("stop", "tool_calls"):
            reason = "tool_calls" if self._calls else "stop"
        return Finish(reason, _usage(usage) if usage else None)


def _usage(found: _Usage) -> Usage:
    """GATEWAY TR-17: Converse counts what the cache gave or took beside the input; together they are the prompt."""
    cached = found.cache_read_input_tokens
    return Usage(found.input_tokens + cached + found.cache_write_input_tokens, found.output_tokens, cached)
