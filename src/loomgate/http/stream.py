"""Streams out: events to a client as they come, keep-alive comments, and noticing that the client has left.

Headers and framing: BEHAVIOUR CONV-03, SSE-01, SSE-02, SSE-08, SSE-54. The bytes of events are made in ``wire/``.
"""

import asyncio
import logging
from typing import Any

from starlette.types import Receive, Send

from loomgate.http.call import Streamed
from loomgate.wire.events import DONE, KEEP_ALIVE, error_event, with_id

log = logging.getLogger(__name__)

_TOGETHER = 64  # events in one write, at the most

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def send_stream(
    streamed: Streamed, head: list[tuple[bytes, bytes]], receive: Receive, send: Send, keep_alive: float
) -> None:
    """Send every event of ``streamed`` at once, until the last one or until the client leaves.

    ``head`` are the headers of the answer; a silent stream gets a comment every ``keep_alive`` seconds.
    """
    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *head]})
    loop = asyncio.get_running_loop()
    pump = loop.create_task(_pump(streamed, send, keep_alive))
    watch = loop.create_task(_left(receive))
    try:
        await asyncio.wait((pump, watch), return_when=asyncio.FIRST_COMPLETED)
        if pump.done():
            await pump
            return
        await _stop(pump)
        if streamed.gone is not None:
            try:
                await streamed.gone()
            except Exception:  # nobody is left to be told
                log.exception("could not do what was asked for when a viewer left")
    except asyncio.CancelledError:
        # The server stops before the run does: the client has to know that this is not the run's end.
        await _stop(pump)
        await _last(send, "The server is shutting down. The run goes on; retrieve it to see its state.")
        # With that the answer is whole. Raised on, uvicorn would log the cancellation as an error of ours.
    finally:
        streamed.subscription.close()
        await _stop(pump)
        await _stop(watch)


async def _pump(streamed: Streamed, send: Send, keep_alive: float) -> None:
    subscription, with_ids = streamed.subscription, streamed.with_ids
    while True:
        try:
            found = await subscription.next(keep_alive)
        except StopAsyncIteration:
            break
        except Exception:
            log.exception("a stream broke")
            await _last(send, "The stream was interrupted. The run goes on; retrieve it to see its state.")
            return
        if found is None:
            await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
            continue
        pieces: list[bytes] = []
        # What is there already goes out together: one write instead of several, and no event waits.
        while True:
            id, event = found
            pieces.append(with_id(id, event) if with_ids and not event.startswith(b":") else event)
            if event == DONE or len(pieces) == _TOGETHER:
                break  # before the next one is taken: what is taken has to be sent
            found = subscription.ready()
            if found is None:
                break
        await send({"type": "http.response.body", "body": b"".join(pieces), "more_body": True})
        if event == DONE:
            break
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _last(send: Send, message: str) -> None:
    await send({"type": "http.response.body", "body": error_event(message) + DONE, "more_body": False})


async def _left(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return


async def _stop(task: "asyncio.Task[Any]") -> None:
    """Cancel ``task`` and wait for its end, without taking its exception or another's cancellation for ours."""
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
