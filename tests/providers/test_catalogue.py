"""The catalogue: every row of GATEWAY section 13 is there, and calls go where the table says, with the key it says."""

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from loomgate.errors import ProviderError
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import Target
from loomgate.providers.operations import dialect_of, operation
from loomgate.providers.vendor import Vendor
from loomgate.wire.chat import Chat, ChatMessage
from loomgate.wire.endpoints import ENDPOINTS, EndpointName
from tests.providers.asking import Ask

GATEWAY = Path(__file__).parents[1] / "data" / "GATEWAY.md"


class Row(NamedTuple):
    """A row of the table."""

    id: str
    slug: str
    base: str
    auth: str
    endpoints: str
    family: str


def table() -> list[Row]:
    line = re.compile(r"^\| \*\*(PV-\d+)\*\* \| `([^`]+)` \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
    return [Row(*each) for each in line.findall(GATEWAY.read_text())]


ROWS = table()
EVERY = [pytest.param(row, id=row.slug, marks=pytest.mark.behaviour(row.id)) for row in ROWS]

# What the table's letters mean, by our names.
LETTERS: dict[str, set[EndpointName]] = {
    "c": {"chat"},
    "t": {"complete"},
    "e": {"embed"},
    "i": {"generate_image"},
    "ie": {"edit_image"},
    "s": {"speak"},
    "tr": {"transcribe"},
    "tl": {"translate"},
    "m": {"messages"},
    "r": {"respond"},
    "rt": {"realtime"},
    "f": {"files"},
    "b": {"batches"},
    "ft": {"fine_tuning"},
}
LETTERED = set[EndpointName]().union(*LETTERS.values())
# What has several requests of the vendor for one, or no path to extend.
ELSEHOW: set[EndpointName] = {"files", "batches", "fine_tuning", "realtime"}
# What the table does not have.
MORE: dict[str, set[EndpointName]] = {"fireworks-ai": {"batches"}}
# Provider data that fill the addresses, and what becomes of the braces in the table.
OPTIONS: dict[str, str] = {
    "resource_name": "my-resource",
    "api_version": "2024-10-21",
    "azure_foundry_url": "https://mine.services.ai.azure.com/models",
    "workers_ai_account_id": "acc0",
    "oracle_region": "us-chicago-1",
    "oracle_compartment_id": "ocid1.compartment.oc1..a",
    "snowflake_account": "xy12345",
}
FILLED = {"resource": "my-resource", "region": "eu-west-1", "account": "acc0"}
MODELS = {"ai21": "j2-mid", "vertex-ai": "gemini-2.0-flash"}


def target_of(vendor: Vendor) -> Target:
    base = vendor.base_url or OPTIONS.get(vendor.address or "") or "http://own.example:8000"
    base = base.replace("{region}", "eu-west-1") if vendor.auth == "aws" else base
    place = {"region": "eu-west-1", "project": "my-project"}
    return Target(vendor=vendor, base_url=base, api_key="the-key", options=OPTIONS, **place)


def offered(row: Row) -> set[EndpointName]:
    words = re.sub(r"\(.*?\)", "", row.endpoints).split()
    return set[EndpointName]().union(*(LETTERS[word] for word in words if word != "proxy"))


def base_of(row: Row) -> str | None:
    """The address in the table with its braces filled; None where one has to be given."""
    if "custom host" in row.base or "configured" in row.base:
        return None
    base = row.base.split(" ")[0]
    if row.slug == "oracle":
        return base.replace("{region}", OPTIONS["oracle_region"])
    for name, value in FILLED.items():
        base = base.replace("{" + name + "}", value)
    return base


@pytest.mark.parametrize("row", EVERY)
def test_the_endpoints_are_those_of_the_table(row: Row) -> None:
    have = set(CATALOGUE[row.slug].endpoints) & LETTERED
    assert have == offered(row) | MORE.get(row.slug, set())


@pytest.mark.parametrize("row", EVERY)
def test_calls_go_where_the_table_says(row: Row) -> None:
    vendor = CATALOGUE[row.slug]
    base = base_of(row)
    target = target_of(vendor)
    if base is None:
        assert vendor.base_url is None
        base = target.base_url
    for endpoint in sorted(set(vendor.endpoints) & LETTERED - ELSEHOW):
        assert sent(vendor, endpoint, target)[0].startswith(base), endpoint
    note = re.search(r"\((/[^)]*…)\)", row.base)  # "(/v1/…)": below the base, every path begins so
    if note and "chat" in vendor.endpoints:
        prefix = re.escape(note[1].removesuffix("…")).replace(r"\{user\}", "u").replace(r"\{model\}", "m")
        assert re.match(re.escape(base) + prefix, sent(vendor, "chat", target)[0])


SAMPLE: dict[str, Any] = {
    "messages": [{"role": "user", "content": "x"}],
    "prompt": "x",
    "input": "x",
    "query": "x",
    "documents": ["x"],
    "user": "u",
    "max_tokens": 3,
}


def sent(vendor: Vendor, endpoint: EndpointName, target: Target) -> tuple[str, dict[str, str]]:
    """The address and headers of a call of an endpoint."""
    model = MODELS.get(vendor.name, "m")
    if vendor.name == "vertex-ai" and endpoint == "messages":
        model = "anthropic.claude-sonnet-4"
    doing = operation(target, endpoint, model)
    if doing is not None:
        fields = {"model": model, **SAMPLE}
        call = doing.request(Ask(path=ENDPOINTS[endpoint].path, fields=fields), fields, None, target)
    else:
        dialect = dialect_of(target, model, endpoint)
        assert dialect is not None, f"{endpoint} is offered, but nothing does it"
        call = dialect.request(Chat(model=model, messages=[ChatMessage(role="user", content="x")]), target)
    return call.url, {name.lower(): value for name, value in call.headers.items()}


# Where ours differs from the table in how the key travels, each for its reason.
ELSEWHERE = {
    # A key in an address ends up in the logs of everything on its way; Google takes the header as well.
    "google": ("x-goog-api-key", "the-key"),
    "palm": ("x-goog-api-key", "the-key"),
}


@pytest.mark.parametrize("row", EVERY)
def test_the_key_is_sent_as_the_table_says(row: Row) -> None:
    vendor = CATALOGUE[row.slug]
    target = target_of(vendor)
    name, value = "authorization", "Bearer the-key"
    if row.slug in ELSEWHERE:
        assert row.auth == "query `key`"
        name, value = ELSEWHERE[row.slug]
    elif row.slug == "anthropic":
        name, value = "x-api-key", "the-key"
    elif row.auth in ("none", "OCI request signature"):
        name = ""
    elif found := re.match(r"`(x-api-key|api-key)`", row.auth):
        name, value = found[1], "the-key"
    elif row.slug == "qdrant":
        assert row.auth == "`api-key: Bearer …`"
        name = "api-key"
    elif row.slug == "bytez":
        assert row.auth == "`Authorization: Key …`"
        value = "Key the-key"
    else:
        assert row.auth.startswith(("B", "AWS SigV4")), row.auth
    if row.auth.startswith("AWS"):
        assert vendor.auth == "aws"
        assert vendor.service in ("bedrock", "sagemaker")
    plain = {name.lower(): value for name, value in target.own_headers().items()}
    for endpoint in set(vendor.endpoints) & LETTERED - ELSEHOW or {None}:
        headers = sent(vendor, endpoint, target)[1] if endpoint else plain
        if name:
            assert headers.get(name) == value, endpoint
        elif vendor.auth == "oci":
            assert "authorization" not in headers
        # ollama: the table says none, but servers behind a proxy that wants a key are common
        assert not name or [each for each in headers.values() if "the-key" in each] == [value]


def test_there_are_seventy_two_of_them() -> None:
    assert len(ROWS) == 72
    ours = {"openai-compatible", "cortex"}
    assert set(CATALOGUE) == {row.slug for row in ROWS} | ours


PATHS = [
    ("nomic", "embed", "https://api-atlas.nomic.ai/v1/embedding/text"),
    ("ollama", "chat", "http://own.example:8000/v1/chat/completions"),
    ("ollama", "embed", "http://own.example:8000/api/embeddings"),
    ("segmind", "generate_image", "https://api.segmind.com/v1/m"),
    ("workers-ai", "chat", "https://api.cloudflare.com/client/v4/accounts/acc0/ai/run/m"),
    ("reka-ai", "chat", "https://api.reka.ai/chat"),
    ("triton", "complete", "http://own.example:8000/generate"),
    ("siliconflow", "generate_image", "https://api.siliconflow.cn/v1/m/text-to-image"),
    ("huggingface", "chat", "https://api-inference.huggingface.co/models/m/v1/chat/completions"),
    ("predibase", "chat", "https://serving.app.predibase.com/u/deployments/v2/llms/m/v1/chat/completions"),
    ("hyperbolic", "generate_image", "https://api.hyperbolic.xyz/v1/image/generation"),
    ("bytez", "chat", "https://api.bytez.com/models/v2/m"),
    (
        "oracle",
        "chat",
        "https://inference.generativeai.us-chicago-1.oci.oraclecloud.com/20231130/actions/chat",
    ),
    ("iointelligence", "respond", "https://api.intelligence.io.solutions/api/v1/chat/completions"),
    ("cohere", "chat", "https://api.cohere.ai/v2/chat"),
    ("cohere", "complete", "https://api.cohere.ai/v1/generate"),
    ("cohere", "embed", "https://api.cohere.ai/v2/embed"),
    ("together-ai", "chat", "https://api.together.xyz/v1/chat/completions"),
    ("openai", "edit_image", "https://api.openai.com/v1/images/edits"),
]


@pytest.mark.behaviour("TR-24")
@pytest.mark.parametrize(("slug", "endpoint", "url"), PATHS)
def test_paths_that_the_table_spells_out(slug: str, endpoint: EndpointName, url: str) -> None:
    vendor = CATALOGUE[slug]
    assert sent(vendor, endpoint, target_of(vendor))[0] == url


@pytest.mark.behaviour("PV-90")
def test_the_default_models_are_those_of_the_text() -> None:
    text = re.search(r"\*\*PV-90\*\* \[C\] .*?: (.*?)\. \(See", GATEWAY.read_text())
    assert text is not None
    named = dict(each.split(" ", 1) for each in text[1].split(", "))
    assert {name: row.default_model for name, row in CATALOGUE.items() if row.default_model} == named


@pytest.mark.behaviour("PV-91")
def test_what_the_text_says_is_removed_is_removed() -> None:
    def dropped(name: str) -> frozenset[str]:
        return CATALOGUE[name].drop

    everywhere = "functions function_call logit_bias user seed tools tool_choice response_format logprobs".split()
    assert dropped("cerebras") == frozenset(
        "frequency_penalty logit_bias logprobs presence_penalty parallel_tool_calls service_tier".split()
    )
    assert dropped("groq") >= {"logprobs", "logits_bias", "top_logprobs"}
    assert dropped("lemonfox-ai") == frozenset([*everywhere, "n", "stream_options"])
    assert dropped("sambanova") == frozenset([*everywhere, "presence_penalty", "frequency_penalty"])
    assert dropped("nscale") == frozenset("functions function_call user seed tools tool_choice stream_options".split())


@pytest.mark.behaviour("PV-92")
def test_vendors_that_want_to_know_who_calls_are_told_our_name() -> None:
    assert target_of(CATALOGUE["openrouter"]).own_headers()["X-Title"] == "Loomgate"
    assert target_of(CATALOGUE["cerebras"]).own_headers()["User-Agent"] == "Loomgate"


@pytest.mark.behaviour("RH-37", "RH-33")
def test_provider_data_that_travel_as_headers() -> None:
    options = {"stability_client_id": "me", "amzn_sagemaker_target_model": "m.tar.gz", "openai_project": "p"}
    for slug, header, value in (
        ("stability-ai", "stability-client-id", "me"),
        ("sagemaker", "X-Amzn-SageMaker-Target-Model", "m.tar.gz"),
        ("openai", "OpenAI-Project", "p"),
        ("deepbricks", "Deepbricks-Project", "p"),
    ):
        row = CATALOGUE[slug]
        made = Target(vendor=row, base_url=row.base_url or "", api_key="k", options=options).own_headers()
        assert made[header] == value
        assert header not in Target(vendor=row, base_url=row.base_url or "", api_key="k").own_headers()


@pytest.mark.behaviour("RH-36")
def test_a_base_url_of_ones_own_has_no_path_for_the_model() -> None:
    row = CATALOGUE["huggingface"]
    own = Target(vendor=row, base_url="https://mine.endpoints.huggingface.cloud", api_key="k")
    assert own.endpoint_url("chat", "a/b") == "https://mine.endpoints.huggingface.cloud/v1/chat/completions"
    shared = Target(vendor=row, base_url=str(row.base_url), api_key="k")
    assert shared.endpoint_url("chat", "a/b") == f"{row.base_url}/models/a/b/v1/chat/completions"


@pytest.mark.behaviour("RH-39")
@pytest.mark.parametrize(("value", "path"), [("true", "/fim/completions"), ("false", "/chat/completions")])
def test_fill_in_the_middle(value: str, path: str) -> None:
    row = CATALOGUE["mistral-ai"]
    made = Target(vendor=row, base_url=str(row.base_url), api_key="k", options={"mistral_fim_completion": value})
    assert urlsplit(made.endpoint_url("chat")).path == "/v1" + path


@pytest.mark.behaviour("RH-35", "RH-41")
@pytest.mark.parametrize("slug", ["workers-ai", "oracle", "cortex", "azure-openai"])
def test_what_an_address_needs_and_does_not_get_is_named(slug: str) -> None:
    row = CATALOGUE[slug]
    assert row.needs
    with pytest.raises(ProviderError) as caught:
        Target(vendor=row, base_url=str(row.base_url), api_key="k").endpoint_url("chat", "m")
    assert caught.value.kind == "invalid"
    assert row.needs[0] in caught.value.message


@pytest.mark.behaviour("GERR-05", "RH-41")
def test_a_name_that_the_reference_only_lists_is_a_provider_here() -> None:
    row = CATALOGUE["cortex"]
    made = Target(vendor=row, base_url=str(row.base_url), api_key="k", options={"snowflake_account": "org-acc"})
    assert made.endpoint_url("chat", "m") == (
        "https://org-acc.snowflakecomputing.com/api/v2/cortex/v1/chat/completions"
    )


@pytest.mark.parametrize("value", ["evil.example/", "a@evil.example", "a:1", "..", "a?b", "a#b", "a%2fb", "a\r\nb", ""])
def test_provider_data_cannot_lead_elsewhere(value: str) -> None:
    row = CATALOGUE["azure-openai"]
    with pytest.raises(ProviderError) as caught:
        Target(vendor=row, base_url=str(row.base_url), options={"resource_name": value}).endpoint_url("files")
    assert caught.value.kind == "invalid"
    row = CATALOGUE["workers-ai"]
    with pytest.raises(ProviderError):
        Target(vendor=row, base_url=str(row.base_url), options=OPTIONS).endpoint_url("chat", f"@cf/../{value}")


def test_no_model_name_belongs_to_two_vendors() -> None:
    owners = [(pattern, row.name) for row in CATALOGUE.values() for pattern in row.models]
    for pattern, owner in owners:
        example = pattern.replace("*", "x")
        assert [name for other, name in owners if fnmatchcase(example, other)].count(owner) >= 1
        assert {name for other, name in owners if fnmatchcase(example, other)} == {owner}


def test_needs_are_among_the_options() -> None:
    for row in CATALOGUE.values():
        assert set(row.needs) <= row.options
        assert set(row.option_headers.values()) <= row.options
        assert row.address is None or row.address in row.options
        assert set(re.findall(r"\{(\w+)\}", row.base_url or "")) <= {*row.options, "region"}
