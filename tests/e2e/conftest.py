"""The official SDKs, unchanged, through a recording proxy: every answer and event they get is checked at the end."""

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.support.recorder import Recorder
from tests.support.server import Server


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
