"""What this node still has to say: a bounded queue, emptied into Redis by one task, in order for each run.

Nothing here waits or fails for whoever publishes. While Redis is away what does not fit is given up run by run, and an
entry in its place tells viewers to take the present state instead.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from itertools import count
from typing import Any

import msgspec

from loomgate import clock
from loomgate.bus.connection import Command, Redis
from loomgate.bus.entries import GAP, STATE, Entry, packed
from loomgate.errors import RedisAway
from loomgate.wire.events import DONE

log = logging.getLogger(__name__)

_OVERHEAD = 200  # bytes that a part costs besides its events
_PART = 65536  # bytes of events in one entry, about
_RUNS = 500  # runs whose entries go out in one write
_MOST_RUNS = 10_000  # with something unsent
_MOST_NUMBERED = 20_000  # runs whose numbering is remembered
_MOST_MESSAGES = 10_000
_LEAST_KEPT = 64  # entries of a stream
# A stream begins with its run, told by the node that made it; another node's word may be quicker by a moment.
_BEGINNING_SECONDS, _LOOK_AGAIN_SECONDS = 0.25, 0.01
_REFUSED_SECONDS = 1.0


class _Part(msgspec.Struct):
    """Events that go out in one entry."""

    events: list[bytes]
    fence: int
    kind: int
    mark: str
    size: int
    after: int = 0


class _Outgoing:
    """What is to be told of one run: ``sending`` is the entry on its way, the same until it is known to be there."""

    __slots__ = ("create", "missing_since", "not_before", "parts", "sending", "settles", "size")

    def __init__(self) -> None:
        self.parts: deque[_Part] = deque()
        self.sending: bytes | None = None
        self.settles = False
        self.create = False
        self.missing_since: float | None = None
        self.not_before = 0.0
        self.size = 0


class _Numbering:
    """Under which name and number this node's next entry for a run goes, and what of its size and age is known."""

    __slots__ = ("by", "bytes", "expiry_due", "number")

    def __init__(self, by: str) -> None:
        self.by = by
        self.number = 0
        self.bytes = 0
        self.expiry_due = 0.0


