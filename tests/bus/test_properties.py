"""Random nodes, viewers, broken connections and forgotten streams: what a viewer sees has no gap, or begins anew.

A viewer's sequence is numbers that follow each other, or a state that says up to where it is. Nothing else is allowed,
and every stream ends with the run.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loomgate.bus import Subscription, viewing
from loomgate.bus.connection import Redis
from loomgate.wire.events import DONE
from tests.bus.nodes import Run, nodes
from tests.support.engines import RedisServer, folder

_NODES = 3

_ops = st.one_of(
    st.tuples(st.just("tell"), st.integers(0, _NODES - 1), st.integers(1, 4)),
    st.tuples(st.just("tell"), st.integers(0, _NODES - 1), st.integers(1, 4)),
    st.tuples(st.just("join"), st.integers(0, _NODES - 1), st.sampled_from(["start", "back", "late"])),
    st.tuples(st.just("leave"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("rest"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("move"), st.integers(0, _NODES - 1), st.just(0)),
    st.tuples(st.just("cut"), st.just(0), st.just(0)),
    st.tuples(st.just("forget"), st.just(0), st.just(0)),
    st.tuples(st.just("trim"), st.integers(0, 3), st.just(0)),
)


class _Viewer:
    """Reads to the end and holds every event against the one before."""

    def __init__(self, subscription: Subscription, last: int | None) -> None:
        self.subscription = subscription
        self.last = last
        self.last_id: str | None = None
        self.seen: list[bytes] = []
        self.ended = False
        self.task = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        async for id, data in self.subscription:
            self.seen.append(data)
            assert not self.ended, "nothing comes after done"
            if data == DONE:
                self.ended = True
                continue
            if data.startswith(b":"):
                continue
            number = int(data.split(b"data: ")[1])
            if data.startswith(b"event: thread.run"):
                assert self.last is None or number >= self.last, f"a state went back: {self.seen}"
            else:
                assert self.last is not None, f"it began in the middle: {self.seen}"
                assert number == self.last + 1, f"a gap, or twice: {self.seen}"
            self.last = number
            if not id.endswith("state"):
                self.last_id = id


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with folder() as place:
        server = RedisServer(place)
        server.start()
        yield server.url
        server.stop()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing, "_DOUBT_SECONDS", 0.3)
    monkeypatch.setattr(viewing, "_AWAY_SECONDS", 0.1)
    monkeypatch.setattr(viewing, "_BUFFER", 200)
    monkeypatch.setattr(viewing, "_MOST", 400)


_SETTINGS = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_SETTINGS
@given(ops=st.lists(_ops, min_size=5, max_size=30))
def test_every_viewer_sees_all_or_is_told_where_it_stands(url: str, ops: list[tuple[str, int, Any]]) -> None:
    asyncio.run(_play(url, ops))


async def _play(url: str, ops: list[tuple[str, int, Any]]) -> None:
    async with nodes(url) as made:
        admin = Redis(url)
        made._redis.append(admin)
        await admin.call("FLUSHALL")
        buses = [await made.add() for _ in range(_NODES)]
        run, first = await made.begun(buses[0])
        viewers = [_Viewer(first, 0)]
        gone: list[_Viewer] = []
        for op, a, b in ops:
            if op == "tell":
                # By whoever drives it, under its token; another node's word would have no order that we could check.
                assert run.driver is not None
                run.tell(run.driver, b, fence=_fence(run))
            elif op == "move":
                await _quiet(run)
                run.driver = buses[a]
                run.looks += 1 << 20  # a new token for the next one who drives it
            elif op == "join":
                await _join(viewers, gone, run, buses[a], b)
            elif op == "leave" and viewers:
                left = viewers.pop(a % len(viewers))
                left.subscription.close()
                await _done(left)
                gone.append(left)
            elif op == "rest":
                await asyncio.sleep(a * 0.004)
            elif op == "cut":
                kinds = ("normal", "pubsub")
                await admin.calls([("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes") for kind in kinds])
            elif op == "forget":
                await admin.call("FLUSHALL")
            elif op == "trim":
                await admin.call("XTRIM", f"test:run:{run.id}", "MAXLEN", a)
        await asyncio.sleep(0.02)
        run.tell(run.driver or buses[0], settled=True, fence=_fence(run))
        async with asyncio.timeout(15):
            await asyncio.gather(*(viewer.task for viewer in viewers))
        for viewer in viewers:
            assert viewer.ended
            assert viewer.last == run.told, f"{viewer.seen}"


def _fence(run: Run) -> int:
    return 1 + (run.looks >> 20)


async def _quiet(run: Run) -> None:
    """Until what was told has gone out: a worker is followed by another one when it is gone, or gave the run back."""
    publisher: Any = run.driver._publisher  # type: ignore[union-attr]
    async with asyncio.timeout(10):
        while publisher._out:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def _join(viewers: list[_Viewer], gone: list[_Viewer], run: Run, bus: Any, how: str) -> None:
    before = next((viewer for viewer in reversed(gone) if viewer.last_id is not None), None)
    if how == "start":
        found = await bus.join(run.id, None, run.look)
        viewers.append(_Viewer(found, 0))
    elif how == "back" and before is not None:
        found = await bus.join(run.id, before.last_id, run.look)
        viewers.append(_Viewer(found, before.last))
    else:
        viewers.append(_Viewer(await bus.join(run.id, "nothing", run.look), None))


async def _done(viewer: _Viewer) -> None:
    viewer.task.cancel()
    (end,) = await asyncio.gather(viewer.task, return_exceptions=True)
    if isinstance(end, AssertionError):
        raise end
