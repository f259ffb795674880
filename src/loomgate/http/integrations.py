"""Handlers of ``/integrations``: accounts with vendors, which providers are made from (``gateway.openapi.json``).

An integration belongs to the workspace of the key that made it, and no other can use it. Those of the settings file
(``[providers.NAME]``) are the operator's: every workspace has them, none can change them.
"""

from typing import Any, cast

import msgspec
from msgspec import UNSET

from loomgate import clock
from loomgate.errors import bad_request
from loomgate.gateway.saved import declared_integration, still_masked
from loomgate.http import admin, query
from loomgate.http.accounts import add, check_data, check_secret, known_provider
from loomgate.http.call import Answer, Call
from loomgate.http.refusal import missing, not_one_of
from loomgate.http.resource import Resource
from loomgate.providers.catalogue import CATALOGUE
from loomgate.settings.provider_data import hidden, is_secret, masked, masked_path, unhidden
from loomgate.store.accounts import About, Account
from loomgate.wire.admin import (
    CreateIntegration,
    ModelAccess,
    UpdateIntegration,
    UpdateModels,
    UpdateWorkspaces,
    WorkspaceAccess,
)

Data = dict[str, Any]

_ROWS = 100  # of a page, if the client does not say
_TYPES = ["workspace", "organisation", "all"]
_PRICES = "Prices are the operator's: they are set in the server's settings file."
_MASKED = "masked_"


# --- what is shown ---------------------------------------------------------------------------------------------------


def _row(row: Account, *, declared: bool) -> admin.Shown:
    shown: admin.Shown = {
        "id": row.id,
        "slug": row.slug,
        "name": row.name,
        "ai_provider_id": row.provider,
        "organisation_id": admin.ORGANISATION,
        "status": "active",
        "type": "organisation" if declared else "workspace",
        "description": row.about.note or "",
        "object": "integration",
        "read_only": declared,
    }
    if not declared:
        shown["workspace_id"] = admin.workspace_id(row.workspace)
        shown["created_at"] = admin.moment(row.created_at)
        shown["last_updated_at"] = admin.moment(row.updated_at)
    return shown


def _whole(row: Account, *, declared: bool) -> admin.Shown:
    shown = _row(row, declared=declared)
    if row.secret:
        # The operator's key is not the workspace's to recognise: nothing of it is shown but that there is one.
        shown["masked_key"] = "***" if declared else masked(row.secret)
    configurations = cast(Data, hidden(row.data))
    if declared:
        configurations = {name: "***" if is_secret(name) else value for name, value in configurations.items()}
    # The description: a secret stands under its name with ``masked_`` in front.
    configurations = {f"{_MASKED}{name}" if is_secret(name) else name: item for name, item in configurations.items()}
    if row.base_url is not None:
        configurations["custom_host"] = row.base_url
    return shown | {
        "configurations": configurations,
        "global_workspace_access_settings": {"enabled": True} if declared else None,
        "allow_all_models": row.about.allow_all_models,
        "workspace_count": int(row.about.enabled),
        "secret_mappings": [],
    }


# --- reading ---------------------------------------------------------------------------------------------------------


INTEGRATIONS = Resource(
    "integration",
    "providers",
    lambda call: {
        name: declared_integration(provider, call.workspace) for name, provider in call.settings.providers.items()
    },
    lambda call: call.engine.store.integrations,
)


async def page(call: Call) -> Answer:
    """``GET /integrations``."""
    type = dict(query.pairs(call.query)).get("type") or "all"
    if type not in _TYPES:
        raise not_one_of("type", type, _TYPES)
    rows = [
        _row(row, declared=declared)
        for row, declared in await INTEGRATIONS.all(call)
        if type in ("all", "organisation" if declared else "workspace")
    ]
    return admin.listing(call, rows, _ROWS)


async def get(call: Call) -> Answer:
    """``GET /integrations/{slug}``."""
    row, declared = await INTEGRATIONS.find(call)
    return admin.answer(_whole(row, declared=declared))


# --- writing ---------------------------------------------------------------------------------------------------------


