"""Server-sent events from bytes, incrementally: however the bytes are split, the same events come out.

What must live here: the line and field rules of the event-stream format (WHATWG HTML, section 9.2.6).
What must not: what the data means.
"""

from typing import NamedTuple

from loomgate.errors import ProviderError

_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event: its name (empty when not given) and its ``data`` lines joined by a newline."""

    name: bytes
    data: bytes


class EventParser:
    """Feed bytes, get events. ``limit`` bounds a line and an event's data, in bytes.

    Events without data are dropped, and so are ``id`` and ``retry``: nobody reconnects to a model call.
    """

    def __init__(self, limit: int = 4 * 1024 * 1024) -> None:
        self._limit = limit
        self._head = b""  # the first bytes, until it is known whether they are a byte order mark
        self._begun = False
        self._rest = bytearray()  # a line whose end has not come yet
        self._after_cr = False
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes and return the events they complete.

        Raises `ProviderError` ``malformed`` when a line or an event is longer than the limit.
        """
        if not self._begun:
            data = self._head + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._head = data
                return []
            self._begun = True
            data = data.removeprefix(_BOM)
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == 10:  # the second half of a CRLF that was split
                data = data[1:]
        if not data:
            return []
        events: list[Event] = []
        lines = data.splitlines()
        ended = data[-1] in b"\r\n"
        self._after_cr = data[-1] == 13
        if self._rest:
            self._rest += lines[0]
            if len(lines) > 1 or ended:
                lines[0] = bytes(self._rest)
                self._rest.clear()
            else:
                lines.clear()
        if not ended and lines:
            self._rest += lines.pop()
        if len(self._rest) > self._limit:
            raise self._too_long()
        for line in lines:
            if not line:
                self._dispatch(events)
            elif line.startswith(b"data:"):
                self._add(line[6:] if line[5:6] == b" " else line[5:])
            elif line.startswith(b"event:"):
                self._name = line[7:] if line[6:7] == b" " else line[6:]
            elif line == b"data":
                self._add(b"")
            elif line == b"event":
                self._name = b""
        return events

    def end(self) -> list[Event]:
        """The stream is over: the event that only lacked its blank line, if any.

        The format would drop it; vendors exist that end a stream without the last blank line, and the caller can
        tell a whole value from half of one.
        """
        events: list[Event] = []
        if self._rest:
            events.extend(self.feed(b"\n"))
        self._dispatch(events)
        return events

    def _add(self, value: bytes) -> None:
        self._size += len(value) + 1
        if self._size > self._limit:
            raise self._too_long()
        self._data.append(value)

    def _dispatch(self, events: list[Event]) -> None:
        if self._data:
            events.append(Event(self._name, self._data[0] if len(self._data) == 1 else b"\n".join(self._data)))
            self._data.clear()
            self._size = 0
        self._name = b""

    def _too_long(self) -> ProviderError:
        return ProviderError("malformed", f"The endpoint sent an event of more than {self._limit} bytes.")
