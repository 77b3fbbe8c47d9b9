"""What an adaptive wait learns of batches and of arrivals."""

import random
from bisect import bisect_right
from collections.abc import Callable

import pytest

from ventu_lite.batching.learning import Arrivals, BatchTime, bin_edges

MS = 1e-3
EDGES = bin_edges(10 * MS)


def learned(sizes: list[int], fixed: float, each: float) -> BatchTime:
    times = BatchTime()
    for size in sizes:
        times.add(size, fixed + each * size)
    return times


@pytest.mark.parametrize(
    ("fixed", "each"),
    [
        pytest.param(5 * MS, 0.2 * MS, id="both"),
        pytest.param(20 * MS, 0.0, id="the-size-does-not-matter"),
        pytest.param(0.0, 1 * MS, id="one-after-another"),
        pytest.param(0.0, 0.0, id="nothing-at-all"),
    ],
)
def test_the_line_is_found(fixed: float, each: float) -> None:
    times = learned([1, 32, 8, 4, 16] * 4, fixed, each)

    assert times.fixed == pytest.approx(fixed, abs=1e-9)
    assert times.each == pytest.approx(each, abs=1e-9)
    assert times.of(64) == pytest.approx(fixed + each * 64, abs=1e-7)


def test_noise_averages_out() -> None:
    times, rng = BatchTime(), random.Random(1)
    for _ in range(500):
        size = rng.randint(1, 32)
        times.add(size, (5 * MS + 0.2 * MS * size) * rng.gauss(1.0, 0.05))

    assert times.of(1) == pytest.approx(5.2 * MS, rel=0.1)
    assert times.of(32) == pytest.approx(11.4 * MS, rel=0.1)


def test_batches_of_nearly_one_size_do_not_unlearn_the_slope() -> None:
    """In a closed loop they tell nothing but noise, for as long as the loop goes on."""
    times, rng = learned([1, 32, 8, 4, 16] * 4, 5 * MS, 0.2 * MS), random.Random(1)
    slopes = []
    for _ in range(1000):
        size = rng.choice([31, 32, 32, 32])
        times.add(size, (5 * MS + 0.2 * MS * size) * rng.gauss(1.0, 0.05))
        slopes.append(times.each)

    assert 0.14 * MS < min(slopes) < max(slopes) < 0.26 * MS


def test_a_new_slope_is_learned_when_sizes_tell_it() -> None:
    times = learned([1, 32, 8, 4, 16] * 4, 5 * MS, 0.2 * MS)
    for size in [3, 20, 12, 7] * 50:
        times.add(size, 2 * MS + 0.5 * MS * size)

    assert times.each == pytest.approx(0.5 * MS, rel=0.1)
    assert times.of(10) == pytest.approx(7 * MS, rel=0.1)


def test_batches_of_one_size_are_expected_again() -> None:
    """Of one size no slope can be told; the size itself is known."""
    times = learned([8] * 5, 5 * MS, 0.2 * MS)

    assert times.of(8) == times.mean == pytest.approx(6.6 * MS)
    assert times.each == 0


def test_nothing_is_expected_before_the_first_batch() -> None:
    assert BatchTime().of(32) == 0


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param([30.0, 1.0], id="falls"),
        pytest.param([1.0, 300.0], id="rises-faster-than-size"),
    ],
)
def test_the_line_neither_falls_nor_begins_below_zero(seconds: list[float]) -> None:
    times = BatchTime()
    for size, took in zip([1, 32], seconds, strict=True):
        times.add(size, took)

    assert times.each >= 0
    assert times.fixed >= 0


def test_one_batch_that_hangs_does_not_count_in_full() -> None:
    times = learned([8] * 20, 5 * MS, 0.0)
    times.add(8, 60.0)

    assert times.of(8) == pytest.approx(5.5 * MS)


def test_a_model_that_became_slow_is_believed_in_time() -> None:
    times = learned([8] * 20, 5 * MS, 0.0)
    for _ in range(60):
        times.add(8, 50 * MS)

    assert times.of(8) == pytest.approx(50 * MS, rel=0.05)


def test_a_model_that_took_no_time_may_take_some_later() -> None:
    times = learned([8] * 20, 0.0, 0.0)
    for _ in range(200):
        times.add(8, 5 * MS)

    assert times.of(8) == pytest.approx(5 * MS, rel=0.05)


def observe(arrivals: Arrivals, times: list[float], seconds: float, *, rate: float = 0.0) -> None:
    """Let the event happen at 0 and jobs come after it."""
    arrivals.start(0.0, 0)
    for at in times:
        n = max(n for n, edge in enumerate(arrivals.edges) if edge <= at)
        arrivals.counts[n] += 1
    arrivals.stop(seconds, rate)


def test_a_closed_loop_is_expected_again() -> None:
    """All 16 were back within half a millisecond, each time; then nobody came."""
    arrivals = Arrivals(EDGES)
    for _ in range(100):
        observe(arrivals, [0.25 * MS] * 4 + [0.4 * MS] * 12, 8 * MS)

    assert arrivals.until(0.2 * MS) == 0
    assert arrivals.until(0.3 * MS) == pytest.approx(4 / 1.3, rel=1e-3)
    assert arrivals.until(0.5 * MS) == pytest.approx(16 / 1.3, rel=1e-3)
    assert arrivals.until(8 * MS) == arrivals.until(0.5 * MS)


