"""OpenAI's chat completions, as clients write and read them, for endpoints that speak another format.

What must live here: this format on the client's side (GATEWAY sections 9 to 11). What must not: a vendor's format
(``providers/``), and calls to vendors that speak this one: there, bytes pass. docs/gateway/translation.md says what
becomes of each field.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, cast

import msgspec

from loomgate.errors import bad_request
from loomgate.gateway.fronts.chat_answer import ChatEncoder, completion, replayed
from loomgate.gateway.fronts.fields import clamped, converted, given, unknown
from loomgate.gateway.fronts.front import About
from loomgate.wire.chat import (
    AudioPart,
    CacheControl,
    Chat,
    ChatMessage,
    Chunk,
    ContentPart,
    FilePart,
    FunctionTool,
    ImagePart,
    NamedFunction,
    RedactedThinkingPart,
    TextPart,
    ThinkingPart,
    ToolCall,
)

Json = dict[str, Any]

# --- the request ---------------------------------------------------------------------------------------------------


class _RefusalPart(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


_Part = TextPart | ImagePart | FilePart | AudioPart | ThinkingPart | RedactedThinkingPart | _RefusalPart


class _Google(msgspec.Struct):
    thought_signature: str | None = None


class _ExtraContent(msgspec.Struct):
    google: _Google | None = None


class _Function(msgspec.Struct):
    name: str
    arguments: str = ""
    thought_signature: str | None = None


class _Call(msgspec.Struct):
    id: str
    function: _Function
    type: Literal["function"] = "function"
    extra_content: _ExtraContent | None = None


class _Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    function_call: _Function | None = None
    content_blocks: list[TextPart | ThinkingPart | RedactedThinkingPart] | None = None
    cache_control: CacheControl = None


class _Declared(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None
    cache_control: CacheControl = None


class _Tool(msgspec.Struct):
    function: _Declared
    cache_control: CacheControl = None


class _NamedFunction(msgspec.Struct):
    name: str


class _NamedTool(msgspec.Struct):
    function: _NamedFunction
    type: Literal["function"] = "function"


class _Schema(msgspec.Struct, omit_defaults=True):
    name: str = "answer"
    schema: Json | None = None
    description: str | None = None
    strict: bool | None = None


class _Format(msgspec.Struct, omit_defaults=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Body(msgspec.Struct):
    model: str
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    tools: list[Json] | None = None
    tool_choice: Literal["none", "auto", "required"] | _NamedTool | None = None
    functions: list[_Declared] | None = None  # what `tools` and `tool_choice` were before they were tools
    function_call: Literal["none", "auto"] | _NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Format | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    reasoning_effort: str | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    user: str | None = None
    top_k: int | None = None
    thinking: Json | None = None
    metadata: Json | None = None
    service_tier: str | None = None


_KNOWN = frozenset(_Body.__struct_fields__)
_SAME = ("reasoning_effort n seed logit_bias logprobs top_logprobs user top_k thinking metadata service_tier").split()


def _content(message: _Message) -> tuple[str | list[ContentPart] | None, str | None]:
    """A message's content and refusal."""
    content, refusal = message.content, message.refusal
    if isinstance(content, list):
        parts = [part for part in content if not isinstance(part, _RefusalPart)]
        refusal = refusal or "".join(part.refusal for part in content if isinstance(part, _RefusalPart)) or None
        content = parts
    if message.content_blocks and message.role == "assistant":
        # The answer as its vendor told it, thoughts and texts in order: what `content` has is among it.
        blocks = cast(list[ContentPart], message.content_blocks)
        if not any(isinstance(block, TextPart) for block in blocks) and content:
            blocks = [*blocks, *([TextPart(content)] if isinstance(content, str) else content)]
        content = blocks
    return content, refusal


def _message(message: _Message, index: int) -> ChatMessage:
    if message.role == "tool" and message.tool_call_id is None:
        place = f"messages[{index}].tool_call_id"
        raise bad_request(f"Missing required parameter: '{place}'.", place, "missing_required_parameter")
    content, refusal = _content(message)
    return ChatMessage(
        role="tool" if message.role == "function" else message.role,
        content=content,
        refusal=refusal,
        name=message.name,
        tool_calls=[_call(call) for call in message.tool_calls or ()],
        tool_call_id=message.tool_call_id,
        cache_control=message.cache_control,
    )


