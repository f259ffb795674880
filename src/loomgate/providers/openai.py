"""OpenAI's chat-completions dialect, sans-I/O: a `Chat` to request bytes, answer bytes to `Chunk` values.

What must live here: this wire format, and the liberties that the many servers take which claim to speak it.
What must not: addresses (``catalogue``), connections (``transport``), trying again (``gateway/``).
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec

from loomgate.errors import ProviderError, ProviderErrorKind
from loomgate.providers import models
from loomgate.providers.dialect import HttpCall, Target
from loomgate.providers.events import EventDecoder
from loomgate.providers.failure import error_answer, masked, status_kind
from loomgate.providers.parts import document, effort, encoded, named_type, one_text, refused, spoken, texts_only
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Chunk,
    ContentPart,
    File,
    FilePart,
    Finish,
    FinishReason,
    NamedFunction,
    RefusalDelta,
    TextDelta,
    TextPart,
    ThinkingDelta,
    ThinkingPart,
    ToolCallDelta,
    Usage,
)
from loomgate.wire.ids import new_id

# --- the request ---------------------------------------------------------------------------------------------------

_encode = msgspec.json.Encoder().encode


def _part(part: ContentPart) -> ContentPart:
    """A part as this dialect has it: without marks for a cache, documents by their bytes or id."""
    if not isinstance(part, FilePart):
        return msgspec.structs.replace(part, cache_control=None) if getattr(part, "cache_control", None) else part
    file, data = part.file, document(part.file)
    if data is not None:
        name = file.filename or "document." + named_type(file, data[0]).rpartition("/")[2]
        return FilePart(File(file_data=f"data:{data[0]};base64,{data[1]}", filename=name))
    if file.file_id is None:
        raise refused("messages", "file_data or file_id in a file, since this endpoint fetches none by its address")
    return FilePart(File(file_id=file.file_id))


def _content(message: ChatMessage) -> str | list[ContentPart] | None:
    content = message.content
    if content is None or isinstance(content, str):
        return content
    parts = [_part(part) for part in spoken(content)]
    if message.role in ("assistant", "tool"):  # text alone; of the assistant many servers take one only
        return "".join(part.text for part in parts if isinstance(part, TextPart)) or None
    return parts


_KNOWS_DEVELOPER = frozenset({"openai", "azure-openai"})  # the role (GATEWAY TR-05)
# Vendors whose models think by Anthropic's object without a budget, and want their thoughts back beside calls of
# tools; some refuse a call without any, so that there is an empty one where the thoughts are not known.
_THINKING = frozenset({"deepseek", "moonshot", "z-ai", "zhipu"})
_THOUGHTS_NEEDED = frozenset({"deepseek", "moonshot"})


def _thoughts_of(message: ChatMessage) -> str:
    """What the model thought before it said ``message``; what is sealed is another vendor's."""
    parts = message.content if isinstance(message.content, list) else ()
    return "".join(part.thinking for part in parts if isinstance(part, ThinkingPart) and not part.signature)


