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
from loomgate.providers.parts import document, own_words, refused
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Chunk,
    ContentPart,
    File,
    FilePart,
    Finish,
    FinishReason,
    FunctionTool,
    ImagePart,
    NamedFunction,
    RedactedThinking,
    RedactedThinkingPart,
    TextDelta,
    TextPart,
    ThinkingDelta,
    ThinkingPart,
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
        blocks = _block(part)
        made += blocks
        if blocks and getattr(part, "cache_control", None) is not None:
            made.append(_CACHE_POINT)
    return made


_CACHE_POINT = {"cachePoint": {"type": "default"}}


def _block(part: ContentPart) -> list[dict[str, Any]]:
    match part:
        case TextPart():
            return _texts(part.text)
        case ImagePart():
            return [_image(part.image_url.url)]
        case FilePart():
            return [_document(part.file)]
        case ThinkingPart():
            # Without their signature they are another vendor's.
            thought = {"text": part.thinking, "signature": part.signature}
            return [{"reasoningContent": {"reasoningText": thought}}] if part.signature else []
        case RedactedThinkingPart():
            return [{"reasoningContent": {"redactedContent": part.data}}]
        case _:
            raise refused("messages", "text, images and documents, since Converse takes no sound")


# By media type; Converse names formats by what files end in.
_DOCUMENTS = {
    "application/pdf": "pdf",
    "text/csv": "csv",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "text/html": "html",
    "text/plain": "txt",
    "text/markdown": "md",
}


def _document(file: File) -> dict[str, Any]:
    data = document(file)
    if data is None:
        raise refused("messages", "file_data in a file, since Converse takes the bytes of documents only")
    if data[0].startswith("image/"):
        return _image(f"data:{data[0]};base64,{data[1]}")
    if data[0] not in _DOCUMENTS:
        raise refused("messages", f"a document of {', '.join(_DOCUMENTS)}", f"'{data[0]}'")
    # Letters, digits, blanks, hyphens and brackets are all that a name may hold.
    name = re.sub(r"[^A-Za-z0-9\-()\[\]]+", " ", (file.filename or "").rpartition(".")[0]).strip() or "document"
    return {"document": {"format": _DOCUMENTS[data[0]], "name": name[:200], "source": {"bytes": data[1]}}}


def _input(arguments: str) -> Any:
    """Arguments as Converse wants them: an object. What the model wrote wrongly is handed back to it under a name."""
    with contextlib.suppress(msgspec.DecodeError):
        if isinstance(msgspec.json.decode(arguments or "{}"), dict):
            return msgspec.Raw((arguments or "{}").encode())  # not decoded: numbers stay as they were written
    return {"arguments": arguments}


def _turn(message: ChatMessage) -> tuple[str, list[dict[str, Any]]]:
    """Whose turn a message is, and its content blocks."""
    if message.role == "tool":
        result: dict[str, Any] = {"toolUseId": message.tool_call_id, "content": _blocks(message.content)}
        if message.is_error:
            result["status"] = "error"
        made = [{"toolResult": result}]
        return "user", made if message.cache_control is None else [*made, _CACHE_POINT]
    blocks = _blocks(message.content) + _texts(message.refusal or "")
    for call in message.tool_calls:
        blocks.append({"toolUse": {"toolUseId": call.id, "name": call.name, "input": _input(call.arguments)}})
    return "system" if message.role == "developer" else message.role, blocks


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
        return {"tools": call.vendor_tools} if call.vendor_tools else None
    choice = call.tool_choice
    if choice == "none":
        if any(message.tool_calls for message in call.messages):
            raise ProviderError("invalid", "Bedrock cannot forbid tools (tool_choice 'none') once some were called.")
        return None
    listed: list[dict[str, Any]] = []
    for tool in call.tools:
        listed += [_tool(tool), _CACHE_POINT] if tool.cache_control is not None else [_tool(tool)]
    made: dict[str, Any] = {"tools": [*listed, *call.vendor_tools]}
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
        "temperature": None if call.temperature is None else max(0.0, min(call.temperature, 1.0)),
        "topP": call.top_p,
        "stopSequences": call.stop or None,
    }
    tier = {"default": "default", "flex": "flex", "priority": "priority"}.get(call.service_tier or "")
    own, model = _own(call)
    body = {
        "messages": messages,
        "system": system,
        "inferenceConfig": {name: value for name, value in inference.items() if value is not None},
        "toolConfig": _tools(call),
        "outputConfig": output,
        "serviceTier": {"type": tier} if tier else None,
        "additionalModelRequestFields": model,
    }
    return {**{name: value for name, value in body.items() if value}, **own}


# Converse's own fields, by both spellings in use.
_OWN = {
    "guardrailConfig": "guardrailConfig",
    "guardrail_config": "guardrailConfig",
    "additionalModelResponseFieldPaths": "additionalModelResponseFieldPaths",
    "additional_model_response_field_paths": "additionalModelResponseFieldPaths",
    "performanceConfig": "performanceConfig",
    "performance_config": "performanceConfig",
    "promptVariables": "promptVariables",
    "requestMetadata": "requestMetadata",
    "request_metadata": "requestMetadata",
}
_MODEL_FIELDS = ("additionalModelRequestFields", "additional_model_request_fields")


def _own(call: Chat) -> tuple[dict[str, Any], dict[str, Any]]:
    """Converse's own fields, and those for the model behind it, which is where all go that Converse does not know."""
    own: dict[str, Any] = {}
    model: dict[str, Any] = {}
    for name, value in own_words(call, "Bedrock").items():
        if name in _OWN:
            own[_OWN[name]] = value
        elif name in _MODEL_FIELDS and isinstance(value, dict):
            model |= value
        else:
            model[name] = value
    if call.top_k is not None:
        model["top_k"] = call.top_k
    if call.thinking is not None:
        model["thinking"] = call.thinking
    return own, model


class Bedrock:
    """The `Dialect` of every model that Bedrock offers by Converse (GATEWAY TR-22)."""

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The Converse or ConverseStream request for ``call``: unsigned, or with the target's Bedrock API key as bearer token.

        Raises `ProviderError` ``invalid`` for what Converse cannot express, ``model_not_found`` for no model's name.
        """
        if call.model in (".", ".."):  # they would mean another path
            raise ProviderError("model_not_found", f"The model '{call.model}' does not exist.")
        url = f"{target.base_url.rstrip('/')}/model/{quote(call.model, safe=_SEGMENT)}/converse"
        accept = "application/json"
        if call.stream:
            url, accept = url + "-stream", "application/vnd.amazon.eventstream"
        headers = {"Content-Type": "application/json", "Accept": accept}
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
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
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