def test_a_stream_is_flat() -> None:
    arrivals, rng, rate = Arrivals(EDGES), random.Random(1), 5000.0
    for _ in range(400):
        times, now = [], rng.expovariate(rate)
        while now < 30 * MS:
            times.append(now)
            now += rng.expovariate(rate)
        observe(arrivals, times, 30 * MS, rate=rate)

    for until in (0.5 * MS, 1 * MS, 3.3 * MS, 10 * MS, 30 * MS):
        assert arrivals.until(until) == pytest.approx(rate * until, rel=0.35)


def test_bins_that_were_not_seen_teach_nothing() -> None:
    """Each next event came after 2 ms; that nobody came after 5 ms was not seen."""
    arrivals = Arrivals(EDGES)
    observe(arrivals, [5.5 * MS] * 10, 8 * MS)
    before = arrivals.until(6 * MS) - arrivals.until(5 * MS)
    for _ in range(50):
        observe(arrivals, [], 2 * MS, rate=1000.0)

    assert arrivals.until(6 * MS) - arrivals.until(5 * MS) == pytest.approx(before) != 0


def test_beyond_the_last_edge_jobs_come_as_they_do_on_average() -> None:
    arrivals, last = Arrivals(EDGES), EDGES[-1]
    observe(arrivals, [0.25 * MS] * 4, last / 2, rate=500.0)

    assert arrivals.until(last + 10 * MS) - arrivals.until(last) == pytest.approx(5.0)


def test_half_a_bin_counts_half() -> None:
    """Otherwise a stream whose first job is the next event would look twice as slow."""
    whole, half = Arrivals(EDGES), Arrivals(EDGES)
    for _ in range(200):
        observe(whole, [8.5 * MS, 9.5 * MS], 10 * MS)
        observe(half, [8.5 * MS], 9 * MS)

    tenth = whole.until(10 * MS) - whole.until(8 * MS)
    assert half.until(10 * MS) - half.until(8 * MS) == pytest.approx(tenth, rel=1e-3)


def test_a_job_at_the_very_start_of_a_bin_is_not_an_infinite_rate() -> None:
    """A job comes every millisecond and is the next event each time."""
    arrivals = Arrivals(EDGES)
    for _ in range(10_000):
        observe(arrivals, [1 * MS], 1 * MS + 1e-12)

    assert arrivals.until(1.5 * MS) < 3


@pytest.mark.parametrize(
    ("max_wait", "last"),
    [
        pytest.param(0.0, 0.010, id="none"),
        pytest.param(0.001, 0.010, id="short"),
        pytest.param(0.010, 0.0225, id="default"),
        pytest.param(0.1, 0.25628, id="long"),
        pytest.param(1e9, 1.2975, id="endless"),
    ],
)
def test_bins_reach_beyond_the_longest_wait(max_wait: float, last: float) -> None:
    edges = bin_edges(max_wait)

    assert edges == sorted(edges)
    assert edges[0] == 0
    assert edges[-1] == pytest.approx(last, rel=0.01)
    assert len(edges) < 32


def after_rounds(later: Callable[[int], int]) -> Arrivals:
    """Return what is known when 0 to 8 jobs are there at the event and some come 0.4 ms later."""
    arrivals, rng = Arrivals(EDGES), random.Random(3)
    for n in range(400):
        here = rng.randrange(9)
        arrivals.start(n * 1.0, here)
        arrivals.released(n * 1.0)
        arrivals.counts[bisect_right(arrivals.edges, 0.4 * MS) - 1] += later(here)
        arrivals.stop(n + 0.5, 8.0)
    return arrivals


def test_who_is_missing_in_a_loop_comes_and_nobody_else() -> None:
    arrivals = after_rounds(lambda here: 8 - here)
    assert arrivals.made_up > 0.9
    for here, missing in ((0, 4.0), (8, -4.0)):
        arrivals.start(0.0, here)
        before, ends, totals = arrivals.ahead(0.0, 3 * MS, makes_up=True)
        plain = arrivals.ahead(0.0, 3 * MS, makes_up=False)
        assert (before, ends) == plain[:2]
        assert totals[-1] - plain[2][-1] == pytest.approx(missing, abs=1.0)
        assert len(ends) == len(totals)
        assert 0.0 < ends[0] < ends[-1] <= 3 * MS


def test_who_is_missing_in_a_stream_is_not_made_up_for() -> None:
    rng = random.Random(4)
    arrivals = after_rounds(lambda here: rng.randrange(9))
    assert arrivals.made_up < 0.25


def test_what_was_not_seen_for_long_enough_teaches_nothing_about_the_missing() -> None:
    arrivals = Arrivals(EDGES)
    for n in range(100):
        arrivals.start(n * 1.0, n % 9)
        arrivals.released(n + 1 * MS)
        arrivals.stop(n + 2 * MS, 8.0)
    assert arrivals.made_up == 0.0
