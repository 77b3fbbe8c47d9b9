"""How long an adaptive wait holds a batch: clear cases, any events, and a simulation."""

import importlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ventu_lite.batching.adaptive import AdaptiveWait, Decision
from ventu_lite.batching.policy import Policy

MS = 1e-3
LIMIT = 32
FIXED, EACH = 5 * MS, 0.2 * MS


@dataclass(frozen=True)
class Running:
    size: int
    released_at: float


def ask(
    policy: Policy,
    now: float,
    *,
    since: float | None = None,
    waiting: int = 1,
    idle: int = 1,
    busy: Sequence[Running] = (),
) -> float:
    """Return the seconds to wait from now on."""
    since = now if since is None else since
    room = LIMIT - waiting
    due_at = policy.due_at(now, since=since, waiting=waiting, room=room, idle=idle, busy=busy)
    return due_at - now


def after_closed_loop(clients: int, think: Callable[[int], float]) -> tuple[AdaptiveWait, float]:
    """Return a policy that knows a closed loop around one worker, and when its batch finished."""
    policy, now = AdaptiveWait(10 * MS), 100.0
    for _ in range(100):
        back = sorted(now + think(n) for n in range(clients))
        for n, at in enumerate(back):
            policy.job_arrived(at)
            if n < clients - 1:
                ask(policy, at, since=back[0], waiting=n + 1)
        seconds = FIXED + EACH * clients
        now = back[-1] + seconds
        policy.batch_finished(clients, seconds, now)
    return policy, now


def after_half_batches() -> tuple[AdaptiveWait, float]:
    """Return a policy that knows that 8 jobs come 0.25 ms after a batch, while 8 others wait."""
    policy, now = AdaptiveWait(10 * MS), 100.0
    for _ in range(100):
        ask(policy, now, waiting=8)
        for _ in range(8):
            policy.job_arrived(now + 0.25 * MS)
        now += 8.45 * MS
        policy.batch_finished(16, FIXED + EACH * 16, now)
    return policy, now


def after_bursts(fixed: float, each: float, size: int = 8) -> tuple[AdaptiveWait, float]:
    """Return a policy that knows that so many come 0.25 ms after a batch, while others wait."""
    policy, now = AdaptiveWait(10 * MS), 100.0
    for n in range(100):
        ask(policy, now, waiting=size)
        for _ in range(size):
            policy.job_arrived(now + 0.25 * MS)
        batch = size + n % (size + 1)  # of one size only, nothing is known of others
        seconds = fixed + each * batch
        now += 0.25 * MS + seconds
        policy.batch_finished(batch, seconds, now)
    return policy, now


def after_stream(
    rate: float, workers: int = 1, size: int = 1, seconds: float = FIXED
) -> tuple[AdaptiveWait, float]:
    """Return a policy that knows a steady stream of that many jobs per second."""
    policy, now = AdaptiveWait(10 * MS), 100.0
    for _ in range(300):
        gap = size / rate
        for n in range(size):
            policy.job_arrived(now + gap * n / size)
        now += gap
        policy.batch_finished(size, seconds, now)
    return policy, now


def test_a_job_goes_at_once_as_long_as_nothing_is_known() -> None:
    policy = AdaptiveWait(10 * MS)
    policy.job_arrived(100.0)

    assert ask(policy, 100.0) == 0


def test_a_lone_job_at_low_load_goes_at_once() -> None:
    policy, now = after_stream(rate=10.0)
    policy.job_arrived(now + 1)

    assert ask(policy, now + 1) == 0


def test_a_lone_client_is_never_kept() -> None:
    policy, now = after_closed_loop(1, lambda n: 0.3 * MS)
    policy.job_arrived(now + 0.3 * MS)

    assert ask(policy, now + 0.3 * MS) == 0


def test_company_that_is_about_to_come_is_waited_for() -> None:
    """Fifteen others are always back within 0.3 ms of the first; missing them costs 5 ms each."""
    policy, now = after_closed_loop(16, lambda n: 0.2 * MS + n * 0.02 * MS)
    policy.job_arrived(now + 0.2 * MS)

    assert 0.2 * MS < ask(policy, now + 0.2 * MS) < 1 * MS


def test_jobs_that_wait_when_the_worker_comes_free_wait_for_the_answered_clients() -> None:
    """The clock of the limit starts then: these jobs are not too old to wait 0.3 ms."""
    policy, now = after_half_batches()

    assert ask(policy, now, waiting=8) == pytest.approx(0.3 * MS)


