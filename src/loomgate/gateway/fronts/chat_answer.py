"""OpenAI's chat completions, as clients read them: whole, and as a stream.

What must live here: this format's answers (GATEWAY sections 10 and 11). What must not: its requests (``chat``).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import msgspec

from loomgate.gateway.fronts.collected import Block, Collected, collected
from loomgate.gateway.fronts.front import About
from loomgate.wire.chat import (
    Chunk,
    Extra,
    Finish,
    RedactedThinking,
    RefusalDelta,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)

Json = dict[str, Any]

_encode = msgspec.json.Encoder().encode


def usage_of(usage: Usage) -> Json:
    """Usage in OpenAI's shape (GATEWAY TR-17, but that the prompt includes what the cache had, as with OpenAI)."""
    told: Json = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
    if usage.cache_creation_tokens:  # dearer than others, so whoever reckons costs must know
        told["cache_read_input_tokens"] = usage.cached_tokens
        told["cache_creation_input_tokens"] = usage.cache_creation_tokens
    return told


def reason_of(finish: Finish, about: About) -> str:
    """The finish reason: OpenAI's, or with strict compliance off the vendor's own (GATEWAY FR-01, FR-02)."""
    reason = "function_call" if finish.reason == "tool_calls" and wants_functions(about) else finish.reason
    return reason if about.strict else finish.raw or reason


def wants_usage(about: About) -> bool | None:
    """Whether a stream's client asked for usage in a chunk of its own; None if it did not say."""
    options = about.asked.get("stream_options")
    found: object = cast(Json, options).get("include_usage") if isinstance(options, dict) else None
    return found if isinstance(found, bool) else None


def wants_functions(about: About) -> bool:
    """Whether the client asked with ``functions``, and so reads the one ``function_call`` that they had."""
    return bool(about.asked.get("functions"))


def _content_block(block: Block) -> Json | None:
    match block.kind:
        case "text":
            return {"type": "text", "text": block.text}
        case "thinking":
            signed = {"signature": block.signature} if block.signature is not None else {}
            return {"type": "thinking", "thinking": block.text, **signed}
        case "redacted_thinking":
            return {"type": "redacted_thinking", "data": block.text}
        case _:
            return None


def _signed(signature: str | None) -> Json:
    """Google's own place for the seal on the thoughts that led to a call."""
    return {} if signature is None else {"extra_content": {"google": {"thought_signature": signature}}}


def _message_of(found: Collected, about: About) -> Json:
    text, refusal = found.text("text"), found.text("refusal")
    message: Json = {"role": "assistant", "content": text, "refusal": refusal or None}
    if not text and (refusal or found.calls):
        message["content"] = None
    if found.calls and wants_functions(about):
        message["function_call"] = {"name": found.calls[0].name, "arguments": found.calls[0].text}
    elif found.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.text},
                **({} if about.strict else _signed(call.signature)),
            }
            for call in found.calls
        ]
    if not about.strict:
        message["content_blocks"] = [made for block in found.blocks if (made := _content_block(block)) is not None]
        if thought := found.text("thinking"):
            message["reasoning_content"] = thought
    return message


def frame(about: About, object: str) -> Json:
    """The members that OpenAI's answers begin with, and their chunks."""
    return {
        "id": about.id,
        "object": object,
        "created": about.created,
        "model": about.model,
        "provider": about.provider,
    }


class ChunkEncoder:
    """What the streams of OpenAI's completions share, chat's and the legacy ones: the frame of a chunk, and the end.

    ``object`` is what a chunk calls itself.
    """

    def __init__(self, about: About, object: str) -> None:
        self._about = about
        self._frame = _encode(frame(about, object))[:-1]
        self._own_usage = wants_usage(about)
        # OpenAI's chunks have a usage of null when one chunk will have it.
        self._null = b',"usage":null' if self._own_usage else b""

    def error(self, message: str, type: str, code: str | None) -> bytes:
        """One event with an ``error`` object, and no ``[DONE]``: half an answer is none (GATEWAY STM-07, STM-10)."""
        told = {"message": message, "type": type, "param": None, "code": code}
        return b"data: " + _encode({"error": told, "provider": self._about.provider}) + b"\n\n"

    def ended(self, choices: list[Json], usage: Json | None) -> bytes:
        """The last events: the finish reasons, and the usage as it was asked for."""
        last = b"data: " + self._frame + b',"choices":' + _encode(choices)
        if self._own_usage:
            own = b"data: " + self._frame + b',"choices":[],"usage":' + _encode(usage)
            return last + b',"usage":null}\n\n' + own + b"}\n\ndata: [DONE]\n\n"
        if usage is not None and self._own_usage is None:  # as the reference has it (GATEWAY STM-06)
            last += b',"usage":' + _encode(usage)
        return last + b"}\n\ndata: [DONE]\n\n"


