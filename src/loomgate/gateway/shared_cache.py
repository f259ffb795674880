"""The answer cache of all nodes, in Redis: what one of them was answered, the others need not ask again.

What must live here: how answers and vectors lie in Redis, and within which bounds. What must not: which requests are
cached, and what two of them must have in common (``cache``); how vectors are compared (``semantic``).

An answer is one key that Redis forgets by itself; beside them are the order in which they were used, when they end and
what they take, so that the least recently used can go when all take more than they may. Whoever stores an answer sees
to that, in one script. Vectors of questions lie by group; a node keeps those that it has compared, and asks for the
later ones only. What is stored is sealed, since answers hold what people were told, and Redis may write it to a disk
(docs/why/limits.md).
"""

import asyncio
import contextlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import msgspec

from loomgate import clock
from loomgate.errors import StoreError
from loomgate.gateway.cache import (
    DEFAULT_MAX_AGE,
    LARGEST_PART,
    LONGEST_MAX_AGE,
    AnswerCache,
    CachePlan,
    Embed,
    Hit,
    keepable,
)
from loomgate.gateway.semantic import MOST_QUESTIONS, Point
from loomgate.gateway.shared import AWAY, Script, Shared
from loomgate.store.seal import Sealer

# What one answer takes in Redis besides its bytes: its name, and its places in what is beside it. With a vector it is
# half as much again. Measured; see the tests.
OVERHEAD = 1024
_SKEW = 60.0  # seconds that the clocks of two nodes may differ: an answer from further ahead is not known to be young
_PART = 32  # vectors in one answer of Redis: what goes over in a millisecond or two

# KEYS: used, ends, sizes, total, numbers. ARGV: what the names of the rest begin with; now; who; its value; seconds to
# keep it; the bounds of all and of one; what one takes besides; its group and vector ("": those it has); most of a
# group; "1" if it is only to replace what is there.
_KEEP = Script("""
local used, ends, sizes, total, numbers = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local prefix, now, who, value, age = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])
local group, vector = ARGV[9], ARGV[10]
local function drop(one)
  local kept = redis.call('HGET', sizes, one)
  redis.call('DEL', prefix .. 'answer:' .. one)
  redis.call('ZREM', used, one)
  redis.call('ZREM', ends, one)
  if not kept then return end
  local size, of = string.match(kept, '^(%d+) (.*)$')
  redis.call('HDEL', sizes, one)
  redis.call('DECRBY', total, size)
  if of ~= '' then
    redis.call('ZREM', prefix .. 'order:' .. of, one)
    redis.call('HDEL', prefix .. 'vectors:' .. of, one)
  end
end
for _, one in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', ARGV[2], 'LIMIT', 0, 20)) do drop(one) end
local kept = redis.call('HGET', sizes, who)
if ARGV[12] == '1' and not kept then return 0 end
if group == '' and kept then
  group = string.match(kept, '^%d+ (.*)$')
  vector = group ~= '' and redis.call('HGET', prefix .. 'vectors:' .. group, who) or ''
  if vector == '' or not vector then group, vector = '', '' end
end
drop(who)
local size = #value + #vector + tonumber(ARGV[8]) * (group ~= '' and 1.5 or 1)
if size > tonumber(ARGV[7]) then return 0 end
redis.call('SET', prefix .. 'answer:' .. who, value, 'EX', age)
redis.call('ZADD', used, ARGV[2], who)
redis.call('ZADD', ends, string.format('%.17g', now + age), who)
redis.call('HSET', sizes, who, size .. ' ' .. group)
redis.call('INCRBY', total, size)
if group ~= '' then
  local order, vectors = prefix .. 'order:' .. group, prefix .. 'vectors:' .. group
  -- Numbers never fall, though Redis forgets everything.
  if redis.call('EXISTS', numbers) == 0 then
    local time = redis.call('TIME')
    redis.call('SET', numbers, string.format('%d', time[1] * 1000000 + time[2]))
  end
  redis.call('ZADD', order, redis.call('INCR', numbers), who)
  redis.call('HSET', vectors, who, vector)
  for _, name in ipairs({order, vectors}) do
    if redis.call('TTL', name) < age then redis.call('EXPIRE', name, age) end
  end
  if redis.call('ZCARD', order) > tonumber(ARGV[11]) then drop(redis.call('ZRANGE', order, 0, 0)[1]) end
end
while tonumber(redis.call('GET', total)) > tonumber(ARGV[6]) do
  local oldest = redis.call('ZRANGE', used, 0, 0)[1]
  if not oldest then
    redis.call('DECRBY', total, redis.call('GET', total))
    break
  end
  drop(oldest)
end
for i = 1, #KEYS do
  if redis.call('TTL', KEYS[i]) < age then redis.call('EXPIRE', KEYS[i], age) end
end
return 1
""")

