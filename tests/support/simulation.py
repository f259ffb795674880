"""Whole servers on an event loop that the test turns by hand: nothing happens, and no time passes, by itself.

What is real: the store (SQLite in a file), the engine, the workers, the gateway, the scripted model. What differs:
the clock stands still until `Simulation.advance`, the loop's timers follow it, and a commit runs when it is begun
instead of in a thread. So a run of the test depends on nothing but the order in which it did things.
"""

import asyncio
import random
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import Executor, Future
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import apsw
import msgspec

from loomgate import clock
from loomgate.bus.local import LocalBus
from loomgate.engine.service import Engine
from loomgate.engine.worker import Worker, WorkerSettings
from loomgate.gateway import Gateway, GatewayConfig
from loomgate.store import Store, schema
from loomgate.store.seal import Sealer
from loomgate.store.sqlite import SqliteDatabase
from loomgate.wire import ids

SETTINGS = WorkerSettings(concurrency=3)

# What every commit changed, as the database saw it: the one record that no code of ours can colour.
_LOG = """
CREATE TABLE log (seq INTEGER PRIMARY KEY, kind TEXT, id TEXT, thread TEXT, verb TEXT, before TEXT, after TEXT,
                  old BLOB, new BLOB);
CREATE TRIGGER run_made AFTER INSERT ON runs BEGIN
  INSERT INTO log VALUES (NULL, 'run', NEW.id, NEW.thread_id, 'insert', NULL, NEW.status, NULL, NEW.body); END;
CREATE TRIGGER run_changed AFTER UPDATE OF body, status ON runs BEGIN
  INSERT INTO log VALUES (NULL, 'run', NEW.id, NEW.thread_id, 'update', OLD.status, NEW.status, OLD.body, NEW.body);
END;
CREATE TRIGGER step_made AFTER INSERT ON steps BEGIN
  INSERT INTO log VALUES (NULL, 'step', NEW.id, NEW.thread_id, 'insert', NULL, NEW.status, NULL, NEW.body); END;
CREATE TRIGGER step_changed AFTER UPDATE ON steps BEGIN
  INSERT INTO log VALUES (NULL, 'step', NEW.id, NEW.thread_id, 'update', OLD.status, NEW.status, OLD.body, NEW.body);
END;
CREATE TRIGGER step_gone AFTER DELETE ON steps BEGIN
  INSERT INTO log VALUES (NULL, 'step', OLD.id, OLD.thread_id, 'delete', OLD.status, NULL, OLD.body, NULL); END;
CREATE TRIGGER message_made AFTER INSERT ON messages BEGIN
  INSERT INTO log VALUES (NULL, 'message', NEW.id, NEW.thread_id, 'insert', NULL, NULL, NULL, NEW.body); END;
CREATE TRIGGER message_changed AFTER UPDATE ON messages BEGIN
  INSERT INTO log VALUES (NULL, 'message', NEW.id, NEW.thread_id, 'update', NULL, NULL, OLD.body, NEW.body); END;
CREATE TRIGGER message_gone AFTER DELETE ON messages BEGIN
  INSERT INTO log VALUES (NULL, 'message', OLD.id, OLD.thread_id, 'delete', NULL, NULL, OLD.body, NULL); END;
"""


class Change(msgspec.Struct, frozen=True):
    """One row changed: statuses are the column's (of a message: its body's), bodies decoded JSON."""

    kind: str
    id: str
    thread: str
    verb: str
    before: str | None
    after: str | None
    old: dict[str, Any] | None
    new: dict[str, Any] | None


class _Loop(asyncio.SelectorEventLoop):
    def time(self) -> float:
        return clock.now()

    @property
    def idle(self) -> bool:
        return not self._ready


