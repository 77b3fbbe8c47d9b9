"""When to try again what has failed, and when to tell of it again."""

from collections.abc import Callable, Iterator
from typing import Final

# A batching service that restarts is back within a second, so the first tries come fast. One that
# is gone for longer is not hammered by all its workers, and yet none of them is late by more than
# an operator would wait for.
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
# Who watches wonders after a few seconds; who looks later wants to hear that it still waits.
FIRST_REMINDER, LONGEST_REMINDER = 10.0, 3600.0
# Problems that are remembered: some take turns, and a stranger can have as many as he likes.
MOST_PROBLEMS: Final = 16


def backoff(first: float = FIRST_DELAY, longest: float = LONGEST_DELAY) -> Iterator[float]:
    """Yield the seconds to wait before each new try, without end."""
    delay = first
    while True:
        yield delay
        delay = min(2 * delay, longest)


class Reminders:
    """Decides when a problem that lasts is told again: at once, then at growing intervals.

    Each of several problems has intervals of its own; of too many, the one that did not come for
    the longest time is forgotten.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told: dict[str, tuple[Iterator[float], float]] = {}  # the one that came last is last

    def forget(self) -> None:
        """Note that all problems are over."""
        self._told.clear()

    def is_due(self, problem: str) -> bool:
        """Whether to tell it now, which takes for granted that it then is told."""
        now = self._clock()
        new = backoff(FIRST_REMINDER, LONGEST_REMINDER), now
        intervals, due_at = self._told.pop(problem, new)
        is_due = now >= due_at
        self._told[problem] = intervals, now + next(intervals) if is_due else due_at
        if len(self._told) > MOST_PROBLEMS:
            del self._told[next(iter(self._told))]
        return is_due
