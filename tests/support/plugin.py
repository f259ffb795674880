"""The pytest part: the marker ``behaviour``, which says what a test proves, and a report of it.

``@pytest.mark.behaviour("RUN-31", "RUN-33")`` on a test, class, module or parameter set names statements of
BEHAVIOUR.md; an id that does not exist stops the collection. ``--behaviour-report PATH`` writes, at the end,
``{"ids": {id: {test: outcome}}}`` with outcomes passed, failed, skipped, xfailed, xpassed or not run.
"""

import json
from pathlib import Path

import pytest

from tests.support.statements import statements

_PROPERTY = "behaviour"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("behaviour")
    group.addoption("--behaviour-report", metavar="PATH", help="write which tests prove which numbered statements")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "behaviour(*ids): the statements of BEHAVIOUR.md and GATEWAY.md that the test proves"
    )
    if path := config.getoption("--behaviour-report"):
        config.pluginmanager.register(_Report(Path(path)))


def _ids(item: pytest.Item) -> list[str]:
    found: dict[str, None] = {}
    for mark in item.iter_markers("behaviour"):
        if not mark.args or mark.kwargs:
            raise pytest.UsageError(f"{item.nodeid}: behaviour() takes ids and nothing else")
        for id in mark.args:
            if id not in statements():
                raise pytest.UsageError(f"{item.nodeid}: there is no statement {id!r}")
            found[id] = None
    return list(found)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # A property travels with the test's report, also from another process.
        item.user_properties.extend((_PROPERTY, id) for id in _ids(item))


class _Report:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, dict[str, str]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for name, id in item.user_properties:
                if name == _PROPERTY:
                    self._found.setdefault(str(id), {})[item.nodeid] = "not run"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, id in report.user_properties:
            if name == _PROPERTY:
                tests = self._found.setdefault(str(id), {})
                tests[report.nodeid] = _outcome(tests.get(report.nodeid, "not run"), report)

    def pytest_sessionfinish(self) -> None:
        self._path.write_text(json.dumps({"ids": dict(sorted(self._found.items()))}, indent=1) + "\n")


def _outcome(before: str, report: pytest.TestReport) -> str:
    """The outcome after one more phase of a test: the worst phase counts."""
    if report.failed:
        return "failed"
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    if report.skipped:
        return "skipped"
    return "passed" if report.when == "call" else before
