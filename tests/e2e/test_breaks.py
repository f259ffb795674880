"""The official Node SDK while answers break off in the middle; tests/api/test_gateway_breaks.py has Python's."""

import pytest

from tests.support.node import play
from tests.support.recorder import Recorder
from tests.support.server import Server


@pytest.mark.behaviour("PRX-19")
def test_the_node_sdks_snapshots_end_as_what_is_stored(server: Server, wire: Recorder) -> None:
    results = play("breaks.mjs", {"LOOMGATE_URL": wire.url, "OPENAI_API_KEY": server.new_key()})
    assert [result["scenario"] for result in results] == ["text", "calls"]
