"""A cheap closed-loop load generator for HTTP/1.1 on 127.0.0.1, which distrusts what it measures.

What must live here: sending, timing and checking. What must not: what a request means or which figures matter
(that is `bench.run`). Every answer is checked (status, the caller's check, an id never seen before), a connection
that hangs ends the measurement with an error instead of vanishing from the mean, and each result must obey
Little's law: rate x (mean latency + the generator's own time between two requests) = number of connections.

``python -m bench.load URL -c 16 -s 5`` measures one GET, or a POST of ``--body``.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import uvloop

# How far rate x mean latency may be from the number of connections.
TOLERANCE = 0.05
GRACE = 30.0


class BadMeasurement(Exception):
    """An answer was wrong, a connection hung, or the figures contradict each other: nothing may be reported."""


@dataclass(slots=True)
class Answer:
    """One answer as it came: status, body, its ``x-request-id`` (empty if none), and whether it was chunked."""

    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    request_id: bytes = b""


# Takes an answer, returns an id that no other answer may have (or None if answers carry none).
# Raises BadMeasurement if the answer is wrong.
Check = Callable[[Answer], bytes | None]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to send: the bytes of request n, on how many connections, until ``count`` answers or ``seconds``.

    ``grace`` is how many seconds after that a missing answer counts as a hung connection.
    ``marker``: bytes of the body whose arrival is the "first token"; every answer must then have them.
    """

    port: int
    request: Callable[[int], bytes]
    check: Check
    connections: int
    count: int | None = None
    seconds: float = 10.0
    grace: float = GRACE
    marker: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """Figures of one measurement. Times are milliseconds, ``rate`` is answers a second, ``wall`` is seconds.

    ``little`` is rate x (mean latency + own time) / connections: 1.0 when the figures agree with each other.
    ``samples`` are the single latencies in order of arrival, or the times to the first token if the load had a
    ``marker``.
    """

    connections: int
    answers: int
    wall: float
    rate: float
    mean: float
    p50: float
    p99: float
    first_p50: float | None
    first_p99: float | None
    little: float
    reconnects: int
    samples: tuple[float, ...] = field(repr=False)


def request(method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """The bytes of one request on a kept-alive connection; ``body`` is sent as JSON."""
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    if method != "GET":
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of ``values`` lie: nearest rank, no interpolation."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Measurement:
    """What the connections of one load share: the clock, the answers' times, and the first error."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.done = asyncio.get_running_loop().create_future()
        self.started = self.ended = 0.0
        self.deadline = 0.0
        self.own = 0.0
        self.sent = 0
        self._waiting: list[_Connection] = []
        self.idle = 0
        self.totals: list[float] = []
        self.firsts: list[float] = []
        self.reconnects = 0
        self._ids: set[bytes] = set()
        self._request_ids: set[bytes] = set()

    def ready(self, connection: "_Connection") -> None:
        """A connection is open: the clock starts when all of them are, and with it every one of them."""
        self._waiting.append(connection)
        if len(self._waiting) == self.load.connections:
            self.started = time.perf_counter()
            self.deadline = self.started + self.load.seconds
            for waiting in self._waiting:
                waiting.send(time.perf_counter())

    def next(self) -> bytes | None:
        """The next request's bytes, or None when the load has been sent."""
        if self.load.count is not None and self.sent >= self.load.count:
            return None
        if time.perf_counter() >= self.deadline:
            return None
        self.sent += 1
        return self.load.request(self.sent - 1)

    def rest(self) -> None:
        """A connection has nothing more to do."""
        self.idle += 1
        if self.idle == self.load.connections and not self.done.done():
            self.ended = time.perf_counter()
            self.done.set_result(None)

    def fail(self, message: str) -> None:
        """Give the measurement up; the first reason counts."""
        if not self.done.done():
            self.done.set_exception(BadMeasurement(message))

    def take(self, answer: Answer, total: float, first: float | None) -> None:
        """Check an answer and record its times (seconds)."""
        if answer.status != 200:
            self.fail(f"status {answer.status}: {bytes(answer.body[:500])!r}")
            return
        if self.load.marker is not None and first is None:
            self.fail(f"no {self.load.marker!r} in {bytes(answer.body[-500:])!r}")
            return
        try:
            own = self.load.check(answer)
        except BadMeasurement as error:
            self.fail(str(error))
            return
        for value, seen in ((own, self._ids), (answer.request_id or None, self._request_ids)):
            if value is not None:
                if value in seen:
                    self.fail(f"the id {value!r} came in two answers")
                    return
                seen.add(value)
        self.totals.append(total)
        if first is not None:
            self.firsts.append(first)


class _Connection(asyncio.Protocol):
    """One client: sends the next request when the last one is answered."""

    def __init__(self, measurement: _Measurement, since: float | None) -> None:
        self._all = measurement
        self._since = since
        self._marker = measurement.load.marker
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._answer: Answer | None = None
        self._sent_at = 0.0
        self._first: float | None = None
        self._complete = self._close = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._since is None:
            self._all.ready(self)
        else:
            self.send(self._since)

    def send(self, since: float) -> None:
        """Send the next request; its latency counts from ``since`` (earlier than now if it had to connect first)."""
        assert self._transport is not None
        data = self._all.next()
        if data is None:
            self._all.own += time.perf_counter() - since
            self._transport.close()
            self._all.rest()
            return
        self._parser = httptools.HttpResponseParser(self)
        self._complete = False
        self._answer = Answer()
        self._first = None
        self._sent_at = since
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._answer is None:
            self._all.fail(f"bytes after the end of an answer: {data[:200]!r}")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._all.fail(f"not HTTP: {error}")
            return
        # Not from within the parser: what else was in ``data`` would be taken for the next request's answer.
        if self._complete:
            self._finish(self._parser, self._answer)

    def on_message_begin(self) -> None:
        if self._complete:
            self._all.fail("an answer to no request")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answer is not None and name.lower() == b"x-request-id":
            self._answer.request_id = value

    def on_body(self, body: bytes) -> None:
        if self._answer is None:
            return
        self._answer.body += body
        if self._marker is not None and self._first is None and self._marker in self._answer.body:
            self._first = time.perf_counter() - self._sent_at

    def on_message_complete(self) -> None:
        self._complete = True

    def _finish(self, parser: httptools.HttpResponseParser, answer: Answer) -> None:
        arrived = time.perf_counter()
        answer.status = parser.get_status_code()
        self._close = not parser.should_keep_alive()
        self._answer = self._parser = None
        self._all.take(answer, arrived - self._sent_at, self._first)
        now = time.perf_counter()
        self._all.own += now - arrived
        if self._all.done.done():
            return
        if self._close:
            # The answer said so: the next request goes over a new connection, which connection_lost opens.
            assert self._transport is not None
            self._since = now
            self._transport.close()
        else:
            self.send(now)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None:
            self._all.fail(f"the connection broke in the middle of a request: {exc}")
        elif self._close and not self._all.done.done():
            self._close = False
            self._all.reconnects += 1
            _open(self._all, self._since)


def _open(measurement: _Measurement, since: float | None = None) -> None:
    async def connect() -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: _Connection(measurement, since), "127.0.0.1", measurement.load.port
            )
        except OSError as error:
            measurement.fail(f"cannot connect: {error}")

    task = asyncio.get_running_loop().create_task(connect())
    measurement.done.add_done_callback(lambda _: task.cancel())


