"""Anthropic's Messages dialect, sans-I/O: a `Chat` to request bytes, answer bytes to `Chunk` values.

What must live here: this wire format (https://platform.claude.com/docs/en/api/messages), and how a call that is put in
OpenAI's words is said in it (docs/providers.md). What must not: addresses (``catalogue``), facts about models
(``models``), connections (``transport``), trying again (``gateway/``).
"""

import contextlib
import re
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from loomgate.errors import ProviderError
from loomgate.providers import models
from loomgate.providers.anthropic_answer import ANSWER_TOOL, MessageDecoder, failure
from loomgate.providers.dialect import HttpCall, Target
from loomgate.providers.parts import decoded_text, document, encoded, own_words, refused, split_url
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    ContentPart,
    FilePart,
    ImagePart,
    NamedFunction,
    RedactedThinkingPart,
    TextPart,
    ThinkingPart,
    ToolCall,
)

_VERSION = "2023-06-01"
# The longest answer of a model that nothing is known about; the endpoint wants a number.
_MAX_TOKENS = 4096
# A conversation must not end with the assistant, or its answer would be continued, or (since 4.6) refused.
_FILLER: dict[str, Any] = {"type": "text", "text": "Continue."}
_JSON_OBJECT = "Answer with one JSON object and nothing else: no text around it, no code fence."


# --- the request: messages -----------------------------------------------------------------------------------------


def _block(part: ContentPart) -> dict[str, Any] | None:
    """A content block (GATEWAY TR-14), or None: the endpoint refuses empty texts and thoughts that are not signed."""
    match part:
        case TextPart():
            made: dict[str, Any] = {"type": "text", "text": part.text}
            if not part.text:
                return None
        case ThinkingPart():
            # Without their signature they are another vendor's.
            return msgspec.to_builtins(part) if part.signature else None
        case RedactedThinkingPart():
            return msgspec.to_builtins(part)
        case ImagePart():
            made = _image(part.image_url.url)
        case FilePart():
            made = _document(part)
        case _:
            raise refused("messages", "text, images and documents, since Anthropic takes no sound")
    if part.cache_control is not None:
        made["cache_control"] = part.cache_control
    return made


def _image(url: str) -> dict[str, Any]:
    data = split_url(url, "image_url")
    if data is None:
        return {"type": "image", "source": {"type": "url", "url": url}}
    kind = "document" if data[0] == "application/pdf" else "image"
    return {"type": kind, "source": {"type": "base64", "media_type": data[0], "data": data[1]}}


def _document(part: FilePart) -> dict[str, Any]:
    file, source = part.file, cast(dict[str, Any], {})
    if (data := document(file)) is not None:
        if data[0].startswith("image/"):
            return {"type": "image", "source": {"type": "base64", "media_type": data[0], "data": data[1]}}
        if data[0].startswith("text/"):
            source = {"type": "text", "media_type": "text/plain", "data": decoded_text(data[1])}
        else:
            source = {"type": "base64", "media_type": data[0], "data": data[1]}
    elif file.file_url is not None:
        source = {"type": "url", "url": file.file_url}
    elif file.file_id is not None:
        source = {"type": "file", "file_id": file.file_id}
    else:
        raise refused("messages", "file_data, file_url or file_id in a file")
    return {"type": "document", "source": source, **({"title": file.filename} if file.filename else {})}


def _blocks(content: str | list[ContentPart] | None) -> list[dict[str, Any]]:
    """The blocks of a message's content."""
    parts: list[ContentPart] = [TextPart(content)] if isinstance(content, str) else content or []
    return [block for part in parts if (block := _block(part)) is not None]


def _id(id: str) -> str:
    """A tool call's id in the only characters that the endpoint takes."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", id)


def _input(call: ToolCall) -> dict[str, Any]:
    """A call's arguments as the object that the endpoint wants; what is none is shown as the text it is."""
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        found = msgspec.json.decode(call.arguments or "{}")
        if isinstance(found, dict):
            return cast(dict[str, Any], found)
    return {"arguments": call.arguments}


def _message(message: ChatMessage) -> tuple[str, list[dict[str, Any]]]:
    """A message's role and blocks (GATEWAY TR-13)."""
    if message.role == "tool":
        result: dict[str, Any] = {"type": "tool_result", "tool_use_id": _id(message.tool_call_id or "")}
        if content := message.content if isinstance(message.content, str) else _blocks(message.content):
            result["content"] = content
        if message.is_error:
            result["is_error"] = True
        if message.cache_control is not None:
            result["cache_control"] = message.cache_control
        return "user", [result]
    blocks = _blocks(message.content)
    if message.role == "user":
        return "user", blocks
    if message.refusal:
        blocks.append({"type": "text", "text": message.refusal})
    blocks += [
        {"type": "tool_use", "id": _id(call.id), "name": call.name, "input": _input(call)}
        for call in message.tool_calls
    ]
    return "assistant", blocks


