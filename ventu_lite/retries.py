"""When to try again what has failed, and when to tell of it again."""

from collections.abc import Callable, Iterator

# A batching service that restarts is back within a second, so the first tries come fast. One that
# is gone for longer is not hammered by all its workers, and yet none of them is late by more than
# an operator would wait for.
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
# Who starts the worker first wants to hear it once; who looks later, that it still waits.
FIRST_REMINDER, LONGEST_REMINDER = 30.0, 3600.0


def backoff() -> Iterator[float]:
    """Yield the seconds to wait before each new try, without end."""
    delay = FIRST_DELAY
    while True:
        yield delay
        delay = min(2 * delay, LONGEST_DELAY)


class Reminders:
    """Decides when a problem that lasts is told again: at once, then at growing intervals.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._problem = ""
        self._interval = self._due_at = 0.0

    def forget(self) -> None:
        """Note that the problem is over."""
        self._problem = ""

    def is_due(self, problem: str) -> bool:
        """Whether to tell it now, which takes for granted that it then is told."""
        now = self._clock()
        if problem != self._problem:
            self._problem, self._interval = problem, FIRST_REMINDER
        elif now < self._due_at:
            return False
        else:
            self._interval = min(2 * self._interval, LONGEST_REMINDER)
        self._due_at = now + self._interval
        return True
