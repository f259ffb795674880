"""Bytez: chats of open models by their ids, in one answer (its streams are bare text that does not tell its end).

What must live here: this wire format. What must not: anything else.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from loomgate.errors import ProviderError
from loomgate.providers.dialect import HttpCall, Target, undropped
from loomgate.providers.failure import error_answer, masked
from loomgate.providers.own.plain import WholeDecoder, encode, given, only_text, refusal, text
from loomgate.providers.parts import own_words, spoken
from loomgate.wire.chat import Chat, Chunk

_ROLES = {"tool": "user", "developer": "system"}


class Bytez:
    """The `Dialect` of its chat models."""

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The request for ``call``. Raises `ProviderError` ``invalid`` for tools and formats."""
        call = undropped(call, target)
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
        headers = {"Content-Type": "application/json", **target.own_headers()}
        return HttpCall(target.endpoint_url("chat", call.model), headers, encode(body))

    def decoder(self) -> WholeDecoder:
        """A fresh decoder for one answer."""
        return _Answer()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What an error answer means."""
        return error_answer(status, headers, body, refusal)


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
