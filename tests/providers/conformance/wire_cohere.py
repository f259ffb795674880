"""Cohere's side of chat: https://docs.cohere.com/reference/chat-stream."""

import json
from typing import Any, ClassVar

import msgspec

from loomgate.providers.dialect import HttpCall
from loomgate.wire.chat import Chat, ChatMessage, ContentPart, FunctionTool, ToolCall, Usage
from tests.providers.conformance.suite import KEY, Answer

_ERRORS: dict[str, tuple[int, str]] = {
    "invalid": (400, "invalid request: message must be at least 1 token long or tool results must be specified."),
    "auth": (401, "invalid api token"),
    "rate_limit": (429, "You are past the per minute request limit, please wait and try again later."),
    "server": (500, "internal server error, this has been reported to our developers."),
    "overloaded": (503, "The service is currently unavailable."),
}
_FINISH = {"stop": "COMPLETE", "length": "MAX_TOKENS", "tool_calls": "TOOL_CALL"}


def event(kind: str, **members: Any) -> bytes:
    """One event of a stream."""
    data = json.dumps({"type": kind, **members}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()


def message(**members: Any) -> dict[str, Any]:
    """The delta of most events."""
    return {"message": members}


def _usage(told: Usage) -> dict[str, Any]:
    return {
        "billed_units": {"input_tokens": 3, "output_tokens": 1},
        "tokens": {"input_tokens": told.prompt_tokens, "output_tokens": told.completion_tokens},
        "cached_tokens": told.cached_tokens,
    }


class CohereWire:
    """Cohere's own endpoint, version 2."""

    name = "cohere"
    vendor = "cohere"
    model = "command-a-03-2025"
    content_type = "text/event-stream"
    why: ClassVar = {
        "refusal": "Cohere has no refusals: the model's words are text",
        "content_filter": "an answer that is blocked is an error",
        "reasoning_usage": "Cohere counts thoughts as output and does not tell them apart",
        "retry_after": "Cohere does not say how long to wait",
        "reasoning_effort": "thinking is on or off",
        "tool_choice_named": "only the named tool is sent, and one must be called",
        "parallel_tool_calls": "Cohere has no field for it",
    }
    lacks = frozenset(why)

    def _events(self, answer: Answer) -> list[bytes]:
        start = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
        events = [event("message-start", id="29f14a5a-11de-4cae-9800-25e4747408ea", delta={"message": start})]
        block = 0
        if answer.thinking is not None:
            content = {"type": "thinking", "thinking": ""}
            events.append(event("content-start", index=block, delta=message(content=content)))
            thought = {"thinking": answer.thinking}
            events.append(event("content-delta", index=block, delta=message(content=thought)))
            events.append(event("content-end", index=block))
            block += 1
        if answer.calls:
            events.append(event("tool-plan-delta", delta=message(tool_plan="I will use a tool.")))
        if answer.text:
            events.append(event("content-start", index=block, delta=message(content={"type": "text", "text": ""})))
            events += [event("content-delta", index=block, delta=message(content={"text": t})) for t in answer.text]
            events.append(event("content-end", index=block))
        for index, (name, arguments) in enumerate(answer.calls):
            called = {"id": f"{name}_{index}x7fk", "type": "function", "function": {"name": name, "arguments": ""}}
            events.append(event("tool-call-start", index=index, delta=message(tool_calls=called)))
            for at in range(0, len(arguments), 7):
                piece = {"function": {"arguments": arguments[at : at + 7]}}
                events.append(event("tool-call-delta", index=index, delta=message(tool_calls=piece)))
            events.append(event("tool-call-end", index=index))
        end: dict[str, Any] = {"finish_reason": _FINISH[answer.finish]}
        if answer.usage is not None:
            end["usage"] = _usage(answer.usage)
        events.append(event("message-end", delta=end))
        return events

    def stream(self, answer: Answer) -> bytes:
        return b"".join(self._events(answer)) + b"data: [DONE]\n\n"

    def whole(self, answer: Answer) -> bytes:
        content: list[dict[str, Any]] = []
        if answer.thinking is not None:
            content.append({"type": "thinking", "thinking": answer.thinking})
        if answer.text:
            content.append({"type": "text", "text": "".join(answer.text)})
        said: dict[str, Any] = {"role": "assistant", "content": content}
        if answer.calls:
            said["tool_plan"] = "I will use a tool."
            said["tool_calls"] = [
                {"id": f"{name}_{index}x7fk", "type": "function", "function": {"name": name, "arguments": arguments}}
                for index, (name, arguments) in enumerate(answer.calls)
            ]
        told: dict[str, Any] = {
            "id": "29f14a5a-11de-4cae-9800-25e4747408ea",
            "finish_reason": _FINISH[answer.finish],
            "message": said,
        }
        if answer.usage is not None:
            told["usage"] = _usage(answer.usage)
        return json.dumps(told, ensure_ascii=False).encode()

    def error(self, kind: str) -> tuple[int, dict[str, str], bytes]:
        status, said = _ERRORS[kind]
        body = {"id": "1a2b3c4d-0000-4000-8000-000000000000", "message": said}
        return status, {"content-type": "application/json"}, json.dumps(body).encode()

    def cut(self, answer: Answer) -> bytes:
        return b"".join(self._events(answer)[:3]) + self._events(answer)[3][:40]

    def malformed(self) -> bytes:
        return b"event: message-start\ndata: {nonsense}\n\n"

    def midstream_error(self) -> bytes | None:
        end = {"finish_reason": "ERROR", "error": "The generation failed.", "usage": {}}
        return b"".join([*self._events(Answer(text=["Half"]))[:4], event("message-end", delta=end)])

    def told(self, call: HttpCall) -> Chat:
        assert call.url == "https://api.cohere.ai/v2/chat"
        assert call.headers["Authorization"] == f"Bearer {KEY}"
        body = json.loads(call.body)
        stream = body.pop("stream", False)
        assert (call.headers["Accept"] == "text/event-stream") is stream
        strict = body.pop("strict_tools", None)
        form = body.pop("response_format", None)
        if form is not None and "json_schema" in form:
            form = {"type": "json_schema", "json_schema": {"schema": form["json_schema"]}}
        choice = body.pop("tool_choice", None)
        tools = [FunctionTool(**tool["function"], strict=strict) for tool in body.pop("tools", [])]
        read = Chat(
            model=body.pop("model"),
            messages=[_read(said) for said in body.pop("messages")],
            tools=tools,
            tool_choice={None: None, "NONE": "none", "REQUIRED": "required"}[choice],
            response_format=form,
            temperature=body.pop("temperature", None),
            top_p=body.pop("p", None),
            max_completion_tokens=body.pop("max_tokens", None),
            stop=body.pop("stop_sequences", []),
            stream=stream,
        )
        assert not body, f"fields that the vendor does not have: {sorted(body)}"
        return read


def _read(said: dict[str, Any]) -> ChatMessage:
    content = said.get("content")
    if said["role"] == "assistant":
        assert "content" in said or "tool_calls" in said
        content = said.get("tool_plan", content)
    else:
        assert content is not None
    return ChatMessage(
        role=said["role"],
        content=msgspec.convert(content, list[ContentPart]) if isinstance(content, list) else content,
        tool_calls=[
            ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in said.get("tool_calls", [])
        ],
        tool_call_id=said.get("tool_call_id"),
    )


WIRE = CohereWire()
