"""Streams are the same on either bus: within one process, and over a real Redis."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from loomgate.settings import Secret
from tests.support.server import Server, serving


def _bus(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "local":
        return {}
    return {
        "redis_url": Secret(request.getfixturevalue("redis_url")),
        "redis_prefix": f"test-{secrets.token_hex(4)}",
    }


@pytest.fixture(scope="session", params=["local", "redis"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with API keys for these tests, on either bus."""
    with serving(tmp_path_factory.mktemp("server") / "data", key=True, **_bus(request)) as made:
        yield made


@pytest.fixture(params=["local", "redis"])
def make_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers with settings of their own, on either bus."""
    with ExitStack() as stack:
        made = 0

        def make(**changes: Any) -> Server:
            nonlocal made
            made += 1
            return stack.enter_context(serving(tmp_path / f"data{made}", **_bus(request), **changes))

        yield make
