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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loomgate import __version__
from loomgate.cli import stored
from loomgate.cli.talk import SETTING_OPTIONS, Command, Parser, day, fail, in_store, load, on_store, say, table
from loomgate.errors import LoomgateError, SettingError

if TYPE_CHECKING:
    from loomgate.settings import Settings
    from loomgate.store import Store


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; ``argv`` without the program's name, by default the process's own."""
    options = _parser().parse_args(argv)
    command: Command = options.command
    try:
        return command(options)
    except SettingError as error:
        return fail(str(error), 2)
    except LoomgateError as error:
        return fail(str(error), 1)
    except BrokenPipeError:
        # The reader (`| head`) has enough. Standard output is pointed away, or the interpreter complains at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error), 1)
    except KeyboardInterrupt:
        return 130


# --- commands --------------------------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    return _node(options, worker=False)


def _worker(options: argparse.Namespace) -> int:
    return _node(options, worker=True)


def _node(options: argparse.Namespace, *, worker: bool) -> int:
    # Nothing that is imported becomes garbage: looking for some costs a fifth of the start. `app` turns it on.
    gc.disable()
    settings = load(options)
    from loomgate import app

    try:
        return app.work(settings) if worker else app.serve(settings)
    except OSError as error:
        where = f"port {settings.worker_port if worker else settings.port} of {settings.host}"
        match error.errno:
            case errno.EADDRINUSE:
                return fail(f"{where} is taken: stop what listens there, or choose another with --port", 1)
            case errno.EACCES:
                return fail(f"{where} is not allowed for this user: choose a port above 1023 with --port", 1)
            case errno.EADDRNOTAVAIL:
                return fail(f"{where} is not an address of this machine: choose another with --host", 1)
            case _:
                raise


def _migrate(options: argparse.Namespace) -> int:
    settings = load(options)
    from loomgate import store

    before, after = store.migrate(settings)
    print(f"already at {after}" if before == after else f"{before or 'no database'} -> {after}")
    return 0


def _copy(options: argparse.Namespace) -> int:
    from loomgate.store import copying

    shown = ""

    def told(what: str, name: str, done: int, rows: int) -> None:
        nonlocal shown
        if sys.stderr.isatty():
            share = f" {'#' * (20 * done // rows):20} {100 * done // rows:3} %" if rows else ""
            print(f"\r\x1b[K{what} {name}: {done:,} row(s){share}", end="", file=sys.stderr, flush=True)
        elif shown != f"{what} {name}" or done == rows:
            say(f"{what} {name}: {done:,} of {rows:,} row(s)" if rows else f"{what} {name}")
        shown = f"{what} {name}"

    compared = asyncio.run(copying.copy(options.source, options.target, told))
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    rows = [
        (one.table, str(one.source), str(one.target), "the same" if one.same else "NOT THE SAME") for one in compared
    ]
    table(("table", "in SQLite", "in PostgreSQL", "rows"), rows, "")
    if not all(one.same for one in compared):
        return fail("the copy is not the same: make the database anew and copy again", 1)
    if (key := copying.seal_key_file(options.source)) is not None:
        say(f"stored secrets open with the same key only: give every node LOOMGATE_SEAL_KEY=$(cat {key})")
    return 0


def _backup(options: argparse.Namespace) -> int:
    settings = load(options)
    from loomgate.store.backup import backup

    size = backup(settings, options.file)
    say(f"{size} bytes; stored provider keys open with the seal key alone, which is not in it")
    print(options.file)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from loomgate import doctor

    given = {name: getattr(options, name, None) for name in SETTING_OPTIONS}
    return doctor.run(given, options.config, offline=options.offline)


def _keys_create(options: argparse.Namespace) -> int:
    from loomgate.settings import check_name

    check_name("--workspace", options.workspace)
    return in_store(_create_key, options, load(options))


async def _create_key(store: "Store", options: argparse.Namespace, _: "Settings") -> int:
    key = await store.keys.create(workspace=options.workspace, name=options.name, role=options.role)
    say(f"{key.id} for workspace {key.workspace}, role {key.role}. This is the only time the key is shown:")
    print(key.secret)
    return 0


@on_store
async def _keys_list(store: "Store", _options: argparse.Namespace, _: "Settings") -> int:
    table(
        ("id", "workspace", "name", "role", "key", "created", "revoked"),
        [
            (row.id, row.workspace, row.name, row.role, row.hint, day(row.created_at), day(row.revoked_at))
            for row in await store.keys.list()
        ],
        "no API keys: the server answers on the loopback address only; `loomgate keys create` makes one",
    )
    return 0


@on_store
async def _keys_revoke(store: "Store", options: argparse.Namespace, _: "Settings") -> int:
    if not await store.keys.revoke(options.id):
        return fail(f"no API key {options.id} that could be revoked; `loomgate keys list` shows them", 1)
    say(f"revoked {options.id}")
    return 0


# --- words -----------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    top = Parser(prog="loomgate", description="OpenAI's Assistants API v2 on any model, on your own machine.")
    top.add_argument("--version", action="version", version=f"loomgate {__version__}")

    place = Parser(add_help=False)
    place.add_argument("--config", type=Path, metavar="FILE", help="settings file (default: ./loomgate.toml)")
    place.add_argument("--data", metavar="FOLDER", help="folder for the database and the seal key")
    place.add_argument("--database-url", metavar="URL", help="postgresql://…, or sqlite:/// and a path")
    address = Parser(add_help=False)
    address.add_argument("--host", metavar="ADDRESS", help="address to listen on")
    address.add_argument("--port", metavar="N", help="port to listen on; 0: any free one")

    words = top.add_subparsers(required=True, metavar="COMMAND")

    def word(make: Callable[..., Parser], name: str, help: str, run: Command, *parents: Parser) -> Parser:
        made = make(name, help=help, description=help, parents=[place, *parents])
        made.set_defaults(command=run)
        return made

    word(words.add_parser, "serve", "Run the server until it is told to stop.", _serve, address)
    worker = word(words.add_parser, "worker", "Drive runs for the servers of a cluster.", _worker)
    worker.add_argument("--host", metavar="ADDRESS", help="address to answer probes on")
    worker.add_argument("--port", metavar="N", dest="worker_port", help="port to answer probes on; 0: none (default)")
    word(words.add_parser, "migrate", "Bring the database to this version's form.", _migrate)
    copy = words.add_parser("copy", help="Move an embedded installation to PostgreSQL; goes on where it was cut off.")
    copy.set_defaults(command=_copy)
    copy.add_argument("source", type=Path, metavar="SQLITE-DIR", help="the data folder, whose server is stopped")
    copy.add_argument("target", metavar="POSTGRES-URL", help="an empty database")
    kept = word(words.add_parser, "backup", "Copy the SQLite database while the server runs.", _backup)
    kept.add_argument("file", type=Path, metavar="FILE", help="the copy, a new file")
    doctor = word(words.add_parser, "doctor", "Check the installation and say what to do.", _doctor, address)
    doctor.add_argument("--offline", action="store_true", help="do not call the providers")

    keys = words.add_parser("keys", help="API keys of clients: create, list, revoke")
    verbs = keys.add_subparsers(required=True, metavar="VERB")
    create = word(verbs.add_parser, "create", "Make an API key and print it, this once.", _keys_create)
    create.add_argument("--workspace", default="default", metavar="W", help="whose objects it sees (default: default)")
    create.add_argument("--name", required=True, metavar="N", help="what it is for")
    create.add_argument(
        "--role", choices=("user", "admin"), default="user", help="admin: may also use the admin routes (default: user)"
    )
    word(verbs.add_parser, "list", "Show the API keys, without their secrets.", _keys_list)
    revoke = word(verbs.add_parser, "revoke", "Refuse an API key from now on.", _keys_revoke)
    revoke.add_argument("id", metavar="ID", help="as `keys list` shows it")

    stored.add_words(words.add_parser, place)
    return top
