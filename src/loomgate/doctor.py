"""``loomgate doctor``: looks at an installation from outside and says, in plain words, what is right and what to do.

What must live here: checks that read (settings, files, the store, the providers) and their wording. What must not:
repairs, and anything that leaves a trace: a check that would create a database or a key only says that it is missing.

Every check is a function in one of the tables below and answers with `Finding` values; a check that cannot be
carried out is a finding too.
"""

import asyncio
import os
import re
import shutil
import stat
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple, TextIO
from urllib.parse import urlsplit

from loomgate import __version__
from loomgate.errors import LoomgateError, ProviderError, SettingError
from loomgate.settings import Provider, Settings, find_file, load

State = Literal["ok", "note", "problem"]
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PATIENCE = 5.0  # seconds for a provider's answer
_NO_MODEL = "none"  # where the model is a part of the address
_LONGEST_ANSWER = 64 * 1024
_MIB = 1024 * 1024


class Finding(NamedTuple):
    """One line of the report: what was looked at, how it is, in words, and what to do about it ("" for nothing)."""

    state: State
    what: str
    words: str
    todo: str = ""


def run(given: Mapping[str, object], config: Path | None, *, offline: bool = False) -> int:
    """Prints the report and returns 1 if it holds a problem, else 0.

    Takes the settings ``given`` on the command line, the file of ``--config``, and whether to leave providers uncalled.
    """
    findings = [_python(), _sqlite()]
    try:
        settings = load(given, file=config)
    except SettingError as error:
        findings.append(
            Finding("problem", "Settings", str(error), "the other checks need settings: correct this first")
        )
    else:
        findings.append(_config(config))
        findings += [finding for check in _CHECKS for finding in _careful(check, settings)]
        findings += asyncio.run(_stored(settings))
        findings += asyncio.run(_reached(settings, offline))
    _print(findings, sys.stdout)
    return 1 if any(finding.state == "problem" for finding in findings) else 0


# --- checks of the machine and the settings --------------------------------------------------------------------------


def _python() -> Finding:
    return Finding("ok", "Python", f"{sys.version.split()[0]} at {sys.executable}")


def _sqlite() -> Finding:
    # Asked of the installed package, whose version begins with SQLite's: the library itself is the store's to load.
    try:
        return Finding("ok", "SQLite", f"of apsw {metadata.version('apsw')}")
    except metadata.PackageNotFoundError:
        return Finding("problem", "SQLite", "the package apsw is missing", "install loomgate again")


def _config(config: Path | None) -> Finding:
    path = find_file(file=config)
    if path is None:
        return Finding("ok", "Settings", "no loomgate.toml here: defaults, environment and command line alone")
    return Finding("ok", "Settings", str(path))


def _data(settings: Settings) -> list[Finding]:
    if settings.postgres:
        return []  # everything is there
    folder = settings.data
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return [Finding("problem", "Data folder", f"{there} is not a folder", "choose another with --data")]
    if not os.access(there, os.W_OK | os.X_OK):
        todo = "give this user the right to write there, or choose another with --data"
        return [Finding("problem", "Data folder", f"{there} cannot be written by this user", todo)]
    words = f"{folder}, can be written" if there == folder else f"{folder}, will be made on first use"
    found = [Finding("ok", "Data folder", words)]
    free = shutil.disk_usage(there).free // _MIB
    if free < 1024:
        state: State = "problem" if free < 100 else "note"
        found.append(Finding(state, "Free disk", f"{free} MiB", "make room: a full disk stops every write"))
    else:
        found.append(Finding("ok", "Free disk", f"{free / 1024:.1f} GiB"))
    return found


