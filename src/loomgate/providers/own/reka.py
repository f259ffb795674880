"""Reka's chat: a history of human and model, whole answers only.

What must live here: this wire format. What must not: anything else.
"""

from collections.abc import Iterator
from typing import Any

from loomgate.providers.dialect import Target
from loomgate.providers.own.plain import Json, OwnDialect, WholeDecoder, given, text, turns, within
from loomgate.providers.parts import own_words
from loomgate.wire.chat import Chat, Chunk, FinishReason, Usage


class _Answer(WholeDecoder):
    reasons: dict[str, FinishReason] = {"stop": "stop", "length": "length"}  # noqa: RUF012 - never changed

    def told(self, found: Any) -> Iterator[Chunk]:
        told = within(found, "metadata")
        if "input_tokens" in told:
            self.usage = Usage(int(told["input_tokens"]), int(told.get("generated_tokens", 0)))
        self.reason = str(found.get("finish_reason") or "stop")
        yield from text(found["text"])
        yield self.finish()


class Reka(OwnDialect):
    """The `Dialect` of ``/chat``."""

    answer = _Answer

    def asked(self, call: Chat, target: Target) -> tuple[str, Json]:
        """The address and body for ``call``. Raises `ProviderError` ``invalid`` for anything but text."""
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
        return target.endpoint_url("chat"), body
