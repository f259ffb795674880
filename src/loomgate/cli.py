"""The command line, thin: parse, load the settings, call one room, print its answer or one line of error.

What must live here: the words of the commands, exit codes, what is asked and printed. What must not: decisions that
a room behind a command makes. Every command imports its room when it runs, so that ``--version`` and ``--help`` are
quick and a broken extra does not stop ``doctor``.

Results go to standard output and everything said about them to standard error, so that
``KEY=$(loomgate keys create --name ci)`` holds the key alone. Exit codes: 0 done, 1 failed, 2 wrong settings or usage.
"""

import argparse
import asyncio
import errno
import gc
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from loomgate import __version__
from loomgate.errors import LoomgateError, SettingError

if TYPE_CHECKING:
    from loomgate.settings import Settings

_Command = Callable[[argparse.Namespace], int]

# Options of `serve` and friends that are settings by another road.
_SETTING_OPTIONS = ("host", "port", "data", "database_url")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; ``argv`` without the program's name, by default the process's own."""
    options = _parser().parse_args(argv)
    command: _Command = options.command
    try:
        return command(options)
    except SettingError as error:
        return _fail(str(error), 2)
    except LoomgateError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:
        # The reader (`| head`) has enough. Standard output is pointed away, or the interpreter complains at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error), 1)
    except KeyboardInterrupt:
        return 130


def _fail(line: str, code: int) -> int:
    print("loomgate: " + " ".join(line.split()), file=sys.stderr)
    return code


def _load(options: argparse.Namespace) -> "Settings":
    from loomgate.settings import load

    given: dict[str, object] = {name: getattr(options, name, None) for name in _SETTING_OPTIONS}
    return load(given, file=options.config)


# --- commands --------------------------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    # Nothing that is imported becomes garbage: looking for some costs a fifth of the start. `app.serve` turns it on.
    gc.disable()
    settings = _load(options)
    from loomgate import app

    try:
        return app.serve(settings)
    except OSError as error:
        where = f"port {settings.port} of {settings.host}"
        match error.errno:
            case errno.EADDRINUSE:
                return _fail(f"{where} is taken: stop what listens there, or choose another with --port", 1)
            case errno.EACCES:
                return _fail(f"{where} is not allowed for this user: choose a port above 1023 with --port", 1)
            case errno.EADDRNOTAVAIL:
                return _fail(f"{where} is not an address of this machine: choose another with --host", 1)
            case _:
                raise


def _migrate(options: argparse.Namespace) -> int:
    settings = _load(options)
    from loomgate import store

    before, after = store.migrate(settings)
    print(f"already at {after}" if before == after else f"{before or 'no database'} -> {after}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from loomgate import doctor

    given = {name: getattr(options, name) for name in _SETTING_OPTIONS}
    return doctor.run(given, options.config, offline=options.offline)


def _keys_create(options: argparse.Namespace) -> int:
    from loomgate.settings import check_name

    check_name("--workspace", options.workspace)

    async def create(settings: "Settings") -> int:
        from loomgate.store import open_store

        async with open_store(settings) as store:
            key = await store.keys.create(workspace=options.workspace, name=options.name)
        _say(f"{key.id} for workspace {key.workspace}. This is the only time the key is shown:")
        print(key.secret)
        return 0

    return _in_loop(create, _load(options))


def _keys_list(options: argparse.Namespace) -> int:
    async def show(settings: "Settings") -> int:
        from loomgate.store import open_store

        async with open_store(settings) as store:
            rows = await store.keys.list()
        _table(
            ("id", "workspace", "name", "key", "created", "revoked"),
            [(row.id, row.workspace, row.name, row.hint, _day(row.created_at), _day(row.revoked_at)) for row in rows],
            "no API keys: the server answers on the loopback address only; `loomgate keys create` makes one",
        )
        return 0

    return _in_loop(show, _load(options))


def _keys_revoke(options: argparse.Namespace) -> int:
    async def revoke(settings: "Settings") -> int:
        from loomgate.store import open_store

        async with open_store(settings) as store:
            if not await store.keys.revoke(options.id):
                return _fail(f"no API key {options.id} that could be revoked; `loomgate keys list` shows them", 1)
        _say(f"revoked {options.id}")
        return 0

    return _in_loop(revoke, _load(options))


def _virtual_keys_create(options: argparse.Namespace) -> int:
    from loomgate.settings import check_name, check_url

    settings = _load(options)
    check_name("SLUG", options.slug)
    check_name("--workspace", options.workspace)
    check_url("--base-url", options.base_url or "", settings)
    if options.provider not in settings.providers:
        from loomgate.providers.catalogue import CATALOGUE

        if options.provider not in CATALOGUE:
            known = ", ".join(sorted({*settings.providers, *CATALOGUE}))
            raise SettingError("--provider", f"one of {known}", repr(options.provider))
    secret = _ask_secret(f"API key of {options.provider}", from_stdin=options.api_key_stdin)

    async def create(settings: "Settings") -> int:
        from loomgate.store import open_store

        async with open_store(settings) as store:
            made = await store.virtual_keys.create(
                workspace=options.workspace,
                slug=options.slug,
                provider=options.provider,
                secret=secret,
                base_url=options.base_url,
            )
        if not made:
            return _fail(f"workspace {options.workspace} has a virtual key {options.slug} already; delete it first", 1)
        _say(f"clients of workspace {options.workspace} name it as x-portkey-virtual-key: {options.slug}")
        return 0

    return _in_loop(create, settings)


def _virtual_keys_list(options: argparse.Namespace) -> int:
    async def show(settings: "Settings") -> int:
        from loomgate.store import open_store

        async with open_store(settings) as store:
            rows = await store.virtual_keys.list(options.workspace)
        _table(
            ("slug", "workspace", "provider", "base url"),
            [(row.slug, row.workspace, row.provider, row.base_url or "") for row in rows],
            "no virtual keys in the store (those of the settings file are shown by `loomgate doctor`)",
        )
        return 0

    return _in_loop(show, _load(options))


def _virtual_keys_delete(options: argparse.Namespace) -> int:
    async def delete(settings: "Settings") -> int:
        from loomgate.store import open_store

        async with open_store(settings) as store:
            if not await store.virtual_keys.delete(workspace=options.workspace, slug=options.slug):
                return _fail(f"no virtual key {options.slug} in workspace {options.workspace}", 1)
        _say(f"deleted {options.slug}")
        return 0

    return _in_loop(delete, _load(options))


def _in_loop(work: "Callable[[Settings], Coroutine[None, None, int]]", settings: "Settings") -> int:
    return asyncio.run(work(settings))


# --- talking ---------------------------------------------------------------------------------------------------------


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _ask_secret(what: str, *, from_stdin: bool) -> str:
    """A secret from standard input or the terminal: never from the arguments, which every user of the machine sees."""
    if from_stdin:
        # A terminal ends it with a line; a pipe or a file may hold several, as a service account's key file does.
        secret = sys.stdin.readline() if sys.stdin.isatty() else sys.stdin.read()
    elif sys.stdin.isatty():
        import getpass

        try:
            secret = getpass.getpass(f"{what}: ")
        except EOFError:
            secret = ""
    else:
        raise SettingError("--api-key-stdin", "the option, since there is no terminal to ask for the key")
    if not secret.strip():
        raise SettingError("the API key", "a key", "nothing")
    return secret.strip()


def _day(timestamp: int | None) -> str:
    return "" if timestamp is None else datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Columns wide enough for their longest cell; nothing but a line on standard error if there are no rows."""
    if not rows:
        _say(empty)
        return
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