def after_loop_in_two_parts(clients: int) -> tuple[AdaptiveWait, float]:
    """Return a policy that knows a loop of which any part comes first, the others 0.4 ms later."""
    policy, now, rng = AdaptiveWait(10 * MS), 100.0, random.Random(3)
    for _ in range(200):
        first, here = now + 0.5 * MS, rng.randint(1, clients)
        for _ in range(here):
            policy.job_arrived(first)
        ask(policy, first, waiting=here)
        policy.batch_released(here, first)
        for _ in range(clients - here):
            policy.job_arrived(first + 0.4 * MS)
        now = first + FIXED + EACH * clients
        policy.batch_finished(clients, FIXED + EACH * clients, now)
    return policy, now


@pytest.mark.parametrize(("here", "least", "most"), [(4, 0.3, 1.0), (16, 0.0, 0.0)])
def test_who_is_missing_of_a_loop_is_waited_for_and_nobody_else(
    here: int, least: float, most: float
) -> None:
    policy, now = after_loop_in_two_parts(16)
    first = now + 0.5 * MS
    for _ in range(here):
        policy.job_arrived(first)

    assert least * MS <= ask(policy, first, waiting=here) <= most * MS


def after_late_waits(late: float, times: int) -> tuple[AdaptiveWait, float, float]:
    """Return a policy whose waits ended late, when its batch finished, and the first wait."""
    policy, now = after_half_batches()
    first = ask(policy, now, waiting=24)
    for _ in range(times):
        wait = ask(policy, now, waiting=24)
        ask(policy, now + wait + late, since=now, waiting=24)
        policy.batch_released(24, now + wait + late)
        for _ in range(8):
            policy.job_arrived(now + 0.25 * MS)
        now += 8.45 * MS
        policy.batch_finished(16, FIXED + EACH * 16, now)
    return policy, now, first


def test_waits_that_end_late_are_worth_less() -> None:
    policy, now, first = after_late_waits(8 * MS, times=20)

    assert first > 0
    assert ask(policy, now, waiting=24) == 0


def test_waits_that_end_a_little_late_are_still_worth_it() -> None:
    policy, now, first = after_late_waits(0.1 * MS, times=20)

    assert ask(policy, now, waiting=24) == pytest.approx(first)


def test_who_was_passed_over_was_not_late() -> None:
    policy, now = after_half_batches()
    first = ask(policy, now, waiting=24)
    for _ in range(100):
        wait = ask(policy, now, waiting=24)
        policy.passed_over()
        ask(policy, now + wait + 8 * MS, since=now, waiting=24)

    assert ask(policy, now, waiting=24) == pytest.approx(first)


def test_jobs_that_left_were_not_late() -> None:
    (policy, now), (other, _) = after_half_batches(), after_half_batches()
    for n in range(100):
        ask(policy, now, waiting=24)  # they leave before their time has come
        for one in (policy, other):
            ask(one, now + 8 * MS + n, since=now + 8 * MS + n, waiting=24)

    later = now + 101
    for one in (policy, other):
        one.batch_finished(16, FIXED + EACH * 16, later)
    assert ask(policy, later, waiting=24) == ask(other, later, waiting=24)
    assert policy.last_decision == other.last_decision


def test_it_is_tried_again_whether_waits_end_late() -> None:
    policy, now, first = after_late_waits(8 * MS, times=20)
    for _ in range(50):
        policy.batch_released(16, now)

    assert ask(policy, now, waiting=24) == pytest.approx(first)


def test_a_wait_that_no_worker_saw_the_end_of_counts_no_more_than_the_limit() -> None:
    policy, now, first = after_late_waits(3600.0, times=1)

    assert ask(policy, now, waiting=24) == pytest.approx(first)


def test_no_company_is_expected_after_everybody_came() -> None:
    policy, now = after_half_batches()
    ask(policy, now, waiting=8)

    assert ask(policy, now + 0.3 * MS, since=now, waiting=16) == 0


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("fixed", "each", "wait"),
    [
        pytest.param(8 * MS, 0.0, 0.3 * MS, id="a-batch-takes-what-one-job-takes"),
        pytest.param(5 * MS, 0.2 * MS, 0.3 * MS, id="both"),
        pytest.param(0.0, 1 * MS, 0.0, id="one-after-another"),
    ],
)
def test_company_is_worth_what_a_batch_costs_whatever_its_size(
    workers: int, fixed: float, each: float, wait: float
) -> None:
    """A model that takes its jobs one by one gains nothing from batches."""
    policy, now = after_bursts(fixed, each)
    busy = [Running(8, now)] * (workers - 1)

    assert ask(policy, now, waiting=8, busy=busy) == pytest.approx(wait)


def test_many_do_not_let_few_make_their_batch_longer() -> None:
    """Eight are about to come: 40 would be answered 8 * 0.2 ms later for them."""
    policy, now = after_bursts(5 * MS, 0.2 * MS)
    busy = [Running(8, now - 2 * MS)]

    def wait(waiting: int) -> float:
        due_at = policy.due_at(now, since=now, waiting=waiting, room=100, idle=1, busy=busy)
        return due_at - now

    assert wait(8) > 0
    assert wait(40) == 0


