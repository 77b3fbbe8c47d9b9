"""Whole batches in one go, as a worker runs them: bytes in, bytes out."""

from collections.abc import Sequence

from .config import Codec, CodecSetting
from .metrics import ServiceMetrics
from .outcomes import Rejected
from .pipeline import Pipeline, Run
from .turns import Turns


class BatchRunner:
    """Takes batches all the way, one at a time; set-up must have succeeded before.

    Args:
        pipeline: The stages.
        setting: The codec of the service.
        turns: Who may call the model.
        metrics: What is counted.

    Attributes:
        mode: Whether it calls a function of one item or of many.
        codec: In which payloads are, ``None`` if each tells its own by its first byte.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        setting: CodecSetting,
        *,
        turns: Turns,
        metrics: ServiceMetrics,
    ) -> None:
        self.mode = pipeline.mode
        self.codec: Codec | None = None if setting == "auto" else setting
        self._pipeline = pipeline
        self._turns = turns
        self._metrics = metrics

    def run(self, payloads: Sequence[bytes]) -> Run:
        """Take a batch all the way, and count it."""
        with self._turns:
            run = self._pipeline.run(payloads, self.codec)
        self._metrics.run(run, self.mode)
        for outcome in run.outcomes:
            if isinstance(outcome, Rejected):
                self._metrics.rejected(outcome.reason)
        return run
