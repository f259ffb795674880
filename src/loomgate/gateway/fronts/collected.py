"""A whole answer, put together from its chunks.

What must live here: what every front does with chunks before it writes its own format. What must not: a format.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from loomgate.wire.chat import (
    Chunk,
    Extra,
    Finish,
    RedactedThinking,
    RefusalDelta,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
)


class Block(msgspec.Struct):
    """A stretch of the answer of one ``kind``: text, refusal, thinking, redacted_thinking (its data), or call."""

    kind: str
    pieces: list[str] = []
    signature: str | None = None
    id: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        """All of it; of a call its arguments."""
        return "".join(self.pieces)


class Collected(msgspec.Struct):
    """``blocks`` in order, ``extras`` by name, and how it ended."""

    blocks: list[Block]
    extras: dict[str, Any]
    finish: Finish

    def text(self, kind: str) -> str:
        """All that is of one kind."""
        return "".join(block.text for block in self.blocks if block.kind == kind)

    @property
    def calls(self) -> list[Block]:
        """The tool calls."""
        return [block for block in self.blocks if block.kind == "call"]


_KINDS = {TextDelta: "text", RefusalDelta: "refusal", ThinkingDelta: "thinking"}


def collected(chunks: Iterable[Chunk]) -> Collected:
    """``chunks``, the last a `Finish`, put together."""
    blocks: list[Block] = []
    calls: dict[int, Block] = {}
    extras: dict[str, Any] = {}
    finish = Finish("stop")
    for chunk in chunks:
        match chunk:
            case TextDelta() | RefusalDelta() | ThinkingDelta():
                kind = _KINDS[type(chunk)]
                if not blocks or blocks[-1].kind != kind or blocks[-1].signature is not None:
                    blocks.append(Block(kind))
                blocks[-1].pieces.append(chunk.text)
                if isinstance(chunk, ThinkingDelta):
                    blocks[-1].signature = chunk.signature
            case ToolCallDelta():
                call = calls.get(chunk.index)
                if call is None:
                    call = calls[chunk.index] = Block("call", id=chunk.id or "", name=chunk.name or "")
                    blocks.append(call)
                call.pieces.append(chunk.arguments)
                call.signature = chunk.signature or call.signature
            case RedactedThinking():
                blocks.append(Block("redacted_thinking", [chunk.data]))
            case Extra():
                extras[chunk.name] = chunk.value
            case Finish():
                finish = chunk
    return Collected(blocks, extras, finish)
