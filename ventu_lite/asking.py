"""``service.ask``: requests of the user's own routes, whoever answers them, and how they fail."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any

from .errors import BatchFailed, PayloadError, Unavailable
from .metrics import Reason
from .outcomes import InferenceFailed, Rejected
from .tracebacks import in_one_line, traceback_for

log = logging.getLogger(__name__)

#: Answers values within so many seconds; returns for each the response, a ``Rejected`` of this
#: process, or the ``InferenceFailed`` that a worker has told of.
AnswerValues = Callable[[Sequence[Any], float], list[Any]]


class Asking:
    """Has Python values answered as ``POST /inference`` answers payloads; any thread may call it.

    Args:
        answer: Answers them, in this process or elsewhere.
        timeout: Seconds that a request may take at most.
        count_rejected: Counts what is rejected in this process.
    """

    def __init__(
        self, answer: AnswerValues, timeout: float, count_rejected: Callable[[Reason], None]
    ) -> None:
        self._answer = answer
        self._timeout = timeout
        self._count_rejected = count_rejected

    def ask_all(self, values: Sequence[Any], timeout: float | None) -> list[Any]:
        """Have values answered.

        Args:
            values: What clients would send.
            timeout: Seconds that they may take together, if fewer than the setting.

        Returns:
            For each value the response, or an ``InferenceFailed``.

        Raises:
            InferenceFailed: There is no place for all of them, or no model is ready.
            VentuError: The model asks itself, or the set-up does.
            TypeError, ValueError: The timeout is no number above 0.
        """
        seconds = self._timeout
        if timeout is not None:
            seconds = float(min(_positive(timeout), seconds))
        with _failed_together():
            answers = self._answer(values, seconds)
        return [self._failure(one) if isinstance(one, Rejected) else one for one in answers]

    def _failure(self, rejected: Rejected) -> InferenceFailed:
        """Count and log a rejected item; a route may let the exception pass, unseen by Flask."""
        self._count_rejected(rejected.reason)
        if fault := rejected.fault:
            _log_fault(fault)
        failure = InferenceFailed(rejected.status, rejected.detail, rejected.extra)
        failure.__cause__ = rejected.exc
        failure.is_fault = rejected.is_fault
        return failure


def _positive(timeout: Any) -> Any:
    """Refuse what would never pass, or is over: NaN as a deadline keeps a front awake for ever."""
    is_number = isinstance(timeout, Real) and not isinstance(timeout, bool)
    if not is_number:
        kind = type(timeout).__name__
        raise TypeError(f"timeout must be a number of seconds or None, not {kind}")
    if not timeout > 0:
        raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
    return timeout


@contextlib.contextmanager
def _failed_together() -> Iterator[None]:
    """Turn what no request of a call could be answered for into an ``InferenceFailed``."""
    try:
        yield
    except (PayloadError, Unavailable) as exc:
        failure = InferenceFailed(exc.status, str(exc))
        if isinstance(exc, Unavailable) and exc.retry_after is not None:
            failure.retry_after = exc.retry_after
        raise failure from exc


def _log_fault(fault: BaseException) -> None:
    is_told = isinstance(fault, BatchFailed) and not fault.is_news()  # of another item
    said = str(fault) if is_told else in_one_line(fault)
    shown = None if is_told else traceback_for(fault, log)
    log.error("a request of service.ask failed: %s", said, exc_info=shown)
