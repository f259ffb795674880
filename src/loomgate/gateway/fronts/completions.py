"""OpenAI's legacy completions, as clients write and read them, played by a chat model.

What must live here: this format on the client's side. What must not: what it has in common with chat completions
(``chat``), a vendor's format.
"""

from collections.abc import Iterable
from typing import Any, cast

import msgspec

from loomgate.errors import bad_request
from loomgate.gateway.fronts.chat_answer import ChunkEncoder, cut, reason_of, usage_of, whole
from loomgate.gateway.fronts.collected import collected
from loomgate.gateway.fronts.fields import clamped, converted, given, unknown
from loomgate.gateway.fronts.front import About
from loomgate.wire.chat import Chat, ChatMessage, Chunk, Finish, RefusalDelta, TextDelta, ToolCallDelta

Json = dict[str, Any]

# --- the request ---------------------------------------------------------------------------------------------------


class _Body(msgspec.Struct):
    model: str
    prompt: str | list[Any]
    suffix: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: Json | None = None
    logprobs: int | None = None
    echo: bool | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    best_of: int | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    seed: int | None = None
    top_k: int | None = None


_KNOWN = frozenset(_Body.__struct_fields__)


def _prompt(prompt: str | list[Any]) -> str:
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return prompt[0]
    found = f"{len(prompt)} prompts" if all(isinstance(one, str) for one in prompt) else "numbers of tokens"
    raise bad_request(
        f"Invalid value for 'prompt': expected one text, since a chat model plays it, got {found}.", "prompt"
    )


def _check(body: _Body) -> None:
    """Refuse what a chat model cannot play."""
    asked = {
        "suffix": bool(body.suffix),
        "echo": bool(body.echo),
        "best_of": (body.best_of or 1) > 1,
        "n": (body.n or 1) > 1,
        "logprobs": body.logprobs is not None,
    }
    for name, is_asked in asked.items():
        if is_asked:
            why = "expected nothing, since a chat model plays completions for this provider"
            raise bad_request(f"Invalid value for '{name}': {why}.", name, "unsupported_parameter")


# --- the answer ----------------------------------------------------------------------------------------------------

_encode = msgspec.json.Encoder().encode


class CompletionEncoder(ChunkEncoder):
    """Writes one streamed answer as ``text_completion`` events. Refusals are text: the format has no other place."""

    def __init__(self, about: About) -> None:
        super().__init__(about, "text_completion")
        self._head = b"data: " + self._frame + b',"choices":[{"text":'
        self._tail = b',"index":0,"logprobs":null,"finish_reason":null}]' + self._null + b"}\n\n"

    def feed(self, chunk: Chunk) -> bytes:
        """The events that ``chunk`` makes; the last chunk is a `Finish`, after which comes ``[DONE]``."""
        if isinstance(chunk, TextDelta | RefusalDelta):
            return self.piece(chunk.text)
        if isinstance(chunk, Finish):
            usage = usage_of(chunk.usage) if chunk.usage is not None else None
            return self.ended([_choice("", _reason(chunk, self._about))], usage)
        return b""

    def piece(self, text: str) -> bytes:
        """An event with more text."""
        return self._head + _encode(text) + self._tail


def _choice(text: str, reason: str) -> Json:
    return {"text": text, "index": 0, "logprobs": None, "finish_reason": reason}


def _reason(finish: Finish, about: About) -> str:
    reason = reason_of(finish, about)
    return "stop" if reason == "tool_calls" else reason  # no tools were given


class CompletionsFront:
    """The `Front` of legacy completions."""

    def chat(self, fields: Json) -> Chat:
        """The body as a model call: the prompt is a user's message. Raises a 400 `ApiError` that names the field."""
        fields = given(fields)
        body = converted(fields, _Body)
        _check(body)
        return Chat(
            model=body.model,
            messages=[ChatMessage(role="user", content=_prompt(body.prompt))],
            temperature=clamped(body.temperature, 0, 2),
            top_p=clamped(body.top_p, 0, 1),
            frequency_penalty=clamped(body.frequency_penalty, -2, 2),
            presence_penalty=clamped(body.presence_penalty, -2, 2),
            max_completion_tokens=None if body.max_tokens is None else max(body.max_tokens, 0),
            stop=[body.stop] if isinstance(body.stop, str) else body.stop or [],
            stream=bool(body.stream),
            logit_bias=body.logit_bias,
            user=body.user,
            seed=body.seed,
            top_k=body.top_k,
            extra=unknown(fields, _KNOWN),
            lenient=True,
        )

    def whole(self, chunks: Iterable[Chunk], about: About) -> Json:
        """The ``text_completion`` that ``chunks`` make."""
        found = collected(chunk for chunk in chunks if not isinstance(chunk, ToolCallDelta))
        text = found.text("text") + found.text("refusal")
        return whole(about, "text_completion", _choice(text, _reason(found.finish, about)), found.finish)

    def encoder(self, about: About) -> CompletionEncoder:
        """A writer for one streamed answer."""
        return CompletionEncoder(about)

    def replay(self, answer: Json, about: About) -> bytes:
        """A whole ``text_completion`` with one choice as the stream it might have been (CCH-06)."""
        encoder = CompletionEncoder(about)
        choice = cast(list[Json], answer.get("choices") or [{}])[0]
        pieces = [encoder.piece(text) for text in cut(choice.get("text") or "")]
        return b"".join(pieces) + encoder.ended(
            [_choice("", choice.get("finish_reason") or "stop")], answer.get("usage")
        )
