"""The vendors: one frozen row each. Facts about an endpoint, as data.

What must live here: addresses, paths, how the key is sent, which parameters the endpoint does not take. What must not:
behaviour. A vendor that speaks OpenAI's dialect is a row, never a file. Names, addresses and endpoints are those of
GATEWAY section 13, so that code written for that gateway finds its providers again.
"""

from collections.abc import Mapping

from loomgate.providers.vendor import AuthStyle, Vendor
from loomgate.wire.endpoints import EndpointName

__all__ = ["CATALOGUE", "Vendor"]

# Where OpenAI has its endpoints, by the letters of GATEWAY section 13.
_PATHS: dict[str, dict[EndpointName, str]] = {
    "c": {"chat": "/chat/completions"},
    "t": {"complete": "/completions"},
    "e": {"embed": "/embeddings"},
    "i": {"generate_image": "/images/generations"},
    "ie": {"edit_image": "/images/edits"},
    "iv": {"vary_image": "/images/variations"},
    "s": {"speak": "/audio/speech"},
    "tr": {"transcribe": "/audio/transcriptions"},
    "tl": {"translate": "/audio/translations"},
    "m": {"messages": "/messages", "count_tokens": "/messages/count_tokens"},
    "r": {"respond": "/responses", "responses": "/responses"},
    "rr": {"rerank": "/rerank"},
    "rt": {"realtime": "/realtime"},
    "f": {"files": "/files"},
    "b": {"batches": "/batches"},
    "ft": {"fine_tuning": "/fine_tuning"},
    "": {"models": "/models"},
}


def _at(letters: str, prefix: str = "") -> dict[EndpointName, str]:
    """OpenAI's paths, below ``prefix``."""
    return {name: prefix + path for letter in [*letters.split(), ""] for name, path in _PATHS[letter].items()}


# Most vendors took over the dialect when the field was still called max_tokens; few know both names.
_OLD = {"max_completion_tokens": "max_tokens"}
_PLAIN_TOOLS = frozenset({"parallel_tool_calls"})
_NONE: Mapping[str, str] = {}
_OPENAI_HEADERS = {"OpenAI-Organization": "openai_organization", "OpenAI-Project": "openai_project"}
_ENTRA = frozenset(
    "azure_ad_token azure_auth_mode azure_managed_client_id azure_workload_client_id azure_entra_client_id "
    "azure_entra_client_secret azure_entra_tenant_id azure_entra_scope".split()
)
_AWS = frozenset(
    "aws_access_key_id aws_secret_access_key aws_session_token aws_region aws_role_arn aws_auth_type "
    "aws_external_id".split()
)
_S3 = frozenset(
    "aws_s3_bucket aws_s3_object_key aws_bedrock_model amz_server_side_encryption "
    "amz_server_side_encryption_aws_kms_key_id".split()
)
_SAGEMAKER = {
    "X-Amzn-SageMaker-" + "-".join(word.capitalize() for word in name.split("_")): "amzn_sagemaker_" + name
    for name in "custom_attributes target_model target_variant target_container_hostname inference_id "
    "enable_explanations inference_component session_id model_name".split()
}
# PV-91: what these three refuse.
_LEMONFOX = frozenset(
    "functions function_call n logit_bias user seed tools tool_choice response_format logprobs stream_options".split()
)
_SAMBANOVA = (_LEMONFOX - {"n", "stream_options"}) | {"presence_penalty", "frequency_penalty"}
_NSCALE = frozenset("functions function_call user seed tools tool_choice stream_options".split())
_CEREBRAS = frozenset("frequency_penalty logit_bias logprobs presence_penalty parallel_tool_calls service_tier".split())
_GROQ = frozenset({"logprobs", "logit_bias", "logits_bias", "top_logprobs"})
# Model ids are "<maker>.<model>", after the area of an inference profile if there is one; or they are ARNs.
_BEDROCK = (
    "arn:aws*:bedrock:*",
    *(f"{area}.*.*" for area in ("us", "us-gov", "eu", "apac", "jp", "au", "ca", "global")),
    *(f"{maker}.*" for maker in ("amazon", "anthropic", "ai21", "cohere", "deepseek", "meta", "mistral", "openai")),
)


