"""The documentation is held to what it says: the quickstart runs as printed, links lead somewhere, codes exist."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from loomgate.http.routes import ADMIN_ROUTES, LOG_ROUTES, ROUTES
from loomgate.settings.provider_data import PROVIDER_DATA, is_secret
from tests.support import schema
from tests.support.server import Server
from tests.support.statements import statements

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def anonymous(text: str) -> str:
    return re.sub(r"run_[A-Za-z0-9]{24}", "run_ID", text)


def test_the_quickstart_prints_what_the_readme_prints(server: Server, tmp_path: Path) -> None:
    script, printed = blocks(ROOT / "README.md", "python")[0], blocks(ROOT / "README.md", "text")[0]
    file = tmp_path / "quickstart.py"
    file.write_text(
        script.replace("http://127.0.0.1:8787", server.url).replace("not-needed-yet", server.new_key("docs"))
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    assert anonymous(done.stdout) == anonymous(printed)


def test_the_readmes_quickstart_is_the_example() -> None:
    example = (ROOT / "examples" / "quickstart.py").read_text()
    assert blocks(ROOT / "README.md", "python")[0].strip() in example


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_error_code_of_the_server_is_documented() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "src" / "loomgate" / "http").glob("*.py"))
    source += "\n".join(path.read_text() for path in (ROOT / "src" / "loomgate" / "store").glob("*.py"))
    page = (ROOT / "docs" / "errors.md").read_text()
    for code in set(re.findall(r'code="([a-z_]+)"', source)):
        assert f"`{code}`" in page, code


def test_every_route_is_documented() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    printed = set(
        re.findall(r"^\| (GET|POST|PUT|DELETE) \| `([^`]+)` \|.*?(\(\*extension\*\))? \|$", page, re.MULTILINE)
    )
    assert printed == {
        (row.method, row.path.replace(":path", ""), "(*extension*)" if row.extension else "")
        for row in (*ROUTES, *LOG_ROUTES, *ADMIN_ROUTES)
    }


def test_provider_data_are_documented() -> None:
    page = (ROOT / "docs" / "gateway" / "admin.md").read_text().partition("### Provider data")[2].partition("## ")[0]
    table = page.partition("|---|---|")[2]
    found = dict(re.findall(r"`(\w+)`(\*?)", table))
    assert found == {name: "*" if is_secret(name) else "" for name in PROVIDER_DATA}


def test_the_differences_are_of_statements_that_exist_and_hold_those_that_no_test_proves() -> None:
    named = re.findall(
        r"^\| ([A-Z]+-\d\d[A-Z0-9, -]*) \|", (ROOT / "docs/gateway/differences.md").read_text(), re.MULTILINE
    )
    ids = [id for cell in named for id in cell.split(", ")]
    known = {id for id, row in statements().items() if row.file == "GATEWAY"}
    assert set(ids) <= known
    assert len(ids) == len(set(ids))
    unproven = tomllib.loads((ROOT / "tests" / "data" / "uncovered.toml").read_text())
    assert known.intersection(unproven) <= set(ids)


def test_every_event_is_documented() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert set(re.findall(r"`(thread\.[a-z_.]+|error|done)`", page)) == set(schema.events())
