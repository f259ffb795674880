"""One model call, in our words: what the engine asks a model, and the pieces that come back.

The words are those of OpenAI's chat completions, since they are the field's. A dialect (``providers/``)
turns a `Chat` into a vendor's HTTP request and that vendor's stream into `Chunk` values, nothing more.
"""

from typing import Any, Literal

import msgspec

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]

# Anthropic's ``cache_control``: a mark up to which a prompt may be kept. A vendor without such marks gets none.
CacheControl = dict[str, Any] | None


class TextPart(msgspec.Struct, tag_field="type", tag="text", omit_defaults=True, frozen=True):
    """A piece of text in a message."""

    text: str
    cache_control: CacheControl = None


class ImageUrl(msgspec.Struct, omit_defaults=True, frozen=True):
    """Where an image is (``https:`` or ``data:``) and how closely to look."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(msgspec.Struct, tag_field="type", tag="image_url", omit_defaults=True, frozen=True):
    """An image in a message."""

    image_url: ImageUrl
    cache_control: CacheControl = None


class File(msgspec.Struct, omit_defaults=True, frozen=True, kw_only=True):
    """A document: its bytes (``file_data``, a ``data:`` URL), where it is (``file_url``), or what the vendor calls it.

    ``mime_type`` is for a ``file_url`` that does not tell, and for ``file_data`` that is base64 alone.
    """

    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None
    filename: str | None = None
    mime_type: str | None = None


class FilePart(msgspec.Struct, tag_field="type", tag="file", omit_defaults=True, frozen=True):
    """A document in a message."""

    file: File
    cache_control: CacheControl = None


class Audio(msgspec.Struct, frozen=True):
    """Sound: base64 ``data`` in ``format`` (wav, mp3)."""

    data: str
    format: str


class AudioPart(msgspec.Struct, tag_field="type", tag="input_audio", omit_defaults=True, frozen=True):
    """Sound in a message."""

    input_audio: Audio
    cache_control: CacheControl = None


class ThinkingPart(msgspec.Struct, tag_field="type", tag="thinking", omit_defaults=True, frozen=True):
    """What the model thought before it went on (role assistant). Only the vendor that signed it can use it again."""

    thinking: str
    signature: str | None = None


class RedactedThinkingPart(msgspec.Struct, tag_field="type", tag="redacted_thinking", frozen=True):
    """The same, encrypted by the vendor."""

    data: str


ContentPart = TextPart | ImagePart | FilePart | AudioPart | ThinkingPart | RedactedThinkingPart


class ToolCall(msgspec.Struct, frozen=True):
    """A function call by the model; ``arguments`` is JSON text as the model wrote it, maybe not valid.

    ``signature``: the vendor's seal on the thoughts that led to it (Gemini's ``thoughtSignature``).
    """

    id: str
    name: str
    arguments: str
    signature: str | None = None


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the conversation. ``tool_calls`` only with role assistant, ``tool_call_id`` with role tool.

    ``is_error``: the tool's output says what went wrong. ``name`` is that of the participant.
    """

    role: Role
    content: str | list[ContentPart] | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None
    is_error: bool = False
    name: str | None = None
    cache_control: CacheControl = None


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call; ``parameters`` is a JSON Schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: CacheControl = None


class NamedFunction(msgspec.Struct, frozen=True):
    """A tool choice that names the one function to call."""

    name: str


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """A model call. ``None`` means "not given": the vendor's default applies and nothing is sent.

    ``response_format`` is OpenAI's object (text, json_object, json_schema); token counts are numbers of tokens;
    ``stop`` are texts at which the model stops, left out of the answer. ``stream``: the answer comes in pieces.

    The rest is what clients over HTTP say and runs do not, in OpenAI's words but for ``top_k`` and ``thinking``
    (Anthropic's object). ``vendor_tools`` are tools that are no functions, in the vendor's own words, and ``extra``
    the fields of the body that nobody here knows: both are for the endpoint to judge. ``lenient``: what only tunes the
    answer and has no counterpart at the endpoint is left out instead of refused (GATEWAY TR-01); what changes the
    answer's shape is refused in any case.
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
    stream: bool = True
    n: int | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    user: str | None = None
    top_k: int | None = None
    thinking: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    vendor_tools: list[dict[str, Any]] = []
    extra: dict[str, Any] = {}
    lenient: bool = False


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


class ThinkingDelta(msgspec.Struct, frozen=True):
    """More of a thought. ``signature`` seals and ends it; without one, whatever comes next ends it."""

    text: str = ""
    signature: str | None = None


class RedactedThinking(msgspec.Struct, frozen=True):
    """A whole thought, encrypted by the vendor."""

    data: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """The beginning of tool call ``index`` (``name`` set, once) or more of its ``arguments``."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    signature: str | None = None


class Extra(msgspec.Struct, frozen=True):
    """Something that only this vendor tells about the answer, under its own name (``groundingMetadata``)."""

    name: str
    value: Any


class Finish(msgspec.Struct, frozen=True):
    """The last chunk, exactly one per call: why the model stopped, and the usage if the endpoint told it.

    ``raw`` is the reason in the vendor's own word, ``stop_sequence`` the text that stopped it, each if it told so.
    """

    reason: FinishReason
    usage: Usage | None = None
    raw: str | None = None
    stop_sequence: str | None = None


Chunk = TextDelta | RefusalDelta | ThinkingDelta | RedactedThinking | ToolCallDelta | Extra | Finish


class Upstream(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which endpoint a run's model calls go to, by reference: a plain secret is never stored with a run.

    ``default``: chosen by the model's name; ``provider``: a provider of ``loomgate.toml`` or the catalogue,
    with the operator's key; ``virtual_key``: ``name`` is its slug; ``sealed``: ``name`` is the provider and
    ``credential`` the id of the client's own key, sealed in the store.
    """

    kind: Literal["default", "provider", "virtual_key", "sealed"] = "default"
    name: str = ""
    credential: str | None = None
