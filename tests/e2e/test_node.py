"""The official Node SDK against a running server: tests/node/e2e.mjs plays, this file looks at what it saw."""

import pytest

from tests.support import schema, sse
from tests.support.node import play
from tests.support.recorder import Recorder
from tests.support.server import Server


def _stream(events: list[list[str]]) -> list[str]:
    """Check what the SDK yielded, with the ``done`` that it keeps to itself, and give the names."""
    return sse.names(sse.check_events([*((name, data) for name, data in events), ("done", "[DONE]")]))


@pytest.mark.behaviour("E2E-01", "E2E-02", "E2E-03", "E2E-10", "SDK-02", "SDK-05", "SDK-10", "SSE-40", "SSE-42")
def test_the_node_sdk_runs_unchanged(server: Server, wire: Recorder) -> None:
    results = play("e2e.mjs", {"LOOMGATE_URL": wire.url, "OPENAI_API_KEY": server.new_key()})
    seen = {result["scenario"]: result["details"] for result in results}
    assert set(seen) == {"E2E-01", "E2E-02", "E2E-03", "SSE-53"}
    schema.check_component("RunObject", seen["E2E-01"]["run"])
    assert _stream(seen["E2E-02"]["events"]) == sse.SEQUENCES["SSE-40"]
    assert _stream(seen["E2E-03"]["events_1"]) == sse.SEQUENCES["SSE-42/1"]
    assert _stream(seen["E2E-03"]["events_2"]) == sse.SEQUENCES["SSE-42/2"]
    assert [sse.names(stream.events) for stream in wire.streams()[:3]] == [
        sse.SEQUENCES["SSE-40"],
        sse.SEQUENCES["SSE-42/1"],
        sse.SEQUENCES["SSE-42/2"],
    ]
