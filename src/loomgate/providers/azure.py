"""Where Azure has its endpoints: resources with deployments of models, and Foundry's addresses (GATEWAY TR-23, PRX-13).

What must live here: Azure's rules for addresses, pure. What must not: how a caller proves itself (``credentials``).
"""

import re
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote, urlsplit

from loomgate.errors import ProviderError
from loomgate.wire.endpoints import EndpointName

# What a deployment of a model answers; everything else belongs to the resource.
_OF_A_DEPLOYMENT = frozenset(
    "chat complete embed generate_image edit_image vary_image speak transcribe translate".split()
)
# What Foundry has beside the model's address, below its origin.
_OF_THE_ORIGIN = frozenset({"files", "batches"})


def deployment_of(model: str | None, options: Mapping[str, Any]) -> str | None:
    """The deployment that a call for ``model`` goes to: of ``deployments`` the one with that alias, else
    ``deployment_id``, the default one, or the one of the model's own name. None if nothing names one."""
    found = options.get("deployments")
    default: Any = None
    for each in cast("list[Any]", found) if isinstance(found, list) else ():
        if isinstance(each, dict):
            entry = cast("dict[str, Any]", each)
            if model is not None and model in (entry.get("alias"), entry.get("deployment_id")):
                return str(entry.get("deployment_id"))
            if entry.get("is_default"):
                default = entry.get("deployment_id")
    return str(options.get("deployment_id") or default or model or "") or None


def version_of(model: str | None, options: Mapping[str, Any]) -> str | None:
    """The ``api_version`` for ``model``: that of its entry in ``deployments``, else the call's."""
    deployment, found = deployment_of(model, options), options.get("deployments")
    for each in cast("list[Any]", found) if isinstance(found, list) else ():
        if isinstance(each, dict):
            entry = cast("dict[str, Any]", each)
            if entry.get("deployment_id") == deployment and entry.get("api_version"):
                return str(entry["api_version"])
    return str(options["api_version"]) if options.get("api_version") else None


def openai_url(base: str, path: str, endpoint: EndpointName, model: str | None, options: Mapping[str, Any]) -> str:
    """The address of an endpoint of Azure OpenAI; ``path`` is OpenAI's.

    The version ``v1``, or none, means Azure's API without versions, where the model's field names the deployment.
    Proxied paths without a version are left as they are. Raises `ProviderError` ``invalid`` when no deployment is
    named.
    """
    version = version_of(model, options)
    base = base.rstrip("/")
    if endpoint == "proxy" and version is None:
        return base + path
    if version is None or version == "v1":
        base = base.removesuffix("/v1") + "/v1"
        return f"{base}{path}?model={_segment(model, options)}" if endpoint == "realtime" else base + path
    query = f"?api-version={quote(version, safe='')}"
    if endpoint in _OF_A_DEPLOYMENT:
        return f"{base}/deployments/{_segment(model, options)}{path}{query}"
    if endpoint == "realtime":
        return f"{base}{path}{query}&deployment={_segment(model, options)}"
    return base + path + query


def foundry_url(base: str, path: str, endpoint: EndpointName, _model: str | None, options: Mapping[str, Any]) -> str:
    """The address of an endpoint of Azure AI; ``base`` is that of a model in Foundry (GATEWAY PV-03)."""
    base = base.rstrip("/")
    if endpoint in _OF_THE_ORIGIN:
        parts = urlsplit(base)
        base = f"{parts.scheme}://{parts.netloc}/openai"
    elif speaks_anthropic(base) and endpoint in ("chat", "complete", "messages", "count_tokens"):
        path = "/v1/messages/count_tokens" if endpoint == "count_tokens" else "/v1/messages"
        if base.endswith("/v1"):
            path = path.removeprefix("/v1")
        return base + path
    version = options.get("azure_api_version")
    return f"{base}{path}?api-version={quote(str(version), safe='')}" if version else base + path


_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_KINDS = {
    "serverless": "https://{}.{}.models.ai.azure.com",
    "managed": "https://{}.{}.inference.ml.azure.com/score",
}


def foundry_base(options: Mapping[str, Any]) -> str | None:
    """The address of a deployment that is told by its name, region and kind (CFG-27); None without a name.

    Raises `ProviderError` ``invalid`` for parts that are missing or wrong.
    """
    name, region = options.get("azure_endpoint_name"), options.get("azure_region")
    if not name:
        return None
    form = _KINDS.get(str(options.get("azure_deployment_type") or "serverless"))
    if form is None:
        raise ProviderError("invalid", "Invalid 'azure_deployment_type': expected 'serverless' or 'managed'.")
    if not region or not _PART.fullmatch(str(region)) or not _PART.fullmatch(str(name)):
        said = "Invalid 'azure_endpoint_name' or 'azure_region': expected both, of letters, digits and hyphens."
        raise ProviderError("invalid", said)
    return form.format(str(name).lower(), region)


def speaks_anthropic(base: str) -> bool:
    """Whether a Foundry address is that of one of Anthropic's models."""
    return "anthropic" in base


def _segment(model: str | None, options: Mapping[str, Any]) -> str:
    name = deployment_of(model, options)
    if name is None or name in (".", ".."):
        said = "Expected a deployment: name it with deployment_id (x-portkey-azure-deployment-id) or as the model."
        raise ProviderError("invalid", said)
    return quote(name, safe="")
