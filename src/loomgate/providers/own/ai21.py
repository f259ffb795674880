"""AI21's older models (Jurassic), whose chat and completions are its own; newer ones speak OpenAI's dialect.

What must live here: that format. What must not: Jamba, or AI21's models on Bedrock.
"""

from collections.abc import Iterator
from typing import Any

from loomgate.providers.dialect import Target
from loomgate.providers.own.plain import Json, OwnDialect, WholeDecoder, given, prompt_of, text, turns, within
from loomgate.providers.parts import own_words
from loomgate.wire.chat import Chat, Chunk, FinishReason

_REASONS: dict[str, FinishReason] = {"endoftext": "stop", "stop": "stop", "length": "length"}


def is_old(model: str | None) -> bool:
    """Whether a model speaks this format."""
    return (model or "").startswith("j2-")


def _tuned(call: Chat) -> dict[str, Any]:
    return given(
        maxTokens=call.max_completion_tokens,
        temperature=None if call.temperature is None else min(call.temperature, 1.0),  # GATEWAY TR-02
        topP=call.top_p,
        topKReturn=call.top_k,
        frequencyPenalty=None if call.frequency_penalty is None else {"scale": call.frequency_penalty},
        presencePenalty=None if call.presence_penalty is None else {"scale": call.presence_penalty},
        stopSequences=call.stop,
    ) | own_words(call, "AI21")


class _Answer(WholeDecoder):
    reasons = _REASONS

    def told(self, found: Any) -> Iterator[Chunk]:
        if "outputs" in found:
            first = found["outputs"][0]
            words = first["text"]
        else:
            first = found["completions"][0]
            words = first["data"]["text"]
        self.id = str(found["id"]) if "id" in found else None
        self.reason = str(within(first, "finishReason").get("reason") or "stop")
        yield from text(words)
        yield self.finish()


class AI21(OwnDialect):
    """The `Dialect` of its chat: whole answers only."""

    answer = _Answer

    def asked(self, call: Chat, target: Target) -> tuple[str, Json]:
        """The address and body for ``call``. Raises `ProviderError` ``invalid`` for anything but text."""
        system, said = turns(call, "AI21")
        messages = [{"role": role, "text": words} for role, words in said]
        body = {"messages": messages, **given(system=system or None), **_tuned(call)}
        return target.addressed("/{model}/chat", "chat", call.model), body


class AI21Complete(AI21):
    """The `Dialect` of its completions."""

    def asked(self, call: Chat, target: Target) -> tuple[str, Json]:
        """The address and body for ``call``, whose messages are the text to continue."""
        body = {"prompt": prompt_of(call, "AI21"), **_tuned(call)}
        return target.addressed("/{model}/complete", "chat", call.model), body
