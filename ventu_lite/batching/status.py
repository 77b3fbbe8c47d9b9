"""What health, readiness and metrics say, for all processes of a service together."""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ..families import Families, expose, process_collectors

if TYPE_CHECKING:
    from .server import BatchingService

log = logging.getLogger(__name__)

NO_WORKER: Final = "no worker is connected"


class PlainStatus:
    """The status of a batching service that knows nothing of its workers but that they are there.

    Args:
        service: Whose status.
    """

    def __init__(self, service: "BatchingService") -> None:
        self._service = service

    @property
    def why_not_ready(self) -> str:
        """Why no inference can be answered now, "" if one can."""
        if self._service.ready_workers:
            return ""
        service = self._service
        return service.dispatcher.refusal or service.options.why_no_worker() or NO_WORKER

    def health(self, answer: Callable[[bool, dict[str, str]], None]) -> None:
        """Call it healthy when a worker is connected."""
        why = self.why_not_ready
        answer(not why, health_body("Error" if why else "OK", why))

    def metrics(
        self, accept: str, names: list[str], answer: Callable[[int, bytes, str], None]
    ) -> None:
        """Show what this process has counted, and what others wrote into a shared directory."""
        own = Families(self._service.metrics.collect())

        def text() -> tuple[bytes, str]:
            return expose([own, *process_collectors()], accept, names)

        def done(future: "asyncio.Future[tuple[bytes, str]]") -> None:
            if exc := future.exception():
                log.error("the metrics cannot be read", exc_info=exc)
                # Not 200: for Prometheus that would be a scrape that went well, of nothing.
                answer(500, b"the metrics cannot be read; the log says why\n", "text/plain")
            else:
                answer(200, *future.result())

        # In a thread: a directory with the files of many processes takes its time.
        asyncio.get_running_loop().run_in_executor(None, text).add_done_callback(done)


def health_body(inference: str, detail: str = "") -> dict[str, str]:
    """Return what ``GET /health`` shows."""
    body = {"service": "OK", "inference": inference}
    return body | ({"detail": detail} if detail else {})
