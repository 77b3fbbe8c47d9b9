"""The thread that calls a batch function with the batches of a queue."""

import logging
import threading
from collections.abc import Callable, Sequence

from ..errors import Unavailable
from ..outcomes import Rejected
from ..retries import Reminders
from ..slowness import too_slow
from ..turns import Turns
from .local_jobs import Asked, Infer
from .shared_queue import SharedQueue
from .workers import Batch

log = logging.getLogger(__name__)


class InferenceThread:
    """Calls a batch function in a thread of its own, a daemon.

    It ends when the queue will have no batch any more. One that died may be started again.

    Args:
        infer: Returns one result or ``Rejected`` for each item, in the same order.
        queue: Whose batches it takes.
        turns: Who may call ``infer``.
        name: What the thread is called.
        clock: Monotonic seconds.
        timeout: Seconds that a job lasts at most; a call that takes longer is told of.
    """

    def __init__(
        self,
        infer: Infer,
        queue: SharedQueue,
        *,
        turns: Turns,
        name: str,
        clock: Callable[[], float],
        timeout: float,
    ) -> None:
        self._infer = infer
        self._queue = queue
        self._turns = turns
        self._name = name
        self._clock = clock
        self._timeout = timeout
        self._reminders = Reminders(clock)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start it.

        Raises:
            Unavailable: The process has too many threads, or ends.
        """
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:
            log.exception("the inference thread cannot start; the next request tries it again")
            raise Unavailable("the model cannot be called now", retry_after=1.0) from exc
        self._thread = thread

    def join(self, timeout: float) -> None:
        """Wait until it has ended, if it was ever started."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as exc:  # not even the model's exceptions come here
            log.error("the inference thread died; the next request starts another", exc_info=exc)
            self._queue.fail_all(exc)

    def _step(self) -> bool:
        """Call the model if a batch is due, else sleep until one may be; return whether to go on.

        The turn comes before the batch: a job that comes while a health check runs can join it, and
        one that expires meanwhile is not in it.
        """
        with self._turns:
            batch, asked = self._queue.take()
            if batch is not None:
                self._call(batch, asked)
                return True
        return self._queue.sleep()

    def _call(self, batch: Batch[str], asked: Sequence[Asked]) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s", self._queue.describe(batch))
        began_at = self._clock()
        try:
            results = self._infer([one.item for one in asked], lambda n: asked[n].again())
        except BaseException as exc:  # the isolation lets only KeyboardInterrupt through
            results = [Rejected.of(exc)] * len(asked)
        self._warn_if_slow(batch.size, self._clock() - began_at)
        self._queue.accept(batch, results, began_at)

    def _warn_if_slow(self, size: int, seconds: float) -> None:
        said = too_slow(size, seconds, self._timeout)
        if said and self._reminders.is_due("slow"):
            log.warning("%s", said)
