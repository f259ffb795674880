"""``make bench-cluster``: the figures of several nodes on PostgreSQL and Redis, all of it on two cores.

What must live here: which figures are taken and how. What must not: how load is made (`bench.load`), how figures are
shown (`bench.cluster.report`), how processes are run (`bench.cluster.nodes`).

A run is what it is for `bench.run`: one ``POST /v1/threads/runs`` with ``stream: true``, read to its end, with one call
of an instant model endpoint over HTTP. Rounds with different numbers of workers are interleaved.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench import machine
from bench.cluster import report
from bench.cluster.nodes import Cluster, Node
from bench.load import Answer, BadMeasurement, Load, measure, request
from bench.machine import LOAD_CORE, SERVER_CORE, Upstream
from bench.report import say
from bench.run import PAGE, Runs, call, served

_Json = dict[str, Any]
_SHORT = 20
_WAIT = 40  # seconds that a run of the recovery test takes by itself: longer than any recovery


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured. The default takes about five minutes."""

    workers: tuple[int, ...] = (1, 2, 4)
    rounds: int = 3
    clients: int = 32
    seconds: float = 5.0
    counted: int = 200
    size: int = 1_000_000
    lists: tuple[int, ...] = (1, 16)
    list_seconds: float = 4.0
    kills: int = 2  # rounds of three
    held: int = 24


QUICK = Plan(workers=(1, 2), rounds=1, seconds=1.5, counted=20, size=5_000, list_seconds=1.0, kills=1, held=9)


def throughput(cluster: Cluster, runs: Runs, upstream: int, plan: Plan) -> list[_Json]:
    """Runs a second with each number of workers, in interleaved rounds."""
    found: dict[int, list[_Json]] = {count: [] for count in plan.workers}
    for _ in range(plan.rounds):
        for count in plan.workers:
            with cluster.workers(count):
                measure(runs.load(4, count=20))
                before = served(upstream)
                result = measure(runs.load(plan.clients, seconds=plan.seconds))
                calls = served(upstream) - before
            if calls != result.answers:
                raise BadMeasurement(f"{result.answers} runs made {calls} model calls")
            found[count].append({"rate": result.rate, "p50": result.p50, "p99": result.p99})
    first = [row["rate"] for row in found[plan.workers[0]]]
    return [
        {
            "workers": count,
            "rate": statistics.median(row["rate"] for row in rows),
            "rates": [row["rate"] for row in rows],
            "p50": statistics.median(row["p50"] for row in rows),
            "p99": max(row["p99"] for row in rows),
            "of_first": [row["rate"] / one for row, one in zip(rows, first, strict=True)],
        }
        for count, rows in found.items()
    ]


def cost(cluster: Cluster, runs: Runs, plan: Plan) -> _Json:
    """Transactions and statements of a plain run; what idle nodes do meanwhile is taken off."""
    with cluster.workers(1):
        measure(runs.load(4, count=20))
        began, before = time.perf_counter(), cluster.transactions()
        time.sleep(3)
        after = cluster.transactions()
        idle = (after - before) / (time.perf_counter() - began)
        began, before = time.perf_counter(), cluster.transactions()
        measure(runs.load(8, count=plan.counted))
        after = cluster.transactions()
        spent = after - before - idle * (time.perf_counter() - began)
        words: dict[str, int] = {}
        with cluster.statements(words):
            measure(runs.load(8, count=plan.counted))
    written = words.get("BEGIN", 0)
    queries = sum(count for word, count in words.items() if word not in ("BEGIN", "COMMIT", "ROLLBACK"))
    return {
        "transactions": spent / plan.counted,
        "writing": written / plan.counted,
        "queries": queries / plan.counted,
        "round_trips": sum(words.values()) / plan.counted,
        "by_word": {word: count / plan.counted for word, count in sorted(words.items())},
        "idle_per_second": idle,
    }


