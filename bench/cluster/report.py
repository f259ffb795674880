"""How the cluster's figures are shown: on the terminal, in ``bench/results/cluster.json`` and ``docs/benchmarks.md``.

What must live here: words, rounding, and the targets beside the figures. What must not: measuring.
"""

from statistics import median
from typing import Any

import msgspec

from bench.report import PAGE, ROOT, SPREAD, say, table, update

RESULTS = ROOT / "bench" / "results" / "cluster.json"
BEGIN = "<!-- cluster figures: written by `make bench-cluster` from bench/results/cluster.json -->"
END = "<!-- end of cluster figures -->"

_Json = dict[str, Any]


def _targets(found: _Json) -> list[tuple[str, ...]]:
    best = max(row["rate"] for row in found["throughput"])
    page = max(row["p50"] for row in found["lists"]["rows"] if row["connections"] == 1)
    worst, spent = found["recovery"]["worst"], found["cost"]["transactions"]
    rows = [
        ("runs a second, best number of workers", f"{best:,.0f} /s", "≥ 150 /s", best >= 150),
        (f"list of 20 runs at {found['lists']['runs']:,} runs, one client, p50", f"{page:.2f} ms", "≤ 2 ms", page <= 2),
        ("recovery after kill -9, worst", f"{worst:.1f} s", "< 20 s", worst < 20),
        ("transactions of a plain run, reads included", f"{spent:.1f}", "≤ 6", spent <= 6),
    ]
    return [(words, value, promise, "yes" if met else "NO") for words, value, promise, met in rows]


def _disturbed(found: _Json) -> list[str]:
    return [
        f"a fixed loop on core {core} {when} the measurements took between 1 and {noise['spread']:.2f} times as long"
        for when in ("before", "after")
        for core, noise in found[f"noise_{when}"].items()
        if noise["spread"] > SPREAD
    ]


def text(found: _Json) -> str:
    """All figures as Markdown."""
    about, cost, lists, back = found["machine"], found["cost"], found["lists"], found["recovery"]
    disturbed = _disturbed(found)
    return "\n".join(
        [
            f"Measured on {found['date']}: {about['processor']}, {about['cores']} cores with everything on them, "
            f"{about['system']}, Python {about['python']}; making 4 KiB durable takes {about['fsync_ms']} ms there. "
            f"The whole session took {found['minutes']:.1f} minutes.",
            "The machine was quiet"
            if not disturbed
            else "**The machine was not quiet, so repeat this before you rely on it:** " + "; ".join(disturbed),
            f"(load average {found['load_average']:.1f} before, with nothing of ours running).",
            "",
            table(("figure", "measured", "target", "met"), _targets(found)),
            "",
            table(
                ("workers", "runs/s (each round)", "of the first", "p50 ms", "worst p99 ms"),
                [
                    (
                        str(row["workers"]),
                        f"{row['rate']:,.0f} ({', '.join(f'{rate:,.0f}' for rate in row['rates'])})",
                        f"{median(row['of_first']):.2f} ({min(row['of_first']):.2f} to {max(row['of_first']):.2f})",
                        f"{row['p50']:.0f}",
                        f"{row['p99']:.0f}",
                    )
                    for row in found["throughput"]
                ],
            ),
            "",
            f"A plain run costs {cost['transactions']:.1f} transactions, of which {cost['writing']:.1f} write; "
            f"{cost['queries']:.1f} queries and {cost['round_trips']:.1f} statements in all ("
            + ", ".join(f"{count:.1f} {word}" for word, count in cost["by_word"].items())
            + f"). Idle, the two nodes make {cost['idle_per_second']:.1f} transactions a second.",
            "",
            f"After {back['kills']} times kill -9 other workers had the {back['runs']} runs of the dead ones in "
            f"{back['median']:.1f} s (median), {back['worst']:.1f} s at worst; leases of 15 s, as they ship.",
            "",
            table(
                (f"lists of 20, {lists['runs']:,} runs", "clients", "lists/s", "p50 ms", "p99 ms"),
                [
                    (
                        f"{row['layout']} threads",
                        str(row["connections"]),
                        f"{row['rate']:,.0f}",
                        f"{row['p50']:.2f}",
                        f"{row['p99']:.2f}",
                    )
                    for row in lists["rows"]
                ],
            ),
            "",
            f"Those runs were put there in {lists['load_seconds']:.0f} s; the database has "
            f"{lists['database_mb']:,.0f} MB.",
        ]
    )


def write(found: _Json) -> None:
    """Keep ``found`` as the last results and put them into the page."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    update(PAGE, text(found), BEGIN, END)
    say(f"written: {RESULTS.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}")
