"""Bedrock's side of ConverseStream: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html."""

import itertools
import json
import struct
import zlib
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

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

_ERRORS: dict[str, tuple[int, str, str]] = {
    "invalid": (400, "ValidationException", "The text field in the ContentBlock object at messages.0 is blank."),
    "auth": (403, "UnrecognizedClientException", "The security token included in the request is invalid."),
    "rate_limit": (429, "ThrottlingException", "Too many requests, please wait before trying again."),
    "server": (500, "InternalServerException", "The system encountered an unexpected error during processing."),
    "overloaded": (503, "ServiceUnavailableException", "Bedrock is unable to process your request."),
}
_STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "content_filtered"}


def frame(headers: dict[str, str], payload: dict[str, Any]) -> bytes:
    """One message of an event stream; all of Bedrock's headers are text."""
    head = b""
    for name, value in headers.items():
        head += bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    body = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
    prelude = struct.pack(">II", 16 + len(head) + len(body), len(head))
    whole = prelude + struct.pack(">I", zlib.crc32(prelude)) + head + body
    return whole + struct.pack(">I", zlib.crc32(whole))


def event(kind: str, payload: dict[str, Any]) -> bytes:
    """An event; "p" is the padding that Bedrock adds against guesses by length."""
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return frame(headers, {**payload, "p": "abcdefghijklmnopqrstuvwxyzABCD"})


def exception(kind: str, message: str) -> bytes:
    """An exception within a stream."""
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return frame(headers, {"message": message})


def _usage(told: Usage) -> dict[str, int]:
    usage = {
        "inputTokens": told.prompt_tokens - told.cached_tokens,
        "outputTokens": told.completion_tokens,
        "totalTokens": told.prompt_tokens + told.completion_tokens,
    }
    if told.cached_tokens:
        usage |= {"cacheReadInputTokens": told.cached_tokens, "cacheWriteInputTokens": 0}
    return usage


