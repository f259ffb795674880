"""``make bench``: starts the upstream and the server, measures, prints a table, writes the results.

What must live here: which figures are taken and how. What must not: how load is made (`bench.load`), how figures
are shown (`bench.report`), or how processes are run (`bench.machine`).

The server has core 0 to itself; load generator and upstream share core 1. What is compared is interleaved, so that
a change of the machine's mood hits both sides. One run is one ``POST /v1/threads/runs`` with ``stream: true``, read
to ``[DONE]``: it makes a thread with a message and a run on it, and the run makes one model call.
"""

import argparse
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from bench import machine, report, upstream
from bench.load import Answer, BadMeasurement, Load, Result, measure, quantile, request
from bench.machine import LOAD_CORE, SERVER_CORE, Server, Upstream
from bench.seed import CannotSeed, Seeded, database_file, seed

PAGE = 20
QUESTION = "Please weave the threads of my runs into cloth."
_RUN_ID = re.compile(rb'"id":\s?"(run_\w+)"')
_Json = dict[str, Any]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured. The default takes about five minutes, ``QUICK`` half a minute to see that all works."""

    startups: int = 5
    run_clients: tuple[int, ...] = (16, 64)
    run_seconds: float = 10.0
    token_blocks: int = 8
    token_count: int = 50
    sizes: tuple[int, ...] = (1_000, 100_000, 1_000_000)
    list_clients: tuple[int, ...] = (1, 16)
    list_rounds: int = 5
    list_seconds: float = 1.0


QUICK = Plan(startups=2, run_seconds=1.5, token_blocks=2, token_count=20, sizes=(1_000, 5_000), list_rounds=2)


def figures(result: Result) -> _Json:
    """A result without its single samples."""
    return {name: value for name, value in asdict(result).items() if name != "samples"}


def call(port: int, data: bytes, what: str) -> _Json:
    """One request whose JSON answer is needed; raises `BadMeasurement` if it is not a 200."""
    status, body = machine.fetch(port, data)
    if status != 200:
        raise BadMeasurement(f"{what}: status {status}: {body[:500]!r}")
    return msgspec.json.decode(body)


def served(port: int) -> int:
    """How many completions the upstream has served."""
    return int(call(port, request("GET", "/count"), "count")["count"])


class Runs:
    """Streamed runs on one server, and the check that each was a run of its own which said the model's words."""

    def __init__(self, server: Server) -> None:
        self.server = server
        body = msgspec.json.encode({"model": upstream.MODEL, "name": "bench", "instructions": "Answer at once."})
        assistant = call(server.port, request("POST", "/v1/assistants", body, server.headers), "create assistant")
        thread = {"messages": [{"role": "user", "content": QUESTION}]}
        body = msgspec.json.encode({"assistant_id": assistant["id"], "thread": thread, "stream": True})
        self.data = request("POST", "/v1/threads/runs", body, server.headers)
        self._checked = 0

    def check(self, answer: Answer) -> bytes:
        """The run's id, if the stream is that of a completed run. Every 50th is decoded event by event."""
        body = bytes(answer.body)
        found = _RUN_ID.search(body)
        if found is None or b"event: thread.run.completed\n" not in body or not body.endswith(b"data: [DONE]\n\n"):
            raise BadMeasurement(f"not the stream of a completed run: {body[-600:]!r}")
        if self._checked % 50 == 0:
            said = _said(body)
            if said != upstream.REPLY:
                raise BadMeasurement(f"the deltas say {said!r}, the model said {upstream.REPLY!r}")
        self._checked += 1
        return found[1]

    def load(self, connections: int, *, count: int | None = None, seconds: float = 60.0) -> Load:
        """Runs on ``connections`` clients."""
        return Load(
            port=self.server.port,
            request=lambda _: self.data,
            check=self.check,
            connections=connections,
            count=count,
            seconds=seconds,
            marker=b"event: thread.message.delta\n",
        )