def _call(call: _Call) -> ToolCall:
    google = call.extra_content.google if call.extra_content else None
    signature = (google.thought_signature if google else None) or call.function.thought_signature
    return ToolCall(call.id, call.function.name, call.function.arguments, signature)


def _messages(messages: list[_Message]) -> list[ChatMessage]:
    """The conversation; calls of functions and their results, which have no ids, as those of tools."""
    called: dict[str, str] = {}
    made: list[ChatMessage] = []
    for index, message in enumerate(messages):
        if (call := message.function_call) is not None and not message.tool_calls:
            id = called[call.name] = f"call_{index}"
            message = msgspec.structs.replace(message, tool_calls=[_Call(id, call)])  # noqa: PLW2901
        elif message.role == "function":
            if (id := called.pop(message.name or "", "")) == "":
                place = f"messages[{index}].name"
                raise bad_request(f"Invalid value for '{place}': expected a function called before it.", place)
            message = msgspec.structs.replace(message, tool_call_id=id, name=None)  # noqa: PLW2901
        made.append(_message(message, index))
    return made


def _tool(tool: Json, index: int) -> FunctionTool:
    found = converted(tool, _Tool, f"tools[{index}]")
    return _function(found.function, found.cache_control)


def _function(declared: _Declared, cache_control: CacheControl = None) -> FunctionTool:
    return FunctionTool(
        name=declared.name,
        description=declared.description,
        parameters=declared.parameters,
        strict=declared.strict,
        cache_control=cache_control or declared.cache_control,
    )


def _check_functions(body: _Body) -> None:
    for name, other in (("functions", "tools"), ("function_call", "tool_choice")):
        if getattr(body, name) is not None and getattr(body, other) is not None:
            raise bad_request(f"Invalid value for '{name}': expected nothing beside '{other}'.", name)
    if body.function_call is not None and not body.functions:
        raise bad_request("Invalid value for 'function_call': expected 'functions' beside it.", "function_call")


def _asked(fields: Json) -> Chat:
    fields = given(fields)
    body = converted(fields, _Body)
    if body.response_format and body.response_format.type == "json_schema" and body.response_format.json_schema is None:
        place = "response_format.json_schema"
        raise bad_request(f"Missing required parameter: '{place}'.", place, "missing_required_parameter")
    _check_functions(body)
    choice = body.tool_choice.function if isinstance(body.tool_choice, _NamedTool) else body.tool_choice
    choice = choice or body.function_call
    tools = list(enumerate(body.tools or ()))
    return Chat(
        model=body.model,
        messages=_messages(body.messages),
        tools=[
            *(_tool(tool, index) for index, tool in tools if tool.get("type") == "function"),
            *map(_function, body.functions or ()),
        ],
        vendor_tools=[tool for _, tool in tools if tool.get("type") != "function"],
        tool_choice=NamedFunction(choice.name) if isinstance(choice, _NamedFunction) else choice,
        # An answer in the older form has room for one call.
        parallel_tool_calls=False if body.functions else body.parallel_tool_calls,
        response_format=fields["response_format"] if body.response_format else None,
        temperature=clamped(body.temperature, 0, 2),
        top_p=clamped(body.top_p, 0, 1),
        frequency_penalty=clamped(body.frequency_penalty, -2, 2),
        presence_penalty=clamped(body.presence_penalty, -2, 2),
        max_completion_tokens=_most(body),
        stop=[body.stop] if isinstance(body.stop, str) else body.stop or [],
        stream=bool(body.stream),
        extra=unknown(fields, _KNOWN),
        lenient=True,
        **{name: getattr(body, name) for name in _SAME},
    )


def _most(body: _Body) -> int | None:
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    return None if most is None else max(most, 0)


class ChatFront:
    """The `Front` of chat completions."""

    def chat(self, fields: Json) -> Chat:
        """The body as a model call. Raises a 400 `ApiError` that names the field."""
        return _asked(fields)

    def whole(self, chunks: Iterable[Chunk], about: About) -> Json:
        """The ``chat.completion`` that ``chunks`` make."""
        return completion(chunks, about)

    def encoder(self, about: About) -> ChatEncoder:
        """A writer for one streamed answer."""
        return ChatEncoder(about)

    def replay(self, answer: Json, about: About) -> bytes:
        """A whole ``chat.completion``, ours or an endpoint's own, as the stream it might have been (CCH-06)."""
        return replayed(answer, about)
