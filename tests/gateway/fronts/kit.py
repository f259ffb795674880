"""What the tests of the fronts share: an endpoint's bytes in, the client's answer out, as the gateway joins them.

What must live here: that joining, and reading of event streams. What must not: what an answer should be.
"""

import json
from collections.abc import Iterable
from typing import Any

from loomgate.errors import ApiError, ProviderError
from loomgate.gateway.fronts.chat import ChatFront
from loomgate.gateway.fronts.completions import CompletionsFront
from loomgate.gateway.fronts.front import About, Front
from loomgate.gateway.fronts.messages import MessagesFront
from loomgate.wire.chat import Chunk
from tests.providers.conformance.suite import Wire, chunks_of, dialect, request, wires

CHAT, COMPLETIONS, MESSAGES = ChatFront(), CompletionsFront(), MessagesFront()
CREATED = 1_763_640_000


def about(wire: Wire | None = None, id: str | None = None, **asked: Any) -> About:
    """The facts of an answer by the vendor of ``wire`` to a body with ``asked``; ``strict`` is taken out of them."""
    strict = asked.pop("strict", True)
    vendor = wire.vendor if wire else "some-vendor"
    return About(
        id=id or f"{vendor}-1763640000123",
        created=CREATED,
        model="some-model",
        provider=vendor,
        strict=strict,
        asked=asked,
    )


def streamed(front: Front, wire: Wire, *pieces: bytes, **asked: Any) -> bytes:
    """What a client of ``front`` gets for an endpoint's body in ``pieces``, without ids that are made up."""
    encoder = front.encoder(about(wire, **asked))
    return b"".join(encoder.feed(chunk) for chunk in chunks_of(dialect(wire).decoder(), pieces))


def written(front: Front, chunks: Iterable[Chunk], **asked: Any) -> bytes:
    """What a client of ``front`` gets for ``chunks``."""
    encoder = front.encoder(about(**asked))
    return b"".join(encoder.feed(chunk) for chunk in chunks)


def whole(front: Front, wire: Wire, body: bytes, **asked: Any) -> dict[str, Any]:
    """The JSON answer that a client of ``front`` gets for an endpoint's body."""
    found = front.whole(chunks_of(dialect(wire).decoder(), [body]), about(wire, **asked))
    return json.loads(json.dumps(found))  # and it is JSON


def refusals(front: Front, fields: dict[str, Any]) -> list[ApiError | ProviderError]:
    """What the front says against a body, or each of the dialects against the call that it is."""
    try:
        call = front.chat(fields)
    except ApiError as error:
        return [error]
    found: list[ApiError | ProviderError] = []
    for wire in wires():
        try:
            json.loads(request(wire, call).body)
        except ProviderError as error:
            found.append(error)
    return found


def is_clear(error: ApiError | ProviderError) -> bool:
    """Whether the client is told that its request is wrong."""
    return error.status == 400 if isinstance(error, ApiError) else error.kind in ("invalid", "model_not_found")


def events(body: bytes) -> list[Any]:
    """The data of each event, decoded; ``[DONE]`` as that text."""
    assert body.endswith(b"\n\n")
    found: list[Any] = []
    for event in body.removesuffix(b"\n\n").split(b"\n\n"):
        data = [line[6:] for line in event.split(b"\n") if line.startswith(b"data: ")]
        assert len(data) == 1
        found.append("[DONE]" if data[0] == b"[DONE]" else json.loads(data[0]))
    return found
