"""What is done with requests that are no chats: bytes that pass, and vendors' own formats over a real connection."""

import base64
import json
import struct
from typing import Any

import pytest

from loomgate.errors import ApiError, ProviderError
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import HttpCall, Target
from loomgate.providers.operation import Made, Operation
from loomgate.providers.operations import dialect_of, operation, proxied
from loomgate.providers.transport import Timeouts, Transport
from loomgate.wire.endpoints import ENDPOINTS, EndpointName
from tests.providers.asking import Ask
from tests.providers.conformance.replay import Asked, Canned, Replay

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}


def target(vendor: str = "openai", **more: Any) -> Target:
    row = CATALOGUE[vendor]
    base = more.pop("base_url", row.base_url or row.local or "http://own.example")
    return Target(vendor=row, base_url=base, api_key=more.pop("api_key", "the-key"), **more)


def doing(to: Target, endpoint: EndpointName, model: str | None = None) -> Operation:
    found = operation(to, endpoint, model)
    assert found is not None
    return found


def made(to: Target, endpoint: EndpointName, fields: dict[str, Any], raw: bytes | None = None) -> HttpCall:
    found = doing(to, endpoint, fields.get("model"))
    return found.request(Ask(path=ENDPOINTS[endpoint].path, fields=fields), fields, raw, to)


async def exchanged(
    vendor: str, endpoint: EndpointName, fields: dict[str, Any], answer: Any, **more: Any
) -> tuple[Asked, Any]:
    """What the vendor got, and what the client gets for its answer (JSON, or bytes of a picture)."""
    picture = isinstance(answer, bytes)
    body = answer if picture else json.dumps(answer).encode()
    kind = "image/png" if picture else "application/json"
    transport = Transport()
    try:
        async with Replay(Canned(headers={"Content-Type": kind}, body=body)) as server:
            to = target(vendor, base_url=server.base_url, **more)
            found = doing(to, endpoint, fields.get("model"))
            call = found.request(Ask(path=ENDPOINTS[endpoint].path, fields=fields), fields, None, to)
            async with await transport.send(call, Timeouts()) as reply:
                said = await reply.read(1 << 20)
                got: Made = found.answer(said, reply.headers.get("content-type", ""), fields, to)
            return server.asked[0], json.loads(got.body)
    finally:
        await transport.close()


# --- what passes ---

RAW = b'{ "model":"m",\n "messages":[ {"role":"user","content":"\\u00fc"} ], "odd": 1e2 }'


@pytest.mark.behaviour("TR-06", "PV-01")
def test_bytes_pass_when_nothing_has_to_change() -> None:
    fields = json.loads(RAW)
    for vendor in ("openai", "groq", "deepseek", "openai-compatible", "x-ai"):
        assert made(target(vendor), "chat", fields, RAW).body is RAW
    assert json.loads(made(target(), "chat", fields).body) == fields  # the config changed it: no bytes to pass


@pytest.mark.behaviour("PV-91", "TR-01")
def test_fields_are_renamed_and_dropped_where_the_row_says() -> None:
    fields = {"model": "m", "messages": [], "max_completion_tokens": 5, "parallel_tool_calls": False}
    sent = json.loads(made(target("deepseek"), "chat", fields, b"raw").body)
    assert sent == {"model": "m", "messages": [], "max_tokens": 5}
    both = {"model": "m", "max_completion_tokens": 5, "max_tokens": 7}
    assert json.loads(made(target("deepseek"), "chat", both, b"raw").body) == {"model": "m", "max_tokens": 7}
    to = target("cerebras", drop=frozenset({"seed"}))
    fields = {"model": "m", "logit_bias": {}, "seed": 1, "service_tier": "auto", "top_p": 1}
    assert json.loads(made(to, "chat", fields, b"raw").body) == {"model": "m", "top_p": 1}
    # what a chat refuses another endpoint may need
    image = {"model": "m", "prompt": "x", "n": 2, "user": "u"}
    assert made(target("lemonfox-ai"), "generate_image", image, b"raw").body == b"raw"