class Publisher:
    """The queue and its task. Streams live ``seconds`` and about a quarter after their last entry, and are cut to about
    ``size`` bytes; that many bytes may also wait in the queue."""

    def __init__(self, redis: Redis, prefix: str, node: str, *, seconds: float, size: int) -> None:
        self._line = redis.line()
        self._redis = redis
        self._prefix = prefix
        self._node = node
        self._seconds = seconds
        self._most = size
        self._out: OrderedDict[str, _Outgoing] = OrderedDict()
        self._size = 0
        self._numberings: OrderedDict[str, _Numbering] = OrderedDict()
        self._names = count()
        self._messages: deque[tuple[bytes, bool]] = deque()
        self._wakes = False
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._refused = False

    @property
    def wake_key(self) -> str:
        """A stream that gets an entry when this node's reader has to look up from those it waits for."""
        return f"{self._prefix}:wake:{self._node}"

    def key(self, run_id: str) -> str:
        """The run's stream."""
        return f"{self._prefix}:run:{run_id}"

    @property
    def topic(self) -> str:
        """The channel of messages between nodes."""
        return f"{self._prefix}:nodes"

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.get_running_loop().create_task(self._send_forever())

    async def close(self, seconds: float) -> None:
        """Send what is there if that takes no longer than ``seconds``, and end."""
        if self._task is None:
            return
        end = clock.monotonic() + seconds
        while (self._out or self._messages) and not self._redis.away and clock.monotonic() < end:
            self._work.set()
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        self._task.cancel()
        await asyncio.wait((self._task,))
        await self._line.close()

    def put(
        self, run_id: str, events: list[bytes], fence: int = 0, kind: int = 0, mark: str = "", after: int = 0
    ) -> None:
        """Tell ``events`` to the viewers of the run."""
        out = self._out.get(run_id)
        if out is None:
            out = self._out[run_id] = _Outgoing()
        size = sum(map(len, events))
        last = out.parts[-1] if out.parts else None
        alike = last is not None and kind == last.kind == 0 and not mark and not after and fence == last.fence
        if last is not None and alike and last.size + size <= _PART and last.events[-1:] != [DONE]:
            last.events += events
            last.size += size
        else:
            out.parts.append(_Part(list(events), fence, kind, mark, size, after))
            size += _OVERHEAD
        out.size += size
        self._size += size
        if self._size > self._most or len(self._out) > _MOST_RUNS:
            self._give_up()
        self._work.set()

    async def sent(self, run_id: str) -> None:
        """Wait until nothing of the run is unsent."""
        while run_id in self._out:  # noqa: ASYNC110 - asked for when a worker is gone, no event for it in each sending
            await asyncio.sleep(_LOOK_AGAIN_SECONDS / 4)

    def say(self, message: bytes, *, keep: bool) -> None:
        """Send ``message`` to the other nodes; ``keep`` it while Redis is away."""
        if not keep and self._redis.away:
            return
        self._messages.append((message, keep))
        if len(self._messages) > _MOST_MESSAGES:
            self._messages.popleft()
        self._work.set()

    def wake(self) -> None:
        """Make this node's reader look up."""
        self._wakes = True
        self._work.set()

    def _give_up(self) -> None:
        """Make room: what a run has to say is given up as a whole, the oldest first; a mark of the gap stays."""
        for run_id, out in list(self._out.items()):
            if self._size <= self._most and len(self._out) <= _MOST_RUNS:
                return
            if len(self._out) > _MOST_RUNS:
                del self._out[run_id]
                self._size -= out.size
                self._numbering(run_id).number += 1  # so that the next entry shows that one is missing
            elif len(out.parts) > 1 or (out.parts and not out.parts[0].kind & GAP):
                self._cut(out)

    def _cut(self, out: _Outgoing) -> None:
        kind = GAP
        for part in out.parts:
            kind |= part.kind & ~STATE
        fence = max((part.fence for part in out.parts), default=0)
        self._size -= out.size
        out.size = _OVERHEAD
        self._size += _OVERHEAD
        out.parts = deque([_Part([], fence, kind, "", 0)])

    def _numbering(self, run_id: str) -> _Numbering:
        found = self._numberings.get(run_id)
        if found is None:
            found = self._numberings[run_id] = _Numbering(f"{self._node}.{next(self._names):x}")
            if len(self._numberings) > _MOST_NUMBERED:
                self._numberings.popitem(last=False)
        return found

    async def _send_forever(self) -> None:
        held = False
        while True:
            if held:
                await clock.wait(self._work, _LOOK_AGAIN_SECONDS)
            else:
                await self._work.wait()
            self._work.clear()
            try:
                held = await self._send()
            except RedisAway:
                self._work.set()
                await self._redis.pause()
            except Exception:  # whatever it was: a node that tells nothing more would look alive
                log.exception("telling viewers failed; going on")
                self._work.set()
                await self._redis.pause()

    async def _send(self) -> bool:
        """Send one batch; answers whether something is held back for a moment. Raises `RedisAway`: send it again."""
        now = clock.monotonic()
        taken: list[tuple[str, _Outgoing, int]] = []
        commands: list[Command] = []
        held = False
        for run_id, out in self._out.items():
            if out.not_before > now:
                held = True
                continue
            taken.append((run_id, out, len(commands)))
            commands += self._commands(run_id, out, now)
            if len(taken) == _RUNS:
                self._work.set()
                break
        messages = list(self._messages)
        commands += [("PUBLISH", self.topic, message) for message, _ in messages]
        wakes, self._wakes = self._wakes, False
        if wakes:
            commands += [("XADD", self.wake_key, "MAXLEN", 1, "*", "w", ""), ("EXPIRE", self.wake_key, 3600)]
        if not commands:
            return held
        self._messages.clear()
        try:
            replies = await self._line.calls(commands)
        except BaseException:
            self._wakes |= wakes
            self._messages.extendleft(message for message in reversed(messages) if message[1])
            raise
        for run_id, out, at in taken:
            held |= self._sent(run_id, out, replies[at])
        return held

    def _commands(self, run_id: str, out: _Outgoing, now: float) -> list[Command]:
        """What puts the run's next entry, the one that may be there already if it was sent before, into its stream."""
        numbering = self._numbering(run_id)
        if out.sending is None:
            part = out.parts.popleft()
            numbering.number += 1
            entry = Entry(numbering.by, numbering.number, part.events, part.fence, part.kind, part.mark, part.after)
            out.sending = packed(entry)
            out.create |= part.kind & 1 != 0
            out.settles = entry.settles
            size = part.size + _OVERHEAD
            out.size -= size
            self._size -= size
            numbering.bytes += size
        kept = max(_LEAST_KEPT, self._most * max(numbering.number, 1) // max(numbering.bytes, 1))
        key = self.key(run_id)
        how: tuple[str, ...] = () if out.create else ("NOMKSTREAM",)
        commands: list[Command] = [("XADD", key, *how, "MAXLEN", "~", kept, "*", "e", out.sending)]
        if out.create or out.settles or now >= numbering.expiry_due:
            numbering.expiry_due = now + self._seconds / 4
            commands.append(("EXPIRE", key, int(self._seconds * 1.25) + 1))
        return commands

    def _sent(self, run_id: str, out: _Outgoing, reply: Any) -> bool:
        """Take ``reply`` for the run's entry; answers whether it has to be held back for a moment."""
        now = clock.monotonic()
        if isinstance(reply, RedisAway):
            if not self._refused:
                log.warning("Redis refuses what viewers are to be told: %s", reply)
            self._refused = True
            out.sending = None
            self._cut(out)
            out.not_before = now + _REFUSED_SECONDS
            return True
        self._refused = False
        if reply is None:  # NOMKSTREAM: there is no such stream
            out.missing_since = out.missing_since or now
            out.create = now - out.missing_since >= _BEGINNING_SECONDS
            out.not_before = now + _LOOK_AGAIN_SECONDS
            return True
        out.sending = out.missing_since = None
        out.create = False
        out.not_before = 0.0
        if out.settles:
            self._numberings.pop(run_id, None)
        if self._out.get(run_id) is not out:
            return False  # given up meanwhile
        if out.parts:
            self._out.move_to_end(run_id)
            self._work.set()
        else:
            del self._out[run_id]
        return False
