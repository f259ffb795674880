"""OpenAI's Responses, as clients write them, for endpoints that speak another format.

What must live here: this format's requests (https://platform.openai.com/docs/api-reference/responses). What must not:
its answers (``response_answer``), and calls to vendors that speak it: there, bytes pass. No state is kept, so what
needs any is refused. docs/gateway/translation.md says what becomes of each field.
"""

from collections.abc import Iterable
from typing import Any, Literal, cast

import msgspec

from loomgate.errors import bad_request
from loomgate.gateway.fronts.fields import converted, given, unknown
from loomgate.gateway.fronts.front import About
from loomgate.gateway.fronts.response_answer import ResponseEncoder, replayed, response
from loomgate.wire.chat import (
    Audio,
    AudioPart,
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
    Role,
    TextPart,
    ThinkingPart,
    ToolCall,
)

Json = dict[str, Any]

# --- what a conversation is made of --------------------------------------------------------------------------------


class _Text(msgspec.Struct, tag_field="type", tag="input_text"):
    text: str


class _Said(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str


class _Refused(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


class _Image(msgspec.Struct, tag_field="type", tag="input_image"):
    image_url: str | None = None
    file_id: str | None = None
    detail: str | None = None


class _File(msgspec.Struct, tag_field="type", tag="input_file"):
    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None
    filename: str | None = None


class _Audio(msgspec.Struct, tag_field="type", tag="input_audio"):
    input_audio: Audio


_Part = _Text | _Said | _Refused | _Image | _File | _Audio


class _Message(msgspec.Struct):
    role: Role
    content: str | list[_Part]


class _Call(msgspec.Struct):
    call_id: str
    name: str
    arguments: str
    signature: str | None = None


class _Output(msgspec.Struct):
    call_id: str
    output: str | list[_Text | _Image | _File]


class _Summary(msgspec.Struct):
    text: str


class _Reasoning(msgspec.Struct):
    summary: list[_Summary] = []
    content: list[_Summary] | None = None
    encrypted_content: str | None = None


_ITEMS: dict[str, Any] = {
    "message": _Message,
    "function_call": _Call,
    "function_call_output": _Output,
    "reasoning": _Reasoning,
}

# --- everything else -----------------------------------------------------------------------------------------------


class _Tool(msgspec.Struct):
    name: str
    parameters: Json | None = None
    description: str | None = None
    strict: bool | None = None


class _Choice(msgspec.Struct):
    type: str
    name: str | None = None


class _Format(msgspec.Struct, omit_defaults=True):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema: Json | None = None
    strict: bool | None = None
    description: str | None = None


class _TextConfig(msgspec.Struct):
    format: _Format | None = None
    verbosity: str | None = None


class _Effort(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class _Body(msgspec.Struct, kw_only=True):
    model: str
    input: str | list[Json]
    instructions: str | None = None
    tools: list[Json] | None = None
    tool_choice: Literal["none", "auto", "required"] | _Choice | None = None
    parallel_tool_calls: bool | None = None
    text: _TextConfig | None = None
    reasoning: _Effort | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    metadata: Json | None = None
    user: str | None = None
    service_tier: str | None = None
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None


# What changes nothing where there is nothing to tune: left out (GATEWAY TR-01). ``max_tool_calls`` counts OpenAI's own.
_HINTS = frozenset(
    "stream_options prompt_cache_key prompt_cache_retention prompt_cache_options safety_identifier "
    "max_tool_calls".split()
)
_STATE = "expected nothing, since responses are not kept here: send the whole conversation in 'input'"
_REFUSED = {
    "previous_response_id": _STATE,
    "conversation": _STATE,
    "store": "expected false, since responses are not kept here",
    "background": "expected false, since responses are not kept here",
    "prompt": "expected nothing, since prompts are not offered here",
    "top_logprobs": "expected nothing, since this provider does not tell them",
    "context_management": "expected nothing, since only OpenAI has it",
    "moderation": "expected nothing, since only OpenAI has it",
}
_KNOWN = frozenset(_Body.__struct_fields__) | _HINTS | _REFUSED.keys()
_INCLUDED = "reasoning.encrypted_content"  # always is


def _refuse(place: str, why: str) -> Exception:
    return bad_request(f"Invalid value for '{place}': {why}.", place)


def _parts(content: str | Iterable[_Part], place: str) -> str | list[ContentPart]:
    if isinstance(content, str):
        return content
    made: list[ContentPart] = []
    for at, part in enumerate(content):
        match part:
            case _Text(text=text) | _Said(text=text) | _Refused(refusal=text):
                made.append(TextPart(text))
            case _Image(image_url=str(url)):
                detail: Any = part.detail if part.detail in ("low", "high") else "auto"
                made.append(ImagePart(ImageUrl(url, detail)))
            case _Image(file_id=str(id)):
                made.append(FilePart(File(file_id=id)))
            case _Image():
                raise _refuse(f"{place}[{at}]", "expected an image_url or a file_id")
            case _File():
                made.append(
                    FilePart(
                        File(
                            file_data=part.file_data,
                            file_url=part.file_url,
                            file_id=part.file_id,
                            filename=part.filename,
                        )
                    )
                )
            case _Audio():
                made.append(AudioPart(part.input_audio))
    return made


class _Turn:
    """The assistant's items since the last message of anybody else: they are one message of a chat."""

    def __init__(self) -> None:
        self.parts: list[ContentPart] = []
        self.calls: list[ToolCall] = []

    def message(self) -> list[ChatMessage]:
        if not self.parts and not self.calls:
            return []
        only = self.parts[0] if len(self.parts) == 1 else None
        content = only.text if isinstance(only, TextPart) else self.parts or None
        return [ChatMessage(role="assistant", content=content, tool_calls=self.calls)]


def _conversation(body: _Body) -> list[ChatMessage]:
    made = [ChatMessage(role="system", content=body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        return [*made, ChatMessage(role="user", content=body.input)]
    turn = _Turn()
    for at, given_item in enumerate(body.input):
        place = f"input[{at}]"
        kind = given_item.get("type", "message")
        shape = _ITEMS.get(kind) if isinstance(kind, str) else None
        if shape is None:
            why = f"expected one of {', '.join(_ITEMS)}, since only OpenAI has others, got '{str(kind)[:100]}'"
            raise _refuse(f"{place}.type", why)
        item: _Message | _Call | _Output | _Reasoning = converted(given_item, shape, place)
        match item:
            case _Message(role="assistant"):
                said = _parts(item.content, place + ".content")
                turn.parts += [TextPart(said)] if isinstance(said, str) else said
            case _Call():
                turn.calls.append(ToolCall(item.call_id, item.name, item.arguments, item.signature))
            case _Reasoning():
                turn.parts += _thoughts(item)
            case _Message():
                made += turn.message()
                turn = _Turn()
                made.append(ChatMessage(role=item.role, content=_parts(item.content, place + ".content")))
            case _Output():
                made += turn.message()
                turn = _Turn()
                output = _parts(cast("Any", item.output), place + ".output")
                made.append(ChatMessage(role="tool", content=output, tool_call_id=item.call_id))
    return made + turn.message()


def _thoughts(item: _Reasoning) -> list[ContentPart]:
    text = "\n\n".join(part.text for part in item.content or item.summary)
    if text:
        return [ThinkingPart(text, item.encrypted_content)]
    return [RedactedThinkingPart(item.encrypted_content)] if item.encrypted_content else []


def _tools(body: _Body) -> list[FunctionTool]:
    made: list[FunctionTool] = []
    for at, told in enumerate(body.tools or ()):
        if told.get("type") != "function":
            why = f"expected 'function', since only OpenAI has other tools, got '{str(told.get('type'))[:100]}'"
            raise _refuse(f"tools[{at}].type", why)
        tool = converted(told, _Tool, f"tools[{at}]")
        made.append(
            FunctionTool(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)
        )
    return made


def _choice(choice: str | _Choice | None) -> Any:
    if not isinstance(choice, _Choice):
        return choice
    if choice.type != "function":
        raise _refuse("tool_choice.type", f"expected 'function', got '{choice.type[:100]}'")
    if choice.name is None:
        raise bad_request(
            "Missing required parameter: 'tool_choice.name'.", "tool_choice.name", "missing_required_parameter"
        )
    return NamedFunction(choice.name)


def _response_format(text: _TextConfig | None) -> Json | None:
    form = text.format if text is not None else None
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "json_object"}
    for name in ("name", "schema"):
        if getattr(form, name) is None:
            place = f"text.format.{name}"
            raise bad_request(f"Missing required parameter: '{place}'.", place, "missing_required_parameter")
    schema = {"name": form.name, "schema": form.schema}
    schema |= {name: value for name in ("strict", "description") if (value := getattr(form, name)) is not None}
    return {"type": "json_schema", "json_schema": schema}


class ResponsesFront:
    """The `Front` of OpenAI's Responses."""

    def chat(self, fields: Json) -> Chat:
        """The body as a model call. Raises a 400 `ApiError` that names the field."""
        fields = given(fields)
        for name, why in _REFUSED.items():
            if fields.get(name):
                raise _refuse(name, why)
        body = converted(fields, _Body)
        for at, name in enumerate(body.include or ()):
            if name != _INCLUDED:
                raise _refuse(f"include[{at}]", f"expected '{_INCLUDED}', since only OpenAI has others")
        if body.truncation == "auto":
            raise _refuse("truncation", "expected 'disabled', since only OpenAI leaves items out")
        if not body.input:
            raise bad_request("Missing required parameter: 'input'.", "input", "missing_required_parameter")
        return Chat(
            model=body.model,
            messages=_conversation(body),
            tools=_tools(body),
            tool_choice=_choice(body.tool_choice),
            parallel_tool_calls=body.parallel_tool_calls,
            response_format=_response_format(body.text),
            temperature=body.temperature,
            top_p=body.top_p,
            max_completion_tokens=body.max_output_tokens,
            reasoning_effort=body.reasoning.effort if body.reasoning else None,
            stream=bool(body.stream),
            user=body.user,
            metadata=body.metadata,
            service_tier=body.service_tier,
            extra=unknown(fields, _KNOWN),
            lenient=True,
        )

    def whole(self, chunks: Iterable[Chunk], about: About) -> Json:
        """The response that ``chunks`` make."""
        return response(chunks, about)

    def encoder(self, about: About) -> ResponseEncoder:
        """A writer for one streamed answer."""
        return ResponseEncoder(about)

    def replay(self, answer: Json, about: About) -> bytes:
        """A whole response as the stream it might have been (CCH-06)."""
        return replayed(answer, about)
