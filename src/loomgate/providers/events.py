"""The frame of a decoder whose answers are server-sent events with a JSON value each: begin, end, and one `Finish`.

What must live here: what such dialects share, whatever their events mean. What must not: a vendor's events.
"""

from collections.abc import Iterable, Iterator

from loomgate.errors import ProviderError
from loomgate.providers.framing import EventParser
from loomgate.wire.chat import Chunk, Finish

_LONGEST_ANSWER = 16 * 1024 * 1024


class EventDecoder:
    """A `Decoder`: an event stream, or one JSON object from servers that ignore ``stream``.

    A dialect gives `read` and `finish`, and sets ``reason`` once the vendor has said why the model stopped: a body
    that ends after that is complete, even without the vendor's last word.
    """

    def __init__(self) -> None:
        self._events: EventParser | None = None
        self._whole: bytearray | None = None
        self._done = False
        self.reason: str | None = None
        self.id: str | None = None
        self.model: str | None = None

    def read(self, data: bytes) -> Iterator[Chunk]:
        """The chunks of one event's data, or of the whole body. Raises `ProviderError`."""
        raise NotImplementedError

    def finish(self) -> Finish:
        """The last chunk. Raises `ProviderError` if the answer does not hold together."""
        raise NotImplementedError

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """The chunks that ``data`` completes. Raises `ProviderError`: the stream's own error, or ``malformed``."""
        if self._done:
            return
        if self._events is None and self._whole is None:
            data = data.lstrip(b" \t\r\n")
            if not data:
                return
            # No field of an event stream begins with a brace, whatever the content type claims.
            if data[:1] == b"{":
                self._whole = bytearray()
            else:
                self._events = EventParser()
        if self._events is not None:
            yield from self._read_all(event.data for event in self._events.feed(data))
        elif self._whole is not None:
            self._whole += data
            if len(self._whole) > _LONGEST_ANSWER:
                raise ProviderError("malformed", f"The endpoint sent an answer of more than {_LONGEST_ANSWER} bytes.")

    def end(self) -> Iterator[Chunk]:
        """The body is over. Raises `ProviderError` ``cut`` if the model had not finished."""
        if self._done:
            return
        if self._whole is not None:
            yield from self._read_all([bytes(self._whole)])
        elif self._events is not None:
            try:
                yield from self._read_all(event.data for event in self._events.end())
            except ProviderError as error:
                if error.kind != "malformed":  # half an event: what follows says so
                    raise
        if not self._done:
            if self.reason is None:
                raise ProviderError("cut", "The endpoint's answer broke off before the model had finished.")
            self._done = True
            yield self.finish()

    def _read_all(self, texts: Iterable[bytes]) -> Iterator[Chunk]:
        for data in texts:
            for chunk in self.read(data):
                self._done = self._done or isinstance(chunk, Finish)
                yield chunk
            if self._done:
                return
