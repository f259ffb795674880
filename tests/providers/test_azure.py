"""Azure: where its endpoints are, which deployment a model means, and how Foundry's models speak."""

import json
from typing import Any

import pytest

from loomgate.errors import ProviderError
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import Target, base_of
from loomgate.providers.operations import dialect_of, operation, proxied
from loomgate.wire.chat import Chat, ChatMessage
from loomgate.wire.endpoints import ENDPOINTS, EndpointName
from tests.providers.asking import Ask

BASE = "https://mine.openai.azure.com/openai"
DATED = {"resource_name": "mine", "deployment_id": "gpt4-eu", "api_version": "2024-10-21"}


def openai(**options: Any) -> Target:
    row = CATALOGUE["azure-openai"]
    return Target(vendor=row, base_url=str(row.base_url), api_key="the-key", options=options)


def sent(
    to: Target, endpoint: EndpointName, fields: dict[str, Any], path: str = ""
) -> tuple[str, bytes, dict[str, str]]:
    doing = operation(to, endpoint, fields.get("model"))
    assert doing is not None
    call = doing.request(Ask(path=path or ENDPOINTS[endpoint].path, fields=fields), fields, b"raw", to)
    return call.url, call.body, call.headers


@pytest.mark.behaviour("TR-23", "PV-02", "RH-30")
@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        ("chat", "/deployments/gpt4-eu/chat/completions"),
        ("complete", "/deployments/gpt4-eu/completions"),
        ("embed", "/deployments/gpt4-eu/embeddings"),
        ("generate_image", "/deployments/gpt4-eu/images/generations"),
        ("speak", "/deployments/gpt4-eu/audio/speech"),
        ("transcribe", "/deployments/gpt4-eu/audio/transcriptions"),
        ("translate", "/deployments/gpt4-eu/audio/translations"),
        ("files", "/files"),
        ("batches", "/batches"),
        ("fine_tuning", "/fine_tuning"),
        ("respond", "/responses"),
    ],
)
def test_addresses_of_a_dated_version(endpoint: EndpointName, path: str) -> None:
    url, body, headers = sent(openai(**DATED), endpoint, {"input": "x"})
    assert url == f"{BASE}{path}?api-version=2024-10-21"
    assert body == b"raw"
    assert headers["api-key"] == "the-key"
    assert "Authorization" not in headers


@pytest.mark.behaviour("TR-23")
@pytest.mark.parametrize("options", [{"api_version": "v1"}, {}])
def test_addresses_without_versions(options: dict[str, str]) -> None:
    to = openai(resource_name="mine", deployment_id="gpt4-eu", **options)
    url, body, _ = sent(to, "chat", {"model": "gpt-4", "messages": []})
    assert url == f"{BASE}/v1/chat/completions"
    assert json.loads(body)["model"] == "gpt4-eu"  # the address does not say it


@pytest.mark.behaviour("PRX-14")
@pytest.mark.parametrize("path", ["/other.openai.azure.com/openai/files", "//other.openai.azure.com/files"])
def test_a_path_does_not_choose_the_host(path: str) -> None:
    """The reference takes it for an address: here only `base_url` and custom hosts say where a key goes."""
    call = proxied("GET", path, "", {}, b"", openai(**DATED))
    assert call.url.startswith(BASE + path)
    assert call.headers["api-key"] == "the-key"


@pytest.mark.behaviour("CFG-27")
def test_deployments_by_alias() -> None:
    many = [
        {"deployment_id": "d-4o", "alias": "gpt-4o", "api_version": "2025-01-01"},
        {"deployment_id": "d-mini", "alias": "mini", "is_default": True},
    ]
    to = openai(resource_name="mine", api_version="2024-10-21", deployments=many)
    for model, deployment, version in (
        ("gpt-4o", "d-4o", "2025-01-01"),
        ("mini", "d-mini", "2024-10-21"),
        ("d-4o", "d-4o", "2025-01-01"),
        ("other", "d-mini", "2024-10-21"),
        (None, "d-mini", "2024-10-21"),
    ):
        fields = {"messages": [], **({"model": model} if model else {})}
        url, _, _ = sent(to, "chat", fields)
        assert url == f"{BASE}/deployments/{deployment}/chat/completions?api-version={version}"


def test_a_deployment_of_the_models_name() -> None:
    to = openai(resource_name="mine", api_version="2024-10-21")
    url, body, _ = sent(to, "chat", {"model": "gpt 4/x"})
    assert (url, body) == (f"{BASE}/deployments/gpt%204%2Fx/chat/completions?api-version=2024-10-21", b"raw")
    for model in (None, ".."):
        with pytest.raises(ProviderError) as caught:
            sent(to, "chat", {"model": model} if model else {})
        assert caught.value.kind == "invalid"


