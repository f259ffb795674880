"""Anthropic's side of the Messages API: https://platform.claude.com/docs/en/api/messages and its page on streaming."""

import json
from typing import Any, ClassVar

from loomgate.providers.dialect import HttpCall
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    ContentPart,
    FunctionTool,
    ImagePart,
    ImageUrl,
    NamedFunction,
    TextPart,
    ToolCall,
    Usage,
)
from tests.providers.conformance.suite import KEY, Answer

_ERRORS: dict[str, tuple[int, dict[str, str], str, str]] = {
    "invalid": (400, {}, "invalid_request_error", "messages: at least one message is required"),
    "auth": (401, {}, "authentication_error", "invalid x-api-key"),
    "rate_limit": (
        429,
        {"retry-after": "7"},
        "rate_limit_error",
        "This request would exceed your organization's rate limit of 50 requests per minute.",
    ),
    "server": (500, {}, "api_error", "Internal server error"),
    "overloaded": (529, {}, "overloaded_error", "Overloaded"),
}
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_FIELDS = {"model", "messages", "max_tokens", "stream", "system", "tools", "tool_choice", "temperature", "top_p"} | {
    "stop_sequences",
    "output_config",
    "thinking",
}


def _event(type: str, **fields: Any) -> bytes:
    data = json.dumps({"type": type, **fields}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {type}\ndata: {data}\n\n".encode()


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


class AnthropicWire:
    """The original, asked for ``model``."""

    vendor = "anthropic"
    content_type = "text/event-stream; charset=utf-8"
    always = frozenset({"max_completion_tokens"})
    why: ClassVar = {"json_object": "there is no JSON mode: it is asked for in the system prompt"}
    lacks = frozenset(why)

    def __init__(self, name: str, model: str) -> None:
        self.name = name
        self.model = model

    def _events(self, answer: Answer) -> list[bytes]:
        usage = _usage(answer.usage or Usage(9, 4))
        begun = {
            "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**usage, "output_tokens": 1, "service_tier": "standard"},
        }
        del begun["usage"]["output_tokens_details"]
        events = [_event("message_start", message=begun)]
        blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
        if answer.thinking is not None:
            blocks.append(
                (
                    {"type": "thinking", "thinking": "", "signature": ""},
                    [
                        {"type": "thinking_delta", "thinking": answer.thinking},
                        {"type": "signature_delta", "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"},
                    ],
                )
            )
            blocks.append(({"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"}, []))
        if answer.text:
            blocks.append(({"type": "text", "text": ""}, [{"type": "text_delta", "text": t} for t in answer.text]))
        for number, (name, arguments) in enumerate(answer.calls):
            start = {"type": "tool_use", "id": f"toolu_01T1x1fJ34qAmk2tNTrN7Up{number}", "name": name, "input": {}}
            # The first piece is always empty; a call without arguments has no other.
            pieces = ["", *(arguments[at : at + 5] for at in range(0, len(arguments) if arguments != "{}" else 0, 5))]
            blocks.append((start, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]))
        for index, (start, deltas) in enumerate(blocks):
            events.append(_event("content_block_start", index=index, content_block=start))
            if index == 0:
                events.append(_event("ping"))
            events += [_event("content_block_delta", index=index, delta=delta) for delta in deltas]
            events.append(_event("content_block_stop", index=index))
        end: dict[str, Any] = {"stop_reason": _REASONS[answer.finish], "stop_sequence": None, "stop_details": None}
        if answer.refusal is not None:
            details = {"type": "refusal", "category": "cyber", "explanation": answer.refusal}
            end |= {"stop_reason": "refusal", "stop_details": details}
        events.append(_event("message_delta", delta=end, usage=usage))
        return [*events, _event("message_stop")]

    def stream(self, answer: Answer) -> bytes:
        return b"".join(self._events(answer))

    def whole(self, answer: Answer) -> bytes:
        content: list[dict[str, Any]] = []
        if answer.thinking is not None:
            signed = {"type": "thinking", "thinking": answer.thinking, "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"}
            content += [signed, {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"}]
        if answer.text:
            content.append({"type": "text", "text": "".join(answer.text)})
        for number, (name, arguments) in enumerate(answer.calls):
            made = {"id": f"toolu_01T1x1fJ34qAmk2tNTrN7Up{number}", "name": name, "input": json.loads(arguments)}
            content.append({"type": "tool_use", **made})
        told = {
            "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": _REASONS[answer.finish],
            "stop_sequence": None,
            "usage": _usage(answer.usage or Usage(9, 4)),
        }
        if answer.refusal is not None:
            details = {"type": "refusal", "category": "cyber", "explanation": answer.refusal}
            told |= {"stop_reason": "refusal", "stop_details": details}
        return json.dumps(told, ensure_ascii=False).encode()

    def error(self, kind: str) -> tuple[int, dict[str, str], bytes]:
        status, headers, type, message = _ERRORS[kind]
        body = {"type": "error", "error": {"type": type, "message": message}, "request_id": "req_011CSHoEeqs5C35K2"}
        return status, {"content-type": "application/json", **headers}, json.dumps(body).encode()

    def cut(self, answer: Answer) -> bytes:
        events = self._events(answer)
        return b"".join(events[:4]) + events[4][: len(events[4]) // 2]

    def malformed(self) -> bytes:
        return b'event: message_start\ndata: {"type":"message_start","message":\n\n'

    def midstream_error(self) -> bytes | None:
        error = _event("error", error={"type": "overloaded_error", "message": "Overloaded"})
        return b"".join([*self._events(Answer(text=["Half"]))[:4], error])

    def told(self, call: HttpCall) -> Chat:
        assert call.url == "https://api.anthropic.com/v1/messages"
        headers = {name.lower(): value for name, value in call.headers.items()}
        assert headers["x-api-key"] == KEY
        assert headers["anthropic-version"] == "2023-06-01"
        assert headers["content-type"] == "application/json"
        assert "authorization" not in headers
        body = json.loads(call.body)
        assert body.keys() <= _FIELDS
        assert body.get("stream", True) is True
        assert (headers["accept"] == "text/event-stream") is ("stream" in body)
        assert body["max_tokens"] >= 1
        messages = [ChatMessage(role="system", content=_parts(body["system"]))] if "system" in body else []
        assert body["messages"][-1]["role"] == "user"
        for before, after in zip(body["messages"], body["messages"][1:], strict=False):
            _follows(before, after)
        for message in body["messages"]:
            messages += _read(message)
        config, choice = body.get("output_config", {}), body.get("tool_choice", {"type": "auto"})
        effort, tools = config.get("effort"), body.get("tools", [])
        response = config.get("format")
        if response is not None:
            assert response["type"] == "json_schema"
            response = {"type": "json_schema", "json_schema": {"schema": response["schema"]}}
        # A tool that only carries a response schema: as good as the schema.
        if tools and tools[-1]["name"] == "loomgate_answer":
            answer = tools.pop()
            response = {"type": "json_schema", "json_schema": {"schema": answer["input_schema"]}}
            assert choice.pop("disable_parallel_tool_use") is True
            assert choice == ({"type": "any"} if tools else {"type": "tool", "name": "loomgate_answer"})
            choice = {"type": "auto"}
        if "thinking" in body:
            assert choice["type"] in ("auto", "none")
            assert body["max_tokens"] > body["thinking"].get("budget_tokens", 0)
            if body["thinking"]["type"] == "enabled":
                # A number of tokens, not a level: more for more.
                effort = {2048: "low", 8192: "medium", 16384: "high"}[body["thinking"]["budget_tokens"]]
            else:
                assert body["thinking"] == {"type": "adaptive"}
        named = {"any": "required", "tool": NamedFunction(choice.get("name", ""))}
        return Chat(
            model=body["model"],
            messages=messages,
            tools=[
                FunctionTool(
                    name=tool["name"],
                    description=tool.get("description"),
                    parameters=tool["input_schema"],
                    strict=tool.get("strict"),
                )
                for tool in tools
            ],
            tool_choice=named.get(choice["type"], choice["type"]),
            parallel_tool_calls=False if choice.get("disable_parallel_tool_use") else None,
            response_format=response,
            temperature=body.get("temperature"),
            top_p=body.get("top_p"),
            max_completion_tokens=body["max_tokens"],
            reasoning_effort=effort,
            stop=body.get("stop_sequences", []),
            stream="stream" in body,
        )


def _follows(before: dict[str, Any], after: dict[str, Any]) -> None:
    """The rules of turns: roles take turns, and the results of all calls come at the beginning of the next."""
    assert before["role"] != after["role"]
    calls = {block["id"] for block in before["content"] if block["type"] == "tool_use"}
    results = [block["tool_use_id"] for block in after["content"][: len(calls)] if block["type"] == "tool_result"]
    assert set(results) == calls
    assert sum(block["type"] == "tool_result" for block in after["content"]) == len(calls)


def _read(message: dict[str, Any]) -> list[ChatMessage]:
    content, role = message["content"], message["role"]
    assert role in ("user", "assistant")
    assert content, "a turn must say something"
    results = [
        ChatMessage(role="tool", content=_parts(block.get("content", [])), tool_call_id=block["tool_use_id"])
        for block in content
        if block["type"] == "tool_result"
    ]
    calls = [
        ToolCall(block["id"], block["name"], json.dumps(block["input"]))
        for block in content
        if block["type"] == "tool_use"
    ]
    assert role == "assistant" or not calls
    assert role == "user" or not results
    parts = _parts([block for block in content if block["type"] not in ("tool_result", "tool_use")])
    return results + ([ChatMessage(role=role, content=parts, tool_calls=calls)] if parts or calls else [])


def _parts(blocks: str | list[dict[str, Any]]) -> list[ContentPart]:
    if isinstance(blocks, str):
        blocks = [{"type": "text", "text": blocks}]
    parts: list[ContentPart] = []
    for block in blocks:
        if block["type"] == "text":
            assert block["text"], "text content blocks must be non-empty"
            parts.append(TextPart(block["text"]))
        else:
            assert block["type"] == "image"
            source = block["source"]
            if source["type"] == "url":
                parts.append(ImagePart(ImageUrl(source["url"])))
            else:
                assert source["type"] == "base64"
                assert source["media_type"] in ("image/png", "image/jpeg", "image/webp", "image/gif")
                parts.append(ImagePart(ImageUrl(f"data:{source['media_type']};base64,{source['data']}")))
    return parts


# The current way to think and to hold an answer to a schema, and the way before that.
WIRES = [AnthropicWire("anthropic", "claude-sonnet-4-6"), AnthropicWire("anthropic (older model)", "claude-sonnet-4-0")]
