"""What these tests share."""

from collections.abc import AsyncIterator

import pytest

from loomgate.gateway.verdicts import Door
from loomgate.providers.transport import Transport


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    """A door through which checks may reach this machine."""
    transport = Transport()
    yield Door(transport.send, lambda url: True)
    await transport.close()
