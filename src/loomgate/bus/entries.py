"""What stands in a run's stream in Redis: entries, their ids, and who told what in which order. Pure."""

from typing import Literal

import msgspec

from loomgate.wire.events import DONE, ENDS

FIRST, STATE, GAP = 1, 2, 4  # what an entry is besides its events: `Entry.kind`

Place = tuple[int, int]  # an entry's id in its stream
START: Place = (0, 0)  # before every entry


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """Events that one publisher told at once.

    ``by`` and ``number``: which publisher, and its how-manieth entry for this run. ``kind``: `FIRST` (the run begins
    with it), `STATE` (the present state, for whoever asked), `GAP` (what would stand here could not be told).
    ``mark`` is known to the viewer whose stream begins with it, or who asked for it. ``after``, of what is no worker's:
    the fencing token of the worker whose words it follows (0: it follows none).
    """

    by: str
    number: int
    events: list[bytes]
    fence: int = 0
    kind: int = 0
    mark: str = ""
    after: int = 0

    @property
    def settles(self) -> bool:
        """Whether a stream may end with it."""
        return bool(self.events) and self.events[-1] == DONE

    @property
    def ends_run(self) -> bool:
        """Whether it tells the run's end, after which there is nothing to tell."""
        return self.settles and len(self.events) > 1 and self.events[-2].startswith(ENDS)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


def packed(entry: Entry) -> bytes:
    """``entry`` as its stream keeps it."""
    return _encode(entry)


def unpacked(fields: list[bytes]) -> Entry:
    """The entry in a stream's fields (name and value, once)."""
    return _decode(fields[1])


def place(id: bytes) -> Place:
    """An entry's id, ``1763740000000-0``, as two numbers."""
    ms, _, seq = id.partition(b"-")
    return int(ms), int(seq)


def id_of(at: Place, index: int) -> str:
    """The event id of the ``index``-th event of the entry at ``at``, such as ``1763740000000-0-3``."""
    return f"{at[0]}-{at[1]}-{index}"


def no_id(at: Place) -> str:
    """An event id that stands for no event."""
    return f"{at[0]}-{at[1]}-state"


def parsed(event_id: str) -> tuple[Place, int] | None:
    """The entry's id and the index within, out of an event id; ``None`` when it is not one of ours."""
    parts = event_id.split("-")
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and len(part) <= 20 for part in parts):
        return None
    return (int(parts[0]), int(parts[1])), int(parts[2])


class Order:
    """What has come from each publisher: what comes twice is passed over, what is missing is noticed.

    ``whole``: it follows the stream from the run's beginning, so that has to come, and every publisher's first entry.
    Of a worker that died before it told anything nothing can come; its fencing token is missing then. What comes later
    than what already went on after it is as bad as missing.
    """

    __slots__ = ("_ended", "_over", "_seen", "_whole", "fence")

    def __init__(self, *, whole: bool) -> None:
        self._seen: dict[str, int] = {}
        self.fence = 0  # the newest one that is known
        self._ended = 0  # the newest one under which nothing is told any more: somebody went on after it
        self._over = False  # the run has ended: what comes now comes late
        self._whole = whole

    def judge(self, entry: Entry) -> Literal["next", "pass", "gap"]:
        """Whether ``entry`` is to be told, passed over, or comes after something that is missing."""
        beheaded = self._whole and not self._seen and not entry.kind & FIRST
        before = self._seen.get(entry.by)
        if before is not None and entry.number <= before:
            return "pass"  # sent again, since nobody knew whether it had arrived
        begins = entry.kind & FIRST != 0
        late = bool(self._seen) if begins else 0 < (entry.fence or entry.after) <= self._ended
        late = (late or 0 < entry.after < self.fence) and not entry.kind & STATE
        self._whole = self._whole or (begins and not late)
        self._seen[entry.by] = entry.number
        stale = 0 < entry.fence < self.fence  # the words of a worker that had lost the run, and did not know yet
        silent = (self._whole or self.fence > 0) and max(entry.fence - 1, entry.after) > self.fence
        # A worker that has settled the run has let go of it, and moved the token on with that.
        self.fence = max(self.fence, entry.fence + 1 if entry.fence and entry.settles else entry.fence, entry.after)
        missed = entry.number != before + 1 if before is not None else self._whole and entry.number != 1
        self._ended = max(self._ended, entry.after)
        if self._over and not entry.kind & STATE:
            return "pass"
        if missed or beheaded or silent or late or entry.kind & GAP:
            self._over = entry.ends_run
            return "gap"
        self._over = self._over or entry.ends_run
        return "pass" if stale else "next"