@pytest.mark.behaviour("PV-93")
@pytest.mark.parametrize(
    ("vendor", "fields"),
    [
        ("dashscope", {"top_k": 1, "repetition_penalty": 1, "enable_search": True, "thinking_budget": 9}),
        ("hyperbolic", {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1}),
        ("groq", {"service_tier": "flex", "reasoning_effort": "low"}),
    ],
)
def test_a_vendors_own_fields_pass(vendor: str, fields: dict[str, Any]) -> None:
    assert made(target(vendor), "chat", {"model": "m", **fields}, b"raw").body == b"raw"


@pytest.mark.behaviour("PV-90", "TR-03", "GERR-07")
def test_a_body_without_a_model() -> None:
    sent = json.loads(made(target("sambanova"), "chat", {"messages": []}, b"raw").body)
    assert sent == {"messages": [], "model": "Meta-Llama-3.1-8B-Instruct"}
    for endpoint in ("chat", "complete", "embed"):
        with pytest.raises(ApiError) as caught:
            made(target(), endpoint, {"messages": []}, b"raw")
        assert (caught.value.status, caught.value.message) == (400, "Model is required")
    for vendor in ("bedrock", "vertex-ai"):
        with pytest.raises((ApiError, ProviderError)) as refused:
            made(target(vendor, project="p"), "embed", {"input": "x"})
        assert "Model is required" in str(refused.value)


@pytest.mark.behaviour("TR-05")
def test_the_role_developer_is_openais() -> None:
    body = b'{"model":"m","messages":[{"role":"developer","content":"a"},{"role":"user","content":"developer"}]}'
    fields = json.loads(body)
    assert made(target(), "chat", fields, body).body is body
    sent = json.loads(made(target("groq"), "chat", fields, body).body)
    assert [each["role"] for each in sent["messages"]] == ["system", "user"]
    assert fields["messages"][0]["role"] == "developer"  # the client's own is left alone


def test_other_bodies_always_pass() -> None:
    form = b"--b\r\nContent-Disposition: form-data; name=model\r\n\r\nwhisper\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    for endpoint in ("transcribe", "translate", "edit_image", "files"):
        ask = Ask(path=ENDPOINTS[endpoint].path, body=form, headers=headers, content_type="multipart/form-data")
        call = doing(target(), endpoint).request(ask, {}, form, target())
        assert call.body is form
        assert call.headers["Content-Type"] == headers["content-type"]
        assert call.url == "https://api.openai.com/v1" + ENDPOINTS[endpoint].path


@pytest.mark.behaviour("PRX-17")
@pytest.mark.parametrize(
    ("endpoint", "method", "path", "query", "url"),
    [
        ("files", "GET", "/files", "limit=2&after=f", "/files?limit=2&after=f"),
        ("files", "GET", "/files/f1/content", "", "/files/f1/content"),
        ("files", "DELETE", "/files/f1", "", "/files/f1"),
        ("batches", "POST", "/batches/b1/cancel", "", "/batches/b1/cancel"),
        ("fine_tuning", "GET", "/fine_tuning/jobs/j1", "", "/fine_tuning/jobs/j1"),
        ("responses", "GET", "/responses/r1/input_items", "", "/responses/r1/input_items"),
        ("respond", "POST", "/responses", "", "/responses"),
    ],
)
def test_paths_below_an_endpoint(endpoint: EndpointName, method: str, path: str, query: str, url: str) -> None:
    ask = Ask(path=path, body=b"{}", method=method, query=query)
    call = doing(target(), endpoint).request(ask, {}, b"{}", target())
    assert (call.method, call.url) == (method, "https://api.openai.com/v1" + url)
    assert call.body == (b"{}" if method == "POST" else b"")


