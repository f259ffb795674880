"""What chats of vendors without tools have in common: texts alone go in, text alone comes out.

What must live here: the refusal of anything else, the frame of such a dialect, and decoders for answers that come whole
or line by line. What must not: a vendor's format.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec

from loomgate.errors import ProviderError
from loomgate.providers.dialect import HttpCall, Target, undropped
from loomgate.providers.events import EventDecoder
from loomgate.providers.failure import error_answer, masked, status_kind
from loomgate.providers.parts import one_text
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Chunk,
    Finish,
    FinishReason,
    RedactedThinkingPart,
    TextDelta,
    TextPart,
    ThinkingPart,
    Usage,
)

Json = dict[str, Any]
encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def text_of(message: ChatMessage, vendor: str) -> str:
    """The text of a message. Raises `ProviderError` ``invalid`` for a part that is none."""
    content = message.content
    if content is None or isinstance(content, str):
        return content or message.refusal or ""
    texts: list[str] = []
    for part in content:
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif not isinstance(part, ThinkingPart | RedactedThinkingPart):  # of no use to one that did not think it
            raise ProviderError("invalid", f"messages: expected texts only, since {vendor} takes nothing else here.")
    return "\n".join(texts)


def only_text(call: Chat, vendor: str) -> None:
    """Refuse what a vendor without tools and formats cannot honour."""
    one_text(call, vendor)
    if (call.tools and call.tool_choice != "none") or call.vendor_tools:
        raise ProviderError("invalid", f"tools: expected none, since {vendor} calls no functions here.")
    if call.response_format is not None and call.response_format.get("type") != "text":
        raise ProviderError("invalid", f"response_format: expected 'text', since {vendor} has no other here.")


def turns(call: Chat, vendor: str) -> tuple[str, list[tuple[str, str]]]:
    """The system's texts in one, and the other messages as role (user, assistant) and text; empty ones are left out."""
    only_text(call, vendor)
    system: list[str] = []
    said: list[tuple[str, str]] = []
    for message in call.messages:
        text = text_of(message, vendor)
        if not text:
            continue
        if message.role == "assistant":
            said.append(("assistant", text))
        elif message.role in ("user", "tool"):
            said.append(("user", text))
        else:
            system.append(text)
    return "\n\n".join(system), said


def prompt_of(call: Chat, vendor: str) -> str:
    """All messages as one text, for an endpoint that continues texts."""
    only_text(call, vendor)
    return "\n\n".join(text for message in call.messages if (text := text_of(message, vendor)))


def given(**values: Any) -> Json:
    """Those that are neither None nor empty."""
    return {name: value for name, value in values.items() if value is not None and value != []}


def refusal(found: Json, status: int, wait: float | None) -> ProviderError:
    """An error answer: the message wherever vendors put it (``message``, ``detail``, ``error``, ``errors``)."""
    said: Any = found
    for name in ("error", "errors", "detail", "message"):
        if isinstance(said, dict) and cast(Json, said).get(name):
            said = cast(Json, said)[name]
        if isinstance(said, list) and said:
            said = cast("list[Any]", said)[0]
    if isinstance(said, dict):
        inner = cast(Json, said)
        said = inner.get("message") or inner.get("msg") or encode(inner).decode()
    text = said if isinstance(said, str) else encode(said).decode()
    return ProviderError(status_kind(status), masked(text)[:2000], status=status, retry_after=wait)


class OwnDialect:
    """A `Dialect` of one vendor's own: JSON goes out, `WholeDecoder`s read what comes back. A vendor gives `asked`."""

    answer: type["WholeDecoder"]

    def asked(self, call: Chat, target: Target) -> tuple[str, Json]:
        """The address and the body for ``call``. Raises `ProviderError` ``invalid`` for what it cannot say."""
        raise NotImplementedError

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The request for ``call``, unsigned. Raises what `asked` raises."""
        url, body = self.asked(undropped(call, target), target)
        return HttpCall(url, {"Content-Type": "application/json", **target.own_headers()}, encode(body))

    def decoder(self) -> "WholeDecoder":
        """A fresh decoder for one answer."""
        return self.answer()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What an error answer means."""
        return error_answer(status, headers, body, refusal)


class WholeDecoder(EventDecoder):
    """A `Decoder` of answers that are one JSON object, or event streams of them: a vendor gives `told`."""

    def read(self, data: bytes) -> Iterator[Chunk]:
        """The chunks of one object. Raises `ProviderError` ``malformed`` for what is not one of this vendor's."""
        if data.strip() in (b"", b"[DONE]"):
            if data.strip():
                self.reason = self.reason or "stop"
            return
        try:
            found = _decode(data)
            yield from self.told(found)
        except (msgspec.DecodeError, RecursionError, KeyError, TypeError, ValueError, IndexError, AttributeError):
            said = data[:300].decode("utf-8", "replace")
            raise ProviderError("malformed", f"The endpoint sent an answer that cannot be read: {said}") from None

    def told(self, found: Any) -> Iterator[Chunk]:
        """The chunks of one object; sets ``reason`` when it says why the model stopped."""
        raise NotImplementedError

    def finish(self) -> Finish:
        """The last chunk; a reason that is not known is a ``stop`` (GATEWAY FR-01)."""
        return Finish(self.reasons.get(self.reason or "", "stop"), self.usage, self.reason)

    usage: Usage | None = None
    reasons: dict[str, FinishReason] = {}  # noqa: RUF012 - never changed


class LineDecoder(WholeDecoder):
    """The same for answers of one JSON object a line."""

    def __init__(self) -> None:
        super().__init__()
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """The chunks that ``data`` completes."""
        if self._done:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            raise ProviderError("malformed", f"The endpoint sent a line of more than {_LONGEST_LINE} bytes.")
        yield from self._read_all(line for line in lines if line.strip())

    def end(self) -> Iterator[Chunk]:
        """The body is over."""
        if self._done:
            return
        rest, self._rest = self._rest, b""
        if rest.strip():
            yield from self._read_all([rest])
        yield from super().end()


def within(found: Any, name: str) -> Any:
    """The object under a name, or an empty one."""
    return found.get(name) or {}


def several(found: Any, name: str) -> list[Any]:
    """The list under a name, or an empty one."""
    return found.get(name) or []


_LONGEST_LINE = 4 * 1024 * 1024


def text(found: Any) -> Iterator[Chunk]:
    """A piece of text, if it is one that is not empty."""
    if isinstance(found, str) and found:
        yield TextDelta(found)