class _AtOnce(Executor):
    """Runs what it is given before it answers."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)
        return done


class RecordingBus(LocalBus):
    """A bus that remembers all that was published: (run id, event name or ``done``, data)."""

    def __init__(self) -> None:
        super().__init__(retention_seconds=120, retention_bytes=1 << 24)
        self.published: list[tuple[str, str, Any]] = []

    def publish(self, run_id: str, events: list[bytes], *, settled: bool = False, **rest: Any) -> None:
        """See `Bus.publish`."""
        super().publish(run_id, events, settled=settled, **rest)
        self.published += [(run_id, *parse(event)) for event in events]
        if settled:
            self.published.append((run_id, "done", None))


def parse(event: bytes) -> tuple[str, Any]:
    """Name and data of an event's bytes; ``done`` has no data, a comment no name."""
    if event.startswith(b":"):
        return "", None
    name, _, data = event.decode().removesuffix("\n\n").partition("\n")
    name, data = name.removeprefix("event: "), data.removeprefix("data: ")
    return name, None if data == "[DONE]" else msgspec.json.decode(data)


class _Gate:
    """Where a worker waits while it is stopped, and where it finds out that it is dead."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.dead = False

    async def wait(self) -> None:
        await self.open.wait()
        if self.dead:
            raise asyncio.CancelledError


class _Gated:
    """The verbs of ``real``, each of which waits at the gate before it begins."""

    def __init__(self, real: Any, gate: _Gate) -> None:
        self._real = real
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._real, name)

        async def gated(*args: Any, **kwargs: Any) -> Any:
            await self._gate.wait()
            return await verb(*args, **kwargs)

        return gated


class Process:
    """A worker as a process of its own: it can be stopped for a while, and it can die."""

    def __init__(self, store: Store, gateway: Gateway, bus: RecordingBus) -> None:
        self.bus = bus
        self.gate = gate = _Gate()

        class Calls:
            async def chat(self, *args: Any) -> AsyncGenerator[Any, None]:
                async with aclosing(gateway.chat(*args)) as chunks:
                    async for chunk in chunks:
                        await gate.wait()
                        yield chunk

        self.worker = Worker(
            SimpleNamespace(runs=_Gated(store.runs, gate), exclusive=False),  # type: ignore[arg-type]
            Calls(),  # type: ignore[arg-type]
            bus,
            SETTINGS,
        )

    def pause(self) -> None:
        self.gate.open.clear()

    def resume(self) -> None:
        self.gate.open.set()

    def kill(self) -> list[asyncio.Task[None]]:
        """End all its tasks where they are: nothing is handed back, nobody is told."""
        worker = self.worker
        self.gate.dead = True
        self.gate.open.set()
        worker.bus.listeners.remove(worker._look_at)
        tasks = [*worker._tasks, *(drive.task for drive in worker._drives.values())]
        for task in tasks:
            task.cancel()
        return tasks


class Simulation:
    """A store, the verbs that clients use, and one or more workers."""

    def __init__(self, rule: str = "reject") -> None:
        # In this thread alone: servers that other tests keep in theirs go on in their own time. The start is a round
        # second: what happens in one step of the test has one timestamp.
        self._now = 1.8e9 - clock._offset
        self._thread = threading.get_ident()
        self._began = self._now
        self._dice = random.Random(0)
        self._patches = (
            mock.patch.object(clock, "time", SimpleNamespace(time=self._time, monotonic=self._monotonic)),
            mock.patch.object(ids, "secrets", SimpleNamespace(randbelow=self._below)),
        )
        for patch in self._patches:
            patch.start()
        self._folder = tempfile.mkdtemp()
        path = Path(self._folder) / "loomgate.db"
        shutil.copy(_template(), path)
        self.loop = _Loop()
        asyncio.set_event_loop(self.loop)
        database = SqliteDatabase(path, synchronous="normal")
        database._disk.shutdown()
        database._disk = _AtOnce()  # type: ignore[assignment]
        self.store = Store(database, Sealer(bytes(32)), [], rule)
        self._log = apsw.Connection(str(path))
        self._seen = 0
        self.bus = RecordingBus()
        self.gateway = Gateway(GatewayConfig(), dice=lambda: 0.5)
        self.engine = Engine(self.store, self.gateway, self.bus, SETTINGS)
        self.processes: list[Process] = []
        self.tasks: set[asyncio.Task[Any]] = set()

    def add_worker(self, bus: RecordingBus | None = None) -> Process:
        process = Process(self.store, self.gateway, bus or self.bus)
        self.processes.append(process)
        self.loop.call_soon(process.worker.start)
        return process

    def kill(self, process: Process) -> None:
        self.processes.remove(process)
        self.tasks.update(process.kill())

    def turn(self, times: int = 1) -> None:
        """Let the event loop do what is ready, ``times`` over."""
        for _ in range(times):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
        self._reap()

    def settle(self) -> None:
        """Turn until nothing is left to do before time passes."""
        for _ in range(20_000):
            self.turn()
            if self.loop.idle:
                return
        raise AssertionError("it never comes to rest")

    @property
    def _ours(self) -> bool:
        return threading.get_ident() == self._thread

    def _time(self) -> float:
        return self._now if self._ours else time.time()  # noqa: TID251 - what clock asks

    def _monotonic(self) -> float:
        return self._now - self._began if self._ours else time.monotonic()

    def _below(self, most: int) -> int:
        return self._dice.randrange(most) if self._ours else secrets.randbelow(most)

    def advance(self, seconds: float) -> None:
        """What `clock.advance` does, for this loop alone."""
        self._now += seconds
        for woken, loop in tuple(clock._sleepers.values()):
            if loop is self.loop:
                loop.call_soon(woken.set)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin ``work``; what it raises comes out of a later `turn`."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        return task

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Begin ``work`` and turn until it is done."""
        task = self.loop.create_task(work)
        for _ in range(20_000):
            if task.done():
                return task.result()
            self.turn()
        raise AssertionError("a client's call never ends")

    def _reap(self) -> None:
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            if not task.cancelled():
                task.result()

    def changes(self) -> list[Change]:
        """What was committed since the last look, in order."""
        found: list[Change] = []
        for row in self._log.execute("SELECT * FROM log WHERE seq > ? ORDER BY seq", (self._seen,)):
            self._seen = row[0]
            kind, id, thread, verb, before, after = row[1:7]
            old, new = (None if body is None else msgspec.json.decode(body) for body in row[7:9])
            if kind == "message":
                before, after = old and old["status"], new and new["status"]
            found.append(Change(kind, id, thread, verb, before, after, old, new))
        return found

    def holders(self) -> list[tuple[str, str]]:
        """(thread, status) of every run that holds its thread."""
        return list(self._log.execute("SELECT holds, status FROM runs WHERE holds IS NOT NULL"))

    def executing(self) -> list[tuple[str, int]]:
        """(thread, how many) runs that are neither waiting nor at an end nor parted from their thread."""
        return list(
            self._log.execute(
                "SELECT thread_id, count(*) FROM runs WHERE due IS NOT NULL AND status IN ('in_progress', "
                "'requires_action') GROUP BY thread_id"
            )
        )

    def close(self) -> None:
        for process in list(self.processes):
            process.resume()
            self.kill(process)
        self.settle()
        for task in self.tasks:
            task.cancel()
        self.settle()
        self.loop.run_until_complete(self.store.close())
        self._log.close()
        asyncio.set_event_loop(None)
        self.loop.close()
        shutil.rmtree(self._folder)
        for patch in self._patches:
            patch.stop()


_made: list[Path] = []


def _template() -> Path:
    if not _made:
        path = Path(tempfile.mkdtemp()) / "template.db"
        schema.upgrade(path)
        connection = apsw.Connection(str(path))
        connection.execute(_LOG)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        _made.append(path)
    return _made[0]
