"""The commands on what is stored under a slug: virtual keys, integrations, configs and guardrails.

They write to the database directly; a server that runs on it notices within a second. What the settings file declares
is not theirs to change, and is shown by the admin routes and `loomgate doctor`.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loomgate.cli.talk import Command, Parser, ask_secret, day, fail, in_loop, load, say, table
from loomgate.errors import SettingError

if TYPE_CHECKING:
    from loomgate.settings import Settings
    from loomgate.store import Store
    from loomgate.store.configs import Documents

_Add = Callable[..., Parser]


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

    async def create(settings: "Settings") -> int:
        from loomgate.store import open_store
        from loomgate.store.accounts import About, Account

        async with open_store(settings) as store:
            provider: str = options.provider or options.integration
            integration: str | None = options.integration
            if integration is not None and integration not in settings.providers:
                found = await store.integrations.find(options.workspace, integration)
                if found is None:
                    return fail(f"no integration {integration} in workspace {options.workspace}", 1)
                provider, integration = found.provider, found.slug
            made = await store.virtual_keys.add(
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
            return fail(f"workspace {options.workspace} has a virtual key {options.slug} already; delete it first", 1)
        say(f"clients of workspace {options.workspace} name it as x-portkey-virtual-key: {options.slug}")
        return 0

    return in_loop(create, settings)


def _virtual_keys_list(options: argparse.Namespace) -> int:
    async def show(settings: "Settings") -> int:
        from loomgate.store import open_store

        async with open_store(settings) as store:
            rows = await store.virtual_keys.list(options.workspace)
        table(
            ("slug", "workspace", "provider", "integration", "base url"),
            [(row.slug, row.workspace, row.provider, row.integration or "", row.base_url or "") for row in rows],
            "no virtual keys in the store (those of the settings file are shown by `loomgate doctor`)",
        )
        return 0

    return in_loop(show, load(options))


def _virtual_keys_delete(options: argparse.Namespace) -> int:
    async def delete(settings: "Settings") -> int:
        from loomgate.store import open_store

        async with open_store(settings) as store:
            if not await store.virtual_keys.delete(workspace=options.workspace, slug=options.slug):
                return fail(f"no virtual key {options.slug} in workspace {options.workspace}", 1)
        say(f"deleted {options.slug}")
        return 0

    return in_loop(delete, load(options))


def _integrations_create(options: argparse.Namespace) -> int:
    settings = load(options)
    data = _checked_account(options, settings)
    if options.provider in settings.providers and options.provider == options.slug:
        raise SettingError("SLUG", "another one: the settings file has a provider of this name", options.slug)
    secret = _secret_of(options)

    async def create(settings: "Settings") -> int:
        from loomgate.store import open_store
        from loomgate.store.accounts import About, Account

        async with open_store(settings) as store:
            made = await store.integrations.add(
                Account(
                    workspace=options.workspace,
                    slug=options.slug,
                    provider=options.provider,
                    secret=secret,
                    base_url=options.base_url,
                    data=data,
                    about=About(trusted=True),
                )
            )
        if made is None:
            return fail(f"workspace {options.workspace} has an integration {options.slug} already", 1)
        say(f"`loomgate virtual-keys create SLUG --integration {options.slug}` makes virtual keys from it")
        return 0

    return in_loop(create, settings)


def _integrations_list(options: argparse.Namespace) -> int:
    async def show(settings: "Settings") -> int:
        from loomgate.store import open_store

        async with open_store(settings) as store:
            rows = await store.integrations.list(options.workspace)
        table(
            ("slug", "workspace", "provider", "base url"),
            [(row.slug, row.workspace, row.provider, row.base_url or "") for row in rows],
            "no integrations in the store",
        )
        return 0

    return in_loop(show, load(options))


def _integrations_delete(options: argparse.Namespace) -> int:
    async def delete(settings: "Settings") -> int:
        from loomgate.store import open_store

        async with open_store(settings) as store:
            users = await store.integrations.users(options.workspace, options.slug)
            if users:
                return fail(f"{options.slug} is used by the virtual keys {', '.join(users)}: delete them first", 1)
            if not await store.integrations.delete(workspace=options.workspace, slug=options.slug):
                return fail(f"no integration {options.slug} in workspace {options.workspace}", 1)
        say(f"deleted {options.slug}")
        return 0

    return in_loop(delete, load(options))


# --- configs and guardrails ------------------------------------------------------------------------------------------


def _documents(store: "Store", kind: str) -> "Documents":
    return store.configs if kind == "config" else store.guardrails


async def _checked_body(store: "Store", settings: "Settings", options: argparse.Namespace) -> dict[str, Any]:
    """The body in the file that the command names. Raises `ApiError` for one that cannot be saved."""
    import msgspec

    from loomgate.gateway.saved import Guardrail, Saved, check_guardrail, guardrail_body

    body = _json(options.file)
    if options.kind == "config":
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

    async def put(settings: "Settings") -> int:
        import msgspec

        from loomgate.store import open_store
        from loomgate.store.configs import Document

        default = options.kind == "config" and options.default
        async with open_store(settings) as store:
            body = await _checked_body(store, settings, options)
            documents = _documents(store, options.kind)
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
        say(f"{options.kind} {made.slug} of workspace {made.workspace}, version {made.version_id}")
        return 0

    return in_loop(put, load(options))


def _documents_list(options: argparse.Namespace) -> int:
    async def show(settings: "Settings") -> int:
        from loomgate.store import open_store

        async with open_store(settings) as store:
            rows = await _documents(store, options.kind).list(options.workspace)
        table(
            ("slug", "workspace", "name", "status", "changed", "version"),
            [
                (
                    row.slug,
                    row.workspace,
                    row.name,
                    "default" if row.is_default else row.status,
                    day(row.updated_at),
                    row.version_id,
                )
                for row in rows
            ],
            f"no {options.kind}s in the store",
        )
        return 0

    return in_loop(show, load(options))


def _documents_show(options: argparse.Namespace) -> int:
    async def show(settings: "Settings") -> int:
        import msgspec

        from loomgate.settings.provider_data import hidden
        from loomgate.store import open_store

        async with open_store(settings) as store:
            documents = _documents(store, options.kind)
            found = await documents.find(options.workspace, options.slug)
            if found is None:
                return fail(f"no {options.kind} {options.slug} in workspace {options.workspace}", 1)
            bodies = {version.id: version.body for version in await documents.versions(found)}
        wanted = options.version or found.version_id
        if wanted not in bodies:
            return fail(f"{options.slug} has no version {wanted}; `loomgate {options.kind}s versions` lists them", 1)
        print(msgspec.json.format(msgspec.json.encode(hidden(bodies[wanted])), indent=2).decode())
        return 0

    return in_loop(show, load(options))


def _documents_versions(options: argparse.Namespace) -> int:
    async def show(settings: "Settings") -> int:
        from loomgate.store import open_store

        async with open_store(settings) as store:
            documents = _documents(store, options.kind)
            found = await documents.find(options.workspace, options.slug)
            if found is None:
                return fail(f"no {options.kind} {options.slug} in workspace {options.workspace}", 1)
            versions = await documents.versions(found)
        table(
            ("version", "name", "made", "by"),
            [(row.id, row.name, day(row.created_at), row.created_by or "the operator") for row in versions],
            "no versions",
        )
        return 0

    return in_loop(show, load(options))


def _documents_restore(options: argparse.Namespace) -> int:
    async def restore(settings: "Settings") -> int:
        import msgspec

        from loomgate.gateway.saved import Saved
        from loomgate.store import open_store

        async with open_store(settings) as store:
            documents = _documents(store, options.kind)
            found = await documents.find(options.workspace, options.slug)
            if found is None:
                return fail(f"no {options.kind} {options.slug} in workspace {options.workspace}", 1)
            bodies = {version.id: version.body for version in await documents.versions(found)}
            body = bodies.get(options.version)
            if body is None:
                return fail(f"{options.slug} has no version {options.version}", 1)
            if options.kind == "config":
                await Saved(store, settings).check_config(options.workspace, body)
            made = await documents.change(
                options.workspace, found.id, lambda before: msgspec.structs.replace(before, body=body)
            )
        if made is None:
            return fail(f"somebody else deleted {options.slug} at this moment", 1)
        say(f"{options.slug} is again as in {options.version}, now version {made.version_id}")
        return 0

    return in_loop(restore, load(options))


def _documents_delete(options: argparse.Namespace) -> int:
    async def delete(settings: "Settings") -> int:
        from loomgate.store import open_store

        async with open_store(settings) as store:
            if not await _documents(store, options.kind).delete(options.workspace, options.slug):
                return fail(f"no {options.kind} {options.slug} in workspace {options.workspace}", 1)
        say(f"deleted {options.slug}")
        return 0

    return in_loop(delete, load(options))


# --- words -----------------------------------------------------------------------------------------------------------


def add_words(add: _Add, place: Parser) -> None:
    """Adds these commands to the parser whose ``add_parser`` is given; ``place`` has the options that all have."""

    def word(make: _Add, name: str, help: str, run: Command) -> Parser:
        made = make(name, help=help, description=help, parents=[place])
        made.set_defaults(command=run)
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
    verbs = keys.add_subparsers(required=True, metavar="VERB")
    create = word(verbs.add_parser, "create", "Store a provider's key, sealed; asks for it.", _virtual_keys_create)
    account(create, "what clients send as x-portkey-virtual-key")
    source = create.add_mutually_exclusive_group(required=True)
    source.add_argument("--provider", metavar="P", help="declared provider or vendor it is a key of")
    source.add_argument("--integration", metavar="I", help="integration or declared provider whose key it uses")
    show = word(verbs.add_parser, "list", "Show the stored virtual keys, without their secrets.", _virtual_keys_list)
    show.add_argument("--workspace", metavar="W", help="only this workspace")
    of_workspace(word(verbs.add_parser, "delete", "Delete a stored virtual key.", _virtual_keys_delete))

    integrations = add("integrations", help="accounts with vendors that virtual keys share: create, list, delete")
    verbs = integrations.add_subparsers(required=True, metavar="VERB")
    create = word(verbs.add_parser, "create", "Store an account with a vendor, sealed.", _integrations_create)
    account(create, "its name in `virtual-keys create --integration`")
    create.add_argument("--provider", required=True, metavar="P", help="vendor it is an account with")
    show = word(verbs.add_parser, "list", "Show the stored integrations, without their secrets.", _integrations_list)
    show.add_argument("--workspace", metavar="W", help="only this workspace")
    of_workspace(word(verbs.add_parser, "delete", "Delete an integration that nothing uses.", _integrations_delete))

    for kind in ("config", "guardrail"):
        group = add(f"{kind}s", help=f"saved {kind}s: put, list, show, versions, restore, delete")
        verbs = group.add_subparsers(required=True, metavar="VERB")

        def verb(name: str, help: str, run: Command, *, kind: str = kind, verbs: Any = verbs) -> Parser:
            made = word(verbs.add_parser, name, help, run)
            made.set_defaults(kind=kind)
            return made

        put = verb("put", f"Save a {kind}, or a new version of it.", _documents_put)
        of_workspace(put)
        put.add_argument("file", type=Path, metavar="FILE", help="the body in JSON; -: standard input")
        put.add_argument("--name", metavar="N", help="what it is for")
        if kind == "config":
            put.add_argument("--default", action="store_true", help="for requests that name no way themselves")
        show = verb("list", f"Show the saved {kind}s.", _documents_list)
        show.add_argument("--workspace", metavar="W", help="only this workspace")
        show = verb("show", f"Print a {kind}, with its secrets masked.", _documents_show)
        of_workspace(show)
        show.add_argument("--version", metavar="V", help="as it was in this version")
        of_workspace(verb("versions", f"Show the versions of a {kind}.", _documents_versions))
        restore = verb("restore", f"Make a {kind} again what it was.", _documents_restore)
        of_workspace(restore)
        restore.add_argument("version", metavar="VERSION", help="as `versions` shows it")
        of_workspace(verb("delete", f"Delete a {kind} and its versions.", _documents_delete))