def _seal_key(settings: Settings) -> list[Finding]:
    from loomgate.store.seal import KEY_FILE

    if settings.postgres:
        if settings.seal_key:
            return []  # `_of_postgres` says whether it is the right one
        todo = "`openssl rand -hex 32` makes one; give every node the same"
        return [Finding("problem", "Seal key", "none: nodes on PostgreSQL need the setting seal_key", todo)]
    if settings.seal_key:
        return [Finding("ok", "Seal key", "from the setting seal_key")]
    path = settings.data / KEY_FILE
    if not path.exists():
        return [Finding("ok", "Seal key", f"none yet: {path} will be made on first use")]
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        return [Finding("problem", "Seal key", f"other users may read {path}", f"chmod 600 {path}")]
    return [Finding("ok", "Seal key", f"{path}: back it up, stored provider keys do not open without it")]


def _files(_: Settings) -> list[Finding]:
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= 4096:
        return [Finding("ok", "Open files", "no limit" if soft == resource.RLIM_INFINITY else f"up to {soft}")]
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    words = f"up to {soft}: every client, stream and model call takes one"
    return [Finding("note", "Open files", words, f"`ulimit -n {most}` before the start serves more clients at a time")]


def _routes(settings: Settings) -> list[Finding]:
    if not settings.providers:
        todo = "set OPENAI_API_KEY, or declare [providers.NAME] in loomgate.toml (docs/settings.md)"
        return [Finding("note", "Model route", "no provider: only the model `scripted` works", todo)]
    from loomgate.providers.catalogue import CATALOGUE

    found: list[Finding] = []
    for provider in settings.providers.values():
        row = CATALOGUE.get(provider.vendor)
        if patterns := provider.models or (row.models if row else ()):
            found.append(Finding("ok", "Model route", f"{', '.join(patterns)} -> {provider.name}"))
    if settings.default_provider:
        rest = "every other model" if found else "every model"
        found.append(Finding("ok", "Model route", f"{rest} -> {settings.default_provider.name}"))
    else:
        todo = "set `default = true` for one provider if clients that name no provider should reach it"
        words = "no default provider: a model that no pattern claims must come with a provider or virtual key"
        found.append(Finding("note", "Model route", words, todo))
    return found


def _webhooks(settings: Settings) -> list[Finding]:
    return [
        Finding(
            "ok",
            "Webhook",
            # Without path and query: they often hold a token.
            f"{_site(webhook.url)}: {len(webhook.events) or 'all'} events of workspace {webhook.workspace}",
        )
        for webhook in settings.webhooks
    ] or [Finding("ok", "Webhooks", "none")]


def _declared(settings: Settings) -> list[Finding]:
    if not (settings.configs or settings.guardrails or settings.providers or settings.virtual_keys):
        return []
    from loomgate.gateway.saved import check_declared

    try:
        check_declared(settings)
    except SettingError as error:
        return [Finding("problem", "Settings", str(error), "mend it: the server does not start like this")]
    named = [("Configs", settings.configs), ("Guardrails", settings.guardrails)]
    return [
        Finding("ok", what, ", ".join(f"{slug} (workspace {entries[slug].workspace})" for slug in entries))
        for what, entries in named
        if entries
    ]


_CHECKS: tuple[Callable[[Settings], list[Finding]], ...] = (
    _data,
    _seal_key,
    _files,
    _routes,
    _declared,
    _webhooks,
)


def _careful(check: Callable[[Settings], list[Finding]], settings: Settings) -> list[Finding]:
    try:
        return check(settings)
    except OSError as error:
        what = check.__name__.strip("_").replace("_", " ").capitalize()
        return [Finding("problem", what, f"{error.filename}: {error.strerror}", "look at its owner and permissions")]


# --- checks of the store ---------------------------------------------------------------------------------------------


