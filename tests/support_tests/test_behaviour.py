"""The marker, its report, and the count of covered statements."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.statements import Statement, statements

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("behaviour_script", ROOT / "scripts" / "behaviour.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _session(pytester: pytest.Pytester, source: str, *arguments: str) -> tuple[pytest.RunResult, Path]:
    pytester.makeconftest(f"import sys; sys.path.insert(0, {str(ROOT)!r}); pytest_plugins = ['tests.support.plugin']")
    pytester.makepyfile(source)
    report = pytester.path / "report.json"
    return pytester.runpytest_inprocess("--behaviour-report", str(report), "-p", "no:cacheprovider", *arguments), report


MARKED = """
import pytest

@pytest.mark.behaviour("RUN-31", "RUN-33")
def test_right():
    pass

@pytest.mark.behaviour("RUN-31")
class TestClass:
    @pytest.mark.parametrize("n", [
        pytest.param(1, marks=pytest.mark.behaviour("LIM-08")),
        pytest.param(2, marks=pytest.mark.behaviour("LIM-09")),
    ])
    def test_table(self, n):
        assert n == 1

@pytest.mark.behaviour("ERR-20")
@pytest.mark.skip
def test_skipped():
    pass

@pytest.mark.behaviour("ERR-21")
@pytest.mark.xfail
def test_xfail():
    assert False

@pytest.fixture
def broken():
    yield
    assert False

@pytest.mark.behaviour("ERR-22")
def test_teardown(broken):
    pass