class BedrockWire:
    """Claude on Bedrock, with a Bedrock API key."""

    name = "bedrock"
    vendor = "bedrock"
    model = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
    content_type = "application/vnd.amazon.eventstream"
    why: ClassVar = {
        "refusal": "Converse has no refusals: the model's words are text",
        "reasoning_usage": "Converse counts thoughts as output and does not tell them apart",
        "retry_after": "Bedrock does not say how long to wait",
        "json_object": "Converse has only formats with a schema; JSON mode is asked for in the system prompt",
        "image_url": "Converse takes the bytes of images only",
        "tool_choice_none": "Converse cannot forbid tools: none are sent",
        "parallel_tool_calls": "Converse has no field for it",
    }
    lacks = frozenset(why)

    def _events(self, answer: Answer) -> list[bytes]:
        events = [event("messageStart", {"role": "assistant"})]
        block = 0
        if answer.thinking is not None:
            for delta in ({"text": answer.thinking}, {"signature": "EqQBCgIYAhIkAQ=="}):
                events.append(
                    event("contentBlockDelta", {"contentBlockIndex": block, "delta": {"reasoningContent": delta}})
                )
            events.append(event("contentBlockStop", {"contentBlockIndex": block}))
            block += 1
        if answer.text:
            for text in answer.text:
                events.append(event("contentBlockDelta", {"contentBlockIndex": block, "delta": {"text": text}}))
            events.append(event("contentBlockStop", {"contentBlockIndex": block}))
            block += 1
        for number, (name, arguments) in enumerate(answer.calls):
            start = {"toolUse": {"toolUseId": f"tooluse_{number}kSPFTLVTJFWy", "name": name}}
            events.append(event("contentBlockStart", {"contentBlockIndex": block, "start": start}))
            sent = "" if arguments == "{}" else arguments  # without arguments, Bedrock sends at most an empty piece
            for at in range(0, max(1, len(sent)), 6):
                delta = {"toolUse": {"input": sent[at : at + 6]}}
                events.append(event("contentBlockDelta", {"contentBlockIndex": block, "delta": delta}))
            events.append(event("contentBlockStop", {"contentBlockIndex": block}))
            block += 1
        events.append(event("messageStop", {"stopReason": _STOP[answer.finish]}))
        if answer.usage is not None:
            events.append(event("metadata", {"usage": _usage(answer.usage), "metrics": {"latencyMs": 551}}))
        return events

    def stream(self, answer: Answer) -> bytes:
        return b"".join(self._events(answer))

    def whole(self, answer: Answer) -> bytes:
        content: list[dict[str, Any]] = []
        if answer.thinking is not None:
            thought = {"text": answer.thinking, "signature": "EqQBCgIYAhIkAQ=="}
            content.append({"reasoningContent": {"reasoningText": thought}})
        if answer.text:
            content.append({"text": "".join(answer.text)})
        for number, (name, arguments) in enumerate(answer.calls):
            made = {"toolUseId": f"tooluse_{number}kSPFTLVTJFWy", "name": name, "input": json.loads(arguments)}
            content.append({"toolUse": made})
        told: dict[str, Any] = {
            "metrics": {"latencyMs": 551},
            "output": {"message": {"content": content, "role": "assistant"}},
            "stopReason": _STOP[answer.finish],
        }
        if answer.usage is not None:
            told["usage"] = _usage(answer.usage)
        return json.dumps(told, ensure_ascii=False).encode()

    def error(self, kind: str) -> tuple[int, dict[str, str], bytes]:
        status, name, message = _ERRORS[kind]
        headers = {"content-type": "application/json", "x-amzn-errortype": f"{name}:http://internal.amazon.com/coral/"}
        return status, headers, json.dumps({"message": message}).encode()

    def cut(self, answer: Answer) -> bytes:
        return b"".join(self._events(answer)[:2]) + self._events(answer)[2][:20]

    def malformed(self) -> bytes:
        return b'{"output":{"message":{"role":"assistant","content":[]}}}'

    def midstream_error(self) -> bytes | None:
        failed = exception("modelStreamErrorException", "The system encountered an unexpected error. Try again.")
        return b"".join(self._events(Answer(text=["Half"]))[:2]) + failed

    def told(self, call: HttpCall) -> Chat:
        empty, segment, model, verb = urlsplit(call.url).path.split("/")
        stream = verb == "converse-stream"
        assert (empty, segment, verb) == ("", "model", "converse-stream" if stream else "converse")
        assert call.headers["Accept"] == ("application/vnd.amazon.eventstream" if stream else "application/json")
        assert call.headers["Content-Type"] == "application/json"
        assert call.headers["Authorization"].startswith("Bearer ")
        body = json.loads(call.body)
        system = [ChatMessage(role="system", content=_text(block)) for block in body.pop("system", [])]
        messages: list[ChatMessage] = []
        turns = ["assistant"]
        for message in body.pop("messages"):
            assert message.keys() == {"role", "content"}
            assert message["content"]
            turns.append(message["role"])
            messages += _read(message)
        assert all({a, b} == {"user", "assistant"} for a, b in itertools.pairwise(turns)), turns
        assert turns[-1] == "user"
        tools, choice = _tools(body.pop("toolConfig", None))
        inference = body.pop("inferenceConfig", {})
        output = body.pop("outputConfig", {})
        form = output.pop("textFormat", None)
        if form is not None:
            assert form["type"] == "json_schema"
            schema = form["structure"]["jsonSchema"]
            assert schema.keys() <= {"schema", "name", "description"}
            form = {"type": "json_schema", "json_schema": {**schema, "schema": json.loads(schema["schema"])}}
        read = Chat(
            model=unquote(model),
            messages=[*system, *messages],
            tools=tools,
            tool_choice=choice,
            response_format=form,
            temperature=inference.pop("temperature", None),
            top_p=inference.pop("topP", None),
            max_completion_tokens=inference.pop("maxTokens", None),
            stop=inference.pop("stopSequences", []),
            reasoning_effort=output.pop("effort", None),
            stream=stream,
        )
        assert [*body, *inference, *output] == [], "fields that the vendor does not have"
        return read


def _text(block: dict[str, Any]) -> str:
    assert block.keys() == {"text"}
    assert block["text"].strip(), "Bedrock refuses blank texts"
    return block["text"]


def _read(message: dict[str, Any]) -> list[ChatMessage]:
    parts: list[ContentPart] = []
    calls: list[ToolCall] = []
    results: list[ChatMessage] = []
    for block in message["content"]:
        ((kind, value),) = block.items()
        if kind == "toolUse":
            assert isinstance(value["input"], dict)
            calls.append(ToolCall(value["toolUseId"], value["name"], json.dumps(value["input"])))
        elif kind == "toolResult":
            content = "".join(_text(inner) for inner in value["content"])
            results.append(ChatMessage(role="tool", content=content, tool_call_id=value["toolUseId"]))
        elif kind == "image":
            data = value["source"]["bytes"]
            parts.append(ImagePart(ImageUrl(f"data:image/{value['format']};base64,{data}")))
        else:
            parts.append(TextPart(_text(block)))
    if parts or calls:
        results.append(ChatMessage(role=message["role"], content=parts or None, tool_calls=calls))
    return results


def _tools(config: dict[str, Any] | None) -> tuple[list[FunctionTool], Any]:
    if config is None:
        return [], None
    tools = [
        FunctionTool(
            name=tool["toolSpec"]["name"],
            description=tool["toolSpec"].get("description"),
            parameters=tool["toolSpec"]["inputSchema"]["json"],
            strict=tool["toolSpec"].get("strict"),
        )
        for tool in config["tools"]
    ]
    ((kind, choice),) = config.get("toolChoice", {"auto": {}}).items()
    if kind == "tool":
        return tools, NamedFunction(choice["name"])
    return tools, {"auto": "auto", "any": "required"}[kind]


WIRE = BedrockWire()