def _said(stream: bytes) -> str:
    """The text of all message deltas of a stream, in order."""
    words: list[str] = []
    for event in stream.decode().split("\n\n"):
        name, _, data = event.partition("\ndata: ")
        if name == "event: thread.message.delta":
            delta: _Json = msgspec.json.decode(data)
            words += [part["text"]["value"] for part in delta["delta"]["content"]]
    return "".join(words)


class Bench:
    """One session: a scratch folder, an upstream, and the figures gathered so far."""

    def __init__(self, plan: Plan, scratch: Path) -> None:
        self.plan = plan
        self.scratch = scratch
        self.upstream = Upstream(scratch / "upstream.log")
        self._logs = 0

    def serve(self, data: Path, key: str = "bench") -> Server:
        """A server on ``data``, ready."""
        self._logs += 1
        return Server(data, self.upstream.port, self.scratch / f"server-{self._logs}.log", key)

    @contextmanager
    def watched(self, server: Server, into: _Json) -> Generator[None]:
        """Add what the server used meanwhile, and what others took from its core, to ``into``."""
        cpu, busy, began = server.cpu(), machine.busy(SERVER_CORE), time.perf_counter()
        yield
        wall = time.perf_counter() - began
        into["cpu_seconds"] = server.cpu() - cpu
        into["cpu_share"] = into["cpu_seconds"] / wall
        into["others_share"] = max(0.0, (machine.busy(SERVER_CORE) - busy - into["cpu_seconds"]) / wall)

    def startup(self) -> _Json:
        """Seconds from the start of the process to its first 200, on fresh folders and on one that exists."""
        fresh: list[float] = []
        existing: list[float] = []
        for n in range(self.plan.startups):
            data = self.scratch / f"startup-{n}"
            for times in (fresh, existing):
                server = self.serve(data)
                times.append(server.startup)
                server.stop()
        return {"fresh": statistics.median(fresh), "existing": statistics.median(existing)}

    def runs(self, server: Server) -> list[_Json]:
        """Runs a second and processor time of a run."""
        work = Runs(server)
        measure(work.load(4, count=100))
        rows: list[_Json] = []
        for clients in self.plan.run_clients:
            row: _Json = {}
            before = served(self.upstream.port)
            with self.watched(server, row):
                result = measure(work.load(clients, seconds=self.plan.run_seconds))
            calls = served(self.upstream.port) - before
            if calls != result.answers:
                raise BadMeasurement(f"{result.answers} runs made {calls} model calls")
            row["cpu_ms_per_run"] = row["cpu_seconds"] / result.answers * 1e3
            rows.append(figures(result) | row)
        return rows

    def first_token(self, server: Server) -> _Json:
        """Milliseconds to the first token over one connection: a run, and calling the model directly."""
        work = Runs(server)
        body: _Json = {"model": upstream.MODEL, "stream": True, "stream_options": {"include_usage": True}}
        body["messages"] = [{"role": "user", "content": QUESTION}]
        data = request("POST", "/v1/chat/completions", msgspec.json.encode(body))
        direct = Load(
            port=self.upstream.port,
            request=lambda _: data,
            check=lambda _: None,
            connections=1,
            count=self.plan.token_count,
            seconds=60.0,
            marker=upstream.FIRST_TOKEN,
        )
        run = work.load(1, count=self.plan.token_count)
        measure(run)
        times: dict[str, list[float]] = {"run": [], "direct": []}
        for _ in range(self.plan.token_blocks):
            times["direct"] += measure(direct).samples
            times["run"] += measure(run).samples
        found: _Json = {
            f"{name}_{label}": quantile(times[name], share)
            for name in times
            for label, share in (("p50", 0.5), ("p99", 0.99))
        }
        return found | {f"added_{label}": found[f"run_{label}"] - found[f"direct_{label}"] for label in ("p50", "p99")}

    def seeded(self) -> tuple[str, dict[int, tuple[Path, Seeded]]]:
        """A data folder for each size, with that many runs in it; and the API key that opens them all."""
        first = self.scratch / "template"
        key = machine.new_key(first, self.upstream.port)
        server = self.serve(first, key)
        with machine.stopped_at_end(server):
            work = Runs(server)
            answer = Answer()
            measure(
                Load(
                    port=server.port,
                    request=lambda _: work.data,
                    check=lambda got: (answer.body.extend(got.body), work.check(got))[1],
                    connections=1,
                    count=1,
                )
            )
        run_id = work.check(answer).decode()
        folders: dict[int, tuple[Path, Seeded]] = {}
        for size in self.plan.sizes:
            folder = self.scratch / f"runs-{size}"
            shutil.copytree(first, folder)
            folders[size] = (folder, seed(database_file(folder), run_id, size))
        return key, folders

    def lists(self) -> _Json:
        """Lists of ``PAGE`` runs of a thread, with ever more runs in the store; all sizes are served at once."""
        key, folders = self.seeded()
        with ExitStack() as stack:
            servers = {size: self.serve(folder, key) for size, (folder, _) in folders.items()}
            stack.enter_context(machine.stopped_at_end(*servers.values()))
            for size, server in servers.items():
                _check_pages(server, folders[size][1])
            gathered: dict[tuple[str, int, int], list[tuple[Result, _Json]]] = {}
            for turn in range(self.plan.list_rounds):
                order = list(servers)
                order = order[turn % len(order) :] + order[: turn % len(order)]
                for layout in ("long", "short"):
                    for clients in self.plan.list_clients:
                        for size in order:
                            load = _list_load(servers[size], folders[size][1], layout, clients, self.plan.list_seconds)
                            row: _Json = {}
                            with self.watched(servers[size], row):
                                result = measure(load)
                            gathered.setdefault((layout, clients, size), []).append((result, row))
            stores = [
                {
                    "runs": size,
                    "startup": server.startup,
                    "peak_mb": server.peak_megabytes(),
                    "file_mb": folders[size][1].megabytes,
                    "seed_seconds": folders[size][1].seconds,
                }
                for size, server in servers.items()
            ]
        return {"stores": stores, **_list_figures(gathered, self.plan.sizes)}


