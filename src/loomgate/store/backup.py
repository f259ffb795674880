"""A copy of the SQLite file as it is at one moment, while a server goes on writing.

What must live here: making that copy. What must not: when, where to, or how many are kept. A PostgreSQL has tools of
its own (docs/deploy.md).
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from loomgate.errors import StoreError
from loomgate.store.sqlite import connect

if TYPE_CHECKING:
    from loomgate.settings import Settings


def backup(settings: "Settings", target: Path) -> int:
    """Write the database of ``settings`` to the new file ``target``; answers its size in bytes.

    The copy holds all that was acknowledged before the call, and of no transaction a part. Writers do not wait for it.
    It appears under its name when it is whole and on disk, for its owner alone to read: it holds what clients said.
    The seal key is not in it. Raises `StoreError` when there is nothing to copy or the file is there already.
    """
    source = settings.database_path
    if settings.postgres:
        raise StoreError("the database is a PostgreSQL: back it up with pg_dump or its WAL archive (docs/deploy.md)")
    if not source.exists():
        raise StoreError(f"there is no database at {source}")
    if target.exists():
        raise StoreError(f"{target} is there already: a backup goes into a new file")
    part = target.with_name(target.name + ".part")
    try:
        # Made first: SQLite would give it the rights that the umask leaves.
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise StoreError(f"{part} is there already: another backup is under way, or one has died: remove it") from None
    except OSError as error:
        raise StoreError(f"cannot write {part}: {error.strerror}") from None
    try:
        _copy(source, part)
        _sync(part)
        os.link(part, target)  # unlike a rename it never takes the place of a file that came meanwhile
        _sync(target.parent)
    except FileExistsError:
        raise StoreError(f"{target} is there already: a backup goes into a new file") from None
    except apsw.Error as error:
        raise StoreError(f"cannot copy the database {source} to {target}: {error}") from None
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror}") from None
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
    return target.stat().st_size


def _copy(source: Path, target: Path) -> None:
    connection = connect(source)
    try:
        # One read transaction: in WAL mode neither waits for the other. It may write into a file that is empty.
        connection.execute("VACUUM INTO ?", (str(target),))
    finally:
        connection.close()
    copied = connect(target)
    try:
        ((found,),) = copied.execute("PRAGMA quick_check(1)").fetchall()
        if found != "ok":
            raise StoreError(f"the copy of {source} is not in order: {found}")
    finally:
        copied.close()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
