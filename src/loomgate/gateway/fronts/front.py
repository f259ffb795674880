"""The client's side of a model call: the format it writes and reads, when that is not the endpoint's own.

What must live here: the protocol that fronts fulfil. A front turns a request into a `Chat` and `Chunk` values into what
the client reads; a dialect does the same on the vendor's side. Where both speak the same format neither is used: bytes
pass.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from loomgate.wire.chat import Chat, Chunk


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Facts for an answer that the chunks do not have. ``created`` is in seconds; ``strict`` as RH-12 (section 10).

    ``asked`` is the request's body (after the config's params), for what an answer repeats of it. Made when the first
    chunk is there: by then a `Decoder` knows what the endpoint calls the answer and itself (see `answer_id`).
    """

    id: str
    created: int
    model: str
    provider: str
    strict: bool = True
    asked: dict[str, Any] = {}


def answer_id(told: str | None, provider: str, now: float) -> str:
    """An answer's id: the endpoint's own (``told``), else ``<provider>-<epoch ms>`` (GATEWAY STM-05); ``now`` in s."""
    return told or f"{provider}-{int(now * 1000)}"


class Encoder(Protocol):
    """Writes one streamed answer."""

    def feed(self, chunk: Chunk) -> bytes:
        """The events (SSE bytes, maybe none) that ``chunk`` makes; the last chunk is a `Finish`."""
        ...

    def error(self, message: str, type: str, code: str | None) -> bytes:
        """The events that end a stream which broke (STM-07, our choice)."""
        ...


class Front(Protocol):
    """One format that clients speak."""

    def chat(self, fields: dict[str, Any]) -> Chat:
        """The body as a model call; unknown fields go into ``extra``. Raises a 400 `ApiError` that names the field."""
        ...

    def whole(self, chunks: Iterable[Chunk], about: About) -> dict[str, Any]:
        """The JSON answer that ``chunks`` make."""
        ...

    def encoder(self, about: About) -> Encoder:
        """A writer for one streamed answer."""
        ...

    def replay(self, answer: dict[str, Any], about: About) -> bytes:
        """A whole answer as the stream it might have been (CCH-06)."""
        ...
