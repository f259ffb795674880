"""`Gateway.chat` before a real HTTP endpoint: routing, retries, failures, cancelling, keys."""

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from loomgate import clock
from loomgate.errors import ProviderError
from loomgate.gateway import Gateway, GatewayConfig, ProviderConfig, Retries, Stored, StoredKey
from loomgate.providers.transport import Timeouts
from loomgate.wire.chat import Chat, ChatMessage, Chunk, Finish, TextDelta, Upstream
from loomgate.wire.policy import Config, Naming, Strategy
from tests.providers.conformance.suite import bare
from tests.support.upstream import QUOTA, Fault, ModelEndpoint
from tests.support.waiting import settle, until

pytestmark = pytest.mark.anyio

KEY = "sk-operator-0123456789abcdef"
DEFAULT = Upstream()


@pytest.fixture
async def endpoint() -> AsyncIterator[ModelEndpoint]:
    async with ModelEndpoint(api_key=KEY) as running:
        yield running


@pytest.fixture
async def gateway(endpoint: ModelEndpoint) -> AsyncIterator[Gateway]:
    made = gateway_to(endpoint)
    yield made
    await made.close()


def gateway_to(endpoint: ModelEndpoint, retries: Retries | None = None, **more: Any) -> Gateway:
    provider = ProviderConfig(vendor="openai", base_url=endpoint.base_url, api_key=KEY)
    # The dice always show the longest wait, so that tests know it.
    config = GatewayConfig(providers={"main": provider}, default="main", retries=retries or Retries(), **more)
    return Gateway(config, dice=lambda: 1.0)


def chat(text: str, model: str = "gpt-4o", **more: Any) -> Chat:
    return Chat(model=model, messages=[ChatMessage(role="user", content=text)], **more)


async def answer(gateway: Gateway, text: str, model: str = "gpt-4o", upstream: Upstream = DEFAULT) -> list[Chunk]:
    return [chunk async for chunk in gateway.chat(chat(text, model), upstream, "ws")]


def text_of(chunks: list[Chunk]) -> str:
    assert isinstance(chunks[-1], Finish)
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextDelta))


async def refusal(gateway: Gateway, model: str, naming: Naming | None = None) -> str | None:
    return await gateway.refusal(model, naming or Naming(), "ws")


