"""Reka's chat: a history of human and model, whole answers only.

What must live here: this wire format. What must not: anything else.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from loomgate.errors import ProviderError
from loomgate.providers.dialect import HttpCall, Target, undropped
from loomgate.providers.failure import error_answer
from loomgate.providers.own.plain import WholeDecoder, encode, given, refusal, text, turns, within
from loomgate.providers.parts import own_words
from loomgate.wire.chat import Chat, Chunk, FinishReason, Usage


class Reka:
    """The `Dialect` of ``/chat``."""

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The request for ``call``. Raises `ProviderError` ``invalid`` for anything but text."""
        call = undropped(call, target)
        system, said = turns(call, "Reka")
        history: list[dict[str, str]] = []
        for role, words in [("user", system), *said] if system else said:  # there is no system role
            kind = "human" if role == "user" else "model"
            if history and history[-1]["type"] == kind:  # turns alternate
                history[-1]["text"] += "\n\n" + words
            else:
                history.append({"type": kind, "text": words})
        body = {
            "model_name": call.model,
            "conversation_history": history,
            **given(
                request_output_len=call.max_completion_tokens,
                temperature=call.temperature,
                runtime_top_p=call.top_p,
                runtime_top_k=call.top_k,
                stop_words=call.stop,
            ),
            **own_words(call, "Reka"),
        }
        headers = {"Content-Type": "application/json", **target.own_headers()}
        return HttpCall(target.endpoint_url("chat"), headers, encode(body))

    def decoder(self) -> WholeDecoder:
        """A fresh decoder for one answer."""
        return _Answer()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What an error answer means."""
        return error_answer(status, headers, body, refusal)


class _Answer(WholeDecoder):
    reasons: dict[str, FinishReason] = {"stop": "stop", "length": "length"}  # noqa: RUF012 - never changed

    def told(self, found: Any) -> Iterator[Chunk]:
        told = within(found, "metadata")
        if "input_tokens" in told:
            self.usage = Usage(int(told["input_tokens"]), int(told.get("generated_tokens", 0)))
        self.reason = str(found.get("finish_reason") or "stop")
        yield from text(found["text"])
        yield self.finish()
