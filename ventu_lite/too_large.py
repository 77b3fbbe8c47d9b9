"""Batches that were too large or too mixed for a model: no answer shows that, so the log does."""

import logging
from collections.abc import Callable

from .retries import Reminders
from .tracebacks import in_one_line

log = logging.getLogger(__name__)


class TooLargeLog:
    """Warns of a function that raised for a batch, though no item of it was to blame.

    Not for several threads at once; batch functions take turns.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._reminders = Reminders(clock)

    def __call__(self, where: str, size: int, exc: BaseException) -> None:
        """Warn, unless that was done a short while ago; see ``OnBlameless``."""
        if self._reminders.is_due(where):
            log.warning(
                "%s raised for %d items together, but for none of them in a smaller batch: %s;"
                " if that comes again, lower max_batch_size or, where items differ in size, pad"
                " them to one or give `key=`, so that only items of one size meet",
                *(where, size, in_one_line(exc)),
            )