# Copies of a run that was really made, with ids and order keys of their own: half in one thread, the rest in threads
# of `_SHORT`. Made where they lie, so that a million of them take a minute.
_THREADS = """
    INSERT INTO threads (id, workspace, position, positions, messages, on_active_run, body)
    SELECT 'thread_' || lpad(to_hex(n), 24, '0'), t.workspace, w.positions + n + 1,
           t.positions + CASE WHEN n = 0 THEN $2::bigint ELSE $3::bigint END, t.messages, t.on_active_run,
           convert_to(replace(convert_from(t.body, 'UTF8'), t.id, 'thread_' || lpad(to_hex(n), 24, '0')), 'UTF8')
    FROM threads t JOIN workspaces w ON w.id = t.workspace, generate_series(0, $4::bigint) AS n WHERE t.id = $1
"""
_RUNS = """
    INSERT INTO runs ({columns})
    SELECT {values}
    FROM runs r JOIN threads t ON t.id = r.thread_id, generate_series(0, $2::bigint - 1) AS n,
    LATERAL (SELECT CASE WHEN n < $3::bigint THEN 0 ELSE 1 + (n - $3::bigint) / $4::bigint END AS at) AS placed,
    LATERAL (SELECT 'run_' || lpad(to_hex(n), 24, '0') AS run,
                    'thread_' || lpad(to_hex(at), 24, '0') AS thread) AS named
    WHERE r.id = $1
"""
_BODY = "replace(replace(convert_from(r.body, 'UTF8'), r.id, named.run), r.thread_id, named.thread)"
_CHANGED = {
    "id": "named.run",
    "thread_id": "named.thread",
    "position": "t.positions + 1 + CASE WHEN n < $3::bigint THEN n ELSE (n - $3::bigint) % $4::bigint END",
    "body": f"convert_to({_BODY}, 'UTF8')",
}


