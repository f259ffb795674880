"""Oracle's Generative AI inference: the generic chat format of OCI.

What must live here: this wire format. What must not: OCI's signature (``oci``), and its format for Cohere's models.
"""

from collections.abc import Iterator
from typing import Any

from loomgate.errors import ProviderError
from loomgate.providers.dialect import Target
from loomgate.providers.own.plain import Json, OwnDialect, WholeDecoder, given, several, within
from loomgate.providers.own.plain import text as piece
from loomgate.providers.parts import own_words
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Chunk,
    Finish,
    FinishReason,
    FunctionTool,
    ImagePart,
    NamedFunction,
    RedactedThinkingPart,
    TextPart,
    ThinkingPart,
    ToolCallDelta,
    Usage,
)
from loomgate.wire.ids import new_id

_ROLES = {"developer": "SYSTEM", "system": "SYSTEM", "user": "USER", "assistant": "ASSISTANT", "tool": "TOOL"}


def _content(message: ChatMessage) -> list[Json]:
    content = message.content
    if content is None or isinstance(content, str):
        words = content or message.refusal
        return [{"type": "TEXT", "text": words}] if words else []
    made: list[Json] = []
    for part in content:
        if isinstance(part, TextPart):
            made.append({"type": "TEXT", "text": part.text})
        elif isinstance(part, ImagePart):
            image = part.image_url
            made.append({"type": "IMAGE", "imageUrl": {"url": image.url, "detail": image.detail.upper()}})
        elif not isinstance(part, ThinkingPart | RedactedThinkingPart):
            raise ProviderError("invalid", "messages: expected texts and images, since Oracle takes nothing else here.")
    return made


def _message(message: ChatMessage) -> Json:
    made: Json = {"role": _ROLES[message.role], "content": _content(message)}
    if message.tool_calls:
        made["toolCalls"] = [
            {"id": call.id, "type": "FUNCTION", "name": call.name, "arguments": call.arguments}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        made["toolCallId"] = message.tool_call_id
    return made


def _tool(tool: FunctionTool) -> Json:
    return {
        "type": "FUNCTION",
        "name": tool.name,
        **given(description=tool.description),
        "parameters": tool.parameters or {"type": "object", "properties": {}},
    }


def _choice(call: Chat) -> Json | None:
    if isinstance(call.tool_choice, NamedFunction):
        return {"type": "FUNCTION", "name": call.tool_choice.name}
    return {"type": call.tool_choice.upper()} if call.tool_choice is not None and call.tools else None


def _format(call: Chat) -> Json | None:
    asked = call.response_format or {"type": "text"}
    if asked["type"] == "json_object":
        return {"type": "JSON_OBJECT"}
    if asked["type"] == "json_schema":
        schema = asked["json_schema"]
        named = given(name=schema.get("name"), schema=schema.get("schema"), isStrict=schema.get("strict"))
        return {"type": "JSON_SCHEMA", "jsonSchema": named}
    return None


_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "completed": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}


class _Answer(WholeDecoder):
    """Both answers: ``chatResponse`` whole, and one choice an event."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[str, int] = {}
        self._last = 0

    def told(self, found: Any) -> Iterator[Chunk]:
        whole = "chatResponse" in found
        if "code" in found and "message" in found and isinstance(found["message"], str):
            raise ProviderError("server", found["message"][:2000])  # an error within the stream
        self.model = found.get("modelId") or self.model
        answer = found["chatResponse"] if whole else found
        if usage := answer.get("usage"):
            self.usage = Usage(int(usage.get("promptTokens", 0)), int(usage.get("completionTokens", 0)))
        choice = answer["choices"][0] if whole else found
        message = within(choice, "message")
        for part in several(message, "content"):
            if part.get("type") == "TEXT":
                yield from piece(part.get("text"))
        for call in several(message, "toolCalls"):
            yield self._call(call)
        if reason := choice.get("finishReason"):
            self.reason = str(reason)
        if whole:
            self.reason = self.reason or "stop"
            yield self.finish()

    def finish(self) -> Finish:
        reason = _REASONS.get((self.reason or "").lower(), "stop")
        return Finish("tool_calls" if self._calls and reason == "stop" else reason, self.usage, self.reason)

    def _call(self, call: Any) -> Chunk:
        """A call, or more of the last one's arguments: only its first piece has a name."""
        said = call.get("arguments") or ""
        if not call.get("name"):
            if not self._calls:
                raise KeyError("name")
            return ToolCallDelta(self._calls.get(call.get("id"), self._last), arguments=said)
        id = call.get("id") or new_id("call")
        self._last = self._calls[id] = len(self._calls)
        return ToolCallDelta(self._last, id, call["name"], said)


class Oracle(OwnDialect):
    """The `Dialect` of ``/actions/chat`` with ``apiFormat`` GENERIC."""

    answer = _Answer

    def asked(self, call: Chat, target: Target) -> tuple[str, Json]:
        """The address and body for ``call``. Raises `ProviderError` ``invalid`` without a compartment."""
        more = own_words(call, "Oracle")
        compartment = target.options.get("oracle_compartment_id")
        if not compartment:
            raise ProviderError("invalid", "The provider 'oracle' needs oracle_compartment_id, which is not given.")
        if call.model.startswith("cohere."):
            raise ProviderError("model_not_found", "Cohere's models on Oracle have a format that is not supported.")
        serving = str(target.options.get("oracle_serving_mode") or "ON_DEMAND").upper()
        asked: Json = {
            "apiFormat": "GENERIC",
            "messages": [_message(message) for message in call.messages],
            "isStream": call.stream,
            **({"streamOptions": {"isIncludeUsage": True}} if call.stream else {}),
            **given(
                maxTokens=call.max_completion_tokens,
                temperature=call.temperature,
                topP=call.top_p,
                topK=call.top_k,
                seed=call.seed,
                frequencyPenalty=call.frequency_penalty,
                presencePenalty=call.presence_penalty,
                logitBias=call.logit_bias,
                stop=call.stop,
                tools=[_tool(tool) for tool in call.tools],
                toolChoice=_choice(call),
                responseFormat=_format(call),
                isParallelToolCalls=call.parallel_tool_calls if call.tools else None,
                reasoningEffort=call.reasoning_effort.upper() if call.reasoning_effort else None,
            ),
            **more,
        }
        body = {
            "compartmentId": compartment,
            "servingMode": {"servingType": serving, "endpointId" if serving == "DEDICATED" else "modelId": call.model},
            "chatRequest": asked,
        }
        return target.endpoint_url("chat", call.model), body
