"""Questions of like meaning: what a semantic cache compares, and a search for what is near (GATEWAY CCH-04).

What must live here: the text of a request that carries its question, vectors, and finding those close to another. What
must not: answers, their age and their memory (``cache``), and where vectors come from.

The search reads the sign of every coordinate first, one bit each: vectors with a cosine of 0.95 lie at an angle of 18
degrees, so about a tenth of the bits differ, while those of unrelated texts differ in a third to a half. The few with
the fewest differing bits are then compared exactly. So a hit always has the cosine it must have; a neighbour whose
signs are unusual could be overlooked, which costs one call to the model and nothing else.
"""

import asyncio
import math
import sys
from array import array
from collections.abc import Sequence
from hashlib import sha256
from operator import itemgetter
from typing import Any, Self, cast

import msgspec

from loomgate.providers import tokens

NEAR = 0.95
MOST_MESSAGES = 4
TOKEN_LIMIT = 8_191  # the text must have fewer
# Questions compared at most, of those that are alike in everything else. The oldest goes for a new one.
MOST_QUESTIONS = 1_000
# Compared exactly, of those whose signs are closest: what fits into half a millisecond.
_CANDIDATES = 8
# How many at a time in a search through all of them, between which other work has its turn.
_BATCH = 8
# OpenAI's embedding models have one encoding, and the limit is theirs.
_COUNTED_AS = "text-embedding-3-small"
# The longest token of that encoding has 128 bytes.
_LONGEST_TOKEN = 128

_encode = msgspec.json.Encoder(order="sorted").encode


class Question:
    """The user's text in a request, and ``group``: a digest of everything else that must be equal for a match."""

    __slots__ = ("asked", "group", "point", "text")

    def __init__(self, group: bytes, text: str) -> None:
        self.group = group
        self.text = text
        self.asked = False  # whether its point was asked for
        self.point: Point | None = None

    async def is_short_enough(self) -> bool:
        """Whether the text has fewer than 8,191 tokens. Counts a long text in a thread."""
        length = len(self.text.encode("utf-8", "surrogatepass"))
        if length < TOKEN_LIMIT:
            return True
        if length >= TOKEN_LIMIT * _LONGEST_TOKEN:
            return False
        return await asyncio.to_thread(tokens.count_text, self.text, _COUNTED_AS) < TOKEN_LIMIT


def question_of(endpoint: str, fields: dict[str, Any], where: Any) -> Question | None:
    """What a semantic match for the body ``fields`` compares, or ``None`` if it can have an exact match only.

    ``where`` is what else must be equal, anything that is JSON. Answers of the model and of tools within the
    conversation, and what is not text in the user's messages, must be equal too; the system prompt need not (CCH-04).
    """
    if endpoint == "chat":
        found = _of_messages(fields.get("messages"))
        left_out = "messages"
    elif endpoint == "complete":
        found = _of_prompt(fields.get("prompt"))
        left_out = "prompt"
    else:
        return None
    if found is None:
        return None
    text, rest = found
    others = {name: value for name, value in fields.items() if name != left_out}
    return Question(sha256(_encode((where, others, rest))).digest(), text) if text.strip() else None


def _of_messages(messages: Any) -> tuple[str, list[Any]] | None:
    if not isinstance(messages, list):
        return None
    listed = cast("list[Any]", messages)
    if len(listed) > MOST_MESSAGES or not all(isinstance(message, dict) for message in listed):
        return None
    texts: list[str] = []
    rest: list[Any] = []
    for message in cast("list[dict[str, Any]]", listed):
        role = message.get("role")
        if role in ("system", "developer"):
            continue
        if role != "user":
            rest.append(message)
            continue
        content = message.get("content")
        parts = cast("list[Any]", content) if isinstance(content, list) else [content]
        others: list[Any] = []
        for part in parts:
            text = _text(part)
            if text is None:
                others.append(part)
            else:
                texts.append(text)
        rest.append((others, {name: value for name, value in message.items() if name != "content"}))
    return "\n".join(texts), rest


def _text(part: Any) -> str | None:
    if isinstance(part, dict):
        known = cast("dict[str, Any]", part)
        part = known.get("text") if known.keys() == {"type", "text"} and known["type"] == "text" else None
    return part if isinstance(part, str) else None


def _of_prompt(prompt: Any) -> tuple[str, list[Any]] | None:
    if isinstance(prompt, str):
        return prompt, []
    # Several prompts have several answers, and a list of numbers is no text.
    if isinstance(prompt, list) and len(cast("list[Any]", prompt)) == 1 and isinstance(prompt[0], str):
        return prompt[0], [1]
    return None


