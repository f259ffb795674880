"""Anthropic's Messages, as clients read them: whole, and as a stream.

What must live here: this format's answers (https://platform.claude.com/docs/en/build-with-claude/streaming). What must
not: its requests (``messages``).
"""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import msgspec

from loomgate.gateway.fronts.chat_answer import cut
from loomgate.gateway.fronts.collected import Block, collected
from loomgate.gateway.fronts.errors import anthropic_type
from loomgate.gateway.fronts.front import About
from loomgate.wire.chat import (
    Chunk,
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

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
# The vendor's own words that are Anthropic's (by Bedrock), or mean one of them (GATEWAY FR-18).
_RAW = {
    "stop_sequence": "stop_sequence",
    "STOP_SEQUENCE": "stop_sequence",
    "pause_turn": "pause_turn",
    "model_context_window_exceeded": "model_context_window_exceeded",
    "guardrail_intervened": "end_turn",
    "content_filtered": "end_turn",
}


def _reason(finish: Finish, *, refused: bool) -> str:
    if finish.reason == "tool_calls":
        return "tool_use"
    if refused:
        return "refusal"
    return _RAW.get(finish.raw or "") or _REASONS[finish.reason]


def _usage(usage: Usage | None) -> Json:
    """Theirs leaves what the cache gave and took out of the input."""
    told = usage or Usage()
    return {
        "input_tokens": max(0, told.prompt_tokens - told.cached_tokens - told.cache_creation_tokens),
        "cache_creation_input_tokens": told.cache_creation_tokens,
        "cache_read_input_tokens": told.cached_tokens,
        "output_tokens": told.completion_tokens,
    }


def _input(text: str) -> Json:
    """A call's arguments as the object that the format wants; what is none is shown as the text it is."""
    try:
        found = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        found = None
    return cast(Json, found) if isinstance(found, dict) else {"arguments": text}


def _block(block: Block) -> Json:
    match block.kind:
        case "thinking":
            return {"type": "thinking", "thinking": block.text, "signature": block.signature or ""}
        case "redacted_thinking":
            return {"type": "redacted_thinking", "data": block.text}
        case "call":
            return {"type": "tool_use", "id": block.id, "name": block.name, "input": _input(block.text)}
        case _:  # a refusal is text, too: the reason tells
            return {"type": "text", "text": block.text}


def _empty(about: About) -> Json:
    return {
        "id": about.id,
        "type": "message",
        "role": "assistant",
        "model": about.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(None),
    }


def message(chunks: Iterable[Chunk], about: About) -> Json:
    """The whole message that ``chunks`` make."""
    found = collected(chunks)
    finish = found.finish
    return {
        **_empty(about),
        "content": [_block(block) for block in found.blocks],
        "stop_reason": _reason(finish, refused=bool(found.text("refusal"))),
        "stop_sequence": finish.stop_sequence,
        "usage": _usage(finish.usage),
    }


def _event(type: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (type.encode(), _encode({"type": type, **fields}))


class MessageEncoder:
    """Writes one streamed answer as the events of a message.

    Blocks follow each other, never two at a time. A call that begins before the one under way is whole (some servers
    write parallel calls in turns), and whatever follows, waits until the end.
    """

    def __init__(self, about: About) -> None:
        self._about = about
        self._begun = False
        self._index = -1
        self._kind = ""  # of the block that is open, "" if none is
        self._call = -1  # the tool call that is open
        self._arguments: list[str] = []
        self._text_head = b""
        self._refused = False
        self._waiting: list[Chunk] = []

    def feed(self, chunk: Chunk) -> bytes:
        """The events that ``chunk`` makes; the last chunk is a `Finish`, which makes ``message_stop``."""
        out: list[bytes] = []
        if not self._begun:
            self._begun = True
            out += [_event("message_start", message=_empty(self._about)), _event("ping")]
        if isinstance(chunk, Finish):
            self._finish(chunk, out)
        elif self._kind == "call" and self._elsewhere(chunk):
            self._waiting.append(chunk)
        else:
            self._write(chunk, out)
        return b"".join(out)

    def error(self, message: str, type: str, code: str | None) -> bytes:
        """The event that ends a stream which broke; there is no ``message_stop`` after it."""
        del code  # the format has no place for it
        return _event("error", error={"type": anthropic_type(type), "message": message})

    def _elsewhere(self, chunk: Chunk) -> bool:
        """Whether ``chunk`` belongs to another block while the open call is not whole."""
        if isinstance(chunk, ToolCallDelta) and chunk.index == self._call and chunk.name is None:
            return False
        if self._waiting:
            return True
        try:
            msgspec.json.decode("".join(self._arguments))
        except (msgspec.DecodeError, RecursionError):  # or nested deeper than anything that is meant
            return True
        return False

    def _write(self, chunk: Chunk, out: list[bytes]) -> None:
        match chunk:
            case TextDelta() | RefusalDelta():
                self._refused = self._refused or isinstance(chunk, RefusalDelta)
                if self._kind != "text":
                    self._open("text", {"type": "text", "text": ""}, out)
                out.append(b"%b%b}}\n\n" % (self._text_head, _encode(chunk.text)))
            case ThinkingDelta():
                if self._kind != "thinking":
                    self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""}, out)
                if chunk.text:
                    out.append(self._delta(type="thinking_delta", thinking=chunk.text))
                if chunk.signature is not None:
                    out.append(self._delta(type="signature_delta", signature=chunk.signature))
                    self._close(out)
            case RedactedThinking():
                self._open("redacted_thinking", {"type": "redacted_thinking", "data": chunk.data}, out)
                self._close(out)
            case ToolCallDelta():
                if chunk.name is not None:
                    self._call, self._arguments = chunk.index, []
                    begun: Json = {"type": "tool_use", "id": chunk.id, "name": chunk.name, "input": {}}
                    self._open("call", begun, out)
                if chunk.arguments and chunk.index == self._call:
                    self._arguments.append(chunk.arguments)
                    out.append(self._delta(type="input_json_delta", partial_json=chunk.arguments))
            case _:  # what only a vendor tells has no place here
                pass

    def _open(self, kind: str, block: Json, out: list[bytes]) -> None:
        self._close(out)
        self._kind, self._index = kind, self._index + 1
        self._text_head = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
            b'"delta":{"type":"text_delta","text":' % self._index
        )
        out.append(_event("content_block_start", index=self._index, content_block=block))

    def _close(self, out: list[bytes]) -> None:
        if self._kind:
            self._kind = ""
            out.append(_event("content_block_stop", index=self._index))

    def _delta(self, **delta: Any) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _finish(self, finish: Finish, out: list[bytes]) -> None:
        groups: dict[object, list[Chunk]] = {}
        for chunk in self._waiting:
            groups.setdefault(chunk.index if isinstance(chunk, ToolCallDelta) else type(chunk), []).append(chunk)
        for chunks in groups.values():
            for chunk in chunks:
                self._write(chunk, out)
        self._close(out)
        reason = _reason(finish, refused=self._refused)
        delta = {"stop_reason": reason, "stop_sequence": finish.stop_sequence}
        out += [_event("message_delta", delta=delta, usage=_usage(finish.usage)), _event("message_stop")]