async def create(call: Call) -> Answer:
    """``POST /integrations``: the integration and, unless told otherwise, a provider made from it."""
    request = admin.body(call, CreateIntegration)
    admin.check_workspace(call, request.workspace_id)
    admin.no_mappings(request.secret_mappings)
    if request.pricing_adjustments:
        raise admin.unsupported("pricing_adjustments", _PRICES)
    if request.ai_provider_id not in CATALOGUE:
        raise not_one_of("ai_provider_id", request.ai_provider_id, sorted(CATALOGUE))
    data = request.configurations or {}
    _check(call, request.ai_provider_id, request.key or "", data)
    slug = request.slug or admin.new_slug(request.name)
    provider_slug = request.default_provider_slug or slug
    if request.create_default_provider:
        await _check_free(call, provider_slug)
    elif request.default_provider_slug is not None:
        raise admin.unsupported("default_provider_slug", "It names the provider that create_default_provider makes.")
    made = await INTEGRATIONS.add(
        call,
        Account(
            workspace=call.workspace,
            slug=slug,
            provider=request.ai_provider_id,
            secret=(request.key or "").strip(),
            name=request.name,
            data=data,
            about=About(note=request.description),
        ),
    )
    shown: admin.Shown = {"id": made.id, "slug": made.slug, "object": "integration"}
    if request.create_default_provider:
        provider = await _default_provider(call, made, provider_slug)
        shown["default_provider_slug"] = provider.slug
    return admin.answer(shown)


def _check(call: Call, provider: str, key: str, data: Data) -> None:
    known_provider(call, provider, "ai_provider_id")
    check_data(call, data, "configurations")
    check_secret(provider, key, data)
    if masked_path({"key": key}):
        raise still_masked("key")
    for name, needed in (("assumedRole", "aws_role_arn"), ("serviceAccount", "vertex_service_account_json")):
        if name in (data.get("aws_auth_type"), data.get("vertex_auth_type")) and not data.get(needed):
            raise missing(f"configurations.{needed}")


async def _check_free(call: Call, slug: str, param: str = "default_provider_slug") -> None:
    declared = call.settings.virtual_keys.get(slug)
    taken = declared is not None and declared.workspace == call.workspace
    if taken or await call.engine.store.virtual_keys.find(call.workspace, slug) is not None:
        raise admin.taken("a provider or virtual key", slug, param)


async def _default_provider(call: Call, row: Account, slug: str) -> Account:
    provider = Account(workspace=call.workspace, slug=slug, provider=row.provider, integration=row.slug, name=row.name)
    return await add(call, provider, "default_provider_slug")


async def update(call: Call) -> Answer:
    """``PUT /integrations/{slug}``. A masked secret that comes back stands for the secret it masks."""
    row = await INTEGRATIONS.own(call)
    request = admin.body(call, UpdateIntegration)
    admin.check_slug(request.slug, row.slug)
    admin.no_mappings(request.secret_mappings)
    if request.pricing_adjustments:
        raise admin.unsupported("pricing_adjustments", _PRICES)
    name, key, note, data = request.name, request.key, request.description, request.configurations

    def change(before: Account) -> Account:
        secret = before.secret
        if key is not UNSET and not (secret and key == masked(secret)):
            secret = key.strip()
        given = before.data if data is UNSET else _unmasked(data, before.data)
        _check(call, before.provider, secret, given)
        return msgspec.structs.replace(
            before,
            name=before.name if name is UNSET else name,
            secret=secret,
            data=given,
            about=before.about if note is UNSET else msgspec.structs.replace(before.about, note=note),
        )

    if await call.engine.store.integrations.change(call.workspace, row.slug, change) is None:
        raise admin.unknown("integration", row.slug)
    return admin.answer({})


def _unmasked(given: Data, before: Data) -> Data:
    """``given`` with the secrets that it has under a masked name (as `get` shows them) as they were before."""
    found: Data = {}
    for name, value in given.items():
        plain = name.removeprefix(_MASKED)
        if plain != name and is_secret(plain):
            if plain in before and plain not in given and value == cast(Data, hidden(before)).get(plain):
                found[plain] = before[plain]
                continue
            raise still_masked(f"configurations.{name}")
        found[name] = value
    return cast(Data, unhidden(found, before))


async def delete(call: Call) -> Answer:
    """``DELETE /integrations/{slug}``: only when no provider uses it any more."""
    row = await INTEGRATIONS.own(call)
    users = await call.engine.store.integrations.users(call.workspace, row.slug)
    if users:
        raise bad_request(
            f"The integration '{row.slug}' is used by {', '.join(users[:10])}: delete them first.", code="in_use"
        )
    return await INTEGRATIONS.delete(call)


# --- models ----------------------------------------------------------------------------------------------------------


async def page_models(call: Call) -> Answer:
    """``GET /integrations/{slug}/models``: the models for which something was said."""
    row, _ = await INTEGRATIONS.find(call)
    shown = [_model(model) for model in row.about.models]
    return admin.answer(
        {"object": "list", "total": len(shown), "models": shown, "allow_all_models": row.about.allow_all_models}
    )


