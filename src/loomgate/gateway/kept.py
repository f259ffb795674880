"""What is left of an answer: in the cache, and in the log of calls. And an answer made of what was left.

What must live here: following an answer as it goes out. What must not: what is kept of it, and for how long.
"""

import asyncio
from collections.abc import AsyncGenerator
from functools import partial

import msgspec

from loomgate.errors import ProviderError
from loomgate.gateway.cache import AnswerCache, CachePlan, Hit
from loomgate.gateway.call import Answer, Request
from loomgate.gateway.exchange import EVENTS
from loomgate.gateway.fronts import FRONTS
from loomgate.gateway.gather import about_of, chunks_of, gathered, overheard, pieces_of, read_whole, whole_body
from loomgate.gateway.meter import STOPPED, STOPPING, Record
from loomgate.wire.chat import Chunk, Finish

_LONGEST = 4 * 1024 * 1024  # bytes of a streamed answer that may be kept
_JSON = "application/json"

_encode = msgspec.json.Encoder().encode


# --- the cache -------------------------------------------------------------------------------------------------------


async def keep(cache: AnswerCache, plan: CachePlan, request: Request, answer: Answer) -> None:
    """Keep ``answer`` for the requests of ``plan``: a whole one now, a streamed one after its regular end (CCH-09)."""
    if answer.status != 200:
        return
    if answer.body is not None:
        kind = dict(answer.headers).get(b"content-type", b"").decode("latin-1")
        body = answer.body
        if kind.startswith(_JSON) and b'"hook_results"' in body and (found := whole_body(answer)) is not None:
            found.pop("hook_results", None)  # those of this request; the next one has its own (CCH-08)
            body = _encode(found)
        await cache.store(plan, answer.status, kind, body)
        return

    async def heard(pieces: list[bytes], chunks: list[Chunk]) -> None:
        found = gathered(request, answer, pieces, chunks)
        if found is not None:
            await cache.store(plan, 200, _JSON, _encode(found))

    overheard(answer, _LONGEST, heard)


def replayed(request: Request, hit: Hit, provider: str, model: object) -> Answer | None:
    """The answer that ``hit`` is to ``request``: to a stream as the stream it might have been (CCH-06).

    ``None``: it is of no use to a run, which cannot read all that an endpoint may say.
    """
    answer = Answer(200, hit.body, headers=[(b"content-type", hit.content_type.encode("latin-1"))])
    answer.provider, answer.model = provider, model if isinstance(model, str) else ""
    if request.chat is not None:
        found = read_whole(request, hit.body)
        if found is None:
            return None
        answer.body, answer.chunks = None, chunks_of(found)
    elif request.stream and (front := FRONTS.get(request.endpoint.name)) is not None:
        found = whole_body(answer)
        if found is not None:
            answer.body, answer.stream = None, pieces_of([front.replay(found, about_of(request, answer))])
            answer.headers = [EVENTS]
    return answer


# --- the log ---------------------------------------------------------------------------------------------------------


def recorded(record: Record, answer: Answer) -> Answer:
    """``answer``, whose end (or its client's leaving) ends ``record``."""
    answer.trace_id = record.trace_id
    if answer.stream is not None:
        answer.stream = _recorded_bytes(record, answer, answer.stream)
        release = answer.release

        def released() -> None:
            if release is not None:
                release()
            record.abandon(answer)  # unless it was read to its end

        answer.release = released
    elif answer.chunks is not None:
        answer.chunks = _recorded_chunks(record, answer, answer.chunks)
    elif answer.session is not None:
        answer.status = 101
        answer.session.sent = record.sent
        answer.session.finish = partial(_ended, record, answer)
    else:
        record.finish(answer, error=answer.error.message if answer.error is not None else None)
    return answer


def _ended(record: Record, answer: Answer, error: str | None) -> None:
    """A realtime call is over: what broke is told as a 502, what the server's end cut short as a 503."""
    record.finish(answer, error=error, status=STOPPED if error == STOPPING else 502 if error else 101)


async def _recorded_bytes(
    record: Record, answer: Answer, stream: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    sent = record.sent
    try:
        async for piece in stream:
            sent(piece)
            yield piece
        # A translated stream that broke has told its client so, and ended.
        record.finish(answer, error=None if answer.error is None else answer.error.message)
    except ProviderError as error:
        record.finish(answer, error=error.message)
        raise
    except asyncio.CancelledError as error:
        record.abandon(answer, error)
        raise
    finally:
        await stream.aclose()
        record.abandon(answer)


async def _recorded_chunks(
    record: Record, answer: Answer, chunks: AsyncGenerator[Chunk, None]
) -> AsyncGenerator[Chunk, None]:
    said: list[Chunk] = []
    try:
        async for chunk in chunks:
            if not said:
                record.first_byte()
            said.append(chunk)
            if isinstance(chunk, Finish):  # before it goes out: nobody asks for more after the last one
                body = _encode(FRONTS["chat"].whole(said, about_of(record.request, answer)))
                record.finish(answer, answer_body=body, usage=chunk.usage)
            yield chunk
    except ProviderError as error:
        record.finish(answer, error=error.message)
        raise
    finally:
        await chunks.aclose()
        record.abandon(answer)
