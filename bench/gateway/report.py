"""How the gateway's figures are shown: on the terminal, in ``bench/results/gateway.json`` and ``docs/benchmarks.md``.

What must live here: words, rounding, and the targets beside the figures. What must not: measuring.
"""

from statistics import median
from typing import Any

import msgspec

from bench.report import OTHERS, PAGE, ROOT, SPREAD, say, table, update

RESULTS = ROOT / "bench" / "results" / "gateway.json"
BEGIN = "<!-- gateway figures: written by `make bench-gateway` from bench/results/gateway.json -->"
END = "<!-- end of gateway figures -->"
FLAT_MB = 5.0  # what may come and go in a process whose memory is flat

_Json = dict[str, Any]
__all__ = ["say", "text", "write"]


def _find(found: _Json, name: str, kind: str, connections: int) -> _Json:
    return next(
        row
        for row in found["rows"]
        if row["name"] == name and row["kind"] == kind and row["connections"] == connections
    )


def _targets(found: _Json) -> list[tuple[str, ...]]:
    """Each target: its words, the figure, the promise, whether it is kept."""
    own, theirs = _find(found, "loomgate", "json", 1), _find(found, "portkey", "json", 1)
    ratio = median(_find(found, "loomgate", "json", 16)["of_portkey"])
    added = own["added_p50"] / theirs["added_p50"]
    by_cpu = _find(found, "portkey", "json", 16)["cpu_us"] / _find(found, "loomgate", "json", 16)["cpu_us"]
    first = _find(found, "loomgate", "sse", 1)["added_first_p50"]
    peak, many, slow = found["peak_mb"]["loomgate"], found["many"]["growth_mb"], found["slow"]["growth_mb"]
    lost = found["log_lost"]
    rows = [
        ("requests/s at 16 connections, times Portkey's", f"{ratio:.1f} x", "≥ 8 x", ratio >= 8),
        ("the same by processor time, which no other program takes", f"{by_cpu:.1f} x", "≥ 8 x", by_cpu >= 8),
        ("added latency at 1 connection, of Portkey's", f"{added:.0%}", "≤ 50 %", added <= 0.5),
        ("added to the first token of a stream, p50", f"{first:.2f} ms", "< 1 ms", first < 1),
        ("peak memory, all of it", f"{peak:.0f} MB", "≤ 100 MB", peak <= 100),
        (
            f"memory over {found['many']['requests']:,} requests",
            f"{many:+.1f} MB",
            f"≤ {FLAT_MB:g} MB",
            many <= FLAT_MB,
        ),
        ("memory with a slow reader of a fast stream", f"{slow:+.1f} MB", f"≤ {FLAT_MB:g} MB", slow <= FLAT_MB),
        ("records of the log of calls that were lost", f"{lost:,.0f}", "0", lost == 0),
    ]
    return [(words, value, promise, "yes" if met else "NO") for words, value, promise, met in rows]


def _disturbed(found: _Json) -> list[str]:
    reasons = [
        f"a fixed loop {when} the measurements took between 1 and {found[f'noise_{when}']['spread']:.2f} times as long"
        for when in ("before", "after")
        if found[f"noise_{when}"]["spread"] > SPREAD
    ]
    others = max(row["others_share"] for row in found["rows"] if row["name"] != "direct")
    if others > OTHERS:
        reasons.append(f"other programs used up to {others:.0%} of the measured core")
    return reasons


def _speed(found: _Json, kind: str) -> str:
    rows = [row for row in found["rows"] if row["kind"] == kind]
    what = ("first token p50 ms", "added") if kind == "sse" else ("p50 ms", "added")
    head = ("", "connections", "answers/s", "of Portkey's", *what, "p99 ms", "CPU us/answer", "core used by others")
    figure = "first_p50" if kind == "sse" else "p50"
    lines: list[tuple[str, ...]] = []
    for row in rows:
        alone = row["name"] == "direct"
        low, high = min(row["of_portkey"]), max(row["of_portkey"])
        lines.append(
            (
                "upstream alone" if alone else row["name"],
                str(row["connections"]),
                f"{row['rate']:,.0f}",
                "" if row["name"] == "portkey" else f"{median(row['of_portkey']):.1f} ({low:.1f} to {high:.1f})",
                f"{row[figure]:.3f}",
                "" if alone else f"{row[f'added_{figure}']:.3f}",
                f"{row['p99']:.2f}",
                "" if alone else f"{row['cpu_us']:.0f}",
                "" if alone else f"{row['others_share']:.0%}",
            )
        )
    return table(head, lines)


def text(found: _Json) -> str:
    """All figures as Markdown."""
    about, versions = found["machine"], found["versions"]
    before, after = found["noise_before"], found["noise_after"]
    disturbed = _disturbed(found)
    many, slow = found["many"], found["slow"]
    return "\n".join(
        [
            f"Measured on {found['date']}: {about['processor']}, {about['cores']} cores, {about['system']}, "
            f"Python {about['python']}; @portkey-ai/gateway {versions['portkey']} on Node.js {versions['node']}, "
            f"{versions['nginx']}. The whole session took {found['minutes']:.1f} minutes.",
            "The machine was quiet"
            if not disturbed
            else "**The machine was not quiet, so repeat this before you rely on it:** " + "; ".join(disturbed),
            f"(a fixed loop took {before['median_ms']:.2f} ms before, {after['median_ms']:.2f} ms after; its p95 was "
            f"{before['spread']:.2f} and {after['spread']:.2f} times its p5).",
            "",
            table(("figure", "measured", "target", "met"), _targets(found)),
            "",
            "Answers of 1 KB:",
            "",
            _speed(found, "json"),
            "",
            "Streams of 100 events:",
            "",
            _speed(found, "sse"),
            "",
            table(
                ("memory, MB", "after start", "peak"),
                [(name, f"{found['idle_mb'][name]:.0f}", f"{peak:.0f}") for name, peak in found["peak_mb"].items()],
            ),
            "",
            f"Over {many['requests']:,} requests the gateway had "
            + ", ".join(f"{value:.1f}" for value in many["resident_mb"])
            + " MB resident (before, and after each fifth); of its log's records "
            f"{many['log_lost']:,.0f} were lost meanwhile. With the slow reader it had between "
            f"{min(slow['resident_mb']):.1f} and {max(slow['resident_mb']):.1f} MB: the client took "
            f"{slow['slowly_mb']:.0f} MB slowly, the upstream was {max(slow['ahead_mb'], default=0):.1f} MB ahead at "
            f"most (most of that in the kernel's socket buffers), and all of the {slow['total_mb']:.0f} MB came.",
        ]
    )


def write(found: _Json) -> None:
    """Keep ``found`` as the last results and put them into the page."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    update(PAGE, text(found), BEGIN, END)
    say(f"written: {RESULTS.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}")


def main() -> None:
    """Write the page again from the last results (after a change of its words)."""
    update(PAGE, text(msgspec.json.decode(RESULTS.read_bytes())), BEGIN, END)


if __name__ == "__main__":
    main()