# KEYS: the order and the vectors of a group. ARGV: the number of the last one known, how many at most. Answers: who,
# number and vector of each.
_LATER = Script("""
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local answer = {}
for i = 1, #found, 2 do
  local at = #answer
  answer[at + 1], answer[at + 2], answer[at + 3] = found[i], found[i + 1], redis.call('HGET', KEYS[2], found[i]) or ''
end
return answer
""")


class _Kept(msgspec.Struct, array_like=True):
    """An answer as it lies in Redis, before it is sealed."""

    stored: float
    max_age: int
    content_type: str
    body: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode


class _Group:
    """What this node knows of a group: up to which number, and the bytes that its vectors take."""

    __slots__ = ("last", "size")

    def __init__(self) -> None:
        self.last = b"0"
        self.size = 0


class SharedAnswerCache(AnswerCache):
    """`AnswerCache` in the Redis behind ``shared``: all nodes have the same answers, sealed by ``sealer``.

    ``limit_bytes`` bounds what all answers take there, and again what this process keeps of vectors. While Redis is
    away nothing is found and nothing kept.
    """

    def __init__(
        self,
        shared: Shared,
        sealer: Sealer,
        limit_bytes: int,
        embed: Embed | None,
        *,
        max_age: int = DEFAULT_MAX_AGE,
        max_age_limit: int = LONGEST_MAX_AGE,
    ) -> None:
        super().__init__(limit_bytes, embed, max_age=max_age, max_age_limit=max_age_limit)
        self._shared = shared
        self._sealer = sealer.derived("the answer cache")
        self._prefix = shared.name("cache", "")
        self._beside = [self._prefix + name for name in ("used", "ends", "sizes", "total", "numbers")]
        self._groups: dict[bytes, _Group] = {}  # the least recently compared first
        self._vectors = 0  # bytes of all of them

    async def lookup(self, plan: CachePlan) -> Hit | None:
        """The answer that some node kept for the request of ``plan``, or for a question of like meaning.

        Waits for Redis, a moment at most, and for the embedding model, only for a semantic plan without an exact match.
        """
        if plan.refresh:
            return None
        found = self._opened(plan.key, plan, await self._asked(plan.key))
        if found is not None:
            return Hit(found.body, found.content_type)
        point = await self._point(plan)
        if point is None or plan.question is None:
            return None
        group = plan.question.group
        await self._catch_up(group)
        near = self._neighbours.nearest(group, point)
        answers = await asyncio.gather(*(self._asked(key) for key in near))
        for key, answer in zip(near, answers, strict=True):
            if answer is None:
                self._neighbours.remove(group, key)
            elif (found := self._opened(key, plan, answer)) is not None:
                return Hit(found.body, found.content_type, semantic=True)
        return None

    async def store(self, plan: CachePlan, status: int, content_type: str, body: bytes) -> None:
        """Keep an answer for the requests of ``plan`` at all nodes, as `AnswerCache.store` does."""
        if status != 200 or not keepable(content_type, body):
            return
        kept = _encode(_Kept(clock.now(), plan.max_age, content_type, body))
        point, question = await self._point(plan), plan.question
        if point is None or question is None:
            await self._keep(plan, plan.key, kept)
            return
        if plan.refresh:
            await self._catch_up(question.group)
            near = await self._neighbours.all_near(question.group, point)
            await asyncio.gather(*(self._keep(plan, key, kept, there=True) for key in near if key != plan.key))
        await self._keep(plan, plan.key, kept, question.group, point)

    async def close(self) -> None:
        """Break off the way to Redis."""
        await self._shared.close()

    def _asked(self, key: bytes) -> "asyncio.Future[Any]":
        return self._shared.ask("GET", f"{self._prefix}answer:{_word(key)}")

    def _opened(self, key: bytes, plan: CachePlan, sealed: Any) -> _Kept | None:
        """What was found for ``key``, if it is young enough for both who stored it and who asks; it counts as used."""
        if sealed is None or sealed is AWAY:
            return None
        who = _word(key)
        try:
            kept = _decode(self._sealer.derived(who).open_bytes(sealed, context=who))
        except (StoreError, msgspec.DecodeError):
            return None  # of another seal key, or of another version
        now = clock.now()
        age = now - kept.stored
        if age >= min(kept.max_age, plan.max_age) or age < -_SKEW:
            return None
        self._shared.tell("ZADD", self._beside[0], "XX", repr(now), who)
        return kept

    async def _keep(
        self,
        plan: CachePlan,
        key: bytes,
        kept: bytes,
        group: bytes | None = None,
        point: Point | None = None,
        *,
        there: bool = False,
    ) -> None:
        """Store what is ``kept`` under ``key``; ``there``: only if something is there."""
        who = _word(key)
        sealer = self._sealer.derived(who)
        vector = b"" if point is None else sealer.seal_bytes(point.to_bytes(), context=who + " vector")
        await self._shared.run(
            _KEEP,
            self._beside,
            self._prefix,
            repr(clock.now()),
            who,
            sealer.seal_bytes(kept, context=who),
            plan.max_age,
            self._limit,
            self._limit // LARGEST_PART,
            OVERHEAD,
            "" if group is None else _word(group),
            vector,
            MOST_QUESTIONS,
            "1" if there else "0",
        )

    async def _catch_up(self, group: bytes) -> None:
        """Learn of the vectors that were stored since this node last looked."""
        known = self._groups.pop(group, None) or _Group()
        self._groups[group] = known
        word = _word(group)
        keys = [f"{self._prefix}order:{word}", f"{self._prefix}vectors:{word}"]
        while True:
            found = await self._shared.run(_LATER, keys, known.last, _PART)
            if found is AWAY or not found:
                break
            for who, vector in zip(found[::3], found[2::3], strict=True):
                point = self._vector(who.decode(), vector)
                if point is not None:
                    key = _key(who)
                    pushed_out = self._neighbours.add(group, key, point)
                    if pushed_out is not None:
                        self._neighbours.remove(group, pushed_out)
                    size = self._neighbours.count(group) * point.size
                    self._vectors += size - known.size
                    known.size = size
            known.last = max(known.last, found[-2], key=int)
            if len(found) < 3 * _PART:
                break
        while self._vectors > self._limit and len(self._groups) > 1:
            oldest = next(iter(self._groups))
            self._vectors -= self._groups.pop(oldest).size
            self._neighbours.forget(oldest)

    def _vector(self, who: str, sealed: bytes) -> Point | None:
        with contextlib.suppress(StoreError, ValueError):
            return Point.from_bytes(self._sealer.derived(who).open_bytes(sealed, context=who + " vector"))
        return None


def _word(key: bytes) -> str:
    """How 32 bytes are written in names."""
    return urlsafe_b64encode(key).decode().rstrip("=")


def _key(word: bytes) -> bytes:
    return urlsafe_b64decode(word + b"=")