def _like_openai(
    name: str,
    base_url: str | None,
    letters: str,
    prefix: str = "",
    *,
    drop: frozenset[str] = frozenset(),
    auth: AuthStyle = "key",
    default_model: str | None = None,
    headers: Mapping[str, str] = _NONE,
    models: tuple[str, ...] = (),
    finish: Mapping[str, str] = _NONE,
) -> Vendor:
    """A vendor of the plainest kind: OpenAI's paths, with the older name of max_tokens."""
    return Vendor(
        name=name,
        base_url=base_url,
        endpoints=_at(letters, prefix),
        auth=auth,
        headers=headers,
        rename=_OLD,
        drop=drop,
        default_model=default_model,
        models=models,
        finish=finish,
    )


_ROWS = (
    Vendor(
        name="openai",
        base_url="https://api.openai.com/v1",
        endpoints=_at("c t e i ie iv s tr tl r rt f b ft"),
        option_headers=_OPENAI_HEADERS,
        options=frozenset({"openai_organization", "openai_project"}),
        developer=True,
        models=("gpt-*", "chatgpt-*", "o1", "o1-*", "o3", "o3-*", "o4-*", "ft:gpt-*"),
    ),
    Vendor(
        name="azure-openai",
        base_url="https://{resource_name}.openai.azure.com/openai",
        endpoints=_at("c t e i ie iv s tr tl r rt f b ft"),
        auth="entra",
        key_header="api-key",
        key_prefix="",
        options=_ENTRA | {"resource_name", "deployment_id", "api_version", "azure_model_name", "deployments"},
        needs=("resource_name",),
        developer=True,
    ),
    Vendor(
        name="azure-ai",
        base_url=None,
        address="azure_foundry_url",
        endpoints=_at("c t e i ie s tr tl m rt f b"),
        auth="entra",
        options=_ENTRA
        | frozenset(
            "azure_foundry_url azure_endpoint_name azure_api_version azure_extra_params azure_region "
            "azure_deployment_name azure_deployment_type".split()
        ),
        headers={"extra-parameters": "drop"},
        option_headers={
            "extra-parameters": "azure_extra_params",
            "azureml-model-deployment": "azure_deployment_name",
        },
        developer=True,
        dialect="azure-ai",
    ),
    Vendor(name="github", base_url="https://models.inference.ai.azure.com", endpoints=_at("c t e"), developer=True),
    Vendor(
        name="anthropic",
        base_url="https://api.anthropic.com/v1",
        endpoints={"chat": "/v1/messages", "complete": "/v1/messages", **_at("m", "/v1")},
        headers={"anthropic-version": "2023-06-01"},
        key_header="x-api-key",
        key_prefix="",
        models=("claude-*",),
        dialect="anthropic",
    ),
    Vendor(
        name="openai-compatible",
        base_url=None,
        endpoints=_at("c t e i ie iv s tr tl r rr rt f b ft"),
        auth="optional",
        rename=_OLD,
    ),
    Vendor(
        name="google",
        base_url="https://generativelanguage.googleapis.com",
        endpoints={
            "chat": "/v1beta/models/{model}:streamGenerateContent",
            "embed": "/v1beta/models/{model}:embedContent",
            "models": "/v1beta/models",
        },
        key_header="x-goog-api-key",
        key_prefix="",
        dialect="gemini",
        models=("gemini-*", "models/gemini-*", "tunedModels/*"),
    ),
    Vendor(
        name="vertex-ai",
        base_url="https://aiplatform.googleapis.com",
        endpoints={
            "chat": "/v1/publishers/{publisher}/models/{model}:streamGenerateContent",
            "embed": "/v1/publishers/google/models/{model}:predict",
            "generate_image": "/v1/publishers/google/models/{model}:predict",
            "messages": "/v1/publishers/anthropic/models/{model}:rawPredict",
            "count_tokens": "/v1/publishers/anthropic/models/count-tokens:rawPredict",
            "files": "/storage/v1/b",
            "batches": "/v1/batchPredictionJobs",
            "fine_tuning": "/v1/tuningJobs",
        },
        auth="service_account",
        takes=frozenset({"project", "region"}),
        options=frozenset(
            {"vertex_project_id", "vertex_region", "vertex_service_account_json", "vertex_storage_bucket_name"}
        ),
        dialect="vertex-ai",
        models=("google/gemini-*", "publishers/google/models/*"),
    ),
    Vendor(
        name="bedrock",
        base_url="https://bedrock-runtime.{region}.amazonaws.com",
        endpoints={
            "chat": "/model/{model}/converse-stream",
            "complete": "/model/{model}/converse-stream",
            "embed": "/model/{model}/invoke",
            "generate_image": "/model/{model}/invoke",
            "messages": "/model/{model}/converse-stream",
            "files": "/",
            "batches": "/model-invocation-job",
            "fine_tuning": "/model-customization-jobs",
        },
        auth="aws",
        service="bedrock",
        takes=frozenset({"region", "aws_access_key_id"}),
        options=_AWS | _S3,
        drop=_PLAIN_TOOLS,
        models=_BEDROCK,
        dialect="bedrock",
    ),
    Vendor(
        name="sagemaker",
        base_url="https://runtime.sagemaker.{region}.amazonaws.com",
        endpoints={},
        auth="aws",
        service="sagemaker",
        takes=frozenset({"region", "aws_access_key_id"}),
        options=_AWS | frozenset(_SAGEMAKER.values()),
        option_headers=_SAGEMAKER,
    ),
    Vendor(
        name="cohere",
        base_url="https://api.cohere.ai",
        endpoints={
            "chat": "/v2/chat",
            "complete": "/v1/generate",
            "embed": "/v2/embed",
            "rerank": "/v2/rerank",
            "files": "/v1/datasets",
            "batches": "/v2/batches",
            "models": "/v1/models",
        },
        drop=_PLAIN_TOOLS,
        models=("command-*", "c4ai-*"),
        dialect="cohere",
    ),
    Vendor(
        name="ai21",
        base_url="https://api.ai21.com/studio/v1",
        endpoints={"chat": "/chat/completions", "complete": "/{model}/complete", "embed": "/embed"},
        dialect="ai21",
        models=("j2-*", "jamba-*"),
    ),
    _like_openai("anyscale", "https://api.endpoints.anyscale.com/v1", "c t e", drop=_PLAIN_TOOLS),
    Vendor(
        name="palm",
        base_url="https://generativelanguage.googleapis.com/v1beta3",
        endpoints={
            "chat": "/models/{model}:generateMessage",
            "complete": "/models/{model}:generateText",
            "embed": "/models/{model}:embedText",
        },
        key_header="x-goog-api-key",
        key_prefix="",
        dialect="palm",
    ),
    _like_openai(
        "together-ai", "https://api.together.xyz", "c t e rr", "/v1", drop=_PLAIN_TOOLS, finish={"eos": "stop"}
    ),
    _like_openai(
        "perplexity-ai",
        "https://api.perplexity.ai",
        "c",
        drop=frozenset({"stream_options", "parallel_tool_calls"}),
        models=("sonar", "sonar-*"),
    ),
    Vendor(
        name="mistral-ai",
        base_url="https://api.mistral.ai/v1",
        endpoints=_at("c e"),
        options=frozenset({"mistral_fim_completion"}),
        switched={"mistral_fim_completion": {"chat": "/fim/completions"}},
        rename=_OLD,
        drop=frozenset({"stream_options"}),
        finish={"model_length": "length", "error": "stop"},
        models=("mistral-*", "ministral-*", "magistral-*", "codestral-*", "pixtral-*", "open-mistral-*"),
    ),
    _like_openai("deepinfra", "https://api.deepinfra.com/v1/openai", "c", drop=_PLAIN_TOOLS),
    _like_openai("ncompass", "https://api.ncompass.tech/v1", "c"),
    Vendor(
        name="stability-ai",
        base_url="https://api.stability.ai",
        endpoints={"generate_image": "/v2beta/stable-image/generate/{model}"},
        options=frozenset({"stability_client_id", "stability_client_user_id", "stability_client_version"}),
        option_headers={
            "stability-client-id": "stability_client_id",
            "stability-client-user-id": "stability_client_user_id",
            "stability-client-version": "stability_client_version",
        },
    ),
    Vendor(name="nomic", base_url="https://api-atlas.nomic.ai/v1", endpoints={"embed": "/embedding/text"}),
    Vendor(
        name="ollama",
        base_url=None,
        local="http://127.0.0.1:11434",
        endpoints={"chat": "/v1/chat/completions", "embed": "/api/embeddings"},
        auth="optional",
        rename=_OLD,
        drop=frozenset({"tool_choice", "parallel_tool_calls"}),
    ),
    Vendor(name="groq", base_url="https://api.groq.com/openai/v1", endpoints=_at("c s tr tl"), drop=_GROQ),
    Vendor(
        name="segmind",
        base_url="https://api.segmind.com/v1",
        endpoints={"generate_image": "/{model}"},
        key_header="x-api-key",
        key_prefix="",
    ),
    Vendor(name="jina", base_url="https://api.jina.ai/v1", endpoints=_at("e rr")),
    Vendor(
        name="fireworks-ai",
        base_url="https://api.fireworks.ai/inference/v1",
        endpoints={
            **_at("c t e"),
            "generate_image": "/image_generation/{model}",
            "files": "/datasets",
            "batches": "/batchInferenceJobs",
            "fine_tuning": "/supervisedFineTuningJobs",
        },
        options=frozenset({"fireworks_account_id"}),
        rename=_OLD,
        drop=_PLAIN_TOOLS,
        models=("accounts/fireworks/*",),
    ),
    Vendor(
        name="workers-ai",
        base_url="https://api.cloudflare.com/client/v4/accounts/{workers_ai_account_id}/ai/run",
        endpoints={"chat": "/{model}", "complete": "/{model}", "embed": "/{model}", "generate_image": "/{model}"},
        options=frozenset({"workers_ai_account_id"}),
        needs=("workers_ai_account_id",),
        dialect="workers-ai",
        models=("@cf/*", "@hf/*"),
    ),
    Vendor(
        name="reka-ai",
        base_url="https://api.reka.ai",
        endpoints={"chat": "/chat"},
        key_header="x-api-key",
        key_prefix="",
        dialect="reka-ai",
        models=("reka-*",),
    ),
    _like_openai("moonshot", "https://api.moonshot.cn", "c", "/v1", drop=_PLAIN_TOOLS, models=("moonshot-*", "kimi-*")),
    Vendor(
        name="openrouter",
        base_url="https://openrouter.ai/api",
        endpoints=_at("c", "/v1"),
        headers={"X-Title": "Loomgate"},
        rename=_OLD,
    ),
    _like_openai("lingyi", "https://api.lingyiwanwu.com", "c", "/v1"),
    _like_openai("zhipu", "https://open.bigmodel.cn/api/paas/v4", "c e", drop=_PLAIN_TOOLS),
    _like_openai("novita-ai", "https://api.novita.ai/v3/openai", "c t", "/v1", drop=_PLAIN_TOOLS),
    _like_openai("monsterapi", "https://llm.monsterapi.ai/v1", "c"),
    _like_openai(
        "deepseek",
        "https://api.deepseek.com",
        "c",
        "/v1",
        drop=_PLAIN_TOOLS,
        models=("deepseek-chat", "deepseek-reasoner"),
        finish={"insufficient_system_resource": "stop"},
    ),
    _like_openai("predibase", "https://serving.app.predibase.com", "c", "/{user}/deployments/v2/llms/{base_model}/v1"),
    Vendor(name="triton", base_url=None, endpoints={"complete": "/generate"}, auth="none", dialect="triton"),
    Vendor(name="voyage", base_url="https://api.voyageai.com/v1", endpoints=_at("e rr")),
    Vendor(
        name="deepbricks",
        base_url="https://api.deepbricks.ai/v1",
        endpoints=_at("c i"),
        options=frozenset({"openai_organization", "openai_project"}),
        option_headers={"Deepbricks-Organization": "openai_organization", "Deepbricks-Project": "openai_project"},
        rename=_OLD,
    ),
    Vendor(
        name="siliconflow",
        base_url="https://api.siliconflow.cn/v1",
        endpoints={**_at("c e"), "generate_image": "/{model}/text-to-image"},
        rename=_OLD,
        drop=_PLAIN_TOOLS,
    ),
    Vendor(
        name="huggingface",
        base_url="https://api-inference.huggingface.co",
        address="huggingface_base_url",
        shared_prefix="/models/{model}",
        endpoints=_at("c t", "/models/{model}/v1"),
        options=frozenset({"huggingface_base_url"}),
        rename=_OLD,
    ),
    Vendor(
        name="cerebras",
        base_url="https://api.cerebras.ai/v1",
        endpoints=_at("c"),
        headers={"User-Agent": "Loomgate"},
        drop=_CEREBRAS,
    ),
    _like_openai("inference-net", "https://api.inference.net/v1", "c", default_model="llama3"),
    _like_openai(
        "sambanova", "https://api.sambanova.ai", "c", "/v1", drop=_SAMBANOVA, default_model="Meta-Llama-3.1-8B-Instruct"
    ),
    _like_openai("lemonfox-ai", "https://api.lemonfox.ai/v1", "c i tr", drop=_LEMONFOX, default_model="zephyr-chat"),
    _like_openai("upstage", "https://api.upstage.ai/v1/solar", "c e", default_model="solar-pro", models=("solar-*",)),
    _like_openai("lambda", "https://api.lambdalabs.com/v1", "c t", drop=_PLAIN_TOOLS, default_model="Liquid-AI-40B"),
    _like_openai(
        "dashscope", "https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "c e", default_model="qwen-turbo"
    ),
    Vendor(
        name="x-ai",
        base_url="https://api.x.ai/v1",
        endpoints=_at("c t e"),
        default_model="grok-beta",
        models=("grok-*",),
    ),
    Vendor(name="qdrant", base_url=None, endpoints={}, key_header="api-key"),
    _like_openai("nebius", "https://api.studio.nebius.ai/v1", "c t e", default_model="Qwen/Qwen2.5-72B-Instruct-fast"),
    Vendor(
        name="recraft-ai",
        base_url="https://external.api.recraft.ai/v1",
        endpoints=_at("i"),
        models=("recraftv*",),
    ),
    Vendor(name="milvus", base_url=None, endpoints={}),
    Vendor(name="replicate", base_url="https://api.replicate.com/v1", endpoints={}),
    _like_openai("lepton", "https://api.lepton.ai", "c t tr", "/api/v1"),
    _like_openai(
        "kluster-ai",
        "https://api.kluster.ai/v1",
        "c e f",
        default_model="klusterai/Meta-Llama-3.1-8B-Instruct-Turbo",
        models=("klusterai/*",),
    ),
    _like_openai("nscale", "https://inference.api.nscale.com/v1", "c i", drop=_NSCALE),
    Vendor(
        name="hyperbolic",
        base_url="https://api.hyperbolic.xyz",
        endpoints={**_at("c", "/v1"), "generate_image": "/v1/image/generation"},
        rename=_OLD,
        drop=_PLAIN_TOOLS,
    ),
    Vendor(
        name="bytez",
        base_url="https://api.bytez.com",
        endpoints={"chat": "/models/v2/{model}"},
        key_prefix="Key ",
        dialect="bytez",
    ),
    _like_openai(
        "featherless-ai", "https://api.featherless.ai/v1", "c t", default_model="mistralai/Magistral-Small-2506"
    ),
    _like_openai("krutrim", "https://cloud.olakrutrim.com/v1", "c", default_model="Llama-3.3-70B-Instruct"),
    _like_openai("302ai", "https://api.302.ai", "c", "/v1"),
    _like_openai("cometapi", "https://api.cometapi.com/v1", "c e"),
    _like_openai("matterai", "https://api.matterai.so/v1", "c"),
    Vendor(name="meshy", base_url="https://api.meshy.ai/openapi/v1", endpoints={}),
    _like_openai("nextbit", "https://api.nextbit256.com/v1", "c t", default_model="microsoft:phi-4"),
    Vendor(name="tripo3d", base_url="https://api.tripo3d.ai/v2/openapi", endpoints={}),
    Vendor(name="modal", base_url=None, endpoints=_at("c"), auth="optional", rename=_OLD),
    _like_openai("z-ai", "https://api.z.ai/api/paas/v4", "c", drop=_PLAIN_TOOLS, default_model="glm-4.6"),
    Vendor(
        name="oracle",
        base_url="https://inference.generativeai.{oracle_region}.oci.oraclecloud.com",
        endpoints={"chat": "/{oracle_api_version}/actions/chat"},
        auth="oci",
        options=frozenset(
            "oracle_api_version oracle_region oracle_compartment_id oracle_serving_mode oracle_tenancy oracle_user "
            "oracle_fingerprint oracle_private_key oracle_key_passphrase".split()
        ),
        needs=("oracle_region", "oracle_compartment_id"),
        dialect="oracle",
    ),
    Vendor(
        name="iointelligence",
        base_url="https://api.intelligence.io.solutions/api/v1",
        endpoints={**_at("c e"), "respond": "/chat/completions"},
        rename=_OLD,
    ),
    _like_openai("aibadgr", "https://aibadgr.com/api/v1", "c"),
    _like_openai("ovhcloud", "https://oai.endpoints.kepler.ai.cloud.ovh.net/v1", "c", drop=_PLAIN_TOOLS),
    # Known by name to the reference, but not reachable through it (GATEWAY GERR-05, RH-41).
    Vendor(
        name="cortex",
        base_url="https://{snowflake_account}.snowflakecomputing.com/api/v2/cortex/v1",
        endpoints=_at("c"),
        options=frozenset({"snowflake_account"}),
        needs=("snowflake_account",),
        drop=_PLAIN_TOOLS,
        default_model="mistral-large",
    ),
)

CATALOGUE: dict[str, Vendor] = {row.name: row for row in _ROWS}
