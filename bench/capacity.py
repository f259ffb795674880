"""What a run costs PostgreSQL, in bytes and transactions: the measured figures of docs/capacity.md.

``python -m bench.capacity [RUNS] [ROWS]`` starts a PostgreSQL and a Valkey of its own, a server and a worker, has RUNS
(1,000) real runs made on the scripted model, then copies what one of them left ROWS (100,000) times with ids of their
own, and prints one line per table. It takes a minute or two, and some GB of temporary disk.

What must live here: measuring. What must not: what follows from it, which is the page's.
"""

import asyncio
import http.client
import json
import os
import secrets
import string
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import asyncpg
from tests.support.engines import PostgresServer, RedisServer, folder, free_port

from loomgate.store import schema

TABLES = ("threads", "messages", "runs", "steps")
TEXT = 600  # bytes of what the user says and of what the model answers
CLIENTS = 8
_SETTLE = 12.0  # seconds until a session that is idle has told what it did
_LETTERS = string.ascii_letters + string.digits


def _run(port: int, assistant: str) -> dict[str, Any]:
    """One run of a new thread, streamed to its end; the run as its last event has it."""
    said = ("lorem ipsum dolor sit amet " * TEXT)[:TEXT]
    body = {
        "assistant_id": assistant,
        "stream": True,
        "thread": {"messages": [{"role": "user", "content": "/say " + said}]},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/threads/runs", json.dumps(body), _HEADERS)
    answer = connection.getresponse().read().decode()
    connection.close()
    (line,) = [
        rest.partition("\n")[0].removeprefix("data: ") for rest in answer.split("event: thread.run.completed\n")[1:]
    ]
    found: dict[str, Any] = json.loads(line)
    return found


_HEADERS = {"content-type": "application/json", "openai-beta": "assistants=v2"}


def _assistant(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/assistants", json.dumps({"model": "scripted"}), _HEADERS)
    made: str = json.loads(connection.getresponse().read())["id"]
    return made


async def _counters(database: asyncpg.Connection) -> dict[str, float]:
    await database.execute("SELECT pg_stat_force_next_flush()")
    await asyncio.sleep(_SETTLE)
    await database.execute("SELECT pg_stat_clear_snapshot()")
    found = {
        "wal bytes": "SELECT wal_bytes FROM pg_stat_wal",
        "wal records": "SELECT wal_records FROM pg_stat_wal",
        "full page images": "SELECT wal_fpi FROM pg_stat_wal",
        "commits": "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()",
        "transaction ids": "SELECT (txid_current() & 4294967295)::bigint",
    }
    for table in TABLES:
        for name, column in (("inserts", "n_tup_ins"), ("updates", "n_tup_upd"), ("HOT", "n_tup_hot_upd")):
            found[f"{table} {name}"] = f"SELECT {column} FROM pg_stat_user_tables WHERE relname = '{table}'"
    return {name: float(await database.fetchval(sql)) for name, sql in found.items()}


def _cpu(*pids: int, children: bool = False) -> float:
    """Seconds of CPU that these processes used so far, and their children if told so."""
    ticks = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(") ")[2].split()
        except OSError:  # it is over
            continue
        if int(entry.name) in pids or (children and int(fields[1]) in pids):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def _sizes(database: asyncpg.Connection, table: str) -> tuple[int, int, int, int]:
    """Rows, and bytes of the heap, of TOAST, and of the indexes."""
    row = await database.fetchrow(
        "SELECT pg_relation_size(c.oid) heap, pg_table_size(c.oid) all_, pg_indexes_size(c.oid) indexes"
        " FROM pg_class c WHERE oid = $1::regclass",
        table,
    )
    rows = await database.fetchval(f"SELECT count(*) FROM {table}")
    return rows, row["heap"], row["all_"] - row["heap"], row["indexes"]


async def _copies(database: asyncpg.Connection, url: str, run: dict[str, Any], count: int) -> None:
    """The rows of ``run``'s thread, ``count`` times, in a database of their own whose sizes are printed."""
    kept = {
        table: await database.fetch(
            f"SELECT * FROM {table} WHERE {'id' if table == 'threads' else 'thread_id'} = $1",
            run["thread_id"],
        )
        for table in TABLES
    }
    ids = {row["id"] for rows in kept.values() for row in rows}
    await schema.create_postgres(url)
    copy = await asyncpg.connect(url)
    for start in range(0, count, 5000):
        made: dict[str, list[tuple[Any, ...]]] = {table: [] for table in TABLES}
        for number in range(start, min(start + 5000, count)):
            new = {id: id.partition("_")[0] + "_" + "".join(secrets.choice(_LETTERS) for _ in range(24)) for id in ids}

            def renamed(value: Any, new: dict[str, str] = new) -> Any:
                for old, name in new.items():
                    if isinstance(value, str):
                        value = value.replace(old, name)
                    elif isinstance(value, bytes):
                        value = value.replace(old.encode(), name.encode())
                return value

            for table, rows in kept.items():
                for row in rows:
                    values = {name: renamed(value) for name, value in row.items()}
                    if table == "threads":
                        values["position"] = number
                    made[table].append(tuple(values.values()))
        for table, rows in made.items():
            await copy.copy_records_to_table(table, records=rows, columns=list(kept[table][0].keys()))
    await copy.execute("VACUUM ANALYZE")
    print(f"\nbytes per row of {count} copies of that thread (a message of {TEXT} bytes, an answer as long):")
    total = 0.0
    for table in TABLES:
        rows, heap, toast, indexes = await _sizes(copy, table)
        total += (heap + toast + indexes) / count
        print(
            f"{table:10} {rows:8} rows; heap {heap / rows:6.0f}, TOAST and maps {toast / rows:6.0f},"
            f" indexes {indexes / rows:6.0f}, all {(heap + toast + indexes) / rows:6.0f}"
        )
        for index in await copy.fetch(
            "SELECT indexrelid::regclass::text name, pg_relation_size(indexrelid) size FROM pg_index"
            " WHERE indrelid = $1::regclass ORDER BY 1",
            table,
        ):
            print(f"{'':10}   {index['name']:34} {index['size'] / rows:6.1f}")
    print(f"a thread with one run: {total:.0f} bytes")
    await copy.close()


def _started(command: list[str], environment: dict[str, str], log: BinaryIO) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


async def _measure(postgres: PostgresServer, redis: RedisServer, place: Path, runs: int, count: int) -> None:
    url = postgres.url()
    await schema.create_postgres(url)
    database = await asyncpg.connect(url)
    port = free_port()
    environment = {
        **os.environ,
        "LOOMGATE_DATABASE_URL": url,
        "LOOMGATE_REDIS_URL": redis.url,
        "LOOMGATE_SEAL_KEY": "5e" * 32,
        "LOOMGATE_DRIVE_RUNS": "false",
        "LOOMGATE_DATA": str(place),
    }
    command = [sys.executable, "-m", "loomgate"]
    with (place / "log").open("wb") as log:
        nodes = [
            _started([*command, *words], environment, log) for words in (["serve", "--port", str(port)], ["worker"])
        ]
    try:
        for _ in range(100):
            try:
                assistant = await asyncio.to_thread(_assistant, port)
                break
            except OSError:
                await asyncio.sleep(0.1)
        else:
            raise RuntimeError(f"the server did not start: {(place / 'log').read_text()[-2000:]}")
        with ThreadPoolExecutor(CLIENTS) as clients:
            loop = asyncio.get_running_loop()
            await asyncio.gather(
                *(loop.run_in_executor(clients, _run, port, assistant) for _ in range(50))
            )  # caches are warm
            await database.execute("CHECKPOINT")
            before = await _counters(database)
            pids = [node.pid for node in nodes]
            used = [_cpu(postgres.pid, children=True), _cpu(redis.pid), *map(_cpu, pids)]
            began = loop.time()
            made = await asyncio.gather(*(loop.run_in_executor(clients, _run, port, assistant) for _ in range(runs)))
            took = loop.time() - began
            spent = [_cpu(postgres.pid, children=True), _cpu(redis.pid), *map(_cpu, pids)]
            after = await _counters(database)
            idle = await _counters(database)
        version = await database.fetchval("SHOW server_version")
        print(
            f"PostgreSQL {version}: {runs} runs by {CLIENTS} clients in {took:.1f} s; per run, less what idle nodes do:"
        )
        for name, first, last in zip(("PostgreSQL", "Valkey", "server", "worker"), used, spent, strict=True):
            print(f"CPU of {name:13} {(last - first) / runs * 1000:10.2f} ms")
        for name, value in after.items():
            a_second = (idle[name] - value) / _SETTLE
            each = (value - before[name] - a_second * (took + _SETTLE)) / runs
            print(f"{name:20} {each:10.2f}   (idle: {a_second:.1f}/s)")
        for table in (*TABLES, "calls"):
            rows, heap, toast, indexes = await _sizes(database, table)
            print(
                f"{table:10} as left by {rows} live rows: heap {heap / rows:.0f}, TOAST and maps {toast / rows:.0f},"
                f" indexes {indexes / rows:.0f}"
            )
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            node.wait(30)
    await database.execute("CREATE DATABASE copies TEMPLATE template0")
    await _copies(database, postgres.url("copies"), made[-1], count)
    await database.close()


def main(runs: int = 1000, rows: int = 100_000) -> None:
    """Measures and prints."""
    with folder() as one, folder() as other, tempfile.TemporaryDirectory(prefix="lg-") as place:
        postgres = PostgresServer(one, {"fsync": "on", "shared_buffers": "256MB", "max_wal_size": "4GB"})
        redis = RedisServer(other)
        postgres.start()
        redis.start()
        try:
            asyncio.run(_measure(postgres, redis, Path(place), runs, rows))
        finally:
            redis.stop()
            postgres.stop()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
