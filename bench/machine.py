"""Processes and the machine they run on: starting them on a core, what they use, how quiet the machine is.

What must live here: everything that asks the operating system. What must not: what is measured, or what for.
Linux only (``/proc``, core affinity).
"""

import contextlib
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import httptools

from bench.load import BadMeasurement, request

SERVER_CORE = 0
LOAD_CORE = 1
HEADERS = {"authorization": "Bearer bench", "openai-beta": "assistants=v2"}

_TICKS = os.sysconf("SC_CLK_TCK")


class Process:
    """A child process on one core. Its output goes to ``log``; leave it with `stop`."""

    def __init__(self, arguments: list[str], core: int, log: Path, environment: dict[str, str] | None = None) -> None:
        self.log = log
        self.started = time.perf_counter()
        own = os.sched_getaffinity(0)
        # A child inherits the core from its first instruction on, so that no thread of it is ever elsewhere.
        os.sched_setaffinity(0, {core})
        try:
            with log.open("wb") as output:
                self._popen = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    process_group=0,
                )
        finally:
            os.sched_setaffinity(0, own)
        self.pid = self._popen.pid

    def check(self) -> None:
        """Raise `BadMeasurement` with the end of its output if it has ended."""
        if self._popen.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise BadMeasurement(f"a process ended with code {self._popen.returncode}:\n{tail}")

    def cpu(self) -> float:
        """Seconds of processor time used so far, by all its threads and the children it has waited for."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(value) for value in fields[11:15]) / _TICKS

    def peak_megabytes(self) -> float:
        """The most memory it has had resident at once (``VmHWM``)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise BadMeasurement("the process has no VmHWM")

    def stop(self) -> None:
        """End it, politely first."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(20)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def fetch(port: int, data: bytes) -> tuple[int, bytes]:
    """Send a prepared request on a connection of its own and read to the end: status and body.

    Raises OSError if nothing listens.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=60) as opened:
        opened.sendall(data.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
        body = _Body()
        parser = httptools.HttpResponseParser(body)
        while part := opened.recv(65536):
            parser.feed_data(part)
    if not body.begun:
        raise ConnectionError("closed without an answer")
    return parser.get_status_code(), bytes(body.data)


class _Body:
    """Gathers what an HTTP parser finds."""

    def __init__(self) -> None:
        self.begun = False
        self.data = bytearray()

    def on_headers_complete(self) -> None:
        self.begun = True

    def on_body(self, body: bytes) -> None:
        self.data += body


class Server(Process):
    """``loomgate serve`` on a data folder, before the upstream at ``upstream``: ready when the constructor returns.

    ``startup`` is seconds from the start of the process to the first answer with status 200.
    """

    def __init__(self, data: Path, upstream: int, log: Path, key: str = "bench", patience: float = 60.0) -> None:
        self.port = free_port()
        self.headers = HEADERS | {"authorization": f"Bearer {key}"}
        arguments = ["serve", "--host", "127.0.0.1", "--port", str(self.port), "--data", str(data)]
        super().__init__(command(*arguments), SERVER_CORE, log, environment(upstream))
        probe = request("GET", "/v1/assistants?limit=1", headers=self.headers)
        while True:
            try:
                status, body = fetch(self.port, probe)
                break
            except OSError:
                self.check()
                if time.perf_counter() - self.started > patience:
                    self.stop()
                    raise BadMeasurement(f"the server does not answer after {patience:.0f} s") from None
                time.sleep(0.002)
        self.startup = time.perf_counter() - self.started
        if status != 200:
            self.stop()
            raise BadMeasurement(f"the server's first answer has status {status}: {body[:500]!r}")


class Upstream(Process):
    """The instant model endpoint in a process of its own."""

    def __init__(self, log: Path) -> None:
        super().__init__([sys.executable, "-m", "bench.upstream"], LOAD_CORE, log)
        while not (words := log.read_text().split()):
            self.check()
            time.sleep(0.01)
        self.port = int(words[-1].rpartition(":")[2])


def command(*arguments: str) -> list[str]:
    """The command line of this interpreter's Loomgate."""
    return [sys.executable, "-m", "loomgate", *arguments]


def environment(upstream: int) -> dict[str, str]:
    """This process's environment, with no setting of the server in it but the model endpoint."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOOMGATE_", "OPENAI_"))}
    return kept | {"OPENAI_API_KEY": "sk-bench", "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream}/v1"}


def new_key(data: Path, upstream: int) -> str:
    """An API key for the server of ``data``, so that what is measured includes checking it."""
    done = subprocess.run(
        command("keys", "create", "--name", "bench", "--data", str(data)),
        check=False,
        capture_output=True,
        text=True,
        env=environment(upstream),
    )
    if done.returncode != 0:
        raise BadMeasurement(f"cannot create an API key: {done.stderr.strip()}")
    return done.stdout.strip()


def busy(core: int) -> float:
    """Seconds for which a core has done anything at all since the machine started."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"cpu{core} "):
            values = [int(value) for value in line.split()[1:]]
            return (sum(values[:3]) + sum(values[5:8])) / _TICKS
    raise BadMeasurement(f"the machine has no core {core}")


def noise(core: int, rounds: int = 40) -> dict[str, float]:
    """How steadily ``core`` does the same work: median milliseconds of a fixed loop, and the loop's p95 / p5."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        times: list[float] = []
        for _ in range(rounds):
            began = time.perf_counter()
            sum(range(1_000_000))
            times.append((time.perf_counter() - began) * 1e3)
    finally:
        os.sched_setaffinity(0, own)
    times.sort()
    return {"median_ms": statistics.median(times), "spread": times[int(0.95 * rounds)] / times[int(0.05 * rounds)]}


def fsync_ms(folder: Path) -> float:
    """Median milliseconds for making 4 KiB durable where the database is: a commit cannot be faster."""
    times: list[float] = []
    path = folder / "fsync"
    with path.open("wb") as opened:
        for _ in range(50):
            opened.write(bytes(4096))
            opened.flush()
            began = time.perf_counter()
            os.fsync(opened.fileno())
            times.append((time.perf_counter() - began) * 1e3)
    path.unlink()
    return statistics.median(times)


def describe() -> dict[str, str]:
    """The machine and the interpreter in a few words."""
    model = "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "processor": model,
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


@contextlib.contextmanager
def stopped_at_end(*processes: Process) -> Generator[None]:
    """Stop ``processes`` whatever happens inside."""
    try:
        yield
    finally:
        for process in processes:
            process.stop()
