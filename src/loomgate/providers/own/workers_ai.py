"""Cloudflare's Workers AI: the model is the address, answers are wrapped in ``result`` or come as events.

What must live here: this wire format. What must not: anything else.
"""

from collections.abc import Iterator
from typing import Any

from loomgate.errors import ProviderError
from loomgate.providers.dialect import Target
from loomgate.providers.own.plain import (
    Json,
    OwnDialect,
    WholeDecoder,
    encode,
    given,
    prompt_of,
    refusal,
    several,
    within,
)
from loomgate.providers.own.plain import text as piece
from loomgate.providers.parts import own_words, spoken
from loomgate.wire.chat import Chat, ChatMessage, Chunk, Finish, NamedFunction, ToolCallDelta, Usage
from loomgate.wire.ids import new_id


def _message(message: ChatMessage) -> Json:
    role = "system" if message.role == "developer" else message.role
    content = spoken(message.content) if isinstance(message.content, list) else message.content
    made: Json = {"role": role, "content": content or message.refusal or ""}
    if message.tool_calls:
        made["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        made["tool_call_id"] = message.tool_call_id
    return made


def _tools(call: Chat) -> list[Json]:
    """The tools; there is no other way to choose among them than to leave some out."""
    if call.tool_choice == "none":
        return []
    choice = call.tool_choice
    if choice == "required":
        raise ProviderError("invalid", "tool_choice: expected 'auto' or 'none', since Workers AI has no 'required'.")
    tools = [tool for tool in call.tools if not isinstance(choice, NamedFunction) or tool.name == choice.name]
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": tool.parameters or {"type": "object", "properties": {}},
            },
        }
        for tool in tools
    ]


def _tuned(call: Chat) -> Json:
    tuned = given(
        max_tokens=call.max_completion_tokens,
        temperature=call.temperature,
        top_p=call.top_p,
        top_k=call.top_k,
        seed=call.seed,
        frequency_penalty=call.frequency_penalty,
        presence_penalty=call.presence_penalty,
    )
    return {**tuned, **own_words(call, "Workers AI")}


class _Answer(WholeDecoder):
    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def told(self, found: Any) -> Iterator[Chunk]:
        whole = "result" in found
        if found.get("errors"):
            raise refusal(found, 500, None)
        result = found["result"] if whole else found
        if usage := result.get("usage"):
            details = within(usage, "prompt_tokens_details")
            self.usage = Usage(
                int(usage.get("prompt_tokens", 0)),
                int(usage.get("completion_tokens", 0)),
                int(details.get("cached_tokens", 0)),
            )
        said = result.get("response")
        if isinstance(said, dict):  # JSON mode gives the value itself
            said = encode(said).decode()
        elif isinstance(said, int | float):  # so does a text that looks like a number
            said = str(said)
        yield from piece(said)
        for call in several(result, "tool_calls"):
            yield self._call(call)
        if whole:
            result["response"] if said is None and not self._calls else None
            self.reason = "stop"
            yield self.finish()

    def finish(self) -> Finish:
        return Finish("tool_calls" if self._calls else "stop", self.usage)

    def _call(self, call: Any) -> Chunk:
        inner = call.get("function") or call
        arguments = inner.get("arguments")
        said = arguments if isinstance(arguments, str) else encode(arguments or {}).decode()
        index, self._calls = self._calls, self._calls + 1
        return ToolCallDelta(index, call.get("id") or new_id("call"), str(inner["name"]), said)


class WorkersAI(OwnDialect):
    """The `Dialect` of its chat models."""

    answer = _Answer

    def asked(self, call: Chat, target: Target) -> tuple[str, Json]:
        """The address and body for ``call``. Raises `ProviderError` ``invalid`` for what it has no word for."""
        if call.stop:
            raise ProviderError("invalid", "stop: expected nothing, since Workers AI has no such field.")
        body: Json = {"messages": [_message(message) for message in call.messages], **_tuned(call)}
        if tools := [*_tools(call), *call.vendor_tools]:
            body["tools"] = tools
        if call.response_format is not None and call.response_format.get("type") != "text":
            body["response_format"] = _format(call.response_format)
        return target.endpoint_url("chat", call.model), {**body, "stream": call.stream}


def _format(asked: Json) -> Json:
    """JSON mode; a schema stands there without the wrapping of OpenAI's."""
    if asked["type"] == "json_schema":
        return {"type": "json_schema", "json_schema": asked["json_schema"].get("schema") or {}}
    return asked


class WorkersAIPrompt(WorkersAI):
    """The `Dialect` of its completions."""

    def asked(self, call: Chat, target: Target) -> tuple[str, Json]:
        """The address and body of the streamed request for ``call``, whose messages are the text to continue."""
        body = {"prompt": prompt_of(call, "Workers AI"), **_tuned(call), "stream": call.stream}
        return target.endpoint_url("chat", call.model), body
