"""When a batch that is not full is released."""

import pytest

from ventu_lite.batching.policy import FixedWait, Policy


@pytest.mark.parametrize(
    ("max_wait", "now", "since", "due_at"),
    [
        pytest.param(0.01, 5.0, 5.0, 5.01, id="waits-from-the-moment-both-are-there"),
        pytest.param(0.01, 5.008, 5.0, 5.01, id="the-clock-does-not-start-again"),
        pytest.param(0.01, 6.0, 5.0, 5.01, id="a-late-question-is-overdue"),
        pytest.param(0.0, 5.0, 5.0, 5.0, id="zero-means-at-once"),
    ],
)
@pytest.mark.parametrize("waiting", [1, 31])
def test_fixed_wait(max_wait: float, now: float, since: float, due_at: float, waiting: int) -> None:
    policy = FixedWait(max_wait)

    answer = policy.due_at(now, since=since, waiting=waiting, room=32 - waiting, idle=1, busy=[])

    assert answer == pytest.approx(due_at)


def test_fixed_wait_learns_nothing() -> None:
    """Whatever it is told, a constant stays a constant."""
    policy: Policy = FixedWait(0.01)

    for n in range(100):
        policy.job_arrived(n * 1.0)
        policy.batch_released(32, n * 1.0)
        policy.batch_finished(32, 0.5, n * 1.0)

    assert policy.due_at(99.0, since=99.0, waiting=1, room=31, idle=1, busy=[]) == 99.01
    assert policy == FixedWait(0.01)
    assert policy.explain() == "the wait is 10 ms"
