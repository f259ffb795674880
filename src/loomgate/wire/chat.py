"""One model call, in our words: what the engine asks a model, and the pieces that come back.

The words are those of OpenAI's chat completions, since they are the field's. A dialect (``providers/``)
turns a `Chat` into a vendor's HTTP request and that vendor's stream into `Chunk` values, nothing more.
"""

from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class TextPart(msgspec.Struct, tag_field="type", tag="text", frozen=True):
    """A piece of text in a message."""

    text: str


class ImageUrl(msgspec.Struct, omit_defaults=True, frozen=True):
    """Where an image is (``https:`` or ``data:``) and how closely to look."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(msgspec.Struct, tag_field="type", tag="image_url", frozen=True):
    """An image in a message."""

    image_url: ImageUrl


ContentPart = TextPart | ImagePart


class ToolCall(msgspec.Struct, frozen=True):
    """A function call by the model; ``arguments`` is JSON text as the model wrote it, maybe not valid."""

    id: str
    name: str
    arguments: str


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the conversation. ``tool_calls`` only with role assistant, ``tool_call_id`` with role tool."""

    role: Role
    content: str | list[ContentPart] | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call; ``parameters`` is a JSON Schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(msgspec.Struct, frozen=True):
    """A tool choice that names the one function to call."""

    name: str


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """A model call. ``None`` means "not given": the vendor's default applies and nothing is sent.

    ``response_format`` is OpenAI's object (text, json_object, json_schema); token counts are numbers of tokens;
    ``stop`` are texts at which the model stops, left out of the answer.
    """

    model: str
    messages: list[ChatMessage]
    tools: list[FunctionTool] = []
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_completion_tokens: int | None = None
    reasoning_effort: str | None = None
    stop: list[str] = []


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one model call.

    ``prompt_tokens`` is the whole prompt: what was read from the cache (``cached_tokens``) and what was written to it
    (``cache_creation_tokens``) are parts of it, as ``reasoning_tokens`` are of ``completion_tokens``.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cache_creation_tokens: int = 0


class TextDelta(msgspec.Struct, frozen=True):
    """More text of the answer."""

    text: str


class RefusalDelta(msgspec.Struct, frozen=True):
    """More text of a refusal."""

    text: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """The beginning of tool call ``index`` (``name`` set, once) or more of its ``arguments``."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Finish(msgspec.Struct, frozen=True):
    """The last chunk, exactly one per call: why the model stopped, and the usage if the endpoint told it."""

    reason: FinishReason
    usage: Usage | None = None


Chunk = TextDelta | RefusalDelta | ToolCallDelta | Finish


class Upstream(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which endpoint a run's model calls go to, by reference: a plain secret is never stored with a run.

    ``default``: chosen by the model's name; ``provider``: a provider of ``loomgate.toml`` or the catalogue,
    with the operator's key; ``virtual_key``: ``name`` is its slug; ``sealed``: ``name`` is the provider and
    ``credential`` the id of the client's own key, sealed in the store.
    """

    kind: Literal["default", "provider", "virtual_key", "sealed"] = "default"
    name: str = ""
    credential: str | None = None
