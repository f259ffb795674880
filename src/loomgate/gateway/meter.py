"""What every call through the gateway leaves behind: its record in the log, its metrics, its span, what it spent.

What must live here: taking down what happens (cheap, synchronous, on the way of the call) and the one task that does
all the rest later, in batches. What must not: what a record holds (``gateway/record``), or how it is stored
(``store/ledger``).

The pipeline says ``record = meter.begin(request)``, then `Record.attempted` for each try at an endpoint, `Record.sent`
for each piece of a streamed answer, and in the end `Record.finish` or `Record.abandon`. Nothing is decoded, counted or
written there: a finished record is put in a queue, bounded in number and bytes, and the oldest goes when it is full.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from loomgate import clock
from loomgate.errors import ApiError, StoreAway, StoreBusy
from loomgate.gateway.call import Answer, Request
from loomgate.gateway.limits import key_id
from loomgate.gateway.prices import Prices
from loomgate.gateway.record import TAIL, Made, Seen, make
from loomgate.wire.calls import CallRecord
from loomgate.wire.chat import Usage

log = logging.getLogger(__name__)

ABANDONED = 499  # the status of a call whose client left before its answer was whole
STOPPED = 503  # the status of one that the server's end cut short
STOPPING = "The server was stopping before the answer was whole."
LEFT = "the client left"  # the message with which the task of a client that left is cancelled

_BATCH = 500  # records in one write
_BATCH_BYTES = 1024 * 1024  # of their bodies: streams have long ones, and all of a batch is in memory twice
_STEP = 20  # records made in one go, before other work of the event loop gets its turn
_SECONDS = 0.5  # how long a record may wait for others
_MOST = 10_000  # records in the queue
_MOST_BYTES = 32 * 1024 * 1024  # of bodies in the queue
_LEAST = 4096  # bytes of an answer that are held for its usage, even when none are kept
_SHORT = 1000  # characters of a field that is held of a request whose body is not held whole
_TAILS = 8  # pieces of a long stream's end that are held for the same reason
_AGAIN = (0.5, 2.0, 8.0)  # seconds before a write that failed is tried again

_TIDY_SECONDS = 3600.0  # how often old records are dropped
_DAY = 86_400

_monotonic = clock.monotonic

Write = Callable[[list[CallRecord]], Awaitable[None]]


class Observer(Protocol):
    """Something that is told of calls after they ended: metrics, spans."""

    spans: bool  # whether it wants the request's fields and what else only spans tell, which is looked up for it then

    def observe(self, made: Sequence[Made]) -> None:
        """Take note of these calls."""
        ...


class Record:
    """One call under way. All methods are cheap and may be called in any order; after the end they change nothing.

    ``run_id`` and ``thread_id`` may be set when the call is a run's, ``virtual_key`` when it is known that
    there is one: what the client calls so may be anything, a key that it took for a slug included.
    """

    __slots__ = (
        "_attempts",
        "_done",
        "_ended",
        "_first",
        "_meter",
        "_pieces",
        "_size",
        "_tail",
        "_trace",
        "answer",
        "began",
        "body",
        "error",
        "request",
        "request_size",
        "run_id",
        "seconds",
        "status",
        "stream",
        "thread_id",
        "usage",
        "virtual_key",
        "weight",
    )

    answer: Answer
    body: bytes | None
    error: str
    request_size: int
    seconds: float
    status: int
    stream: bool
    usage: Usage | None
    weight: int
    _ended: float

    def __init__(self, meter: "Meter", request: Request, run_id: str, thread_id: str) -> None:
        self._meter = meter
        self.request = request
        self.run_id = run_id
        self.thread_id = thread_id
        self.virtual_key = ""
        self._attempts: list[tuple[str, int, float, str]] | None = None
        self._pieces: list[bytes] | None = None
        self._tail: deque[bytes] | None = None
        self._size = 0
        self._first: float | None = None
        self._trace = ""
        self._done = False
        self.began = _monotonic()

    @property
    def trace_id(self) -> str:
        """The call's trace (RSP-01): what the client calls it (RH-07), else its traceparent's, else a new one."""
        found = self._trace
        if not found:
            naming = self.request.naming
            found = self._trace = naming.trace_id or _traced(self.request) or _new_trace()
        return found

    def first_byte(self) -> None:
        """The answer begins now."""
        if self._first is None:
            self._first = _monotonic()

    def attempted(
        self, provider: str, status: int, seconds: float, *, host: str = "", virtual_key: str | None = None
    ) -> None:
        """An endpoint was tried: ``status`` 0 if it gave no answer, ``seconds`` until that was known.

        ``host`` is ``name`` or ``name:port``; ``virtual_key`` is the slug of the one that paid.
        """
        if self._attempts is None:
            self._attempts = []
        self._attempts.append((provider, status, seconds, host))
        if virtual_key is not None:
            self.virtual_key = virtual_key

    def sent(self, piece: bytes) -> None:
        """A piece of a streamed answer, as it goes to the client: held as far as the log keeps it."""
        if self._first is None:
            self._first = _monotonic()
        pieces = self._pieces
        if pieces is None:
            pieces = self._pieces = []
        if self._size < self._meter.held:
            pieces.append(piece)
        else:
            if self._tail is None:
                self._tail = deque(maxlen=_TAILS)
            self._tail.append(piece)
        self._size += len(piece)

    def finish(
        self,
        answer: Answer,
        *,
        answer_body: bytes | None = None,
        usage: Usage | None = None,
        error: str | None = None,
        status: int = 0,
    ) -> None:
        """The call is over. ``answer_body`` is what the client got; left out: what `sent` was told, or ``answer.body``.

        ``usage`` is looked up in the body later unless it is given; ``error`` says what went wrong, without secrets;
        ``status`` is given when it is not the answer's. Only the first call counts.
        """
        if self._done:
            return
        self._done = True
        self._ended = clock.now()
        self.seconds = _monotonic() - self.began
        self.answer = answer
        self.status = status or answer.status
        self.stream = self._pieces is not None or answer.stream is not None or answer.chunks is not None
        self.usage = usage
        self.error = error or ""
        if answer_body is None and self._pieces is None:
            answer_body = answer.body
        held = self._meter.held
        self.request_size = len(self.request.body)
        weight = self.request_size or _weight(self.request)
        if self.request_size > held:
            self.request = _trimmed(self.request, held)
            weight = held
        if answer_body is not None:
            size = self._size = len(answer_body)
            if size > held:
                self._tail = deque((answer_body[-min(TAIL, size - held) :],))
                answer_body = answer_body[:held]
            weight += len(answer_body)
        else:
            weight += min(self._size, held)
        self.body = answer_body
        self.weight = weight
        self._meter.put(self)

    def abandon(self, answer: Answer | None = None, cause: BaseException | None = None) -> None:
        """The call ended before its answer did: the record has what was sent so far, and status 499, or 503 if
        ``cause`` is a cancellation that is not for the client's leaving: then the server stops."""
        # A run's call is cancelled with its run.
        if isinstance(cause, asyncio.CancelledError) and cause.args != (LEFT,) and self.request.chat is None:
            status, error = STOPPED, STOPPING
        else:
            status, error = ABANDONED, "The client went away before its answer was whole."
        self.finish(Answer(status) if answer is None else answer, error=error, status=status)

    def seen(self) -> Seen:
        """What was taken down, for `loomgate.gateway.record.make`; only after the end."""
        body = b"".join(self._pieces or ()) if self.body is None else self.body
        held = self._meter.held
        tail = b"".join(self._tail) if self._tail is not None else b""
        if len(body) > held:
            body, tail = body[:held], (body[held:] + tail)[-TAIL:]
        return Seen(
            self.request,
            self.request_size,
            self.answer,
            self._ended,
            self.seconds,
            None if self._first is None else self._first - self.began,
            self.status,
            body,
            tail,
            self._size,
            self.stream,
            self.usage,
            self.error,
            self._attempts or (),
            self.trace_id,
            self.virtual_key,
            self.run_id,
            self.thread_id,
        )


