"""Google's side of ``streamGenerateContent``: https://ai.google.dev/api/generate-content.

Its JSON is that of protocol buffers: members that nobody set are absent. Lines end in CRLF, as Google sends them.
"""

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
from tests.providers.conformance.suite import Answer

_FINISH = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
_MODES = {"AUTO": "auto", "ANY": "required", "NONE": "none"}
_EFFORTS = {1024: "low", 8192: "medium", 24576: "high"}
_HELP = {"@type": "type.googleapis.com/google.rpc.Help", "links": [{"description": "Learn more", "url": "https://x"}]}
_ERRORS: dict[str, dict[str, Any]] = {
    "invalid": {
        "code": 400,
        "message": "* GenerateContentRequest.contents: contents is not specified\n",
        "status": "INVALID_ARGUMENT",
    },
    "auth": {
        "code": 400,
        "message": "API key not valid. Please pass a valid API key.",
        "status": "INVALID_ARGUMENT",
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "API_KEY_INVALID",
                "domain": "googleapis.com",
                "metadata": {"service": "generativelanguage.googleapis.com"},
            },
            {
                "@type": "type.googleapis.com/google.rpc.LocalizedMessage",
                "locale": "en-US",
                "message": "API key not valid. Please pass a valid API key.",
            },
        ],
    },
    "rate_limit": {
        "code": 429,
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [
            _HELP,
            {
                "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                "violations": [
                    {
                        "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
                        "quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
                        "quotaDimensions": {"location": "global", "model": "gemini-2.5-flash"},
                        "quotaValue": "10",
                    }
                ],
            },
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"},
        ],
    },
    "server": {"code": 500, "message": "An internal error has occurred.", "status": "INTERNAL"},
    "overloaded": {
        "code": 503,
        "message": "The model is overloaded. Please try again later.",
        "status": "UNAVAILABLE",
    },
}


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\r\n\r\n"


def _counts(usage: Usage) -> dict[str, Any]:
    counts = {
        "promptTokenCount": usage.prompt_tokens,
        "candidatesTokenCount": usage.completion_tokens - usage.reasoning_tokens,
        "totalTokenCount": usage.prompt_tokens + usage.completion_tokens,
        "cachedContentTokenCount": usage.cached_tokens,
        "thoughtsTokenCount": usage.reasoning_tokens,
    }
    told: dict[str, Any] = {name: count for name, count in counts.items() if count}
    return {**told, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": usage.prompt_tokens}]}


class GeminiWire:
    """The Gemini API."""

    name = "gemini"
    vendor = "google"
    model = "gemini-2.5-flash"
    api_key = "AIzaSyConformance0123456789abcdefghijklm"
    content_type = "text/event-stream"
    why: ClassVar = {
        "refusal": "a refusal is text, or a finish reason",
        "parallel_tool_calls": "there is no such switch; the run engine takes the first of several calls",
    }
    lacks = frozenset(why)
    _address = f"https://generativelanguage.googleapis.com/v1beta/models/{model}"

    def _chunk(self, parts: list[dict[str, Any]], usage: Usage | None, reason: str | None = None) -> bytes:
        candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}} if parts else {}
        if reason is not None:
            candidate["finishReason"] = reason
        candidate["index"] = 0
        told: dict[str, Any] = {"candidates": [candidate]}
        if usage is not None:
            told["usageMetadata"] = _counts(usage)
        return _event({**told, "modelVersion": self.model, "responseId": "Zt4eacyxJ5-vz7IPqZ_XwAQ"})

    def _events(self, answer: Answer) -> list[bytes]:
        usage = answer.usage
        # While it is under way, only the prompt is counted.
        so_far = None if usage is None else Usage(usage.prompt_tokens, 0, usage.cached_tokens)
        events: list[bytes] = []
        if answer.thinking is not None:
            events.append(self._chunk([{"text": answer.thinking, "thought": True}], so_far))
        events += [self._chunk([{"text": text}], so_far) for text in answer.text]
        calls: list[dict[str, Any]] = []
        for index, (name, arguments) in enumerate(answer.calls):
            part: dict[str, Any] = {"functionCall": {"name": name, "args": json.loads(arguments)}}
            if index == 0:
                part["thoughtSignature"] = "CiQB0e2Kb1Yc0hZ0Zg=="
            calls.append(part)
        if calls:
            events += [self._chunk(calls[:2], so_far), *(self._chunk([part], so_far) for part in calls[2:])]
        # A signature without a call comes with an empty text, at the end.
        last = [] if calls else [{"text": "", "thoughtSignature": "CiQB0e2Kb1Yc0hZ0Zg=="}]
        events.append(self._chunk(last, usage, _FINISH[answer.finish]))
        return events

    def whole(self, answer: Answer) -> bytes:
        parts: list[dict[str, Any]] = []
        if answer.thinking is not None:
            parts.append({"text": answer.thinking, "thought": True})
        if answer.text:
            parts.append({"text": "".join(answer.text)})
        for index, (name, arguments) in enumerate(answer.calls):
            part: dict[str, Any] = {"functionCall": {"name": name, "args": json.loads(arguments)}}
            parts.append({**part, "thoughtSignature": "CiQB0e2Kb1Yc0hZ0Zg=="} if index == 0 else part)
        content = {"role": "model", **({"parts": parts} if parts else {})}
        candidate = {"content": content, "finishReason": _FINISH[answer.finish], "index": 0}
        told: dict[str, Any] = {"candidates": [candidate]}
        if answer.usage is not None:
            told["usageMetadata"] = _counts(answer.usage)
        told |= {"modelVersion": self.model, "responseId": "Zt4eacyxJ5-vz7IPqZ_XwAQ"}
        return json.dumps(told, ensure_ascii=False, indent=2).encode()

    def stream(self, answer: Answer) -> bytes:
        return b"".join(self._events(answer))

    def error(self, kind: str) -> tuple[int, dict[str, str], bytes]:
        error = _ERRORS[kind]
        body = json.dumps({"error": error}, indent=2).encode()
        return error["code"], {"content-type": "application/json; charset=UTF-8"}, body

    def cut(self, answer: Answer) -> bytes:
        return self._events(answer)[0] + b'data: {"candidates": [{"content": {"pa'

    def malformed(self) -> bytes:
        return b"data: {candidates: nonsense}\r\n\r\n"

    def midstream_error(self) -> bytes | None:
        return self._events(Answer(text=["Half"]))[0] + _event({"error": _ERRORS["overloaded"]})

    def _opened(self, call: HttpCall) -> bool:
        stream = call.headers["Accept"] == "text/event-stream"
        verb = ":streamGenerateContent?alt=sse" if stream else ":generateContent"
        assert call.url == self._address + verb
        assert call.headers["x-goog-api-key"] == self.api_key
        return stream

    def told(self, call: HttpCall) -> Chat:
        stream = self._opened(call)
        body = json.loads(call.body)
        assert body["contents"], "contents is not specified"
        messages: list[ChatMessage] = []
        if (system := body.pop("systemInstruction", None)) is not None:
            assert all(set(part) == {"text"} for part in system["parts"])
            messages.append(ChatMessage(role="system", content=[TextPart(part["text"]) for part in system["parts"]]))
        messages += _messages(body.pop("contents"))
        tools: list[FunctionTool] = []
        for tool in body.pop("tools", []):
            for declared in tool["functionDeclarations"]:
                assert set(declared) <= {"name", "description", "parametersJsonSchema"}
                parameters = declared.get("parametersJsonSchema")
                tools.append(
                    FunctionTool(name=declared["name"], description=declared.get("description"), parameters=parameters)
                )
        choice: Any = body.pop("toolConfig", {}).get("functionCallingConfig")
        if choice is not None:
            named = choice.get("allowedFunctionNames")
            assert named is None or (len(named) == 1 and choice["mode"] == "ANY")
            choice = NamedFunction(named[0]) if named else _MODES[choice["mode"]]
        config = body.pop("generationConfig", {})
        thinking = config.pop("thinkingConfig", {}).get("thinkingBudget")
        read = Chat(
            model=self.model,
            messages=messages,
            tools=tools,
            tool_choice=choice,
            response_format=_format(config),
            temperature=config.pop("temperature", None),
            top_p=config.pop("topP", None),
            max_completion_tokens=config.pop("maxOutputTokens", None),
            reasoning_effort=None if thinking is None else _EFFORTS[thinking],
            stop=config.pop("stopSequences", []),
            stream=stream,
        )
        assert not body, f"fields that the vendor does not have: {sorted(body)}"
        assert not config, f"fields that the vendor does not have: {sorted(config)}"
        return read


