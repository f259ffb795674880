"""Many clients at once: each gets its own answer; a key that is taken away does not go on being of use."""

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from loomgate.gateway.call import Answer, Request
from loomgate.gateway.meter import Record
from loomgate.providers.transport import Reply
from tests.gateway_http.caller import EVENTS, Caller, chat, openai_event, part
from tests.support.eventually import eventually
from tests.support.peer import Peer, answer
from tests.support.peer import Server as Endpoint
from tests.support.server import Client, Server

Start = Callable[[Callable[[Peer], Awaitable[None]]], Endpoint]
KEYS, EACH = 20, 10


async def echo(peer: Peer) -> None:
    """Answers with what was asked, and by whose key."""
    while (request := await peer.request()) is not None:
        fields = msgspec.json.decode(request.body)
        said = f"{fields['user']} by {request.headers['authorization']}"
        await asyncio.sleep(hash(said) % 10 / 1000)
        if fields["stream"]:
            await peer.say(EVENTS)
            for word in said.split(" "):
                await peer.say(part(openai_event(word)))
            await peer.say(part(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            await peer.say(answer(msgspec.json.encode(body), "200 OK", "Content-Type: application/json"))


def virtual_key(admin: Client, upstream: Endpoint, secret: str) -> str:
    """A new virtual key; its slug."""
    made = admin.post(
        "/virtual-keys", {"name": secret, "provider": "openai", "key": secret, "custom_host": upstream.url}
    )
    found: str = made["slug"]
    return found


def test_every_answer_belongs_to_its_request(gateway: Server, endpoint: Start) -> None:
    upstream = endpoint(echo)
    admin = gateway.admin("together")
    key = gateway.new_key("together")
    slugs = {f"sk-vendor-{number:04}-abcdefgh": "" for number in range(KEYS)}
    for secret in slugs:
        slugs[secret] = virtual_key(admin, upstream, secret)

    def ask(number: int, secret: str) -> None:
        id, stream = f"user-{number}-{secret}", bool(number % 2)
        client = Client(gateway.url, None, headers={"x-portkey-api-key": key, "x-portkey-virtual-key": slugs[secret]})
        more = {"x-portkey-trace-id": id}
        body = json.dumps(chat(stream=stream, user=id)).encode()
        found = client.raw("POST", "/v1/chat/completions", body, more, check=False)
        assert found.status == 200, found.body
        assert found.headers["x-portkey-trace-id"] == id
        wanted = (id, "by", "Bearer", secret)
        if stream:
            events = [json.loads(line[6:]) for line in found.body.split(b"\n\n") if line.startswith(b"data: {")]
            assert tuple(event["choices"][0]["delta"]["content"] for event in events) == wanted
        else:
            assert tuple(found.json["choices"][0]["message"]["content"].split(" ")) == wanted

    with ThreadPoolExecutor(KEYS * EACH) as pool:
        asked = [pool.submit(ask, number, secret) for secret in slugs for number in range(EACH)]
    for one in asked:
        one.result()


def test_a_key_that_is_taken_away_is_refused_soon(gateway: Server, endpoint: Start) -> None:
    upstream = endpoint(echo)
    admin = gateway.admin("taken")
    slug = virtual_key(admin, upstream, "sk-vendor-taken-abcdefgh")
    made = gateway.run(gateway.store.keys.create(workspace="taken", name="test", role="user"))

    def ask() -> int:
        headers = {"x-portkey-api-key": made.secret, "x-portkey-virtual-key": slug}
        body = json.dumps(chat(user="u")).encode()
        return Client(gateway.url, None, headers=headers).raw("POST", "/v1/chat/completions", body, check=False).status

    assert ask() == 200
    admin.delete(f"/virtual-keys/{slug}")
    eventually(lambda: ask() == 400, patience=4)
    asked = len(upstream.requests)
    slug = virtual_key(admin, upstream, "sk-vendor-again-abcdefgh")
    assert ask() == 200
    gateway.run(gateway.store.keys.revoke(made.id))
    eventually(lambda: ask() == 401, patience=4)
    before = len(upstream.requests)
    assert before > asked
    assert ask() == 401
    assert len(upstream.requests) == before


def test_a_stream_goes_on_when_its_key_is_revoked(gateway: Server, endpoint: Start) -> None:
    go = asyncio.Event()

    async def play(peer: Peer) -> None:
        if await peer.request() is None:
            return
        await peer.say(EVENTS + part(openai_event("Once")))
        await go.wait()
        await peer.say(part(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    upstream = endpoint(play)
    made = gateway.run(gateway.store.keys.create(workspace="going", name="test", role="user"))
    caller = Caller(gateway.url, made.secret)
    with caller.ask("/chat/completions", chat(stream=True), caller.headers(upstream.url)) as asking:
        asking.until(b"Once")
        gateway.run(gateway.store.keys.revoke(made.id))
        gateway.loop.call_soon_threadsafe(go.set)
        assert b"[DONE]" in asking.rest()


def test_calls_leave_nothing_behind_that_only_a_search_for_garbage_would_find(
    gateway: Server, endpoint: Start, caller: Caller
) -> None:
    upstream = endpoint(echo)
    client = Client(gateway.url, None, headers=caller.headers(upstream.url))
    gc.collect()
    gc.disable()
    try:
        for number in range(8):
            body = json.dumps(chat(stream=bool(number % 2), user=f"user-{number}")).encode()
            assert client.raw("POST", "/v1/chat/completions", body, check=False).status == 200
        caller.log(8)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [found for found in gc.garbage if isinstance(found, (Record, Answer, Request, Reply))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left