async def failure(gateway: Gateway, text: str, **more: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await answer(gateway, text, **more)
    return caught.value


# --- a call ---


async def test_a_streamed_answer_over_a_kept_connection(endpoint: ModelEndpoint, gateway: Gateway) -> None:
    for _ in range(3):
        chunks = await answer(
            gateway, "/say Hello there\n/call f {}\n/usage prompt=9 completion=4 cached=2 reasoning=1"
        )
        assert text_of(chunks) == "Hello there"
        last = chunks[-1]
        assert isinstance(last, Finish)
        assert last.reason == "tool_calls"
        assert last.usage is not None
        assert (last.usage.prompt_tokens, last.usage.cached_tokens, last.usage.reasoning_tokens) == (9, 2, 1)
    assert [request.connection for request in endpoint.requests] == [1, 1, 1]
    assert endpoint.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert endpoint.requests[0].body["stream_options"] == {"include_usage": True}


async def test_http_and_in_process_say_the_same(endpoint: ModelEndpoint, gateway: Gateway) -> None:
    script = '/chunk 3\n/say Grüße, 世界\n/call f {"a": 1}\n/call g {}'
    assert bare(await answer(gateway, script)) == await answer(gateway, script, model="scripted")
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("fault", [Fault(split=True), Fault(ignore_stream=True), Fault(no_done=True)])
async def test_wire_oddities_change_nothing(endpoint: ModelEndpoint, gateway: Gateway, fault: Fault) -> None:
    endpoint.faults.append(fault)
    assert text_of(await answer(gateway, "/say one two three")) == "one two three"


async def test_a_body_of_several_megabytes(endpoint: ModelEndpoint, gateway: Gateway) -> None:
    assert text_of(await answer(gateway, "/say yes\n/turn\n/say " + "x" * 3_000_000)) == "yes"
    assert len(endpoint.requests[0].body["messages"][0]["content"]) > 3_000_000


# --- where to ---


async def test_routing_by_model_name(endpoint: ModelEndpoint) -> None:
    def provider(model: str, **more: Any) -> ProviderConfig:
        return ProviderConfig(vendor="openai-compatible", base_url=endpoint.base_url, models=(model,), **more)

    config = GatewayConfig(
        providers={
            "a": provider("llama-*", api_key="a" * 8),
            "b": provider("llama-3", api_key="b" * 8),
            "c": ProviderConfig(vendor="openai", base_url=endpoint.base_url, api_key="c" * 8),
            "d": provider("never", api_key="d" * 8),
        },
        default="d",
    )
    endpoint.api_key = None
    gateway = Gateway(config)
    for model in ("llama-3", "gpt-4o", "unheard-of", "o3"):
        await answer(gateway, "/say x", model=model)
    await answer(gateway, "/say x", model="gpt-4o", upstream=Upstream(kind="provider", name="b"))
    keys = [request.headers["authorization"][-8:] for request in endpoint.requests]
    assert keys == ["a" * 8, "c" * 8, "d" * 8, "c" * 8, "b" * 8]
    await gateway.close()


async def test_what_cannot_be_routed() -> None:
    gateway = Gateway(GatewayConfig())
    error = await failure(gateway, "Hi", model="gpt-4o")
    assert error.kind == "model_not_found"
    assert "'gpt-4o' does not exist" in error.message
    assert await refusal(gateway, "scripted") is None
    assert await refusal(gateway, "scripted-big") is None
    assert await refusal(gateway, "gpt-4o") is not None
    assert await refusal(gateway, "scriptedly") is not None
    for name, known in (("nobody", False), ("openai", False), ("ollama", False), ("openai-compatible", False)):
        assert (await refusal(gateway, "m", Naming(provider=name)) is None) is known
        if not known:
            error = await failure(gateway, "Hi", model="m", upstream=Upstream(kind="provider", name=name))
            assert error.kind in ("route", "auth")
    assert await refusal(gateway, "m", Naming(virtual_key="x")) is not None
    p = ProviderConfig(vendor="groq", api_key="k")
    one = GatewayConfig(providers={"p": p}, default="p", scripted=False)
    assert await refusal(Gateway(one), "anything") is None
    assert await refusal(Gateway(one), "scripted") is None
    assert await refusal(Gateway(GatewayConfig(providers={"p": p})), "anything") is not None
    assert await refusal(Gateway(GatewayConfig(providers={"p": p})), "@p/anything") is None
    assert await refusal(Gateway(GatewayConfig(providers={"p": p})), "p/anything") is None
    assert await refusal(Gateway(GatewayConfig(providers={"p": p})), "@q/anything") is not None
    for wrong in (ProviderConfig(vendor="nonsense"), ProviderConfig(vendor="ollama", base_url="localhost:11434")):
        assert await refusal(Gateway(GatewayConfig(providers={"p": wrong}, default="p")), "m") is not None


async def test_a_config_can_be_followed_if_one_of_its_targets_can() -> None:
    provider = ProviderConfig(vendor="groq", api_key="k")

    async def default(_workspace: str) -> Config | None:
        return Config(provider="p")

    made = GatewayConfig(providers={"p": provider})
    gateway = Gateway(made)
    lost, found = Config(provider="nobody"), Config(override_params={"model": "@p/m"})
    both = Config(strategy=Strategy(mode="fallback"), targets=[lost, found])
    assert await refusal(gateway, "m", Naming(inline=both)) is None
    assert await refusal(gateway, "m", Naming(inline=found)) is None
    assert "'nobody'" in str(await refusal(gateway, "m", Naming(inline=lost)))
    assert await refusal(gateway, "m") is not None
    assert await refusal(Gateway(made, stored=Stored(default_config=default)), "m") is None


async def test_a_stored_key_is_looked_up_for_the_workspace(endpoint: ModelEndpoint) -> None:
    asked: list[tuple[str, str]] = []

    async def stored(workspace: str, slug: str) -> StoredKey | None:
        asked.append((workspace, slug))
        key = None if slug == "keyless" else "sk-users-own-key-1234567"
        return None if slug == "gone" else StoredKey(provider="main", api_key=key, base_url=endpoint.base_url)

    async def opened(workspace: str, credential: str) -> Naming | None:
        asked.append((workspace, credential))
        return Naming(provider="main", api_key="sk-clients-own-1234567") if credential == "cred_1" else None

    endpoint.api_key = None
    config = ProviderConfig(vendor="openai", base_url=endpoint.base_url, api_key=KEY)
    made = GatewayConfig(providers={"main": config}, trusted=frozenset({"127.0.0.1"}))
    gateway = Gateway(made, stored=Stored(key=stored, naming=opened))
    sealed = Upstream(kind="sealed", name="main", credential="cred_1")
    virtual = Upstream(kind="virtual_key", name="users")
    for upstream in (sealed, virtual):
        assert text_of(await answer(gateway, "/say x", upstream=upstream)) == "x"
    assert asked == [("ws", "cred_1"), ("ws", "users")]
    keys = [request.headers["authorization"] for request in endpoint.requests]
    assert keys == ["Bearer sk-clients-own-1234567", "Bearer sk-users-own-key-1234567"]
    # The operator's key is never used in place of one that is not there.
    for upstream, kind in (
        (Upstream(kind="virtual_key", name="gone"), "route"),
        (Upstream(kind="virtual_key", name="keyless"), "auth"),
        (Upstream(kind="sealed", name="main", credential="cred_2"), "auth"),
    ):
        assert (await failure(gateway, "x", upstream=upstream)).kind == kind
    assert len(endpoint.requests) == 2
    await gateway.close()


# --- trying again ---


async def test_back_off_doubles_up_to_its_cap(endpoint: ModelEndpoint) -> None:
    gateway = gateway_to(endpoint, Retries(attempts=4, base=1.0, cap=2.5))
    endpoint.faults += [Fault(status=500), Fault(status=529), Fault(no_answer=True), Fault(no_answer=True)]
    task = asyncio.create_task(answer(gateway, "/say made it"))
    for number, wait in ((1, 1.0), (2, 2.0), (4, 2.5)):  # a kept connection that breaks is replaced at once
        await until(lambda number=number: len(endpoint.requests) == number)
        await settle()
        clock.advance(wait - 0.5)
        await settle()
        assert len(endpoint.requests) == number
        assert not task.done()
        clock.advance(0.51)
    assert text_of(await task) == "made it"
    assert len(endpoint.requests) == 5
    await gateway.close()


async def test_retry_after_is_honoured(endpoint: ModelEndpoint) -> None:
    gateway = gateway_to(endpoint, Retries(base=0.25))
    endpoint.faults.append(Fault(status=429, headers={"retry-after": "30"}))
    task = asyncio.create_task(answer(gateway, "/say made it"))
    await until(lambda: endpoint.requests)
    await settle()
    clock.advance(29.5)
    await settle()
    assert len(endpoint.requests) == 1
    clock.advance(0.8)
    assert text_of(await task) == "made it"
    await gateway.close()


async def test_too_long_a_retry_after_and_too_many_failures(endpoint: ModelEndpoint) -> None:
    gateway = gateway_to(endpoint, Retries(attempts=3, base=0.0, longest_retry_after=60))
    error = await failure(gateway, "/error 429 retry_after=61")
    assert (error.kind, error.status, error.retry_after) == ("rate_limit", 429, 61)
    assert len(endpoint.requests) == 1
    assert (await failure(gateway, "/error 503")).kind == "overloaded"
    assert len(endpoint.requests) == 1 + 3
    assert text_of(await answer(gateway, "/error 500 times=2\n/say third time lucky")) == "third time lucky"
    await gateway.close()


async def test_a_provider_may_have_its_own_number_of_attempts(endpoint: ModelEndpoint) -> None:
    config = ProviderConfig(vendor="openai", base_url=endpoint.base_url, api_key=KEY, attempts=2)
    retries = Retries(attempts=9, base=0.0)
    gateway = Gateway(GatewayConfig(providers={"main": config}, default="main", retries=retries))
    assert (await failure(gateway, "/error 500")).kind == "server"
    assert len(endpoint.requests) == 2
    await gateway.close()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(status=400), "invalid"),
        (Fault(status=401), "auth"),
        (Fault(status=403), "auth"),
        (Fault(status=404), "model_not_found"),
        (Fault(status=429, body=QUOTA), "quota"),
        (Fault(status=307, body={}), "malformed"),
        (Fault(malformed=True), "malformed"),
    ],
)
async def test_what_waiting_will_not_mend_is_tried_once(
    endpoint: ModelEndpoint, gateway: Gateway, fault: Fault, kind: str
) -> None:
    endpoint.faults.append(fault)
    assert (await failure(gateway, "/say Hello")).kind == kind
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("what", "kind"), [("cut", "cut"), ("500", "server"), ("429", "rate_limit"), ("malformed", "malformed")]
)
async def test_nothing_is_repeated_after_the_first_chunk(
    endpoint: ModelEndpoint, gateway: Gateway, what: str, kind: str
) -> None:
    got: list[Chunk] = []
    for model in ("gpt-4o", "scripted"):
        got.clear()
        error = None
        try:
            async for chunk in gateway.chat(chat(f"/say Hel lo\n/error {what}", model), DEFAULT, "ws"):
                got.append(chunk)
        except ProviderError as raised:
            error = raised
        assert error is not None
        assert error.kind == kind
        assert got == [TextDelta("Hel "), TextDelta("lo")]
    assert len(endpoint.requests) == 1