def lists(cluster: Cluster, server: Node, runs: Runs, plan: Plan) -> _Json:
    """Pages of ``PAGE`` runs of a thread, with ``plan.size`` runs in the database."""
    answer = Answer()
    made: list[bytes] = []
    with cluster.workers(1):
        measure(
            Load(
                port=server.port,
                request=lambda _: runs.data,
                check=lambda got: (answer.body.extend(got.body), made.append(runs.check(got)), made[-1])[2],
                connections=1,
                count=1,
            )
        )
    run = made[0].decode()
    (row,) = cluster.sql("SELECT thread_id FROM runs WHERE id = $1", run)
    deep = plan.size // 2
    threads = (plan.size - deep) // _SHORT
    began = time.perf_counter()
    cluster.sql(_THREADS, row[0], deep, _SHORT, threads)
    names = [
        column[0]
        for column in cluster.sql(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'runs' ORDER BY ordinal_position"
        )
    ]
    values = ", ".join(_CHANGED.get(name, f"r.{name}") for name in names)
    cluster.sql(_RUNS.format(columns=", ".join(names), values=values), run, plan.size, deep, _SHORT)
    cluster.sql("VACUUM ANALYZE runs")
    cluster.sql("VACUUM ANALYZE threads")
    seconds = time.perf_counter() - began
    (count,) = cluster.sql("SELECT count(*) FROM runs")
    if count[0] < plan.size:
        raise BadMeasurement(f"{count[0]} runs are there, not {plan.size}")

    def named(number: int) -> str:
        return f"thread_{number:024x}"

    rows: list[_Json] = []
    step = max(1, threads // 500)
    places = {"long": [named(0)], "short": [named(n) for n in range(1, threads, step)][:500]}
    for layout, chosen in places.items():
        page = call(
            server.port, request("GET", f"/v1/threads/{chosen[0]}/runs?limit=5", headers=server.headers), "list"
        )
        if len({found["id"] for found in page["data"]}) != 5 or page["data"][0]["thread_id"] != chosen[0]:
            raise BadMeasurement(f"wrong page of {layout}: {page}")
        for clients in plan.lists:
            requests = [
                request("GET", f"/v1/threads/{thread}/runs?limit={PAGE}", headers=server.headers) for thread in chosen
            ]
            load = Load(
                port=server.port,
                request=lambda n, r=requests: r[n % len(r)],
                check=_page,
                connections=clients,
                seconds=plan.list_seconds,
            )
            measure(replace(load, seconds=1.0))
            result = measure(load)
            rows.append(
                {"layout": layout, "connections": clients, "rate": result.rate, "p50": result.p50, "p99": result.p99}
            )
    (size,) = cluster.sql("SELECT pg_database_size('bench') / 1e6")
    return {"runs": plan.size, "load_seconds": seconds, "database_mb": float(size[0]), "rows": rows}


def _page(answer: Answer) -> None:
    found = answer.body.count(b'"object":"thread.run"')
    if found != PAGE:
        raise BadMeasurement(f"expected a page of {PAGE} runs, found {found}")


def recovery(cluster: Cluster, server: Node, plan: Plan) -> _Json:
    """Seconds from a worker's kill -9 until another one has claimed each of its runs; leases are as they ship."""
    made = call(
        server.port,
        request("POST", "/v1/assistants", msgspec.json.encode({"model": "scripted"}), server.headers),
        "create assistant",
    )
    message = {"role": "user", "content": f"/say begun\n/wait {_WAIT}\n/say ended"}
    body = msgspec.json.encode({"assistant_id": made["id"], "thread": {"messages": [message]}})
    times: list[float] = []
    for _ in range(plan.kills):
        share = -(-plan.held // 3)
        workers = [cluster.worker(LOOMGATE_WORKER_CONCURRENCY=str(share)) for _ in range(3)]
        try:
            data = request("POST", "/v1/threads/runs", body, server.headers)
            ids = [call(server.port, data, "run")["id"] for _ in range(plan.held)]
            began = time.perf_counter()
            held: dict[str, tuple[int, str]] = {}
            while len(held) < len(ids):
                held = _held(cluster, ids)
                if time.perf_counter() - began > 20:
                    raise BadMeasurement(f"only {len(held)} of {len(ids)} runs were claimed")
            workers.append(cluster.worker())  # who has room for all of them
            killed: dict[str, float] = {}
            for victim in workers[:3]:
                now = time.perf_counter()
                victim.kill()
                for id, (_, worker) in _held(cluster, ids).items():
                    if worker.startswith(f"{victim.pid}-"):
                        killed[id] = now
                time.sleep(1.7)
            gone = {f"{victim.pid}-" for victim in workers[:3]}
            while killed:
                for id, (_, worker) in _held(cluster, list(killed)).items():
                    if not worker.startswith(tuple(gone)):
                        times.append(time.perf_counter() - killed.pop(id))
                if time.perf_counter() - began > 90:
                    raise BadMeasurement(f"{len(killed)} runs were never claimed again")
                time.sleep(0.02)
            for id in ids:
                cluster.sql("UPDATE runs SET expires_at = 1, due = 1 WHERE id = $1", id)
        finally:
            for worker in workers:
                worker.kill()
    if not times:
        raise BadMeasurement("no killed worker held a run")
    return {"runs": len(times), "kills": 3 * plan.kills, "median": statistics.median(times), "worst": max(times)}


def _held(cluster: Cluster, ids: list[str]) -> dict[str, tuple[int, str]]:
    rows = cluster.sql("SELECT id, fence, worker FROM runs WHERE id = ANY($1) AND worker IS NOT NULL", ids)
    return {row[0]: (row[1], row[2]) for row in rows}


def session(plan: Plan, scratch: Path) -> _Json:
    """Everything, in order; takes minutes."""
    began = time.perf_counter()
    found: _Json = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine.describe(),
        "load_average": os.getloadavg()[0],
    }
    found["machine"]["fsync_ms"] = f"{machine.fsync_ms(scratch):.2f}"
    found["noise_before"] = {str(core): machine.noise(core) for core in (SERVER_CORE, LOAD_CORE)}
    upstream = Upstream(scratch / "upstream.log")
    with ExitStack() as stack:
        stack.callback(upstream.stop)
        cluster = Cluster(scratch, upstream.port)
        stack.callback(cluster.close)
        key = cluster.new_key()
        server = cluster.api()
        server.headers = {**server.headers, "authorization": f"Bearer {key}"}
        runs = Runs(server)  # pyright: ignore[reportArgumentType] - a port and headers are all it wants
        say("runs with 1, 2 and 4 workers")
        found["throughput"] = throughput(cluster, runs, upstream.port, plan)
        say("cost of a run")
        found["cost"] = cost(cluster, runs, plan)
        say("recovery")
        found["recovery"] = recovery(cluster, server, plan)
        say(f"lists ({plan.size:,} runs are put there first)")
        found["lists"] = lists(cluster, server, runs, plan)
    found["noise_after"] = {str(core): machine.noise(core) for core in (SERVER_CORE, LOAD_CORE)}
    found["load_average_after"] = os.getloadavg()[0]
    found["minutes"] = (time.perf_counter() - began) / 60
    return found


def main() -> None:
    """Measure, print, and write ``bench/results/cluster.json`` and the figures in ``docs/benchmarks.md``."""
    parser = argparse.ArgumentParser(prog="bench.cluster.run", description="Measure a cluster on this machine.")
    parser.add_argument("--quick", action="store_true", help="a smoke test of the bench: prints, writes nothing")
    parser.add_argument("--scratch", type=Path, help="where databases go while measuring (default: a temporary folder)")
    options = parser.parse_args()
    plan = QUICK if options.quick else Plan()
    try:
        with tempfile.TemporaryDirectory(prefix="lgb-", dir=options.scratch or "/tmp") as scratch:
            os.chmod(scratch, 0o755)  # PostgreSQL runs under a user of its own
            found = session(plan, Path(scratch))
    except BadMeasurement as error:
        sys.exit(f"bench: {error}")
    print(report.text(found))
    if not options.quick:
        report.write(found)


if __name__ == "__main__":
    main()
