"""The vendors: one frozen row each. Facts about an endpoint, as data.

What must live here: base address, how the key is sent, which parameters the endpoint does not take.
What must not: behaviour. A vendor that speaks OpenAI's dialect is a row, never a file. Names and addresses are
those of GATEWAY section 13, so that code written for that gateway finds its providers again.
"""

from typing import Literal

import msgspec


class Vendor(msgspec.Struct, frozen=True, kw_only=True):
    """A model endpoint's facts.

    ``base_url``: None when there is no address that all customers share, so that the operator must give one;
    ``{region}`` in it stands for the provider's region.
    ``auth``: ``bearer`` needs a key; ``optional`` sends one if there is one; ``key`` needs one that goes where the
    dialect has it; ``service_account`` needs one that may be the key file of a Google service account, which is
    exchanged for an access token; ``aws`` needs AWS keys, with which requests are signed, or a key as bearer token.
    ``takes``: settings of a provider that only some vendors know (``project``, ``region``, ``aws_access_key_id``).
    ``rename``: request fields under the name the endpoint knows. ``drop``: fields (our name or the renamed one)
    that it refuses. ``models``: patterns (`fnmatch`) of model names that are unmistakably this vendor's.
    """

    name: str
    base_url: str | None
    chat_path: str = "/chat/completions"
    auth: Literal["bearer", "optional", "key", "service_account", "aws"] = "bearer"
    takes: frozenset[str] = frozenset()
    rename: dict[str, str] = {}
    drop: frozenset[str] = frozenset()
    models: tuple[str, ...] = ()
    dialect: Literal["openai", "anthropic", "bedrock", "cohere", "gemini", "vertex-ai"] = "openai"


# Most vendors took over the dialect when the field was still called max_tokens; few know both names.
_OLD = {"max_completion_tokens": "max_tokens"}
_PATH = "/v1/chat/completions"
_PLAIN_TOOLS = frozenset({"parallel_tool_calls"})
# Model ids are "<maker>.<model>", after the area of an inference profile if there is one; or they are ARNs.
_BEDROCK = (
    "arn:aws*:bedrock:*",
    *(f"{area}.*.*" for area in ("us", "us-gov", "eu", "apac", "jp", "au", "ca", "global")),
    *(f"{maker}.*" for maker in ("amazon", "anthropic", "ai21", "cohere", "deepseek", "meta", "mistral", "openai")),
)