def _conversation(messages: list[ChatMessage]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The system blocks (GATEWAY TR-10), and the turns: neighbours of one role are one, and the last is a user's."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role in ("system", "developer"):
            system += _blocks(message.content)
            if any(block["type"] != "text" for block in system):
                raise refused("messages", "only text in a system message", "an image")
            continue
        role, blocks = _message(message)
        if not blocks:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    if not turns or turns[-1]["role"] != "user":
        turns.append({"role": "user", "content": [_FILLER]})
    return system, turns


# --- the request: everything else ----------------------------------------------------------------------------------


def _tools(call: Chat, body: dict[str, Any]) -> None:
    """Tools and the choice among them (GATEWAY TR-11, TR-12)."""
    if not call.tools and not call.vendor_tools:
        return
    if any(tool.name == ANSWER_TOOL for tool in call.tools):
        raise ProviderError("invalid", f"tools: expected another name than '{ANSWER_TOOL}', which is in use.")
    body["tools"] = [
        {
            "name": tool.name,
            **({"description": tool.description} if tool.description else {}),
            "input_schema": tool.parameters or {"type": "object", "properties": {}},
            **({"strict": True} if tool.strict else {}),
            **({"cache_control": tool.cache_control} if tool.cache_control is not None else {}),
        }
        for tool in call.tools
    ] + call.vendor_tools
    choice = call.tool_choice
    made: dict[str, Any] | None = None
    if isinstance(choice, NamedFunction):
        made = {"type": "tool", "name": choice.name}
    elif choice is not None:
        made = {"type": "any" if choice == "required" else choice}
    if call.parallel_tool_calls is False and choice != "none":
        made = {**(made or {"type": "auto"}), "disable_parallel_tool_use": True}
    if made is not None:
        body["tool_choice"] = made


def _closed(schema: Any) -> Any:
    """``schema`` with every object closed, as the endpoint demands: what fits it fits the original as well."""
    if isinstance(schema, list):
        return [_closed(item) for item in cast(list[Any], schema)]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for name, value in cast(dict[str, Any], schema).items():
        if name in ("properties", "$defs", "definitions") and isinstance(value, dict):
            made[name] = {key: _closed(inner) for key, inner in cast(dict[str, Any], value).items()}
        elif name in ("const", "enum", "default", "examples"):
            made[name] = value
        else:
            made[name] = _closed(value)
    if made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


def _format(call: Chat, facts: models.ModelFacts, body: dict[str, Any], system: list[dict[str, Any]]) -> None:
    """The answer's format: natively, or as a tool that must be called, or by asking for it."""
    wanted = call.response_format or {"type": "text"}
    if wanted["type"] == "json_object":
        system.append({"type": "text", "text": _JSON_OBJECT})
    if wanted["type"] != "json_schema":
        return
    given = wanted["json_schema"]
    schema = given.get("schema") or {"type": "object"}
    if facts.json_schema:
        body.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": _closed(schema)}
        return
    about = given.get("description") or "Gives the answer. Call this once you have it, instead of writing it."
    answer = {"name": ANSWER_TOOL, "description": about, "input_schema": schema}
    body["tools"] = [*body.get("tools", []), answer]
    choice: dict[str, Any] = body.get("tool_choice", {"type": "auto"})
    if choice["type"] == "none" or not call.tools:
        choice = {"type": "tool", "name": ANSWER_TOOL}
    elif choice["type"] != "tool":  # one function that must be called comes before the answer
        choice = {"type": "any"}
    body["tool_choice"] = {**choice, "disable_parallel_tool_use": True}


_LEVELS = ("minimal", "low", "medium", "high", "xhigh", "max")
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16_384, "xhigh": 32_768, "max": 65_536}
_LEAST_BUDGET = 1024


def _level(asked: str, known: tuple[str, ...]) -> str:
    """The highest level in ``known`` that is not above the one asked for, or the lowest."""
    below = _LEVELS[: _LEVELS.index(asked) + 1]
    return next((level for level in reversed(known) if level in below), known[0])


def _refuse(call: Chat, why: str) -> ProviderError:
    return ProviderError("invalid", f"reasoning_effort: expected {why}, found '{call.reasoning_effort}'.")