class Point:
    """A vector of length 1 (32-bit floats) and the signs of its coordinates as the bits of a whole number."""

    __slots__ = ("signs", "vector")

    def __init__(self, vector: "array[float]", signs: int) -> None:
        self.vector = vector
        self.signs = signs

    @classmethod
    def of(cls, vector: Sequence[float]) -> Self:
        """The point in the direction of ``vector``. Raises `ValueError` if that has none."""
        try:
            length = math.hypot(*vector)
        except TypeError:
            raise ValueError("an embedding is not a list of numbers") from None
        if not math.isfinite(length) or not length > 0:
            raise ValueError("an embedding has no direction: its length is not above 0 and finite")
        signs = "".join(["1" if value > 0 else "0" for value in vector])
        return cls(array("f", [value / length for value in vector]), int(signs, 2))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The point that `to_bytes` was asked of. Raises `ValueError` for what is none."""
        if len(data) < 4 or len(data) < (end := 4 + 4 * int.from_bytes(data[:4], "little")):
            raise ValueError("not the bytes of a vector")
        vector = array("f", data[4:end])
        if sys.byteorder != "little":
            vector.byteswap()
        return cls(vector, int.from_bytes(data[end:], "little"))

    def to_bytes(self) -> bytes:
        """How many coordinates there are, these, and the signs: whatever has several bytes with the least one first."""
        vector = self.vector
        if sys.byteorder != "little":
            vector = array("f", vector)
            vector.byteswap()
        count = len(vector)
        return count.to_bytes(4, "little") + vector.tobytes() + self.signs.to_bytes((count + 7) // 8, "little")

    @property
    def size(self) -> int:
        """Bytes that it takes, with its place among the `Neighbours`."""
        return 5 * len(self.vector) + 1024

    def cosine(self, other: Sequence[float]) -> float:
        """The cosine of the angle between this and a vector of length 1 with as many coordinates."""
        apart = math.dist(self.vector, other)
        return 1 - apart * apart / 2


class Neighbours:
    """Points by group and key."""

    def __init__(self) -> None:
        self._groups: dict[bytes, dict[bytes, Point]] = {}

    def add(self, group: bytes, key: bytes, point: Point) -> bytes | None:
        """Put ``point`` there; gives the key that has to go for it, if the group is full (not removed yet)."""
        found = self._groups.setdefault(group, {})
        found[key] = point
        return next(iter(found)) if len(found) > MOST_QUESTIONS else None

    def remove(self, group: bytes, key: bytes) -> None:
        """Forget that key."""
        found = self._groups.get(group)
        if found is not None:
            found.pop(key, None)
            if not found:
                del self._groups[group]

    def count(self, group: bytes) -> int:
        """How many there are in a group."""
        return len(self._groups.get(group, ()))

    def forget(self, group: bytes) -> None:
        """Forget all of a group."""
        self._groups.pop(group, None)

    def nearest(self, group: bytes, point: Point) -> list[bytes]:
        """Keys with a cosine of at least `NEAR` to ``point``, the nearest first: the best few, found quickly."""
        found = self._close_by_sign(group, point)
        found.sort(key=itemgetter(0))
        return self._compared(found[:_CANDIDATES], point)

    async def all_near(self, group: bytes, point: Point) -> list[bytes]:
        """All keys with a cosine of at least `NEAR` to ``point``; lets other work have its turn meanwhile."""
        close = self._close_by_sign(group, point)
        found: list[bytes] = []
        for start in range(0, len(close), _BATCH):
            found += self._compared(close[start : start + _BATCH], point)
            await asyncio.sleep(0)
        return found

    def _close_by_sign(self, group: bytes, point: Point) -> list[tuple[int, bytes, Point]]:
        signs = point.signs
        most = len(point.vector) // 3
        return [
            (differing, key, other)
            for key, other in self._groups.get(group, {}).items()
            if (differing := (other.signs ^ signs).bit_count()) <= most
        ]

    @staticmethod
    def _compared(found: list[tuple[int, bytes, Point]], point: Point) -> list[bytes]:
        vector = tuple(point.vector)
        near = [
            (cosine, key)
            for _, key, other in found
            if len(other.vector) == len(vector) and (cosine := other.cosine(vector)) >= NEAR
        ]
        near.sort(key=itemgetter(0), reverse=True)
        return [key for _, key in near]
