"""OpenAI's Responses, as clients read them: whole, and as a stream.

What must live here: this format's answers (https://platform.openai.com/docs/api-reference/responses-streaming). What
must not: its requests (``responses``).
"""

from collections.abc import Iterable
from typing import Any

import msgspec

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

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
# By the kind of a part of a message: the member with its text, and the names of its events.
_PARTS = {"output_text": ("text", "response.output_text"), "refusal": ("refusal", "response.refusal")}


class ResponseEncoder:
    """Writes one streamed response; ``output`` has the items so far."""

    def __init__(self, about: About) -> None:
        self._about = about
        self._number = 0
        self._begun = False
        self._buffer: list[bytes] = []
        self.output: list[Json] = []
        self.final: Json = {}
        self._open: int | None = None  # the item that is written now, if it is no call
        self._pieces: list[str] = []
        self._calls: dict[int, tuple[int, list[str]]] = {}

    def feed(self, chunk: Chunk) -> bytes:
        """The events that ``chunk`` makes; the last chunk is a `Finish`."""
        if not self._begun:
            self._begun = True
            for name in ("created", "in_progress"):
                self._event(f"response.{name}", response=self._response("in_progress"))
        match chunk:
            case TextDelta():
                self._say("output_text", chunk.text)
            case RefusalDelta():
                self._say("refusal", chunk.text)
            case ThinkingDelta():
                self._think(chunk)
            case RedactedThinking():
                self._shut()
                self._begin({"type": "reasoning", "summary": [], "encrypted_content": chunk.data})
                self._shut()
            case ToolCallDelta():
                self._call(chunk)
            case Extra():
                pass  # there is no place for it here
            case Finish():
                self._finish(chunk)
        made = b"".join(self._buffer)
        self._buffer.clear()
        return made

    def error(self, message: str, type: str, code: str | None) -> bytes:
        """The event that ends a stream which broke."""
        self._event("error", code=code or type, message=message, param=None)
        return b"".join(self._buffer)

    # --- items ---

    def _event(self, name: str, /, **data: Any) -> None:
        body = _encode({"type": name, "sequence_number": self._number, **data})
        self._number += 1
        self._buffer.append(b"event: %b\ndata: %b\n\n" % (name.encode(), body))

    def _begin(self, item: Json, *, call: bool = False) -> int:
        """A new item: it is shown as it is now, and told as over by `_end`."""
        at = len(self.output)
        prefix = {"message": "msg", "reasoning": "rs"}.get(item["type"], "fc")
        made = {"id": f"{prefix}_{_tail(self._about.id)}_{at}", **item, "status": "in_progress"}
        self.output.append(made)
        self._event("response.output_item.added", output_index=at, item=made)
        if not call:
            self._open, self._pieces = at, []
        return at

    def _end(self, at: int, status: str = "completed") -> None:
        self.output[at]["status"] = status
        self._event("response.output_item.done", output_index=at, item=self.output[at])

    def _where(self, at: int) -> Json:
        return {"item_id": self.output[at]["id"], "output_index": at}

    def _say(self, kind: str, text: str) -> None:
        at = self._open
        if at is None or self.output[at]["type"] != "message":
            self._shut()
            at = self._begin({"type": "message", "role": "assistant", "content": []})
        content = self.output[at]["content"]
        member, events = _PARTS[kind]
        if not content or content[-1]["type"] != kind:
            self._end_part(at)
            part: Json = {"type": kind, member: ""}
            if kind == "output_text":
                part |= {"annotations": [], "logprobs": []}
            content.append(part)
            self._pieces = []
            where = {**self._where(at), "content_index": len(content) - 1}
            self._event("response.content_part.added", **where, part=part)
        if text:
            self._pieces.append(text)
            more: Json = {"logprobs": []} if kind == "output_text" else {}
            where = {**self._where(at), "content_index": len(content) - 1}
            self._event(events + ".delta", **where, delta=text, **more)

    def _end_part(self, at: int) -> None:
        content = self.output[at]["content"]
        if not content:
            return
        part, where = content[-1], {**self._where(at), "content_index": len(content) - 1}
        member, events = _PARTS[part["type"]]
        part[member] = "".join(self._pieces)
        more: Json = {"logprobs": []} if member == "text" else {}
        self._event(events + ".done", **where, **{member: part[member]}, **more)
        self._event("response.content_part.done", **where, part=part)

    def _think(self, chunk: ThinkingDelta) -> None:
        at = self._open
        if at is None or self.output[at]["type"] != "reasoning":
            self._shut()
            at = self._begin({"type": "reasoning", "summary": []})
        summary = self.output[at]["summary"]
        where = {**self._where(at), "summary_index": 0}
        if chunk.text and not summary:
            summary.append({"type": "summary_text", "text": ""})
            self._event("response.reasoning_summary_part.added", **where, part=summary[0])
        if chunk.text:
            self._pieces.append(chunk.text)
            self._event("response.reasoning_summary_text.delta", **where, delta=chunk.text)
        if chunk.signature is not None:
            self.output[at]["encrypted_content"] = chunk.signature
            self._shut()

    def _shut(self, status: str = "completed") -> None:
        """End the item that is written now."""
        at, self._open = self._open, None
        if at is None:
            return
        item = self.output[at]
        if item["type"] == "message":
            self._end_part(at)
        elif item["summary"]:
            part, where = item["summary"][0], {**self._where(at), "summary_index": 0}
            part["text"] = "".join(self._pieces)
            self._event("response.reasoning_summary_text.done", **where, text=part["text"])
            self._event("response.reasoning_summary_part.done", **where, part=part)
        self._end(at, status)

    def _call(self, chunk: ToolCallDelta) -> None:
        known = self._calls.get(chunk.index)
        if known is None:
            self._shut()
            at = len(self.output)
            item = {"type": "function_call", "call_id": chunk.id or f"call_{_tail(self._about.id)}_{at}"}
            self._begin({**item, "name": chunk.name or "", "arguments": ""}, call=True)
            known = self._calls[chunk.index] = (at, [])
        at, pieces = known
        if chunk.signature is not None and not self._about.strict:
            self.output[at]["signature"] = chunk.signature
        if chunk.arguments:
            pieces.append(chunk.arguments)
            self._event("response.function_call_arguments.delta", **self._where(at), delta=chunk.arguments)

    def _finish(self, chunk: Finish) -> None:
        why = _INCOMPLETE.get(chunk.reason)
        status = "completed" if why is None else "incomplete"
        self._shut(status)
        for at, pieces in self._calls.values():
            item = self.output[at]
            item["arguments"] = "".join(pieces)
            told = {"name": item["name"], "arguments": item["arguments"]}
            self._event("response.function_call_arguments.done", **self._where(at), **told)
            self._end(at, status)
        self.final = self._response(status, chunk.usage, why)
        self._event(f"response.{status}", response=self.final)

    # --- the response ---

    def _response(self, status: str, usage: Usage | None = None, why: str | None = None) -> Json:
        about = self._about
        asked = about.asked
        over = status != "in_progress"
        return {
            "id": "resp_" + _tail(about.id),
            "object": "response",
            "created_at": about.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None if why is None else {"reason": why},
            "instructions": asked.get("instructions"),
            "max_output_tokens": asked.get("max_output_tokens"),
            "model": about.model,
            "output": self.output if over else [],
            "parallel_tool_calls": asked.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "reasoning": asked.get("reasoning") or {"effort": None, "summary": None},
            "store": False,
            "temperature": asked.get("temperature"),
            "text": asked.get("text") or {"format": {"type": "text"}},
            "tool_choice": asked.get("tool_choice") or "auto",
            "tools": asked.get("tools") or [],
            "top_p": asked.get("top_p"),
            "truncation": "disabled",
            "usage": _usage(usage) if over and usage is not None else None,
            "user": asked.get("user"),
            "metadata": asked.get("metadata") or {},
            "provider": about.provider,
        }


