"""Handlers of ``/configs`` and ``/guardrails``: saved bodies with versions (GATEWAY AUTH-02 d, GR-03)."""

from collections.abc import Callable
from typing import Any, cast

import msgspec
from msgspec import UNSET

from loomgate.errors import bad_request
from loomgate.gateway.saved import check_guardrail, declared_config, declared_guardrail, guardrail_body
from loomgate.http import admin
from loomgate.http.call import Answer, Call
from loomgate.http.resource import Resource
from loomgate.settings.provider_data import hidden, unhidden
from loomgate.store.configs import Document, Documents
from loomgate.wire.admin import Actions, Check, CreateConfig, CreateGuardrail, UpdateConfig, UpdateGuardrail

Data = dict[str, Any]

_GUARDRAILS = 100  # rows of a page, if the client does not say


# --- what both have --------------------------------------------------------------------------------------------------


def _row(call: Call, document: Document, *, declared: bool) -> admin.Shown:
    shown: admin.Shown = {
        "id": document.id,
        "name": document.name,
        "slug": document.slug,
        "organisation_id": admin.ORGANISATION,
        "workspace_id": admin.workspace_id(call.workspace),
        "status": document.status,
        "owner_id": admin.holder_id(document.created_by),
        "updated_by": admin.holder_id(document.updated_by),
        "read_only": declared,
    }
    if not declared:
        shown["created_at"] = admin.moment(document.created_at)
        shown["last_updated_at"] = admin.moment(document.updated_at)
    return shown


def _written(document: Document) -> admin.Shown:
    return {"id": document.id, "slug": document.slug, "version_id": document.version_id}


async def _changed(
    call: Call, documents: Documents, document: Document, change: Callable[[Document], Document]
) -> admin.Shown:
    """What is told of ``document`` after ``change``. Raises a 404 `ApiError` when somebody deleted it meanwhile."""
    made = await documents.change(call.workspace, document.id, change, call.caller.key_id)
    if made is None:
        raise admin.unknown("config or guardrail", document.slug)
    return _written(made)


# --- configs: what is shown ------------------------------------------------------------------------------------------


def _config_row(call: Call, document: Document, *, declared: bool) -> admin.Shown:
    return {**_row(call, document, declared=declared), "is_default": int(document.is_default), "object": "config"}


CONFIGS = Resource(
    "config",
    "configs",
    lambda call: {
        slug: declared_config(declared)
        for slug, declared in call.settings.configs.items()
        if declared.workspace == call.workspace
    },
    lambda call: call.engine.store.configs,
)


# --- configs: handlers -----------------------------------------------------------------------------------------------


async def page_configs(call: Call) -> Answer:
    """``GET /configs``."""
    rows = [_config_row(call, document, declared=declared) for document, declared in await CONFIGS.all(call)]
    # The description knows no pages here; who asks for one gets it.
    return admin.listing(call, rows, max(1, len(rows)), success=True)


async def create_config(call: Call) -> Answer:
    """``POST /configs``."""
    request = admin.body(call, CreateConfig)
    admin.check_workspace(call, request.workspace_id)
    await admin.saved(call).check_config(call.workspace, request.config)
    slug = request.slug or admin.new_slug(request.name, "pc-", 6)
    document = Document(
        workspace=call.workspace,
        slug=slug,
        name=request.name,
        body=request.config,
        is_default=bool(_is_default(request.isDefault, request.is_default)),
        created_by=call.caller.key_id,
    )
    return admin.enveloped({**_written(await CONFIGS.add(call, document)), "object": "config"})


def _is_default(described: bool | int | None, sent: bool | int | None) -> bool | None:
    given = described if described is not None else sent
    return None if given is None else bool(given)


async def get_config(call: Call) -> Answer:
    """``GET /configs/{slug}``."""
    document, declared = await CONFIGS.find(call)
    shown = _config_row(call, document, declared=declared)
    shown |= {
        "config": hidden(document.body),
        "format": "json",
        "type": "ORG_CONFIG",
        "version_id": document.version_id,
    }
    return admin.enveloped(shown)


async def update_config(call: Call) -> Answer:
    """``PUT /configs/{slug}``. A masked secret that comes back where it stood is the secret that it stands for."""
    document = await CONFIGS.own(call)
    request = admin.body(call, UpdateConfig)
    admin.check_slug(request.slug, document.slug)
    given = request.config
    if given is not UNSET:
        given = cast(Data, unhidden(given, document.body))
        await admin.saved(call).check_config(call.workspace, given)
    default = _is_default(request.isDefault, request.is_default)
    name, status = request.name, request.status

    def change(before: Document) -> Document:
        return msgspec.structs.replace(
            before,
            name=before.name if name is UNSET else name,
            status=before.status if status is UNSET else status,
            body=before.body if given is UNSET else given,
            is_default=before.is_default if default is None else default,
        )

    return admin.enveloped({**await _changed(call, call.engine.store.configs, document, change), "object": "config"})