# --- replay --------------------------------------------------------------------------------------------------------


def replayed(answer: Json) -> bytes:
    """A whole message as the stream it might have been (GATEWAY CCH-06)."""
    begun: Json = {**answer, "content": [], "stop_reason": None, "stop_sequence": None}
    events = [_event("message_start", message=begun), _event("ping")]
    for index, block in enumerate(cast(list[Json], answer.get("content") or [])):
        start, deltas = _taken_apart(block)
        events.append(_event("content_block_start", index=index, content_block=start))
        events += [_event("content_block_delta", index=index, delta=delta) for delta in deltas]
        events.append(_event("content_block_stop", index=index))
    delta = {"stop_reason": answer.get("stop_reason"), "stop_sequence": answer.get("stop_sequence")}
    usage = answer.get("usage") or _usage(None)
    return b"".join([*events, _event("message_delta", delta=delta, usage=usage), _event("message_stop")])


def _taken_apart(block: Json) -> tuple[Json, Iterator[Json]]:
    """A block as it begins, and its deltas; kinds unknown here come at once."""
    match block.get("type"):
        case "text":
            return {**block, "text": ""}, ({"type": "text_delta", "text": text} for text in cut(block["text"]))
        case "tool_use" | "server_tool_use":
            text = _encode(block.get("input") or {}).decode()
            return {**block, "input": {}}, iter([{"type": "input_json_delta", "partial_json": text}])
        case "thinking":
            deltas = [{"type": "thinking_delta", "thinking": text} for text in cut(block["thinking"])]
            deltas.append({"type": "signature_delta", "signature": block.get("signature", "")})
            return {**block, "thinking": "", "signature": ""}, iter(deltas)
        case _:
            return block, iter(())
