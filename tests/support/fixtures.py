"""Fixtures of tests that need a running server: shared ones where a workspace of its own is isolation enough."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import Databases, PostgresServer, RedisServer, folder
from tests.support.server import Client, ProcessServer, Server, serving


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """Makes databases on a real PostgreSQL."""
    if url := os.environ.get("LOOMGATE_TEST_POSTGRES"):
        made = Databases(url)
        yield made
        asyncio.run(made.close())
        return
    with folder() as place:
        server = PostgresServer(place)
        server.start()
        yield Databases(server.url())
        server.stop()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a real Redis that the tests of the session share: take a prefix of your own."""
    if url := os.environ.get("LOOMGATE_TEST_REDIS"):
        yield url
        return
    with folder() as place:
        server = RedisServer(place)
        server.start()
        yield server.url
        server.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with API keys for all tests of the session; take `client` to be alone on it."""
    with serving(tmp_path_factory.mktemp("server") / "data", key=True) as made:
        yield made


@pytest.fixture
def client(server: Server) -> Client:
    """A client of `server` in a workspace of its own."""
    return server.client()


@pytest.fixture(scope="module")
def keyless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on which no API key was ever created. Do not create one."""
    with serving(tmp_path_factory.mktemp("keyless") / "data") as made:
        yield made


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers with settings of their own: ``make_server(run_ttl_seconds=5)``. They stop with the test."""
    with ExitStack() as stack:
        made = 0

        def make(**changes: Any) -> Server:
            nonlocal made
            made += 1
            return stack.enter_context(serving(tmp_path / f"data{made}", **changes))

        yield make


@pytest.fixture
def process_server(tmp_path: Path) -> Iterator[Callable[..., ProcessServer]]:
    """Starts servers in processes of their own; keyword arguments are environment variables."""
    started: list[ProcessServer] = []

    def start(**environment: str) -> ProcessServer:
        made = ProcessServer(tmp_path / f"data{len(started)}", environment)
        started.append(made)
        made.start()
        return made

    yield start
    for made in started:
        made.kill()