async def _stored(settings: Settings) -> list[Finding]:
    if settings.postgres:
        return await _of_postgres(settings) + await _of_redis(settings)
    path = settings.database_path
    declared = [f"{key.slug} ({key.provider})" for key in settings.virtual_keys.values()]
    if not path.exists():
        none = Finding("ok", "Database", f"none yet: {path} will be made on first use")
        return [none, _api_keys(settings, 0, 0), _virtual_keys(declared)]
    from loomgate.store import open_store, schema
    from loomgate.store.seal import KEY_FILE

    try:
        found = schema.revision(path)
        if found != schema.HEAD:
            words = f"{path} is at revision {found or 'none'}, this version needs {schema.HEAD}"
            return [Finding("problem", "Database", words, "stop the server, then run `loomgate migrate`")]
        if not settings.seal_key and not (settings.data / KEY_FILE).exists():
            # To open the store would make a new key, and hide that one is missing.
            todo = f"restore {KEY_FILE}; without it the next start makes a new one, which opens no stored provider key"
            return [Finding("note", "Database", f"{path}, revision {found}; not opened, it has no seal key", todo)]
        async with open_store(settings) as opened:
            keys = await opened.keys.list()
            stored = [f"{key.slug} ({key.provider})" for key in await opened.virtual_keys.list(None)]
    except LoomgateError as error:
        return [Finding("problem", "Database", str(error), "look at the file's owner and permissions")]
    fine = Finding("ok", "Database", f"{path}, revision {found}")
    return [
        fine,
        _api_keys(settings, len(keys), sum(key.revoked_at is None for key in keys)),
        _virtual_keys(declared + stored),
    ]


_OLDEST_POSTGRES = 14
_OLDEST_REDIS = (6, 2)
_APART = 1.0  # seconds between two clocks that are worth a word


async def _of_postgres(settings: Settings) -> list[Finding]:
    from loomgate.store.facts import look_at

    try:
        facts = await look_at(settings.database_url.reveal(), settings.seal_key.reveal())
    except LoomgateError as error:
        todo = "correct database_url, or see that the server runs and lets this machine in"
        return [Finding("problem", "Database", str(error), todo)]
    found = [Finding("ok", "Database", f"PostgreSQL {facts.version}: {facts.place}, revision {facts.revision}")]
    if facts.revision != facts.head:
        words = f"{facts.place} is at revision {facts.revision or 'none'}, this version needs {facts.head}"
        found = [Finding("problem", "Database", words, "run `loomgate migrate`")]
    if facts.number < _OLDEST_POSTGRES * 10_000:
        words = f"version {facts.version} is too old"
        found.append(Finding("problem", "PostgreSQL", words, f"use {_OLDEST_POSTGRES} or a newer one"))
    if abs(facts.ahead) >= _APART:
        words = f"this machine's is {abs(facts.ahead):.1f} s {'ahead of' if facts.ahead > 0 else 'behind'} PostgreSQL's"
        state: State = "problem" if abs(facts.ahead) > settings.lease_seconds / 2 else "note"
        found.append(Finding(state, "Clock", words, "let both keep time by NTP: leases of runs are counted by it"))
    else:
        found.append(Finding("ok", "Clock", "agrees with PostgreSQL's"))
    used, most = facts.connections
    words = f"{used} of {most} of the server's are in use; a node takes up to {settings.database_connections + 1}"
    if most - used < settings.database_connections + 1:
        todo = "raise PostgreSQL's max_connections, or lower database_connections"
        found.append(Finding("note", "Connections", words, todo))
    else:
        found.append(Finding("ok", "Connections", words))
    if facts.vector is None:
        found.append(Finding("note", "pgvector", "the server does not have it; nothing needs it yet"))
    else:
        found.append(Finding("ok", "pgvector", f"{facts.vector} is there"))
    if facts.sealed is False:
        todo = "give this node the seal_key of the others"
        found.append(Finding("problem", "Seal key", "not the one that the database is sealed with", todo))
    elif settings.seal_key and facts.revision == facts.head:
        words = "from the setting seal_key; " + ("the database's" if facts.sealed else "no node has used one yet")
        found.append(Finding("ok", "Seal key", words))
    declared = [f"{key.slug} ({key.provider})" for key in settings.virtual_keys.values()]
    if facts.revision == facts.head:
        found.append(_api_keys(settings, *facts.api_keys))
    found.append(_virtual_keys(declared + [f"{slug} ({provider})" for slug, provider in facts.virtual_keys]))
    return found