def _model(model: ModelAccess) -> admin.Shown:
    return {
        "slug": model.slug,
        "name": model.slug,
        "enabled": model.enabled,
        "is_custom": model.is_custom,
        "is_finetune": model.is_finetune,
        "base_model_slug": model.base_model_slug,
    }


async def update_models(call: Call) -> Answer:
    """``PUT /integrations/{slug}/models``: models that are not named stay as they are."""
    row = await INTEGRATIONS.own(call)
    request = admin.body(call, UpdateModels)
    for at, model in enumerate(request.models):
        if model.pricing_config:
            raise admin.unsupported(f"models[{at}].pricing_config", _PRICES)
        if model.configurations:
            raise admin.unsupported(
                f"models[{at}].configurations", "An address belongs to the integration, not to one of its models."
            )

    def change(before: Account) -> Account:
        about = before.about
        models = {model.slug: model for model in (*about.models, *request.models)}
        every = about.allow_all_models if request.allow_all_models is None else request.allow_all_models
        about = msgspec.structs.replace(about, models=list(models.values()), allow_all_models=every)
        return msgspec.structs.replace(before, about=about)

    await call.engine.store.integrations.change(call.workspace, row.slug, change)
    return admin.answer({})


async def delete_models(call: Call) -> Answer:
    """``DELETE /integrations/{slug}/models?slugs=a,b``: what was said about them is forgotten."""
    row = await INTEGRATIONS.own(call)
    text = dict(query.pairs(call.query)).get("slugs") or ""
    slugs = [slug.strip() for slug in text.split(",") if slug.strip()]
    if not slugs:
        raise missing("slugs")
    known = {model.slug for model in row.about.models}
    for slug in slugs:
        if slug not in known:
            raise admin.unknown("model of this integration", slug)

    def change(before: Account) -> Account:
        models = [model for model in before.about.models if model.slug not in slugs]
        return msgspec.structs.replace(before, about=msgspec.structs.replace(before.about, models=models))

    await call.engine.store.integrations.change(call.workspace, row.slug, change)
    return admin.answer({})


# --- workspaces ------------------------------------------------------------------------------------------------------


async def page_workspaces(call: Call) -> Answer:
    """``GET /integrations/{slug}/workspaces``: there is one, the caller's own."""
    row, _ = await INTEGRATIONS.find(call)
    about, usage = row.about, row.about.limits.usage_limits
    shown: admin.Shown = {
        "id": admin.workspace_id(call.workspace),
        "name": call.workspace,
        "enabled": about.enabled,
        "usage_limits": None if usage is None else [admin.shown_usage(usage)],
        "rate_limits": admin.shown_rates(about.limits.rate_limits),
    }
    return admin.answer({"object": "list", "total": 1, "workspaces": [shown]})


async def update_workspaces(call: Call) -> Answer:
    """``PUT /integrations/{slug}/workspaces``: whether the caller's own workspace may use it, and how much."""
    row = await INTEGRATIONS.own(call)
    request = admin.body(call, UpdateWorkspaces)
    if request.global_workspace_access is not None and request.global_workspace_access.enabled:
        raise admin.unsupported(
            "global_workspace_access",
            "A workspace's integration is its own; what every workspace shall have is declared by the operator.",
        )
    if request.override_existing_workspace_access:
        raise admin.unsupported("override_existing_workspace_access", "There are no other workspaces to override.")
    for at, access in enumerate(request.workspaces):
        admin.check_workspace(call, access.id, f"workspaces[{at}].id")
        if not access.id:
            raise missing(f"workspaces[{at}].id")
    for at, access in enumerate(request.workspaces):
        await _give(call, row, access, at)
        wanted = access.create_default_provider
        wanted = request.create_default_provider if wanted is None else wanted
        if wanted and access.enabled:
            slug = access.default_provider_slug or request.default_provider_slug or row.slug
            await _check_free(call, slug)
            await _default_provider(call, row, slug)
    return admin.answer({})


async def _give(call: Call, row: Account, access: WorkspaceAccess, at: int) -> None:
    changes: Data = {"enabled": access.enabled}
    if access.reset_usage:
        changes["usage_since"] = clock.timestamp()

    def change(before: Account) -> Account:
        limits = admin.limits(before.about.limits, access, f"workspaces[{at}].")
        return msgspec.structs.replace(before, about=msgspec.structs.replace(before.about, limits=limits, **changes))

    await call.engine.store.integrations.change(call.workspace, row.slug, change)
