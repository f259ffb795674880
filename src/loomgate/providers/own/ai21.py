"""AI21's older models (Jurassic), whose chat and completions are its own; newer ones speak OpenAI's dialect.

What must live here: that format. What must not: Jamba, or AI21's models on Bedrock.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from loomgate.errors import ProviderError
from loomgate.providers.dialect import HttpCall, Target, undropped
from loomgate.providers.failure import error_answer
from loomgate.providers.own.plain import WholeDecoder, encode, given, prompt_of, refusal, text, turns, within
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


def _sent(path: str, call: Chat, body: dict[str, Any], target: Target) -> HttpCall:
    headers = {"Content-Type": "application/json", **target.own_headers()}
    return HttpCall(target.addressed(path, "chat", call.model), headers, encode(body))


class AI21:
    """The `Dialect` of its chat: whole answers only."""

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The request for ``call``. Raises `ProviderError` ``invalid`` for anything but text."""
        call = undropped(call, target)
        system, said = turns(call, "AI21")
        messages = [{"role": role, "text": words} for role, words in said]
        body = {"messages": messages, **given(system=system or None), **_tuned(call)}
        return _sent("/{model}/chat", call, body, target)

    def decoder(self) -> WholeDecoder:
        """A fresh decoder for one answer."""
        return _Answer()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What an error answer means."""
        return error_answer(status, headers, body, refusal)


class AI21Complete(AI21):
    """The `Dialect` of its completions."""

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The request for ``call``, whose messages are the text to continue."""
        call = undropped(call, target)
        return _sent("/{model}/complete", call, {"prompt": prompt_of(call, "AI21"), **_tuned(call)}, target)


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