async def _of_redis(settings: Settings) -> list[Finding]:
    url = settings.redis_url.reveal()
    if not url:
        words = "none: one `loomgate serve` alone may use the database"
        return [Finding("ok", "Redis", words)]
    from loomgate.bus.connection import Redis, facts_of

    try:
        redis = Redis(url)
    except ValueError as error:
        return [Finding("problem", "Redis", f"redis_url is not the URL of a Redis: {error}", "correct it")]
    try:
        facts = await facts_of(redis)
    except LoomgateError as error:
        todo = "correct redis_url, or see that the server runs and lets this machine in; nodes go on without it"
        return [Finding("problem", "Redis", f"not reachable: {error}", todo)]
    finally:
        await redis.close()
    name = "Valkey" if "valkey_version" in facts else "Redis"
    version = facts.get("valkey_version") or facts.get("redis_version", "0")
    found = [Finding("ok", "Redis", f"{name} {version}")]
    if name == "Redis" and tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_REDIS:
        oldest = ".".join(map(str, _OLDEST_REDIS))
        found = [
            Finding("problem", "Redis", f"version {version} is too old", f"use {oldest} or a newer one, or Valkey")
        ]
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and not policy.startswith("volatile-"):
        todo = "set its maxmemory-policy to noeviction or volatile-ttl"
        found.append(Finding("note", "Redis memory", f"{policy}: under pressure streams may lose their events", todo))
    return found


def _api_keys(settings: Settings, ever: int, valid: int) -> Finding:
    if valid:
        return Finding("ok", "API keys", f"{valid} in force")
    if ever:
        todo = "`loomgate keys create --name NAME` makes another"
        return Finding("problem", "API keys", "every key is revoked: no request is let in", todo)
    todo = "`loomgate keys create --name NAME` makes one, and from then on every request needs one"
    if settings.host in _LOOPBACK:
        return Finding(
            "note", "API keys", f"none: open to every program of this machine, on {settings.host} only", todo
        )
    return Finding("problem", "API keys", f"none, but the server is to listen on {settings.host}", todo)


def _virtual_keys(names: list[str]) -> Finding:
    return Finding("ok", "Virtual keys", ", ".join(names) or "none")


# --- checks of the providers -----------------------------------------------------------------------------------------


async def _reached(settings: Settings, offline: bool) -> list[Finding]:
    providers = settings.providers.values()
    if offline:
        key = {True: "has a key", False: "has no key"}
        return [Finding("ok", "Provider", f"{p.name}: {key[_has_key(p)]}; not called (--offline)") for p in providers]
    return list(await asyncio.gather(*(_reach(provider) for provider in providers)))


def _has_key(provider: Provider) -> bool:
    return bool(provider.api_key or provider.aws_access_key_id)