def _message(message: ChatMessage, vendor: str) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message.role}
    if message.role == "developer" and vendor not in _KNOWS_DEVELOPER:
        made["role"] = "system"
    if message.tool_calls and vendor in _THINKING:
        thoughts = _thoughts_of(message)
        if thoughts or vendor in _THOUGHTS_NEEDED:
            made["reasoning_content"] = thoughts
    if message.name is not None:
        made["name"] = message.name
    content = _content(message)
    # Left out rather than null beside tool calls: OpenAI takes both, some servers (llama-cpp-python) only this.
    if content is not None or not message.tool_calls:
        made["content"] = content if content is not None or message.role != "tool" else ""
    if message.refusal is not None:
        made["refusal"] = message.refusal
    if message.tool_calls:
        made["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        made["tool_call_id"] = message.tool_call_id
    return made


def fields_of(call: Chat, vendor: str = "openai") -> dict[str, Any]:
    """``call`` as the JSON object that the endpoint of ``vendor`` takes."""
    body: dict[str, Any] = {
        "model": call.model,
        "messages": [_message(message, vendor) for message in texts_only(call.messages)],
    }
    if call.stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    if call.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    key: value
                    for key, value in (
                        ("name", tool.name),
                        ("description", tool.description),
                        ("parameters", tool.parameters),
                        ("strict", tool.strict),
                    )
                    if value is not None
                },
            }
            for tool in call.tools
        ]
        # OpenAI answers 400 to either of these when there are no tools.
        choice = call.tool_choice
        if isinstance(choice, NamedFunction):
            body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        elif choice is not None:
            body["tool_choice"] = choice
        if call.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = call.parallel_tool_calls
    if call.vendor_tools:
        body["tools"] = [*body.get("tools", []), *call.vendor_tools]
    for name in _SAME:
        if (value := getattr(call, name)) is not None:
            body[name] = value
    if call.stop:
        body["stop"] = call.stop
    if call.user is not None:
        # 64 characters at most; a longer one is told by its hash, which is as stable.
        body["user"] = call.user if len(call.user) <= 64 else hashlib.sha256(call.user.encode()).hexdigest()
    if call.thinking is not None and vendor in _THINKING:
        body["thinking"] = {"type": "disabled" if call.thinking.get("type") == "disabled" else "enabled"}
    level = effort(call.thinking) if call.reasoning_effort is None else None
    # Only a model that reasons takes an effort, and only some take none.
    if level not in (None, "none") and not models.facts(call.model).accepts_temperature:
        body["reasoning_effort"] = level
    one_text(call, "this endpoint")
    body.update(call.extra)
    return body


_SAME = (
    "response_format temperature top_p max_completion_tokens reasoning_effort seed frequency_penalty "
    "presence_penalty logit_bias metadata service_tier"
).split()


class OpenAI:
    """The `Dialect` of OpenAI and of every vendor that copied its chat completions."""

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The request for ``call``, without the fields that the vendor's row or the target drops.

        Raises `ProviderError` ``invalid`` for what this dialect cannot say.
        """
        body = fields_of(call, target.vendor.name)
        if not target.vendor.developer:
            for message in body["messages"]:
                if message["role"] == "developer":
                    message["role"] = "system"
        drop = target.vendor.drop | target.drop
        if "tool_choice" in drop and call.tool_choice == "none":
            body.pop("tools", None)  # the only way left to say it
        for ours, theirs in target.vendor.rename.items():
            if ours in body and ours not in drop:
                body[theirs] = body.pop(ours)
        for name in drop:
            body.pop(name, None)
        accept = "text/event-stream" if call.stream else "application/json"
        headers = {"Content-Type": "application/json", "Accept": accept, **target.own_headers()}
        return HttpCall(target.endpoint_url("chat", call.model, call.user), headers, encoded(lambda: body))

    def decoder(self) -> "AnswerDecoder":
        """A fresh decoder for one answer."""
        return AnswerDecoder()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What an error answer means. ``headers`` has lower-case names; ``body`` may be anything, or empty."""
        return error_answer(status, headers, body, _error)


# --- errors --------------------------------------------------------------------------------------------------------

# ``code`` or ``type`` of the error object, where it says more than the status does.
_CODES: dict[str, ProviderErrorKind] = {
    "insufficient_quota": "quota",
    "billing_hard_limit_reached": "quota",
    "billing_not_active": "quota",
    "insufficient_balance": "quota",
    "model_not_found": "model_not_found",
    "model_not_available": "model_not_found",
    "model_not_supported": "model_not_found",
    "invalid_model": "model_not_found",
    "unknown_model": "model_not_found",
    "invalid_api_key": "auth",
    "authentication_error": "auth",
    "permission_error": "auth",
    "rate_limit_exceeded": "rate_limit",
    "rate_limit_error": "rate_limit",
    "rate_limit_reached": "rate_limit",
    "too_many_requests": "rate_limit",
    "overloaded_error": "overloaded",
    "server_overloaded": "overloaded",
    "engine_overloaded": "overloaded",
    "engine_overloaded_error": "overloaded",
    "service_unavailable": "overloaded",
    "timeout": "timeout",
    "timeout_error": "timeout",
    "server_error": "server",
    "internal_server_error": "server",
    "internal_error": "server",
    "api_error": "server",
    "context_length_exceeded": "invalid",
    "content_policy_violation": "invalid",
    "content_filter": "invalid",
    "invalid_request_error": "invalid",
}
# With an HTTP status at hand, only these say more: "invalid_request_error" comes with a 401, too.
_MORE_THAN_STATUS = frozenset({"quota", "model_not_found", "auth"})


