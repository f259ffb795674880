"""Handlers of ``/assistants`` (BEHAVIOUR section 7)."""

import msgspec

from loomgate import clock
from loomgate.http import compose, query
from loomgate.http.call import Answer, Call
from loomgate.wire.assistants import CreateAssistant, Deleted, ModifyAssistant


async def create(call: Call) -> Answer:
    """``POST /assistants``."""
    request = await call.decode(CreateAssistant, compose.check_create_assistant, None)
    made, sampling = compose.assistant(request, clock.timestamp())
    return Answer(await call.engine.store.assistants.create(call.workspace, made, sampling))


async def page(call: Call) -> Answer:
    """``GET /assistants``."""
    found = await call.engine.store.assistants.page(call.workspace, query.page(call.query))
    return Answer(found.render())


async def get(call: Call) -> Answer:
    """``GET /assistants/{assistant_id}``."""
    return Answer(await call.engine.store.assistants.body(call.workspace, call.path["assistant_id"]))


async def modify(call: Call) -> Answer:
    """``POST /assistants/{assistant_id}``."""
    id = call.path["assistant_id"]
    store = call.engine.store.assistants
    request = await call.decode(ModifyAssistant, compose.check_modify_assistant, lambda: store.body(call.workspace, id))
    return Answer(
        await store.modify(
            call.workspace, id, lambda before, sampling: compose.changed_assistant(request, before, sampling)
        )
    )


async def delete(call: Call) -> Answer:
    """``DELETE /assistants/{assistant_id}``."""
    id = call.path["assistant_id"]
    await call.engine.store.assistants.delete(call.workspace, id)
    return Answer(msgspec.json.encode(Deleted(id, "assistant.deleted")))