async def test_an_answer_without_its_end_is_cut(endpoint: ModelEndpoint, gateway: Gateway) -> None:
    endpoint.faults.append(Fault(cut_after=700))
    assert (await failure(gateway, "/repeat 50 word")).kind == "cut"


async def test_after_a_break_the_next_call_waits_like_any_other_try(endpoint: ModelEndpoint) -> None:
    gateway = gateway_to(endpoint, Retries(base=1.0, cap=2.5))
    broken: list[ProviderError] = []
    for wait in (1.0, 2.0, 2.5):
        broken.append(ProviderError("cut", "The connection was lost."))
        broken[-1].path = "config"
        before = len(endpoint.requests)
        call = gateway.chat(chat("/say x"), DEFAULT, "ws", ("run_1", "thread_1"), broken)
        task = asyncio.create_task(anext(call))
        await settle()
        clock.advance(wait - 0.1)
        await settle()
        assert len(endpoint.requests) == before
        clock.advance(0.11)
        assert await task == TextDelta("x")
        await call.aclose()
    await gateway.close()


async def test_after_a_break_another_target_is_called_at_once(endpoint: ModelEndpoint) -> None:
    async with ModelEndpoint(api_key=KEY) as other:
        providers = {
            name: ProviderConfig(vendor="openai", base_url=one.base_url, api_key=KEY)
            for name, one in (("a", endpoint), ("b", other))
        }
        targets = [Config(provider="a"), Config(provider="b")]

        async def opened(_workspace: str, _credential: str) -> Naming:
            return Naming(inline=Config(strategy=Strategy(mode="fallback"), targets=targets))

        gateway = Gateway(GatewayConfig(providers=providers), stored=Stored(naming=opened), dice=lambda: 1.0)
        upstream = Upstream("sealed", "config", credential="cred_1")
        call, broken = chat("/say x\n/error cut"), list[ProviderError]()
        for asked in ((1, 0), (1, 1)):
            with pytest.raises(ProviderError) as caught:
                async for _ in gateway.chat(call, upstream, "ws", ("", ""), broken):
                    pass
            broken.append(caught.value)
            assert (len(endpoint.requests), len(other.requests)) == asked
        assert [error.path for error in broken] == ["config.targets[0]", "config.targets[1]"]
        await gateway.close()


