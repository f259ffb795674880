"""Real servers for tests: one inside the test's process, whose time `loomgate.clock.advance` moves, or one beside it.

`Server` listens on a free port of 127.0.0.1 and runs in a thread of its own; `ProcessServer` is ``python -m loomgate
serve`` and can be killed. `Client` is plain HTTP: it sends exactly what it is told, and holds every answer against
the official description.
"""

import asyncio
import http.client
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from loomgate.app import build, listen, running, uvicorn_config
from loomgate.settings import Settings
from loomgate.store import Store
from loomgate.store.keys import Role
from tests.support import gateway_schema, openapi, schema

T = TypeVar("T")

_PATIENCE = 30.0  # seconds for a server to start or stop
BETA = {"OpenAI-Beta": "assistants=v2"}
ADMIN = ("virtual-keys", "providers", "integrations", "configs", "guardrails")  # Portkey's admin routes


@dataclass(frozen=True)
class Response:
    """One answer: ``headers`` with lower-case names, ``body`` as bytes."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed as strict clients do it."""
        return schema.parse_json(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The inner object of an error answer (BEHAVIOUR ERR-01)."""
        assert self.status >= 400, f"{self.status}: {self.body[:300]!r}"
        found = self.json
        if "success" in found:  # an admin route, judged by `gateway_schema`
            found = {"error": found["error"]}
        return schema.check_error(found)


@dataclass
class Client:
    """Calls with one API key. Paths are below ``prefix``; ``headers`` go with every request."""

    url: str
    key: str | None = None
    prefix: str = "/v1"
    headers: dict[str, str] = field(default_factory=lambda: dict(BETA))

    def raw(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        check: bool = True,
    ) -> Response:
        """Send ``body`` as it is to ``path`` (from the root). A header given as "" is left out."""
        given = dict(self.headers)
        if self.key is not None:
            given["Authorization"] = f"Bearer {self.key}"
        if body is not None:
            given["Content-Type"] = "application/json"
        given |= headers or {}
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_PATIENCE)
        try:
            sent = {name: value for name, value in given.items() if value}
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            response = Response(answer.status, found, answer.read())
        finally:
            connection.close()
        if check:
            _check(method, path, response)
        return response

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send ``body`` as JSON (``None``: no body) to ``path`` below the prefix; the parsed answer.

        Fails unless the answer has ``status`` and fits the description; of an error it gives the inner object.
        """
        encoded = None if body is None else json.dumps(body).encode()
        response = self.raw(method, self.prefix + path, encoded, headers)
        assert response.status == status, f"{method} {path} -> {response.status}: {response.body[:600].decode()}"
        return response.error if status >= 400 else response.json

    def get(self, path: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Any:
        """`call` with GET."""
        return self.call("GET", path, status=status, headers=headers)

    def post(
        self, path: str, body: object = None, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Any:
        """`call` with POST; no body is the empty one of BEHAVIOUR CONV-07."""
        return self.call("POST", path, body, status=status, headers=headers)

    def put(
        self, path: str, body: object = None, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Any:
        """`call` with PUT."""
        return self.call("PUT", path, body, status=status, headers=headers)

    def delete(self, path: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Any:
        """`call` with DELETE."""
        return self.call("DELETE", path, status=status, headers=headers)

    def assistant(self, **fields: Any) -> dict[str, Any]:
        """A new assistant on the scripted model."""
        return self.post("/assistants", {"model": "scripted", **fields})

    def thread(self, *texts: str, **fields: Any) -> dict[str, Any]:
        """A new thread with a user message for each of ``texts``."""
        return self.post("/threads", {"messages": [{"role": "user", "content": text} for text in texts], **fields})


def _check(method: str, path: str, response: Response) -> None:
    if path.startswith("/v1/") and path[4:].partition("?")[0].partition("/")[0] in ADMIN:
        gateway_schema.check_response(method, path, response.status, response.body)
        schema.check_headers(response.headers, "application/json")
        return
    documented = openapi.find_operation(method, path.partition("?")[0]) is not None
    kind = response.headers.get("content-type", "").partition(";")[0]
    if kind == "text/event-stream":
        schema.check_headers(response.headers, kind)
    elif response.status >= 400 or documented:
        schema.check_response(method, path, response.status, response.body, headers=response.headers)


class Server:
    """A server in this process: start it with `start`, end it with `stop`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.application = build(settings)
        self._socket = listen(settings.host, settings.port)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://{host}:{port}"
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="loomgate-server", daemon=True)
        self._workspaces = count(1)
        self._stop: Any = None
        self.loop: asyncio.AbstractEventLoop
        self.store: Store
        self.key: str | None = None  # of workspace "default", once `start` was asked for one

    def start(self, *, key: bool = False) -> None:
        """Listen and answer; with ``key``, make an API key first. Raises what the start-up raised."""
        self._thread.start()
        assert self._ready.wait(_PATIENCE), "the server did not start"
        if self._failure is not None:
            raise self._failure
        if key:
            self.key = self.new_key("default")

    def stop(self) -> None:
        """Shut down as a signal would, and wait for the end; raises what went wrong in the server's thread."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop)
            self._thread.join(_PATIENCE)
            assert not self._thread.is_alive(), "the server did not stop"
        self._socket.close()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as failure:
            self._failure = failure
        finally:
            self._ready.set()

    async def _main(self) -> None:
        import uvicorn

        self.loop = asyncio.get_running_loop()
        config = uvicorn_config(self.application, drain_seconds=self.settings.drain_seconds)
        server = uvicorn.Server(config)

        def stop() -> None:
            server.should_exit = True

        self._stop = stop
        async with running(self.application) as store:
            self.store = store
            serving = asyncio.create_task(server.serve(sockets=[self._socket]))
            while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.005)
            self._ready.set()
            await serving

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work`` on the server's event loop, from the test's thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(_PATIENCE)

    def new_key(self, workspace: str | None = None, role: Role = "user") -> str:
        """A new API key, of a workspace of its own unless one is named. The server has keys from then on."""
        name = workspace or f"test-{next(self._workspaces)}"
        return self.run(self.store.keys.create(workspace=name, name="test", role=role)).secret

    def client(self, workspace: str | None = None) -> Client:
        """A client with a key of its own: tests that share a server do not see each other's objects."""
        return Client(self.url, self.new_key(workspace))

    def admin(self, workspace: str | None = None) -> Client:
        """A client with an admin key of its own, without the beta header."""
        return Client(self.url, self.new_key(workspace, "admin"), headers={})


def settings_for(data: Path, **changes: Any) -> Settings:
    """Settings of a test's server: data in ``data``, any free port, quick to write and quick to stop."""
    given: dict[str, Any] = {
        "data": data,
        "port": 0,
        "sqlite_synchronous": "normal",
        "drain_seconds": 1.0,
        "poll_interval_seconds": 0.05,
        # A test that moves time by minutes must not take every lease away at once.
        "lease_seconds": 3600.0,
    }
    return Settings(**(given | changes))


@contextmanager
def serving(data: Path, *, key: bool = False, **changes: Any) -> Iterator[Server]:
    """A running `Server` with its data in ``data``, with an API key if asked; ``changes`` are fields of `Settings`."""
    server = Server(settings_for(data, **changes))
    try:
        server.start(key=key)
        yield server
    finally:
        server.stop()


class ProcessServer:
    """``python -m loomgate serve`` beside the test: it can be killed, and started again on the same data."""

    def __init__(self, data: Path, environment: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("LOOMGATE_")}
        self.environment |= {"LOOMGATE_DRAIN_SECONDS": "1", "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it listens."""
        log = (self.data.parent / "server.log").open("a")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loomgate", "serve", "--port", "0", "--data", str(self.data)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        log.close()
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], _PATIENCE)
        line = self._process.stdout.readline() if readable else ""
        words = [word for word in line.split() if word.startswith("http://")]
        if not words:
            self.kill()
            raise AssertionError(f"the server did not start: {(self.data.parent / 'server.log').read_text()}")
        self.url = words[0].removesuffix("/v1")

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it as an operator would (SIGTERM); the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            return process.wait(_PATIENCE)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def client(self) -> Client:
        """A client without key: the server has none until ``loomgate keys create`` makes one."""
        return Client(self.url)