@pytest.mark.behaviour("GERR-04")
def test_what_a_vendor_does_not_offer() -> None:
    for vendor, endpoint in (("anthropic", "embed"), ("groq", "files"), ("jina", "chat"), ("qdrant", "chat")):
        assert operation(target(vendor), endpoint) is None
        assert dialect_of(target(vendor), "m", endpoint) is None
    assert dialect_of(target("groq"), "m", "count_tokens") is None  # a model that answers does not count
    # played by a dialect: what the client speaks and what the endpoint speaks differ
    for vendor, endpoint in (("anthropic", "chat"), ("groq", "messages"), ("cohere", "complete"), ("groq", "complete")):
        assert operation(target(vendor), endpoint) is None
        assert dialect_of(target(vendor), "m", endpoint) is not None


def test_anthropics_messages_pass() -> None:
    to = target("anthropic")
    call = made(to, "messages", {"model": "claude-x"}, b"raw")
    assert (call.url, call.body) == ("https://api.anthropic.com/v1/messages", b"raw")
    assert call.headers["x-api-key"] == "the-key"
    assert call.headers["anthropic-version"] == "2023-06-01"
    assert made(to, "count_tokens", {"model": "claude-x"}, b"raw").url.endswith("/v1/messages/count_tokens")


# --- what is proxied ---


@pytest.mark.behaviour("PRX-01", "PRX-04", "PRX-05", "AUTH-11", "RH-25")
def test_proxied_requests() -> None:
    headers = {
        "authorization": "Bearer ours",
        "x-portkey-api-key": "ours",
        "openai-beta": "assistants=v2",
        "content-type": "application/json",
        "content-length": "2",
        "expect": "100-continue",
        "host": "gateway",
        "cookie": "a=b",
        "accept": "*/*",
    }
    call = proxied("POST", "/threads/t1/runs", "include[]=a", headers, b"{}", target())
    assert (call.method, call.url) == ("POST", "https://api.openai.com/v1/threads/t1/runs?include[]=a")
    assert call.headers == {
        "authorization": "Bearer the-key",
        "openai-beta": "assistants=v2",
        "content-type": "application/json",
        "accept": "*/*",
    }
    assert call.body == b"{}"
    gone = proxied("DELETE", "/assistants/a1", "", headers, b"{}", target(headers={"X-Team": "t"}))
    assert (gone.body, gone.headers.get("content-type"), gone.headers["x-team"]) == (b"", None, "t")


@pytest.mark.behaviour("PRX-04")
def test_the_clients_headers_come_before_the_rows_but_not_before_the_operators() -> None:
    given = {"anthropic-version": "2024-10-22", "x-title": "Mine"}
    assert proxied("GET", "/models", "", given, b"", target("anthropic")).headers["anthropic-version"] == "2024-10-22"
    to = target("openrouter", headers={"X-Title": "Operator's"})
    assert proxied("GET", "/models", "", given, b"", to).headers["x-title"] == "Operator's"


@pytest.mark.parametrize(
    ("vendor", "path", "url"),
    [
        ("together-ai", "/models", "https://api.together.xyz/v1/models"),
        ("google", "/models", "https://generativelanguage.googleapis.com/v1beta/models"),
        ("cohere", "/models", "https://api.cohere.ai/v1/models"),
        ("openai", "/models/gpt-4o", "https://api.openai.com/v1/models/gpt-4o"),
        ("replicate", "/predictions", "https://api.replicate.com/v1/predictions"),
        ("tripo3d", "/task", "https://api.tripo3d.ai/v2/openapi/task"),
        ("deepseek", "/user/balance", "https://api.deepseek.com/user/balance"),
    ],
)
@pytest.mark.behaviour("PV-53", "PV-64", "PV-66", "RT-06")
def test_where_proxied_requests_go(vendor: str, path: str, url: str) -> None:
    assert proxied("GET", path, "", {}, b"", target(vendor)).url == url