_ROWS = (
    Vendor(
        name="openai",
        base_url="https://api.openai.com/v1",
        models=("gpt-*", "chatgpt-*", "o1", "o1-*", "o3", "o3-*", "o4-*", "ft:gpt-*"),
    ),
    Vendor(
        name="anthropic",
        base_url="https://api.anthropic.com/v1",
        chat_path="/v1/messages",
        auth="key",
        models=("claude-*",),
        dialect="anthropic",
    ),
    Vendor(name="openai-compatible", base_url=None, auth="optional", rename=_OLD),
    Vendor(
        name="ollama",
        base_url="http://127.0.0.1:11434",
        chat_path=_PATH,
        auth="optional",
        rename=_OLD,
        drop=frozenset({"tool_choice", "parallel_tool_calls"}),
    ),
    Vendor(
        name="google",
        base_url="https://generativelanguage.googleapis.com",
        auth="key",
        dialect="gemini",
        models=("gemini-*", "models/gemini-*", "tunedModels/*"),
    ),
    Vendor(
        name="vertex-ai",
        base_url="https://aiplatform.googleapis.com",
        auth="service_account",
        takes=frozenset({"project", "region"}),
        dialect="vertex-ai",
        models=("google/gemini-*", "publishers/google/models/*"),
    ),
    Vendor(name="groq", base_url="https://api.groq.com/openai/v1"),
    Vendor(name="together-ai", base_url="https://api.together.xyz", chat_path=_PATH, rename=_OLD, drop=_PLAIN_TOOLS),
    Vendor(
        name="mistral-ai",
        base_url="https://api.mistral.ai/v1",
        rename=_OLD,
        drop=frozenset({"stream_options"}),
        models=("mistral-*", "ministral-*", "magistral-*", "codestral-*", "pixtral-*", "open-mistral-*"),
    ),
    Vendor(name="openrouter", base_url="https://openrouter.ai/api", chat_path=_PATH, rename=_OLD),
    Vendor(
        name="deepseek",
        base_url="https://api.deepseek.com",
        chat_path=_PATH,
        rename=_OLD,
        drop=_PLAIN_TOOLS,
        models=("deepseek-chat", "deepseek-reasoner"),
    ),
    Vendor(
        name="perplexity-ai",
        base_url="https://api.perplexity.ai",
        rename=_OLD,
        drop=frozenset({"stream_options", "parallel_tool_calls"}),
        models=("sonar", "sonar-*"),
    ),
    Vendor(
        name="fireworks-ai",
        base_url="https://api.fireworks.ai/inference/v1",
        rename=_OLD,
        drop=_PLAIN_TOOLS,
        models=("accounts/fireworks/*",),
    ),
    Vendor(name="anyscale", base_url="https://api.endpoints.anyscale.com/v1", rename=_OLD, drop=_PLAIN_TOOLS),
    Vendor(name="deepinfra", base_url="https://api.deepinfra.com/v1/openai", rename=_OLD, drop=_PLAIN_TOOLS),
    Vendor(name="cerebras", base_url="https://api.cerebras.ai/v1", drop=_PLAIN_TOOLS),
    Vendor(name="x-ai", base_url="https://api.x.ai/v1", models=("grok-*",)),
    Vendor(
        name="moonshot",
        base_url="https://api.moonshot.cn",
        chat_path=_PATH,
        rename=_OLD,
        drop=_PLAIN_TOOLS,
        models=("moonshot-*", "kimi-*"),
    ),
    Vendor(name="dashscope", base_url="https://dashscope-intl.aliyuncs.com/compatible-mode/v1", rename=_OLD),
    Vendor(name="zhipu", base_url="https://open.bigmodel.cn/api/paas/v4", rename=_OLD, drop=_PLAIN_TOOLS),
    Vendor(name="z-ai", base_url="https://api.z.ai/api/paas/v4", rename=_OLD, drop=_PLAIN_TOOLS),
    Vendor(name="nebius", base_url="https://api.studio.nebius.ai/v1", rename=_OLD),
    Vendor(name="hyperbolic", base_url="https://api.hyperbolic.xyz", chat_path=_PATH, rename=_OLD, drop=_PLAIN_TOOLS),
    Vendor(name="lambda", base_url="https://api.lambdalabs.com/v1", rename=_OLD, drop=_PLAIN_TOOLS),
    Vendor(
        name="novita-ai", base_url="https://api.novita.ai/v3/openai", chat_path=_PATH, rename=_OLD, drop=_PLAIN_TOOLS
    ),
    Vendor(name="siliconflow", base_url="https://api.siliconflow.cn/v1", rename=_OLD, drop=_PLAIN_TOOLS),
    Vendor(name="github", base_url="https://models.inference.ai.azure.com"),
    Vendor(
        name="ovhcloud", base_url="https://oai.endpoints.kepler.ai.cloud.ovh.net/v1", rename=_OLD, drop=_PLAIN_TOOLS
    ),
    Vendor(
        name="bedrock",
        base_url="https://bedrock-runtime.{region}.amazonaws.com",
        chat_path="/model/{model}/converse-stream",
        auth="aws",
        takes=frozenset({"region", "aws_access_key_id"}),
        drop=_PLAIN_TOOLS,
        models=_BEDROCK,
        dialect="bedrock",
    ),
    Vendor(
        name="cohere",
        base_url="https://api.cohere.ai",
        chat_path="/v2/chat",
        drop=_PLAIN_TOOLS,
        models=("command-*", "c4ai-*"),
        dialect="cohere",
    ),
)

CATALOGUE: dict[str, Vendor] = {row.name: row for row in _ROWS}
