"""The official SDKs, unchanged, through a recording proxy: every answer and event they get is checked at the end."""

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.support.recorder import Recorder
from tests.support.server import Server, serving
from tests.support.standin import StandIn
from tests.support.storage import Storage, make_server, process_server, server, storage_of
from tests.support.way import Way

__all__ = ["make_server", "process_server", "server"]


@pytest.fixture(scope="session")
def storage(request: pytest.FixtureRequest) -> Storage:
    """SQLite, unless a module asks for more: ``pytest.mark.parametrize("storage", ENGINES, indirect=True)``."""
    return storage_of(request, getattr(request, "param", "sqlite"))


@pytest.fixture
def wire(server: Server) -> Iterator[Recorder]:
    """A recorder in front of `server`."""
    with Recorder(server.url) as recorder:
        yield recorder
        recorder.check()


@pytest.fixture
def sdk(server: Server, wire: Recorder) -> Iterator[OpenAI]:
    """The official Python SDK in a workspace of its own, seen by `wire`. It does not retry: no fault goes by."""
    with OpenAI(base_url=f"{wire.url}/v1", api_key=server.new_key(), max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with API keys whose clients may name stand-ins of this machine as custom hosts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUSTED_CUSTOM_HOSTS", "127.0.0.1")
        with serving(tmp_path_factory.mktemp("gateway") / "data", key=True) as made:
            yield made


@pytest.fixture
def upstream(gateway: Server) -> Iterator[StandIn]:
    """A vendor's endpoint that says what the test says."""
    made = StandIn()
    gateway.run(made.start())
    yield made
    gateway.run(made.stop())


@pytest.fixture
def way(gateway: Server, upstream: StandIn) -> Way:
    """A client in a workspace of its own that names `upstream` as OpenAI's address."""
    return Way(gateway.url, gateway.new_key(), upstream)