@pytest.mark.behaviour("TR-22")
def test_bedrocks_region_and_families() -> None:
    to = target("bedrock")
    assert to.endpoint_url("embed", "m").startswith("https://bedrock-runtime.us-east-1.amazonaws.com/model/m/")
    there = target("bedrock", region="eu-west-3")
    assert there.endpoint_url("embed", "m").startswith("https://bedrock-runtime.eu-west-3.amazonaws.com/")
    for model in ("us.anthropic.claude-3-5-sonnet-20240620-v1:0", "amazon.nova-pro-v1:0", "meta.llama3-70b"):
        assert dialect_of(to, model) is dialect_of(to, "anything")  # Converse, whatever the family
    # the area in front of a model's maker does not hide the family
    assert json.loads(made(to, "embed", {"model": "eu.cohere.embed-v4:0", "input": "a"}).body)["texts"] == ["a"]
    titan = json.loads(made(to, "embed", {"model": "us.amazon.titan-embed-text-v2:0", "input": "a"}).body)
    assert titan == {"inputText": "a"}


def test_a_post_without_a_body_stays_one() -> None:
    ask = Ask(path="/batches/b/cancel", headers={"accept": "*/*"}, content_type="")
    call = doing(target(), "batches").request(ask, {}, b"", target())
    assert (call.body, call.headers) == (b"", {"Authorization": "Bearer the-key"})


# --- embeddings ---

VECTOR = [0.5, -1.0]
OURS = {"object": "embedding", "index": 0, "embedding": VECTOR}