class ChatEncoder(ChunkEncoder):
    """Writes one streamed answer as ``chat.completion.chunk`` events."""

    def __init__(self, about: About) -> None:
        super().__init__(about, "chat.completion.chunk")
        self._strict = about.strict
        self._head = b"data: " + self._frame + b',"choices":[{"index":0,"delta":'
        self._tail = b',"logprobs":null,"finish_reason":null}]' + self._null + b"}\n\n"
        self._begun = False
        self._functions = wants_functions(about)
        self._block = -1
        self._kind = ""

    def feed(self, chunk: Chunk) -> bytes:
        """The events that ``chunk`` makes; the last chunk is a `Finish`, after which comes ``[DONE]``."""
        written = _WRITERS[type(chunk)](self, chunk)
        if self._begun:
            return written
        self._begun = True
        return self._delta(b'{"role":"assistant","content":""}') + written

    def _delta(self, delta: bytes) -> bytes:
        return self._head + delta + self._tail

    def _blocks(self, kind: str, delta: bytes) -> bytes:
        """The member ``content_blocks`` (GATEWAY STR-02): blocks are numbered as they follow each other."""
        if kind != self._kind:
            self._kind, self._block = kind, self._block + 1
        return b'"content_blocks":[{"index":%d,"delta":%b}]' % (self._block, delta)

    def _text(self, chunk: TextDelta) -> bytes:
        text = _encode(chunk.text)
        if self._strict:
            return self._head + b'{"content":' + text + b"}" + self._tail
        return self._delta(b'{"content":%b,%b}' % (text, self._blocks("text", b'{"text":%b}' % text)))

    def _refusal(self, chunk: RefusalDelta) -> bytes:
        return self._delta(b'{"refusal":%b}' % _encode(chunk.text))

    def _thought(self, chunk: ThinkingDelta) -> bytes:
        if self._strict:
            return b""
        told: Json = {"thinking": chunk.text} if chunk.text or chunk.signature is None else {}
        if chunk.signature is not None:
            told["signature"] = chunk.signature
        blocks = self._blocks("thinking", _encode(told))
        if chunk.signature is not None:
            self._kind = ""  # another thought is another block
        if not chunk.text:
            return self._delta(b"{%b}" % blocks)
        return self._delta(b'{"reasoning_content":%b,%b}' % (_encode(chunk.text), blocks))

    def _redacted(self, chunk: RedactedThinking) -> bytes:
        if self._strict:
            return b""
        self._kind = ""
        return self._delta(b"{%b}" % self._blocks("redacted_thinking", _encode({"data": chunk.data})))

    def _call(self, chunk: ToolCallDelta) -> bytes:
        if self._functions:
            if chunk.index:  # there is room for one
                return b""
            named = {} if chunk.name is None else {"name": chunk.name}
            return self._delta(_encode({"function_call": {**named, "arguments": chunk.arguments}}))
        if chunk.name is None:
            return self._delta(
                b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (chunk.index, _encode(chunk.arguments))
            )
        self._kind = "call"
        self._block += 1
        called: Json = {
            "index": chunk.index,
            "id": chunk.id,
            "type": "function",
            "function": {"name": chunk.name, "arguments": chunk.arguments},
        }
        if not self._strict:
            called.update(_signed(chunk.signature))
        return self._delta(_encode({"tool_calls": [called]}))

    def _extra(self, chunk: Extra) -> bytes:
        if self._strict:
            return b""
        choice: Json = {"index": 0, "delta": {}, chunk.name: chunk.value, "logprobs": None, "finish_reason": None}
        return b"data: " + self._frame + b',"choices":' + _encode([choice]) + self._null + b"}\n\n"

    def _finish(self, chunk: Finish) -> bytes:
        choice: Json = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": reason_of(chunk, self._about)}
        return self.ended([choice], usage_of(chunk.usage) if chunk.usage is not None else None)

    def piece(self, index: int, delta: Json) -> bytes:
        """One event for choice ``index``."""
        choice: Json = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return b"data: " + self._frame + b',"choices":' + _encode([choice]) + self._null + b"}\n\n"