def _check_pages(server: Server, seeded: Seeded) -> None:
    """See that what was seeded is real to the server: pages without repeats, and runs that can be retrieved."""
    for thread in (seeded.long_thread, seeded.short_threads[0]):
        path = f"/v1/threads/{thread}/runs"
        page = call(server.port, request("GET", f"{path}?limit={PAGE - 1}", headers=server.headers), "list")
        after = f"{path}?limit={PAGE - 1}&after={page['last_id']}"
        more = call(server.port, request("GET", after, headers=server.headers), "list")
        ids = [run["id"] for run in page["data"] + more["data"]]
        enough = PAGE if thread in seeded.short_threads else 2 * PAGE - 2
        if len(set(ids)) != len(ids) or len(ids) != enough or not page["has_more"]:
            raise BadMeasurement(f"wrong pages of seeded runs: {len(ids)} runs, {len(set(ids))} different")
        run = call(server.port, request("GET", f"{path}/{ids[-1]}", headers=server.headers), "retrieve")
        if run["status"] != "completed" or run["thread_id"] != thread:
            raise BadMeasurement(f"a seeded run is not as it should be: {run}")


def _list_load(server: Server, seeded: Seeded, layout: str, clients: int, seconds: float) -> Load:
    threads = [seeded.long_thread] if layout == "long" else seeded.short_threads
    requests = [request("GET", f"/v1/threads/{thread}/runs?limit={PAGE}", headers=server.headers) for thread in threads]

    def check(answer: Answer) -> None:
        found = len(_RUN_ID.findall(answer.body))
        if found != PAGE:
            raise BadMeasurement(f"expected a page of {PAGE} runs, found {found}")

    return Load(
        port=server.port,
        request=lambda n: requests[n % len(requests)],
        check=check,
        connections=clients,
        seconds=seconds,
    )