EMBEDDINGS: list[Any] = [
    pytest.param(
        "google",
        {"model": "text-embedding-004", "input": "a", "dimensions": 2},
        "/v1beta/models/text-embedding-004:embedContent",
        {"model": "models/text-embedding-004", "content": {"parts": [{"text": "a"}]}, "outputDimensionality": 2},
        {"embedding": {"values": VECTOR}},
        0,
        id="google",
        marks=pytest.mark.behaviour("PV-06"),
    ),
    pytest.param(
        "google",
        {"model": "g", "input": ["a"]},
        "/v1beta/models/g:batchEmbedContents",
        {"requests": [{"model": "models/g", "content": {"parts": [{"text": "a"}]}}]},
        {"embeddings": [{"values": VECTOR}]},
        0,
        id="google several",
    ),
    pytest.param(
        "palm",
        {"model": "embedding-gecko-001", "input": "a"},
        "/models/embedding-gecko-001:embedText",
        {"text": "a"},
        {"embedding": {"value": VECTOR}},
        0,
        id="palm",
        marks=pytest.mark.behaviour("PV-13"),
    ),
    pytest.param(
        "vertex-ai",
        {"model": "text-embedding-005", "input": ["a"], "task_type": "RETRIEVAL_QUERY"},
        "/v1/projects/p/locations/us-east5/publishers/google/models/text-embedding-005:predict",
        {"instances": [{"content": "a", "task_type": "RETRIEVAL_QUERY"}]},
        {"predictions": [{"embeddings": {"values": VECTOR, "statistics": {"truncated": False, "token_count": 3}}}]},
        3,
        id="vertex-ai",
        marks=pytest.mark.behaviour("PV-07"),
    ),
    pytest.param(
        "cohere",
        {"model": "embed-v4.0", "input": ["a"], "input_type": "search_query"},
        "/v2/embed",
        {"model": "embed-v4.0", "texts": ["a"], "input_type": "search_query", "embedding_types": ["float"]},
        {"id": "e", "embeddings": {"float": [VECTOR]}, "meta": {"billed_units": {"input_tokens": 4}}},
        4,
        id="cohere",
        marks=pytest.mark.behaviour("PV-10", "TR-24"),
    ),
    pytest.param(
        "bedrock",
        {"model": "amazon.titan-embed-text-v2:0", "input": "a", "dimensions": 2, "normalize": True},
        "/model/amazon.titan-embed-text-v2:0/invoke",
        {"inputText": "a", "dimensions": 2, "normalize": True},
        {"embedding": VECTOR, "inputTextTokenCount": 5},
        5,
        id="bedrock titan",
        marks=pytest.mark.behaviour("PV-08"),
    ),
    pytest.param(
        "bedrock",
        {"model": "cohere.embed-english-v3", "input": "a"},
        "/model/cohere.embed-english-v3/invoke",
        {"texts": ["a"], "input_type": "search_document", "embedding_types": ["float"]},
        {"id": "e", "embeddings": {"float": [VECTOR]}, "response_type": "embeddings_by_type"},
        0,
        id="bedrock cohere",
    ),
    pytest.param(
        "nomic",
        {"model": "nomic-embed-text-v1.5", "input": "a", "dimensions": 2},
        "/embedding/text",
        {"model": "nomic-embed-text-v1.5", "texts": ["a"], "dimensionality": 2},
        {"embeddings": [VECTOR], "usage": {"prompt_tokens": 6, "total_tokens": 6}, "model": "nomic-embed-text-v1.5"},
        6,
        id="nomic",
        marks=pytest.mark.behaviour("PV-20"),
    ),
    pytest.param(
        "ollama",
        {"model": "all-minilm", "input": "a"},
        "/api/embeddings",
        {"model": "all-minilm", "prompt": "a"},
        {"embedding": VECTOR},
        0,
        id="ollama",
        marks=pytest.mark.behaviour("PV-21"),
    ),
    pytest.param(
        "ollama",
        {"model": "all-minilm", "input": ["a"]},
        "/api/embed",
        {"model": "all-minilm", "input": ["a"]},
        {"model": "all-minilm", "embeddings": [VECTOR], "prompt_eval_count": 8},
        8,
        id="ollama several",
    ),
    pytest.param(
        "workers-ai",
        {"model": "@cf/baai/bge-base-en-v1.5", "input": "a"},
        "/@cf/baai/bge-base-en-v1.5",
        {"text": ["a"]},
        {"result": {"shape": [1, 2], "data": [VECTOR]}, "success": True, "errors": [], "messages": []},
        0,
        id="workers-ai",
        marks=pytest.mark.behaviour("PV-26"),
    ),
    pytest.param(
        "ai21",
        {"model": "x", "input": "a", "type": "query"},
        "/embed",
        {"texts": ["a"], "type": "query"},
        {"id": "i", "results": [{"embedding": VECTOR}]},
        0,
        id="ai21",
        marks=pytest.mark.behaviour("PV-11"),
    ),
    pytest.param(
        "voyage",
        {"model": "voyage-3", "input": "a", "dimensions": 2, "encoding_format": "float"},
        "/embeddings",
        {"model": "voyage-3", "input": "a", "output_dimension": 2},
        {"object": "list", "data": [OURS], "model": "voyage-3", "usage": {"total_tokens": 7}},
        7,
        id="voyage",
        marks=pytest.mark.behaviour("PV-37"),
    ),
]


