"""What Portkey's admin routes take (``gateway.openapi.json``), and provider data in its three spellings.

What must live here: shapes and their limits. What must not: what a field means for a call, or what an answer shows.
Unknown fields are refused: an operator's typing mistake must not become a setting that was never made.
"""

import re
from typing import Annotated, Any, Literal, NamedTuple, cast

import msgspec
from msgspec import UNSET, Meta, UnsetType

from loomgate.settings.provider_data import PROVIDER_DATA
from loomgate.wire.limits import RateLimit, UsageLimits

Fields = dict[str, Any]

DisplayName = Annotated[str, Meta(min_length=1, max_length=255)]
Slug = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Note = Annotated[str, Meta(max_length=4096)]


class _Body(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a typing mistake must not slip through."""


# --- limits ----------------------------------------------------------------------------------------------------------


# The description has one limit where its own examples send a list; both are taken, and a list is kept.
RateLimits = list[RateLimit] | RateLimit | None
OneUsageLimits = Annotated[list[UsageLimits], Meta(max_length=1)] | UsageLimits | None


# --- virtual keys, providers, integrations ---------------------------------------------------------------------------


class CreateVirtualKey(_Body, frozen=True):
    """``POST /virtual-keys``, without its provider data (`provider_data` takes them out first)."""

    name: DisplayName
    provider: str
    key: str | None = None
    note: Note | None = None
    workspace_id: str | None = None
    usage_limits: UsageLimits | None = None
    rate_limits: RateLimits = None
    expires_at: str | None = None
    secret_mappings: list[Any] | None = None


class UpdateVirtualKey(_Body, frozen=True):
    """``PUT /virtual-keys/{slug}``; what is not given stays."""

    slug: str | None = None
    name: DisplayName | UnsetType = UNSET
    key: str | UnsetType = UNSET
    note: Note | UnsetType | None = UNSET
    usage_limits: UsageLimits | UnsetType | None = UNSET
    rate_limits: RateLimits | UnsetType = UNSET
    expires_at: str | UnsetType | None = UNSET
    reset_usage: bool | None = None
    secret_mappings: list[Any] | None = None


class CreateProvider(_Body, frozen=True):
    """``POST /providers``."""

    name: DisplayName
    integration_id: str
    workspace_id: str | None = None
    slug: Slug | None = None
    note: Note | None = None
    usage_limits: UsageLimits | None = None
    rate_limits: RateLimits = None
    expires_at: str | None = None


class UpdateProvider(_Body, frozen=True):
    """``PUT /providers/{slug}``; what is not given stays."""

    slug: str | None = None
    name: DisplayName | UnsetType = UNSET
    note: Note | UnsetType | None = UNSET
    usage_limits: UsageLimits | UnsetType | None = UNSET
    rate_limits: RateLimits | UnsetType = UNSET
    expires_at: str | UnsetType | None = UNSET
    reset_usage: bool | None = None


class CreateIntegration(_Body, frozen=True):
    """``POST /integrations``; ``configurations`` is looked at by `provider_data`."""

    name: DisplayName
    ai_provider_id: str
    slug: Slug | None = None
    key: str | None = None
    description: Note | None = None
    workspace_id: str | None = None
    configurations: Fields | None = None
    create_default_provider: bool = True
    default_provider_slug: Slug | None = None
    secret_mappings: list[Any] | None = None
    pricing_adjustments: Fields | None = None


class UpdateIntegration(_Body, frozen=True):
    """``PUT /integrations/{slug}``; what is not given stays, ``configurations`` is replaced whole."""

    slug: str | None = None
    name: DisplayName | UnsetType = UNSET
    key: str | UnsetType = UNSET
    description: Note | UnsetType = UNSET
    configurations: Fields | UnsetType = UNSET
    secret_mappings: list[Any] | None = None
    pricing_adjustments: Fields | None = None


class ModelAccess(_Body, frozen=True):
    """Whether a model of an integration may be called."""

    slug: Annotated[str, Meta(min_length=1, max_length=255)]
    enabled: bool
    is_custom: bool | None = None
    is_finetune: bool | None = None
    base_model_slug: str | None = None
    configurations: Fields | None = None
    pricing_config: Fields | None = None


class UpdateModels(_Body, frozen=True):
    """``PUT /integrations/{slug}/models``."""

    models: Annotated[list[ModelAccess], Meta(max_length=1000)]
    allow_all_models: bool | None = None


class WorkspaceAccess(_Body, frozen=True):
    """Whether a workspace may use an integration, and how much."""

    id: str
    enabled: bool
    usage_limits: OneUsageLimits | UnsetType = UNSET
    rate_limits: RateLimits | UnsetType = UNSET
    reset_usage: bool = False
    create_default_provider: bool | None = None
    default_provider_slug: Slug | None = None


class GlobalAccess(_Body, frozen=True):
    """Access of every workspace."""

    enabled: bool
    usage_limits: OneUsageLimits = None
    rate_limits: RateLimits = None


class UpdateWorkspaces(_Body, frozen=True):
    """``PUT /integrations/{slug}/workspaces``."""

    workspaces: list[WorkspaceAccess] = []
    global_workspace_access: GlobalAccess | None = None
    override_existing_workspace_access: bool | None = None
    create_default_provider: bool | None = None
    default_provider_slug: Slug | None = None


# --- configs and guardrails ------------------------------------------------------------------------------------------


class CreateConfig(_Body, frozen=True):
    """``POST /configs``; the clients say ``is_default``, the description ``isDefault``."""

    name: DisplayName
    config: Fields
    slug: Slug | None = None
    isDefault: Literal[0, 1] | bool | None = None
    is_default: Literal[0, 1] | bool | None = None
    workspace_id: str | None = None


class UpdateConfig(_Body, frozen=True):
    """``PUT /configs/{slug}``; what is not given stays."""

    slug: str | None = None
    name: DisplayName | UnsetType = UNSET
    config: Fields | UnsetType = UNSET
    status: Literal["active", "archived"] | UnsetType = UNSET
    isDefault: Literal[0, 1] | bool | None = None
    is_default: Literal[0, 1] | bool | None = None


class Check(_Body, frozen=True):
    """One check of a guardrail."""

    id: Annotated[str, Meta(min_length=1, max_length=100)]
    parameters: Fields = {}
    name: DisplayName | None = None
    is_enabled: bool = True


class Feedback(_Body, frozen=True):
    """What a verdict says of the request in the log (GATEWAY GR-18)."""

    value: float
    weight: float = 1
    metadata: str | Fields | None = None


class Action(_Body, frozen=True):
    """What follows a verdict."""

    feedback: Feedback | None = None


class Actions(_Body, frozen=True):
    """What a guardrail does with its verdict (GATEWAY GR-04: ``deny`` false; synchronous unless it says otherwise)."""

    deny: bool = False
    is_async: bool = msgspec.field(name="async", default=False)
    sequential: bool = False
    on_success: Action | None = None
    on_fail: Action | None = None


class CreateGuardrail(_Body, frozen=True):
    """``POST /guardrails``."""

    name: DisplayName
    checks: list[Check]
    actions: Actions
    slug: Slug | None = None
    workspace_id: str | None = None
    organisation_id: str | None = None


class UpdateGuardrail(_Body, frozen=True):
    """``PUT /guardrails/{id}``; what is not given stays."""

    name: DisplayName | UnsetType = UNSET
    checks: list[Check] | UnsetType = UNSET
    actions: Actions | UnsetType = UNSET


# --- provider data ---------------------------------------------------------------------------------------------------

# Virtual keys write provider data in camel case, integrations in snake case with the vendor in front; a config's names
# (GATEWAY CFG-27) are what the rest of the gateway knows. What these tables leave out has one name in two cases.
_CAMEL = {
    "apiVersion": "api_version",
    "resourceName": "resource_name",
    "deploymentName": "deployment_id",
    "deploymentConfig": "deployments",
}
_SNAKE = {"azure_resource_name": "resource_name", "azure_deployment_config": "deployments"}
_DEPLOYMENT = {
    "deploymentName": "deployment_id",
    "azure_deployment_name": "deployment_id",
    "apiVersion": "api_version",
    "azure_api_version": "api_version",
}
_DEPLOYMENT_FIELDS = frozenset({"deployment_id", "api_version", "alias", "is_default"})
# Says which of the other values are meant, which their presence says as well; the rest is in a config's words.
_PRESENCE = {"vertex_auth_type": ("basic", "serviceAccount"), "aws_auth_type": ("accessKey",)}
_PRESENCE_DEFAULT = {"azure_auth_mode": ("default",)}
_HOST = frozenset({"custom_host", "customHost"})
_HEADERS = frozenset({"custom_headers", "customHeaders"})


class ProviderData(NamedTuple):
    """Provider data ready for use: names of CFG-27, another address, further headers."""

    options: Fields
    base_url: str | None
    headers: dict[str, str]


class BadData(ValueError):
    """Provider data that cannot be used: ``path`` within them, and what was expected there."""

    def __init__(self, path: str, expected: str) -> None:
        super().__init__(f"{path}: expected {expected}")
        self.path = path
        self.expected = expected


def canonical(name: str) -> str | None:
    """The config's name of the provider data ``name`` in any of its spellings; ``None`` if there is no such data."""
    found = _CAMEL.get(name) or _SNAKE.get(name) or re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()
    if name in _HOST or name in _HEADERS or found in PROVIDER_DATA or name in _PRESENCE:
        return found
    return None


def provider_data(given: Fields) -> ProviderData:
    """Provider data as they were given, in any spelling. Raises `BadData` with the path of the first mistake."""
    options: Fields = {}
    base_url: str | None = None
    headers: dict[str, str] = {}
    for name, value in given.items():
        known = canonical(name)
        if known is None:
            raise BadData(name, "no such field: it is not known as provider data")
        if value is None:
            continue
        if name in _HOST:
            base_url = _text(name, value)
        elif name in _HEADERS:
            headers = _headers(name, value)
        elif known == "deployments":
            options[known] = _deployments(name, value)
        elif known == "vertex_service_account_json":
            if not isinstance(value, str | dict):
                raise BadData(name, "a service account's key file, as an object or its text")
            options[known] = cast("str | Fields", value)
        else:
            text = _text(name, value)
            if text not in _PRESENCE.get(known, ()) and text not in _PRESENCE_DEFAULT.get(known, ()):
                options[known] = text
    return ProviderData(options, base_url, headers)


def _text(path: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str) or not value:
        raise BadData(path, "text that is not empty")
    if len(value) > 65536 or any(ord(letter) < 32 and letter not in "\r\n\t" for letter in value):
        raise BadData(path, "at most 65536 characters without control characters")
    return value


def _headers(path: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise BadData(path, "an object of header names and texts")
    found: dict[str, str] = {}
    for name, text in cast(Fields, value).items():
        if re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) is None:
            raise BadData(f"{path}.{name}", "the name of a header")
        if not isinstance(text, str) or re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", text) is None:
            raise BadData(f"{path}.{name}", "a header's value: text in one line")
        found[name.lower()] = text
    return found


def _deployments(path: str, value: Any) -> list[Fields]:
    if not isinstance(value, list) or not value:
        raise BadData(path, "a list of deployments")
    found: list[Fields] = []
    for at, item in enumerate(cast("list[Any]", value)):
        where = f"{path}[{at}]"
        if not isinstance(item, dict):
            raise BadData(where, "an object")
        given = cast(Fields, item)
        made: Fields = {}
        for name, part in given.items():
            known = _DEPLOYMENT.get(name, name)
            if known == "is_default" and isinstance(part, bool):
                made[known] = part
            elif (known in _DEPLOYMENT_FIELDS and known != "is_default") or name == "azure_model_slug":
                if part is not None:
                    made[known] = _text(f"{where}.{name}", part)
            else:
                raise BadData(f"{where}.{name}", "true or false" if known == "is_default" else "no such field")
        for known in ("deployment_id", "api_version"):
            if known not in made:
                raise BadData(f"{where}.{known}", "a value")
        # The name by which requests ask for the deployment: its alias, else the model that it runs.
        model = made.pop("azure_model_slug", None)
        if model is not None:
            made.setdefault("alias", model)
        found.append(made)
    return found
