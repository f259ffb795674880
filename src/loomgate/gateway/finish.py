"""Finish reasons of vendors that speak OpenAI's format but for these (GATEWAY FR-01, FR-14 to FR-16).

What must live here: exchanging one word for another in bytes that otherwise pass as they are. What must not: which
words (``providers/catalogue``), or formats that are translated (``fronts``).
"""

import re
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import lru_cache

from loomgate.gateway.call import Answer


def finished_as(answer: Answer, words: Mapping[str, str]) -> Answer:
    """``answer`` with the finish reasons ``words`` said in OpenAI's, whole or as it comes; nothing else is touched."""
    pattern = _pattern(tuple(words))
    said = {ours.encode(): theirs.encode() for ours, theirs in words.items()}

    def exchanged(data: bytes) -> bytes:
        return pattern.sub(lambda found: found[1] + said[found[2]] + b'"', data)

    if answer.body is not None:
        answer.body = exchanged(answer.body)
        answer.headers = [pair for pair in answer.headers if pair[0] != b"content-length"]
    elif answer.stream is not None:
        answer.stream = _by_line(answer.stream, exchanged)
    return answer


@lru_cache(maxsize=64)
def _pattern(words: tuple[str, ...]) -> re.Pattern[bytes]:
    choices = b"|".join(re.escape(word.encode()) for word in words)
    return re.compile(rb'("finish_reason"\s*:\s*")(' + choices + rb')"')


async def _by_line(
    stream: AsyncGenerator[bytes, None], exchanged: Callable[[bytes], bytes]
) -> AsyncGenerator[bytes, None]:
    """The pieces of ``stream``, cut at line ends, so that no word is looked at in two halves."""
    rest = b""
    try:
        async for piece in stream:
            head, end, rest = (rest + piece).rpartition(b"\n")
            if end:
                yield exchanged(head + end)
        if rest:
            yield exchanged(rest)
    finally:
        await stream.aclose()
