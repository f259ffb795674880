"""Servers for the tests of runs: one that is busy, and one whose model endpoint is a stand-in over real HTTP.

Every test here runs on SQLite, and on PostgreSQL with Redis: see `tests.support.storage`.
"""

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from loomgate import clock
from loomgate.gateway.shared import Shared
from loomgate.settings import Provider, Secret, VirtualKey
from loomgate.settings.declared import DeclaredConfig, Tree
from tests.api.driving import Lives
from tests.api.gated import KEY_A, KEY_B, Site, fallback
from tests.support.server import Client, Server, serving
from tests.support.storage import Storage, make_server, process_server, server, storage
from tests.support.upstream import ModelEndpoint

__all__ = ["make_server", "process_server", "server", "storage"]

OPERATOR_KEY = "sk-operator-0123456789abcdef"
SLUG_KEY = "sk-of-the-slug-0123456789abcdef"


@pytest.fixture(scope="session")
def endpoints() -> Iterator[Callable[[], ModelEndpoint]]:
    """Makes stand-in model endpoints, in a thread of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="model-endpoints", daemon=True)
    thread.start()
    made: list[ModelEndpoint] = []

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(10)

    async def begin() -> ModelEndpoint:
        endpoint = ModelEndpoint()
        await endpoint.start()
        return endpoint

    def make() -> ModelEndpoint:
        made.append(run(begin()))
        return made[-1]

    yield make
    for endpoint in made:
        run(endpoint.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="session")
def _endpoint(endpoints: Callable[[], ModelEndpoint], storage: Storage) -> ModelEndpoint:
    assert storage  # on each a new one: it remembers what it was asked for
    return endpoints()


@pytest.fixture
def endpoint(_endpoint: ModelEndpoint) -> ModelEndpoint:
    """The model endpoint of `routed`, with nothing received and nothing wrong."""
    _endpoint.requests.clear()
    _endpoint.faults.clear()
    _endpoint.dropped.clear()
    return _endpoint


def provider(name: str, endpoint: ModelEndpoint, **fields: Any) -> Provider:
    """A provider of the settings whose endpoint is ``endpoint``."""
    given: dict[str, Any] = {"vendor": "openai", "api_key": Secret(OPERATOR_KEY), "max_attempts": 1}
    return Provider(name=name, base_url=endpoint.base_url, **(given | fields))


@pytest.fixture(scope="session")
def _routed(_endpoint: ModelEndpoint, storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    providers = {
        "standin": provider("standin", _endpoint, models=("stand-in*", "gpt-*", "o3*")),
        "hasty": provider("hasty", _endpoint, models=("hasty",), first_byte_seconds=0.2, idle_seconds=0.2),
        "stubborn": provider("stubborn", _endpoint, models=("stubborn",), max_attempts=2),
        # A vendor whose endpoint does not know parallel_tool_calls: the field is not sent.
        "plain": provider("plain", _endpoint, models=("plain",), vendor="together-ai"),
    }
    keys = {"team": VirtualKey(slug="team", provider="standin", api_key=Secret(SLUG_KEY), workspace="default")}
    data = tmp_path_factory.mktemp("routed") / "data"
    windows = {"stand-in-small": 1024}
    with (
        storage.new() as there,
        serving(data, providers=providers, virtual_keys=keys, context_window=windows, **there) as made,
    ):
        made.new_key("default")
        yield made


@pytest.fixture
def routed(_routed: Server, endpoint: ModelEndpoint) -> Server:
    """A server whose models ``stand-in*`` are played by `endpoint`."""
    assert endpoint.base_url
    return _routed


@pytest.fixture
def standin(routed: Server) -> Client:
    """A client of `routed` in a workspace of its own."""
    return routed.client()


@pytest.fixture(scope="module")
def busy(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that drives one run at a time."""
    data = tmp_path_factory.mktemp("busy") / "data"
    with storage.new() as there, serving(data, worker_concurrency=1, drain_seconds=0.1, **there) as made:
        yield made


@pytest.fixture(scope="module")
def lives(server: Server, busy: Server) -> Lives:
    """Brings runs into any status."""
    return Lives(server.client(), busy.client())


@pytest.fixture(scope="session")
def _site(
    endpoints: Callable[[], ModelEndpoint], storage: Storage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    a, b = endpoints(), endpoints()
    both = {
        "a": provider("a", a, api_key=Secret(KEY_A), models=("model-a",)),
        "b": provider("b", b, api_key=Secret(KEY_B), models=("model-b",)),
        "patient": provider("patient", a, models=("patient",), max_attempts=4),
    }
    configs = {
        "spare": DeclaredConfig(slug="spare", workspace="house", config=Tree(fallback("a", "b"))),
        "usual": DeclaredConfig(slug="usual", workspace="defaulted", config=Tree({"provider": "b"}), default=True),
    }
    keys = {
        "team": VirtualKey(slug="team", provider="a", api_key=Secret("sk-of-the-team-0123456789"), workspace="house")
    }
    data = tmp_path_factory.mktemp("gated") / "data"
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(storage.new())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRUSTED_CUSTOM_HOSTS", "127.0.0.1")
            # Nodes count by Redis' own clock, which no test can move.
            patch.setattr("loomgate.app.Shared", functools.partial(Shared, now=clock.now))
            made = stack.enter_context(serving(data, providers=both, configs=configs, virtual_keys=keys, **there))
        made.new_key("default")
        yield Site(made, a, b)


@pytest.fixture
def site(_site: Site) -> Site:
    """A server with the providers ``a``, ``b`` and ``patient`` (that is ``a``, tried more often), nothing received."""
    for endpoint in (_site.a, _site.b):
        endpoint.requests.clear()
        endpoint.faults.clear()
        endpoint.dropped.clear()
    return _site
