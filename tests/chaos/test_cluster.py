"""The cluster under random faults: nothing that was accepted is lost or doubled, and no viewer misses a thing.

`make test` has the short form with one seed; `make chaos` the long one with a new seed each time, which it prints.
``LOOMGATE_CHAOS_SEED`` gives the same faults at the same times and the same clients again. The machine's own timing is
not repeated, so a failure may take several tries to come back.
"""

import asyncio
import os
import random

from tests.chaos.story import Plan, happens, say
from tests.support.engines import folder

_SHORT = "2026"


def test_a_cluster_under_random_faults_loses_and_doubles_nothing() -> None:
    runs = int(os.environ.get("LOOMGATE_CHAOS_RUNS") or 0)
    seed = os.environ.get("LOOMGATE_CHAOS_SEED") or (str(random.SystemRandom().randrange(10**6)) if runs else _SHORT)
    plan = Plan(seed, runs) if runs else Plan(seed, 60, apis=2, workers=2, clients=12, faults=12, pause=(0.4, 1.6))
    say(f"\nLOOMGATE_CHAOS_SEED={plan.seed} LOOMGATE_CHAOS_RUNS={plan.runs}")
    with folder() as place:
        told = asyncio.run(happens(plan, place))
    for line in told.lines:
        say(line)
    assert not told.wrong, f"LOOMGATE_CHAOS_SEED={plan.seed}: {len(told.wrong)} faults:\n" + "\n".join(told.wrong[:40])
