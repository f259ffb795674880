"""A gateway that listens, and endpoints whose every byte the test says."""

from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.gateway_http.caller import Caller
from tests.support.peer import Peer
from tests.support.peer import Server as Endpoint
from tests.support.server import Server, serving


@pytest.fixture(scope="package")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with API keys whose clients may name endpoints of this machine as custom hosts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUSTED_CUSTOM_HOSTS", "127.0.0.1")
        with serving(tmp_path_factory.mktemp("gateway") / "data", key=True) as made:
            yield made


@pytest.fixture
def endpoint(gateway: Server) -> Iterator[Callable[[Callable[[Peer], Awaitable[None]]], Endpoint]]:
    """Starts endpoints that do what a function does with each connection. They stop with the test."""
    started: list[Endpoint] = []

    def start(play: Callable[[Peer], Awaitable[None]]) -> Endpoint:
        made = Endpoint(play)
        gateway.run(made.__aenter__())
        started.append(made)
        return made

    yield start
    for made in started:
        gateway.run(made.__aexit__(None))


@pytest.fixture
def caller(gateway: Server) -> Caller:
    """A client in a workspace of its own."""
    return Caller(gateway.url, gateway.new_key())
