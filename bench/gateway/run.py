"""``make bench-gateway``: the gateway, Portkey's gateway and nginx, one after the other in one run, and their figures.

What must live here: which figures are taken and how. What must not: how load is made (``instant.c``), how figures are
shown (`bench.gateway.report`), or how processes are run (`bench.machine`).

Whatever is measured has core 0 to itself; load generator and upstream share core 1. Rounds are interleaved, so that a
change of the machine's mood hits all sides, and every ratio is the median of the ratios within one round.
"""

import argparse
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench import machine
from bench.gateway import report
from bench.load import BadMeasurement, request
from bench.machine import LOAD_CORE, SERVER_CORE, Process, Server

HERE = Path(__file__).parent
PORTKEY = HERE / "node_modules" / "@portkey-ai" / "gateway"
KEY = "sk-bench-of-the-provider"  # what the upstream would be paid with
SLUG = "bench"
DIRECT = "direct"
NAMES = ("loomgate", "portkey", "nginx", DIRECT)
KINDS = ("json", "sse")
EVENTS = 100  # of a stream
PLACE = "@" * 16  # where the load generator puts the id of a request
MESSAGES = [
    {"role": "system", "content": "Answer as a weaver would, in one sentence."},
    {"role": "user", "content": "How do the threads of many runs become one cloth?"},
]
_Json = dict[str, Any]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured. The default takes about five minutes, ``QUICK`` half a minute to see that all works."""

    rounds: int = 3
    seconds: float = 2.0
    connections: tuple[int, ...] = (1, 16, 64)
    requests: int = 100_000  # for the memory
    slices: int = 5  # after how many equal parts of them the memory is looked at
    slow_seconds: float = 20.0


QUICK = Plan(rounds=1, seconds=0.4, requests=5_000, slow_seconds=2.0)


class Beside(Process):
    """Something on a port of its own: ready when the constructor returns."""

    def __init__(self, arguments: list[str], port: int, log: Path, environment: dict[str, str] | None = None) -> None:
        super().__init__(arguments, SERVER_CORE, log, environment)
        self.port = port
        until = time.perf_counter() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                self.check()
                if time.perf_counter() > until:
                    self.stop()
                    raise BadMeasurement(f"{arguments[0]} does not listen: {log.read_text()[-1000:]}") from None
                time.sleep(0.01)


class Instant(Process):
    """The upstream of ``instant.c``."""

    def __init__(self, program: Path, log: Path) -> None:
        super().__init__([str(program), "upstream"], LOAD_CORE, log)
        while not (words := log.read_text().split()):
            self.check()
            time.sleep(0.01)
        self.port = int(words[-1].rpartition(":")[2])

    def count(self) -> dict[str, int]:
        """``served`` requests and ``bytes`` written so far."""
        return msgspec.json.decode(machine.fetch(self.port, request("GET", "/count"))[1])


def nginx(program: str, upstream: int, scratch: Path) -> Beside:
    """nginx as a plain proxy: one process, kept connections, nothing held back, nothing logged."""
    port = machine.free_port()
    folder = scratch / "nginx"
    folder.mkdir()
    (folder / "nginx.conf").write_text(f"""
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  upstream model {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
""")
    return Beside([program, "-p", str(folder), "-c", str(folder / "nginx.conf")], port, scratch / "nginx.log")


def portkey(node: str, scratch: Path) -> Beside:
    """Portkey's gateway as its own start script runs it, for production and without its console."""
    port = machine.free_port()
    script = PORTKEY / "build" / "start-server.js"
    environment = {"PATH": os.environ["PATH"], "NODE_ENV": "production"}
    environment["TRUSTED_CUSTOM_HOSTS"] = "127.0.0.1"
    return Beside([node, str(script), "--headless", f"--port={port}"], port, scratch / "portkey.log", environment)


def loomgate(upstream: int, scratch: Path) -> Server:
    """The gateway with an API key, a sealed virtual key that leads to the upstream, and its log of calls."""
    data = scratch / "loomgate"
    key = machine.new_key(data, upstream)
    arguments = ("virtual-keys", "create", SLUG, "--provider", "openai", "--api-key-stdin")
    done = subprocess.run(
        machine.command(*arguments, "--base-url", f"http://127.0.0.1:{upstream}/v1", "--data", str(data)),
        input=KEY,
        check=False,
        capture_output=True,
        text=True,
        env=machine.environment(upstream),
    )
    if done.returncode != 0:
        raise BadMeasurement(f"cannot store a virtual key: {done.stderr.strip()}")
    return Server(data, upstream, scratch / "loomgate.log", key)


def headers_for(name: str, upstream: int, server: Server) -> dict[str, str]:
    """What a client sends along to get through ``name``."""
    if name == "loomgate":
        key = server.headers["authorization"].removeprefix("Bearer ")
        return {"x-portkey-api-key": key, "x-portkey-virtual-key": SLUG}
    found = {"authorization": f"Bearer {KEY}"}
    if name == "portkey":
        found |= {"x-portkey-provider": "openai", "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1"}
    return found


def asking(kind: str, headers: dict[str, str], user: str = PLACE) -> bytes:
    """A request for a completion; the same body through all of them."""
    body: _Json = {"model": "gpt-bench", "messages": MESSAGES, "temperature": 0.2, "user": user}
    if kind == "sse":
        body["stream"] = True
    return request("POST", "/v1/chat/completions", msgspec.json.encode(body), headers)


class Bench:
    """Everything that runs, and the requests that go through it."""

    def __init__(self, options: argparse.Namespace, scratch: Path, stack: ExitStack) -> None:
        self.program: Path = options.instant
        self.upstream = Instant(self.program, scratch / "upstream.log")
        stack.callback(self.upstream.stop)
        port = self.upstream.port
        self.server = loomgate(port, scratch)
        stack.callback(self.server.stop)
        self.processes: dict[str, Process] = {"loomgate": self.server}
        self.ports = {"loomgate": self.server.port, DIRECT: port}
        for name, start in (
            ("portkey", lambda: portkey(options.node, scratch)),
            ("nginx", lambda: nginx(options.nginx, port, scratch)),
        ):
            beside = start()
            stack.callback(beside.stop)
            self.processes[name], self.ports[name] = beside, beside.port
        self.files: dict[tuple[str, str], Path] = {}
        for name in NAMES:
            for kind in KINDS:
                path = self.files[name, kind] = scratch / f"{name}-{kind}"
                path.write_bytes(asking(kind, headers_for(name, port, self.server)))

    def load(self, name: str, kind: str, connections: int, seconds: float, count: int = 0) -> _Json:
        """Drive ``name`` and give the generator's figures. Times are milliseconds."""
        what = [str(self.ports[name]), str(connections), str(seconds), str(count), kind, str(self.files[name, kind])]
        before = self.upstream.count()["served"]
        process = self.processes.get(name)
        cpu, began = process.cpu() if process else 0.0, time.perf_counter()
        busy = machine.busy(SERVER_CORE)
        done = subprocess.run(
            [str(self.program), "load", *what], check=False, capture_output=True, text=True, timeout=seconds + 60
        )
        if done.returncode != 0:
            raise BadMeasurement(f"{name}, {kind}, {connections} connections: {done.stderr.strip()}")
        found: _Json = msgspec.json.decode(done.stdout)
        wall = time.perf_counter() - began
        served = self.upstream.count()["served"] - before
        if served != found["answers"]:
            raise BadMeasurement(f"{name}: {found['answers']} answers, but the upstream gave {served}")
        used = process.cpu() - cpu if process else 0.0
        found["cpu_us"] = used / found["answers"] * 1e6
        found["others_share"] = max(0.0, (machine.busy(SERVER_CORE) - busy - used) / wall)
        return found

    def speed(self, plan: Plan) -> list[_Json]:
        """A row for each of them, kind and number of connections."""
        for name in NAMES:
            for kind in KINDS:
                self.load(name, kind, 4, 5.0, 300)  # warm
        rows: list[_Json] = []
        for kind in KINDS:
            for connections in plan.connections:
                report.say(f"{kind}, {connections} connection(s)")
                rounds = [
                    {name: self.load(name, kind, connections, plan.seconds) for name in NAMES}
                    for _ in range(plan.rounds)
                ]
                rows += [_row(name, kind, connections, rounds) for name in NAMES]
        return rows

    def requests(self, plan: Plan) -> _Json:
        """Memory over many requests, in MB: after each slice of them."""
        before = _dropped(self.server)
        share = plan.requests // plan.slices
        resident = [_resident(self.server)]
        for _ in range(plan.slices):
            self.load("loomgate", "json", 16, 120.0, share)
            resident.append(_resident(self.server))
        return {
            "requests": share * plan.slices,
            "resident_mb": resident,
            "growth_mb": resident[-1] - resident[1],
            "log_lost": _dropped(self.server) - before,
        }

    def slow_reader(self, plan: Plan) -> _Json:
        """Memory while a client takes 1 MB/s of a stream that comes as fast as it is taken; then all the rest of it."""
        headers = headers_for("loomgate", self.upstream.port, self.server)
        rate, tick = 1_000_000, 0.05
        before, taken, tail = self.upstream.count()["bytes"], 0, b""
        resident = [_resident(self.server)]
        ahead: list[float] = []
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as opened:
            opened.sendall(asking("sse", headers, "flood" + "0" * 11))
            began = time.perf_counter()
            while (spent := time.perf_counter() - began) < plan.slow_seconds:
                while taken < rate * spent:
                    taken += len(opened.recv(min(65536, math.ceil(rate * tick))))
                time.sleep(tick)
                if spent > len(ahead):
                    resident.append(_resident(self.server))
                    ahead.append((self.upstream.count()["bytes"] - before - taken) / 1e6)
            slowly = taken
            while not tail.endswith(b"0\r\n\r\n"):
                part = opened.recv(1 << 20)
                if not part:
                    raise BadMeasurement(f"the stream broke after {taken:,} bytes: {tail!r}")
                taken += len(part)
                tail = (tail + part)[-64:]
        if taken < 200_000_000 or b"data: [DONE]" not in tail:
            raise BadMeasurement(f"the stream has {taken:,} bytes and ends with {tail!r}")
        resident.append(_resident(self.server))
        return {
            "slowly_mb": slowly / 1e6,
            "total_mb": taken / 1e6,
            "resident_mb": resident,
            "growth_mb": max(resident) - resident[0],
            "ahead_mb": ahead,
        }


def _row(name: str, kind: str, connections: int, rounds: list[dict[str, _Json]]) -> _Json:
    """The medians of the rounds, and what compares with the others in the same round."""
    own, direct = [each[name] for each in rounds], [each[DIRECT] for each in rounds]
    row: _Json = {"name": name, "kind": kind, "connections": connections}
    for figure in ("rate", "p50", "p99", "first_p50", "first_p99", "cpu_us", "reads"):
        row[figure] = statistics.median(found[figure] for found in own)
    row["others_share"] = max(found["others_share"] for found in own)
    for figure in ("p50", "first_p50"):
        row[f"added_{figure}"] = statistics.median(
            found[figure] - alone[figure] for found, alone in zip(own, direct, strict=True)
        )
    row["of_portkey"] = [each[name]["rate"] / each["portkey"]["rate"] for each in rounds]
    row["rates"] = [found["rate"] for found in own]
    return row


def _resident(process: Process) -> float:
    """MB that are resident now."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise BadMeasurement("the process has no VmRSS")


def _dropped(server: Server) -> float:
    """Records of calls that were lost, as the server tells it; 0 if it does not."""
    _, body = machine.fetch(server.port, request("GET", "/metrics", headers=server.headers))
    for line in body.decode().splitlines():
        if "calls_dropped" in line and not line.startswith("#"):
            return float(line.split()[-1])
    return 0.0


def _version(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().removeprefix("nginx version: ")


def session(plan: Plan, options: argparse.Namespace, scratch: Path) -> _Json:
    """Everything, in order; takes minutes."""
    began = time.perf_counter()
    package: _Json = msgspec.json.decode((PORTKEY / "package.json").read_bytes())
    found: _Json = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine.describe(),
        "versions": {
            "portkey": package["version"],
            "node": _version(options.node, "--version"),
            "nginx": _version(options.nginx, "-v"),
        },
        "noise_before": machine.noise(SERVER_CORE),
    }
    with ExitStack() as stack:
        report.say("starting everything")
        bench = Bench(options, scratch, stack)
        found["idle_mb"] = {name: process.peak_megabytes() for name, process in bench.processes.items()}
        # First, while nothing has left room in the process's memory in which growth would not be seen.
        report.say(f"memory over {plan.requests:,} requests")
        found["many"] = bench.requests(plan)
        report.say("memory with a slow reader of a fast stream")
        found["slow"] = bench.slow_reader(plan)
        found["rows"] = bench.speed(plan)
        found["peak_mb"] = {name: process.peak_megabytes() for name, process in bench.processes.items()}
        found["log_lost"] = _dropped(bench.server)
    found["noise_after"] = machine.noise(SERVER_CORE)
    found["minutes"] = (time.perf_counter() - began) / 60
    return found


def main() -> None:
    """Measure, print, and write ``bench/results/gateway.json`` and the figures in ``docs/benchmarks.md``."""
    parser = argparse.ArgumentParser(prog="bench.gateway.run", description="Measure the gateway beside others.")
    parser.add_argument("--quick", action="store_true", help="a smoke test of the bench: prints, writes nothing")
    parser.add_argument("--instant", type=Path, required=True, help="the compiled instant.c")
    parser.add_argument("--node", default="node", help="the Node.js that runs Portkey's gateway")
    parser.add_argument("--nginx", default="nginx")
    options = parser.parse_args()
    if not {SERVER_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        parser.error(f"cores {SERVER_CORE} and {LOAD_CORE} are needed, this process has {os.sched_getaffinity(0)}")
    os.sched_setaffinity(0, {LOAD_CORE})
    try:
        with tempfile.TemporaryDirectory(prefix="loomgate-bench-") as scratch:
            found = session(QUICK if options.quick else Plan(), options, Path(scratch))
    except BadMeasurement as error:
        sys.exit(f"bench: {error}")
    print(report.text(found))
    if not options.quick:
        report.write(found)


if __name__ == "__main__":
    main()
