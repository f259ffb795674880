"""A cluster to be measured: PostgreSQL, Redis, an API node and workers, all on the same two cores, nothing pinned.

What must live here: starting, killing, and asking the database for its own counts. What must not: what is measured.
"""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
from tests.support.engines import PostgresServer, RedisServer

from bench.load import BadMeasurement, request
from bench.machine import HEADERS, fetch, free_port
from loomgate.store import schema

# As an operator would have it; every commit is made durable.
POSTGRES = {"fsync": "on", "shared_buffers": "512MB", "max_connections": "200", "max_wal_size": "4GB"}
_STATEMENT = re.compile(r"LOG:  (?:execute [^:]*|statement): (\w+)")


class Node:
    """A process of the cluster on a port of its own."""

    def __init__(self, cluster: "Cluster", name: str, *command: str, **settings: str) -> None:
        self.name, self.port, self.headers = name, free_port(), HEADERS
        self.log = cluster.folder / f"{name}.log"
        with self.log.open("wb") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "loomgate", *command, "--data", str(cluster.folder / name)],
                env=cluster.environment
                | {"LOOMGATE_PORT": str(self.port), "LOOMGATE_WORKER_PORT": str(self.port), **settings},
                stdout=log,
                stderr=log,
            )
        self.pid = self._popen.pid
        end = time.perf_counter() + 60
        probe = request("GET", "/ready", headers={})
        while True:
            try:
                if fetch(self.port, probe)[0] == 200:
                    return
            except OSError:
                pass
            if self._popen.poll() is not None or time.perf_counter() > end:
                raise BadMeasurement(f"{name} did not start: {self.log.read_text()[-1500:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL."""
        self._popen.kill()
        self._popen.wait()

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self._popen.terminate()
        try:
            self._popen.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


class Cluster:
    """Servers below ``folder`` (a short path); nodes are started one by one."""

    def __init__(self, folder: Path, upstream: int) -> None:
        self.folder = folder
        for name in ("pg", "redis"):
            (folder / name).mkdir(mode=0o755)
        self.postgres = PostgresServer(folder / "pg", POSTGRES)
        self.redis = RedisServer(folder / "redis")
        self.postgres.start()
        self.redis.start()
        self._runner = asyncio.Runner()
        self.sql("CREATE DATABASE bench TEMPLATE template0", database="postgres")
        self.url = self.postgres.url("bench")
        self._runner.run(schema.create_postgres(self.url))
        self._nodes: list[Node] = []
        self._names = 0
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOOMGATE_", "OPENAI_"))}
        self.environment = kept | {
            "LOOMGATE_DATABASE_URL": self.url,
            "LOOMGATE_REDIS_URL": self.redis.url,
            "LOOMGATE_SEAL_KEY": "5e" * 32,
            "LOOMGATE_DRIVE_RUNS": "false",
            "OPENAI_API_KEY": "sk-bench",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream}/v1",
        }

    def new_key(self) -> str:
        """An API key, so that what is measured includes checking it."""
        done = subprocess.run(
            [sys.executable, "-m", "loomgate", "keys", "create", "--name", "bench"],
            check=False,
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.folder,
        )
        if done.returncode != 0:
            raise BadMeasurement(f"cannot create an API key: {done.stderr.strip()}")
        return done.stdout.strip()

    def api(self) -> Node:
        """An API node, ready."""
        return self._start("api", "serve")

    def worker(self, **settings: str) -> Node:
        """A worker, ready; ``settings`` are environment variables."""
        return self._start("worker", "worker", **settings)

    @contextmanager
    def workers(self, count: int) -> Generator[list[Node]]:
        """``count`` workers for a while."""
        started = [self.worker() for _ in range(count)]
        try:
            yield started
        finally:
            for node in started:
                node.stop()

    def _start(self, name: str, *command: str, **settings: str) -> Node:
        self._names += 1
        node = Node(self, f"{name}-{self._names}", *command, **settings)
        self._nodes.append(node)
        return node

    def sql(self, statement: str, *arguments: Any, database: str = "bench") -> list[Any]:
        """The rows of one statement."""

        async def ask() -> list[Any]:
            connection = await asyncpg.connect(self.postgres.url(database), timeout=10)
            try:
                return await connection.fetch(statement, *arguments, timeout=600)
            finally:
                await connection.close()

        return self._runner.run(ask())

    def transactions(self) -> int:
        """How many transactions PostgreSQL has ended in this database, reads of one statement included."""
        time.sleep(1.2)  # a server process tells of its own once a second
        (row,) = self.sql("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'bench'")
        return int(row[0])

    @contextmanager
    def statements(self, into: dict[str, int]) -> Generator[None]:
        """Count every statement by its first word while this lasts, out of PostgreSQL's log."""
        log = self.postgres.folder / "log"
        self.sql("ALTER SYSTEM SET log_statement = 'all'")
        self.sql("SELECT pg_reload_conf()")
        time.sleep(0.5)
        began = log.stat().st_size
        yield
        ended = log.stat().st_size
        self.sql("ALTER SYSTEM RESET log_statement")
        self.sql("SELECT pg_reload_conf()")
        with log.open("rb") as opened:
            opened.seek(began)
            for word in _STATEMENT.findall(opened.read(ended - began).decode(errors="replace")):
                into[word.upper()] = into.get(word.upper(), 0) + 1

    def close(self) -> None:
        """End everything."""
        for node in self._nodes:
            node.kill()
        self._runner.close()
        self.redis.stop()
        self.postgres.stop()
