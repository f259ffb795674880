"""A cluster's nodes, each a process of its own, on a database of the test's own."""

import asyncio
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loomgate.store import schema
from tests.crash.rig import Forge, Server, text_of, until
from tests.support.engines import Databases, PostgresServer, folder

SEAL_KEY = "5e" * 32
Object = dict[str, Any]


@pytest.fixture(scope="session")
def forge() -> Iterator[Forge]:
    """Where nodes are started."""
    made = Forge()
    yield made
    made.close()


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """A PostgreSQL database of the test's own, with tables."""
    url = asyncio.run(databases.ready())
    yield url
    asyncio.run(databases.drop(url))


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the test's own, running; it may be stopped and started."""
    with folder() as place:
        server = PostgresServer(place)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def tables() -> Callable[[str], None]:
    """Makes the tables in a database."""
    return lambda url: asyncio.run(schema.create_postgres(url))


class Nodes:
    """The nodes of one cluster: started here, and all killed with the test."""

    def __init__(self, forge: Forge, folder: Path, environment: dict[str, str]) -> None:
        self._forge, self._folder, self._environment = forge, folder, environment
        self.started: list[Server] = []
        self._clients: list[Api] = []

    def start(self, *command: str, **settings: str) -> Server:
        """A node, as soon as it says that it is there or has ended; ``settings`` are settings, in lower case."""
        place = self._folder / f"node{len(self.started)}"
        place.mkdir()
        given = {f"LOOMGATE_{name.upper()}": value for name, value in settings.items()}
        node = self._forge.start(place, command=command, env={**self._environment, **given})
        self.started.append(node)
        return node

    def serve(self, **settings: str) -> Server:
        """A node that answers requests; drives runs only if told so."""
        return self.start("serve", "--host", "127.0.0.1", "--port", "0", **{"drive_runs": "false", **settings})

    def worker(self, **settings: str) -> Server:
        """A node that drives runs."""
        return self.start("worker", **settings)

    def alone(self, **settings: str) -> Server:
        """A server without Redis."""
        return self.serve(redis_url="", drive_runs="true", **settings)

    def api(self, node: Server) -> "Api":
        """A client of ``node``."""
        made = Api(node)
        self._clients.append(made)
        return made

    def kill(self) -> None:
        """End all of them."""
        for client in self._clients:
            client.http.close()
        for node in self.started:
            node.send(signal.SIGCONT)
            node.send(signal.SIGKILL)


@pytest.fixture
def make_nodes(forge: Forge, tmp_path: Path, redis_url: str) -> Iterator[Callable[[str], Nodes]]:
    """Makes a cluster on a database."""
    made: list[Nodes] = []

    def make(url: str) -> Nodes:
        environment = {
            "LOOMGATE_DATABASE_URL": url,
            "LOOMGATE_REDIS_URL": redis_url,
            "LOOMGATE_REDIS_PREFIX": f"test-{secrets.token_hex(4)}",
            "LOOMGATE_SEAL_KEY": SEAL_KEY,
            "LOOMGATE_LEASE_SECONDS": "2",
            "LOOMGATE_LEASE_RENEW_SECONDS": "0.5",
            "LOOMGATE_POLL_INTERVAL_SECONDS": "0.1",
            "LOOMGATE_DRAIN_SECONDS": "5",
        }
        place = tmp_path / f"cluster{len(made)}"
        place.mkdir()
        nodes = Nodes(forge, place, environment)
        made.append(nodes)
        return nodes

    yield make
    for nodes in made:
        nodes.kill()


@pytest.fixture
def nodes(make_nodes: Callable[[str], Nodes], database_url: str) -> Nodes:
    """A cluster on a database of its own; nobody is there yet."""
    return make_nodes(database_url)


class Api:
    """A client of one node."""

    def __init__(self, node: Server) -> None:
        self.url = node.url
        self.http = httpx.Client(
            base_url=node.url, headers={"openai-beta": "assistants=v2"}, timeout=30, trust_env=False
        )

    def ask(self, method: str, path: str, body: Object | None = None) -> Object:
        """The answer, which must be a good one."""
        answer = self.http.request(method, path, json=body)
        assert answer.status_code == 200, answer.text
        found: Object = answer.json()
        return found

    def thread(self, text: str) -> str:
        """A new thread with a user message."""
        return str(self.ask("POST", "/threads", {"messages": [{"role": "user", "content": text}]})["id"])

    def run(self, thread: str) -> Object:
        """A new run on the scripted model."""
        assistant = self.ask("POST", "/assistants", {"model": "scripted"})
        return self.ask("POST", f"/threads/{thread}/runs", {"assistant_id": assistant["id"]})

    def becomes(self, run: Object, status: str, seconds: float = 20) -> Object:
        """The run, when it has this status."""
        path = f"/threads/{run['thread_id']}/runs/{run['id']}"

        def look() -> Object | None:
            found = self.ask("GET", path)
            return found if found["status"] == status else None

        found: Object = until(look, seconds, f"that the run is {status}")
        return found

    def said(self, thread: str) -> list[str]:
        """The assistant's messages."""
        messages = self.ask("GET", f"/threads/{thread}/messages?order=asc")["data"]
        return [text_of(message) for message in messages if message["role"] == "assistant"]

    def steps(self, run: Object) -> list[str]:
        """The statuses of the run's steps."""
        found = self.ask("GET", f"/threads/{run['thread_id']}/runs/{run['id']}/steps")["data"]
        return [step["status"] for step in found]
