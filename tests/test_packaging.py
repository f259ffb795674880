"""What a newcomer downloads: the locks, the wheel, and the papers that describe them.

Here belongs what can be said of the project's files. What the installed command does belongs to the tests of its room.
"""

import configparser
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import loomgate

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = sorted(ROOT.glob("requirements*.lock"))
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def normal(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def package(requirement: str) -> str:
    """The package that a requirement such as ``uvloop>=0.23; sys_platform != 'win32'`` is about."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return normal(match[0])


def locked(lock: Path) -> dict[str, str]:
    """Of a lock file, each package's pinned version."""
    return {
        normal(name): version
        for name, version in re.findall(
            r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock.read_text(encoding="utf-8"), re.MULTILINE
        )
    }


def direct(*groups: str) -> set[str]:
    """The packages that pyproject.toml names: those to run, and those of ``groups``."""
    wanted = list(PROJECT["project"]["dependencies"])
    for group in groups:
        wanted += [entry for entry in PROJECT["dependency-groups"][group] if isinstance(entry, str)]
    return {package(requirement) for requirement in wanted}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_locked_package_is_exact_and_has_hashes(lock: Path) -> None:
    logical_lines = lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    requirements = [line for line in logical_lines if line.strip() and not line.lstrip().startswith("#")]
    assert requirements
    for requirement in requirements:
        assert re.match(r"[A-Za-z0-9._-]+==\S+ ", requirement), requirement
        assert HASH.search(requirement), f"{lock.name}: no hash for {requirement}"


@pytest.mark.parametrize("lock", [*LOCKS, ROOT / "tests/node/package-lock.json"], ids=lambda lock: lock.name)
def test_locks_name_no_index(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    options = [line for line in text.splitlines() if line.lstrip().startswith("-")]
    assert not [line for line in options if "--hash=" not in line]
    assert '"resolved"' not in text
    if lock.suffix != ".json":  # npm also copies the addresses of funding pages, which are no index
        assert "://" not in text
        assert "file:" not in text


def test_node_lock_has_an_integrity_for_every_package_and_agrees_with_package_json() -> None:
    lock = json.loads((ROOT / "tests/node/package-lock.json").read_text(encoding="utf-8"))
    wanted = json.loads((ROOT / "tests/node/package.json").read_text(encoding="utf-8"))
    packages = lock["packages"]
    assert packages.pop("")["dependencies"] == wanted["dependencies"]
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())


def test_locks_hold_what_pyproject_names_and_agree_with_each_other() -> None:
    run, dev = locked(ROOT / "requirements.lock"), locked(ROOT / "requirements-dev.lock")
    assert direct("build") <= run.keys()
    assert direct("build", "dev") <= dev.keys()
    assert run.items() <= dev.items()


def test_every_direct_dependency_has_its_reason_and_no_reason_is_left_over() -> None:
    page = (ROOT / "docs/why/dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (\S.*) \|$", page, re.MULTILINE)
    assert {normal(name) for name, _ in rows} == direct("build", "dev")
    assert all(len(reason) > 20 for _, reason in rows)


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["project"]["version"] == loomgate.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[Unreleased\]$", changelog, re.MULTILINE)


def test_import_rules_are_those_of_the_architecture_page() -> None:
    """``.importlinter`` writes a room that may be missing in parentheses; the order of the rooms is the same."""
    drawn = re.search(r"^`(__main__ > .*)`$", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert drawn
    drawn_layers = [set(layer.strip().split(" | ")) for layer in drawn[1].split(">")]

    rules = configparser.ConfigParser()
    rules.read(ROOT / ".importlinter", encoding="utf-8")
    contract = rules["importlinter:contract:rooms"]
    assert contract.getboolean("exhaustive")
    layers = [set(re.findall(r"\w+", layer)) for layer in contract["layers"].strip().splitlines()]

    rooms = set[str]().union(*drawn_layers)
    missing = set[str]().union(*layers) - rooms
    assert missing <= {"console", "tools"}, "rooms with a rule that the page does not draw"
    assert [layer - missing for layer in layers] == drawn_layers


def test_wheel_holds_the_package_its_types_its_licence_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (path,) = tmp_path.glob("*.whl")
    info = f"loomgate-{loomgate.__version__}.dist-info"
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"{info}/METADATA").decode()
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
        licence = wheel.read(f"{info}/licenses/LICENSE")

    assert licence == (ROOT / "LICENSE").read_bytes()
    assert "loomgate/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"loomgate", info}
    assert "loomgate = loomgate.cli:main" in entry_points

    source = ROOT / "src"
    files = {
        file.relative_to(source).as_posix()
        for file in (source / "loomgate").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert files == {name for name in names if not name.startswith(f"{info}/")}
    migrations = {name.removeprefix("loomgate/store/migrations/") for name in names if "/migrations/" in name}
    assert migrations >= {"env.py", "script.py.mako", "versions/0001_the_first_tables.py"}

    requires = re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)
    extras = {requirement for requirement in requires if "extra ==" in requirement}
    assert {package(requirement) for requirement in requires if requirement not in extras} == direct()
    optional = PROJECT["project"]["optional-dependencies"]
    assert {package(requirement) for requirement in extras} == {
        package(name) for names in optional.values() for name in names
    }
    assert re.search(r"^License-Expression: Apache-2.0$", metadata, re.MULTILINE)