def _thinking(call: Chat, facts: models.ModelFacts, body: dict[str, Any]) -> None:
    """How much the model thinks. Raises `ProviderError` ``invalid`` for an effort that it cannot make.

    Thinking cannot be had together with a tool that must be called; and a budget not within a turn that has called
    tools before, since the thoughts of its beginning would have to come along.
    """
    effort, thinking = call.reasoning_effort, facts.thinking
    if call.thinking is not None:  # in the endpoint's own words
        body["thinking"] = call.thinking
        if effort in _LEVELS and thinking is not None and thinking.efforts:
            body.setdefault("output_config", {})["effort"] = _level(effort, thinking.efforts)
        return
    if call.lenient and not _can(effort, thinking):
        return
    forced = body.get("tool_choice", {}).get("type") in ("any", "tool")
    if thinking is None:
        if effort not in (None, "none"):
            raise _refuse(call, f"null or 'none' for the model '{call.model}', which is not known to reason")
        return
    if effort == "none":
        if thinking.off == "never":
            raise _refuse(call, f"at least 'low' for the model '{call.model}', which always reasons")
        if thinking.off != "default":
            body["thinking"] = {"type": thinking.off}
        return
    if effort is not None and effort not in _LEVELS:
        raise _refuse(call, f"null, 'none' or one of {', '.join(_LEVELS)}")
    if forced and thinking.off == "disabled":
        body["thinking"] = {"type": "disabled"}
    if effort is None:
        return
    if thinking.efforts:
        level = _level(effort, thinking.efforts)
        if "thinking" in body and level in ("xhigh", "max"):
            level = "high"  # the most without thinking
        body.setdefault("output_config", {})["effort"] = level
    if forced:
        return
    if thinking.mode == "adaptive":
        body["thinking"] = {"type": "adaptive"}
        return
    within = next((_thoughtless(said) for said in reversed(call.messages) if said.role == "assistant"), False)
    budget = min(_BUDGETS[effort], body["max_tokens"] // 2)  # the other half is for the answer
    if budget >= _LEAST_BUDGET and not within:
        body["thinking"] = {"type": "enabled", "budget_tokens": budget}


def _can(effort: str | None, thinking: models.Thinking | None) -> bool:
    if thinking is None:
        return effort in (None, "none")
    return effort in (None, *_LEVELS) or (effort == "none" and thinking.off != "never")


def _thoughtless(message: ChatMessage) -> bool:
    """Whether a message calls tools without the thoughts that led to it."""
    parts = message.content if isinstance(message.content, list) else []
    return bool(message.tool_calls) and not any(isinstance(part, ThinkingPart | RedactedThinkingPart) for part in parts)


# OpenAI's words for how urgent a call is; those without a counterpart only tune.
_TIERS = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}


def _body(call: Chat) -> dict[str, Any]:
    facts = models.facts(call.model)
    system, turns = _conversation(call.messages)
    longest = facts.max_output or _MAX_TOKENS
    wanted = call.max_completion_tokens
    # What is asked for at most may be more than the model can say: the endpoint would refuse that.
    most = longest if wanted is None else min(wanted, facts.max_output or wanted)
    body: dict[str, Any] = {"model": call.model, "max_tokens": most, "messages": turns}
    if call.stream:
        body["stream"] = True
    _tools(call, body)
    _format(call, facts, body, system)
    _thinking(call, facts, body)
    if system:
        body["system"] = system
    if call.temperature is not None:
        body["temperature"] = max(
            0.0, min(call.temperature, 1.0)
        )  # GATEWAY TR-02: theirs ends where OpenAI's is in the middle
    if call.top_p is not None:
        body["top_p"] = call.top_p
    if call.stop:
        body["stop_sequences"] = call.stop
    if call.top_k is not None:
        body["top_k"] = call.top_k
    if call.user is not None:
        body["metadata"] = {"user_id": call.user}
    if (tier := _TIERS.get(call.service_tier or "")) is not None:
        body["service_tier"] = tier
    body.update(own_words(call, "Anthropic"))
    return body


def _without(body: dict[str, Any], drop: frozenset[str]) -> dict[str, Any]:
    for name in drop - _NEVER_DROPPED - {"max_tokens"}:
        body.pop(name, None)
    return body


_DROPPED: dict[str, Any] = {**dict.fromkeys(Chat.__struct_fields__), "tools": [], "stop": []}
_NEVER_DROPPED = frozenset("model messages stream vendor_tools extra lenient".split())


class Anthropic:
    """The `Dialect` of Anthropic's Messages API."""

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The request for ``call``, without the fields (ours or theirs) that the row or the target drops.

        Raises `ProviderError` ``invalid`` for what this endpoint cannot do.
        """
        drop = target.vendor.drop | target.drop
        if ours := {name: _DROPPED[name] for name in (drop & _DROPPED.keys()) - _NEVER_DROPPED}:
            if "tool_choice" in ours and call.tool_choice == "none":
                ours["tools"] = []  # the only way left to say it
            call = msgspec.structs.replace(call, **ours)
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream" if call.stream else "application/json",
            "anthropic-version": _VERSION,
        }
        if target.api_key:
            headers["x-api-key"] = target.api_key
        return HttpCall(target.url, {**headers, **target.headers}, encoded(lambda: _without(_body(call), drop)))

    def decoder(self) -> MessageDecoder:
        """A fresh decoder for one answer."""
        return MessageDecoder()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What an error answer means. ``headers`` has lower-case names; ``body`` may be anything, or empty."""
        return failure(status, headers, body)
