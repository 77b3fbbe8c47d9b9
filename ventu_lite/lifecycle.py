"""The life of a model in this process: set-up, warm-up, teardown at exit."""

import atexit
import logging
import os

from .composition import Composition
from .errors import VentuError
from .hints import hint_on
from .outcomes import Rejected
from .pipeline import Pipeline
from .slowness import too_slow
from .tracebacks import said_by
from .turns import Turns

log = logging.getLogger(__name__)


class Lifecycle:
    """Sets one service up in this process, once, and tears it down at exit.

    Args:
        composition: The service.
        turns: Who may call its batch function.
    """

    def __init__(self, composition: Composition, turns: Turns) -> None:
        self._composition = composition
        self._turns = turns
        self._set_up_in: int | None = None

    def set_up(self) -> None:
        """Call the user's ``setup``, unless it has succeeded in this process or its parent.

        Raises:
            Exception: What it raises.
        """
        if self._set_up_in is not None:  # it succeeded, the warm-up after it did not
            return
        stages = self._composition.stages
        if "setup" in stages:
            stages["setup"].fn()
        self._set_up_in = os.getpid()
        if "teardown" in stages:
            atexit.register(self._tear_down)

    def warm_up(self, pipeline: Pipeline) -> None:
        """Run the examples alone and, where there is a batch function, as a batch.

        Raises:
            VentuError: One was rejected.
        """
        is_batch = pipeline.mode == "batch"
        sizes = {1, self._composition.warmup_batch_size} if is_batch else {1}
        took = {1: 0.0}  # seconds, by size; of the last example: the first is often slow
        for number, probe in enumerate(self._composition.probes, 1):
            for size in sorted(sizes):
                with self._turns.turn_for(pipeline.mode):
                    run = pipeline.run([probe.payload] * size, probe.codec)
                for outcome in run.outcomes:
                    if isinstance(outcome, Rejected):
                        times = f"{size} times " if size > 1 else ""
                        raise VentuError(
                            f"warm-up with {times}example {number} failed:"
                            f" {self._told(outcome.exc)}"
                        ) from outcome.exc
                took[size] = run.preprocess + run.infer + run.postprocess
        largest, timeout = max(took), self._composition.config.timeout
        if said := too_slow(largest, took[largest], timeout, alone=took[1]):
            log.warning("in the warm-up %s", said)

    def _told(self, exc: BaseException) -> str:
        if hint := hint_on(exc, self._composition.stages.get("setup")):
            first, _, _ = str(exc).partition("\n")
            return f"{type(exc).__name__}: {first.rstrip('.')}; {hint}"
        return said_by(exc)

    def _tear_down(self) -> None:
        if self._set_up_in == os.getpid():  # a forked child owns nothing of it
            self._composition.stages["teardown"].fn()
