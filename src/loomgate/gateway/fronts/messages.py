"""Anthropic's Messages, as clients write them, for endpoints that speak another format.

What must live here: this format's requests (https://platform.claude.com/docs/en/api/messages). What must not: its
answers (``message_answer``), and calls to vendors that speak it: there, bytes pass. docs/gateway/translation.md says
what becomes of each field.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, cast

import msgspec

from loomgate.errors import bad_request
from loomgate.gateway.fronts.fields import clamped, converted, given, unknown
from loomgate.gateway.fronts.front import About
from loomgate.gateway.fronts.message_answer import MessageEncoder, message, replayed
from loomgate.providers import tokens
from loomgate.wire.chat import (
    CacheControl,
    Chat,
    ChatMessage,
    Chunk,
    ContentPart,
    File,
    FilePart,
    FunctionTool,
    ImagePart,
    ImageUrl,
    NamedFunction,
    RedactedThinkingPart,
    TextPart,
    ThinkingPart,
    ToolCall,
)

Json = dict[str, Any]

# --- content -------------------------------------------------------------------------------------------------------


class _Base64(msgspec.Struct, tag_field="type", tag="base64"):
    media_type: str
    data: str


class _Url(msgspec.Struct, tag_field="type", tag="url"):
    url: str


class _FileId(msgspec.Struct, tag_field="type", tag="file"):
    file_id: str


class _Plain(msgspec.Struct, tag_field="type", tag="text"):
    data: str


class _Image(msgspec.Struct, tag_field="type", tag="image"):
    source: _Base64 | _Url | _FileId
    cache_control: CacheControl = None


class _Content(msgspec.Struct, tag_field="type", tag="content"):
    content: str | list[TextPart | _Image]


class _Document(msgspec.Struct, tag_field="type", tag="document"):
    source: _Base64 | _Url | _FileId | _Plain | _Content
    title: str | None = None
    context: str | None = None
    cache_control: CacheControl = None


class _SearchResult(msgspec.Struct, tag_field="type", tag="search_result"):
    source: str
    title: str
    content: list[TextPart]
    cache_control: CacheControl = None


class _ToolUse(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: Json
    cache_control: CacheControl = None


_Shown = TextPart | _Image | _Document | _SearchResult


class _ToolResult(msgspec.Struct, tag_field="type", tag="tool_result"):
    tool_use_id: str
    content: str | list[_Shown] | None = None
    is_error: bool | None = None
    cache_control: CacheControl = None


_Block = TextPart | _Image | _Document | _SearchResult | _ToolUse | _ToolResult | ThinkingPart | RedactedThinkingPart


class _Message(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[_Block]


# --- everything else -----------------------------------------------------------------------------------------------


class _Tool(msgspec.Struct):
    name: str
    input_schema: Json
    description: str | None = None
    strict: bool | None = None
    cache_control: CacheControl = None


class _Choice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Format(msgspec.Struct):
    type: Literal["json_schema"]
    schema: Json


class _Output(msgspec.Struct):
    effort: str | None = None
    format: _Format | None = None


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Counted(msgspec.Struct):
    """A body whose tokens are counted."""

    model: str
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    system: str | list[TextPart] | None = None
    tools: list[Json] | None = None
    tool_choice: _Choice | None = None
    thinking: Json | None = None
    output_config: _Output | None = None
    output_format: _Format | None = None


class _Body(_Counted, kw_only=True):
    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: _Metadata | None = None
    service_tier: str | None = None


# What only tells Anthropic how to go about it: elsewhere it changes nothing, and is left out (GATEWAY TR-01).
_HINTS = frozenset("context_management betas anthropic_beta anthropic_version cache_control speed".split())
_KNOWN = frozenset(_Body.__struct_fields__) | _HINTS
# What changes the answer, or where it is made.
_REFUSED = ("mcp_servers", "container", "inference_geo")


def _image(block: _Image) -> ContentPart:
    match block.source:
        case _Base64(media_type=kind, data=data):
            return ImagePart(ImageUrl(f"data:{kind};base64,{data}"), block.cache_control)
        case _Url(url=url):
            return ImagePart(ImageUrl(url), block.cache_control)
        case _FileId(file_id=id):
            return FilePart(File(file_id=id), block.cache_control)


def _document(block: _Document) -> list[ContentPart]:
    head = "\n".join(text for text in (block.title, block.context) if text)
    source = block.source
    if isinstance(source, _Content):
        inner = [TextPart(source.content)] if isinstance(source.content, str) else _shown(source.content)
        return [*([TextPart(head)] if head else []), *inner]
    if isinstance(source, _Plain):
        return [TextPart(f"{head}\n\n{source.data}" if head else source.data, block.cache_control)]
    if isinstance(source, _Base64):
        file = File(file_data=f"data:{source.media_type};base64,{source.data}", filename=block.title)
    elif isinstance(source, _Url):
        file = File(file_url=source.url, filename=block.title, mime_type="application/pdf")
    else:
        file = File(file_id=source.file_id, filename=block.title)
    context: list[ContentPart] = [TextPart(block.context)] if block.context else []
    return [*context, FilePart(file, block.cache_control)]


def _shown(blocks: Iterable[_Shown]) -> list[ContentPart]:
    parts: list[ContentPart] = []
    for block in blocks:
        match block:
            case TextPart():
                parts.append(block)
            case _Image():
                parts.append(_image(block))
            case _Document():
                parts += _document(block)
            case _SearchResult():
                said = "\n".join([block.title, block.source, *(part.text for part in block.content)])
                parts.append(TextPart(said, block.cache_control))
    return parts


def _messages(message: _Message) -> list[ChatMessage]:
    """One message as ours: the results of tools come first, as they must there, too."""
    if isinstance(message.content, str):
        return [ChatMessage(role=message.role, content=message.content)]
    made: list[ChatMessage] = []
    parts: list[ContentPart] = []
    calls: list[ToolCall] = []
    for block in message.content:
        match block:
            case _ToolResult():
                made.append(
                    ChatMessage(
                        role="tool",
                        content=_shown(block.content) if isinstance(block.content, list) else block.content or "",
                        tool_call_id=block.tool_use_id,
                        is_error=bool(block.is_error),
                        cache_control=block.cache_control,
                    )
                )
            case _ToolUse():
                calls.append(ToolCall(block.id, block.name, _encode(block.input).decode()))
            case ThinkingPart() | RedactedThinkingPart():
                parts.append(block)
            case _:
                parts += _shown([block])
    if parts or calls:
        made.append(ChatMessage(role=message.role, content=parts or None, tool_calls=calls))
    return made


_encode = msgspec.json.Encoder().encode


def _conversation(body: _Counted) -> list[ChatMessage]:
    system = [ChatMessage(role="system", content=cast(Any, body.system))] if body.system else []
    for index, said in enumerate(body.messages):
        wrong = {"assistant": _ToolResult, "user": _ToolUse, "system": _ToolUse | _ToolResult}[said.role]
        for place, block in enumerate(said.content):
            if isinstance(block, wrong):
                where = f"messages[{index}].content[{place}].type"
                kind = "tool_result" if isinstance(block, _ToolResult) else "tool_use"
                raise bad_request(f"Invalid value for '{where}': '{kind}' with role '{said.role}'.", where)
    return system + [made for said in body.messages for made in _messages(said)]


def _tools(body: _Counted) -> list[FunctionTool]:
    made: list[FunctionTool] = []
    for index, told in enumerate(body.tools or ()):
        if told.get("type") not in (None, "custom"):
            place = f"tools[{index}].type"
            why = f"expected 'custom', since only Anthropic has tools of its own, got '{told['type']}'"
            raise bad_request(f"Invalid value for '{place}': {why}.", place)
        tool = converted(told, _Tool, f"tools[{index}]")
        made.append(
            FunctionTool(
                name=tool.name,
                description=tool.description,
                parameters=tool.input_schema,
                strict=tool.strict,
                cache_control=tool.cache_control,
            )
        )
    return made


def _choice(choice: _Choice | None) -> tuple[Any, bool | None]:
    """The choice among the tools, and whether there may be several calls at once."""
    if choice is None:
        return None, None
    if choice.type == "tool" and choice.name is None:
        raise bad_request(
            "Missing required parameter: 'tool_choice.name'.", "tool_choice.name", "missing_required_parameter"
        )
    named = {"any": "required", "tool": NamedFunction(choice.name or "")}
    return named.get(choice.type, choice.type), False if choice.disable_parallel_tool_use else None


def _prompt(body: _Counted) -> Json:
    """The fields of a call that count as its prompt."""
    output = body.output_config or _Output()
    form = output.format or body.output_format
    choice, parallel = _choice(body.tool_choice)
    schema = {"name": "answer", "schema": form.schema, "strict": True} if form else None
    return {
        "model": body.model,
        "messages": _conversation(body),
        "tools": _tools(body),
        "tool_choice": choice,
        "parallel_tool_calls": parallel,
        "thinking": body.thinking,
        "reasoning_effort": output.effort,
        "response_format": {"type": "json_schema", "json_schema": schema} if schema else None,
    }


class MessagesFront:
    """The `Front` of Anthropic's Messages."""

    def chat(self, fields: Json) -> Chat:
        """The body as a model call. Raises a 400 `ApiError` that names the field."""
        fields = given(fields)
        for name in _REFUSED:
            if fields.get(name):
                raise bad_request(f"Invalid value for '{name}': expected nothing, since only Anthropic has it.", name)
        body = converted(fields, _Body)
        return Chat(
            **_prompt(body),
            max_completion_tokens=max(body.max_tokens, 0),
            stream=bool(body.stream),
            stop=body.stop_sequences or [],
            temperature=clamped(body.temperature, 0, 1),
            top_p=clamped(body.top_p, 0, 1),
            top_k=body.top_k,
            user=body.metadata.user_id if body.metadata else None,
            service_tier="default" if body.service_tier == "standard_only" else body.service_tier,
            extra=unknown(fields, _KNOWN),
            lenient=True,
        )

    def whole(self, chunks: Iterable[Chunk], about: About) -> Json:
        """The message that ``chunks`` make."""
        return message(chunks, about)

    def encoder(self, about: About) -> MessageEncoder:
        """A writer for one streamed answer."""
        return MessageEncoder(about)

    def replay(self, answer: Json, about: About) -> bytes:
        """A whole message, ours or an endpoint's own, as the stream it might have been (CCH-06)."""
        del about  # all of it is in the message
        return replayed(answer)

    def count_tokens(self, fields: Json) -> Json:
        """The answer of ``count_tokens``, estimated here: for endpoints that do not count for us.

        Slow for long prompts, so ask in a thread. Raises a 400 `ApiError` that names the field.
        """
        body = converted(given(fields), _Counted)
        return {"input_tokens": tokens.count_chat(Chat(**_prompt(body)))}
