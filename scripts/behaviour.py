"""Counts which statements of BEHAVIOUR.md and GATEWAY.md have a test, and fails when one has neither test nor reason.

Without arguments it collects the tests (nothing runs). With ``--report PATH`` it reads what an earlier
``pytest --behaviour-report PATH`` wrote, and a statement counts only if one of its tests passed and none failed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.statements import Statement, statements  # noqa: E402  (the import needs the path above)

_COUNTED = {"BEHAVIOUR": frozenset({*range(1, 11), 12}), "GATEWAY": frozenset(range(1, 14))}
_LATER = {11: "not in this version", 13: "scenarios", 14: "notes, not statements"}  # of BEHAVIOUR

Report = Mapping[str, Mapping[str, str]]


def collect() -> Report:
    """Which tests name which ids, by collecting them in a process of its own; exits when collecting fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--behaviour-report", str(path), "tests"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
        return json.loads(path.read_text())["ids"]


def excuses() -> dict[str, str]:
    """Id -> reason why it has no test, from tests/data/uncovered.toml."""
    return tomllib.loads((ROOT / "tests" / "data" / "uncovered.toml").read_text())


def proven(report: Report, *, ran: bool) -> set[str]:
    """The ids with a test; after a run only those of which a test passed and none failed."""
    if not ran:
        return set(report)
    return {id for id, tests in report.items() if "passed" in tests.values() and "failed" not in tests.values()}


def problems(known: Mapping[str, Statement], covered: set[str], excused: Mapping[str, str]) -> list[str]:
    """What is wrong, a line each; empty when every counted statement is either covered or excused with a reason."""
    found = [f"{id}: excused, but there is no such statement" for id in excused if id not in known]
    for id, statement in known.items():
        if counts(statement) and id not in covered and id not in excused:
            found.append(f"{id}: no test and no reason: {statement.text[:90]}")
        if id in covered and id in excused:
            found.append(f"{id}: excused ({excused[id]}) although a test covers it")
    return found + [f"{id}: excused without a reason" for id, reason in excused.items() if not reason.strip()]


def counts(statement: Statement) -> bool:
    """Does the statement need a test or a reason?"""
    return statement.section in _COUNTED[statement.file]


def table(known: Mapping[str, Statement], covered: set[str], excused: Mapping[str, str]) -> Iterable[str]:
    """The lines to print: a row for each section, then the excused ids by reason."""
    sections: dict[tuple[str, int], list[Statement]] = {}
    for statement in known.values():
        sections.setdefault((statement.file, statement.section), []).append(statement)
    for (file, number), rows in sections.items():
        have = sum(row.id in covered for row in rows)
        note = _LATER.get(number, "") if file == "BEHAVIOUR" else ""
        without = sum(row.id in excused for row in rows)
        note = note or (f"{without} excused" if without else "")
        yield f"{file:<9} {number:>2}  {rows[0].title[:60]:<60} {have:>3}/{len(rows):<3}  {note}".rstrip()
    for file in _COUNTED:
        counted = [row for row in known.values() if row.file == file and counts(row)]
        have = sum(row.id in covered for row in counted)
        yield f"{file:<9}     {'of those that count':<60} {have:>3}/{len(counted):<3}"
    reasons: dict[str, list[str]] = {}
    for id, reason in excused.items():
        reasons.setdefault(reason, []).append(id)
    for reason, ids in reasons.items():
        yield f"{reason}: {' '.join(ids)}"


def main(arguments: list[str], show: Callable[[str], None] = print) -> int:
    """Print the table and the problems; the exit status is 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--report", type=Path, help="what `pytest --behaviour-report` wrote")
    chosen = parser.parse_args(arguments)
    report: Report = json.loads(chosen.report.read_text())["ids"] if chosen.report else collect()
    excused = excuses()
    covered = proven(report, ran=chosen.report is not None)
    for line in table(statements(), covered, excused):
        show(line)
    wrong = problems(statements(), covered, excused)
    for line in wrong:
        show(line)
    show(f"{len(wrong)} problem(s)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
