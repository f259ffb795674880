"""Cohere's completions (``/v1/generate``, GATEWAY TR-24): one JSON object a line.

What must live here: this wire format. What must not: Cohere's chat, which is another (``cohere``).
"""

from collections.abc import Iterator
from typing import Any

from loomgate.errors import ProviderError
from loomgate.providers.dialect import Target
from loomgate.providers.own.plain import Json, LineDecoder, OwnDialect, given, prompt_of, text, within
from loomgate.providers.parts import own_words
from loomgate.wire.chat import Chat, Chunk, FinishReason, Usage


class _Answer(LineDecoder):
    reasons: dict[str, FinishReason] = {  # noqa: RUF012 - never changed
        "COMPLETE": "stop",
        "MAX_TOKENS": "length",
        "ERROR_LIMIT": "length",
        "ERROR_TOXIC": "content_filter",
    }

    def told(self, found: Any) -> Iterator[Chunk]:
        if "generations" in found:  # a whole answer
            first = found["generations"][0]
            self._end(found, first.get("finish_reason"))
            yield from text(first["text"])
            yield self.finish()
        elif found.get("is_finished"):
            answer = within(found, "response")
            reason = found.get("finish_reason")
            if reason == "ERROR":
                raise ProviderError("server", "The endpoint gave up with finish reason 'ERROR'.")
            self._end(answer, reason)
            yield self.finish()
        else:
            yield from text(found["text"])

    def _end(self, answer: Any, reason: Any) -> None:
        self.reason = str(reason or "COMPLETE")
        self.id = answer.get("id")
        units = within(answer, "meta").get("billed_units")
        if units:
            self.usage = Usage(int(units.get("input_tokens", 0)), int(units.get("output_tokens", 0)))


class CohereGenerate(OwnDialect):
    """The `Dialect` of ``/v1/generate``."""

    answer = _Answer

    def asked(self, call: Chat, target: Target) -> tuple[str, Json]:
        """The address and body of the streamed request for ``call``, whose messages are the text to continue."""
        body = {
            "model": call.model,
            "prompt": prompt_of(call, "Cohere"),
            "stream": call.stream,
            **given(
                max_tokens=call.max_completion_tokens,
                temperature=call.temperature,
                p=None if call.top_p is None else min(max(call.top_p, 0.01), 0.99),
                k=call.top_k,
                frequency_penalty=call.frequency_penalty,
                presence_penalty=call.presence_penalty,
                seed=call.seed,
                end_sequences=call.stop,
            ),
            **own_words(call, "Cohere"),
        }
        return target.endpoint_url("complete"), body