# --- connections ---


async def test_a_stale_connection_is_replaced_at_once(endpoint: ModelEndpoint) -> None:
    gateway = gateway_to(endpoint, Retries(attempts=1))
    await answer(gateway, "/say x")
    endpoint.faults.append(Fault(stale=True))
    assert text_of(await answer(gateway, "/say y")) == "y"
    assert [request.connection for request in endpoint.requests] == [1, 1, 2]
    await gateway.close()


async def test_a_fresh_connection_that_breaks_is_a_failure(endpoint: ModelEndpoint) -> None:
    gateway = gateway_to(endpoint, Retries(attempts=1))
    endpoint.faults.append(Fault(no_answer=True))
    assert (await failure(gateway, "/say x")).kind == "connect"
    assert len(endpoint.requests) == 1
    await gateway.close()


async def test_nobody_listens() -> None:
    async with ModelEndpoint() as gone:
        gateway = gateway_to(gone, Retries(attempts=1))
    error = await failure(gateway, "Hi")
    assert error.kind == "connect"
    assert "127.0.0.1" in error.message
    await gateway.close()


async def test_time_outs(endpoint: ModelEndpoint) -> None:
    times = Timeouts(connect=5, first_byte=20, idle=10, total=60)
    gateway = gateway_to(endpoint, Retries(attempts=1), timeouts=times)

    async def timed_out(fault: Fault, *steps: float, text: str = "/say Hello there") -> ProviderError:
        before = len(endpoint.requests)
        endpoint.faults.append(fault)
        endpoint.dropped.clear()
        task = asyncio.create_task(failure(gateway, text))
        await until(lambda: len(endpoint.requests) > before)
        for step in steps[:-1]:
            await settle()
            clock.advance(step)
            await settle()
            assert not task.done()
        await settle()
        clock.advance(steps[-1])
        error = await task
        await endpoint.dropped.wait()  # the connection is given up at once
        return error

    error = await timed_out(Fault(wait=1000), 19.5, 0.6)
    assert error.kind == "timeout"
    assert error.message == "The endpoint did not begin to answer for 20 seconds."
    error = await timed_out(Fault(hang_after=400), 9.5, 0.6)
    assert error.kind == "timeout"
    assert error.message == "The endpoint fell silent for 10 seconds."
    script = "\n".join(["/say x", "/wait 9"] * 10)
    error = await timed_out(Fault(), *[9.01] * 6, 6.0, text=script)
    assert error.kind == "timeout"
    assert error.message == "The endpoint did not finish within 60 seconds."
    await gateway.close()


