"""Handlers of ``/virtual-keys`` and ``/providers``: two faces of the same rows (GATEWAY AUTH-02).

A virtual key made here has its own secret; a provider made here has that of its integration. Either can be read,
changed and deleted by both routes.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec
from msgspec import UNSET

from loomgate import clock
from loomgate.errors import ApiError, bad_request
from loomgate.gateway import hosts
from loomgate.gateway.saved import declared_key, stable_id, still_masked
from loomgate.http import admin
from loomgate.http.body import decode
from loomgate.http.call import Answer, Call
from loomgate.http.refusal import missing, not_one_of
from loomgate.http.resource import Resource
from loomgate.providers.catalogue import CATALOGUE
from loomgate.settings.provider_data import hidden, masked, masked_path, unhidden
from loomgate.store.accounts import About, Account
from loomgate.wire.admin import (
    BadData,
    CreateProvider,
    CreateVirtualKey,
    UpdateProvider,
    UpdateVirtualKey,
    canonical,
    provider_data,
)
from loomgate.wire.limits import KeyLimits

Data = dict[str, Any]
_T = TypeVar("_T")
_Change = Callable[[Account], Account]

_IN_PLACE_OF_A_KEY = ("aws_", "azure_auth_mode", "azure_ad_token", "oracle_private_key", "vertex_service_account_json")
_VIRTUALKEYS = 50  # rows of a page, if the client does not say
_PROVIDERS = 50


# --- provider data ---------------------------------------------------------------------------------------------------


def split(fields: Data) -> tuple[Data, Data]:
    """The provider data among the fields of a body, and the other fields."""
    data = {name: value for name, value in fields.items() if canonical(name) is not None}
    return data, {name: value for name, value in fields.items() if name not in data}


def check_data(call: Call, data: Data, at: str = "") -> None:
    """Raises a 400 `ApiError` for provider data that cannot be used; ``at`` is their place in the body."""
    try:
        found = provider_data(data)
    except BadData as error:
        path = f"{at}.{error.path}" if at else error.path
        code = "unknown_parameter" if error.expected.startswith("no such field") else "invalid_value"
        raise bad_request(f"Invalid '{path}': expected {error.expected}.", path, code) from None
    if (path := masked_path(data, at)) is not None:
        raise still_masked(path)
    if found.base_url is not None:
        try:
            hosts.check(found.base_url, hosts.trusted_from_env(os.environ.get("TRUSTED_CUSTOM_HOSTS", "")))
        except ApiError as error:
            error.param = f"{at}.custom_host" if at else "customHost"
            raise


def check_secret(provider: str, key: str, data: Data, param: str = "key") -> None:
    """A vendor that needs a key has to get one, or what stands in its place. Raises a 400 `ApiError`."""
    vendor = CATALOGUE.get(provider)
    if key or vendor is None or vendor.auth == "optional":
        return
    names = {canonical(name) or name for name in data}
    if not any(name.startswith(_IN_PLACE_OF_A_KEY) for name in names):
        raise missing(param)


def known_provider(call: Call, name: str, param: str) -> None:
    """Raises a 400 `ApiError` unless ``name`` is a vendor of the catalogue or a provider of the settings."""
    if name not in CATALOGUE and name not in call.settings.providers:
        raise not_one_of(param, name, sorted({*CATALOGUE, *call.settings.providers}))


# --- what is shown ---------------------------------------------------------------------------------------------------


def _common(call: Call, row: Account, *, declared: bool) -> admin.Shown:
    about = row.about
    shown: admin.Shown = {
        "id": row.id,
        "slug": row.slug,
        "name": row.name,
        "note": about.note,
        "rate_limits": admin.shown_rates(about.limits.rate_limits),
        "reset_usage": None,
        "workspace_id": admin.workspace_id(call.workspace),
        "organisation_id": admin.ORGANISATION,
        "read_only": declared,
    }
    if about.limits.usage_limits is not None:
        shown["usage_limits"] = admin.shown_usage(about.limits.usage_limits)
    if about.expires_at is not None:
        shown["expires_at"] = admin.moment(about.expires_at)
    if not declared:
        shown["created_at"] = admin.moment(row.created_at)
        shown["last_updated_at"] = admin.moment(row.updated_at)
    if row.integration is not None:
        shown["integration_id"] = row.integration
    return shown


def _as_virtual_key(call: Call, row: Account, *, declared: bool) -> admin.Shown:
    config = cast(Data, hidden(row.data))
    if row.base_url is not None:
        config["customHost"] = row.base_url
    shown = _common(call, row, declared=declared)
    shown |= {
        "status": "exhausted" if _expired(row) else "active",
        "provider": row.provider,
        "model_config": config,
        "secret_mappings": [],
        "object": "virtual-key",
    }
    if row.secret:
        shown["masked_key"] = masked(row.secret)
    return shown


def _as_provider(call: Call, row: Account, *, declared: bool) -> admin.Shown:
    shown = _common(call, row, declared=declared)
    shown |= {"status": "expired" if _expired(row) else "active", "ai_provider_id": row.provider, "object": "provider"}
    return shown


def _expired(row: Account) -> bool:
    return row.about.expires_at is not None and clock.now() >= row.about.expires_at


# --- reading ---------------------------------------------------------------------------------------------------------


def _declared(call: Call, *, secrets: bool = True) -> dict[str, Account]:
    """The virtual keys of the settings file that the workspace has, without the keys that their providers lend them."""
    found: dict[str, Account] = {}
    for slug, declared in call.settings.virtual_keys.items():
        if declared.workspace == call.workspace:
            row = declared_key(declared, call.settings)
            own = declared.api_key.reveal() if secrets else ""
            found[slug] = msgspec.structs.replace(row, secret=own, data=declared.options.reveal())
    return found


def _operators(call: Call) -> list[Account]:
    """The providers of the settings file, which every workspace may name with ``@``."""
    return [
        Account(
            workspace=call.workspace,
            slug=name,
            provider=provider.vendor,
            id=stable_id("provider", name),
            name=name,
            integration=name,
        )
        for name, provider in call.settings.providers.items()
    ]


KEYS = Resource("virtual key", "virtual_keys", _declared, lambda call: call.engine.store.virtual_keys)


async def _all(call: Call) -> list[tuple[Account, bool]]:
    return await KEYS.all(call, await call.engine.store.virtual_keys.list(call.workspace, secrets=True))


async def page_virtual_keys(call: Call) -> Answer:
    """``GET /virtual-keys``."""
    rows = [_as_virtual_key(call, row, declared=declared) for row, declared in await _all(call)]
    return admin.listing(call, rows, _VIRTUALKEYS)


async def page_providers(call: Call) -> Answer:
    """``GET /providers``: the virtual keys, and the providers of the settings file."""
    rows = [_as_provider(call, row, declared=declared) for row, declared in await _all(call)]
    rows += [_as_provider(call, row, declared=True) for row in _operators(call)]
    return admin.listing(call, rows, _PROVIDERS)


async def get_virtual_key(call: Call) -> Answer:
    """``GET /virtual-keys/{slug}``."""
    row, declared = await KEYS.find(call)
    return admin.answer(_as_virtual_key(call, row, declared=declared))


async def get_provider(call: Call) -> Answer:
    """``GET /providers/{slug}``."""
    try:
        row, declared = await KEYS.find(call, "provider")
    except ApiError:
        row = next((row for row in _operators(call) if call.path["slug"] in (row.slug, row.id)), None)
        if row is None:
            raise
        declared = True
    return admin.answer(_as_provider(call, row, declared=declared))


# --- writing ---------------------------------------------------------------------------------------------------------


def _check_free(call: Call, slug: str, param: str) -> None:
    """A slug that the settings file has already would never be reached. Raises a 400 `ApiError`."""
    if slug in _declared(call, secrets=False) or slug in call.settings.providers:
        raise admin.taken("a provider of the settings file", slug, param)


async def add(call: Call, account: Account, param: str = "slug") -> Account:
    """Store a new row. Raises a 400 `ApiError` when its slug is taken."""
    _check_free(call, account.slug, param)
    made = await call.engine.store.virtual_keys.add(account)
    if made is None:
        raise admin.taken("a provider or virtual key", account.slug, param)
    return made


async def create_virtual_key(call: Call) -> Answer:
    """``POST /virtual-keys``."""
    data, rest = split(admin.body(call, Data))
    request = _converted(rest, CreateVirtualKey)
    admin.check_workspace(call, request.workspace_id)
    admin.no_mappings(request.secret_mappings)
    known_provider(call, request.provider, "provider")
    check_data(call, data)
    check_secret(request.provider, request.key or "", data)
    if request.key is not None and masked_path({"key": request.key}):
        raise still_masked("key")
    about = About(
        note=request.note,
        limits=admin.limits(KeyLimits(), request),
        expires_at=admin.timestamp_of(request.expires_at, "expires_at", future=True),
    )
    made = await add(
        call,
        Account(
            workspace=call.workspace,
            slug=admin.new_slug(request.name),
            provider=request.provider,
            secret=(request.key or "").strip(),
            name=request.name,
            data=data,
            about=about,
        ),
    )
    return admin.enveloped({"id": made.id, "slug": made.slug, "object": "virtual-key"})


def _converted(fields: Data, type: type[_T]) -> _T:
    """``fields`` as ``type``, with the refusals of any other body."""
    return decode(msgspec.json.encode(fields), type)


async def create_provider(call: Call) -> Answer:
    """``POST /providers``."""
    request = admin.body(call, CreateProvider)
    admin.check_workspace(call, request.workspace_id)
    provider, slug = await _integration(call, request.integration_id)
    made = await add(
        call,
        Account(
            workspace=call.workspace,
            slug=request.slug or admin.new_slug(request.name),
            provider=provider,
            integration=slug,
            name=request.name,
            about=About(
                note=request.note,
                limits=admin.limits(KeyLimits(), request),
                expires_at=admin.timestamp_of(request.expires_at, "expires_at", future=True),
            ),
        ),
    )
    return admin.answer({"id": made.id, "slug": made.slug, "object": "provider"})


async def _integration(call: Call, key: str) -> tuple[str, str]:
    """The provider and slug of the integration that ``integration_id`` names. Raises a 400 `ApiError`."""
    for name in call.settings.providers:
        if key in (name, stable_id("integration", name)):
            return name, name  # `Saved.virtual_key` takes the settings' key for it
    found = await call.engine.store.integrations.find(call.workspace, key)
    if found is None:
        raise bad_request(
            f"Invalid 'integration_id': there is no integration '{key[:100]}' in this workspace.",
            "integration_id",
            "invalid_value",
        )
    return found.provider, found.slug


async def update_virtual_key(call: Call) -> Answer:
    """``PUT /virtual-keys/{slug}``."""
    row = await KEYS.own(call)
    data, rest = split(admin.body(call, Data))
    request = _converted(rest, UpdateVirtualKey)
    admin.check_slug(request.slug, row.slug)
    admin.no_mappings(request.secret_mappings)
    if row.integration is not None and (request.key is not UNSET or data):
        param = "key" if request.key is not UNSET else next(iter(data))
        raise admin.unsupported(param, f"The key is that of the integration '{row.integration}': change it there.")
    key = request.key

    def change(before: Account) -> Account:
        given = cast(Data, unhidden(data, before.data))
        merged = {name: value for name, value in {**before.data, **given}.items() if value is not None}
        check_data(call, merged)
        secret = before.secret
        if key is not UNSET and not (secret and key == masked(secret)):
            if masked_path({"key": key}):
                raise still_masked("key")
            secret = key.strip()
        if key is not UNSET:
            check_secret(before.provider, secret, merged)
        return msgspec.structs.replace(before, data=merged, secret=secret)

    await _change(call, row, request, change)
    return admin.enveloped({"id": row.id, "slug": row.slug, "object": "virtual-key"})


async def update_provider(call: Call) -> Answer:
    """``PUT /providers/{slug}``."""
    row = await _own_provider(call)
    request = admin.body(call, UpdateProvider)
    admin.check_slug(request.slug, row.slug)
    await _change(call, row, request, lambda before: before)
    return admin.answer({"id": row.id, "slug": row.slug, "object": "provider"})


async def _own_provider(call: Call) -> Account:
    key = call.path["slug"]
    try:
        return await KEYS.own(call, "provider")
    except ApiError:
        if any(key in (row.slug, row.id) for row in _operators(call)):
            raise admin.read_only("provider", "providers", key) from None
        raise


async def _change(call: Call, row: Account, request: UpdateVirtualKey | UpdateProvider, further: _Change) -> None:
    """What both routes can change, and ``further``."""
    changes: dict[str, Any] = {}
    if request.note is not UNSET:
        changes["note"] = request.note
    if request.expires_at is not UNSET:
        changes["expires_at"] = admin.timestamp_of(request.expires_at, "expires_at", future=True)
    if request.reset_usage:
        changes["usage_since"] = clock.timestamp()
    name = request.name

    def change(before: Account) -> Account:
        after: Account = further(before)
        about = msgspec.structs.replace(after.about, limits=admin.limits(after.about.limits, request), **changes)
        return msgspec.structs.replace(after, about=about, name=before.name if name is UNSET else name)

    if await call.engine.store.virtual_keys.change(call.workspace, row.slug, change) is None:
        raise admin.unknown("virtual key", row.slug)


async def delete_provider(call: Call) -> Answer:
    """``DELETE /providers/{slug}``."""
    await _own_provider(call)
    return await KEYS.delete(call)
