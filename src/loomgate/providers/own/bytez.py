"""Bytez: chats of open models by their ids, in one answer (its streams are bare text that does not tell its end).

What must live here: this wire format. What must not: anything else.
"""

from collections.abc import Iterator
from typing import Any, cast

from loomgate.errors import ProviderError
from loomgate.providers.dialect import Target
from loomgate.providers.failure import masked
from loomgate.providers.own.plain import Json, OwnDialect, WholeDecoder, given, only_text, text
from loomgate.providers.parts import own_words, spoken
from loomgate.wire.chat import Chat, Chunk

_ROLES = {"tool": "user", "developer": "system"}


class _Answer(WholeDecoder):
    def told(self, found: Any) -> Iterator[Chunk]:
        if found.get("error"):
            raise ProviderError("server", masked(str(found["error"]))[:2000])
        output = found["output"]
        content: Any = cast(Any, output)["content"] if isinstance(output, dict) else output
        self.reason = "stop"
        if isinstance(content, list):
            for part in cast("list[Any]", content):
                yield from text(cast(Any, part).get("text") if isinstance(part, dict) else part)
        elif isinstance(content, str):
            yield from text(content)
        else:
            raise KeyError("content")
        yield self.finish()


class Bytez(OwnDialect):
    """The `Dialect` of its chat models."""

    answer = _Answer

    def asked(self, call: Chat, target: Target) -> tuple[str, Json]:
        """The address and body for ``call``. Raises `ProviderError` ``invalid`` for tools and formats."""
        only_text(call, "Bytez")
        messages: list[dict[str, Any]] = []
        for message in call.messages:
            content = spoken(message.content) if isinstance(message.content, list) else message.content
            messages.append({"role": _ROLES.get(message.role, message.role), "content": content or ""})
        body = {
            "messages": messages,
            "stream": False,
            "params": given(
                max_new_tokens=call.max_completion_tokens,
                temperature=call.temperature,
                top_p=call.top_p,
                top_k=call.top_k,
                stop_strings=call.stop,
            )
            | own_words(call, "Bytez"),
        }
        return target.endpoint_url("chat", call.model), body
