"""A stand-in embeddings endpoint: OpenAI's wire over real HTTP, with vectors that are near when the words are the same.

What must live here: the bytes such an endpoint sends, and vectors that need no model: every word has a direction of
its own, drawn by its letters; the words of `_FILLERS` hardly count, case and punctuation do not. What must not:
anything of our own client.
"""

import asyncio
import json
import random
import re
from typing import Any, Self

from tests.support.upstream import ERRORS

_FILLERS = frozenset("a an and are can could do does i in is it me of on please tell the to you".split())


def vector_of(text: str, dimensions: int) -> list[float]:
    """The vector of ``text``, of length 1 as OpenAI's are."""
    total = [0.0] * dimensions
    for word in re.findall(r"\w+", text.lower()):
        dice = random.Random(word)
        weight = 0.1 if word in _FILLERS else 1.0
        total = [value + weight * dice.gauss(0, 1) for value in total]
    length = sum(value * value for value in total) ** 0.5 or 1.0
    return [value / length for value in total]


class EmbeddingsEndpoint:
    """The server. ``status``: what it answers; ``answer``: in place of the usual body; ``hangs``: it says nothing."""

    def __init__(self, dimensions: int = 256) -> None:
        self.dimensions = dimensions
        self.status = 200
        self.answer: Any = None
        self.hangs = False
        self.asked: list[str] = []  # the texts so far
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.base_url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                status, answer = self._answer(head[0].split(" ")[1], body)
                if self.hangs:
                    await asyncio.Event().wait()
                data = json.dumps(answer).encode()
                head = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(data)}"]
                writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + data)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/v1/embeddings" or body.keys() != {"model", "input"} or not isinstance(body["input"], str):
            return 400, ERRORS[400]
        self.asked.append(body["input"])
        if self.status != 200:
            return self.status, ERRORS[self.status]
        vector = vector_of(body["input"], self.dimensions)
        usual = {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": vector}],
            "model": body["model"],
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        }
        return 200, usual if self.answer is None else self.answer