def _error(found: dict[str, Any], status: int | None, wait: float | None) -> ProviderError:
    """The error in a JSON object of any of the shapes in use; ``status`` is None within a stream."""
    inner: Any = found.get("error", found)
    fields = cast(dict[str, Any], inner) if isinstance(inner, dict) else {"message": inner}
    said = fields.get("message") or fields.get("detail") or found.get("message") or found.get("detail")
    if said is not None and not isinstance(said, str):
        said = _encode(said).decode()
    code, kind = fields.get("code"), None
    if status is None and isinstance(code, int | str) and str(code).isdigit() and 400 <= int(code) < 600:
        status = int(code)  # OpenRouter, vLLM: within a stream the HTTP status is told as code
    for name in (code, fields.get("type")):
        named = _CODES.get(name.lower()) if isinstance(name, str) else None
        if named and (status is None or named in _MORE_THAN_STATUS):
            kind = named
            break
    kind = kind or (status_kind(status) if status is not None else "server")
    message = masked(said) if said else f"The endpoint answered HTTP {status} without a message."
    return ProviderError(kind, message[:2000], status=status, retry_after=wait)


# --- the answer ----------------------------------------------------------------------------------------------------


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct):
    index: int | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek's name for cached_tokens


class _Timing(msgspec.Struct):
    usage: _Usage | None = None


