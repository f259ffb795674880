"""What the bytes of an answer tell of it: tokens, the model that answered, why it stopped. Pure.

What must live here: finding those facts in every format that endpoints answer in, whole or as SSE, also when the middle
of a long body was not kept. What must not: prices, or what is done with the facts. It is used off the hot path, on
bodies that were passed to the client untouched, and never raises.
"""

import re
from typing import Annotated, Any, cast

import msgspec

from loomgate.gateway.prices import Units
from loomgate.wire.chat import Usage

_KEY = re.compile(rb'"usage(?:Metadata)?"\s*:\s*(?=\{)')
_BILLED = re.compile(rb'"billed_units"\s*:\s*(?=\{)')  # Cohere's answers that are no chat
# An object with others in it, but no deeper and no brace within a text: what vendors report is of that form.
_PLAIN = re.compile(rb"\{[^{}]{0,4096}(?:\{[^{}]{0,1024}\}[^{}]{0,1024}){0,16}\}")
_MODEL = re.compile(rb'"(?:model|modelVersion)"\s*:\s*"([^"\\]{1,200})"')
_ID = re.compile(rb'"(?:id|responseId)"\s*:\s*"([^"\\]{1,200})"')
_REASON = re.compile(rb'"(?:finish_reason|stop_reason|finishReason)"\s*:\s*"([^"\\]{1,100})"')
_HEAD = 2048  # bytes at either end in which the names of an answer stand
_MOST = 64  # usage objects looked at, from the end and from the beginning


