"""What some providers need beside a key: as members of a config (GATEWAY CFG-27) and as headers (section 3.2).

What must live here: names, and limits that keep a value in its place. What must not: which provider needs what
(``providers/catalogue``).
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loomgate.settings.provider_data import is_secret

# What becomes a header's value, a label of a host name, or a segment of a path must not end it and begin another.
Plain = Annotated[str, Meta(pattern=r"^[\x20-\x7e]*\Z")]
Label = Annotated[str, Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z")]
Segment = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_~-][A-Za-z0-9._~:@-]*\Z")]


class Strict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a typing mistake must not slip through (CFG-30)."""


class Deployment(Strict, frozen=True):
    """One deployment of an Azure resource; ``alias`` is the model name that chooses it (CFG-27)."""

    deployment_id: Segment
    alias: str | None = None
    api_version: Segment | None = None
    is_default: bool = False


class ProviderData(Strict, frozen=True):
    """What some providers need beside a key (CFG-27), and what the headers of GATEWAY section 3.2 carry."""

    openai_organization: Plain | None = None
    openai_project: Plain | None = None
    openai_beta: Plain | None = None
    anthropic_beta: Plain | None = None
    anthropic_version: Plain | None = None
    resource_name: Label | None = None
    deployment_id: Segment | None = None
    api_version: Segment | None = None
    deployments: Annotated[list[Deployment], Meta(min_length=1)] | None = None
    azure_model_name: Plain | None = None
    azure_ad_token: Plain | None = None
    azure_auth_mode: Plain | None = None
    azure_managed_client_id: Plain | None = None
    azure_workload_client_id: Plain | None = None
    azure_entra_client_id: Plain | None = None
    azure_entra_client_secret: Plain | None = None
    azure_entra_tenant_id: Segment | None = None
    azure_entra_scope: Plain | None = None
    azure_foundry_url: Plain | None = None
    azure_extra_params: Plain | None = None
    azure_region: Label | None = None
    azure_deployment_name: Segment | None = None
    azure_deployment_type: Literal["serverless", "managed"] | None = None
    azure_endpoint_name: Label | None = None
    azure_api_version: Segment | None = None
    aws_access_key_id: Plain | None = None
    aws_secret_access_key: Plain | None = None
    aws_session_token: Plain | None = None
    aws_region: Label | None = None
    aws_role_arn: Plain | None = None
    aws_auth_type: Plain | None = None
    aws_external_id: Plain | None = None
    aws_s3_bucket: Segment | None = None
    aws_s3_object_key: Plain | None = None
    aws_bedrock_model: Plain | None = None
    amz_server_side_encryption: Plain | None = None
    amz_server_side_encryption_aws_kms_key_id: Plain | None = None
    amzn_sagemaker_custom_attributes: Plain | None = None
    amzn_sagemaker_target_model: Plain | None = None
    amzn_sagemaker_target_variant: Plain | None = None
    amzn_sagemaker_target_container_hostname: Plain | None = None
    amzn_sagemaker_inference_id: Plain | None = None
    amzn_sagemaker_enable_explanations: Plain | None = None
    amzn_sagemaker_inference_component: Plain | None = None
    amzn_sagemaker_session_id: Plain | None = None
    amzn_sagemaker_model_name: Segment | None = None
    vertex_project_id: Segment | None = None
    vertex_region: Label | None = None
    vertex_service_account_json: dict[str, Any] | str | None = None
    vertex_storage_bucket_name: Segment | None = None
    workers_ai_account_id: Segment | None = None
    huggingface_base_url: Plain | None = None
    stability_client_id: Plain | None = None
    stability_client_user_id: Plain | None = None
    stability_client_version: Plain | None = None
    fireworks_account_id: Segment | None = None
    mistral_fim_completion: bool | Literal["true", "false"] | None = None
    oracle_api_version: Segment | None = None
    oracle_region: Label | None = None
    oracle_compartment_id: Plain | None = None
    oracle_serving_mode: Plain | None = None
    oracle_tenancy: Plain | None = None
    oracle_user: Plain | None = None
    oracle_fingerprint: Plain | None = None
    oracle_private_key: str | None = None
    oracle_key_passphrase: str | None = None
    snowflake_account: Segment | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.options())})"

    def options(self) -> dict[str, Any]:
        """The provider data that is given, by name; structures as plain JSON values."""
        found = {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}
        if "deployments" in found:
            found["deployments"] = msgspec.to_builtins(found["deployments"])
        return found


OPTIONS: tuple[str, ...] = ProviderData.__struct_fields__
_NO_HEADER = frozenset({"deployments", "deployment_id", "api_version", "resource_name"})
# A header of section 3.2, without ``x-portkey-``, and the provider data it carries.
# The names are the same, but for the first three of Azure.
OPTION_HEADERS: dict[str, str] = {
    **{name.replace("_", "-"): name for name in OPTIONS if name not in _NO_HEADER},
    "azure-resource-name": "resource_name",
    "azure-deployment-id": "deployment_id",
    "azure-api-version": "api_version",
}
# Those that are an address, for which the rules of custom hosts hold (HOST-04).
URL_OPTIONS = ("azure_foundry_url", "huggingface_base_url")
# Those that prove who is calling: they must not go to an address that somebody else chose.
SECRET_OPTIONS = tuple(name for name in OPTIONS if is_secret(name))
