"""PaLM's chat and text models (version v1beta3 of the API before Gemini's): whole answers only.

What must live here: this wire format. What must not: Gemini.
"""

from collections.abc import Iterator
from typing import Any

from loomgate.errors import ProviderError
from loomgate.providers.dialect import Target
from loomgate.providers.own.plain import Json, OwnDialect, WholeDecoder, given, prompt_of, several, text, turns
from loomgate.providers.parts import own_words
from loomgate.wire.chat import Chat, Chunk, FinishReason


def _sent(verb: str, call: Chat, body: Json, target: Target) -> tuple[str, Json]:
    url = target.addressed("/models/{model}:" + verb, "chat", call.model.removeprefix("models/"))
    return url, {**body, **_tuned(call)}


def _tuned(call: Chat) -> dict[str, Any]:
    temperature = None if call.temperature is None else min(call.temperature, 1.0)  # GATEWAY TR-02
    return given(temperature=temperature, topP=call.top_p, topK=call.top_k) | own_words(call, "PaLM")


class _Answer(WholeDecoder):
    reasons: dict[str, FinishReason] = {"filtered": "content_filter"}  # noqa: RUF012 - never changed

    def told(self, found: Any) -> Iterator[Chunk]:
        candidates = several(found, "candidates")
        if not candidates:
            found["filters"][0]  # what it did not want to say; or it is no answer
            self.reason = "filtered"
        else:
            first = candidates[0]
            self.reason = "stop"
            yield from text(first["output"] if "output" in first else first["content"])
        yield self.finish()


class Palm(OwnDialect):
    """The `Dialect` of its chat (``generateMessage``), which knows neither a limit of tokens nor stop texts."""

    answer = _Answer

    def asked(self, call: Chat, target: Target) -> tuple[str, Json]:
        """The address and body for ``call``. Raises `ProviderError` ``invalid`` for anything but text."""
        if call.stop:
            raise ProviderError("invalid", "stop: expected nothing, since PaLM's chat has no such field.")
        context, said = turns(call, "PaLM")
        messages = [{"author": role, "content": words} for role, words in said]
        prompt = {**given(context=context or None), "messages": messages}
        return _sent("generateMessage", call, {"prompt": prompt}, target)


class PalmText(Palm):
    """The `Dialect` of its completions (``generateText``)."""

    def asked(self, call: Chat, target: Target) -> tuple[str, Json]:
        """The address and body for ``call``, whose messages are the text to continue."""
        body = {
            "prompt": {"text": prompt_of(call, "PaLM")},
            **given(maxOutputTokens=call.max_completion_tokens, stopSequences=call.stop),
        }
        return _sent("generateText", call, body, target)
