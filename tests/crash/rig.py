"""A data folder, the servers that live and die on it, and a client that goes on when they do.

What must live here: starting, killing and starting again; requests; what a careful client does when an answer did not
come. What must not: what is expected of a run (``stories.py``) or of the database (``check.py``).
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

import loomgate
from loomgate import clock
from loomgate.engine.points import Point
from loomgate.wire import lifecycle

ROOT = Path(__file__).parents[2]
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("LOOMGATE_", "OPENAI_"))}
CLEAN["PYTHONPATH"] = str(Path(loomgate.__path__[0]).parent)

# Far less than a lease (15 s): a server that waits for its predecessor's leases to lapse would not make it.
SOON = 8.0

Object = dict[str, Any]
Crash = tuple[Point, int]


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """What ``condition`` answers as soon as that is true; asks again and again, another process decides when."""
    end = clock.monotonic() + seconds
    pause = threading.Event()
    while not (found := condition()):
        assert clock.monotonic() < end, f"not within {seconds:g} s: {what}"
        pause.wait(0.01)
    return found


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Server:
    """A server process of the forge; ``url`` is its API once it said where it listens."""

    def __init__(self, forge: "Forge", log: Path, trace: Path) -> None:
        self._forge = forge
        self.log_path, self._trace = log, trace
        self.pid = 0
        self.lines: list[str] = []
        self.status: int | None = None

    @property
    def url(self) -> str:
        return self.lines[0].split()[3]

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def trace(self) -> list[str]:
        """The points it has reached, in order."""
        return self._trace.read_text().split() if self._trace.exists() else []

    def wait(self, seconds: float = SOON) -> int:
        """Its exit status; negative: the signal that ended it."""
        return self._forge.wait(lambda: self.status, seconds, f"the end of the server; its log: {self.log[-2000:]}")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        if self.status is None:
            os.kill(self.pid, number)


class Forge:
    """The warm process that servers are forked from; see ``launch.py``."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.launch"],
            cwd=ROOT,
            env=CLEAN,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._said = threading.Condition()
        self._orders = 0
        self._new: dict[int, Server] = {}
        self._servers: dict[int, Server] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self._said:
                if "id" in told:
                    server = self._new.pop(told["id"])
                    server.pid = told["pid"]
                    self._servers[server.pid] = server
                elif "line" in told:
                    self._servers[told["pid"]].lines.append(told["line"])
                else:
                    self._servers.pop(told["pid"]).status = told["status"]
                self._said.notify_all()

    def wait(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """What ``condition`` answers once it is not ``None`` or false; asked after each thing the forge says."""
        with self._said:
            found = self._said.wait_for(lambda: (value := condition()) is not None and value is not False, seconds)
            assert found, f"not within {seconds:g} s: {what}"
            return condition()

    def start(
        self,
        folder: Path,
        *args: str,
        crash: Crash | None = None,
        env: dict[str, str] | None = None,
        disk: Path | None = None,
        bound: bool = False,
        command: tuple[str, ...] = ("serve", "--host", "127.0.0.1", "--port", "0"),
    ) -> Server:
        """Start ``loomgate serve`` (or another ``command``) on the data folder ``folder / "data"``; returns when it
        listens or has ended."""
        self._orders += 1
        number = self._orders
        server = Server(self, folder / f"log-{number}", folder / f"trace-{number}")
        order = {
            "id": number,
            "args": [*command, "--data", str(folder / "data"), *args],
            "env": env or {},
            "cwd": str(folder),
            "log": str(server.log_path),
            "trace": str(folder / f"trace-{number}"),
            "crash": crash,
            "disk": None if disk is None else str(disk),
            "bound": bound,
        }
        self._new[number] = server
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        self.wait(lambda: bool(server.lines) or server.status is not None, 30, "the server's start")
        return server

    def close(self) -> None:
        """End every server and the forge."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


class World:
    """One data folder and its servers, one after the other. ``crashes``: where the first, second, … one dies.

    ``power``: what the dead one wrote and did not sync is lost (``disk.py``).
    """

    def __init__(
        self,
        forge: Forge,
        folder: Path,
        *crashes: Crash,
        env: dict[str, str] | None = None,
        model: str = "scripted",
        power: bool = False,
    ) -> None:
        self._forge, self.folder = forge, folder
        self._env = env or {}
        self._power = power
        self._disk: Path | None = None
        self.model = model
        self.crashes = list(crashes)
        self.servers: list[Server] = []
        self.born = 0.0
        self.start()

    @property
    def server(self) -> Server:
        """The newest one."""
        return self.servers[-1]

    @property
    def database(self) -> Path:
        return self.folder / "data" / "loomgate.db"

    def start(self) -> None:
        """Start the next server."""
        number = len(self.servers)
        crash = self.crashes[number] if number < len(self.crashes) else None
        if self._power:
            self._disk = self.folder / f"disk-{number}"
            self._disk.mkdir()
        self.servers.append(self._forge.start(self.folder, crash=crash, env=self._env, disk=self._disk))
        self.born = clock.monotonic()
        # It may have died again before it could say so; whoever asks it next will see.
        assert self.server.lines or (crash and self.server.status == -signal.SIGKILL), self.server.log

    def recover(self) -> None:
        """A request failed: the server must be dead where it was to die; start the next one."""
        status = self.server.wait()
        assert status == -signal.SIGKILL, f"the server ended with {status}: {self.server.log}"
        assert len(self.servers) <= len(self.crashes), "this server was not to die"
        assert self.server.trace[-1] == self.crashes[len(self.servers) - 1][0]
        self.cut_power()
        self.start()

    def cut_power(self) -> None:
        """The dead server's database becomes what its disk remembers, if this is about power cuts."""
        if self._disk is None:
            return
        for lost in self.database.parent.glob("loomgate.db*"):
            lost.unlink()
        for kept in self._disk.iterdir():
            kept.rename(self.database.parent / kept.name)

    def expect_crashes(self) -> None:
        """Wait until every planned death has come, and let the last server live."""
        while len(self.servers) <= len(self.crashes):
            self.recover()

    def stop(self) -> None:
        """End the server as an operator does; it must take that well."""
        self.server.send(signal.SIGTERM)
        assert self.server.wait(15) == 0, self.server.log
        self._quiet()

    def end(self) -> None:
        """Kill the server when its work is done: that, too, must leave a database in order."""
        self.server.send(signal.SIGKILL)
        self.server.wait()
        self._quiet()

    def _quiet(self) -> None:
        for server in self.servers:
            assert "Traceback" not in server.log, server.log

    def reached(self) -> Counter[str]:
        """How often the first server reached each point."""
        return Counter(self.servers[0].trace)


class Gone(Exception):
    """The server went away before it answered."""


class Refused(Exception):
    """An error answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


_HEADERS = {"openai-beta": "assistants=v2"}


class Client:
    """A careful client: when no answer came it looks what happened before it does anything again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._http = httpx.Client(headers=_HEADERS, timeout=20, trust_env=False, verify=False)  # noqa: S501 - there is no TLS here
        self.unanswered: list[str] = []

    def close(self) -> None:
        self._http.close()

    # --- one request ---

    def ask(self, method: str, path: str, body: Object | None = None) -> Object:
        """One request, once. Raises `Gone`, `Refused`."""
        if not self.world.server.lines:
            raise Gone
        try:
            answer = self._http.request(method, self.world.server.url + path, json=body)
        except httpx.TransportError as error:
            if isinstance(error, httpx.TimeoutException):
                raise
            raise Gone from None
        if answer.status_code != 200:
            raise Refused(answer.status_code, answer.json()["error"]["message"])
        return answer.json()

    @contextmanager
    def stream(self, path: str, body: Object | None = None) -> Generator[Iterator[bytes]]:
        """The bytes of a streamed answer as they come. Raises `Gone` when they break off."""
        method = "GET" if body is None else "POST"
        try:
            with self._http.stream(method, self.world.server.url + path, json=body) as answer:
                if answer.status_code != 200:
                    raise Refused(answer.status_code, answer.read().decode())
                yield answer.iter_raw()
        except httpx.TransportError as error:
            if isinstance(error, httpx.TimeoutException):
                raise
            raise Gone from None

    # --- requests that survive the server's death ---

    def get(self, path: str) -> Object:
        """A read, as often as it takes."""
        while True:
            try:
                return self.ask("GET", path)
            except Gone:
                self.world.recover()

    def change(self, what: str, request: Callable[[], Object], look: Callable[[], Object | None]) -> Object:
        """A change, until it happened: once. ``look`` finds it after a request that got no answer."""
        while True:
            try:
                return request()
            except Gone:
                self.unanswered.append(what)
                self.world.recover()
                found = look()
                if found is not None:
                    return found

    def all(self, path: str) -> list[Object]:
        """A whole list, oldest first."""
        found: list[Object] = []
        while True:
            after = f"&after={found[-1]['id']}" if found else ""
            page = self.get(f"{path}?order=asc&limit=100{after}")
            found += page["data"]
            if not page["has_more"]:
                return found

    # --- verbs ---

    def assistant(self, **fields: Any) -> str:
        """A new assistant's id; made before any crash."""
        return str(self.ask("POST", "/assistants", {"model": self.world.model, **fields})["id"])

    def thread(self, **fields: Any) -> str:
        """A new thread's id; made before any crash."""
        return str(self.ask("POST", "/threads", fields)["id"])

    def say(self, thread: str, text: str) -> Object:
        """Add a user message whose text nobody else says."""
        path = f"/threads/{thread}/messages"

        def look() -> Object | None:
            found = [message for message in self.all(path) if text_of(message) == text]
            assert len(found) <= 1
            return found[0] if found else None

        return self.change("message", lambda: self.ask("POST", path, {"role": "user", "content": text}), look)

    def run(self, thread: str, assistant: str, **fields: Any) -> Object:
        """Create a run."""
        path = f"/threads/{thread}/runs"
        before = {run["id"] for run in self.all(path)}
        body = {"assistant_id": assistant, **fields}
        return self.change("run", lambda: self.ask("POST", path, body), lambda: self.new_run(thread, before))

    def new_run(self, thread: str, before: set[str]) -> Object | None:
        """The run of ``thread`` that is not among ``before``, if there is one."""
        new = [run for run in self.all(f"/threads/{thread}/runs") if run["id"] not in before]
        assert len(new) <= 1
        return new[0] if new else None

    def retrieve(self, run: Object) -> Object:
        return self.get(f"/threads/{run['thread_id']}/runs/{run['id']}")

    def submit(self, run: Object, outputs: dict[str, str]) -> Object:
        """Give ``outputs`` (by call id)."""
        path = f"/threads/{run['thread_id']}/runs/{run['id']}"
        body = {"tool_outputs": [{"tool_call_id": id, "output": output} for id, output in outputs.items()]}

        def look() -> Object | None:
            found = self.retrieve(run)
            return None if found["status"] == "requires_action" else found

        return self.change("submit", lambda: self.ask("POST", path + "/submit_tool_outputs", body), look)

    def cancel(self, run: Object) -> Object:
        path = f"/threads/{run['thread_id']}/runs/{run['id']}"

        def look() -> Object | None:
            found = self.retrieve(run)
            return None if found["status"] in lifecycle.RUN["request_cancel"].sources else found

        return self.change("cancel", lambda: self.ask("POST", path + "/cancel"), look)

    def settled(self, run: Object, seconds: float = SOON) -> Object:
        """The run when it waits for nobody but its client: within ``seconds`` of the newest server's start."""
        asked = clock.monotonic()
        pause = threading.Event()
        while (found := self.retrieve(run))["status"] not in lifecycle.SETTLED:
            late = clock.monotonic() - max(asked, self.world.born)
            assert late < seconds, f"still {found['status']} after {seconds:g} s; {self.world.server.log[-2000:]}"
            pause.wait(0.01)  # another process decides when
        return found

    def steps(self, run: Object) -> list[Object]:
        return self.all(f"/threads/{run['thread_id']}/runs/{run['id']}/steps")

    def messages(self, thread: str) -> list[Object]:
        return self.all(f"/threads/{thread}/messages")


def text_of(message: Object) -> str:
    """The text of a message, its parts joined."""
    return "".join(part["text"]["value"] for part in message["content"] if part["type"] == "text")