class VertexWire(GeminiWire):
    """Vertex AI with an API key; with a project and a token, see ``test_gemini``."""

    name = "vertex-ai"
    vendor = "vertex-ai"
    _address = f"https://aiplatform.googleapis.com/v1beta1/publishers/google/models/{GeminiWire.model}"


def _format(config: dict[str, Any]) -> dict[str, Any] | None:
    if "responseMimeType" not in config:
        assert "responseJsonSchema" not in config
        return None
    assert config.pop("responseMimeType") == "application/json"
    if (schema := config.pop("responseJsonSchema", None)) is None:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def _messages(contents: list[dict[str, Any]]) -> list[ChatMessage]:
    read: list[ChatMessage] = []
    calls: dict[str, str] = {}  # of the content before
    for content in contents:
        assert content["role"] in ("user", "model")
        assert content["parts"], "a content without parts"
        parts: list[ContentPart] = []
        made: list[ToolCall] = []
        answers: list[ChatMessage] = []
        for part in content["parts"]:
            found = dict(part)
            signature = found.pop("thoughtSignature", None)
            ((kind, value),) = found.items()
            assert (signature is not None) == (kind == "functionCall" and not made), "only a first call is signed"
            if kind == "functionCall":
                assert content["role"] == "model"
                made.append(ToolCall(value["id"], value["name"], json.dumps(value["args"])))
            elif kind == "functionResponse":
                assert content["role"] == "user"
                assert calls[value["id"]] == value["name"]
                assert set(value["response"]) == {"output"}
                answers.append(ChatMessage(role="tool", content=value["response"]["output"], tool_call_id=value["id"]))
            else:
                parts.append(_part(kind, value))
        if calls:
            assert len(answers) == len(calls), "the number of function responses is not that of the function calls"
        calls = {call.id: call.name for call in made}
        assert not (answers and parts)
        if answers:
            read += answers
        else:
            role = "assistant" if content["role"] == "model" else "user"
            read.append(ChatMessage(role=role, content=parts or None, tool_calls=made))
    return read


def _part(kind: str, value: Any) -> ContentPart:
    if kind == "text":
        assert value, "an empty text"
        return TextPart(value)
    if kind == "fileData":
        assert value["mimeType"].startswith("image/")
        return ImagePart(ImageUrl(value["fileUri"]))
    assert kind == "inlineData"
    return ImagePart(ImageUrl(f"data:{value['mimeType']};base64,{value['data']}"))


WIRES = [GeminiWire(), VertexWire()]
