"""A cluster: PostgreSQL, Redis, API nodes and workers as real processes, each node behind relays of its own; and the
faults of a schedule, done to them.

What must live here: starting, hurting and mending. What must not: which fault comes when (`schedule`), clients, checks.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import loomgate
from loomgate import clock
from loomgate.store import schema
from tests.chaos.relay import Relay
from tests.chaos.schedule import Fault
from tests.chaos.web import Lost, Refused, ask
from tests.support.engines import PostgresServer, RedisServer, free_port

ROOT = Path(__file__).parents[2]
LEASE = 3.0  # seconds, in place of 15
_AGAIN = 0.5  # before a node that ended by itself is started again, as a supervisor does

_SETTINGS = {
    "LOOMGATE_SEAL_KEY": "5e" * 32,
    "LOOMGATE_LEASE_SECONDS": f"{LEASE:g}",
    "LOOMGATE_LEASE_RENEW_SECONDS": "1",
    "LOOMGATE_POLL_INTERVAL_SECONDS": "0.5",
    "LOOMGATE_DATABASE_CONNECTIONS": "6",
    "LOOMGATE_DATABASE_WAIT_SECONDS": "3",
    "LOOMGATE_DATABASE_RETRY_SECONDS": "4",
    "LOOMGATE_DRAIN_SECONDS": "2",
    "LOOMGATE_STREAM_KEEPALIVE_SECONDS": "1.5",
    "LOOMGATE_DRIVE_RUNS": "false",
}


class Node:
    """A process of the cluster: ``api-1`` or ``worker-1``. It keeps its port when it is started again."""

    def __init__(self, name: str, folder: Path, database: int, redis: int) -> None:
        self.name = name
        self.serves = name.startswith("api")
        self.port = free_port()
        self.ways = {"database": Relay(database), "redis": Relay(redis)}
        self.log = folder / f"{name}.log"
        self._data = folder / name
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        self.wanted = False  # it ought to be alive
        self.starts = 0
        self._begins: list[int] = []  # where in the log each process begins

    async def open(self) -> None:
        """Open its ways to the servers."""
        for way in self.ways.values():
            await way.start()

    def start(self) -> None:
        """Start its process."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("LOOMGATE_", "OPENAI_"))}
        environment |= _SETTINGS | {
            "PYTHONPATH": str(Path(loomgate.__path__[0]).parent),
            "PYTHONUNBUFFERED": "1",
            "LOOMGATE_DATABASE_URL": f"postgresql://loomgate@127.0.0.1:{self.ways['database'].port}/chaos",
            "LOOMGATE_REDIS_URL": f"redis://127.0.0.1:{self.ways['redis'].port}/0",
            "LOOMGATE_WORKER_PORT": str(self.port),
        }
        command = ["serve", "--port", str(self.port)] if self.serves else ["worker"]
        with self.log.open("ab") as log:
            self._begins.append(log.tell())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "loomgate", *command, "--data", str(self._data)],
                env=environment,
                stdout=log,
                stderr=log,
            )
        self.wanted, self._paused = True, False
        self.starts += 1

    def kill(self) -> None:
        """SIGKILL, as if its host were gone."""
        self.wanted = False
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> "subprocess.Popen[bytes] | None":
        """SIGSTOP; gives what `resume` wants."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP)
            return self._process
        return None

    def resume(self, process: "subprocess.Popen[bytes] | None") -> None:
        """SIGCONT, unless that process is another one by now."""
        if process is not None and process is self._process:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)

    @property
    def ended(self) -> int | None:
        """The exit status, if it has ended although nobody killed it."""
        return self._process.poll() if self.wanted and self._process is not None else None

    def said(self) -> str:
        """What its present process has said."""
        return self.log.read_bytes()[self._begins[-1] :].decode(errors="replace") if self._begins else ""

    async def ready(self, patience: float) -> None:
        """Wait until it is ready. Raises `AssertionError` with its last words."""
        end = clock.monotonic() + patience
        while clock.monotonic() < end:
            with suppress(Lost, Refused):
                await ask(self.port, "GET", "/ready", patience=2)
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{self.name} is not ready after {patience:g} s: {self.said()[-2000:]}")

    async def stop(self) -> int:
        """End it as an operator does; its exit status."""
        self.wanted = False
        assert self._process is not None
        self._process.terminate()
        try:
            return await asyncio.to_thread(self._process.wait, 20)
        finally:
            self._process.kill()

    async def close(self) -> None:
        """End it, and its ways."""
        self.kill()
        for way in self.ways.values():
            await way.close()


class Cluster:
    """``apis`` API nodes and ``workers`` workers, with servers of their own below ``folder`` (a short path)."""

    def __init__(self, folder: Path, apis: int, workers: int) -> None:
        self._folder = folder
        self._places = [folder / "pg", folder / "redis", folder / "nodes"]
        for place in self._places:
            place.mkdir(mode=0o755)
        self.postgres = PostgresServer(self._places[0])
        self.redis = RedisServer(self._places[1])
        names = [f"api-{n + 1}" for n in range(apis)] + [f"worker-{n + 1}" for n in range(workers)]
        self.nodes = {name: Node(name, self._places[2], self.postgres.port, self.redis.port) for name in names}
        self.faults: list[Fault] = []
        self.trouble: list[str] = []  # nodes that ended by themselves
        self._mending: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    @property
    def url(self) -> str:
        """The database, past every relay."""
        return self.postgres.url("chaos")

    @property
    def ports(self) -> list[int]:
        """Where the API is."""
        return [node.port for node in self.nodes.values() if node.serves]

    async def start(self) -> None:
        """Start everything; returns when every node is ready."""
        await asyncio.to_thread(self.postgres.start)
        await asyncio.to_thread(self.redis.start)
        import asyncpg

        connection = await asyncpg.connect(self.postgres.url())
        await connection.execute("CREATE DATABASE chaos TEMPLATE template0")
        await connection.close()
        await schema.create_postgres(self.url)
        for node in self.nodes.values():
            await node.open()
            node.start()
        for node in self.nodes.values():
            await node.ready(60)
        self._watch = asyncio.create_task(self._supervise())

    async def close(self) -> None:
        """End everything."""
        if self._watch is not None:
            self._watch.cancel()
        for task in self._mending:
            task.cancel()
        for node in self.nodes.values():
            await node.close()
        await asyncio.to_thread(self.redis.stop)
        await asyncio.to_thread(self.postgres.stop)

    async def suffer(self, faults: Iterator[Fault], over: asyncio.Event) -> None:
        """Do every fault at its time until ``over``; returns when all of it is mended."""
        began = clock.monotonic()
        for fault in faults:
            wait = began + fault.at - clock.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(wait, 0.0)):
                    await over.wait()
            if over.is_set():
                break
            self.faults.append(fault)
            task = asyncio.create_task(self._do(fault))
            self._mending.add(task)
            task.add_done_callback(self._mending.discard)
        if self._mending:
            await asyncio.gather(*self._mending)
        for node in self.nodes.values():
            await node.ready(60)

    async def _do(self, fault: Fault) -> None:
        if fault.kind in ("postgres", "crash"):
            how = signal.SIGINT if fault.kind == "postgres" else signal.SIGQUIT
            async with self._lock:
                await asyncio.to_thread(self.postgres.stop, how)
                await asyncio.sleep(fault.seconds)
                await asyncio.to_thread(self.postgres.start)
            return
        if fault.kind == "redis":
            async with self._lock:
                await asyncio.to_thread(self.redis.stop)
                await asyncio.sleep(fault.seconds)
                await asyncio.to_thread(self.redis.start)
            return
        name, _, way = fault.victim.partition("/")
        node = self.nodes[name]
        if fault.kind == "kill":
            node.kill()
            await asyncio.sleep(fault.seconds)
            if not node.wanted:
                node.start()
        elif fault.kind == "pause":
            paused = node.pause()
            await asyncio.sleep(fault.seconds)
            node.resume(paused)
        else:
            relay = node.ways[way]
            if fault.kind == "cut":
                relay.cut()
                return
            relay.refuse() if fault.kind == "refuse" else relay.hold()
            await asyncio.sleep(fault.seconds)
            relay.restore(reset=fault.kind == "lose")

    async def _supervise(self) -> None:
        """Start nodes again that ended by themselves. One that could not begin (its database was away) may do so; one
        that was at work may not."""
        while True:
            await asyncio.sleep(_AGAIN)
            for node in self.nodes.values():
                status = node.ended
                if status is None:
                    continue
                words = node.said()
                if "loomgate listens" in words or "loomgate drives" in words:
                    self.trouble.append(f"{node.name} ended by itself with {status}: {words[-1500:]}")
                node.start()

    def complaints(self) -> list[str]:
        """What the logs say that no log should: tracebacks of nodes, deadlocks in PostgreSQL."""
        found = list(self.trouble)
        for node in self.nodes.values():
            log = node.log.read_text(errors="replace")
            before, *parts = log.split("Traceback (most recent call last):")
            for part in parts:
                said = before.rstrip().rpartition("\n")[2]
                before = part
                found.append(f"{node.name} logged a traceback after {said!r}: {part[:1500]}")
        log = (self.postgres.folder / "log").read_text(errors="replace")
        for line in log.splitlines():
            if "deadlock detected" in line or "PANIC" in line:
                found.append(f"PostgreSQL: {line}")
        return found