@pytest.mark.parametrize(("vendor", "fields", "path", "body", "answer", "tokens"), EMBEDDINGS)
async def test_embeddings(vendor: str, fields: dict[str, Any], path: str, body: Any, answer: Any, tokens: int) -> None:
    asked, got = await exchanged(vendor, "embed", fields, answer, project="p", region="us-east5")
    assert asked.target == path
    assert json.loads(asked.body) == body
    assert asked.headers["content-type"] == "application/json"
    assert got["object"] == "list"
    assert got["data"] == [OURS]
    assert got["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert (got["model"], got["provider"]) == (fields["model"], vendor)


async def test_embeddings_in_base64() -> None:
    fields = {"model": "m", "input": "a", "encoding_format": "base64"}
    _, got = await exchanged("ollama", "embed", fields, {"embedding": VECTOR})
    assert list(struct.unpack("<2f", base64.b64decode(got["data"][0]["embedding"]))) == VECTOR


def test_what_cannot_be_embedded_is_refused() -> None:
    for fields in ({"model": "m", "input": [1, 2]}, {"model": "m"}, {"model": "m", "input": []}):
        with pytest.raises(ApiError) as caught:
            made(target("cohere"), "embed", fields)
        assert (caught.value.status, caught.value.param) == (400, "input")
    with pytest.raises(ApiError):
        made(target("bedrock"), "embed", {"model": "amazon.titan-embed-text-v1", "input": ["a", "b"]})


@pytest.mark.behaviour("GERR-03")
@pytest.mark.parametrize("answer", [b"", b"<html>", b"[]", b"{}", b"7", b'{"embeddings":{"float":null}}'])
def test_an_answer_that_is_none(answer: bytes) -> None:
    to = target("cohere")
    with pytest.raises(ProviderError) as caught:
        doing(to, "embed").answer(answer, "application/json", {"model": "m", "input": "a"}, to)
    assert caught.value.kind == "malformed"
    assert "cohere" in caught.value.message


# --- pictures ---

PICTURE = base64.b64encode(b"\x89PNG").decode()

PICTURES: list[Any] = [
    pytest.param(
        "stability-ai",
        {"model": "stable-diffusion-v1-6", "prompt": "p", "n": 2, "size": "512x768", "style": "anime"},
        "/v1/generation/stable-diffusion-v1-6/text-to-image",
        {
            "text_prompts": [{"text": "p", "weight": 1}],
            "samples": 2,
            "width": 512,
            "height": 768,
            "style_preset": "anime",
        },
        {"artifacts": [{"base64": PICTURE, "finishReason": "SUCCESS", "seed": 1}]},
        id="stability v1",
        marks=pytest.mark.behaviour("PV-19"),
    ),
    pytest.param(
        "segmind",
        {"model": "sdxl1.0-txt2img", "prompt": "p", "n": 1, "size": "1024x512", "steps": 20},
        "/sdxl1.0-txt2img",
        {"prompt": "p", "samples": 1, "img_width": 1024, "img_height": 512, "num_inference_steps": 20, "base64": True},
        {"image": PICTURE, "status": "success", "infer_time": 3.1},
        id="segmind",
        marks=pytest.mark.behaviour("PV-23"),
    ),
    pytest.param(
        "segmind",
        {"model": "m", "prompt": "p"},
        "/m",
        {"prompt": "p", "base64": True},
        b"\x89PNG",
        id="segmind, the picture itself",
    ),
    pytest.param(
        "fireworks-ai",
        {"model": "accounts/fireworks/models/sdxl", "prompt": "p", "size": "1024x1024", "n": 1},
        "/image_generation/accounts/fireworks/models/sdxl",
        {"text_prompts": [{"text": "p", "weight": 1}], "width": 1024, "height": 1024, "samples": 1},
        [{"base64": PICTURE, "finishReason": "SUCCESS", "seed": 1}],
        id="fireworks-ai",
        marks=pytest.mark.behaviour("PV-25"),
    ),
    pytest.param(
        "workers-ai",
        {"model": "@cf/black-forest-labs/flux-1-schnell", "prompt": "p", "steps": 4},
        "/@cf/black-forest-labs/flux-1-schnell",
        {"prompt": "p", "steps": 4},
        {"result": {"image": PICTURE}, "success": True, "errors": [], "messages": []},
        id="workers-ai",
        marks=pytest.mark.behaviour("PV-26"),
    ),
    pytest.param(
        "workers-ai",
        {"model": "@cf/m", "prompt": "p", "size": "512x512"},
        "/@cf/m",
        {"prompt": "p", "width": 512, "height": 512},
        b"\x89PNG",
        id="workers-ai, the picture itself",
    ),
    pytest.param(
        "vertex-ai",
        {"model": "imagen-4.0-generate-001", "prompt": "p", "n": 2, "size": "1024x1024"},
        "/v1/projects/p/locations/us-east5/publishers/google/models/imagen-4.0-generate-001:predict",
        {"instances": [{"prompt": "p"}], "parameters": {"sampleCount": 2, "aspectRatio": "1:1"}},
        {"predictions": [{"mimeType": "image/png", "bytesBase64Encoded": PICTURE}]},
        id="vertex-ai",
        marks=pytest.mark.behaviour("PV-07"),
    ),
    pytest.param(
        "bedrock",
        {"model": "amazon.titan-image-generator-v2:0", "prompt": "p", "n": 1, "size": "512x512", "quality": "premium"},
        "/model/amazon.titan-image-generator-v2:0/invoke",
        {
            "taskType": "TEXT_IMAGE",
            "textToImageParams": {"text": "p"},
            "imageGenerationConfig": {"width": 512, "height": 512, "numberOfImages": 1, "quality": "premium"},
        },
        {"images": [PICTURE], "error": None},
        id="bedrock titan",
        marks=pytest.mark.behaviour("PV-08"),
    ),
    pytest.param(
        "bedrock",
        {"model": "stability.sd3-5-large-v1:0", "prompt": "p", "size": "1920x1080"},
        "/model/stability.sd3-5-large-v1:0/invoke",
        {"prompt": "p", "aspect_ratio": "16:9"},
        {"seeds": [1], "finish_reasons": [None], "images": [PICTURE]},
        id="bedrock stability",
    ),
    pytest.param(
        "hyperbolic",
        {"model": "FLUX.1-dev", "prompt": "p", "size": "1024x512", "steps": 30},
        "/v1/image/generation",
        {"model_name": "FLUX.1-dev", "prompt": "p", "width": 1024, "height": 512, "steps": 30},
        {"images": [{"index": 0, "image": PICTURE, "random_seed": 1}], "inference_time": 1.2},
        id="hyperbolic",
        marks=pytest.mark.behaviour("PV-57"),
    ),
]


@pytest.mark.parametrize(("vendor", "fields", "path", "body", "answer"), PICTURES)
async def test_pictures(vendor: str, fields: dict[str, Any], path: str, body: Any, answer: Any) -> None:
    asked, got = await exchanged(vendor, "generate_image", fields, answer, project="p", region="us-east5")
    assert asked.target == path
    assert json.loads(asked.body) == body
    assert got["data"] == [{"b64_json": PICTURE}]
    assert isinstance(got["created"], int)
    assert got["provider"] == vendor


@pytest.mark.behaviour("PV-19")
async def test_stabilitys_second_version_takes_a_form() -> None:
    fields = {"model": "core", "prompt": "Grüße", "size": "1536x1024", "output_format": "png"}
    answer = {"image": PICTURE, "finish_reason": "SUCCESS"}
    asked, got = await exchanged("stability-ai", "generate_image", fields, answer)
    assert asked.target == "/v2beta/stable-image/generate/core"
    assert asked.headers["accept"] == "application/json"
    kind, _, boundary = asked.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/form-data"
    parts = asked.body.decode().split(f"--{boundary}")
    assert parts[-1] == "--\r\n"
    sent = dict(part.strip("\r\n").split("\r\n\r\n") for part in parts[1:-1])
    head = 'Content-Disposition: form-data; name="{}"'
    assert sent == {
        head.format("prompt"): "Grüße",
        head.format("output_format"): "png",
        head.format("aspect_ratio"): "3:2",
    }
    assert got["data"] == [{"b64_json": PICTURE}]


@pytest.mark.behaviour("PV-39")
async def test_siliconflow_gives_addresses() -> None:
    fields = {"model": "Kwai-Kolors/Kolors", "prompt": "p", "size": "1024x1024", "n": 1, "guidance_scale": 7.5}
    answer = {"images": [{"url": "https://s/1.png"}], "timings": {"inference": 1}, "seed": 3}
    asked, got = await exchanged("siliconflow", "generate_image", fields, answer)
    assert asked.target == "/Kwai-Kolors/Kolors/text-to-image"
    assert json.loads(asked.body) == {
        "prompt": "p",
        "image_size": "1024x1024",
        "batch_size": 1,
        "guidance_scale": 7.5,
    }
    assert got["data"] == [{"url": "https://s/1.png"}]


@pytest.mark.parametrize(
    ("vendor", "fields", "param"),
    [
        ("stability-ai", {"model": "core", "prompt": "p", "n": 2}, "n"),
        ("stability-ai", {"model": "core", "prompt": "p", "size": "1000x333"}, "size"),
        ("stability-ai", {"model": "core", "prompt": "p", "response_format": "url"}, "response_format"),
        ("segmind", {"model": "m", "prompt": "p", "size": "big"}, "size"),
        ("segmind", {"model": "m"}, "prompt"),
        ("workers-ai", {"model": "m", "prompt": "p", "n": 3}, "n"),
        ("hyperbolic", {"model": "m", "prompt": "p", "stream": True}, "stream"),
    ],
)
def test_pictures_that_cannot_be_made(vendor: str, fields: dict[str, Any], param: str) -> None:
    to = target(vendor, options={"workers_ai_account_id": "a"})
    with pytest.raises(ApiError) as caught:
        made(to, "generate_image", fields)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.behaviour("PV-38", "PV-44", "PV-51", "PV-56")
@pytest.mark.parametrize("vendor", ["recraft-ai", "deepbricks", "lemonfox-ai", "nscale"])
def test_pictures_of_openais_kind_pass(vendor: str) -> None:
    fields = {"model": "m", "prompt": "p", "style": "digital_illustration"}
    assert made(target(vendor), "generate_image", fields, b"raw").body == b"raw"


# --- reranking ---

RANKED = [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.25}]