async def test_leaving_closes_the_connection_at_once(endpoint: ModelEndpoint, gateway: Gateway) -> None:
    async with aclosing(gateway.chat(chat("/say one\n/wait 500\n/say two"), DEFAULT, "ws")) as chunks:
        assert await anext(chunks) == TextDelta("one")
    await asyncio.wait_for(endpoint.dropped.wait(), 5)


@pytest.mark.parametrize("where", ["headers", "body", "back-off"])
async def test_cancelling_works_wherever_the_call_is(endpoint: ModelEndpoint, gateway: Gateway, where: str) -> None:
    if where != "body":
        endpoint.faults.append(
            Fault(wait=500) if where == "headers" else Fault(status=429, headers={"retry-after": "50"})
        )
    task = asyncio.create_task(answer(gateway, "/say one\n/wait 500\n/say two"))
    await until(lambda: endpoint.requests)
    await settle()
    task.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    if where != "back-off":
        await asyncio.wait_for(endpoint.dropped.wait(), 5)
    assert time.monotonic() - began < 2
    assert len(endpoint.requests) == 1


async def test_many_at_once_share_a_few_connections(endpoint: ModelEndpoint) -> None:
    gateway = gateway_to(endpoint)
    answers = await asyncio.gather(*(answer(gateway, f"/repeat 20 number-{n}") for n in range(60)))
    assert [text_of(chunks) for chunks in answers] == [" ".join([f"number-{n}"] * 20) for n in range(60)]
    await asyncio.gather(*(answer(gateway, "/say again") for _ in range(60)))
    assert max(request.connection for request in endpoint.requests) <= 60
    await gateway.close()
    await until(lambda: endpoint.open_connections == 0)


# --- secrets ---


async def test_keys_appear_nowhere(endpoint: ModelEndpoint, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    gateway = gateway_to(endpoint, Retries(attempts=2, base=0.0))
    said = {"error": {"message": f"Key {KEY} is wrong; header was 'Authorization: Bearer {KEY}'", "code": None}}
    for status in (401, 500, 400):
        endpoint.faults += [Fault(status=status, body=said)] * 2
        error = await failure(gateway, "Hi")
        shown = "".join(traceback.format_exception(error)) + repr(error) + str(error.__context__)
        assert "is wrong" in error.message
        assert KEY not in shown
        assert "operator" not in shown
        endpoint.faults.clear()
    endpoint.faults.append(Fault(no_answer=True))
    endpoint.faults.append(Fault(no_answer=True))
    await answer(gateway, "/say x")
    config = ProviderConfig(vendor="openai", api_key=KEY)
    resolved = StoredKey(provider="openai", api_key=KEY)
    assert KEY not in repr(config) + repr(resolved) + repr(GatewayConfig(providers={"x": config}))
    assert "next try" in caplog.text
    assert KEY not in caplog.text
    await gateway.close()