def _list_figures(gathered: dict[tuple[str, int, int], list[tuple[Result, _Json]]], sizes: tuple[int, ...]) -> _Json:
    rows: list[_Json] = []
    for (layout, clients, size), found in gathered.items():
        samples = [value for result, _ in found for value in result.samples]
        rows.append(
            {
                "layout": layout,
                "connections": clients,
                "runs": size,
                "rate": statistics.median(result.rate for result, _ in found),
                "p50": statistics.median(result.p50 for result, _ in found),
                "p99": quantile(samples, 0.99),
                "cpu_us": sum(row["cpu_seconds"] for _, row in found) / len(samples) * 1e6,
                "others_share": max(row["others_share"] for _, row in found),
            }
        )
    growth: list[_Json] = []
    for layout, clients in dict.fromkeys((layout, clients) for layout, clients, _ in gathered):
        few, many = ([result.p50 for result, _ in gathered[layout, clients, size]] for size in (sizes[0], sizes[-1]))
        # Each round's pair was measured within seconds, so the median of their ratios is steadier than the
        # ratio of the medians.
        ratios = [after / before for before, after in zip(few, many, strict=True)]
        again = [after / before for before, after in pairwise(few)]
        growth.append(
            {
                "layout": layout,
                "connections": clients,
                "from": sizes[0],
                "to": sizes[-1],
                "p50_ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                # The same store against itself, one round later: what noise alone does to such a ratio.
                "noise_highest": max([*again, *(1 / ratio for ratio in again)], default=1.0),
            }
        )
    return {"rows": rows, "growth": growth}


def session(plan: Plan, scratch: Path) -> _Json:
    """Everything, in order; takes minutes."""
    began = time.perf_counter()
    found: _Json = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine.describe(),
        "load_average": os.getloadavg()[0],
    }
    found["machine"]["fsync_ms"] = f"{machine.fsync_ms(scratch):.2f}"
    found["noise_before"] = machine.noise(SERVER_CORE)
    bench = Bench(plan, scratch)
    with machine.stopped_at_end(bench.upstream):
        report.say("start-up")
        found["startup"] = bench.startup()
        data = scratch / "main"
        server = bench.serve(data, machine.new_key(data, bench.upstream.port))
        with machine.stopped_at_end(server):
            found["idle_mb"] = server.peak_megabytes()
            report.say("first token")
            found["first_token"] = bench.first_token(server)
            report.say("runs")
            found["runs"] = bench.runs(server)
            found["runs_peak_mb"] = server.peak_megabytes()
        report.say(f"lists (seeding {sum(plan.sizes):,} runs)")
        found["lists"] = bench.lists()
    found["noise_after"] = machine.noise(SERVER_CORE)
    found["minutes"] = (time.perf_counter() - began) / 60
    return found


def main() -> None:
    """Measure, print, and write ``bench/results/latest.json`` and the figures in ``docs/benchmarks.md``."""
    parser = argparse.ArgumentParser(prog="bench.run", description="Measure the server on this machine.")
    parser.add_argument("--quick", action="store_true", help="a smoke test of the bench: prints, writes nothing")
    parser.add_argument("--scratch", type=Path, help="where databases go while measuring (default: a temporary folder)")
    options = parser.parse_args()
    if not {SERVER_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        parser.error(f"cores {SERVER_CORE} and {LOAD_CORE} are needed, this process has {os.sched_getaffinity(0)}")
    os.sched_setaffinity(0, {LOAD_CORE})
    plan = QUICK if options.quick else Plan()
    try:
        with tempfile.TemporaryDirectory(prefix="loomgate-bench-", dir=options.scratch) as scratch:
            found = session(plan, Path(scratch))
    except (BadMeasurement, CannotSeed) as error:
        sys.exit(f"bench: {error}")
    print(report.text(found))
    if not options.quick:
        report.write(found)


if __name__ == "__main__":
    main()
