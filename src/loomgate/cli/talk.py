"""How the commands talk: what is read from whom, where it is printed, and the words of usage errors."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

from loomgate.errors import SettingError

if TYPE_CHECKING:
    from loomgate.settings import Settings
    from loomgate.store import Store

Command = Callable[[argparse.Namespace], int]
Work = Callable[["Store", argparse.Namespace, "Settings"], Coroutine[None, None, int]]

# Options of `serve` and friends that are settings by another road.
SETTING_OPTIONS = ("host", "port", "worker_port", "data", "database_url")


class Parser(argparse.ArgumentParser):
    """Wrong usage is one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with code 2."""
        self.exit(2, f"loomgate: {message} (`{self.prog} --help` shows the usage)\n")


def load(options: argparse.Namespace) -> "Settings":
    """The settings that the command runs with. Raises `SettingError`."""
    from loomgate.settings import load

    given: dict[str, object] = {name: getattr(options, name, None) for name in SETTING_OPTIONS}
    return load(given, file=options.config)


def in_store(work: Work, options: argparse.Namespace, settings: "Settings") -> int:
    """The exit code of ``work``, awaited with the store open."""
    from loomgate.store import open_store

    async def opened() -> int:
        async with open_store(settings) as store:
            return await work(store, options, settings)

    return asyncio.run(opened())


def on_store(work: Work) -> Command:
    """``work`` as a command."""
    return lambda options: in_store(work, options, load(options))


def fail(line: str, code: int) -> int:
    """Say in one line why a command failed; gives ``code`` back."""
    print("loomgate: " + " ".join(line.split()), file=sys.stderr)
    return code


def say(line: str) -> None:
    """Something about the result, which itself goes to standard output."""
    print(line, file=sys.stderr)


def ask_secret(what: str, *, from_stdin: bool) -> str:
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


def day(timestamp: int | None) -> str:
    """A time in seconds for people; nothing for none."""
    return "" if timestamp is None else datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M UTC")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Columns wide enough for their longest cell; nothing but a line on standard error if there are no rows."""
    if not rows:
        say(empty)
        return
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
