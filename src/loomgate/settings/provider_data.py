"""Provider data beside the key: which names there are (GATEWAY CFG-27 and section 3.2), and which hold a secret.

What must live here: names. What must not: what a vendor does with them (the catalogue says which it takes).
"""

import re
from typing import Any, cast

# Names as a config has them; the header of a name is ``x-portkey-`` and the name with hyphens.
_PLAIN = """
    openai_organization openai_project openai_beta anthropic_version anthropic_beta
    resource_name deployment_id api_version deployments azure_model_name azure_auth_mode azure_managed_client_id
    azure_workload_client_id azure_entra_client_id azure_entra_tenant_id azure_entra_scope azure_region
    azure_deployment_name azure_deployment_type azure_endpoint_name azure_api_version azure_foundry_url
    azure_extra_params
    aws_region aws_role_arn aws_auth_type aws_external_id aws_s3_bucket aws_s3_object_key aws_bedrock_model
    amz_server_side_encryption amz_server_side_encryption_aws_kms_key_id
    amzn_sagemaker_custom_attributes amzn_sagemaker_target_model amzn_sagemaker_target_variant
    amzn_sagemaker_target_container_hostname amzn_sagemaker_inference_id amzn_sagemaker_enable_explanations
    amzn_sagemaker_inference_component amzn_sagemaker_session_id amzn_sagemaker_model_name
    vertex_project_id vertex_region vertex_storage_bucket_name
    workers_ai_account_id huggingface_base_url stability_client_id stability_client_user_id stability_client_version
    fireworks_account_id mistral_fim_completion snowflake_account
    oracle_api_version oracle_region oracle_compartment_id oracle_serving_mode oracle_tenancy oracle_user
    oracle_fingerprint
""".split()
_SECRET = """
    azure_ad_token azure_entra_client_secret aws_access_key_id aws_secret_access_key aws_session_token
    vertex_service_account_json oracle_private_key oracle_key_passphrase
""".split()

PROVIDER_DATA: frozenset[str] = frozenset(_PLAIN) | frozenset(_SECRET)

# By its end a name tells that it holds a secret, also one that no list here has: better one value too many hidden.
_ENDS = ("api_key", "_key", "_secret", "_token", "password", "passphrase", "authorization", "credentials")
_NO_SECRETS = frozenset({"header_key", "prompt_cache_key", "virtual_key", *_PLAIN})


_HEADERS = frozenset({"headers", "custom_headers", "customHeaders"})


def is_secret(name: str) -> bool:
    """Does a field of this name (in a config, a guardrail's parameters, provider data), in any case, hold a secret?"""
    lower = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_")
    return lower in _SECRET or (lower not in _NO_SECRETS and (lower == "key" or lower.endswith(_ENDS)))


def masked(secret: str) -> str:
    """A secret as an answer may show it: its first three and last four characters, if it is long enough."""
    return f"{secret[:3]}…{secret[-4:]}" if len(secret) >= 16 else "***"


def hidden(value: Any, *, within: bool = False) -> Any:
    """``value`` (decoded JSON) with every secret masked; ``within``: all its texts are secret (headers)."""
    if isinstance(value, dict):
        return {
            name: _shown(name, item, within=within or name in _HEADERS)
            for name, item in cast("dict[str, Any]", value).items()
        }
    if isinstance(value, list):
        return [hidden(item, within=within) for item in cast("list[Any]", value)]
    return masked(value) if within and isinstance(value, str) else value


def _shown(name: str, item: Any, *, within: bool) -> Any:
    if within or not is_secret(name):
        return hidden(item, within=within)
    if isinstance(item, str):
        return masked(item)
    return item if item is None or isinstance(item, bool | int | float) else "***"


def unhidden(value: Any, before: Any) -> Any:
    """``value`` with each masked secret that stands where it stood in ``before`` put back as it was there.

    So a client may read an object, change something else in it and send it back whole.
    """
    return _unhidden(value, before, hidden(before))


def _unhidden(value: Any, before: Any, shown: Any) -> Any:
    if isinstance(value, dict) and isinstance(before, dict) and isinstance(shown, dict):
        old, seen = cast("dict[str, Any]", before), cast("dict[str, Any]", shown)
        return {
            name: _unhidden(item, old[name], seen[name]) if name in old else item
            for name, item in cast("dict[str, Any]", value).items()
        }
    if isinstance(value, list) and isinstance(before, list) and isinstance(shown, list):
        old_items, seen_items = cast("list[Any]", before), cast("list[Any]", shown)
        return [
            _unhidden(item, old_items[at], seen_items[at]) if at < len(old_items) else item
            for at, item in enumerate(cast("list[Any]", value))
        ]
    return cast("Any", before) if isinstance(value, str) and value == shown else cast("Any", value)


def masked_path(value: Any, at: str = "") -> str | None:
    """Where in ``value`` a mask stands in place of a secret; ``None`` if nowhere."""
    if isinstance(value, dict):
        for name, item in cast("dict[str, Any]", value).items():
            path = f"{at}.{name}" if at else name
            if is_secret(name) and isinstance(item, str) and ("…" in item or item == "***"):
                return path
            if (found := masked_path(item, path)) is not None:
                return found
    if isinstance(value, list):
        for index, item in enumerate(cast("list[Any]", value)):
            if (found := masked_path(item, f"{at}[{index}]")) is not None:
                return found
    return None