def test_a_run_calls_the_deployment_too() -> None:
    dialect = dialect_of(openai(**DATED))
    assert dialect is not None
    call = Chat(model="gpt-4", messages=[ChatMessage(role="user", content="x")])
    assert dialect.request(call, openai(**DATED)).url.startswith(f"{BASE}/deployments/gpt4-eu/chat/completions?")


@pytest.mark.behaviour("PRX-13")
@pytest.mark.parametrize(
    ("options", "query", "url"),
    [
        ({"api_version": "2024-05-01-preview"}, "", "/threads/t/runs?api-version=2024-05-01-preview"),
        ({"api_version": "2024-05-01-preview"}, "limit=1", "/threads/t/runs?limit=1&api-version=2024-05-01-preview"),
        ({"api_version": "2024-05-01-preview"}, "api-version=x", "/threads/t/runs?api-version=x"),
        ({"api_version": "v1"}, "limit=1", "/v1/threads/t/runs?limit=1"),
        ({}, "limit=1", "/threads/t/runs?limit=1"),
    ],
)
def test_proxied_paths(options: dict[str, str], query: str, url: str) -> None:
    call = proxied("GET", "/threads/t/runs", query, {"api-key": "ours"}, b"", openai(resource_name="mine", **options))
    assert call.url == BASE + url
    assert call.headers["api-key"] == "the-key"


# --- Azure AI Foundry ---

FOUNDRY = "https://mine.services.ai.azure.com/models"


def foundry(base: str = FOUNDRY, **options: str) -> Target:
    return Target(vendor=CATALOGUE["azure-ai"], base_url=base, api_key="the-key", options=options)


@pytest.mark.behaviour("CFG-27", "RH-31")
def test_the_address_of_a_deployment_by_its_parts() -> None:
    row = CATALOGUE["azure-ai"]
    parts = {"azure_endpoint_name": "Llama-3", "azure_region": "eastus2"}
    assert base_of(row, parts) == ("https://llama-3.eastus2.models.ai.azure.com", False)
    managed = {**parts, "azure_deployment_type": "managed"}
    assert base_of(row, managed) == ("https://llama-3.eastus2.inference.ml.azure.com/score", False)
    assert base_of(row, {**parts, "azure_foundry_url": FOUNDRY}) == (FOUNDRY, True)
    assert base_of(row, {}) == (None, False)
    assert base_of(CATALOGUE["huggingface"], {"huggingface_base_url": "https://h"}) == ("https://h", True)
    assert base_of(CATALOGUE["openai"], {"azure_foundry_url": "https://h"}) == (None, False)
    for wrong in ({"azure_region": ""}, {"azure_endpoint_name": "a/b"}, {"azure_deployment_type": "x"}):
        with pytest.raises(ProviderError) as caught:
            base_of(row, {**parts, **wrong})
        assert caught.value.kind == "invalid"


@pytest.mark.behaviour("PV-03", "RH-31")
def test_the_addresses_of_foundry() -> None:
    to = foundry(azure_api_version="2024-05-01-preview")
    url, body, headers = sent(to, "chat", {"model": "m"})
    assert (url, body) == (f"{FOUNDRY}/chat/completions?api-version=2024-05-01-preview", b"raw")
    assert headers["Authorization"] == "Bearer the-key"
    assert headers["extra-parameters"] == "drop"
    assert sent(foundry(), "embed", {"model": "m"})[0] == f"{FOUNDRY}/embeddings"
    assert sent(foundry(), "files", {}, "/files/f1")[0] == "https://mine.services.ai.azure.com/openai/files/f1"
    assert sent(foundry(azure_extra_params="pass-through"), "chat", {})[2]["extra-parameters"] == "pass-through"
    assert sent(foundry(azure_deployment_name="d"), "chat", {})[2]["azureml-model-deployment"] == "d"


@pytest.mark.behaviour("PV-03")
@pytest.mark.parametrize(
    "base", ["https://m.services.ai.azure.com/anthropic", "https://m.services.ai.azure.com/anthropic/v1/"]
)
def test_anthropics_models_in_foundry(base: str) -> None:
    to = foundry(base)
    address = "https://m.services.ai.azure.com/anthropic/v1/messages"
    url, body, headers = sent(to, "messages", {"model": "claude"})
    assert (url, body, headers["x-api-key"]) == (address, b"raw", "the-key")
    assert "Authorization" not in headers
    assert sent(to, "count_tokens", {"model": "claude"})[0] == address + "/count_tokens"
    assert operation(to, "chat") is None  # what such a model speaks is not what the client speaks
    dialect = dialect_of(to, "claude")
    assert dialect is not None
    call = dialect.request(Chat(model="claude", messages=[ChatMessage(role="user", content="x")]), to)
    assert (call.url, call.headers["x-api-key"]) == (address, "the-key")
    assert operation(foundry(), "messages") is None
