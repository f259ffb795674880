"""A disk that loses power: what SQLite wrote and did not sync is forgotten.

`install` puts a layer between SQLite and the operating system, in the server's process: every file that SQLite opens
has a shadow in another folder, which gets its content at each sync and only then. After a kill the shadows are what a
disk holds that kept nothing in its cache: the worst power cut that honours a sync. (A disk that reorders what was not
synced, or that lies about a sync, is not shown by this.)
"""

import shutil
from pathlib import Path
from typing import Any

import apsw

_NAME = "forgetful"
_BASE = apsw.vfs_names()[0]  # the operating system's, by name: the default will be ours


class _File(apsw.VFSFile):
    def __init__(self, name: Any, flags: list[int], folder: Path) -> None:
        super().__init__(_BASE, name, flags)
        path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name)
        self._path, self._shadow = path, folder / path.name
        if not self._shadow.exists() and path.stat().st_size:
            shutil.copyfile(path, self._shadow)  # it was there before the disk was

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        shutil.copyfile(self._path, self._shadow.with_suffix(".new"))
        self._shadow.with_suffix(".new").replace(self._shadow)


class _Disk(apsw.VFS):
    def __init__(self, folder: Path) -> None:
        super().__init__(_NAME, _BASE, makedefault=True)
        self._folder = folder

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        if name is None:
            return super().xOpen(name, flags)  # a file without a name lives no longer than its connection
        return _File(name, flags, self._folder)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        (self._folder / Path(filename).name).unlink(missing_ok=True)


_disk: _Disk | None = None


def install(folder: str) -> None:
    """Shadow every SQLite file that this process opens from now on in ``folder``."""
    global _disk  # noqa: PLW0603 - SQLite holds it by name; it must live as long as the process
    _disk = _Disk(Path(folder))
