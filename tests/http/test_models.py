"""``/v1/models``: the workspace's own list, and those of the vendors that requests name."""

from collections.abc import Callable
from typing import Any

import anyio
import openai
import pytest

from loomgate.settings import Provider, Secret, VirtualKey
from tests.providers.conformance.replay import Canned, Replay
from tests.support.server import Client, Response, Server

SECRET = "sk-operator-0123456789abcdef"


@pytest.fixture
def made(make_server: Callable[..., Server]) -> Server:
    return make_server(
        key=True,
        providers={
            "house": Provider(name="house", vendor="openai", api_key=Secret(SECRET), models=("gpt-4o", "gpt-4o*")),
            "own": Provider(
                name="own", vendor="openai-compatible", base_url="http://127.0.0.1:9/v1", models=("llama-3", "gpt-4o")
            ),
        },
        virtual_keys={
            "mine": VirtualKey(slug="mine", provider="own"),
            "theirs": VirtualKey(slug="theirs", provider="own", workspace="other"),
        },
    )


def sdk(server: Server, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(api_key=server.key, base_url=f"{server.url}/v1", max_retries=0, **more)


def ids(found: Any) -> list[str]:
    return [model["id"] for model in found["data"]]


def ask(client: Client, path: str, status: int = 200, method: str = "GET", **headers: str) -> Any:
    found: Response = client.raw(method, path, None, {"OpenAI-Beta": "", **headers}, check=False)
    assert found.status == status, found.body
    return found.json


@pytest.mark.behaviour("RT-03", "RT-04")
def test_the_workspaces_own_list(made: Server) -> None:
    with sdk(made) as client:
        found = {model.id: model.owned_by for model in client.models.list()}
        assert found == {
            "gpt-4o": "openai",
            "llama-3": "openai-compatible",
            "@mine/llama-3": "openai-compatible",
            "@mine/gpt-4o": "openai-compatible",
            "scripted": "loomgate",
        }
        assert client.models.retrieve("llama-3").owned_by == "openai-compatible"
        assert client.models.retrieve("@mine/gpt-4o").id == "@mine/gpt-4o"
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("@theirs/llama-3")
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.APIStatusError) as refused:
            client.models.delete("llama-3")
        assert refused.value.status_code == 405


@pytest.mark.behaviour("RT-04")
def test_models_of_integrations(server: Server) -> None:
    workspace = "models-of-integrations"
    admin, client = server.admin(workspace), server.client(workspace)
    body = {"name": "house", "ai_provider_id": "openai", "key": SECRET}
    slug = admin.post("/integrations", body)["slug"]
    admin.put(
        f"/integrations/{slug}/models",
        {
            "models": [{"slug": "gpt-5", "enabled": True}, {"slug": "gpt-4", "enabled": False}],
            "allow_all_models": False,
        },
    )
    key = admin.post("/providers", {"name": "team", "integration_id": slug})["slug"]
    found = ask(client, "/v1/models?provider=@" + key)
    assert (found["total"], ids(found)) == (1, [f"@{key}/gpt-5"])
    assert found["data"][0]["slug"] == "gpt-5"
    assert ids(ask(server.client(), "/v1/models")) == ["scripted"]
    admin.put(f"/integrations/{slug}/models", {"models": [{"slug": "gpt-4", "enabled": True}]})
    assert f"@{key}/gpt-4" in ids(ask(client, "/v1/models"))


@pytest.mark.behaviour("RT-04")
def test_pages_of_the_list(made: Server) -> None:
    client = Client(made.url, made.key)
    everything = ids(ask(client, "/v1/models?sort=name&order=desc"))
    assert everything == sorted(everything, reverse=True)
    found = ask(client, "/v1/models?limit=2&offset=1&order=desc")
    assert (found["total"], ids(found)) == (5, everything[1:3])
    assert ids(ask(client, "/v1/models?ai_service=openai")) == ["gpt-4o"]
    for query, param in (("limit=-1", "limit"), ("order=up", "order"), ("sort=x", "sort"), ("x=1", "x")):
        assert ask(client, "/v1/models?" + query, 400)["error"]["param"] == param


@pytest.mark.behaviour("RT-03", "RT-04", "RH-17", "CFG-26")
@pytest.mark.parametrize("name", ["provider", "config", "custom-host"])
def test_the_list_of_the_vendor_that_is_named(make_server: Callable[..., Server], name: str) -> None:
    listed = b'{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"them"}]}'
    answer = Canned(headers={"Content-Type": "application/json"}, body=listed)

    async def run() -> None:
        async with Replay(answer, answer) as vendor:
            provider = Provider(name="own", vendor="openai-compatible", base_url=vendor.base_url + "/v1")
            made = make_server(key=True, providers={"own": provider})
            named = {
                "provider": {"x-portkey-provider": "own"},
                "config": {"x-portkey-config": '{"provider":"own"}'},
                "custom-host": {"x-portkey-provider": "openai", "x-portkey-custom-host": vendor.base_url + "/v1"},
            }[name]
            client = Client(made.url, made.key)
            if name != "custom-host":
                found = await anyio.to_thread.run_sync(lambda: ask(client, "/v1/models", **named))
                assert ids(found) == ["m"]
                await anyio.to_thread.run_sync(lambda: ask(client, "/v1/models/m", **named))
                assert [asked.target for asked in vendor.asked] == ["/v1/models", "/v1/models/m"]
            before = len(vendor.asked)
            forced = {**named, "x-portkey-fetch-integrated-models": "true"}
            assert ids(await anyio.to_thread.run_sync(lambda: ask(client, "/v1/models", **forced))) == ["scripted"]
            configured = {"x-portkey-config": '{"provider":"own","fetch_integrated_models":true}'}
            assert ids(await anyio.to_thread.run_sync(lambda: ask(client, "/v1/models", **configured))) == ["scripted"]
            assert len(vendor.asked) == before

    anyio.run(run)
