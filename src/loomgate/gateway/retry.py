"""Whether a call is tried again, and how long to wait before (GATEWAY RTY-01 to RTY-10). Pure."""

import re
from collections.abc import Mapping

from loomgate.wire.policy import Retry

# For `wait` in place of a status: no connection came about, or it ended before the answer's headers.
UNCONNECTED = 0
BROKEN = -1

DEFAULT_STATUSES = frozenset({429, 500, 502, 503, 504, 529})  # RTY-02
LONGEST = 60.0  # seconds, of one wait (not reached) and of all together (RTY-06)

# Header and what one second is in it, in the order in which they count (RTY-05).
_HEADERS = (("retry-after-ms", 1000), ("x-ms-retry-after-ms", 1000), ("retry-after", 1))
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")


def wait(
    retry: Retry | None,
    tries: int,
    waited: float,
    status: int,
    headers: Mapping[str, str],
    *,
    repeatable: bool = True,
) -> float | None:
    """Seconds to wait before the next try, or None when there is none.

    ``tries``: how often the call was made so far, 1 or more. ``waited``: seconds waited between these, in all.
    ``status``: of the last answer (after the output guardrails, RTY-08), or `UNCONNECTED` or `BROKEN`; ``headers``
    its headers, names in lower case. ``repeatable``: False when a second call may do a second time what the first one
    did; then only a refused connection and 429 are tried again (PRX-12).
    """
    if retry is None or tries > retry.attempts or not _retriable(retry, status):
        return None
    if not repeatable and status not in {UNCONNECTED, 429}:
        return None
    seconds = float(2 ** (tries - 1))
    if status == 429 and (retry.use_retry_after_headers or retry.use_retry_after_header):
        asked = _asked(headers)
        seconds = seconds if asked is None else asked
    return seconds if seconds < LONGEST and waited + seconds <= LONGEST else None


def exhausted_count(retry: Retry | None, tries: int, status: int) -> int:
    """What the header of RSP-03 says after ``tries`` calls, of which the last had ``status`` (see `wait`).

    0: one try, as good as it gets; n: the n-th retry brought an answer; -1: the answer is one that is retried, but the
    attempts were used up, or waiting would have taken too long.
    """
    if retry is None or retry.attempts == 0:
        return 0
    return -1 if _retriable(retry, status) else tries - 1


def _retriable(retry: Retry, status: int) -> bool:
    statuses = retry.on_status_codes
    if statuses is None:
        return status in DEFAULT_STATUSES or status <= 0
    # 200 to 204 are successes whatever the list says (RTY-09); an empty list means never (RTY-03).
    return (status in statuses and not 200 <= status <= 204) or (status <= 0 and bool(statuses))


def _asked(headers: Mapping[str, str]) -> float | None:
    for name, second in _HEADERS:
        value = headers.get(name)
        if value is not None and _NUMBER.fullmatch(value.strip()):
            return float(value) / second
    return None