async def page_versions(call: Call) -> Answer:
    """``GET /configs/{slug}/versions``, the present one first."""
    document, declared = await CONFIGS.find(call)
    row = _config_row(call, document, declared=declared)
    row |= {"format": "json", "type": "ORG_CONFIG"}
    if declared:
        body = msgspec.json.encode(hidden(document.body)).decode()
        return admin.listing(call, [{**row, "config": body, "version_id": document.version_id}], 100)
    rows = [
        {
            **row,
            "name": version.name,
            "config": msgspec.json.encode(hidden(version.body)).decode(),
            "version_id": version.id,
            "updated_by": admin.holder_id(version.created_by),
            "last_updated_at": admin.moment(version.created_at),
        }
        for version in await call.engine.store.configs.versions(document)
    ]
    return admin.listing(call, rows, 100)


# --- guardrails ------------------------------------------------------------------------------------------------------


def _parts(body: Data) -> tuple[list[Data], Data]:
    """The checks and actions of a body, in the form of the admin routes."""
    checks: list[Data] = [
        {"parameters": {}, "is_enabled": True, **check} for check in cast("list[Data]", body.get("checks") or [])
    ]
    actions = {name: body[name] for name in ("sequential", "on_success", "on_fail") if body.get(name) is not None}
    empty = {"feedback": {"value": 0, "weight": 1, "metadata": ""}}
    return checks, {
        "deny": bool(body.get("deny", False)),
        "async": bool(body.get("async", False)),
        "on_success": _feedback(actions.pop("on_success", None)) or empty,
        "on_fail": _feedback(actions.pop("on_fail", None)) or empty,
        **actions,
    }


def _feedback(action: Data | None) -> Data | None:
    if not action or not action.get("feedback"):
        return None
    return {**action, "feedback": {"weight": 1, "metadata": "", **action["feedback"]}}


def _guardrail_row(call: Call, document: Document, *, declared: bool) -> admin.Shown:
    shown = _row(call, document, declared=declared)
    # The description requires the times; the file's own have none that could be told.
    shown.setdefault("created_at", admin.moment(0))
    shown.setdefault("last_updated_at", admin.moment(0))
    return shown


GUARDRAILS = Resource(
    "guardrail",
    "guardrails",
    lambda call: {
        slug: declared_guardrail(declared)
        for slug, declared in call.settings.guardrails.items()
        if declared.workspace == call.workspace
    },
    lambda call: call.engine.store.guardrails,
    param="guardrail_id",
)


async def page_guardrails(call: Call) -> Answer:
    """``GET /guardrails``."""
    rows = [_guardrail_row(call, document, declared=declared) for document, declared in await GUARDRAILS.all(call)]
    return admin.listing(call, rows, _GUARDRAILS)


async def create_guardrail(call: Call) -> Answer:
    """``POST /guardrails``."""
    request = admin.body(call, CreateGuardrail)
    admin.check_workspace(call, request.workspace_id)
    _check_organisation(request.organisation_id)
    slug = request.slug or admin.new_slug(request.name, "guard_", 20)
    body = guardrail_body(slug, request.checks, request.actions)
    check_guardrail(body)
    document = Document(
        workspace=call.workspace, slug=slug, name=request.name, body=body, created_by=call.caller.key_id
    )
    return admin.answer(_written(await GUARDRAILS.add(call, document)))


def _check_organisation(given: str | None) -> None:
    if given and given != admin.ORGANISATION:
        raise bad_request(
            f"Invalid 'organisation_id': expected '{admin.ORGANISATION}', this server.",
            "organisation_id",
            "invalid_value",
        )


async def get_guardrail(call: Call) -> Answer:
    """``GET /guardrails/{guardrail_id}``."""
    document, declared = await GUARDRAILS.find(call)
    checks, actions = _parts(cast(Data, hidden(document.body)))
    return admin.answer({**_guardrail_row(call, document, declared=declared), "checks": checks, "actions": actions})


async def update_guardrail(call: Call) -> Answer:
    """``PUT /guardrails/{guardrail_id}``."""
    document = await GUARDRAILS.own(call)
    request = admin.body(call, UpdateGuardrail)
    name = request.name

    def change(before: Document) -> Document:
        checks, actions = _parts(before.body)
        body = guardrail_body(
            before.slug,
            msgspec.convert(checks, list[Check]) if request.checks is UNSET else request.checks,
            msgspec.convert(actions, Actions) if request.actions is UNSET else request.actions,
        )
        body = cast(Data, unhidden(body, before.body))
        check_guardrail(body)
        return msgspec.structs.replace(before, name=before.name if name is UNSET else name, body=body)

    return admin.answer(await _changed(call, call.engine.store.guardrails, document, change))