"""


def test_the_report_has_ids_tests_and_outcomes(pytester: pytest.Pytester) -> None:
    _, report = _session(pytester, MARKED)
    here = "test_the_report_has_ids_tests_and_outcomes.py"
    assert json.loads(report.read_text())["ids"] == {
        "ERR-20": {f"{here}::test_skipped": "skipped"},
        "ERR-21": {f"{here}::test_xfail": "xfailed"},
        "ERR-22": {f"{here}::test_teardown": "failed"},
        "LIM-08": {f"{here}::TestClass::test_table[1]": "passed"},
        "LIM-09": {f"{here}::TestClass::test_table[2]": "failed"},
        "RUN-31": {
            f"{here}::test_right": "passed",
            f"{here}::TestClass::test_table[1]": "passed",
            f"{here}::TestClass::test_table[2]": "failed",
        },
        "RUN-33": {f"{here}::test_right": "passed"},
    }


def test_collecting_alone_reports_without_running(pytester: pytest.Pytester) -> None:
    result, report = _session(pytester, MARKED, "--collect-only")
    assert result.ret == 0
    assert json.loads(report.read_text())["ids"]["RUN-33"] == {
        "test_collecting_alone_reports_without_running.py::test_right": "not run"
    }


@pytest.mark.parametrize(
    ("mark", "why"), [("'RUN-1000'", "no statement 'RUN-1000'"), ("", "takes ids"), ("id='RUN-31'", "takes ids")]
)
def test_a_wrong_mark_stops_the_collection(pytester: pytest.Pytester, mark: str, why: str) -> None:
    result, _ = _session(pytester, f"import pytest\n@pytest.mark.behaviour({mark})\ndef test_x(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{why}*"])


def test_all_statements_are_found() -> None:
    """The counts that the source gives: 415 statements, 10 scenarios, 20 notes; and 354 of the gateway."""
    found = {id: row for id, row in statements().items() if row.file == "BEHAVIOUR"}
    assert len(statements()) - len(found) == 354
    assert sum(row.section == 13 for row in found.values()) == 10
    assert sum(row.section == 14 for row in found.values()) == 20
    assert len(found) == 415 + 10 + 20
    assert (found["LIM-08"].section, found["ERR-61"].section, found["SDK-12"].section) == (8, 9, 12)
    assert found["RUN-02"].text.startswith("[O R25, RB23/24, R26] `expires_at`")


KNOWN = {
    "RUN-01": Statement("RUN-01", "BEHAVIOUR", 4, "Runs", "a"),
    "STEP-11": Statement("STEP-11", "BEHAVIOUR", 5, "Run steps", "b"),
    "VS-01": Statement("VS-01", "BEHAVIOUR", 11, "Files", "c"),
    "LB-01": Statement("LB-01", "GATEWAY", 6, "Config", "d"),
}


@pytest.mark.parametrize(
    ("covered", "excused", "problems"),
    [
        ({"RUN-01", "LB-01"}, {"STEP-11": "later"}, []),
        ({"RUN-01", "LB-01", "VS-01"}, {"STEP-11": "later"}, []),
        ({"RUN-01"}, {"STEP-11": "later", "LB-01": "not copied"}, []),
        ({"RUN-01", "LB-01"}, {}, ["STEP-11: no test and no reason"]),
        ({"RUN-01"}, {"STEP-11": "later"}, ["LB-01: no test and no reason"]),
        ({"RUN-01", "LB-01", "STEP-11"}, {"STEP-11": "later"}, ["STEP-11: excused (later) although"]),
        ({"RUN-01", "LB-01", "STEP-11"}, {"STEP-99": "later"}, ["STEP-99: excused, but"]),
        ({"RUN-01", "LB-01"}, {"STEP-11": " "}, ["STEP-11: excused without a reason"]),
    ],
)
def test_problems(script: ModuleType, covered: set[str], excused: dict[str, str], problems: list[str]) -> None:
    found = script.problems(KNOWN, covered, excused)
    assert [line.startswith(start) for line, start in zip(found, problems, strict=True)] == [True] * len(problems)


def test_the_table_counts_by_section(script: ModuleType) -> None:
    lines = list(script.table(KNOWN, {"RUN-01"}, {"STEP-11": "later"}))
    assert [line.split() for line in lines] == [
        ["BEHAVIOUR", "4", "Runs", "1/1"],
        ["BEHAVIOUR", "5", "Run", "steps", "0/1", "1", "excused"],
        ["BEHAVIOUR", "11", "Files", "0/1", "not", "in", "this", "version"],
        ["GATEWAY", "6", "Config", "0/1"],
        ["BEHAVIOUR", "of", "those", "that", "count", "1/2"],
        ["GATEWAY", "of", "those", "that", "count", "0/1"],
        ["later:", "STEP-11"],
    ]


def test_after_a_run_only_what_passed_and_never_failed_counts(script: ModuleType) -> None:
    report = {"A-1": {"t": "passed"}, "A-2": {"t": "passed", "u": "failed"}, "A-3": {"t": "skipped"}}
    assert script.proven(report, ran=True) == {"A-1"}
    assert script.proven(report, ran=False) == {"A-1", "A-2", "A-3"}


def test_every_section_of_the_gateway_counts(script: ModuleType) -> None:
    of_the_gateway = [row for row in statements().values() if row.file == "GATEWAY"]
    assert all(script.counts(row) for row in of_the_gateway)
    assert {row.section for row in of_the_gateway} == set(range(1, 14))


def test_the_excuses_name_statements_that_count(script: ModuleType) -> None:
    assert {id for id in script.excuses() if id not in statements() or not script.counts(statements()[id])} == set()


def test_the_script_exits_with_1_for_a_gap(script: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"ids": {"RUN-01": {"t": "passed"}}}))
    lines: list[str] = []
    assert script.main(["--report", str(report)], lines.append) == 1
    assert any(line.startswith("RUN-02: no test and no reason") for line in lines)
    assert not any(line.startswith("RUN-01") for line in lines)
    everything = {id: {"t": "passed"} for id in statements() if id not in script.excuses()}
    report.write_text(json.dumps({"ids": everything}))
    assert script.main(["--report", str(report)], lines.append) == 0
    assert lines[-1] == "0 problem(s)"
