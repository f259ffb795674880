"""NVIDIA Triton's generate extension with TensorRT-LLM's fields: a text in, a text out.

What must live here: this wire format. What must not: anything else.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from loomgate.errors import ProviderError
from loomgate.providers.dialect import HttpCall, Target, undropped
from loomgate.providers.failure import error_answer
from loomgate.providers.own.plain import WholeDecoder, encode, given, prompt_of, refusal, text
from loomgate.providers.parts import own_words
from loomgate.wire.chat import Chat, Chunk

_TOKENS = 100  # the field is required


class Triton:
    """The `Dialect` of ``/generate``; the address is that of the model."""

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The request for ``call``, whose messages are the text to continue."""
        call = undropped(call, target)
        body = {
            "text_input": prompt_of(call, "Triton"),
            "max_tokens": call.max_completion_tokens or _TOKENS,
            **given(temperature=call.temperature, top_p=call.top_p, top_k=call.top_k, stop_words=call.stop),
            **own_words(call, "Triton"),
        }
        headers = {"Content-Type": "application/json", **target.own_headers()}
        return HttpCall(target.endpoint_url("complete"), headers, encode(body))

    def decoder(self) -> WholeDecoder:
        """A fresh decoder for one answer."""
        return _Answer()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What an error answer means."""
        return error_answer(status, headers, body, refusal)


class _Answer(WholeDecoder):
    def told(self, found: Any) -> Iterator[Chunk]:
        self.model = found.get("model_name")
        self.reason = "stop"
        yield from text(found["text_output"])
        yield self.finish()
