"""Nodes that share a Redis, in one process: each has a client of its own."""

import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

from redis.asyncio import Redis

from loomgate import clock
from loomgate.bus import connection
from loomgate.gateway.cache import Embed
from loomgate.gateway.shared import Shared
from loomgate.gateway.shared_cache import SharedAnswerCache
from loomgate.store.seal import Sealer


class Nodes:
    """Makes the nodes' doors to the Redis at ``url``, under a prefix that nobody else has."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url = url
        self.prefix = f"test-{secrets.token_hex(6)}"
        self._stack = stack

    def client(self) -> "Redis":
        """A client to look at it with, closed with the test."""
        made = Redis.from_url(self.url, protocol=2)
        self._stack.push_async_callback(made.aclose)
        return made

    def node(self, *, seconds: float = 2.0, own_time: bool = False) -> Shared:
        """One node's door. Patient, since the machine may be busy; by the clock room unless ``own_time``."""
        redis = connection.Redis(self.url)
        self._stack.push_async_callback(redis.close)
        made = Shared(redis, self.prefix, seconds=seconds, now=None if own_time else clock.now)
        self._stack.push_async_callback(made.close)
        return made


@asynccontextmanager
async def nodes_at(url: str) -> AsyncGenerator[Nodes, None]:
    """`Nodes`, closed at the end; what they left behind expires."""
    async with AsyncExitStack() as stack:
        yield Nodes(url, stack)


class TwoNodes:
    """The cache of two nodes as one: what one of them stores the other looks up."""

    def __init__(self, nodes: Nodes, limit_bytes: int, embed: Embed | None = None) -> None:
        self.a, self.b = (SharedAnswerCache(nodes.node(), Sealer(b"k" * 32), limit_bytes, embed) for _ in range(2))
        self.cacheable = self.a.cacheable
        self.store = self.a.store
        self.lookup = self.b.lookup
        self._shared = nodes.node()

    async def taken(self) -> tuple[int, int]:
        """How many answers there are, and the bytes that they take, as Redis has it."""
        name = self._shared.name
        count, size = (
            await self._shared.ask("HLEN", name("cache", "sizes")),
            await self._shared.ask("GET", name("cache", "total")),
        )
        return count, int(size or 0)