@pytest.mark.parametrize(
    ("vendor", "path", "top", "answer", "usage"),
    [
        (
            "cohere",
            "/v2/rerank",
            "top_n",
            {"id": "r1", "results": RANKED, "meta": {"billed_units": {"search_units": 1}}},
            {"search_units": 1},
        ),
        (
            "jina",
            "/rerank",
            "top_n",
            {"model": "m", "usage": {"total_tokens": 15}, "results": RANKED[::-1]},
            {"total_tokens": 15},
        ),
        (
            "voyage",
            "/rerank",
            "top_k",
            {"object": "list", "data": RANKED, "model": "m", "usage": {"total_tokens": 26}},
            {"total_tokens": 26},
        ),
        (
            "together-ai",
            "/v1/rerank",
            "top_n",
            {"object": "rerank", "id": "r2", "model": "m", "results": RANKED},
            {},
        ),
    ],
)
async def test_reranking(vendor: str, path: str, top: str, answer: Any, usage: Any) -> None:
    fields = {
        "model": "m",
        "query": "q",
        "documents": ["a", {"text": "b", "id": 7}],
        "top_n": 2,
        "return_documents": True,
    }
    asked, got = await exchanged(vendor, "rerank", fields, answer)
    assert asked.target == path
    assert json.loads(asked.body) == {"model": "m", "query": "q", "documents": ["a", "b"], top: 2}
    assert (got["object"], got["model"], got["usage"], got["provider"]) == ("list", "m", usage, vendor)
    assert got["results"] == [
        {"index": 1, "relevance_score": 0.9, "document": {"text": "b"}},
        {"index": 0, "relevance_score": 0.25, "document": {"text": "a"}},
    ]
    assert got.get("id") == answer.get("id")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": 1, "documents": ["a"]}, "query"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": [3]}, "documents[0]"),
    ],
)
def test_what_cannot_be_reranked(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        made(target("jina"), "rerank", {"model": "m", **fields})
    assert (caught.value.status, caught.value.param) == (400, param)