def _tail(id: str) -> str:
    """What of an endpoint's id goes behind a prefix of ours."""
    return id.removeprefix("resp_")


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_creation_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def response(chunks: Iterable[Chunk], about: About) -> Json:
    """The response that ``chunks`` make."""
    encoder = ResponseEncoder(about)
    for chunk in chunks:
        encoder.feed(chunk)
    return encoder.final


def replayed(answer: Json, about: About) -> bytes:
    """A whole response of ours as the stream it might have been."""
    encoder = ResponseEncoder(
        msgspec.structs.replace(about, id=str(answer["id"]), model=str(answer["model"]), asked=answer)
    )
    return b"".join(encoder.feed(chunk) for chunk in _chunks(answer))


def _chunks(answer: Json) -> Iterable[Chunk]:
    calls = 0
    for item in answer["output"]:
        match item["type"]:
            case "reasoning" if item["summary"]:
                yield ThinkingDelta(item["summary"][0]["text"], item.get("encrypted_content"))
            case "reasoning":
                yield RedactedThinking(item.get("encrypted_content") or "")
            case "function_call":
                yield ToolCallDelta(calls, item["call_id"], item["name"], item["arguments"])
                calls += 1
            case _:
                for part in item["content"]:
                    yield TextDelta(part["text"]) if part["type"] == "output_text" else RefusalDelta(part["refusal"])
    told: Json | None = answer.get("usage")
    details: Json = answer.get("incomplete_details") or {}
    usage = None
    if told:
        inner = told["input_tokens_details"]
        usage = Usage(
            told["input_tokens"],
            told["output_tokens"],
            inner["cached_tokens"],
            told["output_tokens_details"]["reasoning_tokens"],
            inner.get("cache_write_tokens", 0),
        )
    why = details.get("reason")
    yield Finish("length" if why == "max_output_tokens" else "content_filter" if why else "stop", usage)
