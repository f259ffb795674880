"""A gateway whose clients may name vendors of this machine."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import openai
import pytest

from tests.gateway_jobs.vendor import Vendor
from tests.support.server import Server, serving

V = TypeVar("V", bound=Vendor)
Start = Callable[[type[V]], V]
Sdk = Callable[..., openai.OpenAI]


@pytest.fixture(scope="package")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with API keys whose clients may name stand-ins of this machine as custom hosts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUSTED_CUSTOM_HOSTS", "127.0.0.1")
        with serving(tmp_path_factory.mktemp("jobs") / "data", key=True) as made:
            yield made


@pytest.fixture
def start(gateway: Server) -> Iterator[Callable[[type[Any]], Any]]:
    """Starts a vendor, which stops with the test."""
    started: list[Vendor] = []

    def begin(kind: type[Any]) -> Any:
        made = kind()
        gateway.run(made.start())
        started.append(made)
        return made

    yield begin
    for made in started:
        gateway.run(made.stop())


@pytest.fixture
def connect(gateway: Server) -> Iterator[Sdk]:
    """The official SDK, in a workspace of its own: to which provider where, with whose key and what headers."""
    made: list[openai.OpenAI] = []

    def open(provider: str, host: str, key: str = "", **headers: str) -> openai.OpenAI:
        ours = gateway.new_key()
        named = {
            "x-portkey-provider": provider,
            "x-portkey-custom-host": host,
            "x-portkey-api-key": ours if key else "",
        }
        named |= {"x-portkey-" + name.replace("_", "-"): value for name, value in headers.items()}
        given = {name: value for name, value in named.items() if value}
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key or ours, default_headers=given, max_retries=0)
        made.append(client)
        return client

    yield open
    for client in made:
        client.close()
