"""The forge of the crash tests, and the stand-in model endpoint in a process of its own."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.crash.rig import CLEAN, ROOT, Forge


@pytest.fixture(scope="session")
def forge() -> Iterator[Forge]:
    """Where servers are started."""
    made = Forge()
    yield made
    made.close()


@pytest.fixture(scope="session")
def upstream() -> Iterator[str]:
    """The base URL of the stand-in endpoint, which outlives every server."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.upstream", "--port", "0"],
        cwd=ROOT,
        env=CLEAN,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait(10)
    process.stdout.close()
