"""Thousands of requests, with faults among them, leave nothing in the processes that answer."""

from pathlib import Path

from crowds import samples
from deployments import SERVE, deployed, everywhere, until
from mixture import (
    FAULTS,
    MODEL,
    SETTINGS,
    Traces,
    assert_same,
    load,
    load_while_a_worker_dies,
    replaced_workers,
)

# The allocator and the caches of Python grow in steps; a leak of 1 KB in each request is 1.6 MB.
FREE = 1_600_000


@everywhere
def test_faults_leave_nothing_behind(how: str, directory: Path) -> None:
    with deployed(how, MODEL, directory, env=SETTINGS) as deployment:
        load(deployment, 1600, seed=1, faults=0.2)
        before = Traces.of(deployment)
        seen = load(deployment, 1600, seed=2)
        assert set(FAULTS) < set(seen) and seen["good"] > 1400 and not seen["lost"]
        until(lambda: samples(deployment.server)["ventu_queue_jobs"] == 0)
        after = assert_same(deployment, before)
        grown = zip(after.memory, before.memory, strict=True)
        assert max(now - then for now, then in grown) < FREE
        assert after.totals == before.totals


@everywhere
def test_workers_that_die_leave_nothing_behind(how: str, directory: Path) -> None:
    with deployed(how, MODEL, directory, env=SETTINGS) as deployment, replaced_workers(deployment):
        load_while_a_worker_dies(deployment, 640, seed=1)
        before = Traces.of(deployment)
        load_while_a_worker_dies(deployment, 640, seed=2)
        after = assert_same(deployment, before)
        assert after.memory[0] - before.memory[0] < FREE
        more = 0 if how == SERVE else 4  # elsewhere nobody puts the totals of the dead together
        assert after.totals <= before.totals + more
