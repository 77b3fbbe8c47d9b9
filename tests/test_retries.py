"""Delays between tries, and reminders of a problem that lasts."""

from itertools import islice

from ventu_lite.retries import MOST_PROBLEMS, Reminders, backoff


def test_delays_grow_up_to_a_limit() -> None:
    assert list(islice(backoff(), 8)) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_problem_that_lasts_is_told_at_growing_intervals() -> None:
    now = 0.0
    reminders = Reminders(lambda: now)
    told = []
    while now < 10_000:
        if reminders.is_due("nobody there"):
            told.append(now)
        now += 5
    assert told == [0, 10, 30, 70, 150, 310, 630, 1270, 2550, 5110, 8710]


def test_another_problem_is_told_at_once() -> None:
    reminders = Reminders(lambda: 0.0)
    problems = ["nobody there", "nobody there", "no such name"]
    assert [reminders.is_due(problem) for problem in problems] == [True, False, True]
    reminders.forget()
    assert reminders.is_due("nobody there")


def test_problems_that_take_turns_are_told_once_each() -> None:
    """Such as a proxy that refuses a connection, then takes it and closes it."""
    now = 0.0
    reminders = Reminders(lambda: now)
    told = []
    while now < 100:
        for problem in ("refused", "closed"):
            if reminders.is_due(problem):
                told.append((now, problem))
        now += 5
    assert told == [(at, problem) for at in (0, 10, 30, 70) for problem in ("refused", "closed")]


def test_of_too_many_problems_the_latest_are_remembered() -> None:
    """A stranger can have as many as he likes, and gets no more memory for that."""
    reminders = Reminders(lambda: 0.0)
    problems = [str(number) for number in range(10 * MOST_PROBLEMS)]
    for problem in problems:
        assert reminders.is_due("that of a worker") == (problem == "0")
        assert reminders.is_due(problem)
    latest = problems[-MOST_PROBLEMS + 1 :]
    assert not any(reminders.is_due(problem) for problem in latest)
    assert reminders.is_due(problems[0])
    assert len(reminders._told) == MOST_PROBLEMS