async def drive(load: Load) -> Result:
    """Send ``load`` and give its figures. Raises `BadMeasurement` if anything about it cannot be trusted."""
    measurement = _Measurement(load)

    def broken(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        measurement.fail(f"the load generator itself failed: {context.get('exception') or context['message']!r}")

    asyncio.get_running_loop().set_exception_handler(broken)
    for _ in range(load.connections):
        _open(measurement)
    try:
        await asyncio.wait_for(measurement.done, load.seconds + load.grace)
    except TimeoutError:
        hung = load.connections - measurement.idle
        raise BadMeasurement(f"{hung} of {load.connections} connections hang") from None
    return _result(load, measurement, measurement.ended - measurement.started)


def _result(load: Load, measurement: _Measurement, wall: float) -> Result:
    totals, firsts = measurement.totals, measurement.firsts
    if not totals:
        raise BadMeasurement("no answers at all")
    if len(totals) != measurement.sent:
        raise BadMeasurement(f"{measurement.sent} requests sent, {len(totals)} answers")
    rate, mean = len(totals) / wall, sum(totals) / len(totals)
    little = rate * (mean + measurement.own / len(totals)) / load.connections
    # At the end of a load a connection rests for up to one latency while the others finish.
    if not 1 - TOLERANCE - mean / wall <= little <= 1 + TOLERANCE:
        raise BadMeasurement(f"rate x mean latency is {little:.3f} of the {load.connections} connections")
    return Result(
        connections=load.connections,
        answers=len(totals),
        wall=wall,
        rate=rate,
        mean=mean * 1e3,
        p50=quantile(totals, 0.5) * 1e3,
        p99=quantile(totals, 0.99) * 1e3,
        first_p50=quantile(firsts, 0.5) * 1e3 if firsts else None,
        first_p99=quantile(firsts, 0.99) * 1e3 if firsts else None,
        little=little,
        reconnects=measurement.reconnects,
        samples=tuple(value * 1e3 for value in firsts or totals),
    )


def measure(load: Load) -> Result:
    """`drive` from synchronous code, on an event loop of its own."""
    return uvloop.run(drive(load))


def main() -> None:
    """Measure one URL of this machine from the command line and print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="bench.load", description="A closed-loop load on one URL of 127.0.0.1.")
    parser.add_argument("url", help="http://127.0.0.1:PORT/path")
    parser.add_argument("-c", "--connections", type=int, default=1)
    parser.add_argument("-n", "--count", type=int)
    parser.add_argument("-s", "--seconds", type=float, default=5.0)
    parser.add_argument("--body", help="send it as JSON in a POST")
    parser.add_argument("--marker", help="text of the body whose arrival is timed as the first token")
    options = parser.parse_args()
    url = urlsplit(str(options.url))
    if url.hostname != "127.0.0.1" or url.port is None:
        parser.error("only http://127.0.0.1:PORT/… is measured")
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    headers = {"authorization": "Bearer bench", "openai-beta": "assistants=v2"}
    data = request("POST" if options.body else "GET", path, (options.body or "").encode(), headers)
    load = Load(
        port=url.port,
        request=lambda _: data,
        check=lambda _: None,
        connections=options.connections,
        count=options.count,
        seconds=options.seconds,
        marker=options.marker.encode() if options.marker else None,
    )
    try:
        figures = asdict(measure(load))
    except BadMeasurement as error:
        sys.exit(f"load: {error}")
    del figures["samples"]
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