class Meter:
    """Takes down calls and sees to it that they are written. Belongs to one event loop.

    ``write`` stores a batch (``None``: no log is kept); ``bodies`` is the most bytes of a request and of an answer that
    a record keeps. ``observers`` are told of every call, ``spend(virtual_key_id, cost, tokens)`` (`Limits.spend`) of
    what it cost.
    ``forget(before)`` drops some records that are older than that time (``True``: there may be more), and is used for
    those older than ``days``, if that is not 0.
    """

    def __init__(
        self,
        write: Write | None,
        prices: Prices,
        bodies: int = 65536,
        *,
        observers: Sequence[Observer] = (),
        spend: Callable[[str, float, int], None] | None = None,
        forget: Callable[[float], Awaitable[bool]] | None = None,
        days: int = 0,
        most: int = _MOST,
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        self._write = write
        self._prices = prices
        self._bodies = bodies
        self._observers = tuple(observers)
        self._spans = any(observer.spans for observer in observers)
        self._spend = spend
        self._forget = forget if days else None
        self._days = days
        self._tidied = float("-inf")
        self._most = most
        self._most_bytes = most_bytes
        self._records: deque[Record] = deque()
        self._bytes = 0
        self._woken: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.held = max(bodies, _LEAST)  # bytes of an answer that are held until its record is made
        self.dropped = 0  # records that were lost: the queue was full, or they could not be written

    def begin(self, request: Request, *, run_id: str = "", thread_id: str = "") -> Record:
        """A record of the call that ``request`` begins now."""
        return Record(self, request, run_id, thread_id)

    def put(self, record: Record) -> None:
        """Queue a finished record."""
        records = self._records
        records.append(record)
        self._bytes += record.weight
        waiting = len(records)
        while waiting > self._most or (self._bytes > self._most_bytes and waiting > 1):
            self._bytes -= records.popleft().weight
            waiting -= 1
            self.dropped += 1
        if waiting == 1 or waiting >= _BATCH or self._bytes >= _BATCH_BYTES:
            if self._task is None:
                self.start()
            if self._woken is not None:
                self._woken.set()

    def start(self) -> None:
        """Begin to drop old records. All else needs no start: the first record that is finished starts the writer."""
        if self._task is None and not self._closed:
            self._woken = asyncio.Event()
            self._task = asyncio.get_running_loop().create_task(self._run(self._woken), name="loomgate-meter")

    async def close(self) -> None:
        """Write what is queued, and stop. Records that are finished later are lost, and counted as such."""
        self._closed = True
        if self._task is not None and self._woken is not None:
            self._woken.set()
            await self._task
        self.dropped += len(self._records)
        self._records.clear()

    # The writer

    async def _run(self, woken: asyncio.Event) -> None:
        while True:
            if not self._records:
                if self._closed:
                    return
                await self._tidy()
                await clock.wait(woken, _TIDY_SECONDS)
            woken.clear()
            if not self._closed and len(self._records) < _BATCH and self._bytes < _BATCH_BYTES:
                await clock.wait(woken, _SECONDS)
            try:
                await self._batch()
            except Exception:
                log.exception("a batch of the log of calls was lost")

    async def _batch(self) -> None:
        batch: list[CallRecord] = []
        left = _BATCH_BYTES
        while self._records and len(batch) < _BATCH and left > 0:
            made: list[Made] = []
            for _ in range(min(_STEP, len(self._records), _BATCH - len(batch))):
                record = self._records.popleft()
                self._bytes -= record.weight
                left -= record.weight
                try:
                    made.append(make(record.seen(), self._prices, self._bodies, spans=self._spans))
                except Exception:
                    self.dropped += 1
                    log.exception("the record of a call could not be made")
            self._tell(made)
            batch += (one.record for one in made)
            await asyncio.sleep(0)
        if batch and self._write is not None:
            await self._stored(self._write, batch)

    async def _tidy(self) -> None:
        forget, now = self._forget, clock.now()
        if forget is None or now < self._tidied + _TIDY_SECONDS:
            return
        self._tidied = now
        try:
            more = True
            while more and not self._closed:
                more = await forget(now - self._days * _DAY)
        except Exception as error:
            log.warning("old records of calls could not be dropped: %s", error)

    def _tell(self, made: list[Made]) -> None:
        for observer in self._observers:
            try:
                observer.observe(made)
            except Exception:
                log.exception("%s could not take note of calls", type(observer).__name__)
        if self._spend is not None:
            for one in made:
                facts = one.record.facts
                if facts.virtual_key and not facts.cache.endswith("HIT"):
                    tokens = facts.prompt_tokens + facts.completion_tokens
                    self._spend(key_id(facts.workspace, facts.virtual_key), facts.cost or 0.0, tokens)

    async def _stored(self, write: Write, batch: list[CallRecord]) -> None:
        waits = iter((*_AGAIN, None))
        away = False
        while True:
            try:
                await write(batch)
            except (StoreAway, StoreBusy) as error:
                # No fault of this batch, so it is kept; others wait behind it, as many as there is room for.
                if self._closed:
                    self.dropped += len(batch)
                    log.error("%d record(s) of calls could not be written: %s", len(batch), error)
                    return
                if not away:
                    log.warning("the log of calls waits for its store: %s", error)
                away = True
                await clock.sleep(_AGAIN[0])
            except Exception as error:
                seconds = next(waits)
                if seconds is None or self._closed:
                    self.dropped += len(batch)
                    log.error("%d record(s) of calls could not be written: %s", len(batch), error)
                    return
                log.warning("the log of calls cannot be written, trying again in %g s: %s", seconds, error)
                await clock.sleep(seconds)
            else:
                return


def _weight(request: Request) -> int:
    """About how many bytes a run's call holds, whose body is made only when it is written."""
    if request.chat is None:
        return 0
    parts = (message.content for message in request.chat.messages)
    return sum(len(part) if isinstance(part, str) else 1000 for part in parts if part)


def _new_trace() -> str:
    """32 hex digits that begin with the time, so that the log's index of traces grows at its end, not everywhere."""
    return f"{clock.timestamp() & 0xFFFFFFFF:08x}{random.getrandbits(96):024x}"


def _trimmed(request: Request, held: int) -> Request:
    """``request`` with the first ``held`` bytes of its body and the fields that are short: what a record needs."""
    try:
        fields = request.fields  # decoded long ago, if it is JSON
    except ApiError:
        fields = {}
    short = {
        name: value
        for name, value in fields.items()
        if isinstance(value, (int, float)) or (isinstance(value, str) and len(value) < _SHORT)
    }
    return Request(
        request.endpoint,
        request.naming,
        request.workspace,
        method=request.method,
        path=request.path,
        query=request.query,
        headers=request.headers,
        content_type=request.content_type,
        body=request.body[:held],
        fields=short,
    )


def _traced(request: Request) -> str:
    """The trace of a W3C ``traceparent`` header (version-trace-parent-flags), "" if there is none that is valid."""
    given = request.headers.get("traceparent")
    if given is None:
        return ""
    parts = given.split("-")
    if len(parts) < 4 or len(parts[1]) != 32 or not parts[1].strip("0"):
        return ""
    try:
        int(parts[1], 16)
    except ValueError:
        return ""
    return parts[1]