# --- words -----------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"loomgate: {message} (`{self.prog} --help` shows the usage)\n")


def _parser() -> argparse.ArgumentParser:
    top = _Parser(prog="loomgate", description="OpenAI's Assistants API v2 on any model, on your own machine.")
    top.add_argument("--version", action="version", version=f"loomgate {__version__}")

    place = _Parser(add_help=False)
    place.add_argument("--config", type=Path, metavar="FILE", help="settings file (default: ./loomgate.toml)")
    place.add_argument("--data", metavar="FOLDER", help="folder for the database and the seal key")
    place.add_argument("--database-url", metavar="URL", help="sqlite:/// and a path")
    address = _Parser(add_help=False)
    address.add_argument("--host", metavar="ADDRESS", help="address to listen on")
    address.add_argument("--port", metavar="N", help="port to listen on; 0: any free one")

    words = top.add_subparsers(required=True, metavar="COMMAND")

    def word(make: Callable[..., _Parser], name: str, help: str, run: _Command, *parents: _Parser) -> _Parser:
        made = make(name, help=help, description=help, parents=[place, *parents])
        made.set_defaults(command=run)
        return made

    word(words.add_parser, "serve", "Run the server until it is told to stop.", _serve, address)
    word(words.add_parser, "migrate", "Bring the database to this version's form.", _migrate)
    doctor = word(words.add_parser, "doctor", "Check the installation and say what to do.", _doctor, address)
    doctor.add_argument("--offline", action="store_true", help="do not call the providers")

    keys = words.add_parser("keys", help="API keys of clients: create, list, revoke")
    verbs = keys.add_subparsers(required=True, metavar="VERB")
    create = word(verbs.add_parser, "create", "Make an API key and print it, this once.", _keys_create)
    create.add_argument("--workspace", default="default", metavar="W", help="whose objects it sees (default: default)")
    create.add_argument("--name", required=True, metavar="N", help="what it is for")
    word(verbs.add_parser, "list", "Show the API keys, without their secrets.", _keys_list)
    revoke = word(verbs.add_parser, "revoke", "Refuse an API key from now on.", _keys_revoke)
    revoke.add_argument("id", metavar="ID", help="as `keys list` shows it")

    virtual_keys = words.add_parser("virtual-keys", help="stored provider keys: create, list, delete")
    verbs = virtual_keys.add_subparsers(required=True, metavar="VERB")
    create = word(verbs.add_parser, "create", "Store a provider's key, sealed; asks for it.", _virtual_keys_create)
    create.add_argument("slug", metavar="SLUG", help="what clients send as x-portkey-virtual-key")
    create.add_argument("--provider", required=True, metavar="P", help="declared provider or vendor it is a key of")
    create.add_argument("--api-key-stdin", action="store_true", help="read the key from standard input")
    create.add_argument("--base-url", metavar="U", help="where the API begins, if not the provider's own")
    create.add_argument("--workspace", default="default", metavar="W", help="who may use it (default: default)")
    show = word(verbs.add_parser, "list", "Show the stored virtual keys, without their secrets.", _virtual_keys_list)
    show.add_argument("--workspace", metavar="W", help="only this workspace")
    delete = word(verbs.add_parser, "delete", "Delete a stored virtual key.", _virtual_keys_delete)
    delete.add_argument("slug", metavar="SLUG")
    delete.add_argument("--workspace", default="default", metavar="W", help="its workspace (default: default)")
    return top