class _Completion(msgspec.Struct):
    """A chunk of a stream, or a whole answer: what both have, and where an error may stand instead."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    x_groq: _Timing | None = None
    error: Any = None
    object: str | None = None
    id: str | None = None
    model: str | None = None


_decode = msgspec.json.Decoder(_Completion).decode

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "function_call": "tool_calls",
    "model_length": "length",  # mistral-ai
    "max_tokens": "length",
    "eos": "stop",  # together-ai
    "tool_use": "tool_calls",
    "safety": "content_filter",
}
# The vendor says that its own machinery broke: text so far is not an answer.
_BROKEN: dict[str, ProviderErrorKind] = {"error": "server", "insufficient_system_resource": "overloaded"}


class _Begun:
    """A tool call on its way: our index, and what the vendor called it."""

    __slots__ = ("arguments", "id", "index", "key", "name")

    def __init__(self, index: int, key: int | None, id: str | None) -> None:
        self.index = index
        self.key = key
        self.id = id
        self.name = ""
        self.arguments: list[str] = []

    def whole(self) -> bool:
        """Whether the arguments so far are a JSON value of their own."""
        try:
            msgspec.json.decode("".join(self.arguments))
        except (msgspec.DecodeError, RecursionError):
            return False
        return True


class AnswerDecoder(EventDecoder):
    """The `Decoder` of this dialect."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[_Begun] = []
        self._usage: Usage | None = None

    def read(self, data: bytes) -> Iterator[Chunk]:
        """The chunks of one event, or of a whole completion. Raises `ProviderError`: its error, or ``malformed``."""
        if data.strip() == b"[DONE]":
            yield self.finish()
            return
        chunks: list[Chunk] = []
        error = None
        try:
            if data:
                self._read(data, chunks)
        except ProviderError as raised:
            error = raised
        yield from chunks
        if error is not None:
            raise error

    def _read(self, data: bytes, chunks: list[Chunk]) -> None:
        try:
            found = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProviderError("malformed", f"The endpoint sent something that is not a completion: {error}") from None
        if found.error is not None or found.object == "error":
            raise _error(msgspec.json.decode(data), None, None)
        if self.id is None:
            self.id, self.model = found.id or None, found.model or None
        usage = found.usage or (found.x_groq.usage if found.x_groq else None)
        if usage is not None:
            self._usage = _usage(usage)
        for choice in found.choices or ():
            if choice.index:  # n is never sent, so there is one choice, number 0 or without a number
                continue
            delta = choice.delta or choice.message
            if delta is not None:
                self._delta(delta, chunks)
            if choice.finish_reason:
                if kind := _BROKEN.get(choice.finish_reason):
                    raise ProviderError(kind, f"The endpoint gave up with finish reason {choice.finish_reason!r}.")
                self.reason = choice.finish_reason

    def _delta(self, delta: _Delta, chunks: list[Chunk]) -> None:
        # DeepSeek's name for thoughts, and that of OpenRouter, Groq and vLLM; who sends both says the same in them.
        if thought := delta.reasoning_content or (delta.reasoning if isinstance(delta.reasoning, str) else None):
            chunks.append(ThinkingDelta(thought))
        content = delta.content
        if content:
            if not isinstance(content, str):  # mistral-ai: parts, thoughts among them
                if thought := "".join(_thoughts(content)):
                    chunks.append(ThinkingDelta(thought))
                content = "".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
            if content:
                chunks.append(TextDelta(content))
        if delta.refusal:
            chunks.append(RefusalDelta(delta.refusal))
        for entry in delta.tool_calls or ():
            self._call(entry, chunks)
        # Some servers (llama-cpp-python) send each piece in both forms; the newer one counts.
        if delta.function_call is not None and not delta.tool_calls:
            self._call(_ToolCall(0, None, delta.function_call), chunks)

    def _call(self, entry: _ToolCall, chunks: list[Chunk]) -> None:
        function = entry.function or _Function()
        arguments = function.arguments
        text = arguments if isinstance(arguments, str) else "" if arguments is None else _encode(arguments).decode()
        call = self._begun(entry, function.name)
        if call is None:
            call = _Begun(len(self._calls), entry.index, entry.id)
            self._calls.append(call)
        call.id = call.id or entry.id
        if not call.name:
            call.arguments.append(text)
            if function.name:
                call.name = function.name
                call.id = call.id or new_id("call")
                chunks.append(ToolCallDelta(call.index, call.id, call.name, "".join(call.arguments)))
        elif text:
            call.arguments.append(text)
            chunks.append(ToolCallDelta(call.index, None, None, text))

    def _begun(self, entry: _ToolCall, name: str | None) -> _Begun | None:
        """The call that ``entry`` continues, or None when it begins one.

        Indexes are absent with some vendors and always 0 with others; ids are absent, repeated in every delta, or
        fresh in every delta. A name marks a beginning unless the same id, or an unfinished call without a
        different id, says that it is repeated.
        """
        for call in reversed(self._calls):
            if entry.index is not None and call.key is not None and call.key != entry.index:
                continue
            if entry.id and call.id:
                if entry.id == call.id:
                    return call
                if name and call.name:
                    continue
                return call if entry.index is not None or not name else None
            if name and call.name and (name != call.name or call.whole()):
                continue
            return call
        return None

    def finish(self) -> Finish:
        """The last chunk. Raises `ProviderError` ``malformed`` for a call without a name."""
        if any(not call.name for call in self._calls):
            raise ProviderError("malformed", "The endpoint sent a tool call without a function name.")
        reason = _FINISH.get((self.reason or "stop").lower(), "stop")
        # Vendors disagree about the reason when functions were called; what happened counts.
        if reason in ("stop", "tool_calls"):
            reason = "tool_calls" if self._calls else "stop"
        return Finish(reason, self._usage, self.reason)


def _thoughts(parts: list[dict[str, Any]]) -> Iterator[str]:
    for part in parts:
        if part.get("type") == "thinking":
            said = part.get("thinking")
            inner = cast(list[dict[str, Any]], said) if isinstance(said, list) else [{"text": said or ""}]
            yield from (str(piece.get("text", "")) for piece in inner)


def _usage(found: _Usage) -> Usage:
    prompt, completion = found.prompt_tokens_details, found.completion_tokens_details
    cached = (prompt.cached_tokens if prompt else None) or found.prompt_cache_hit_tokens
    reasoning = completion.reasoning_tokens if completion else None
    return Usage(found.prompt_tokens or 0, found.completion_tokens or 0, cached or 0, reasoning or 0)
