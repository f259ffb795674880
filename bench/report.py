"""How the figures are shown: a table on the terminal, ``bench/results/latest.json``, and ``docs/benchmarks.md``.

What must live here: words, rounding, and the targets beside the figures. What must not: measuring, or deciding
what a figure is. The page's text is written by hand; only what stands between its two markers is replaced.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "latest.json"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN = "<!-- figures: written by `make bench` from bench/results/latest.json -->"
END = "<!-- end of figures -->"

# Beyond these the machine was not quiet: p95 / p5 of one fixed loop; share of the server's core used by others.
SPREAD, OTHERS = 1.25, 0.05

_Json = dict[str, Any]


class Target(NamedTuple):
    """A figure that we promise: its words, the promise, how to find it in the results, and whether less is better."""

    figure: str
    promise: float
    unit: str
    find: Callable[[_Json], float]
    at_most: bool = True

    def met(self, value: float) -> bool:
        """Whether ``value`` keeps the promise."""
        return value < self.promise if self.at_most else value >= self.promise


def _runs(found: _Json) -> float:
    return max(row["rate"] for row in found["runs"])


def _added(found: _Json) -> float:
    return found["first_token"]["added_p50"]


def _startup(found: _Json) -> float:
    return found["startup"]["fresh"]


def _growth(found: _Json) -> float:
    return max((row["p50_ratio"] - 1) * 100 for row in found["lists"]["growth"])


def _peak(found: _Json) -> float:
    return max(found["runs_peak_mb"], *(store["peak_mb"] for store in found["lists"]["stores"]))


def _lists(found: _Json) -> float:
    return min(row["rate"] for row in found["lists"]["rows"] if row["connections"] == 16)


TARGETS = (
    Target(
        "runs a second on one core (best of the client counts)",
        300,
        "/s",
        _runs,
        False,
    ),
    Target("added to the first token by a run, p50", 10, "ms", _added),
    Target("lists of 20 runs a second on one core, 16 clients, slowest store", 3_000, "/s", _lists, False),
    Target("growth of a list's p50 from the smallest store to the largest, worst case", 20, "%", _growth),
    Target("peak memory, any phase", 120, "MB", _peak),
    Target("start-up on a fresh data folder, to the first 200", 1, "s", _startup),
)


def say(words: str) -> None:
    """Tell whoever waits what is going on."""
    print(f"bench: {words} …", file=sys.stderr, flush=True)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table, aligned so that it reads well as plain text too; all columns but the first to the right."""
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]

    def line(row: tuple[str, ...]) -> str:
        cells = [
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = (
        "|" + "|".join("-" * (width + 2) if n == 0 else "-" * (width + 1) + ":" for n, width in enumerate(widths)) + "|"
    )
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def quiet(found: _Json) -> list[str]:
    """What disturbed the measurement; empty if the figures can be trusted."""
    reasons: list[str] = []
    for when in ("before", "after"):
        spread = found[f"noise_{when}"]["spread"]
        if spread > SPREAD:
            reasons.append(f"a fixed loop {when} the measurements took between 1 and {spread:.2f} times as long")
    others = max(row["others_share"] for row in (*found["runs"], *found["lists"]["rows"]))
    if others > OTHERS:
        reasons.append(f"other programs used up to {others:.0%} of the server's core")
    return reasons


def text(found: _Json) -> str:
    """All figures as Markdown."""
    targets: list[tuple[str, ...]] = []
    for target in TARGETS:
        value = target.find(found)
        promise = f"{'<' if target.at_most else '≥'} {target.promise:,.0f} {target.unit}"
        digits = 1 if value < 100 else 0
        measured = f"{value:,.{2 if target.unit == 's' else digits}f} {target.unit}"
        targets.append((target.figure, measured, promise, "yes" if target.met(value) else "NO"))
    about, first = found["machine"], found["first_token"]
    before, after = found["noise_before"], found["noise_after"]
    disturbed = quiet(found)
    lists = found["lists"]
    parts = [
        f"Measured on {found['date']}: {about['processor']}, {about['cores']} cores, {about['system']}, "
        f"Python {about['python']}; making 4 KiB durable takes {about['fsync_ms']} ms there. "
        f"The whole session took {found['minutes']:.1f} minutes.",
        "The machine was quiet"
        if not disturbed
        else "**The machine was not quiet, so repeat this before you rely on it:** " + "; ".join(disturbed),
        f"(a fixed loop took {before['median_ms']:.2f} ms before, {after['median_ms']:.2f} ms after; its p95 was "
        f"{before['spread']:.2f} and {after['spread']:.2f} times its p5).",
        "",
        "### Against the targets",
        "",
        table(("figure", "measured", "target", "met"), targets),
        "",
        "### Runs",
        "",
        table(
            (
                "clients",
                "runs/s",
                "p50 ms",
                "p99 ms",
                "first token p50 ms",
                "server CPU ms/run",
                "core used",
                "by others",
            ),
            [
                (
                    str(row["connections"]),
                    f"{row['rate']:,.0f}",
                    f"{row['p50']:.1f}",
                    f"{row['p99']:.1f}",
                    f"{row['first_p50']:.1f}",
                    f"{row['cpu_ms_per_run']:.2f}",
                    f"{row['cpu_share']:.0%}",
                    f"{row['others_share']:.0%}",
                )
                for row in found["runs"]
            ],
        ),
        "",
        "### First token, one client",
        "",
        table(
            ("", "p50 ms", "p99 ms"),
            [
                ("create a run and stream it", f"{first['run_p50']:.2f}", f"{first['run_p99']:.2f}"),
                ("call the model directly", f"{first['direct_p50']:.2f}", f"{first['direct_p99']:.2f}"),
                ("added", f"{first['added_p50']:.2f}", f"{first['added_p99']:.2f}"),
            ],
        ),
        "",
        "### Lists of 20 runs",
        "",
        table(
            ("thread", "clients", "runs stored", "lists/s", "p50 ms", "p99 ms", "server CPU us/list", "by others"),
            [
                (
                    row["layout"],
                    str(row["connections"]),
                    f"{row['runs']:,}",
                    f"{row['rate']:,.0f}",
                    f"{row['p50']:.3f}",
                    f"{row['p99']:.3f}",
                    f"{row['cpu_us']:.0f}",
                    f"{row['others_share']:.0%}",
                )
                for row in sorted(lists["rows"], key=lambda row: (row["layout"], row["connections"], row["runs"]))
            ],
        ),
        "",
        table(
            ("thread", "clients", "p50 growth", "lowest round", "highest round", "noise alone, highest"),
            [
                (
                    row["layout"],
                    str(row["connections"]),
                    f"{row['p50_ratio'] - 1:+.0%}",
                    f"{row['lowest'] - 1:+.0%}",
                    f"{row['highest'] - 1:+.0%}",
                    f"{row['noise_highest'] - 1:+.0%}",
                )
                for row in lists["growth"]
            ],
        ),
        "",
        "### Start-up and memory",
        "",
        table(
            ("", "to the first 200, s", "peak memory MB"),
            [
                ("fresh data folder", f"{found['startup']['fresh']:.2f}", f"{found['idle_mb']:.0f}"),
                ("existing data folder", f"{found['startup']['existing']:.2f}", ""),
                ("after the runs above", "", f"{found['runs_peak_mb']:.0f}"),
                *(
                    (
                        f"{store['runs']:,} runs stored ({store['file_mb']:,.0f} MB), after the lists above",
                        f"{store['startup']:.2f}",
                        f"{store['peak_mb']:.0f}",
                    )
                    for store in lists["stores"]
                ),
            ],
        ),
    ]
    return "\n".join(parts)


def write(found: _Json) -> None:
    """Keep ``found`` as the last results and put them into the page."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    update(PAGE, text(found))
    say(f"written: {RESULTS.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}")


def update(page: Path, figures: str, first: str = BEGIN, last: str = END) -> None:
    """Replace what stands between two markers of ``page``. Raises ValueError if it does not have both."""
    old = page.read_text()
    before, begin, rest = old.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"{page.name}: expected the lines {first!r} and {last!r}")
    page.write_text(f"{before}{first}\n\n{figures}\n\n{last}{after}")


def main() -> None:
    """Write the page again from the last results (after a change of its words)."""
    update(PAGE, text(msgspec.json.decode(RESULTS.read_bytes())))


if __name__ == "__main__":
    main()
