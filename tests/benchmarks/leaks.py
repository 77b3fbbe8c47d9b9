"""Does anything stay behind? Many requests with faults among them, and workers that are killed.

Run ``python tests/benchmarks/leaks.py`` on Linux; gunicorn has to be installed. One request in
twenty has a fault: it is invalid, raises in the model or calls ``abort``, is no HTTP at all, or its
client leaves somewhere in the midst of it. In each round one worker is killed. Prints what
``serve`` and gunicorn have of the system after a warm-up of two rounds and after each round, and
how much more that is at the end.
"""

import argparse
import sys
from collections import Counter
from itertools import zip_longest
from pathlib import Path

from measuring import verdict

TESTS = Path(__file__).parent.parent
sys.path += [str(TESTS), str(TESTS / "faults")]

from deployments import GUNICORN, SERVE, deployed  # noqa: E402  # after the line above
from mixture import (  # noqa: E402
    MODEL,
    SETTINGS,
    Traces,
    load_while_a_worker_dies,
    replaced_workers,
)
from processes import short_directory  # noqa: E402

WARM_UP = 2  # rounds


def row(name: str, traces: Traces) -> str:
    """Return a line of the table; the front comes first, then the workers together."""
    memory, files, threads = traces.memory, traces.files, traces.threads
    return (
        f"{name:>10} {memory[0] / 1e6:10.1f} {sum(memory[1:]) / 1e6:10.1f}"
        f" {files[0]:7} {sum(files[1:]):7} {threads[0]:7} {sum(threads[1:]):7}"
        f" {len(memory):9} {traces.temporary:9} {traces.totals:7}"
    )


def endure(how: str, count: int, rounds: int, workers: int) -> None:
    """Load one deployment, and print what it has."""
    kinds: Counter[str] = Counter()
    print(f"\n{how}: {count:,} requests in {rounds} rounds, {rounds} workers killed")
    print(f"{'memory, MB':>32} {'files':>15} {'threads':>15} processes temporary metrics")
    print(f"{'':10} {'parent':>10} {'workers':>10}" + 2 * f" {'parent':>7} {'workers':>7}")
    with (
        short_directory() as folder,
        deployed(how, MODEL, folder, workers=workers, env=SETTINGS) as deployment,
        replaced_workers(deployment),
    ):
        for serial in range(WARM_UP):
            load_while_a_worker_dies(deployment, count // rounds, seed=-serial)
        before = now = Traces.of(deployment)
        print(row("warm", before), flush=True)
        for serial in range(1, rounds + 1):
            kinds += load_while_a_worker_dies(deployment, count // rounds, seed=serial)
            now = Traces.of(deployment)
            print(row(str(serial * (count // rounds)), now), flush=True)
    print("requests:", ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common()))
    judge(before, now)


def judge(before: Traces, now: Traces) -> None:
    """Print how much more there is."""
    grown = (now.memory[0] - before.memory[0]) / 1e6
    print(verdict("memory of the parent, more", grown, 5, " MB"))
    pairs = zip_longest(before.memory[1:], now.memory[1:], fillvalue=0)
    grown = max((late - early) / 1e6 for early, late in pairs)
    print(verdict("memory of a worker, more", grown, 5, " MB"))
    print(verdict("files, more", sum(now.files) - sum(before.files), 0, ""))
    more = sum(now.lasting_threads()) - sum(before.lasting_threads())
    print(verdict("threads, more", more, 0, ""))
    print(verdict("processes, more", len(now.files) - len(before.files), 0, ""))
    print(verdict("temporary files, more", now.temporary - before.temporary, 0, ""))
    print(verdict("files with metrics, more", now.totals - before.totals, 0, ""))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500_000, help="to `serve`")
    parser.add_argument("--gunicorn", type=int, default=50_000, help="requests to gunicorn")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2, help="of `serve`")
    options = parser.parse_args()
    if options.requests:
        endure(SERVE, options.requests, options.rounds, options.workers)
    if options.gunicorn:
        endure(GUNICORN, options.gunicorn, options.rounds, 1)


if __name__ == "__main__":
    main()