async def _reach(provider: Provider) -> Finding:
    """Sends an empty object to the address that model calls go to, with their headers.

    It costs nothing, since no endpoint runs a model without messages, and the answer's status tells whether the
    address and the key are right: a list of models would tell it of another address, and some endpoints have none.
    """
    from msgspec.structs import replace

    from loomgate.app import provider_config
    from loomgate.gateway.resolve import target_for
    from loomgate.providers.catalogue import CATALOGUE
    from loomgate.providers.credentials import Credentials
    from loomgate.providers.operations import dialect_of
    from loomgate.providers.transport import Timeouts, Transport
    from loomgate.wire.chat import Chat

    name, row = provider.name, CATALOGUE.get(provider.vendor)
    if row is None:
        todo = f"give [providers.{name}] a `vendor`; `openai-compatible` and a base_url suit most servers"
        return Finding("problem", "Provider", f"{name}: no vendor `{provider.vendor}` in the catalogue", todo)
    base = provider.base_url or row.base_url or row.local
    if not base:
        todo = f"give [providers.{name}] a base_url"
        return Finding("problem", "Provider", f"{name}: the vendor has no address of its own", todo)
    if row.needs_key and not _has_key(provider):
        todo = f'give [providers.{name}] an api_key, for instance api_key = "env:MY_KEY"'
        return Finding("problem", "Provider", f"{name}: no key, and the vendor needs one", todo)
    try:
        target = target_for(row, base, provider_config(provider))
    except SettingError as error:
        return Finding("problem", "Provider", f"{name}: {error}", "correct the settings")
    dialect = dialect_of(target, _NO_MODEL)
    if dialect is None:
        return Finding("note", "Provider", f"{name}: not asked, since the vendor has no chat")
    site = _site(target.base_url)
    patience = Timeouts(connect=_PATIENCE, first_byte=_PATIENCE, idle=_PATIENCE, total=_PATIENCE)
    transport = Transport()
    try:
        if Credentials.needed(target):
            target = await Credentials(transport).opened(target, patience, trusted=True)
        call = replace(dialect.request(Chat(model=_NO_MODEL, messages=[]), target), body=b"{}")
        site = _site(call.url)  # its placeholders are filled in
        if target.auth is not None:
            call = target.auth(call)
        async with await transport.send(call, patience) as reply:
            said = dialect.error(reply.status, reply.headers, await reply.read(_LONGEST_ANSWER))
        if reply.status == 404 and _NO_MODEL in re.split("[/:]", call.url):
            return _answered(name, site, 400)  # what is not there is the model, as expected
        return _answered(name, site, reply.status, refused=said.kind == "auth")
    except ProviderError as error:
        if error.kind == "auth":
            return Finding("problem", "Provider", f"{name}: {error.message}", "replace its api_key")
        if error.kind == "invalid":
            return Finding("problem", "Provider", f"{name}: {error.message}", "correct the settings")
        todo = "check base_url and this machine's network"
        return Finding("problem", "Provider", f"{name}: {site} is not reachable: {error.message}", todo)
    finally:
        await transport.close()


def _answered(name: str, site: str, status: int, *, refused: bool = False) -> Finding:
    """What the ``status`` of the answer to an empty call says about provider ``name`` at ``site``; ``refused`` tells
    whether it is about the key, for which some vendors have a 400."""
    if refused:
        return Finding("problem", "Provider", f"{name}: {site} refused the key ({status})", "replace its api_key")
    if status < 400 or status in (404, 405):
        words = f"{name}: {site} is reachable, but nothing there takes chat completions ({status})"
        return Finding("problem", "Provider", words, "correct its base_url: does it need a path such as /v1?")
    if status == 429 or status >= 500:
        words = f"{name}: {site} is reachable, but does not serve now ({status})"
        return Finding("note", "Provider", words, "try again later")
    return Finding("ok", "Provider", f"{name}: {site} is reachable")


def _site(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


# --- the report ------------------------------------------------------------------------------------------------------

_COLOURS: dict[State, str] = {"ok": "32", "note": "33", "problem": "31"}


def _print(findings: Iterable[Finding], out: TextIO) -> None:
    """The report as a table; colours and line breaks only for a terminal (and no colours with NO_COLOR)."""
    findings = list(findings)
    terminal = out.isatty()
    colours = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    left = 2 + len("problem") + 2
    wide = max(len(finding.what) for finding in findings) + 2
    room = max(40, shutil.get_terminal_size().columns - left - wide) if terminal else 10_000
    lines = [f"Loomgate {__version__}", ""]
    for state, what, words, todo in findings:
        mark = state.ljust(left - 2)
        first, *rest = textwrap.wrap(words, room) or [""]
        shown = f"\x1b[{_COLOURS[state]}m{mark}\x1b[0m" if colours else mark
        lines.append(f"  {shown}{what.ljust(wide)}{first}")
        more = [*rest, *(textwrap.wrap(f"-> {todo}", room, subsequent_indent="   ") if todo else [])]
        lines += [" " * (left + wide) + line for line in more]
    counts = {state: sum(finding.state == state for finding in findings) for state in _COLOURS}
    lines += ["", f"{_count(counts['problem'], 'problem')}, {_count(counts['note'], 'note')}.", ""]
    out.write("\n".join(lines))


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"