@pytest.mark.parametrize("idle", [1, 2])
def test_a_model_that_takes_one_by_one_is_held_by_no_rate(idle: int) -> None:
    """More seem to come than the workers can do; full batches would do no more."""
    policy, now = AdaptiveWait(10 * MS), 100.0
    for n in range(300):
        size = 1 + n % 2
        for _ in range(size):
            policy.job_arrived(now)
            now += 0.4 * MS
        policy.batch_finished(size, size * 1 * MS, now)

    assert ask(policy, now, idle=idle, busy=[Running(1, now)] * (2 - idle)) == 0
    assert policy.last_decision.wanted == 1


def test_many_do_not_wait_for_few() -> None:
    """Thirty jobs for 2 ms cost more than one job that misses the batch."""
    policy, now = after_closed_loop(2, lambda n: 2 * MS)

    assert ask(policy, now, waiting=30) == 0


def test_at_low_load_nobody_waits_while_another_worker_is_idle() -> None:
    """Who misses this batch loses nothing."""
    policy, now = after_half_batches()
    slow = Running(1, now)

    assert ask(policy, now, idle=1) > 0
    assert ask(policy, now, idle=30, busy=[slow]) == 0


def test_a_worker_that_is_about_to_come_free_is_as_good_as_an_idle_one() -> None:
    """The last of the losses decides: here 0.1 ms for those who miss the batch."""
    policy, now = after_closed_loop(4, lambda n: 1 * MS)
    took = FIXED + EACH * 4
    ask(policy, now, waiting=3, busy=[Running(4, now - 1 * MS)] * 20)
    long = policy.last_decision.loss
    ask(policy, now, waiting=2, busy=[Running(4, now - took + 0.1 * MS)] * 20)

    assert long == pytest.approx(took - 1 * MS)
    assert policy.last_decision.loss == pytest.approx(0.1 * MS)


def test_a_batch_that_is_late_is_expected_to_need_as_much_again() -> None:
    """A worker that hangs must not count as one that is nearly free."""
    policy, now = after_closed_loop(4, lambda n: 1 * MS)
    ask(policy, now, busy=[Running(4, now - FIXED - EACH * 4 - 3 * MS)])

    assert policy.last_decision.loss == pytest.approx(3 * MS)


@pytest.mark.parametrize(
    ("rate", "workers", "wanted"),
    [
        pytest.param(50.0, 4, 0, id="low-load"),
        pytest.param(1600.0, 2, 4, id="two-workers"),
        pytest.param(8000.0, 8, 5, id="eight-workers"),
        pytest.param(50_000.0, 2, LIMIT, id="overload"),
        pytest.param(1600.0, 1, 0, id="one-worker-has-nothing-to-spread"),
    ],
)
@pytest.mark.parametrize("idle", [1, 2])
def test_batches_are_as_large_as_keeps_workers_from_running_out(
    rate: float, workers: int, wanted: int, idle: int
) -> None:
    """With n = rate * 5 ms / workers jobs each they just never do."""
    idle = min(idle, workers)
    policy, now = after_stream(rate, size=4)
    busy = [Running(4, now)] * (workers - idle)

    ask(policy, now, idle=idle, busy=busy)

    assert policy.last_decision.wanted == wanted


def test_a_spread_batch_waits_for_the_jobs_that_are_missing() -> None:
    """Two idle workers, four jobs wanted, one there: three come in 3 / 1,600 s."""
    policy, now = after_stream(1600.0, size=4)

    assert ask(policy, now, idle=2) == pytest.approx(3 / 1600, rel=0.01)
    assert ask(policy, now, idle=2, waiting=4) == 0


def test_a_silence_counts_before_the_next_batch() -> None:
    """The rate has fallen: the jobs that are there must not wait for those of before."""
    policy, now = after_stream(1600.0, size=4)

    assert ask(policy, now + 1.0, idle=2) == 0
    assert policy.last_decision.wanted == 0


@pytest.mark.parametrize("max_wait", [0.0, 0.1 * MS, 1 * MS])
def test_nobody_waits_longer_than_the_limit(max_wait: float) -> None:
    policy, now = AdaptiveWait(max_wait), 0.0
    for _ in range(100):
        for n in range(20):
            policy.job_arrived(now + n * 0.05 * MS)
        now += 10 * MS
        policy.batch_finished(20, 9 * MS, now)

    assert ask(policy, now) <= max_wait + 1e-12
    assert ask(policy, now + 0.05 * MS, since=now) <= max(0, max_wait - 0.05 * MS) + 1e-12
    assert ask(policy, now + 5 * MS, since=now) == 0


