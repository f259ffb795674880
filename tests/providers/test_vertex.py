"""Vertex AI's publishers: whose format a model's name stands for, and at which address it is asked."""

import json
from typing import Any

import pytest

from loomgate.errors import ProviderError
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import Target
from loomgate.providers.operations import dialect_of, operation
from loomgate.wire.chat import Chat, ChatMessage
from tests.providers.asking import Ask


def chat(model: str, *, stream: bool = True) -> Chat:
    messages = [ChatMessage(role="user", content="Once upon")]
    return Chat(model=model, messages=messages, max_completion_tokens=7, stream=stream)


VERTEX = CATALOGUE["vertex-ai"]
PLACE = "projects/p/locations/us-east5/"
REGIONAL = "https://us-east5-aiplatform.googleapis.com/"


def on_vertex(project: str | None = "p", region: str | None = "us-east5") -> Target:
    return Target(vendor=VERTEX, base_url=str(VERTEX.base_url), api_key="ya29", project=project, region=region)


def vertex(call: Chat, project: str | None = "p") -> tuple[str, dict[str, Any], dict[str, str]]:
    to = on_vertex(project)
    found = dialect_of(to, call.model)
    assert found is not None
    made = found.request(call, to)
    return made.url, json.loads(made.body), made.headers


@pytest.mark.behaviour("TR-21", "PV-07")
@pytest.mark.parametrize(
    ("model", "stream", "path", "has"),
    [
        (
            "anthropic.claude-sonnet-4@20250514",
            True,
            f"v1/{PLACE}publishers/anthropic/models/claude-sonnet-4@20250514:streamRawPredict",
            {"anthropic_version": "vertex-2023-10-16", "stream": True},
        ),
        (
            "anthropic.claude-3-haiku",
            False,
            f"v1/{PLACE}publishers/anthropic/models/claude-3-haiku:rawPredict",
            {"anthropic_version": "vertex-2023-10-16"},
        ),
        (
            "mistralai.mistral-small-2503",
            True,
            f"v1/{PLACE}publishers/mistralai/models/mistral-small-2503:streamRawPredict",
            {"model": "mistral-small-2503"},
        ),
        (
            "meta.llama-3.3-70b-instruct-maas",
            True,
            f"v1beta1/{PLACE}endpoints/openapi/chat/completions",
            {"model": "meta/llama-3.3-70b-instruct-maas"},
        ),
        ("endpoints.1234567890", True, f"v1beta1/{PLACE}endpoints/1234567890/chat/completions", {}),
        (
            "gemini-2.5-flash",
            True,
            f"v1beta1/{PLACE}publishers/google/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
            {},
        ),
    ],
)
def test_publishers_on_vertex(model: str, stream: bool, path: str, has: dict[str, Any]) -> None:
    url, body, headers = vertex(chat(model, stream=stream))
    assert url == REGIONAL + path
    assert has.items() <= body.items()
    if "model" not in has:
        assert "model" not in body
    assert headers["Authorization"] == "Bearer ya29"
    assert not {"x-api-key", "anthropic-version"} & {name.lower() for name in headers}


@pytest.mark.behaviour("PV-07")
def test_anthropics_messages_on_vertex() -> None:
    to = on_vertex(region=None)
    fields = {"model": "anthropic.claude-x", "max_tokens": 3, "messages": [], "stream": True}
    doing = operation(to, "messages", "anthropic.claude-x")
    assert doing is not None
    assert doing.passes
    call = doing.request(Ask(path="/messages", fields=fields), fields, None, to)
    where = "https://aiplatform.googleapis.com/v1/projects/p/locations/global/publishers/anthropic/models/"
    assert call.url == where + "claude-x:streamRawPredict"
    assert json.loads(call.body) == {
        "anthropic_version": "vertex-2023-10-16",
        "max_tokens": 3,
        "messages": [],
        "stream": True,
    }
    count = doing.request(Ask(path="/messages/count_tokens", fields=fields), fields, None, to)
    assert count.url == where + "count-tokens:rawPredict"
    assert operation(to, "count_tokens", "anthropic.claude-x") is doing
    assert operation(to, "messages", "gemini-2.5-flash") is None  # a front plays it


@pytest.mark.parametrize("model", ["anthropic.../x", "meta.", "endpoints.a/b", "a b", "google.", "x:y"])
def test_no_models_name_on_vertex(model: str) -> None:
    with pytest.raises(ProviderError) as caught:
        vertex(chat(model))
    assert caught.value.kind == "model_not_found"


def test_vertex_needs_a_project() -> None:
    with pytest.raises(ProviderError) as caught:
        vertex(chat("meta.llama"), None)
    assert "vertex_project_id" in caught.value.message