def usage_of(endpoint_name: str, content_type: str, body: bytes) -> Usage | None:
    """The tokens that an answer of ``endpoint_name`` reports, or ``None`` if it does not.

    ``body`` is whole, or its beginning and end with what is between left out. ``prompt_tokens`` includes what was read
    from and written to a vendor's cache, whatever the vendor's own way of counting is.
    """
    if not body or content_type.startswith(("audio/", "image/", "video/")):
        return None
    # Nearly always an answer in OpenAI's format, with one thing of that name, near its end, or none.
    last = body.rfind(b'"usage')
    if last < 0:
        if b'"billed_units"' not in body:
            return None
    elif body.startswith(b'"usage":{', last) and (
        body.find(b'"usage', 0, last) < 0 or body.count(b'"usage') == 1 + body.count(b'"usage":null')
    ):
        usual = _usual(body, last + len(b'"usage":'))
        if usual is not None:
            return usual
    told: dict[str, int] = {}
    # Streams tell it in pieces: what counts is the last word about each number. Most tell it once, at the end.
    found = list(_KEY.finditer(body)) or list(_BILLED.finditer(body))
    if len(found) == 1 and (usual := _usual(body, found[0].end())) is not None:
        return usual
    if len(found) > _MOST:
        found = [*found[: _MOST // 2], *found[-_MOST // 2 :]]
    for match in found:
        text = _PLAIN.match(body, match.end())
        if text is not None:
            told |= _counts(text[0])
    return _usage(told) if told else None


def answer_of(body: bytes) -> tuple[str, str, tuple[str, ...]]:
    """The model that answered, the id it gave its answer, and the reasons why it stopped, as far as told."""
    head = body[:_HEAD]
    model, id = _MODEL.search(head), _ID.search(head)
    reasons = tuple(dict.fromkeys(_text(reason) for reason in _REASON.findall(body[-_HEAD:])))
    return _text(model[1]) if model else "", _text(id[1]) if id else "", reasons


def units_of(endpoint_name: str, content_type: str, asked: dict[str, Any], answer: bytes, size: int) -> Units:
    """What a call used besides tokens. ``asked`` is its body, ``answer`` the answer or a part of its ``size`` bytes."""
    match endpoint_name:
        case "generate_image" | "edit_image" | "vary_image":
            made = _object(answer).get("data") if len(answer) >= size else None
            wanted = asked.get("n")
            return Units(images=len(cast("list[Any]", made)) if isinstance(made, list) else _whole(wanted) or 1)
        case "speak":
            text = asked.get("input")
            return Units(characters=len(text) if isinstance(text, str) else 0)
        case "transcribe" | "translate":
            return Units(seconds=_seconds(_object(answer) if "json" in content_type else {}))
        case "rerank":
            return Units(searches=1)
        case _:
            return Units()


def _seconds(answer: dict[str, Any]) -> float:
    usage = answer.get("usage")
    told = cast("dict[str, Any]", usage).get("seconds") if isinstance(usage, dict) else None
    found = answer.get("duration") if told is None else told
    try:
        return max(0.0, float(found)) if isinstance(found, (int, float, str)) else 0.0
    except ValueError:
        return 0.0


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _text(found: bytes) -> str:
    return found.decode("utf-8", "replace")


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


class _Tokens(msgspec.Struct):
    """The counts of every dialect under one roof; each vendor fills its own."""

    # OpenAI: chat completions, embeddings; then responses, images and transcriptions
    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None
    input_tokens_details: Any = None
    output_tokens_details: Any = None
    # Anthropic, and OpenAI's responses
    input_tokens: Any = None
    output_tokens: Any = None
    cache_read_input_tokens: Any = None
    cache_creation_input_tokens: Any = None
    # Gemini
    promptTokenCount: Any = None
    candidatesTokenCount: Any = None
    thoughtsTokenCount: Any = None
    cachedContentTokenCount: Any = None
    # Bedrock
    inputTokens: Any = None
    outputTokens: Any = None
    cacheReadInputTokens: Any = None
    cacheWriteInputTokens: Any = None
    # Cohere
    tokens: Any = None
    billed_units: Any = None
    cached_tokens: Any = None


_Count = Annotated[int, msgspec.Meta(ge=0)]


class _InputDetails(msgspec.Struct):
    cached_tokens: _Count | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: _Count | None = None


class _Usual(msgspec.Struct):
    prompt_tokens: _Count
    completion_tokens: _Count
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


_decode = msgspec.json.Decoder(_Tokens).decode
_decode_usual = msgspec.json.Decoder(_Usual).decode


def _usual(body: bytes, start: int) -> Usage | None:
    """The one usage object of an answer in OpenAI's format, which nearly all are; ``None`` for any other."""
    text = _PLAIN.match(body, start)
    try:
        told = _decode_usual(text[0]) if text is not None else None
    except msgspec.DecodeError:
        return None
    if told is None:
        return None
    input, output = told.prompt_tokens_details, told.completion_tokens_details
    return Usage(
        told.prompt_tokens,
        told.completion_tokens,
        (input.cached_tokens or 0) if input is not None else 0,
        (output.reasoning_tokens or 0) if output is not None else 0,
    )


def _counts(text: bytes) -> dict[str, int]:
    try:
        found = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    told: dict[str, int] = {}
    if found.prompt_tokens is not None:
        _put(told, prompt=found.prompt_tokens, completion=found.completion_tokens)
        _put(told, cached=_detail(found.prompt_tokens_details, "cached_tokens"))
        _put(told, reasoning=_detail(found.completion_tokens_details, "reasoning_tokens"))
    elif found.input_tokens is not None or found.output_tokens is not None:
        # Anthropic counts cached tokens beside the others, OpenAI's responses count them among the others.
        _put(told, prompt=found.input_tokens, completion=found.output_tokens)
        _put(told, read=found.cache_read_input_tokens, written=found.cache_creation_input_tokens)
        _put(told, cached=_detail(found.input_tokens_details, "cached_tokens"))
        _put(told, reasoning=_detail(found.output_tokens_details, "reasoning_tokens"))
    elif found.promptTokenCount is not None:
        # Gemini counts its thoughts beside the tokens of the answer.
        _put(told, prompt=found.promptTokenCount, completion=found.candidatesTokenCount)
        _put(told, cached=found.cachedContentTokenCount, reasoning=found.thoughtsTokenCount)
        told["completion"] = told.get("completion", 0) + told.get("reasoning", 0)
    elif found.inputTokens is not None:
        _put(told, prompt=found.inputTokens, completion=found.outputTokens)
        _put(told, read=found.cacheReadInputTokens, written=found.cacheWriteInputTokens)
    elif isinstance(inner := found.tokens or found.billed_units, dict):
        counts = cast("dict[str, object]", inner)
        _put(told, prompt=counts.get("input_tokens"), completion=counts.get("output_tokens"))
        _put(told, cached=found.cached_tokens)
    else:
        _put(told, prompt=found.total_tokens)
    return told


def _put(told: dict[str, int], **values: object) -> None:
    for name, value in values.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15:
            told[name] = int(value)


def _detail(details: object, name: str) -> object:
    return cast("dict[str, object]", details).get(name) if isinstance(details, dict) else None


def _usage(told: dict[str, int]) -> Usage:
    read, written = told.get("read", 0), told.get("written", 0)
    return Usage(
        told.get("prompt", 0) + read + written,
        told.get("completion", 0),
        told.get("cached", 0) or read,
        told.get("reasoning", 0),
        written,
    )