def test_without_a_limit_the_wait_ends_where_nothing_is_known() -> None:
    """A minute is at stake, and a job comes 1.2 s after each batch; bins end at about 1.3 s."""
    policy, now = AdaptiveWait(1e9), 100.0
    for _ in range(50):
        policy.job_arrived(now + 1.2)
        now += 60
        policy.batch_finished(1, 60.0, now)

    assert ask(policy, now) == pytest.approx(1.3, rel=0.01)


def test_the_same_question_gets_the_same_answer() -> None:
    policy, now = after_half_batches()

    assert ask(policy, now, waiting=8) == ask(policy, now, waiting=8) > 0


def test_a_new_batch_time_changes_the_answer_to_the_same_question() -> None:
    policy, now = after_half_batches()
    before = ask(policy, now, waiting=8)
    for _ in range(400):
        policy.batch_finished(16, 0.0, now)

    assert ask(policy, now, waiting=8) < before


def test_a_decision_can_be_explained() -> None:
    policy, now = after_half_batches()
    assert AdaptiveWait(1.0).last_decision == Decision(0, 0, 0, 0.0, 0.0, 0.0, 0.0)

    wait = ask(policy, now, waiting=8)

    decision = policy.last_decision
    assert (decision.waiting, decision.room, decision.wanted) == (8, 24, 0)
    assert decision.wait == pytest.approx(wait)
    assert decision.expected == pytest.approx(8 / 1.3, rel=0.02)
    assert decision.loss == pytest.approx(FIXED + EACH * 16, rel=0.01)
    assert 0 < decision.gain < decision.expected * decision.loss


STEPS = st.sampled_from([0.0, 0.0, 1e-9, 1e-6, 1e-4, 1e-3, 5e-3, 0.1, 3600.0, 1e7])
EVENTS = st.tuples(
    st.sampled_from(["arrive", "arrive", "finish", "ask", "ask"]),
    STEPS,
    st.integers(1, 31),
    st.sampled_from([0.0, 1e-9, 1e-3, 2e-2, 60.0, 1e6]),
)


@given(
    start=st.sampled_from([0.0, 1e-3, 1e6]),
    max_wait=st.sampled_from([0.0, 1e-4, 1e-2, 0.3, 1e4]),
    workers=st.integers(1, 9),
    events=st.lists(EVENTS, max_size=60),
)
def test_any_events_give_a_time_between_now_and_the_limit(
    start: float, max_wait: float, workers: int, events: list[tuple[str, float, int, float]]
) -> None:
    policy, now, since = AdaptiveWait(max_wait), start, start
    for event, step, size, seconds in events:
        now += step
        if event == "arrive":
            policy.job_arrived(now)
        elif event == "finish":
            policy.batch_finished(size, seconds, now)
            policy.batch_released(size, now)
            since = now
        else:
            since = now if now > since + max_wait else since
            busy = [Running(size, now - seconds)] * (workers - 1)
            wait = ask(policy, now, since=since, waiting=size, busy=busy)
            assert 0 <= wait <= max(0.0, since + max_wait - now)
            numbers = policy.last_decision
            assert all(math.isfinite(getattr(numbers, name)) for name in numbers.__slots__)
            assert numbers.gain >= 0


def test_memory_does_not_grow() -> None:
    """A worker may hang for hours while jobs come and expire."""
    policy, now = after_closed_loop(4, lambda n: 1 * MS)
    sizes = [len(part.counts) for part in (policy._after_batch, policy._after_first)]
    rng = random.Random(1)
    for _ in range(10_000):
        now += rng.expovariate(100)
        policy.job_arrived(now)
        ask(policy, now)

    assert [len(part.counts) for part in (policy._after_batch, policy._after_first)] == sizes


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the simulator, which lives with the benchmarks."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "benchmarks")
    return importlib.import_module("simulate")


@pytest.mark.parametrize("late", [0.0, 3 * MS], ids=["timers in time", "late timers"])
def test_no_constant_is_better_in_simulated_time(simulate: Any, late: float) -> None:
    """One cell of each kind and number of workers; the whole grid takes minutes."""
    cells = [cell for cell in simulate.note_grid()[::19] if cell.clients <= 64]

    timers = simulate.Timers(tick=0.05 * MS, late=late)
    ratios = simulate.compare(cells, [1], least=600, timers=timers, processes=1)

    adaptive = [by["adaptive"] for by in ratios.values()]
    assert simulate.geometric_mean(adaptive) <= 1.0
    assert max(adaptive) <= 1.08


def test_the_numbers_are_told_to_people() -> None:
    policy, now = after_closed_loop(16, lambda n: 1 * MS)
    wait = ask(policy, now, waiting=4)

    assert policy.explain().startswith("4 waited, ")
    assert f"to wait for {wait * 1e3:.3f} ms gains " in policy.explain()
