"""How the requests of one process come to the model: at once, one by one, or in batches."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from ..composition import Composition
from ..metrics import ServiceMetrics
from ..pipeline import Pipeline
from ..turns import Turns
from .choose import make_policy
from .direct import AtOnce, OneByOne
from .local import LocalQueue
from .local_jobs import Asked, Inferred


class Model(Protocol):
    """Calls the model for the items of many threads, together or one by one."""

    def ask(self, asked: Asked, deadline: float) -> Inferred:
        """Have one item inferred; see ``LocalQueue.ask``."""

    def ask_all(self, asked: Sequence[Asked], deadline: float) -> list[Inferred]:
        """Have items inferred; see ``LocalQueue.ask_all``."""


def model_of(
    composition: Composition,
    pipeline: Pipeline,
    *,
    turns: Turns,
    metrics: ServiceMetrics,
    clock: Callable[[], float],
) -> Model:
    """Return the way that suits a service.

    Args:
        composition: The service.
        pipeline: Whose ``infer`` is called.
        turns: Who may call a batch function.
        metrics: What is counted.
        clock: Monotonic seconds; deadlines are read on it.
    """
    infer, config = pipeline.infer, composition.config
    if pipeline.mode == "single":
        return AtOnce(infer, metrics=metrics, clock=clock)
    if composition.max_batch_size == 1:
        return OneByOne(infer, capacity=config.capacity, turns=turns, metrics=metrics, clock=clock)
    return LocalQueue(
        infer,
        make_policy=partial(make_policy, config),
        max_batch_size=composition.max_batch_size,
        capacity=config.capacity,
        turns=turns,
        metrics=metrics,
        clock=clock,
        timeout=config.timeout,
        key=composition.batch_key,
    )
