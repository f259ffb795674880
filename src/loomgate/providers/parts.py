"""What a call over HTTP may hold that not every vendor can say: documents, sound, pictures in a tool's output, and
fields that are OpenAI's alone. What is left out, what is moved, and what is refused.

What must live here: rules that dialects share (GATEWAY TR-01, TR-14; docs/gateway/translation.md). What must not: a
vendor's format.
"""

import base64
import binascii
import mimetypes
from collections.abc import Callable, Iterable
from typing import Any, cast
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec

from loomgate.errors import ProviderError
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    ContentPart,
    File,
    RedactedThinkingPart,
    TextPart,
    ThinkingPart,
)


def refused(field: str, expected: str, found: str = "") -> ProviderError:
    """The error for something that the endpoint cannot do."""
    return ProviderError("invalid", f"{field}: expected {expected}" + (f", found {found}." if found else "."))


# OpenAI's fields that only tune an answer, or say what its maker may do with it: left out elsewhere (GATEWAY TR-01).
_TUNING = frozenset(
    "store prediction prompt_cache_key prompt_cache_retention safety_identifier verbosity stream_options".split()
)


def encoded(make: Callable[[], Any]) -> bytes:
    """What ``make`` gives, as JSON. Raises `ProviderError` ``invalid`` for what is nested too deeply to walk."""
    try:
        return _encode(make())
    except RecursionError:
        raise refused("body", "JSON that is nested less deeply") from None


_encode = msgspec.json.Encoder().encode


def one_text(call: Chat, vendor: str) -> None:
    """Refuse what would give ``call`` an answer of another shape than one text, with or without tool calls."""
    if call.n is not None and call.n > 1:
        raise refused("n", f"1, since one answer is made per call to {vendor}", str(call.n))
    if call.logprobs:
        raise refused("logprobs", f"false or nothing, since {vendor}'s answers are translated without them", "true")
    if call.top_logprobs:
        raise refused("top_logprobs", f"0 or nothing, since {vendor}'s answers are translated without them")
    modalities = call.extra.get("modalities")
    if modalities is not None and modalities != ["text"]:
        raise refused("modalities", f'["text"], since {vendor} answers in text')
    if call.extra.get("audio") is not None:
        raise refused("audio", f"nothing, since {vendor} answers in text")


_ONLY_OPENAI = {"web_search_options": "", "functions": " (use tools)", "function_call": " (use tool_choice)"}


def own_words(call: Chat, vendor: str) -> dict[str, Any]:
    """What of ``call.extra`` goes to a vendor whose words are not OpenAI's: everything that OpenAI does not have.

    Such fields are the vendor's own, or nobody's; the vendor judges. Raises `ProviderError` as `one_text`.
    """
    one_text(call, vendor)
    for name, hint in _ONLY_OPENAI.items():
        if call.extra.get(name) is not None:
            raise refused(name, f"nothing, since {vendor} has no such field{hint}")
    return {name: value for name, value in call.extra.items() if name not in _TUNING and name != "modalities"}


def spoken(content: Iterable[ContentPart]) -> list[ContentPart]:
    """``content`` without thoughts: they are no use to a vendor that did not think them."""
    return [part for part in content if not isinstance(part, ThinkingPart | RedactedThinkingPart)]


def split_url(url: str, field: str = "file_data") -> tuple[str, str] | None:
    """The media type and base64 data of a ``data:`` URL, or None if it is none.

    Raises `ProviderError` ``invalid`` that names ``field``.
    """
    if url[:5].lower() != "data:":
        return None
    head, comma, data = url[5:].partition(",")
    kind, *options = (word.strip().lower() for word in head.split(";"))
    if not comma or not data:
        raise refused(field, "'data:<media type>;base64,<data>'")
    if "base64" not in options:
        data = base64.b64encode(unquote_to_bytes(data)).decode()
    return kind or "application/octet-stream", data


def document(file: File) -> tuple[str, str] | None:
    """The media type and base64 data of a document, or None if its bytes are not in the request."""
    if file.file_data is None:
        return None
    return split_url(file.file_data) or (named_type(file, "application/pdf"), file.file_data)


def named_type(file: File, otherwise: str) -> str:
    """The media type that a document's fields tell."""
    path = file.filename or (urlsplit(file.file_url).path if file.file_url else "")
    return file.mime_type or mimetypes.guess_type(path)[0] or otherwise


def decoded_text(data: str) -> str:
    """Base64 of a text as that text. Raises `ProviderError` ``invalid``."""
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise refused("file_data", "a text in UTF-8 as base64") from None


def effort(thinking: dict[str, Any] | None) -> str | None:
    """The reasoning effort that comes closest to Anthropic's ``thinking`` object."""
    match (thinking or {}).get("type"):
        case "disabled":
            return "none"
        case "enabled":
            budget = cast(Any, thinking).get("budget_tokens")
            if not isinstance(budget, int):
                return None
            return "low" if budget < 4096 else "medium" if budget < 16_384 else "high"
        case _:
            return None


def texts_only(messages: list[ChatMessage]) -> list[ChatMessage]:
    """``messages`` with text alone in tools' outputs: anything else follows, as a user's message, all outputs of the
    turn. For vendors whose tool outputs are texts."""
    if not any(message.role == "tool" and not isinstance(message.content, str | None) for message in messages):
        return messages
    made: list[ChatMessage] = []
    held: list[ContentPart] = []
    for message in messages:
        if message.role != "tool" and held:
            made.append(ChatMessage(role="user", content=held))
            held = []
        if message.role == "tool" and isinstance(message.content, list):
            rest = [part for part in message.content if not isinstance(part, TextPart)]
            text = "\n".join(part.text for part in message.content if isinstance(part, TextPart))
            if rest:
                held += [TextPart(f"The output of tool call {message.tool_call_id}:"), *rest]
                text = text or "(The output follows.)"
            made.append(msgspec.structs.replace(message, content=text))
        else:
            made.append(message)
    if held:
        made.append(ChatMessage(role="user", content=held))
    return made