_WRITERS: dict[type[Any], Callable[[ChatEncoder, Any], bytes]] = {
    TextDelta: ChatEncoder._text,  # pyright: ignore[reportPrivateUsage] -- the class's own table of its methods
    RefusalDelta: ChatEncoder._refusal,  # pyright: ignore[reportPrivateUsage]
    ThinkingDelta: ChatEncoder._thought,  # pyright: ignore[reportPrivateUsage]
    RedactedThinking: ChatEncoder._redacted,  # pyright: ignore[reportPrivateUsage]
    ToolCallDelta: ChatEncoder._call,  # pyright: ignore[reportPrivateUsage]
    Extra: ChatEncoder._extra,  # pyright: ignore[reportPrivateUsage]
    Finish: ChatEncoder._finish,  # pyright: ignore[reportPrivateUsage]
}

_LONGEST_PIECE = 500  # characters (GATEWAY CCH-06)


def cut(text: str) -> Iterator[str]:
    """``text`` in pieces as a replayed stream has them (GATEWAY CCH-06)."""
    for at in range(0, len(text), _LONGEST_PIECE):
        yield text[at : at + _LONGEST_PIECE]


def completion(chunks: Iterable[Chunk], about: About) -> Json:
    """The ``chat.completion`` that ``chunks`` make."""
    found = collected(chunks)
    choice: Json = {
        "index": 0,
        "message": _message_of(found, about),
        "logprobs": None,
        "finish_reason": reason_of(found.finish, about),
    }
    if not about.strict:
        choice.update(found.extras)
    return whole(about, "chat.completion", choice, found.finish)


def whole(about: About, object: str, choice: Json, finish: Finish) -> Json:
    """An answer with one ``choice``, and the usage if it is known."""
    answer = {**frame(about, object), "choices": [choice]}
    if finish.usage is not None:
        answer["usage"] = usage_of(finish.usage)
    return answer


# --- replay --------------------------------------------------------------------------------------------------------


def replayed(answer: Json, about: About) -> bytes:
    """A whole ``chat.completion`` as the stream it might have been (GATEWAY CCH-06)."""
    encoder = ChatEncoder(about)
    choices = cast(list[Json], answer.get("choices") or [])
    events = [event for choice in choices for event in _replayed(choice, encoder)]
    last: list[Json] = [
        {
            "index": choice.get("index", 0),
            "delta": {},
            "logprobs": None,
            "finish_reason": choice.get("finish_reason") or "stop",
        }
        for choice in choices
    ]
    return b"".join(events) + encoder.ended(last, answer.get("usage"))


def _replayed(choice: Json, encoder: ChatEncoder) -> Iterator[bytes]:
    """The events of one choice but for its end."""
    index, message = choice.get("index", 0), cast(Json, choice.get("message") or {})
    yield encoder.piece(index, {"role": "assistant", "content": ""})
    for name in ("reasoning_content", "content", "refusal"):
        for text in cut(message.get(name) or ""):
            yield encoder.piece(index, {name: text})
    for place, block in enumerate(cast(list[Json], message.get("content_blocks") or [])):
        told = {name: value for name, value in block.items() if name != "type"}
        yield encoder.piece(index, {"content_blocks": [{"index": place, "delta": told}]})
    if called := cast("Json | None", message.get("function_call")):
        yield encoder.piece(index, {"function_call": {**called, "arguments": ""}})
        yield encoder.piece(index, {"function_call": {"arguments": called.get("arguments", "")}})
    for place, call in enumerate(cast(list[Json], message.get("tool_calls") or [])):
        function = cast(Json, call.get("function") or {})
        begun = {**call, "index": place, "function": {**function, "arguments": ""}}
        yield encoder.piece(index, {"tool_calls": [begun]})
        more = {"index": place, "function": {"arguments": function.get("arguments", "")}}
        yield encoder.piece(index, {"tool_calls": [more]})
