"""NVIDIA Triton's generate extension with TensorRT-LLM's fields: a text in, a text out.

What must live here: this wire format. What must not: anything else.
"""

from collections.abc import Iterator
from typing import Any

from loomgate.providers.dialect import Target
from loomgate.providers.own.plain import Json, OwnDialect, WholeDecoder, given, prompt_of, text
from loomgate.providers.parts import own_words
from loomgate.wire.chat import Chat, Chunk

_TOKENS = 100  # the field is required


class _Answer(WholeDecoder):
    def told(self, found: Any) -> Iterator[Chunk]:
        self.model = found.get("model_name")
        self.reason = "stop"
        yield from text(found["text_output"])
        yield self.finish()


class Triton(OwnDialect):
    """The `Dialect` of ``/generate``; the address is that of the model."""

    answer = _Answer

    def asked(self, call: Chat, target: Target) -> tuple[str, Json]:
        """The address and body for ``call``, whose messages are the text to continue."""
        body = {
            "text_input": prompt_of(call, "Triton"),
            "max_tokens": call.max_completion_tokens or _TOKENS,
            **given(temperature=call.temperature, top_p=call.top_p, top_k=call.top_k, stop_words=call.stop),
            **own_words(call, "Triton"),
        }
        return target.endpoint_url("complete"), body
