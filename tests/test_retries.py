"""Delays between tries, and reminders of a problem that lasts."""

from itertools import islice

from ventu_lite.retries import Reminders, backoff


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
    assert told == [0, 30, 90, 210, 450, 930, 1890, 3810, 7410]


def test_another_problem_is_told_at_once() -> None:
    reminders = Reminders(lambda: 0.0)
    problems = ["nobody there", "nobody there", "no such name", "nobody there"]
    assert [reminders.is_due(problem) for problem in problems] == [True, False, True, True]
    reminders.forget()
    assert reminders.is_due("nobody there")
