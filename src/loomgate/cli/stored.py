"""The commands on what is stored under a slug: virtual keys, integrations, configs and guardrails.

They write to the database directly; a server that runs on it notices within a second. What the settings file declares
is not theirs to change, and is shown by the admin routes and `loomgate doctor`.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from loomgate.cli.talk import Command, Parser, ask_secret, day, fail, in_store, load, on_store, say, table
from loomgate.errors import SettingError

if TYPE_CHECKING:
    from loomgate.settings import Settings
    from loomgate.store import Store
    from loomgate.store.accounts import Accounts
    from loomgate.store.configs import Document, Documents, Version

_Add = Callable[..., Parser]


class _Kind(NamedTuple):
    """What is stored under slugs: what one is called, which verbs of the store are for it, what its list shows, and
    what is said when the list is empty or one was made."""

    name: str
    verbs: str
    columns: tuple[str, ...]
    empty: str = ""
    made: str = ""


_DOCUMENT = ("slug", "workspace", "name", "status", "changed", "version")
_VIRTUAL_KEY = _Kind(
    "virtual key",
    "virtual_keys",
    ("slug", "workspace", "provider", "integration", "base url"),
    " (those of the settings file are shown by `loomgate doctor`)",
    "clients of workspace {workspace} name it as x-portkey-virtual-key: {slug}",
)
_INTEGRATION = _Kind(
    "integration",
    "integrations",
    ("slug", "workspace", "provider", "base url"),
    made="`loomgate virtual-keys create SLUG --integration {slug}` makes virtual keys from it",
)
_CONFIG = _Kind("config", "configs", _DOCUMENT)
_GUARDRAIL = _Kind("guardrail", "guardrails", _DOCUMENT)


def _verbs(store: "Store", options: argparse.Namespace) -> Any:
    return getattr(store, options.kind.verbs)


def _cell(row: Any, column: str) -> str:
    match column:
        case "status":
            return "default" if row.is_default else row.status
        case "changed":
            return day(row.updated_at)
        case "version":
            return row.version_id
        case _:
            return getattr(row, column.replace(" ", "_")) or ""


@on_store
async def _list(store: "Store", options: argparse.Namespace, _: "Settings") -> int:
    kind: _Kind = options.kind
    rows: list[Any] = await _verbs(store, options).list(options.workspace)
    cells = [[_cell(row, column) for column in kind.columns] for row in rows]
    table(kind.columns, cells, f"no {kind.name}s in the store{kind.empty}")
    return 0


@on_store
async def _delete(store: "Store", options: argparse.Namespace, _: "Settings") -> int:
    if options.kind is _INTEGRATION and (users := await store.integrations.users(options.workspace, options.slug)):
        return fail(f"{options.slug} is used by the virtual keys {', '.join(users)}: delete them first", 1)
    if not await _verbs(store, options).delete(options.workspace, options.slug):
        return _none(options)
    say(f"deleted {options.slug}")
    return 0


def _none(options: argparse.Namespace) -> int:
    return fail(f"no {options.kind.name} {options.slug} in workspace {options.workspace}", 1)


# --- virtual keys and integrations -----------------------------------------------------------------------------------


def _checked_account(options: argparse.Namespace, settings: "Settings") -> dict[str, Any]:
    """Checks the options that say where an account leads; gives its provider data. Raises `SettingError`."""
    from loomgate.settings import check_name, check_url

    check_name("SLUG", options.slug)
    check_name("--workspace", options.workspace)
    check_url("--base-url", options.base_url or "", settings)
    if options.provider is not None and options.provider not in settings.providers:
        from loomgate.providers.catalogue import CATALOGUE

        if options.provider not in CATALOGUE:
            known = ", ".join(sorted({*settings.providers, *CATALOGUE}))
            raise SettingError("--provider", f"one of {known}", repr(options.provider))
    return _provider_data(options)


def _provider_data(options: argparse.Namespace) -> dict[str, Any]:
    from loomgate.settings.provider_data import is_secret
    from loomgate.wire.admin import BadData, provider_data

    data: dict[str, Any] = _json(options.options_file) if options.options_file is not None else {}
    for text in options.option:
        name, separator, value = text.partition("=")
        if not separator:
            raise SettingError("--option", "NAME=VALUE", repr(text))
        if is_secret(name):
            raise SettingError("--option", f"--options-file for {name}, since every user of the machine sees this")
        data[name] = value
    try:
        provider_data(data)
    except BadData as error:
        raise SettingError(f"provider data, {error.path}", error.expected) from None
    return data


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``, or on standard input for ``-``."""
    import msgspec

    try:
        text = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return msgspec.json.decode(text, type=dict[str, Any])
    except OSError as error:
        raise SettingError("FILE", "a file that can be read", f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingError("FILE", "an object in JSON", f"{path}: {error}") from None


def _secret_of(options: argparse.Namespace) -> str:
    """The key; none is asked for if a file has what stands in its place."""
    if options.options_file is not None and not options.api_key_stdin:
        return ""
    return ask_secret(f"API key of {options.provider}", from_stdin=options.api_key_stdin)


def _virtual_keys_create(options: argparse.Namespace) -> int:
    settings = load(options)
    data = _checked_account(options, settings)
    if options.integration is not None and (data or options.base_url or options.api_key_stdin):
        raise SettingError("--integration", "no key, address or provider data beside it, since it has its own")
    secret = "" if options.integration is not None else _secret_of(options)

    async def create(store: "Store", options: argparse.Namespace, settings: "Settings") -> int:
        provider: str = options.provider or options.integration
        integration: str | None = options.integration
        if integration is not None and integration not in settings.providers:
            found = await store.integrations.find(options.workspace, integration)
            if found is None:
                return fail(f"no integration {integration} in workspace {options.workspace}", 1)
            provider, integration = found.provider, found.slug
        return await _added(options, store.virtual_keys, provider, secret, data, integration)

    return in_store(create, options, settings)


def _integrations_create(options: argparse.Namespace) -> int:
    settings = load(options)
    data = _checked_account(options, settings)
    if options.provider in settings.providers and options.provider == options.slug:
        raise SettingError("SLUG", "another one: the settings file has a provider of this name", options.slug)
    secret = _secret_of(options)

    async def create(store: "Store", options: argparse.Namespace, _: "Settings") -> int:
        return await _added(options, store.integrations, options.provider, secret, data)

    return in_store(create, options, settings)


async def _added(
    options: argparse.Namespace,
    accounts: "Accounts",
    provider: str,
    secret: str,
    data: dict[str, Any],
    integration: str | None = None,
) -> int:
    from loomgate.store.accounts import About, Account

    made = await accounts.add(
        Account(
            workspace=options.workspace,
            slug=options.slug,
            provider=provider,
            secret=secret,
            base_url=options.base_url,
            integration=integration,
            data=data,
            about=About(trusted=True),
        )
    )
    if made is None:
        one = "an integration" if options.kind is _INTEGRATION else "a virtual key"
        return fail(f"workspace {options.workspace} has {one} {options.slug} already; delete it first", 1)
    say(options.kind.made.format(workspace=options.workspace, slug=options.slug))
    return 0


# --- configs and guardrails ------------------------------------------------------------------------------------------


async def _checked_body(store: "Store", settings: "Settings", options: argparse.Namespace) -> dict[str, Any]:
    """The body in the file that the command names. Raises `ApiError` for one that cannot be saved."""
    import msgspec

    from loomgate.gateway.saved import Guardrail, Saved, check_guardrail, guardrail_body

    body = _json(options.file)
    if options.kind is _CONFIG:
        await Saved(store, settings).check_config(options.workspace, body)
        return body
    try:
        made = msgspec.convert(body, Guardrail)
    except msgspec.ValidationError as error:
        raise SettingError("FILE", "a guardrail", str(error)) from None
    body = guardrail_body(options.slug, made.checks, made)
    check_guardrail(body)
    return body


def _documents_put(options: argparse.Namespace) -> int:
    from loomgate.settings import check_name

    check_name("SLUG", options.slug)
    check_name("--workspace", options.workspace)
    return in_store(_put, options, load(options))


async def _put(store: "Store", options: argparse.Namespace, settings: "Settings") -> int:
    import msgspec

    from loomgate.store.configs import Document

    default = options.kind is _CONFIG and options.default
    body = await _checked_body(store, settings, options)
    documents: Documents = _verbs(store, options)
    made = await documents.change(
        options.workspace,
        options.slug,
        lambda before: msgspec.structs.replace(
            before,
            body=body,
            name=options.name or before.name,
            status="active",
            is_default=default or before.is_default,
        ),
    )
    if made is None:
        made = await documents.add(
            Document(
                workspace=options.workspace,
                slug=options.slug,
                name=options.name or options.slug,
                body=body,
                is_default=default,
            )
        )
    if made is None:
        return fail(f"somebody else made {options.slug} at this moment; look at it and try again", 1)
    say(f"{options.kind.name} {made.slug} of workspace {made.workspace}, version {made.version_id}")
    return 0


async def _found(store: "Store", options: argparse.Namespace) -> "tuple[Document, list[Version]] | None":
    """The document that the command names, and its versions."""
    documents: Documents = _verbs(store, options)
    found = await documents.find(options.workspace, options.slug)
    return None if found is None else (found, await documents.versions(found))


@on_store
async def _documents_show(store: "Store", options: argparse.Namespace, _: "Settings") -> int:
    import msgspec

    from loomgate.settings.provider_data import hidden

    if (found := await _found(store, options)) is None:
        return _none(options)
    bodies = {version.id: version.body for version in found[1]}
    wanted = options.version or found[0].version_id
    if wanted not in bodies:
        return fail(f"{options.slug} has no version {wanted}; `loomgate {options.kind.name}s versions` lists them", 1)
    print(msgspec.json.format(msgspec.json.encode(hidden(bodies[wanted])), indent=2).decode())
    return 0


@on_store
async def _documents_versions(store: "Store", options: argparse.Namespace, _: "Settings") -> int:
    if (found := await _found(store, options)) is None:
        return _none(options)
    table(
        ("version", "name", "made", "by"),
        [(row.id, row.name, day(row.created_at), row.created_by or "the operator") for row in found[1]],
        "no versions",
    )
    return 0


@on_store
async def _documents_restore(store: "Store", options: argparse.Namespace, settings: "Settings") -> int:
    import msgspec

    from loomgate.gateway.saved import Saved

    if (found := await _found(store, options)) is None:
        return _none(options)
    body = next((version.body for version in found[1] if version.id == options.version), None)
    if body is None:
        return fail(f"{options.slug} has no version {options.version}", 1)
    if options.kind is _CONFIG:
        await Saved(store, settings).check_config(options.workspace, body)
    documents: Documents = _verbs(store, options)
    made = await documents.change(
        options.workspace, found[0].id, lambda before: msgspec.structs.replace(before, body=body)
    )
    if made is None:
        return fail(f"somebody else deleted {options.slug} at this moment", 1)
    say(f"{options.slug} is again as in {options.version}, now version {made.version_id}")
    return 0


# --- words -----------------------------------------------------------------------------------------------------------


def add_words(add: _Add, place: Parser) -> None:
    """Adds these commands to the parser whose ``add_parser`` is given; ``place`` has the options that all have."""

    def word(make: _Add, kind: _Kind, name: str, help: str, run: Command) -> Parser:
        made = make(name, help=help, description=help, parents=[place])
        made.set_defaults(command=run, kind=kind)
        return made

    def of_workspace(parser: Parser) -> None:
        parser.add_argument("slug", metavar="SLUG")
        parser.add_argument("--workspace", default="default", metavar="W", help="its workspace (default: default)")

    def account(parser: Parser, slug: str) -> None:
        parser.add_argument("slug", metavar="SLUG", help=slug)
        parser.add_argument("--api-key-stdin", action="store_true", help="read the key from standard input")
        parser.add_argument("--base-url", metavar="U", help="where the API begins, if not the provider's own")
        parser.add_argument(
            "--option", action="append", default=[], metavar="NAME=VALUE", help="provider data, such as aws_region"
        )
        parser.add_argument(
            "--options-file",
            type=Path,
            metavar="FILE",
            help="provider data in JSON: for secret ones, and in place of a key",
        )
        parser.add_argument("--workspace", default="default", metavar="W", help="who may use it (default: default)")

    keys = add("virtual-keys", help="stored provider keys: create, list, delete")
    verb = partial(word, keys.add_subparsers(required=True, metavar="VERB").add_parser, _VIRTUAL_KEY)
    create = verb("create", "Store a provider's key, sealed; asks for it.", _virtual_keys_create)
    account(create, "what clients send as x-portkey-virtual-key")
    source = create.add_mutually_exclusive_group(required=True)
    source.add_argument("--provider", metavar="P", help="declared provider or vendor it is a key of")
    source.add_argument("--integration", metavar="I", help="integration or declared provider whose key it uses")
    show = verb("list", "Show the stored virtual keys, without their secrets.", _list)
    show.add_argument("--workspace", metavar="W", help="only this workspace")
    of_workspace(verb("delete", "Delete a stored virtual key.", _delete))

    integrations = add("integrations", help="accounts with vendors that virtual keys share: create, list, delete")
    verb = partial(word, integrations.add_subparsers(required=True, metavar="VERB").add_parser, _INTEGRATION)
    create = verb("create", "Store an account with a vendor, sealed.", _integrations_create)
    account(create, "its name in `virtual-keys create --integration`")
    create.add_argument("--provider", required=True, metavar="P", help="vendor it is an account with")
    show = verb("list", "Show the stored integrations, without their secrets.", _list)
    show.add_argument("--workspace", metavar="W", help="only this workspace")
    of_workspace(verb("delete", "Delete an integration that nothing uses.", _delete))

    for kind in (_CONFIG, _GUARDRAIL):
        group = add(f"{kind.name}s", help=f"saved {kind.name}s: put, list, show, versions, restore, delete")
        verb = partial(word, group.add_subparsers(required=True, metavar="VERB").add_parser, kind)
        put = verb("put", f"Save a {kind.name}, or a new version of it.", _documents_put)
        of_workspace(put)
        put.add_argument("file", type=Path, metavar="FILE", help="the body in JSON; -: standard input")
        put.add_argument("--name", metavar="N", help="what it is for")
        if kind is _CONFIG:
            put.add_argument("--default", action="store_true", help="for requests that name no way themselves")
        show = verb("list", f"Show the saved {kind.name}s.", _list)
        show.add_argument("--workspace", metavar="W", help="only this workspace")
        show = verb("show", f"Print a {kind.name}, with its secrets masked.", _documents_show)
        of_workspace(show)
        show.add_argument("--version", metavar="V", help="as it was in this version")
        of_workspace(verb("versions", f"Show the versions of a {kind.name}.", _documents_versions))
        restore = verb("restore", f"Make a {kind.name} again what it was.", _documents_restore)
        of_workspace(restore)
        restore.add_argument("version", metavar="VERSION", help="as `versions` shows it")
        of_workspace(verb("delete", f"Delete a {kind.name} and its versions.", _delete))
