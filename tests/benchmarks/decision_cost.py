"""Print what the adaptive wait costs: for each job, each decision and each batch.

Run ``python tests/benchmarks/decision_cost.py``; lower is better.
"""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from measuring import verdict

from ventu_lite.batching.adaptive import AdaptiveWait

TIMES, ROUNDS = 20_000, 9


@dataclass(frozen=True)
class Running:
    size: int
    released_at: float


def trained(clients: int, think: float) -> tuple[AdaptiveWait, float]:
    """Return a policy after many rounds of a closed loop around one worker, and the time."""
    policy, now, rng = AdaptiveWait(0.01), 1.0, random.Random(5)
    for _ in range(200):
        back = sorted(now + rng.expovariate(1 / think) for _ in range(clients))
        for at in back:
            policy.job_arrived(at)
        policy.batch_released(clients, back[clients // 2])  # who is late then comes soon
        now = back[-1] + 0.005 + clients * 0.0002
        policy.batch_finished(clients, now - back[-1], now)
    return policy, now


def report(label: str, step: Callable[[float], object], now: float, goal: float) -> None:
    """Print the microseconds of one step, median and least; the time moves on between steps."""
    nows = [now + n * 1e-9 for n in range(TIMES)]
    rounds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for at in nows:
            step(at)
        rounds.append((time.process_time() - start) / TIMES * 1e6)
    print(verdict(label, statistics.median(rounds), goal, " µs"), f"(least {min(rounds):.2f})")


def report_decision(label: str, clients: int, think: float, idle: int, out: int) -> None:
    """Print what a new decision costs, and the same question once more."""
    policy, now = trained(clients, think)
    busy = [Running(16, now - n * 1e-4) for n in range(out, 0, -1)]

    def decide(at: float) -> float:
        return policy.due_at(at, since=now, waiting=4, room=28, idle=idle, busy=busy)

    report(f"decision, {label}", decide, now, 5.0)
    print(f"    {policy.last_decision}")


def main() -> None:
    """Print one line per kind of call."""
    report_decision("16 clients, thinking 0.3 ms", 16, 3e-4, 1, 0)
    report_decision("16 clients, thinking 2 ms", 16, 2e-3, 1, 0)
    report_decision("64 clients, thinking 10 ms, all bins worth a look", 64, 1e-2, 1, 0)
    report_decision("64 clients, one of 64 workers idle", 64, 1e-2, 1, 63)
    report_decision("64 clients, 8 of 64 workers idle", 64, 1e-2, 8, 56)
    policy, now = trained(16, 2e-3)
    ask = {"since": now, "waiting": 4, "room": 28, "idle": 1, "busy": ()}
    report("the same question again", lambda _: policy.due_at(now, **ask), now, 5.0)  # type: ignore[arg-type]
    report("a job", policy.job_arrived, now, 0.3)
    report("a batch", lambda at: policy.batch_finished(16, 0.008, at), now, 10.0)


if __name__ == "__main__":
    main()
