"""OpenAI's side of chat completions: https://platform.openai.com/docs/api-reference/chat."""

import json
from typing import Any, ClassVar

import msgspec

from loomgate.providers.dialect import HttpCall
from loomgate.wire.chat import Chat, ChatMessage, ContentPart, FunctionTool, NamedFunction, ToolCall, Usage
from tests.providers.conformance.suite import KEY, Answer

_FRAME = {
    "id": "chatcmpl-BwConformance00000000000000000",
    "object": "chat.completion.chunk",
    "created": 1763640000,
    "model": "gpt-4o-2024-08-06",
    "service_tier": "default",
    "system_fingerprint": "fp_07871e2ad8",
}
_ERRORS: dict[str, tuple[int, dict[str, str], dict[str, Any]]] = {
    "invalid": (
        400,
        {},
        {"message": "Invalid value: 'x'.", "type": "invalid_request_error", "param": "messages[0]", "code": None},
    ),
    "auth": (
        401,
        {},
        {
            "message": "Incorrect API key provided: sk-conf*****cdef.",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        },
    ),
    "rate_limit": (
        429,
        {"retry-after": "7"},
        {
            "message": "Rate limit reached for gpt-4o on requests per min.",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        },
    ),
    "server": (
        500,
        {},
        {"message": "The server had an error.", "type": "server_error", "param": None, "code": None},
    ),
    "overloaded": (
        503,
        {},
        {"message": "The engine is currently overloaded.", "type": "server_error", "param": None, "code": None},
    ),
}


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return _event({**_FRAME, "choices": [choice], "usage": None})


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


class OpenAIWire:
    """The original."""

    name = "openai"
    vendor = "openai"
    model = "gpt-4o"
    content_type = "text/event-stream; charset=utf-8"
    why: ClassVar = {"thinking": "chat completions do not tell thoughts"}
    lacks = frozenset(why)

    def _events(self, answer: Answer) -> list[bytes]:
        events = [_chunk({"role": "assistant", "content": None if answer.calls else "", "refusal": None})]
        events += [_chunk({"content": text}) for text in answer.text]
        if answer.refusal is not None:
            events += [_chunk({"refusal": part}) for part in (answer.refusal[:4], answer.refusal[4:])]
        for index, (name, arguments) in enumerate(answer.calls):
            begun = {"index": index, "id": f"call_{index}", "type": "function"}
            events.append(_chunk({"tool_calls": [{**begun, "function": {"name": name, "arguments": ""}}]}))
            for at in range(0, len(arguments), 5):
                piece = {"index": index, "function": {"arguments": arguments[at : at + 5]}}
                events.append(_chunk({"tool_calls": [piece]}))
        events.append(_chunk({}, answer.finish))
        if answer.usage is not None:
            events.append(_event({**_FRAME, "choices": [], "usage": _usage(answer.usage)}))
        return events

    def stream(self, answer: Answer) -> bytes:
        return b"".join(self._events(answer)) + b"data: [DONE]\n\n"

    def whole(self, answer: Answer) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.text) or None}
        message |= {"refusal": answer.refusal, "annotations": []}
        if answer.calls:
            message["tool_calls"] = [
                {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
                for index, (name, arguments) in enumerate(answer.calls)
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
        told = {**_FRAME, "object": "chat.completion", "choices": [choice]}
        if answer.usage is not None:
            told["usage"] = _usage(answer.usage)
        return json.dumps(told, ensure_ascii=False).encode()

    def error(self, kind: str) -> tuple[int, dict[str, str], bytes]:
        status, headers, error = _ERRORS[kind]
        return status, {"content-type": "application/json", **headers}, json.dumps({"error": error}).encode()

    def cut(self, answer: Answer) -> bytes:
        return b"".join(self._events(answer)[:2]) + b'data: {"id":"chatcmpl-Bw'

    def malformed(self) -> bytes:
        return b"data: {choices: nonsense}\n\n"

    def midstream_error(self) -> bytes | None:
        error = _event({"error": _ERRORS["server"][2]})
        return b"".join([*self._events(Answer(text=["Half"]))[:2], error])

    def told(self, call: HttpCall) -> Chat:
        assert call.url == "https://api.openai.com/v1/chat/completions"
        assert call.headers["Authorization"] == f"Bearer {KEY}"
        body = json.loads(call.body)
        stream = body.pop("stream", False)
        assert body.pop("stream_options", None) == ({"include_usage": True} if stream else None)
        assert (call.headers["Accept"] == "text/event-stream") is stream
        choice = body.pop("tool_choice", None)
        read = Chat(
            model=body.pop("model"),
            messages=[_read(message) for message in body.pop("messages")],
            tools=[FunctionTool(**tool["function"]) for tool in body.pop("tools", [])],
            tool_choice=NamedFunction(choice["function"]["name"]) if isinstance(choice, dict) else choice,
            parallel_tool_calls=body.pop("parallel_tool_calls", None),
            response_format=body.pop("response_format", None),
            temperature=body.pop("temperature", None),
            top_p=body.pop("top_p", None),
            max_completion_tokens=body.pop("max_completion_tokens", None),
            reasoning_effort=body.pop("reasoning_effort", None),
            stop=body.pop("stop", []),
            stream=stream,
        )
        assert not body, f"fields that the vendor does not have: {sorted(body)}"
        return read


def _read(message: dict[str, Any]) -> ChatMessage:
    content = message.get("content")
    return ChatMessage(
        role=message["role"],
        content=msgspec.convert(content, list[ContentPart]) if isinstance(content, list) else content,
        refusal=message.get("refusal"),
        tool_calls=[
            ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls", [])
        ],
        tool_call_id=message.get("tool_call_id"),
    )


WIRE = OpenAIWire()
