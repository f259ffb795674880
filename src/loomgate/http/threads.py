"""Handlers of ``/threads`` and ``/threads/{thread_id}/messages`` (BEHAVIOUR sections 6, 7)."""

from collections.abc import Awaitable, Callable

import msgspec

from loomgate import clock
from loomgate.http import checks, compose, query
from loomgate.http.call import Answer, Call
from loomgate.wire.assistants import Deleted
from loomgate.wire.threads import CreateMessage, CreateThread, Message, ModifyMetadata, ModifyThread


def exists(call: Call) -> Callable[[], Awaitable[object]]:
    """Asks for the thread in the URL: raises a 404 `ApiError` if the caller has none of that id."""
    return lambda: call.engine.store.threads.body(call.workspace, call.path["thread_id"])


async def create(call: Call) -> Answer:
    """``POST /threads``."""
    request = await call.decode(CreateThread, compose.check_thread, None)
    made, messages = compose.thread(request, clock.timestamp())
    return Answer(await call.engine.store.threads.create(call.workspace, made, messages))


async def page(call: Call) -> Answer:
    """``GET /threads``: an extension; ``metadata[key]=value`` keeps the threads that have all these pairs."""
    given = query.pairs(call.query)
    tags = query.bracketed(given, "metadata")
    found = await call.engine.store.threads.page(call.workspace, query.page_of(dict(given)), tags)
    return Answer(found.render())


async def get(call: Call) -> Answer:
    """``GET /threads/{thread_id}``."""
    return Answer(await call.engine.store.threads.body(call.workspace, call.path["thread_id"]))


async def modify(call: Call) -> Answer:
    """``POST /threads/{thread_id}``."""
    request = await call.decode(ModifyThread, compose.check_modify_thread, exists(call))
    return Answer(
        await call.engine.store.threads.modify(
            call.workspace, call.path["thread_id"], lambda before: compose.changed_thread(request, before)
        )
    )


async def delete(call: Call) -> Answer:
    """``DELETE /threads/{thread_id}``."""
    id = call.path["thread_id"]
    await call.engine.delete_thread(call.workspace, id)
    return Answer(msgspec.json.encode(Deleted(id, "thread.deleted")))


async def create_message(call: Call) -> Answer:
    """``POST /threads/{thread_id}/messages``."""
    request = await call.decode(CreateMessage, checks.message, exists(call))
    [message] = compose.messages([request], call.path["thread_id"], clock.timestamp())
    return Answer(await call.engine.add_message(call.workspace, message))


async def page_messages(call: Call) -> Answer:
    """``GET /threads/{thread_id}/messages``; ``run_id`` keeps those of one run (LIST-17)."""
    given = dict(query.pairs(call.query))
    found = await call.engine.store.threads.messages(
        call.workspace, call.path["thread_id"], query.page_of(given), given.get("run_id") or None
    )
    return Answer(found.render())


async def get_message(call: Call) -> Answer:
    """``GET /threads/{thread_id}/messages/{message_id}``."""
    path = call.path
    return Answer(await call.engine.store.threads.message_body(call.workspace, path["thread_id"], path["message_id"]))


async def modify_message(call: Call) -> Answer:
    """``POST /threads/{thread_id}/messages/{message_id}``: metadata only (MSG-16)."""
    thread_id, id = call.path["thread_id"], call.path["message_id"]
    store = call.engine.store.threads
    request = await call.decode(ModifyMetadata, None, lambda: store.message_body(call.workspace, thread_id, id))

    def change(before: Message) -> Message:
        if request.metadata is msgspec.UNSET:
            return before
        return msgspec.structs.replace(before, metadata=request.metadata or {})

    return Answer(await store.modify_message(call.workspace, thread_id, id, change))


async def delete_message(call: Call) -> Answer:
    """``DELETE /threads/{thread_id}/messages/{message_id}``."""
    id = call.path["message_id"]
    await call.engine.store.threads.delete_message(call.workspace, call.path["thread_id"], id)
    return Answer(msgspec.json.encode(Deleted(id, "thread.message.deleted")))
